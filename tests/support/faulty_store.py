"""A store that fails by plan: a wrapper around any other, for tests of everything that uses stores.

    store = FaultyStore(MemoryStore(), Fail("put", nth=3), FlipBit(cid))

Operations are counted from 1, each kind by itself. Faults can be added later too: `store.faults.append(…)`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol, TypeVar

import trio

from fused.cid import CID
from fused.errors import StoreUnavailable
from fused.store.base import Block, BlockStore, LinksOf, Pin, PinStore, StoreStats

Operation = Literal["put", "get", "has", "stats", "pin", "unpin", "pins", "gc"]
"""`get` stands for get_many too, which counts as one."""

T = TypeVar("T")


@dataclass(frozen=True)
class Fail:
    """The `nth` call of `operation`, and the `times - 1` after it, raise `error`.

    With `after`, the operation has taken place all the same: the answer got lost on the way.
    """

    operation: Operation
    nth: int = 1
    times: float = 1
    after: bool = False
    error: Exception = field(default_factory=lambda: StoreUnavailable("the test made the store fail"))

    def hits(self, operation: Operation, nth: int) -> bool:
        return operation == self.operation and self.nth <= nth < self.nth + self.times


@dataclass(frozen=True)
class Delay:
    """Every call of `operation` takes `seconds` longer. Meant for a mock clock."""

    operation: Operation
    seconds: float


@dataclass(frozen=True)
class Hold:
    """Calls of `operation` wait until `release` is set; `reached` is set when the first one does."""

    operation: Operation
    reached: trio.Event = field(default_factory=trio.Event)
    release: trio.Event = field(default_factory=trio.Event)


@dataclass(frozen=True)
class FlipBit:
    """Reads of `cid` come back with one bit changed."""

    cid: CID
    bit: int = 0


@dataclass(frozen=True)
class Cut:
    """Reads of `cid` come back cut to `length` bytes."""

    cid: CID
    length: int


@dataclass(frozen=True)
class Forget:
    """Reads by `get_many` leave `cid` out, as if nobody had asked for it."""

    cid: CID


Fault = Fail | Delay | Hold | FlipBit | Cut | Forget


class _Both(BlockStore, PinStore, Protocol):
    """A store with pins."""


class FaultyStore:
    """BlockStore and PinStore around `inner`, which it owns and closes."""

    def __init__(self, inner: _Both, *faults: Fault) -> None:
        self.inner = inner
        self.faults = list(faults)
        self.calls: Counter[Operation] = Counter()

    async def put(self, blocks: Sequence[Block]) -> int:
        return await self._call("put", lambda: self.inner.put(blocks))

    async def get(self, cid: CID) -> bytes:
        return self._spoil(cid, await self._call("get", lambda: self.inner.get(cid)))

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        blocks = await self._call("get", lambda: self.inner.get_many(cids))
        forgotten = {fault.cid for fault in self.faults if isinstance(fault, Forget)}
        return {cid: self._spoil(cid, content) for cid, content in blocks.items() if cid not in forgotten}

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        return await self._call("has", lambda: self.inner.has(cids))

    async def stats(self) -> StoreStats:
        return await self._call("stats", self.inner.stats)

    async def pin(self, pin: Pin) -> None:
        await self._call("pin", lambda: self.inner.pin(pin))

    async def unpin(self, owner: str, cid: CID) -> None:
        await self._call("unpin", lambda: self.inner.unpin(owner, cid))

    async def pins(self, owner: str | None = None) -> list[Pin]:
        return await self._call("pins", lambda: self.inner.pins(owner))

    async def gc(self, links_of: LinksOf) -> int:
        return await self._call("gc", lambda: self.inner.gc(links_of))

    async def aclose(self) -> None:
        await self.inner.aclose()

    async def _call(self, operation: Operation, act: Callable[[], Awaitable[T]]) -> T:
        self.calls[operation] += 1
        nth = self.calls[operation]
        for fault in list(self.faults):
            if isinstance(fault, Delay) and fault.operation == operation:
                await trio.sleep(fault.seconds)
            elif isinstance(fault, Hold) and fault.operation == operation:
                fault.reached.set()
                await fault.release.wait()
        failures = [fault for fault in self.faults if isinstance(fault, Fail) and fault.hits(operation, nth)]
        for failure in failures:
            if not failure.after:
                raise failure.error
        result = await act()
        for failure in failures:
            raise failure.error
        return result

    def _spoil(self, cid: CID, content: bytes) -> bytes:
        for fault in self.faults:
            if isinstance(fault, FlipBit) and fault.cid == cid:
                changed = bytearray(content)
                changed[fault.bit // 8] ^= 1 << fault.bit % 8
                content = bytes(changed)
            elif isinstance(fault, Cut) and fault.cid == cid:
                content = content[: fault.length]
        return content
