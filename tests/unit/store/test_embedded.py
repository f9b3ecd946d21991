"""The trio side of the embedded store: deadlines and cancellation."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from fused.store import embedded
from fused.store.embedded import EmbeddedStore
from fused.store.rows import BlockRows
from tests.support.toy_blocks import random_blocks


@pytest.fixture
def hanging_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Reads hang until the event is set."""
    event = threading.Event()
    get = BlockRows.get_many

    def hang(*args: object) -> object:
        event.wait()
        return get(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(BlockRows, "get_many", hang)
    yield event
    event.set()


async def test_a_deadline_holds_though_the_disk_hangs(tmp_path: Path, hanging_disk: threading.Event) -> None:
    [block] = random_blocks(1, 100)
    async with EmbeddedStore(tmp_path / "store") as store:
        await store.put([block])
        for _ in range(10):  # more often than there are threads
            with trio.move_on_after(0.01) as deadline:
                await store.get(block.cid)
            assert deadline.cancelled_caught
        assert await store.put(random_blocks(1, 100, seed=1)) == 1  # writes have threads of their own
        hanging_disk.set()
        assert await store.get(block.cid) == block.data


async def test_closing_does_not_wait_for_ever_for_a_disk_that_hangs(
    tmp_path: Path, hanging_disk: threading.Event, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(embedded, "_CLOSE_S", 0.05)
    [block] = random_blocks(1, 100)
    async with EmbeddedStore(tmp_path / "store") as store:
        await store.put([block])
        with trio.move_on_after(0.01):
            await store.get(block.cid)
    assert "hangs" in caplog.text
    hanging_disk.set()


async def test_a_store_can_be_opened_again(tmp_path: Path) -> None:
    blocks = random_blocks(2, 100_000)
    store = EmbeddedStore(tmp_path / "store")
    for new in (2, 0):
        await store.open()
        assert await store.put(blocks) == new
        await store.aclose()
