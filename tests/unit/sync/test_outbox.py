"""Two batches at the store at once, and the index true all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import trio

from fused.cid import RAW
from fused.dag.seal import plain_seal
from fused.errors import StoreUnavailable
from fused.index.index import FileMemo, Index
from fused.store.memory import MemoryStore
from fused.sync.changes import ChangeLog
from fused.sync.outbox import BATCH_BYTES, Outbox
from fused.types import Block, Stat

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence
    from pathlib import Path


class GatedStore(MemoryStore):
    """Each `put` waits for its turn, which the test gives; a turn may be an error."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = [trio.Event() for _ in range(8)]
        self.turns = [trio.Event() for _ in range(8)]
        self.errors: dict[int, Exception] = {}
        self._numbers = iter(range(8))

    async def put(self, blocks: Sequence[Block]) -> int:
        number = next(self._numbers)
        self.begun[number].set()
        await self.turns[number].wait()
        if number in self.errors:
            raise self.errors[number]
        return await super().put(blocks)


def block(number: int) -> Block:
    """One that is a batch of its own."""
    return Block(*plain_seal(RAW, bytes([number]) * BATCH_BYTES))


def memo(number: int) -> FileMemo:
    return FileMemo(number, Stat(BATCH_BYTES, 0, 0), False, block(number).cid, BATCH_BYTES, ())


def fill(outbox: Outbox, count: int) -> None:
    """As a worker does: the memo of a file after its blocks. The one of file 1 travels with the block of file 2."""
    for number in range(1, count + 1):
        outbox.put(block(number))
        outbox.remember_file((1, number), memo(number))
    outbox.drain()


class Worker:
    """Fills the outbox in a thread; `ended` with `error` or without."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self.ended = trio.Event()
        self.error: StoreUnavailable | None = None

    async def run(self) -> None:
        try:
            await trio.to_thread.run_sync(fill, self._outbox, 3)
        except StoreUnavailable as exc:
            self.error = exc
        self.ended.set()


@dataclass
class Scene:
    store: GatedStore
    index: Index
    worker: Worker

    def known(self) -> set[int]:
        return set(self.index.files(range(1, 9)))


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    store, index = GatedStore(), Index(str(tmp_path))
    outbox = Outbox(store, index, ChangeLog(str(tmp_path)), puts=2)
    worker = Worker(outbox)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outbox.run)
            nursery.start_soon(worker.run)
            yield Scene(store, index, worker)
            nursery.cancel_scope.cancel()
    index.close()


async def test_a_memo_waits_for_all_blocks_that_were_sent_before_it(scene: Scene) -> None:
    store = scene.store
    await store.begun[1].wait()
    store.turns[1].set()  # with the memo of file 1, whose block is not stored yet
    with trio.move_on_after(0.2):
        await store.begun[2].wait()
    assert not store.begun[2].is_set()  # two at most
    assert scene.known() == set()
    store.turns[0].set()
    store.turns[2].set()
    await scene.worker.ended.wait()
    assert scene.worker.error is None
    assert scene.known() == {1, 2, 3}


async def test_after_a_batch_that_failed_nothing_is_remembered(scene: Scene) -> None:
    store = scene.store
    await store.begun[1].wait()
    store.errors[0] = StoreUnavailable("the first one is lost")
    for turn in reversed(store.turns):
        turn.set()
    await scene.worker.ended.wait()
    assert str(scene.worker.error) == "the first one is lost"
    assert scene.known() == set()
