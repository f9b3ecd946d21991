"""The file-system layer's half of the change log's contract, over plain system calls and without a mount.

So that what `sync` does can be tested in milliseconds: each operation tells the change log first and then makes
the change, as `fused/fs` does on the thread that serves requests.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from fused.types import key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fused.sync.changes import ChangeLog
    from fused.types import FileKey


class DirectFs:
    """Operations on the tree at `root`, reported to `changes`. Paths are relative to it."""

    def __init__(self, root: Path, changes: ChangeLog) -> None:
        self.root = root
        self._changes = changes

    def _dirs(self, directory: Path) -> Callable[[], Iterable[FileKey]]:
        chain = []
        while True:
            chain.append(key_of(os.stat(directory)))
            if directory == self.root:
                break
            directory = directory.parent
        return lambda: chain

    def _dirs_of(self, place: Path) -> Callable[[], Iterable[FileKey]]:
        """The directories above all names of a file, as the inode table knows them."""
        wanted = os.lstat(place)
        found: list[FileKey] = []
        for directory, _, files in os.walk(self.root):
            for name in files:
                path = Path(directory) / name
                if os.path.samestat(os.lstat(path), wanted):
                    found += self._dirs(path.parent)()
        return lambda: found

    def write(self, path: str, data: bytes, offset: int = 0) -> None:
        """Overwrite or extend a file, which is made if need be."""
        place = self.root / path
        if not os.path.lexists(place):
            self._add(place.parent)
            os.close(os.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o644))
            self._changes.created(key_of(os.stat(place)))
        fd = os.open(place, os.O_RDWR)
        try:
            key = key_of(os.fstat(fd))
            save = self._changes.before_write(key, fd, offset, len(data), self._dirs_of(place))
            if save is not None:
                save()
            os.pwrite(fd, data, offset)
        finally:
            os.close(fd)

    def truncate(self, path: str, size: int) -> None:
        """Cut or extend a file."""
        place = self.root / path
        fd = os.open(place, os.O_RDWR)
        try:
            save = self._changes.before_truncate(key_of(os.fstat(fd)), fd, size, self._dirs_of(place))
            if save is not None:
                save()
            os.ftruncate(fd, size)
        finally:
            os.close(fd)

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        self._add((self.root / path).parent)
        os.mkdir(self.root / path)

    def symlink(self, target: str, path: str) -> None:
        """Make a symbolic link."""
        self._add((self.root / path).parent)
        os.symlink(target, self.root / path)

    def unlink(self, path: str) -> None:
        """Remove a name of a file."""
        place = self.root / path
        before = os.lstat(place)
        self._remove(place)
        if before.st_nlink > 1:
            fd = os.open(place, os.O_PATH | os.O_NOFOLLOW)
            dirs = self._dirs_of(place)
            os.unlink(place)
            self._changes.metadata(key_of(before), before, os.fstat(fd), dirs)
            os.close(fd)
        else:
            os.unlink(place)
            self._changes.gone(key_of(before))

    def rmdir(self, path: str) -> None:
        """Remove a directory."""
        self._remove(self.root / path)
        os.rmdir(self.root / path)

    def rename(self, old: str, new: str) -> None:
        """Rename, also over something."""
        source, target = self.root / old, self.root / new
        replaced = os.lstat(target) if os.path.lexists(target) else None
        if replaced is not None and os.path.samestat(replaced, os.lstat(source)):
            return  # two names of one file: rename(2) does nothing
        self._remove(source)
        if replaced is None:
            self._add(target.parent)
        else:
            self._remove(target)
        before = os.lstat(source)
        os.rename(source, target)
        dirs = self._dirs(target) if target.is_dir() and not target.is_symlink() else self._dirs_of(target)
        self._changes.metadata(key_of(before), before, os.lstat(target), dirs)
        if replaced is not None and replaced.st_nlink == 1:
            self._changes.gone(key_of(replaced))

    def link(self, old: str, new: str) -> None:
        """Give a file another name."""
        before = os.lstat(self.root / old)
        self._add((self.root / new).parent)
        os.link(self.root / old, self.root / new, follow_symlinks=False)
        after = os.lstat(self.root / new)
        self._changes.metadata(key_of(before), before, after, self._dirs_of(self.root / new))

    def chmod(self, path: str, mode: int) -> None:
        """Change permissions."""
        place = self.root / path
        before = os.lstat(place)
        os.chmod(place, mode)
        self._changes.metadata(key_of(before), before, os.lstat(place), self._dirs_of(place))

    def _add(self, directory: Path) -> None:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._changes.before_add(key_of(os.fstat(fd)), fd, self._dirs(directory))
        finally:
            os.close(fd)

    def _remove(self, place: Path) -> None:
        directory = place.parent
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self._changes.before_remove(key_of(os.fstat(fd)), fd, os.fsencode(place.name), self._dirs(directory))
        finally:
            os.close(fd)
