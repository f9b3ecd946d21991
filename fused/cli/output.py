"""What commands print: sentences on standard error, tables and JSON on standard output."""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False  # `typing` takes 10 ms to import, and `ipfsfs sync` comes by here
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from typing import IO

    Paint = Callable[[str, str], str]
    """(colour, text) -> text, coloured where that makes sense."""

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "bold": "1", "dim": "2"}
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def say(sentence: str) -> None:
    """One sentence for a person, on standard error. Control characters (in file names) are shown, not obeyed."""
    print("ipfsfs: " + printable(sentence), file=sys.stderr, flush=True)


def printable(text: str) -> str:
    """`text` on one line that can't move the cursor or colour the terminal."""
    return "".join(c if c.isprintable() or "\udc80" <= c <= "\udcff" else repr(c)[1:-1] for c in text)


def painter(stream: IO[str]) -> Paint:
    """Colours for `stream`: only on a terminal, and not if NO_COLOR is set (no-color.org)."""
    if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return lambda colour, text: text
    return lambda colour, text: f"\033[{_COLOURS[colour]}m{text}\033[0m" if text else text


def print_json(value: object) -> None:
    """`value` as JSON; for people if they look at it."""
    import json

    print(json.dumps(value, indent=2 if sys.stdout.isatty() else None))


class JsonList:
    """A JSON array on standard output, each item as it comes: a listing may be longer than memory. A context manager.

    `before` and `after` are what stands around the array. After an error the array is not ended.
    """

    def __init__(self, before: str = "", after: str = "") -> None:
        self._before = before
        self._after = after
        self._items = 0

    def __enter__(self) -> JsonList:
        return self

    def add(self, item: object) -> None:
        """Print one more."""
        import json

        print((self._before + "[" if self._items == 0 else ", ") + json.dumps(item), end="")
        self._items += 1

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            print(("" if self._items else self._before + "[") + "]" + self._after)


def human_bytes(count: int) -> str:
    """`count` bytes in the largest unit that leaves at least 1, with one decimal from KiB on."""
    size = float(count)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            return f"{count} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError


def counted(count: int, what: str) -> str:
    """`1 file`, `2,000 files`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def human_seconds(seconds: float) -> str:
    """A duration, rounded to its largest unit or two."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 86400} d {whole % 86400 // 3600} h"


def table(rows: Iterable[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """Lines with columns aligned; `right` says which of them to the right. The last column is not padded."""
    rows = [list(row) for row in rows]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(len(right))]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if to_right else cell.ljust(width)
            for cell, width, to_right in zip(row, widths, right, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
