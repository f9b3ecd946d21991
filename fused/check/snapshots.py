"""One store, and the snapshots in it: what `fsck` does without looking at any local file.

Checked in this order: the store's bookkeeping, every block, then for each damaged block who needs it, and the list of
snapshots against the pins. All of it may run while other processes use the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fused.check.blocks import Verifier
from fused.check.findings import Finding
from fused.check.places import Places
from fused.cid import CID, format_cid
from fused.errors import BlockNotFound, StoreDamaged, StoreError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fused.check.blocks import Bad
    from fused.check.findings import Kind, Report
    from fused.check.stores import CheckedStore
    from fused.index.reading import Listed
    from fused.store.audit import Orphan
    from fused.store.base import Pin

PHASE = "checking the store"


class Shown(NamedTuple):
    """The list of snapshots that a covered directory has, and the owner of its pins."""

    owner: str
    rows: Sequence[Listed]


class StoreCheck:
    """One check. What it has found is in `findings`; the rest is for whoever sets it right."""

    def __init__(self, store: CheckedStore, shown: Shown | None, report: Report) -> None:
        """`shown` None: of no directory in particular, or its index can't be read."""
        self.findings: list[Finding] = []
        self.blocks = self.bytes = self.snapshots = 0
        self.bad: dict[CID, Bad] = {}
        self.paths: dict[CID, set[bytes]] = {}
        self.falsely_marked: list[CID] = []
        self.orphans: list[Orphan] = []
        self.broken_database = self.wrong_totals = self.strays = False
        self.unpinned: list[Listed] = []
        self.pointless: list[Listed] = []
        self.damaged_rows: list[Listed] = []
        self.unlisted: list[Pin] = []
        self._store = store
        self._shown = shown
        self._report = report

    def run(self) -> None:
        """Check it all. Raises StoreUnavailable where the store can't be read at all."""
        self._report(PHASE, 0, None, "blocks")
        self._bookkeeping()
        try:
            roots = self._roots()
            self._verify(roots)
        except StoreDamaged as exc:
            self.broken_database = True
            self._found("store", f"not all of the store could be looked at: {exc}")

    def _found(self, kind: Kind, what: str, cid: CID | None = None, *, harmless: bool = False) -> Finding:
        finding = Finding(kind, what, cid, harmless=harmless)
        self.findings.append(finding)
        return finding

    # --- bookkeeping ------------------------------------------------------------------------------------------

    def _bookkeeping(self) -> None:
        books = self._store.bookkeeping
        if books is None:
            return
        for said in books.integrity():
            self.broken_database = True
            self._found("store", f"its database is damaged: {said}")
        try:
            kept, counted = books.totals()
            if kept != counted:
                self.wrong_totals = True
                self._found("store", f"its totals are wrong: they say {kept}, and there are {counted}")
            strays = books.strays()
            if strays:
                self.strays = True
                self._found("store", f"its database holds {strays} contents that belong to no block")
            for orphan in books.orphans():
                self.orphans.append(orphan)
                whose = "belongs to no block" if orphan.cid is not None else "is none of the store's"
                self._found("store", f"the file {orphan.name} {whose}", harmless=True)
        except StoreDamaged as exc:
            if not self.broken_database:
                self.broken_database = True
                self._found("store", str(exc))

    # --- snapshots ----------------------------------------------------------------------------------------------

    def _roots(self) -> dict[CID, list[CID]]:
        """Each snapshot, with the roots of what it is made of as far as they are known without reading it."""
        pins = self._store.pins.list(None)
        roots: dict[CID, list[CID]] = {pin.cid: [pin.cid] for pin in pins}
        if self._shown is None:
            return roots
        owner, listed = self._shown
        pinned = {pin.cid for pin in pins if pin.owner == owner}
        for entry in listed:
            if entry.row is None:
                self.damaged_rows.append(entry)
                self._found("snapshot", f"row {entry.id} in the list of snapshots is damaged")
                continue
            parts = [entry.row.cid, entry.row.tree, entry.row.meta]
            if entry.row.cid not in pinned:
                if all(isinstance(read, BlockNotFound) for _, read in self._store.audit.read(parts)):
                    self.pointless.append(entry)
                    self._found("snapshot", "it is in the list of snapshots, and the store has nothing of it", parts[0])
                    continue
                self.unpinned.append(entry)
                self._found("pin", "the snapshot is in the list and not pinned in the store", parts[0])
            roots[entry.row.cid] = parts
        named = {entry.row.cid for entry in listed if entry.row is not None}
        self.unlisted = [pin for pin in pins if pin.owner == owner and pin.cid not in named]
        for pin in self.unlisted:
            if pin.cid not in {entry.cid for entry in self.damaged_rows}:
                what = "the snapshot is pinned in the store and not in the list of snapshots"
                self._found("pin", what, pin.cid, harmless=True)
        return roots

    def _verify(self, roots: dict[CID, list[CID]]) -> None:
        verifier = Verifier(self._store.audit, self._report)
        self.snapshots = len(roots)
        try:
            verifier.run(cid for parts in roots.values() for cid in parts)
        finally:
            self.blocks, self.bytes = verifier.blocks, verifier.bytes
            self.bad = {cid: bad for cid, bad in verifier.bad.items() if self._still(cid, bad)}
            self.falsely_marked = verifier.falsely_marked
            for cid in self.falsely_marked:
                self._found("store", "a block is marked as damaged, and is whole", cid)
            self._name(roots)

    def _still(self, cid: CID, bad: Bad) -> bool:
        """Whether a block is still as it was found: somebody may have stored it again, or collected it as garbage."""
        if bad.malformed:
            return True
        [(_, read)] = self._store.audit.read([cid])
        return isinstance(read, StoreError)

    def _name(self, roots: dict[CID, list[CID]]) -> None:
        """A finding for each damaged block, with the snapshots and paths that need it."""
        findings = {cid: Finding("block", bad.why, cid) for cid, bad in self.bad.items()}
        places = Places(self._store.audit, self.bad)
        for snapshot, parts in roots.items() if self.bad else ():
            for part in parts:
                for cid, paths in places.below(part).items():
                    if snapshot not in findings[cid].snapshots:
                        findings[cid].snapshots.append(snapshot)
                    self.paths.setdefault(cid, set()).update(paths)
        for cid, finding in findings.items():
            finding.paths = sorted(self.paths.get(cid, ()))
        self.findings += sorted(findings.values(), key=lambda found: (found.paths, format_cid(found.cid or CID(b""))))
