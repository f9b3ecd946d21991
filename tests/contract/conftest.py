"""The stores that the contract is held against. A new kind of store is one more entry in KINDS.

A store behind a node keeps the same promises, with two differences that lie in what a node is:

- It removes nothing itself: the node has one repository for all who use it, and one collection of garbage, which takes
  whatever no pin of anybody holds. So its `gc` does nothing, and where a test collects, the node does (`collect`): what
  pins hold has to be there afterwards all the same, and what was taken has to be sent again. The grace of what was put
  recently is not the node's, so instead of being kept, loss has to be noticed: by `put`, and by `pin`.
- `put` and `stats` count what this store has been told is there, and not what is there without its knowing.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from fused.store.base import BlockStore, PinStore
from fused.store.embedded import EmbeddedStore
from fused.store.kit.store import KitStore
from fused.store.kubo.store import KuboStore
from fused.store.memory import MemoryStore
from fused.store.spec import StoreSpec
from fused.store.verify import VerifyingStore
from tests.support.faulty_store import FaultyStore
from tests.support.kubo import kubo_binary
from tests.support.kubo_node import KuboNode
from tests.support.toy_blocks import links_of


@dataclass(frozen=True)
class Place:
    """Where a test's store is: a directory of its own, and a node without anything in it."""

    directory: Path
    node: KuboNode | None


@dataclass(frozen=True)
class Kind:
    """How to open a store over an own directory. Without `persistent`, what was put is gone when it is closed.

    `node`: there is one behind it; the head of this file says what that changes.
    """

    name: str
    open: Callable[[Place, float], AbstractAsyncContextManager[BlockStore]]
    pins: bool
    persistent: bool = False
    node: bool = False


Collect = Callable[[PinStore], Awaitable[int | None]]
"""Removes what no pin reaches; how many that were, or None where the node does it, and tells others than the store."""


@asynccontextmanager
async def _memory(_: Place, grace_s: float) -> AsyncIterator[MemoryStore]:
    yield MemoryStore(grace_s=grace_s)


@asynccontextmanager
async def _embedded(place: Place, grace_s: float) -> AsyncIterator[EmbeddedStore]:
    async with EmbeddedStore(place.directory / "store", grace_s=grace_s) as store:
        yield store


@asynccontextmanager
async def _verified(place: Place, grace_s: float) -> AsyncIterator[VerifyingStore]:
    inner = EmbeddedStore(place.directory / "store", grace_s=grace_s)
    await inner.open()
    store = VerifyingStore(inner)
    yield store
    await store.aclose()


@asynccontextmanager
async def _faultless(_: Place, grace_s: float) -> AsyncIterator[FaultyStore]:
    yield FaultyStore(MemoryStore(grace_s=grace_s))


@asynccontextmanager
async def _kubo(place: Place, _: float) -> AsyncIterator[KuboStore]:
    assert place.node is not None
    async with KuboStore(StoreSpec("kubo", str(place.directory / "store"), place.node.url)) as store:
        yield store


@asynccontextmanager
async def _ipfs_kit(place: Place, _: float) -> AsyncIterator[KitStore]:
    assert place.node is not None
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(kubo_binary().parent), prepend=os.pathsep)
        store = KitStore(StoreSpec("ipfs-kit", str(place.directory / "store"), str(place.node.path)))
    async with store:
        yield store


KINDS = [
    Kind("memory", _memory, pins=True),
    Kind("embedded", _embedded, pins=True, persistent=True),
    Kind("verified", _verified, pins=False, persistent=True),
    Kind("faultless", _faultless, pins=True),  # the wrapper for faults, planning none
    Kind("kubo", _kubo, pins=True, persistent=True, node=True),
    Kind("ipfs-kit", _ipfs_kit, pins=True, persistent=True, node=True),
]


def _params(kinds: list[Kind]) -> list[object]:
    return [pytest.param(kind, id=kind.name, marks=[pytest.mark.kubo] if kind.node else []) for kind in kinds]


PERSISTENT = [kind for kind in KINDS if kind.persistent]
WITH_PINS = [kind for kind in KINDS if kind.pins]


@pytest.fixture(scope="session")
def _node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboNode]:
    # Offline, or a block that is nowhere would be looked for until a deadline.
    with KuboNode(tmp_path_factory.mktemp("node") / "repo", offline=True) as node:
        yield node


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> Kind:
    """The kind that the test's store is of."""
    [name] = {"store", "reopen", "pinning", "patient"} & set(request.fixturenames)
    kind: Kind = request.node.callspec.params[name]
    return kind


@pytest.fixture
def place(kind: Kind, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    """Where the test's store is."""
    if not kind.node:
        yield Place(tmp_path, None)
        return
    node: KuboNode = request.getfixturevalue("_node")
    yield Place(tmp_path, node)
    for pins in (node.rpc("pin/ls", type="recursive"), node.rpc("pin/ls", type="direct")):
        if pins.get("Keys"):
            node.rpc("pin/rm", *pins["Keys"])
    node.collect_garbage()


@pytest.fixture
def collect(place: Place) -> Collect:
    """See Collect."""

    async def collect(store: PinStore) -> int | None:
        count = await store.gc(links_of)
        if place.node is None:
            return count
        assert count == 0
        place.node.collect_garbage()
        return None

    return collect


@pytest.fixture(params=_params(KINDS))
async def store(kind: Kind, place: Place) -> AsyncIterator[BlockStore]:
    """An empty store of each kind."""
    async with kind.open(place, 3600.0) as opened:
        yield opened


@pytest.fixture(params=_params(PERSISTENT))
def reopen(kind: Kind, place: Place) -> Callable[[], AbstractAsyncContextManager[BlockStore]]:
    """Opens one and the same store again and again, for each kind that keeps things."""
    return lambda: kind.open(place, 3600.0)


@pytest.fixture(params=_params(WITH_PINS))
async def pinning(kind: Kind, place: Place) -> AsyncIterator[BlockStore]:
    """An empty store of each kind that has pins; its gc has no grace."""
    async with kind.open(place, 0.0) as opened:
        yield opened


@pytest.fixture(params=_params(WITH_PINS))
async def patient(kind: Kind, place: Place) -> AsyncIterator[BlockStore]:
    """The same with the usual grace."""
    async with kind.open(place, 3600.0) as opened:
        yield opened
