"""SIGTERM, SIGINT and SIGKILL at random moments of mounting, scanning, snapshotting and unmounting.

Afterwards: no mount that is stuck, no daemon left behind, plain files as they were closed, and the next mount works and
stores everything.
"""

from __future__ import annotations

import os
import random
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from fused import state
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess, processes_with
from tests.support.poll import wait_until
from tests.support.whole import assert_whole

NewMount = Callable[..., MountProcess]

ROUNDS = 8
SEEDS = {"foreground": 11, "background": 12}
PHASES = ("mounting", "scanning", "snapshotting", "unmounting")


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


class Rounds:
    """One directory, mounted and hit again and again. `written` is what must be in it."""

    def __init__(self, mount: MountProcess, rng: random.Random, *, background: bool) -> None:
        self.mount = mount
        self.rng = rng
        self.background = background
        self.written: dict[str, bytes] = {}
        self.acknowledged: list[str] = []
        mount.expect_log(".*")  # whatever they say when they are killed: what is left counts
        self.command = [
            sys.executable, "-m", "fused", "mount", *mount.flags, "--quiet-seconds", "0.1",
            *([] if background else ["--foreground"]), str(mount.path),
        ]  # fmt: skip
        self.token = mount.environ["IPFSFS_TEST_TOKEN"]

    def write(self, number: int) -> None:
        for n in range(self.rng.randrange(1, 30)):
            name, content = f"file{number}-{n}", noise(self.rng.choice([10, 3000, 200_000]), number * 100 + n)
            try:
                (self.mount.path / name).write_bytes(content)
            except OSError:
                return
            self.written[name] = content

    def start(self) -> subprocess.Popen[bytes]:
        log = open(self.mount.log, "ab")  # noqa: SIM115 - the child has it
        try:
            return subprocess.Popen(
                self.command,
                env=self.mount.environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.mount.base,
                start_new_session=True,
            )
        finally:
            log.close()

    def daemons(self) -> list[int]:
        """Processes of the mount that are running: supervisor, daemon, and the command while it waits for them."""
        found = []
        for pid in processes_with(self.token):
            try:
                words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"mount" in words:
                found.append(pid)
        return found

    def send(self, number: signal.Signals) -> int:
        """Send a signal to all of them. Returns how many they are."""
        pids = self.daemons()
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)
        return len(pids)

    def hit(self, number: int) -> None:
        """Mount, send a signal at a random moment of a random phase."""
        phase = self.rng.choice(PHASES)
        number_of_signal = self.rng.choice([signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
        stale = self.mount.is_mounted()  # of a daemon that was killed; the next one takes it away, if it comes to that
        process = self.start()
        helper: subprocess.Popen[str] | None = None
        try:
            if phase != "mounting":
                wait_until(self.serves, "mount", 60)
                if phase != "scanning":
                    self.write(number)
                    helper = self._command("sync" if phase == "snapshotting" else "umount")
            time.sleep(self.rng.random() * {"mounting": 0.5, "scanning": 0.2}.get(phase, 0.4))  # the random moment
            self.send(number_of_signal)
            if number_of_signal == signal.SIGKILL:
                # Also those that were being forked: a daemon lives on without its supervisor.
                wait_until(lambda: self.send(signal.SIGKILL) == 0, "end of all processes", 60)
            process.wait(60)
            if helper is not None:
                out, _ = helper.communicate(timeout=60)
                if phase == "snapshotting" and helper.returncode == 0:
                    self.acknowledged.append(out.strip())
            self.check_nothing_is_left(number_of_signal == signal.SIGKILL or (stale and phase == "mounting"))
        except BaseException as exc:
            exc.add_note(f"round={number} phase={phase} signal={number_of_signal.name}")
            raise

    def _command(self, name: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "fused", name, str(self.mount.path)],
            env=self.mount.environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            cwd=self.mount.base,
        )

    def serves(self) -> bool:
        done = self.mount.ipfsfs("status", "--json", self.mount.path, check=False)
        return done.returncode == 0

    def check_nothing_is_left(self, mount_may_be: bool) -> None:
        """Where nobody could take the mount away, it is dead, and the next `ipfsfs mount` does that."""
        # One that is on its way out shows no command any more, and still has its files open.
        wait_until(lambda: not self.daemons() and not state.is_locked(str(self.mount.state)), "end of all", 60)
        assert mount_may_be or not self.mount.is_mounted(), "a mount was left behind"

    def check_plain(self) -> None:
        for name, content in self.written.items():
            assert (self.mount.plain / name).read_bytes() == content, name

    def check_next_mount(self, target: Path) -> None:
        """A mount without a signal works, in the place of what is left, and stores everything."""
        self.mount.start("--quiet-seconds", "0.1")
        assert_same_tree(self.mount.plain, self.mount.restore(self.mount.sync(), target))
        for snapshot in self.acknowledged[-2:]:
            assert self.mount.ipfsfs("ls", snapshot, "--store-dir", self.mount.store).stdout
        self.mount.stop()
        assert_whole(self.mount)


@pytest.mark.parametrize("kind", list(SEEDS))
@pytest.mark.parametrize("fresh", [False, True], ids=["fixed", "fresh"])
def test_signals_at_random_moments_leave_nothing_behind_and_lose_nothing(
    new_mount: NewMount, tmp_path: Path, kind: str, fresh: bool
) -> None:
    seed = secrets.randbits(32) if fresh else SEEDS[kind]
    print(f"seed={seed}")
    mount = new_mount(time_limit=580)
    rounds = Rounds(mount, random.Random(seed), background=kind == "background")
    for number in range(100):
        name = f"before{number}"
        rounds.written[name] = noise(2000, number)
        (mount.path / name).write_bytes(rounds.written[name])
    for number in range(ROUNDS):
        rounds.hit(number)
        rounds.check_plain()
        if number % 4 == 3:
            rounds.check_next_mount(tmp_path / f"restored{number}")
    for bug in ("a bug in a handler", "snapshot failed, next try", "the supervisor failed"):
        assert bug not in mount.log_text()
