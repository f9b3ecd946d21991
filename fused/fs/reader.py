"""Who reads the next request, and how it waits: the reader token.

One task at a time holds the *token* and is the only one that waits for the FUSE descriptor. It keeps the token while it
handles the request inline, comes back, and first polls for a moment: the program that was just answered usually asks
again within microseconds. Then it sleeps, so an idle mount takes no CPU time: for what is left of BUSY_SECONDS in
poll(2), as the way through trio costs as much as a small request, and then in trio's epoll.

A handler that has to wait calls `hand_over` first (through `waiting.py`): a parked task gets the token, last parked
first, so that few tasks and their buffers are in use. `concurrency.md` has the whole picture.

Knows nothing of FUSE: any descriptor that becomes readable will do.
"""

from __future__ import annotations

import select
from time import perf_counter
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

SPIN_SECONDS = 100e-6
"""How long to poll after a request. Longer than an answered program takes to ask again (20-60 us), and about what a
sleep and a wake-up cost."""

BUSY_SECONDS = 2e-3
"""How long requests may keep all other tasks of the process from running."""

_GONE = select.POLLERR | select.POLLHUP | select.POLLNVAL


def _never() -> bool:
    return False


class RequestReader:
    """Hands the right to read `fd` from task to task. Borrows `fd`."""

    def __init__(self, fd: int, *, spin_seconds: float = SPIN_SECONDS) -> None:
        self._fd = fd
        self._spin = spin_seconds
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)
        self._holder: trio.lowlevel.Task | None = None
        self._parked: list[trio.lowlevel.Task] = []
        self._closed = False
        self._others_ran = perf_counter()
        self.threads_work: Callable[[], bool] = _never
        """Set by the session: whether polling would keep a thread from working."""
        self.tasks_wait: Callable[[], bool] = _never
        """Set by the session: whether a task waits for a thread, of whose end trio is told."""

    async def wait(self) -> bool:
        """Wait until this task may read one request. False if there will be no more.

        On True the task holds the token: nobody else reads before it calls `hand_over` or `wait` again.
        """
        task = trio.lowlevel.current_task()
        if self._holder is not task and not self._closed:
            if self._holder is None:
                self._holder = task
            else:
                await self._park(task)
        try:
            while not self._closed:
                events = await self._next_events()
                if events & _GONE:
                    self.close()
                elif events and not self._closed:
                    return True
        except BaseException:
            self._pass_on()
            raise
        return False

    async def _next_events(self) -> int:
        """Poll for a moment, then sleep. 0 if it is to be tried again."""
        poll = self._poll.poll
        now = perf_counter()
        if now - self._others_ran > BUSY_SECONDS:
            await trio.lowlevel.checkpoint()
            now = self._others_ran = perf_counter()
            if self._closed:
                return 0
        give_up = now + self._spin
        while True:
            ready = poll(0)
            if ready:
                return ready[0][1]
            now = perf_counter()
            if now > give_up or self.threads_work():
                break
        left_ms = int((self._others_ran + BUSY_SECONDS - now) * 1000)
        if left_ms > 0 and not self.tasks_wait() and (ready := poll(left_ms)):
            return ready[0][1]
        try:
            await trio.lowlevel.wait_readable(self._fd)
        except trio.ClosedResourceError:
            self.close()
        self._others_ran = perf_counter()
        ready = poll(0) if not self._closed else []
        return ready[0][1] if ready else 0

    async def _park(self, task: trio.lowlevel.Task) -> None:
        def abort(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            self._parked.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        self._parked.append(task)
        await trio.lowlevel.wait_task_rescheduled(abort)

    def is_held(self) -> bool:
        """Whether the calling task holds the token."""
        return self._holder is trio.lowlevel.current_task()

    def hand_over(self) -> None:
        """The calling task is about to wait for something else: let another one read, if it holds the token."""
        if self._holder is trio.lowlevel.current_task():
            self._pass_on()

    def _pass_on(self) -> None:
        self._holder = self._parked.pop() if self._parked else None
        if self._holder is not None:
            trio.lowlevel.reschedule(self._holder)

    def close(self) -> None:
        """No more requests: every `wait`, running or to come, returns False. On trio's thread."""
        if not self._closed:
            self._closed = True
            trio.lowlevel.notify_closing(self._fd)
        self._holder = None
        while self._parked:
            trio.lowlevel.reschedule(self._parked.pop())
