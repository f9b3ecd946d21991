"""Contents through the kernel: written, mapped, appended, truncated, copied, locked, as on a plain directory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import random
import stat
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.plainmount import PlainMount

MODES = [(), ("write_through",), ("allow_other",)]


def mode_name(options: tuple[str, ...]) -> str:
    return "+".join(options) or "private"


@pytest.fixture(params=MODES, ids=mode_name)
def any_mount(new_plain_mount: Callable[..., PlainMount], request: pytest.FixtureRequest) -> PlainMount:
    """A mount over an empty directory, in each mode."""
    return new_plain_mount(*request.param)


def test_written_data_is_in_the_plain_file_when_close_has_returned(any_mount: PlainMount) -> None:
    for size in (0, 1, 4095, 4096, 4097, (1 << 20) - 1, (1 << 20) + 1, 5_000_000):
        content = os.urandom(size)
        (any_mount.path / "a").write_bytes(content)
        assert (any_mount.plain / "a").read_bytes() == content
        assert (any_mount.path / "a").read_bytes() == content


def test_write_through_puts_every_write_into_the_plain_file(new_plain_mount: Callable[..., PlainMount]) -> None:
    mount = new_plain_mount("write_through")
    with open(mount.path / "a", "wb", buffering=0) as stream:
        for index in range(5):
            stream.write(b"x" * 1000)
            assert os.stat(mount.plain / "a").st_size == 1000 * (index + 1)


def test_the_write_back_cache_joins_small_appends(plain_mount: PlainMount) -> None:
    def append() -> None:
        with open(plain_mount.path / "log", "ab", buffering=0) as log:
            for _ in range(200):
                log.write(b"x" * 120)

    requests = plain_mount.requests_during(append)
    assert requests["write"] == 1
    assert os.stat(plain_mount.plain / "log").st_size == 200 * 120


def _write_mapped(fd: int, data: bytes) -> object:
    """Change the middle of a file through a shared mapping, as far as it reaches; not flushed."""
    size = os.fstat(fd).st_size
    if size <= len(data):
        return None
    with mmap.mmap(fd, 0) as mapping:
        middle = (size - len(data)) // 2
        mapping[middle : middle + len(data)] = data
    return size


def test_random_writes_mappings_and_truncations_give_the_same_file_as_on_a_plain_directory(
    any_mount: PlainMount, tmp_path: Path
) -> None:
    rng = random.Random(3)
    handles = [os.open(d / "a", os.O_RDWR | os.O_CREAT) for d in (any_mount.path, tmp_path)]
    for _ in range(1_000):
        offset, length = rng.randrange(300_000), rng.choice([1, 100, 4096, 70_000])
        match rng.randrange(6):
            case 0:
                data = rng.randbytes(min(length, offset))
                results = [_write_mapped(fd, data) for fd in handles]
            case 1:
                data = rng.randbytes(length)
                results = [os.pwrite(fd, data, offset) for fd in handles]
            case 2:
                results = [os.pread(fd, length, offset) for fd in handles]
            case 3:
                results = [os.ftruncate(fd, offset) for fd in handles]
            case _:
                results = [os.lseek(fd, 0, os.SEEK_END) for fd in handles]
        assert results[0] == results[1]
    for fd in handles:
        os.close(fd)
    assert (any_mount.plain / "a").read_bytes() == (tmp_path / "a").read_bytes()


def test_eight_processes_append_without_losing_a_line(any_mount: PlainMount) -> None:
    log = any_mount.path / "log"
    code = (
        "import os,sys\n"
        "fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT)\n"
        "for i in range(500): os.write(fd, f'{sys.argv[2]} {i}\\n'.encode())\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", code, log, str(n)]) for n in range(8)]
    assert [worker.wait(60) for worker in workers] == [0] * 8
    for path in (log, any_mount.plain / "log"):
        assert sorted(path.read_text().splitlines()) == sorted(f"{n} {i}" for n in range(8) for i in range(500))


def test_a_shared_mapping_is_seen_by_another_process_and_reaches_the_plain_file(any_mount: PlainMount) -> None:
    path = any_mount.path / "m"
    path.write_bytes(bytes(100_000))
    code = (
        "import mmap,os,sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR)\n"
        "m = mmap.mmap(fd, 0)\n"
        "os.close(fd)\n"
        "assert m[5:8] == b'abc', m[5:8]\n"
        "m[50_000:50_003] = b'xyz'\n"
    )
    fd = os.open(path, os.O_RDWR)
    with mmap.mmap(fd, 0) as mapping:
        os.close(fd)
        mapping[5:8] = b"abc"
        subprocess.run([sys.executable, "-c", code, path], check=True)
        assert mapping[50_000:50_003] == b"xyz"
        mapping.flush()
        assert (any_mount.plain / "m").read_bytes()[5:8] == b"abc"
        mapping[99_999:] = b"!"
    wanted = bytearray(100_000)
    wanted[5:8], wanted[50_000:50_003], wanted[99_999:] = b"abc", b"xyz", b"!"
    assert path.read_bytes() == wanted
    os.close(os.open(path, os.O_RDWR))  # the last unmapping has no flush of its own; the next close writes all out
    os.sync()
    assert (any_mount.plain / "m").read_bytes() == wanted


def test_an_unlinked_open_file_goes_on_working(any_mount: PlainMount) -> None:
    path = any_mount.path / "a"
    fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.write(fd, b"before")
    os.unlink(path)
    assert os.listdir(any_mount.plain) == []
    assert os.fstat(fd).st_nlink == 0
    os.write(fd, b" after")
    assert os.pread(fd, 100, 0) == b"before after"
    assert os.fstat(fd).st_size == 12
    os.ftruncate(fd, 3)
    assert os.pread(fd, 100, 0) == b"bef"
    os.fchmod(fd, 0o600)
    os.utime(fd, ns=(1_000_000_001, 2_000_000_002))
    os.fchown(fd, 12, 34)
    st = os.fstat(fd)
    assert (stat.S_IMODE(st.st_mode), st.st_atime_ns, st.st_mtime_ns) == (0o600, 1_000_000_001, 2_000_000_002)
    assert (st.st_uid, st.st_gid, st.st_size) == (12, 34, 3)
    os.setxattr(fd, "user.x", b"1")
    assert os.getxattr(fd, "user.x") == b"1"
    os.fsync(fd)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    assert os.read(again, 100) == b"bef"
    os.write(again, b"ore")
    with pytest.raises(FileNotFoundError):  # as on the host: a file without names gets no new ones
        os.link(f"/proc/self/fd/{fd}", path, dst_dir_fd=fd, follow_symlinks=True)
    os.close(fd)
    assert os.pread(again, 100, 0) == b"before"
    os.truncate(f"/proc/self/fd/{again}", 1)
    assert os.fstat(again).st_size == 1
    os.close(again)
    counted = any_mount.counters()
    assert (counted["handles"], counted["writers"]) == (0, [])


def test_an_unlinked_file_without_a_handle_can_be_opened_again_through_o_path(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").write_text("content")
    pin = os.open(plain_mount.path / "a", os.O_PATH)
    os.unlink(plain_mount.path / "a")
    try:
        assert os.fstat(pin).st_nlink == 0
        with open(f"/proc/self/fd/{pin}", "r+") as stream:
            assert stream.read() == "content"
            stream.write(" and more")
        assert Path(f"/proc/self/fd/{pin}").read_text() == "content and more"
        os.chmod(f"/proc/self/fd/{pin}", 0o600)
        os.truncate(f"/proc/self/fd/{pin}", 4)
        assert (os.fstat(pin).st_size, stat.S_IMODE(os.fstat(pin).st_mode)) == (4, 0o600)
    finally:
        os.close(pin)


def _open_flags(d: Path) -> object:
    """O_TRUNC, O_APPEND, O_EXCL, O_DIRECTORY, O_NOFOLLOW in one go."""
    results: list[object] = []

    def attempt(work: Callable[[], object]) -> None:
        try:
            results.append(work())
        except OSError as error:
            results.append(errno.errorcode[error.errno or 0])

    def content(flags: int, data: bytes = b"") -> bytes:
        fd = os.open(d / "a", flags, 0o644)
        if data:
            os.write(fd, data)
        os.close(fd)
        return (d / "a").read_bytes()

    attempt(lambda: content(os.O_WRONLY | os.O_CREAT, b"12345"))
    attempt(lambda: content(os.O_WRONLY | os.O_APPEND, b"67"))
    attempt(lambda: content(os.O_WRONLY | os.O_CREAT, b"ab"))
    attempt(lambda: content(os.O_WRONLY | os.O_TRUNC, b"new"))
    attempt(lambda: content(os.O_RDWR | os.O_TRUNC | os.O_APPEND, b"newer"))
    attempt(lambda: content(os.O_RDONLY | os.O_TRUNC))
    attempt(lambda: content(os.O_WRONLY | os.O_CREAT | os.O_EXCL))
    attempt(lambda: content(os.O_RDONLY | os.O_DIRECTORY))
    attempt(lambda: content(os.O_RDONLY, b"not for writing"))
    attempt(lambda: content(os.O_WRONLY | os.O_SYNC, b"sync"))
    attempt(lambda: content(os.O_WRONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_NONBLOCK, b"more"))
    attempt(lambda: os.open(d, os.O_WRONLY))
    os.symlink("a", d / "l")
    attempt(lambda: os.open(d / "l", os.O_RDONLY | os.O_NOFOLLOW))
    attempt(lambda: os.read(os.open(d / "l", os.O_RDONLY), 100))
    attempt(lambda: os.open(d / "none", os.O_RDONLY))
    attempt(lambda: os.truncate(d / "a", -1))
    attempt(lambda: os.truncate(d, 0))
    return results


def _sparse(d: Path) -> object:
    with open(d / "s", "w+b") as stream:
        stream.truncate(1 << 40)
        stream.seek(1 << 39)
        stream.write(b"middle")
        stream.flush()
        middle = os.pread(stream.fileno(), 10, (1 << 39) - 2)
        end = os.pread(stream.fileno(), 10, (1 << 40) - 3)
        size = os.fstat(stream.fileno()).st_size
        stream.truncate(1 << 39)
        after = os.stat(d / "s").st_size
    return middle, end, size, after, os.stat(d / "s").st_blocks < 1000


def _file_too_large(d: Path) -> object:
    fd = os.open(d / "s", os.O_CREAT | os.O_RDWR)
    try:
        os.ftruncate(fd, (1 << 63) - 1)
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    finally:
        os.close(fd)
    return None


def _holes(d: Path) -> object:
    """SEEK_HOLE is answered by the kernel without us: the file is one piece of data, then a hole."""
    (d / "s").write_bytes(b"x" * 10_000)
    with open(d / "s", "rb") as stream:
        return os.lseek(stream.fileno(), 0, os.SEEK_DATA), os.lseek(stream.fileno(), 0, os.SEEK_HOLE)


def _sendfile(d: Path) -> object:
    (d / "s").write_bytes(b"0123456789" * 50_000)
    with open(d / "s", "rb") as source, open(d / "t", "wb") as target:
        while os.sendfile(target.fileno(), source.fileno(), None, 1 << 20):
            pass
    return (d / "t").read_bytes() == (d / "s").read_bytes()


def _copy_file_range(d: Path) -> object:
    (d / "s").write_bytes(b"0123456789" * 50_000)
    with open(d / "s", "rb") as source, open(d / "t", "wb") as target:
        while os.copy_file_range(source.fileno(), target.fileno(), 1 << 20):
            pass
    return (d / "t").read_bytes() == (d / "s").read_bytes()


def _posix_fallocate(d: Path) -> object:
    """Emulated by glibc where the file system has no fallocate; the bytes written stay."""
    with open(d / "s", "w+b") as stream:
        stream.write(b"head")
        stream.flush()
        os.posix_fallocate(stream.fileno(), 0, 100_000)
        return os.fstat(stream.fileno()).st_size, os.pread(stream.fileno(), 6, 0)


def _direct(d: Path) -> object:
    fd = os.open(d / "s", os.O_CREAT | os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, 8192)  # aligned
    buffer[:] = b"d" * 8192
    os.pwrite(fd, buffer, 4096)
    other = mmap.mmap(-1, 8192)
    count = os.preadv(fd, [other], 4096)
    os.close(fd)
    return count, other[:] == b"d" * 8192, (d / "s").read_bytes() == bytes(4096) + b"d" * 8192


def _locks(d: Path) -> object:
    """flock, POSIX and OFD locks between two processes."""
    (d / "s").write_bytes(b"x")
    results = []
    ofd_setlk = 37
    record = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
    attempts = {
        "flock": "fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "lockf": "fcntl.lockf(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)",
        "ofd": f"fcntl.fcntl(fd, {ofd_setlk}, {record!r})",
    }
    for kind, attempt in attempts.items():
        code = f"import fcntl,os,sys\nfd = os.open(sys.argv[1], os.O_RDWR)\ntry: {attempt}\nexcept OSError: sys.exit(7)"
        fd = os.open(d / "s", os.O_RDWR)
        exec(attempt, {"fcntl": fcntl, "fd": fd})
        held = subprocess.run([sys.executable, "-c", code, d / "s"], check=False).returncode
        os.close(fd)
        free = subprocess.run([sys.executable, "-c", code, d / "s"], check=False).returncode
        results.append((kind, held, free))
    return results


def _suid_goes_when_written(d: Path) -> object:
    """Seen by root, who keeps the bits; the same for an ordinary user is in test_posix_users.py."""
    (d / "s").write_bytes(b"x")
    os.chmod(d / "s", 0o6755)
    with open(d / "s", "ab") as stream:
        stream.write(b"y")
    return stat.filemode(os.stat(d / "s").st_mode)


def _chown_takes_suid(d: Path) -> object:
    (d / "s").write_bytes(b"x")
    os.chmod(d / "s", 0o6755)
    os.chown(d / "s", 12, 34)
    return stat.filemode(os.stat(d / "s").st_mode)


def _executed_file_is_busy(d: Path) -> object:
    (d / "s").write_bytes(Path("/bin/sleep").read_bytes())
    os.chmod(d / "s", 0o755)
    with subprocess.Popen([d / "s", "100"]) as running:
        try:
            os.close(os.open(d / "s", os.O_WRONLY))
            result = "opened"
        except OSError as error:
            result = errno.errorcode[error.errno or 0]
        running.kill()
    return result


OPERATIONS = [value for name, value in sorted(globals().items()) if name.startswith("_") and callable(value)]
OPERATIONS.remove(_write_mapped)
OPERATIONS = [work for work in OPERATIONS if getattr(work, "__module__", None) == __name__]


@pytest.mark.parametrize("work", OPERATIONS, ids=lambda work: work.__name__.strip("_"))
def test_content_ends_as_on_a_plain_directory(
    work: Callable[[Path], object], plain_mount: PlainMount, tmp_path: Path
) -> None:
    (tmp_path / "plain").mkdir()
    assert work(plain_mount.path) == work(tmp_path / "plain")


@pytest.mark.parametrize("options", MODES[1:], ids=mode_name)
def test_content_ends_as_on_a_plain_directory_in_other_modes(
    options: tuple[str, ...], new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    mount = new_plain_mount(*options)
    for work in OPERATIONS:
        for top in (mount.path, tmp_path):
            (top / work.__name__).mkdir()
        assert work(mount.path / work.__name__) == work(tmp_path / work.__name__), work.__name__


def test_fallocate_is_refused_and_programs_fall_back(plain_mount: PlainMount) -> None:
    """Documented: pyfuse3 can't pass fallocate on. (posix_fallocate works, see above.)"""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(plain_mount.path / "a", "wb") as stream:
        assert libc.fallocate(stream.fileno(), 0, ctypes.c_long(0), ctypes.c_long(4096)) == -1
        assert ctypes.get_errno() == errno.EOPNOTSUPP


def test_fsync_reaches_the_local_file_with_all_data(any_mount: PlainMount) -> None:
    with open(any_mount.path / "a", "wb", buffering=0) as stream:
        stream.write(b"x" * 10_000)
        requests = any_mount.requests_during(lambda: os.fsync(stream.fileno()))
        assert requests["fsync"] == 1
        assert (any_mount.plain / "a").read_bytes() == b"x" * 10_000
    fd = os.open(any_mount.path, os.O_RDONLY)
    assert any_mount.requests_during(lambda: os.fsync(fd)) == {"fsyncdir": 1}
    os.close(fd)


def test_o_sync_makes_every_write_a_synced_one(any_mount: PlainMount) -> None:
    fd = os.open(any_mount.path / "a", os.O_WRONLY | os.O_CREAT | os.O_SYNC)
    requests = any_mount.requests_during(lambda: [os.write(fd, b"x") for _ in range(3)])
    assert requests["fsync"] == 3
    assert (any_mount.plain / "a").read_bytes() == b"xxx"
    os.close(fd)


def test_warm_reads_and_reopened_files_are_the_kernels(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").write_bytes(os.urandom(300_000))
    (plain_mount.path / "a").read_bytes()
    requests = plain_mount.requests_during((plain_mount.path / "a").read_bytes)
    # With the write-back cache the kernel asks for the number of blocks after each close (Linux fuse_flush), and
    # Python's open() for the size: one getattr.
    assert requests == {"open": 1, "getattr": 1, "flush": 1, "release": 1}


def test_requests_carry_a_mebibyte(plain_mount: PlainMount) -> None:
    fd = os.open(plain_mount.path / "a", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    buffer = mmap.mmap(-1, 4 << 20)
    assert plain_mount.requests_during(lambda: os.pwrite(fd, buffer, 0))["write"] == 4
    assert plain_mount.requests_during(lambda: os.preadv(fd, [buffer], 0))["read"] == 4
    os.close(fd)


def test_a_big_file_that_is_not_in_memory_is_read_whole(plain_mount: PlainMount) -> None:
    content = os.urandom(20 << 20)
    (plain_mount.path / "a").write_bytes(content)
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")
    assert (plain_mount.path / "a").read_bytes() == content


def test_many_files_open_at_once(plain_mount: PlainMount) -> None:
    handles = [os.open(plain_mount.path / str(n), os.O_CREAT | os.O_RDWR) for n in range(900)]
    assert plain_mount.counters()["handles"] == 900
    for fd in handles:
        os.write(fd, b"%d" % fd)
    for fd in handles:
        assert os.pread(fd, 10, 0) == b"%d" % fd
        os.close(fd)


def test_a_full_disk_is_reported_and_what_was_there_stays(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        mount = new_plain_mount("write_through", path=small)
        (mount.path / "kept").write_bytes(b"kept")
        with pytest.raises(OSError, match="No space left"):
            (mount.path / "big").write_bytes(bytes(3 << 20))
        assert (mount.path / "kept").read_bytes() == b"kept"
        assert os.statvfs(mount.path).f_blocks == os.statvfs(mount.plain).f_blocks
        mount.close()
    finally:
        subprocess.run(["umount", small], check=True)


def test_a_full_disk_fails_close_or_fsync_with_the_write_back_cache(
    new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    try:
        mount = new_plain_mount(path=small)
        fd = os.open(mount.path / "big", os.O_CREAT | os.O_WRONLY)
        failed = []
        for attempt in (*[lambda: os.write(fd, bytes(1 << 20))] * 3, lambda: os.fsync(fd)):
            try:
                attempt()
            except OSError as error:
                failed.append(error.errno)
        assert failed
        assert set(failed) == {errno.ENOSPC}
        os.close(fd)
        mount.close()
    finally:
        subprocess.run(["umount", small], check=True)
