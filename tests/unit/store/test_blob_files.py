"""Files of large blocks: what is done to them when, beyond what tests of the store show."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.store import blobs
from fused.store.blocking import BlockingStore
from tests.support.toy_blocks import random_blocks


@pytest.mark.parametrize("others_dirty", [False, True])  # one syncfs, or a sync of each file
def test_what_was_written_leaves_the_page_cache_once_it_is_durable_and_not_before(
    tmp_path: Path, others_dirty: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page that is still dirty stays, so too early would be for nothing."""
    monkeypatch.setattr(blobs, "_LITTLE_BYTES", -(1 << 40) if others_dirty else 1 << 40)
    durable: set[int] = set()
    forgotten: list[int] = []
    syncfs, fdatasync, advise = blobs._syncfs, os.fdatasync, os.posix_fadvise

    def sync_all(fd: int) -> None:
        syncfs(fd)
        durable.update(map(int, os.listdir("/proc/self/fd")))

    def sync_one(fd: int) -> None:
        fdatasync(fd)
        durable.add(fd)

    def noting(fd: int, offset: int, length: int, advice: int) -> None:
        if advice == os.POSIX_FADV_DONTNEED:
            assert fd in durable
            assert (offset, length) == (0, 0)
            forgotten.append(fd)
        advise(fd, offset, length, advice)

    monkeypatch.setattr(blobs, "_syncfs", sync_all)
    monkeypatch.setattr(os, "fdatasync", sync_one)
    monkeypatch.setattr(os, "posix_fadvise", noting)
    batch = random_blocks(8, 200_000)
    with BlockingStore(tmp_path / "store") as store:
        store.rows.put(batch)
        assert len(set(forgotten)) == len(batch)
        assert store.rows.get_many([block.cid for block in batch]) == {block.cid: block.data for block in batch}
