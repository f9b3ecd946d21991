"""The stores that the contract is held against. A new kind of store is one more entry in KINDS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fused.store.base import BlockStore
from fused.store.embedded import EmbeddedStore
from fused.store.memory import MemoryStore
from fused.store.verify import VerifyingStore
from tests.support.faulty_store import FaultyStore


@dataclass(frozen=True)
class Kind:
    """How to open a store over an own directory. Without `persistent`, what was put is gone when it is closed."""

    name: str
    open: Callable[[Path, float], AbstractAsyncContextManager[BlockStore]]
    pins: bool
    persistent: bool = False


@asynccontextmanager
async def _memory(_: Path, grace_s: float) -> AsyncIterator[MemoryStore]:
    yield MemoryStore(grace_s=grace_s)


@asynccontextmanager
async def _embedded(directory: Path, grace_s: float) -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(directory / "store", grace_s=grace_s) as store:
        yield store


@asynccontextmanager
async def _verified(directory: Path, grace_s: float) -> AsyncIterator[VerifyingStore]:
    inner = EmbeddedStore(directory / "store", grace_s=grace_s)
    await inner.open()
    store = VerifyingStore(inner)
    yield store
    await store.aclose()


@asynccontextmanager
async def _faultless(_: Path, grace_s: float) -> AsyncIterator[FaultyStore]:
    yield FaultyStore(MemoryStore(grace_s=grace_s))


KINDS = [
    Kind("memory", _memory, pins=True),
    Kind("embedded", _embedded, pins=True, persistent=True),
    Kind("verified", _verified, pins=False, persistent=True),
    Kind("faultless", _faultless, pins=True),  # the wrapper for faults, planning none
]


def _ids(kinds: list[Kind]) -> list[str]:
    return [kind.name for kind in kinds]


PERSISTENT = [kind for kind in KINDS if kind.persistent]
WITH_PINS = [kind for kind in KINDS if kind.pins]


@pytest.fixture(params=KINDS, ids=_ids(KINDS))
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlockStore]:
    """An empty store of each kind."""
    kind: Kind = request.param
    async with kind.open(tmp_path, 3600.0) as opened:
        yield opened


@pytest.fixture(params=PERSISTENT, ids=_ids(PERSISTENT))
def reopen(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], AbstractAsyncContextManager[BlockStore]]:
    """Opens one and the same store again and again, for each kind that keeps things."""
    kind: Kind = request.param
    return lambda: kind.open(tmp_path, 3600.0)


@pytest.fixture(params=WITH_PINS, ids=_ids(WITH_PINS))
async def pinning(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlockStore]:
    """An empty store of each kind that has pins; its gc has no grace."""
    kind: Kind = request.param
    async with kind.open(tmp_path, 0.0) as opened:
        yield opened


@pytest.fixture(params=WITH_PINS, ids=_ids(WITH_PINS))
async def patient(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[BlockStore]:
    """The same with the usual grace."""
    kind: Kind = request.param
    async with kind.open(tmp_path, 3600.0) as opened:
        yield opened
