"""Names through the kernel: made, looked up, linked, moved and removed as on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.plainmount import PlainMount

NOREPLACE, EXCHANGE = 1, 2

_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, os.fsencode(old), -100, os.fsencode(new), flags) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def outcome(work: Callable[[Path], object], directory: Path) -> object:
    """What `work` returned in `directory`, or the errno that it failed with."""
    try:
        return work(directory)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _rename_dir_over_full(d: Path) -> object:
    (d / "a").mkdir()
    (d / "b").mkdir()
    (d / "b" / "x").touch()
    os.rename(d / "a", d / "b")
    return None


def _rename_dir_over_empty(d: Path) -> object:
    (d / "a").mkdir()
    (d / "a" / "x").write_text("x")
    (d / "b").mkdir()
    os.rename(d / "a", d / "b")
    return os.listdir(d), (d / "b" / "x").read_text()


def _rename_into_itself(d: Path) -> object:
    (d / "a").mkdir()
    os.rename(d / "a", d / "a" / "b")
    return None


def _rename_file_over_dir(d: Path) -> object:
    (d / "a").touch()
    (d / "b").mkdir()
    os.rename(d / "a", d / "b")
    return None


def _rename_dir_over_file(d: Path) -> object:
    (d / "a").mkdir()
    (d / "b").touch()
    os.rename(d / "a", d / "b")
    return None


def _rename_link_to_itself(d: Path) -> object:
    (d / "a").touch()
    os.link(d / "a", d / "b")
    os.rename(d / "a", d / "b")
    return sorted(os.listdir(d)), os.stat(d / "a").st_nlink


def _noreplace_taken(d: Path) -> object:
    (d / "a").touch()
    (d / "b").touch()
    renameat2(d / "a", d / "b", NOREPLACE)
    return None


def _noreplace_free(d: Path) -> object:
    (d / "a").write_text("a")
    renameat2(d / "a", d / "b", NOREPLACE)
    return (d / "b").read_text(), os.listdir(d)


def _exchange(d: Path) -> object:
    (d / "a").write_text("a")
    (d / "b").mkdir()
    (d / "b" / "x").write_text("x")
    os.stat(d / "b" / "x")
    renameat2(d / "a", d / "b", EXCHANGE)
    return (d / "a" / "x").read_text(), (d / "b").read_text()


def _exchange_missing(d: Path) -> object:
    (d / "a").touch()
    renameat2(d / "a", d / "b", EXCHANGE)
    return None


def _exclusive(d: Path) -> object:
    os.close(os.open(d / "a", os.O_CREAT | os.O_EXCL))
    return os.open(d / "a", os.O_CREAT | os.O_EXCL)


def _too_long(d: Path) -> object:
    return os.stat(d / ("x" * 256))


def _create_too_long(d: Path) -> object:
    return os.open(d / ("x" * 256), os.O_CREAT | os.O_WRONLY)


def _longest(d: Path) -> object:
    (d / ("y" * 255)).write_text("y")
    return os.listdir(d)


def _odd_names(d: Path) -> object:
    names = [b"\xff\xfe", b"new\nline", b"tab\t", b"\\", b" ", b"-rf", "ü".encode(), b"\x01\x7f", "e\u0301".encode()]
    for name in names:
        os.close(os.open(os.path.join(os.fsencode(d), name), os.O_CREAT | os.O_WRONLY))
        os.rename(os.path.join(os.fsencode(d), name), os.path.join(os.fsencode(d), name + b"2"))
    return sorted(os.listdir(os.fsencode(d)))


def _under_a_file(d: Path) -> object:
    (d / "a").touch()
    return os.stat(d / "a" / "b")


def _unlink_directory(d: Path) -> object:
    (d / "a").mkdir()
    return os.unlink(d / "a")


def _rmdir_file(d: Path) -> object:
    (d / "a").touch()
    return os.rmdir(d / "a")


def _rmdir_full(d: Path) -> object:
    (d / "a" / "b").mkdir(parents=True)
    return os.rmdir(d / "a")


def _link_directory(d: Path) -> object:
    (d / "a").mkdir()
    return os.link(d / "a", d / "b")


def _link_symlink_itself(d: Path) -> object:
    os.symlink("nowhere", d / "a")
    os.link(d / "a", d / "b", follow_symlinks=False)
    return os.readlink(d / "b"), os.lstat(d / "a").st_nlink


def _long_symlink(d: Path) -> object:
    target = "/".join(["a" * 200] * 20)  # 4019 bytes; the longest is 4095
    os.symlink(target, d / "a")
    return os.readlink(d / "a") == target, os.lstat(d / "a").st_size


def _longest_symlink(d: Path) -> object:
    os.symlink("a" * 4095, d / "a")
    return len(os.readlink(d / "a"))


def _symlink_loop(d: Path) -> object:
    os.symlink("a", d / "a")
    return (d / "a").read_text()


def _fifo(d: Path) -> object:
    os.mkfifo(d / "a", 0o640)
    reader = os.open(d / "a", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(d / "a", os.O_WRONLY)
    os.write(writer, b"through")
    os.close(writer)
    read = os.read(reader, 100)
    os.close(reader)
    return read, stat.filemode(os.stat(d / "a").st_mode)


def _device(d: Path) -> object:
    os.mknod(d / "a", stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    with open(d / "a", "rb") as zero:
        return zero.read(4), os.stat(d / "a").st_rdev


def _mknod_regular(d: Path) -> object:
    os.mknod(d / "a", stat.S_IFREG | 0o640)
    (d / "a").write_text("x")
    return stat.filemode(os.stat(d / "a").st_mode), (d / "a").read_text()


def _socket(d: Path) -> object:
    fd = os.open(d, os.O_RDONLY)  # the path of a socket has room for 107 bytes
    path = f"/proc/self/fd/{fd}/a"
    with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
        server.bind(path)
        server.listen()
        client.connect(path)
        accepted, _ = server.accept()
        client.sendall(b"hello")
        received = accepted.recv(5)
        accepted.close()
    os.close(fd)
    return received, stat.S_ISSOCK(os.stat(d / "a").st_mode)


def _setgid_directory(d: Path) -> object:
    (d / "a").mkdir()
    os.chown(d / "a", -1, 1234)
    os.chmod(d / "a", 0o2775)
    (d / "a" / "file").touch()
    (d / "a" / "dir").mkdir()
    return [(os.stat(d / "a" / n).st_gid, stat.filemode(os.stat(d / "a" / n).st_mode)) for n in ("file", "dir")]


def _umask(d: Path) -> object:
    old = os.umask(0o027)
    try:
        os.close(os.open(d / "a", os.O_CREAT | os.O_WRONLY, 0o6777))
        os.mkdir(d / "b", 0o1777)
        os.mkfifo(d / "c", 0o666)
    finally:
        os.umask(old)
    return [stat.filemode(os.stat(d / n).st_mode) for n in "abc"]


def _deep(d: Path) -> object:
    fd = os.open(d, os.O_RDONLY)
    for _ in range(300):
        os.mkdir("a" * 50, dir_fd=fd)
        deeper = os.open("a" * 50, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    os.close(os.open("end", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    names = os.listdir(fd)
    os.close(fd)
    shutil.rmtree(d / ("a" * 50))
    return names, os.listdir(d)


OPERATIONS = [value for name, value in sorted(globals().items()) if name.startswith("_") and callable(value)]
OPERATIONS = [work for work in OPERATIONS if getattr(work, "__module__", None) == __name__]


@pytest.mark.parametrize("options", [(), ("allow_other",), ("write_through",)], ids=lambda o: "+".join(o) or "private")
def test_operations_on_names_end_as_on_a_plain_directory(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path, options: tuple[str, ...]
) -> None:
    mount = new_plain_mount(*options)
    for work in OPERATIONS:
        (mount.path / work.__name__).mkdir()
        (tmp_path / work.__name__).mkdir()
        expected = outcome(work, tmp_path / work.__name__)
        assert outcome(work, mount.path / work.__name__) == expected, work.__name__
    seen = sorted(os.path.relpath(os.path.join(top, n), mount.path) for top, _, ns in os.walk(mount.path) for n in ns)
    beneath = sorted(
        os.path.relpath(os.path.join(top, n), mount.plain) for top, _, ns in os.walk(mount.plain) for n in ns
    )
    assert seen == beneath


def test_a_name_looked_up_in_vain_is_there_once_it_is_made(plain_mount: PlainMount) -> None:
    makers: list[Callable[[Path], object]] = [
        Path.touch,
        Path.mkdir,
        os.mkfifo,
        lambda path: os.symlink("x", path),
        lambda path: os.link(plain_mount.path / "source", path),
        lambda path: os.rename(plain_mount.path / "moved", path),
    ]
    (plain_mount.path / "source").touch()
    (plain_mount.path / "moved").touch()
    for index, make in enumerate(makers):
        path = plain_mount.path / f"n{index}"
        for _ in range(2):
            with pytest.raises(FileNotFoundError):
                os.lstat(path)
        make(path)
        os.lstat(path)
    with pytest.raises(FileNotFoundError):
        os.lstat(plain_mount.path / "moved")


def test_missing_names_are_asked_for_once(plain_mount: PlainMount) -> None:
    def look() -> None:
        for _ in range(50):
            with pytest.raises(FileNotFoundError):
                os.stat(plain_mount.path / "missing")

    assert plain_mount.requests_during(look).get("lookup") == 1


def test_stat_of_known_files_asks_nothing(plain_mount: PlainMount) -> None:
    for name in "abc":
        (plain_mount.path / name).write_text(name)
        os.stat(plain_mount.path / name)
    requests = plain_mount.requests_during(lambda: [os.stat(plain_mount.path / n) for n in "abc" * 100])
    assert requests == {}


def test_hard_links_are_one_inode_with_a_true_link_count_at_once(plain_mount: PlainMount) -> None:
    first, second, third = (plain_mount.path / name for name in "abc")
    first.write_text("x")
    assert os.stat(first).st_nlink == 1
    os.link(first, second)
    os.link(second, third)
    for path in (first, second, third):
        assert (os.stat(path).st_nlink, os.stat(path).st_ino) == (3, os.stat(first).st_ino)
    before = os.stat(third).st_ctime_ns
    os.unlink(first)
    assert os.stat(second).st_nlink == os.stat(third).st_nlink == 2
    assert os.stat(third).st_ctime_ns > before
    (plain_mount.path / "d").write_text("d")
    os.rename(plain_mount.path / "d", second)  # replaces one of the links
    assert os.stat(third).st_nlink == 1
    third.write_text("still written")
    assert (plain_mount.plain / "c").read_text() == "still written"


def test_inode_numbers_are_the_local_files_own(plain_mount: PlainMount) -> None:
    (plain_mount.path / "d").mkdir()
    for name in ("a", "d/b"):
        (plain_mount.path / name).touch()
        assert os.stat(plain_mount.path / name).st_ino == os.stat(plain_mount.plain / name).st_ino
    entries = {entry.name: entry.inode() for entry in os.scandir(plain_mount.path)}
    assert entries == {name: os.stat(plain_mount.plain / name).st_ino for name in ("a", "d")}


def test_a_number_that_the_host_gives_again_is_another_file(plain_mount: PlainMount) -> None:
    """The old inode is still held open while new files are made; the host may reuse numbers as soon as it can."""
    for round_ in range(30):
        path = plain_mount.path / f"old{round_}"
        path.write_text("old")
        with open(path) as old:
            os.unlink(path)
            new = plain_mount.path / f"new{round_}"
            new.write_text("new")
            assert old.read() == "old"
            assert os.fstat(old.fileno()).st_ino != os.stat(new).st_ino
        assert new.read_text() == "new"


def test_renaming_a_directory_takes_open_and_known_files_along(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a" / "b").mkdir(parents=True)
    (plain_mount.path / "a" / "b" / "file").write_text("before")
    os.stat(plain_mount.path / "a" / "b" / "file")
    with open(plain_mount.path / "a" / "b" / "file", "r+") as stream:
        os.rename(plain_mount.path / "a", plain_mount.path / "z")
        stream.write("BEFORE")
        stream.flush()
        os.fsync(stream.fileno())
        assert plain_mount.counters()["writers"] == ["z/b/file"]
    os.chmod(plain_mount.path / "z" / "b" / "file", 0o600)
    assert (plain_mount.plain / "z" / "b" / "file").read_text() == "BEFORE"
    assert plain_mount.counters()["writers"] == []


def test_rename_over_an_open_file_keeps_its_old_content_readable(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").write_text("old" * 100_000)
    (plain_mount.path / "b").write_text("new")
    with open(plain_mount.path / "a") as stream:
        os.rename(plain_mount.path / "b", plain_mount.path / "a")
        assert stream.read() == "old" * 100_000
        assert os.fstat(stream.fileno()).st_nlink == 0
    assert (plain_mount.path / "a").read_text() == "new"


def test_a_removed_working_directory_behaves_as_on_the_host(plain_mount: PlainMount) -> None:
    (plain_mount.path / "gone").mkdir()
    fd = os.open(plain_mount.path / "gone", os.O_RDONLY)
    try:
        os.rmdir(plain_mount.path / "gone")
        assert os.listdir(fd) == []
        assert os.fstat(fd).st_nlink == 0
        with pytest.raises(FileNotFoundError):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    finally:
        os.close(fd)
    (plain_mount.path / "gone").mkdir()  # the name is free again
    (plain_mount.path / "gone" / "x").touch()
    assert os.listdir(plain_mount.path / "gone") == ["x"]


def test_o_creat_on_an_existing_file_opens_it(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").write_text("content")
    # Made behind the mount's back, under a name that the kernel believes to be free.
    assert not (plain_mount.path / "b").exists()
    (plain_mount.plain / "b").write_text("behind")
    for name, content in (("a", "content"), ("b", "behind")):
        with open(os.open(plain_mount.path / name, os.O_CREAT | os.O_RDWR)) as stream:
            assert stream.read() == content
    with pytest.raises(FileExistsError):
        os.open(plain_mount.path / "a", os.O_CREAT | os.O_EXCL)


def test_a_file_has_as_many_links_as_on_the_plain_directory(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    """The most that ext4 allows is 65,000; other file systems may allow more than are tried here."""
    covered = tmp_path / "covered"
    covered.mkdir()
    (covered / "f").touch()
    try:
        for number in range(65_100):
            os.link(covered / "f", covered / str(number))
    except OSError as error:
        assert error.errno == errno.EMLINK  # noqa: PT017 - there may be none
    most = os.stat(covered / "f").st_nlink
    os.unlink(covered / "0")
    mount = new_plain_mount(path=covered)
    assert os.stat(mount.path / "f").st_nlink == most - 1
    os.link(mount.path / "1", mount.path / "new")
    assert os.stat(mount.path / "f").st_nlink == most
    if most < 65_101:
        with pytest.raises(OSError, match="Too many links"):
            os.link(mount.path / "f", mount.path / "one more")
