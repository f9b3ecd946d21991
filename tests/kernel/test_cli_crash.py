"""A killed daemon comes back, and meanwhile programs see what --on-crash says."""

from __future__ import annotations

import errno
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fused import state
from fused.cli.exits import Exit
from fused.cli.place import is_served
from fused.fs import mounts
from tests.support.background import Background
from tests.support.plainmount import PlainMount
from tests.support.poll import wait_until


def look(path: Path) -> list[str] | int:
    """The names in `path`, or the errno with which looking fails."""
    try:
        return sorted(os.listdir(path))
    except OSError as exc:
        return exc.errno or 0


@pytest.mark.parametrize("on_crash", ["plain", "error", None])
def test_killed_daemon_is_back_within_seconds(background: Background, on_crash: str | None) -> None:
    (background.path / "before").write_text("x")
    background.mount(*([f"--on-crash={on_crash}"] if on_crash else []))
    (background.path / "written").write_text("y")
    start = time.monotonic()
    old = background.kill_daemon()
    background.wait_until_restarted(old, seconds=5.0)
    took = time.monotonic() - start
    assert took < 5.0  # about 0.5 on an idle machine; each look costs 0.2
    assert look(background.path) == ["before", "written"]
    assert (background.path / "written").read_text() == "y"
    background.umount()
    assert look(background.path) == ["before", "written"]


@contextmanager
def unusable_store(background: Background) -> Iterator[None]:
    """A daemon that is started meanwhile can't serve."""
    background.base.expect_log(r"fused\.(supervise|serve|daemon|sync\.engine): ")
    aside = background.store.with_name("aside")
    background.store.rename(aside)
    background.store.write_text("this is no store")
    try:
        yield
    finally:
        background.store.unlink()
        aside.rename(background.store)


@pytest.mark.parametrize("on_crash", ["plain", "error"])
def test_what_shows_while_the_daemon_is_dead(background: Background, on_crash: str) -> None:
    (background.path / "file").write_text("x")
    background.mount(f"--on-crash={on_crash}")
    background.base.sync()
    with unusable_store(background):
        old = background.kill_daemon()
        wait_until(lambda: background.supervisor().deaths >= 2, "death of the second daemon")
        assert look(background.path) == (["file"] if on_crash == "plain" else errno.ENOTCONN)
        assert background.is_mounted() == (on_crash == "error")
    background.wait_until_restarted(old)
    assert look(background.path) == ["file"]


def test_what_was_written_to_the_plain_directory_meanwhile_is_there_and_stored(background: Background) -> None:
    background.mount("--on-crash=plain")
    plain = background.base.plain
    old = background.kill_daemon()
    (plain / "meanwhile").write_text("x")
    background.wait_until_restarted(old)
    assert (background.path / "meanwhile").read_text() == "x"
    cid = background.base.sync()
    assert "meanwhile" in background.ipfsfs("ls", "--store-dir", background.store, cid).stdout


def test_status_tells_that_the_daemon_has_died(background: Background) -> None:
    background.mount()
    background.wait_until_restarted(background.kill_daemon())
    wrong = background.base.status()["wrong"]
    assert any("the daemon has died and was restarted 1 time" in sentence for sentence in wrong)
    assert any("signal 9 (SIGKILL)" in sentence for sentence in wrong)


def test_daemon_killed_again_and_again_comes_back_each_time(background: Background) -> None:
    background.mount()
    (background.path / "file").write_text("x")
    for _ in range(5):
        background.wait_until_restarted(background.kill_daemon())
        assert (background.path / "file").read_text() == "x"
    assert background.supervisor().deaths == 5


def test_working_directory_on_the_mount_does_not_hinder_the_restart(background: Background) -> None:
    (background.path / "sub").mkdir()
    background.mount()
    held = os.open(background.path / "sub", os.O_RDONLY | os.O_DIRECTORY)
    try:
        background.wait_until_restarted(background.kill_daemon())
        assert look(background.path) == ["sub"]
    finally:
        os.close(held)


def test_terminated_supervisor_unmounts_with_a_last_snapshot(background: Background) -> None:
    background.mount("--quiet-seconds=600", "--interval-seconds=600")
    (background.path / "file").write_text("x")
    os.kill(background.supervisor().pid, signal.SIGTERM)
    wait_until(background.is_plain, "end of supervisor and mount", 30)
    assert (background.path / "file").read_text() == "x"
    logged = background.ipfsfs("log", "--json", "--state-dir", background.state, background.path).stdout
    assert json.loads(logged)[0]["files"] == 1


def test_mount_lives_on_when_its_supervisor_is_killed(background: Background) -> None:
    background.mount()
    seen = background.supervisor()
    os.kill(seen.pid, signal.SIGKILL)
    (background.path / "file").write_text("x")
    assert background.base.pid == seen.daemon_pid
    done = background.ipfsfs("mount", *background.places, background.path, check=False)
    assert done.returncode == Exit.BUSY
    background.umount()
    assert background.is_plain()


def test_dead_mount_without_supervisor_is_told_and_uncovered(background: Background) -> None:
    (background.path / "file").write_text("x")
    background.base.start()
    background.base.kill9()
    done = background.ipfsfs("status", "--json", background.path, check=False)
    report = json.loads(done.stdout)
    assert (done.returncode, report["state"]) == (Exit.TROUBLE, "dead")
    assert "the daemon has died" in report["wrong"][0]
    done = background.ipfsfs("umount", background.path)
    assert "had died, so no last snapshot was taken" in done.stderr
    assert look(background.path) == ["file"]


def test_mounting_waits_for_a_daemon_that_was_killed_a_moment_ago(
    plain_mount: PlainMount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its lock is free before its mount is dead. Here nobody has ever held the lock, and the mount lives."""
    mounted = mounts.find_mount_at(str(plain_mount.path))
    assert mounted is not None
    looked = threading.Event()
    is_stale = mounts.is_stale

    def look_and_tell(path: str) -> bool:
        stale = is_stale(path)
        looked.set()
        return stale

    monkeypatch.setattr(mounts, "is_stale", look_and_tell)
    answers: list[bool] = []
    waiting = threading.Thread(target=lambda: answers.append(is_served(mounted)))
    waiting.start()
    assert looked.wait(20)
    plain_mount.process.kill()
    waiting.join(20)
    assert answers == [False]


def test_umount_stops_a_supervisor_that_waits_to_start_again(background: Background) -> None:
    background.mount("--on-crash=error")
    background.base.sync()
    with unusable_store(background):
        background.kill_daemon()
        wait_until(lambda: background.supervisor().deaths >= 3, "deaths in a row")
        assert background.ipfsfs("status", background.path, check=False).returncode == Exit.TROUBLE
        background.umount()
        assert background.is_plain()


def test_daemon_that_does_not_answer_is_told(background: Background) -> None:
    background.mount()
    supervisor = background.supervisor()
    assert supervisor.daemon_pid is not None
    os.kill(supervisor.daemon_pid, signal.SIGSTOP)
    try:
        done = background.ipfsfs("status", "--json", background.path, check=False)
    finally:
        os.kill(supervisor.daemon_pid, signal.SIGCONT)
    assert done.returncode == Exit.TROUBLE
    assert json.loads(done.stdout)["state"] == "silent"
    assert state.is_locked(str(background.state))
