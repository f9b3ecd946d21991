"""Listing a directory through our file system, without a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os

    from fused.fs.filesystem import FileSystem


class Shown(NamedTuple):
    """What is sent for a file; without a stat the name alone."""

    ino: int
    kind: int
    st: os.stat_result | None


class _Entries:
    def __init__(self, *, plus: bool) -> None:
        self.plus = plus
        self.entries: list[tuple[bytes, Shown]] = []
        self.position = 0

    def add(self, name: bytes, ino: int, kind: int, st: os.stat_result | None, position: int) -> bool:
        self.entries.append((name, Shown(ino, kind, st)))
        self.position = position
        return True


def listed(fs: FileSystem, fh: int, *, plus: bool = True) -> list[tuple[bytes, Shown]]:
    """All entries of an open directory that was listed (`Tree.list`), as the kernel would ask for them."""
    reply = _Entries(plus=plus)
    while True:
        before = len(reply.entries)
        fs.tree.show(fh, reply.position, reply)
        if len(reply.entries) == before:
            return reply.entries
