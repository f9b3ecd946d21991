"""The tables, and what the JSON file holds.

{"version": 1, "size": "full", "turns": 5, "machine": {...}, "columns": {"bindfs": {"about": …, "version": …}, …},
 "places": {"disk": {"file_system": "ext4", "rows": {"create": {"unit": "op", "group": "requests", "cells": {
     "ipfsfs": {"median": seconds for one operation, "seconds": [one figure a turn], "operations": …,
                "requests": {"create": 1.0, …}, "cpu_seconds": …} or {"cant": "why"}, …},
   "ratios": {"bindfs": {"ratio": how many times as fast ipfsfs is, "least": what is asked or null}}}}}}}
"""

from __future__ import annotations

import os
import platform
import statistics
from typing import TYPE_CHECKING, Any

from bench.fs import engine
from bench.fs.bars import OURS, judge
from bench.fs.figures import figure, spread

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from bench.fs.measure import Cell
    from bench.fs.rows import Row

Json = dict[str, Any]
_WIDE = 17


def as_json(row: Row, place: str, cells: Mapping[str, Cell]) -> Json:
    """One row of the JSON file."""
    medians = {name: statistics.median(cell.seconds) for name, cell in cells.items() if not cell.cant and cell.seconds}
    return {
        "unit": row.unit,
        "group": row.group,
        "cells": {name: _cell(cell) for name, cell in cells.items()},
        "ratios": {
            name: {"ratio": ratio, "least": least} for name, (ratio, least) in judge(row, place, medians).items()
        },
    }


def _cell(cell: Cell) -> Json:
    if cell.cant is not None or not cell.seconds:
        return {"cant": cell.cant or "not measured"}
    return {
        "median": statistics.median(cell.seconds),
        "seconds": cell.seconds,
        "operations": cell.operations,
        "requests": cell.requests,
        "cpu_seconds": statistics.median(cell.cpu_seconds) if cell.cpu_seconds else None,
    }


def machine() -> Json:
    """What it was measured on."""
    return {
        "kernel": platform.release(),
        "python": platform.python_version(),
        "processors": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "load": os.getloadavg(),
    }


# --- text -------------------------------------------------------------------------------------------------------


def tables(place: Json, columns: Iterable[str]) -> str:
    """Times, ratios and requests of one place."""
    every: dict[str, Json] = place["rows"]
    behind = {name: row for name, row in every.items() if row["group"] == engine.GROUP}
    parts = []
    for rows, names in (
        ({name: row for name, row in every.items() if name not in behind}, list(columns)),
        (behind, list(engine.COLUMNS)),
    ):
        if rows:
            parts += [_times(rows, names), _ratios(rows, names), _requests(rows), _cant(rows)]
    return "\n\n".join(part for part in parts if part)


def _lines(head: str, names: Sequence[str], body: Iterable[tuple[str, list[str]]]) -> str:
    lines = [head, f"{'':<20}" + "".join(f"{name:>{_WIDE}}" for name in names)]
    lines += [f"{name:<20}" + "".join(f"{cell:>{_WIDE}}" for cell in cells) for name, cells in body]
    return "\n".join(line.rstrip() for line in lines)


def _times(rows: Mapping[str, Json], names: Sequence[str]) -> str:
    def cell(row: Json, name: str) -> str:
        found = row["cells"].get(name, {"cant": ""})
        if "cant" in found:
            return "" if name == engine.LIMIT else "can't"
        return f"{figure(found['median'], row['unit'])} {'±' + str(spread(found['seconds'])):>3}"

    body = ((name, [cell(row, column) for column in names]) for name, row in rows.items())
    return _lines("Time of one operation, or speed: median of the turns, ± half the spread in percent", names, body)


def _ratios(rows: Mapping[str, Json], names: Sequence[str]) -> str:
    others = [name for name in names if name != OURS]

    def cell(row: Json, name: str) -> str:
        found = row["ratios"].get(name)
        if found is None:
            return "can't" if name != engine.LIMIT and "cant" in row["cells"].get(name, {}) else ""
        ratio, least = found["ratio"], found["least"]
        shown = f"{ratio:.2f}" if ratio < 9.95 else f"{ratio:,.0f}"
        if least is None:
            return f"{shown}     "
        return f"{shown} met " if ratio >= least else f"{shown} <{least:.3g}"

    body = [(name, [cell(row, column) for column in others]) for name, row in rows.items() if row["ratios"]]
    if not body:
        return ""
    asked = [found for row in rows.values() for found in row["ratios"].values() if found["least"] is not None]
    met = sum(found["ratio"] >= found["least"] for found in asked)
    head = f"How many times as fast {OURS} is; met: as asked for, <N: N is asked for ({met} of {len(asked)} met)"
    return _lines(head, others, body)


def _requests(rows: Mapping[str, Json]) -> str:
    lines = []
    for name, row in rows.items():
        found = row["cells"].get(OURS, {}).get("requests")
        if found is not None:
            kinds = ", ".join(f"{kind} {count:.2f}" for kind, count in sorted(found.items(), key=lambda kind: -kind[1]))
            cpu = row["cells"][OURS]["cpu_seconds"]
            lines.append(f"{name:<20}{sum(found.values()):>9.2f} {cpu * 1000:>12.4f}   {kinds}")
    if not lines:
        return ""
    head = f"Requests that reach {OURS} for one operation, and its CPU seconds for 1,000"
    return "\n".join([head, f"{'':<20}{'requests':>9} {'CPU s/1,000':>12}", *lines])


def _cant(rows: Mapping[str, Json]) -> str:
    """Why, once for each reason and column."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row in rows.items():
        for column, found in row["cells"].items():
            if "cant" in found and column != engine.LIMIT:
                reasons.setdefault((column, found["cant"]), []).append(name)
    lines = [f"{column} can't: {why} [{', '.join(names)}]" for (column, why), names in reasons.items()]
    return "\n".join(lines)
