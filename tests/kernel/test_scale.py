"""100,000 files: served before they are looked at, in 150 MiB, and no CPU time at all when nothing happens."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until

DIRECTORIES = 250
FILES = 400
IDLE_SECONDS = 60
RSS_LIMIT = 150 * 1024 * 1024


def cpu_ticks(pid: int) -> int:
    """User and system time of all threads of the process, in clock ticks."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


def resident_bytes(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS:")).split()[1]) * 1024


def walk_everything(path: Path) -> int:
    """Stat every file through the kernel, in another process as a user would; returns how many there are."""
    code = (
        "import os, sys\n"
        "count = 0\n"
        "for base, _, names in os.walk(sys.argv[1]):\n"
        "    count += sum(1 for name in names if os.lstat(os.path.join(base, name)).st_size >= 0)\n"
        "print(count)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.parametrize("count", [DIRECTORIES * FILES])
def test_a_hundred_thousand_files_are_served_at_once_small_and_idle(
    new_mount: Callable[..., MountProcess], count: int
) -> None:
    mount = new_mount(time_limit=900)
    for number in range(DIRECTORIES):
        directory = mount.plain / f"dir{number % 10}" / f"sub{number}"
        directory.mkdir(parents=True)
        for name in range(FILES):
            with open(directory / f"file-{name}.json", "wb") as out:
                out.write(b'{"number": %d, "name": %d}' % (number, name))

    os.sync()  # or the daemon's first fsync waits for all these files

    def serve() -> float:
        """Mount in the background; the time from the command's start to the first answer of the mount."""
        if mount.is_mounted():
            mount.ipfsfs("umount", "--now", mount.path)
        start = time.monotonic()
        mount.ipfsfs("mount", *mount.flags, mount.path)
        os.listdir(mount.path / "dir3")
        return time.monotonic() - start

    # How long it takes is printed and not asserted: it depends on what else this machine is doing. That it does not
    # depend on how many files there are shows in what the daemon has seen of them by then.
    unknown = serve()
    seen = mount.status()["scan"]["seen"]
    assert seen < count
    mount.sync(timeout=600)
    known = serve()
    print(f"served after {unknown:.2f} s unknown ({seen} files seen by then), {known:.2f} s known")

    assert walk_everything(mount.path) == count
    wait_until(lambda: not mount.status()["scan"]["running"], "end of the scan", 120, every=0.5)
    mount.sync()
    status = mount.status()
    pid = status["pid"]
    assert status["files"]["stored"] >= count
    assert status["files"]["dirty"] == 0
    resident = resident_bytes(pid)
    print(f"resident={resident / 1048576:.0f} MiB inodes={status['inodes']}")
    assert status["inodes"] >= count
    assert resident < RSS_LIMIT

    def settled() -> bool:
        """Nothing is left of what the sync has started: two looks, a second apart, see the same."""
        before = cpu_ticks(pid)
        time.sleep(1.0)
        return cpu_ticks(pid) == before

    used = []
    while 0 not in used and len(used) < 3:  # the kernel may drop inodes, for whatever else runs here, and tells us so
        wait_until(settled, "idle daemon", 60)
        before = cpu_ticks(pid)
        time.sleep(IDLE_SECONDS)  # the minute that is measured
        used.append(cpu_ticks(pid) - before)
    assert 0 in used, f"clock ticks used in idle minutes: {used}"
    mount.ipfsfs("umount", mount.path)
