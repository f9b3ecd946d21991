"""A store in memory, for tests and as the plainest statement of what a store does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from fused.cid import CID, inline_block, verify
from fused.errors import BlockNotFound
from fused.store.base import Block, LinksOf, Pin, StoreStats

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


class MemoryStore:
    """A Store in a dict. `blocks` is open to tests that want to damage something."""

    def __init__(self, *, grace_s: float = 3600.0) -> None:
        """`grace_s`: how long after its last put gc leaves a block alone."""
        self.blocks: dict[CID, bytes] = {}
        self._put_at: dict[CID, float] = {}
        self._pins: dict[tuple[str, CID], Pin] = {}
        self._grace_s = grace_s

    async def open(self) -> None:
        """See Store."""
        await trio.lowlevel.checkpoint()

    async def put(self, blocks: Sequence[Block]) -> int:
        """See BlockStore."""
        await trio.lowlevel.checkpoint()
        before = len(self.blocks)
        for block in blocks:
            self.blocks.setdefault(block.cid, block.data)
            self._put_at[block.cid] = trio.current_time()
        return len(self.blocks) - before

    async def get(self, cid: CID) -> bytes:
        """See BlockStore."""
        await trio.lowlevel.checkpoint()
        return self._get(cid)

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """See BlockStore."""
        await trio.lowlevel.checkpoint()
        return {cid: self._get(cid) for cid in cids}

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        """See BlockStore."""
        await trio.lowlevel.checkpoint()
        return {cid for cid in cids if cid in self.blocks}

    async def refresh(self, cids: Sequence[CID]) -> set[CID]:
        """See EmbeddedStore."""
        present = await self.has(cids)
        self._put_at.update(dict.fromkeys(present, trio.current_time()))
        return present

    async def repair(self, blocks: Sequence[Block]) -> int:
        """See EmbeddedStore."""
        await trio.lowlevel.checkpoint()
        damaged = {block.cid: block for block in blocks if self.blocks.get(block.cid) != block.data}
        for block in damaged.values():
            self.blocks[block.cid] = block.data
            self._put_at[block.cid] = trio.current_time()
        return len(damaged)

    async def stats(self) -> StoreStats:
        """See BlockStore."""
        await trio.lowlevel.checkpoint()
        size = sum(map(len, self.blocks.values()))
        return StoreStats(len(self.blocks), size, size)

    async def aclose(self) -> None:
        """See BlockStore."""
        await trio.lowlevel.checkpoint()

    async def pin(self, pin: Pin) -> None:
        """See PinStore."""
        await trio.lowlevel.checkpoint()
        if pin.cid not in self.blocks:
            raise BlockNotFound(pin.cid)
        self._pins[pin.owner, pin.cid] = pin

    async def unpin(self, owner: str, cid: CID) -> None:
        """See PinStore."""
        await trio.lowlevel.checkpoint()
        self._pins.pop((owner, cid), None)

    async def pins(self, owner: str | None = None) -> list[Pin]:
        """See PinStore."""
        await trio.lowlevel.checkpoint()
        return [pin for pin in self._pins.values() if owner in (None, pin.owner)]

    async def gc(self, links_of: LinksOf) -> int:
        """See PinStore."""
        await trio.lowlevel.checkpoint()
        reachable: set[CID] = set()
        todo = [pin.cid for pin in self._pins.values()]
        while todo:
            cid = todo.pop()
            if cid not in reachable:
                reachable.add(cid)
                data = inline_block(cid)
                todo += links_of(cid, self._get(cid) if data is None else data)
        old = trio.current_time() - self._grace_s
        garbage = [cid for cid in self.blocks if cid not in reachable and self._put_at[cid] <= old]
        for cid in garbage:
            del self.blocks[cid], self._put_at[cid]
        return len(garbage)

    def _get(self, cid: CID) -> bytes:
        if cid not in self.blocks:
            raise BlockNotFound(cid)
        verify(cid, self.blocks[cid])
        return self.blocks[cid]
