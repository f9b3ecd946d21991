"""The one way for a handler to wait for something outside trio's thread.

Handlers run inline in the task that read the request, and that task keeps the right to read the next one (see
`reader.py`). A handler that has to wait must first let another task read, or the whole mount waits with it.

Where nothing is left to do here once a thread is done, a handler does not wait but returns a `Later`: that thread sends
the answer itself, for to come back first takes twice as long as a small fsync.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

MAX_THREADS = 16
"""Local disk calls at a time; more only make the disk's queue longer."""


Settle = Callable[[], None]
"""What is left to do on trio's thread, at some time."""


class Later(NamedTuple):
    """The rest of a request: `work` returns its answer, in a thread. `on` is the inode that it works on."""

    work: Callable[[], bytes]
    on: int | None = None


def _nothing() -> None:
    """Nobody reads requests yet, or waits for threads."""


def _ignore(_: object) -> None:
    """Threads say by `_done` that they are done."""


class Waiting:
    """Runs what can't be done at once. `before_wait` is set by the session that serves requests."""

    def __init__(self) -> None:
        self.before_wait: Callable[[], None] = _nothing
        self._limiter = trio.CapacityLimiter(MAX_THREADS)
        self._busy: Counter[int] = Counter()  # by Ino
        self._in_threads = 0
        self._lock = threading.Lock()  # for these three; never held for more than a moment
        self._later: deque[tuple[Callable[[], Settle], int | None]] = deque()
        self._threads = 0
        self._on_idle = _nothing
        self._done: deque[tuple[Settle, int | None]] = deque()

    async def offload(self, function: Callable[[], T], *, on: int | None = None) -> T:
        """Run a blocking function in a thread and return what it returns. `on` is the inode that it works on.

        Not cancelled half-way: a system call that has begun is waited for.
        """
        self.before_wait()
        self._begins(on)
        self._in_threads += 1
        try:
            return await trio.to_thread.run_sync(function, limiter=self._limiter)
        except RuntimeError as exc:  # "can't start new thread": trio starts one if none is idle
            raise MemoryError(str(exc)) from exc
        finally:
            self._in_threads -= 1
            self._ends(on)

    def _begins(self, on: int | None) -> None:
        if on is not None:
            self._busy[on] += 1

    def _ends(self, on: int | None) -> None:
        if on is not None:
            self._busy[on] -= 1
            if not self._busy[on]:
                del self._busy[on]

    def hand_to_thread(self, work: Callable[[], Settle], *, on: int | None = None) -> None:
        """Run `work`, which must not raise, in a thread, and what it returns here, when next somebody settles.

        Raises MemoryError if there is no thread for it.
        """
        with self._lock:
            if self._threads == MAX_THREADS:
                self._begins(on)
                self._later.append((work, on))
                return
            self._threads += 1
        try:
            trio.lowlevel.start_thread_soon(partial(self._work, work, on), _ignore)
        except (RuntimeError, MemoryError) as exc:
            with self._lock:
                self._threads -= 1
            raise MemoryError(str(exc)) from exc
        self._begins(on)

    def _work(self, work: Callable[[], Settle], on: int | None) -> None:
        """In a thread, for as long as there is something to do."""
        while True:
            with suppress(MemoryError):  # not noted: the file stays busy, so what changes it is done in threads
                self._done.append((work(), on))
            with self._lock:
                if not self._later:
                    self._threads -= 1
                    if not self._threads:
                        self._on_idle()
                    return
                work, on = self._later.popleft()

    def settle(self) -> None:
        """Take note of what threads have done: before a request, and before anybody counts."""
        while self._done:
            settle, on = self._done.popleft()
            self._ends(on)
            settle()

    async def finish(self) -> None:
        """Wait for all that was handed to threads: when there are no more requests."""
        idle = trio.Event()
        token = trio.lowlevel.current_trio_token()
        with self._lock:
            self._on_idle = lambda: token.run_sync_soon(idle.set)
            if not self._threads:
                idle.set()
        await idle.wait()
        self.settle()

    def threads_work(self) -> bool:
        """Whether a thread runs something, or is about to."""
        return self._in_threads > 0 or self._threads > 0

    def tasks_wait(self) -> bool:
        """Whether a task waits for a thread."""
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
