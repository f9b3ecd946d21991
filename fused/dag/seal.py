"""The one way in which blocks are made, and the one in which they are opened.

Every encoder takes a `Seal` and makes its blocks with nothing else, so that another pair of functions (say, one
that encrypts) changes what is stored without touching an encoder.
"""

from __future__ import annotations

from collections.abc import Callable

from fused.cid import CID, cid_of

Seal = Callable[[int, bytes], tuple[CID, bytes]]
"""(codec, plain bytes) to the stored block's CID and bytes."""

Unseal = Callable[[CID, bytes], bytes]
"""The inverse: a stored block's CID and verified bytes to the plain bytes. Raises DagError."""


def plain_seal(codec: int, data: bytes) -> tuple[CID, bytes]:
    """Store the bytes as they are, as everybody on IPFS does."""
    return cid_of(codec, data), data


def plain_unseal(cid: CID, data: bytes) -> bytes:
    """The inverse of `plain_seal`."""
    return data
