"""Random directory trees, full of what trips up a program that stores trees.

Everything comes from the `random.Random` that the caller seeds, so a failing tree can be made again from its seed.
"""

from __future__ import annotations

import os
import random

CHUNK = 1 << 20
SHARD_ABOVE = 256 << 10  # bytes of an encoded plain directory; more is sharded

# Few letters, so that names are often prefixes of each other; and the bytes that somebody's code always forgets:
# a newline, a blank, a leading dot or dash, backslash, quote, UTF-8 of 2 to 4 bytes, a combining mark, not UTF-8.
_LETTERS = [b"a", b"b", b"A", b".", b"-", b" ", b"\n", b"\\", b'"', b"%", "é".encode(), "漢".encode(), "🦆".encode()]
_LETTERS += ["e\u0301".encode(), b"\xff", b"\x80", b"\xc3"]


def make_random_tree(path: bytes, rng: random.Random, *, special: str = "") -> None:
    """Make the directory `path` and a random tree in it.

    `special` adds one of: "chunks" (files around the chunk border), "shards" (a directory around the sharding
    threshold). They cost a megabyte or a thousand files each, so the caller says how many trees get them.
    """
    os.mkdir(path)
    _fill(path, rng, depth=0)
    if special == "chunks":
        for size in (CHUNK - 1, CHUNK, CHUNK + 1, rng.choice((2 * CHUNK, 2 * CHUNK + 1, 3 * CHUNK - 1))):
            _write(_free_name(path, rng), _content(rng, size))
    elif special == "shards":
        size = SHARD_ABOVE + rng.choice((-1, 0, 1, -300, 300, 40_000))
        make_directory_of_block_size(_free_name(path, rng), size, rng)


def make_directory_of_block_size(path: bytes, size: int, rng: random.Random) -> None:
    """A directory of empty files whose plain dag-pb encoding has exactly `size` bytes, at least some hundred.

    The arithmetic is that of Protocol Buffers, written down here once more so that the tests don't rest on the code
    that they test. A link to an empty file under a name of n bytes has 38 bytes for the CID, n and 1 of tag and 1 or 2
    of length for the name, 2 for the size, and before them 1 of tag and 1 or 2 of length. The data field has 4.
    """
    os.mkdir(path)

    def cost(length: int) -> int:
        body = 38 + 1 + (1 if length < 128 else 2) + length + 2
        return 1 + (1 if body < 128 else 2) + body

    left, number = size - 4, 0
    while left:
        # names from 12 to 200 bytes; the last two are chosen so that nothing is left over
        length = rng.choice((12, 60, 150, 200))
        if left < 2 * cost(200):
            length = next(
                n for n in range(12, 201) if left == cost(n) or any(left - cost(n) == cost(m) for m in range(12, 201))
            )
        name = b"%06d" % number + rng.randbytes(length).hex().encode()[: length - 6]
        _write(path + b"/" + name, b"")
        left -= cost(length)
        number += 1


def make_sparse_file(path: bytes, size: int) -> None:
    """A file of zeros that takes no space."""
    with open(path, "wb") as stream:
        stream.truncate(size)


def _fill(path: bytes, rng: random.Random, depth: int) -> None:
    for _ in range(rng.choice((0, 1, 2, 3, 5, 8))):
        child = _free_name(path, rng)
        kind = rng.choices(("empty", "small", "link", "same", "dir"), (2, 6, 3, 1, 4 if depth < 4 else 0))[0]
        if kind == "dir":
            os.mkdir(child)
            _fill(child, rng, depth + 1)
        elif kind == "link":
            os.symlink(rng.choice((b"..", b"/etc/passwd", b"gone", b"\xff\xfe", "ü/".encode() * 500)), child)
        elif kind == "same":
            _write(child, b"the same in many places\n")
        else:
            _write(child, b"" if kind == "empty" else _content(rng, rng.choice((1, 100, 4095, 4096, 20_000))))
            os.chmod(child, rng.choice((0o600, 0o644, 0o755)))


def _free_name(path: bytes, rng: random.Random) -> bytes:
    while True:
        if rng.random() < 0.03:
            name = (b"long" + rng.choice(_LETTERS) * 255)[: rng.choice((254, 255))]
        else:
            name = b"".join(rng.choices(_LETTERS, k=rng.choice((1, 2, 2, 3, 6))))
        child = path + b"/" + name
        if name not in (b".", b"..") and not os.path.lexists(child):
            return child


def _content(rng: random.Random, size: int) -> bytes:
    """Random bytes, or a short pattern repeated: both distinct and equal chunks come up."""
    return rng.randbytes(size) if rng.random() < 0.5 else (rng.randbytes(7) * (size // 7 + 1))[:size]


def _write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as stream:
        stream.write(content)
