"""The blocks of the embedded store: put, get, has. Blocking, for use from any thread; no trio here.

Small blocks are in the database, large ones in files with a row that names the file. The row is the commit point:
`has` and `get` look at committed rows only.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from fused.cid import CID, verify
from fused.errors import BlockCorrupt, BlockNotFound, StoreUnavailable
from fused.store.base import Block, StoreStats
from fused.store.database import Database, commit_may_have_happened

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from sqlite3 import Connection

    from fused.store.blobs import BlobFiles
    from fused.store.clock import StoreClock

# Blocks up to this size are in the database. Batches of 4 MiB and more on ext4, MB/s into SQLite (which writes all
# twice) and into files: 16 KiB 218 and 38, 64 KiB 242 and 248, 1 MiB 245 and 308 (bench/store.py threshold).
SMALL_MAX = 64 << 10

# A CID that makes a file name too long keeps its block in the database whatever its size.
_CID_MAX = 140

# One write transaction: what other processes have to wait for.
_CHUNK_ROWS = 1000
_CHUNK_BYTES = 8 << 20

# SQLite takes 32,766 parameters in a statement; beyond some hundred there is nothing to gain.
_IN_MAX = 500

T = TypeVar("T")


def never() -> None:
    """A `check` for calls that nobody cancels."""


class Row(NamedTuple):
    """What `blocks` says of one block."""

    id: int
    cid: CID
    size: int
    stamp: int
    file: str | None
    damaged: bool


@dataclass(slots=True)
class _Totals:
    """What a transaction changes in the one row of `state`."""

    blocks: int = 0
    bytes: int = 0
    file_bytes: int = 0

    def count(self, size: int, in_file: bool, sign: int) -> None:
        self.blocks += sign
        self.bytes += sign * size
        self.file_bytes += sign * size if in_file else 0

    def save(self, c: Connection, stamp: int) -> None:
        c.execute(
            "UPDATE state SET blocks = blocks + ?, bytes = bytes + ?, file_bytes = file_bytes + ?,"
            " newest_stamp = max(newest_stamp, ?)",
            (self.blocks, self.bytes, self.file_bytes, stamp),
        )


@dataclass(slots=True)
class _Work:
    """What one call of `put` has to do; `files` maps a large block to the file that was written for it."""

    write: list[Block] = field(default_factory=list)
    stamp: list[Block] = field(default_factory=list)
    files: dict[CID, str] = field(default_factory=dict)


class BlockRows:
    """Blocks in one store's database and files."""

    def __init__(self, db: Database, blobs: BlobFiles, clock: StoreClock, grace_ms: int) -> None:
        """`grace_ms` is how long after its last put a block is safe from gc."""
        self._db = db
        self._blobs = blobs
        self._clock = clock
        # A known block is stamped again when it is put, so that gc lets it live, but not each time: a put of known
        # blocks only reads, unless a quarter of the grace has passed. The rest of the grace is what callers rely on.
        self._stamp_age_ms = grace_ms // 4

    def put(self, blocks: Sequence[Block], check: Callable[[], None] = never) -> int:
        """See BlockStore.put. `check` is called now and then and may raise; what is committed by then stays."""
        new = 0
        pending = list({block.cid: block for block in blocks}.values())
        while pending:
            work = self._plan(pending)
            added, pending = self._carry_out(work, check)
            new += added
        return new

    def _plan(self, blocks: list[Block]) -> _Work:
        """Divide `blocks` into those to write, those to stamp, and the rest, of which nothing is left to do."""
        with self._db.reading() as c:
            known = {row.cid: row for row in select(c, [b.cid for b in blocks])}
        old = self._clock.now_ms() - self._stamp_age_ms
        work = _Work()
        for block in blocks:
            row = known.get(block.cid)
            if row is None or row.damaged:
                work.write.append(block)
            elif row.stamp <= old:
                work.stamp.append(block)
        return work

    def _carry_out(self, work: _Work, check: Callable[[], None]) -> tuple[int, list[Block]]:
        """Returns how many were new, and blocks that gc removed between the plan and now: plan again for those."""
        new = 0
        vanished: list[Block] = []
        large = [block for block in work.write if _goes_to_file(block)]
        with self._db.explained():
            work.files = dict(zip([b.cid for b in large], self._blobs.write(large, check), strict=True))
        superfluous = set(work.files.values())  # until a committed row names them
        try:
            for chunk in _chunks(work.stamp + work.write):
                check()
                added, gone, used, replaced = self._commit(chunk, work)
                superfluous -= used
                superfluous |= replaced
                new += added
                vanished += gone
        except BaseException as err:
            if commit_may_have_happened(err):
                superfluous.clear()  # a row may yet come to name them; if not, gc finds them
            raise
        finally:
            self._blobs.remove(superfluous)
        return new, vanished

    def _commit(self, chunk: list[Block], work: _Work) -> tuple[int, list[Block], set[str], set[str]]:
        """One write transaction. Returns: new blocks, vanished ones, files now in use, files no longer in use."""
        now = self._clock.now_ms()
        write = {block.cid for block in work.write}
        vanished: list[Block] = []
        used: set[str] = set()
        replaced: set[str] = set()
        totals = _Totals()
        rows: list[tuple[int, CID, int, int, str | None]] = []
        small: list[tuple[int, bytes]] = []
        stamps: list[tuple[int, int]] = []
        with self._db.writing() as c:
            known = {row.cid: row for row in select(c, [b.cid for b in chunk])}
            next_id = c.execute("SELECT coalesce(max(id), 0) + 1 FROM blocks").fetchone()[0]
            for block in chunk:
                row = known.get(block.cid)
                if row is not None and not row.damaged:
                    stamps.append((now, row.id))
                    continue
                if block.cid not in write:  # known and whole when we planned
                    vanished.append(block)
                    continue
                if row is not None:
                    _remove_rows(c, [row], totals)
                    replaced |= {row.file} if row.file else set()
                file = work.files.get(block.cid)
                used |= {file} if file else set()
                totals.count(len(block.data), file is not None, +1)
                rows.append((next_id, block.cid, len(block.data), now, file))
                if file is None:
                    small.append((next_id, block.data))
                next_id += 1
            c.executemany("UPDATE blocks SET stamp = ? WHERE id = ?", stamps)
            c.executemany("INSERT INTO blocks (id, cid, size, stamp, file) VALUES (?, ?, ?, ?, ?)", rows)
            c.executemany("INSERT INTO small (id, data) VALUES (?, ?)", small)
            totals.save(c, now)
        return len(rows), vanished, used, replaced

    def get(self, cid: CID) -> bytes:
        """See BlockStore.get."""
        return self.get_many([cid])[cid]

    def get_many(self, cids: Sequence[CID]) -> dict[CID, bytes]:
        """See BlockStore.get_many. A block that turns out damaged is marked, so that the next put repairs it."""
        found = self._fetch(cids)
        result: dict[CID, bytes] = {}
        for cid in cids:
            if cid not in found:
                raise BlockNotFound(cid)
            if cid in result:
                continue
            row, data = found[cid]
            try:
                result[cid] = self._check(row, data)
            except BlockCorrupt:
                self._mark_damaged(cid)
                raise
            if row.damaged:
                self._mark_whole(row)
        return result

    def _fetch(self, cids: Sequence[CID]) -> dict[CID, tuple[Row, bytes | None]]:
        found: dict[CID, tuple[Row, bytes | None]] = {}
        with self._db.reading() as c:
            for some in _slices(cids, _IN_MAX):
                marks = ",".join("?" * len(some))
                for *columns, data in c.execute(
                    "SELECT b.id, b.cid, b.size, b.stamp, b.file, b.damaged, s.data"
                    f" FROM blocks b LEFT JOIN small s ON s.id = b.id WHERE b.cid IN ({marks})",
                    some,
                ):
                    row = _row(*columns)
                    found[row.cid] = row, data
        return found

    def _check(self, row: Row, data: bytes | None) -> bytes:
        """The verified bytes of `row`. Raises BlockCorrupt, or BlockNotFound if gc has just removed it."""
        if row.file is None:
            if data is None:
                raise BlockCorrupt(row.cid, "its bytes are missing from the database")
            if len(data) != row.size:
                raise BlockCorrupt(row.cid, f"it has {row.size} bytes, the database holds {len(data)}")
            verify(row.cid, data)
            return data
        with self._db.explained():
            try:
                return self._blobs.read(row.file, row.cid, row.size)
            except FileNotFoundError:
                pass
        with self._db.reading() as c:
            now = select(c, [row.cid])
        if not now:
            raise BlockNotFound(row.cid)
        if now[0].file != row.file:  # removed and put again since we looked
            return self.get(row.cid)
        raise BlockCorrupt(row.cid, "its file is missing")

    def _mark_damaged(self, cid: CID) -> None:
        """Note that `cid` is damaged, if it still is: somebody may have repaired it since."""
        row, data = self._fetch([cid]).get(cid, (None, None))
        if row is None or row.damaged:
            return
        try:
            self._check(row, data)
        except BlockNotFound:
            return
        except BlockCorrupt:
            # The caller has worse to report than that the mark could not be made. A repair gives the row another
            # file or stamp, so this hits the row that was looked at or none.
            with suppress(StoreUnavailable), self._db.writing() as c:
                c.execute(
                    "UPDATE blocks SET damaged = 1 WHERE id = ? AND stamp = ? AND file IS ?",
                    (row.id, row.stamp, row.file),
                )

    def _mark_whole(self, row: Row) -> None:
        """Take back that a block is damaged: the disk could not read it then, and has just done so."""
        with suppress(StoreUnavailable), self._db.writing() as c:
            c.execute(
                "UPDATE blocks SET damaged = 0 WHERE id = ? AND stamp = ? AND file IS ?", (row.id, row.stamp, row.file)
            )

    def repair(self, blocks: Sequence[Block], check: Callable[[], None] = never) -> int:
        """Read what is stored of `blocks`, write again what is damaged or missing; returns how many that were."""
        for block in blocks:
            check()
            try:
                self.get(block.cid)
            except (BlockCorrupt, BlockNotFound):
                continue
        return self.put(blocks, check)

    def has(self, cids: Sequence[CID]) -> set[CID]:
        """See BlockStore.has. Blocks known to be damaged don't count."""
        present: set[CID] = set()
        with self._db.reading() as c:
            for some in _slices(cids, _IN_MAX):
                marks = ",".join("?" * len(some))
                query = f"SELECT cid FROM blocks WHERE cid IN ({marks}) AND damaged = 0"
                present.update(CID(cid) for (cid,) in c.execute(query, some))
        return present

    def refresh(self, cids: Sequence[CID], check: Callable[[], None] = never) -> set[CID]:
        """Those of `cids` that are stored; their grace begins anew, as if they were put again."""
        old = self._clock.now_ms() - self._stamp_age_ms
        present: set[CID] = set()
        stale: list[CID] = []
        with self._db.reading() as c:
            for row in select(c, cids):
                if not row.damaged:
                    (stale.append if row.stamp <= old else present.add)(row.cid)
        for some in _slices(stale, _CHUNK_ROWS):
            check()
            with self._db.writing() as c:
                now = self._clock.now_ms()
                rows = [row for row in select(c, some) if not row.damaged]  # gc may have been faster
                c.executemany("UPDATE blocks SET stamp = ? WHERE id = ?", [(now, row.id) for row in rows])
                _Totals().save(c, now)
            present |= {row.cid for row in rows}
        return present

    def stats(self) -> StoreStats:
        """See BlockStore.stats. Takes no scan."""
        with self._db.reading() as c:
            blocks, size, in_files = c.execute("SELECT blocks, bytes, file_bytes FROM state").fetchone()
        return StoreStats(blocks, size, in_files + self._db.disk_bytes())


def select(c: Connection, cids: Sequence[CID]) -> list[Row]:
    """The rows of those of `cids` that have one, in no order."""
    rows: list[Row] = []
    for some in _slices(cids, _IN_MAX):
        marks = ",".join("?" * len(some))
        rows += [
            _row(*columns)
            for columns in c.execute(
                f"SELECT id, cid, size, stamp, file, damaged FROM blocks WHERE cid IN ({marks})", some
            )
        ]
    return rows


def remove_rows(c: Connection, ids: Sequence[int], stamped_until: int) -> tuple[int, list[str]]:
    """Remove those blocks `ids` that were last put at `stamped_until` or before; for gc, in its write transaction.

    Returns how many, and their files, to be removed after the commit.
    """
    totals = _Totals()
    marks = ",".join("?" * len(ids))
    rows = [
        _row(*columns)
        for columns in c.execute(
            f"SELECT id, cid, size, stamp, file, damaged FROM blocks WHERE id IN ({marks}) AND stamp <= ?",
            (*ids, stamped_until),
        )
    ]
    _remove_rows(c, rows, totals)
    totals.save(c, 0)
    return len(rows), [row.file for row in rows if row.file is not None]


def _remove_rows(c: Connection, rows: Sequence[Row], totals: _Totals) -> None:
    c.executemany("DELETE FROM blocks WHERE id = ?", [(row.id,) for row in rows])
    c.executemany("DELETE FROM small WHERE id = ?", [(row.id,) for row in rows if row.file is None])
    for row in rows:
        totals.count(row.size, row.file is not None, -1)


def _row(id: int, cid: bytes, size: int, stamp: int, file: str | None, damaged: int) -> Row:
    return Row(id, CID(cid), size, stamp, file, bool(damaged))


def _goes_to_file(block: Block) -> bool:
    return len(block.data) > SMALL_MAX and len(block.cid) <= _CID_MAX


def _slices(items: Sequence[T], length: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), length):
        yield items[start : start + length]


def _chunks(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Parts of `blocks` for one transaction each."""
    chunk: list[Block] = []
    size = 0
    for block in blocks:
        chunk.append(block)
        size += 0 if _goes_to_file(block) else len(block.data)
        if len(chunk) >= _CHUNK_ROWS or size >= _CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk
