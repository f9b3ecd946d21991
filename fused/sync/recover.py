"""The list of snapshots back from the store's pins, when the index has lost it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from fused.dag.meta import decode_snapshot
from fused.index.index import SnapshotRow

if TYPE_CHECKING:
    from fused.store.base import Pin

_PIN_NAME = re.compile(r"(\d+) files, (\d+) bytes")


def pin_name(files: int, size: int) -> str:
    """What a snapshot's pin is called: for people, and for `row_of`."""
    return f"{files} files, {size} bytes"


def row_of(pin: Pin, block: bytes) -> SnapshotRow:
    """The row of the pinned snapshot in `block`, without what it changed. Raises DagError."""
    snapshot = decode_snapshot(pin.cid, block)
    said = _PIN_NAME.fullmatch(pin.name)
    files, size = (int(said[1]), int(said[2])) if said else (0, 0)
    return SnapshotRow(pin.cid, snapshot.tree, snapshot.meta, snapshot.time_ns, files, size)
