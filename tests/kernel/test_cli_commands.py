"""`ipfsfs sync`, `status` and `log` on a mount, and after it."""

from __future__ import annotations

import fcntl
import json
import mmap
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from fused import __version__
from fused.cli.exits import Exit
from tests.support.background import Background
from tests.support.mountproc import MountProcess

CID = re.compile(r"b[a-z2-7]{40,}")
SLOW = ("--quiet-seconds=600", "--interval-seconds=600")


def cat(mount: MountProcess, cid: str, name: str) -> str:
    return mount.ipfsfs("cat", "--store-dir", mount.store, f"{cid}/{name}").stdout


# --- sync -----------------------------------------------------------------------------------------------------------


def test_sync_prints_the_cid_and_nothing_else(mounted: MountProcess) -> None:
    (mounted.path / "file").write_text("x")
    done = mounted.ipfsfs("sync", mounted.path / "file")
    assert CID.fullmatch(done.stdout.rstrip("\n"))
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""


def test_sync_json_has_what_a_script_needs(mounted: MountProcess) -> None:
    (mounted.path / "file").write_bytes(b"12345")
    found = json.loads(mounted.ipfsfs("sync", "--json", mounted.path).stdout)
    assert (found["files"], found["bytes"]) == (1, 5)
    assert CID.fullmatch(found["snapshot"])
    assert CID.fullmatch(found["tree"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", found["time"])


def test_sync_stores_what_is_written_to_files_that_are_still_open(new_mount: type[MountProcess]) -> None:
    mount = new_mount().start(*SLOW)
    with (
        open(mount.path / "buffered", "w") as buffered,
        open(mount.path / "write-only", "wb", opener=lambda p, f: os.open(p, f, 0o200)) as write_only,
    ):
        buffered.write("in the kernel, not in the file")
        buffered.flush()
        write_only.write(b"mode 0200")
        write_only.flush()
        done = mount.ipfsfs("sync", mount.path)
        cid = done.stdout.strip()
        assert cat(mount, cid, "buffered") == "in the kernel, not in the file"
        assert cat(mount, cid, "write-only") == "mode 0200"
        assert done.stderr == ""


def test_sync_stores_what_is_written_through_a_shared_mapping(new_mount: type[MountProcess]) -> None:
    mount = new_mount().start(*SLOW)
    (mount.path / "mapped").write_bytes(bytes(8192))
    with open(mount.path / "mapped", "r+b") as file:
        mapping = mmap.mmap(file.fileno(), 8192)
    mapping[5000:5005] = b"words"
    cid = mount.sync()
    assert cat(mount, cid, "mapped").replace("\0", "") == "words"
    mapping.close()


def test_sync_leaves_fifos_and_moved_files_alone(new_mount: type[MountProcess]) -> None:
    mount = new_mount().start(*SLOW)
    os.mkfifo(mount.path / "fifo")
    with open(mount.path / "a", "w") as moved:
        moved.write("moved")
        moved.flush()
        (mount.path / "a").rename(mount.path / "b")
        (mount.path / "a").symlink_to("/dev/full")
        cid = mount.sync()
    assert cat(mount, cid, "b") == "moved"


def test_sync_on_a_terminal_prints_only_the_cid_on_stdout(mounted: MountProcess) -> None:
    for number in range(300):
        (mounted.path / str(number)).write_bytes(os.urandom(20000))
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("4H", 24, 80, 0, 0))
    done = subprocess.run(
        [sys.executable, "-m", "fused", "sync", mounted.path],
        env=mounted.environ | {"TERM": "xterm"},
        stdout=subprocess.PIPE,
        stderr=terminal,
        text=True,
        timeout=60,
        check=True,
    )
    os.close(terminal)
    shown = b""
    with suppress(OSError):  # the end of what was shown
        shown = os.read(controller, 65536)
    os.close(controller)
    assert CID.fullmatch(done.stdout.rstrip("\n"))
    assert b"ipfsfs: " not in shown


@pytest.mark.parametrize("command", ["sync", "status", "log"])
def test_command_finds_the_mount_from_any_path_inside(mounted: MountProcess, command: str) -> None:
    (mounted.path / "a" / "b").mkdir(parents=True)
    mounted.sync()
    assert mounted.ipfsfs(command, mounted.path / "a" / "b").stdout
    assert mounted.ipfsfs(command, mounted.path / "a" / "not" / "there").stdout


def test_sync_of_a_directory_that_is_not_mounted_is_exit_code_3(background: Background) -> None:
    background.mount()
    background.umount()
    done = background.ipfsfs("sync", background.path, check=False)
    assert done.returncode == Exit.NOT_MOUNTED
    assert done.stdout == ""
    assert "is not " in done.stderr


# --- status ---------------------------------------------------------------------------------------------------------


def test_status_json_has_every_field(background: Background) -> None:
    (background.path / "file").write_bytes(b"x" * 100)
    (background.path / "out").write_bytes(b"y")
    background.mount("--exclude", "out", *SLOW)
    cid = background.base.sync()
    (background.path / "dirty").write_bytes(b"z")
    report = background.base.status()
    assert report["mountpoint"] == str(background.path)
    assert report["state"] == "serving"
    assert report["version"] == __version__
    assert os.readlink(f"/proc/{report['pid']}/cwd") == "/"
    assert report["files"] == {"total": 3, "dirty": 1, "storing": 0, "stored": 1, "excluded": 1, "skipped": 0}
    assert report["bytes"]["stored"] == 100
    assert set(report["bytes"]) == set(report["files"])
    assert report["snapshot"]["snapshot"] == cid
    assert 0 <= report["snapshot"]["age_seconds"] < 60
    assert report["store"]["healthy"] is True
    assert report["store"]["path"] == str(background.store)
    assert report["store"]["blocks"] > 0
    assert report["store"]["disk_bytes"] > 0
    assert report["local"]["total_bytes"] > report["local"]["free_bytes"] > 0
    assert report["requests"]["create"]["count"] == 1
    assert set(report["requests"]["create"]) == {"count", "errors", "p50_us", "p99_us", "max_us"}
    assert report["wrong"] == []
    assert report["supervisor"]["running"] is True
    assert [gate["name"] for gate in report["gates"]] == ["IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL", "CI"]


def test_status_for_people_names_what_matters(background: Background) -> None:
    (background.path / "file").write_bytes(b"x" * 100)
    background.mount()
    cid = background.base.sync()
    out = background.ipfsfs("status", background.path, STORAGE_FORCE_LOCAL="yes").stdout
    assert out.startswith(f"{background.path}  serving  pid {background.base.pid}, ipfsfs {__version__}")
    assert re.search(r"^stored +1 file +100 B$", out, re.MULTILINE)
    assert f"snapshot  {cid}" in out
    assert f"store     embedded in {background.store}, healthy" in out
    assert "STORAGE_FORCE_LOCAL=yes keeps `ipfsfs mount` from mounting" in out
    assert "\033" not in out


def test_status_of_a_directory_that_is_not_mounted_shows_gates_and_last_snapshot(background: Background) -> None:
    (background.path / "file").write_bytes(b"x")
    background.mount()
    cid = background.base.sync()
    background.umount()
    place = ["--state-dir", background.state, background.path]
    done = background.ipfsfs("status", "--json", *place, check=False, CI="yes")
    report = json.loads(done.stdout)
    assert (done.returncode, report["state"], report["pid"]) == (Exit.NOT_MOUNTED, "unmounted", None)
    assert (report["snapshot"]["snapshot"], report["snapshots"]) == (cid, 1)
    assert [gate["closed"] for gate in report["gates"]] == [False, False, True]
    out = background.ipfsfs("status", *place, check=False).stdout
    assert out.startswith(f"{background.path}  unmounted\n")
    assert cid in out


def test_status_names_what_was_skipped_and_why(background: Background) -> None:
    (background.path / "fine").write_text("x")
    (background.path / "nested").mkdir()
    background.mount()
    if os.geteuid() == 0:
        subprocess.run(["mount", "-t", "tmpfs", "none", background.path / "nested"], check=True)
    try:
        background.base.sync()
        report = background.base.status()
        assert all(set(entry) == {"path", "why"} for entry in report["skipped"])
    finally:
        if os.geteuid() == 0:
            subprocess.run(["umount", background.path / "nested"], check=True)


def test_damaged_index_of_an_unmounted_directory_is_told(background: Background) -> None:
    background.mount()
    background.base.sync()
    background.umount()
    (background.state / "index.sqlite").write_bytes(b"\0" * 4096)
    done = background.ipfsfs("status", "--json", "--state-dir", background.state, background.path, check=False)
    assert done.returncode == Exit.NOT_MOUNTED
    assert any("index" in sentence for sentence in json.loads(done.stdout)["wrong"])
    done = background.ipfsfs("log", "--state-dir", background.state, background.path, check=False)
    assert done.returncode == Exit.TROUBLE
    assert "index" in done.stderr
    background.base.expect_log("index")


# --- log ------------------------------------------------------------------------------------------------------------


def three_snapshots(mount: MountProcess) -> list[str]:
    """The CIDs of the three newest snapshots; there is at least one before them, of the empty directory."""
    mount.sync()
    (mount.path / "a").write_bytes(b"1")
    (mount.path / "b").write_bytes(b"2")
    first = mount.sync()
    (mount.path / "a").write_bytes(b"10")
    (mount.path / "c").write_bytes(b"300")
    second = mount.sync()
    (mount.path / "b").unlink()
    return [mount.sync(), second, first]


def test_log_lists_snapshots_newest_first_with_what_changed(background: Background) -> None:
    background.mount(*SLOW)
    cids = three_snapshots(background.base)
    online = json.loads(background.ipfsfs("log", "--json", background.path).stdout)
    assert [entry["snapshot"] for entry in online[:3]] == cids
    assert [(entry["files"], entry["bytes"]) for entry in online[:3]] == [(2, 5), (3, 6), (2, 2)]
    assert [entry["changed"] for entry in online[:3]] == [
        {"added": 0, "modified": 0, "removed": 1},
        {"added": 1, "modified": 1, "removed": 0},
        {"added": 2, "modified": 0, "removed": 0},
    ]
    assert len({entry["tree"] for entry in online[:3]}) == 3
    background.umount()
    place = ["--state-dir", background.state, background.path]
    assert json.loads(background.ipfsfs("log", "--json", *place).stdout) == online
    limited = background.ipfsfs("log", "--json", "-n", "1", *place).stdout
    assert json.loads(limited) == online[:1]


def test_log_for_people(background: Background) -> None:
    background.mount(*SLOW)
    cids = three_snapshots(background.base)
    out = background.ipfsfs("log", background.path).stdout
    assert [line for line in out.splitlines() if CID.fullmatch(line)][:3] == cids
    assert "    content  3 files, 6 B\n    changed  1 added, 1 modified\n" in out


def test_log_of_a_default_state_directory_is_found_from_the_path(background: Background) -> None:
    (background.path / "sub").mkdir()
    background.ipfsfs("mount", background.path)
    cid = background.ipfsfs("sync", background.path).stdout.strip()
    background.ipfsfs("umount", background.path)
    assert cid in background.ipfsfs("log", background.path / "sub").stdout


def test_log_without_snapshots_says_so_and_is_an_empty_list(background: Background) -> None:
    background.mount()
    background.umount("--now")
    place = ["--state-dir", background.state, background.path]
    out = background.ipfsfs("log", "--json", *place).stdout
    if json.loads(out) == []:  # the first one may have been taken already
        assert background.ipfsfs("log", *place).stderr == "no snapshots yet\n"


def test_control_socket_refuses_nonsense_and_the_mount_lives(mounted: MountProcess) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(10)
        directory = os.open(mounted.state, os.O_PATH)
        sock.connect(f"/proc/self/fd/{directory}/control")
        os.close(directory)
        sock.sendall(b'{"op": ["status"], "args": 7}\n')
        assert b'"error"' in sock.recv(65536)
    assert mounted.status()["state"] == "serving"
    assert Path(mounted.state, "control").lstat().st_mode & 0o777 == 0o600
