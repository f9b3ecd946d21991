"""pyfuse3's request loop inside ours: how it ends."""

from __future__ import annotations

import os
import socket

import pyfuse3
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fused.fs.handshake import Wishes
from fused.fs.session import _Loop


async def test_a_session_that_ends_in_the_read_wakes_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unmount between poll and read: the read says ENODEV, and poll has never said that the descriptor is dead."""
    may_read: list[bool] = []
    withdrawn = iter([True])

    async def stock_loop(_nursery: trio.Nursery, _min: int, _max: int) -> None:
        if next(withdrawn, False):
            raise BlockingIOError
        may_read.append(await pyfuse3._wait_fuse_readable())

    monkeypatch.setattr(pyfuse3, "_session_loop", stock_loop)
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", pyfuse3._wait_fuse_readable)
    read_end, write_end = os.pipe()
    loop = _Loop(read_end)
    try:
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for _ in range(3):
                    nursery.start_soon(pyfuse3._session_loop, nursery, 1, 3)
                await wait_all_tasks_blocked()
                os.write(write_end, b"x")
    finally:
        loop.restore()
        os.close(read_end)
        os.close(write_end)
    assert may_read == [True, False, False]


async def test_the_first_exchange_is_over_before_the_second_request_is_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    served: list[bytes] = []

    async def stock_loop(nursery: trio.Nursery, low: int, high: int) -> None:
        while len(served) < 3 and await pyfuse3._wait_fuse_readable():
            served.append(session.recv(100))
            if len(served) == 1:
                nursery.start_soon(pyfuse3._session_loop, nursery, low, high)  # as pyfuse3 does while it handles one
                session.send(b"answer")
            else:
                await trio.lowlevel.checkpoint()

    monkeypatch.setattr(pyfuse3, "_session_loop", stock_loop)
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", pyfuse3._wait_fuse_readable)
    kernel, session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.fstat(session.fileno())
    kernel.send(b"first")
    kernel.send(b"second")
    loop = _Loop(session.fileno(), Wishes(kill_privileges=True))
    try:
        assert not os.path.samestat(os.fstat(session.fileno()), before)
        with trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3._session_loop, nursery, 1, 3)
                await wait_all_tasks_blocked()
                assert kernel.recv(100) == b"answer"
                assert os.path.samestat(os.fstat(session.fileno()), before)
                kernel.send(b"third")
                await wait_all_tasks_blocked()
                assert loop.reader is not None
                loop.reader.close()
        assert served == [b"first", b"second", b"third"]
    finally:
        loop.restore()
        kernel.close()
        session.close()


async def test_a_session_that_never_began_gives_its_descriptor_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "_session_loop", pyfuse3._session_loop)
    monkeypatch.setattr(pyfuse3, "_wait_fuse_readable", pyfuse3._wait_fuse_readable)
    kernel, session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.fstat(session.fileno())
    kernel.send(b"first")
    _Loop(session.fileno(), Wishes()).restore()
    assert os.path.samestat(os.fstat(session.fileno()), before)
    kernel.close()
    session.close()
