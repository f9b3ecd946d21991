"""The one way for a handler to wait for something outside trio's thread.

Handlers run inline in the task that read the request, and that task keeps the right to read the next one (see
`reader.py`). A handler that has to wait must first let another task read, or the whole mount waits with it.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

MAX_THREADS = 16
"""Local disk calls at a time; more only make the disk's queue longer."""


def _nothing() -> None:
    """Nobody reads requests yet."""


class Waiting:
    """Runs what can't be done at once. `before_wait` is set by the session that serves requests."""

    def __init__(self) -> None:
        self.before_wait: Callable[[], None] = _nothing
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self._busy: Counter[int] = Counter()  # by Ino
        self._in_threads = 0

    async def offload(self, function: Callable[[], T], *, on: int | None = None) -> T:
        """Run a blocking function in a thread and return what it returns. `on` is the inode that it works on.

        Not cancelled half-way: a system call that has begun is waited for.
        """
        self.before_wait()
        if on is not None:
            self._busy[on] += 1
        self._in_threads += 1
        try:
            return await trio.to_thread.run_sync(function, limiter=self._limiter)
        except RuntimeError as exc:  # "can't start new thread": trio starts one if none is idle
            raise MemoryError(str(exc)) from exc
        finally:
            self._in_threads -= 1
            if on is not None:
                self._busy[on] -= 1
                if not self._busy[on]:
                    del self._busy[on]

    def threads_work(self) -> bool:
        """Whether a thread runs something, or is about to."""
        return self._in_threads > 0

    def busy(self, ino: int) -> bool:
        """Whether a thread works on the file: then whatever changes it as well may have to wait for that thread.

        The local file system lets one at a time write to a file, cut it, or change its times and mode (inode_lock).
        """
        return ino in self._busy

    async def wait_for(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await something slow on trio's own thread, such as a remote read. The callee sets the deadline."""
        self.before_wait()
        return await function()
