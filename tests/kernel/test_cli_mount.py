"""`ipfsfs mount`: when it mounts, when it leaves the plain directory, and when it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused.cli.exits import Exit
from fused.fs.mounts import find_mount_at
from tests.support import namespace
from tests.support.background import Background
from tests.support.mountproc import REPO
from tests.support.poll import wait_until

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount in a name space of its own")


def tree(directory: Path) -> list[tuple[str, int, int]]:
    """Everything below `directory` with what changes when something is changed."""
    return sorted((str(p), p.lstat().st_mode, p.lstat().st_ctime_ns) for p in [directory, *directory.rglob("*")])


def refused(background: Background, directory: Path, *flags: str, code: Exit = Exit.USAGE) -> str:
    """The sentence with which mounting over `directory` is refused. Nothing below the test's directory may change."""
    before = tree(background.base.base)
    done = background.ipfsfs("mount", *flags, directory, check=False)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("ipfsfs: ")
    assert done.stderr.count("\n") == 1
    assert tree(background.base.base) == before
    return done.stderr.removeprefix("ipfsfs: ").rstrip("\n")


# --- mounting -------------------------------------------------------------------------------------------------------


def test_background_mount_serves_when_the_command_returns(background: Background) -> None:
    (background.path / "before").write_text("was here")
    done = background.mount()
    assert find_mount_at(str(background.path)) is not None
    assert (background.path / "before").read_text() == "was here"
    assert done.stdout.startswith(f"{background.path} is covered (daemon {background.base.pid})")
    assert done.stderr == ""
    background.umount()
    assert background.is_plain()
    assert (background.path / "before").read_text() == "was here"


def test_daemon_is_no_child_of_the_terminal_and_its_log_is_in_the_state_directory(background: Background) -> None:
    background.mount()
    seen = background.supervisor()
    assert os.getsid(seen.pid) == seen.pid
    assert seen.daemon_pid == background.base.pid
    assert "serving" in (background.state / "log").read_text()
    assert background.state.stat().st_mode & 0o777 == 0o700


def test_missing_directory_is_made_and_said(background: Background) -> None:
    new = background.base.base / "not" / "there"
    done = background.ipfsfs("mount", *background.places, new)
    try:
        assert done.stderr == f"ipfsfs: {new} did not exist and was made\n"
        assert find_mount_at(str(new)) is not None
    finally:
        background.ipfsfs("umount", new)
    assert new.is_dir()


def test_symlink_to_a_directory_mounts_over_the_directory(background: Background) -> None:
    link = background.base.base / "link"
    link.symlink_to(background.path)
    background.ipfsfs("mount", *background.places, link)
    assert find_mount_at(str(background.path)) is not None
    background.ipfsfs("umount", link)
    assert background.is_plain()


@pytest.mark.parametrize("name", ["with blank", "caf\u00e9", os.fsdecode(b"caf\xe9"), "a\nb", "a\\040b", "a,b:c", "-x"])
def test_directory_with_an_unusual_name(background: Background, name: str) -> None:
    place = background.base.base / name
    place.mkdir()
    background.ipfsfs("mount", "--", place)  # its state directory has the name in it too
    (place / "file").write_text("x")
    assert len(background.ipfsfs("sync", "--", place).stdout) > 50
    assert background.ipfsfs("status", "--", place / "file").returncode == Exit.OK
    background.ipfsfs("umount", "--", place)
    assert find_mount_at(str(place)) is None
    assert (place / "file").read_text() == "x"


def test_working_directory_may_be_the_mounted_one(background: Background) -> None:
    def here(*args: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "fused", *args],
            cwd=background.path,
            env=background.base.environ,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    assert here("mount", *background.places, ".").returncode == Exit.OK
    assert here("status").returncode == Exit.OK
    assert here("sync").returncode == Exit.OK
    done = here("umount")
    assert (done.returncode, done.stderr) == (Exit.OK, "")
    assert background.is_plain()


def test_python_path_below_the_mount_does_not_stop_the_daemon(background: Background) -> None:
    (background.path / "sitecustomize.py").write_text("")
    background.mount(PYTHONPATH=f"{REPO}{os.pathsep}{background.path}")
    assert (background.path / "sitecustomize.py").exists()


def test_foreground_serves_until_unmounted(background: Background) -> None:
    background.base.start()
    assert background.base.is_mounted()
    background.base.stop()


def test_default_places_are_the_xdg_directories(background: Background) -> None:
    background.ipfsfs("mount", background.path)
    home = background.base.base / "home"
    (state,) = (home / "state" / "ipfsfs" / "mounts").iterdir()
    assert state.name.startswith("mnt-")
    assert (home / "data" / "ipfsfs" / "store").is_dir()
    background.ipfsfs("umount", background.path)
    saved = json.loads((state / "settings.json").read_text())
    assert saved["mountpoint"] == str(background.path)


def test_read_only_mount_lets_nothing_be_changed(background: Background) -> None:
    (background.path / "file").write_text("x")
    background.mount("--read-only")
    assert (background.path / "file").read_text() == "x"
    with pytest.raises(OSError, match="Read-only file system"):
        (background.path / "new").touch()


def test_excluded_files_are_covered_and_not_stored(background: Background) -> None:
    (background.path / "keep").write_text("keep")
    (background.path / "a.tmp").write_text("drop")
    background.mount("--exclude", "*.tmp", "--exclude", "b.*")
    (background.path / "b.txt").write_text("drop")
    cid = background.ipfsfs("sync", background.path).stdout.strip()
    listed = background.ipfsfs("ls", "-0", "--store-dir", background.store, cid).stdout
    assert listed.split("\0") == ["keep", ""]
    assert (background.path / "b.txt").read_text() == "drop"


def test_settings_come_from_the_configuration_file_and_the_environment_too(background: Background) -> None:
    config = background.base.base / "home" / "config" / "ipfsfs" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("read-only = true\nquiet_seconds = 7\n")
    background.mount(IPFSFS_QUIET_SECONDS="8", IPFSFS_EXCLUDE="*.o")
    options = background.base.status()["options"]
    assert (options["read_only"], options["quiet_seconds"], options["exclude"]) == (True, 8.0, ["*.o"])


# --- gates and fallback -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IPFS_KIT_DISABLE", "1"),
        ("IPFS_KIT_DISABLE", "True"),
        ("IPFS_KIT_DISABLE", "YES"),
        ("STORAGE_FORCE_LOCAL", "1"),
        ("STORAGE_FORCE_LOCAL", "true"),
        ("STORAGE_FORCE_LOCAL", "Yes"),
        ("CI", "true"),
        ("CI", "false"),
        ("CI", "0"),
    ],
)
@pytest.mark.parametrize("flags", [[], ["-f"], ["--require"]], ids=["background", "foreground", "require"])
def test_closed_gate_leaves_the_plain_directory(
    background: Background, name: str, value: str, flags: list[str]
) -> None:
    (background.path / "file").write_text("x")
    before = tree(background.base.base)
    done = background.mount(*flags, **{name: value})
    assert done.stderr == (
        f"ipfsfs: not mounting {background.path}: {name}={value} says not to (--force mounts all the same)\n"
    )
    assert done.stdout == ""
    assert tree(background.base.base) == before


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("IPFS_KIT_DISABLE", "on"),
        ("IPFS_KIT_DISABLE", " 1"),
        ("IPFS_KIT_DISABLE", "0"),
        ("STORAGE_FORCE_LOCAL", "on"),
        ("STORAGE_FORCE_LOCAL", "true "),
        ("CI", ""),
    ],
)
def test_open_gate_lets_mount(background: Background, name: str, value: str) -> None:
    background.mount(**{name: value})
    assert background.is_mounted()


@pytest.mark.parametrize("name", ["IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL", "CI"])
def test_force_mounts_through_a_closed_gate(background: Background, name: str) -> None:
    background.mount("--force", **{name: "1"})
    assert background.is_mounted()


def test_gates_come_before_everything_else(background: Background) -> None:
    (background.path / "file").touch()
    done = background.ipfsfs("mount", background.path / "file", CI="1")
    assert "CI=1 says not to" in done.stderr


def test_closed_gate_leaves_a_directory_where_there_was_none(background: Background) -> None:
    new = background.base.base / "new"
    background.ipfsfs("mount", new, CI="1")
    assert new.is_dir()


WITHOUT_DEVICE = "mount -t tmpfs none /dev && exec "
WITHOUT_PERMISSION = (
    "mount -t tmpfs -o dev,mode=755 none /dev && mknod -m 600 /dev/fuse c 10 229 && mknod /dev/null c 1 3 && "
    "exec setpriv --bounding-set=-sys_admin --inh-caps=-sys_admin "
)


def without_fuse(background: Background, prepare: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run a command where FUSE can't be used, for it alone."""
    return subprocess.run(
        namespace.command("sh", "-c", f'{prepare} "$0" "$@"', sys.executable, "-m", "fused", *args),
        env=background.base.environ,
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@as_root
@pytest.mark.parametrize("flags", [[], ["-f"]], ids=["background", "foreground"])
@pytest.mark.parametrize(
    ("prepare", "says"),
    [(WITHOUT_DEVICE, "/dev/fuse does not exist"), (WITHOUT_PERMISSION, "ermi")],
    ids=["device", "permission"],
)
def test_without_fuse_the_plain_directory_stays_with_a_warning(
    background: Background, prepare: str, says: str, flags: list[str]
) -> None:
    background.base.expect_log("can't be mounted: .*ermi")
    (background.path / "file").write_text("x")
    command = ["mount", *background.places, *flags, str(background.path)]
    done = without_fuse(background, prepare, *command)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == Exit.OK, done.stderr
    assert last.startswith(f"ipfsfs: warning: not mounting {background.path}: ")
    assert says in last
    assert background.is_plain()
    assert (background.path / "file").read_text() == "x"


@as_root
@pytest.mark.parametrize("prepare", [WITHOUT_DEVICE, WITHOUT_PERMISSION], ids=["device", "permission"])
def test_without_fuse_require_makes_it_an_error(background: Background, prepare: str) -> None:
    background.base.expect_log("can't be mounted: .*ermi")
    done = without_fuse(background, prepare, "mount", "--require", *background.places, str(background.path))
    assert done.returncode == Exit.NO_MOUNT
    assert "can't be mounted: " in done.stderr
    assert background.is_plain()


# --- refusals -------------------------------------------------------------------------------------------------------


def test_file_is_refused(background: Background) -> None:
    file = background.base.base / "file"
    file.touch()
    assert refused(background, file) == f"{file} is not a directory"
    assert refused(background, file / "below") == f"{file}/below is below something that is not a directory"


def test_mounting_twice_is_refused(background: Background) -> None:
    background.mount()
    pid = background.base.pid
    for flags in ([], background.places, ["--state-dir", str(background.base.base / "other")], ["-f"]):
        done = background.ipfsfs("mount", *flags, background.path, check=False)
        assert done.returncode == Exit.BUSY
        assert done.stderr == (
            f"ipfsfs: {background.path} is already mounted; `ipfsfs status {background.path}` shows it\n"
        )
    assert background.base.pid == pid
    assert not (background.base.base / "other").exists()


def test_state_directory_of_another_mount_is_refused(background: Background) -> None:
    background.mount()
    other = background.base.base / "other"
    other.mkdir()
    done = background.ipfsfs("mount", *background.places, other, check=False)
    assert done.returncode == Exit.BUSY
    assert "is using the state directory" in done.stderr


@pytest.mark.parametrize("what", ["state-dir", "store-dir"])
@pytest.mark.parametrize("below", ["", "x", "x/y"])
def test_directory_that_holds_state_or_store_is_refused(background: Background, what: str, below: str) -> None:
    place = background.path / below
    name = "the state directory" if what == "state-dir" else "the store"
    assert refused(background, background.path, f"--{what}", str(place)) == (
        f"{background.path} can't be covered: {name} ({place}) lies in it, the daemon would wait for itself"
    )


@pytest.mark.parametrize("what", ["state-dir", "store-dir"])
def test_directory_inside_state_or_store_is_refused(background: Background, what: str) -> None:
    assert "can't be covered: it lies in the st" in refused(
        background, background.path, f"--{what}", str(background.base.base)
    )


def test_default_state_below_the_directory_is_refused(background: Background) -> None:
    home = background.base.base / "home"
    home.mkdir()
    assert "can't be covered: the state directory" in refused(background, home)


def test_store_reached_through_a_symlink_is_refused(background: Background) -> None:
    link = background.base.base / "link"
    link.symlink_to(background.path)
    assert "can't be covered: the store" in refused(background, background.path, "--store-dir", str(link / "store"))


def test_log_file_below_the_directory_is_refused(background: Background) -> None:
    log = background.path / "log"
    assert "can't be covered: the log file" in refused(background, background.path, "--log-file", str(log))


@pytest.mark.parametrize("directory", [Path("/"), REPO, REPO / "fused", Path(sys.prefix), Path(sys.base_prefix)])
def test_directory_with_the_program_itself_is_refused(background: Background, directory: Path) -> None:
    said = refused(background, directory, "--state-dir", "/nonexistent/state", "--store-dir", "/nonexistent/store")
    assert "can't be covered: " in said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--quiet-seconds", "soon"], "--quiet-seconds must be a number of seconds, not 'soon'"),
        (["--interval-seconds", "-1"], "--interval-seconds must be a number of seconds, 0 or more, not '-1'"),
    ],
)
def test_bad_value_is_refused(background: Background, flags: list[str], says: str) -> None:
    assert refused(background, background.path, *flags) == says


def test_bad_configuration_file_is_refused(background: Background) -> None:
    config = background.base.base / "home" / "config" / "ipfsfs" / "config.toml"
    config.parent.mkdir(parents=True)
    config.write_text("read_onyl = true\n")
    assert "there is no setting 'read_onyl'" in refused(background, background.path)


def test_store_that_can_not_be_used_is_reported_by_the_parent(background: Background) -> None:
    background.base.expect_log("store")
    background.store.write_text("not a directory")
    done = background.mount(check=False)
    assert done.returncode == Exit.TROUBLE
    assert str(background.store) in done.stderr
    assert done.stderr.count("\n") == 1
    assert background.is_plain()


@pytest.mark.parametrize("flags", [[], ["-f"]], ids=["background", "foreground"])
def test_log_file_that_can_not_be_made_is_told(background: Background, flags: list[str]) -> None:
    log = background.base.base / "not" / "there"
    done = background.mount("--log-file", str(log), *flags, check=False)
    assert (done.returncode, done.stderr) == (Exit.FAILED, f"ipfsfs: {log}: No such file or directory\n")
    assert background.is_plain()


@pytest.mark.parametrize("flags", [[], ["-f"]], ids=["background", "foreground"])
def test_log_file_is_where_it_was_asked_for(background: Background, flags: list[str]) -> None:
    log = background.base.base / "my.log"
    if flags:
        background.base.start("--log-file", str(log))
        background.base.stop()
    else:
        background.mount("--log-file", str(log))
        background.umount()
    assert f"serving mountpoint={background.path}" in log.read_text()
    assert not (background.state / "log").exists()


def test_state_directory_that_is_a_file_is_refused(background: Background) -> None:
    background.state.write_text("")
    assert "is not a directory" in refused(background, background.path, "--state-dir", str(background.state))


@as_root
def test_store_below_another_name_of_the_directory_is_refused(background: Background) -> None:
    alias = background.base.base / "alias"
    alias.mkdir()
    program = 'mount --bind "$1" "$2" && exec "$3" -m fused mount --store-dir "$2/store" "$1"'
    done = subprocess.run(
        namespace.command("sh", "-c", program, "sh", background.path, alias, sys.executable),
        env=background.base.environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == Exit.USAGE
    assert "can't be covered: the store" in done.stderr


# --- dead mounts ------------------------------------------------------------------------------------------------


def test_dead_mount_is_taken_away_and_mounted_again(background: Background) -> None:
    (background.path / "file").write_text("x")
    background.base.start()
    background.base.kill9()
    with pytest.raises(OSError, match="Transport endpoint is not connected"):
        os.stat(background.path)
    done = background.mount()
    assert done.stderr == f"ipfsfs: the daemon of {background.path} had died; its dead mount was taken away\n"
    assert (background.path / "file").read_text() == "x"
    background.umount()
    assert background.is_plain()


def test_dead_mount_is_taken_away_when_a_gate_is_closed(background: Background) -> None:
    (background.path / "file").write_text("x")
    background.base.start()
    background.base.kill9()
    done = background.mount(CI="1")
    assert done.stderr.endswith("; a dead mount was taken away\n")
    assert (background.path / "file").read_text() == "x"


def test_directory_inside_a_dead_mount_is_refused(background: Background) -> None:
    (background.path / "sub").mkdir()
    background.base.start()
    background.base.kill9()
    done = background.ipfsfs("mount", background.path / "sub", check=False)
    assert done.returncode == Exit.USAGE
    assert "can't be looked at: Transport endpoint is not connected" in done.stderr


def test_interrupting_the_command_leaves_no_mount(background: Background) -> None:
    """Ctrl-C reaches the command only: the supervisor has a session of its own."""
    command = [sys.executable, "-m", "fused", "mount", *background.places, str(background.path)]
    with subprocess.Popen(command, env=background.base.environ, stderr=subprocess.DEVNULL) as process:
        wait_until((background.state / "supervisor.json").exists, "supervisor")
        process.send_signal(2)
        code = process.wait(timeout=30)
    if code == Exit.INTERRUPTED:
        wait_until(background.is_plain, "end of the supervisor")
    else:  # it was quicker
        assert code == Exit.OK
        assert background.is_mounted()
