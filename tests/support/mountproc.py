"""A real `ipfsfs mount` in a process of its own, over a temporary directory, for tests through the kernel.

The mount runs in another process because a blocking call into it from the thread that serves it would
deadlock, and because pyfuse3 serves one mount a process. Everything that is started here carries a random
token in its environment, and only what carries it is ever ended.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.poll import wait_until

TIME_LIMIT = 280.0
"""Seconds that a test may take with one mount."""

TOKEN = "IPFSFS_TEST_TOKEN"
GATES = ("CI", "IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL")
REPO = Path(__file__).resolve().parents[2]

# With and without a time stamp; and what an interpreter says that dies.
_BAD_LINE = re.compile(r"^(\S+ \S+ )?(WARNING|ERROR|CRITICAL) |^Traceback |^[\w.]*(Error|Exception|Group)\b.*:|^Fatal ")


def mounts_under(directory: Path) -> list[tuple[str, str]]:
    """(mount point, type) of everything mounted at or below `directory`, in the order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_bytes().splitlines():
        left, _, right = line.partition(b" - ")
        point = re.sub(rb"\\([0-7]{3})", lambda m: bytes([int(m[1], 8)]), left.split()[4])
        path = os.fsdecode(point)
        if path == str(directory) or path.startswith(f"{directory}/"):
            found.append((path, right.split()[0].decode()))
    return found


def processes_with(token: str) -> list[int]:
    """Living processes that were started with `token` in their environment."""
    wanted = f"{TOKEN}={token}".encode()
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) != os.getpid():
            try:
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    found.append(int(entry))
            except OSError:
                continue  # gone meanwhile, or a zombie
    return found


def clean_environment(home: Path, **more: str) -> dict[str, str]:
    """Our environment without the gates and settings, and with every place of a user below `home`."""
    environ = {k: v for k, v in os.environ.items() if k not in GATES and not k.startswith(("IPFSFS_", "XDG_"))}
    environ |= {
        "HOME": str(home),
        "XDG_STATE_HOME": str(home / "state"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_RUNTIME_DIR": str(home / "run"),
        "PYTHONPATH": str(REPO),
        "PYTHONWARNINGS": "",
        "PYTHONSAFEPATH": "1",
    }
    return environ | more


class MountProcess:
    """One covered directory with its own state and store, mounted and unmounted as often as a test likes.

    `path` is the mount, `plain` is the covered directory beneath it (reachable also while mounted),
    `state` and `store` are the daemon's directories. `close` ends everything, whatever has happened.
    """

    def __init__(self, base: Path, *, path: Path | None = None, time_limit: float = TIME_LIMIT) -> None:
        base.mkdir(parents=True, exist_ok=True)
        self.base = base
        self.path = path or base / "mnt"
        self.state = base / "state"
        self.store = base / "store"
        self.store_kind: str | None = None
        """What `--store` is given; None: nothing."""
        self.log = base / "daemon.log"
        self.path.mkdir(exist_ok=True)
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        self.plain = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
        self._token = secrets.token_hex(8)
        self.environ = clean_environment(base / "home", **{TOKEN: self._token})
        self._expected: list[re.Pattern[str]] = []
        self._process: subprocess.Popen[bytes] | None = None
        self._flags: tuple[str, ...] = ()
        # A test that hangs in a system call on the mount can't be interrupted; ending the daemon lets it go on.
        self._watchdog = threading.Timer(time_limit, self._time_out)
        self._watchdog.daemon = True
        self._watchdog.start()
        self._timed_out = False

    # --- commands -----------------------------------------------------------------------------------------------

    def ipfsfs(
        self, *args: str | Path, check: bool = True, timeout: float = 120.0, environ: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command of the program and return what it said. With `check`, it must exit with 0."""
        done = subprocess.run(
            [sys.executable, "-m", "fused", *map(str, args)],
            env=self.environ | dict(environ or {}),
            cwd=self.base,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            errors="surrogateescape",
            timeout=timeout,
            check=False,
        )
        if check:
            shown = " ".join(map(str, args))
            assert done.returncode == 0, f"ipfsfs {shown}: exit {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    def sync(self, timeout: float = 120.0) -> str:
        """The CID that `ipfsfs sync` prints; it must print nothing else on stdout."""
        out = self.ipfsfs("sync", self.path, timeout=timeout).stdout
        assert re.fullmatch(r"b[a-z2-7]{40,}\n", out), out
        return out.strip()

    def status(self) -> dict[str, Any]:
        """What `ipfsfs status --json` says."""
        status: dict[str, Any] = json.loads(self.ipfsfs("status", "--json", self.path).stdout)
        return status

    def restore(self, snapshot: str, to: Path, *paths: str) -> Path:
        """Bring `snapshot` back into `to`, which must not exist or be empty. Works unmounted, too."""
        self.ipfsfs("restore", snapshot, *paths, "--to", to, *self.store_flags, timeout=300)
        return to

    @property
    def store_flags(self) -> list[str]:
        """What tells any command which store this mount has."""
        kind = [] if self.store_kind is None else ["--store", self.store_kind]
        return [*kind, "--store-dir", str(self.store)]

    @property
    def pid(self) -> int:
        """The serving daemon's process id."""
        return int(self.status()["pid"])

    # --- life cycle ---------------------------------------------------------------------------------------------

    @property
    def flags(self) -> list[str]:
        """The flags that every mount of this object is made with."""
        return ["--require", "--state-dir", str(self.state), *self.store_flags]

    def start(self, *flags: str, command: Sequence[str] = (sys.executable, "-m", "fused")) -> MountProcess:
        """Mount in the foreground of a child process, and wait until it serves.

        `command` runs the program; a test may put something before it or in its place.
        """
        assert self._process is None, "mounted already"
        self._flags = flags
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                [*command, "mount", "--foreground", *self.flags, *flags, str(self.path)],
                env=self.environ,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self.wait_ready()
        return self

    def wait_ready(self, seconds: float = 20.0) -> None:
        """Wait until the mount is there and its daemon answers."""
        process = self._process
        assert process is not None

        def ready() -> bool:
            assert process.poll() is None, f"ipfsfs mount exited with {process.returncode}\n{self.log_text()}"
            return self.is_mounted() and self.ipfsfs("status", "--json", self.path, check=False).returncode == 0

        wait_until(ready, "mount", seconds)

    def is_mounted(self) -> bool:
        """Whether an ipfsfs mount is on `path`, alive or dead."""
        return (str(self.path), "fuse.ipfsfs") in mounts_under(self.path)

    def stop(self, *flags: str, code: int = 0) -> None:
        """Unmount, and check that the daemon ends with exit code 0 and has not complained.

        `code` is that of `ipfsfs umount`; other than 0 means unmounted, and not all is stored.
        """
        process, self._process = self._process, None
        assert process is not None, "not mounted"
        try:
            said = self.ipfsfs("umount", *flags, self.path, check=False)
            assert said.returncode == code, f"ipfsfs umount: exit {said.returncode}\n{said.stdout}{said.stderr}"
            ended = process.wait(timeout=30)
        except BaseException:
            self._process = process  # for close()
            raise
        assert ended == 0, f"ipfsfs mount exited with {ended}\n{self.log_text()}"
        assert not mounts_under(self.path), mounts_under(self.path)
        self.check_log()

    def restart(self, *flags: str) -> None:
        """Unmount and mount again, with the same flags if none are given."""
        self.stop()
        self.start(*(flags or self._flags))

    def kill9(self) -> None:
        """Kill the daemon; the dead mount stays. Commands that talk to it go on, and see it die."""
        assert self._process is not None, "not mounted"
        self._process.kill()
        self._process.wait(timeout=10)
        self._process = None

    def detach(self) -> None:
        """Take dead mounts away, so that the plain directory shows."""
        for point, kind in reversed(mounts_under(self.path)):
            if kind == "fuse.ipfsfs":
                command = ["umount", "--lazy"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
                subprocess.run([*command, point], check=False, capture_output=True)

    def close(self) -> None:
        """Unmount if needed, end everything that was started, and fail if anything had to be forced."""
        self._watchdog.cancel()
        problem = None
        try:
            if self._process is not None and not self._timed_out:
                self.stop()
            elif self.is_mounted():  # in the background, by a test that has failed
                self.ipfsfs("umount", "--now", self.path, check=False)
        except (AssertionError, subprocess.SubprocessError, OSError) as exc:
            problem = exc
        finally:
            left = self._wait_for_the_end()
            self._kill_all()
            self.detach()
            if self._process is not None:
                self._process.wait(timeout=10)
            os.close(self._fd)
        assert not self._timed_out, f"the test took too long and its daemon was killed\n{self.log_text()}"
        if problem is not None:
            raise AssertionError(f"unmounting failed: {problem}\n{self.log_text()}") from problem
        assert not left, f"processes {left} were left behind"
        assert not mounts_under(self.path)
        self.check_log()

    def _wait_for_the_end(self) -> list[int]:
        """The processes started here that do not end by themselves within a moment."""
        with suppress(AssertionError):
            wait_until(lambda: not self._alive(), "end", 5.0)
        return self._alive()

    def _alive(self) -> list[int]:
        return [pid for pid in processes_with(self._token) if not _is_zombie(pid)]

    def _time_out(self) -> None:
        self._timed_out = True
        self._kill_all()

    def _kill_all(self) -> None:
        def gone() -> bool:
            alive = self._alive()
            for pid in alive:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return not alive

        wait_until(gone, "end of the processes started here", 20)

    # --- the log ------------------------------------------------------------------------------------------------

    def log_text(self) -> str:
        """Everything that the daemons have logged so far."""
        texts = [p.read_text(errors="replace") for p in (self.log, self.state / "log") if p.exists()]
        return "".join(texts)

    def expect_log(self, *patterns: str) -> None:
        """Declare that warnings or errors matching any of `patterns` belong to this test."""
        self._expected += [re.compile(pattern) for pattern in patterns]

    def check_log(self) -> None:
        """Fail if there is a warning, an error or a traceback that the test has not declared."""
        bad = [line for line in self.log_text().splitlines() if _BAD_LINE.search(line) and not self._is_expected(line)]
        assert not bad, "undeclared in the log:\n" + "\n".join(bad) + "\n--- the whole log ---\n" + self.log_text()

    def _is_expected(self, line: str) -> bool:
        return any(pattern.search(line) for pattern in self._expected)


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def run(
    command: Sequence[str | Path], *, cwd: Path, check: bool = True, timeout: float = 240.0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """Run an unmodified program, with an environment of no user, and fail with all it said if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | {"LC_ALL": "C.UTF-8", "TZ": "UTC"} | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=timeout,
        check=False,
    )
    if check:
        assert done.returncode == 0, f"{command}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done
