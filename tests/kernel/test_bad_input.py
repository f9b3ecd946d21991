"""What real directories hold that well-behaved ones don't, and what disks do to files. None of it stops the rest."""

from __future__ import annotations

import errno
import os
import random
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.compare import assert_same_tree, describe_tree
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until

MIB = 1024 * 1024
FIRST = "--quiet-seconds=3600", "--interval-seconds=3600"
"""Flags of a mount that takes snapshots only when it is told to."""


def without_override() -> list[str]:
    """The start of a command that root runs without the right to ignore file modes; others have no such right."""
    if os.geteuid() != 0:
        return []
    if shutil.which("setpriv") is None:
        pytest.skip("not installed: setpriv (Debian: util-linux)")
    return ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


def snapshot_tree(mount: MountProcess, snapshot: str) -> str:
    """The CID of the UnixFS tree in a snapshot."""
    return next(row["tree"] for row in snapshots(mount) if row["snapshot"] == snapshot)


def snapshots(mount: MountProcess) -> list[dict[str, str]]:
    import json

    found: list[dict[str, str]] = json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)
    return found


# --- files that can't be read -------------------------------------------------------------------------------------


def test_unreadable_file_and_directory_are_skipped_and_named_and_the_rest_is_stored(
    new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    mount = new_mount()
    for name in ("before", "secret", "zlast"):
        (mount.plain / name).write_text(f"this is {name}")
    (mount.plain / "closed").mkdir()
    (mount.plain / "closed/inside").write_text("x")
    (mount.plain / "secret").chmod(0)
    (mount.plain / "closed").chmod(0)
    mount.expect_log("secret", "closed")
    mount.start(*FIRST, command=[*without_override(), sys.executable, "-m", "fused"])
    snapshot = mount.sync()
    status = mount.status()
    assert {entry["path"] for entry in status["skipped"]} == {"secret", "closed"}
    assert all("ermission" in entry["why"] for entry in status["skipped"]), status["skipped"]
    assert status["files"]["skipped"] == 2
    assert any("skipped" in sentence for sentence in status["wrong"]), status["wrong"]
    restored = mount.restore(snapshot, tmp_path / "restored")
    assert {path.name for path in restored.iterdir() if path.is_file()} >= {"before", "zlast"}
    assert not (restored / "secret").exists()
    with pytest.raises(PermissionError):
        (mount.path / "secret").read_bytes()
    # As soon as it can be read, it is stored like everything else.
    (mount.path / "secret").chmod(0o600)
    (mount.path / "closed").chmod(0o700)
    again = mount.restore(mount.sync(), tmp_path / "again")
    assert (again / "secret").read_text() == "this is secret"
    assert (again / "closed/inside").read_text() == "x"
    assert mount.status()["skipped"] == []


# --- names --------------------------------------------------------------------------------------------------------

NAMES = [
    b"\xff\xfe not utf-8",
    b"latin-1 \xe9",
    b"n" * 255,
    "ü".encode() * 127,
    b"new\nline\n",
    b" blank at both ends ",
    b"-rf",
    b"*?[a]{b}$(c)`d`",
    b"\x01\x7f\t",
    b"back\\slash",
    "e\u0301 and \u00e9".encode(),
    "\U0001f512".encode(),
    b"...",
    b"CON.txt:stream",
]


def test_names_of_any_bytes_are_kept(mounted: MountProcess, tmp_path: Path) -> None:
    base = os.fsencode(mounted.path)
    for number, name in enumerate(NAMES):
        os.mkdir(os.path.join(base, b"d" + name[:254]))
        for place in (name, os.path.join(b"d" + name[:254], name)):
            with open(os.path.join(base, place), "wb") as out:
                out.write(b"%d" % number)
        os.symlink(name, os.path.join(base, b"l" + name[:254]))
    expected = [*NAMES, *(b"d" + name[:254] for name in NAMES), *(b"l" + name[:254] for name in NAMES)]
    assert sorted(os.listdir(base)) == sorted(expected)
    with pytest.raises(OSError, match="too long") as caught:
        open(os.path.join(base, b"n" * 256), "wb").close()
    assert caught.value.errno == errno.ENAMETOOLONG
    snapshot = mounted.sync()
    assert_same_tree(mounted.plain, mounted.restore(snapshot, tmp_path / "restored"))
    listed = mounted.ipfsfs("ls", "--json", snapshot, "--store-dir", mounted.store).stdout
    assert listed.count('"name"') == 3 * len(NAMES)


# --- what is no file ----------------------------------------------------------------------------------------------


def test_sockets_fifos_and_devices_are_covered_and_restored_but_not_in_the_tree(
    mounted: MountProcess, tmp_path: Path
) -> None:
    (mounted.path / "file").write_text("x")
    (mounted.path / "sub").mkdir()
    kinds = {"fifo": stat.S_IFIFO, "socket": stat.S_IFSOCK}
    os.mkfifo(mounted.path / "sub/fifo", 0o620)
    server = socket.socket(socket.AF_UNIX)
    os.symlink(mounted.path, short := f"/tmp/ipfsfs-test-{os.getpid()}")  # a socket's path has 107 bytes at most
    try:
        server.bind(f"{short}/sub/socket")
        server.listen(1)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(f"{short}/sub/socket")
    finally:
        os.unlink(short)
        server.close()
    if os.geteuid() == 0:
        os.mknod(mounted.path / "sub/null", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
        os.mknod(mounted.path / "sub/disk", 0o600 | stat.S_IFBLK, os.makedev(7, 200))
        kinds |= {"null": stat.S_IFCHR, "disk": stat.S_IFBLK}
    for name, kind in kinds.items():
        assert stat.S_IFMT((mounted.path / "sub" / name).lstat().st_mode) == kind
    snapshot = mounted.sync()
    tree = snapshot_tree(mounted, snapshot)
    names = mounted.ipfsfs("ls", f"{tree}/sub", "--store-dir", mounted.store).stdout
    assert names == ""
    restored = mounted.restore(snapshot, tmp_path / "restored")
    assert_same_tree(mounted.plain, restored)
    if os.geteuid() == 0:
        assert (restored / "sub/null").lstat().st_rdev == os.makedev(1, 3)


def test_fifo_on_the_mount_carries_data(mounted: MountProcess) -> None:
    os.mkfifo(mounted.path / "pipe")
    reader = subprocess.Popen(["cat", mounted.path / "pipe"], stdout=subprocess.PIPE)
    with open(mounted.path / "pipe", "wb") as pipe:
        pipe.write(b"through the pipe")
    assert reader.communicate(timeout=10)[0] == b"through the pipe"


# --- things that change meanwhile ---------------------------------------------------------------------------------

# Overwrites the whole of a file with one letter, again and again: each write() is one system call.
RESTLESS = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT, 0o644)
size = int(sys.argv[2])
os.pwrite(fd, b"a" * size, 0)
print("started", flush=True)
number = 0
while True:
    number += 1
    os.pwrite(fd, bytes([97 + number % 26]) * size, 0)
    os.fdatasync(fd)
"""


@pytest.fixture
def restless() -> Iterator[Callable[[Path, int], None]]:
    """Starts programs that write to a file all the time, and ends them."""
    started: list[subprocess.Popen[str]] = []

    def start(path: Path, size: int) -> None:
        command = [sys.executable, "-c", RESTLESS, str(path), str(size)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=20)


def test_file_that_changes_all_the_time_does_not_keep_a_snapshot_from_ending(
    mounted: MountProcess, tmp_path: Path, restless: Callable[[Path, int], None]
) -> None:
    # 64 KiB: pages of one write() reach the daemon in one request, so each content is one that the file really had.
    restless(mounted.path / "restless", 65536)
    (mounted.path / "calm").write_text("calm")
    seen = set()
    for number in range(8):
        restored = mounted.restore(mounted.sync(timeout=30), tmp_path / f"restored{number}")
        content = (restored / "restless").read_bytes()
        assert len(content) == 65536
        assert len(set(content)) == 1, "a mix of two writes"
        assert (restored / "calm").read_text() == "calm"
        seen.add(content[0])
    assert len(seen) > 1


def test_directory_removed_while_it_is_scanned(new_mount: Callable[..., MountProcess], tmp_path: Path) -> None:
    mount = new_mount()
    for number in range(60):
        directory = mount.plain / f"dir{number:02}" / "deep"
        directory.mkdir(parents=True)
        for name in range(150):
            (directory / str(name)).write_text(f"{number} {name}")
    mount.start(*FIRST)  # the scan begins now
    for number in range(0, 60, 2):
        shutil.rmtree(mount.path / f"dir{number:02}")
    for number in range(1, 60, 4):
        (mount.path / f"dir{number:02}").rename(mount.path / f"moved{number:02}")
    restored = mount.restore(mount.sync(), tmp_path / "restored")
    assert_same_tree(mount.plain, restored)
    assert len(list(restored.rglob("*"))) == 30 * 152
    assert mount.status()["skipped"] == []


# --- damage -------------------------------------------------------------------------------------------------------


def fill(directory: Path) -> None:
    rng = random.Random(11)
    (directory / "small").mkdir()
    for number in range(50):
        (directory / "small" / f"s{number}").write_bytes(rng.randbytes(number * 40))
    (directory / "large").write_bytes(rng.randbytes(3 * MIB + 5))
    (directory / "link").symlink_to("large")


def index_files(mount: MountProcess) -> list[Path]:
    found = sorted(path for path in mount.state.rglob("*") if path.is_file() and "index" in path.name)
    assert found, list(mount.state.rglob("*"))
    return found


def delete(path: Path) -> None:
    path.unlink()


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def flip_bits(path: Path) -> None:
    rng = random.Random(13)
    data = bytearray(path.read_bytes())
    for _ in range(max(1, len(data) // 500)):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def overwrite(path: Path) -> None:
    path.write_bytes(b"this is no database\n" * 500)


@pytest.mark.parametrize("damage", [delete, truncate, empty, flip_bits, overwrite], ids=lambda f: f.__name__)
def test_damaged_index_is_rebuilt_and_nothing_is_lost(
    new_mount: Callable[..., MountProcess], tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    mount = new_mount()
    fill(mount.plain)
    mount.start(*FIRST)
    first = mount.sync()
    tree = snapshot_tree(mount, first)
    mount.stop()
    for path in index_files(mount):
        damage(path)
    mount.expect_log("index")
    mount.start(*FIRST)
    assert_same_tree(mount.plain, mount.path)
    second = mount.sync()
    assert snapshot_tree(mount, second) == tree
    (mount.path / "new").write_text("after the damage")
    assert_same_tree(mount.plain, mount.restore(mount.sync(), tmp_path / "restored"))
    assert_same_tree(mount.restore(first, tmp_path / "old"), mount.restore(second, tmp_path / "same"))


def find_blocks(mount: MountProcess, content: bytes) -> list[tuple[Path, int]]:
    """The files of the store that hold `content` literally, and where in them."""
    found = []
    for path in sorted(mount.store.rglob("*")):
        if path.is_file():
            data = path.read_bytes()
            found += [(path, match.start()) for match in re.finditer(re.escape(content), data)]
    assert found, "the store has no such block"
    return found


def flip_a_bit(path: Path, at: int) -> None:
    with open(path, "r+b") as stream:
        stream.seek(at)
        byte = stream.read(1)[0]
        stream.seek(at)
        stream.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize(
    ("victim", "damage"), [("large", "flip"), ("large", "truncate"), ("large", "delete"), ("small/s49", "flip")]
)
def test_damaged_block_is_found_by_its_cid_and_never_read_as_something_else(
    new_mount: Callable[..., MountProcess], tmp_path: Path, victim: str, damage: str
) -> None:
    mount = new_mount()
    fill(mount.plain)
    mount.start(*FIRST)
    snapshot = mount.sync()
    mount.stop()
    right = (mount.plain / victim).read_bytes()
    chunk = right[MIB : 2 * MIB] if victim == "large" else right
    # A small block is a row in SQLite and may go over several pages: look for a part that lies in one. Its file as a
    # whole is damaged by tests of the store.
    copies = find_blocks(mount, chunk if victim == "large" else chunk[600:1000])
    for path, at in copies:
        if damage == "flip":
            flip_a_bit(path, at + 200)
        elif damage == "truncate":
            os.truncate(path, path.stat().st_size - 1)
        else:
            path.unlink()

    cat = subprocess.run(
        [sys.executable, "-m", "fused", "cat", "--store-dir", mount.store, f"{snapshot}/{victim}"],
        env=mount.environ,
        capture_output=True,
        check=False,
    )
    assert cat.returncode != 0
    assert right.startswith(cat.stdout), "wrong bytes were printed"
    named = re.findall(rb"baf[a-z2-7]{50,}", cat.stderr)
    assert named, cat.stderr
    done = mount.ipfsfs("restore", snapshot, "--to", tmp_path / "r", "--store-dir", mount.store, check=False)
    assert done.returncode != 0
    assert named[0].decode() in done.stderr, done.stderr
    # What was restored before the damage was met is right; the damaged file is not there under its name.
    restored = describe_tree(tmp_path / "r", mtimes=False)
    wanted = describe_tree(mount.plain, mtimes=False)
    for name, entry in restored.items():
        if entry["kind"] == "file":
            assert entry["sha256"] == wanted[name]["sha256"], name
    assert os.fsencode(victim) not in restored
    # The plain file is whole, so the mount goes on serving it.
    mount.start(*FIRST)
    assert (mount.path / victim).read_bytes() == right


def test_store_that_is_gone_at_the_next_mount_is_filled_again(
    new_mount: Callable[..., MountProcess], tmp_path: Path
) -> None:
    mount = new_mount()
    fill(mount.plain)
    mount.start(*FIRST)
    first = mount.sync()
    mount.stop()
    mount.store.rename(aside := mount.base / "store.aside")
    mount.expect_log("the store does not have the last snapshot any more")
    mount.start(*FIRST)
    second = mount.sync()
    assert_same_tree(mount.plain, mount.restore(second, tmp_path / "restored"))
    pinned = [row["snapshot"] for row in snapshots(mount)]
    assert pinned[0] == second
    # What was stored before is where the store is now.
    mount.ipfsfs("restore", first, "--to", tmp_path / "old", "--store-dir", aside)
    assert_same_tree(mount.plain, tmp_path / "old")


# --- a bug of ours ------------------------------------------------------------------------------------------------

BUGGY = """
import sys
from fused.cli.main import console_main
from fused.fs.tree import Tree

def buggy(original):
    def lookup(self, parent_ino, name):
        if name == b"trigger":
            raise RuntimeError("a bug in a handler")
        return original(self, parent_ino, name)
    return lookup

Tree.lookup = buggy(Tree.lookup)
console_main()
"""


def test_bug_in_a_handler_is_an_eio_and_a_traceback_and_the_daemon_lives(
    new_mount: Callable[..., MountProcess],
) -> None:
    mount = new_mount()
    (mount.plain / "file").write_text("fine")
    mount.expect_log("Traceback", "RuntimeError: a bug in a handler", "ERROR fused.fs")
    mount.start(*FIRST, command=[sys.executable, "-c", BUGGY])
    for _ in range(3):
        with pytest.raises(OSError, match="Input/output error") as caught:
            os.stat(mount.path / "trigger")
        assert caught.value.errno == errno.EIO
    assert (mount.path / "file").read_text() == "fine"
    (mount.path / "new").write_text("still writable")
    mount.sync()
    log = mount.log_text()
    assert "Traceback" in log
    assert "a bug in a handler" in log


def test_many_clients_at_once_with_one_that_is_slow_to_read(mounted: MountProcess) -> None:
    """More requests at once than the daemon has tasks for them: nobody waits for ever."""
    payload = os.urandom(2 * MIB)
    (mounted.path / "shared").write_bytes(payload)
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                path = mounted.path / f"own-{number}-{turn}"
                path.write_bytes(payload[: 1000 * number])
                with open(path, "r+b") as stream:
                    os.fsync(stream.fileno())
                assert (mounted.path / "shared").read_bytes() == payload
                assert path.read_bytes() == payload[: 1000 * number]
                path.unlink()
        except BaseException as exc:  # handed to the test's thread
            errors.append(exc)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(120)]
    for thread in threads:
        thread.start()
    wait_until(lambda: not any(thread.is_alive() for thread in threads), "end of all clients", 100, every=0.2)
    assert errors == []
    assert os.listdir(mounted.path) == ["shared"]
