"""CARv1, blocks in a row: https://ipld.io/specs/transport/car/carv1/. Pure; bytes in, bytes out.

A stream is a header, which is DAG-CBOR, and then one section for each block: a varint with the length of what follows,
the CID, the bytes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import libipld

from fused.cid import encode_varint

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fused.cid import CID
    from fused.types import Block


def header(roots: Sequence[CID]) -> bytes:
    """The begin of a stream. Kubo wants at least one root; it need not be in the stream unless it is to be pinned."""
    # libipld takes bytes that are a CID for a link.
    body = libipld.encode_dag_cbor({"version": 1, "roots": list(map(bytes, roots))})
    return encode_varint(len(body)) + body


def section_head(block: Block) -> bytes:
    """What stands before a block's bytes."""
    return encode_varint(len(block.cid) + len(block.data)) + block.cid


def section_size(block: Block) -> int:
    """Bytes that a block takes in a stream."""
    return len(section_head(block)) + len(block.data)
