"""The reader token: one task at a time reads, the others wait their turn."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fused.fs import reader as reader_module
from fused.fs.reader import RequestReader


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """(read end, write end)"""
    ends = os.pipe()
    yield ends
    for fd in ends:
        with contextlib.suppress(OSError):  # the test closed it
            os.close(fd)


async def test_the_task_that_reads_keeps_the_token(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    served: list[str] = []

    async def serve(name: str) -> None:
        while await reader.wait():
            os.read(pipe[0], 1)
            served.append(name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve, "first")
        await wait_all_tasks_blocked()
        nursery.start_soon(serve, "second")
        await wait_all_tasks_blocked()
        for _ in range(5):
            os.write(pipe[1], b"x")
            await wait_all_tasks_blocked()
        reader.close()
        trio.lowlevel.notify_closing(pipe[0])
    assert served == ["first"] * 5


async def test_handing_over_lets_the_last_parked_task_read(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    served: list[str] = []
    finish = trio.Event()

    async def serve(name: str) -> None:
        while await reader.wait():
            request = os.read(pipe[0], 1)
            served.append(name)
            if request == b"w":
                reader.hand_over()
                await finish.wait()

    async with trio.open_nursery() as nursery:
        for name in ("a", "b", "c"):
            nursery.start_soon(serve, name)
            await wait_all_tasks_blocked()
        for request in (b"x", b"w", b"x", b"w", b"x"):
            os.write(pipe[1], request)
            await wait_all_tasks_blocked()
        finish.set()
        await wait_all_tasks_blocked()
        os.write(pipe[1], b"x")
        await wait_all_tasks_blocked()
        reader.close()
        trio.lowlevel.notify_closing(pipe[0])
    assert served == ["a", "a", "c", "c", "b", "b"]


async def test_with_everybody_waiting_the_next_to_come_back_reads(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    finish = trio.Event()
    served = 0

    async def serve() -> None:
        nonlocal served
        while await reader.wait():
            request = os.read(pipe[0], 1)
            served += 1
            if request == b"w":
                reader.hand_over()
                await finish.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        os.write(pipe[1], b"wx")
        await wait_all_tasks_blocked()
        assert served == 1
        finish.set()
        await wait_all_tasks_blocked()
        assert served == 2
        reader.close()
        trio.lowlevel.notify_closing(pipe[0])


async def test_hanging_up_ends_every_wait(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    results: list[bool] = []

    async def wait() -> None:
        results.append(await reader.wait())

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(wait)
        await wait_all_tasks_blocked()
        os.close(pipe[1])
    assert results == [False] * 4
    assert await reader.wait() is False


async def test_other_tasks_run_although_requests_never_stop(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    os.write(pipe[1], b"x")  # never read: always one more request
    other_ran = trio.Event()

    async def serve() -> None:
        while await reader.wait():
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        with trio.fail_after(5):
            for _ in range(20):
                await trio.sleep(0.001)
        other_ran.set()
        reader.close()


async def test_a_request_soon_after_another_is_not_waited_for_through_trio(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader_module, "BUSY_SECONDS", 60.0)
    reader = RequestReader(pipe[0], spin_seconds=0)
    os.write(pipe[1], b"x")
    assert await reader.wait()
    os.read(pipe[0], 1)

    async def refuse(_: int) -> None:
        raise AssertionError("it went to sleep in trio")

    monkeypatch.setattr(trio.lowlevel, "wait_readable", refuse)
    later = threading.Timer(0.1, os.write, (pipe[1], b"x"))
    later.start()
    assert await reader.wait()
    later.join()
    os.read(pipe[0], 1)
    reader.tasks_wait = lambda: True  # nobody but trio would hear of the thread's end
    with pytest.raises(AssertionError, match="in trio"):
        await reader.wait()


async def test_cancelling_the_reader_passes_the_token_on(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    first = trio.CancelScope()
    results: list[bool] = []

    async def cancelled() -> None:
        with first:
            await reader.wait()

    async def other() -> None:
        results.append(await reader.wait())

    async with trio.open_nursery() as nursery:
        nursery.start_soon(cancelled)
        await wait_all_tasks_blocked()
        nursery.start_soon(other)
        await wait_all_tasks_blocked()
        first.cancel()
        await wait_all_tasks_blocked()
        os.write(pipe[1], b"x")
    assert results == [True]


async def test_a_cancelled_parked_task_is_not_given_the_token(pipe: tuple[int, int]) -> None:
    reader = RequestReader(pipe[0])
    parked = trio.CancelScope()
    served = 0

    async def serve() -> None:
        nonlocal served
        while await reader.wait():
            os.read(pipe[0], 1)
            served += 1
            reader.hand_over()

    async def cancelled() -> None:
        with parked:
            await reader.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(serve)
        await wait_all_tasks_blocked()
        nursery.start_soon(cancelled)
        await wait_all_tasks_blocked()
        parked.cancel()
        await wait_all_tasks_blocked()
        for _ in range(2):
            os.write(pipe[1], b"x")
            await wait_all_tasks_blocked()
        assert served == 2
        reader.close()
        trio.lowlevel.notify_closing(pipe[0])


@pytest.mark.parametrize("work", [False, True])
async def test_nobody_polls_while_a_thread_works(pipe: tuple[int, int], work: bool) -> None:
    """Polling for longer than the switch interval would keep the thread from the interpreter for so long."""
    reader = RequestReader(pipe[0], spin_seconds=0.05)
    reader.threads_work = lambda: work
    polls = 0

    class Counting:
        def poll(self, timeout: int) -> list[tuple[int, int]]:
            nonlocal polls
            polls += timeout == 0  # with a timeout it sleeps, and others have the interpreter
            return []

    reader._poll = Counting()  # type: ignore[assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(reader.wait)
        await wait_all_tasks_blocked()
        assert (polls == 1) is work
        nursery.cancel_scope.cancel()
