"""Garbage collection of the embedded store: remove what no pin of any owner reaches. Blocking, no trio here.

Other processes put, pin and unpin meanwhile. Nothing that is needed goes, because

1. A block is removed only if it was neither reached from a pin nor put within the grace before the start.
   Both are checked, the stamp again in the very transaction that removes the row.
2. `put` of a known block either finds a stamp younger than a quarter of the grace, or stamps it anew in a
   transaction; if gc was faster, that transaction finds no row and the block is written again. So when `put` returns,
   the block has at least three quarters of the grace ahead of it, during which its pin has to come.
   `refresh` does the same for blocks that the caller has not at hand.
3. A pin that comes while gc runs has a higher id than those that gc has walked. Each removing transaction looks for
   such ids first, and if there are any, ends, walks them, and starts over. Write transactions exclude each other, so no
   pin can slip in between the look and the removal.
4. Files go after the row is gone durably, and no other row ever names them (blobs.py).

Two collections at once only remove the same blocks twice.

Removing rows is logged before it frees anything (SQLite's WAL), so when small blocks have filled the disk to the last
page, gc fails with StoreUnavailable until some MiB are free: as many as the log takes before it is folded in.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from fused.cid import CID, RAW, codec_of, inline_block
from fused.errors import BlockNotFound
from fused.store.rows import BlockRows, remove_rows, select

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fused.store.base import LinksOf
    from fused.store.blobs import BlobFiles
    from fused.store.database import Database

# Rows removed in one transaction. Of blocks of 64 KiB that is 16 MiB of pages to free.
_REMOVE_ROWS = 256

# Inner nodes read at a time while walking: at most 1 MiB each, mostly a few KiB.
_READ_NODES = 16

# Pages given back to the file system in one transaction.
_VACUUM_PAGES = 1000


class Collection:
    """One run of gc. Memory: a bit for each block, and the part of a DAG between a node and its siblings."""

    def __init__(self, db: Database, blobs: BlobFiles, rows: BlockRows, check: Callable[[], None]) -> None:
        """`check` is called now and then and may raise; the store is whole then, and the next run goes on."""
        self._db = db
        self._blobs = blobs
        self._rows = rows
        self._check = check
        self._marks = bytearray()  # bit n: block n is reachable
        self._last_pin = 0  # pins up to this id have been walked

    def run(self, links_of: LinksOf, stamped_until: int) -> int:
        """Mark, remove, tidy up; returns how many blocks were removed.

        Raises BlockNotFound or BlockCorrupt if a pinned DAG can't be walked: having removed nothing, unless the pin
        came while gc was removing. Leaves (codec raw) link to nothing and are not read: only that they are there.
        """
        while new := self._new_pins():
            self._walk(new, links_of)
        removed = self._remove(links_of, stamped_until)
        self._remove_orphans()
        self._shrink()
        return removed

    def _new_pins(self) -> list[CID]:
        with self._db.reading() as c:
            rows = c.execute("SELECT id, cid FROM pins WHERE id > ? ORDER BY id", (self._last_pin,)).fetchall()
        if rows:
            self._last_pin = rows[-1][0]
        return [CID(cid) for _, cid in rows]

    def _walk(self, roots: Sequence[CID], links_of: LinksOf) -> None:
        """Mark everything reachable from `roots`."""
        todo = self._mark(roots)
        while todo:
            self._check()
            some = [todo.pop() for _ in range(min(_READ_NODES, len(todo)))]
            links: list[CID] = []
            inline = {cid: data for cid in some if (data := inline_block(cid)) is not None}
            nodes = self._rows.get_many([cid for cid in some if cid not in inline])
            for cid, data in (*inline.items(), *nodes.items()):
                links += links_of(cid, data)
            todo += self._mark(list(dict.fromkeys(links)))

    def _mark(self, cids: Sequence[CID]) -> list[CID]:
        """Mark these blocks; returns those that were not marked before and may have links."""
        stored = [cid for cid in cids if inline_block(cid) is None]
        with self._db.reading() as c:
            ids = {row.cid: row.id for row in select(c, stored)}
        fresh: list[CID] = []
        for cid in cids:
            number = ids.get(cid)
            if number is None:
                if inline_block(cid) is None:
                    raise BlockNotFound(cid)
            elif self._is_marked(number):
                continue
            else:
                self._set_mark(number)
            if codec_of(cid) != RAW:
                fresh.append(cid)
        return fresh

    def _is_marked(self, number: int) -> bool:
        return number >> 3 < len(self._marks) and bool(self._marks[number >> 3] >> (number & 7) & 1)

    def _set_mark(self, number: int) -> None:
        missing = (number >> 3) + 1 - len(self._marks)
        if missing > 0:
            self._marks.extend(bytes(missing + 4096))
        self._marks[number >> 3] |= 1 << (number & 7)

    def _remove(self, links_of: LinksOf, stamped_until: int) -> int:
        removed = 0
        last = 0
        unreachable: list[int] = []
        while True:
            with self._db.reading() as c:
                ids = c.execute("SELECT id, stamp FROM blocks WHERE id > ? ORDER BY id LIMIT 10000", (last,)).fetchall()
            unreachable += [number for number, stamp in ids if stamp <= stamped_until and not self._is_marked(number)]
            while len(unreachable) >= _REMOVE_ROWS or (unreachable and not ids):
                some, unreachable = unreachable[:_REMOVE_ROWS], unreachable[_REMOVE_ROWS:]
                removed += self._remove_some(some, links_of, stamped_until)
            if not ids:
                return removed
            last = ids[-1][0]

    def _remove_some(self, ids: Sequence[int], links_of: LinksOf, stamped_until: int) -> int:
        while True:
            self._check()
            started = time.monotonic()
            with self._db.writing() as c:
                late = c.execute("SELECT 1 FROM pins WHERE id > ? LIMIT 1", (self._last_pin,)).fetchone()
                if not late:
                    unmarked = [number for number in ids if not self._is_marked(number)]
                    count, files = remove_rows(c, unmarked, stamped_until)
            if not late:
                self._blobs.remove(files)
                _let_others_write(started)
                return count
            self._walk(self._new_pins(), links_of)

    def _remove_orphans(self) -> None:
        """Remove files that no row names: of writers that died between writing and committing."""
        batch: list[tuple[CID | None, str]] = []
        for orphan in self._blobs.orphans():
            batch.append(orphan)
            if len(batch) == 1000:
                self._remove_unless_named(batch)
                batch = []
        self._remove_unless_named(batch)

    def _remove_unless_named(self, files: Sequence[tuple[CID | None, str]]) -> None:
        self._check()
        with self._db.reading() as c:
            named = {row.file for row in select(c, [cid for cid, _ in files if cid is not None])}
        self._blobs.remove(name for _, name in files if name not in named)

    def _shrink(self) -> None:
        """Give the free pages of the database back to the file system."""
        more = True
        while more:
            self._check()
            started = time.monotonic()
            more = self._db.shrink(_VACUUM_PAGES)
            _let_others_write(started)


def _let_others_write(started: float) -> None:
    """Stay away from the database for as long as we held it: the others poll for its lock (SQLite's busy handler)."""
    time.sleep(min(time.monotonic() - started, 1.0))
