"""Calls on the local layer: nothing is followed, and an inode is reached without a name."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused.local import layer
from fused.local.listing import RawListing


@pytest.fixture
def dir_fd(tmp_path: Path) -> Iterator[int]:
    """A descriptor of the temporary directory."""
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


def test_stat_and_open_do_not_follow_links(tmp_path: Path, dir_fd: int) -> None:
    (tmp_path / "file").write_text("x")
    os.symlink("file", tmp_path / "link")
    assert stat.S_ISLNK(layer.stat_at(dir_fd, b"link").st_mode)
    with pytest.raises(OSError, match="symbolic links") as caught:
        layer.open_at(dir_fd, b"link", os.O_RDONLY)
    assert caught.value.errno == errno.ELOOP
    fd = layer.open_path(dir_fd, b"link")
    assert stat.S_ISLNK(os.fstat(fd).st_mode)
    os.close(fd)


def test_opening_a_fifo_does_not_block(tmp_path: Path, dir_fd: int) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.close(layer.open_at(dir_fd, b"fifo", os.O_RDONLY))
    with pytest.raises(OSError, match="No such device"):
        layer.open_at(dir_fd, b"fifo", os.O_WRONLY)


def test_metadata_calls_reach_a_link_itself_through_an_o_path_descriptor(tmp_path: Path, dir_fd: int) -> None:
    (tmp_path / "file").write_text("x")
    os.symlink("file", tmp_path / "link")
    before = os.stat(tmp_path / "file").st_mtime_ns
    fd = layer.open_path(dir_fd, b"link")
    layer.set_times(layer.proc_path(fd), 1_000_000_001, 2_000_000_002)
    os.close(fd)
    link = os.lstat(tmp_path / "link")
    assert (link.st_atime_ns, link.st_mtime_ns) == (1_000_000_001, 2_000_000_002)
    assert os.stat(tmp_path / "file").st_mtime_ns == before


def test_a_removed_file_can_be_opened_again_through_its_descriptor(tmp_path: Path, dir_fd: int) -> None:
    (tmp_path / "file").write_text("content")
    path_fd = layer.open_path(dir_fd, b"file")
    os.unlink(tmp_path / "file")
    fd = layer.reopen(path_fd, os.O_RDWR)
    assert os.pread(fd, 100, 0) == b"content"
    os.close(fd)
    os.close(path_fd)


def test_renameat2_exchanges_and_refuses_to_replace(tmp_path: Path, dir_fd: int) -> None:
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    layer.rename_at(dir_fd, b"a", dir_fd, b"b", layer.RENAME_EXCHANGE)
    assert ((tmp_path / "a").read_text(), (tmp_path / "b").read_text()) == ("b", "a")
    with pytest.raises(FileExistsError):
        layer.rename_at(dir_fd, b"a", dir_fd, b"b", layer.RENAME_NOREPLACE)
    layer.rename_at(dir_fd, b"a", dir_fd, b"b", 0)
    assert os.listdir(tmp_path) == ["b"]


def test_names_are_the_bytes_that_they_are(tmp_path: Path, dir_fd: int) -> None:
    names = {b"plain", b"\xff\xfe", b"new\nline", "ü".encode()}
    for name in names:
        os.close(layer.open_at(dir_fd, name, os.O_CREAT | os.O_WRONLY, 0o600))
    assert {name for name, _ in RawListing(dir_fd)} == names


def test_extended_attributes_of_a_path_descriptor(tmp_path: Path, dir_fd: int) -> None:
    (tmp_path / "file").touch()
    fd = layer.open_path(dir_fd, b"file")
    target = layer.proc_path(fd)
    layer.set_xattr(target, b"user.\xff", b"\x00value")
    assert layer.list_xattrs(target) == [b"user.\xff"]
    assert layer.get_xattr(target, b"user.\xff") == b"\x00value"
    layer.remove_xattr(target, b"user.\xff")
    with pytest.raises(OSError, match="No data"):
        layer.get_xattr(target, b"user.\xff")
    os.close(fd)


def test_a_directory_that_may_not_be_listed_still_gives_a_descriptor(tmp_path: Path, dir_fd: int) -> None:
    (tmp_path / "d").mkdir()
    fd = layer.open_directory(dir_fd, b"d")
    assert stat.S_ISDIR(os.fstat(fd).st_mode)
    os.close(fd)
    (tmp_path / "f").touch()
    with pytest.raises(NotADirectoryError):
        layer.open_directory(dir_fd, b"f")


def test_write_all_writes_at_the_offset(tmp_path: Path, dir_fd: int) -> None:
    fd = layer.open_at(dir_fd, b"f", os.O_CREAT | os.O_RDWR, 0o600)
    assert layer.write_all(fd, b"tail", 5) == 4
    assert layer.write_all(fd, b"head", 0) == 4
    assert os.pread(fd, 100, 0) == b"head\0tail"
    os.close(fd)


@pytest.fixture(params=["openat2", "step by step"])
def open_beneath(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> object:
    """Both ways to open a path of several names; the second is for kernels without the system call."""
    if request.param == "step by step":
        return layer._open_step_by_step
    return layer.open_beneath


def test_path_of_several_names_is_opened_beneath_its_directory_only(
    tmp_path: Path,
    dir_fd: int,
    open_beneath,  # type: ignore[no-untyped-def]
) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_text("content")
    (tmp_path / "inside").symlink_to("a/b/file")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "root").symlink_to("/")
    os.close(open_beneath(dir_fd, b"a/b/file", os.O_PATH))
    fd = open_beneath(dir_fd, b"a/b/file", os.O_RDONLY)
    assert os.read(fd, 10) == b"content"
    os.close(fd)
    for path in (b"inside", b"a/up/a/b/file", b"../x", b"a/../../x", b"/etc/passwd", b"root/etc/passwd"):
        with pytest.raises(OSError) as caught:  # noqa: PT011
            os.close(open_beneath(dir_fd, path, os.O_RDONLY))
        assert caught.value.errno in (errno.ELOOP, errno.EXDEV, errno.ENOTDIR), path
    proc = os.open("/proc/self", os.O_RDONLY)
    with pytest.raises(OSError) as caught:  # noqa: PT011
        os.close(open_beneath(proc, b"fd/%d/a" % dir_fd, os.O_PATH))
    assert caught.value.errno in (errno.ELOOP, errno.ENOTDIR), "a magic link is a link"
    os.close(proc)
