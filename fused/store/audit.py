"""The store's own bookkeeping, looked at from inside, and set right: for `fsck`. Blocking, no trio here.

Not for: what is reachable, and from where (`fused/check`). Everything here may run while other processes use the store:
what is compared is read in one transaction, and a file or row that seems wrong is looked at once more before it counts.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from fused.cid import CID
from fused.errors import BlockCorrupt, BlockNotFound, DagError, StoreDamaged, StoreError
from fused.store.rows import BlockRows, Row, remove_rows, select

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Sequence

    from fused.store.blobs import BlobFiles
    from fused.store.database import Database

_PAGE = 10_000  # rows in memory at once
_SAID = 20  # lines that integrity_check may say: the first ones tell what there is to tell
# What a row raises somewhere on the way to its bytes when a flipped bit has made it something else.
_SENSELESS = (DagError, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_STEPS = 100_000  # of SQLite's machine between two looks at whether we were interrupted: some ms


class Totals(NamedTuple):
    """What `state` says, or what it should say."""

    blocks: int
    bytes: int
    file_bytes: int

    def __str__(self) -> str:
        return f"{self.blocks} blocks, {self.bytes} bytes, {self.file_bytes} of them in files"


class Orphan(NamedTuple):
    """A file under blobs/ that no row names. `cid` is None if its name is none that we give."""

    cid: CID | None
    name: str
    age_s: float


class Audit:
    """See the module. Made by `BlockingStore.audit`."""

    def __init__(self, db: Database, blobs: BlobFiles, rows: BlockRows) -> None:
        self._db = db
        self._blobs = blobs
        self._rows = rows

    # --- looking ----------------------------------------------------------------------------------------------

    def integrity(self) -> list[str]:
        """What SQLite finds wrong with the database file, in its own words. Reads all of it."""
        try:
            with self._db.reading() as c:
                c.set_progress_handler(lambda: 0, _STEPS)  # lets Python see Ctrl-C
                try:
                    said = [str(row[0]) for row in c.execute(f"PRAGMA integrity_check({_SAID})")]
                finally:
                    c.set_progress_handler(None, 0)
        except StoreDamaged as exc:
            return [str(exc.__cause__ or exc)]
        return [] if said == ["ok"] else said

    def totals(self) -> tuple[Totals, Totals]:
        """The totals that are kept, and those that the rows give, of one instant. Takes a scan of the rows."""
        with self._db.reading() as c:
            c.execute("BEGIN")
            try:
                kept = c.execute("SELECT blocks, bytes, file_bytes FROM state").fetchone()
                return Totals(*kept), _counted(c)
            finally:
                c.execute("ROLLBACK")

    def known_blocks(self) -> int:
        """How many blocks the totals say there are; cheap."""
        return self._rows.stats().blocks

    def strays(self) -> int:
        """Contents in the database that belong to no block."""
        with self._db.reading() as c:
            return int(c.execute(f"SELECT count(*) {_STRAYS}").fetchone()[0])

    def rows(self, cids: Sequence[CID]) -> dict[CID, Row]:
        """The rows of those of `cids` that have one."""
        with self._db.reading() as c:
            return {row.cid: row for row in select(c, cids)}

    def all_rows(self) -> Iterator[list[Row]]:
        """Every row, by id, some thousand at a time. Raises StoreDamaged where they can't be read."""
        last = -1
        while True:
            with self._db.reading() as c:
                found = c.execute(
                    "SELECT id, cid, size, stamp, file, damaged FROM blocks WHERE id > ? ORDER BY id LIMIT ?",
                    (last, _PAGE),
                ).fetchall()
            if not found:
                return
            last = found[-1][0]
            yield [Row(id, _as_cid(cid), size, stamp, file, bool(bad)) for id, cid, size, stamp, file, bad in found]

    def read(self, cids: Sequence[CID]) -> Iterator[tuple[CID, bytes | StoreError]]:
        """The verified bytes of each of `cids`, or why there are none: BlockCorrupt, BlockNotFound.

        Raises StoreUnavailable. What is found damaged is marked, as by any other read.
        """
        try:
            found = self._rows.get_many(cids)
        except (BlockCorrupt, BlockNotFound, StoreDamaged, *_SENSELESS):
            for cid in cids:
                yield cid, self._read_one(cid)
            return
        yield from found.items()

    def _read_one(self, cid: CID) -> bytes | StoreError:
        try:
            return self._rows.get(cid)
        except (BlockCorrupt, BlockNotFound) as exc:
            return exc
        except StoreDamaged:
            return BlockCorrupt(cid, "the store's database is damaged where it should be")
        except _SENSELESS as exc:
            return BlockCorrupt(cid, f"its row in the store's database makes no sense ({exc})")

    def orphans(self) -> Iterator[Orphan]:
        """Files that no row names, of writers that are dead."""
        batch: list[tuple[CID | None, str]] = []
        for file in self._blobs.orphans():
            batch.append(file)
            if len(batch) == _PAGE:
                yield from self._unnamed(batch)
                batch = []
        yield from self._unnamed(batch)

    def _unnamed(self, files: Sequence[tuple[CID | None, str]]) -> Iterator[Orphan]:
        named = {row.file for row in self.rows([cid for cid, _ in files if cid is not None]).values()}
        for cid, name in files:
            if name not in named:
                with suppress(FileNotFoundError):  # gc was faster
                    yield Orphan(cid, name, time.time() - self._blobs.modified(name))

    # --- setting right ----------------------------------------------------------------------------------------

    def rebuild_indexes(self) -> None:
        """Make SQLite's indexes anew from the tables. Raises StoreDamaged where that is not enough."""
        with self._db.writing() as c:
            c.execute("REINDEX")

    def correct_totals(self) -> None:
        """Count again."""
        with self._db.writing() as c:
            newest = c.execute("SELECT coalesce(max(stamp), 0) FROM blocks").fetchone()[0]
            c.execute(
                "UPDATE state SET blocks = ?, bytes = ?, file_bytes = ?, newest_stamp = max(newest_stamp, ?)",
                (*_counted(c), newest),
            )

    def remove_strays(self) -> None:
        """Remove contents that belong to no block."""
        with self._db.writing() as c:
            c.execute(f"DELETE FROM small WHERE id IN (SELECT s.id {_STRAYS})")

    def remove_orphans(self, orphans: Sequence[Orphan]) -> None:
        """Remove files that still no row names."""
        with self._db.writing() as c:  # nobody commits a row meanwhile
            named = {row.file for row in select(c, [orphan.cid for orphan in orphans if orphan.cid is not None])}
            self._blobs.remove(orphan.name for orphan in orphans if orphan.name not in named)

    def forget(self, cids: Sequence[CID]) -> int:
        """Remove those of `cids` that are damaged: they count as not stored anyhow. Returns how many."""
        bad = {
            cid for cid in cids if isinstance(self._read_one(cid), StoreError)
        }  # marks them, where the row makes sense
        with self._db.writing() as c:
            rows = [row for row in select(c, cids) if row.damaged or row.cid in bad]
            count, files = remove_rows(c, [row.id for row in rows], max((row.stamp for row in rows), default=0))
        self._blobs.remove(files)
        return count


_STRAYS = "FROM small s LEFT JOIN blocks b ON b.id = s.id AND b.file IS NULL WHERE b.id IS NULL"


def _counted(c: sqlite3.Connection) -> Totals:
    return Totals(
        *c.execute(
            "SELECT count(*), coalesce(sum(size), 0), coalesce(sum(CASE WHEN file IS NULL THEN 0 ELSE size END), 0)"
            " FROM blocks"
        ).fetchone()
    )


def _as_cid(value: object) -> CID:
    """A row's CID, also where a flipped bit has turned it into something else: it can be named then."""
    return CID(value if isinstance(value, bytes) else os.fsencode(str(value)))
