"""The memo of contents: which CID belongs to which local file, as long as its stat says so.

Synchronous and safe to use from several threads, one at a time (a lock sees to that). Damage that
SQLite notices while running surfaces as IndexDamaged; whoever owns the index then calls `rebuild`.
"""

from __future__ import annotations

import sqlite3
import struct
import threading
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

from fused.cid import CID
from fused.errors import IndexDamaged, IndexUnavailable
from fused.index.schema import connect, row_sum, set_aside
from fused.leaves import LeafList, runs_of
from fused.types import Stat

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

P = ParamSpec("P")
R = TypeVar("R")

_RUN = struct.Struct(">BQ")
"""Before a leaf that comes several times in a row: a zero, where a leaf has its length, and how often."""

BATCH = 500
"""Values in one `IN (…)`; SQLite's own limit is 32,766."""


@dataclass(frozen=True, slots=True)
class FileMemo:
    """A file's content as it was when its stat was `stat`. `leaves` is empty if the root is the only leaf."""

    ino: int
    stat: Stat
    racy: bool
    cid: CID
    tsize: int
    leaves: Sequence[CID]


@dataclass(frozen=True, slots=True)
class DirMemo:
    """A directory as the last snapshot has it: `files` and `bytes` count what is stored in and below it."""

    ino: int
    parent: int
    mtime_ns: int
    ctime_ns: int
    racy: bool
    tree: CID
    tsize: int
    meta: CID
    files: int
    bytes: int


@dataclass(frozen=True, slots=True)
class SnapshotRow:
    """A snapshot that was taken. The last three count files against the one before."""

    cid: CID
    tree: CID
    meta: CID
    time_ns: int
    files: int
    bytes: int
    added: int = 0
    modified: int = 0
    removed: int = 0


def pack_leaves(leaves: Sequence[CID]) -> bytes | None:
    """Leaves as the column `leaves` has them."""
    if not leaves:
        return None
    parts: list[bytes] = []
    for cid, times in runs_of(leaves):
        one = bytes([len(cid)]) + cid
        parts += [one] * times if times <= 2 else [_RUN.pack(0, times), one]
    return b"".join(parts)


def unpack_leaves(packed: bytes | None) -> Sequence[CID]:
    """The inverse of `pack_leaves`."""
    if packed is None:
        return ()
    leaves = LeafList()
    at = 0
    times = 1
    while at < len(packed):
        if packed[at] == 0:
            _, times = _RUN.unpack_from(packed, at)
            at += _RUN.size
            continue
        end = at + 1 + packed[at]
        leaves.append(CID(packed[at + 1 : end]), times)
        at, times = end, 1
    return leaves


def file_memo(row: Sequence[Any]) -> FileMemo | None:
    """A row of `files`; None if its sum is wrong."""
    ino, size, mtime_ns, ctime_ns, racy, cid, tsize, leaves, check = row
    if row_sum(*row[:-1]) != check:
        return None
    return FileMemo(ino, Stat(size, mtime_ns, ctime_ns), bool(racy), CID(cid), tsize, unpack_leaves(leaves))


def dir_memo(row: Sequence[Any]) -> DirMemo | None:
    """A row of `dirs`; None if its sum is wrong."""
    ino, parent, mtime_ns, ctime_ns, racy, tree, tsize, meta, files, size, check = row
    if row_sum(*row[:-1]) != check:
        return None
    return DirMemo(ino, parent, mtime_ns, ctime_ns, bool(racy), CID(tree), tsize, CID(meta), files, size)


def snapshot_row(row: Sequence[Any]) -> SnapshotRow | None:
    """A row of `snapshots` without its id; None if its sum is wrong."""
    if row_sum(*row[:-1]) != row[-1]:
        return None
    cid, tree, meta, *numbers = row[:-1]
    return SnapshotRow(CID(cid), CID(tree), CID(meta), *numbers)


def _guarded(  # a decorator, so that the lock and the translation of errors stand once
    method: Callable[Concatenate[Index, P], R],
) -> Callable[Concatenate[Index, P], R]:
    """One thread at a time, and damage told from everything else."""

    @wraps(method)
    def wrapper(self: Index, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self._lock:
            try:
                return method(self, *args, **kwargs)
            except sqlite3.OperationalError as exc:
                if "malformed" in str(exc) or "no such" in str(exc):
                    raise IndexDamaged(f"the index {self.path} is damaged: {exc}") from exc
                raise IndexUnavailable(f"the index {self.path} can't be read or written: {exc}") from exc
            except (sqlite3.DatabaseError, ValueError, OverflowError) as exc:
                # A flipped bit can turn the type of a value: text that is not UTF-8, a number of another kind.
                raise IndexDamaged(f"the index {self.path} is damaged: {exc}") from exc

    return wrapper


class Index:
    """The index of one mount, in its state directory."""

    def __init__(self, state_dir: str) -> None:
        """Open it. Raises IndexUnavailable, or OSError."""
        self._state_dir = state_dir
        self._lock = threading.RLock()
        self._db = self._connect()

    @property
    def path(self) -> str:
        """Where the index is."""
        return f"{self._state_dir}/index.sqlite"

    def close(self) -> None:
        """Close it. Idempotent."""
        with self._lock:
            self._db.close()

    def rebuild(self) -> None:
        """Set a damaged index aside and begin an empty one."""
        with self._lock:
            self._db.close()
            set_aside(self.path)
            self._db = self._connect()

    def _connect(self) -> sqlite3.Connection:
        try:
            return connect(self._state_dir)
        except sqlite3.Error as exc:
            raise IndexUnavailable(f"the index {self.path} can't be opened: {exc}") from exc

    def _where_in(self, select: str, inos: Iterable[int]) -> Iterator[tuple[Any, ...]]:
        wanted = list(inos)
        for at in range(0, len(wanted), BATCH):
            part = wanted[at : at + BATCH]
            yield from self._db.execute(f"{select} IN ({','.join('?' * len(part))})", part)

    # --- files ------------------------------------------------------------------------------------------------

    @_guarded
    def files(self, inos: Iterable[int]) -> dict[int, FileMemo]:
        """The memos of those of `inos` that have one."""
        found: dict[int, FileMemo] = {}
        for row in self._where_in("SELECT * FROM files WHERE ino", inos):
            memo = file_memo(row)
            if memo is not None:
                found[memo.ino] = memo
        return found

    @_guarded
    def put_files(self, memos: Sequence[FileMemo]) -> None:
        """Remember `memos`, in one transaction, replacing older ones."""
        rows = []
        for m in memos:
            row = (
                m.ino,
                m.stat.size,
                m.stat.mtime_ns,
                m.stat.ctime_ns,
                int(m.racy),
                bytes(m.cid),
                m.tsize,
                pack_leaves(m.leaves),
            )
            rows.append((*row, row_sum(*row)))
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO files VALUES (?,?,?,?,?,?,?,?,?)", rows)

    @_guarded
    def drop_files(self, inos: Iterable[int]) -> None:
        """Forget files that are no more."""
        gone = [(ino,) for ino in inos]
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("DELETE FROM files WHERE ino = ?", gone)
            self._db.executemany("DELETE FROM links WHERE ino = ?", gone)

    # --- directories ------------------------------------------------------------------------------------------

    @_guarded
    def dirs(self, inos: Iterable[int]) -> dict[int, DirMemo]:
        """The memos of those of `inos` that have one."""
        found: dict[int, DirMemo] = {}
        for row in self._where_in("SELECT * FROM dirs WHERE ino", inos):
            memo = dir_memo(row)
            if memo is not None:
                found[memo.ino] = memo
        return found

    @_guarded
    def put_dirs(self, memos: Sequence[DirMemo], links: Sequence[tuple[int, int]] = ()) -> None:
        """Remember directories, and (file, directory) pairs of files with several links, in one transaction."""
        rows = []
        for m in memos:
            row = (
                m.ino,
                m.parent,
                m.mtime_ns,
                m.ctime_ns,
                int(m.racy),
                bytes(m.tree),
                m.tsize,
                bytes(m.meta),
                m.files,
                m.bytes,
            )
            rows.append((*row, row_sum(*row)))
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("INSERT OR REPLACE INTO dirs VALUES (?,?,?,?,?,?,?,?,?,?,?)", rows)
            self._db.executemany("INSERT OR IGNORE INTO links VALUES (?,?)", links)

    @_guarded
    def drop_dirs(self, inos: Iterable[int]) -> None:
        """Count directories as changed."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("DELETE FROM dirs WHERE ino = ?", [(ino,) for ino in inos])

    @_guarded
    def drop_dirs_below(self, inos: Iterable[int]) -> None:
        """Count directories and all that are below them as changed: nobody could look at them."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany(
                "WITH RECURSIVE below(ino) AS (VALUES (?) UNION SELECT d.ino FROM dirs d JOIN below b"
                " ON d.parent = b.ino) DELETE FROM dirs WHERE ino IN below",
                [(ino,) for ino in inos],
            )

    @_guarded
    def drop_all_dirs(self) -> None:
        """Count every directory as changed."""
        self._db.execute("DELETE FROM dirs")

    @_guarded
    def drop_contents(self) -> None:
        """Forget every file and directory: the store does not have them any more. Snapshots stay listed."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            for table in ("files", "dirs", "links"):
                self._db.execute(f"DELETE FROM {table}")

    @_guarded
    def linking_dirs(self, inos: Iterable[int]) -> dict[int, list[int]]:
        """For each of `inos` with several links, the directories it was seen in."""
        found: dict[int, list[int]] = {}
        for ino, directory in self._where_in("SELECT ino, dir FROM links WHERE ino", inos):
            found.setdefault(ino, []).append(directory)
        return found

    @_guarded
    def with_ancestors(self, dirs: Iterable[int]) -> set[int]:
        """`dirs` and all the directories above them, as far as the index knows."""
        found: set[int] = set()
        for directory in dirs:
            at = directory
            while at not in found:
                found.add(at)
                row = self._db.execute("SELECT parent FROM dirs WHERE ino = ?", (at,)).fetchone()
                if row is None:
                    break
                at = row[0]
        return found

    # --- snapshots --------------------------------------------------------------------------------------------

    @_guarded
    def add_snapshot(self, s: SnapshotRow) -> None:
        """Remember a snapshot; it is the newest. Durable on return."""
        self._put_snapshot(None, s)

    @_guarded
    def snapshots(self, limit: int = -1) -> list[SnapshotRow]:
        """The newest `limit` snapshots (-1: all), newest first. Rows that are damaged are left out."""
        return _snapshot_rows(self._db, limit)

    @_guarded
    def drop_snapshots(self, cids: Iterable[CID]) -> None:
        """Take snapshots off the list, which are not kept any more."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("DELETE FROM snapshots WHERE cid = ?", [(bytes(cid),) for cid in cids])

    @_guarded
    def mend_snapshots(self, drop: Iterable[int], replace: Iterable[tuple[int, SnapshotRow]]) -> None:
        """Take rows off the list of snapshots, by id, and put others in the place of damaged ones."""
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.executemany("DELETE FROM snapshots WHERE id = ?", [(number,) for number in drop])
            for number, s in replace:
                self._put_snapshot(number, s)

    def _put_snapshot(self, number: int | None, s: SnapshotRow) -> None:
        cids = (bytes(s.cid), bytes(s.tree), bytes(s.meta))
        row = (*cids, s.time_ns, s.files, s.bytes, s.added, s.modified, s.removed)
        self._db.execute(
            "INSERT OR REPLACE INTO snapshots"
            " (id, cid, tree, meta, time_ns, files, bytes, added, modified, removed, sum)"
            " VALUES (?,?,?,?,?,?,?,?,?,?,?)",
            (number, *row, row_sum(*row)),
        )

    # --- about ------------------------------------------------------------------------------------------------

    @_guarded
    def about(self, key: str) -> str | None:
        """A value kept under `key`, or None."""
        row = self._db.execute("SELECT value FROM about WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    @_guarded
    def set_about(self, key: str, value: str) -> None:
        """Keep `value` under `key`."""
        self._db.execute("INSERT OR REPLACE INTO about VALUES (?, ?)", (key, value))


def _snapshot_rows(db: sqlite3.Connection, limit: int) -> list[SnapshotRow]:
    found: list[SnapshotRow] = []
    for row in db.execute(
        "SELECT cid, tree, meta, time_ns, files, bytes, added, modified, removed, sum FROM snapshots"
        " ORDER BY id DESC LIMIT ?",
        (limit,),
    ):
        listed = snapshot_row(row)
        if listed is not None:
            found.append(listed)
    return found


def read_snapshots(state_dir: str, limit: int = -1) -> list[SnapshotRow]:
    """The snapshots of a mount that is not running, newest first. Raises IndexDamaged; OSError if there is no index."""
    path = f"{state_dir}/index.sqlite"
    try:
        db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)
    except sqlite3.OperationalError as exc:
        raise FileNotFoundError(path) from exc
    try:
        return _snapshot_rows(db, limit)
    except (sqlite3.DatabaseError, ValueError) as exc:
        raise IndexDamaged(f"the index {path} can't be read ({exc}); mounting rebuilds it") from exc
    finally:
        db.close()
