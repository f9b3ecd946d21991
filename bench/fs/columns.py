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

from bench.fs.rows import CantError
from fused.control import call
from fused.errors import IpfsfsError
from tests.support.mountproc import GATES, REPO, mounts_under

if TYPE_CHECKING:
    from collections.abc import Callable

CODE = "IPFSFS_BENCH_CODE"
"""Names another checkout whose daemon is to be measured, to compare the two (as in bench/stall.py)."""
PROGRAM = Path(sys.executable).with_name("ipfsfs")
"""What people run."""

_START_S = 30.0
_END_S = 20.0
SETTLE_S = 120.0


def wait(until: Callable[[], bool], what: str, seconds: float, pause: float = 0.02) -> None:
    """Raises CantError if that does not happen in time."""
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            raise CantError(f"{what}: not within {seconds:.0f} s")
        time.sleep(pause)


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
        """Wait until it does nothing by itself; what it will do only when it is told to may be left."""

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
                detach(point)
        if self._process is not None:
            _end(self._process)
            self._process = None
        for point, kind in reversed(mounts_under(self.base)):
            if "fuse" in kind:
                detach(point, "-z")

    # --- for those that are mounted -----------------------------------------------------------------------------------

    def _mount(self, command: list[str | Path], environ: dict[str, str] | None = None) -> float:
        """Start a daemon and wait until it serves. How long it took until the first request was."""
        beneath = os.stat(self.path).st_dev
        begun = time.perf_counter()
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
            return os.stat(self.path).st_dev != beneath  # a request, as soon as it is mounted

        wait(mounted, "it serves", _START_S, 0.0005)
        return time.perf_counter() - begun


def detach(point: str, *flags: str) -> None:
    done = subprocess.run(["fusermount3", "-u", *flags, "--", point], capture_output=True, check=False)
    if done.returncode != 0 and not flags:
        detach(point, "-z")


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


def first_line(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return (done.stdout or done.stderr).strip().partition("\n")[0]


class Ipfsfs(Column):
    """Nothing is stored unless it is asked for: what is measured is the work of the program alone."""

    name = "ipfsfs"
    about = "ipfsfs mount, the write-back cache on, which is the default"
    flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, base: Path) -> None:
        super().__init__(base)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.beneath: Path = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
        self.state = base / "state"
        self.store = base / "store"
        home = base / "home"
        home.mkdir()
        environ = {k: v for k, v in os.environ.items() if k not in GATES and not k.startswith(("IPFSFS_", "XDG_"))}
        environ.pop("PYTHONDONTWRITEBYTECODE", None)  # nobody's installation compiles itself anew at each start
        self.environ = environ | {"HOME": str(home), "PYTHONPATH": os.environ.get(CODE, str(REPO))}

    def start(self) -> None:
        self.serve()
        self.settle()

    def serve(self) -> float:
        """Mount; how many seconds after the command the first request was served."""
        waits = ["--quiet-seconds", "36000", "--interval-seconds", "36000"]
        places = ["--state-dir", str(self.state), "--store", "embedded", "--store-dir", str(self.store)]
        command = ["mount", "--foreground", "--require", "--force", *waits, *places, *self.flags]
        seconds = self._mount([PROGRAM, *command, str(self.path)], self.environ)
        wait(self._answers, "it answers", _START_S)
        return seconds

    def unmount(self) -> None:
        """In order, as `ipfsfs umount` does."""
        self.ipfsfs("umount", str(self.path))
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            return bool(self.status())
        except IpfsfsError:
            return False

    def status(self) -> dict[str, Any]:
        """What `ipfsfs status --json` says."""
        return call(str(self.state), "status", timeout=SETTLE_S)

    def settle(self) -> None:
        self.ipfsfs("sync", str(self.path))
        wait(lambda: self.status()["activity"]["phase"] == "idle", "it is idle", SETTLE_S)
        self.rest()

    def rest(self) -> None:
        counted = None
        while (now := self.requests()) != counted:
            counted = now
            time.sleep(0.02)

    def ipfsfs(self, *args: str) -> str:
        """Run a command of the program. Raises CantError."""
        done = subprocess.run(
            [PROGRAM, *args], env=self.environ, cwd=self.base, capture_output=True, text=True, check=False
        )
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
        os.close(self._fd)
        said = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        for line in [line for line in said if line.startswith(("WARNING", "ERROR", "Traceback"))][:20]:
            print(f"{self.name}: {line}", file=sys.stderr)


class WriteThrough(Ipfsfs):
    """See `Ipfsfs`."""

    name = "write-through"
    about = "ipfsfs mount --write-through"
    flags = ("--write-through",)
