"""The inode table: which file of the local layer the kernel means by an inode number.

One `Inode` per host inode, however many names it has, so hard links are one inode on the mount as well. An inode is
kept while the kernel holds references to it (its lookup count) or while a kept inode has a name in it, so that the
chain of parents up to the root is always there and a renamed directory takes its whole subtree along.

No I/O here. All functions are synchronous and run on trio's thread; that is what makes them atomic.

The kernel's reference counts: lookup, create, mknod, mkdir, symlink, link and each entry of a readdirplus reply but
`.` and `..` add one; forget takes away as many as it says (pyfuse3, developer-notes/lookup_counts.rst).
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

from fused.types import FileKey, Ino

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT_INO = Ino(1)

_TYPE = 0o170000  # S_IFMT, as a mask

SYNTHETIC_START = 1 << 48
"""Numbers from here up are ours to give, for files whose own number is taken. No local file system in use counts
that far from below; one that does is handled all the same, as numbers in use are skipped."""


class Inode:
    """One file or directory that the kernel knows, or that contains one that it knows.

    `parent` and `name` are its first name; both None when no name is known (removed, or the root). `more` holds the
    other known names of a hard-linked file by directory, as there may be tens of thousands, usually in a few
    directories. `children` counts the names that kept inodes have in this directory.
    """

    __slots__ = (
        "children",
        "dev",
        "host_ino",
        "ino",
        "kind",
        "lookups",
        "more",
        "name",
        "parent",
        "without_capability",
    )

    def __init__(self, ino: Ino, st: os.stat_result) -> None:
        self.ino = ino
        self.dev = st.st_dev
        # One int object for both numbers where they are equal, which is nearly always: 32 bytes each, 100,000 times.
        self.host_ino: int = ino if ino == st.st_ino else st.st_ino
        self.kind = stat.S_IFMT(st.st_mode)
        self.lookups = 0
        self.children = 0
        self.parent: Inode | None = None
        self.name: bytes | None = None
        self.more: dict[Inode, set[bytes]] | None = None
        self.without_capability = False  # True once the file was found to have no security.capability

    @property
    def key(self) -> FileKey:
        """Identity in the local layer."""
        return (self.dev, self.host_ino)

    @property
    def is_directory(self) -> bool:
        """Whether names can be in it."""
        return self.kind == stat.S_IFDIR

    def names(self) -> Iterator[tuple[Inode, bytes]]:
        """All known names, as (directory, name), the first name first. Not to be changed meanwhile."""
        if self.parent is None or self.name is None:
            return
        yield self.parent, self.name
        if self.more:
            for parent, names in self.more.items():
                for name in names:
                    yield parent, name

    def parents(self) -> Iterator[Inode]:
        """The directories that a name is in. One may come twice."""
        if self.parent is not None:
            yield self.parent
        if self.more:
            yield from self.more

    def is_in(self, parent: Inode, name: bytes) -> bool:
        """Whether this name is known."""
        if self.parent is parent and self.name == name:
            return True
        return self.more is not None and name in self.more.get(parent, ())

    def is_file_of(self, st: os.stat_result) -> bool:
        """Whether `st` describes this very inode."""
        return st.st_ino == self.host_ino and st.st_dev == self.dev and st.st_mode & _TYPE == self.kind


class Inodes:
    """All inodes by their number on the mount.

    `on_drop` is called with each inode that leaves the table, for whoever keeps descriptors by inode.
    """

    def __init__(self, root: os.stat_result) -> None:
        self.on_drop: Callable[[Inode], None] = lambda _: None
        self._root_dev = root.st_dev
        self._by_ino: dict[int, Inode] = {}
        # Only those that `_by_ino` does not find by the host's number; a tuple key for each would double the table.
        self._by_key: dict[FileKey, Inode] = {}
        self._next_synthetic = SYNTHETIC_START
        self.root = Inode(ROOT_INO, root)
        self.root.lookups = 1  # the kernel never forgets the root
        self._by_ino[ROOT_INO] = self.root
        self._by_key[self.root.key] = self.root

    def __len__(self) -> int:
        return len(self._by_ino)

    def __iter__(self) -> Iterator[Inode]:
        return iter(self._by_ino.values())

    def get(self, ino: int) -> Inode:
        """The inode with this number; ESTALE if there is none."""
        inode = self._by_ino.get(ino)
        if inode is None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return inode

    def find(self, st: os.stat_result) -> Inode | None:
        """The inode that stands for the file that `st` describes, if it is known."""
        host_ino = st.st_ino
        if st.st_dev == self._root_dev:
            inode = self._by_ino.get(host_ino)
            if inode is not None and inode.host_ino == host_ino and inode.dev == self._root_dev:
                return inode
        return self._by_key.get((st.st_dev, host_ino)) if self._by_key else None

    def remember(self, st: os.stat_result, parent: Inode, name: bytes) -> Inode:
        """The inode of the file that `st` describes, now known under this name as well.

        Made if it is new. The caller adds to its lookup count, or calls `drop_if_unused`.
        """
        inode = self._by_ino.get(st.st_ino)
        if inode is not None and inode.parent is parent and inode.name == name and inode.is_file_of(st):
            return inode  # nothing new: the usual case, most of all in listings
        inode = self.find(st)
        if inode is not None and inode.kind != stat.S_IFMT(st.st_mode):
            # The host gave the number to another file while the kernel still holds the old one. That takes a change
            # that did not go through the mount: what goes through it keeps the number busy (see reach.py).
            self._displace(inode)
            inode = None
        if inode is None:
            inode = self._make(st)
        self._know(inode, st.st_nlink, parent, name)
        return inode

    def number_of(self, dev: int, host_ino: int) -> int:
        """The number of a host's file on the mount, as far as it is known; else the host's, which it will mostly be."""
        inode = self._by_key.get((dev, host_ino))
        return host_ino if inode is None else inode.ino

    def _make(self, st: os.stat_result) -> Inode:
        natural = st.st_dev == self._root_dev and st.st_ino > ROOT_INO and st.st_ino not in self._by_ino
        if natural:
            inode = Inode(Ino(st.st_ino), st)
        else:
            while self._next_synthetic in self._by_ino:
                self._next_synthetic += 1
            inode = Inode(Ino(self._next_synthetic), st)
            self._next_synthetic += 1
            self._by_key[inode.key] = inode
        self._by_ino[inode.ino] = inode
        return inode

    def _displace(self, inode: Inode) -> None:
        """Let go of the host's file: the number on the mount stays, but nothing is found by it."""
        self._by_key.pop(inode.key, None)
        inode.host_ino = -1
        for parent, name in list(inode.names()):
            self.remove_name(inode, parent, name)

    def _know(self, inode: Inode, links: int, parent: Inode, name: bytes) -> None:
        if inode.parent is parent and inode.name == name:
            return
        if inode.parent is not None and (inode.is_directory or links < 2):
            # It can have one name only, so the other one is history.
            for old_parent, old_name in list(inode.names()):
                self.remove_name(inode, old_parent, old_name)
        self.add_name(inode, parent, name)

    def add_name(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Note that `inode` is in `parent` under `name`. Nothing happens if that is known, or for the root."""
        if inode is self.root or inode.is_in(parent, name):
            return
        if inode.parent is None:
            inode.parent, inode.name = parent, name
        else:
            if inode.more is None:
                inode.more = {}
            inode.more.setdefault(parent, set()).add(name)
        parent.children += 1

    def remove_name(self, inode: Inode, parent: Inode, name: bytes) -> None:
        """Forget one name. The inode stays while the kernel holds it, with or without names."""
        if not inode.is_in(parent, name):
            return
        if inode.parent is parent and inode.name == name:
            inode.parent = inode.name = None
            if inode.more:
                other, names = inode.more.popitem()
                inode.parent, inode.name = other, names.pop()
                if names:
                    inode.more[other] = names
        elif inode.more:
            inode.more[parent].discard(name)
            if not inode.more[parent]:
                del inode.more[parent]
        inode.more = inode.more or None
        parent.children -= 1
        self.drop_if_unused(parent)

    def forget(self, ino: int, count: int) -> bool:
        """The kernel gave back `count` references. True if the inode is gone from the table."""
        inode = self._by_ino.get(ino)
        if inode is None or inode is self.root:
            return False
        inode.lookups = max(0, inode.lookups - count)
        return self.drop_if_unused(inode)

    def drop_if_unused(self, inode: Inode) -> bool:
        """Take out an inode that neither the kernel nor a kept inode refers to. True if it is out now."""
        if inode.lookups > 0 or inode.children > 0 or self._by_ino.get(inode.ino) is not inode:
            return False
        del self._by_ino[inode.ino]
        if self._by_key.get(inode.key) is inode:
            del self._by_key[inode.key]
        self.on_drop(inode)
        for parent, name in list(inode.names()):
            self.remove_name(inode, parent, name)
        return True

    def directory_and_above(self, inode: Inode) -> Iterator[FileKey]:
        """The keys of a directory and of all that contain it, nearest first."""
        step: Inode | None = inode
        while step is not None:
            yield step.key
            step = step.parent

    def directories_above(self, inode: Inode) -> Iterator[FileKey]:
        """The keys of all directories that contain `inode` by its known names, nearest first, without repeats."""
        if inode.parent is not None and inode.more is None:
            yield from self.directory_and_above(inode.parent)
            return
        seen: set[Inode] = set()
        for parent in inode.parents():
            step: Inode | None = parent
            while step is not None and step not in seen:
                seen.add(step)
                yield step.key
                step = step.parent

    def paths(self, inode: Inode) -> list[bytes]:
        """All known paths relative to the root; none for a file that was removed or lies in a removed directory."""
        paths = []
        for parent, name in inode.names():
            parts = [name]
            step = parent
            while step.parent is not None and step.name is not None:
                parts.append(step.name)
                step = step.parent
            if step is self.root:
                paths.append(b"/".join(reversed(parts)))
        return paths

    def check_invariants(self) -> None:
        """Raise AssertionError where the table contradicts itself. For tests."""
        counted: dict[Inode, int] = {}
        for inode in self._by_ino.values():
            assert self._by_ino[inode.ino] is inode
            assert inode is self.root or inode.lookups > 0 or inode.children > 0, f"unused inode {inode.ino} kept"
            for parent, _ in inode.names():
                assert self._by_ino.get(parent.ino) is parent, f"parent of {inode.ino} is not in the table"
                counted[parent] = counted.get(parent, 0) + 1
        for inode in self._by_ino.values():
            assert inode.children == counted.get(inode, 0), f"inode {inode.ino} miscounts its children"
        for key, inode in self._by_key.items():
            assert inode.key == key
            assert self._by_ino.get(inode.ino) is inode
