"""Blocks in a dict: the least that reading a tree needs, and a count of what it took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from fused.cid import CID
from fused.errors import BlockNotFound
from fused.types import Block


class Blocks:
    """`get` and `get_many` over a dict. `fetched` lists every block that was asked for, in order."""

    def __init__(self, blocks: Iterable[Block] = ()) -> None:
        self.data: dict[CID, bytes] = dict(blocks)
        self.fetched: list[CID] = []

    def add(self, blocks: Iterable[Block]) -> None:
        self.data.update(blocks)

    async def get(self, cid: CID) -> bytes:
        self.fetched.append(cid)
        try:
            return self.data[cid]
        except KeyError:
            raise BlockNotFound(cid) from None

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        return {cid: await self.get(cid) for cid in cids}
