"""What a node's pins are called. A CID has one pin there, so the pins of several owners share a name, a line each.

    ipfsfs:OWNER:TIME_MS:NAME

Lines of another form are somebody else's, and are kept.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from fused.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_BYTES = 255
"""Of a pin's name (boxo pinner, MaxPinNameBytes)."""

_PREFIX = "ipfsfs:"
_NOBODY, _NOBODY_QUOTED = "ledger", "%6Cedger"
_LEDGER = f"{_PREFIX}{_NOBODY}:"
_SAFE = "".join(map(chr, range(32, 127))).replace(":", "").replace("%", "")


class Line(NamedTuple):
    """One owner's pin. `time_ms` is when it was first made; `owner` is None for a line that is not ours."""

    owner: str | None
    time_ms: int
    name: str

    def __str__(self) -> str:
        if self.owner is None:
            return self.name
        owner = quote(self.owner, safe=_SAFE) if self.owner != _NOBODY else _NOBODY_QUOTED
        return f"{_PREFIX}{owner}:{self.time_ms}:{_one_line(self.name)}"


def parse(name: str) -> list[Line]:
    """The lines of a pin's name."""
    return [_parse_line(line) for line in name.split("\n") if line]


def join(lines: Sequence[Line]) -> str:
    """The name with these lines. What would make it too long is cut. Raises StoreUnavailable if that won't do."""
    whole = "\n".join(map(str, lines))
    if len(whole.encode()) <= MAX_BYTES:
        return whole
    bare = "\n".join(str(line if line.owner is None else line._replace(name="")) for line in lines)
    room = MAX_BYTES - len(bare.encode())
    if room < 0:
        raise StoreUnavailable(f"the node's pin has {len(lines)} owners already, and its name no room for another")
    each = room // len(lines)
    cut = (line if line.owner is None else line._replace(name=_cut(_one_line(line.name), each)) for line in lines)
    return "\n".join(map(str, cut))


def ledger(marker: str) -> str:
    """The name of the pin that says whose ledger a node belongs to."""
    return _LEDGER + marker


def _parse_line(line: str) -> Line:
    if line.startswith(_PREFIX) and not line.startswith(_LEDGER):
        owner, _, rest = line.removeprefix(_PREFIX).partition(":")
        time_ms, colon, name = rest.partition(":")
        if colon and time_ms.isascii() and time_ms.isdigit():
            return Line(unquote(owner), int(time_ms), name)
    return Line(None, 0, line)


def _one_line(name: str) -> str:
    return " ".join(name.encode(errors="replace").decode().splitlines())


def _cut(name: str, size: int) -> str:
    return name.encode()[:size].decode(errors="ignore")
