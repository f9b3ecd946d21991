"""Looking at one directory of the local layer on the way through the tree: used by the scan and by snapshots.

All access is one name at a time, relative to a descriptor of its directory and without following links,
so that nobody who renames or swaps things meanwhile can lead us out of the covered directory.
"""

from __future__ import annotations

import errno
import logging
import os
import stat as stat_
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fused.types import FileKey, key_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fused.sync.changes import ChangeLog
    from fused.sync.excludes import Excludes

log = logging.getLogger(__name__)

NESTED_MOUNT = "another file system is mounted there"
CANT_READ = "can't be read"


@dataclass(slots=True)
class Child:
    """A name in a directory, with its stat. `fd` is set if the name is gone and only this descriptor is left."""

    name: bytes
    st: os.stat_result
    fd: int | None = None

    @property
    def key(self) -> FileKey:
        return key_of(self.st)


@dataclass(slots=True)
class Seen:
    """What a visit found: children to store, and what is not stored."""

    children: list[Child] = field(default_factory=list)
    mountpoints: list[Child] = field(default_factory=list)
    excluded: list[Child] = field(default_factory=list)
    withheld: list[tuple[bytes, str]] = field(default_factory=list)
    """(path, why) of what is not stored because of its name."""


class Notes:
    """What is not stored, by directory, for `status`: replaced whenever a directory is visited. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._skipped: dict[int, list[tuple[bytes, str]]] = {}
        self._excluded: dict[int, tuple[int, int]] = {}

    def set(self, directory: int, skipped: list[tuple[bytes, str]], excluded: tuple[int, int]) -> None:
        """Note for the directory with this inode number: (path, why) of each skipped, (files, bytes) excluded."""
        with self._lock:
            for table, value in ((self._skipped, skipped), (self._excluded, excluded)):
                table.pop(directory, None)
                if value and value != (0, 0):
                    table[directory] = value  # type: ignore[assignment]  # each table gets its own kind

    def excluded_in(self, directory: int) -> tuple[int, int] | None:
        """(files, bytes) excluded in and below the directory, if it was visited and has any."""
        with self._lock:
            return self._excluded.get(directory)

    def skipped(self) -> list[tuple[bytes, str]]:
        """(path relative to the covered directory, why) of everything skipped, sorted."""
        with self._lock:
            return sorted(item for items in self._skipped.values() for item in items)

    def unread(self) -> bool:
        """Whether something could not be read that may be readable another time, without anybody changing it."""
        with self._lock:
            return any(why.startswith(CANT_READ) for items in self._skipped.values() for _, why in items)

    def excluded(self) -> tuple[int, int]:
        """(files, bytes) excluded altogether."""
        with self._lock:
            return (sum(f for f, _ in self._excluded.values()), sum(b for _, b in self._excluded.values()))


def mount_id(fd: int) -> int:
    """The id of the mount that `fd` was opened on (proc(5), fdinfo). Tells bind mounts of one file system apart."""
    with open(f"/proc/self/fdinfo/{fd}", "rb") as stream:
        for line in stream:
            if line.startswith(b"mnt_id:"):
                return int(line[7:])
    return -1


def open_dir(name: bytes, dir_fd: int) -> int:
    """A descriptor to list the directory `name`. Raises OSError."""
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)


def join(directory: bytes, name: bytes) -> bytes:
    """The path of a name in a directory, relative to the covered directory."""
    return directory + b"/" + name if directory else name


def visit(fd: int, key: FileKey, path: bytes, changes: ChangeLog, excludes: Excludes) -> Seen:
    """List the directory open at `fd`, as it was at T if that is being captured, and stat what is in it.

    Raises OSError if it can't be listed. Names that vanish meanwhile are left out.
    """
    seen = Seen()
    for name, ino in changes.listing(key, fd):
        child = _child(fd, name, (key[0], ino), changes)
        if child is None:
            continue
        is_dir = stat_.S_ISDIR(child.st.st_mode)
        if excludes and excludes.match(join(path, name), is_dir=is_dir):
            seen.excluded.append(child)
        elif why := _why_withheld(join(path, name), child, excludes):
            seen.withheld.append((join(path, name), why))
        elif child.st.st_dev != key[0]:
            seen.mountpoints.append(child)
        else:
            seen.children.append(child)
    return seen


def _why_withheld(path: bytes, child: Child, excludes: Excludes) -> str | None:
    """Links and devices have no content to withhold."""
    is_dir = stat_.S_ISDIR(child.st.st_mode)
    return excludes.why_withheld(path, is_dir=is_dir) if is_dir or stat_.S_ISREG(child.st.st_mode) else None


def _child(fd: int, name: bytes, listed: FileKey, changes: ChangeLog) -> Child | None:
    try:
        st = os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        st = None
    except OSError as exc:
        log.debug("can't stat a listed name: %s", exc)
        st = None
    if st is not None and st.st_ino == listed[1]:
        return Child(name, st)
    kept = changes.kept(listed)
    if kept is not None:
        return Child(name, os.fstat(kept), kept)
    # Another inode than listed and nothing kept: a mount point, or an overlay whose d_ino is not st_ino
    # (Documentation/filesystems/overlayfs.rst, "Inode properties"): what stands there now is what there is.
    return None if st is None else Child(name, st)


def count_below(child: Child, dir_fd: int) -> tuple[int, int]:
    """(regular files, bytes) in and below something that is excluded."""
    if stat_.S_ISREG(child.st.st_mode):
        return 1, child.st.st_size
    if not stat_.S_ISDIR(child.st.st_mode):
        return 0, 0
    files = size = 0
    stack = [(dir_fd, iter([child.name]))]  # not os.fwalk: it opens what a name leads to before it looks
    try:
        while stack:
            fd, names = stack[-1]
            name = next(names, None)
            if name is None:
                stack.pop()
                if stack:
                    os.close(fd)
                continue
            try:
                st = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat_.S_ISREG(st.st_mode):
                    files, size = files + 1, size + st.st_size
                elif stat_.S_ISDIR(st.st_mode):
                    below = open_dir(name, fd)
                    stack.append((below, iter([])))
                    stack[-1] = (below, iter([os.fsencode(entry) for entry in os.listdir(below)]))
            except OSError as exc:
                log.debug("excluded files not counted: %s", exc)
    finally:
        for fd, _ in stack[1:]:
            os.close(fd)
    return files, size


def why_unreadable(exc: OSError) -> str:
    """A few words for `status` on why something could not be read."""
    if exc.errno in (errno.EACCES, errno.EPERM):
        return "no permission to read it"
    return f"{CANT_READ}: {os.strerror(exc.errno) if exc.errno else exc}"


def read_xattrs(path: bytes, *, follow: bool = False) -> tuple[tuple[bytes, bytes], ...]:
    """All extended attributes that can be read, sorted by name: of `path` itself, or of what it leads to."""
    return tuple(_xattrs(path, follow))


def _xattrs(path: bytes, follow: bool) -> Iterator[tuple[bytes, bytes]]:
    try:
        names = os.listxattr(path, follow_symlinks=follow)
    except OSError:
        return
    for name in sorted(names):
        try:
            yield os.fsencode(name), os.getxattr(path, name, follow_symlinks=follow)
        except OSError:
            continue
