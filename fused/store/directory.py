"""The embedded store's directory: made, recognised, or refused with a sentence.

format            "ipfsfs store 1": what this directory is, written last when it is made
lock              flock, held while the store is made or opened
blocks.sqlite3    rows, small blocks, pins (database.py)
blobs/<2>/…       large blocks, one file each (blobs.py)
tmp/<writer>/…    files being written, one directory a writing process
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from fused import private
from fused.errors import StoreDamaged, StoreUnavailable, UsageError
from fused.store import database

if TYPE_CHECKING:
    from collections.abc import Iterator

_FORMAT_LINE = "ipfsfs store"
_IGNORED = {"lost+found", "lock"}
_SQLITE = b"SQLite format 3\0"
"""How each database begins: sqlite.org, Database File Format, 1.3."""

_BESIDE = ("-wal", "-shm", "-journal")
"""Files that SQLite makes beside a database; the last until it is told to use the first."""


def prepare(root: str) -> None:
    """Make the store at `root` if there is none, and check that it is one that we can use.

    Safe against other processes doing the same. Directories are made 0700 and files 0600, whatever the umask.
    Raises StoreUnavailable.
    """
    try:
        private.prepare(root, "the store")
        with _locked(root):
            marker = Path(root, "format")
            if not marker.exists():
                _make(root, marker)
            _check(root, marker)
    except UsageError as err:
        raise StoreUnavailable(f"{err}; --store-dir names another") from None
    except OSError as err:
        raise StoreUnavailable(database.explain_os_error(root, err)) from err


def inspect(root: str) -> bool:
    """Whether there is a store at `root`; False if one could be made there. Makes, opens and locks nothing.

    So not as much is looked at as by `prepare`: SQLite makes files beside a database that it only reads.
    Raises StoreUnavailable.
    """
    marker = Path(root, "format")
    try:
        if marker.exists():
            _check_marker(root, marker)
            path = _check_database_file(root)
            if not os.access(path, os.W_OK, effective_ids=True):
                raise StoreUnavailable(f"the store's database {path} is not ours to write")
            with open(path, "rb") as stream:
                if stream.read(len(_SQLITE)) != _SQLITE:
                    raise StoreDamaged(database.damaged_sentence(root, "it holds something else"))
            return True
        if os.path.isdir(root):
            _refuse_foreign(root)
        return False
    except OSError as err:
        raise StoreUnavailable(database.explain_os_error(root, err)) from err


@contextmanager
def _locked(root: str) -> Iterator[None]:
    fd = os.open(os.path.join(root, "lock"), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _make(root: str, marker: Path) -> None:
    _refuse_foreign(root)
    for name in ("blobs", "tmp"):
        Path(root, name).mkdir(mode=0o700, exist_ok=True)
    path = os.path.join(root, database.NAME)
    if not _holds_tables(root, path):
        _make_database(root, path)
    new = Path(root, "format.new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        os.write(fd, f"{_FORMAT_LINE} {database.FORMAT}\n".encode())
        os.fsync(fd)
    finally:
        os.close(fd)
    new.rename(marker)
    for directory in (Path(root), Path(root).parent):
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _refuse_foreign(root: str) -> None:
    ours = {database.NAME + suffix for suffix in ("", *_BESIDE)} | {"blobs", "tmp", "format.new"}
    foreign = sorted(set(os.listdir(root)) - ours - _IGNORED)
    if foreign:
        raise StoreUnavailable(
            f"{root} holds other files ({foreign[0]!r}) and is not a block store; choose another with --store-dir"
        )


def _holds_tables(root: str, path: str) -> bool:
    """Whether a database is there although the marker is not: the marker was removed, or its writer crashed."""
    if not os.path.exists(path) or os.path.getsize(path) == 0:
        return False
    try:
        with closing(database.connect(path)) as c:
            return bool(c.execute("SELECT count(*) FROM sqlite_master").fetchone()[0])
    except sqlite3.Error as err:
        raise StoreDamaged(database.damaged_sentence(root, str(err))) from err


def _make_database(root: str, path: str) -> None:
    for leftover in (
        path,
        *(path + suffix for suffix in _BESIDE),
    ):  # without tables: of a process that crashed right here
        Path(leftover).unlink(missing_ok=True)
    # SQLite gives its log the mode of the database file, so this is the one place that decides it.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    try:
        with closing(database.connect(path)) as c:
            # Before the first table: gc gives pages back to the file system, step by step.
            c.execute("PRAGMA auto_vacuum = INCREMENTAL")
            c.execute("PRAGMA journal_mode = WAL")
            c.execute("BEGIN IMMEDIATE")
            for statement in _statements(database.SCHEMA):
                c.execute(statement)
            c.execute(f"PRAGMA application_id = {database.APPLICATION_ID}")
            c.execute(f"PRAGMA user_version = {database.FORMAT}")
            c.execute("COMMIT")
    except sqlite3.Error as err:
        raise StoreUnavailable(f"the store {root} can't be made: {err}") from err


def _check_marker(root: str, marker: Path) -> None:
    line = marker.read_text(errors="replace").strip()
    what, _, version = line.rpartition(" ")
    if what != _FORMAT_LINE or not version.isdecimal():
        raise StoreUnavailable(f"{marker} says {line[:60]!r}, so {root} is not a block store of ipfsfs")
    if int(version) > database.FORMAT:
        raise StoreUnavailable(
            f"the store {root} has format {version}, made by a newer ipfsfs; this one reads up to {database.FORMAT}"
        )


def _check_database_file(root: str) -> str:
    """The path of the database, which is there and not empty."""
    path = os.path.join(root, database.NAME)
    if not os.path.exists(path):
        raise StoreDamaged(database.damaged_sentence(root, "it is missing"))
    if os.path.getsize(path) == 0:
        # SQLite would take this for a new, empty database.
        raise StoreDamaged(database.damaged_sentence(root, "it is empty"))
    return path


def _check(root: str, marker: Path) -> None:
    _check_marker(root, marker)
    path = _check_database_file(root)
    try:
        with closing(database.connect(path)) as c:
            application_id = c.execute("PRAGMA application_id").fetchone()[0]
            rows = c.execute("SELECT count(*) FROM state").fetchone()[0]
    except sqlite3.OperationalError as err:
        if getattr(err, "sqlite_errorcode", 0) & 0xFF != sqlite3.SQLITE_ERROR:  # not "no such table"
            raise StoreUnavailable(f"the store's database {path} can't be opened: {err}") from err
        raise StoreDamaged(database.damaged_sentence(root, str(err))) from err
    except sqlite3.DatabaseError as err:
        raise StoreDamaged(database.damaged_sentence(root, str(err))) from err
    if application_id != database.APPLICATION_ID or rows != 1:
        raise StoreDamaged(database.damaged_sentence(root, "it holds something else"))


def _statements(script: str) -> Iterator[str]:
    """The statements of an SQL script: `executescript` would commit the transaction that we are in."""
    statement = ""
    for line in script.splitlines():
        statement += line + "\n"
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""
