"""Plain files on a disk that is read-only: from the start, or suddenly, as ext4 does it after an error."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.compare import assert_same_tree
from tests.support.disks import SmallDisk
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.whole import assert_whole

NewDisk = Callable[..., SmallDisk]
NewMount = Callable[..., MountProcess]


def changes(path: Path) -> list[Callable[[], object]]:
    """One of each kind of change to a tree with `file` and `sub` in it."""
    return [
        lambda: (path / "new").touch(),
        lambda: (path / "file").write_bytes(b"changed"),
        lambda: os.truncate(path / "file", 1),
        lambda: (path / "directory").mkdir(),
        lambda: os.unlink(path / "file"),
        lambda: os.rmdir(path / "sub"),
        lambda: os.rename(path / "file", path / "renamed"),
        lambda: os.link(path / "file", path / "hard"),
        lambda: os.symlink("x", path / "link"),
        lambda: os.chmod(path / "file", 0o600),
        lambda: os.utime(path / "file", (1, 1)),
        lambda: os.setxattr(path / "file", "user.x", b"y"),
    ]


def errors(path: Path) -> list[int]:
    """What each kind of change fails with; 0 if it does not."""
    found = []
    for change in changes(path):
        try:
            change()
            found.append(0)
        except OSError as exc:
            found.append(exc.errno or 0)
    return found


def test_a_read_only_disk_is_covered_read_only_and_stored(
    small_disk: NewDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    disk = small_disk("small", 8, "ext4")
    mount = new_mount(path=disk.path / "covered")
    (mount.path / "file").write_bytes(b"content")
    (mount.path / "sub").mkdir()
    disk.remount("ro")
    expected = errors(mount.plain)
    assert set(expected) == {errno.EROFS}
    mount.start()
    assert errors(mount.path) == expected
    assert (mount.path / "file").read_bytes() == b"content"
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert mount.status()["wrong"] == []
    mount.stop()
    assert_whole(mount)


@pytest.mark.parametrize("flags", [[], ["--write-through"]], ids=["write-back", "write-through"])
def test_a_disk_that_becomes_read_only_is_told_to_writers_and_all_that_is_there_can_be_read_and_stored(
    small_disk: NewDisk, new_mount: NewMount, tmp_path: Path, flags: list[str]
) -> None:
    disk = small_disk("small", 8, "ext4")
    mount = new_mount(path=disk.path / "covered").start(*flags)
    (mount.path / "file").write_bytes(b"content")
    (mount.path / "sub").mkdir()
    mount.sync()
    (mount.path / "late").write_bytes(b"not stored yet")
    wait_until(lambda: _goes_read_only(disk), "read-only disk")
    assert set(errors(mount.path)) == {errno.EROFS}
    assert (mount.path / "file").read_bytes() == b"content"
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "read-only"))
    disk.remount("rw")
    assert set(errors(mount.path)[:2]) == {0}
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "again"))
    mount.stop()
    assert_whole(mount)


def _goes_read_only(disk: SmallDisk) -> bool:
    """The host refuses while a file is open for writing; the kernel's last release may still be on its way."""
    try:
        disk.remount("ro")
    except AssertionError:
        return False
    return True
