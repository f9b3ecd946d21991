"""Sparse files: holes are stored without being read, and are content like any other."""

from __future__ import annotations

import os
import random
from typing import TYPE_CHECKING

import pytest

from fused.cid import RAW, cid_of
from fused.dag import walk
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK
from fused.leaves import LeafList
from fused.sync import capture as capture_module
from fused.sync import ingest as ingest_module
from fused.sync.frozen import ChangedTooFast, FileCapture
from fused.types import key_of
from tests.support.dagread import plain_tree
from tests.support.seeds import seeds

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.cid import CID
    from tests.unit.sync.conftest import Covered

TIB = 1 << 40
ZEROS = cid_of(RAW, bytes(CHUNK))


@pytest.fixture
def small_is_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Holes are looked for in files of any size."""
    monkeypatch.setattr(ingest_module, "SPARSE_FROM", 1)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the chunks that are read, in order."""
    found: list[int] = []
    read = FileCapture.read

    def noting(self: FileCapture, fd: int, index: int) -> bytes:
        found.append(index)
        return read(self, fd, index)

    monkeypatch.setattr(FileCapture, "read", noting)
    return found


def root_of(parts: list[tuple[CID, int]], size: int) -> CID:
    leaves = LeafList()
    for cid, times in parts:
        leaves.append(cid, times)
    return file_root(leaves, size)[0]


async def file_cid(covered: Covered, name: bytes) -> CID:
    """The root of a file at the top of a new snapshot."""
    row = await covered.engine.sync()
    listed = {entry.name: entry.cid async for entry in walk.list_directory(covered.store.get, row.tree)}
    return listed[name]


async def test_a_hole_of_eight_tebibytes_is_stored_at_once(covered: Covered, reads: list[int]) -> None:
    covered.fs.write("huge", b"first")
    covered.fs.write("huge", b"middle", 5 * TIB + 7)
    covered.fs.truncate("huge", 8 * TIB + 3)
    (covered.root / "other").write_bytes(b"other")
    middle = 5 * TIB // CHUNK
    expected = root_of(
        [
            (cid_of(RAW, b"first".ljust(CHUNK, b"\0")), 1),
            (ZEROS, middle - 1),
            (cid_of(RAW, (bytes(7) + b"middle").ljust(CHUNK, b"\0")), 1),
            (ZEROS, 3 * TIB // CHUNK - 1),
            (cid_of(RAW, bytes(3)), 1),
        ],
        8 * TIB + 3,
    )
    assert await file_cid(covered, b"huge") == expected
    assert [i for i in reads if i] == [middle]
    assert (await covered.store.stats()).blocks < 30


async def test_only_what_changed_in_a_huge_file_is_read_and_stored(covered: Covered, reads: list[int]) -> None:
    covered.fs.write("huge", b"x", 0)
    covered.fs.truncate("huge", 4 * TIB)
    await covered.engine.sync()
    reads.clear()
    covered.fs.write("huge", b"y", TIB)
    one = cid_of(RAW, b"x".ljust(CHUNK, b"\0"))
    two = cid_of(RAW, b"y".ljust(CHUNK, b"\0"))
    quarter = TIB // CHUNK
    parts = [(one, 1), (ZEROS, quarter - 1), (two, 1), (ZEROS, 3 * quarter - 1)]
    assert await file_cid(covered, b"huge") == root_of(parts, 4 * TIB)
    assert reads == [quarter]
    covered.fs.truncate("huge", 2 * TIB)  # and through the index, as after a restart
    await covered.engine.sync()
    await covered.restart()
    covered.fs.truncate("huge", 3 * TIB)
    parts[-1] = (ZEROS, 2 * quarter - 1)
    assert await file_cid(covered, b"huge") == root_of(parts, 3 * TIB)


@pytest.mark.usefixtures("small_is_sparse")
@pytest.mark.parametrize("seed", seeds(12, quick=3))
async def test_any_mixture_of_holes_and_data_is_stored_as_it_is(covered: Covered, seed: int) -> None:
    rng = random.Random(seed)
    for name in ("a", "b", "c"):
        size = rng.choice((CHUNK, 5 * CHUNK, 5 * CHUNK + 1, 40 * CHUNK - 1, 40 * CHUNK))
        covered.fs.write(name, b"")
        covered.fs.truncate(name, size)
        for _ in range(rng.randrange(4)):
            covered.fs.write(name, rng.randbytes(rng.choice((1, 5000, CHUNK))), rng.randrange(size))
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    for name in ("a", "b", "c"):
        step: Callable[[], object] = rng.choice(
            (
                lambda name=name: covered.fs.truncate(name, rng.randrange(50 * CHUNK)),
                lambda name=name: covered.fs.write(name, rng.randbytes(5), rng.randrange(45 * CHUNK)),
            )
        )
        step()
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)


async def test_a_file_that_is_too_large_is_skipped_and_named_and_the_rest_is_stored(
    covered: Covered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingest_module, "MAX_SIZE", 10 * CHUNK)
    covered.fs.write("large", b"x")
    covered.fs.truncate("large", 10 * CHUNK + 1)
    covered.fs.write("small", b"small")
    row = await covered.engine.sync()
    assert await covered.tree(row) == {b"small": b"small"}
    assert covered.engine.notes.skipped() == [(b"large", capture_module.TOO_LARGE)]
    assert covered.engine.clean()  # it does not count as dirty: snapshots would be taken without end
    covered.fs.truncate("large", 10 * CHUNK)
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert not covered.engine.notes.skipped()


async def test_cutting_a_huge_file_while_it_is_stored_makes_nobody_wait(covered: Covered) -> None:
    """The old content of a truncation may be millions of chunks: they are not even counted."""
    covered.fs.write("huge", b"x", 0)
    covered.fs.truncate("huge", 8 * TIB)
    fd = os.open(covered.root / "huge", os.O_RDWR)
    try:
        key = key_of(os.fstat(fd))
        await covered.changes.adopt([key])
        capture = covered.changes.capture(key, fd)
        save = covered.changes.before_truncate(key, fd, 0, lambda: [])
        assert save is not None
        save()
        with pytest.raises(ChangedTooFast):
            capture.read(fd, 0)
    finally:
        os.close(fd)
    covered.fs.truncate("huge", 3)
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
