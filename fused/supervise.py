"""A mount in the background: a supervisor process that starts the daemon and brings it back when it dies.

    ipfsfs mount ── fork ──> supervisor (own session, no terminal) ── fork ──> daemon, again after each death
        waits on a pipe <──────── relays <─────────────────────── "ready", or a sentence

The supervisor holds the descriptor of the covered directory that was opened before anything was mounted, and
imports no more than it needs. It is forked, not executed anew, which saves starting another interpreter
(30 ms of the 400 that a mount may take). It does not take the daemon with it when it is killed: a mount without a
supervisor is better than none.

While the daemon is dead, the kernel answers ENOTCONN for all that is on the mount. With on_crash `plain` it is
detached at once, so that the plain directory shows; with `error` it stays until the next daemon is about to mount.
"""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import stat
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple, NoReturn

from fused import paths, state
from fused.control import as_error
from fused.errors import IpfsfsError, MountError
from fused.fs import mounts
from fused.gates import store_only_entries
from fused.serve import configure_logging, report_error, serve_as_child

if TYPE_CHECKING:
    from types import FrameType

    from fused.config import Settings

log = logging.getLogger(__name__)

Serve = Callable[["Settings", int, int], int]
"""settings, descriptor of the covered directory, pipe to report to -> exit code. Runs in a forked child."""

DELAYS_S = (0.0, 0.1, 0.3, 1.0, 2.0, 4.0, 8.0)
"""Before each start after a life that was too short; one short life more, and the supervisor gives up."""

_SHORT_S = 0.3
"""A daemon that served for less has not recovered. Longer lives are always worth another start, at once."""

_LOG_MAX = 10 << 20
"""A log longer than this is set aside (one old one is kept) when a mount starts."""


class _Life(NamedTuple):
    """How one daemon ended."""

    code: int
    """Exit code, or the negative number of the signal that killed it."""
    served_s: float | None
    """Since it was ready; None if it never was."""

    def __str__(self) -> str:
        if self.code < 0:
            how = f"was killed by signal {-self.code} ({signal.Signals(-self.code).name})"
        else:
            how = f"ended with code {self.code}"
        return how + (" before it served" if self.served_s is None else "")


class Supervisor:
    """Starts the daemon, and starts it again. One thread, no work between events."""

    def __init__(
        self,
        settings: Settings,
        root_fd: int,
        parent_fd: int,
        serve: Serve = serve_as_child,
        delays_s: Sequence[float] = DELAYS_S,
    ) -> None:
        """`parent_fd` is where the first start is reported to; it is closed after that."""
        self._settings = settings
        self._root_fd = root_fd
        self._parent_fd: int | None = parent_fd
        self._serve = serve
        self._delays_s = delays_s
        self._stopping = False
        self._wakeup_fd = -1
        self._seen = state.Supervision(os.getpid(), None, 0, None, None)

    def run(self) -> int:
        """Supervise until the daemon has ended as it should, was told to, or keeps dying. Returns the exit code."""
        self._wakeup_fd, write_end = os.pipe()
        os.set_blocking(write_end, False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        code = self._supervise()
        if self._seen.gave_up is None:
            state.forget_supervision(self._settings.state_dir)
        return code

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True

    def _supervise(self) -> int:
        settings, short_lives, served_once = self._settings, 0, False
        while True:
            life = self._live(settings)
            if life.code == 0:
                return 0
            if not served_once and life.served_s is None:  # whoever asked for the mount has heard why
                self._tell_parent_of(life)
                return 1
            served_once = True
            self._note_death(life)
            keep = not self._stopping and self._keeps_dead_mount()
            if not keep:
                self._detach()
            if self._stopping:
                return 1
            short_lives = 0 if life.served_s is not None and life.served_s >= _SHORT_S else short_lives + 1
            if short_lives > len(self._delays_s):
                self._give_up(short_lives)
                return 1
            self._pause(self._delays_s[short_lives - 1] if short_lives else 0.0)
            if self._stopping:
                self._detach()
                return 0
            settings = replace(self._settings, replace_stale=keep)

    def _live(self, settings: Settings) -> _Life:
        """Start a daemon and wait for its end, passing on what it reports and what we are told."""
        report_fd, child_fd = os.pipe()
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            os.close(report_fd)
            os.close(self._wakeup_fd)
            if self._parent_fd is not None:
                os.close(self._parent_fd)
            _leave(self._serve(settings, self._root_fd, child_fd))
        os.close(child_fd)
        self._note(daemon_pid=pid)
        pid_fd = os.pidfd_open(pid)
        poll = select.poll()
        for fd in (pid_fd, report_fd, self._wakeup_fd):
            poll.register(fd, select.POLLIN)
        ready_at: float | None = None
        if self._stopping:  # told so while we were forking
            os.kill(pid, signal.SIGTERM)
        while True:
            events = {fd for fd, _ in poll.poll()}
            if report_fd in events:
                line = os.read(report_fd, 65536)
                if b'"ready"' in line:
                    ready_at = time.monotonic()
                if line:
                    self._tell_parent(line)
                else:
                    poll.unregister(report_fd)
            elif self._wakeup_fd in events:
                os.read(self._wakeup_fd, 4096)
                if self._stopping:
                    os.kill(pid, signal.SIGTERM)  # not reaped yet, so the number is still its own
            elif pid_fd in events:
                _, status = os.waitpid(pid, 0)
                os.close(pid_fd)
                os.close(report_fd)
                served_s = None if ready_at is None else time.monotonic() - ready_at
                return _Life(os.waitstatus_to_exitcode(status), served_s)

    def _tell_parent(self, line: bytes) -> None:
        if self._parent_fd is None:
            return
        try:
            os.write(self._parent_fd, line)
        except OSError:
            log.debug("nobody waits for the mount any more")
        os.close(self._parent_fd)
        self._parent_fd = None

    def _tell_parent_of(self, life: _Life) -> None:
        """For a daemon that could not say itself why it did not serve."""
        if self._parent_fd is not None and not self._stopping:
            log.error("the daemon %s", life)
            log_file = self._settings.log_file or os.path.join(self._settings.state_dir, paths.LOG)
            report_error(self._parent_fd, IpfsfsError(f"the daemon {life}; its log is {log_file}"))

    def _keeps_dead_mount(self) -> bool:
        if self._settings.on_crash == "auto":
            return store_only_entries(self._settings.state_dir) > 0
        return self._settings.on_crash == "error"

    def _detach(self) -> None:
        """Take the dead mount away. It is not asked whether it is dead: its daemon has just been reaped."""
        try:
            mounts.detach_mounts_of(self._settings.state_dir, self._settings.mountpoint)
        except MountError as exc:
            log.error("the dead mount could not be detached: %s", exc)

    def _pause(self, seconds: float) -> None:
        if seconds and not self._stopping:
            select.select([self._wakeup_fd], [], [], seconds)

    def _note_death(self, life: _Life) -> None:
        log.warning("the daemon %s; deaths=%d", life, self._seen.deaths + 1)
        when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        self._note(daemon_pid=None, deaths=self._seen.deaths + 1, last_death=f"{when}: {life}")

    def _give_up(self, times: int) -> None:
        shows = "the dead mount stays" if self._keeps_dead_mount() else "the plain directory shows"
        why = f"the daemon died {times} times in a row just after its start, so it is not started again; {shows}"
        log.error("%s", why)
        self._note(gave_up=why)

    def _note(self, **changed: object) -> None:
        self._seen = self._seen._replace(**changed)  # type: ignore[arg-type]  # the names are checked at run time
        state.note_supervision(self._settings.state_dir, self._seen)


def _leave(code: int) -> NoReturn:
    """End a forked process without running what belongs to its parent."""
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def launch(settings: Settings, root_fd: int, lock_fd: int, serve: Serve = serve_as_child) -> int:
    """Start supervisor and daemon in the background; returns the daemon's pid once the mount serves.

    `root_fd` is the covered directory, opened before anything is mounted on it; `lock_fd` the state
    directory's lock. Both stay open in the background and may be closed here. Raises what the daemon reports,
    IpfsfsError, or OSError for the log; nothing is left running then.
    """
    log_fd = _open_log(settings)
    read_end, write_end = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.setsid()
            os.chdir("/")
            _redirect(log_fd, keep={root_fd, lock_fd, write_end})
            configure_logging(settings)
            code = Supervisor(settings, root_fd, write_end, serve).run()
        except BaseException:
            log.exception("the supervisor failed")
        _leave(code)
    os.close(write_end)
    os.close(log_fd)
    try:
        with os.fdopen(read_end, "rb") as reports:
            line = reports.readline()
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    try:
        message = json.loads(line)
    except ValueError:
        message = {}
    if "ready" in message:
        return int(message["ready"])
    os.waitpid(pid, 0)  # so that lock and directory are free when we say so
    error = message.get("error", {"kind": "", "message": "the supervisor ended unexpectedly"})
    raise as_error(str(error["kind"]), str(error["message"]))


def _open_log(settings: Settings) -> int:
    """The log, for appending; a long one is set aside first."""
    name = settings.log_file or os.path.join(settings.state_dir, paths.LOG)
    log_fd = os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    if stat.S_ISREG((st := os.fstat(log_fd)).st_mode) and st.st_size > _LOG_MAX:
        os.close(log_fd)
        os.replace(name, name + ".1")
        return _open_log(settings)
    return log_fd


def _redirect(log_fd: int, keep: set[int]) -> None:
    """Let go of the terminal and of every descriptor that was handed to the command; standard error becomes the log."""
    null_fd = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null_fd, 0)
    os.dup2(log_fd, 1)
    os.dup2(log_fd, 2)
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd > 2 and fd not in keep:
            try:
                os.close(fd)
            except OSError:  # the listing's own
                continue
