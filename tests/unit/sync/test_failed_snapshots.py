"""What is left of a snapshot that failed, and what is said of one that is not finished."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import trio

from fused.dag.chunker import CHUNK
from fused.errors import StoreUnavailable
from fused.store.base import Block
from fused.store.memory import MemoryStore
from tests.support.faulty_store import Fail, FaultyStore, Hold
from tests.unit.sync.conftest import make_engine

if TYPE_CHECKING:
    from tests.unit.sync.conftest import Covered


@pytest.fixture
def no_collections() -> Iterator[None]:
    """Full collections are rare in the daemon; here there are none at all."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def blocks_in_memory() -> int:
    return sum(len(each.data) for each in gc.get_objects() if type(each) is Block)


@pytest.mark.usefixtures("no_collections")
@pytest.mark.parametrize("operation", ["put", "pin"])
async def test_its_blocks_are_let_go_of_at_once(covered: Covered, operation: str) -> None:
    covered.store = FaultyStore(MemoryStore(), Fail(operation, times=math.inf))  # type: ignore[assignment, arg-type]
    covered.engine = make_engine(covered)
    (covered.root / "large").write_bytes(random.Random(1).randbytes(3 * CHUNK))
    for number in range(20):
        (covered.root / f"small{number}").write_bytes(b"%d" % number)
    before = blocks_in_memory()  # other tests' own
    for _ in range(3):
        with pytest.raises(StoreUnavailable):
            await covered.engine.sync()
    assert blocks_in_memory() == before
    await covered.engine.aclose()


async def test_a_snapshot_that_is_not_pinned_yet_is_not_called_idle(covered: Covered) -> None:
    held = Hold("pin")
    covered.store = FaultyStore(MemoryStore(), held)  # type: ignore[assignment]
    covered.engine = make_engine(covered)
    assert covered.engine.progress.phase == "idle"
    async with trio.open_nursery() as nursery:
        nursery.start_soon(covered.engine.sync)
        await held.reached.wait()
        assert covered.engine.progress.phase == "pinning"
        held.release.set()
    assert covered.engine.progress.phase == "idle"
    await covered.engine.aclose()
