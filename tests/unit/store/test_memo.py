"""Opening the small databases that can be made anew."""

from __future__ import annotations

import os
import sqlite3
import stat
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from fused.store.memo import Memo, MemoForm, is_damage, open_memo
from tests.support.memos import damage_leaves
from tests.support.users import directory_for_everybody, umask

FORM = MemoForm("notebook", "CREATE TABLE IF NOT EXISTS notes (id INTEGER PRIMARY KEY, note TEXT);", 3, 0.05)


@contextmanager
def opened(path: Path, form: MemoForm = FORM) -> Iterator[Memo]:
    memo = open_memo(str(path), form)
    try:
        yield memo
    finally:
        memo.close()


def write(memo: Memo, *notes: str) -> None:
    with memo.transaction() as db:
        db.executemany("INSERT INTO notes (note) VALUES (?)", [(note,) for note in notes])


def notes(memo: Memo) -> list[str]:
    return [note for (note,) in memo.connect().execute("SELECT note FROM notes ORDER BY id")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A memo with a few thousand notes, closed."""
    path = tmp_path / "notes"
    with opened(path) as memo:
        write(memo, *(f"note {n}" for n in range(5000)))
    return path


def test_what_was_written_is_there_again_and_what_was_given_up_is_not(tmp_path: Path) -> None:
    with opened(tmp_path / "notes") as memo:
        write(memo, "one")
        with suppress(KeyError), memo.transaction() as db:
            db.execute("INSERT INTO notes (note) VALUES ('two')")
            raise KeyError
    with opened(tmp_path / "notes") as memo:
        assert notes(memo) == ["one"]


def test_it_is_its_owners_alone_with_all_its_files(tmp_path: Path) -> None:
    with umask(0), opened(tmp_path / "notes") as memo:
        write(memo, "secret")
        modes = {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in tmp_path.iterdir()}
    assert modes == dict.fromkeys(("notes", "notes-wal", "notes-shm"), 0o600)


@pytest.mark.parametrize("content", [b"", b"x", b"nonsense" * 2000, b"SQLite format 3\0" + bytes(9000), bytes(8192)])
def test_a_file_that_is_none_becomes_an_empty_one(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "notes").write_bytes(content)
    (tmp_path / "notes-wal").write_bytes(content)
    with opened(tmp_path / "notes") as memo:
        assert notes(memo) == []
        write(memo, "one")
        assert notes(memo) == ["one"]


@pytest.mark.parametrize("kept", [99, 100, 512, 4095, 4096, 8192, 30_000])
def test_one_that_was_cut_off_is_made_anew(path: Path, kept: int, caplog: pytest.LogCaptureFixture) -> None:
    os.truncate(path, kept)
    with opened(path) as memo:
        assert notes(memo) == []
        write(memo, "one")
    assert caplog.text.count("the notebook") == caplog.text.count("made anew") == 1
    with opened(path) as memo:
        assert notes(memo) == ["one"]


def test_one_of_another_version_is_made_anew_and_one_without_a_version_is_taken(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA user_version = 0")
    with opened(path) as memo:
        assert len(notes(memo)) == 5000
    assert not caplog.text
    with closing(sqlite3.connect(path)) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (3,)
        db.execute("PRAGMA user_version = 4")
    with opened(path) as memo:
        assert notes(memo) == []
    assert "version 4 of its tables is not known here" in caplog.text


def test_damage_that_shows_later_is_told_and_renewed(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage_leaves(path)
    with opened(path) as memo:
        with pytest.raises(sqlite3.DatabaseError) as damage:
            notes(memo)
        assert is_damage(damage.value)
        assert not caplog.text
        memo.renew(damage.value)
        write(memo, "one")
        assert notes(memo) == ["one"]
    assert "made anew" in caplog.text


def test_of_several_that_find_it_damaged_one_makes_it_anew(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    damage_leaves(path)
    memos = [open_memo(str(path), FORM) for _ in range(4)]
    damage = sqlite3.DatabaseError("damaged")
    threads = [threading.Thread(target=memo.renew, args=(damage,)) for memo in memos]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n, memo in enumerate(memos):
        write(memo, f"note {n}")
    for memo in memos:
        assert notes(memo) == [f"note {n}" for n in range(4)]
        memo.close()
    assert caplog.text.count("made anew") == 1


def test_a_directory_that_is_read_only_or_missing_is_no_damage(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(sqlite3.OperationalError):
        open_memo(str(path.parent / "missing" / "notes"), FORM)
    with directory_for_everybody() as common:
        (common / "damaged").write_bytes(b"nonsense" * 1000)
        (common / "damaged").chmod(0o644)
        os.seteuid(65534)
        try:
            with pytest.raises(sqlite3.OperationalError):
                open_memo(str(common / "new"), FORM)
            with pytest.raises(sqlite3.OperationalError, match="can't be made anew: Permission denied"):
                open_memo(str(common / "damaged"), FORM)
        finally:
            os.seteuid(0)
        assert (common / "damaged").read_bytes() == b"nonsense" * 1000


def test_one_that_somebody_holds_is_left_alone(path: Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            open_memo(str(path), FORM)
    with opened(path) as memo:
        assert len(notes(memo)) == 5000


def test_a_closed_one_stays_closed(path: Path) -> None:
    memo = open_memo(str(path), FORM)
    memo.close()
    memo.close()
    with pytest.raises(sqlite3.ProgrammingError, match="was closed") as closed:
        memo.connect()
    assert not is_damage(closed.value)
