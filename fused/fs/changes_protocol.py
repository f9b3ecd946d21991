"""What the file system tells the part that stores things: a change is about to happen.

Not here: what is done with that knowledge (`fused/sync`). The calls are plain functions on purpose. Each is made on
trio's thread, *before* the system call that changes the local layer and with no `await` in between, so whoever
listens sees the old state and can keep a copy of it. `created`, `gone` and `metadata` come after the fact, in the
same step.

A change of content that a thread has to make is announced like any other, after `wait_to_begin`, and the thread does
its work within `change`: so whoever listens knows until when it is under way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import os
    from contextlib import AbstractContextManager

    from fused.types import FileKey

Dirs = Callable[[], "Iterable[FileKey]"]
"""The directories that contain something by its known names, transitively, nearest first, the root last.

A function, because most changes hit a file that is already known to be dirty and nobody asks.
"""


Save = Callable[[], None]
"""Saves what a change is about to destroy. To be called right before the change, by whoever makes it, in any thread;
as it reads from the disk, not on trio's."""


class ChangeSink(Protocol):
    """Takes notice of changes to the local layer. No method may raise, and but for `wait_to_begin` none may wait.

    Descriptors are borrowed for the call. `fd` is readable where the file's mode lets the daemon read it.
    """

    def held(self, key: FileKey) -> bool:
        """Whether `wait_to_begin` would wait."""
        ...

    async def wait_to_begin(self, key: FileKey) -> None:
        """Return when a thread may begin to change the content of this file."""
        ...

    def change(self, key: FileKey) -> AbstractContextManager[None]:
        """Lasts as long as a thread makes a change of content that was announced since `wait_to_begin` returned."""
        ...

    def before_write(self, key: FileKey, fd: int, offset: int, length: int, dirs: Dirs) -> Save | None:
        """Bytes `offset` to `offset + length` of the file are about to change."""
        ...

    def before_truncate(self, key: FileKey, fd: int, size: int, dirs: Dirs) -> Save | None:
        """The file is about to get `size` bytes (0 for O_TRUNC)."""
        ...

    def before_add(self, dir_key: FileKey, dir_fd: int, dirs: Dirs) -> None:
        """A name is about to appear in this directory. `dirs()` yields the directory itself first."""
        ...

    def before_remove(self, dir_key: FileKey, dir_fd: int, name: bytes, dirs: Dirs) -> None:
        """A name is about to vanish or to be replaced; it still exists. `dirs()` as in `before_add`."""
        ...

    def created(self, key: FileKey) -> None:
        """A regular file was just created."""
        ...

    def gone(self, key: FileKey) -> None:
        """The last link was just removed. The file may still be open; its number is not reused while it is."""
        ...

    def metadata(self, key: FileKey, before: os.stat_result, after: os.stat_result, dirs: Dirs) -> None:
        """The stat of a file or directory changed from `before` to `after`, its content did not."""
        ...


class NullChangeSink:
    """Nobody listens."""

    def held(self, key: FileKey) -> bool:
        """See `ChangeSink`."""
        return False

    async def wait_to_begin(self, key: FileKey) -> None:
        """See `ChangeSink`."""

    def change(self, key: FileKey) -> AbstractContextManager[None]:
        """See `ChangeSink`."""
        return nullcontext()

    def before_write(self, key: FileKey, fd: int, offset: int, length: int, dirs: Dirs) -> Save | None:
        """See `ChangeSink`."""
        return None

    def before_truncate(self, key: FileKey, fd: int, size: int, dirs: Dirs) -> Save | None:
        """See `ChangeSink`."""
        return None

    def before_add(self, dir_key: FileKey, dir_fd: int, dirs: Dirs) -> None:
        """See `ChangeSink`."""

    def before_remove(self, dir_key: FileKey, dir_fd: int, name: bytes, dirs: Dirs) -> None:
        """See `ChangeSink`."""

    def created(self, key: FileKey) -> None:
        """See `ChangeSink`."""

    def gone(self, key: FileKey) -> None:
        """See `ChangeSink`."""

    def metadata(self, key: FileKey, before: os.stat_result, after: os.stat_result, dirs: Dirs) -> None:
        """See `ChangeSink`."""
