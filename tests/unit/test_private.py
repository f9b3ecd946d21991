"""Directories of our own: closed to others, and refused where others could have prepared or could swap them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from fused import state
from fused.config import load_settings, read_settings, save_settings
from fused.control import call
from fused.errors import ControlError, StoreUnavailable, UsageError
from fused.store import directory
from tests.support.users import ALICE, BOB, common, python_as, umask  # noqa: F401 - a fixture

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.fixture(params=["state directory", "store"])
def prepare(request: pytest.FixtureRequest) -> object:
    """Makes or checks one of the two directories; both refusals become a UsageError."""

    def make(path: Path) -> None:
        if request.param == "store":
            try:
                directory.prepare(str(path))
            except StoreUnavailable as exc:
                raise UsageError(str(exc)) from exc
        else:
            state.prepare(str(path))

    return make


def test_everything_is_private_whatever_the_umask(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    with umask(0):
        prepare(tmp_path / "a" / "b" / "c")
    for place in (tmp_path / "a", tmp_path / "a" / "b"):
        assert mode(place) == 0o700
    for place in (tmp_path / "a" / "b" / "c").rglob("*"):
        assert not mode(place) & 0o077, place


def test_directory_of_ours_that_is_too_open_is_closed(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "d").mkdir()
    (tmp_path / "d").chmod(0o777)
    prepare(tmp_path / "d")
    assert mode(tmp_path / "d") == 0o700


@pytest.mark.parametrize("planted", ["symlink", "hard link", "others'", "open directory"])
def test_directory_in_which_others_may_have_planted_something_is_refused(
    tmp_path: Path,
    prepare,  # type: ignore[no-untyped-def]
    planted: str,
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    place = tmp_path / "d"
    place.mkdir()
    place.chmod(0o777)
    names = ("lock", "log", "settings.json.new", "format.new", "supervisor.json.new")
    for name in names:
        if planted == "symlink":
            (place / name).symlink_to(victim)
        elif planted == "hard link":
            os.link(victim, place / name)
        elif planted == "open directory":
            (place / name).mkdir(mode=0o777)
            (place / name).chmod(0o777)
        elif os.geteuid() == 0:
            (place / name).touch()
            os.chown(place / name, ALICE, ALICE)
        else:
            pytest.skip("needs root, to be several users")
    with pytest.raises(UsageError, match="could be written by other users"):
        prepare(place)
    assert victim.read_text() == "precious"


def test_directory_that_only_could_be_read_by_others_keeps_its_files(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    prepare(tmp_path / "d")
    (tmp_path / "d").chmod(0o755)
    prepare(tmp_path / "d")
    assert mode(tmp_path / "d") == 0o700


@as_root
@pytest.mark.parametrize("foreign", ["itself", "its parent", "what a link leads to", "the link"])
def test_directory_that_another_user_could_swap_is_refused(
    common: Path,  # noqa: F811 - the fixture
    prepare,  # type: ignore[no-untyped-def]
    foreign: str,
) -> None:
    place = common / "parent" / "d"
    place.mkdir(parents=True, mode=0o700)
    wanted = place
    match foreign:
        case "itself":
            os.chown(place, ALICE, ALICE)
        case "its parent":
            os.chown(common / "parent", ALICE, ALICE)
        case "what a link leads to":
            (common / "link").symlink_to(place)
            os.chown(place, ALICE, ALICE)
            wanted = common / "link"
        case _:
            (common / "link").symlink_to(place)
            os.chown(common / "link", ALICE, ALICE, follow_symlinks=False)
            wanted = common / "link"
    with pytest.raises(UsageError, match=rf"belongs to another user \(uid {ALICE}\)"):
        prepare(wanted)
    assert os.listdir(place) == []


def test_directory_below_one_that_everybody_may_write_to_is_refused(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="everybody may write to"):
        prepare(tmp_path / "open" / "d")
    (tmp_path / "open").chmod(0o1777)  # sticky, as /tmp: nobody can rename what is not his
    prepare(tmp_path / "open" / "d")


def test_link_of_our_own_to_a_directory_of_our_own_is_used(tmp_path: Path, prepare) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "disk2").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk2")
    prepare(tmp_path / "link")
    assert mode(tmp_path / "disk2") == 0o700


@as_root
def test_nothing_that_another_user_wrote_is_believed(common: Path) -> None:  # noqa: F811 - the fixture
    place = common / "state"
    state.prepare(str(place))
    settings = load_settings(str(common), {"state_dir": str(place)})
    save_settings(settings)
    state.note_supervision(str(place), state.Supervision(1, None, 0, None, None))
    lock = state.take_lock(str(place))
    assert read_settings(str(place)) == settings
    os.chown(place, ALICE, ALICE)
    assert read_settings(str(place)) is None
    assert state.read_supervision(str(place)) is None
    assert not state.is_locked(str(place))
    os.close(lock)


@pytest.mark.parametrize("pid", ["-1", "0", "true", '"7"', str(1 << 40)])
def test_number_that_is_no_process_is_never_handed_on(pid: str) -> None:
    text = f'{{"pid": {pid}, "daemon_pid": 1, "deaths": 0, "last_death": null, "gave_up": null}}'
    assert state.parse_supervision(text.encode()) is None


@as_root
def test_config_file_of_another_user_is_not_used(common: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    file = common / "ipfsfs" / "config.toml"
    file.parent.mkdir()
    file.write_text("read_only = true")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(common))
    assert load_settings(str(common), {}).read_only
    file.chmod(0o666)
    with pytest.raises(UsageError, match="can be written by everybody"):
        load_settings(str(common), {})
    file.chmod(0o644)
    os.chown(file, ALICE, ALICE)
    with pytest.raises(UsageError, match=f"belongs to another user .uid {ALICE}"):
        load_settings(str(common), {})


LISTEN = """
s = socket.socket(socket.AF_UNIX); s.bind(sys.argv[1] + '/control'); os.chmod(sys.argv[1] + '/control', 0o666)
s.listen(); print('listening', flush=True); s.settimeout(20)
try: c = s.accept()[0]; c.sendall(b'{"result": {"who": "me"}}\\n'); c.recv(1)
except TimeoutError: pass
"""


@as_root
@pytest.mark.parametrize("owner", [0, BOB], ids=["a directory of ours", "a directory of somebody else's"])
def test_client_does_not_talk_to_a_socket_that_somebody_else_put_there(common: Path, owner: int) -> None:  # noqa: F811
    import subprocess
    import sys

    from tests.support.plainmount import as_user

    common.chmod(0o777)
    os.chown(common, owner, owner)
    code = "import os,socket,sys\n" + LISTEN
    with subprocess.Popen(
        [*as_user(ALICE), sys.executable, "-c", code, str(common)], stdout=subprocess.PIPE, cwd="/"
    ) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"listening\n"
        try:
            with pytest.raises(ControlError, match="belongs to another user"):
                call(str(common), "status", timeout=10)
        finally:
            server.kill()
