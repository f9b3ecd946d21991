"""The mount against the local file system and against other mounts.

Every row is something that a program does in a directory: `native` is that directory itself, the other columns are
mounts of it. They take turns, each time in another order; medians of the turns are shown, with their spread, and how
many times as fast ipfsfs is as each of the others, beside what is asked of it (bars.py). Each request that reaches the
daemon is counted: that figure has no noise. A column that can't do a row says why.

Nothing is stored during a measurement in the columns of ipfsfs: `ipfsfs sync` has been run before, and the waits are
long. Rows named -first begin with a kernel that knows nothing of the mount, while what lies beneath it is warm; -again
rows do once more what was done just before; -cold rows begin with nothing in any cache, which takes root.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fs import data, engine, places, programs, report, requests
from bench.fs.measure import Cell, Measuring
from bench.fs.peers import COLUMNS
from bench.fs.rows import GIB, MIB, CantError, Sizes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.fs.columns import Column
    from bench.fs.rows import Row

ROWS: dict[str, Row] = {row.name: row for row in (*requests.ROWS, *data.ROWS, *programs.ROWS, *engine.ROWS)}
FREE = 0.5
"""A load average that is not worth a word."""
GROUPS = tuple(dict.fromkeys(row.group for row in ROWS.values()))
SIZES = {
    "smoke": Sizes(
        turns=1, seconds=0.3, operations=20, names=50, many=200, big=MIB, repository=20, modules=10, wheel=20,
        transactions=5, database_rows=1_000, small=50, known=100,
    ),
    "medium": Sizes(
        turns=3, seconds=1.0, operations=500, names=1_000, many=5_000, big=256 * MIB, repository=1_000, modules=100,
        wheel=200, transactions=100, database_rows=200_000, small=2_000, known=20_000,
    ),
    "full": Sizes(
        turns=5, seconds=3.0, operations=2_000, names=1_000, many=100_000, big=GIB, repository=5_000, modules=500,
        wheel=1_000, transactions=300, database_rows=2_000_000, small=10_000, known=100_000,
    ),
}  # fmt: skip
EXAMPLES = """\
examples:
  python -m bench.fs --tmpfs requests               small operations, in memory
  python -m bench.fs --at /mnt/disk --json a.json   everything, on that disk
  python -m bench.fs --size medium --columns native,ipfsfs create rename
  python bench/compare.py a.json b.json             what has become faster or slower
"""


def main() -> int:
    """See the module."""
    args = _arguments()
    places.end_in_order()
    turns = args.turns or SIZES[args.size].turns
    found: dict[str, Any] = {
        "version": 1,
        "size": args.size,
        "turns": turns,
        "machine": report.machine(),
        "columns": {},
        "places": {},
    }
    wanted = [("disk", places.on_disk)] if args.at or not args.tmpfs else []
    wanted += [("tmpfs", places.in_memory)] if args.tmpfs else []
    for name, make in wanted:
        with make(args.at or Path("/var/tmp")) as base:
            sizes = replace(SIZES[args.size], inputs=base / "inputs", big=_fitting(SIZES[args.size].big, base))
            found["places"][name] = place = {
                "file_system": places.file_system(base),
                "big_bytes": sizes.big,
                "rows": {},
            }
            large = f"large files of {sizes.big // MIB:,} MiB"
            print(f"On {name} ({place['file_system']}), size {args.size}, {large}, {turns} turns\n", flush=True)
            if (load := os.getloadavg()[0]) > FREE:
                print(f"This machine is not idle (load average {load:.1f}): figures of other runs can't be compared\n")
            try:
                _measure(name, base, args.rows, args.columns, sizes, turns, found)
            finally:
                print(report.tables(place, args.columns), end="\n\n", flush=True)
                if args.json:
                    args.json.write_text(json.dumps(found, indent=1) + "\n")
    return 1 if _own_failures(found) else 0


def _measure(
    place: str, base: Path, rows: Sequence[Row], columns: Sequence[str], sizes: Sizes, turns: int, found: dict[str, Any]
) -> None:
    """All rows; the figures go into `found`, as far as it comes."""
    progress = Progress()
    mounts = [row for row in rows if row.group != engine.GROUP]
    _measure_mounts(place, base, mounts, columns, sizes, turns, found, progress)
    if behind := [row for row in rows if row.group == engine.GROUP]:
        measuring = engine.Engine(base, sizes, turns, progress.tell)
        try:
            measuring.measure([row.name for row in behind])
        finally:
            for row in behind:
                cells = measuring.cells.get(row.name, {})
                found["places"][place]["rows"][row.name] = report.as_json(row, place, cells)
    progress.tell("")


def _measure_mounts(
    place: str,
    base: Path,
    rows: Sequence[Row],
    columns: Sequence[str],
    sizes: Sizes,
    turns: int,
    found: dict[str, Any],
    progress: Progress,
) -> None:
    missing: dict[str, str] = {}
    started: list[Column] = []
    with ExitStack() as stack:
        stack.callback(places.let_signals)
        for name in columns if rows else ():
            progress.tell(f"mounting {name}")
            column = COLUMNS[name](base / name)
            stack.callback(column.close)
            found["columns"][name] = {"about": column.about}
            try:
                column.start()
                found["columns"][name]["version"] = column.version()
                started.append(column)
            except (CantError, OSError) as error:
                missing[name] = str(error)
        stack.callback(places.hold_signals)  # the last is called first
        measuring = Measuring(started, sizes, turns, progress.tell)
        for number, row in enumerate(rows):
            progress.at(number, len(rows))
            begun = time.monotonic()
            cells = measuring.row(row) | {name: Cell(cant=why) for name, why in missing.items()}
            found["places"][place]["rows"][row.name] = report.as_json(row, place, cells)
            found["places"][place]["rows"][row.name]["took_seconds"] = round(time.monotonic() - begun, 1)
        progress.tell("unmounting")


def _fitting(big: int, base: Path) -> int:
    """How large the large files may be where 24 of them have to fit: each column keeps two, and some have copies."""
    status = os.statvfs(base)
    free = status.f_bavail * status.f_frsize
    if places.file_system(base) == "tmpfs":
        free = min(free, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return max(min(big, free // 24 // MIB * MIB), MIB)


def _own_failures(found: dict[str, Any]) -> bool:
    """Whether ipfsfs itself could not do something, which is a bug here or there."""
    own = ("ipfsfs", "write-through")
    rows = [row["cells"] for place in found["places"].values() for row in place["rows"].values()]
    # What the directory itself can't do here, for want of root or of a program, is no failure of ours.
    possible = [cells for cells in rows if "cant" not in cells.get("native", {})]
    return any("cant" in cells.get(name, {}) for cells in possible for name in own)


class Progress:
    """One line on a terminal."""

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._rows = ""

    def at(self, number: int, total: int) -> None:
        """So many rows are done."""
        self._rows = f"{number}/{total} "

    def tell(self, doing: str) -> None:
        """What is done now; nothing clears the line."""
        if sys.stderr.isatty():
            line = f"{time.monotonic() - self._begun:5.0f} s  {self._rows}{doing}" if doing else ""
            print(f"\r\033[K{line[:110]}", end="", file=sys.stderr, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.fs",
        description=__doc__,
        epilog=f"{EXAMPLES}\nrows:\n{_shown_rows()}\ncolumns:\n{_shown_columns()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows or groups of them (below); default: all")
    parser.add_argument("--columns", metavar="NAME,…", default=",".join(COLUMNS), help="default: all")
    parser.add_argument("--size", choices=SIZES, default="full", help="how much of everything (default: full)")
    parser.add_argument("--turns", type=int, metavar="N", help="measurements of each row in each column")
    parser.add_argument("--at", type=Path, metavar="DIR", help="measure on this disk (default: /var/tmp)")
    parser.add_argument("--tmpfs", action="store_true", help="measure in memory; with --at: there as well")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--huge", action="store_true", help="with a million files, too: a quarter of an hour more")
    args = parser.parse_args()
    args.columns = [name for name in COLUMNS if name in set(_checked(parser, args.columns.split(","), COLUMNS))]
    rows = set(_checked(parser, args.rows or GROUPS, (*GROUPS, *ROWS)))
    args.rows = [
        row
        for row in ROWS.values()
        if row.name in rows or (row.group in rows and (args.huge or row.name not in engine.HUGE))
    ]
    return args


def _checked(
    parser: argparse.ArgumentParser, given: Sequence[str], known: Sequence[str] | dict[str, Any]
) -> Sequence[str]:
    if unknown := sorted(set(given) - set(known)):
        parser.error(f"not known: {', '.join(unknown)}; known are {', '.join(known)}")
    return given


def _shown_rows() -> str:
    shown = {group: ", ".join(row.name for row in ROWS.values() if row.group == group) for group in GROUPS}
    return "\n".join(f"  {group}: {names}" for group, names in shown.items())


def _shown_columns() -> str:
    return "\n".join(f"  {name:<16}{column.about}" for name, column in COLUMNS.items())


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
