"""Several processes at one store: real ones, some of them killed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fused.store.blocking import BlockingStore
from tests.support.store_files import blob_files, check_invariants, temporary_files
from tests.support.toy_blocks import links_of, random_blocks

ROOT = Path(__file__).resolve().parents[3]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts workers on the store in `tmp_path`; those still running at the end are killed."""
    workers: list[subprocess.Popen[str]] = []

    def start_one(*work: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "tests.support.store_worker", str(tmp_path / "store"), *map(str, work)]
        workers.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True))
        return workers[-1]

    yield start_one
    for worker in workers:
        worker.kill()
        worker.wait()
        assert worker.stdout is not None
        worker.stdout.close()


def acknowledge(worker: subprocess.Popen[str], batches: int) -> None:
    """Wait until `worker` has had that many more batches acknowledged."""
    assert worker.stdout is not None
    for _ in range(batches):
        assert worker.stdout.readline(), "the worker died"


def kill(worker: subprocess.Popen[str]) -> list[int]:
    """Kill -9; returns the batches whose acknowledgement was not read yet."""
    worker.kill()
    return [int(line) for line in worker.communicate()[0].split("\n")[:-1]]


@pytest.mark.slow
@pytest.mark.parametrize("size", [700, 70_000])
def test_everything_acknowledged_to_four_processes_is_there_though_they_were_killed(
    start: Start, tmp_path: Path, size: int
) -> None:
    count = 20
    workers = [(seed, start("put", seed, count, size)) for seed in (1, 1, 2, 3)]  # two put the same blocks
    acknowledged: set[tuple[int, int]] = set()
    for seed, worker in workers:
        acknowledge(worker, 5)
        acknowledged |= {(seed, batch) for batch in range(5)}
    for seed, worker in workers:
        acknowledged |= {(seed, batch) for batch in kill(worker)}

    with BlockingStore(tmp_path / "store", grace_s=0) as store:
        for seed, batch in acknowledged:
            blocks = random_blocks(count, size, seed=seed * 1_000_000 + batch)
            assert store.rows.get_many([block.cid for block in blocks]) == {b.cid: b.data for b in blocks}
        blocks_there = check_invariants(tmp_path / "store")
        assert blocks_there >= count * len(acknowledged)
        assert temporary_files(tmp_path / "store") == []  # opening swept up after the dead
        assert store.gc(links_of) == blocks_there
        assert blob_files(tmp_path / "store") == []  # also those that never got a row
    check_invariants(tmp_path / "store")


@pytest.mark.slow
def test_a_store_whose_writers_are_killed_over_and_over_stays_whole(start: Start, tmp_path: Path) -> None:
    for round_ in range(4):
        workers = [start("put", round_ + 10 * i, 30, size) for i, size in enumerate((1500, 80_000))]
        for worker in workers:
            acknowledge(worker, 1 + round_)
        for worker in workers:
            kill(worker)
        assert check_invariants(tmp_path / "store") >= 30 * (1 + round_)


@pytest.mark.slow
def test_gc_beside_processes_that_take_snapshots_removes_nothing_they_need(start: Start, tmp_path: Path) -> None:
    seconds, grace_s = 3.0, 0.8
    collector = start("gc", seconds, grace_s)
    workers = [start("snapshots", seconds, grace_s) for _ in range(2)]
    for worker in workers:
        output, _ = worker.communicate(timeout=60)
        assert worker.returncode == 0, "a worker missed a block of its own snapshot"
        assert int(output) > 3
    removed, _ = collector.communicate(timeout=60)
    assert collector.returncode == 0
    assert int(removed) > 0, "nothing was ever collected, so nothing was tested"
    check_invariants(tmp_path / "store")


def test_a_writer_does_not_wait_long_for_another_processs_big_batch(start: Start, tmp_path: Path) -> None:
    busy = start("put", 1, 2000, 4000)
    acknowledge(busy, 1)
    with BlockingStore(tmp_path / "store") as store:
        for seed in range(5):
            assert store.rows.put(random_blocks(1, 100, seed=seed)) == 1
    acknowledge(busy, 1)  # nor did the other starve
