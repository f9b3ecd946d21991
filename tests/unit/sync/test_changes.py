"""What the change log takes down of changes that leave a file's content alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused.sync.changes import ChangeLog
from fused.types import FileKey, Stat, key_of

HERE: FileKey = (1, 1)


def above() -> list[FileKey]:
    return [HERE]


@pytest.fixture
def changes(tmp_path: Path) -> ChangeLog:
    spill = tmp_path / "spill"
    spill.mkdir()
    return ChangeLog(str(spill))


@pytest.fixture
def fd(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT, 0o644)
    yield fd
    os.close(fd)


def chmod(changes: ChangeLog, fd: int, mode: int) -> tuple[Stat, Stat]:
    before = os.fstat(fd)
    os.chmod(fd, mode)
    after = os.fstat(fd)
    changes.metadata(key_of(after), before, after, above)
    return Stat.of(before), Stat.of(after)


def test_what_is_known_of_a_clean_file_is_carried_over_and_its_directories_are_dirty(
    changes: ChangeLog, fd: int
) -> None:
    was, _ = chmod(changes, fd, 0o600)
    _, now = chmod(changes, fd, 0o640)
    assert changes.take_carries() == {key_of(os.fstat(fd)): (was, now)}
    assert changes.dir_changed_since(HERE)


def test_of_a_dirty_file_nothing_is_carried_over_and_what_was_before_is_not_lost(changes: ChangeLog, fd: int) -> None:
    key = key_of(os.fstat(fd))
    carried = chmod(changes, fd, 0o600)
    changes.before_write(key, fd, 0, 3, above)
    os.pwrite(fd, b"new", 0)
    serial = changes.serial
    chmod(changes, fd, 0o640)
    assert changes.serial > serial  # somebody who waits for a quiet moment waits on
    assert changes.take_carries() == {key: carried}


def test_the_directories_of_a_file_that_changed_too_fast_to_be_captured_are_dirty_with_its_next_chmod(
    changes: ChangeLog, fd: int
) -> None:
    """The snapshot was stored without it: the file is dirty again, and its directories are not."""
    key = key_of(os.fstat(fd))
    changes.before_write(key, fd, 0, 3, above)
    changes.freeze()
    changes.captured(key, stored=False)
    changes.thaw(stored=True)
    assert changes.changed_since(key)
    assert not changes.dir_changed_since(HERE)
    chmod(changes, fd, 0o600)
    assert changes.dir_changed_since(HERE)


def test_a_file_that_is_being_stored_and_dirty_again_is_carried_over(changes: ChangeLog, fd: int) -> None:
    """Its content of the instant may be stored with the stat of then, and is looked for with that of now."""
    key = key_of(os.fstat(fd))
    changes.before_write(key, fd, 0, 3, above)
    changes.freeze()
    changes.before_write(key, fd, 3, 3, above)
    carried = chmod(changes, fd, 0o600)
    assert changes.take_carries() == {key: carried}
    changes.thaw(stored=True)


def test_a_file_with_two_names_makes_the_directories_of_both_dirty(changes: ChangeLog, fd: int, tmp_path: Path) -> None:
    changes.before_write(key_of(os.fstat(fd)), fd, 0, 3, above)
    os.link(tmp_path / "file", tmp_path / "other")
    before = os.fstat(fd)
    os.fchmod(fd, 0o600)
    changes.metadata(key_of(before), before, os.fstat(fd), lambda: [HERE, (1, 2)])
    assert changes.dir_changed_since((1, 2))


def test_a_directory_with_the_number_of_a_removed_dirty_file_is_dirty(
    changes: ChangeLog, fd: int, tmp_path: Path
) -> None:
    """What was removed while a snapshot was taken is known until its end and beyond, if it failed."""
    directory = os.stat(tmp_path)
    key = key_of(directory)
    changes.before_write(key, fd, 0, 3, above)
    changes.freeze()
    changes.gone(key)
    changes.thaw(stored=False)
    assert changes.changed_since(key)
    changes.metadata(key, directory, os.stat(tmp_path), above)
    assert changes.dir_changed_since(key)
