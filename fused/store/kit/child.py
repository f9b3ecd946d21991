"""Our end of the child process that runs ipfs_kit_py (`worker.py`). Blocking; for use from any thread.

The child is started when it is first needed, and again after it has died or hung. Its memory, its hangs and whatever it
prints are not ours: the lines of its standard error come into our log at debug level.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from fused.errors import StoreUnavailable
from fused.store.kit.package import refusal

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.store.kit.package import Package

_WORKER = Path(__file__).with_name("worker.py")
_START_S = 60.0  # about a second on a busy machine; the interpreter may come from a slow disk
_GRACE_S = 5.0  # for a child whose command has reached its deadline to say so
_POLL_S = 0.05  # between two looks at whether we were interrupted

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """How a command ended. `error` is None if it ended well."""

    stdout: str
    stderr: str
    error: str | None


class TimedOut(StoreUnavailable):
    """A command, or the child itself, took too long."""


class Child:
    """See the module. `run` while it is open; `close` ends the process."""

    def __init__(self, package: Package, ipfs_path: str) -> None:
        """Nothing is started yet."""
        self._package = package
        self._ipfs_path = ipfs_path
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._closed = False

    def run(self, args: list[str], timeout_s: float, check: Callable[[], None]) -> Answer:
        """Let ipfs_kit_py run `ipfs ARGS`. `check` is called now and then and may raise: the command goes on then.

        Raises StoreUnavailable if there is no answer in time, or one that makes no sense; a command that fails is an
        answer.
        """
        running = self._start()
        future = running.ask(args, timeout_s)
        answer = self._wait(running, future, timeout_s + _GRACE_S, check)
        if answer["odd"] is not None:
            raise StoreUnavailable(refusal(self._package, f"it ran no command and answered {answer['odd']}"))
        if answer["timed_out"]:
            raise TimedOut(f"ipfs {verb(args)} did not end within {timeout_s:.0f} s")
        return Answer(answer["stdout"], answer["stderr"], answer["error"])

    def close(self) -> None:
        """End the child and whatever it runs. Idempotent."""
        with self._lock:
            self._closed = True
            running, self._running = self._running, None
        if running is not None:
            running.kill()

    @property
    def pid(self) -> int | None:
        """The child's process id, or None if there is none just now."""
        running = self._running
        return None if running is None else running.pid

    def _start(self) -> _Running:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._running is None or self._running.dead:
                self._running = _Running(self._package, self._ipfs_path)
            running = self._running
        message = self._wait(running, running.ready, _START_S, _never)
        if why := message.get("failed"):
            running.kill()
            raise StoreUnavailable(refusal(self._package, f"its module ipfs can't be imported ({why})"))
        return running

    def _wait(
        self, running: _Running, future: Future[dict[str, Any]], timeout_s: float, check: Callable[[], None]
    ) -> dict[str, Any]:
        left = timeout_s
        while True:
            try:
                return future.result(min(left, _POLL_S))
            except TimeoutError:
                check()
                left -= _POLL_S
                if left <= 0:
                    running.kill()
                    raise TimedOut(f"ipfs_kit_py did not answer within {timeout_s:.0f} s") from None
            except CancelledError:
                raise StoreUnavailable("the process that runs ipfs_kit_py has ended") from None


class _Running:
    """One process. Two threads read what it writes, and end with it."""

    def __init__(self, package: Package, ipfs_path: str) -> None:
        config = {"package": package.directory, "ipfs_path": ipfs_path, "ipfs": package.ipfs}
        self.ready: Future[dict[str, Any]] = Future()
        self._lock = threading.Lock()
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        self._last = 0
        self.dead = False
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-IBu", str(_WORKER), json.dumps(config)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
                env=_environment(),
                process_group=0,
            )
        except OSError as exc:
            raise StoreUnavailable(f"the process for ipfs_kit_py can't be started: {exc.strerror}") from exc
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self.pid = self._process.pid
        self._requests: IO[bytes] = self._process.stdin
        threading.Thread(target=self._read, args=(self._process.stdout,), name="ipfs-kit", daemon=True).start()
        threading.Thread(target=_log_lines, args=(self._process.stderr,), name="ipfs-kit-log", daemon=True).start()

    def ask(self, args: list[str], timeout_s: float) -> Future[dict[str, Any]]:
        """Send a request. The future is cancelled when the process ends before it has answered."""
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self.dead:
                future.cancel()
                return future
            self._last += 1
            self._asked[self._last] = future
            line = json.dumps({"id": self._last, "args": args, "timeout": timeout_s})
            with suppress(OSError):  # it has just died: the reader finds out
                self._requests.write(line.encode() + b"\n")
                self._requests.flush()
        return future

    def kill(self) -> None:
        """End it and the commands that it runs."""
        with self._lock:
            if not self.dead:  # so it has not been waited for, and the number is still its own
                with suppress(ProcessLookupError):
                    os.killpg(self.pid, signal.SIGKILL)
            self.dead = True
        self._process.wait()

    def _read(self, answers: IO[bytes]) -> None:
        try:
            for line in answers:
                message = json.loads(line)
                future = self._asked.pop(message["id"], None) if "id" in message else self.ready
                if future is not None:
                    future.set_result(message)
        except Exception:
            log.exception("the process that runs ipfs_kit_py writes what makes no sense")
            with suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
        finally:
            with self._lock:
                self.dead = True
                left, self._asked = [*self._asked.values(), self.ready], {}
            for future in left:
                future.cancel()
            answers.close()
            with suppress(OSError):
                self._requests.close()
            self._process.wait()


def verb(args: list[str]) -> str:
    """What a command is called, without its options."""
    return " ".join([arg for arg in args if not arg.startswith("-")][:2])


def _environment() -> dict[str, str]:
    """What the child sees of ours: where the user's home is, and no PATH, so that it finds no program to run."""
    kept = ("HOME", "TMPDIR", "SSL_CERT_FILE", "SSL_CERT_DIR")
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return {**environment, "PATH": "/nonexistent", "LC_ALL": "C.UTF-8", "IPFS_TELEMETRY": "off"}


def _log_lines(lines: IO[bytes]) -> None:
    with lines:
        for line in lines:
            log.debug("ipfs_kit_py: %s", line.decode(errors="replace").rstrip())


def _never() -> None:
    """Nobody interrupts."""
