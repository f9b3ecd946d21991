"""How figures are written."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from bench.fs.rows import MIB

if TYPE_CHECKING:
    from collections.abc import Sequence


def figure(seconds: float, unit: str) -> str:
    """The time of one operation, or the speed if it is a mebibyte."""
    if unit == "bytes":
        return f"{seconds / MIB:,.1f} MiB"
    if unit == "MiB":
        return f"{1 / seconds:,.0f} MiB/s" if seconds else "-"
    for factor, name in ((1, "s"), (1e3, "ms"), (1e6, "us")):
        if seconds * factor >= 1 or name == "us":
            value = seconds * factor
            return f"{value:,.0f} {name}" if value >= 100 else f"{value:.3g} {name}"
    raise AssertionError


def spread(seconds: Sequence[float]) -> int:
    """Half the distance from the lowest to the highest, in percent of the median."""
    return round((max(seconds) - min(seconds)) / 2 / statistics.median(seconds) * 100)
