"""The largest sizes, longest names and longest paths: as on the plain directory, and in snapshots."""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mountproc import MountProcess

HUGE = 999_999_999_999_999
GIB, TIB = 1 << 30, 1 << 40

NAME = b"n" * 255
UNICODE_NAME = "\N{EURO SIGN}".encode() * 85  # 255 bytes, too


@pytest.fixture
def tmpfs(tmp_path: Path) -> Iterator[Path]:
    """A file system whose files may be larger than any of ext4."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a tmpfs")
    path = tmp_path / "tmpfs"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", path], check=True)
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def mount_on_tmpfs(tmpfs: Path, tmp_path: Path) -> Iterator[MountProcess]:
    covered = tmpfs / "covered"
    covered.mkdir()
    mount = MountProcess(tmp_path / "on-tmpfs", path=covered).start()
    yield mount
    mount.close()


def memory(mount: MountProcess) -> int:
    """The most memory that the daemon has ever had, in KiB."""
    status = Path(f"/proc/{mount.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1])


def result(call: Callable[..., object], *arguments: object) -> str | None:
    """The error that a call ends with."""
    try:
        call(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    return None


def truncated(directory: Path) -> list[object]:
    """What becomes of a file that is to be made huge, by each of the two calls."""
    path = directory / "huge"
    path.write_bytes(b"start")
    seen: list[object] = [result(os.truncate, path, HUGE), path.stat().st_size]
    os.truncate(path, 5)
    with open(path, "r+b", buffering=0) as stream:
        seen += [result(os.ftruncate, stream.fileno(), HUGE), os.fstat(stream.fileno()).st_size]
        seen += [result(os.ftruncate, stream.fileno(), 5), stream.read()]
    return seen


@pytest.mark.parametrize("flags", [(), ("--write-through",)], ids=["write-back", "write-through"])
def test_truncating_to_a_petabyte_makes_a_hole_or_is_too_big_as_on_the_plain_directory(
    new_mount: Callable[..., MountProcess], tmp_path: Path, flags: tuple[str, ...]
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    mount = new_mount().start(*flags)
    assert truncated(mount.path) == truncated(plain)
    assert (mount.plain / "huge").read_bytes() == b"start"


def test_truncating_to_a_petabyte_makes_a_hole_on_a_file_system_that_has_such_files(
    mount_on_tmpfs: MountProcess, tmpfs: Path
) -> None:
    assert truncated(mount_on_tmpfs.path) == truncated(tmpfs)
    path = mount_on_tmpfs.path / "huge"
    with open(path, "r+b", buffering=0) as stream:
        assert os.pwrite(stream.fileno(), b"end", HUGE) == 3
        assert os.pread(stream.fileno(), 10, HUGE - 2) == b"\0\0end"
    assert path.stat().st_size == HUGE + 3
    assert path.stat().st_blocks < 1000


def test_writing_beyond_the_largest_file_fails_close_or_fsync_with_the_write_back_cache(
    new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    """As with a full disk: the kernel takes the data, and asks later."""
    offset = (1 << 63) - 4097
    with open(tmp_path / "plain", "wb") as stream:
        refused = result(os.pwrite, stream.fileno(), b"end", offset)
    if refused is None:
        pytest.skip("this file system has files of any size")
    back = os.open(new_mount("back").start().path / "f", os.O_CREAT | os.O_RDWR)
    through = os.open(new_mount("through").start("--write-through").path / "f", os.O_CREAT | os.O_RDWR)
    try:
        assert result(os.pwrite, through, b"end", offset) == refused
        assert refused in (result(os.pwrite, back, b"end", offset), result(os.fsync, back))
    finally:
        os.close(through)
        result(os.close, back)


def test_a_hole_of_a_petabyte_is_not_stored_but_named_and_keeps_nothing_else_back(mount_on_tmpfs: MountProcess) -> None:
    mount = mount_on_tmpfs
    (mount.path / "before").write_text("before")
    mount.sync()
    before = memory(mount)
    (mount.path / "huge").write_text("start")
    os.truncate(mount.path / "huge", HUGE)
    (mount.path / "after").write_text("after")
    snapshot = mount.sync(timeout=60)
    shown = json.loads(mount.ipfsfs("ls", "--json", snapshot, "--store-dir", mount.store).stdout)
    assert sorted(entry["name"] for entry in shown) == ["after", "before"]
    assert [(skip["path"], skip["why"]) for skip in mount.status()["skipped"]] == [
        ("huge", "is larger than 16 TiB, the most that is stored of one file")
    ]
    assert memory(mount) < before + 64 * 1024  # KiB; a number for each of its chunks would be gigabytes
    os.truncate(mount.path / "huge", 5)
    snapshot = mount.sync()
    assert mount.ipfsfs("cat", f"{snapshot}/huge", "--store-dir", mount.store).stdout == "start"
    assert not mount.status()["skipped"]


def test_a_sparse_file_is_stored_and_comes_back_sparse(mounted: MountProcess, tmp_path: Path) -> None:
    path = mounted.path / "sparse"
    with open(path, "wb") as stream:
        for offset in (0, GIB + 5, 2 * TIB - 3):
            stream.seek(offset)
            stream.write(b"data")
    assert path.stat().st_blocks * 512 < 64 << 20
    snapshot = mounted.sync()
    assert mounted.status()["store"]["bytes"] < 64 << 20
    restored = mounted.restore(snapshot, tmp_path / "restored") / "sparse"
    assert restored.stat().st_size == 2 * TIB + 1
    assert restored.stat().st_blocks * 512 < 64 << 20
    with open(restored, "rb") as stream:
        for offset in (0, GIB + 5, 2 * TIB - 3):
            stream.seek(offset)
            assert stream.read(4) == b"data"


def with_names(directory: Path) -> list[object]:
    """What becomes of every operation with names of 255 bytes, and of 256."""
    seen: list[object] = []
    here = os.fsencode(directory)

    def make(path: bytes) -> None:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))

    for name in (NAME, UNICODE_NAME):
        one, two, over = (os.path.join(here, full) for full in (name, name[:-3] + b"two", name + b"x"))
        seen += [result(os.mkdir, one), result(os.rename, one, two), result(os.rmdir, two)]
        seen += [result(make, one), result(os.link, one, two), result(os.rename, two, one), result(os.unlink, two)]
        seen += [result(os.symlink, name, two), os.stat(two).st_nlink, result(os.setxattr, one, "user.x", b"1")]
        for call in (os.mkdir, os.rmdir, os.unlink, os.stat, os.mkfifo, os.listdir, make):
            seen.append(result(call, over))
        for call in (os.rename, os.link):
            seen += [result(call, one, over), result(call, over, one)]
        seen.append(result(os.symlink, b"x", over))
    return [*seen, sorted(os.listdir(here))]


def test_names_of_255_bytes_work_and_longer_ones_fail_as_on_the_plain_directory(
    mounted: MountProcess, tmp_path: Path
) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    seen = with_names(plain)
    assert with_names(mounted.path) == seen
    assert seen.count("ENAMETOOLONG") == 24


def path_of_length(directory: Path, length: int) -> bytes:
    """A path below `directory` of exactly so many bytes, all its directories made."""
    path = os.fsencode(directory)
    while length - len(path) > 400:
        path += b"/" + b"d" * 250
        os.makedirs(path, exist_ok=True)
    rest = length - len(path) - 2
    if rest > 255:
        path += b"/" + b"e" * (rest - 200)
        os.makedirs(path, exist_ok=True)
    return path + b"/" + b"f" * (length - len(path) - 1)


def test_paths_of_path_max_work_and_longer_ones_fail_and_all_is_stored(mounted: MountProcess, tmp_path: Path) -> None:
    longest = os.pathconf(mounted.path, "PC_PATH_MAX") - 1  # PATH_MAX counts the NUL at the end
    path = path_of_length(mounted.path, longest)
    assert len(path) == longest
    Path(os.fsdecode(path)).write_text("deep")
    assert os.stat(path).st_size == 4
    assert result(os.stat, path + b"x") == "ENAMETOOLONG"
    # Deeper still, by steps: no path leads there in one.
    directory = os.open(os.path.dirname(path), os.O_RDONLY)
    for _ in range(20):
        os.mkdir(NAME, dir_fd=directory)
        below = os.open(NAME, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=directory))
    os.close(directory)
    restored = mounted.restore(mounted.sync(), tmp_path / "r")
    assert levels(restored) == levels(mounted.path) == levels(mounted.plain)


def levels(directory: Path) -> list[list[str]]:
    """The names in a directory, in the one below it, and so on, where each has one directory at most."""
    found = []
    fd = os.open(directory, os.O_RDONLY)
    try:
        while True:
            with os.scandir(fd) as entries:
                names = sorted((entry.is_dir(follow_symlinks=False), entry.name) for entry in entries)
            found.append([name for _, name in names])
            if not names or not names[-1][0]:
                return found
            below = os.open(names[-1][1], os.O_RDONLY, dir_fd=fd)
            os.close(fd)
            fd = below
    finally:
        os.close(fd)
