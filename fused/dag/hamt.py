"""Sharded directories: a hash array mapped trie of dag-pb nodes (https://specs.ipfs.tech/unixfs/#hamt-directory).

A name's place is read off its hash, log2(fan-out) bits a level from the top. A slot holds one entry, or a shard in
which all the entries of that slot lie. The shape depends on the set of names only, never on the order of
insertion, so it is built here in one go from the sorted hashes.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING

import mmh3

from fused.cid import CID, DAG_PB
from fused.dag.dagpb import PBLink, PBNode, encode_link, encode_node
from fused.dag.unixfs import HASH_MURMUR3, UnixFS, shard_data
from fused.errors import DagError, NamesCollide
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fused.dag.seal import Seal

FANOUT = 256
"""Slots of a shard that we write (profile `unixfs-v1-2025`)."""

MAX_FANOUT = 1024
"""Slots of the widest shard that we read, as in boxo (hamt.maximumHamtWidth): wider ones don't fit a block."""

_HASH_BITS = 64
_BITS = FANOUT.bit_length() - 1
_PREFIXES = [b"%02X" % slot for slot in range(FANOUT)]


def hash_name(name: bytes) -> int:
    """The first 64 bits of murmur3-x64-128, most significant bit first: what places `name` in the trie."""
    return int(mmh3.mmh3_x64_128_utupledigest(name, 0)[0])


def build_hamt(entries: Sequence[tuple[bytes, CID, int]], seal: Seal) -> tuple[CID, list[Block], int]:
    """The trie of `entries` (name, CID, tsize; names unique): its root, all its blocks, its cumulative size.

    Raises NamesCollide if two names have the same 64-bit hash (Kubo: "sharded directory too deep").
    """
    hashed = sorted([(hash_name(name), name, cid, tsize) for name, cid, tsize in entries])
    blocks: list[Block] = []
    cid, tsize = _build_shard(hashed, _HASH_BITS - _BITS, seal, blocks)
    return cid, blocks, tsize


def _build_shard(
    hashed: Sequence[tuple[int, bytes, CID, int]], shift: int, seal: Seal, blocks: list[Block]
) -> tuple[CID, int]:
    """Append the blocks of one shard, children first. Recursion ends with the hash bits, after 8 levels."""
    if shift < 0:
        raise NamesCollide(hashed[0][1], hashed[1][1])
    links: list[bytes] = []
    bitfield = total = 0
    for slot, group in groupby(hashed, lambda entry: entry[0] >> shift & FANOUT - 1):
        members = list(group)
        if len(members) == 1:
            _, name, cid, tsize = members[0]
            links.append(encode_link(cid, _PREFIXES[slot] + name, tsize))
        else:
            cid, tsize = _build_shard(members, shift - _BITS, seal, blocks)
            links.append(encode_link(cid, _PREFIXES[slot], tsize))
        bitfield |= 1 << slot
        total += tsize
    cid, data = seal(DAG_PB, encode_node(links, shard_data(bitfield, FANOUT)))
    blocks.append(Block(cid, data))
    return cid, total + len(data)


@dataclass(frozen=True, slots=True)
class Shard:
    """A decoded shard. `links` is by slot; each name still begins with `prefix_len` hex digits of its slot."""

    cid: CID
    bits: int
    prefix_len: int
    links: dict[int, PBLink]

    def slot_of(self, name_hash: int, depth: int) -> int | None:
        """The slot for a name at this depth (0 is the root), or None where the hash has no bits left."""
        shift = _HASH_BITS - self.bits * (depth + 1)
        return None if shift < 0 else name_hash >> shift & (1 << self.bits) - 1

    def name_in(self, link: PBLink) -> bytes:
        """The entry's name in `link`, empty if it leads to another shard."""
        return link.name[self.prefix_len :]


def decode_shard(cid: CID, node: PBNode, fs: UnixFS) -> Shard:
    """Check a shard's own consistency. Raises DagError."""
    fanout = fs.fanout
    if not 8 <= fanout <= MAX_FANOUT or fanout & fanout - 1:
        raise DagError(
            f"a sharded directory of fan-out {fanout}; a power of two from 8 to {MAX_FANOUT} is allowed", cid
        )
    if fs.hash_type != HASH_MURMUR3:
        raise DagError(f"a sharded directory with hash function {fs.hash_type:#x}; only murmur3 is known", cid)
    if len(fs.data) > fanout // 8:
        raise DagError("a sharded directory with a longer bit field than slots", cid)
    bitfield = int.from_bytes(fs.data, "big")
    if bitfield.bit_count() != len(node.links):
        raise DagError("a sharded directory whose bit field and links differ", cid)
    prefix_len = len(f"{fanout - 1:X}")
    links: dict[int, PBLink] = {}
    for slot, link in zip(_taken(bitfield), node.links, strict=True):
        if link.name[:prefix_len] != b"%0*X" % (prefix_len, slot):
            raise DagError(f"a sharded directory with the link {link.name!r} where slot {slot:X} should be", cid)
        links[slot] = link
    return Shard(cid, fanout.bit_length() - 1, prefix_len, links)


def _taken(bitfield: int) -> Iterator[int]:
    """The numbers of the set bits, lowest first."""
    while bitfield:
        lowest = bitfield & -bitfield
        yield lowest.bit_length() - 1
        bitfield ^= lowest
