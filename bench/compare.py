#!/usr/bin/env python3
"""What a change did: `bench/compare.py A.json B.json`, two files that `python -m bench.fs --json` has written.

For each row, the speed of B as a multiple of that of A, in one column. The others are the same program in both files:
how much faster or slower they were is the machine, and the speed is divided by it (by the median over the others).
A difference counts only where all turns of one are ahead of all turns of the other, so corrected; else it is "within
the spread". Requests that reach the daemon have no spread: each change is told.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.fs.figures import figure

Json = Mapping[str, Any]
OURS = ("ipfsfs", "write-through", "limit")
"""Columns that a change of the program changes, and one that is no measurement."""


@dataclass(frozen=True, slots=True)
class Difference:
    """One row. `speed` is B's as a multiple of A's, `machine` that of the columns that have not changed."""

    place: str
    row: str
    unit: str
    before: Sequence[float]
    after: Sequence[float]
    machine: float
    requests: tuple[float, float] | None

    @property
    def speed(self) -> float:
        """Corrected by the machine's."""
        return statistics.median(self.before) / statistics.median(self.after) / self.machine

    @property
    def verdict(self) -> str:
        """In a word or three."""
        corrected = [seconds * self.machine for seconds in self.after]
        if max(corrected) < min(self.before):
            return "faster" if self.unit != "bytes" else "less"
        if min(corrected) > max(self.before):
            return "slower" if self.unit != "bytes" else "more"
        return "within the spread"


def machine(before: Json, after: Json) -> float:
    """How many times as fast the columns are that nobody has changed, in the median; 1 if there are none."""
    both = [
        name for name in before if name not in OURS and "median" in before[name] and "median" in after.get(name, {})
    ]
    shifts: list[float] = [before[name]["median"] / after[name]["median"] for name in both]
    return statistics.median(shifts or [1.0])


def differences(a: Json, b: Json, column: str) -> Iterator[Difference]:
    """Of all rows that were measured in both, in the order of A."""
    for place, found in a["places"].items():
        others = b["places"].get(place, {"rows": {}})["rows"]
        for name, row in found["rows"].items():
            before = row["cells"].get(column, {})
            after = others.get(name, {"cells": {}})["cells"].get(column, {})
            if "median" not in before or "median" not in after:
                continue
            counts = [cell.get("requests") for cell in (before, after)]
            requests = None if None in counts else (sum(counts[0].values()), sum(counts[1].values()))
            # Memory does not depend on how busy the machine is.
            shift = 1.0 if row["unit"] == "bytes" else machine(row["cells"], others[name]["cells"])
            yield Difference(place, name, row["unit"], before["seconds"], after["seconds"], shift, requests)


def lost_and_found(a: Json, b: Json, column: str) -> Iterator[str]:
    """Rows that the column could do in one of the two only."""
    for place in {**a["places"], **b["places"]}:
        sides = [side["places"].get(place, {"rows": {}})["rows"] for side in (a, b)]
        for name in {**sides[0], **sides[1]}:
            cells = [side.get(name, {"cells": {}})["cells"].get(column) for side in sides]
            if cells[0] and cells[1] and ("cant" in cells[0]) != ("cant" in cells[1]):
                which, why = ("B", cells[1]["cant"]) if "cant" in cells[1] else ("A", cells[0]["cant"])
                yield f"{place} {name}: not in {which}, {why}"


def unlike(a: Json, b: Json) -> list[str]:
    """Why the two may not be comparable."""
    sides = [{"size": side["size"], **side["machine"]} for side in (a, b)]
    keys = ("size", "kernel", "python", "processors", "memory_bytes")
    return [f"{key} is {sides[0][key]} in A, {sides[1][key]} in B" for key in keys if sides[0][key] != sides[1][key]]


def table(found: Sequence[Difference]) -> str:
    """One line a row."""
    lines = [f"{'':<7}{'':<20}{'A':>14}{'B':>14}{'speed':>8}{'machine':>9}  {'':<19}requests"]
    for one in found:
        before, after = (figure(statistics.median(side), one.unit) for side in (one.before, one.after))
        counts = ""
        if one.requests is not None and abs(one.requests[0] - one.requests[1]) >= 0.005:
            counts = f"{one.requests[0]:.2f} -> {one.requests[1]:.2f}"
        line = f"{one.place:<7}{one.row:<20}{before:>14}{after:>14}{one.speed:>8.2f}{one.machine:>9.2f}"
        lines.append(f"{line}  {one.verdict:<19}{counts}".rstrip())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """See the module."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog="example:\n  bench/compare.py before.json after.json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("a", type=Path, metavar="A.json")
    parser.add_argument("b", type=Path, metavar="B.json")
    parser.add_argument("--column", default="ipfsfs", help="which column is compared (default: ipfsfs)")
    args = parser.parse_args(arguments)
    sides = []
    for path in (args.a, args.b):
        try:
            sides.append(json.loads(path.read_text()))
            if sides[-1]["version"] != 1:
                raise KeyError
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = error.strerror if isinstance(error, OSError) else "is not what python -m bench.fs --json writes"
            parser.error(f"{path}: {why}")
    a, b = sides
    for reason in unlike(a, b):
        print(f"Not alike: {reason}")
    found = list(differences(a, b, args.column))
    print(table(found))
    for line in lost_and_found(a, b, args.column):
        print(line)
    if not found:
        print(f"no row was measured in column {args.column} of both", file=sys.stderr)
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
