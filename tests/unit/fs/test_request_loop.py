"""pyfuse3's request loop inside ours: how it ends."""

from __future__ import annotations

import os

import pyfuse3
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

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
