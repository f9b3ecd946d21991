"""A store in memory that has what a node's store has besides: it may be down, others may reach it, it shows trees.

For what the program does with such a store. How a real node behaves is tested with real nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import trio

from fused.cid import CID, inline_block
from fused.dag.node import links_of
from fused.errors import BlockNotFound, StoreError, StoreUnavailable
from fused.store.base import Block, LinksOf, NodeStatus, Pin, Reach
from fused.store.memory import MemoryStore


class MemoryNode(MemoryStore):
    """NodeStore. Everything but `node` fails while it is `down`; `pin` looks at the whole DAG, as that of a node."""

    def __init__(self, reach: Reach | None = "offline") -> None:
        super().__init__()
        self.reach = reach
        self.down = False
        self.shown: dict[str, CID] = {}
        self.refuses_to_show = False
        self.puts = 0

    def _check(self) -> None:
        if self.down:
            raise StoreUnavailable("the node in memory can't be reached: connection refused")

    async def node(self) -> NodeStatus:
        await trio.lowlevel.checkpoint()
        try:
            self._check()
        except StoreUnavailable as exc:
            return NodeStatus("memory", str(exc))
        return NodeStatus("memory", None, "memory 1.0", "12D3", self.reach)

    async def put(self, blocks: Sequence[Block]) -> int:
        self._check()
        self.puts += 1
        return await super().put(blocks)

    async def get(self, cid: CID) -> bytes:
        self._check()
        return await super().get(cid)

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        self._check()
        return await super().has(cids)

    async def pin(self, pin: Pin) -> None:
        self._check()
        todo = [pin.cid]
        while todo:
            cid = todo.pop()
            data = inline_block(cid) or self.blocks.get(cid)
            if data is None:
                raise BlockNotFound(cid)
            todo += links_of(cid, data)
        await super().pin(pin)

    async def unpin(self, owner: str, cid: CID) -> None:
        self._check()
        await super().unpin(owner, cid)

    async def pins(self, owner: str | None = None) -> list[Pin]:
        self._check()
        return await super().pins(owner)

    async def gc(self, links_of: LinksOf) -> int:
        self._check()
        return await super().gc(links_of)

    async def inspect(self, cids: Sequence[CID]) -> Mapping[CID, bytes | StoreError]:
        self._check()
        await trio.lowlevel.checkpoint()
        return {cid: self.blocks.get(cid, BlockNotFound(cid)) for cid in cids}

    async def show(self, name: str, tree: CID) -> None:
        self._check()
        await trio.lowlevel.checkpoint()
        if self.refuses_to_show:
            raise StoreUnavailable("the node in memory shows nothing")
        self.shown[name] = tree
