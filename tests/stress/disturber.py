"""What goes on around a mount while programs work on it: snapshots, outages of its store, damage to its index.

Nothing of it may be noticed by a program on the mount.
"""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path

from tests.support.mountproc import MountProcess

FAILED = "what changed can't be stored now"
"""What the log says of a snapshot that failed, once for each time that it was tried."""

EXPECTED = (
    FAILED,
    r"the index \S+ (is damaged|can't be read)",
    r"the last snapshot failed",
    r"the store does not have the last snapshot any more",
    r"changes since the last snapshot not counted",
    r"a pinned snapshot can't be listed",
)
"""What the log may say meanwhile."""

OUTAGE_SECONDS = (0.5, 4.0)


class Disturber(threading.Thread):
    """Does one thing after another, at random, until `stop`. The mount's store is in a file system of its own.

    `counts` says how often what was done, and `failures` holds what went wrong without an outage to blame for it.
    """

    def __init__(self, mount: MountProcess, store_disk: Path, rng: random.Random) -> None:
        super().__init__(name="disturber")
        self.mount, self.disk, self.rng = mount, store_disk, rng
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._ended = threading.Event()
        self.actions: list[Callable[[], None]] = [
            self.sync,
            self.sync,
            self.look,
            self.compare,
            self.memory_pressure,
            self.damage_index,
            self.store_gone,
            self.store_full,
        ]

    def run(self) -> None:
        """Each kind of disturbance once, in any order, and again and again."""
        while not self._ended.is_set():
            for action in self.rng.sample(self.actions, len(self.actions)):
                if self._ended.is_set():
                    return
                try:
                    action()
                except Exception as exc:  # a test that waits for its load must not miss this
                    self.failures.append(f"{action.__name__}: {exc!r}")
                self._ended.wait(self.rng.uniform(0.1, 1.0))

    def has_done_everything(self) -> bool:
        """Whether each kind of disturbance has happened."""
        return len(self.counts) >= len(set(self.actions)) - (os.geteuid() != 0)

    def stop(self) -> None:
        """End, with the store in its place and room in it."""
        self._ended.set()
        self.join()

    def _ask(self, *args: str | Path) -> str:
        done = self.mount.ipfsfs(*args, check=False, timeout=300)
        if done.returncode not in (0, 1 if args[0] == "diff" else 0):
            self.failures.append(f"ipfsfs {' '.join(map(str, args))}: exit {done.returncode}: {done.stderr}")
        return done.stdout

    def sync(self) -> None:
        self._ask("sync", self.mount.path)
        self.counts["snapshots asked for"] += 1

    def look(self) -> None:
        self._ask("status", self.mount.path)
        self._ask("log", self.mount.path)
        self.counts["status and log"] += 1

    def compare(self) -> None:
        snapshots = re.findall(r"^bafy\w+", self._ask("log", "-n", "5", self.mount.path), re.MULTILINE)
        if snapshots:
            self._ask("diff", snapshots[-1], "--mount", self.mount.path)
            self.counts["diffs"] += 1

    def memory_pressure(self) -> None:
        if os.geteuid() == 0:
            Path("/proc/sys/vm/drop_caches").write_text("3")
            self.counts["caches dropped"] += 1

    def damage_index(self) -> None:
        """Overwrite all of the index but its first page, and make the daemon read it again."""
        path = self.mount.state / "index.sqlite"
        with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=5, isolation_level=None)) as db:
            db.execute("INSERT OR REPLACE INTO about VALUES ('disturbed', ?)", (str(time.time_ns()),))
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            page = db.execute("PRAGMA page_size").fetchone()[0]
            with open(path, "r+b") as stream:
                stream.seek(page)
                stream.write(self.rng.randbytes(max(0, path.stat().st_size - page)))
            self.counts["indexes damaged"] += 1

    def store_gone(self) -> None:
        """Move the store's directory away, and back when a snapshot has failed for it, or none tried in a minute."""
        away = self.mount.store.with_name("store.away")
        before = self.mount.log_text().count(FAILED)
        os.rename(self.mount.store, away)
        try:
            self._ended.wait(self.rng.uniform(*OUTAGE_SECONDS))
            give_up = time.monotonic() + 60
            while self.mount.log_text().count(FAILED) == before and time.monotonic() < give_up:
                if self._ended.wait(0.2):
                    break
        finally:
            if self.mount.store.exists():
                self.failures.append(f"a store was made while it was away: {os.listdir(self.mount.store)}")
                shutil.rmtree(self.mount.store)
            os.rename(away, self.mount.store)
        self.counts["store gone"] += 1

    def store_full(self) -> None:
        """Fill the disk that the store is on."""
        ballast = self.disk / "ballast"
        with open(ballast, "wb", buffering=0) as out:
            size = 1 << 24
            while size >= 4096:
                try:
                    os.posix_fallocate(out.fileno(), out.tell(), size)
                    out.seek(size, os.SEEK_CUR)
                except OSError as exc:
                    if exc.errno != errno.ENOSPC:
                        raise
                    size //= 2
        try:
            self._ended.wait(self.rng.uniform(*OUTAGE_SECONDS))
        finally:
            ballast.unlink()
        self.counts["store full"] += 1


def mount_small_disk(directory: Path, size: str) -> None:
    """A disk of its own for a store, in memory. Root's business."""
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "ipfsfs-test", directory], check=True)
