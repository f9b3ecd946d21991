"""The request loop: reads a request from the kernel, has it answered, writes the reply.

pyfuse3 has no way to say of a directory that its names may be cached, nor to list one without a stat of each file, and
its loop takes a lock, a round of epoll and a task switch for each request. So requests are answered here
(`answers.py`), and those of which nothing is known there are passed on to libfuse (`relay.py`).
"""

from __future__ import annotations

import errno
import logging
import mmap
import os
import time
from functools import partial
from time import perf_counter_ns
from typing import TYPE_CHECKING

from fused.errors import MountError
from fused.fs import protocol
from fused.fs.protocol import Opcode
from fused.fs.relay import LARGEST
from fused.fs.replies import failure, may_try_again
from fused.fs.waiting import Later

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.fs.answers import Answers, Reply
    from fused.fs.protocol import Head
    from fused.fs.reader import RequestReader
    from fused.fs.relay import Relay
    from fused.fs.requests import RequestCounter
    from fused.fs.waiting import Settle

log = logging.getLogger(__name__)

MAX_TASKS = 64
"""Requests being waited for at a time."""

_WITHDRAWN = {errno.EAGAIN, errno.EINTR, errno.ENOENT}
"""There is no request: its program was killed between poll and read, or another one is to be read (Linux
fs/fuse/dev.c, fuse_dev_do_read)."""

_ENDED = {errno.ENODEV, errno.ECONNABORTED}
"""Unmounted, or the connection was aborted."""

_SMALL = 128 << 10
_WANT_OF_MEMORY_S = 0.01
_BODY = protocol.REQUEST.size


def is_want_of_memory(error: BaseException) -> bool:
    """Whether there was no memory, as Python or as the kernel says it."""
    return isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM)


def no_memory() -> MountError:
    """What to end with when a request can't be taken up."""
    return MountError("there was no memory to take up a request; the daemon has to end")


class Server:
    """Serves one mount: `work` is to be run by MAX_TASKS tasks."""

    def __init__(self, answers: Answers, reader: RequestReader, relay: Relay) -> None:
        self._answers = answers
        self._reader = reader
        self._relay = relay
        self._waiting = answers.waiting
        self._fd = relay.kernel

    async def work(self) -> None:
        """Serve requests, one after the other, until there are no more.

        Raises MountError if there is no memory to take one up: its program would wait for ever. When we end, it gets an
        error, and the supervisor mounts again.
        """
        if not await self._reader.wait():
            return
        try:
            buffer = mmap.mmap(-1, LARGEST)  # takes memory as it is used
            view = memoryview(buffer)
            while True:
                length = self._read(buffer)
                self._waiting.settle()
                if length:
                    await self._serve(protocol.REQUEST.unpack_from(buffer), view[:length])
                if length > _SMALL and not self._reader.is_held():
                    buffer.madvise(mmap.MADV_DONTNEED)  # who comes back late is not needed soon
                if not await self._reader.wait():
                    return
        except (MemoryError, OSError) as error:
            if not is_want_of_memory(error):
                raise
            raise no_memory() from error

    def _read(self, buffer: mmap.mmap) -> int:
        """The next request's length in bytes; 0 if there is none."""
        try:
            return os.readv(self._fd, (buffer,))
        except OSError as error:
            if error.errno in _ENDED:
                self._reader.close()
            elif error.errno not in _WITHDRAWN:
                raise
            return 0

    async def _serve(self, head: Head, request: memoryview) -> None:
        answer = self._answers.by_opcode.get(head[1])
        if answer is None:
            if head[1] in (Opcode.FORGET, Opcode.BATCH_FORGET):
                await self._answers.forget(head, request[_BODY:])
            elif head[1] != Opcode.INTERRUPT:  # whatever it wants to interrupt is answered soon, or a thread does it
                await self._relay.pass_on(request)
            return
        kind, function, waits = answer
        counter = self._answers.request_counters[kind]
        begun = perf_counter_ns()
        body = request[_BODY:]
        failed = 0
        reply: Reply | Later = b""
        try:
            try:
                reply = await function(head, body) if waits else function(head, body)
            except OSError as error:
                if not may_try_again(self._answers, error):
                    raise
                reply = await function(head, body) if waits else function(head, body)
            if isinstance(reply, Later):
                work = partial(self._answer, kind, counter, head[2], begun, reply.work)
                self._waiting.hand_to_thread(work, on=reply.on)
                return
        except Exception as error:
            failed = failure(kind, error)
            reply = b""
        try:
            self._reply(kind, head[2], failed, reply)
        finally:
            counter.add(perf_counter_ns() - begun, failed)

    def _answer(self, kind: str, counter: RequestCounter, unique: int, begun: int, work: Callable[[], Reply]) -> Settle:
        """In a thread: make the reply and send it. Returns what counts it."""
        failed = 0
        reply: Reply = b""
        try:
            reply = work()
        except Exception as error:
            failed = failure(kind, error)
        while True:
            try:
                self._reply(kind, unique, failed, reply)
                return partial(counter.add, perf_counter_ns() - begun, failed)
            except MemoryError:  # the program waits for it, and some bytes will do
                time.sleep(_WANT_OF_MEMORY_S)

    def _reply(self, kind: str, unique: int, failed: int, reply: Reply) -> None:
        """From any thread."""
        try:
            if failed:
                os.write(self._fd, protocol.REPLY.pack(protocol.REPLY.size, -failed, unique))
            else:
                os.writev(self._fd, (protocol.REPLY.pack(protocol.REPLY.size + len(reply), 0, unique), reply))
        except OSError as error:
            # After an abort, and for the last release of a mount that was detached while in use (ENOENT, Linux
            # fs/fuse/dev.c, fuse_dev_do_write).
            log.debug("nobody waits for the answer any more: op=%s: %s", kind, error)
