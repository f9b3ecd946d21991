"""The cache of a node's blocks: bounded, verified, and never in the way."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from fused.store.cache import BlockCache
from tests.support.toy_blocks import random_blocks


def test_what_was_put_is_there_also_later(tmp_path: Path) -> None:
    batch = random_blocks(600, 100)
    cache = BlockCache(str(tmp_path / "cache"), 1 << 20)
    cache.put(batch)
    cache.put(batch[:5])
    assert cache.get([block.cid for block in batch]) == {block.cid: block.data for block in batch}
    size = cache.size
    cache.close()
    cache.close()
    cache = BlockCache(str(tmp_path / "cache"), 1 << 20)
    assert len(cache.get([block.cid for block in batch])) == 600
    assert cache.size == size
    cache.close()


def test_it_keeps_to_its_limit_and_keeps_what_is_used(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path / "cache"), 1_000_000)
    first, *others = random_blocks(200, 20_000)
    cache.put([first])
    for block in others:
        cache.put([block])
        assert cache.size <= 1_000_000
        assert cache.get([first.cid])
    assert cache.get([others[0].cid]) == {}
    assert cache.get([others[-1].cid])
    cache.close()
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 2_000_000


def test_what_is_larger_than_the_cache_is_not_kept(tmp_path: Path) -> None:
    for most in (0, 5000):
        cache = BlockCache(str(tmp_path / str(most)), most)
        [block] = random_blocks(1, 6000)
        cache.put([block])
        assert cache.get([block.cid]) == {}
        cache.close()


@pytest.mark.parametrize("data", [b"", b"x" * 100, "text", 7])
def test_a_damaged_block_is_a_miss_and_comes_again(tmp_path: Path, data: object) -> None:
    [block] = random_blocks(1, 100)
    cache = BlockCache(str(tmp_path / "cache"), 1 << 20)
    cache.put([block])
    with closing(sqlite3.connect(tmp_path / "cache")) as db, db:
        db.execute("UPDATE contents SET data = ?", (data,))
    assert cache.get([block.cid]) == {}
    cache.put([block])
    assert cache.get([block.cid]) == {block.cid: block.data}
    cache.close()


def test_a_file_that_is_no_database_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "cache").write_bytes(b"nonsense" * 1000)
    cache = BlockCache(str(tmp_path / "cache"), 1 << 20)
    batch = random_blocks(3, 100)
    cache.put(batch)
    assert len(cache.get([block.cid for block in batch])) == 3
    assert "made anew" in caplog.text
    cache.close()


def test_one_that_is_damaged_while_it_is_used_is_a_miss(tmp_path: Path) -> None:
    cache = BlockCache(str(tmp_path / "cache"), 1 << 22)
    batch = random_blocks(20, 50_000)
    cache.put(batch)
    cache.close()
    content = bytearray((tmp_path / "cache").read_bytes())
    content[4096 * 5 :: 97] = bytes(len(range(4096 * 5, len(content), 97)))
    (tmp_path / "cache").write_bytes(content)
    cache = BlockCache(str(tmp_path / "cache"), 1 << 22)
    for block in batch:
        assert cache.get([block.cid]) in ({}, {block.cid: block.data})
    cache.put(batch)
    cache.close()


def test_one_that_another_process_holds_is_a_miss_and_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fused.store.cache._BUSY_S", 0.05)
    cache = BlockCache(str(tmp_path / "cache"), 1 << 20)
    one, two = random_blocks(2, 100)
    cache.put([one])
    with closing(sqlite3.connect(tmp_path / "cache", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cache.put([two])
        assert cache.get([one.cid, two.cid]) == {one.cid: one.data}
        other.execute("ROLLBACK")
    cache.put([two])
    assert cache.get([two.cid]) == {two.cid: two.data}
    cache.close()


def test_without_a_disk_there_is_no_cache(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    cache = BlockCache(str(tmp_path / "missing" / "cache"), 1 << 20)
    [block] = random_blocks(1, 100)
    cache.put([block])
    assert cache.get([block.cid]) == {}
    assert cache.size == 0
    cache.close()
    assert "can't be used" in caplog.text
