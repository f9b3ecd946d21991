"""The arguments of commands that run often, read without argparse where they say nothing unusual.

Importing argparse and describing a command to it takes a third of the time that `ipfsfs sync` takes altogether.
Whatever is not understood here (help, errors, abbreviations of two flags in one) is argparse's, whose result for the
rest is the same: `tests/unit/cli/test_plain.py`.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes 10 ms to import, and `ipfsfs sync` comes by here
if TYPE_CHECKING:
    from collections.abc import Sequence

    Value = str | bool | None

_DEFAULTS: dict[str, dict[str, Value]] = {
    "sync": {"dir": ".", "json": False, "progress": None},
    "status": {"dir": ".", "json": False, "state_dir": None},
}
_FLAGS: dict[str, dict[str, tuple[str, Value]]] = {
    "sync": {"--json": ("json", True), "--progress": ("progress", True), "--no-progress": ("progress", False)},
    "status": {"--json": ("json", True)},
}


class Arguments:
    """What `argparse.Namespace` is to a command."""

    def __init__(self, values: dict[str, Value]) -> None:
        self.__dict__.update(values)


def plain_arguments(argv: Sequence[str]) -> Arguments | None:
    """The arguments in `argv`, the command first; None where argparse is to be asked."""
    command = argv[0] if argv else ""
    if command not in _DEFAULTS:
        return None
    flags, places = _FLAGS[command], []
    given: dict[str, Value] = {}
    for word in argv[1:]:
        if not word.startswith("-"):
            places.append(word)
            continue
        if word not in flags:
            return None
        name, value = flags[word]
        if given.setdefault(name, value) != value:
            return None  # --progress and --no-progress
    if len(places) > 1:
        return None
    if places:
        given["dir"] = places[0]
    return Arguments({"command": command, **_DEFAULTS[command], **given})
