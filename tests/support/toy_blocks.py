"""Blocks for tests of stores: leaves, and nodes that are DAG-CBOR, as a store with a node behind it looks into them."""

from __future__ import annotations

import random

from fused.cid import CID, DAG_CBOR, RAW, cid_of, codec_of
from fused.dag import dagcbor
from fused.store.base import Block


def raw(content: bytes) -> Block:
    """A leaf."""
    return Block(cid_of(RAW, content), content)


def random_blocks(count: int, size: int, seed: int = 0) -> list[Block]:
    """`count` different leaves of `size` bytes, the same for the same seed."""
    rng = random.Random(f"{seed} {count} {size}")
    return [raw(rng.randbytes(size)) for _ in range(count)]


def node(*links: CID, salt: bytes = b"") -> Block:
    """A block that links to `links`. `salt` makes it another block."""
    content = dagcbor.encode([list(map(bytes, links)), dagcbor.literal(salt)])
    return Block(cid_of(DAG_CBOR, content), content)


def links_of(cid: CID, content: bytes) -> list[CID]:
    """The links of a block made by `node` or `raw`; what `gc` is given."""
    return [] if codec_of(cid) == RAW else dagcbor.links_in(cid, content)
