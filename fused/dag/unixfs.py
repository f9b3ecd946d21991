"""UnixFS: what the data field of a dag-pb node says (https://specs.ipfs.tech/unixfs/).

Written are the three shapes that the profile `unixfs-v1-2025` knows beside raw leaves: inner file nodes,
directories (plain and sharded) and symbolic links. Read is everything that Kubo and other writers made over the years.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING

from fused.cid import CID, encode_varint
from fused.dag.dagpb import read_bytes, read_varint
from fused.errors import DagError

if TYPE_CHECKING:
    from collections.abc import Sequence

HASH_MURMUR3 = 0x22
"""multicodec murmur3-x64-64: the one hash function that HAMT directories use."""

MAX_SIZE = (1 << 63) - 1
"""Bytes in the longest file: what off_t holds."""


class Kind(IntEnum):
    """The Type field's values."""

    RAW = 0
    DIRECTORY = 1
    FILE = 2
    METADATA = 3
    SYMLINK = 4
    HAMT_SHARD = 5


@dataclass(frozen=True, slots=True)
class UnixFS:
    """A decoded data field. `filesize` is None where the writer left it out; mode and mtime are read past."""

    kind: Kind
    data: bytes
    filesize: int | None
    blocksizes: tuple[int, ...]
    hash_type: int
    fanout: int


DIRECTORY_DATA = b"\x08\x01"


def file_data(blocksizes: Sequence[int]) -> bytes:
    """The data field of an inner file node whose children hold so many bytes each."""
    sizes = b"".join([b"\x20" + encode_varint(size) for size in blocksizes])
    return b"\x08\x02\x18" + encode_varint(sum(blocksizes)) + sizes


def symlink_data(target: bytes) -> bytes:
    """The data field of a symbolic link. Kubo writes no filesize here."""
    return b"\x08\x04\x12" + encode_varint(len(target)) + target


def shard_data(bitfield: int, fanout: int) -> bytes:
    """The data field of a HAMT shard. Bit i of `bitfield` is set if slot i is taken; no leading zero bytes."""
    bits = bitfield.to_bytes((bitfield.bit_length() + 7) // 8, "big")
    return b"\x08\x05\x12%b%b\x28\x22\x30%b" % (encode_varint(len(bits)), bits, encode_varint(fanout))


def decode_unixfs(cid: CID, data: bytes | None) -> UnixFS:
    """Decode a node's data field. Raises DagError."""
    if data is None:
        raise DagError("a dag-pb node without data, which is not part of a file tree", cid)
    try:
        return _decode(data)
    except IndexError:
        raise DagError("the UnixFS data ends in the middle of a field", cid) from None
    except DagError as err:
        raise DagError(str(err), cid) from None


def _decode(raw: bytes) -> UnixFS:
    kind: Kind | None = None
    content = b""
    filesize: int | None = None
    blocksizes: list[int] = []
    hash_type = fanout = 0
    at, end = 0, len(raw)
    while at < end:
        tag, at = read_varint(raw, at)
        field, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = read_varint(raw, at)
            if field == 4:
                blocksizes.append(_size(value))
            elif field == 1:
                try:
                    kind = Kind(value)
                except ValueError:
                    raise DagError(f"a UnixFS node of unknown type {value}") from None
            elif field == 3:
                filesize = _size(value)
            elif field == 5:
                hash_type = value
            elif field == 6:
                fanout = value
        elif wire == 2:
            chunk, at = read_bytes(raw, at)
            if field == 2:
                content = chunk
            elif field == 4:  # packed, as Protocol Buffers 3 writers do
                inner = 0
                while inner < len(chunk):
                    value, inner = read_varint(chunk, inner)
                    blocksizes.append(_size(value))
        elif wire in (1, 5):
            at += 8 if wire == 1 else 4
            if at > end:
                raise IndexError
        else:
            raise DagError(f"a UnixFS field of unknown wire type {wire}")
    if kind is None:
        raise DagError("a UnixFS node that does not say its type")
    return UnixFS(kind, content, filesize, tuple(blocksizes), hash_type, fanout)


def _size(value: int) -> int:
    if value > MAX_SIZE:
        raise DagError("a UnixFS size above 2**63")
    return value
