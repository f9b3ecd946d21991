"""A wrapper that trusts no store: every block that comes out of it is checked against its CID.

The embedded store does the same itself, with the same `fused.cid.verify`, because only it can tell a block that is cut
short from one that is missing. This is for stores whose blocks come from elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from fused.cid import CID, verify
from fused.errors import BlockNotFound

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fused.store.base import Block, BlockStore, StoreStats

# Hashing 64 KiB takes 40 µs, about what it costs to go to a thread and back
# (python -m timeit -s 'import hashlib; d = bytes(65536)' 'hashlib.sha256(d).digest()').
_INLINE_BYTES = 64 << 10


class VerifyingStore:
    """A BlockStore around another one, which it owns and closes."""

    def __init__(self, inner: BlockStore) -> None:
        """`inner` may lie about the content of blocks."""
        self._inner = inner

    async def put(self, blocks: Sequence[Block]) -> int:
        """See BlockStore."""
        return await self._inner.put(blocks)

    async def get(self, cid: CID) -> bytes:
        """See BlockStore."""
        data = await self._inner.get(cid)
        await _verify_all({cid: data})
        return data

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """See BlockStore. A store that gives less than it was asked for is caught too."""
        blocks = await self._inner.get_many(cids)
        for cid in cids:
            if cid not in blocks:
                raise BlockNotFound(cid)
        await _verify_all(blocks)
        return blocks

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        """See BlockStore."""
        return await self._inner.has(cids)

    async def stats(self) -> StoreStats:
        """See BlockStore."""
        return await self._inner.stats()

    async def aclose(self) -> None:
        """Close the inner store."""
        await self._inner.aclose()


async def _verify_all(blocks: Mapping[CID, bytes]) -> None:
    def check() -> None:
        for cid, data in blocks.items():
            verify(cid, data)

    if sum(map(len, blocks.values())) <= _INLINE_BYTES:
        check()
    else:
        await trio.to_thread.run_sync(check)
