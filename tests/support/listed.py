"""Listing a directory through our file system, without a mount."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import os

    from fused.fs.filesystem import FileSystem


class Shown(NamedTuple):
    """What is sent for a file."""

    ino: int
    st: os.stat_result


def listed(fs: FileSystem, fh: int) -> list[tuple[bytes, Shown]]:
    """All entries of an open directory that was listed (`Tree.list`), as the kernel would ask for them."""
    entries: list[tuple[bytes, Shown]] = []
    position = 0

    def add(name: bytes, shown: object, next_id: int) -> bool:
        nonlocal position
        assert isinstance(shown, Shown)
        entries.append((name, shown))
        position = next_id
        return True

    while True:
        before = len(entries)
        fs.tree.show(fh, position, Shown, add)
        if len(entries) == before:
            return entries
