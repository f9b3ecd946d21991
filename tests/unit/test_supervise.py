"""The supervisor with a daemon that dies as told. The real one, on real mounts, is in tests/kernel.

Each test runs the supervisor in an interpreter of its own, as it forks and sets signal handlers.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from fused import state
from tests.support.poll import wait_until

PROGRAM = """
    import json, os, signal, sys, time
    from fused import state, supervise
    from fused.config import load_settings
    from fused.errors import StoreUnavailable
    from fused.serve import report_error, report_ready
    from fused.state import prepare, take_lock

    top, lives, delays = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    supervise.DELAYS_S = delays
    supervise.Supervisor.__init__.__defaults__ = (supervise.serve_as_child, delays)
    settings = load_settings(top + "/dir", {"state_dir": top + "/state", "on_crash": sys.argv[4]})

    def serve(settings, root_fd, report_fd):
        with open(top + "/starts", "a+") as starts:
            starts.seek(0)
            number = len(starts.readlines())
            starts.write(json.dumps({"replace_stale": settings.replace_stale, "root": os.listdir(root_fd)}) + "\\n")
        for step in lives[min(number, len(lives) - 1)]:
            if step == "ready":
                report_ready(report_fd)
            elif step == "error":
                report_error(report_fd, StoreUnavailable("the store is on fire"))
            elif step == "wait":
                signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
                open(top + "/waiting", "w").close()
                while True:
                    signal.pause()
            elif step == "die":
                os.kill(os.getpid(), signal.SIGKILL)
            elif isinstance(step, float):
                time.sleep(step)
            else:
                return step
        return 0

    os.makedirs(top + "/dir/covered")
    prepare(settings.state_dir)
    lock = take_lock(settings.state_dir)
    root = os.open(settings.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    try:
        print("ready", supervise.launch(settings, root, lock, serve) > 0)
    except Exception as exc:
        print(type(exc).__name__, exc)
"""


class Launched:
    """The outcome of one `launch`, and what the supervisor that it left behind goes on to do."""

    def __init__(self, top: Path, lives: list[list[object]], delays: list[float], on_crash: str) -> None:
        self.top = top
        self.state = str(top / "state")
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(PROGRAM), top, json.dumps(lives), json.dumps(delays), on_crash],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
        self.said = done.stdout.strip()

    def starts(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in (self.top / "starts").read_text().splitlines()]

    def wait_for_the_end(self) -> None:
        wait_until(lambda: not state.is_locked(self.state), "end of the supervisor")

    def wait_until_serving(self) -> None:
        wait_until((self.top / "waiting").exists, "daemon that waits for a signal")

    def log(self) -> str:
        return Path(self.state, "log").read_text()


def launch(
    top: Path, *lives: list[object], delays: tuple[float, ...] = (0.0, 0.0), on_crash: str = "plain"
) -> Launched:
    return Launched(top, list(lives), list(delays), on_crash)


def test_clean_end_of_the_daemon_ends_the_supervisor(tmp_path: Path) -> None:
    launched = launch(tmp_path, ["ready"])
    assert launched.said == "ready True"
    launched.wait_for_the_end()
    assert len(launched.starts()) == 1
    assert state.read_supervision(launched.state) is None


def test_daemon_that_can_not_start_says_why_and_is_not_started_again(tmp_path: Path) -> None:
    launched = launch(tmp_path, ["error", 1])
    assert launched.said == "StoreUnavailable the store is on fire"
    assert not state.is_locked(launched.state)
    assert len(launched.starts()) == 1
    assert state.read_supervision(launched.state) is None


@pytest.mark.parametrize(
    ("life", "says"),
    [(["die"], "was killed by signal 9 (SIGKILL)"), ([3], "ended with code 3")],
    ids=["killed", "code"],
)
def test_daemon_that_dies_before_it_serves_is_reported_with_its_log(
    tmp_path: Path, life: list[object], says: str
) -> None:
    launched = launch(tmp_path, life)
    assert launched.said == f"IpfsfsError the daemon {says} before it served; its log is {launched.state}/log"
    assert not state.is_locked(launched.state)
    assert len(launched.starts()) == 1


@pytest.mark.parametrize(("on_crash", "replaces"), [("plain", False), ("auto", False), ("error", True)])
def test_daemon_that_died_is_started_again_over_the_same_directory(
    tmp_path: Path, on_crash: str, replaces: bool
) -> None:
    launched = launch(tmp_path, ["ready", "die"], ["ready", 4], ["ready", "wait"], on_crash=on_crash)
    launched.wait_until_serving()
    assert [start["replace_stale"] for start in launched.starts()] == [False, replaces, replaces]
    assert all(start["root"] == ["covered"] for start in launched.starts())
    seen = state.read_supervision(launched.state)
    assert seen is not None
    assert seen.deaths == 2
    assert seen.daemon_pid is not None
    assert "ended with code 4" in str(seen.last_death)
    assert launched.log().count("WARNING") == 2
    os.kill(seen.pid, signal.SIGTERM)
    launched.wait_for_the_end()


def test_daemon_that_keeps_dying_is_given_up(tmp_path: Path) -> None:
    launched = launch(tmp_path, ["ready", "die"], ["die"], delays=(0.0, 0.05, 0.1))
    launched.wait_for_the_end()
    assert len(launched.starts()) == 4
    seen = state.read_supervision(launched.state)
    assert seen is not None
    assert seen.deaths == 4
    assert "died 4 times in a row" in str(seen.gave_up)
    assert "the plain directory shows" in str(seen.gave_up)
    assert "died 4 times in a row" in launched.log()


def test_daemon_that_served_for_a_while_is_started_again_however_often(tmp_path: Path) -> None:
    lives: list[list[object]] = [["ready", 0.35, "die"]] * 4
    launched = launch(tmp_path, *lives, ["ready", "wait"], delays=(0.0,))
    launched.wait_until_serving()
    seen = state.read_supervision(launched.state)
    assert seen is not None
    assert (seen.deaths, seen.gave_up) == (4, None)
    os.kill(seen.pid, signal.SIGTERM)
    launched.wait_for_the_end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_supervisor_is_passed_on_and_ends_both(tmp_path: Path, number: signal.Signals) -> None:
    launched = launch(tmp_path, ["ready", "wait"])
    launched.wait_until_serving()
    seen = state.read_supervision(launched.state)
    assert seen is not None
    os.kill(seen.pid, number)
    launched.wait_for_the_end()
    assert len(launched.starts()) == 1
    assert state.read_supervision(launched.state) is None


def test_signal_while_it_waits_to_start_again_ends_the_supervisor(tmp_path: Path) -> None:
    launched = launch(tmp_path, ["ready", "die"], delays=(600.0,))

    def waits() -> bool:
        seen = state.read_supervision(launched.state)
        return seen is not None and seen.deaths == 1

    wait_until(waits, "supervisor that has seen a death")
    seen = state.read_supervision(launched.state)
    assert seen is not None
    os.kill(seen.pid, signal.SIGTERM)
    launched.wait_for_the_end()
    assert len(launched.starts()) == 1


def test_killed_supervisor_leaves_the_daemon_alone(tmp_path: Path) -> None:
    launched = launch(tmp_path, ["ready", "wait"])
    launched.wait_until_serving()
    seen = state.read_supervision(launched.state)
    assert seen is not None
    assert seen.daemon_pid is not None
    os.kill(seen.pid, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{seen.pid}").exists() or _is_zombie(seen.pid), "end of the supervisor")
    os.kill(seen.daemon_pid, 0)
    assert state.is_locked(launched.state)
    os.kill(seen.daemon_pid, signal.SIGTERM)
    launched.wait_for_the_end()


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def test_nothing_of_the_command_stays_open_in_the_background(tmp_path: Path) -> None:
    launched = launch(tmp_path, ["ready", "wait"])  # returns, so the pipes of its output are closed
    launched.wait_until_serving()
    seen = state.read_supervision(launched.state)
    assert seen is not None
    log = str(tmp_path / "state" / "log")
    for pid in (seen.pid, seen.daemon_pid):
        assert os.readlink(f"/proc/{pid}/cwd") == "/"
        assert [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in (0, 1, 2)] == ["/dev/null", log, log]
    os.kill(seen.pid, signal.SIGTERM)
    launched.wait_for_the_end()


def test_long_log_is_set_aside_at_start(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir()
    with open(tmp_path / "state" / "log", "wb") as log:
        log.truncate((10 << 20) + 1)
    launched = launch(tmp_path, ["ready", "die"], ["ready"])
    launched.wait_for_the_end()
    assert (tmp_path / "state" / "log.1").stat().st_size == (10 << 20) + 1
    assert 0 < (tmp_path / "state" / "log").stat().st_size < 10_000
