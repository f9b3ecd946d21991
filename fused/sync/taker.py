"""One scan or one snapshot from beginning to end: what is frozen, in what order things become true.

The order of a snapshot: freeze (the instant T), stats that changed without content go into the index,
blocks into the store, memos into the index, the snapshot's own block, its pin, its row in the index, thaw.
Whatever fails or is killed in between leaves the snapshot before as the newest, and the files dirty.
"""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol, TypeVar, cast

import trio

from fused import __version__, allocator
from fused.dag.meta import Snapshot, decode_snapshot, encode_snapshot
from fused.errors import BlockNotFound, DagError, StoreError
from fused.index.index import SnapshotRow
from fused.inline import run_inline
from fused.store.base import BlockStore, Pin, PinStore
from fused.sync.backlog import count_backlog
from fused.sync.capture import Capturer
from fused.sync.excludes import Excludes, read_ignore_file
from fused.sync.ingest import racy
from fused.sync.outbox import Outbox
from fused.sync.recover import pin_name, row_of
from fused.sync.scan import Scan
from fused.sync.snapshot import TreeEncoder, TreeRoot
from fused.sync.storer import storer_for
from fused.sync.summary import Changed, count_changes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fused.cid import CID
    from fused.dag.seal import Seal
    from fused.index.index import Index
    from fused.store.base import NodeStore
    from fused.sync.changes import ChangeLog
    from fused.sync.credentials import Credentials
    from fused.sync.disclosure import Disclosure
    from fused.sync.visit import Notes
    from fused.types import FileKey, Stat

log = logging.getLogger(__name__)

R = TypeVar("R")

UNPINNED_AT_ONCE = 100
"""Snapshots that are let go of after one that was taken; what is left over is for the next. Each is a request."""


class Store(BlockStore, PinStore, Protocol):
    """What is needed of a store."""


class Taker:
    """The steps. `Engine` sees to it that there is one at a time and that a failure is followed by `thaw`."""

    def __init__(
        self,
        *,
        root_fd: int,
        changes: ChangeLog,
        store: Store,
        index: Index,
        owner: str,
        exclude: Sequence[str],
        notes: Notes,
        seal: Seal,
        store_id: str,
        node: NodeStore | None,
        disclosure: Disclosure,
    ) -> None:
        """`store_id` tells one store from another; `node` is the store, if it is one with a node behind it."""
        self._root_fd = root_fd
        self._changes = changes
        self._store = store
        self._index = index
        self._owner = owner
        self._exclude = tuple(exclude)
        self._notes = notes
        self._seal = seal
        self._storer = storer_for(store, seal)
        self._store_id = store_id
        self._node = node
        self._disclosure = disclosure
        self._withheld: Credentials | None = None
        self._distrusted = False
        self._racy: set[FileKey] = set()
        self._limiter = trio.CapacityLimiter(1)
        self.capturer: Capturer | None = None
        self.scanning: Scan | None = None
        self.pinning = False
        """All blocks are in the store; the snapshot that needs them is not yet."""

    async def _thread(self, work: Callable[..., R], *args: object) -> R:
        return await trio.to_thread.run_sync(work, *args, limiter=self._limiter)

    async def scan(self) -> None:
        """Find and store what is not stored. Raises StoreError, IndexUnavailable, IndexDamaged, OSError."""
        self._withheld = await self._disclosure.withheld()
        await self.check_store()
        await self._with_outbox(self._scan_thread)

    async def excludes_changed(self) -> bool:
        """Whether the patterns differ from those of the last snapshot."""
        excludes = await self._thread(self._load_excludes)
        return await self._thread(self._index.about, "excludes") != excludes.digest

    async def take(self, last: SnapshotRow | None, at_freeze: Callable[[], None]) -> SnapshotRow:
        """The snapshot of now; `last` itself if nothing in it would be different. Raises as `scan` does.

        `at_freeze` is called at the instant T. Raises BlockNotFound if the store has lost something: `distrust` then.
        """
        self._withheld = await self._disclosure.withheld()
        await self._thread(self._prepare)
        async with self._changes.settled():
            # The instant T: no checkpoint among these.
            at_freeze()
            self._changes.freeze()
            carries, gone = self._changes.take_carries(), self._changes.take_gone()
            time_ns = time.time_ns()
        await self._thread(self._carry, carries, gone)
        root = await self._with_outbox(self._encode_thread)
        same = last is not None and (last.tree, last.meta) == (root.tree, root.meta)
        self.pinning = True
        try:
            # The same, but is it there? Not if the store was moved away and has been filled anew.
            if last is None or not same or self._distrusted or not await self._store.has([last.cid]):
                # One that is lost can't be compared with, and looking for it in a network takes long.
                last = await self._finish(None if self._distrusted else last, root, time_ns)
                self._distrusted = False
        finally:
            self.pinning = False
        self._changes.thaw(stored=True)
        return last

    async def settle(self) -> None:
        """Memos made too soon after a change are good after all: time has passed, and we saw no write since."""
        await self._thread(self._carry, self._changes.take_carries(), self._changes.take_gone())
        if self._racy:
            await self._thread(self._settle)
        await self._thread(allocator.give_back)

    async def recover(self) -> None:
        """List the snapshots that the store's pins know, if the index knows none."""
        if await self._thread(self._index.snapshots, 1):
            return
        for pin in await self._store.pins(self._owner):
            try:
                block = await self._store.get(pin.cid)
                if self._node is not None and decode_snapshot(pin.cid, block).host != socket.gethostname():
                    continue  # of another machine, which covers a directory of the same path: its own to keep
                row = row_of(pin, block)
            except (StoreError, DagError) as exc:
                log.warning("a pinned snapshot can't be listed: %s", exc)
                continue
            await self._thread(self._index.add_snapshot, row)

    def close(self) -> None:
        """End what was started. Blocks for a moment; no other method may be called afterwards."""
        if self._storer is not None:
            self._storer.close()

    async def check_store(self) -> bool:
        """Distrust the index if the store does not have what it should: it is another one, was deleted, or replaced.

        Returns whether it is trusted. Raises StoreUnavailable, IndexUnavailable, IndexDamaged.
        """
        if self._distrusted:
            return False
        if await self._thread(self._index.about, "store") not in (None, self._store_id):
            await self.distrust("this is another store than before")
        await self._thread(self._index.set_about, "store", self._store_id)
        newest = await self._thread(self._index.snapshots, 1)
        if newest and not self._distrusted and not await self._is_kept(newest[0]):
            await self.distrust("the store does not have the last snapshot any more")
        return not self._distrusted

    async def distrust(self, why: str) -> None:
        """Believe nothing of what the index says is stored, until the next snapshot."""
        log.warning("%s; all files are stored again", why)
        self._distrusted = True
        await self._thread(self._index.drop_contents)

    async def retain(self, keep: int) -> None:
        """Let go of snapshots, oldest first, until the newest `keep` are left; 0: of none. Raises StoreUnavailable."""
        if keep == 0:
            return
        rows = await self._thread(self._index.snapshots)
        kept = {row.cid for row in rows[:keep]}
        gone: list[CID] = []
        try:
            for row in list(reversed(rows[keep:]))[:UNPINNED_AT_ONCE]:
                if row.cid not in kept:
                    await self._store.unpin(self._owner, row.cid)
                    gone.append(row.cid)
        finally:
            with trio.CancelScope(shield=True):
                await self._thread(self._index.drop_snapshots, gone)

    async def show(self, tree: CID) -> None:
        """Let people see the tree at the node. Raises StoreUnavailable."""
        if self._node is not None:
            await self._node.show(self._owner, tree)

    async def backlog(self) -> tuple[int, int]:
        """(files, bytes) that a scan would store, without asking the store. Raises OSError, IndexDamaged."""
        excludes = await self._thread(self._load_excludes)
        return await trio.to_thread.run_sync(
            count_backlog, self._root_fd, self._changes, self._index, excludes, trio.from_thread.check_cancelled
        )

    # --- on trio ------------------------------------------------------------------------------------------

    async def _with_outbox(self, work: Callable[[Capturer], R]) -> R:
        excludes = await self._thread(self._load_excludes)
        outbox = Outbox(self._store, self._index, self._changes, puts=1 if self._node is None else 2)
        self.capturer = Capturer(
            self._root_fd, self._changes, self._index, outbox, excludes, self._notes, self._seal, self._storer
        )
        try:
            result: R | None = None
            error: Exception | None = None
            async with trio.open_nursery() as nursery:
                nursery.start_soon(outbox.run)
                try:
                    result = await self._thread(work, self.capturer)
                except Exception as exc:  # kept out of the nursery, which would wrap it into a group
                    error = exc
                nursery.cancel_scope.cancel()
            if error is not None:
                raise error
            return cast("R", result)
        finally:
            self._racy.update(outbox.racy)
            self.capturer = None
            self.scanning = None

    async def _is_kept(self, row: SnapshotRow) -> bool:
        """Whether the snapshot is stored, and pinned: a node's other users may have taken its pin away."""
        wanted = {row.cid, row.tree, row.meta}
        if len(await self._store.has(list(wanted))) < len(wanted):
            return False
        if self._node is None or any(pin.cid == row.cid for pin in await self._store.pins(self._owner)):
            return True
        log.warning("the node does not keep the last snapshot any more; it is pinned again")
        try:
            await self._store.pin(Pin(self._owner, row.cid, pin_name(row.files, row.bytes)))
        except BlockNotFound:
            return False
        return True

    async def _finish(self, last: SnapshotRow | None, root: TreeRoot, time_ns: int) -> SnapshotRow:
        snapshot = Snapshot(root.tree, root.meta, time_ns, socket.gethostname(), __version__)
        block = encode_snapshot(snapshot, self._seal)
        await self._store.put([block])
        await self._store.pin(Pin(self._owner, block.cid, pin_name(root.files, root.bytes)))
        changed = Changed(root.files, 0, 0)
        if last is not None:
            changed = await self._thread(self._count_thread, last.tree, root.tree)
        row = SnapshotRow(block.cid, root.tree, root.meta, time_ns, root.files, root.bytes, *changed)
        await self._thread(self._index.add_snapshot, row)
        return row

    # --- in the worker thread -------------------------------------------------------------------------------

    def _scan_thread(self, capturer: Capturer) -> None:
        self.scanning = Scan(capturer)
        self.scanning.run(trio.from_thread.check_cancelled)

    def _encode_thread(self, capturer: Capturer) -> TreeRoot:
        return TreeEncoder(capturer).run(trio.from_thread.check_cancelled)

    def _count_thread(self, old: CID, new: CID) -> Changed:
        # Decoding large directories takes milliseconds: here, not on the thread that serves requests.
        async def get(cid: CID) -> bytes:
            return trio.from_thread.run(self._store.get, cid)

        try:
            return run_inline(count_changes(get, old, new))
        except StoreError as exc:
            log.warning("changes since the last snapshot not counted: %s", exc)
            return Changed(0, 0, 0)

    def _load_excludes(self) -> Excludes:
        return Excludes([*self._exclude, *read_ignore_file(self._root_fd)], self._withheld)

    def _prepare(self) -> None:
        """Look at every directory again if other patterns hold than for the snapshot before."""
        excludes = self._load_excludes()
        if self._index.about("excludes") != excludes.digest:
            self._index.drop_all_dirs()
            self._index.set_about("excludes", excludes.digest)

    def _carry(self, carries: dict[FileKey, tuple[Stat, Stat]], gone: list[FileKey]) -> None:
        if gone:
            self._racy.difference_update(gone)  # or it would grow as long as there is no quiet moment to settle in
            self._index.drop_files(key[1] for key in gone)
        if not carries:
            return
        memos = self._index.files(key[1] for key in carries)
        carried = []
        for key, (was, now) in carries.items():
            memo = memos.get(key[1])
            if memo is not None and memo.stat == was:
                carried.append(replace(memo, stat=now, racy=racy(now.ctime_ns)))
                if carried[-1].racy:
                    self._racy.add(key)
        self._index.put_files(carried)

    def _settle(self) -> None:
        keys = {key for key in self._racy if not self._changes.changed_since(key)}
        memos = self._index.files(key[1] for key in keys)
        settled = {m.ino for m in memos.values() if m.racy and not racy(m.stat.ctime_ns)}
        self._index.put_files([replace(memos[ino], racy=False) for ino in settled])
        # Those that changed meanwhile get a new memo anyhow.
        self._racy = {key for key in keys if key[1] in memos and key[1] not in settled and memos[key[1]].racy}
