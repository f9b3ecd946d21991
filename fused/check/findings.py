"""What a check finds: named exactly, once, in words for a person and in JSON for a script."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from fused.cid import format_cid, parse_cid

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fused.cid import CID

Kind = Literal["block", "store", "pin", "snapshot", "index"]
"""A block; the store's bookkeeping; a pin; the list of snapshots; the memo of a file or directory, or all of them."""

Report = Callable[[str, int, int | None, str], None]
"""How far a check is: phase, done, total if known, unit. As `control.Report`."""


@dataclass(slots=True)
class Finding:
    """One thing that is not as it should be.

    `snapshots` and `paths` are those that are hit, each once; a path is relative to the covered directory, b"" is the
    root. `harmless`: nothing is lost or wrong because of it, it is only left over. `mended`: it is right again.
    """

    kind: Kind
    what: str
    cid: CID | None = None
    snapshots: list[CID] = field(default_factory=list)
    paths: list[bytes] = field(default_factory=list)
    harmless: bool = False
    mended: bool = False

    def as_json(self) -> dict[str, object]:
        """For scripts, and for the control socket."""
        return {
            "kind": self.kind,
            "what": self.what,
            "cid": None if self.cid is None else format_cid(self.cid),
            "snapshots": [format_cid(cid) for cid in self.snapshots],
            "paths": [os.fsdecode(path) or "." for path in self.paths],
            "harmless": self.harmless,
            "repaired": self.mended,
        }


def from_json(said: Mapping[str, object]) -> Finding:
    """The inverse, for what the daemon reports of its own checks, which are about paths and no snapshots."""
    cid, paths = said["cid"], said["paths"]
    assert isinstance(paths, list)
    return Finding(
        kind=said["kind"],  # type: ignore[arg-type]  # it comes from our own daemon
        what=str(said["what"]),
        cid=parse_cid(cid) if isinstance(cid, str) else None,
        paths=[b"" if path == "." else os.fsencode(path) for path in paths],
        harmless=bool(said["harmless"]),
        mended=bool(said["repaired"]),
    )
