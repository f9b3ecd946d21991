"""The tree as it was at one instant, under one CID: only directories that changed are encoded again.

Goes down from the root, depth first, with a stack instead of recursion (a path may have 2,000 components).
A directory that is not dirty and has a memo is taken from the index unseen. Of one that is dirty, each
file is either clean (its memo's CID is taken) or captured, then its nodes are encoded on the way up.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as stat_
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fused.dag.attrs import AttrKind, Attrs
from fused.dag.build import DirEntry, directory, symlink_node
from fused.dag.meta import MetaEntry, encode_meta_dir
from fused.errors import NamesCollide
from fused.index.index import DirMemo
from fused.sync.ingest import racy
from fused.sync.visit import (
    NESTED_MOUNT,
    Child,
    count_below,
    join,
    mount_id,
    open_dir,
    read_xattrs,
    visit,
    why_unreadable,
)
from fused.types import FileKey, Stat, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fused.cid import CID
    from fused.index.index import FileMemo
    from fused.store.base import Block
    from fused.sync.capture import Capturer

log = logging.getLogger(__name__)

COLLIDES = "its name has the same hash as another in this large directory, and IPFS can't hold both"

_SPECIAL: dict[int, AttrKind] = {
    stat_.S_IFIFO: "fifo",
    stat_.S_IFSOCK: "sock",
    stat_.S_IFCHR: "chr",
    stat_.S_IFBLK: "blk",
}


@dataclass(frozen=True, slots=True)
class TreeRoot:
    """What a snapshot is made of. `files` and `bytes` are regular files in the tree and their sizes."""

    tree: CID
    meta: CID
    files: int
    bytes: int


@dataclass(slots=True)
class _Level:
    """A directory that is being encoded."""

    fd: int
    child: Child
    path: bytes
    parent: int
    st: os.stat_result
    subdirs: Iterator[Child] = field(default_factory=lambda: iter(()))
    memos: dict[int, DirMemo] = field(default_factory=dict)
    entries: list[DirEntry] = field(default_factory=list)
    meta: list[MetaEntry] = field(default_factory=list)
    links: list[tuple[int, int]] = field(default_factory=list)
    skipped: list[tuple[bytes, str]] = field(default_factory=list)
    files: int = 0
    bytes: int = 0
    unfinished: bool = False  # something in it was left out: look at it again next time

    @property
    def key(self) -> FileKey:
        return self.child.key


class TreeEncoder:
    """One use, between `ChangeLog.freeze` and `thaw`, in a worker thread."""

    def __init__(self, capturer: Capturer) -> None:
        self._c = capturer
        self._linked: dict[int, FileMemo] = {}

    def run(self, cancelled: Callable[[], None]) -> TreeRoot:
        """Encode the tree at T and store all of it. `cancelled` is called now and then and raises to give up.

        Raises OSError if the root can't be read, and what the store and the index raise.
        """
        c = self._c
        fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=c.root_fd)
        st = os.fstat(fd)
        root = Child(b"", st)
        self._root_mount = mount_id(fd)
        self._freeze_other_names()
        known = c.index.dirs([st.st_ino]).get(st.st_ino)
        if known is not None and not c.changes.frozen_dir(root.key):
            os.close(fd)
            return TreeRoot(known.tree, known.meta, known.files, known.bytes)
        c.outbox.forget_dirs(ino for _, ino in c.changes.frozen_dirs())
        stack = [_Level(fd, root, b"", st.st_ino, st)]
        done = None
        try:
            self._enter(stack[-1])
            while stack:
                cancelled()
                level = stack[-1]
                child = next(level.subdirs, None)
                if child is None:
                    done, attrs = self._leave(level)
                    stack.pop()
                    os.close(level.fd)
                    if stack:
                        stack[-1].unfinished |= level.unfinished
                        _add_dir(stack[-1], level.child, done, attrs)
                else:
                    self._descend(stack, child)
        finally:
            for level in stack:
                os.close(level.fd)
        c.outbox.drain()
        assert done is not None
        return TreeRoot(done.tree, done.meta, done.files, done.bytes)

    def _freeze_other_names(self) -> None:
        """A file with several links that changed through one name has changed at all of them."""
        c = self._c
        dev = os.fstat(c.root_fd).st_dev
        changed = {k[1] for k in (*c.changes.frozen_files(), *c.changes.frozen_linked())}
        dirs = {d for found in c.index.linking_dirs(changed).values() for d in found}
        c.changes.freeze_also((dev, ino) for ino in c.index.with_ancestors(dirs))

    def _descend(self, stack: list[_Level], child: Child) -> None:
        c, level = self._c, stack[-1]
        memo = level.memos.get(child.st.st_ino)
        if memo is not None and _is_of(memo, child.st) and not c.changes.frozen_dir(child.key):
            _add_dir(level, child, memo, _attrs(child, child.st, b"/proc/self/fd/%d/" % level.fd + child.name))
            return
        path = join(level.path, child.name)
        try:
            fd = os.dup(child.fd) if child.fd is not None else open_dir(child.name, level.fd)
        except FileNotFoundError:
            kept = c.changes.kept(child.key)
            if kept is None:
                return
            fd = os.dup(kept)
        except OSError as exc:
            self._skip_dir(level, path, exc)
            return
        st = os.fstat(fd)
        if key_of(st) != child.key:
            kept = c.changes.kept(child.key)
            os.close(fd)
            if kept is None:
                return
            fd = os.dup(kept)
            st = os.fstat(fd)
        if mount_id(fd) != self._root_mount:
            os.close(fd)
            level.skipped.append((path, NESTED_MOUNT))
            self._add_mountpoint(level, child)
            return
        stack.append(_Level(fd, child, path, level.child.st.st_ino, st))
        try:
            self._enter(stack[-1])
        except OSError as exc:
            os.close(stack.pop().fd)
            self._skip_dir(level, path, exc)

    def _skip_dir(self, level: _Level, path: bytes, exc: OSError) -> None:
        level.skipped.append((path, why_unreadable(exc)))
        level.unfinished = True

    def _add_mountpoint(self, level: _Level, child: Child) -> None:
        """What another file system is mounted on is stored as the empty directory that it is underneath."""
        attrs = Attrs("dir", 0o755, child.st.st_uid, child.st.st_gid, 0)
        tree, blocks, tsize = directory([], self._c.seal)
        meta, more = encode_meta_dir(attrs, [], self._c.seal)
        self._c.outbox.put_all([*blocks, *more])
        level.entries.append(DirEntry(child.name, tree, tsize))
        level.meta.append(MetaEntry(child.name, attrs, meta))

    def _enter(self, level: _Level) -> None:
        """Take in everything in the directory but its subdirectories, which are left in `level.subdirs`."""
        c = self._c
        seen = visit(level.fd, level.key, level.path, c.changes, c.excludes)
        prefix = b"/proc/self/fd/%d/" % level.fd
        subdirs: list[Child] = []
        files: list[Child] = []
        for child in seen.children:
            kind = stat_.S_IFMT(child.st.st_mode)
            if kind == stat_.S_IFREG:
                files.append(child)
            elif kind == stat_.S_IFDIR:
                subdirs.append(child)
            elif kind == stat_.S_IFLNK:
                self._add_symlink(level, child)
            else:
                level.meta.append(MetaEntry(child.name, _attrs(child, child.st, prefix + child.name), None))
        self._add_files(level, files)
        for child in seen.mountpoints:
            level.skipped.append((join(level.path, child.name), NESTED_MOUNT))
            if stat_.S_ISDIR(child.st.st_mode):
                self._add_mountpoint(level, child)
        level.skipped += seen.withheld
        ino = level.child.st.st_ino
        counted = (0, 0)
        if seen.excluded:
            counted = c.notes.excluded_in(ino) or _count(seen.excluded, level.fd)
        c.notes.set(ino, level.skipped, counted)
        level.memos = c.index.dirs(child.st.st_ino for child in subdirs)
        level.subdirs = iter(subdirs)

    def _add_files(self, level: _Level, files: list[Child]) -> None:
        c = self._c
        memos = c.index.files(child.st.st_ino for child in files)
        clean: list[tuple[Child, FileMemo]] = []
        unknown: list[Child] = []
        for child in files:
            memo = self._linked.get(child.st.st_ino) or self._known(child, memos.get(child.st.st_ino))
            if memo is not None:
                clean.append((child, memo))
            elif c.changes.frozen_file(child.key) or not c.changes.fresh(child.key):
                unknown.append(child)
        prefix = b"/proc/self/fd/%d/" % level.fd
        for child, memo in clean:
            self._add_file(level, child, memo, prefix)
        skipped = len(level.skipped)
        for child, memo in c.capture_all(unknown, memos, level.fd, level.path, level.skipped):
            self._add_file(level, child, memo, prefix)
        level.unfinished |= len(level.skipped) > skipped

    def _known(self, child: Child, memo: FileMemo | None) -> FileMemo | None:
        """The memo, if it is of the content at T."""
        changes = self._c.changes
        if memo is None or changes.frozen_file(child.key):
            return None
        if changes.changed_since(child.key):
            # Clean at T and written to since: what we know is what it was at T. A new file that got the inode
            # number of one that is gone was not there at T.
            return None if changes.fresh(child.key) else memo
        now = Stat.of(child.st)
        return memo if memo.stat == now or changes.carried(child.key, memo.stat, now) else None

    def _add_file(self, level: _Level, child: Child, memo: FileMemo, prefix: bytes) -> None:
        level.entries.append(DirEntry(child.name, memo.cid, memo.tsize))
        attrs = _attrs(child, child.st, prefix + child.name, size=memo.stat.size)
        level.meta.append(MetaEntry(child.name, attrs, None))
        level.files += 1
        level.bytes += memo.stat.size
        if child.st.st_nlink > 1:
            self._linked[child.st.st_ino] = memo
            level.links.append((child.st.st_ino, level.child.st.st_ino))

    def _add_symlink(self, level: _Level, child: Child) -> None:
        try:
            target = self._readlink(level, child)
        except OSError as exc:
            level.skipped.append((join(level.path, child.name), why_unreadable(exc)))
            level.unfinished = True
            return
        if target is None:
            return
        cid, block, tsize = symlink_node(target, self._c.seal)
        self._c.outbox.put(block)
        level.entries.append(DirEntry(child.name, cid, tsize))
        path = b"/proc/self/fd/%d/" % level.fd + child.name
        level.meta.append(MetaEntry(child.name, _attrs(child, child.st, path), None))

    def _readlink(self, level: _Level, child: Child) -> bytes | None:
        if child.fd is None:
            try:
                return os.readlink(child.name, dir_fd=level.fd)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.EINVAL):  # EINVAL: not a symbolic link any more
                    raise
        kept = child.fd if child.fd is not None else self._c.changes.kept(child.key)
        # readlinkat(2): an O_PATH descriptor of the link, and an empty name
        return None if kept is None else os.readlink(b"", dir_fd=kept)

    def _encode(self, level: _Level) -> tuple[CID, list[Block], int]:
        """The UnixFS directory, without names that can't be in it together."""
        while True:
            try:
                return directory(level.entries, self._c.seal)
            except NamesCollide as exc:
                left_out = max(exc.names)
                level.skipped.append((join(level.path, left_out), COLLIDES))
                level.entries = [entry for entry in level.entries if entry.name != left_out]
                for entry in level.meta:
                    if entry.name == left_out and entry.attrs.kind == "file":
                        level.files, level.bytes = level.files - 1, level.bytes - entry.attrs.size
                level.meta = [entry for entry in level.meta if entry.name != left_out]
                level.unfinished = True

    def _leave(self, level: _Level) -> tuple[DirMemo, Attrs]:
        """Encode the directory, all of whose entries are known."""
        c = self._c
        attrs = _attrs(level.child, level.st, b"/proc/self/fd/%d" % level.fd, follow=True)
        tree, blocks, tsize = self._encode(level)
        meta, more = encode_meta_dir(attrs, level.meta, c.seal)
        c.outbox.put_all(blocks)
        c.outbox.put_all(more)
        st = level.st
        ino = level.child.st.st_ino
        times = (st.st_mtime_ns, st.st_ctime_ns)
        memo = DirMemo(ino, level.parent, *times, racy(st.st_ctime_ns), tree, tsize, meta, level.files, level.bytes)
        c.notes.set(ino, level.skipped, c.notes.excluded_in(ino) or (0, 0))
        if not level.unfinished and not c.changes.dir_changed_since(level.key):
            # Otherwise its stat may be of after a change, and its listing of before.
            c.outbox.remember_dir(memo, level.links)
        c.changes.finish_dir(level.key)
        return memo, attrs


def _is_of(memo: DirMemo, st: os.stat_result) -> bool:
    """Whether the memo is of this directory, not of one that is gone and had the same inode number."""
    return not memo.racy and (memo.mtime_ns, memo.ctime_ns) == (st.st_mtime_ns, st.st_ctime_ns)


def _add_dir(level: _Level, child: Child, memo: DirMemo, attrs: Attrs) -> None:
    level.entries.append(DirEntry(child.name, memo.tree, memo.tsize))
    level.meta.append(MetaEntry(child.name, attrs, memo.meta))
    level.files += memo.files
    level.bytes += memo.bytes


def _count(excluded: list[Child], dir_fd: int) -> tuple[int, int]:
    counted = [count_below(child, dir_fd) for child in excluded]
    return sum(files for files, _ in counted), sum(size for _, size in counted)


def _attrs(child: Child, st: os.stat_result, path: bytes, *, size: int = 0, follow: bool = False) -> Attrs:
    """What UnixFS has no place for. `path` is where the file's xattrs can be read; `follow` if it is a descriptor's."""
    kind: AttrKind = "file"
    if stat_.S_ISDIR(st.st_mode):
        kind = "dir"
    elif stat_.S_ISLNK(st.st_mode):
        kind = "link"
    else:
        kind = _SPECIAL.get(stat_.S_IFMT(st.st_mode), "file")
    if child.fd is not None:
        path, follow = b"/proc/self/fd/%d" % child.fd, True
    return Attrs(
        kind=kind,
        mode=stat_.S_IMODE(st.st_mode),
        uid=st.st_uid,
        gid=st.st_gid,
        mtime_ns=st.st_mtime_ns,
        size=size,
        rdev=st.st_rdev if kind in ("chr", "blk") else 0,
        xattrs=read_xattrs(path, follow=follow),
        hardlink=st.st_ino if st.st_nlink > 1 and kind != "dir" else None,
    )
