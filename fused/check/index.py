"""The index of one covered directory, checked with or without a daemon that uses it."""

from __future__ import annotations

from contextlib import closing, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from fused.check.findings import Finding, from_json
from fused.check.memos import MemoCheck
from fused.cid import format_cid, parse_cid
from fused.errors import DagError, IndexDamaged, StoreError
from fused.index.index import SnapshotRow
from fused.index.reading import IndexReader
from fused.sync.excludes import Excludes, read_ignore_file
from fused.sync.recover import row_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.check.findings import Report
    from fused.check.memos import Live
    from fused.check.stores import CheckedStore
    from fused.index.index import Index
    from fused.sync.changes import ChangeLog
    from fused.types import FileKey


class Changes:
    """What a running daemon knows: `check.memos.Live` over its change log. From any thread."""

    def __init__(self, changes: ChangeLog) -> None:
        self._changes = changes

    def dirty_file(self, key: FileKey) -> bool:
        """Whether its content has changed and is not stored yet."""
        return self._changes.changed_since(key) or self._changes.frozen_file(key)

    def dirty_dir(self, key: FileKey) -> bool:
        """Whether something in or below it has changed and is not in a snapshot yet."""
        return self._changes.dir_changed_since(key) or self._changes.frozen_dir(key)


@dataclass(slots=True)
class IndexState:
    """How the index is. `damaged`: it has to be made anew; the other two say which rows have to be dropped."""

    findings: list[Finding] = field(default_factory=list)
    damaged: bool = False
    files_to_drop: set[int] = field(default_factory=set)
    dirs_to_drop: set[int] = field(default_factory=set)
    files: int = 0
    directories: int = 0
    dirty: int = 0

    def as_json(self) -> dict[str, object]:
        """For the control socket."""
        return {
            "findings": [finding.as_json() for finding in self.findings],
            "damaged": self.damaged,
            "files": self.files,
            "directories": self.directories,
            "dirty": self.dirty,
        }


def state_from_json(said: Mapping[str, object]) -> IndexState:
    """What a daemon has found."""
    findings, files, directories, dirty = (said[key] for key in ("findings", "files", "directories", "dirty"))
    assert isinstance(findings, list)
    return IndexState(
        [from_json(finding) for finding in findings],
        damaged=said["damaged"] is True,
        files=cast("int", files),
        directories=cast("int", directories),
        dirty=cast("int", dirty),
    )


def row_as_json(row: SnapshotRow) -> list[object]:
    """A row of the list of snapshots for the control socket."""
    cids = (format_cid(cid) for cid in (row.cid, row.tree, row.meta))
    return [*cids, row.time_ns, row.files, row.bytes, row.added, row.modified, row.removed]


def row_from_json(said: list[Any]) -> SnapshotRow:
    """The inverse."""
    cid, tree, meta, *numbers = said
    return SnapshotRow(parse_cid(cid), parse_cid(tree), parse_cid(meta), *numbers)


def check_index(
    root_fd: int,
    state_dir: str,
    store: CheckedStore,
    patterns: Sequence[str],
    live: Live,
    report: Report,
    *,
    content: bool,
    quietly: Callable[[Callable[[], None]], None],
) -> IndexState:
    """Check the index in `state_dir` against the store and the local layer open at `root_fd`, in this thread.

    `quietly` runs something while no snapshot is under way. Raises StoreUnavailable, OSError.
    """
    state = IndexState()
    excludes = Excludes([*patterns, *read_ignore_file(root_fd)])
    try:
        with closing(IndexReader(state_dir)) as reader:
            reader.check()
            memos = MemoCheck(root_fd, reader, store, excludes, live, report, content=content)
            memos.run()
            if memos.suspects:
                quietly(memos.again)
    except FileNotFoundError as exc:
        state.damaged = True
        state.findings.append(Finding("index", f"there is no index at {exc.filename}"))
        return state
    except IndexDamaged as exc:
        state.damaged = True
        state.findings.append(Finding("index", str(exc)))
        return state
    state.findings = memos.findings()
    state.files_to_drop, state.dirs_to_drop = memos.rows_to_drop()
    state.files, state.directories, state.dirty = memos.seen, memos.seen_dirs, memos.dirty
    return state


def mend_index(index: Index, state: IndexState) -> None:
    """Make the index anew, or drop from it what is wrong."""
    if state.damaged:
        index.rebuild()
        return
    index.drop_dirs(state.dirs_to_drop)
    index.drop_files(state.files_to_drop)


def list_pinned(index: Index, store: CheckedStore, owner: str) -> None:
    """List the snapshots that the store's pins know, in an index that knows none. A damaged one stays pinned."""
    for pin in store.pins.list(owner):
        with suppress(StoreError, DagError):
            index.add_snapshot(row_of(pin, store.rows.get(pin.cid)))
