"""`ipfsfs doctor` beside real mounts; as an ordinary user: `test_cli_user.py`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.poll import wait_until


def doctor(place: Background, *flags: str, **environ: str) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the checks by name."""
    done = place.ipfsfs("doctor", "--json", *place.places, *flags, place.path, check=False, **environ)
    answer = json.loads(done.stdout)
    assert done.stderr == ""
    assert answer["ok"] is (done.returncode == 0)
    return done.returncode, {check["name"]: check for check in answer["checks"]}


def names_in(directory: Path) -> list[str]:
    return sorted(str(path) for path in directory.rglob("*"))


def test_what_it_finds_ready_can_be_mounted_and_it_makes_nothing(background: Background) -> None:
    before = names_in(background.base.base)
    code, checks = doctor(background)
    assert code == 0, checks
    assert "can be covered" in checks["directory"]["detail"]
    assert names_in(background.base.base) == before
    assert background.mount().returncode == 0


def test_mount_that_serves_is_told_with_its_daemon(background: Background) -> None:
    background.mount()
    (background.path / "file").write_text("x")
    background.ipfsfs("sync", background.path)
    before = background.ipfsfs("log", "--json", background.path).stdout
    code, checks = doctor(background)
    assert code == 0, checks
    assert f"is mounted and serves (daemon {background.base.pid}, " in checks["mount"]["detail"]
    assert "directory" not in checks
    assert checks["store"]["state"] == checks["state"]["state"] == "ok"
    assert background.ipfsfs("log", "--json", background.path).stdout == before
    done = background.ipfsfs("doctor", background.path / "below")
    assert f"lies in {background.path}, which is mounted" in done.stdout


def test_settings_of_a_mount_are_its_own_and_not_those_given(background: Background) -> None:
    background.mount()
    done = background.ipfsfs("doctor", "--json", background.path)  # without --store-dir and --state-dir
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert str(background.store) in checks["store"]["detail"]
    assert str(background.state) in checks["state"]["detail"]


def test_dead_mount_is_a_failure_with_advice(background: Background) -> None:
    background.mount()
    supervisor = background.supervisor()
    os.kill(supervisor.pid, signal.SIGKILL)
    background.kill_daemon()
    wait_until(lambda: doctor(background)[0] == 4, "dead mount")
    _, checks = doctor(background)
    assert "the daemon has died" in checks["mount"]["detail"]
    assert f"`ipfsfs mount {background.path}` mounts again" in checks["mount"]["advice"]
    assert background.is_mounted()  # it changes nothing
    background.mount()
    assert doctor(background)[0] == 0


def test_closed_gate_is_told_as_mount_obeys_it(background: Background) -> None:
    code, checks = doctor(background, CI="1")
    assert code == background.mount(CI="1").returncode == 0
    assert not background.is_mounted()
    assert checks["gate CI"]["state"] == "warn"
    background.mount("--force", CI="1")
    assert background.is_mounted()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have the right taken away")
def test_root_without_the_right_to_mount(background: Background) -> None:
    background.base.expect_log("can't be mounted: mount failed: Operation not permitted")
    less = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin", sys.executable, "-m", "fused"]
    done = subprocess.run([*less, "doctor", background.path], capture_output=True, text=True, check=False)
    assert done.returncode == 6, done
    assert "has no right to mount (CAP_SYS_ADMIN)" in done.stdout
    flags = ["mount", "--require", *background.places, str(background.path)]
    assert subprocess.run([*less, *flags], capture_output=True, check=False).returncode == 6
