"""What a mount without --allow-other keeps from the machine's other users: everything, whatever was there before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fused import state
from tests.support.background import Background
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.users import ALICE, common, python_as, umask  # noqa: F401 - a fixture


@pytest.fixture
def reachable(common: Path, new_mount: Callable[..., MountProcess]) -> Iterator[Background]:  # noqa: F811 - the fixture
    """A directory, not mounted yet, to which every user can get."""
    base = common / "base"
    base.mkdir(mode=0o755)
    mount = MountProcess(base)
    place = Background(mount)
    yield place
    place.close()
    mount.close()


LOOK = """
found = []
def reached(what, path):
    found.append(f'{what} {path}')
for top in sys.argv[1:]:
    for path in [top, *(os.path.join(d, n) for d, ds, fs in os.walk(top) for n in ds + fs)]:
        try: os.listdir(path); reached('listed', path)
        except OSError: pass
        try: open(path, 'rb').close(); reached('read', path)
        except OSError: pass
        try: os.close(os.open(path, os.O_WRONLY)); reached('wrote', path)
        except OSError: pass
    for name in ('control', 'log', 'lock', 'settings.json', 'supervisor.json', 'index.sqlite', 'blocks.sqlite3', 'f'):
        path = os.path.join(top, name)
        try: os.stat(path); reached('stat', path)
        except OSError: pass
        try: socket.socket(socket.AF_UNIX).connect(path); reached('connected', path)
        except OSError: pass
print(json.dumps(found))
"""


def test_nothing_of_a_private_mount_can_be_reached_by_another_user(reachable: Background) -> None:
    with umask(0):
        reachable.mount()
    (reachable.path / "f").write_text("mine")
    reachable.ipfsfs("sync", reachable.path)
    places = [reachable.path, reachable.state, reachable.store]
    assert json.loads(python_as(ALICE, LOOK, *places)) == []
    pid = json.loads(reachable.ipfsfs("status", "--json", reachable.path).stdout)["pid"]
    assert json.loads(python_as(ALICE, LOOK, f"/proc/{pid}/fd", f"/proc/{pid}/root", f"/proc/{pid}/cwd")) == []
    for place in (reachable.state, reachable.store):
        for path in (place, *place.rglob("*")):
            assert not path.lstat().st_mode & 0o077, path
    for file in reachable.state.rglob("*"):
        assert file.lstat().st_uid == 0
    reachable.umount()
    assert json.loads(python_as(ALICE, LOOK, reachable.state, reachable.store)) == []


def test_peer_that_gets_to_the_socket_all_the_same_is_refused(reachable: Background) -> None:
    reachable.mount()
    reachable.state.chmod(0o755)
    (reachable.state / "control").chmod(0o666)
    ask = """
s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1] + '/control'); s.settimeout(20)
try: s.sendall(b'{"op": "log"}\\n')
except BrokenPipeError: pass
print(json.loads(s.makefile().readline()))
"""
    refused = "{'error': {'kind': 'ControlError', 'message': 'this mount belongs to another user'}}"
    assert python_as(ALICE, ask, reachable.state) == refused
    assert "snapshots" in python_as(0, ask, reachable.state)
    reachable.umount()


PREPARED = {
    "belongs to another user": lambda place: os.chown(place, ALICE, ALICE),
    "could be written by other users": lambda place: (place.chmod(0o777), (place / "log").symlink_to("/tmp/x")),
    "is not safe": lambda place: os.chown(place.parent, ALICE, ALICE),
}


@pytest.mark.parametrize("which", ["state", "store"])
@pytest.mark.parametrize("why", PREPARED)
def test_mount_with_a_place_that_somebody_else_prepared_is_refused(reachable: Background, which: str, why: str) -> None:
    place = reachable.base.base / "prepared" / which
    place.mkdir(parents=True, mode=0o700)
    PREPARED[why](place)
    places = {"state": reachable.state, "store": reachable.store, which: place}
    flags = ["--require", "--state-dir", places["state"], "--store-dir", places["store"]]
    reachable.base.expect_log(r"ERROR fused\.serve: the store .*prepared")
    done = reachable.ipfsfs("mount", *flags, reachable.path, check=False)
    assert done.returncode in (2, 4), done
    assert why in done.stderr, done
    assert not reachable.is_mounted()
    assert os.listdir(place) in ([], ["log"])


def test_umount_ends_no_process_that_another_users_state_directory_names(reachable: Background) -> None:
    """Anybody can make a mount that claims a directory of his as its state; root may then want to take it away."""
    reachable.mount()
    seen = json.loads((reachable.state / "supervisor.json").read_text())
    for pid in (seen["pid"], seen["daemon_pid"]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{seen['daemon_pid']}"), "the daemon's end")
    with subprocess.Popen(["sleep", "1000"]) as bystander:
        try:
            (reachable.state / "supervisor.json").write_text(json.dumps(seen | {"pid": bystander.pid}))
            for path in (reachable.state, *reachable.state.iterdir()):
                os.chown(path, ALICE, ALICE)
            lock = state.take_lock(str(reachable.state))  # as if the supervisor lived
            reachable.ipfsfs("umount", reachable.path)
            os.close(lock)
            assert bystander.poll() is None
            assert not reachable.is_mounted()
        finally:
            bystander.kill()
    for path in (reachable.state, *reachable.state.iterdir()):
        os.chown(path, 0, 0)
