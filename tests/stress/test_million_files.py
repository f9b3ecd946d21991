"""A million files: how soon they are served, how long the scan takes, and what memory the daemon needs for them."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from tests.stress.conftest import Figures
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.profile import by_profile

FILES = by_profile(20_000, 1_000_000)
PER_DIRECTORY = 400
RESIDENT_LIMIT = by_profile(150, 1_200) * 1024 * 1024


def make_files(root: Path, count: int) -> None:
    """Small files of different contents, 400 in a directory, the directories in a hundred others."""
    for number in range(0, count, PER_DIRECTORY):
        directory = root / f"dir{number // PER_DIRECTORY % 100}" / f"sub{number}"
        directory.mkdir(parents=True)
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        for name in range(number, min(count, number + PER_DIRECTORY)):
            out = os.open(f"file-{name}.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=fd)
            os.write(out, b'{"name": %d}' % name)
            os.close(out)
        os.close(fd)
    os.sync()  # or the daemon's first fsync waits for all these files


def walk(path: Path) -> int:
    """Look at every file through the kernel, in another process; how many there are."""
    done = subprocess.run(
        ["find", path, "-type", "f", "-size", "-10k", "-printf", "."], capture_output=True, check=True
    )
    return len(done.stdout)


def peak(pid: int) -> int:
    """The most bytes of memory that the process has had (proc(5), VmHWM)."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) * 1024


def mebibytes(size: int) -> str:
    return f"{size / 1048576:,.0f} MiB"


def test_a_million_files_are_served_at_once_and_take_little_memory(
    new_mount: Callable[..., MountProcess], figures: Figures
) -> None:
    mount = new_mount(time_limit=4 * 3600)
    figures.say(f"making {FILES:,} files")
    make_files(mount.plain, FILES)
    suite = f"{FILES:,} files"

    def serve() -> float:
        """Mount; the time from the command's start to the first answer of the mount."""
        start = time.monotonic()
        mount.ipfsfs("mount", *mount.flags, mount.path)
        os.listdir(mount.path / "dir0")
        return time.monotonic() - start

    figures.add(suite, "mount to first answer, not known", f"{serve():.2f} s")
    begun = time.monotonic()
    mount.sync(timeout=4 * 3600)
    status = mount.status()
    assert status["files"]["stored"] == FILES
    figures.add(suite, "scan and store, not known", f"{time.monotonic() - begun:,.0f} s")
    figures.add(suite, "resident after it", mebibytes(status["rss_bytes"]))
    figures.add(suite, "index on disk", mebibytes(sum(p.stat().st_size for p in mount.state.glob("index.sqlite*"))))
    figures.add(suite, "store on disk", mebibytes(status["store"]["disk_bytes"]))
    mount.ipfsfs("umount", mount.path, timeout=600)

    figures.add(suite, "mount to first answer, known", f"{serve():.2f} s")
    begun = time.monotonic()
    mount.sync(timeout=3600)  # it has to wait for the scan, and there is nothing to store
    figures.add(suite, "scan, known", f"{time.monotonic() - begun:,.1f} s")
    figures.add(suite, "resident after it", mebibytes(mount.status()["rss_bytes"]))

    begun = time.monotonic()
    assert walk(mount.path) == FILES
    status = mount.status()
    figures.add(suite, "stat of all through the mount", f"{time.monotonic() - begun:,.0f} s")
    # The kernel may have dropped some by now, if memory was short or somebody told it to.
    inodes = f"{status['inodes']:,} inodes known to the kernel"
    figures.add(suite, "resident after it", f"{mebibytes(status['rss_bytes'])}, {inodes}")
    figures.add(suite, "resident at most", mebibytes(peak(status["pid"])))
    assert peak(status["pid"]) < RESIDENT_LIMIT

    (mount.path / "one-more").write_text("x")
    begun = time.monotonic()
    mount.sync(timeout=600)
    figures.add(suite, "snapshot after one change", f"{time.monotonic() - begun:.2f} s")
    if os.geteuid() == 0:
        Path("/proc/sys/vm/drop_caches").write_text("3")
        wait_until(lambda: mount.status()["inodes"] < FILES / 100, "end of the inode table", 300, every=0.5)
        figures.add(suite, "resident after drop_caches", mebibytes(mount.status()["rss_bytes"]))
    mount.ipfsfs("umount", mount.path, timeout=600)
