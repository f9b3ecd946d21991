"""`ipfsfs umount`: the last snapshot, what is not stored, and who keeps a mount busy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused.cli.exits import Exit
from tests.support.background import Background
from tests.support.mountproc import mounts_under

SLOW = ("--quiet-seconds=600", "--interval-seconds=600")


def snapshots(background: Background) -> list[dict[str, object]]:
    out = background.ipfsfs("log", "--json", "--state-dir", background.state, background.path).stdout
    found: list[dict[str, object]] = json.loads(out)
    return found


def test_umount_takes_a_last_snapshot_of_what_was_written_just_before(background: Background) -> None:
    background.mount(*SLOW)
    background.base.sync()
    (background.path / "last").write_text("words")
    done = background.umount("--json")
    assert done.stderr == ""
    result = json.loads(done.stdout)
    assert result == {
        "snapshot": snapshots(background)[0]["snapshot"],
        "unstored": {"files": 0, "bytes": 0},
        "scanned": True,
    }
    assert background.is_plain()
    listed = background.ipfsfs("ls", "--store-dir", background.store, result["snapshot"]).stdout
    assert "last" in listed


def test_umount_now_takes_none_and_says_what_is_not_stored(background: Background) -> None:
    background.mount(*SLOW)
    background.base.sync()
    (background.path / "a").write_bytes(b"x" * 1000)
    (background.path / "b").write_bytes(b"y" * 48)
    done = background.umount("--now")
    assert done.returncode == Exit.OK
    assert done.stderr.startswith("ipfsfs: 2 files (")
    assert done.stderr.endswith(f") not stored yet; the next mount of {background.path} does it\n")
    assert (background.path / "a").read_bytes() == b"x" * 1000
    background.mount()
    background.base.sync()
    assert snapshots(background)[0]["files"] == 2


def test_umount_from_any_path_inside(background: Background) -> None:
    background.mount()
    (background.path / "a" / "b").mkdir(parents=True)
    background.ipfsfs("umount", background.path / "a" / "b")
    assert background.is_plain()


HOLD = {
    "working directory": "import os, sys; os.chdir(sys.argv[1]); print(flush=True); sys.stdin.read()",
    "open file": "import sys; f = open(sys.argv[1] + '/file'); print(flush=True); sys.stdin.read()",
    "mapped file": (
        "import sys, mmap; f = open(sys.argv[1] + '/file', 'r+b'); m = mmap.mmap(f.fileno(), 0); f.close()\n"
        "print(flush=True); sys.stdin.read()"
    ),
}


@pytest.mark.parametrize("how", HOLD)
def test_busy_mount_stays_and_the_process_that_uses_it_is_named(background: Background, how: str) -> None:
    (background.path / "file").write_text("x")
    background.mount()
    with subprocess.Popen(
        [sys.executable, "-c", HOLD[how], background.path], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        done = background.umount(check=False)
        assert done.returncode == Exit.BUSY
        assert done.stderr.startswith(f"ipfsfs: {background.path} is in use by ")
        assert f"(pid {holder.pid}, " in done.stderr
        assert done.stderr.endswith("; it stays mounted\n")
        assert background.base.status()["state"] == "serving"
        (background.path / "more").write_text("still works")
        holder.communicate(b"")
    background.umount()
    assert background.is_plain()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount something below the mount")
def test_mount_with_another_mount_below_it_stays_and_names_it(background: Background) -> None:
    background.mount()
    below = background.path / "below"
    below.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", below], check=True)
    try:
        done = background.umount(check=False)
        assert done.returncode == Exit.BUSY
        assert f"a mount on {below}" in done.stderr
    finally:
        subprocess.run(["umount", below], check=True)


def test_plain_umount_by_the_system_ends_the_daemon_with_a_last_snapshot(background: Background) -> None:
    background.mount(*SLOW)
    (background.path / "last").write_text("words")
    command = ["umount"] if os.geteuid() == 0 else ["fusermount3", "-u"]
    subprocess.run([*command, background.path], check=True)
    done = background.umount(check=False)  # waits for the end, if it has not come yet
    assert done.returncode in (Exit.OK, Exit.NOT_MOUNTED)
    assert snapshots(background)[0]["files"] == 1


def test_directory_that_is_not_mounted_any_more_is_exit_code_3(background: Background) -> None:
    background.mount()
    background.umount()
    done = background.umount(check=False)
    assert (done.returncode, done.stderr) == (Exit.NOT_MOUNTED, f"ipfsfs: {background.path} is not mounted\n")


def test_last_snapshot_that_fails_is_told_and_the_files_are_there(background: Background) -> None:
    background.base.expect_log("the last snapshot failed", "snapshot", "store")
    background.mount(*SLOW)
    background.base.sync()
    (background.path / "file").write_bytes(os.urandom(3 << 20))
    break_store(background.store)
    try:
        done = background.umount(check=False)
    finally:
        mend_store(background.store)
    assert done.returncode == Exit.TROUBLE, done.stderr
    assert "the last snapshot failed, so 1 file (3.0 MiB) not stored yet" in done.stderr
    assert background.is_plain()
    assert (background.path / "file").stat().st_size == 3 << 20


def break_store(store: Path) -> None:
    """Nothing can be written to `store`, by root neither: a full file system lies over it."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k,nr_inodes=1", "none", store], check=True)


def mend_store(store: Path) -> None:
    subprocess.run(["umount", "--lazy", store], check=True)


def test_umounting_and_mounting_at_once_again_works_each_time(background: Background) -> None:
    for number in range(5):
        background.mount()
        (background.path / "file").write_text(str(number))
        background.umount()
        assert (background.path / "file").read_text() == str(number)
    assert not mounts_under(background.path)
