"""The embedded store: blocks on local disk, shared by all mounts of a user, safe for several processes.

This module is the trio side: each method runs in a thread, so that neither the disk nor another process ever holds up
the event loop. What happens there is in `blocking.py`, made of `rows.py` (blocks), `pins.py` and `collect.py` (gc) over
`database.py` and `blobs.py`; the directory's layout is in `directory.py`.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING, TypeVar

import trio

from fused.errors import StoreUnavailable
from fused.store.base import OpenedInContext
from fused.store.blocking import GRACE_S, BlockingStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.cid import CID
    from fused.store.base import Block, LinksOf, Pin, StoreStats

# Reads are short, and many may come at once. Writers wait for each other at the database anyway, but one can write
# files while another commits. gc has a thread to itself. So neither kind ever waits for a thread of another.
_READERS = 4
_WRITERS = 2

# How long closing waits for threads of cancelled reads.
_CLOSE_S = 5.0

T = TypeVar("T")

log = logging.getLogger(__name__)


class EmbeddedStore(OpenedInContext):
    """BlockStore and PinStore over a directory. `open` before use, `aclose` after, or `async with`.

    Cancelling a read returns at once, also when the disk hangs, so deadlines work; its thread ends when it can.
    Cancelling a write waits for the step at hand (a file, a transaction, a sync: fractions of a second) and leaves the
    store whole. Every method raises StoreUnavailable, with a sentence for a person, when disk or database fail.
    """

    def __init__(self, path: str | os.PathLike[str], *, grace_s: float = GRACE_S) -> None:
        """The store in directory `path`, made by `open` if it is not there.

        All processes that share a store must agree on `grace_s`; it is a parameter for tests.
        """
        self.path = os.path.abspath(path)
        self.grace_s = grace_s
        self._readers = trio.CapacityLimiter(_READERS)
        self._writers = trio.CapacityLimiter(_WRITERS)
        self._collectors = trio.CapacityLimiter(1)
        self._store: BlockingStore | None = None

    async def open(self) -> None:
        """Make or check the store and connect to it. Raises StoreUnavailable."""
        self._store = await trio.to_thread.run_sync(
            lambda: BlockingStore(self.path, grace_s=self.grace_s), limiter=self._writers
        )

    async def put(self, blocks: Sequence[Block]) -> int:
        """See BlockStore. Blocks that a read found damaged are written again; `repair` looks for damage itself."""
        return await self._in_thread(self._writers, lambda store: store.rows.put(blocks, _check_cancelled))

    async def get(self, cid: CID) -> bytes:
        """See BlockStore. A block whose row is there but whose bytes are gone is BlockCorrupt, not BlockNotFound."""
        return await self._read(lambda store: store.rows.get(cid))

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """See BlockStore. Everything is in memory at once: ask for as much as you want to hold."""
        return await self._read(lambda store: store.rows.get_many(cids))

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        """See BlockStore. Looks at the database only; blocks known to be damaged don't count."""
        return await self._read(lambda store: store.rows.has(cids))

    async def stats(self) -> StoreStats:
        """See BlockStore. Cheap with any number of blocks."""
        return await self._read(lambda store: store.rows.stats())

    async def refresh(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that are stored, and keep them from gc for another grace, as a put would.

        For whoever is going to pin a DAG with blocks that were stored long ago and may be in no pinned DAG now.
        """
        return await self._in_thread(self._writers, lambda store: store.rows.refresh(cids, _check_cancelled))

    async def repair(self, blocks: Sequence[Block]) -> int:
        """Put that trusts nothing: what is stored of `blocks` is read, and written again if damaged or missing.

        Returns how many had to be written. Durable on return, like `put`.
        """
        return await self._in_thread(self._writers, lambda store: store.rows.repair(blocks, _check_cancelled))

    async def pin(self, pin: Pin) -> None:
        """See PinStore."""
        await self._in_thread(self._writers, lambda store: store.pins.add(pin))

    async def unpin(self, owner: str, cid: CID) -> None:
        """See PinStore."""
        await self._in_thread(self._writers, lambda store: store.pins.remove(owner, cid))

    async def pins(self, owner: str | None = None) -> list[Pin]:
        """See PinStore."""
        return await self._read(lambda store: store.pins.list(owner))

    async def gc(self, links_of: LinksOf) -> int:
        """See PinStore; why it is safe beside other processes is told in `collect.py`.

        `links_of` is called in a thread. Cancellation leaves the store whole, with some of the garbage removed.
        """

        return await self._in_thread(self._collectors, lambda store: store.gc(links_of, _check_cancelled))

    async def aclose(self) -> None:
        """See BlockStore. Calls that are under way must have ended; it waits a while for threads of cancelled reads."""
        store, self._store = self._store, None
        if store is None:
            return
        with trio.CancelScope(shield=True):
            if await self._reads_have_ended():
                await trio.to_thread.run_sync(store.close, limiter=self._writers)
            else:
                # A thread hangs in a descriptor. Closing that could hand its number to another file under its feet;
                # the end of the process closes it better.
                log.warning("the disk of the store %s hangs; it is left open", self.path)

    async def _reads_have_ended(self) -> bool:
        """Wait for all threads of reads, by taking their place, but not for ever."""
        places: list[object] = []
        with trio.move_on_after(_CLOSE_S):
            for _ in range(_READERS):
                place = object()
                await self._readers.acquire_on_behalf_of(place)
                places.append(place)
        for place in places:
            self._readers.release_on_behalf_of(place)
        return len(places) == _READERS

    async def _read(self, call: Callable[[BlockingStore], T]) -> T:
        return await trio.to_thread.run_sync(call, self._opened(), limiter=self._readers, abandon_on_cancel=True)

    async def _in_thread(self, limiter: trio.CapacityLimiter, call: Callable[[BlockingStore], T]) -> T:
        return await trio.to_thread.run_sync(call, self._opened(), limiter=limiter)

    def _opened(self) -> BlockingStore:
        if self._store is None:
            raise StoreUnavailable(f"the store {self.path} is not open")
        return self._store


def _check_cancelled() -> None:
    """In a thread: raise trio.Cancelled if the task that waits for it was cancelled."""
    trio.from_thread.check_cancelled()
