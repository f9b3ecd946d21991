"""The index as a file, read without changing it: for `fsck`, also while a daemon uses it.

`Index` makes a damaged index anew when it opens it, and takes rows whose sum is wrong for absent. Here both are told.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, Self, TypeVar

from fused.errors import IndexDamaged
from fused.index.index import BATCH, DirMemo, FileMemo, SnapshotRow, dir_memo, file_memo, snapshot_row
from fused.index.schema import FILE_NAME, VERSION

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

_PAGE = 1000
_SAID = 20
_SNAPSHOTS = "SELECT id, cid, tree, meta, time_ns, files, bytes, added, modified, removed, sum FROM snapshots"

T = TypeVar("T")


class Listed(NamedTuple):
    """A row of the list of snapshots; `row` is None if its sum is wrong. `cid` is what it says, right or not."""

    id: int
    row: SnapshotRow | None
    cid: object


class IndexReader:
    """One connection, for one thread. Every method raises IndexDamaged where SQLite can't make sense of the file."""

    def __init__(self, state_dir: str) -> None:
        """Raises FileNotFoundError if there is no index, IndexDamaged."""
        self.path = os.path.join(state_dir, FILE_NAME)
        os.stat(self.path)
        uri = "file:" + self.path.replace("%", "%25").replace("?", "%3f").replace("#", "%23") + "?mode=ro"
        with self._naming_damage():
            self._db = sqlite3.connect(uri, uri=True, timeout=10, check_same_thread=False)

    def close(self) -> None:
        """Close it."""
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def check(self) -> None:
        """Read all of the file. Raises IndexDamaged, also for one of another version."""
        with self._naming_damage():
            said = [str(row[0]) for row in self._db.execute(f"PRAGMA integrity_check({_SAID})")]
            if said != ["ok"]:
                raise IndexDamaged(f"the index {self.path} is damaged: {'; '.join(said)}")
            version = self._db.execute("SELECT value FROM about WHERE key = 'version'").fetchone()
            if version != (str(VERSION),):
                raise IndexDamaged(f"the index {self.path} has version {version and version[0]}, not {VERSION}")

    def rows(self) -> int:
        """How many files and directories it knows."""
        with self._naming_damage():
            return sum(self._db.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("files", "dirs"))

    def all_files(self) -> Iterator[list[tuple[int, FileMemo | None]]]:
        """(inode number, memo) of every file, some at a time; None for a row whose sum is wrong."""
        return self._all("files", file_memo)

    def all_dirs(self) -> Iterator[list[tuple[int, DirMemo | None]]]:
        """The same of every directory."""
        return self._all("dirs", dir_memo)

    def files(self, inos: Iterable[int]) -> dict[int, FileMemo]:
        """The good memos of those of `inos` that have one."""
        return self._some("files", inos, file_memo)

    def dirs(self, inos: Iterable[int]) -> dict[int, DirMemo]:
        """The same of directories."""
        return self._some("dirs", inos, dir_memo)

    def excludes(self) -> str | None:
        """The digest of the patterns that the rows were made with."""
        with self._naming_damage():
            row = self._db.execute("SELECT value FROM about WHERE key = 'excludes'").fetchone()
        return None if row is None else str(row[0])

    def snapshots(self) -> list[Listed]:
        """The list of snapshots, newest first."""
        with self._naming_damage():
            rows = self._db.execute(f"{_SNAPSHOTS} ORDER BY id DESC").fetchall()
        return [Listed(row[0], _or_none(snapshot_row, row[1:]), row[1]) for row in rows]

    def _all(self, table: str, memo_of: Callable[[Sequence[object]], T | None]) -> Iterator[list[tuple[int, T | None]]]:
        last: int | None = None
        while True:
            with self._naming_damage():
                rows = self._db.execute(
                    f"SELECT * FROM {table} WHERE ?1 IS NULL OR ino > ?1 ORDER BY ino LIMIT ?2", (last, _PAGE)
                ).fetchall()
            if not rows:
                return
            last = rows[-1][0]
            yield [(row[0], _or_none(memo_of, row)) for row in rows]

    def _some(self, table: str, inos: Iterable[int], memo_of: Callable[[Sequence[object]], T | None]) -> dict[int, T]:
        found: dict[int, T] = {}
        wanted = list(inos)
        for at in range(0, len(wanted), BATCH):
            part = wanted[at : at + BATCH]
            with self._naming_damage():
                marks = ",".join("?" * len(part))
                rows = self._db.execute(f"SELECT * FROM {table} WHERE ino IN ({marks})", part).fetchall()
            for row in rows:
                memo = _or_none(memo_of, row)
                if memo is not None:
                    found[row[0]] = memo
        return found

    @contextmanager
    def _naming_damage(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.DatabaseError, ValueError, OverflowError) as exc:
            raise IndexDamaged(f"the index {self.path} is damaged: {exc}") from exc


def _or_none(memo_of: Callable[[Sequence[object]], T | None], row: Sequence[object]) -> T | None:
    """A row that makes no sense though its sum is right counts as one whose sum is wrong."""
    try:
        return memo_of(row)
    except (ValueError, TypeError, IndexError):
        return None
