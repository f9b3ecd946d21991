"""DAG-PB: a node of links and opaque bytes (https://ipld.io/specs/codecs/dag-pb/spec/).

Not for what the bytes mean; that is `unixfs.py`. The format is a fixed small subset of Protocol Buffers, so
it is written and read by hand: encoding a directory of 10,000 links is the hot path of a snapshot, and the
canonical order (links sorted by name, links before data) is ours to keep anyway.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fused.cid import CID, cid_from_bytes, encode_varint
from fused.errors import DagError

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BLOCK = 2 << 20
"""Bytes of the largest block that we read: Bitswap carries no larger one (boxo chunker.BlockSizeLimit), so a tree
with such a block can't travel. Our own largest is a leaf of 1 MiB."""

_MAX_INT = (1 << 63) - 1


class PBLink(NamedTuple):
    """`tsize` is the size in bytes of the DAG below, as whoever made the link counted it: a hint, never trusted."""

    cid: CID
    name: bytes
    tsize: int


class PBNode(NamedTuple):
    """A decoded node. `data` is None if the field is missing."""

    links: list[PBLink]
    data: bytes | None


# Tag and length of a link of so many bytes, then tag and length of its 36-byte CID: the start of nearly every link.
_HEADS = [b"\x12" + encode_varint(length) + b"\x0a\x24" for length in range(128)]
_LENGTHS = [bytes((length,)) for length in range(128)]


def encode_link(cid: CID, name: bytes, tsize: int) -> bytes:
    """One entry of a node's Links field, its own tag and length included. All three fields are always written."""
    if tsize > _MAX_INT:  # as in Kubo: sums wrap at 64 bits, and what is negative as a signed number is written as 0
        tsize &= (1 << 64) - 1
        tsize = 0 if tsize > _MAX_INT else tsize
    size = encode_varint(tsize)
    if len(cid) == 36 and len(name) < 78:  # every length fits in one byte
        return b"%b%b\x12%b%b\x18%b" % (_HEADS[41 + len(name) + len(size)], cid, _LENGTHS[len(name)], name, size)
    body = b"\x0a%b%b\x12%b%b\x18%b" % (encode_varint(len(cid)), cid, encode_varint(len(name)), name, size)
    return b"\x12%b%b" % (encode_varint(len(body)), body)


def encode_node(links: Sequence[bytes], data: bytes) -> bytes:
    """A node of links as `encode_link` makes them. They must come sorted by name; equal names stay as given."""
    return b"%b\x0a%b%b" % (b"".join(links), encode_varint(len(data)), data)


def decode_node(cid: CID, block: bytes) -> PBNode:
    """Decode `block`. Raises DagError for whatever go-codec-dagpb refuses; Data before Links is fine with both."""
    if len(block) > MAX_BLOCK:
        raise DagError(f"{len(block)} bytes in one block; at most {MAX_BLOCK} are allowed", cid)
    try:
        return _decode_node(block)
    except IndexError:
        raise DagError("the node ends in the middle of a field", cid) from None
    except DagError as err:
        raise DagError(str(err), cid) from None


def read_varint(buffer: bytes, at: int) -> tuple[int, int]:
    """A Protocol Buffers varint and the offset behind it. Raises IndexError past the end, DagError above 64 bits."""
    value = buffer[at]
    at += 1
    if value < 0x80:
        return value, at
    value &= 0x7F
    shift = 7
    while True:
        byte = buffer[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            break
        shift += 7
        if shift > 63:
            raise DagError("a number of more than 64 bits")
    if value >> 64:
        raise DagError("a number of more than 64 bits")
    return value, at


def read_bytes(buffer: bytes, at: int) -> tuple[bytes, int]:
    """A length-delimited field's bytes and the offset behind them. Raises IndexError past the end."""
    length, at = read_varint(buffer, at)
    end = at + length
    if end > len(buffer):
        raise IndexError
    return buffer[at:end], end


def _decode_node(block: bytes) -> PBNode:
    links: list[PBLink] = []
    data: bytes | None = None
    at, end, link_runs, last = 0, len(block), 0, 0
    while at < end:
        tag = block[at]
        chunk, at = read_bytes(block, at + 1)
        if tag == 0x12:
            if last != tag:
                link_runs += 1
                if link_runs > 1:
                    raise DagError("links both before and after the data")
            links.append(_decode_link(chunk))
        elif tag == 0x0A:
            if data is not None:
                raise DagError("two data fields")
            data = chunk
        else:
            raise DagError(f"a field with tag {tag:#x}, which no dag-pb node has")
        last = tag
    return PBNode(links, data)


def _decode_link(body: bytes) -> PBLink:
    cid: CID | None = None
    name = b""
    tsize = 0
    at, end, last = 0, len(body), 0
    while at < end:
        tag = body[at]
        if tag <= last:
            raise DagError("a link with its fields twice or out of order")
        last = tag
        if tag == 0x0A:
            raw, at = read_bytes(body, at + 1)
            cid = cid_from_bytes(raw)
        elif tag == 0x12:
            name, at = read_bytes(body, at + 1)
        elif tag == 0x18:
            tsize, at = read_varint(body, at + 1)
        else:
            raise DagError(f"a link with a field with tag {tag:#x}, which no dag-pb link has")
    if cid is None:
        raise DagError("a link without a CID")
    return PBLink(cid, name, tsize)
