"""Local modification times follow the kernel's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused.fs.inodes import Inodes
from fused.fs.mtimes import ModificationTimes


class File:
    """An inode with an open local file."""

    def __init__(self, directory: Path) -> None:
        table = Inodes(os.stat(directory))
        path = directory / "f"
        path.write_text("x")
        os.utime(path, ns=(1, 1_000))
        self.fd = os.open(path, os.O_RDWR)
        self.inode = table.remember(os.stat(path), table.root, b"f")

    def write(self, times: ModificationTimes) -> None:
        os.write(self.fd, b"y")
        times.written(self.inode)

    def set(self, times: ModificationTimes, mtime_ns: int) -> None:
        os.utime(self.fd, ns=(1, mtime_ns))
        times.told(self.inode, mtime_ns)

    @property
    def mtime_ns(self) -> int:
        return os.fstat(self.fd).st_mtime_ns


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    file = File(tmp_path)
    yield file
    os.close(file.fd)


def test_a_write_that_the_kernel_says_nothing_of_keeps_the_mtime(file: File) -> None:
    times = ModificationTimes()
    times.opened(file.inode, os.fstat(file.fd))
    file.write(times)
    changed = times.closed(file.inode, file.fd)
    assert changed is not None
    assert changed[0].st_mtime_ns > changed[1].st_mtime_ns == file.mtime_ns == 1_000


def test_the_kernels_setattr_after_the_write_is_the_last_word(file: File) -> None:
    times = ModificationTimes()
    times.opened(file.inode, os.fstat(file.fd))
    file.write(times)
    file.set(times, 5_000)
    assert times.closed(file.inode, file.fd) is None
    assert file.mtime_ns == 5_000


def test_a_write_that_overtakes_the_setattr_does_not_win(file: File) -> None:
    times = ModificationTimes()
    times.opened(file.inode, os.fstat(file.fd))
    file.set(times, 5_000)
    file.write(times)
    assert times.closed(file.inode, file.fd) is not None
    assert file.mtime_ns == 5_000


def test_several_writers_share_what_the_kernel_believes(file: File) -> None:
    times = ModificationTimes()
    times.opened(file.inode, os.fstat(file.fd))
    file.write(times)
    times.opened(file.inode, os.fstat(file.fd))  # the local mtime is not the kernel's at this moment
    times.closed(file.inode, file.fd)
    assert file.mtime_ns == 1_000
    file.write(times)
    times.closed(file.inode, file.fd)
    assert file.mtime_ns == 1_000


def test_files_that_are_not_open_for_writing_are_left_alone(file: File) -> None:
    times = ModificationTimes()
    file.write(times)
    before = file.mtime_ns
    assert times.closed(file.inode, file.fd) is None
    assert file.mtime_ns == before
