"""A whole check, and repair: what is done in what order, and what counts as repaired.

Repaired is what a second look does not find any more; nothing is believed of the repair itself. Mending a directory's
node may bring damage below it to light, so looking and mending go on until mending changes nothing.
"""

from __future__ import annotations

import os
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fused.check.index import IndexState, check_index, list_pinned, mend_index
from fused.check.memos import NothingRuns
from fused.check.mend import BlockMender, mend_bookkeeping, pin_listed
from fused.check.snapshots import Shown, StoreCheck
from fused.cid import RAW, codec_of
from fused.errors import IndexDamaged, StoreError
from fused.index.index import Index, SnapshotRow
from fused.index.reading import IndexReader
from fused.index.schema import set_aside
from fused.sync.recover import row_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from fused.check.findings import Finding, Report
    from fused.check.stores import CheckedStore

ROUNDS = 16
"""Looks after the first, at most. Each but the last finds other blocks damaged than the one before."""


class IndexSide(Protocol):
    """The index of a covered directory: in the hands of its daemon, or in ours."""

    def check(self, *, content: bool, repair: bool) -> IndexState:
        """Look, and with `repair` then drop what is wrong. Raises StoreUnavailable, ControlError, OSError."""
        ...

    def mend_list(self, drop: Sequence[int], replace: Sequence[tuple[int, SnapshotRow]]) -> None:
        """Take rows off the list of snapshots, and put others in the place of damaged ones."""
        ...


@dataclass(frozen=True, slots=True)
class Subject:
    """A covered directory. `root` is where its files can be read: the mount itself, or the plain directory."""

    owner: str
    root: str
    state_dir: str
    patterns: Sequence[str]
    index: IndexSide


class OurIndex:
    """The index while no daemon runs; the caller holds the lock on the state directory."""

    def __init__(
        self,
        root: str,
        state_dir: str,
        patterns: Sequence[str],
        owner: str,
        store: CheckedStore,
        report: Report,
    ) -> None:
        self._root = root
        self._state_dir = state_dir
        self._patterns = patterns
        self._owner = owner
        self._store = store
        self._report = report

    def check(self, *, content: bool, repair: bool) -> IndexState:
        """See IndexSide."""
        root_fd = os.open(self._root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            state = check_index(
                root_fd,
                self._state_dir,
                self._store,
                self._patterns,
                NothingRuns(),
                self._report,
                content=content,
                quietly=lambda work: work(),
            )
        finally:
            os.close(root_fd)
        if repair and (state.damaged or state.files_to_drop or state.dirs_to_drop):
            self._mend(state)
        return state

    def _mend(self, state: IndexState) -> None:
        if state.damaged:
            set_aside(os.path.join(self._state_dir, "index.sqlite"))
        with closing(Index(self._state_dir)) as index:
            if state.damaged:
                list_pinned(index, self._store, self._owner)
            else:
                mend_index(index, state)

    def mend_list(self, drop: Sequence[int], replace: Sequence[tuple[int, SnapshotRow]]) -> None:
        """See IndexSide."""
        with closing(Index(self._state_dir)) as index:
            index.mend_snapshots(drop, replace)


@dataclass(slots=True)
class Course:
    """One run of fsck. `findings` is all there is to say when `run` has returned, or raised."""

    store: CheckedStore
    subject: Subject | None
    report: Report
    content: bool
    repair: bool
    findings: list[Finding] = field(default_factory=list)
    checked: StoreCheck | None = None
    index: IndexState | None = None

    def run(self) -> None:
        """Check, and repair if that is asked for. Raises StoreUnavailable, ControlError, OSError."""
        self.checked = first = self._look()
        self.findings = first.findings
        if self.repair and self._something_to_do(first):
            self._mend_until_done(first)
            assert self.checked is not None
            self.findings = settled(first.findings, self.checked.findings)
        if self.subject is not None:
            self._check_index(self.subject.index)

    def _look(self) -> StoreCheck:
        checked = StoreCheck(self.store, self._shown(), self.report)
        self.checked = checked
        try:
            checked.run()
        except BaseException:
            self.findings = checked.findings
            raise
        return checked

    def _shown(self) -> Shown | None:
        """The list of snapshots, if it can be read. If not, that is found again with the rest of the index."""
        if self.subject is None:
            return None
        try:
            with IndexReader(self.subject.state_dir) as reader:
                return Shown(self.subject.owner, reader.snapshots())
        except (IndexDamaged, FileNotFoundError):
            return None

    # --- the index --------------------------------------------------------------------------------------------

    def _check_index(self, side: IndexSide) -> None:
        first = side.check(content=self.content, repair=self.repair)
        self.index = first
        found = self._not_named_yet(first.findings)
        if self.repair and (first.damaged or first.findings):
            self.index = side.check(content=self.content, repair=False)
            found = settled(found, self._not_named_yet(self.index.findings))
        self.findings += found

    def _not_named_yet(self, findings: list[Finding]) -> list[Finding]:
        """A memo of a damaged block is no more wrong than the block."""
        bad = {found.cid for found in self.findings if found.kind == "block"}
        return [found for found in findings if found.cid is None or found.cid not in bad]

    # --- repair -----------------------------------------------------------------------------------------------

    def _something_to_do(self, found: StoreCheck) -> bool:
        return bool(found.findings or found.damaged_rows)

    def _mend_until_done(self, found: StoreCheck) -> None:
        self._mend_list(found)
        for _ in range(ROUNDS):
            if self.store.bookkeeping is not None:
                mend_bookkeeping(self.store, self.store.bookkeeping, found)
            if self.subject is not None:
                pin_listed(self.store, found, self.subject.owner)
            mended = self._mend_blocks(found)
            if not mended:
                self._forget(found)
            before, found = found, self._look()
            if found.bad.keys() == before.bad.keys():
                return

    def _mend_blocks(self, found: StoreCheck) -> int:
        mender = BlockMender(self.store, (cid for cid, bad in found.bad.items() if not bad.malformed), self.report)
        subject = self.subject
        if not mender.wanted or subject is None:
            return 0
        try:
            with IndexReader(subject.state_dir) as reader:
                mender.from_list(entry.row for entry in reader.snapshots() if entry.row is not None)
                mender.from_memos(reader)
        except (IndexDamaged, FileNotFoundError):
            pass  # one source less
        root_fd = os.open(subject.root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if mender.wanted:
                mender.from_paths(root_fd, found.paths)
            if mender.wanted:
                mender.from_tree(root_fd, subject.state_dir, subject.patterns)
        finally:
            os.close(root_fd)
        return mender.mended

    def _forget(self, found: StoreCheck) -> None:
        """Drop damaged blocks that no snapshot needs; none, while a node is damaged that may have links to them."""
        books = self.store.bookkeeping
        if books is not None and all(codec_of(cid) == RAW or not bad.reached for cid, bad in found.bad.items()):
            books.forget([cid for cid, bad in found.bad.items() if not bad.reached])

    def _mend_list(self, found: StoreCheck) -> None:
        """Damaged rows of the list of snapshots from the pins, in their places; those that point at nothing go."""
        if self.subject is None or not (found.pointless or found.damaged_rows):
            return
        pins = {bytes(pin.cid): pin for pin in found.unlisted}
        rows = sorted(found.damaged_rows)
        chosen = {entry.id: pins.pop(entry.cid) for entry in rows if isinstance(entry.cid, bytes) and entry.cid in pins}
        rest = [entry for entry in rows if entry.id not in chosen]
        if len(rest) == len(pins):
            chosen.update(zip((entry.id for entry in rest), pins.values(), strict=True))
        replace = []
        for number, pin in chosen.items():
            for cid, block in self.store.audit.read([pin.cid]):
                if not isinstance(block, StoreError) and cid not in found.bad:
                    replace.append((number, row_of(pin, block)))
        drop = [entry.id for entry in (*found.pointless, *rows) if entry.id not in chosen]
        self.subject.index.mend_list(drop, replace)


def settled(first: list[Finding], last: list[Finding]) -> list[Finding]:
    """All that was found at first and at last; what is not found any more is mended."""
    left = {_key(found) for found in last}
    found = [*first, *(late for late in last if _key(late) not in {_key(early) for early in first})]
    for entry in found:
        entry.mended = _key(entry) not in left
    return found


def _key(found: Finding) -> Hashable:
    """What makes two findings the same thing."""
    if found.kind in ("block", "pin", "snapshot") and found.cid is not None:
        return (found.kind, found.cid)
    return (found.kind, found.what, found.cid, tuple(found.paths))
