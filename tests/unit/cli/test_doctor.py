"""`ipfsfs doctor`: each thing that can be missing is named, with advice and the exit code of the command that needs it.

What can't be made missing here is, by the path or the call with which it is looked for.
"""

from __future__ import annotations

import importlib
import json
import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from fused import gates, paths, private, state
from fused.cli import main as cli
from fused.cli.checkup import keeping, machine, place
from fused.cli.checkup.check import Check
from fused.cli.exits import Exit
from fused.errors import UsageError
from fused.fs import mounts
from fused.store import directory as store_directory
from fused.store.base import NodeStatus

Answer = tuple[int, dict[str, list[dict[str, str]]]]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """State, store and settings of this test alone."""
    for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.setenv(variable, str(tmp_path / "home" / variable.lower()))
    return tmp_path / "home"


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, dict[str, str]]]]:
    """Runs it; returns the exit code, and the checks by name (the worst of each name)."""

    def run(*args: str | Path) -> tuple[int, dict[str, dict[str, str]]]:
        code = cli.main(["doctor", "--json", *map(str, args)])
        answer = json.loads(capsys.readouterr().out)
        assert answer["ok"] is (code == 0)
        assert all(set(check) == {"name", "state", "detail", "advice"} for check in answer["checks"])
        assert all((check["advice"] is None) is (check["state"] == "ok") for check in answer["checks"])
        order = ("ok", "warn", "fail")
        return code, {check["name"]: check for check in sorted(answer["checks"], key=lambda c: order.index(c["state"]))}

    return run


def state_of(check: Check) -> tuple[str, Exit]:
    return check.state, check.code


def everything_in(directory: Path) -> dict[str, tuple[int, int, int, int, bytes]]:
    """Whatever a program that changes something would change."""
    found = {}
    for where, names, files in os.walk(directory):
        for entry in (".", *names, *files):
            path = Path(where, entry)
            st = path.lstat()
            content = path.read_bytes() if path.is_file() else b""
            found[str(path)] = (st.st_mode, st.st_mtime_ns, st.st_ctime_ns, st.st_ino, content)
    return found


# --- the machine ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL", "CI"])
def test_closed_gate_is_a_warning_with_the_exit_code_of_mount(
    name: str, monkeypatch: pytest.MonkeyPatch, doctor: Callable[..., Answer], tmp_path: Path
) -> None:
    monkeypatch.setenv(name, "true")
    code, checks = doctor()
    assert code == cli.main(["mount", str(tmp_path / "data")]) == Exit.OK
    assert checks[f"gate {name}"]["state"] == "warn"
    assert f"{name}=true" in checks[f"gate {name}"]["detail"]
    assert "--force" in checks[f"gate {name}"]["advice"]


def test_gate_that_does_not_count_says_so() -> None:
    found = {check.name: check for check in machine.check_gates({"STORAGE_FORCE_LOCAL": "on"})}
    assert {check.state for check in found.values()} == {"ok"}
    assert "STORAGE_FORCE_LOCAL=on does not" in found["gate STORAGE_FORCE_LOCAL"].detail
    assert found["gate CI"].detail == "is not set"


def test_missing_device_is_a_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, doctor: Callable[..., Answer]
) -> None:
    monkeypatch.setattr(gates, "DEVICE", str(tmp_path / "none"))
    monkeypatch.setattr(machine, "DEVICE", str(tmp_path / "none"))
    code, checks = doctor()
    assert code == Exit.NO_MOUNT
    assert "does not exist" in checks["device"]["detail"]
    assert "modprobe fuse" in checks["device"]["advice"]


def test_device_that_can_not_be_opened_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(gates, "DEVICE", str(tmp_path))
    check = machine.check_device()
    assert state_of(check) == ("fail", Exit.NO_MOUNT)
    assert "can't be opened: Is a directory" in check.detail


def test_missing_fusermount3_matters_to_users_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environ = {"PATH": str(tmp_path)}
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert machine.check_fusermount3(environ).state == "ok"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = machine.check_fusermount3(environ)
    assert state_of(check) == ("fail", Exit.NO_MOUNT)
    assert check.advice == "install it: apt install fuse3"


def test_fusermount3_without_its_bit_is_a_failure(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "fusermount3"
    program.touch(mode=0o755)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = machine.check_fusermount3({"PATH": str(tmp_path)})
    assert state_of(check) == ("fail", Exit.NO_MOUNT)
    assert "chmod u+s" in str(check.advice)
    if os.getuid() == 0:
        program.chmod(0o4755)
        assert machine.check_fusermount3({"PATH": str(tmp_path)}).state == "ok"


@pytest.mark.parametrize(
    ("uid", "status", "said"),
    [
        (0, "CapEff:\t000001ffffdfffff\n", "CAP_SYS_ADMIN"),
        (0, "CapEff:\t0000000000200000\n", None),
        (1000, "CapEff:\t0000000000000000\nNoNewPrivs:\t1\n", "no_new_privs"),
        (1000, "CapEff:\t0000000000000000\nNoNewPrivs:\t0\n", None),
    ],
)
def test_right_to_mount(
    uid: int, status: str, said: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "status").write_text(status)
    monkeypatch.setattr(machine, "_SELF", str(tmp_path / "status"))
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    check = machine.check_right()
    assert state_of(check) == (("ok", Exit.OK) if said is None else ("fail", Exit.NO_MOUNT))
    assert said is None or said in check.detail


@pytest.mark.parametrize("allowed", [True, False])
def test_allow_other_is_information_until_it_is_wanted(
    allowed: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fuse.conf").write_text("user_allow_other\n" if allowed else "#user_allow_other\n")
    monkeypatch.setattr(gates, "_FUSE_CONF", str(tmp_path / "fuse.conf"))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    check = machine.check_allow_other()
    assert check.state == "ok"
    assert ("only root" in check.detail) is not allowed
    settings, _ = keeping.load(str(tmp_path), {"allow_other": True})
    assert settings is not None
    assert [found.code for found in place.check_allow_other_setting(settings)] == ([] if allowed else [Exit.USAGE])


def test_missing_libfuse_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str) -> None:
        raise ImportError("libfuse3.so.3: cannot open shared object file")

    monkeypatch.setattr(importlib, "import_module", refuse)
    check = machine.check_pyfuse3()
    assert state_of(check) == ("fail", Exit.NO_MOUNT)
    assert "libfuse3.so.3: cannot open" in check.detail


def test_versions_of_what_is_there(doctor: Callable[..., Answer]) -> None:
    _, checks = doctor()
    import pyfuse3

    assert f"pyfuse3 {pyfuse3.__version__}, libfuse 3." in checks["pyfuse3"]["detail"]
    assert os.uname().release in checks["kernel"]["detail"]


@pytest.mark.parametrize(
    ("release", "missing"),
    [("5.4.0-150-generic", 4), ("5.10.3", 3), ("5.15.0", 2), ("6.2.0", 1), ("6.12.1", 0), ("7.0", 0), ("strange", 0)],
)
def test_old_kernel_is_a_warning_that_names_what_it_lacks(release: str, missing: int) -> None:
    check = machine.check_kernel(release)
    assert state_of(check) == ("warn" if missing else "ok", Exit.OK)
    assert check.detail.count("(Linux ") == missing


def test_fusectl_that_is_not_mounted_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CONNECTIONS", str(tmp_path))
    check = machine.check_fusectl()
    assert state_of(check) == ("warn", Exit.OK)
    assert "mount -t fusectl" in str(check.advice)


# --- settings -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["read_only = maybe", "read_onyl = true", 'quiet_seconds = "soon"', "store = 'floppy'"]
)
def test_mistake_in_the_settings_is_told_as_mount_tells_it(
    text: str, tmp_path: Path, doctor: Callable[..., Answer], capsys: pytest.CaptureFixture[str]
) -> None:
    file = Path(paths.config_file())
    file.parent.mkdir(parents=True)
    file.write_text(text)
    code, checks = doctor(tmp_path / "data")
    assert cli.main(["mount", str(tmp_path / "data")]) == code == Exit.USAGE
    assert capsys.readouterr().err == f"ipfsfs: {checks['settings']['detail']}\n"


def test_settings_that_would_apply_are_told(monkeypatch: pytest.MonkeyPatch, doctor: Callable[..., Answer]) -> None:
    file = Path(paths.config_file())
    file.parent.mkdir(parents=True)
    file.write_text("read_only = true\nexclude = ['*.tmp', '*.bak']\n")
    monkeypatch.setenv("IPFSFS_QUIET_SECONDS", "7")
    _, checks = doctor()
    said = f"{file}; read_only = true, exclude = *.tmp, *.bak, quiet_seconds = 7.0"
    assert checks["settings"]["detail"] == said


# --- the directory --------------------------------------------------------------------------------------


def test_without_a_directory_only_the_machine_is_looked_at(doctor: Callable[..., Answer]) -> None:
    code, checks = doctor()
    assert code == Exit.OK
    assert {"directory", "mount", "state", "store"}.isdisjoint(checks)


def test_directory_that_can_be_covered(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    code, checks = doctor(tmp_path)  # the state directory lies in it
    assert (code, checks["directory"]["state"]) == (Exit.USAGE, "fail")
    (tmp_path / "data").mkdir()
    code, checks = doctor(tmp_path / "data")
    assert code == Exit.OK
    assert checks["directory"]["detail"] == f"{tmp_path}/data can be covered"
    code, checks = doctor(tmp_path / "new" / "one")
    assert code == Exit.OK
    assert "does not exist; `ipfsfs mount` makes it" in checks["directory"]["detail"]


def test_file_in_the_place_of_a_directory(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    (tmp_path / "file").touch()
    code, checks = doctor(tmp_path / "file")
    assert code == Exit.USAGE
    assert checks["directory"]["detail"] == f"{tmp_path}/file is not a directory"


@pytest.mark.parametrize(
    ("kind", "state"), [("9p", "warn"), ("fuse.sshfs", "warn"), ("virtiofs", "warn"), ("ext4", "ok"), (None, "ok")]
)
def test_file_system_that_passes_writes_on(
    kind: str | None, state: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(mounts, "filesystem_type", lambda device: kind)
    check = place.check_filesystem(str(tmp_path))
    assert state_of(check) == (state, Exit.OK)
    assert kind is None or kind in check.detail


@pytest.mark.parametrize(
    ("blocks", "free", "state"), [(100_000, 10, "warn"), (10_000_000, 9_000_000, "ok"), (0, 0, "ok")]
)
def test_little_space_is_a_warning(blocks: int, free: int, state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.statvfs_result((4096, 4096, blocks, free, free, 0, 0, 0, 0, 255))
    monkeypatch.setattr(os, "statvfs", lambda path: found)
    assert state_of(place.check_space("space", "/")) == (state, Exit.OK)


# --- state and store ------------------------------------------------------------------------------------


def _file(path: Path) -> None:
    path.touch()


def _below_a_file(path: Path) -> None:
    path.parent.rmdir()
    path.parent.touch()


def _in_a_directory_of_everybody(path: Path) -> None:
    path.mkdir()
    path.parent.chmod(0o777)


def _with_what_may_be_theirs(path: Path) -> None:
    path.mkdir()
    (path / "link").symlink_to("/etc/passwd")
    path.chmod(0o777)


def _of_another(path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root")
    path.mkdir()
    os.chown(path, 1234, 1234)


BAD = [_file, _below_a_file, _in_a_directory_of_everybody, _with_what_may_be_theirs, _of_another]


@pytest.mark.parametrize("spoil", BAD)
def test_directory_that_would_be_refused_is_refused_for_the_same_reason(
    spoil: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "between" / "place"
    path.parent.mkdir()
    spoil(path)
    before = everything_in(tmp_path)
    why = private.obstacle(str(path), "the state directory")
    assert everything_in(tmp_path) == before
    with pytest.raises((UsageError, OSError)) as caught:
        private.prepare(str(path), "the state directory")
    assert why is not None
    assert not isinstance(caught.value, UsageError) or str(caught.value) == why


@pytest.mark.parametrize("mode", [None, 0o700, 0o755, 0o777])
def test_directory_that_would_be_taken_is_no_obstacle(mode: int | None, tmp_path: Path) -> None:
    path = tmp_path / "place"
    if mode is not None:
        path.mkdir()
        path.chmod(mode)
    assert private.obstacle(str(path), "it") is None
    assert path.exists() is (mode is not None)
    private.prepare(str(path), "it")


@pytest.mark.parametrize(("what", "code"), [("state", Exit.USAGE), ("store", Exit.TROUBLE)])
@pytest.mark.parametrize("spoil", BAD)
def test_spoilt_place_is_a_failure(
    what: str, code: Exit, spoil: Callable[[Path], None], tmp_path: Path, doctor: Callable[..., Answer]
) -> None:
    path = tmp_path / "between" / "place"
    path.parent.mkdir()
    spoil(path)
    found, checks = doctor(f"--{what}-dir={path}", tmp_path / "data")
    assert (found, checks[what]["state"]) == (code, "fail")
    assert str(path) in checks[what]["detail"]


def test_state_directory_in_use(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    place = tmp_path / "state"
    state.prepare(str(place))
    lock = state.take_lock(str(place))
    try:
        code, checks = doctor("--state-dir", place, tmp_path / "data")
    finally:
        os.close(lock)
    assert code == Exit.BUSY
    assert "another ipfsfs process" in checks["state"]["detail"]
    assert doctor("--state-dir", place, tmp_path / "data")[0] == Exit.OK


def _foreign(store: Path) -> None:
    for path in store.iterdir():
        if path.is_file():
            path.unlink()
    (store / "thesis.tex").touch()


def _newer(store: Path) -> None:
    (store / "format").write_text("ipfsfs store 99\n")


def _other(store: Path) -> None:
    (store / "format").write_text("something else\n")


def _empty(store: Path) -> None:
    os.truncate(store / "blocks.sqlite3", 0)


def _garbage(store: Path) -> None:
    (store / "blocks.sqlite3").write_bytes(b"x" * 8192)


def _no_database(store: Path) -> None:
    (store / "blocks.sqlite3").unlink()


@pytest.mark.parametrize("spoil", [_foreign, _newer, _other, _empty, _garbage, _no_database])
def test_store_that_can_not_be_used(
    spoil: Callable[[Path], None], tmp_path: Path, doctor: Callable[..., Answer]
) -> None:
    store = tmp_path / "store"
    store_directory.prepare(str(store))
    code, checks = doctor("--store-dir", store, tmp_path / "data")
    assert (code, checks["store"]["state"]) == (Exit.OK, "ok")
    spoil(store)
    before = everything_in(tmp_path)
    code, checks = doctor("--store-dir", store, tmp_path / "data")
    assert (code, checks["store"]["state"]) == (Exit.TROUBLE, "fail")
    assert everything_in(tmp_path) == before


# --- a node ---------------------------------------------------------------------------------------------


def test_node_that_is_down_is_a_warning_and_leaves_no_trace(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        before = everything_in(tmp_path)
        code, checks = doctor("--store", f"kubo=http://127.0.0.1:{port}", tmp_path / "data")
    assert code == Exit.OK
    assert checks["store"]["state"] == "warn"
    assert f"127.0.0.1:{port}" in checks["store"]["detail"]
    assert everything_in(tmp_path) == before


def test_node_with_an_address_that_is_none(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    code, checks = doctor("--store", "kubo=ftp://there", tmp_path / "data")
    assert (code, checks["store"]["state"]) == (Exit.USAGE, "fail")


@pytest.mark.parametrize(
    ("reach", "code", "said"),
    [
        ("public", 2, "credentials"),
        (None, 2, "credentials"),
        ("private", 0, "is private"),
        ("offline", 0, "is offline"),
    ],
)
def test_credentials_do_not_go_to_a_public_node(
    reach: str | None,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    doctor: Callable[..., Answer],
) -> None:
    answer = NodeStatus("http://there", None, "0.42.0", "12D3", reach)  # type: ignore[arg-type]
    monkeypatch.setattr(keeping, "ask_node", lambda spec: answer)
    data = tmp_path / "data"
    data.mkdir()
    assert doctor("--store", "kubo", data)[0] == Exit.OK
    (data / "id_rsa").touch()
    found, checks = doctor("--store", "kubo", data)
    assert found == code
    assert said in checks["store"]["detail"]
    assert "0.42.0" in checks["store"]["detail"] or code


# --- what is printed ------------------------------------------------------------------------------------


def test_nothing_is_made_or_changed(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "file").write_text("x")
    before = everything_in(tmp_path)
    assert doctor(data)[0] == Exit.OK
    assert doctor(tmp_path / "new")[0] == Exit.OK
    assert everything_in(tmp_path) == before


def test_existing_state_and_store_are_not_changed(tmp_path: Path, doctor: Callable[..., Answer]) -> None:
    state.prepare(str(tmp_path / "state"))
    (tmp_path / "state").chmod(0o755)  # which a mount would close
    store_directory.prepare(str(tmp_path / "store"))
    before = everything_in(tmp_path)
    code, checks = doctor("--state-dir", tmp_path / "state", "--store-dir", tmp_path / "store", tmp_path / "data")
    assert code == Exit.OK
    assert "mode 755, which `ipfsfs mount` makes 700" in checks["state"]["detail"]
    assert everything_in(tmp_path) == before


def test_table_for_people_has_marks_advice_and_a_verdict(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["doctor", str(tmp_path / "file")]) == Exit.USAGE
    out = capsys.readouterr().out
    assert "\033" not in out
    assert f"\nfail  directory                 {tmp_path}/file is not a directory\n" in out
    assert out.endswith("1 failure: a mount would not be made, or does not serve\n")
    monkeypatch.setenv("CI", "1")
    assert cli.main(["doctor"]) == Exit.OK
    assert "a gate is closed" in capsys.readouterr().out.splitlines()[-1]
