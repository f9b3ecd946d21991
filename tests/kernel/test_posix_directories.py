"""Listing directories through the kernel, big ones, changing ones, and other file systems mounted below."""

from __future__ import annotations

import ctypes
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fused.fs.listings import SETTLED_NS
from tests.support.plainmount import PlainMount
from tests.support.poll import wait_until

_libc = ctypes.CDLL(None, use_errno=True)
_libc.opendir.restype = ctypes.c_void_p
_libc.readdir.restype = ctypes.c_void_p
_libc.readdir.argtypes = _libc.rewinddir.argtypes = _libc.telldir.argtypes = _libc.closedir.argtypes = [ctypes.c_void_p]
_libc.telldir.restype = ctypes.c_long
_libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Dirent(ctypes.Structure):
    """struct dirent of glibc on 64-bit Linux."""

    _fields_ = [
        ("d_ino", ctypes.c_uint64),
        ("d_off", ctypes.c_int64),
        ("d_reclen", ctypes.c_uint16),
        ("d_type", ctypes.c_uint8),
        ("d_name", ctypes.c_char * 256),
    ]


class Listing:
    """opendir(3) and its relatives, which Python wraps only as a whole."""

    def __init__(self, path: Path) -> None:
        self._dir = _libc.opendir(os.fsencode(path))
        assert self._dir

    def next(self) -> Dirent | None:
        found = _libc.readdir(self._dir)
        return Dirent.from_address(found) if found else None

    def names(self) -> list[bytes]:
        names = []
        while (entry := self.next()) is not None:
            names.append(entry.d_name)
        return names

    def rewind(self) -> None:
        _libc.rewinddir(self._dir)

    def tell(self) -> int:
        return int(_libc.telldir(self._dir))

    def seek(self, position: int) -> None:
        _libc.seekdir(self._dir, position)

    def close(self) -> None:
        _libc.closedir(self._dir)


def test_ten_thousand_files_in_one_directory(plain_mount: PlainMount) -> None:
    directory = plain_mount.path / "d"
    directory.mkdir()
    names = {f"file-{n:05}" for n in range(10_000)}
    for name in names:
        os.close(os.open(directory / name, os.O_CREAT | os.O_WRONLY))
    assert set(os.listdir(directory)) == names
    listed = list(os.scandir(directory))
    assert len(listed) == 10_000
    assert all(entry.is_file(follow_symlinks=False) for entry in listed)
    requests = plain_mount.requests_during(lambda: [os.stat(directory / name) for name in names])
    assert requests.get("lookup", 0) == 0
    subprocess.run(["rm", "-rf", directory], check=True)
    assert os.listdir(plain_mount.plain) == []


def test_a_listing_brings_the_attributes_along(new_plain_mount: Callable[..., PlainMount], tmp_path: Path) -> None:
    covered = tmp_path / "covered"
    covered.mkdir()
    for n in range(200):
        (covered / f"f{n}").write_text("x" * n)
    mount = new_plain_mount(path=covered)
    requests = mount.requests_during(
        lambda: [entry.stat(follow_symlinks=False).st_size for entry in os.scandir(mount.path)]
    )
    assert "lookup" not in requests
    assert requests.get("getattr", 0) <= 1  # of the directory itself


def test_attributes_are_true_after_listing_again_and_again(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    covered = tmp_path / "covered"
    covered.mkdir()
    (covered / "file").write_text("x")
    os.link(covered / "file", covered / "link")
    (covered / "sub").mkdir()
    wait_until(lambda: time.time_ns() - os.stat(covered).st_ctime_ns > 2 * SETTLED_NS, "the names to be kept", 30)
    mount = new_plain_mount(path=covered)
    path = mount.path / "file"

    def write() -> None:
        with path.open("a") as file:
            os.listdir(mount.path)
            file.write("y" * 5000)
            file.flush()
            os.listdir(mount.path)

    def read_link() -> None:
        assert (mount.path / "link").read_text() == path.read_text()

    def rename_and_back() -> None:
        path.rename(mount.path / "other")
        (mount.path / "other").rename(path)

    changes: list[Callable[[], object]] = [
        lambda: path.chmod(0o640),
        write,
        read_link,
        lambda: os.utime(mount.path / "link", ns=(1, 2)),
        lambda: os.truncate(path, 3),
        lambda: os.link(path, mount.path / "sub" / "third"),
        lambda: os.rename(mount.path / "sub" / "third", mount.path / "sub" / "moved"),
        lambda: os.unlink(mount.path / "sub" / "moved"),
        lambda: os.unlink(mount.path / "link"),
        lambda: os.setxattr(path, "user.a", b"1"),
        rename_and_back,
    ]
    for change in changes:
        os.listdir(mount.path)
        change()
        os.listdir(mount.path)
        os.listdir(mount.path)
        shown, true = os.stat(path), os.stat(mount.plain / "file")
        for field in ("st_mode", "st_nlink", "st_size", "st_atime_ns", "st_mtime_ns", "st_ino"):
            assert getattr(shown, field) == getattr(true, field), field


def test_a_name_that_appears_beneath_the_mount_is_listed(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    covered = tmp_path / "covered"
    covered.mkdir()
    (covered / "file").touch()
    wait_until(lambda: time.time_ns() - os.stat(covered).st_ctime_ns > 2 * SETTLED_NS, "the names to be kept", 30)
    mount = new_plain_mount(path=covered)
    assert os.listdir(mount.path) == os.listdir(mount.path) == ["file"]
    (mount.plain / "beneath").touch()
    assert sorted(os.listdir(mount.path)) == ["beneath", "file"]


def test_dot_and_dot_dot_are_listed_with_their_numbers(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a" / "b").mkdir(parents=True)
    listing = Listing(plain_mount.path / "a" / "b")
    numbers = {}
    while (entry := listing.next()) is not None:
        numbers[entry.d_name] = entry.d_ino
    listing.close()
    assert numbers == {
        b".": os.stat(plain_mount.path / "a" / "b").st_ino,
        b"..": os.stat(plain_mount.path / "a").st_ino,
    }


def test_rewinding_shows_what_is_there_now(plain_mount: PlainMount) -> None:
    (plain_mount.path / "old").touch()
    listing = Listing(plain_mount.path)
    assert set(listing.names()) == {b".", b"..", b"old"}
    (plain_mount.path / "new").touch()
    (plain_mount.path / "old").unlink()
    listing.rewind()
    assert set(listing.names()) == {b".", b"..", b"new"}
    listing.close()


def test_seeking_to_a_told_position_goes_on_from_there(plain_mount: PlainMount) -> None:
    for n in range(500):
        (plain_mount.path / f"f{n}").touch()
    listing = Listing(plain_mount.path)
    for _ in range(250):
        listing.next()
    position = listing.tell()
    rest = listing.names()
    listing.seek(position)
    assert listing.names() == rest
    assert len(rest) == 252
    listing.close()


def test_entries_that_stay_are_listed_once_while_others_come_and_go(plain_mount: PlainMount) -> None:
    stay = {f"stay{n}".encode() for n in range(2_000)}
    for name in stay:
        os.close(os.open(os.path.join(os.fsencode(plain_mount.path), name), os.O_CREAT))
    done = threading.Event()

    def churn() -> None:
        n = 0
        while not done.is_set():
            path = plain_mount.path / f"go{n % 50}"
            path.touch()
            os.rename(path, plain_mount.path / f"moved{n % 50}")
            os.unlink(plain_mount.path / f"moved{n % 50}")
            n += 1

    thread = threading.Thread(target=churn)
    thread.start()
    try:
        for _ in range(20):
            listing = Listing(plain_mount.path)
            names = [name for name in listing.names() if name.startswith(b"stay")]
            listing.close()
            assert len(names) == len(stay)
            assert set(names) == stay
    finally:
        done.set()
        thread.join()


def test_removing_while_listing_removes_everything(plain_mount: PlainMount) -> None:
    for n in range(3_000):
        (plain_mount.path / f"f{n}").touch()
    listing = Listing(plain_mount.path)
    while (entry := listing.next()) is not None:
        if entry.d_name not in (b".", b".."):
            os.unlink(os.path.join(os.fsencode(plain_mount.path), entry.d_name))
    listing.close()
    assert os.listdir(plain_mount.path) == []


def test_references_of_the_kernel_are_given_back(plain_mount: PlainMount) -> None:
    """Lookup counts balance: when the kernel drops its caches, only the root and what is open stay known."""
    for d in range(10):
        (plain_mount.path / f"d{d}" / "sub").mkdir(parents=True)
        for n in range(50):
            (plain_mount.path / f"d{d}" / "sub" / f"f{n}").touch()
        os.link(plain_mount.path / f"d{d}" / "sub" / "f0", plain_mount.path / f"d{d}" / "link")
        os.rename(plain_mount.path / f"d{d}" / "sub" / "f1", plain_mount.path / f"d{d}" / "moved")
        os.unlink(plain_mount.path / f"d{d}" / "sub" / "f2")
    for _ in range(3):
        subprocess.run(["find", plain_mount.path, "-ls"], check=True, stdout=subprocess.DEVNULL)
    assert plain_mount.counters()["inodes"] > 500

    def only_the_root() -> bool:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        counted = plain_mount.counters()
        return (counted["inodes"], counted["orphans"], counted["handles"]) == (1, 0, 0)

    wait_until(only_the_root, "inode table with nothing but the root")
    with open(plain_mount.path / "d0" / "sub" / "f3") as stream:
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert plain_mount.counters()["inodes"] == 4
        assert stream.read() == ""


def test_removed_files_are_let_go_when_the_kernel_forgets_them(plain_mount: PlainMount) -> None:
    for n in range(500):
        (plain_mount.path / f"f{n}").touch()
        os.unlink(plain_mount.path / f"f{n}")

    def none_left() -> bool:
        counted = plain_mount.counters()
        return counted["orphans"] == 0 and counted["inodes"] == 1

    wait_until(none_left, "inode table without removed files")


@pytest.fixture
def nested(tmp_path: Path) -> Iterator[Path]:
    """A directory with a tmpfs mounted at `inner` and one file in each."""
    covered = tmp_path / "covered"
    (covered / "inner").mkdir(parents=True)
    (covered / "outer.txt").write_text("outer")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", covered / "inner"], check=True)
    (covered / "inner" / "inner.txt").write_text("inner")
    yield covered
    subprocess.run(["umount", covered / "inner"], check=True)


def test_nested_mounts_pass_through(nested: Path, new_plain_mount: Callable[..., PlainMount]) -> None:
    mount = new_plain_mount(path=nested)
    inner = mount.path / "inner"
    assert (inner / "inner.txt").read_text() == "inner"
    (inner / "new").write_text("new")
    os.rename(inner / "new", inner / "renamed")
    assert sorted(os.listdir(mount.plain / "inner")) == ["inner.txt", "renamed"]
    with pytest.raises(OSError, match="cross-device"):
        os.rename(inner / "renamed", mount.path / "renamed")
    with pytest.raises(OSError, match="cross-device"):
        os.link(mount.path / "outer.txt", inner / "link")
    with pytest.raises(OSError, match="busy"):
        os.rmdir(inner)
    numbers = [os.stat(os.path.join(top, name)).st_ino for top, _, names in os.walk(mount.path) for name in names]
    assert len(set(numbers)) == len(numbers)
    subprocess.run(["mv", inner / "renamed", mount.path / "renamed"], check=True)
    assert (mount.plain / "renamed").read_text() == "new"
    mount.close()


def test_reads_on_a_file_system_without_nowait_are_served(
    nested: Path, new_plain_mount: Callable[..., PlainMount]
) -> None:
    """tmpfs refuses RWF_NOWAIT on some kernels."""
    mount = new_plain_mount(path=nested)
    content = os.urandom(3 << 20)
    (mount.path / "inner" / "big").write_bytes(content)
    mount.close()
    again = new_plain_mount(path=nested)
    assert (again.path / "inner" / "big").read_bytes() == content
    again.close()


def test_a_listing_is_shown_again_by_the_kernel_until_something_changes(plain_mount: PlainMount) -> None:
    directory = plain_mount.path / "d"
    directory.mkdir()
    for n in range(300):
        (directory / f"f{n}").touch()
    time.sleep(2 * SETTLED_NS / 1e9)
    assert len(os.listdir(directory)) == 300
    again = plain_mount.requests_during(lambda: os.listdir(directory))
    assert again.keys() <= {"opendir", "releasedir", "getattr"}
    (directory / "new").touch()
    assert len(os.listdir(directory)) == 301
    os.unlink(directory / "f7")
    os.rename(directory / "f8", directory / "moved")
    assert set(os.listdir(directory)) == {f"f{n}" for n in range(300) if n not in (7, 8)} | {"new", "moved"}


def test_of_very_many_names_only_the_first_are_looked_at(plain_mount: PlainMount) -> None:
    names = {f"f{n}" for n in range(4_000)}
    for name in names:
        (plain_mount.path / name).touch()
    Path("/proc/sys/vm/drop_caches").write_text("2")
    wait_until(lambda: plain_mount.counters()["inodes"] < 10, "the kernel to forget the files")
    with os.scandir(plain_mount.path) as entries:
        found = {entry.name: entry for entry in entries}
    assert found.keys() == names
    assert plain_mount.counters()["inodes"] < 1_100
    assert all(entry.is_file(follow_symlinks=False) for entry in found.values())
    assert plain_mount.counters()["inodes"] < 1_100, "types come along with names"
    for name in ("f0", "f3999"):
        assert found[name].inode() == os.stat(plain_mount.path / name).st_ino
