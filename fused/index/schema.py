"""Tables of the index, and opening it. This is the reference for what every column means.

The index is a memo (design, section 2): everything in it can be found again by reading the local
layer or the store. So it is never repaired: if SQLite can't read it, or its version is not ours, it
is set aside and begun anew. A flipped bit inside a row would go unnoticed by SQLite and could put a
wrong CID into a snapshot; hence the column `sum` in every table, a CRC-32 of the row's other values.
A row whose sum does not match counts as absent.

Inode numbers are those of the covered directory's own file system; nothing of nested mounts is stored.
The device number is left out on purpose: it may differ after a reboot, and a file of another file
system that has the same inode number, size, mtime and ctime to the nanosecond does not occur.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import time
import zlib

from fused.errors import IndexDamaged

log = logging.getLogger(__name__)

FILE_NAME = "index.sqlite"
VERSION = 1

TABLES = """
CREATE TABLE about (
  key TEXT PRIMARY KEY,          -- 'version'; 'excludes': digest of the patterns that the rows below were made with;
                                 -- 'store': which store they say that the content is in
  value TEXT NOT NULL
) WITHOUT ROWID;

-- A file whose content is in the store. It is clean while size, mtime_ns and ctime_ns are what stat says.
CREATE TABLE files (
  ino INTEGER PRIMARY KEY,
  size INTEGER NOT NULL,         -- bytes
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  racy INTEGER NOT NULL,         -- 1: hashed so soon after its ctime that a later change may show the same times
  cid BLOB NOT NULL,             -- root of the content
  tsize INTEGER NOT NULL,        -- cumulative size of its DAG, bytes, as a link to it says
  leaves BLOB,                   -- CIDs of the leaves, a length byte before each; NULL: the root is the leaf;
                                 -- one that is repeated comes once, after a zero byte and the count, 8 bytes
  sum INTEGER NOT NULL
);

-- A directory as the last snapshot has it. There is a row only while nothing in or below it has changed since.
CREATE TABLE dirs (
  ino INTEGER PRIMARY KEY,
  parent INTEGER NOT NULL,       -- inode number of the directory it stands in; its own for the root
  mtime_ns INTEGER NOT NULL,
  ctime_ns INTEGER NOT NULL,
  racy INTEGER NOT NULL,         -- as for files
  tree BLOB NOT NULL,            -- its UnixFS directory
  tsize INTEGER NOT NULL,
  meta BLOB NOT NULL,            -- its dag-cbor node
  files INTEGER NOT NULL,        -- regular files in and below it that are stored
  bytes INTEGER NOT NULL,        -- their sizes
  sum INTEGER NOT NULL
);

-- Other directories in which a file with several links stands, so that a change through one name is seen at the others.
CREATE TABLE links (
  ino INTEGER NOT NULL,
  dir INTEGER NOT NULL,
  PRIMARY KEY (ino, dir)
) WITHOUT ROWID;

-- Snapshots, oldest first. The store's pins know them too.
CREATE TABLE snapshots (
  id INTEGER PRIMARY KEY,
  cid BLOB NOT NULL,
  tree BLOB NOT NULL,
  meta BLOB NOT NULL,
  time_ns INTEGER NOT NULL,
  files INTEGER NOT NULL,
  bytes INTEGER NOT NULL,
  added INTEGER NOT NULL,        -- files that the previous snapshot does not have
  modified INTEGER NOT NULL,
  removed INTEGER NOT NULL,
  sum INTEGER NOT NULL
);
"""


def row_sum(*values: int | bytes | None) -> int:
    """The `sum` column for a row's other values, in their order."""
    return zlib.crc32(repr(values).encode())


def connect(state_dir: str) -> sqlite3.Connection:
    """Open the index in `state_dir`, made anew if it is missing, damaged or of another version.

    Raises OSError or sqlite3.OperationalError when the directory can't be written.
    """
    path = os.path.join(state_dir, FILE_NAME)
    try:
        return _open(path)
    except (sqlite3.DatabaseError, ValueError, IndexDamaged) as exc:
        damaged = ("malformed", "no such table", "no such column")
        if isinstance(exc, sqlite3.OperationalError) and not any(word in str(exc) for word in damaged):
            raise
        log.warning("the index %s can't be read (%s); it is set aside and rebuilt, nothing is lost", path, exc)
        set_aside(path)
        return _open(path)


def set_aside(path: str) -> None:
    """Move a damaged index out of the way, keeping one for a person to look at."""
    for suffix in ("", "-wal", "-shm"):
        try:
            os.replace(path + suffix, f"{path}.damaged{suffix}")
        except FileNotFoundError:
            continue


def _about() -> str:
    return f"INSERT INTO about VALUES ('version', '{VERSION}'), ('made', '{time.time_ns()}');"


def _open(path: str) -> sqlite3.Connection:
    # Before SQLite opens it: its other files get the mode that this one has then. One that is there is not opened, as
    # closing it would end the locks of another connection in this process (fcntl(2), F_SETLK).
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        os.chmod(path, 0o600)
    # One thread at a time uses it; which one, `Index` sees to.
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        # FULL: the row of a snapshot is the pointer to all that is stored, so its commit must survive a power cut.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA cache_size = -8192")
        # Without any table it is new, or its maker was killed before the one transaction in which all of this happens.
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,):
            connection.executescript(f"BEGIN IMMEDIATE;{TABLES}{_about()}COMMIT;")
        else:
            check = connection.execute("PRAGMA quick_check(1)").fetchone()
            if check != ("ok",):
                raise IndexDamaged(f"quick_check says: {check[0] if check else 'nothing'}")
            row = connection.execute("SELECT value FROM about WHERE key = 'version'").fetchone()
            if row != (str(VERSION),):
                raise IndexDamaged(f"its version is {row[0] if row else 'not known'}, not {VERSION}")
        return connection
    except BaseException:
        connection.close()
        raise
