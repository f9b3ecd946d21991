"""A disk that answers with EIO: under the plain files, under the store, under the index. It recovers by itself."""

from __future__ import annotations

import errno
import json
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.compare import assert_same_tree
from tests.support.faultyfs import FaultyDisk, Rule
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.whole import assert_whole

NewMount = Callable[..., MountProcess]

CANT_STORE = r"what changed can't be stored now, next try in \d+ s: "


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def errno_of(call: Callable[[], object]) -> int:
    """What the call fails with; 0 if it does not."""
    try:
        call()
    except OSError as exc:
        return exc.errno or 0
    return 0


def is_well(mount: MountProcess) -> bool:
    """Nothing is wrong, and everything is stored."""
    status = mount.status()
    return status["wrong"] == [] and status["files"]["dirty"] == 0


def skipped(mount: MountProcess) -> dict[str, str]:
    """What is not stored, and why."""
    return {entry["path"]: entry["why"] for entry in mount.status()["skipped"]}


# --- under the plain files --------------------------------------------------------------------------------------


def test_a_file_that_can_not_be_read_is_skipped_and_named_and_the_rest_is_stored(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount(path=faulty_disk.path / "covered")
    for name in ("good", "bad", "sub/good", "sub/bad"):
        (mount.path / name).parent.mkdir(exist_ok=True)
        (mount.path / name).write_bytes(noise(3 << 20, hash(name) % 1000))
    faulty_disk.fail(Rule("read", "*/bad", errno.EIO))
    mount.start("--quiet-seconds", "0.2")
    done = mount.ipfsfs("sync", mount.path)
    assert "2 files" in done.stderr
    assert "Input/output error" in done.stderr
    said = json.loads(mount.ipfsfs("sync", "--json", mount.path).stdout)
    assert sorted(entry["path"] for entry in said["skipped"]) == ["bad", "sub/bad"]
    assert skipped(mount) == {name: "can't be read: Input/output error" for name in ("bad", "sub/bad")}
    restored = mount.restore(done.stdout.strip(), tmp_path / "without")
    assert_same_tree(mount.plain, restored, skip=lambda path: path.endswith(b"bad"))
    assert not (restored / "bad").exists()
    with pytest.raises(OSError, match="Input/output error"):
        (mount.path / "bad").read_bytes()

    # When the disk has recovered, the files are tried again, though nothing has changed and nobody asks.
    faulty_disk.heal()
    wait_until(lambda: skipped(mount) == {}, "another try", 60)
    wait_until(lambda: is_well(mount), "recovery")
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_sync_tries_a_skipped_file_again_at_once(faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path) -> None:
    mount = new_mount(path=faulty_disk.path / "covered")
    mount.start("--quiet-seconds", "600", "--interval-seconds", "600")
    (mount.path / "bad").write_bytes(noise(100_000))
    faulty_disk.fail(Rule("read", "*/bad", errno.EIO))
    mount.sync()
    assert list(skipped(mount)) == ["bad"]
    faulty_disk.heal()
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert skipped(mount) == {}


def test_a_file_that_can_not_be_read_does_not_turn_its_neighbours_back(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    """A directory with something unreadable is known from before; later snapshots must not take that for the truth."""
    mount = new_mount(path=faulty_disk.path / "covered")
    mount.start("--quiet-seconds", "600", "--interval-seconds", "600")
    for directory in ("one", "two"):
        (mount.path / directory).mkdir()
        for name in ("good", "bad"):
            (mount.path / directory / name).write_bytes(b"old")
    mount.sync()
    mount.ipfsfs("status", mount.path)
    for name in ("good", "bad"):
        (mount.path / "one" / name).write_bytes(b"new")
    faulty_disk.fail(Rule("read", "*/one/bad", errno.EIO))
    first = mount.restore(mount.sync(), tmp_path / "first")
    (mount.path / "two" / "good").write_bytes(b"newer")
    second = mount.restore(mount.sync(), tmp_path / "second")
    for restored in (first, second):
        assert (restored / "one" / "good").read_bytes() == b"new"
        assert not (restored / "one" / "bad").exists()
    assert (second / "two" / "good").read_bytes() == b"newer"
    faulty_disk.heal()
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


@pytest.mark.parametrize("flags", [[], ["--write-through"]], ids=["write-back", "write-through"])
def test_an_error_of_the_disk_reaches_the_program_at_write_close_or_fsync(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path, flags: list[str]
) -> None:
    mount = new_mount(path=faulty_disk.path / "covered")
    mount.start(*flags)
    (mount.path / "file").write_bytes(b"old")
    mount.sync()
    faulty_disk.fail(Rule("write", "*/file", errno.EIO))
    fd = os.open(mount.path / "file", os.O_WRONLY)
    told = [errno_of(call) for call in (lambda: os.write(fd, b"new"), lambda: os.fsync(fd), lambda: os.close(fd))]
    assert set(told) == {0, errno.EIO}
    assert faulty_disk.heal()[0]

    faulty_disk.fail(Rule("fsync", "*/file", errno.EIO, times=1))
    fd = os.open(mount.path / "file", os.O_WRONLY)
    os.write(fd, b"new")
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(fd)
    os.fsync(fd)
    os.close(fd)
    faulty_disk.heal()

    for op, attempt in {
        "create": lambda: (mount.path / "another").touch(),
        "mkdir": lambda: (mount.path / "directory").mkdir(),
        "unlink": lambda: os.unlink(mount.path / "file"),
        "rename": lambda: os.rename(mount.path / "file", mount.path / "renamed"),
        "truncate": lambda: os.truncate(mount.path / "file", 1),
        "opendir": lambda: os.listdir(mount.path),
    }.items():
        faulty_disk.fail(Rule(op, "*", errno.EIO))
        with pytest.raises(OSError, match="Input/output error"):
            attempt()
        faulty_disk.heal()
    assert os.listdir(mount.path) == ["file"]
    assert (mount.path / "file").read_bytes() == b"new"
    wait_until(lambda: is_well(mount), "recovery", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_a_directory_that_can_not_be_listed_is_skipped_and_named_and_tried_again(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount(path=faulty_disk.path / "covered").start()
    for name in ("good", "bad"):
        (mount.path / name / "sub").mkdir(parents=True)
        (mount.path / name / "sub" / "file").write_bytes(noise(1000))
    mount.sync()
    mount.stop()
    (mount.path / "bad" / "sub" / "file").write_bytes(noise(1000, 1))  # which no directory's stat tells
    faulty_disk.fail(Rule("opendir", "*/bad", errno.EIO))
    mount.start("--quiet-seconds", "0.2")
    snapshot = mount.sync()
    assert list(skipped(mount)) == ["bad"]
    assert os.listdir(mount.restore(snapshot, tmp_path / "without")) == ["good"]
    faulty_disk.heal()
    wait_until(lambda: is_well(mount), "another try", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_a_disk_that_hangs_in_fsync_keeps_nobody_else_waiting(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount(path=faulty_disk.path / "covered")
    mount.start()
    fd = os.open(mount.path / "slow", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"x")
    faulty_disk.fail(Rule("fsync", "*/slow", delay=-1))
    try:
        waiter = threading.Thread(target=os.fsync, args=(fd,))
        waiter.start()
        wait_until(lambda: sum(faulty_disk.hits()), "fsync on the disk")
        (mount.path / "other").write_bytes(noise(100_000))
        assert (mount.path / "other").read_bytes() == noise(100_000)
        assert mount.status()["state"] == "serving"
        assert waiter.is_alive()
    finally:
        faulty_disk.heal()
    waiter.join(20)
    assert not waiter.is_alive()
    os.close(fd)


# --- under the store --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule",
    [
        Rule("write", "store/tmp/*", errno.EIO),
        Rule("fsync", "store/blobs*", errno.EIO),
        Rule("rename", "store/tmp/*", errno.EIO),
        Rule("write", "store/blocks.sqlite3*", errno.EIO),
        Rule("fsync", "store/blocks.sqlite3*", errno.EIO),
        Rule("*", "store/*", errno.EIO, skip=25),
    ],
    ids=lambda rule: f"{rule.op}-{rule.path.rpartition('/')[2]}",
)
def test_a_store_whose_disk_fails_is_told_and_all_is_stored_once_it_works(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path, rule: Rule
) -> None:
    mount = new_mount()
    mount.store = faulty_disk.path / "store"
    mount.expect_log(CANT_STORE, "Input/output error", "disk I/O error", "changes since the last snapshot not counted")
    mount.start("--quiet-seconds", "0.2")
    (mount.path / "before").write_bytes(noise(200_000, 1))
    before = mount.sync()
    faulty_disk.fail(rule)
    for number in range(4):
        (mount.path / f"small{number}").write_bytes(noise(3000, number))
        (mount.path / f"large{number}").write_bytes(noise(200_000, 10 + number))
    wait_until(lambda: mount.status()["wrong"], "word of the broken store", 30)
    done = mount.ipfsfs("sync", mount.path, check=False)
    assert done.returncode == 4
    assert done.stdout == ""
    assert str(mount.store) in done.stderr
    assert (mount.path / "large2").read_bytes() == noise(200_000, 12)
    assert sum(faulty_disk.heal())
    wait_until(lambda: is_well(mount), "recovery", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert (mount.restore(before, tmp_path / "before") / "before").read_bytes() == noise(200_000, 1)
    assert_whole(mount)


def test_a_block_that_can_not_be_read_is_an_error_that_names_it_and_can_be_read_later(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount()
    mount.store = faulty_disk.path / "store"
    mount.start()
    (mount.path / "file").write_bytes(noise(200_000, 1))
    snapshot = mount.sync()
    faulty_disk.fail(Rule("read", "store/blobs/*", errno.EIO))
    done = mount.ipfsfs("cat", f"{snapshot}/file", "--store-dir", mount.store, check=False)
    assert done.returncode == 4
    assert "block bafkrei" in done.stderr
    assert done.stdout == ""
    assert sum(faulty_disk.heal())
    assert_same_tree(mount.plain, mount.restore(snapshot, tmp_path / "all"))
    (mount.path / "more").write_bytes(b"x")
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "more"))
    assert_whole(mount)


# --- under the state --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["write", "fsync", "*"])
def test_an_index_whose_disk_fails_is_told_and_all_is_stored_once_it_works(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path, op: str
) -> None:
    mount = new_mount()
    mount.state = faulty_disk.path / "state"
    mount.expect_log(CANT_STORE, r"the index .* (is damaged|can't be read)")
    mount.start("--quiet-seconds", "0.2")
    (mount.path / "before").write_bytes(noise(5000, 1))
    before = mount.sync()
    faulty_disk.fail(Rule(op, "state/index.sqlite*", errno.EIO))
    (mount.path / "file").write_bytes(noise(5000, 2))
    told = wait_until(lambda: mount.status()["wrong"], "word of the broken index", 30)
    assert "index" in told[0]
    (mount.path / "more").write_bytes(noise(5000, 3))
    assert sum(faulty_disk.heal())
    wait_until(lambda: is_well(mount), "recovery", 60)
    after = mount.sync()
    assert_same_tree(mount.plain, mount.restore(after, tmp_path / "all"))
    listed = [row["snapshot"] for row in json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)]
    assert listed[0] == after
    assert before in listed
    mount.restart()
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "again"))
    assert_whole(mount)


def test_an_index_that_can_not_be_opened_at_the_start_is_told_and_opened_later(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount()
    mount.state = faulty_disk.path / "state"
    mount.expect_log(CANT_STORE)
    mount.start()
    (mount.path / "file").write_bytes(noise(5000))
    mount.sync()
    mount.stop()
    faulty_disk.fail(Rule("open", "state/index.sqlite*", errno.EIO), Rule("create", "state/index.*", errno.EIO))
    mount.start("--quiet-seconds", "0.2")
    told = wait_until(lambda: mount.status()["wrong"], "word of the broken index", 30)
    assert "the index" in told[0]
    assert (mount.path / "file").read_bytes() == noise(5000)
    faulty_disk.heal()
    wait_until(lambda: is_well(mount), "recovery", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_a_daemon_that_dies_while_the_index_is_broken_comes_back(
    faulty_disk: FaultyDisk, background: Background, tmp_path: Path
) -> None:
    mount = background.base
    background.state = mount.state = faulty_disk.path / "state"
    background.places = ["--state-dir", str(mount.state), "--store-dir", str(mount.store)]
    mount.expect_log(CANT_STORE, r"the index .* (is damaged|can't be read)")
    background.mount("--quiet-seconds", "0.2")
    (mount.path / "file").write_bytes(noise(5000))
    mount.sync()
    faulty_disk.fail(Rule("*", "state/index.sqlite*", errno.EIO))
    background.wait_until_restarted(background.kill_daemon())
    (mount.path / "more").write_bytes(noise(5000, 1))
    faulty_disk.heal()
    wait_until(lambda: not mount.status()["files"]["dirty"] and len(mount.status()["wrong"]) == 1, "recovery", 60)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)
