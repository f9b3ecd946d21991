"""`ipfsfs mount` as a person runs it: in the background, under a supervisor."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

from fused import state
from tests.support.mountproc import MountProcess, mounts_under
from tests.support.poll import wait_until


class Background:
    """A directory that can be mounted in the background; `close` uncovers it whatever has happened."""

    def __init__(self, base: MountProcess) -> None:
        self.base = base
        self.path = base.path
        self.state = base.state
        self.store = base.store
        self.places = ["--state-dir", str(base.state), "--store-dir", str(base.store)]

    def ipfsfs(self, *args: str | Path, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Run a command."""
        return self.base.ipfsfs(*args, check=check, environ=environ)

    def mount(self, *flags: str, check: bool = True, **environ: str) -> subprocess.CompletedProcess[str]:
        """Mount, with state and store of this test's own."""
        return self.ipfsfs("mount", *self.places, *flags, self.path, check=check, **environ)

    def umount(self, *flags: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Unmount."""
        return self.ipfsfs("umount", *flags, "--state-dir", self.state, self.path, check=check)

    def is_mounted(self) -> bool:
        """Whether there is a mount of ours, alive or dead."""
        return self.base.is_mounted()

    def is_plain(self) -> bool:
        """Whether there is no mount, and nobody who would make one again."""
        return not self.is_mounted() and not state.is_locked(str(self.state))

    def supervisor(self) -> state.Supervision:
        """What the supervisor has noted."""
        seen = state.read_supervision(str(self.state))
        assert seen is not None, "there is no supervisor"
        return seen

    def kill_daemon(self) -> int:
        """Kill -9 the daemon, which the test's log check is told to expect; returns the pid that it had."""
        self.base.expect_log(r"fused\.supervise: the daemon was killed by signal 9 \(SIGKILL\)")
        pid = self.base.pid
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_until_restarted(self, old_pid: int, seconds: float = 10.0) -> None:
        """Wait until another daemon serves than the one with `old_pid`."""

        def restarted() -> bool:
            done = self.ipfsfs("status", "--json", self.path, check=False)
            return done.returncode == 0 and self.base.pid != old_pid

        wait_until(restarted, "new daemon", seconds)

    def close(self) -> None:
        """Uncover, and end the supervisor."""
        if not self.is_plain():
            self.umount("--now", check=False)
        for point, _ in reversed(mounts_under(self.base.base)):
            self.ipfsfs("umount", "--now", "--", point, check=False)
