"""Small SQLite databases of things that can be found out again, on local disk: opened, and made anew when damaged.

Not for: what must not be lost, as the store's own list of blocks (`database.py`) or the index. A memo that SQLite can't
read, or whose tables are of another version, is thrown away, for the worst that follows is work that is done twice. One
that the disk or another process keeps us from is left alone.

Several processes may use one. Who finds it damaged removes it under a lock on its directory, and only if it is still
the one that was found so: else somebody was faster, and the new one would lose its log (`-wal`) while it is used.
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fused.errors import StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MemoForm:
    """What a kind of memo looks like."""

    what: str
    """What people read of it: "ledger"."""
    schema: str
    """Statements that make the tables where they are missing, and change nothing where they are not."""
    version: int
    """Of the tables, above 0."""
    busy_seconds: float
    """How long another process's transaction is waited for."""
    synchronous: Literal["OFF", "NORMAL"] = "NORMAL"
    """NORMAL: a power cut may take the last transactions. OFF: it may damage the file."""
    page_bytes: int = 4096


def open_memo(path: str, form: MemoForm) -> Memo:
    """The memo in file `path`, which is made if it is missing, and made anew if it is damaged or of another version.

    Raises sqlite3.Error if neither can be done: the directory is missing, read-only, full, or another process has held
    the file for long.
    """
    memo = Memo(path, form)
    try:
        memo.connect()
    except sqlite3.Error as err:
        if not is_damage(err):
            raise
        memo.renew(err)
    return memo


def is_damage(err: sqlite3.Error) -> bool:
    """Whether the content is to blame, and neither the disk, nor another process, nor our own code."""
    return isinstance(err, sqlite3.DatabaseError) and not isinstance(
        err, (sqlite3.OperationalError, sqlite3.ProgrammingError, sqlite3.NotSupportedError)
    )


class Memo:
    """An open memo; `open_memo` makes it, `close` it in the end. From any thread, but one at a time: callers lock."""

    def __init__(self, path: str, form: MemoForm) -> None:
        self.path = path
        self._form = form
        self._db: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None  # of the database that is, or was last, found at `path`
        self._closed = False

    def connect(self) -> sqlite3.Connection:
        """The database, opened if it is not. It commits by itself outside a `transaction`. Raises sqlite3.Error."""
        if self._closed:
            raise sqlite3.ProgrammingError(f"the {self._form.what} {self.path} was closed")
        if self._db is None:
            # SQLite gives its other files the mode that this one has when it opens it. What is wrong, it says itself.
            with suppress(OSError):
                os.chmod(self.path, 0o600)
            with suppress(OSError):
                os.close(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            self._file = _identity(self.path)
            self._db = _opened(self.path, self._form)
        return self._db

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, and nobody else writes meanwhile. Raises sqlite3.Error; for damage, call `renew` then."""
        db = self.connect()
        db.execute("BEGIN IMMEDIATE")
        try:
            yield db
            db.execute("COMMIT")
        except BaseException:
            with suppress(sqlite3.Error):
                db.execute("ROLLBACK")
            raise

    def renew(self, damage: sqlite3.Error) -> None:
        """Throw away the file that was found damaged, unless somebody has, and open a new one. Raises sqlite3.Error."""
        self._let_go()
        try:
            with _directory_locked(self.path):
                if self._file is not None and _identity(self.path) == self._file:
                    log.warning("the %s %s is damaged, and made anew: %s", self._form.what, self.path, damage)
                    # The log first: one without its database is nothing, and would be taken for the new database's.
                    for name in (self.path + "-wal", self.path + "-shm", self.path):
                        with suppress(FileNotFoundError):
                            os.unlink(name)
                self.connect()
        except OSError as err:
            raise sqlite3.OperationalError(f"{damage}; it can't be made anew: {err.strerror or err}") from err

    def close(self) -> None:
        """Idempotent."""
        self._closed = True
        self._let_go()

    def _let_go(self) -> None:
        db, self._db = self._db, None
        if db is not None:
            with suppress(sqlite3.Error):
                db.close()


class SharedMemo:
    """A memo for any thread, whose failures are a store's: what is asked of it raises StoreUnavailable.

    Damage that is found in use is an error once. The memo is made anew, and empty, for whoever asks again.
    """

    def __init__(self, path: str, form: MemoForm, told_as: str) -> None:
        """Open it, as `open_memo` does. `told_as` is what "can't be used" then, with the path in it."""
        self._told_as = told_as
        self._lock = threading.Lock()
        with self._explained():
            self._memo = open_memo(path, form)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._memo.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """As that of `Memo`."""
        with self._lock, self._explained():
            try:
                with self._memo.transaction() as db:
                    yield db
            except sqlite3.Error as err:
                if is_damage(err):
                    self._memo.renew(err)
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as err:
            raise StoreUnavailable(f"{self._told_as}, can't be used: {err}") from err


def _opened(path: str, form: MemoForm) -> sqlite3.Connection:
    db = sqlite3.connect(path, timeout=form.busy_seconds, check_same_thread=False, isolation_level=None)
    try:
        db.execute(f"PRAGMA page_size = {form.page_bytes}")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute(f"PRAGMA synchronous = {form.synchronous}")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, form.version):
            raise sqlite3.DatabaseError(f"version {version} of its tables is not known here")
        db.executescript(f"BEGIN IMMEDIATE; {form.schema} PRAGMA user_version = {form.version}; COMMIT;")
        # What can be seen at once is seen now; the rest of it, where it is used.
        tables = db.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        for (name,) in tables:
            db.execute(f'SELECT * FROM "{name}" LIMIT 1').fetchone()
    except BaseException:
        db.close()
        raise
    return db


def _identity(path: str) -> tuple[int, int] | None:
    try:
        st = os.stat(path)
    except OSError:
        return None
    return st.st_dev, st.st_ino


@contextmanager
def _directory_locked(path: str) -> Iterator[None]:
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)
