"""What is asked of ipfsfs, row by row: at least so many times as fast as another column."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.fs.rows import Row

OURS = "ipfsfs"


@dataclass(frozen=True, slots=True)
class Bar:
    """`least` is how many times as fast as `against` it has to be. Of several that concern a row, the highest counts.

    `rows` are their names, `groups` those of which all rows are meant. `place` is "disk" or "tmpfs", if only there.
    """

    against: str
    least: float
    rows: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    place: str | None = None


KERNEL_ALONE = ("stat-again", "missing-again", "mmap-again")
SEQUENTIAL = ("write", "write-fsync", "read-cold", "read-again")
ALL = ("requests", "data", "programs")

BARS = (
    Bar("native", 0.9, KERNEL_ALONE),
    Bar("native", 0.4, ("read-again",)),
    Bar("native", 0.35, ("append",)),
    Bar("native", 0.6, ("write-fsync",)),
    Bar("native", 0.4, ("create", "save-rename"), place="disk"),
    Bar("passthrough_ll", 1, groups=ALL),
    Bar("passthrough_ll", 2, ("open-read-first", "open-read-again", "save-rename")),
    Bar("bindfs", 1, groups=ALL),
    Bar("mergerfs", 1, groups=ALL),
    Bar("kubo", 5, groups=("requests",)),
    Bar("kubo", 3, SEQUENTIAL),
    Bar("rclone", 5, groups=("requests",)),
    Bar("rclone", 3, SEQUENTIAL),
    Bar("native", 1 / 1.5, groups=("programs",)),
    Bar("ipfs add", 1, ("sync-small", "sync-big")),
    Bar("limit", 1, groups=("engine",)),
)
INSTEAD = (
    # No daemon is asked there, so nobody can be ahead.
    *(Bar(peer, 0.9, KERNEL_ALONE) for peer in ("passthrough_ll", "bindfs", "mergerfs", "kubo", "rclone")),
    Bar(
        "mergerfs", 0.5, ("readdir-again", "readdir-stat-again", "readdir-first", "readdir-stat-first", "readdir-large")
    ),
    Bar("native", 1 / 3, ("import-cold", "git-status-cold", "safetensors-cold")),
    Bar("native", 1 / 1.2, ("git-status-again",)),
    Bar("native", 0.6, ("sqlite-wal", "sqlite-journal")),
)
"""Exceptions, which count in place of those above."""


def asked(row: Row, place: str) -> dict[str, float]:
    """By column, the ratio that the row has to have."""
    found: dict[str, float] = {}
    for bar in BARS:
        if _concerns(bar, row, place):
            found[bar.against] = max(bar.least, found.get(bar.against, 0))
    return found | {bar.against: bar.least for bar in INSTEAD if _concerns(bar, row, place)}


def _concerns(bar: Bar, row: Row, place: str) -> bool:
    return bar.place in (None, place) and (row.name in bar.rows or row.group in bar.groups)


def judge(row: Row, place: str, median: Mapping[str, float]) -> dict[str, tuple[float, float | None]]:
    """By column, the ratio and the least that is asked, if anything is. `median` are seconds for one operation."""
    ours = median.get(OURS)
    if not ours:
        return {}
    wanted = asked(row, place)
    return {name: (theirs / ours, wanted.get(name)) for name, theirs in median.items() if name != OURS}
