"""The state directory: who may use it, and its lock."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fused import state
from fused.errors import Busy, UsageError


def test_state_directory_is_made_private(tmp_path: Path) -> None:
    place = tmp_path / "a" / "b"
    state.prepare(str(place))
    assert stat.S_IMODE(place.stat().st_mode) == 0o700


def test_state_directory_that_others_may_enter_is_closed_to_them(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    state.prepare(str(tmp_path))
    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


def test_state_directory_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="is not a directory"):
        state.prepare(str(tmp_path / "file"))
    with pytest.raises(UsageError, match="can't be used"):
        state.prepare(str(tmp_path / "file" / "below"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a directory of another user")
def test_state_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    os.chown(tmp_path, 65534, 65534)
    with pytest.raises(UsageError, match=r"belongs to another user \(uid 65534\)"):
        state.prepare(str(tmp_path))


def test_lock_is_held_until_its_descriptor_is_closed(tmp_path: Path) -> None:
    assert not state.is_locked(str(tmp_path))
    fd = state.take_lock(str(tmp_path))
    assert state.is_locked(str(tmp_path))
    with pytest.raises(Busy):
        state.take_lock(str(tmp_path))
    os.close(fd)
    assert not state.is_locked(str(tmp_path))
    os.close(state.take_lock(str(tmp_path)))


def test_lock_is_shared_with_a_forked_child_and_asking_does_not_take_it(tmp_path: Path) -> None:
    fd = state.take_lock(str(tmp_path))
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:  # holds the lock, and the pipe, until told to end
        os.close(write)
        os.read(read, 1)
        os._exit(0)
    os.close(read)
    os.close(fd)
    try:
        assert state.is_locked(str(tmp_path))
        assert state.is_locked(str(tmp_path))
    finally:
        os.close(write)
        os.waitpid(pid, 0)
    assert not state.is_locked(str(tmp_path))


def test_what_the_supervisor_saw_is_read_back_and_forgotten(tmp_path: Path) -> None:
    seen = state.Supervision(7, None, 2, "2026-01-01T00:00:00Z: it died", "it died too often")
    state.note_supervision(str(tmp_path), seen)
    assert state.read_supervision(str(tmp_path)) == seen
    state.forget_supervision(str(tmp_path))
    assert state.read_supervision(str(tmp_path)) is None
    state.forget_supervision(str(tmp_path))


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"pid": 1, "unknown": 2}'])
def test_damaged_notes_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "supervisor.json").write_text(content)
    assert state.read_supervision(str(tmp_path)) is None


def test_notes_on_a_full_disk_do_nothing(tmp_path: Path) -> None:
    state.note_supervision(str(tmp_path / "gone"), state.Supervision(1, None, 0, None, None))
