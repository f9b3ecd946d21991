"""A daemon that may open no more files, or use no more memory: programs hear of it, the daemon lives, and recovers."""

from __future__ import annotations

import errno
import os
import random
import resource
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.whole import assert_whole

NewMount = Callable[..., MountProcess]

MIB = 1 << 20
DESCRIPTORS = 320


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


# --- descriptors ------------------------------------------------------------------------------------------------


@pytest.fixture
def few_descriptors(new_mount: NewMount) -> MountProcess:
    """A mount whose daemon may have few files open, over a tree with more directories than that."""
    mount = new_mount()
    for number in range(400):
        (mount.path / f"dir{number}" / "sub").mkdir(parents=True)
        (mount.path / f"dir{number}" / "sub" / "file").write_bytes(b"%d" % number)
    return mount.start(command=["prlimit", f"--nofile={DESCRIPTORS}", sys.executable, "-m", "fused"])


def open_as_many_as_can_be(mount: MountProcess, most: int = 500, *, first: int = 0) -> tuple[list[int], int]:
    """Open new files until that fails: their descriptors, and the errno."""
    fds: list[int] = []
    for number in range(first, most):
        try:
            fds.append(os.open(mount.path / f"many{number}", os.O_CREAT | os.O_EXCL | os.O_RDWR))
        except OSError as exc:
            return fds, exc.errno or 0
    return fds, 0


def errno_when_full(mount: MountProcess, fds: list[int], attempt: Callable[[], object]) -> int:
    """What `attempt` fails with while no more files can be open; `fds` are those that are, and grow.

    A snapshot that ends in between makes room, so it may take some tries.
    """
    for _ in range(50):
        fds += open_as_many_as_can_be(mount, first=len(fds))[0]
        try:
            attempt()
        except OSError as exc:
            return exc.errno or 0
    return 0


def test_programs_that_open_too_many_files_hear_so_and_nothing_else_stops(
    few_descriptors: MountProcess, tmp_path: Path
) -> None:
    mount = few_descriptors
    for number in range(400):  # cached descriptors of directories are what has to give way
        assert (mount.path / f"dir{number}" / "sub" / "file").read_bytes() == b"%d" % number
    fds, error = open_as_many_as_can_be(mount)
    try:
        assert error == errno.ENFILE
        assert len(fds) > DESCRIPTORS // 2, "cached descriptors were not given back"
        assert not os.path.lexists(mount.path / f"many{len(fds)}"), "refused and made all the same"
        # Names, attributes, what is open, and every command go on.
        os.stat(mount.path / "dir399" / "sub" / "file")
        os.rename(mount.path / "dir7" / "sub" / "file", mount.path / "dir8" / "moved")
        os.unlink(mount.path / "dir9" / "sub" / "file")
        (mount.path / "dir10" / "new").mkdir()
        os.write(fds[0], b"written")
        assert os.pread(fds[0], 100, 0) == b"written"
        for attempt in (lambda: (mount.path / "dir0" / "sub" / "file").read_bytes(), lambda: os.listdir(mount.path)):
            assert errno_when_full(mount, fds, attempt) == errno.ENFILE
        # `sync` opens what is open for writing once more, for which there is no room: it says so.
        assert "Too many open files" in mount.ipfsfs("sync", mount.path, check=False).stderr
        assert mount.status()["state"] == "serving"
    finally:
        for fd in fds:
            os.close(fd)
    assert (mount.path / "many0").read_bytes() == b"written"
    assert len(os.listdir(mount.path)) == 400 + len(fds)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    mount.stop()
    assert_whole(mount)


def test_snapshots_are_taken_while_programs_have_as_many_files_open_as_they_can(
    few_descriptors: MountProcess, tmp_path: Path
) -> None:
    mount = few_descriptors
    mount.sync()
    fds, error = open_as_many_as_can_be(mount)
    try:
        assert error == errno.ENFILE
        for fd in fds:
            os.write(fd, b"x")
        before = mount.status()["snapshot"]["snapshot"]
        wait_until(lambda: mount.status()["snapshot"]["snapshot"] != before, "snapshot", 60)
        assert mount.status()["wrong"] == []
    finally:
        for fd in fds:
            os.close(fd)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))


def test_a_limit_that_falls_while_files_are_open_is_survived(mounted: MountProcess, tmp_path: Path) -> None:
    """Nothing is held back for the daemon then: everything that needs a descriptor fails until there are some."""
    mount = mounted
    mount.expect_log("can't be stored now", "EMFILE", "Too many open files", "control request failed")
    (mount.path / "file").write_bytes(noise(1000))
    fds = [os.open(mount.path / f"many{number}", os.O_CREAT | os.O_RDWR) for number in range(100)]
    pid = mount.pid
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (40, before[1]))
    try:
        with pytest.raises(OSError, match="Too many open files in system"):
            os.open(mount.path / "file", os.O_RDONLY)
        with pytest.raises(OSError, match="Too many open files in system"):
            os.open(mount.path / "new", os.O_CREAT | os.O_WRONLY)
        assert os.stat(mount.path / "file").st_size == 1000
        for fd in fds:
            os.write(fd, b"x")
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)
        for fd in fds:
            os.close(fd)
    assert mount.pid == pid
    assert (mount.path / "file").read_bytes() == noise(1000)
    wait_until(lambda: mount.status()["wrong"] == [], "recovery", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    mount.stop()
    assert_whole(mount)


# --- memory -----------------------------------------------------------------------------------------------------


@contextmanager
def little_memory(pid: int, more: int) -> Iterator[None]:
    """The process may have `more` bytes of address space beyond what it has now."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[0])
    before = resource.prlimit(pid, resource.RLIMIT_AS)
    resource.prlimit(pid, resource.RLIMIT_AS, (pages * resource.getpagesize() + more, before[1]))
    try:
        yield
    finally:
        with suppress(ProcessLookupError):
            resource.prlimit(pid, resource.RLIMIT_AS, before)


def test_without_memory_programs_hear_so_and_what_was_closed_is_there(background: Background, tmp_path: Path) -> None:
    """A handler without memory answers ENOMEM. A request that can't even be taken up ends the daemon, for a moment."""
    mount = background.base
    mount.expect_log(
        "can't be stored now",
        "[Mm]emory",
        "start new thread",
        "control request failed",
        "Traceback",
        "Group",
        r"fused\.supervise: the daemon (was killed|ended)",
        "the last snapshot failed",
        "Unable to",
        "^Fatal ",
    )
    background.mount("--quiet-seconds", "0.2")
    (mount.path / "file").write_bytes(noise(8 * MIB))
    mount.sync()
    refused: dict[int, int] = {}
    closed: list[int] = []
    for turn in range(3):
        with little_memory(mount.pid, turn * MIB):
            for number in range(turn * 20, turn * 20 + 20):
                path = mount.path / f"file{number}"
                try:
                    path.write_bytes(noise(MIB, number))
                    closed.append(number)
                    path.read_bytes()
                    os.listdir(mount.path)
                    fd = os.open(path, os.O_RDWR)
                    try:
                        os.fsync(fd)
                    finally:
                        os.close(fd)
                except OSError as exc:
                    refused[exc.errno or 0] = refused.get(exc.errno or 0, 0) + 1
        wait_until(lambda: background.ipfsfs("status", mount.path, check=False).returncode == 0, "daemon", 30)
    died = {errno.ENOTCONN, errno.ECONNABORTED, errno.EIO}
    assert set(refused) <= {errno.ENOMEM} | (died if background.supervisor().deaths else set())
    assert (mount.path / "file").read_bytes() == noise(8 * MIB)
    for number in closed:
        assert (mount.path / f"file{number}").read_bytes() == noise(MIB, number), number
    wait_until(lambda: not mount.status()["files"]["dirty"], "recovery", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    deaths = background.supervisor().deaths
    background.umount()
    assert_whole(mount)
    print(f"refused={refused} closed={len(closed)} deaths={deaths}")


MEMORY_CGROUP = Path("/sys/fs/cgroup/memory")


@contextmanager
def memory_cgroup(pid: int, more: int) -> Iterator[bool]:
    """Let the kernel kill the process when it takes `more` bytes of memory. False if there is no memory cgroup (v1)."""
    group = MEMORY_CGROUP / f"ipfsfs-test-{secrets.token_hex(6)}"
    try:
        group.mkdir()
    except OSError:
        yield False
        return
    try:
        used = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()
        (group / "memory.limit_in_bytes").write_text(str(used // 4 + more))  # what it has now is charged elsewhere
        (group / "cgroup.procs").write_text(str(pid))
        yield True
    finally:
        for left in (group / "cgroup.procs").read_text().split():
            (MEMORY_CGROUP / "cgroup.procs").write_text(left)
        group.rmdir()


def test_a_daemon_that_is_killed_for_want_of_memory_comes_back_and_keeps_its_promises(
    background: Background, tmp_path: Path
) -> None:
    mount = background.base
    background.mount("--quiet-seconds", "600", "--interval-seconds", "600")
    (mount.path / "stored").write_bytes(noise(MIB, 1))
    stored = mount.sync()
    with open(mount.path / "closed", "wb") as out:
        for number in range(100):
            out.write(noise(MIB, 100 + number))
    mount.expect_log(r"fused\.supervise: the daemon was killed by signal 9 \(SIGKILL\)")
    pid = mount.pid
    with memory_cgroup(pid, 8 * MIB) as limited:
        if limited:
            mount.ipfsfs("sync", mount.path, check=False)  # which takes some 50 MiB
        else:
            subprocess.run(["kill", "-9", str(pid)], check=True)  # which is what the kernel does
        background.wait_until_restarted(pid, 30)
    print(f"cgroup={limited}")
    assert background.supervisor().deaths == 1
    assert (mount.path / "stored").read_bytes() == noise(MIB, 1)
    assert (mount.path / "closed").read_bytes() == b"".join(noise(MIB, 100 + number) for number in range(100))
    assert (mount.restore(stored, tmp_path / "stored") / "stored").read_bytes() == noise(MIB, 1)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    background.umount()
    assert_whole(mount)
