"""Changes that threads make, and the instants that must not fall into them."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fused.dag.chunker import CHUNK
from fused.sync import frozen
from fused.sync.changes import ChangeLog, Save
from fused.sync.inflight import InFlight
from fused.types import FileKey, key_of

A, B = (1, 10), (1, 11)


def nowhere() -> list[FileKey]:
    return []


class File:
    """A file of three chunks that is open for reading and writing."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.write_bytes(b"a" * 3 * CHUNK)
        self.fd = os.open(path, os.O_RDWR)
        self.key = key_of(os.fstat(self.fd))


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "f")
    yield made
    os.close(made.fd)


@pytest.fixture
def changes(tmp_path: Path) -> ChangeLog:
    return ChangeLog(str(tmp_path))


async def test_an_instant_waits_for_the_changes_under_way_and_holds_new_ones() -> None:
    flights = InFlight()
    seen: list[str] = []

    async def fix() -> None:
        async with flights.settled():
            seen.append("instant")

    async def change_later() -> None:
        await flights.wait_to_begin(B)
        seen.append("change")

    async with trio.open_nursery() as nursery:
        with flights.change(A):
            nursery.start_soon(fix)
            await wait_all_tasks_blocked()
            assert flights.held(A)
            assert flights.held(B)
            nursery.start_soon(change_later)
            await wait_all_tasks_blocked()
            assert seen == []
    assert seen == ["instant", "change"]
    assert not flights.held(B)


async def test_an_instant_of_one_file_concerns_that_file_only() -> None:
    flights = InFlight()
    with flights.change(A):
        with trio.fail_after(10):
            async with flights.settled({B}):
                assert flights.held(B)
                assert not flights.held(A)
        with trio.move_on_after(0.01) as scope:
            async with flights.settled({A}):
                pytest.fail("a thread is changing it")
        assert scope.cancelled_caught
        assert not flights.held(A)


async def test_two_changes_of_one_file_are_both_waited_for() -> None:
    flights = InFlight()
    with flights.change(A):
        with flights.change(A):
            pass
        assert A in flights
    assert A not in flights


async def test_stats_that_differ_by_a_write_under_way_are_not_taken_for_the_same_content(
    changes: ChangeLog, file: File
) -> None:
    before = os.fstat(file.fd)
    changes.before_write(file.key, file.fd, 0, 6, nowhere)
    with changes.change(file.key):
        os.pwrite(file.fd, b"after!", 0)
        os.fchmod(file.fd, 0o600)
        changes.metadata(file.key, before, os.fstat(file.fd), nowhere)
    assert changes.take_carries() == {}


async def test_a_chunk_that_one_thread_saved_is_not_read_again_by_another(changes: ChangeLog, file: File) -> None:
    await changes.adopt({file.key})
    saves = [changes.before_write(file.key, file.fd, 100 * i, 100, nowhere) for i in range(2)]
    for i, save in enumerate(saves):
        assert save is not None
        await trio.to_thread.run_sync(save)
        os.pwrite(file.fd, b"b" * 100, 100 * i)
    assert changes.before_write(file.key, file.fd, 200, 100, nowhere) is None
    assert changes.capture(file.key, file.fd).read(file.fd, 0) == b"a" * CHUNK
    changes.thaw(stored=True)


async def test_of_two_threads_that_save_one_chunk_the_second_waits_for_the_first(
    changes: ChangeLog, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, twice = threading.Event(), threading.Event()
    kept = []
    keep = frozen._Spill.keep

    def slow_keep(spill: frozen._Spill, data: bytes) -> bytes | tuple[int, int]:
        kept.append(data)
        if len(kept) == 1:
            assert begun.wait(60)
            twice.wait(0.2)  # what must not happen
        else:
            twice.set()
        return keep(spill, data)

    monkeypatch.setattr(frozen._Spill, "keep", slow_keep)
    await changes.adopt({file.key})
    first, second = (changes.before_write(file.key, file.fd, 100 * i, 100, nowhere) for i in range(2))
    assert first is not None
    assert second is not None

    def save_second() -> None:
        begun.set()
        second()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, first)
        while not kept:
            await trio.lowlevel.checkpoint()
        nursery.start_soon(trio.to_thread.run_sync, save_second)
    assert len(kept) == 1
    changes.thaw(stored=True)


async def test_a_save_that_comes_after_the_generation_ended_leaves_nothing_open(
    changes: ChangeLog, file: File, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fused.sync.frozen.SAVED_IN_MEMORY", 0)
    await changes.adopt({file.key})
    save = changes.before_write(file.key, file.fd, 0, 100, nowhere)
    assert save is not None
    changes.thaw(stored=False)
    before = os.listdir("/proc/self/fd")
    save()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.slow
async def test_no_instant_falls_into_a_change_that_a_thread_makes(changes: ChangeLog, file: File) -> None:
    """Each write fills the file with one byte in two steps; no capture may see the first step only."""
    size = 3 * CHUNK

    def fill(save: Save | None, value: int) -> None:
        if save is not None:
            save()
        for start in (0, size // 2):
            os.pwrite(file.fd, bytes([value]) * (size // 2), start)

    async def write_on() -> None:
        for value in itertools.cycle(range(256)):
            await changes.wait_to_begin(file.key)
            save = changes.before_write(file.key, file.fd, 0, size, nowhere)
            with changes.change(file.key):
                await trio.to_thread.run_sync(fill, save, value)

    captured = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_on)
        for _ in range(30):
            await changes.adopt({file.key})
            capture = changes.capture(file.key, file.fd)
            chunks = [await trio.to_thread.run_sync(capture.read, file.fd, i) for i in range(3)]
            captured.append(b"".join(chunks))
            changes.thaw(stored=True)
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert [len(set(content)) for content in captured] == [1] * 30
    assert len(set(captured)) > 1
