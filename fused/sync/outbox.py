"""Blocks on their way to the store, and what may be remembered once they are there.

A worker thread fills it; trio tasks empty it (`run`). So hashing goes on while the batch before is written and made
durable. A node far away is sent two batches at a time: while it digests the last of one, the next is on its way. In
memory are at most `BATCHES` batches, the one that is being filled among them. The order is what makes the index true:
all blocks sent before durable in the store, then the memo of them in the index, then the file counts as captured.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from fused.index.index import DirMemo, FileMemo, Index
    from fused.store.base import Block, BlockStore
    from fused.sync.changes import ChangeLog
    from fused.types import FileKey

BATCH_BYTES = 16 << 20
BATCH_BLOCKS = 4096
BATCHES = 3


@dataclass(slots=True)
class _Batch:
    blocks: list[Block] = field(default_factory=list)
    size: int = 0
    files: list[tuple[FileKey, FileMemo]] = field(default_factory=list)
    dirs: list[DirMemo] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    stale: list[int] = field(default_factory=list)
    done: trio.Event | None = None


class Outbox:
    """One use: fill it from one worker thread, `drain` at the end. `blocks` and `bytes` count what was new."""

    def __init__(self, store: BlockStore, index: Index, changes: ChangeLog, *, puts: int = 1) -> None:
        """`puts`: how many batches the store is given at the same time."""
        self._store = store
        self._index = index
        self._changes = changes
        self._puts = trio.Semaphore(puts)
        self._send, self._receive = trio.open_memory_channel[_Batch](BATCHES - 1 - puts)
        self._batch = _Batch()
        self._error: BaseException | None = None
        self.new_blocks = 0
        self.racy: list[FileKey] = []
        """Files whose memo is not good for another run of the daemon, unless it is settled (`Engine`)."""

    # --- worker thread ------------------------------------------------------------------------------------

    def put(self, block: Block) -> None:
        """Send a block off. Raises what the store raised, here or on an earlier call."""
        batch = self._batch
        batch.blocks.append(block)
        batch.size += len(block.data)
        if batch.size >= BATCH_BYTES or len(batch.blocks) >= BATCH_BLOCKS:
            self._ship()

    def put_all(self, blocks: list[Block]) -> None:
        """Send several blocks off."""
        for block in blocks:
            self.put(block)

    def remember_file(self, key: FileKey, memo: FileMemo) -> None:
        """Put `memo` into the index once all blocks sent before are stored; the file is captured then."""
        self._batch.files.append((key, memo))
        if len(self._batch.files) >= BATCH_BLOCKS:
            self._ship()

    def remember_dir(self, memo: DirMemo, links: list[tuple[int, int]]) -> None:
        """Put a directory's memo into the index once all blocks sent before are stored."""
        self._batch.dirs.append(memo)
        self._batch.links.extend(links)

    def forget_dirs(self, inos: Iterable[int]) -> None:
        """Drop the memos of directories, before any memo that is put in after this call.

        A directory's memo must never stand beside a newer one of a file below it: after a kill in between, the file
        would be clean, and the directory taken for unchanged, so that the next snapshot would have the old content.
        """
        self._batch.stale.extend(inos)

    def drain(self) -> None:
        """Wait until everything sent is stored and remembered. Raises what the store or the index raised."""
        self._batch.done = done = trio.Event()
        self._ship()
        trio.from_thread.run(done.wait)
        self._check()

    def _ship(self) -> None:
        self._check()
        batch, self._batch = self._batch, _Batch()
        trio.from_thread.run(self._send.send, batch)

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    # --- trio -----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Store what comes until cancelled. An error is kept for the worker thread; what follows it is dropped."""
        before = trio.Event()
        before.set()
        async with trio.open_nursery() as nursery:
            while True:
                await self._puts.acquire()
                batch = await self._receive.receive()
                over = trio.Event()
                nursery.start_soon(self._handle, batch, before, over)
                before = over

    async def _handle(self, batch: _Batch, before: trio.Event, over: trio.Event) -> None:
        """Store and remember one batch. `before` says that the one before it is remembered, `over` that this one is."""
        try:
            await self._keeping_errors(self._store_blocks, batch)
            await before.wait()
            await self._keeping_errors(self._remember_all, batch)
        finally:
            over.set()
            self._puts.release()
            if batch.done is not None:
                batch.done.set()

    async def _keeping_errors(self, act: Callable[[_Batch], Awaitable[None]], batch: _Batch) -> None:
        if self._error is None:
            try:
                await act(batch)
            except Exception as exc:  # the worker thread raises it, where a person can see what failed
                self._error = self._error or exc

    async def _store_blocks(self, batch: _Batch) -> None:
        if batch.blocks:
            new = await self._store.put(batch.blocks)
            self.new_blocks += new
            batch.blocks = []

    async def _remember_all(self, batch: _Batch) -> None:
        if batch.files or batch.dirs or batch.stale:
            await trio.to_thread.run_sync(self._remember, batch)

    def _remember(self, batch: _Batch) -> None:
        if batch.stale:
            self._index.drop_dirs(batch.stale)
        if batch.files:
            self._index.put_files([memo for _, memo in batch.files])
            for key, memo in batch.files:
                self._changes.captured(key, stored=True)
                if memo.racy:
                    self.racy.append(key)
        if batch.dirs:
            self._index.put_dirs(batch.dirs, batch.links)
