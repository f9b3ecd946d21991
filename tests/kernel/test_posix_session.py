"""The life of a mount: begin, load, idleness, killed programs, busy and lazy unmounting."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fused.errors import MountError
from fused.fs import mounts, session
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from tests.support.plainmount import PlainMount
from tests.support.poll import wait_until


def test_the_mount_is_found_from_any_path_inside(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a" / "b").mkdir(parents=True)
    for path in (plain_mount.path, plain_mount.path / "a" / "b", plain_mount.path / "not" / "there"):
        found = mounts.find_mount(str(path))
        assert found is not None
        assert (found.path, found.filesystem, found.state_dir) == (str(plain_mount.path), "fuse.ipfsfs", "/nowhere")
    assert mounts.find_mount(str(plain_mount.path.parent)) is None
    assert not mounts.is_stale(str(plain_mount.path))


def test_plain_files_are_there_after_unmounting(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").write_text("kept")
    plain_mount.unmount()
    assert (plain_mount.path / "a").read_text() == "kept"
    assert mounts.find_mount(str(plain_mount.path)) is None


def test_data_still_in_the_kernel_is_written_out_by_unmounting(plain_mount: PlainMount) -> None:
    fd = os.open(plain_mount.path / "a", os.O_CREAT | os.O_RDWR)
    os.write(fd, b"x" * 100_000)
    mapping = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import mmap,os,sys\n"
            "fd = os.open(sys.argv[1], os.O_RDWR)\n"
            "m = mmap.mmap(fd, 0)\n"
            "os.close(fd)\n"
            "m[:5] = b'mmaps'\n"
            "print('done', flush=True); sys.stdin.read()\n",
            plain_mount.path / "a",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert mapping.stdout is not None
    assert mapping.stdout.readline() == b"done\n"
    mapping.communicate(b"")
    os.close(fd)
    plain_mount.unmount()
    assert (plain_mount.path / "a").read_bytes() == b"mmaps" + b"x" * 99_995


async def test_unmounting_a_busy_mount_names_who_keeps_it_busy(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").touch()
    command = [sys.executable, "-c", "import sys; f = open(sys.argv[1]); print(flush=True); sys.stdin.read()"]
    program = subprocess.Popen(  # noqa: ASYNC220 - takes no time
        [*command, plain_mount.path / "a"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with program:
        assert program.stdout is not None
        program.stdout.readline()
        with pytest.raises(MountError) as caught:
            await session.unmount(str(plain_mount.path))
        assert plain_mount.mounted()
        program.communicate(b"")
    assert str(caught.value).startswith(f"{plain_mount.path} is busy: in use by python")
    assert str(caught.value).endswith(f" (pid {program.pid}, {plain_mount.path}/a)")
    await session.unmount(str(plain_mount.path))
    assert plain_mount.process.wait(10) == 0


async def test_a_lazily_unmounted_mount_serves_its_open_files_to_the_end(plain_mount: PlainMount) -> None:
    with open(plain_mount.path / "a", "w+") as stream:  # noqa: ASYNC230 - another process answers
        stream.write("before")
        await session.unmount(str(plain_mount.path), lazy=True)
        assert not plain_mount.mounted()
        stream.write(" and after")
        stream.flush()
        os.fsync(stream.fileno())
        stream.seek(0)
        assert stream.read() == "before and after"
        assert plain_mount.process.poll() is None
    assert plain_mount.process.wait(10) == 0
    assert (plain_mount.path / "a").read_text() == "before and after"


async def test_unmounting_what_is_not_mounted_says_so(tmp_path: Path) -> None:
    with pytest.raises(MountError, match="can't be unmounted"):
        await session.unmount(str(tmp_path))


def test_a_killed_daemons_mount_is_stale_and_can_be_detached(plain_mount: PlainMount) -> None:
    (plain_mount.path / "a").write_text("kept")
    os.stat(plain_mount.path)  # from now on the kernel can answer this without the daemon
    plain_mount.process.kill()
    plain_mount.process.wait(10)
    assert mounts.is_stale(str(plain_mount.path))
    found = mounts.find_mount(str(plain_mount.path / "a"))
    assert found is not None
    mounts.detach(found.path)
    assert not mounts.is_stale(str(plain_mount.path))
    assert (plain_mount.path / "a").read_text() == "kept"
    with pytest.raises(MountError, match="can't be unmounted"):
        mounts.detach(found.path)


async def test_a_mount_that_can_not_be_made_is_one_clear_error(tmp_path: Path) -> None:
    fs_fd = os.open(tmp_path, os.O_RDONLY)
    fs = FileSystem(fs_fd, NullChangeSink(), private=True, write_through=False, read_only=False)
    options = session.MountOptions(str(tmp_path / "missing"), mounts.source_name("/x"), False, False, False)
    with pytest.raises(MountError, match=r"missing can't be mounted: .*No such file or directory"):
        await session.serve(fs, options, lambda: None)
    fs.close()
    os.close(fs_fd)


async def test_a_mount_can_be_made_stopped_and_made_again_in_one_process(tmp_path: Path) -> None:
    for round_ in range(2):
        root_fd = os.open(tmp_path, os.O_RDONLY)
        fs = FileSystem(root_fd, NullChangeSink(), private=True, write_through=False, read_only=False)
        options = session.MountOptions(str(tmp_path), mounts.source_name("/x"), False, False, False)
        ready = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.serve, fs, options, ready.set)
            with trio.fail_after(10):
                await ready.wait()
                await trio.run_process(["sh", "-c", f"echo {round_} > {tmp_path}/f"])
                if round_ == 0:
                    await session.unmount(str(tmp_path))
                else:
                    session.stop()
        assert (tmp_path / "f").read_text() == f"{round_}\n"
        assert mounts.find_mount(str(tmp_path)) is None
        os.close(root_fd)


def _work(path: Path, rounds: int) -> None:
    for n in range(rounds):
        (path / "f").write_text(str(n))
        os.rename(path / "f", path / "g")
        assert (path / "g").read_text() == str(n)
        os.unlink(path / "g")


def test_many_programs_are_served_at_once(plain_mount: PlainMount) -> None:
    mount = plain_mount
    threads = []
    errors: list[BaseException] = []

    def work(path: Path) -> None:
        try:
            path.mkdir()
            _work(path, 50)
            with open(path / "synced", "wb") as stream:
                for _ in range(20):
                    stream.write(b"x" * 1000)
                    stream.flush()
                    os.fsync(stream.fileno())
        except BaseException as error:
            errors.append(error)

    for n in range(8):
        threads.append(threading.Thread(target=work, args=(mount.path / f"d{n}",)))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert not errors
    wait_until(lambda: mount.counters()["handles"] == 0, "closed handles")  # the last release comes after close()


def test_an_idle_mount_takes_no_cpu_time(plain_mount: PlainMount) -> None:
    mount = plain_mount
    _work(mount.path, 20)
    time.sleep(0.3)  # the one thing to be measured is what passes while nothing happens
    before = mount.cpu_ticks()
    time.sleep(5)
    assert mount.cpu_ticks() - before == 0


def test_other_tasks_run_while_requests_pour_in(new_plain_mount: Callable[..., PlainMount]) -> None:
    """A task that sleeps a millisecond at a time, as the control socket would, is never starved."""
    mount = new_plain_mount("ticks")
    stop = threading.Event()

    def load() -> None:
        while not stop.is_set():
            _work(mount.path, 10)

    thread = threading.Thread(target=load)
    thread.start()
    try:
        begin, begun = mount.counters()["ticks"], time.monotonic()
        time.sleep(1)
        ticks = mount.counters()["ticks"] - begin
        per_second = ticks / (time.monotonic() - begun)
    finally:
        stop.set()
        thread.join()
    assert per_second > 50


def test_programs_killed_in_the_middle_of_requests_do_no_harm(new_plain_mount: Callable[..., PlainMount]) -> None:
    """A request can be withdrawn between poll and read, when its program dies."""
    mount = new_plain_mount("ticks")
    rng = random.Random(7)
    code = (
        "import os,sys\n"
        "d = sys.argv[1]; n = 0\n"
        "while True:\n"
        "    n += 1\n"
        "    with open(f'{d}/f{n % 7}', 'w') as f: f.write('x')\n"
        "    os.stat(f'{d}/f{n % 7}'); os.unlink(f'{d}/f{n % 7}'); os.listdir(d)\n"
    )
    for n in range(40):
        (mount.path / f"d{n}").mkdir()
        with subprocess.Popen([sys.executable, "-S", "-c", code, mount.path / f"d{n}"]) as program:
            time.sleep(0.03 + rng.random() * 0.02)  # a random moment, not a wait for anything
            program.send_signal(signal.SIGKILL)
        first = mount.counters()["ticks"]
        wait_until(lambda first=first: mount.counters()["ticks"] > first, "sign of life", 5)
    assert (mount.path / "d0").is_dir()
    wait_until(lambda: mount.counters()["handles"] == 0, "closed handles")


def test_writers_are_the_files_open_for_writing(plain_mount: PlainMount) -> None:
    (plain_mount.path / "d").mkdir()
    for name in ("read", "d/write", "gone", "append"):
        (plain_mount.path / name).touch()
    with (
        open(plain_mount.path / "read"),
        open(plain_mount.path / "d/write", "r+"),
        open(plain_mount.path / "gone", "w"),
        open(plain_mount.path / "append", "a"),
    ):
        os.unlink(plain_mount.path / "gone")
        assert plain_mount.counters()["writers"] == ["append", "d/write"]
    wait_until(lambda: plain_mount.counters()["writers"] == [], "closed files")
