"""A full disk: under the plain files, under the store, under index and log. Also a quota, which is the same to us."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.compare import assert_same_tree
from tests.support.disks import MIB, SmallDisk
from tests.support.faultyfs import FaultyDisk, Rule
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until
from tests.support.whole import assert_whole

NewDisk = Callable[..., SmallDisk]
NewMount = Callable[..., MountProcess]

CANT_STORE = r"what changed can't be stored now, next try in \d+ s: .* (is full|disk I/O error|disk is full|No space)"


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


def write_until_full(path: Path, how: str) -> tuple[int, list[int]]:
    """Append to a new file until the disk is full: bytes written, and every errno on the way to the closed file."""
    errors: list[int] = []
    done = 0
    fd = os.open(path, os.O_CREAT | os.O_WRONLY)
    try:
        while not errors and done < 64 * MIB:
            try:
                done += os.write(fd, noise(256 << 10, done))
                if how == "fsync":
                    os.fsync(fd)
            except OSError as exc:
                errors.append(exc.errno or 0)
    finally:
        try:
            os.close(fd)
        except OSError as exc:
            errors.append(exc.errno or 0)
    return done, errors


# --- under the plain files --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "how", "flags"),
    [("tmpfs", "fsync", []), ("tmpfs", "close", []), ("ext4", "close", []), ("ext4", "write", ["--write-through"])],
)
def test_a_full_disk_under_the_files_is_told_to_the_writer_and_breaks_nothing_else(
    small_disk: NewDisk, new_mount: NewMount, tmp_path: Path, kind: str, how: str, flags: list[str]
) -> None:
    disk = small_disk("small", 12, kind)
    mount = new_mount(path=disk.path / "covered").start(*flags)
    (mount.path / "kept").write_bytes(noise(300_000))
    (mount.path / "overwritten").write_bytes(b"a" * 200_000)
    before = mount.sync()
    if how == "close":
        disk.fill(leave=MIB)
    done, errors = write_until_full(mount.path / "big", how)
    assert errors, f"{done} bytes on a full disk and nobody was told"
    assert set(errors) == {errno.ENOSPC}

    # What was there is as it was, also where it is overwritten in place; names can still go.
    assert (mount.path / "kept").read_bytes() == noise(300_000)
    with open(mount.path / "overwritten", "r+b") as out:
        out.write(b"b" * 100_000)
    assert (mount.path / "overwritten").read_bytes() == b"b" * 100_000 + b"a" * 100_000
    assert mount.status()["wrong"] == []

    # What is there of the file that did not fit is the same for everybody, and is stored as it is.
    size = os.stat(mount.plain / "big").st_size
    wait_until(lambda: os.stat(mount.path / "big").st_size == size, "view of what is really there")
    assert (mount.path / "big").read_bytes() == (mount.plain / "big").read_bytes()
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "full"), skip=lambda path: path == b"ballast")

    os.unlink(mount.path / "big")
    wait_until(lambda: disk.free() > MIB or how == "close", "room after the removal")
    (disk.path / "ballast").unlink(missing_ok=True)
    (mount.path / "after").write_bytes(noise(2 * MIB, 5))
    assert (mount.path / "after").read_bytes() == noise(2 * MIB, 5)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "after"))
    assert (mount.restore(before, tmp_path / "before") / "overwritten").read_bytes() == b"a" * 200_000
    assert_whole(mount)


def test_names_on_a_full_disk_get_the_same_errors_as_on_the_plain_directory(
    small_disk: NewDisk, new_mount: NewMount
) -> None:
    disk = small_disk("small", 2)
    mount = new_mount(path=disk.path / "covered").start()
    (mount.path / "file").write_bytes(b"x")
    for number in range(10_000):
        try:
            (disk.path / f"ballast{number}").write_bytes(bytes(4096))
        except OSError:
            break
    attempts: list[Callable[[Path], object]] = [
        lambda at: (at / "directory").mkdir(),
        lambda at: os.symlink("x" * 300, at / "link"),
        lambda at: os.link(at / "file", at / "hard"),
        lambda at: os.mkfifo(at / "fifo"),
        lambda at: (at / "new").touch(),
        lambda at: os.rename(at / "file", at / "renamed"),
        lambda at: os.rename(at / "renamed", at / "file"),
    ]
    for number, attempt in enumerate(attempts):
        got = []
        for where in (mount.plain, mount.path):
            # tmpfs frees what the attempt took when the name goes, so both meet the same disk.
            names = set(os.listdir(where))
            try:
                attempt(where)
                got.append(0)
            except OSError as exc:
                got.append(exc.errno or 0)
            for name in set(os.listdir(where)) - names - {"renamed", "file"}:
                (os.rmdir if (where / name).is_dir() else os.unlink)(where / name)
        if number < 5:
            assert got[0] == got[1], f"attempt {number}: {got}"
    assert sorted(os.listdir(mount.path)) == ["file"]


# --- under the store --------------------------------------------------------------------------------------------


# Blocks in the database; blocks in files of their own.
@pytest.mark.parametrize(("kind", "size"), [("ext4", 20_000), ("tmpfs", 20_000), ("ext4", 700_000)])
def test_with_a_full_disk_under_the_store_writes_go_on_and_all_is_stored_when_there_is_room(
    small_disk: NewDisk, new_mount: NewMount, tmp_path: Path, kind: str, size: int
) -> None:
    disk = small_disk("small", 60, kind)
    mount = new_mount()
    mount.store = disk.path / "store"
    mount.expect_log(CANT_STORE)
    mount.start("--quiet-seconds", "0.2")
    ballast = disk.fill(leave=6 * MIB)
    (mount.path / "first").write_bytes(noise(size, 1))
    first = mount.sync()
    count = 14 * MIB // size
    for number in range(count):
        (mount.path / f"file{number}").write_bytes(noise(size, 100 + number))
    told = wait_until(
        lambda: [line for line in mount.status()["wrong"] if "full" in line], "word of the full store", 30
    )
    assert "what changed can't be stored now" in told[0]
    assert str(mount.store) in told[0]
    assert mount.status()["files"]["dirty"] > 0
    done = mount.ipfsfs("sync", mount.path, check=False)
    assert done.returncode != 0
    assert done.stdout == ""
    assert "is full" in done.stderr

    # All else goes on: writing, reading, renaming, removing, and what was stored before can be read.
    (mount.path / "meanwhile").write_bytes(noise(50_000, 2))
    os.rename(mount.path / "meanwhile", mount.path / "renamed")
    os.unlink(mount.path / "file0")
    assert (mount.path / "renamed").read_bytes() == noise(50_000, 2)
    assert (mount.restore(first, tmp_path / "first") / "first").read_bytes() == noise(size, 1)

    ballast.unlink()
    # By itself: nobody asks for it, and nothing changes.
    wait_until(lambda: mount.status()["wrong"] == [] and mount.status()["files"]["dirty"] == 0, "recovery", 90, 0.2)
    snapshot = mount.sync()
    assert_same_tree(mount.plain, mount.restore(snapshot, tmp_path / "all"))
    assert mount.status()["files"]["stored"] == count + 1
    assert_whole(mount)


def test_a_daemon_that_dies_while_the_store_is_full_comes_back_and_stores_later(
    small_disk: NewDisk, background: Background, tmp_path: Path
) -> None:
    disk = small_disk("small", 60)
    mount = background.base
    background.store = mount.store = disk.path / "store"
    background.places = ["--state-dir", str(mount.state), "--store-dir", str(mount.store)]
    mount.expect_log(CANT_STORE, r"the store .* can't be used yet", r"the last snapshot failed")
    background.mount("--quiet-seconds", "0.2")
    disk.fill(leave=5 * MIB)
    for number in range(12):
        (mount.path / f"file{number}").write_bytes(noise(MIB, number))
    wait_until(lambda: any("full" in line for line in mount.status()["wrong"]), "word of the full store", 30)
    more = disk.path / "more"
    ballast = disk.fill().rename(more)
    disk.fill()
    background.wait_until_restarted(background.kill_daemon())
    (mount.path / "more").write_bytes(noise(MIB, 77))
    assert (mount.path / "file3").read_bytes() == noise(MIB, 3)
    wait_until(lambda: any("full" in line for line in mount.status()["wrong"]), "word of the full store", 30)
    ballast.unlink()
    wait_until(lambda: mount.status()["wrong"][1:] == [] and not mount.status()["files"]["dirty"], "recovery", 90, 0.2)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


# --- under index, log and everything else of the state ----------------------------------------------------------


def test_with_a_full_disk_under_the_state_writes_go_on_and_all_is_stored_when_there_is_room(
    small_disk: NewDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    disk = small_disk("small", 20, "ext4")
    mount = new_mount()
    mount.state = disk.path / "state"
    mount.expect_log(CANT_STORE, "the index .* can't be read")
    mount.start("--quiet-seconds", "0.2", "--log-file", str(mount.base / "log"))
    (mount.path / "first").write_bytes(noise(1000))
    mount.sync()
    ballast = disk.fill()
    for number in range(1500):
        (mount.path / f"file{number}").write_bytes(b"%d" % number)
    told = wait_until(lambda: mount.status()["wrong"], "word of the full disk", 30)
    assert "what changed can't be stored now" in told[0]
    assert "the index" in told[0]
    assert (mount.path / "file7").read_bytes() == b"7"
    ballast.unlink()
    wait_until(lambda: mount.status()["wrong"] == [] and mount.status()["files"]["dirty"] == 0, "recovery", 90, 0.2)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_a_daemon_that_dies_while_the_state_is_full_comes_back(
    small_disk: NewDisk, background: Background, tmp_path: Path
) -> None:
    disk = small_disk("small", 4)
    mount = background.base
    background.state = mount.state = disk.path / "state"
    background.places = ["--state-dir", str(mount.state), "--store-dir", str(mount.store)]
    mount.expect_log(CANT_STORE, "the index .* can't be read")
    background.mount("--quiet-seconds", "0.2")
    (mount.path / "before").write_bytes(noise(100_000))
    mount.sync()
    ballast = disk.fill()
    old = background.kill_daemon()
    wait_until(
        lambda: (
            background.is_mounted()
            and background.ipfsfs("status", background.path, check=False).returncode == 0
            and mount.pid != old
        ),
        "new daemon",
    )
    (mount.path / "meanwhile").write_bytes(noise(200_000, 1))
    assert (mount.path / "before").read_bytes() == noise(100_000)
    ballast.unlink()
    wait_until(lambda: not mount.status()["files"]["dirty"], "recovery", 90, 0.2)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_old_content_that_can_not_be_set_aside_costs_no_write_and_no_correctness(
    small_disk: NewDisk, faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    """What is overwritten while it is captured is set aside beside the index. There is no room for it here."""
    disk = small_disk("small", 8)
    mount = new_mount()
    mount.state, mount.store = disk.path / "state", faulty_disk.path / "store"
    mount.expect_log(CANT_STORE)
    mount.start("--quiet-seconds", "600", "--interval-seconds", "600")
    large = mount.path / "large"
    chunks = 112
    large.write_bytes(b"".join(noise(MIB, number) for number in range(chunks)))
    faulty_disk.fail(Rule("fsync", delay=-1))  # so that most of it is still to be captured
    synced: list[int] = []
    thread = threading.Thread(
        target=lambda: synced.append(mount.ipfsfs("sync", mount.path, check=False).returncode), daemon=True
    )
    thread.start()
    wait_until(lambda: sum(faulty_disk.hits()), "store at work")
    try:
        with open(large, "r+b", buffering=0) as out:
            for number in reversed(range(chunks)):
                out.seek(number * MIB)
                out.write(noise(MIB, 2000 + number))
            os.fsync(out)
        assert disk.free() < 2 * MIB, "everything could be set aside, so nothing was tested"
    finally:
        faulty_disk.heal()
    thread.join(60)
    assert synced, "sync did not end"
    if not synced[0]:
        assert mount.status()["wrong"] == []
    assert large.read_bytes() == b"".join(noise(MIB, 2000 + number) for number in range(chunks))
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


# --- a quota ----------------------------------------------------------------------------------------------------


def test_an_exceeded_quota_is_told_to_the_writer_and_nothing_else_breaks(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount(path=faulty_disk.path / "covered")
    mount.start()
    (mount.path / "before").write_bytes(noise(10_000))
    mount.sync()
    faulty_disk.fail(Rule("write", "covered/*", errno.EDQUOT), Rule("create", "covered/*", errno.EDQUOT))
    with open(mount.path / "before", "r+b", buffering=0) as out:
        out.write(noise(10_000, 1))
        with pytest.raises(OSError, match="quota exceeded"):
            os.fsync(out)
    with pytest.raises(OSError, match="quota exceeded"):
        (mount.path / "new").write_bytes(b"x")
    assert sum(faulty_disk.heal()) >= 2
    (mount.path / "new").write_bytes(b"x")
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)


def test_an_exceeded_quota_on_the_store_is_told_as_a_full_disk_and_passes(
    faulty_disk: FaultyDisk, new_mount: NewMount, tmp_path: Path
) -> None:
    mount = new_mount()
    mount.store = faulty_disk.path / "store"
    mount.expect_log(CANT_STORE)
    mount.start("--quiet-seconds", "0.2")
    mount.sync()
    faulty_disk.fail(Rule("write", "store/tmp/*", errno.EDQUOT))
    (mount.path / "file").write_bytes(noise(500_000))
    wait_until(lambda: any("is full" in line for line in mount.status()["wrong"]), "word of the quota")
    faulty_disk.heal()
    wait_until(lambda: mount.status()["wrong"] == [] and not mount.status()["files"]["dirty"], "recovery", 30)
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "all"))
    assert_whole(mount)
