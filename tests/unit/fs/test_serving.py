"""The request loop, with a socket in the place of the kernel."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import struct
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fused.errors import MountError
from fused.fs import serving
from fused.fs.answers import Answer
from fused.fs.reader import RequestReader
from fused.fs.requests import RequestCounter
from fused.fs.serving import Server
from fused.fs.waiting import MAX_THREADS, Later, Waiting

ECHO, FAIL, WAIT, OTHER, LATER, INTERRUPT, FORGET = 1001, 1002, 1003, 1004, 1005, 36, 2


def request(opcode: int, unique: int, body: bytes = b"") -> bytes:
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, 0, 0, 0, 0, 0, 0) + body


class Kernel:
    """The other end, and a server whose answers are these."""

    def __init__(self) -> None:
        self.end, self.ours = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.end.setblocking(False)
        self.ours.setblocking(False)
        self.go_on = trio.Event()
        self.begun = threading.Semaphore(0)
        self.may_end = threading.Event()
        self.forgotten: list[bytes] = []
        self.passed_on: list[bytes] = []
        self.room: list[bool] = []
        self.raises: list[Exception] = []
        self.counters: defaultdict[str, RequestCounter] = defaultdict(RequestCounter)
        self.reader = RequestReader(self.ours.fileno())
        self.waiting = Waiting()
        answers = SimpleNamespace(
            waiting=self.waiting,
            by_opcode={
                ECHO: Answer("echo", lambda _head, body: bytes(body)),
                FAIL: Answer("fail", self._fail),
                WAIT: Answer("wait", self._wait, waits=True),
                LATER: Answer("later", lambda _head, _body: Later(self._work, on=1)),
            },
            request_counters=self.counters,
            forget=self._forget,
            make_room=lambda: self.room.pop() if self.room else False,
        )
        relay = SimpleNamespace(kernel=self.ours.fileno(), pass_on=self._pass_on)
        self.server = Server(cast("Any", answers), self.reader, cast("Any", relay))

    def _fail(self, _head: object, body: memoryview) -> bytes:
        if self.raises:
            raise self.raises.pop(0)
        return b"made"

    async def _wait(self, _head: object, body: memoryview) -> bytes:
        self.reader.hand_over()
        await self.go_on.wait()
        return bytes(body)

    def _work(self) -> bytes:
        self.begun.release()
        assert self.may_end.wait(60)
        if self.raises:
            raise self.raises.pop(0)
        return b"done"

    async def _forget(self, _head: object, body: memoryview) -> None:
        self.forgotten.append(bytes(body))

    async def _pass_on(self, message: memoryview) -> None:
        self.passed_on.append(bytes(message))

    def reply(self) -> tuple[int, int, bytes]:
        """Error, unique, content."""
        message = self.end.recv(1 << 16)
        length, error, unique = struct.unpack_from("=IiQ", message)
        assert length == len(message)
        return error, unique, message[16:]


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.end.close()
    made.ours.close()


async def served(kernel: Kernel, *messages: bytes, tasks: int = 3) -> None:
    """Serve until everybody waits."""
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(tasks):
                nursery.start_soon(kernel.server.work)
            for message in messages:
                kernel.end.send(message)
                await wait_all_tasks_blocked()
            kernel.reader.close()


async def test_requests_are_answered_and_counted(kernel: Kernel) -> None:
    await served(kernel, request(ECHO, 2, b"hello"), request(ECHO, 4))
    assert (kernel.reply(), kernel.reply()) == ((0, 2, b"hello"), (0, 4, b""))
    assert kernel.counters["echo"].count == 2


@pytest.mark.parametrize(
    ("error", "number"),
    [(OSError(errno.ENOSPC, "full"), errno.ENOSPC), (KeyError("bug"), errno.EIO), (MemoryError(), errno.ENOMEM)],
)
async def test_errors_are_answered_and_counted(kernel: Kernel, error: Exception, number: int) -> None:
    kernel.raises = [error]
    await served(kernel, request(FAIL, 2), request(FAIL, 4))
    assert (kernel.reply(), kernel.reply()) == ((-number, 2, b""), (0, 4, b"made"))
    assert (kernel.counters["fail"].count, kernel.counters["fail"].errors) == (2, 1)


async def test_a_request_without_descriptors_is_made_once_more_when_there_are_some(kernel: Kernel) -> None:
    kernel.raises = [OSError(errno.EMFILE, "too many")]
    kernel.room = [True]
    await served(kernel, request(FAIL, 2))
    assert kernel.reply() == (0, 2, b"made")
    assert kernel.counters["fail"].errors == 0


async def test_others_are_answered_while_one_waits_and_its_message_stays_as_it_was(kernel: Kernel) -> None:
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(kernel.server.work)
            kernel.end.send(request(WAIT, 2, b"x" * 200_000))
            await wait_all_tasks_blocked()
            kernel.end.send(request(ECHO, 4, b"y" * 60_000))
            await wait_all_tasks_blocked()
            assert kernel.reply() == (0, 4, b"y" * 60_000)
            with pytest.raises(BlockingIOError):
                kernel.reply()
            kernel.go_on.set()
            await wait_all_tasks_blocked()
            kernel.reader.close()
    message = kernel.end.recv(1 << 20)
    assert message[16:] == b"x" * 200_000


async def test_a_thread_answers_by_itself_and_others_are_served_meanwhile(kernel: Kernel) -> None:
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kernel.server.work)  # one task is enough
            try:
                for unique in range(MAX_THREADS + 3):
                    kernel.end.send(request(LATER, unique))
                    await wait_all_tasks_blocked()
                for _ in range(MAX_THREADS):
                    assert await trio.to_thread.run_sync(kernel.begun.acquire)
                assert not kernel.begun.acquire(blocking=False), "more threads than there may be"
                assert kernel.waiting.threads_work()
                assert kernel.waiting.busy(1)
                kernel.end.send(request(ECHO, 100, b"hello"))
                await wait_all_tasks_blocked()
                assert kernel.reply() == (0, 100, b"hello")
                kernel.raises = [OSError(errno.EIO, "broken"), KeyError("bug")]
            finally:
                kernel.may_end.set()
            await kernel.waiting.finish()
            replies = [kernel.reply() for _ in range(MAX_THREADS + 3)]
            assert sorted(unique for _, unique, _ in replies) == list(range(MAX_THREADS + 3))
            assert sorted(error for error, _, _ in replies)[:3] == [-errno.EIO, -errno.EIO, 0]
            assert {content for error, _, content in replies if not error} == {b"done"}
            assert not kernel.waiting.threads_work()
            assert not kernel.waiting.busy(1)
            counter = kernel.counters["later"]
            assert (counter.count, counter.errors) == (MAX_THREADS + 3, 2)
            kernel.reader.close()


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
async def test_without_a_thread_there_is_an_error(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def no_more(*_: object) -> None:
        raise error

    monkeypatch.setattr(trio.lowlevel, "start_thread_soon", no_more)
    await served(kernel, request(LATER, 2), request(ECHO, 4))
    assert (kernel.reply(), kernel.reply()) == ((-errno.ENOMEM, 2, b""), (0, 4, b""))
    assert not kernel.waiting.busy(1)
    assert not kernel.waiting.threads_work()


async def test_a_thread_without_memory_to_note_what_it_did_ends_all_the_same(kernel: Kernel) -> None:
    def forgetful() -> Callable[[], None]:
        raise MemoryError

    kernel.waiting.hand_to_thread(forgetful, on=1)
    with trio.fail_after(60):
        await kernel.waiting.finish()
    assert not kernel.waiting.threads_work()
    assert kernel.waiting.busy(1)


async def test_a_thread_that_finds_no_memory_for_its_answer_tries_again(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [MemoryError(), MemoryError()]
    writev = os.writev

    def scarce(fd: int, buffers: tuple[bytes, bytes]) -> int:
        if refusals:
            raise refusals.pop()
        return writev(fd, buffers)

    monkeypatch.setattr(os, "writev", scarce)
    kernel.may_end.set()
    await served(kernel, request(LATER, 2))
    await kernel.waiting.finish()
    assert kernel.reply() == (0, 2, b"done")
    assert not refusals


async def test_what_needs_no_answer_gets_none(kernel: Kernel) -> None:
    await served(kernel, request(FORGET, 2, b"one"), request(INTERRUPT, 3, bytes(8)), request(ECHO, 4))
    assert kernel.reply() == (0, 4, b"")
    assert kernel.forgotten == [b"one"]
    assert kernel.passed_on == []


async def test_all_else_is_passed_on(kernel: Kernel) -> None:
    await served(kernel, request(OTHER, 2, b"body"))
    assert kernel.passed_on == [request(OTHER, 2, b"body")]
    with pytest.raises(BlockingIOError):
        kernel.reply()


def failing(times: int, number: int) -> Callable[..., int]:
    """os.readv that fails so many times."""
    readv = os.readv
    left = times

    def read(fd: int, buffers: Any) -> int:
        nonlocal left
        if left:
            left -= 1
            raise OSError(number, os.strerror(number))
        return readv(fd, buffers)

    return read


@pytest.mark.parametrize("number", [errno.EAGAIN, errno.ENOENT, errno.EINTR])
async def test_a_request_may_be_withdrawn_before_it_is_read(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "readv", failing(2, number))
    await served(kernel, request(ECHO, 2))
    assert kernel.reply() == (0, 2, b"")


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ECONNABORTED])
async def test_an_unmount_that_shows_in_the_read_alone_ends_all_tasks(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "readv", failing(100, number))
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(kernel.server.work)
            kernel.end.send(request(ECHO, 2))


async def test_closing_ends_tasks_that_wait(kernel: Kernel) -> None:
    await served(kernel)


async def test_nobody_who_waits_for_the_answer_is_no_error(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(_fd: int, _buffers: object) -> int:
        raise OSError(errno.ENOENT, "aborted")

    monkeypatch.setattr(os, "writev", gone)
    await served(kernel, request(ECHO, 2))
    assert kernel.counters["echo"].count == 1


async def test_without_memory_to_take_up_a_request_the_daemon_ends(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> mmap.mmap:
        raise OSError(errno.ENOMEM, "no memory")

    monkeypatch.setattr(serving.mmap, "mmap", full)
    kernel.end.send(request(ECHO, 2))
    with pytest.raises(MountError, match="no memory"):
        await kernel.server.work()
