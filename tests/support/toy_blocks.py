"""Blocks for tests of stores, and a toy codec for links: a node is a row of CIDs, then anything."""

from __future__ import annotations

import random
from collections.abc import Iterator

from fused.cid import CID, DAG_CBOR, RAW, cid_of, codec_of
from fused.store.base import Block


def raw(content: bytes) -> Block:
    """A leaf."""
    return Block(cid_of(RAW, content), content)


def random_blocks(count: int, size: int, seed: int = 0) -> list[Block]:
    """`count` different leaves of `size` bytes, the same for the same seed."""
    rng = random.Random(f"{seed} {count} {size}")
    return [raw(rng.randbytes(size)) for _ in range(count)]


def node(*links: CID, salt: bytes = b"") -> Block:
    """A block that links to `links`, which must be under sha2-256 or short. `salt` makes it another block."""
    content = b"".join(bytes((len(link),)) + link for link in links) + b"\0" + salt
    return Block(cid_of(DAG_CBOR, content), content)


def links_of(cid: CID, content: bytes) -> Iterator[CID]:
    """The links of a block made by `node` or `raw`; what `gc` is given."""
    if codec_of(cid) == RAW:
        return
    at = 0
    while length := content[at]:
        yield CID(content[at + 1 : at + 1 + length])
        at += 1 + length
