"""The bytes of a stored file: any range of it, or all of it as a stream that reads ahead.

Not for names or attributes, and nothing here touches a local file. Blocks come verified from a `Blocks`; their
order and sizes are checked by `dag.walk`. Memory is bounded by the window and the number of windows ahead,
whatever the size of the file.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from fused.cid import RAW, codec_of
from fused.dag import walk
from fused.errors import DagError
from fused.view.tasks import single_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from fused.cid import CID
    from fused.view.directory import Blocks

WINDOW = 4 << 20
"""Bytes fetched by one task: four of our leaves, so that a store's batch is worth its cost."""

AHEAD = 3
"""Windows in flight or waiting to be consumed. With one at the consumer, 16 MiB at most are in memory."""

_NODES_KEPT = 64
"""Inner nodes of a file kept while it is streamed, about 50 KiB each: the way to every leaf of the next 64 GiB."""


async def read(blocks: Blocks, root: CID, offset: int, length: int) -> bytes:
    """`length` bytes from `offset` of the file at `root`, fewer at its end. Only blocks of that range are fetched.

    Raises StoreError, and DagError if `root` is not a file.
    """
    return await walk.read_range(blocks.get, root, offset, length, get_many=blocks.get_many)


async def size_of(blocks: Blocks, root: CID) -> int:
    """The bytes in the file at `root`. Raises DagError if it is something else: a directory is no empty file."""
    kind, size = await walk.stat_node(blocks.get, root)
    if kind != "file":
        raise DagError(f"a {kind} where a file should be", root)
    return size


@asynccontextmanager
async def open_stream(blocks: Blocks, root: CID, offset: int = 0, length: int | None = None) -> AsyncIterator[Stream]:
    """The content from `offset` on, `length` bytes or up to the end, as an iterator of chunks.

    A context manager, because tasks fetch ahead while it is open. Iterating raises StoreError or DagError
    at the place where the bytes should have come, after all the bytes before it.
    """
    nodes = _NodeCache(blocks)
    size = await size_of(nodes, root)
    end = size if length is None else min(size, offset + length)
    with single_error():
        async with trio.open_nursery() as nursery:
            yield Stream(nursery, nodes, root, offset, end)
            nursery.cancel_scope.cancel()


class Stream:
    """Chunks of a file in order. Made by `open_stream`; for one consumer."""

    def __init__(self, nursery: trio.Nursery, blocks: Blocks, root: CID, start: int, end: int) -> None:
        self._nursery = nursery
        self._blocks = blocks
        self._root = root
        self._next = start
        self._asked = start
        self._end = end
        self.size = end - start
        """Bytes that will come."""
        self._arrived: dict[int, bytes | Exception] = {}
        self._waiting: trio.Event | None = None
        self._in_flight = 0

    def __aiter__(self) -> Stream:
        return self

    async def __anext__(self) -> bytes:
        if self._next >= self._end:
            raise StopAsyncIteration
        while self._asked < self._end and self._in_flight < AHEAD:
            # Windows end at multiples of their size, so that with our own chunks no leaf is fetched twice.
            upto = min(self._end, (self._asked // WINDOW + 1) * WINDOW)
            self._nursery.start_soon(self._fetch, self._asked, upto)
            self._in_flight += 1
            self._asked = upto
        while self._next not in self._arrived:
            self._waiting = trio.Event()
            await self._waiting.wait()
        chunk = self._arrived.pop(self._next)
        self._in_flight -= 1
        if isinstance(chunk, Exception):
            self._next = self._end
            raise chunk
        self._next += len(chunk)
        return chunk

    async def _fetch(self, start: int, end: int) -> None:
        try:
            # An empty result can't come: the size is the root's own claim and `read` checks every part against it.
            self._arrived[start] = await read(self._blocks, self._root, start, end - start)
        except Exception as e:
            self._arrived[start] = e
        if self._waiting is not None:
            self._waiting.set()


class _NodeCache:
    """Keeps the inner nodes, which every window needs again; leaves pass through."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._nodes: dict[CID, bytes] = {}
        self.get_many = blocks.get_many

    async def get(self, cid: CID) -> bytes:
        data = self._nodes.get(cid)
        if data is None:
            data = await self._blocks.get(cid)
            if codec_of(cid) != RAW:
                if len(self._nodes) >= _NODES_KEPT:
                    del self._nodes[next(iter(self._nodes))]
                self._nodes[cid] = data
        return data
