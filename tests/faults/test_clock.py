"""A clock that is set back, or ahead, under a daemon and between two of them. Nothing that is stored depends on it.

A library of the tests' own gives the daemon another wall clock than the kernel's, which stamps the files: so their
times lie in the future for the daemon, or far in the past. The monotonic clock stays, as it does when a machine's date
is set. (libfaketime 0.9.10 touches that, too: with it time.sleep in a thread fails with EINVAL.)
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fused.dag.node import links_of
from fused.store.blocking import BlockingStore
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.whole import assert_whole

NewMount = Callable[..., MountProcess]

DAY = 86_400


class Clock:
    """The wall clock of a daemon, as seconds away from the real one. It may be set while the daemon runs."""

    def __init__(self, directory: Path) -> None:
        library = directory / "shifted_clock.so"
        source = Path(__file__).parents[1] / "support" / "shifted_clock.c"
        subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", source, "-o", library], check=True)
        self._file = directory / "clock"
        self._file.write_bytes(bytes(8))
        self._environ = [f"LD_PRELOAD={library}", f"CLOCK_FILE={self._file}"]
        self.command = self.python("-m", "fused")

    def python(self, *words: str) -> list[str]:
        """A command line of Python with this clock."""
        return ["env", *self._environ, sys.executable, *words]

    def set(self, seconds: int) -> None:
        """Set it."""
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", seconds))


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock(tmp_path)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def listed(mount: MountProcess) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)
    return rows


@pytest.mark.parametrize("offsets", [(0, -DAY, 0), (0, DAY, -DAY)])
def test_setting_the_clock_loses_no_change_and_no_order(
    new_mount: NewMount, clock: Clock, tmp_path: Path, offsets: tuple[int, ...]
) -> None:
    mount = new_mount()
    clock.set(offsets[0])
    mount.start("--quiet-seconds", "0.2", command=clock.command)
    (mount.path / "same").write_bytes(b"same")
    taken: list[str] = []
    for step, offset in enumerate(offsets):
        clock.set(offset)
        # The same size, and so soon after the last time that the file system's own clock hardly moved.
        (mount.path / "changes").write_bytes(b"%d" % step)
        taken.append(mount.sync())
        (mount.path / "changes").write_bytes(b"%d" % (step + 5))
        taken.append(mount.sync())
        status = mount.status()
        assert status["snapshot"]["age_seconds"] >= 0
        assert status["wrong"] == []
        assert " ago" in mount.ipfsfs("status", mount.path).stdout
    for number, snapshot in enumerate(taken):
        expected = number // 2 + 5 * (number % 2)
        assert (mount.restore(snapshot, tmp_path / f"{number}") / "changes").read_bytes() == b"%d" % expected
    assert [row["snapshot"] for row in listed(mount) if row["snapshot"] in taken] == taken[::-1]
    mount.stop()
    assert_whole(mount)


@pytest.mark.parametrize("offset", [-DAY, DAY])
def test_files_of_another_time_cost_no_endless_work(new_mount: NewMount, clock: Clock, offset: int) -> None:
    mount = new_mount()
    for number in range(50):
        (mount.path / f"file{number}").write_bytes(b"%d" % number)
    clock.set(offset)
    mount.start("--quiet-seconds", "0.2", command=clock.command)
    mount.sync()
    wait_until(lambda: mount.status()["activity"]["phase"] == "idle", "idle daemon")
    pid = mount.pid
    before, snapshots = cpu_seconds(pid), len(listed(mount))
    done = 0

    def some_time_has_passed() -> bool:
        nonlocal done
        done += 1
        return done > 100  # at 20 ms each

    wait_until(some_time_has_passed, "two seconds")
    assert cpu_seconds(pid) - before < 0.5
    assert len(listed(mount)) == snapshots


@pytest.mark.parametrize("offset", [-DAY, DAY])
def test_a_daemon_of_another_time_finds_what_changed_meanwhile(
    new_mount: NewMount, clock: Clock, tmp_path: Path, offset: int
) -> None:
    mount = new_mount()
    mount.start("--quiet-seconds", "0.2", command=clock.command)
    (mount.path / "changed").write_bytes(b"1")
    (mount.path / "same").write_bytes(b"same")
    first = mount.sync()
    mount.stop()
    (mount.path / "changed").write_bytes(b"2")
    clock.set(offset)
    mount.start("--quiet-seconds", "0.2", command=clock.command)
    (mount.path / "changed").write_bytes(b"3")
    second = mount.sync()
    clock.set(-offset)
    mount.restart()
    third = mount.sync()
    assert [row["snapshot"] for row in listed(mount) if row["snapshot"] in (first, second)] == [second, first]
    assert (mount.restore(second, tmp_path / "second") / "changed").read_bytes() == b"3"
    assert_same_tree(mount.plain, mount.restore(third, tmp_path / "all"))
    mount.stop()
    assert_whole(mount)


def test_gc_spares_what_a_clock_set_ahead_makes_look_old(new_mount: NewMount, clock: Clock, tmp_path: Path) -> None:
    """gc's grace is time in which somebody could have made progress, not what a date says."""
    mount = new_mount()
    mount.start(command=clock.command)
    (mount.path / "file").write_bytes(b"x" * 100_000)
    snapshot = mount.sync()
    script = (
        "import sys, time; from fused.dag.node import links_of; from fused.store.blocking import BlockingStore\n"
        "from fused.store.base import Block; from fused.cid import CID, RAW\n"
        "from fused.dag.seal import plain_seal\n"
        "assert abs(time.time() - float(sys.argv[2])) > 80000\n"
        "store = BlockingStore(sys.argv[1])\n"
        "store.rows.put([Block(*plain_seal(RAW, b'unpinned'))])\n"
        "print(store.gc(links_of))\n"
    )
    for offset in (DAY, -DAY):
        clock.set(offset)
        done = subprocess.run(
            clock.python("-c", script, str(mount.store), str(time.time())),
            capture_output=True,
            text=True,
            env=mount.environ,
            check=False,
        )
        assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    with BlockingStore(mount.store) as store:
        assert store.gc(links_of) == 0
    assert_same_tree(mount.plain, mount.restore(snapshot, tmp_path / "all"))
