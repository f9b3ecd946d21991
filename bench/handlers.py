"""What a request costs in the daemon alone: `PYTHONPATH=. python bench/handlers.py [--at DIRECTORY] [--json FILE]`.

Calls the handlers as pyfuse3 does, without a kernel in front of them, and for comparison the one system call that does
the same to the directory. What is left of a row of `bench.fs` beyond its requests times these figures is the way there
and back: the kernel's queue, two wake-ups, the copying, pyfuse3. Microseconds, the least of several rounds.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TypeVar

import pyfuse3
import trio

from fused.fs.filesystem import FileSystem
from fused.fs.operations import Handlers
from fused.inline import run_inline
from fused.sync.changes import ChangeLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")
R = TypeVar("R")

FILES = 2_000
ROUNDS = 7
CONTENT = bytes(4096)
CALLER: Any = SimpleNamespace(uid=os.geteuid(), gid=os.getegid(), pid=os.getpid(), umask=0o22)
TIME_ONLY: Any = SimpleNamespace(
    update_size=False,
    update_mode=False,
    update_uid=False,
    update_gid=False,
    update_atime=False,
    update_mtime=True,
    update_ctime=True,
)
"""What the kernel sends after a file was written to."""


class Clock:
    """The least time of each kind, in microseconds."""

    def __init__(self) -> None:
        self.least: dict[str, float] = {}

    def time(self, kind: str, act: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Do `act` with all of them."""
        todo = list(items)
        begun = perf_counter_ns()
        results = [act(item) for item in todo]
        each = (perf_counter_ns() - begun) / 1e3 / len(todo)
        self.least[kind] = min(each, self.least.get(kind, each))
        return results


def by_handlers(clock: Clock, root: Path, spill: Path, files: int) -> None:
    """One round through the handlers."""
    root_fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    fs = FileSystem(root_fd, ChangeLog(str(spill)), private=True, write_through=False, read_only=False)
    ours = Handlers(fs, on_init=lambda: None)
    names = [b"%06d" % i for i in range(files)]
    moved = [name + b"m" for name in names]

    def missing(name: bytes) -> None:
        run_inline(ours.lookup(1, name + b"x", CALLER))

    def new_time(made: tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]) -> None:
        info, entry = made
        wanted = pyfuse3.EntryAttributes()
        wanted.st_mtime_ns = wanted.st_ctime_ns = entry.st_mtime_ns + 1_000_000
        run_inline(ours.setattr(entry.st_ino, wanted, TIME_ONLY, info.fh, CALLER))

    try:
        time = clock.time
        made = time("create", lambda name: run_inline(ours.create(1, name, 0o100644, os.O_WRONLY, CALLER)), names)
        time("write 4 KiB", lambda it: run_inline(ours.write(it[0].fh, 0, CONTENT)), made)
        time("setattr", new_time, made)
        time("flush", lambda it: run_inline(ours.flush(it[0].fh)), made)
        time("release", lambda it: run_inline(ours.release(it[0].fh)), made)
        time("lookup", lambda name: run_inline(ours.lookup(1, name, CALLER)), names)
        time("lookup, missing", missing, names)
        time("getattr", lambda it: run_inline(ours.getattr(it[1].st_ino, CALLER)), made)
        opened = time("open", lambda it: run_inline(ours.open(it[1].st_ino, os.O_RDONLY, CALLER)), made)
        time("read 4 KiB", lambda it: run_inline(ours.read(it.fh, 0, len(CONTENT))), opened)
        for info in opened:
            run_inline(ours.release(info.fh))
        time(
            "rename", lambda it: run_inline(ours.rename(1, it[0], 1, it[1], 0, CALLER)), zip(names, moved, strict=True)
        )
        time("unlink", lambda name: run_inline(ours.unlink(1, name, CALLER)), moved)
        time("mkdir", lambda name: run_inline(ours.mkdir(1, name, 0o40755, CALLER)), names)
        time("rmdir", lambda name: run_inline(ours.rmdir(1, name, CALLER)), names)
    finally:
        fs.close()
        os.close(root_fd)


def by_system_calls(clock: Clock, root: Path, files: int) -> None:
    """The same without a file system of ours."""
    at = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    names = [b"%06d" % i for i in range(files)]
    moved = [name + b"m" for name in names]

    def missing(name: bytes) -> None:
        with suppress(FileNotFoundError):
            os.stat(name + b"x", dir_fd=at, follow_symlinks=False)

    time = clock.time
    fds = time("create", lambda name: os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644, dir_fd=at), names)
    time("write 4 KiB", lambda fd: os.pwrite(fd, CONTENT, 0), fds)
    time("setattr", lambda fd: os.utime(fd, ns=(1, 1)), fds)
    time("release", os.close, fds)
    time("lookup", lambda name: os.stat(name, dir_fd=at, follow_symlinks=False), names)
    time("lookup, missing", missing, names)
    time("getattr", lambda name: os.stat(name, dir_fd=at, follow_symlinks=False), names)
    fds = time("open", lambda name: os.open(name, os.O_RDONLY, dir_fd=at), names)
    time("read 4 KiB", lambda fd: os.pread(fd, len(CONTENT), 0), fds)
    for fd in fds:
        os.close(fd)
    time("rename", lambda it: os.rename(it[0], it[1], src_dir_fd=at, dst_dir_fd=at), zip(names, moved, strict=True))
    time("unlink", lambda name: os.unlink(name, dir_fd=at), moved)
    time("mkdir", lambda name: os.mkdir(name, dir_fd=at), names)
    time("rmdir", lambda name: os.rmdir(name, dir_fd=at), names)
    os.close(at)


def measure(at: Path, files: int = FILES, rounds: int = ROUNDS) -> dict[str, dict[str, float]]:
    """Both in turn, with so many files each; by kind of request, and then by who did it. Flush calls nothing."""
    handlers, calls = Clock(), Clock()

    async def round_by_handlers(root: Path, spill: Path) -> None:  # they expect trio around them
        by_handlers(handlers, root, spill, files)

    for _ in range(rounds):
        with tempfile.TemporaryDirectory(dir=at) as made:
            root, spill = Path(made, "root"), Path(made, "spill")
            root.mkdir()
            spill.mkdir()
            trio.run(round_by_handlers, root, spill)
            by_system_calls(calls, root, files)
    return {kind: {"handler": us, "system call": calls.least.get(kind, 0.0)} for kind, us in handlers.least.items()}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--at", type=Path, metavar="DIRECTORY", default=Path("/dev/shm"), help="default: in memory")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    args = parser.parse_args()
    if not args.at.is_dir():
        parser.error(f"{args.at}: {os.strerror(errno.ENOTDIR)}")
    found = measure(args.at)
    print(f"{'':<18}{'handler':>9}{'system call':>13}   microseconds")
    for kind, us in found.items():
        print(f"{kind:<18}{us['handler']:>9.1f}{us['system call']:>13.1f}")
    if args.json:
        args.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
