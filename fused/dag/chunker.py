"""Where a file is cut: every CHUNK bytes, whatever the content (profile `unixfs-v1-2025`, IPIP-499).

Fixed borders are what makes a change cheap here: a write of 4 KiB touches one or two chunks, known from its offset.
"""

from __future__ import annotations

CHUNK = 1 << 20
"""Bytes in every chunk of a file but its last, which has 1 to CHUNK."""


def chunk_count(size: int) -> int:
    """How many chunks a file of `size` bytes has. An empty file has one, of no bytes."""
    return max(1, -(-size // CHUNK))


def chunk_size(size: int, index: int) -> int:
    """The bytes in chunk `index` of a file of `size` bytes."""
    return min(CHUNK, size - index * CHUNK)


def chunks_touched(offset: int, length: int) -> range:
    """The indices of the chunks that hold any of `length` bytes from `offset`."""
    if length <= 0:
        return range(0)
    return range(offset // CHUNK, (offset + length - 1) // CHUNK + 1)
