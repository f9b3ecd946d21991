"""Somebody who reaches the covered directory by another way swaps what is in it for links that lead out of it.

Meanwhile everything that works on the covered directory runs: programs on the mount, the scan, snapshots, restores. The
canaries outside must not be opened, which inotify would tell, nor changed, nor come to be in a snapshot.
"""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio

from fused.cid import RAW, cid_of
from fused.store.embedded import EmbeddedStore
from tests.support.compare import describe_tree
from tests.support.mountproc import MountProcess

SECONDS = 4.0
SWAP = """
import ctypes, os, sys, time
rename = ctypes.CDLL(None).renameat2
root = int(sys.argv[1])
print('swapping', flush=True)
while True:
    for name in (b'd', b'd/e', b'f', b'd/g'):
        rename(root, name, root, name + b'.link', 2)  # RENAME_EXCHANGE; either may be the link just now
"""


class Canaries:
    """A directory that nobody has business in, with a file as any that is covered."""

    def __init__(self, path: Path) -> None:
        self.path = path
        (path / "e").mkdir(parents=True)
        self.contents = {
            name: f"canary {name} {os.urandom(8).hex()}".encode() for name in ("f", "g", "e/f", "e/g", "x")
        }
        for name, content in self.contents.items():
            (path / name).write_bytes(content)
            (path / name).chmod(0o640)
        self._before = describe_tree(path)
        libc = ctypes.CDLL(None, use_errno=True)
        self._fd = libc.inotify_init1(os.O_NONBLOCK)
        for place in (path, path / "e"):
            assert libc.inotify_add_watch(self._fd, os.fsencode(place), 0xFFF) > 0  # IN_ALL_EVENTS

    def check(self) -> None:
        """Nobody opened, read or changed anything."""
        os.close(os.open(self.path / "x", os.O_RDONLY))
        events = os.read(self._fd, 1 << 16)
        os.close(self._fd)
        seen = []
        while events:
            _, mask, _, length = struct.unpack_from("iIII", events)
            seen.append((hex(mask), events[16 : 16 + length].rstrip(b"\0")))
            events = events[16 + length :]
        assert seen[:1] == [("0x20", b"x")], "our own opening is seen"
        assert seen[2:] == []
        assert describe_tree(self.path) == self._before


@pytest.fixture
def canaries(tmp_path: Path) -> Canaries:
    return Canaries(tmp_path / "outside")


def make_tree(path: Path, outside: Path) -> None:
    (path / "d" / "e").mkdir(parents=True)
    for name in ("f", "d/f", "d/g", "d/e/f", "d/e/g"):
        (path / name).write_text(f"covered {name}")
    (path / "d.link").symlink_to(outside)
    (path / "d" / "e.link").symlink_to(outside / "e")
    (path / "f.link").symlink_to(outside / "f")
    (path / "d" / "g.link").symlink_to(outside / "g")


@contextmanager
def swapping(fd: int) -> Iterator[None]:
    """Names in the directory open at `fd` are swapped, until the end."""
    command = [sys.executable, "-c", SWAP, str(fd)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, pass_fds=[fd]) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"swapping\n"
            yield
            assert process.poll() is None
        finally:
            process.kill()


def work(root: int) -> int:
    """What programs do, following no link themselves. Returns how many calls succeeded."""
    done = 0
    for directory in (b".", b"d", b"d/e"):
        fds = [os.dup(root)]
        try:
            for name in directory.split(b"/"):
                fds.append(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fds[-1]))
            here = fds[-1]
            calls: list[Callable[[], object]] = [
                lambda here=here: os.listdir(here),
                lambda here=here: _write(here, b"x"),
                lambda here=here: _write(here, b"f"),
                lambda here=here: _write(here, b"g"),
                lambda here=here: os.rename(b"x", b"y", src_dir_fd=here, dst_dir_fd=here),
                lambda here=here: os.unlink(b"y", dir_fd=here),
                lambda here=here: os.mkdir(b"new", dir_fd=here),
                lambda here=here: os.rmdir(b"new", dir_fd=here),
                lambda here=here: os.link(b"f", b"l", src_dir_fd=here, dst_dir_fd=here, follow_symlinks=False),
                lambda here=here: os.unlink(b"l", dir_fd=here),
                lambda here=here: os.chown(b"f", 0, 0, dir_fd=here, follow_symlinks=False),
                lambda here=here: os.utime(b"f", dir_fd=here, follow_symlinks=False),
            ]
            for call in calls:
                with suppress(OSError):
                    call()
                    done += 1
        except OSError:
            continue
        finally:
            for fd in fds:
                os.close(fd)
    return done


def _write(directory: int, name: bytes) -> None:
    fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        os.write(fd, b"written")
        os.fchmod(fd, 0o604)
        os.setxattr(fd, "user.x", b"y")
        os.ftruncate(fd, 3)
        os.pread(fd, 100, 0)
    finally:
        os.close(fd)


def test_daemon_never_leaves_the_covered_directory(
    new_mount: Callable[..., MountProcess], canaries: Canaries, tmp_path: Path
) -> None:
    mount = new_mount()
    make_tree(mount.path, canaries.path)
    (mount.path / ".ipfsfsignore").write_text("*.excluded/\n")
    (mount.path / "d.excluded").mkdir()
    plain = os.open(mount.path, os.O_RDONLY)
    calls = 0
    with swapping(plain):
        mount.start("--quiet-seconds", "0", "--interval-seconds", "1")
        root = os.open(mount.path, os.O_RDONLY)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end or calls < 100:  # snapshots are taken all the time
            calls += work(root)
        mount.ipfsfs("sync", mount.path, check=False)
        os.close(root)
        snapshot = json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)[0]["snapshot"]
        for target in (["--mount", str(mount.path)], ["--to", str(mount.plain), "--store-dir", str(mount.store)]):
            mount.ipfsfs("restore", snapshot, "--overwrite", *target, check=False)
    os.close(plain)
    mount.sync()
    canaries.check()
    taken = json.loads(mount.ipfsfs("log", "--json", mount.path).stdout)
    assert len(taken) > 1
    mount.stop()

    async def found() -> set[object]:
        async with EmbeddedStore(mount.store) as store:
            return set(await store.has([cid_of(RAW, content) for content in canaries.contents.values()]))

    assert trio.run(found) == set()


def test_restore_never_leaves_the_directory_that_it_restores_to(
    new_mount: Callable[..., MountProcess], canaries: Canaries, tmp_path: Path
) -> None:
    mount = new_mount()
    make_tree(mount.path, canaries.path)
    mount.start()
    snapshot = mount.sync()
    mount.stop()
    target = tmp_path / "target"
    make_tree(target, canaries.path)
    (target / "d" / "f").write_text("differs")
    fd = os.open(target, os.O_RDONLY)
    with swapping(fd):
        end, runs = time.monotonic() + SECONDS, 0
        while time.monotonic() < end or runs < 2:
            done = mount.ipfsfs(
                "restore", snapshot, "--overwrite", "--to", target, "--store-dir", mount.store, check=False
            )
            assert done.returncode in (0, 1), done
            assert "Traceback" not in done.stderr
            runs += 1
    os.close(fd)
    canaries.check()
