"""A block sent ahead: does what stands behind a store keep blocks at all, and give back what was put?

Tried at first contact with a node, and again after each loss of contact, before anything that matters is put there. A
node (or a library in front of one) that answers everything with success, gives constant CIDs or other bytes is found
out by this, with what it did in the sentence.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

from fused.cid import CID, RAW, cid_of, format_cid
from fused.errors import BlockNotFound, StoreUnavailable
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_WORD = b"ipfsfs tries whether this comes back: "
# Every byte value, and what text modes, terminators and encodings stumble over.
_EVERYTHING = bytes(range(256)) + b"\r\n\n\r\0\xff\xfe\xc3\x28"


def new_canary() -> Block:
    """A small block that nobody has had before."""
    data = _WORD + secrets.token_hex(16).encode() + _EVERYTHING
    return Block(cid_of(RAW, data), data)


def send_canary(
    who: str,
    put: Callable[[Sequence[Block]], object],
    get: Callable[[CID], bytes],
    has: Callable[[Sequence[CID]], set[CID]],
) -> Block:
    """Put a new block and ask for it. Returns it; it stays where it is, and no pin holds it.

    `put` may return a CID or several, as bytes or text: they are looked at. `get` gives unverified bytes. Raises
    StoreUnavailable with a sentence that says what `who` did instead, and what the three raise, but for BlockNotFound.
    """
    canary, other = new_canary(), new_canary()
    said = put([canary])
    for cid in said if isinstance(said, (list, tuple)) else [said]:
        if isinstance(cid, (bytes, str)) and cid not in (canary.cid, format_cid(canary.cid)):
            shown = format_cid(CID(cid)) if isinstance(cid, bytes) else repr(cid[:100])
            raise StoreUnavailable(
                f"{who} can't be used: it called a test block {shown} that is {format_cid(canary.cid)} by its hash"
            )
    try:
        back = get(canary.cid)
    except BlockNotFound:
        raise StoreUnavailable(
            f"{who} can't be used: it took the test block {format_cid(canary.cid)}, but does not have it"
        ) from None
    if back != canary.data:
        raise StoreUnavailable(
            f"{who} can't be used: a test block of {len(canary.data)} bytes came back as {_shown(back)}"
        )
    there = has([canary.cid, other.cid])
    if canary.cid not in there:
        raise StoreUnavailable(f"{who} can't be used: it says that it has no test block, right after it gave it back")
    if other.cid in there:
        raise StoreUnavailable(f"{who} can't be used: it says that it has a block that was never put anywhere")
    return canary


def _shown(data: bytes) -> str:
    return f"{len(data)} bytes, {data[:40]!r}{'…' if len(data) > 40 else ''}"
