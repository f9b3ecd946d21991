"""A disk that misbehaves on request: a FUSE file system over a directory, in a process of its own.

    python -m tests.support.faultyfs SOURCE MOUNTPOINT

passes everything through, except for what a *rule* says. It can also *record* everything that changes the disk, from
which `tests/support/powercut.py` makes what a power cut would have left. Commands come as JSON lines on standard input,
each is answered by a line; `FaultyDisk` is the other end.

Nothing of ipfsfs is in here. Names are one level of `*at` calls on O_PATH descriptors, one for each inode that the
kernel knows; that also keeps the host from using an inode number twice.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import pickle
import select
import stat
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

import pyfuse3
import trio

from tests.support.poll import wait_until

REPO = Path(__file__).resolve().parents[2]
SUBTYPE = "ipfsfs-test-disk"


@dataclass
class Rule:
    """What goes wrong: operations of the kind `op` (`*`: all) on paths that match the glob `path`.

    The first `skip` of them go well, the `times` after that (0: all) wait for `delay` seconds and fail with `error`, if
    that is not 0. A delay below 0 is a disk that hangs until the rules change.
    """

    op: str
    path: str = "*"
    error: int = 0
    skip: int = 0
    times: int = 0
    delay: float = 0.0
    seen: int = 0

    def hits(self, op: str, path: str) -> bool:
        """Count an operation; whether it goes wrong."""
        if self.op not in ("*", op) or not fnmatch.fnmatchcase(path, self.path):
            return False
        self.seen += 1
        return self.seen > self.skip and (not self.times or self.seen <= self.skip + self.times)


@dataclass
class _Inode:
    """An inode that the kernel knows. `number` is given once and never again; records name files by it."""

    fd: int
    number: int
    kind: int
    path: str
    lookups: int = 0


class _Disk(pyfuse3.Operations):
    """The passthrough."""

    def __init__(self, source: str) -> None:
        super().__init__()
        fd = os.open(source, os.O_PATH | os.O_DIRECTORY)
        self._inodes = {1: _Inode(fd, 0, stat.S_IFDIR, "", 1)}
        self._root_ino = os.fstat(fd).st_ino
        self._next = 1
        self._dirs: dict[int, list[bytes]] = {}
        self._of_fd: dict[int, _Inode] = {}
        self.rules: list[Rule] = []
        self.changed = trio.Event()
        self.record: IO[bytes] | None = None

    # --- rules and records ------------------------------------------------------------------------------------

    async def _fault(self, op: str, path: str) -> None:
        for rule in self.rules:
            if rule.hits(op, path):
                if rule.delay:
                    changed = self.changed
                    with trio.move_on_after(rule.delay if rule.delay > 0 else 3600):
                        await changed.wait()
                if rule.error:
                    raise pyfuse3.FUSEError(rule.error)

    def note(self, *what: object) -> None:
        """Put down what happens to the disk."""
        if self.record is not None:
            pickle.dump(what, self.record)

    # --- inodes -----------------------------------------------------------------------------------------------

    def _known(self, parent: _Inode, name: bytes) -> tuple[pyfuse3.EntryAttributes, _Inode]:
        fd = os.open(name, os.O_PATH | os.O_NOFOLLOW, dir_fd=parent.fd)
        st = os.fstat(fd)
        path = os.path.join(parent.path, os.fsdecode(name))
        inode = self._inodes.get(self._ino(st))
        if inode is None:
            inode = self._inodes[self._ino(st)] = _Inode(fd, self._next, stat.S_IFMT(st.st_mode), path)
            self._next += 1
        else:
            os.close(fd)
            inode.path = path
        inode.lookups += 1
        return self._attributes(st), inode

    def _ino(self, st: os.stat_result) -> int:
        return 1 if st.st_ino == self._root_ino else st.st_ino

    def _attributes(self, st: os.stat_result) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = self._ino(st)
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_rdev", "st_size"):
            setattr(entry, name, getattr(st, name))
        for name in ("st_atime_ns", "st_ctime_ns", "st_mtime_ns"):
            setattr(entry, name, getattr(st, name))
        entry.st_blksize, entry.st_blocks = 4096, st.st_blocks
        # The directory below is looked at by tests, too; who asks gets what is there now.
        entry.entry_timeout = entry.attr_timeout = 0
        return entry

    async def _at(self, op: str, parent_ino: int, name: bytes) -> _Inode:
        parent = self._inodes[parent_ino]
        await self._fault(op, os.path.join(parent.path, os.fsdecode(name)))
        return parent

    async def _on(self, op: str, ino: int) -> _Inode:
        inode = self._inodes[ino]
        await self._fault(op, inode.path)
        return inode

    async def lookup(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        return self._known(await self._at("lookup", parent_inode, name), name)[0]

    async def forget(self, inode_list):  # type: ignore[no-untyped-def]
        for ino, count in inode_list:
            inode = self._inodes.get(ino)
            if inode is not None:
                inode.lookups -= count
                if inode.lookups <= 0 and ino != 1:
                    os.close(self._inodes.pop(ino).fd)

    async def getattr(self, inode, ctx):  # type: ignore[no-untyped-def]
        return self._attributes(os.fstat((await self._on("getattr", inode)).fd))

    async def setattr(self, inode, attr, fields, fh, ctx):  # type: ignore[no-untyped-def]
        known = await self._on("truncate" if fields.update_size else "setattr", inode)
        path = f"/proc/self/fd/{known.fd}"
        if fields.update_size:
            os.truncate(path, attr.st_size)
            self.note("truncate", known.number, attr.st_size)
        if fields.update_mode:
            os.chmod(path, stat.S_IMODE(attr.st_mode))
        if fields.update_uid or fields.update_gid:
            uid = attr.st_uid if fields.update_uid else -1
            os.chown(path, uid, attr.st_gid if fields.update_gid else -1)
        if fields.update_atime or fields.update_mtime:
            st = os.fstat(known.fd)
            atime = attr.st_atime_ns if fields.update_atime else st.st_atime_ns
            os.utime(path, ns=(atime, attr.st_mtime_ns if fields.update_mtime else st.st_mtime_ns))
        return self._attributes(os.fstat(known.fd))

    # --- names ------------------------------------------------------------------------------------------------

    async def readlink(self, inode, ctx):  # type: ignore[no-untyped-def]
        return os.readlink(b"", dir_fd=(await self._on("readlink", inode)).fd)

    async def mknod(self, parent_inode, name, mode, rdev, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("create", parent_inode, name)
        os.mknod(name, mode, rdev, dir_fd=parent.fd)
        entry, _ = self._known(parent, name)
        return entry

    async def mkdir(self, parent_inode, name, mode, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("mkdir", parent_inode, name)
        os.mkdir(name, mode, dir_fd=parent.fd)
        entry, inode = self._known(parent, name)
        self.note("mkdir", parent.number, name, inode.number)
        return entry

    async def symlink(self, parent_inode, name, target, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("symlink", parent_inode, name)
        os.symlink(target, name, dir_fd=parent.fd)
        return self._known(parent, name)[0]

    async def link(self, inode, new_parent_inode, new_name, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("link", new_parent_inode, new_name)
        known = self._inodes[inode]
        os.link(f"/proc/self/fd/{known.fd}", new_name, dst_dir_fd=parent.fd, follow_symlinks=True)
        self.note("link", parent.number, new_name, known.number)
        return self._known(parent, new_name)[0]

    async def unlink(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("unlink", parent_inode, name)
        os.unlink(name, dir_fd=parent.fd)
        self.note("unlink", parent.number, name)

    async def rmdir(self, parent_inode, name, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("rmdir", parent_inode, name)
        os.rmdir(name, dir_fd=parent.fd)
        self.note("unlink", parent.number, name)

    async def rename(  # type: ignore[no-untyped-def]
        self, parent_inode_old, name_old, parent_inode_new, name_new, flags, ctx
    ):
        old = await self._at("rename", parent_inode_old, name_old)
        new = self._inodes[parent_inode_new]
        if flags:
            raise pyfuse3.FUSEError(errno.EINVAL)
        os.rename(name_old, name_new, src_dir_fd=old.fd, dst_dir_fd=new.fd)
        self.note("rename", old.number, name_old, new.number, name_new)
        before = os.path.join(old.path, os.fsdecode(name_old))
        after = os.path.join(new.path, os.fsdecode(name_new))
        for inode in self._inodes.values():
            if inode.path == before or inode.path.startswith(before + "/"):
                inode.path = after + inode.path[len(before) :]

    async def opendir(self, inode, ctx):  # type: ignore[no-untyped-def]
        known = await self._on("opendir", inode)
        fd = os.open(f"/proc/self/fd/{known.fd}", os.O_RDONLY | os.O_DIRECTORY)
        self._dirs[fd] = [os.fsencode(name) for name in os.listdir(fd)]
        self._of_fd[fd] = known
        return fd

    async def readdir(self, fh, start_id, token):  # type: ignore[no-untyped-def]
        await self._fault("readdir", self._of_fd[fh].path)
        names = self._dirs[fh]
        for at in range(start_id, len(names)):
            try:
                entry, inode = self._known(self._of_fd[fh], names[at])
            except FileNotFoundError:
                continue
            if not pyfuse3.readdir_reply(token, names[at], entry, at + 1):
                inode.lookups -= 1
                return

    async def releasedir(self, fh):  # type: ignore[no-untyped-def]
        del self._dirs[fh], self._of_fd[fh]
        os.close(fh)

    async def fsyncdir(self, fh, datasync):  # type: ignore[no-untyped-def]
        await self._fault("fsync", self._of_fd[fh].path)
        self.note("fsync", self._of_fd[fh].number)

    # --- contents ---------------------------------------------------------------------------------------------

    def _opened(self, fd: int, inode: _Inode) -> pyfuse3.FileInfo:
        self._of_fd[fd] = inode
        return pyfuse3.FileInfo(fh=fd, keep_cache=False)  # who opens a file reads it from the disk

    async def open(self, inode, flags, ctx):  # type: ignore[no-untyped-def]
        known = await self._on("open", inode)
        fd = os.open(f"/proc/self/fd/{known.fd}", flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_APPEND))
        if flags & os.O_TRUNC:
            self.note("truncate", known.number, 0)
        return self._opened(fd, known)

    async def create(self, parent_inode, name, mode, flags, ctx):  # type: ignore[no-untyped-def]
        parent = await self._at("create", parent_inode, name)
        fd = os.open(name, (flags & ~os.O_APPEND) | os.O_CREAT, mode, dir_fd=parent.fd)
        entry, inode = self._known(parent, name)
        self.note("create", parent.number, name, inode.number)
        return self._opened(fd, inode), entry

    async def read(self, fh, off, size):  # type: ignore[no-untyped-def]
        await self._fault("read", self._of_fd[fh].path)
        return os.pread(fh, size, off)

    async def write(self, fh, off, buf):  # type: ignore[no-untyped-def]
        inode = self._of_fd[fh]
        await self._fault("write", inode.path)
        done = os.pwrite(fh, buf, off)
        self.note("write", inode.number, off, bytes(buf[:done]))
        return done

    async def flush(self, fh):  # type: ignore[no-untyped-def]
        await self._fault("flush", self._of_fd[fh].path)

    async def fsync(self, fh, datasync):  # type: ignore[no-untyped-def]
        inode = self._of_fd[fh]
        await self._fault("fsync", inode.path)
        self.note("fsync", inode.number)

    async def release(self, fh):  # type: ignore[no-untyped-def]
        del self._of_fd[fh]
        os.close(fh)

    async def statfs(self, ctx):  # type: ignore[no-untyped-def]
        await self._fault("statfs", "")
        found, answer = os.fstatvfs(self._inodes[1].fd), pyfuse3.StatvfsData()
        for name in ("f_bsize", "f_frsize", "f_blocks", "f_bfree", "f_bavail", "f_files", "f_ffree", "f_favail"):
            setattr(answer, name, getattr(found, name))
        answer.f_namemax = found.f_namemax
        return answer

    async def getxattr(self, inode, name, ctx):  # type: ignore[no-untyped-def]
        return os.getxattr(f"/proc/self/fd/{self._inodes[inode].fd}", name)

    async def listxattr(self, inode, ctx):  # type: ignore[no-untyped-def]
        return [os.fsencode(name) for name in os.listxattr(f"/proc/self/fd/{self._inodes[inode].fd}")]

    async def setxattr(self, inode, name, value, ctx):  # type: ignore[no-untyped-def]
        os.setxattr(f"/proc/self/fd/{(await self._on('setxattr', inode)).fd}", name, value)

    async def removexattr(self, inode, name, ctx):  # type: ignore[no-untyped-def]
        os.removexattr(f"/proc/self/fd/{(await self._on('setxattr', inode)).fd}", name)


def _host_errors(disk: _Disk) -> None:
    """Let the host's errors through: pyfuse3 takes FUSEError only."""

    def wrap(method: Any) -> Any:
        async def wrapped(*args: Any) -> Any:
            try:
                return await method(*args)
            except OSError as exc:
                raise pyfuse3.FUSEError(exc.errno or errno.EIO) from None

        return wrapped

    for name in dir(pyfuse3.Operations):
        if not name.startswith("_") and name in vars(_Disk):
            setattr(disk, name, wrap(getattr(disk, name)))


async def _serve(source: str, mountpoint: str) -> None:
    disk = _Disk(source)
    _host_errors(disk)
    pyfuse3.init(disk, mountpoint, {f"fsname={SUBTYPE}", f"subtype={SUBTYPE}", "nodev"})

    async def commands() -> None:
        async for line in trio.lowlevel.FdStream(os.dup(0)):
            for part in line.splitlines():
                answer = _command(disk, json.loads(part))
                print(json.dumps(answer), flush=True)

    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(commands)
            print('"ready"', flush=True)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()
    finally:
        pyfuse3.close(unmount=False)


def _command(disk: _Disk, command: dict[str, Any]) -> object:
    if "rules" in command:
        disk.rules = [Rule(**rule) for rule in command["rules"]]
        changed, disk.changed = disk.changed, trio.Event()
        changed.set()
    if "record" in command:
        disk.record = open(command["record"], "wb", buffering=0)  # noqa: SIM115 - open as long as the disk
    if "mark" in command:
        disk.note("mark", command["mark"])
    return [max(0, rule.seen - rule.skip) for rule in disk.rules]


class FaultyDisk:
    """A directory `path` whose disk does what `fail` says; `source` has what is really there. `close` unmounts it."""

    def __init__(self, base: Path) -> None:
        self.source = base / "source"
        self.path = base / "disk"
        for directory in (self.source, self.path):
            directory.mkdir(parents=True)
        self._lock = threading.Lock()
        self._log = open(base / "disk.log", "wb")  # noqa: SIM115 - closed in `close`
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.faultyfs", str(self.source), str(self.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd="/",
            env=os.environ | {"PYTHONPATH": str(REPO)},
        )
        try:
            assert self._answer() == "ready", (base / "disk.log").read_text()
            wait_until(lambda: os.path.ismount(self.path), "faulty disk")
        except BaseException:
            self.close()
            raise

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 20)
        line = self._process.stdout.readline() if readable else b""
        assert line, "the faulty disk does not answer"
        return json.loads(line)

    def _ask(self, **command: object) -> Any:
        with self._lock:
            assert self._process.stdin is not None
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer()

    def fail(self, *rules: Rule) -> None:
        """From now on, until `heal` or another `fail`."""
        self._ask(rules=[asdict(rule) for rule in rules])

    def heal(self) -> list[int]:
        """Work again. Returns how many operations each rule has met."""
        hits = self.hits()
        self._ask(rules=[])
        return hits

    def hits(self) -> list[int]:
        """How many operations each rule has met so far, those that were let pass not counted."""
        hits: list[int] = self._ask()
        return hits

    def record(self, to: Path) -> None:
        """Record all changes into a file, for `powercut.py`."""
        self._ask(record=str(to))

    def mark(self, text: str) -> None:
        """Note in the record that something was acknowledged just now."""
        self._ask(mark=text)

    def close(self) -> None:
        """Unmount, and end the process."""
        if self._process.poll() is None:
            self._process.stdin and self._process.stdin.close()
        if os.path.ismount(self.path):
            subprocess.run(["fusermount3", "-u", "-z", str(self.path)], check=False, capture_output=True)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def main(arguments: Sequence[str]) -> None:
    """See the module."""
    trio.run(_serve, *arguments)


if __name__ == "__main__":
    main(sys.argv[1:])
