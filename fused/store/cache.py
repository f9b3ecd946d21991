"""Blocks that came from a node, kept on local disk up to a limit. A memo: whatever is wrong with it is a miss.

Not for: what must not be lost. Nothing is synced; every block is verified when it is taken out; a database that SQLite
can't read is thrown away. Several processes may use one.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
from typing import TYPE_CHECKING

from fused.cid import CID, verify
from fused.errors import BlockCorrupt, DagError
from fused.store.memo import Memo, MemoForm, is_damage, open_memo

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fused.types import Block

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    cid BLOB PRIMARY KEY,
    used INTEGER NOT NULL,  -- rises with each use of any block: the lowest goes first
    size INTEGER NOT NULL   -- with _OVERHEAD
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_use ON blocks (used, cid, size);
CREATE TABLE IF NOT EXISTS contents (cid BLOB PRIMARY KEY, data BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS total (bytes INTEGER NOT NULL);  -- the sum of all sizes, which takes long to add up
INSERT INTO total SELECT 0 WHERE NOT EXISTS (SELECT * FROM total);
"""
_VERSION = 1
_OVERHEAD = 200  # bytes that a row takes beside its data: the CID four times, and what SQLite needs
_EVICT_TO = 0.9  # of the limit, so that not every block that comes has to push one out
_NOTED = 64  # uses that are written down together
_BUSY_S = 2.0
_PAGE = 32768  # a block of 1 MiB is written twice as fast as with SQLite's usual 4096, and read three times
_IN_MAX = 500

log = logging.getLogger(__name__)


class BlockCache:
    """See the module. From any thread; `close` it in the end. A limit of 0 keeps nothing."""

    def __init__(self, path: str, most_bytes: int) -> None:
        """The cache in file `path`, made there if it is missing. If that is impossible, there is none."""
        self._path = path
        self._most = most_bytes
        self._lock = threading.Lock()
        self._used: dict[CID, int] = {}
        self._use = 0
        self._memo: Memo | None = None
        with self._lock:
            self._open()

    def get(self, cids: Sequence[CID]) -> dict[CID, bytes]:
        """Those of `cids` that are here and whole."""
        with self._lock:
            found = self._select(cids)
        bad = [cid for cid, data in found.items() if not _is_whole(cid, data)]
        for cid in bad:
            del found[cid]
        with self._lock:
            if bad:
                self._delete(bad)
            for cid in found:
                self._used[cid] = self._next_use()
            if len(self._used) >= _NOTED:
                self._note_uses()
        return found

    def put(self, blocks: Iterable[Block]) -> None:
        """Keep `blocks`, which are verified, and let the least used go where it gets too much."""
        with self._lock:
            memo = self._memo
            if memo is None or not self._most:
                return
            try:
                with memo.transaction() as db:
                    self._insert(db, blocks)
            except sqlite3.Error as err:
                self._broken(err)

    @property
    def size(self) -> int:
        """Bytes that are kept."""
        with self._lock:
            if self._memo is None:
                return 0
            try:
                return _size(self._memo.connect())
            except sqlite3.Error as err:
                self._broken(err)
                return 0

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._note_uses()
            if self._memo is not None:
                self._memo.close()
                self._memo = None

    # --- with the lock held -----------------------------------------------------------------------------------

    def _open(self) -> None:
        form = MemoForm("cache", _SCHEMA, _VERSION, _BUSY_S, synchronous="OFF", page_bytes=_PAGE)
        try:
            self._memo = open_memo(self._path, form)
            row = self._memo.connect().execute("SELECT coalesce(max(used), 0) FROM blocks").fetchone()
            self._use = int(row[0])
        except sqlite3.Error as err:
            self._broken(err)

    def _broken(self, err: sqlite3.Error) -> None:
        """Throw away what SQLite can't read; where it is the disk or another process, there is no cache just now."""
        self._used.clear()
        if is_damage(err) and self._memo is not None:
            try:
                self._memo.renew(err)
                return
            except sqlite3.Error as why:
                err = why
        log.info("the cache %s can't be used just now: %s", self._path, err)

    def _next_use(self) -> int:
        self._use += 1
        return self._use

    def _select(self, cids: Sequence[CID]) -> dict[CID, bytes]:
        found: dict[CID, bytes] = {}
        if self._memo is None:
            return found
        try:
            db = self._memo.connect()
            for start in range(0, len(cids), _IN_MAX):
                some = cids[start : start + _IN_MAX]
                marks = ",".join("?" * len(some))
                rows = db.execute(f"SELECT cid, data FROM contents WHERE cid IN ({marks})", some)
                found.update((CID(cid), data) for cid, data in rows)
        except (sqlite3.Error, TypeError) as err:
            self._broken(err if isinstance(err, sqlite3.Error) else sqlite3.DatabaseError(str(err)))
            return {}
        return found

    def _insert(self, db: sqlite3.Connection, blocks: Iterable[Block]) -> None:
        added = 0
        for block in blocks:
            size = len(block.data) + _OVERHEAD
            row = (block.cid, self._next_use(), size)
            if size <= self._most and db.execute("INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)", row).rowcount:
                db.execute("INSERT OR REPLACE INTO contents VALUES (?, ?)", block)
                added += size
        db.execute("UPDATE total SET bytes = bytes + ?", (added,))
        total = _size(db)
        if total <= self._most:
            return
        db.executemany("UPDATE blocks SET used = ? WHERE cid = ?", [(use, cid) for cid, use in self._used.items()])
        self._used.clear()
        gone: list[CID] = []
        for cid, size in db.execute("SELECT cid, size FROM blocks ORDER BY used"):
            gone.append(CID(cid))
            total -= size
            if total <= self._most * _EVICT_TO:
                break
        _remove(db, gone)

    def _delete(self, cids: Sequence[CID]) -> None:
        if self._memo is not None:
            try:
                with self._memo.transaction() as db:
                    _remove(db, cids)
            except sqlite3.Error as err:
                self._broken(err)

    def _note_uses(self) -> None:
        uses, self._used = self._used, {}
        if self._memo is not None and uses:
            try:
                with self._memo.transaction() as db:
                    rows = [(use, cid) for cid, use in uses.items()]
                    db.executemany("UPDATE blocks SET used = ? WHERE cid = ?", rows)
            except sqlite3.Error as err:
                self._broken(err)


def _size(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT bytes FROM total").fetchone()[0])


def _remove(db: sqlite3.Connection, cids: Sequence[CID]) -> None:
    for cid in cids:
        for (size,) in db.execute("DELETE FROM blocks WHERE cid = ? RETURNING size", (cid,)).fetchall():
            db.execute("UPDATE total SET bytes = bytes - ?", (size,))
        db.execute("DELETE FROM contents WHERE cid = ?", (cid,))


def _is_whole(cid: CID, data: bytes) -> bool:
    try:
        verify(cid, data)
    except (BlockCorrupt, DagError, TypeError):
        return False
    return True
