"""Do handlers stall each other? `python bench/stall.py [--size SIZE] [--json FILE] [--at DIRECTORY] [ROW …]`.

A probe asks a mount for small things, some hundred times a second: the stat of a name that the kernel has never
looked up, creating a file of 1 KiB (open, write, close), and open and read of a file it has never seen. It does so
while nothing else goes on (*idle*) and beside something heavy (*loaded*), in turn, and the ratio of the 99th
percentiles is what counts. In the same loop it asks the plain directory beside the mount for the same, so that what
the machine and its disk do to everybody can be told from what the mount does.

    ingest      a large file is hashed and stored
    snapshot    very many small files are scanned, hashed and stored
    write       another process writes a large file through the mount
    slow-write  the same, the covered directory being on a slow disk (slowdisk.py); here each kind is probed by a
                process of its own
    slow-sync   fsync and a copy of a file on that disk, probed likewise
    ext4-write  the same two with the covered directory on an ext4 whose disk is that slow: there is a cache above the
    ext4-sync   slow disk, as nearly everywhere. Root's business: it takes a loop device
    readdir     a directory with very many names is listed, its names stat'ed by the kernel's readdirplus
    remove      a large file is removed
    truncate    a large file is cut to nothing while it is being stored
    statfs      `df` in a loop

Absolute figures depend on the machine and on what else it does; idle and loaded alternate, so that the ratios don't.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

MIB, GIB = 1 << 20, 1 << 30
REPO = Path(__file__).resolve().parents[1]
CODE = "IPFSFS_BENCH_CODE"
"""Names another checkout whose daemon is to be measured, to compare the two."""
KINDS = ("stat", "create", "read")
PLACES = ("mount", "plain")
PAUSE_SECONDS = 0.004
"""The longest pause between two rounds of the probe: it must not be a load itself, nor keep step with anything."""
GATES = ("CI", "IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL")


@dataclass(frozen=True)
class Sizes:
    """How much of everything."""

    big: int
    written: int
    removed: int
    slow: int
    files: int
    probed: int
    idle_seconds: float
    repeats: int


FULL = Sizes(10 * GIB, 4 * GIB, 5 * GIB, 1 * GIB, 100_000, 60_000, 6.0, 3)
MEDIUM = Sizes(1 * GIB, 1 * GIB, 2 * GIB, 512 * MIB, 30_000, 12_000, 3.0, 2)
SMOKE = Sizes(64 * MIB, 64 * MIB, 128 * MIB, 4 * MIB, 1_000, 2_000, 0.5, 1)


# --- the probe --------------------------------------------------------------------------------------------------


class Names:
    """Files that nobody has looked up yet, in directories of some hundred."""

    def __init__(self, count: int) -> None:
        self._paths = (f"d{i // 500:04}/f{i:06}" for i in range(count))

    @staticmethod
    def make(root: Path, count: int) -> None:
        for i in range(count):
            path = root / f"d{i // 500:04}" / f"f{i:06}"
            if i % 500 == 0:
                path.parent.mkdir(parents=True)
            path.write_bytes(b"%06d" % i * 170)

    def next(self) -> str | None:
        return next(self._paths, None)


def timed(act: Callable[[str], object], path: str) -> int:
    begun = time.perf_counter_ns()
    act(path)
    return time.perf_counter_ns() - begun


def _create(path: str) -> None:
    with open(path, "wb", buffering=0) as f:
        f.write(b"x" * 1024)


def _read(path: str) -> None:
    with open(path, "rb", buffering=0) as f:
        f.read()


def probe(pipe: Connection, roots: dict[str, str], count: int, kinds: Sequence[str]) -> None:
    """Runs in a process of its own. Told "go", it probes until told "stop", and sends the times in ns."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    names = Names(count)
    made = 0
    rng = random.Random(1)
    for root in roots.values():
        Path(root, "new").mkdir(exist_ok=True)
    while pipe.recv() == "go":
        times: dict[str, dict[str, list[int]]] = {place: {kind: [] for kind in kinds} for place in roots}
        while not pipe.poll():
            unseen, unread = names.next(), names.next()
            if unread is None:
                break
            made += 1
            for place in rng.sample(list(roots), len(roots)):
                found = times[place]
                if "stat" in kinds:
                    found["stat"].append(timed(os.stat, f"{roots[place]}/{unseen}"))
                if "create" in kinds:
                    found["create"].append(timed(_create, f"{roots[place]}/new/{made}"))
                if "read" in kinds:
                    found["read"].append(timed(_read, f"{roots[place]}/{unread}"))
                time.sleep(rng.uniform(0, PAUSE_SECONDS * len(KINDS) / len(kinds)))
        pipe.recv()
        pipe.send(times)


class Probe:
    """The other end. `apart`: each kind is probed by a process of its own.

    On a slow disk creating a file may take half a second, and there would be hardly any stats if each came after it.
    Else one process asks for all, so that the probes don't wait for each other.
    """

    def __init__(self, roots: dict[str, Path], count: int, *, apart: bool = False) -> None:
        places = {place: str(root) for place, root in roots.items()}
        self._others: list[tuple[Connection, multiprocessing.Process]] = []
        for kinds in [(kind,) for kind in KINDS] if apart else [KINDS]:
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.Process(target=probe, args=(theirs, places, count, kinds), daemon=True)
            process.start()
            self._others.append((ours, process))

    def go(self) -> None:
        for pipe, _ in self._others:
            pipe.send("go")

    def stop(self) -> dict[str, dict[str, list[int]]]:
        for pipe, _ in self._others:
            pipe.send("stop")
        times: dict[str, dict[str, list[int]]] = {}
        for pipe, _ in self._others:
            for place, found in pipe.recv().items():
                times.setdefault(place, {}).update(found)
        return times

    def close(self) -> None:
        for pipe, process in self._others:
            pipe.send("end")
            process.join()


# --- mounts -----------------------------------------------------------------------------------------------------


class Mount:
    """A covered directory, its state and store, and a directory beside it for comparison."""

    def __init__(self, base: Path, covered: Path, reference: Path) -> None:
        self.base, self.path, self.reference = base, covered, reference
        home = base / "home"
        self._environ = {
            k: v for k, v in os.environ.items() if k not in GATES and not k.startswith(("IPFSFS_", "XDG_"))
        }
        self._environ |= {"HOME": str(home), "PYTHONPATH": os.environ.get(CODE, str(REPO))}
        home.mkdir(exist_ok=True)
        self._places = ["--state-dir", str(base / "state"), "--store-dir", str(base / "store")]
        self._log = base / "log"

    def ipfsfs(self, *args: str, check: bool = True) -> str:
        command = [sys.executable, "-m", "fused", *args]
        done = subprocess.run(command, env=self._environ, cwd=self.base, capture_output=True, text=True, check=False)
        if check and done.returncode != 0:
            raise SystemExit(f"{' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    def mount(self) -> None:
        # Nothing is stored unless it is asked for: idle is idle. In the foreground: a session of its own would get its
        # share of the processor apart from the probe's (sched(7), "The autogroup feature").
        waits = ["--quiet-seconds", "36000", "--interval-seconds", "36000"]
        command = [
            sys.executable,
            "-m",
            "fused",
            "mount",
            "--foreground",
            "--require",
            "--force",
            *waits,
            *self._places,
        ]
        with open(self._log, "ab") as log:
            self._daemon = subprocess.Popen([*command, str(self.path)], env=self._environ, cwd=self.base, stderr=log)
        while self.ipfsfs("status", "--json", str(self.path), check=False) == "":
            if self._daemon.poll() is not None:
                raise SystemExit(self._log.read_text())
            time.sleep(0.05)

    def sync(self) -> None:
        self.ipfsfs("sync", str(self.path))

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.ipfsfs("status", "--json", str(self.path)))
        return status

    def umount(self) -> None:
        self.ipfsfs("umount", "--now", str(self.path))
        self._daemon.wait()
        problems = [line for line in self._log.read_text().splitlines() if line.startswith(("WARNING", "ERROR"))]
        if problems:
            print("\n".join(problems[:20]), file=sys.stderr)
        for place in ("state", "store"):
            shutil.rmtree(self.base / place, ignore_errors=True)


@contextmanager
def mounted(mount: Mount) -> Iterator[Mount]:
    mount.mount()
    try:
        yield mount
    finally:
        mount.umount()


@contextmanager
def slow_disk(base: Path, rate: float, sync_seconds: float) -> Iterator[Path]:
    """A directory on a slow disk."""
    below, above = base / "fast", base / "slow"
    below.mkdir()
    above.mkdir()
    command = [sys.executable, str(REPO / "bench/slowdisk.py"), str(below), str(above), str(rate), str(sync_seconds)]
    environ = os.environ | {"PYTHONPATH": str(REPO)}
    process = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != b"ready\n":
            raise SystemExit("the slow disk can't be mounted")
        yield above
    finally:
        subprocess.run(["fusermount3", "-u", "-z", str(above)], check=False)
        process.wait()
        shutil.rmtree(below)
        above.rmdir()


@contextmanager
def slow_ext4(base: Path, rate: float, sync_seconds: float, size: int) -> Iterator[Path]:
    """A directory on an ext4 of so many bytes on a slow disk.

    Where less is free than is still to be written, ext4 allocates blocks during each write, behind its journal, and
    nobody gets anywhere (Linux fs/ext4/inode.c, ext4_nonda_switch): the size must be far above what is written.
    """
    with slow_disk(base, rate, sync_seconds) as slow:
        with open(base / "fast/image", "wb") as image:
            image.truncate(size)
        run = partial(subprocess.run, check=True, stdout=subprocess.DEVNULL)
        run(["mkfs.ext4", "-q", "-F", str(base / "fast/image")])
        disk = base / "ext4"
        disk.mkdir()
        run(["mount", "-o", "loop,noinit_itable", str(slow / "image"), str(disk)])
        try:
            yield disk
        finally:
            run(["umount", str(disk)])
            disk.rmdir()


# --- loads ------------------------------------------------------------------------------------------------------


def write_big(path: Path, size: int, *, sync: bool = False) -> None:
    """Fill a file with megabytes none of which any other has."""
    content = bytearray(os.urandom(MIB))
    with open(path, "wb", buffering=0) as f:
        for _ in range(size // MIB):
            content[:16] = os.urandom(16)
            f.write(content)
        if sync:
            os.fsync(f.fileno())


def in_child(function: Callable[..., object], *args: object) -> None:
    """Run something in another process, so that it does not share this one's interpreter; wait for it."""
    child = multiprocessing.get_context("fork").Process(target=function, args=args)
    child.start()
    child.join()
    if child.exitcode != 0:
        raise SystemExit(f"{function.__name__} failed")


@dataclass
class Row:
    """One kind of load: what to do before each repeat, and the load itself. `apart`: see `Probe`."""

    prepare: Callable[[], None]
    load: Callable[[], None]
    repeats: int
    apart: bool = False


@dataclass
class Window:
    """What one stretch of probing gave."""

    seconds: float
    times: dict[str, dict[str, list[int]]]


@dataclass
class Result:
    """All windows of one row."""

    idle: list[Window] = field(default_factory=list)
    loaded: list[Window] = field(default_factory=list)


def percentile(times: list[int], part: float) -> float:
    """In microseconds."""
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] / 1000 if ordered else 0.0


def measure(row: Row, roots: dict[str, Path], sizes: Sizes) -> Result:
    result = Result()
    tester = Probe(roots, sizes.probed, apart=row.apart)

    def window(act: Callable[[], None]) -> Window:
        tester.go()
        begun = time.monotonic()
        act()
        seconds = time.monotonic() - begun
        return Window(seconds, tester.stop())

    def loaded() -> None:
        failed: list[BaseException] = []

        def run() -> None:
            try:
                row.load()
            except BaseException as exc:
                failed.append(exc)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]

    try:
        for _ in range(row.repeats):
            row.prepare()
            result.idle.append(window(lambda: time.sleep(sizes.idle_seconds)))
            result.loaded.append(window(loaded))
        result.idle.append(window(lambda: time.sleep(sizes.idle_seconds)))
    finally:
        tester.close()
    return result


def summary(result: Result) -> dict[str, Any]:
    """Medians over the windows, by place and kind, and the ratio of loaded to idle."""
    found: dict[str, Any] = {
        "seconds": round(sum(w.seconds for w in result.loaded), 2),
        "windows": len(result.loaded),
    }
    for place in PLACES:
        found[place] = {}
        for kind in KINDS:
            both = {}
            for name, windows in (("idle", result.idle), ("loaded", result.loaded)):
                times = [w.times[place][kind] for w in windows if w.times[place][kind]]
                both[name] = {
                    "samples": sum(map(len, times)),
                    "p50_us": round(statistics.median(percentile(t, 0.5) for t in times), 1) if times else 0.0,
                    "p99_us": round(statistics.median(percentile(t, 0.99) for t in times), 1) if times else 0.0,
                    "max_us": round(max(percentile(t, 1.0) for t in times), 1) if times else 0.0,
                }
            idle, load = both["idle"]["p99_us"], both["loaded"]["p99_us"]
            found[place][kind] = {**both, "ratio": round(load / idle, 4) if idle else 0.0}
    return found


# --- rows -------------------------------------------------------------------------------------------------------


def make_many(directory: Path, count: int) -> None:
    directory.mkdir()
    for i in range(count):
        (directory / f"{i:06}").write_bytes(b"%09d" % i * 100)


class Bench:
    """The rows; each measures on a mount of its own."""

    def __init__(self, base: Path, sizes: Sizes) -> None:
        self.base, self.sizes = base, sizes
        self.covered, self.reference = base / "covered", base / "reference"
        for root in (self.covered, self.reference):
            root.mkdir()
            Names.make(root, sizes.probed)
        self.mount = Mount(base, self.covered, self.reference)
        self.roots = {"mount": self.covered, "plain": self.reference}

    def run(self, name: str) -> dict[str, Any]:
        measured: Result = getattr(self, name.replace("-", "_"))()
        for root in (self.covered, self.reference):
            shutil.rmtree(root / "new", ignore_errors=True)
        return summary(measured)

    def ingest(self) -> Result:
        big = self.covered / "big"
        with mounted(self.mount) as mount:
            mount.sync()

            def prepare() -> None:
                in_child(write_big, big, self.sizes.big)

            result = measure(
                Row(prepare, mount.sync, 1 if self.sizes.big > 2 * GIB else self.sizes.repeats), self.roots, self.sizes
            )
            big.unlink()
        return result

    def snapshot(self) -> Result:
        many = self.covered / "many"
        make_many(many, self.sizes.files)
        try:
            with mounted(self.mount) as mount:
                total = Result()
                # The first window runs beside the scan that a mount begins with; so it has to be measured first.
                tester = Probe(self.roots, self.sizes.probed)
                tester.go()
                begun = time.monotonic()
                mount.sync()
                total.loaded.append(Window(time.monotonic() - begun, tester.stop()))
                tester.go()
                time.sleep(self.sizes.idle_seconds)
                total.idle.append(Window(self.sizes.idle_seconds, tester.stop()))
                tester.close()
        finally:
            shutil.rmtree(many)
        return total

    def write(self) -> Result:
        out = self.covered / "out"
        with mounted(self.mount) as mount:
            mount.sync()
            load = Row(lambda: None, lambda: in_child(write_big, out, self.sizes.written), self.sizes.repeats)
            result = measure(load, self.roots, self.sizes)
            out.unlink()
        return result

    def _slow(self, make: Callable[[Path], Row], *, ext4: bool) -> Result:
        at = slow_ext4(self.base, 40e6, 0.5, 64 * GIB) if ext4 else slow_disk(self.base, 40e6, 0.5)
        with at as disk:
            covered, reference = disk / "covered", disk / "reference"
            sizes = replace(self.sizes, probed=min(self.sizes.probed, 10_000))
            for root in (covered, reference):
                root.mkdir()
                Names.make((root if ext4 else self.base / "fast" / root.name) / "names", sizes.probed)
            base = self.base / "slow-mount"
            base.mkdir()
            try:
                mount = Mount(base, covered, reference)
                with mounted(mount):
                    mount.sync()
                    os.sync()
                    roots = {"mount": covered / "names", "plain": reference / "names"}
                    # One long window: the 99th percentile of a thousand is one of ten, not the largest.
                    return measure(make(covered), roots, sizes)
            finally:
                shutil.rmtree(base)

    def slow_write(self, *, ext4: bool = False) -> Result:
        def make(root: Path) -> Row:
            size = self.sizes.slow * (6 if ext4 else 1)  # more than the cache takes at once
            return Row(lambda: None, lambda: in_child(write_big, root / "out", size), 1, apart=True)

        return self._slow(make, ext4=ext4)

    def slow_sync(self, *, ext4: bool = False) -> Result:
        def make(root: Path) -> Row:
            def sync_and_copy() -> None:
                for _ in range(3):
                    in_child(_write_and_sync, root / "out", self.sizes.slow // 8)
                in_child(shutil.copyfile, root / "out", root / "copy")

            return Row(lambda: None, sync_and_copy, 1, apart=True)

        return self._slow(make, ext4=ext4)

    def ext4_write(self) -> Result:
        return self.slow_write(ext4=True)

    def ext4_sync(self) -> Result:
        return self.slow_sync(ext4=True)

    def readdir(self) -> Result:
        many = self.covered / "many"
        make_many(many, self.sizes.files)
        try:
            with mounted(self.mount) as mount:
                mount.sync()

                def load() -> None:
                    for _ in range(3):
                        in_child(os.listdir, many)

                return measure(Row(lambda: None, load, self.sizes.repeats), self.roots, self.sizes)
        finally:
            shutil.rmtree(many)

    def remove(self) -> Result:
        victim = self.covered / "victim"
        with mounted(self.mount) as mount:
            mount.sync()

            def prepare() -> None:
                in_child(write_big, victim, self.sizes.removed)

            def load() -> None:
                victim.unlink()
                time.sleep(1.0)  # the kernel lets go of it after rm has returned

            return measure(Row(prepare, load, self.sizes.repeats), self.roots, self.sizes)

    def truncate(self) -> Result:
        victim = self.covered / "victim"
        with mounted(self.mount) as mount:
            mount.sync()

            def prepare() -> None:
                in_child(write_big, victim, self.sizes.removed)

            def load() -> None:
                storing = threading.Thread(target=mount.sync)
                storing.start()
                time.sleep(0.5)
                for part in (0.99, 0.5, 0.0):
                    os.truncate(victim, int(part * self.sizes.removed))
                storing.join()

            result = measure(Row(prepare, load, self.sizes.repeats), self.roots, self.sizes)
            victim.unlink()
        return result

    def statfs(self) -> Result:
        with mounted(self.mount) as mount:
            mount.sync()

            def load() -> None:
                end = time.monotonic() + self.sizes.idle_seconds
                while time.monotonic() < end:
                    os.statvfs(self.covered)

            return measure(Row(lambda: None, load, self.sizes.repeats), self.roots, self.sizes)


def _write_and_sync(path: Path, size: int) -> None:
    write_big(path, size, sync=True)


ROWS = (
    "ingest",
    "snapshot",
    "write",
    "slow-write",
    "slow-sync",
    "ext4-write",
    "ext4-sync",
    "readdir",
    "remove",
    "truncate",
    "statfs",
)


def show(name: str, found: dict[str, Any]) -> None:
    for kind in KINDS:
        mount, plain = found["mount"][kind], found["plain"][kind]
        print(
            f"{name:<11} {kind:<7}"
            f" {mount['idle']['p50_us']:>8.0f} {mount['idle']['p99_us']:>8.0f} |"
            f" {mount['loaded']['p50_us']:>8.0f} {mount['loaded']['p99_us']:>8.0f} {mount['loaded']['max_us']:>9.0f}"
            f" {mount['loaded']['samples']:>6} | {mount['ratio']:>6.1f} {plain['ratio']:>6.1f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"of {', '.join(ROWS)}; default: all")
    parser.add_argument("--size", choices=("full", "medium", "smoke"), default="full")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--at", type=Path, default=Path("/var/tmp"), metavar="DIRECTORY", help="which disk is measured")
    options = parser.parse_args()
    rows = options.rows or [row for row in ROWS if os.geteuid() == 0 or not row.startswith("ext4-")]
    if unknown := set(rows) - set(ROWS):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    sizes = {"full": FULL, "medium": MEDIUM, "smoke": SMOKE}[options.size]
    found: dict[str, Any] = {"size": options.size, "rows": {}, "cpus": os.cpu_count(), "load_before": os.getloadavg()}
    base = Path(tempfile.mkdtemp(prefix="ipfsfs-stall-", dir=options.at))
    print("times in us; ratio: p99 loaded to p99 idle, on the mount and on the plain directory beside it")
    print(
        f"{'':<11} {'':<7} {'idle p50':>8} {'p99':>8} | {'load p50':>8} {'p99':>8} {'max':>9} {'n':>6} | ratio  plain"
    )
    try:
        bench = Bench(base, sizes)
        for name in rows:
            found["rows"][name] = bench.run(name)
            show(name, found["rows"][name])
    finally:
        with suppress(OSError):
            shutil.rmtree(base)
    found["load_after"] = os.getloadavg()
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
