"""A real mount and a plain directory that go through the same steps, and what must hold for them.

`Model.step` takes one step: an operation of `Side` on both directories, whose outcomes must be equal, or one of the
things that happen to a mount (`Model`'s own methods). While nothing is mounted the operations change the covered
directory itself, which the next mount has to find.

A crash is where the two may come apart: what was written and not closed may be lost. There the promises of
docs/semantics.md are checked, and then the plain directory is given what is left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import stat
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fused import state
from fused.control import call
from fused.errors import IpfsfsError
from tests.model.side import LONG_AGO_NS, RECENT, Failure, Side, outcome
from tests.model.steps import Pick
from tests.model.unwritten import Unwritten
from tests.support.background import Background
from tests.support.compare import describe_tree, differences_of, walk
from tests.support.mountproc import MountProcess
from tests.support.poll import wait_until

Step = tuple[Any, ...]
Tree = dict[bytes, dict[str, Any]]

_WRITES = {"write": 0, "pwrite": 0, "copy": 2, "posix_fallocate": 0}
"""Operations that write to a handle, and which argument that is."""

_CLOSES = {"open": 0, "close": 0, "reopen": 1, "openat": 2}
"""Operations that close what a number stood for."""

_HAPPENINGS = frozenset({"mount", "umount", "crash", "sync", "drop_caches", "compare", "become"})


class Model:
    """`base` must not exist. `close` ends everything, whatever has happened."""

    def __init__(self, base: Path) -> None:
        (base / "plain").mkdir(parents=True)
        self.mount_process = MountProcess(base / "ours", time_limit=500)
        self.background = Background(self.mount_process)
        for directory in (self.mount_process.path, base / "plain"):
            os.chmod(directory, 0o777)
        self.base = base
        self.real = Side(self.mount_process.path)
        self.plain = Side(base / "plain")
        self.mounted = False
        self.flags: tuple[str, ...] = ()
        self.unwritten = Unwritten()
        self.saved: list[tuple[str, Tree]] = []
        """Snapshots, and the plain directory when they were taken."""
        self.steps: list[Step] = []
        self.done: Counter[tuple[str, str]] = Counter()
        """How many operations of a name have worked and failed: a test whose operations all fail shows nothing."""
        self._user = 0

    # --- steps --------------------------------------------------------------------------------------------------

    def run(self, steps: Iterable[Step]) -> None:
        """Take all steps, and then look whether all is as it must be."""
        for step in steps:
            self.step(*step)
        self.finish()

    def step(self, name: str, *arguments: Any) -> None:
        """Take one step. Fails with AssertionError, which has a note with all steps so far."""
        arguments = tuple(self._picked(a) if isinstance(a, Pick) else a for a in arguments)
        self.steps.append((name, *arguments))
        try:
            if name in _HAPPENINGS:
                getattr(self, name)(*arguments)
            else:
                self._operate(name, arguments)
        except BaseException as error:
            self._add_steps_to(error)
            raise

    def _picked(self, pick: Pick) -> str | int:
        """What is picked, by what there is on the plain side."""
        there: list[Any] = []
        if pick.kind in ("slot", "writer"):
            there = [n for n, fd in sorted(self.plain.handles.items()) if pick.kind == "slot" or _inode_of_writer(fd)]
        elif pick.kind == "map":
            there = sorted(self.plain.maps)
        else:
            kinds = {"file": stat.S_ISREG, "directory": stat.S_ISDIR, "link": stat.S_ISLNK}
            wanted = kinds.get(pick.kind, lambda mode: True)
            there = [os.fsdecode(p) for p, st in walk(os.fsencode(self.plain.root)) if wanted(st.st_mode)]
        if not there:
            return 0 if pick.kind in ("slot", "writer", "map") else "a" + pick.then
        chosen = there[pick.number % len(there)]
        return (chosen + pick.then).removeprefix("/") if isinstance(chosen, str) else chosen

    def finish(self) -> None:
        """The end of every example: both trees, the covered one, snapshots restored elsewhere, and `fsck`."""
        try:
            self._finish()
        except BaseException as error:
            self._add_steps_to(error)
            raise

    def _add_steps_to(self, error: BaseException) -> None:
        lines = "".join(f"    {step!r},\n" for step in self.steps)
        error.add_note(f"after these steps:\n[\n{lines}]")

    # --- operations ---------------------------------------------------------------------------------------------

    def _operate(self, name: str, arguments: tuple[Any, ...]) -> None:
        if not self.mounted and name in ("fallocate", "seek_hole"):
            return  # these differ on a mount, and nothing is learnt from them without one
        written = self._written_to(name, arguments)
        if written is not None:
            self.unwritten.before(written)
        slot = arguments[_CLOSES[name]] if name in _CLOSES else None
        closed = self.plain.handles.get(slot) if slot is not None else None
        writer = _inode_of_writer(closed) if closed is not None else None
        if name in ("fallocate", "seek_hole", "truncate"):
            expected = outcome(lambda: getattr(self, f"_{name}")(*arguments))
        else:
            expected = self.plain.run(name, *arguments)
        found = self.real.run(name, *arguments)
        assert found == expected, f"{name}{arguments}: {found} on the mount, {expected} on the plain directory"
        self.done[name, "fails" if isinstance(expected, Failure) else "works"] += 1
        if written is not None:
            self._note_write(written, synced=name != "map_write" and bool(_flags_of(written) & os.O_DSYNC))
        if writer is not None and not isinstance(expected, Failure):
            self.unwritten.written(writer)
        if not isinstance(expected, Failure):
            self._note(name, arguments)

    def _written_to(self, name: str, arguments: tuple[Any, ...]) -> int | None:
        """The plain side's descriptor of a regular file that the operation may leave unwritten data in."""
        if not self.mounted:
            return None
        if name == "map_write":
            return self.plain.maps[arguments[0]][1] if arguments[0] in self.plain.maps else None
        fd = self.plain.handles.get(arguments[_WRITES[name]]) if name in _WRITES else None
        if fd is None or not stat.S_ISREG(os.fstat(fd).st_mode):
            return None
        # With --write-through only what a mapping has left there is not in the local file yet.
        return fd if "--write-through" not in self.flags or os.fstat(fd).st_ino in self.unwritten else None

    def _note_write(self, fd: int, *, synced: bool) -> None:
        if synced:
            self.unwritten.written(os.fstat(fd).st_ino)
        else:
            self.unwritten.after(fd)

    def _note(self, name: str, arguments: tuple[Any, ...]) -> None:
        """Keep account of what is in the local file, after an operation that has succeeded."""
        plain, unwritten = self.plain, self.unwritten
        if name in _CLOSES and arguments and name != "close":
            fd, flags = plain.handles[arguments[_CLOSES[name]]], arguments[2 if name == "open" else -1]
            if flags & os.O_TRUNC and not flags & os.O_PATH:
                unwritten.truncated(os.fstat(fd).st_ino, 0)
        elif name == "ftruncate":
            unwritten.truncated(os.fstat(plain.handles[arguments[0]]).st_ino, arguments[1])
        elif name == "truncate":
            unwritten.truncated(os.stat(plain.root / arguments[0]).st_ino, arguments[1])
        elif name in ("fsync", "fdatasync"):
            unwritten.written(os.fstat(plain.handles[arguments[0]]).st_ino)
        elif name == "msync":
            unwritten.written(os.fstat(plain.maps[arguments[0]][1]).st_ino)
        elif name == "write_file":
            unwritten.written(os.stat(plain.root / arguments[0]).st_ino)

    # Differences that docs/semantics.md tells: what the mount is to do, as nothing of it happens on the plain side.

    def _fallocate(self, slot: int, length: int) -> None:
        fd = self.plain.handles.get(slot)
        if length == 0:
            raise OSError(errno.EBADF if fd is None or _flags_of(fd) & os.O_PATH else errno.EINVAL, "")
        if fd is None or _flags_of(fd) & os.O_PATH or not _flags_of(fd) & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EBADF, "")
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode):
            raise OSError(errno.ESPIPE, "")
        if not stat.S_ISREG(mode):
            raise OSError(errno.ENODEV, "")
        self.plain.blur(fd)
        raise OSError(errno.EOPNOTSUPP, "")

    def _seek_hole(self, slot: int, offset: int, whence: int) -> int:
        fd = self.plain.handles.get(slot)
        if fd is None or not stat.S_ISREG(os.fstat(fd).st_mode) or _flags_of(fd) & os.O_PATH:
            result = self.plain.run("seek_hole", slot, offset, whence)
            if isinstance(result, Failure):
                raise OSError(getattr(errno, result), "")
            return int(str(result))
        size = os.fstat(fd).st_size
        if offset >= size:
            raise OSError(errno.ENXIO, "")
        return os.lseek(fd, size if whence == os.SEEK_HOLE else offset, os.SEEK_SET)

    def _truncate(self, path: str, size: int) -> object:
        """With the write-back cache a size that is the old one is no change to the kernel."""
        before = outcome(lambda: os.stat(self.plain.root / path))
        result = self.plain.run("truncate", path, size)
        if isinstance(result, Failure):
            raise OSError(getattr(errno, result), "")
        assert isinstance(before, os.stat_result)
        if before.st_size == size and self.mounted and "--write-through" not in self.flags:
            os.utime(self.plain.root / path, ns=(before.st_atime_ns, before.st_mtime_ns))
            result = self.plain.run("stat", path)
        return result

    # --- what happens to the mount ------------------------------------------------------------------------------

    def become(self, user: int) -> None:
        """Operate as this user from now on, where the mount lets others in."""
        self._user = user
        self._choose_user()

    def _choose_user(self) -> None:
        user = self._user if not self.mounted or "--allow-other" in self.flags else 0
        self.real.user = self.plain.user = user

    def mount(self, flags: tuple[str, ...]) -> None:
        """Mount, or unmount and mount again."""
        self.umount(False, "nothing")
        self._let_go()
        self.flags = tuple(flags)
        self.background.mount("--force", *self.flags)
        self.mounted = True
        self._choose_user()

    def umount(self, now: bool, then: str) -> None:
        """Unmount; the plain files are there. `then` something may happen to what the daemon remembers."""
        if self.mounted:
            self._let_go()
            self.background.umount(*(["--now"] if now else []))
            self.mounted = False
            self._choose_user()
            assert not self.mount_process.is_mounted()
            self.compare()
        state_dir = self.mount_process.state
        if then == "state gone":
            shutil.rmtree(state_dir, ignore_errors=True)
        elif then == "index gone":
            for file in state_dir.glob("index.sqlite*"):
                file.unlink()
        elif then == "index damaged" and (state_dir / "index.sqlite").exists():
            self.mount_process.expect_log("index")
            with open(state_dir / "index.sqlite", "r+b") as index:
                index.seek(50)
                index.write(b"damaged" * 1000)

    def _let_go(self) -> None:
        """Close everything on both sides."""
        self.real.let_go()
        self.plain.let_go()
        self.unwritten.clear()

    def sync(self) -> None:
        """Take a snapshot; what it holds is looked at in the end."""
        if self.mounted:
            cid = self.mount_process.sync()
            self.unwritten.clear()
            self.saved.append((cid, self._plain_tree()))

    def drop_caches(self) -> None:
        """Make the kernel forget names, inodes (with their pages) and, of what is open, pages."""
        for fd in self.real.handles.values():
            if not _flags_of(fd) & os.O_PATH and stat.S_ISREG(os.fstat(fd).st_mode):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        Path("/proc/sys/vm/drop_caches").write_text("2")

    def compare(self) -> None:
        """Both trees are the same, in everything."""
        _assert_same(self._plain_tree(), _tree(self.real.root), "the mount" if self.mounted else "the covered one")

    def _plain_tree(self) -> Tree:
        tree = _tree(self.plain.root)
        for path, st in walk(os.fsencode(self.plain.root)):
            if st.st_ino in self.plain.vague:
                del tree[path]["mtime_ns"]
        return tree

    # --- crashes ------------------------------------------------------------------------------------------------

    def crash(self, what: str) -> None:
        """Kill the daemon; its supervisor brings it back. Or kill both, and mount again."""
        if not self.mounted:
            return
        seen = self.background.supervisor()
        assert seen.daemon_pid is not None
        self.mount_process.expect_log(r"the daemon was killed by signal 9 \(SIGKILL\)")
        if what != "daemon":
            os.kill(seen.pid, signal.SIGKILL)
        os.kill(seen.daemon_pid, signal.SIGKILL)
        vague = set(self.plain.vague)
        self.real.let_go()
        self.plain.let_go()
        if what == "daemon":
            wait_until(lambda: self._is_back(seen.daemon_pid), "new daemon", 30)
        else:
            wait_until(lambda: not state.is_locked(str(self.mount_process.state)), "end of the daemon")
            self.background.mount("--force", *self.flags)
        self._check_what_is_left(vague)

    def _is_back(self, old_pid: int | None) -> bool:
        state_dir = str(self.mount_process.state)
        seen = state.read_supervision(state_dir)
        assert seen is not None
        assert seen.gave_up is None, seen.gave_up
        if seen.daemon_pid in (None, old_pid) or not self.mount_process.is_mounted():
            return False
        try:
            os.listdir(self.real.root)
            call(state_dir, "writers")
        except (OSError, IpfsfsError):
            return False
        return True

    def _check_what_is_left(self, vague: set[int]) -> None:
        """What was promised is there. Of the rest, the plain directory is given what there is."""
        left, found = _tree(self.plain.root), _tree(self.real.root)
        root, plain_root = os.fsencode(self.real.root), os.fsencode(self.plain.root)
        free: dict[bytes, int] = {}
        for path, st in walk(plain_root):
            if st.st_ino in self.unwritten or st.st_ino in vague:
                free[path] = st.st_ino
        for path, ino in free.items():
            for field in ("mtime_ns", "size", "sha256") if ino in self.unwritten else ("mtime_ns",):
                left[path].pop(field, None)
        _assert_same(left, found, "what is left after the crash")
        for path, ino in free.items():
            real, plain = os.path.join(root, path), os.path.join(plain_root, path)
            if ino in self.unwritten:
                with open(real, "rb") as stream:
                    content = stream.read()
                problem = self.unwritten.problem(ino, content)
                assert problem is None, f"{path!r} {problem}, after a crash"
                with open(plain, "r+b") as stream:
                    stream.truncate()
                    stream.write(content)
            st = os.lstat(real)
            os.utime(plain, ns=(st.st_atime_ns, st.st_mtime_ns))
        self.unwritten.clear()
        self.compare()

    # --- the end ------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        if not self.mounted:
            self.mount(self.flags)
        self._let_go()
        self.compare()
        exact = describe_tree(self.mount_process.plain)
        _assert_same(exact, describe_tree(self.real.root), "the mount, against its plain files")
        self.sync()
        restored = self._restore(self.saved[-1][0])
        _assert_same(exact, describe_tree(restored), "the last snapshot, restored")
        older = self.saved[:-1]
        for snapshot, tree in {id(s): s for s in (*older[:1], *older[-1:])}.values():
            _assert_same(tree, _tree(self._restore(snapshot)), f"an earlier snapshot ({snapshot}), restored")
        self.mount_process.ipfsfs("fsck", "--content", self.mount_process.path)  # 0: nothing is damaged
        self.umount(False, "nothing")
        _assert_same(exact, describe_tree(self.mount_process.path), "the covered directory, unmounted")

    def _restore(self, snapshot: str) -> Path:
        to = self.base / "restored"
        shutil.rmtree(to, ignore_errors=True)
        return self.mount_process.restore(snapshot, to)

    def close(self) -> None:
        """End everything. Fails if something had to be forced, or was logged that nobody expected."""
        self.real.let_go()
        self.plain.let_go()
        self.unwritten.clear()
        self.background.close()
        self.mount_process.close()
        shutil.rmtree(self.base)


def _flags_of(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def _inode_of_writer(fd: int) -> int | None:
    """The inode of a descriptor that is open for writing."""
    return os.fstat(fd).st_ino if _flags_of(fd) & (os.O_WRONLY | os.O_RDWR) else None


def _tree(root: Path) -> Tree:
    """A tree with what two directories have to agree on."""
    tree = describe_tree(root)
    for seen in tree.values():
        if seen["mtime_ns"] >= LONG_AGO_NS:
            seen["mtime_ns"] = RECENT
    return tree


def _assert_same(expected: Tree, found: Tree, what: str) -> None:
    """Compare all that is in `expected`; a field that it lacks may be anything."""
    known = {
        path: {field: value for field, value in seen.items() if field in expected[path] or field == "links"}
        if path in expected
        else seen
        for path, seen in found.items()
    }
    lines = differences_of(expected, known)
    assert not lines, f"{what}: {len(lines)} differences\n" + "\n".join(lines[:20])
