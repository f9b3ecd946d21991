"""How each column is mounted. All of them in the foreground of a child of ours, which ends when we do.

A column has a directory `path` that programs work in, and in most cases a directory beneath it with the plain files.
The bench tells it to come to rest (`settle`), so that what one column has left to do does not hit the next.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from bench.fs import passthrough
from bench.fs.rows import CantError
from fused.control import call
from fused.errors import IpfsfsError
from tests.support.kubo import VERSION as KUBO_VERSION
from tests.support.kubo_node import KuboNode
from tests.support.mountproc import GATES, REPO, mounts_under

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = "IPFSFS_BENCH_CODE"
"""Names another checkout whose daemon is to be measured, to compare the two (as in bench/stall.py)."""
_START_S = 30.0
_END_S = 20.0
_SETTLE_S = 120.0


def wait(until: Callable[[], bool], what: str, seconds: float) -> None:
    """Raises CantError if that does not happen in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise CantError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.02)


def plant_files(directory: Path, count: int) -> None:
    """Empty files, with the names that `readdir` rows look for."""
    directory.mkdir()
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    for i in range(count):
        os.close(os.open(f"name-{i:06}", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)


class Column:
    """The directory itself, with nothing mounted; the base of all others."""

    name: ClassVar[str] = "native"
    about: ClassVar[str] = "the directory itself"

    def __init__(self, base: Path) -> None:
        """`base` is a new directory of the column's own, on the disk to be measured."""
        self.base = base
        self.path = base / "mnt"
        self.beneath: Path | None = self.path
        self.path.mkdir(parents=True)
        self._log = base / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Mount it. Raises CantError."""

    def settle(self) -> None:
        """Wait until there is nothing left to be done for what was written before."""

    def rest(self) -> None:
        """Wait for requests that the kernel sends after the program has gone on, as those that let go of inodes."""

    def warm(self, name: str) -> None:
        """Read what lies beneath directory `name`, so that it need not come from the disk."""
        if self.beneath is not None:
            read_all(self.beneath / name)

    def plant(self, name: str, count: int) -> None:
        """Make a directory of so many empty files, as quickly as possible."""
        plant_files((self.beneath or self.path) / name, count)

    def requests(self) -> dict[str, int] | None:
        """Requests that have reached the daemon, by kind; None if nobody counts them."""
        return None

    def pids(self) -> list[int]:
        """The processes that serve it."""
        return [] if self._process is None else [self._process.pid]

    def version(self) -> str:
        """What is measured."""
        return os.uname().release

    def alive(self) -> bool:
        """False when its daemon has ended by itself."""
        return self._process is None or self._process.poll() is None

    def said(self) -> str:
        """The end of what its daemon has written."""
        lines = self._log.read_text(errors="replace").strip().splitlines() if self._log.exists() else []
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Unmount and end everything, whatever has happened. Never raises for a daemon that is gone."""
        for point, kind in reversed(mounts_under(self.base)):
            if "fuse" in kind:
                _unmount(point)
        if self._process is not None:
            _end(self._process)
            self._process = None
        for point, kind in reversed(mounts_under(self.base)):
            if "fuse" in kind:
                _unmount(point, "-z")

    # --- for those that are mounted -----------------------------------------------------------------------------------

    def _mount(self, command: list[str | Path], environ: dict[str, str] | None = None) -> None:
        """Start a daemon and wait until it serves."""
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                # The first word ends it with us. A process group of its own, so that Ctrl-C is ours alone; not a
                # session of its own, which would get its share of the processor apart from ours (sched(7)).
                ["setpriv", "--pdeathsig=TERM", *command],
                cwd=self.base,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
            )
        process = self._process

        def mounted() -> bool:
            if process.poll() is not None:
                raise CantError(f"{command[0]} ended with {process.returncode}: {self.said()}")
            return any(point == str(self.path) for point, _ in mounts_under(self.path))

        wait(mounted, "it serves", _START_S)
        os.listdir(self.path)


def _unmount(point: str, *flags: str) -> None:
    done = subprocess.run(["fusermount3", "-u", *flags, "--", point], capture_output=True, check=False)
    if done.returncode != 0 and not flags:
        _unmount(point, "-z")


def _end(process: subprocess.Popen[bytes]) -> None:
    for number in (None, signal.SIGTERM, signal.SIGKILL):
        if number is not None:
            process.send_signal(number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_END_S if number is not None else 5.0)
            return


def read_all(directory: Path) -> None:
    """Names, attributes and contents."""
    for where, _, names in os.walk(directory):
        for name in names:
            with suppress(OSError), open(f"{where}/{name}", "rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass


def tool(name: str, package: str) -> str:
    """The path of a program. Raises CantError."""
    found = shutil.which(name)
    if found is None:
        raise CantError(f"{name} is not installed (scripts/system-packages bench installs Debian's {package})")
    return found


def _first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


class Ipfsfs(Column):
    """Nothing is stored unless it is asked for: what is measured is the work of the program alone."""

    name = "ipfsfs"
    about = "ipfsfs mount, the write-back cache on, which is the default"
    flags: ClassVar[tuple[str, ...]] = ()

    def start(self) -> None:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self._fd = fd
        self.beneath = Path(f"/proc/{os.getpid()}/fd/{fd}")
        self.state = self.base / "state"
        home = self.base / "home"
        home.mkdir()
        environ = {k: v for k, v in os.environ.items() if k not in GATES and not k.startswith(("IPFSFS_", "XDG_"))}
        self.environ = environ | {"HOME": str(home), "PYTHONPATH": os.environ.get(CODE, str(REPO))}
        waits = ["--quiet-seconds", "36000", "--interval-seconds", "36000"]
        places = ["--state-dir", str(self.state), "--store", "embedded", "--store-dir", str(self.base / "store")]
        serve = ["mount", "--foreground", "--require", "--force", *waits, *places, *self.flags]
        self._mount([sys.executable, "-m", "fused", *serve, str(self.path)], self.environ)
        wait(self._answers, "it answers", _START_S)
        self.settle()

    def _answers(self) -> bool:
        try:
            return bool(self.status())
        except IpfsfsError:
            return False

    def status(self) -> dict[str, Any]:
        """What `ipfsfs status --json` says."""
        return call(str(self.state), "status", timeout=_SETTLE_S)

    def settle(self) -> None:
        self.ipfsfs("sync", str(self.path))
        wait(lambda: self.status()["activity"]["phase"] == "idle", "it is idle", _SETTLE_S)
        self.rest()

    def rest(self) -> None:
        counted = None
        while (now := self.requests()) != counted:
            counted = now
            time.sleep(0.02)

    def ipfsfs(self, *args: str) -> str:
        """Run a command of the program. Raises CantError."""
        command = [sys.executable, "-m", "fused", *args]
        done = subprocess.run(command, env=self.environ, cwd=self.base, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise CantError(f"ipfsfs {args[0]}: {done.stdout}{done.stderr}".strip())
        return done.stdout

    def plant(self, name: str, count: int) -> None:
        """Through the mount, as it is the only way to the files."""
        plant_files(self.path / name, count)

    def requests(self) -> dict[str, int] | None:
        return {kind: found["count"] for kind, found in self.status()["requests"].items()}

    def version(self) -> str:
        return f"ipfsfs {self.status()['version']}" + (f", of {os.environ[CODE]}" if CODE in os.environ else "")

    def close(self) -> None:
        super().close()
        with suppress(AttributeError, OSError):
            os.close(self._fd)


class WriteThrough(Ipfsfs):
    """See `Ipfsfs`."""

    name = "write-through"
    about = "ipfsfs mount --write-through"
    flags = ("--write-through",)


class Over(Column):
    """A mount that shows another directory."""

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self.beneath = self.source = base / "source"
        self.source.mkdir()


class Bindfs(Over):
    """Libfuse's high-level interface in C."""

    name = "bindfs"
    about = "bindfs, as it comes"

    def start(self) -> None:
        self._mount([tool("bindfs", "bindfs"), "-f", self.source, self.path])

    def version(self) -> str:
        return _first_line(tool("bindfs", "bindfs"), "--version")


class PassthroughLL(Over):
    """What can be had in C."""

    name = "passthrough_ll"
    about = "libfuse's example in C, -o writeback,cache=always,timeout=3600"

    def start(self) -> None:
        options = f"source={self.source},writeback,cache=always,timeout=3600"
        self._mount([passthrough.program(), "-f", "-o", options, self.path])

    def version(self) -> str:
        return f"libfuse {passthrough.libfuse_version()}"


class Mergerfs(Over):
    """With everything on that lets the kernel answer."""

    name = "mergerfs"
    about = "mergerfs over one branch, all its caches on"
    options = (
        "cache.files=full,cache.writeback=true,cache.readdir=true,cache.symlinks=true,cache.attr=3600,cache.entry=3600,"
        "cache.negative_entry=3600,cache.open=3600,cache.statfs=3600,security_capability=false,category.create=ff"
    )

    def start(self) -> None:
        self._mount([tool("mergerfs", "mergerfs"), "-f", "-o", self.options, self.source, self.path])

    def version(self) -> str:
        return _first_line(tool("mergerfs", "mergerfs"), "--version")


class Rclone(Over):
    """Over a local directory, so no network is measured."""

    name = "rclone"
    about = "rclone mount of a local directory, --vfs-cache-mode full"

    def start(self) -> None:
        self._cache = self.base / "cache"
        flags = ["--vfs-cache-mode", "full", f"--cache-dir={self._cache}", f"--config={self.base / 'rclone.conf'}"]
        self._mount([tool("rclone", "rclone"), "mount", self.source, self.path, *flags])

    def settle(self) -> None:
        """It uploads what was closed five seconds before."""
        wait(lambda: not any(_is_dirty(file) for file in self._cache.glob("vfsMeta/**/*")), "uploaded", _SETTLE_S)

    def warm(self, name: str) -> None:
        super().warm(name)
        read_all(self._cache)

    def plant(self, name: str, count: int) -> None:
        """And let it forget what it knows of the directory, or it would not look for minutes."""
        super().plant(name, count)
        for pid in self.pids():
            os.kill(pid, signal.SIGHUP)

    def version(self) -> str:
        return _first_line(tool("rclone", "rclone"), "version")


def _is_dirty(file: Path) -> bool:
    try:
        return file.is_file() and b'"Dirty": true' in file.read_bytes()
    except OSError:
        return False  # gone meanwhile


class Kubo(Column):
    """A node on loopback, without peers."""

    name = "kubo"
    about = f"Kubo {KUBO_VERSION}, ipfs mount: its MFS"

    def start(self) -> None:
        self.beneath = None
        self._node = KuboNode(self.base / "node")
        try:
            self._node.start()
            other = [self.base / name for name in ("ipfs", "ipns")]
            for directory in other:
                directory.mkdir()
            self._node.run("mount", "-f", other[0], "-n", other[1], "-m", self.path)
        except AssertionError as error:
            raise CantError(f"the node: {error}") from error

    def settle(self) -> None:
        self._node.run("files", "flush", "/")

    def warm(self, name: str) -> None:
        read_all(self.base / "node")

    def plant(self, name: str, count: int) -> None:
        """Added as a tree and linked into MFS: through the mount it would take many minutes."""
        tree = self.base / "planted"
        plant_files(tree, count)
        cid = self._node.run("add", "-r", "-Q", "--pin=false", tree).decode().strip()
        self._node.run("files", "cp", f"/ipfs/{cid}", f"/{name}")
        shutil.rmtree(tree)

    def pids(self) -> list[int]:
        return [self._node.pid]

    def version(self) -> str:
        return f"Kubo {KUBO_VERSION}"

    def alive(self) -> bool:
        return os.path.exists(f"/proc/{self._node.pid}/exe")

    def close(self) -> None:
        if hasattr(self, "_node"):
            for name in ("mnt", "ipns", "ipfs"):
                _unmount(str(self.base / name), "-z")
            self._node.stop()
        super().close()


COLUMNS: dict[str, type[Column]] = {
    column.name: column for column in (Column, Ipfsfs, WriteThrough, Bindfs, PassthroughLL, Mergerfs, Rclone, Kubo)
}
