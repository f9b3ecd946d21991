"""`ipfsfs fsck` on real mounts: beside programs that write, on a dead mount, and after the unmount."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from fused.cid import CID, RAW, cid_of, format_cid
from fused.cli.exits import Fsck
from fused.index.schema import row_sum
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.store_files import change_block, check_invariants, cut, flip_bit

SELDOM = "--quiet-seconds=3600", "--interval-seconds=3600"
OFTEN = "--quiet-seconds=0.05", "--interval-seconds=0.2"


def fsck(mount: MountProcess, *args: str, check: bool = False) -> tuple[int, dict[str, Any]]:
    """Exit code and JSON of `ipfsfs fsck`."""
    done = mount.ipfsfs("fsck", "--json", "--state-dir", mount.state, *args, mount.path, check=check)
    return done.returncode, json.loads(done.stdout)


def assert_clean(mount: MountProcess, *args: str) -> dict[str, Any]:
    """Nothing is wrong; what is left over may be."""
    code, said = fsck(mount, *args)
    assert (code, said["failed"], [f for f in said["findings"] if not f["harmless"]]) == (Fsck.CLEAN, [], [])
    return said


def fill(root: Path) -> dict[str, CID]:
    """A few files; the CIDs of leaves in them: one in a file of the store, one in its database."""
    rng = random.Random(7)
    (root / "large").write_bytes(rng.randbytes(1_500_000))
    (root / "sub").mkdir()
    (root / "sub/small").write_bytes(b"small")
    os.symlink("small", root / "sub/link")
    return {
        "large": cid_of(RAW, (root / "large").read_bytes()[: 1 << 20]),
        "sub/small": cid_of(RAW, b"small"),
    }


Stored = tuple[MountProcess, dict[str, CID]]


@pytest.fixture(params=["mounted", "unmounted"])
def stored(request: pytest.FixtureRequest, new_mount: Callable[..., MountProcess]) -> Stored:
    """A tree that is stored, and is mounted or not any more."""
    mount = new_mount()
    leaves = fill(mount.plain)
    mount.start(*SELDOM)
    mount.sync()
    if request.param == "unmounted":
        mount.stop()
    return mount, leaves


@contextmanager
def index(mount: MountProcess) -> Iterator[sqlite3.Connection]:
    """The index, to be changed behind everybody's back."""
    with closing(sqlite3.connect(mount.state / "index.sqlite", timeout=10)) as c, c:
        yield c


def newest_tree(mount: MountProcess) -> str:
    """The tree of the newest snapshot."""
    rows = json.loads(mount.ipfsfs("log", "--json", "--state-dir", mount.state, mount.path).stdout)
    return str(rows[0]["tree"])


@pytest.mark.parametrize(("name", "change"), [("large", flip_bit), ("sub/small", cut)])
def test_damaged_block_is_named_and_made_again_from_the_plain_file(
    stored: Stored, name: str, change: Callable[[bytes], bytes]
) -> None:
    mount, leaves = stored
    assert_clean(mount, "--content")
    change_block(mount.store, leaves[name], change)
    code, said = fsck(mount)
    assert code == Fsck.UNCORRECTED
    assert [(f["kind"], f["cid"], f["paths"]) for f in said["findings"]] == [
        ("block", format_cid(leaves[name]), [name])
    ]
    code, said = fsck(mount, "--repair")
    assert code == Fsck.CORRECTED
    assert [(f["cid"], f["repaired"]) for f in said["findings"]] == [(format_cid(leaves[name]), True)]
    assert_clean(mount, "--content")
    check_invariants(mount.store)


def test_every_block_at_once_is_made_again_from_the_plain_files(stored: Stored) -> None:
    mount, _ = stored
    with closing(sqlite3.connect(mount.store / "blocks.sqlite3")) as c:
        every = [CID(cid) for (cid,) in c.execute("SELECT cid FROM blocks")]
    for cid in every:
        change_block(mount.store, cid, flip_bit)
    code, said = fsck(mount, "--repair")
    assert code == Fsck.CORRECTED, said
    assert {f["cid"] for f in said["findings"]} >= {format_cid(cid) for cid in every}
    assert_clean(mount, "--content")


@pytest.mark.parametrize("stored", ["mounted"], indirect=True)
@pytest.mark.parametrize("damage", ["cut", "garbled", "deleted"])
def test_damaged_index_is_named_and_made_anew(stored: Stored, damage: str) -> None:
    mount, _ = stored
    mount.expect_log("index", "it is rebuilt")
    before = newest_tree(mount)
    path = mount.state / "index.sqlite"
    if damage == "deleted":
        path.unlink()
    else:
        with index(mount) as c:
            c.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        os.truncate(path, path.stat().st_size // 2) if damage == "cut" else garble(path)
    code, said = fsck(mount)
    assert code == Fsck.UNCORRECTED
    assert [f["kind"] for f in said["findings"]] == ["index"]
    assert str(path) in said["findings"][0]["what"]
    code, said = fsck(mount, "--repair")
    assert (code, [f["repaired"] for f in said["findings"]]) == (Fsck.CORRECTED, [True]), said
    assert_clean(mount)
    assert newest_tree(mount) == before
    mount.sync()
    assert newest_tree(mount) == before
    assert_clean(mount, "--content")


def garble(path: Path) -> None:
    """Other bytes in the second page of the file: the root of a table."""
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 512)


def test_wrong_rows_of_the_index_are_named_and_the_next_snapshot_is_right(
    stored: Stored,
) -> None:
    mount, leaves = stored
    before = newest_tree(mount)
    small, large = (os.stat(mount.plain / name).st_ino for name in ("sub/small", "large"))
    with index(mount) as c:
        c.execute("UPDATE files SET mtime_ns = mtime_ns + 1 WHERE ino = ?", (large,))  # as a flipped bit
        [row] = c.execute("SELECT * FROM files WHERE ino = ?", (small,))
        row = (*row[:5], bytes(leaves["large"]), *row[6:-1])
        c.execute("UPDATE files SET cid = ?, sum = ? WHERE ino = ?", (row[5], row_sum(*row), small))  # as a bug
        c.execute("DELETE FROM dirs WHERE ino = ?", (os.stat(mount.plain / "sub").st_ino,))
    code, said = fsck(mount)
    assert (code, [f["paths"] for f in said["findings"]]) == (Fsck.UNCORRECTED, [["large"]])
    code, said = fsck(mount, "--content")
    assert code == Fsck.UNCORRECTED
    assert sorted(f["paths"] for f in said["findings"]) == [["large"], ["sub/small"]]
    code, said = fsck(mount, "--content", "--repair")
    assert (code, [f["repaired"] for f in said["findings"]]) == (Fsck.CORRECTED, [True, True])
    assert_clean(mount, "--content")
    if not mount.is_mounted():
        mount.start(*SELDOM)
    mount.sync()
    assert newest_tree(mount) == before


def test_files_that_are_not_stored_yet_are_counted_and_no_error(mounted: MountProcess) -> None:
    (mounted.path / "first").write_text("1")
    mounted.sync()
    mounted.restart(*SELDOM)
    mounted.sync()
    (mounted.path / "first").write_text("changed")
    (mounted.path / "second").write_text("2")
    assert assert_clean(mounted, "--content")["checked"]["dirty"] == 2
    mounted.stop("--now")
    assert assert_clean(mounted, "--content")["checked"]["dirty"] == 2


WRITER = """
import os, random, sys
root, seed = sys.argv[1], int(sys.argv[2])
rng = random.Random(seed)
names = [f"{root}/{d}/{n}" for d in "abc" for n in "wxyz"]
for d in "abc":
    os.makedirs(f"{root}/{d}", exist_ok=True)
print("started", flush=True)
while True:
    name, other = rng.sample(names, 2)
    try:
        match rng.randrange(6):
            case 0 | 1:
                with open(name, "wb") as f:
                    f.write(rng.randbytes(rng.choice((10, 5000, 1_100_000))))
            case 2:
                with open(name, "r+b") as f:
                    f.seek(rng.randrange(100)); f.write(b"x")
            case 3:
                os.rename(name, other)
            case 4:
                os.unlink(name)
            case 5:
                os.link(name, other)
    except OSError:
        pass
"""


def test_no_false_alarm_while_programs_write_and_snapshots_are_taken(new_mount: Callable[..., MountProcess]) -> None:
    mount = new_mount().start(*OFTEN)
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, mount.path, str(seed)], stdout=subprocess.PIPE, text=True)
        for seed in range(2)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "started\n"
        for number in range(6):
            assert_clean(mount, *(["--content"] if number % 2 else []))
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    mount.sync()
    taken = len(json.loads(mount.ipfsfs("log", "--json", mount.path).stdout))
    assert taken > 3, "the snapshots that this is about were not taken"
    assert_clean(mount, "--content")


def test_killed_daemon_leaves_nothing_damaged(new_mount: Callable[..., MountProcess]) -> None:
    mount = new_mount().start(*OFTEN)
    for number in range(40):
        (mount.path / f"file{number % 7}").write_bytes(os.urandom(150_000))
        if number % 13 == 12:
            mount.kill9()
            code, said = fsck(mount)
            assert code == Fsck.OPERATIONAL
            assert "the dead mount hides" in said["failed"][0]
            assert [f for f in said["findings"] if not f["harmless"]] == []
            mount.detach()
            assert_clean(mount, "--content")
            mount.start(*OFTEN)
    mount.sync()
    assert_clean(mount, "--content")


def test_damage_is_named_though_the_mount_is_dead(new_mount: Callable[..., MountProcess]) -> None:
    mount = new_mount().start(*SELDOM)
    leaves = fill(mount.path)
    mount.sync()
    mount.kill9()
    change_block(mount.store, leaves["large"], flip_bit)
    code, said = fsck(mount)
    assert code == Fsck.OPERATIONAL | Fsck.UNCORRECTED
    assert [f["cid"] for f in said["findings"]] == [format_cid(leaves["large"])]


def test_repaired_snapshot_is_restored_as_it_was(new_mount: Callable[..., MountProcess], tmp_path: Path) -> None:
    mount = new_mount().start(*SELDOM)
    fill(mount.path)
    snapshot = mount.sync()
    shutil.copytree(mount.plain, tmp_path / "copy", symlinks=True)
    for blob in (mount.store / "blobs").rglob("*.*"):
        blob.write_bytes(flip_bit(blob.read_bytes()))
    assert fsck(mount)[0] == Fsck.UNCORRECTED
    assert fsck(mount, "--repair")[0] == Fsck.CORRECTED
    assert_same_tree(tmp_path / "copy", mount.restore(snapshot, tmp_path / "yes"))


def test_interrupted_check_has_a_code_of_its_own(mounted: MountProcess) -> None:
    """Interrupted where it waits: the daemon, which is stopped, is asked about the index."""
    pid = mounted.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        command = [sys.executable, "-m", "fused", "fsck", "--json", str(mounted.path)]
        process = subprocess.Popen(
            command, env=mounted.environ, cwd=mounted.base, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        waits_at = Path(f"/proc/{process.pid}/wchan")
        wait_until(lambda: "sk" in waits_at.read_text() or "unix" in waits_at.read_text(), "wait for the daemon")
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    finally:
        os.kill(pid, signal.SIGCONT)
    assert process.returncode == Fsck.CANCELLED
    assert err == "ipfsfs: interrupted\n"
    assert json.loads(out)["exit"] == Fsck.CANCELLED


def test_progress_is_shown_on_standard_error(mounted: MountProcess) -> None:
    fill(mounted.path)
    mounted.sync()
    done = mounted.ipfsfs("fsck", "--progress", mounted.path)
    assert "verifying" in done.stderr
    assert done.stdout.endswith("clean\n")
    assert mounted.ipfsfs("fsck", mounted.path).stderr == ""
