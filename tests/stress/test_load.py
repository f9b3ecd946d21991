"""Many processes at once: all they do ends as on a plain directory, and the daemon keeps nothing of it."""

from __future__ import annotations

import json
import os
import random
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fused.sync.engine import SETTLE_SECONDS
from tests.stress.conftest import Figures
from tests.stress.disturber import EXPECTED, FAILED, Disturber, mount_small_disk
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.profile import HOURS, by_profile

PROGRAM = Path(__file__).with_name("load.py")
PROCESSES = 24
LOAD_SECONDS = by_profile(20, 600)
WARM_UP_SECONDS = by_profile(10, 60)
DISTURBED_SECONDS = by_profile(30, HOURS * 3600)
STORE_SIZE = by_profile("512m", "6g")
GROWTH = by_profile(24, 16) * 1024 * 1024
"""What the daemon's memory may be larger after the load than after the warm-up: Python keeps parts of pages."""


def load(directory: Path, seconds: float, seed: int, *, nice: int = 0) -> dict[str, Any]:
    """Run the load in a new directory on `directory`; its figures. The directory is left as it is in the end."""
    place = directory / f"load-{seed}"
    place.mkdir()
    program = ["nice", "-n", str(nice), sys.executable, PROGRAM]
    command = [*program, place, "--processes", str(PROCESSES), "--seconds", str(seconds)]
    done = subprocess.run(
        [*command, "--seed", str(seed)], capture_output=True, text=True, check=False, timeout=seconds * 3 + 300
    )
    assert done.stdout, f"the load failed:\n{done.stderr}"
    figures: dict[str, Any] = json.loads(done.stdout)
    assert figures["operations"] > PROCESSES * 10
    return figures


def assert_none_unexpected(figures: dict[str, Any], seed: int) -> None:
    assert figures["unexpected"] == 0, f"seed {seed}: {figures['by_kind']}\n" + "\n".join(figures["described"])


def test_every_result_of_the_load_is_expected_on_a_plain_directory(plain: Path, figures: Figures) -> None:
    """If this fails, the load's model is wrong."""
    seed = secrets.randbits(31)
    found = load(plain, 3, seed)
    assert_none_unexpected(found, seed)
    figures.add(
        "load, plain directory", f"{PROCESSES} processes, 3 s", f"{found['operations']:,} operations, 0 unexpected"
    )


class Usage:
    """What the daemon holds when nobody uses its mount and the kernel has forgotten all it may."""

    def __init__(self, mount: MountProcess) -> None:
        mount.sync()
        time.sleep(SETTLE_SECONDS + 1)  # in a quiet moment the daemon gives memory back
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        wait_until(lambda: mount.status()["handles"] == 0, "end of all handles", 60)
        status = mount.status()
        self.resident = int(status["rss_bytes"])
        self.inodes = int(status["inodes"])
        self.descriptors = len(os.listdir(f"/proc/{status['pid']}/fd"))

    def __str__(self) -> str:
        return f"{self.resident / 1048576:.0f} MiB, {self.descriptors} descriptors, {self.inodes} inodes"


def test_a_long_load_leaves_nothing_in_the_daemon(busy_mount: Callable[..., MountProcess], figures: Figures) -> None:
    mount = busy_mount()
    before = None
    operations = 0
    for seconds in (WARM_UP_SECONDS, LOAD_SECONDS):
        seed = secrets.randbits(31)
        figures.say(f"load: {PROCESSES} processes, {seconds:g} s, seed {seed}")
        found = load(mount.path, seconds, seed)
        assert_none_unexpected(found, seed)
        operations += found["operations"]
        assert_same_tree(mount.path, mount.plain)
        shutil.rmtree(mount.path / f"load-{seed}")
        now = Usage(mount)
        if before is None:
            before = now
    figures.add("load", f"{PROCESSES} processes, {LOAD_SECONDS} s", f"{operations:,} operations, 0 unexpected")
    figures.add("load", "daemon before", str(before))
    figures.add("load", "daemon after", str(now))
    assert before is not None
    assert now.descriptors <= before.descriptors + 8  # connections and threads' files that happen to be open
    assert now.inodes <= before.inodes + 8
    assert now.resident <= before.resident + GROWTH


@pytest.fixture
def store_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the store."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk for the store")
    disk = tmp_path / "disk"
    mount_small_disk(disk, STORE_SIZE)
    yield disk
    subprocess.run(["umount", disk], check=True)


def test_no_errno_that_the_plain_directory_would_not_give_whatever_happens_behind_the_mount(
    store_disk: Path, new_mount: Callable[..., MountProcess], figures: Figures
) -> None:
    mount = new_mount(time_limit=6 * 3600)
    mount.store = store_disk / "store"
    mount.expect_log(*EXPECTED)
    mount.start("--quiet-seconds", "0.1", "--interval-seconds", "0.5")
    seed = secrets.randbits(31)
    figures.say(f"load, disturbed: {PROCESSES} processes, {DISTURBED_SECONDS:g} s, seed {seed}")
    begun = time.monotonic()
    disturber = Disturber(mount, store_disk, random.Random(seed))
    disturber.start()
    operations = rounds = 0
    try:
        while (left := DISTURBED_SECONDS - (time.monotonic() - begun)) > 0 or not disturber.has_done_everything():
            # Nicer than the commands of the disturber, each of which would else wait for 24 processes.
            found = load(mount.path, min(max(left, 5), 300), seed + rounds, nice=5)
            assert_none_unexpected(found, seed + rounds)
            shutil.rmtree(mount.path / f"load-{seed + rounds - 1}", ignore_errors=True)
            operations += found["operations"]
            rounds += 1
    finally:
        disturber.stop()
    snapshot = mount.sync(timeout=600)
    time.sleep(3)  # a quiet moment, in which the daemon gives back what it does not need
    status = mount.status()
    rebuilt = mount.log_text().count("it is rebuilt, nothing is lost")
    failed = mount.log_text().count(FAILED)
    restored = mount.restore(snapshot, store_disk.parent / "restored")
    assert_same_tree(mount.plain, restored)
    for what, count in sorted(disturber.counts.items()):
        figures.add("load, disturbed", what, str(count))
    taken = json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)
    figures.add("load, disturbed", "snapshots taken", f"{len(taken):,}")
    figures.add("load, disturbed", "indexes rebuilt", str(rebuilt))
    figures.add("load, disturbed", "snapshots that failed and were tried again", str(failed))
    figures.add("load, disturbed", f"{PROCESSES} processes, {DISTURBED_SECONDS:g} s", f"{operations:,} operations")
    figures.add("load, disturbed", "resident after it", f"{int(status['rss_bytes']) / 1048576:.0f} MiB")
    figures.add("load, disturbed", "errnos that a plain directory would not have given", "0")
    assert not disturber.failures, "\n".join(disturber.failures)
    assert not status["wrong"], status["wrong"]
    assert rebuilt > 0
    assert failed > 0
