"""Random operations on our file system, without a mount, and on a plain directory: the same results and trees."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fused.fs import pace
from fused.fs.attrs import NewAttrs
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.fs.waiting import Later
from fused.inline import run_inline
from fused.local import layer
from fused.types import Caller
from tests.support.listed import listed

CALLER = Caller(0, 0, 1, 0)


@pytest.fixture(scope="module", autouse=True)
def _settings() -> Iterator[None]:
    """Small writes are inline, also on a busy machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pace, "SLOW_SECONDS", float("inf"))
        yield


# Few names, so that operations meet.
names = st.sampled_from([b"a", b"b", b"c"])
paths = st.lists(names, min_size=1, max_size=3).map(tuple)
Path_ = tuple[bytes, ...]

operations = st.one_of(
    st.tuples(st.sampled_from(["create", "mkdir", "symlink", "unlink", "rmdir", "stat", "list", "read"]), paths),
    st.tuples(st.just("write"), paths, st.integers(0, 5), st.binary(min_size=1, max_size=4)),
    st.tuples(st.just("truncate"), paths, st.integers(0, 9)),
    st.tuples(st.just("chmod"), paths, st.sampled_from([0o600, 0o755, 0o700])),
    st.tuples(st.just("link"), paths, paths),
    st.tuples(st.just("rename"), paths, paths, st.sampled_from([0, layer.RENAME_NOREPLACE, layer.RENAME_EXCHANGE])),
    st.tuples(st.just("forget_all")),
)


class Plain:
    """The operations on a real directory, by path, links not followed."""

    def __init__(self, root: Path) -> None:
        self.root = os.fsencode(root)

    def _path(self, path: Path_) -> bytes:
        # Links in the middle are not followed either: the kernel would walk them, and our table is not asked to.
        for depth in range(1, len(path)):
            if not stat.S_ISDIR(os.lstat(os.path.join(self.root, *path[:depth])).st_mode):
                raise OSError(errno.ENOTDIR, "")
        return os.path.join(self.root, *path)

    def create(self, path: Path_) -> object:
        os.close(os.open(self._path(path), os.O_CREAT | os.O_EXCL, 0o644))
        return None

    def mkdir(self, path: Path_) -> object:
        os.mkdir(self._path(path), 0o755)
        return None

    def symlink(self, path: Path_) -> object:
        os.symlink(b"target", self._path(path))
        return None

    def unlink(self, path: Path_) -> object:
        os.unlink(self._path(path))
        return None

    def rmdir(self, path: Path_) -> object:
        os.rmdir(self._path(path))
        return None

    def stat(self, path: Path_) -> object:
        found = os.lstat(self._path(path))
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return found.st_mode, found.st_nlink, size

    def list(self, path: Path_) -> object:
        self._must_be(path, stat.S_IFDIR)
        return sorted(os.listdir(self._path(path)))

    def read(self, path: Path_) -> object:
        self._must_be(path, stat.S_IFREG)
        return Path(os.fsdecode(self._path(path))).read_bytes()

    def write(self, path: Path_, offset: int, data: bytes) -> object:
        self._must_be(path, stat.S_IFREG)
        fd = os.open(self._path(path), os.O_WRONLY)
        count = os.pwrite(fd, data, offset)
        os.close(fd)
        return count

    def truncate(self, path: Path_, size: int) -> object:
        self._must_be(path, stat.S_IFREG)
        os.truncate(self._path(path), size)
        return None

    def chmod(self, path: Path_, mode: int) -> object:
        self._must_be(path, stat.S_IFREG, stat.S_IFDIR)
        os.chmod(self._path(path), mode)
        return None

    def link(self, path: Path_, new: Path_) -> object:
        os.lstat(self._path(path))
        os.link(self._path(path), self._path(new), follow_symlinks=False)
        return None

    def rename(self, path: Path_, new: Path_, flags: int) -> object:
        source, target = self._path(path), self._path(new)
        layer.rename_at(-1, source, -1, target, flags) if flags else os.rename(source, target)
        return None

    def forget_all(self) -> object:
        return None

    def _must_be(self, path: Path_, *kinds: int) -> None:
        if stat.S_IFMT(os.lstat(self._path(path)).st_mode) not in kinds:
            raise OSError(errno.EINVAL, "")


class Ours:
    """The same through the parts of the `fs` layer, looked up step by step as the kernel does."""

    def __init__(self, root: Path) -> None:
        self.fd = os.open(root, os.O_RDONLY)
        self.fs = FileSystem(self.fd, NullChangeSink(), private=True, write_through=False, read_only=False)

    def _look(self, path: Path_) -> int:
        ino = 1
        for index, name in enumerate(path):
            entry = self.fs.tree.lookup(ino, name)
            if entry is None:
                raise OSError(errno.ENOENT, "")
            if index < len(path) - 1 and not stat.S_ISDIR(entry.st.st_mode):
                raise OSError(errno.ENOTDIR, "")
            ino = entry.ino
        return ino

    def _parent(self, path: Path_) -> int:
        ino = self._look(path[:-1])
        if not self.fs.inodes.get(ino).is_directory:
            raise OSError(errno.ENOTDIR, "")
        return ino

    def create(self, path: Path_) -> object:
        opened, _ = run_inline(
            self.fs.files.create(self._parent(path), path[-1], 0o644, os.O_RDONLY | os.O_EXCL, CALLER)
        )
        self.fs.files.release(opened.fh)
        return None

    def mkdir(self, path: Path_) -> object:
        self.fs.tree.mkdir(self._parent(path), path[-1], 0o755, CALLER)
        return None

    def symlink(self, path: Path_) -> object:
        self.fs.tree.symlink(self._parent(path), path[-1], b"target", CALLER)
        return None

    def unlink(self, path: Path_) -> object:
        self._parent(path)
        self._look(path)
        self.fs.tree.unlink(self._parent(path), path[-1])
        return None

    def rmdir(self, path: Path_) -> object:
        self._look(path)
        self.fs.tree.rmdir(self._parent(path), path[-1])
        return None

    def stat(self, path: Path_) -> object:
        found = self.fs.attributes.getattr(self._look(path)).st
        size = 0 if stat.S_ISDIR(found.st_mode) else found.st_size
        return found.st_mode, found.st_nlink, size

    def list(self, path: Path_) -> object:
        return self._list_dir(self._must_be(path, stat.S_IFDIR))

    def list_all(self) -> None:
        """Every directory that can be reached. What is shown must be what is there, every time."""
        todo: list[Path_] = [()]
        for path in todo:
            todo += [
                (*path, name)
                for name in self._list_dir(self._look(path))
                if stat.S_ISDIR(self.fs.attributes.getattr(self._look((*path, name))).st.st_mode)
            ]

    def _list_dir(self, ino: int) -> list[bytes]:
        fh, _ = self.fs.tree.opendir(ino)
        run_inline(self.fs.tree.list(fh))
        entries = listed(self.fs, fh)
        names = [name for name, _ in entries]
        assert names[:2] == [b".", b".."]
        for name, shown in entries[2:]:
            true = os.stat(name, dir_fd=self.fs.tree.directory_fd(fh), follow_symlinks=False)
            if stat.S_ISREG(true.st_mode):  # reading a link sets its atime, and so does listing a directory
                assert shown.st is not None
                assert (shown.st, shown.st.st_ctime_ns) == (true, true.st_ctime_ns), f"{name!r} is shown as it was"
            assert self.fs.inodes.get(shown.ino).is_file_of(true)
        self.fs.tree.releasedir(fh)
        return sorted(names[2:])

    def read(self, path: Path_) -> object:
        fh = run_inline(self.fs.files.open(self._must_be(path, stat.S_IFREG), os.O_RDONLY)).fh
        try:
            found = self.fs.files.read(fh, 0, 4096)
            assert not isinstance(found, Later), "a small file just written has to be waited for"
            return bytes(found)
        finally:
            self.fs.files.release(fh)

    def write(self, path: Path_, offset: int, data: bytes) -> object:
        fh = run_inline(self.fs.files.open(self._must_be(path, stat.S_IFREG), os.O_WRONLY)).fh
        count = run_inline(self.fs.files.write(fh, offset, data))
        self.fs.files.release(fh)
        return count

    def truncate(self, path: Path_, size: int) -> object:
        run_inline(self.fs.files.truncate(self._must_be(path, stat.S_IFREG), size, None))
        return None

    def chmod(self, path: Path_, mode: int) -> object:
        run_inline(self.fs.attributes.setattr(self._must_be(path, stat.S_IFREG, stat.S_IFDIR), NewAttrs(mode=mode)))
        return None

    def link(self, path: Path_, new: Path_) -> object:
        source = self._look(path)
        self.fs.tree.link(source, self._parent(new), new[-1])
        return None

    def rename(self, path: Path_, new: Path_, flags: int) -> object:
        self._look(path[:-1])
        source, target = self._parent(path), self._parent(new)
        self.fs.tree.rename(source, path[-1], target, new[-1], flags)
        return None

    def forget_all(self) -> object:
        """What the kernel does when its caches are dropped."""
        for inode in list(self.fs.inodes):
            self.fs.inodes.forget(inode.ino, inode.lookups)
        assert self.fs.inode_count() == 1
        assert (self.fs.reach.orphan_count(), self.fs.reach.cached_count()) == (0, 0)
        return None

    def _must_be(self, path: Path_, *kinds: int) -> int:
        ino = self._look(path)
        if self.fs.inodes.get(ino).kind not in kinds:
            raise OSError(errno.EINVAL, "")
        return ino

    def close(self) -> None:
        self.fs.close()
        os.close(self.fd)


def outcome(work: Callable[..., object], arguments: tuple[object, ...]) -> object:
    try:
        return work(*arguments)
    except OSError as error:
        return errno.errorcode[error.errno or 0]


@settings(max_examples=150)
@given(st.lists(operations, max_size=30), st.booleans())
def test_random_operations_end_as_on_a_plain_directory(todo: list[tuple[object, ...]], watched: bool) -> None:
    descriptors = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        ours, plain = Ours(Path(one)), Plain(Path(two))
        try:
            for name, *arguments in todo:
                expected = outcome(getattr(plain, str(name)), tuple(arguments))
                assert outcome(getattr(ours, str(name)), tuple(arguments)) == expected
                if watched:
                    ours.list_all()
                ours.fs.inodes.check_invariants()
            for path in ([b"a"], [b"a", b"b"], [b"b"], [b"c"]):
                assert outcome(ours.stat, (tuple(path),)) == outcome(plain.stat, (tuple(path),))
            assert ours.fs.handle_count() == 0
        finally:
            ours.close()
    assert len(os.listdir("/proc/self/fd")) == descriptors
