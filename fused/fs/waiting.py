"""The one way for a handler to wait for something outside trio's thread.

Handlers run inline in the task that read the request, and that task keeps the right to read the next one (see
`reader.py`). A handler that has to wait must first let another task read, or the whole mount waits with it.
"""

from __future__ import annotations

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

    async def offload(self, function: Callable[[], T]) -> T:
        """Run a blocking function in a thread and return what it returns.

        Not cancelled half-way: a system call that has begun is waited for.
        """
        self.before_wait()
        try:
            return await trio.to_thread.run_sync(function, limiter=self._limiter)
        except RuntimeError as exc:  # "can't start new thread": trio starts one if none is idle
            raise MemoryError(str(exc)) from exc

    async def wait_for(self, function: Callable[[], Awaitable[T]]) -> T:
        """Await something slow on trio's own thread, such as a remote read. The callee sets the deadline."""
        self.before_wait()
        return await function()
