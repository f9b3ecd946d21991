"""A load whose every result is known beforehand: `python load.py DIRECTORY --seconds N --processes N --seed N`.

Each process has a subtree of its own, with a model of it in memory, which says what each operation must return or
which errno it must fail with. Beside that all of them share a directory, where only such things are done as end well
in whatever order they happen. What ends otherwise is counted, by operation, and printed as JSON with all the rest.

Runs without the project and without other modules than Python's own, so that it can be run on any directory.
"""

from __future__ import annotations

import argparse
import errno
import fcntl
import json
import mmap
import os
import random
import stat
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

NAMES = ("a", "b", "c", "d")
MOST_ENTRIES = 200
"""What a process lets its subtree grow to before it removes most of it. Directories moved into each other would
else make it grow for as long as the load runs, and with it what a daemon rightly remembers."""

SHOWN = 20
"""Unexpected results that each process describes; all are counted."""


@dataclass(eq=False)
class File:
    content: bytearray = field(default_factory=bytearray)
    mode: int = 0o644
    links: int = 1


@dataclass(eq=False)
class Dir:
    children: dict[str, Node] = field(default_factory=dict)
    mode: int = 0o755


@dataclass(eq=False)
class Symlink:
    target: str


Node = File | Dir | Symlink


def entries(tree: Dir) -> int:
    """How many names there are below `tree`."""
    return sum(1 + (entries(node) if isinstance(node, Dir) else 0) for node in tree.children.values())


class Tally:
    """Operations done, and what ended otherwise than it must."""

    def __init__(self) -> None:
        self.done: Counter[str] = Counter()
        self.unexpected: Counter[str] = Counter()
        self.described: list[str] = []

    def expect(self, name: str, wanted: int, call: Callable[[], T], also: int = 0) -> T | None:
        """Make a call that must fail with the errno `wanted` (0: must succeed), or may with `also`."""
        self.done[name] += 1
        code, result = 0, None
        try:
            result = call()
        except OSError as exc:
            code = exc.errno or -1
        if code not in (wanted, also or wanted):
            self.wrong(name, f"{errno.errorcode.get(code, code)} for {errno.errorcode.get(wanted, wanted)}")
            return None
        return result

    def check(self, name: str, ok: bool, what: str) -> None:
        """Count a result that is not what it must be."""
        if not ok:
            self.wrong(name, what)

    def wrong(self, name: str, what: str) -> None:
        self.unexpected[f"{name}: {what}"] += 1
        if len(self.described) < SHOWN:
            self.described.append(f"{time.strftime('%H:%M:%S')} pid {os.getpid()} {name}: {what}")


class Own:
    """Random operations in a subtree that nobody else touches."""

    def __init__(self, root: Path, rng: random.Random, tally: Tally) -> None:
        self.root, self.rng, self.tally = str(root), rng, tally
        self.tree = Dir()
        self.open: list[tuple[int, File]] = []
        self.steps = 0
        os.mkdir(root)
        self.actions: list[Callable[[], None]] = [
            *[self.mkdir, self.create, self.create, self.write, self.save, self.append, self.truncate, self.read],
            *[self.stat, self.stat, self.list, self.unlink, self.rename, self.rename, self.link, self.symlink],
            *[self.chmod, self.utime, self.mapped, self.hold, self.use_held, self.use_held, self.temporary, self.rmdir],
        ]

    def step(self) -> None:
        self.rng.choice(self.actions)()
        self.steps += 1
        if self.steps % 100 == 0 and entries(self.tree) > MOST_ENTRIES:
            while entries(self.tree) > MOST_ENTRIES // 4:
                self.remove_all(self.tree, self.root, self.rng.choice(list(self.tree.children)))

    # --- where -----------------------------------------------------------------------------------------------------

    def pick(self) -> tuple[str, ...]:
        return tuple(self.rng.choices(NAMES, k=self.rng.choice((1, 1, 2, 2, 2, 3))))

    def path(self, at: tuple[str, ...]) -> str:
        return "/".join((self.root, *at))

    def parent(self, at: tuple[str, ...]) -> tuple[Dir | None, int]:
        """The directory that `at` stands in, or the errno of getting there."""
        here = self.tree
        for name in at[:-1]:
            child = here.children.get(name)
            if child is None:
                return None, errno.ENOENT
            if not isinstance(child, Dir):
                return None, errno.ENOTDIR
            here = child
        return here, 0

    def find(self, at: tuple[str, ...]) -> tuple[Node | None, int]:
        parent, code = self.parent(at)
        if parent is None:
            return None, code
        node = parent.children.get(at[-1])
        return node, 0 if node is not None else errno.ENOENT

    def content(self) -> bytes:
        size = self.rng.choice((0, 1, 100, 1000, 4096, 5000, 5000, 12000)) if self.rng.random() < 0.98 else 150_000
        return self.rng.randbytes(size)

    def file_code(self, node: Node | None, code: int) -> int:
        """The errno of opening an existing file for writing."""
        return errno.EISDIR if isinstance(node, Dir) else code

    # --- names -----------------------------------------------------------------------------------------------------

    def mkdir(self) -> None:
        at = self.pick()
        parent, code = self.parent(at)
        if parent is not None and at[-1] in parent.children:
            code = errno.EEXIST
        self.tally.expect("mkdir", code, lambda: os.mkdir(self.path(at)))
        if parent is not None and not code:
            parent.children[at[-1]] = Dir()

    def rmdir(self) -> None:
        at = self.pick()
        node, code = self.find(at)
        if node is not None:
            code = errno.ENOTDIR if not isinstance(node, Dir) else errno.ENOTEMPTY if node.children else 0
        self.tally.expect("rmdir", code, lambda: os.rmdir(self.path(at)))
        if not code:
            self.forget(at)

    def forget(self, at: tuple[str, ...]) -> None:
        parent, _ = self.parent(at)
        assert parent is not None
        node = parent.children.pop(at[-1])
        if isinstance(node, File):
            node.links -= 1

    def unlink(self) -> None:
        at = self.pick()
        node, code = self.find(at)
        code = self.file_code(node, code)
        self.tally.expect("unlink", code, lambda: os.unlink(self.path(at)))
        if not code:
            self.forget(at)

    def remove_all(self, parent: Dir, path: str, name: str) -> None:
        """Remove a file, or a directory with all that is in it."""
        node, path = parent.children[name], f"{path}/{name}"
        if isinstance(node, Dir):
            for inner in list(node.children):
                self.remove_all(node, path, inner)
            self.tally.expect("rmdir", 0, lambda: os.rmdir(path))
        else:
            self.tally.expect("unlink", 0, lambda: os.unlink(path))
        if isinstance(node, File):
            node.links -= 1
        del parent.children[name]

    def rename(self) -> None:
        source, target = self.pick(), self.pick()
        code = self.rename_code(source, target)
        self.tally.expect("rename", code, lambda: os.rename(self.path(source), self.path(target)))
        moved, there = self.find(source)[0], self.find(target)[0]
        if code or moved is there:  # two names of one file: rename(2) does nothing
            return
        if there is not None:
            self.forget(target)
        (old, _), (new, _) = self.parent(source), self.parent(target)
        assert old is not None
        assert new is not None
        assert moved is not None
        new.children[target[-1]] = old.children.pop(source[-1])

    def rename_code(self, source: tuple[str, ...], target: tuple[str, ...]) -> int:
        """In the order in which Linux looks (fs/namei.c, do_renameat2)."""
        (old, code), (new, new_code) = self.parent(source), self.parent(target)
        if old is None or new is None:
            return code or new_code
        moved, there = old.children.get(source[-1]), new.children.get(target[-1])
        if moved is None:
            return errno.ENOENT
        if source == target:
            return 0
        if target[: len(source)] == source:
            return errno.EINVAL
        if source[: len(target)] == target:
            return errno.ENOTEMPTY
        if there is None or moved is there:
            return 0
        if isinstance(moved, Dir):
            return errno.ENOTDIR if not isinstance(there, Dir) else errno.ENOTEMPTY if there.children else 0
        return errno.EISDIR if isinstance(there, Dir) else 0

    def link(self) -> None:
        source, target = self.pick(), self.pick()
        node, code = self.find(source)
        parent, parent_code = self.parent(target)
        if not code:
            taken = parent is not None and target[-1] in parent.children
            code = parent_code or (errno.EEXIST if taken else errno.EPERM if isinstance(node, Dir) else 0)
        self.tally.expect("link", code, lambda: os.link(self.path(source), self.path(target), follow_symlinks=False))
        if not code and parent is not None and node is not None:
            parent.children[target[-1]] = node
            if isinstance(node, File):
                node.links += 1

    def symlink(self) -> None:
        at = (*self.pick()[:-1], self.rng.choice(("l", "m")))  # never a part of another path
        parent, code = self.parent(at)
        if parent is not None and at[-1] in parent.children:
            code = errno.EEXIST
        target = f"nowhere/{self.rng.random()}"
        self.tally.expect("symlink", code, lambda: os.symlink(target, self.path(at)))
        if parent is not None and not code:
            parent.children[at[-1]] = Symlink(target)
        elif code == errno.EEXIST and self.rng.random() < 0.5:
            self.tally.expect("unlink", 0, lambda: os.unlink(self.path(at)))
            self.forget(at)

    def list(self) -> None:
        at = self.pick()[:-1]
        node: Node | None = self.tree
        code = 0
        if at:
            node, code = self.find(at)
        if node is not None and not isinstance(node, Dir):
            code = errno.ENOTDIR
        found = self.tally.expect("listdir", code, lambda: os.listdir(self.path(at)))
        if found is not None and isinstance(node, Dir):
            self.tally.check("listdir", sorted(found) == sorted(node.children), "wrong names")

    # --- attributes ------------------------------------------------------------------------------------------------

    def stat(self) -> None:
        at = self.pick()
        node, code = self.find(at)
        found = self.tally.expect("lstat", code, lambda: os.lstat(self.path(at)))
        if found is not None and node is not None:
            self.compare(node, found)

    def compare(self, node: Node, found: os.stat_result) -> None:
        if isinstance(node, File):
            ok = (found.st_size, found.st_nlink) == (len(node.content), node.links) and stat.S_ISREG(found.st_mode)
            ok = ok and stat.S_IMODE(found.st_mode) == node.mode
        elif isinstance(node, Dir):
            ok = stat.S_ISDIR(found.st_mode) and stat.S_IMODE(found.st_mode) == node.mode
        else:
            ok = stat.S_ISLNK(found.st_mode)
        self.tally.check("lstat", ok, f"wrong attributes: {type(node).__name__}")

    def chmod(self) -> None:
        at = self.pick()
        node, code = self.find(at)
        mode = self.rng.choice((0o700, 0o755, 0o750) if isinstance(node, Dir) else (0o600, 0o644, 0o755))
        self.tally.expect("chmod", code, lambda: os.chmod(self.path(at), mode))
        if isinstance(node, (File, Dir)):
            node.mode = mode

    def utime(self) -> None:
        at = self.pick()
        _, code = self.find(at)
        when = self.rng.randrange(10**18)
        self.tally.expect("utime", code, lambda: os.utime(self.path(at), ns=(when, when)))
        if not code:
            found = self.tally.expect("lstat", 0, lambda: os.lstat(self.path(at)))
            self.tally.check("utime", found is None or found.st_mtime_ns == when, "another mtime than was set")

    # --- contents --------------------------------------------------------------------------------------------------

    def opened(self, name: str, at: tuple[str, ...], flags: int, code: int, use: Callable[[int], None]) -> bool:
        fd = self.tally.expect(name, code, lambda: os.open(self.path(at), flags, 0o644))
        if fd is None:
            return False
        try:
            use(fd)
        finally:
            self.tally.expect("close", 0, lambda: os.close(fd))
        return True

    def put(self, fd: int, node: File, data: bytes, offset: int) -> None:
        written = self.tally.expect("pwrite", 0, lambda: os.pwrite(fd, data, offset))
        self.tally.check("pwrite", written == len(data), "a short write")
        if data:
            node.content.extend(bytes(max(0, offset - len(node.content))))
            node.content[offset : offset + len(data)] = data

    def create(self) -> None:
        at = self.pick()
        parent, code = self.parent(at)
        if parent is not None and at[-1] in parent.children:
            code = errno.EEXIST
        node, data = File(), self.content()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        if self.opened("create", at, flags, code, lambda fd: self.put(fd, node, data, 0)) and parent is not None:
            parent.children[at[-1]] = node

    def existing(self) -> tuple[tuple[str, ...], File | None, int]:
        at = self.pick()
        node, code = self.find(at)
        return at, node if isinstance(node, File) else None, self.file_code(node, code)

    def write(self) -> None:
        at, node, code = self.existing()
        data, offset = self.content(), self.rng.randrange(8192)

        def use(fd: int) -> None:
            if node is not None:
                self.put(fd, node, data, offset)
                if self.rng.random() < 0.1:
                    self.tally.expect("fsync", 0, lambda: os.fsync(fd))

        self.opened("open", at, os.O_WRONLY, code, use)

    def append(self) -> None:
        at, node, code = self.existing()

        def use(fd: int) -> None:
            for _ in range(3):
                data = self.rng.randbytes(120)
                self.tally.expect("append", 0, lambda data=data: os.write(fd, data))  # type: ignore[misc]
                if node is not None:
                    node.content += data

        self.opened("open", at, os.O_WRONLY | os.O_APPEND, code, use)

    def save(self) -> None:
        """As programs save their settings: beside, then over the old ones."""
        at = self.pick()
        parent, code = self.parent(at)
        node, data = File(), self.content()
        beside = (*at[:-1], at[-1] + ".new")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        if not self.opened("create", beside, flags, code, lambda fd: self.put(fd, node, data, 0)) or parent is None:
            return
        there = parent.children.get(at[-1])
        code = self.file_code(there, 0)
        self.tally.expect("replace", code, lambda: os.replace(self.path(beside), self.path(at)))
        if code:
            self.tally.expect("unlink", 0, lambda: os.unlink(self.path(beside)))
            return
        if there is not None:
            self.forget(at)
        parent.children[at[-1]] = node

    def truncate(self) -> None:
        at, node, code = self.existing()
        size = self.rng.randrange(10_000)
        self.tally.expect("truncate", code, lambda: os.truncate(self.path(at), size))
        if node is not None:
            self.resize(node, size)

    def resize(self, node: File, size: int) -> None:
        del node.content[size:]
        node.content.extend(bytes(size - len(node.content)))

    def read(self) -> None:
        at = self.pick()
        node, code = self.find(at)
        if isinstance(node, Dir):
            code = errno.EISDIR

        def read() -> bytes:
            with open(self.path(at), "rb") as stream:
                return stream.read()

        found = self.tally.expect("read", code, read)
        if found is not None and isinstance(node, File):
            self.tally.check("read", found == node.content, "wrong content")

    def mapped(self) -> None:
        at, node, code = self.existing()

        def use(fd: int) -> None:
            if node is None or not node.content:
                return
            with mmap.mmap(fd, len(node.content)) as mapping:
                self.tally.check("mmap", mapping[:] == node.content, "wrong content")
                at = self.rng.randrange(len(node.content))
                mapping[at] = node.content[at] = self.rng.randrange(256)
            self.tally.done["mmap"] += 1

        self.opened("open", at, os.O_RDWR, code, use)

    # --- files that stay open, whatever becomes of their names ----------------------------------------------------

    def hold(self) -> None:
        at, node, code = self.existing()
        if len(self.open) >= 4:
            fd, _ = self.open.pop(self.rng.randrange(len(self.open)))
            self.tally.expect("close", 0, lambda: os.close(fd))
        held = self.tally.expect("open", code, lambda: os.open(self.path(at), os.O_RDWR))
        if held is not None and node is not None:
            self.open.append((held, node))

    def use_held(self) -> None:
        if not self.open:
            return
        fd, node = self.rng.choice(self.open)
        choice = self.rng.randrange(4)
        if choice == 0:
            self.put(fd, node, self.content(), self.rng.randrange(8192))
        elif choice == 1:
            size = self.rng.randrange(10_000)
            self.tally.expect("ftruncate", 0, lambda: os.ftruncate(fd, size))
            self.resize(node, size)
        elif choice == 2:
            found = self.tally.expect("pread", 0, lambda: os.pread(fd, 1 << 20, 0))
            self.tally.check("pread", found == node.content, "wrong content")
        else:
            seen = self.tally.expect("fstat", 0, lambda: os.fstat(fd))
            if seen is not None:
                self.compare(node, seen)

    def temporary(self) -> None:
        """A file without a name, as tempfile makes where there is no O_TMPFILE."""
        path, data = f"{self.root}/tmp", self.content()
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        fd = self.tally.expect("create", 0, lambda: os.open(path, flags, 0o600))
        if fd is None:
            return
        self.tally.expect("unlink", 0, lambda: os.unlink(path))
        self.tally.expect("pwrite", 0, lambda: os.pwrite(fd, data, 0))
        self.tally.check("pread", os.pread(fd, len(data) + 1, 0) == data, "wrong content of a file without a name")
        self.tally.expect("close", 0, lambda: os.close(fd))

    # --- at the end ------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Close what is open, and compare everything with the model."""
        for fd, _ in self.open:
            os.close(fd)
        self.compare_all(self.tree, self.root)

    def compare_all(self, node: Node, path: str) -> None:
        if isinstance(node, Dir):
            names = sorted(os.listdir(path))
            self.tally.check("at the end", names == sorted(node.children), f"wrong names: {names}")
            for name in set(names) & set(node.children):
                self.compare_all(node.children[name], f"{path}/{name}")
        elif isinstance(node, File):
            self.tally.check("at the end", Path(path).read_bytes() == node.content, "wrong content")
        else:
            self.tally.check("at the end", os.readlink(path) == node.target, "wrong target")


class Shared:
    """What many processes do in one directory, with results that do not depend on who comes first."""

    def __init__(self, root: Path, rng: random.Random, tally: Tally) -> None:
        self.root, self.rng, self.tally = root, rng, tally
        self.lines = self.counted = 0
        self.actions = [self.probe, self.probe_together, self.log, self.count, self.publish, self.look, self.lock_file]

    def step(self) -> None:
        self.rng.choice(self.actions)()

    def probe(self, name: str | None = None, missing: int = 0) -> None:
        """Is there a directory, and may I write to it? A program that hears no once goes elsewhere for good."""
        directory = self.root / "cache" / self.rng.choice(NAMES) / self.rng.choice(NAMES)
        self.tally.expect("probe mkdir", 0, lambda: directory.mkdir(parents=True, exist_ok=True))
        path = directory / (name or f".write_test-{os.getpid()}")
        self.tally.expect("probe write", 0, lambda: path.write_text("test"))
        self.tally.expect("probe unlink", 0, lambda: path.unlink(), missing)

    def probe_together(self) -> None:
        """With one name for all: whoever is second finds it removed, and nothing else may happen."""
        self.probe(".write_test", errno.ENOENT)

    def log(self) -> None:
        fd = self.tally.expect("log open", 0, lambda: os.open(self.root / "log", os.O_WRONLY | os.O_APPEND))
        if fd is not None:
            line = f"{os.getpid()} {self.lines} {'x' * self.rng.randrange(200)}\n".encode()
            self.tally.expect("log write", 0, lambda: os.write(fd, line))
            self.tally.expect("log close", 0, lambda: os.close(fd))
            self.lines += 1

    def count(self) -> None:
        def count() -> None:
            with open(self.root / "counter", "r+") as stream:
                fcntl.flock(stream, fcntl.LOCK_EX)
                number = int(stream.read())
                stream.seek(0)
                stream.write(str(number + 1))
                stream.flush()

        self.tally.expect("counter", 0, count)
        self.counted += 1

    def publish(self) -> None:
        beside = self.root / f"published-{os.getpid()}"
        text = json.dumps({"by": os.getpid(), "padding": "x" * self.rng.randrange(6000)})
        self.tally.expect("publish write", 0, lambda: beside.write_text(text))
        self.tally.expect("publish replace", 0, lambda: os.replace(beside, self.root / "published"))

    def look(self) -> None:
        text = self.tally.expect("published read", 0, lambda: (self.root / "published").read_text())
        try:
            json.loads(text or "")
        except ValueError:
            self.tally.check("published read", text is None, "not whole")

    def lock_file(self) -> None:
        path, mine = self.root / "lock", self.root / f"lock-{os.getpid()}"
        self.tally.expect("lock create", 0, lambda: mine.write_text(str(os.getpid())))
        before = self.tally.unexpected.total()
        got = self.tally.expect("lock link", 0, lambda: os.link(mine, path) or True, errno.EEXIST)
        if got and before == self.tally.unexpected.total():
            self.tally.check("lock read", path.read_text() == str(os.getpid()), "somebody else's")
            self.tally.expect("lock unlink", 0, lambda: os.unlink(path))
        self.tally.expect("lock unlink", 0, lambda: os.unlink(mine))


def work(root: Path, number: int, until: float, seed: int) -> dict[str, object]:
    """What one process does until then; returns its figures."""
    tally = Tally()
    own = Own(root / f"own-{number}", random.Random(f"own {seed} {number}"), tally)
    shared = Shared(root / "shared", random.Random(f"shared {seed} {number}"), tally)
    while time.monotonic() < until:
        for _ in range(10):
            own.step()
        shared.step()
    own.finish()
    return {
        "done": tally.done,
        "unexpected": tally.unexpected,
        "described": tally.described,
        "lines": shared.lines,
        "counted": shared.counted,
    }


def run(root: Path, processes: int, seconds: float, seed: int) -> dict[str, object]:
    """The whole load; the figures of all processes added up."""
    shared = root / "shared"
    shared.mkdir()
    (shared / "log").touch()
    (shared / "counter").write_text("0")
    (shared / "published").write_text("{}")
    until = time.monotonic() + seconds
    children = []
    for number in range(processes):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            code = 1
            try:
                with open(writing, "w") as stream:
                    json.dump(work(root, number, until, seed), stream)
                code = 0
            finally:
                os._exit(code) if code == 0 else sys.excepthook(*sys.exc_info()) or os._exit(code)  # type: ignore[arg-type]
        os.close(writing)
        children.append((pid, reading))
    done: Counter[str] = Counter()
    unexpected: Counter[str] = Counter()
    described: list[str] = []
    lines = counted = 0
    for pid, reading in children:
        with open(reading) as stream:
            text = stream.read()
        _, status = os.waitpid(pid, 0)
        if status != 0:
            unexpected["a process of the load failed"] += 1
            continue
        figures = json.loads(text)
        done.update(figures["done"])
        unexpected.update(figures["unexpected"])
        described += figures["described"]
        lines += figures["lines"]
        counted += figures["counted"]
    found = (shared / "log").read_bytes().splitlines()
    if len(found) != lines or len({tuple(line.split()[:2]) for line in found}) != lines:
        unexpected["log: lines are missing or torn"] += 1
    if int((shared / "counter").read_text()) != counted:
        unexpected["counter: counts are missing"] += 1
    return {
        "operations": done.total(),
        "by_operation": done,
        "unexpected": unexpected.total(),
        "by_kind": unexpected,
        "described": described,
    }


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description="Operations whose results are known, by many processes.")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--processes", type=int, default=24)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    os.umask(0o022)
    figures = run(args.directory, args.processes, args.seconds, args.seed)
    print(json.dumps(figures))
    return 0 if figures["unexpected"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
