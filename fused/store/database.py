"""The embedded store's SQLite database: its tables, its connections, and what its errors mean.

Not for: what the rows mean to the store (`rows.py`). No trio here: everything blocks and runs in threads.

Several processes share the database. Two settings make that sound:

- WAL, so that readers never wait for a writer, nor a writer for readers (https://www.sqlite.org/wal.html).
- synchronous=FULL in *every* connection that writes. A WAL commit becomes visible to other connections only after
  its sync (walFrames in SQLite's wal.c updates the shared index last), so a row that anybody can see is durable. `put`
  relies on that when it skips a block that another process has stored: visible means durable.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from fused.errors import StoreDamaged, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

FORMAT = 1
"""Version of the tables and of the files beside them. A higher one is refused, see `directory.py`."""

APPLICATION_ID = 0x69706673  # "ipfs", in the header of the database file, for file(1) and for us

NAME = "blocks.sqlite3"

# A write transaction holds at most one chunk of rows (see rows.py), so a tenth of a second; a process that waits this
# long has met one that is stopped or a disk that hangs.
BUSY_TIMEOUT_S = 30.0

# Checkpoint after 16 MiB of log instead of SQLite's 4 MiB: a batch of 1,000 blocks of 4 KiB is 4 MiB already, and the
# commit that passes the limit pays for copying the log into the database.
_CHECKPOINT_PAGES = 4096
_LOG_LIMIT_BYTES = 64 << 20

SCHEMA = """
-- One row per stored block. A block is stored if and only if its row is here and `damaged` is 0.
CREATE TABLE blocks (
  id      INTEGER PRIMARY KEY,         -- local name; gc marks by it. May be used again after the block is removed.
  cid     BLOB NOT NULL UNIQUE,        -- full binary CID: the same bytes under two codecs are two blocks
  size    INTEGER NOT NULL,            -- bytes of content
  stamp   INTEGER NOT NULL,            -- store clock in ms (clock.py) of the last put, to a quarter of gc's grace
  file    TEXT,                        -- name of its file under blobs/ (blobs.py); NULL: the bytes are in `small`
  damaged INTEGER NOT NULL DEFAULT 0   -- 1: a read found wrong bytes. Counts as not stored, so the next put repairs it.
);
-- Bytes of small blocks, apart from `blocks` so that scans and stamps don't drag them through the page cache.
CREATE TABLE small (
  id   INTEGER PRIMARY KEY,            -- blocks.id
  data BLOB NOT NULL
);
-- Roots that are kept. AUTOINCREMENT: a pin made later has a higher id than any before it, also after removals;
-- gc finds pins that came while it ran by that.
CREATE TABLE pins (
  id    INTEGER PRIMARY KEY AUTOINCREMENT,
  owner TEXT NOT NULL,
  cid   BLOB NOT NULL,
  name  TEXT NOT NULL,
  UNIQUE (owner, cid)
);
-- Exactly one row. The totals repeat what a scan of `blocks` would give and change in the same transactions as it:
-- status asks often, and a scan of a million rows takes most of a second.
CREATE TABLE state (
  blocks       INTEGER NOT NULL,       -- rows in `blocks`
  bytes        INTEGER NOT NULL,       -- sum of blocks.size
  file_bytes   INTEGER NOT NULL,       -- the part of `bytes` that is in files
  newest_stamp INTEGER NOT NULL,       -- highest stamp ever given
  boot         TEXT NOT NULL,          -- kernel boot id under which clock_base is valid
  clock_base   INTEGER NOT NULL        -- store clock minus CLOCK_MONOTONIC, ms
);
INSERT INTO state VALUES (0, 0, 0, 0, '', 0);
"""


class Database:
    """A pool of connections to one store's database, for use from any thread."""

    def __init__(self, root: str) -> None:
        """Connect lazily to the database of the store at `root`, which must exist."""
        self.root = root
        self.path = os.path.join(root, NAME)
        st = os.stat(self.path)
        self._identity = (st.st_dev, st.st_ino)
        self._idle: list[sqlite3.Connection] = []
        self._lock = threading.Lock()  # protects _idle and _closed
        self._closed = False
        # Writers of this process queue here, where waking up is immediate; those of others through SQLite's polling.
        self._write_lock = threading.Lock()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """A connection in autocommit mode: every statement sees the latest commit."""
        with self.explained():
            connection = self._take()
            try:
                yield connection
            except sqlite3.Error:
                # After a full disk or an I/O error a fresh connection is the surest way back to a sane state.
                connection.close()
                raise
            except BaseException:
                self._give_back(connection)
                raise
            self._give_back(connection)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Connection]:
        """A write transaction: committed durably on a normal exit, rolled back on any exception."""
        with self._write_lock, self.reading() as connection:
            self._check_still_there()
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    # The first error is the one to report; if rolling back fails too, `reading` closes the connection.
                    with suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise

    def shrink(self, pages: int) -> bool:
        """Give at most `pages` free pages back to the file system; returns whether there may be more."""
        with self._write_lock, self.reading() as connection:
            self._check_still_there()
            # A transaction by itself. Python's `execute` steps a statement without columns once, which is one page.
            connection.executescript(f"PRAGMA incremental_vacuum({pages})")
            return bool(connection.execute("PRAGMA freelist_count").fetchone()[0])

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turn errors of SQLite and of the file system into StoreUnavailable with a sentence for a person."""
        try:
            yield
        except sqlite3.Error as err:
            raise _explained(self.root, err) from err
        except OSError as err:
            raise StoreUnavailable(explain_os_error(self.root, err)) from err

    def disk_bytes(self) -> int:
        """What the database and its log take on disk."""
        total = 0
        for suffix in ("", "-wal", "-shm"):
            with suppress(FileNotFoundError):
                total += os.stat(self.path + suffix).st_blocks * 512
        return total

    def close(self) -> None:
        """Close all connections. The last one of all processes folds the log into the database."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            with suppress(sqlite3.Error):
                connection.close()

    def _take(self) -> sqlite3.Connection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return connect(self.path)

    def _give_back(self, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed:
                self._idle.append(connection)
                return
        connection.close()

    def _check_still_there(self) -> None:
        """Refuse to write into a database that was removed or replaced: nobody could find the blocks again."""
        try:
            st = os.stat(self.path)
        except FileNotFoundError:
            st = None
        if st is None or (st.st_dev, st.st_ino) != self._identity:
            raise StoreUnavailable(f"the store {self.root} was removed or replaced while in use; mount again")


def connect(path: str) -> sqlite3.Connection:
    """A connection to the database at `path`, which must exist, with every setting that the store relies on."""
    # isolation_level=None: we say BEGIN and COMMIT ourselves. One thread at a time uses a connection, not always the
    # same one. mode=rw: never create a database by accident; it would have the wrong mode bits.
    uri = "file:" + path.replace("%", "%25").replace("?", "%3f").replace("#", "%23") + "?mode=rw"
    connection = sqlite3.connect(
        uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False, cached_statements=64
    )
    try:
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {_CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {_LOG_LIMIT_BYTES}")
        # Debian builds SQLite with secure_delete on, which overwrites everything that gc removes.
        connection.execute("PRAGMA secure_delete = OFF")
    except BaseException:
        connection.close()
        raise
    return connection


def commit_may_have_happened(err: BaseException) -> bool:
    """Whether a transaction that ended in `err` may still appear after a crash.

    So it is after a failed sync: the frames may be on disk, and the recovery after a crash would find them.
    """
    cause = err.__cause__ if isinstance(err, StoreUnavailable) else err
    return isinstance(cause, sqlite3.Error) and _code(cause) == sqlite3.SQLITE_IOERR


def damaged_sentence(root: str, what: str) -> str:
    """What is wrong and what to do when the database can't be understood."""
    return (
        f"the store's database {os.path.join(root, NAME)} is damaged ({what}); move {root} aside and "
        "run `ipfsfs sync`: everything that is in local files is stored again"
    )


def explain_os_error(root: str, err: OSError) -> str:
    """A sentence for a file-system error in the store at `root`."""
    if err.errno in (errno.ENOSPC, errno.EDQUOT):
        return _full(root)
    if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return f"the store {root} can't be written ({err.strerror}); choose another with --store-dir"
    return f"the store {root} failed: {err.strerror or err}"


def _full(root: str) -> str:
    return f"the disk that holds the store {root} is full; free some space, nothing is lost meanwhile"


def _explained(root: str, err: sqlite3.Error) -> StoreUnavailable:
    # A flipped bit can make text that is not UTF-8; Python says so with an error of its own, without a code.
    if _code(err) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(err):
        return StoreDamaged(damaged_sentence(root, str(err)))
    return StoreUnavailable(_explain_sqlite(root, err))


def _explain_sqlite(root: str, err: sqlite3.Error) -> str:
    code = _code(err)
    if code == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR and _no_space(root)):
        return _full(root)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return f"another process has kept the store {root} locked for {BUSY_TIMEOUT_S:.0f} seconds"
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return f"the store {root} can't be opened for writing ({err}); choose another with --store-dir"
    return f"the store's database {os.path.join(root, NAME)} failed: {err}"


def _no_space(root: str) -> bool:
    """Growing the shared-memory file on a full disk is reported as an I/O error."""
    try:
        return os.statvfs(root).f_bavail * os.statvfs(root).f_frsize < 1 << 20
    except OSError:
        return False


def _code(err: sqlite3.Error) -> int:
    """The primary result code; errors that Python itself raises have none."""
    return getattr(err, "sqlite_errorcode", 0) & 0xFF
