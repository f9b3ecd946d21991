"""DAG-CBOR (https://ipld.io/specs/codecs/dag-cbor/spec/), with links told apart from bytes.

libipld does the work: measured about 150 times as fast as the pure Python libraries, and strict about key order,
duplicate keys, NaN, indefinite lengths and trailing bytes. It has one trap, which only this module knows: it turns
links into plain `bytes`, and writes any bytes that parse as a CID as a link. So the rule for our objects is that
bytes are links, except where they begin with a zero byte, which no CID does: `literal` puts that byte before a
byte string, `unliteral` takes it off again.
"""

from __future__ import annotations

import libipld

from fused.cid import CID, cid_from_bytes
from fused.dag.dagpb import MAX_BLOCK
from fused.errors import DagError


def literal(value: bytes) -> bytes:
    """A byte string in the form in which an object holds it."""
    return b"\0" + value


def unliteral(value: object) -> bytes:
    """The byte string in a decoded object. Raises DagError for anything else."""
    if not isinstance(value, bytes) or value[:1] != b"\0":
        raise DagError("something else where a byte string should be")
    return value[1:]


def as_link(value: object) -> CID:
    """The link in a decoded object. Raises DagError for anything else."""
    if not isinstance(value, bytes):
        raise DagError("something else where a link should be")
    return cid_from_bytes(value)


def encode(value: object) -> bytes:
    """The canonical encoding of None, bool, int (64 bits), str, float, links, literals, and lists and dicts of them.

    Raises ValueError for anything else, tuples included.
    """
    return bytes(libipld.encode_dag_cbor(value))


def decode(cid: CID, block: bytes, limit: int = MAX_BLOCK) -> object:
    """The object in `block`. Raises DagError for anything but its canonical encoding, or above `limit` bytes.

    So decoding and encoding again gives the same block, and a byte string can't pass for a link: encoded again it
    would become one.
    """
    if len(block) > limit:
        raise DagError(f"{len(block)} bytes in one object; at most {limit} are allowed", cid)
    try:
        value: object = libipld.decode_dag_cbor(block)
        canonical = encode(value) == block
    except RecursionError:
        raise DagError("the DAG-CBOR object is nested too deeply", cid) from None
    except ValueError as err:
        raise DagError(f"not valid DAG-CBOR ({err})", cid) from None
    if not canonical:
        raise DagError("the DAG-CBOR encoding is not the canonical one", cid)
    return value


def links_in(cid: CID, block: bytes) -> list[CID]:
    """Every link in `block`, in the order of the encoding. Raises DagError."""
    return links_of_value(decode(cid, block))


def links_of_value(value: object) -> list[CID]:
    """Every link in a decoded object, in the order of the encoding."""
    found: list[CID] = []
    pending = [value]
    while pending:
        value = pending.pop()
        if isinstance(value, dict):
            pending.extend(reversed(value.values()))
        elif isinstance(value, list):
            pending.extend(reversed(value))
        elif isinstance(value, bytes):
            try:
                found.append(cid_from_bytes(value))
            except DagError:
                continue  # a byte string
    return found
