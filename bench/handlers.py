"""What a request costs in the daemon alone: `PYTHONPATH=. python bench/handlers.py [--at DIRECTORY] [--json FILE]`.

Calls the handlers as the request loop does, without a kernel in front of them, and for comparison the one system call
that does the same to the directory. What is left of a row of `bench.fs` beyond its requests times these figures is the
way there and back: the kernel's queue, two wake-ups, the copying, the loop. Microseconds, the least of several rounds.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import tempfile
from contextlib import suppress
from pathlib import Path
from time import perf_counter_ns, time_ns
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from fused.fs import protocol
from fused.fs.answers import Answers
from fused.fs.filesystem import FileSystem
from fused.fs.protocol import Opcode
from fused.inline import run_inline
from fused.sync.changes import ChangeLog

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fused.fs.answers import Reply

T = TypeVar("T")
R = TypeVar("R")

FILES = 2_000
ROUNDS = 7
CONTENT = bytes(4096)


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
    answers = Answers(fs, lambda _ino, _name: None).by_opcode
    names = [b"%06d" % i for i in range(files)]
    moved = [name + b"m" for name in names]

    def ask(opcode: Opcode, body: bytes, ino: int = 1) -> Reply:
        _, function, waits = answers[opcode]
        head = (0, opcode, 0, ino, os.geteuid(), os.getegid(), os.getpid(), 0, 0)
        answered: Any = function(head, memoryview(body))
        reply: Reply = run_inline(answered) if waits else answered
        return reply

    def create(name: bytes) -> tuple[int, int]:
        reply = ask(Opcode.CREATE, protocol.CREATE.pack(os.O_WRONLY, 0o100644, 0o22, 0) + name + b"\0")
        (ino,) = protocol.HANDLE.unpack_from(reply)
        fh, _, _ = protocol.OPENED.unpack(reply[-protocol.OPENED.size :])
        return ino, fh

    def new_time(made: tuple[int, int]) -> None:
        """What the kernel sends after a file was written to."""
        ino, fh = made
        seconds, ns = divmod(time_ns(), 1_000_000_000)
        valid = protocol.SET_MTIME | protocol.SET_CTIME | protocol.SET_BY_HANDLE
        times = (0, seconds, seconds, 0, ns, ns)
        ask(Opcode.SETATTR, protocol.SETATTR.pack(valid, 0, fh, 0, 0, *times, 0, 0, 0, 0, 0), ino)

    def write(made: tuple[int, int]) -> None:
        ask(Opcode.WRITE, protocol.WRITE.pack(made[1], 0, len(CONTENT), 0, 0, 0, 0) + CONTENT)

    def opened(made: tuple[int, int]) -> int:
        reply = ask(Opcode.OPEN, protocol.OPEN.pack(os.O_RDONLY, 0), made[0])
        return int(protocol.OPENED.unpack(reply)[0])

    def renamed(item: tuple[bytes, bytes]) -> None:
        ask(Opcode.RENAME, protocol.RENAME.pack(1) + item[0] + b"\0" + item[1] + b"\0")

    try:
        time = clock.time
        made = time("create", create, names)
        time("write 4 KiB", write, made)
        time("setattr", new_time, made)
        time("flush", lambda it: ask(Opcode.FLUSH, protocol.HANDLE.pack(it[1])), made)
        time("release", lambda it: ask(Opcode.RELEASE, protocol.HANDLE.pack(it[1])), made)
        time("lookup", lambda name: ask(Opcode.LOOKUP, name + b"\0"), names)
        time("lookup, missing", lambda name: ask(Opcode.LOOKUP, name + b"x\0"), names)
        time("getattr", lambda it: ask(Opcode.GETATTR, b"", it[0]), made)
        handles = time("open", opened, made)
        time("read 4 KiB", lambda fh: ask(Opcode.READ, protocol.READ.pack(fh, 0, len(CONTENT))), handles)
        for fh in handles:
            ask(Opcode.RELEASE, protocol.HANDLE.pack(fh))
        time("rename", renamed, zip(names, moved, strict=True))
        time("unlink", lambda name: ask(Opcode.UNLINK, name + b"\0"), moved)
        time("mkdir", lambda name: ask(Opcode.MKDIR, protocol.MKDIR.pack(0o40755, 0o22) + name + b"\0"), names)
        time("rmdir", lambda name: ask(Opcode.RMDIR, name + b"\0"), names)
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
