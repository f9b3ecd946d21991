"""Attributes through the kernel: modes, owners, times, extended attributes, permission questions, free space."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.plainmount import PlainMount
from tests.support.poll import wait_until

MODES = [(), ("write_through",), ("allow_other",)]


def code_of(work: Callable[[], object]) -> object:
    """What `work` returns, or the name of its errno."""
    try:
        return work()
    except OSError as error:
        return errno.errorcode[error.errno or 0]


def _modes(d: Path) -> object:
    (d / "f").touch()
    (d / "d").mkdir()
    seen = []
    for mode in (0o0, 0o200, 0o4755, 0o2755, 0o6777, 0o1777, 0o644):
        for name in "fd":
            os.chmod(d / name, mode)
            seen.append(stat.filemode(os.stat(d / name).st_mode))
    return seen


def _owners(d: Path) -> object:
    (d / "f").touch()
    (d / "d").mkdir()
    os.symlink("f", d / "l")
    seen = []
    for name, uid, gid in (("f", 1, 2), ("f", -1, 3), ("f", 4, -1), ("d", 5, 6), ("l", 7, 8)):
        os.chown(d / name, uid, gid, follow_symlinks=False)
        st = os.lstat(d / name)
        seen.append((name, st.st_uid, st.st_gid))
    return seen, os.stat(d / "f").st_uid


def _times(d: Path) -> object:
    (d / "f").write_text("x")
    (d / "d").mkdir()
    os.symlink("f", d / "l")
    seen = []
    for atime, mtime in ((1, 2), (1_111_111_111_111_111_111, 1_222_222_222_222_222_222), (0, 4_000_000_000 * 10**9)):
        for name in "fdl":
            os.utime(d / name, ns=(atime, mtime), follow_symlinks=False)
            st = os.lstat(d / name)
            seen.append((name, st.st_atime_ns, st.st_mtime_ns))
    return seen


def _times_before_1970(d: Path) -> object:
    (d / "f").touch()
    os.utime(d / "f", ns=(-1_500_000_000, -86_400_000_000_001))
    return os.stat(d / "f").st_atime_ns, os.stat(d / "f").st_mtime_ns


def _omitted_times(d: Path) -> object:
    """touch -a and -m change one time and leave the other (UTIME_OMIT)."""
    (d / "f").touch()
    os.utime(d / "f", ns=(1_000, 2_000))
    subprocess.run(["touch", "-a", "-d", "@5.000000007", d / "f"], check=True)
    first = (os.stat(d / "f").st_atime_ns, os.stat(d / "f").st_mtime_ns)
    subprocess.run(["touch", "-m", "-d", "@6.000000008", d / "f"], check=True)
    second = (os.stat(d / "f").st_atime_ns, os.stat(d / "f").st_mtime_ns)
    return first, second


def _mtime_survives_close(d: Path) -> object:
    """What cp -p and tar do: write, set the time, close. The kernel's own late update must not win."""
    with open(d / "f", "wb") as stream:
        stream.write(b"x" * 10_000)
        stream.flush()
        os.utime(stream.fileno(), ns=(5, 6))
    with open(d / "f", "rb") as stream:
        stream.read()
    return os.stat(d / "f").st_mtime_ns


def _xattrs(d: Path) -> object:
    (d / "f").touch()
    (d / "d").mkdir()
    os.symlink("f", d / "l")
    seen: list[object] = []
    for name in "fd":
        path = d / name
        seen += [
            os.listxattr(path),
            code_of(lambda path=path: os.getxattr(path, "user.a")),
            code_of(lambda path=path: os.setxattr(path, "user.a", b"1", os.XATTR_REPLACE)),
            code_of(lambda path=path: os.setxattr(path, "user.a", b"1", os.XATTR_CREATE)),
            code_of(lambda path=path: os.setxattr(path, "user.a", b"2", os.XATTR_CREATE)),
            code_of(lambda path=path: os.setxattr(path, "user.a", b"\x00\xff", os.XATTR_REPLACE)),
            code_of(lambda path=path: os.setxattr(path, "user.empty", b"")),
            code_of(lambda path=path: os.setxattr(path, "user.\xfc", b"name")),
            code_of(lambda path=path: os.setxattr(path, "trusted.t", b"root's")),
            code_of(lambda path=path: os.setxattr(path, "security.t", b"root's")),
            code_of(lambda path=path: os.setxattr(path, "nonsense", b"")),
            code_of(lambda path=path: os.setxattr(path, "user." + "n" * 300, b"")),
            code_of(lambda path=path: os.setxattr(path, "user.big", bytes(70_000))),
            code_of(lambda path=path: os.setxattr(path, "user.big", bytes(2_000))),
            sorted(os.listxattr(path)),
            [(key, os.getxattr(path, key)) for key in sorted(os.listxattr(path))],
            code_of(lambda path=path: os.removexattr(path, "user.a")),
            code_of(lambda path=path: os.removexattr(path, "user.a")),
            code_of(lambda path=path: os.getxattr(path, "user.a")),
        ]
    link = d / "l"
    seen += [
        code_of(lambda: os.setxattr(link, "user.a", b"", follow_symlinks=False)),
        code_of(lambda: os.setxattr(link, "trusted.a", b"of the link", follow_symlinks=False)),
        os.listxattr(link, follow_symlinks=False),
        os.getxattr(link, "trusted.a", follow_symlinks=False),
        "trusted.a" in os.listxattr(d / "f"),
        code_of(lambda: os.setxattr(d / "none", "user.a", b"")),
    ]
    return seen


def _xattrs_of_open_files(d: Path) -> object:
    fd = os.open(d / "f", os.O_CREAT | os.O_RDWR)
    os.setxattr(fd, "user.a", b"open")
    os.rename(d / "f", d / "g")
    seen = os.getxattr(fd, "user.a"), os.getxattr(d / "g", "user.a")
    os.close(fd)
    return seen


def _access(d: Path) -> object:
    (d / "f").touch()
    (d / "d").mkdir()
    seen = []
    for mode in (0o0, 0o400, 0o755):
        os.chmod(d / "f", mode)
        os.chmod(d / "d", mode)
        seen += [os.access(d / n, mask) for n in "fd" for mask in (os.F_OK, os.R_OK, os.W_OK, os.X_OK, 7)]
    os.symlink("nowhere", d / "l")
    return seen, os.access(d / "l", os.F_OK), os.access(d / "none", os.F_OK), os.access(d, 7)


def _statfs(d: Path) -> object:
    st = os.statvfs(d)
    return st.f_blocks, st.f_files, st.f_namemax, st.f_bsize


def _size_and_times_of_directory(d: Path) -> object:
    (d / "d").mkdir()
    before = os.stat(d / "d")
    (d / "d" / "sub").mkdir()
    middle = os.stat(d / "d")
    (d / "d" / "sub").rmdir()
    after = os.stat(d / "d")
    return (
        before.st_nlink,
        middle.st_nlink,
        after.st_nlink,
        middle.st_mtime_ns > before.st_mtime_ns,
        after.st_mtime_ns > middle.st_mtime_ns,
    )


OPERATIONS = [value for name, value in sorted(globals().items()) if name.startswith("_") and callable(value)]
OPERATIONS = [work for work in OPERATIONS if getattr(work, "__module__", None) == __name__]


@pytest.mark.parametrize("options", MODES, ids=lambda options: "+".join(options) or "private")
def test_attributes_end_as_on_a_plain_directory(
    options: tuple[str, ...], new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    mount = new_plain_mount(*options)
    for work in OPERATIONS:
        for top in (mount.path, tmp_path):
            (top / work.__name__).mkdir()
        assert work(mount.path / work.__name__) == work(tmp_path / work.__name__), work.__name__


def test_attributes_set_on_the_mount_are_those_of_the_plain_file(plain_mount: PlainMount) -> None:
    path, plain = plain_mount.path / "f", plain_mount.plain / "f"
    path.write_text("content")
    os.chmod(path, 0o2640)
    os.chown(path, 11, 22)
    os.chmod(path, 0o2640)
    os.utime(path, ns=(123_456_789, 987_654_321))
    os.setxattr(path, "user.k", b"v")
    for st in (os.stat(path), os.stat(plain)):
        assert (stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid) == (0o2640, 11, 22)
        assert (st.st_atime_ns, st.st_mtime_ns, st.st_size) == (123_456_789, 987_654_321, 7)
    assert os.getxattr(plain, "user.k") == b"v"


def test_a_change_of_owner_to_what_it_is_sets_the_ctime(new_plain_mount: Callable[..., PlainMount]) -> None:
    for options in MODES:
        path = new_plain_mount(*options).path
        (path / "file").touch()
        (path / "dir").mkdir()
        os.mkfifo(path / "fifo")
        for name in ("file", "dir", "fifo"):
            before = os.stat(path / name).st_ctime_ns

            def chown_sets_it(name: str = name, before: int = before, path: Path = path) -> bool:
                os.chown(path / name, -1, -1)
                return os.stat(path / name).st_ctime_ns > before  # not within one tick of the kernel's clock

            wait_until(chown_sets_it, f"new ctime of the {name}", 5)


@pytest.mark.parametrize("is_open", [False, True])
def test_truncating_to_the_same_size_leaves_mount_and_plain_file_with_one_mtime(
    plain_mount: PlainMount, is_open: bool
) -> None:
    path = plain_mount.path / "f"
    path.write_text("12345")
    os.utime(path, ns=(1, 2))
    fd = os.open(path, os.O_RDWR if is_open else os.O_RDONLY)
    os.truncate(path, 5)
    os.close(fd)
    assert os.stat(path).st_mtime_ns == os.stat(plain_mount.plain / "f").st_mtime_ns == 2
    os.truncate(path, 6)
    assert os.stat(path).st_mtime_ns == os.stat(plain_mount.plain / "f").st_mtime_ns > 2


def test_mtime_and_size_of_a_file_being_written_are_right_at_once(plain_mount: PlainMount) -> None:
    path = plain_mount.path / "f"
    begun = time.time_ns()
    with open(path, "wb", buffering=0) as stream:
        stream.write(b"x" * 5_000)
        st = os.stat(path)
        assert st.st_size == 5_000
        assert st.st_mtime_ns >= begun - 50_000_000  # the kernel's clock for files is coarse
    assert os.stat(path).st_mtime_ns == os.stat(plain_mount.plain / "f").st_mtime_ns


def test_the_late_time_update_of_an_unlinked_file_is_no_error(plain_mount: PlainMount) -> None:
    with open(plain_mount.path / "f", "wb", buffering=0) as stream:
        stream.write(b"x")
        os.unlink(plain_mount.path / "f")
        stream.write(b"y")
        os.fsync(stream.fileno())
    requests = plain_mount.counters()["requests"]
    assert requests["setattr"][1] == 0


def test_access_times_are_the_hosts_business(plain_mount: PlainMount) -> None:
    (plain_mount.path / "f").write_text("x")
    os.utime(plain_mount.path / "f", ns=(1, 2))
    assert (plain_mount.path / "f").read_text() == "x"
    assert os.stat(plain_mount.path / "f").st_mtime_ns == 2


def test_a_read_only_mount_refuses_every_change_and_shows_everything(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    covered = tmp_path / "covered"
    (covered / "d").mkdir(parents=True)
    (covered / "f").write_text("content")
    os.symlink("f", covered / "l")
    mount = new_plain_mount("read_only", path=covered)
    path = mount.path
    attempts: list[Callable[[], object]] = [
        lambda: (path / "new").touch(),
        lambda: (path / "new").mkdir(),
        lambda: os.mkfifo(path / "new"),
        lambda: os.symlink("x", path / "new"),
        lambda: os.link(path / "f", path / "new"),
        lambda: os.rename(path / "f", path / "new"),
        lambda: os.unlink(path / "f"),
        lambda: os.rmdir(path / "d"),
        lambda: os.open(path / "f", os.O_WRONLY),
        lambda: os.open(path / "f", os.O_RDONLY | os.O_TRUNC),
        lambda: os.truncate(path / "f", 0),
        lambda: os.chmod(path / "f", 0o600),
        lambda: os.chown(path / "f", 1, 1),
        lambda: os.utime(path / "f"),
        lambda: os.setxattr(path / "f", "user.a", b""),
        lambda: os.removexattr(path / "f", "user.a"),
    ]
    assert [code_of(attempt) for attempt in attempts] == ["EROFS"] * len(attempts)
    assert not os.access(path / "f", os.W_OK)
    assert ((path / "l").read_text(), sorted(os.listdir(path))) == ("content", ["d", "f", "l"])
    assert os.statvfs(path).f_flag & os.ST_RDONLY


def test_every_write_costs_at_most_one_cheap_question(plain_mount: PlainMount) -> None:
    """The kernel asks for security.capability before each write (Linux file_remove_privs): nothing else is asked."""
    with open(plain_mount.path / "f", "wb", buffering=0) as stream:
        stream.write(b"x")
        requests = plain_mount.requests_during(lambda: [stream.write(b"x") for _ in range(100)])
    assert set(requests) <= {"getxattr"}
