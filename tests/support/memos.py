"""Damage to SQLite files that shows only where it is read."""

from __future__ import annotations

from pathlib import Path

PAGE = 4096


def damage_leaves(path: Path) -> None:
    """Overwrite the header of each second page of the last two thirds; the first pages and the schema stay whole."""
    content = bytearray(path.read_bytes())
    pages = len(content) // PAGE
    assert pages >= 12, "too small to be damaged only in part"
    for page in range(pages // 3, pages, 2):
        content[page * PAGE : page * PAGE + 64] = b"\xa5" * 64
    path.write_bytes(content)
