"""gc beside others who put and pin: each race, one by one, at the moment where it would hurt.

gc calls `links_of` while it walks and `check` before each step of removing, `put` calls `check` between its plan and
each transaction: that is where the other side gets to act here, through a second opening of the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import trio

from fused.cid import CID
from fused.errors import BlockNotFound
from fused.store.base import Block, Pin
from fused.store.blocking import BlockingStore
from fused.store.embedded import EmbeddedStore
from tests.support.store_files import age, blob_files, check_invariants
from tests.support.toy_blocks import links_of, node, random_blocks, raw

HOUR = 3600.0


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(path: Path) -> Iterator[BlockingStore]:
    with BlockingStore(path) as opened:
        yield opened
        check_invariants(path)


@pytest.fixture
def other(path: Path, store: BlockingStore) -> Iterator[BlockingStore]:
    """Another process would see the same."""
    with BlockingStore(path) as opened:
        yield opened


def once(act: Callable[[], object], when: Callable[[], bool] = lambda: True) -> Callable[[], None]:
    """A `check` that does `act` the first time that `when` holds."""
    done = False

    def check() -> None:
        nonlocal done
        if not done and when():
            done = True
            act()

    return check


def acting_links_of(act: Callable[[], object]) -> Callable[[CID, bytes], Iterable[CID]]:
    """`links_of` that does `act` when gc reads the first node."""
    check = once(act)

    def links(cid: CID, data: bytes) -> Iterable[CID]:
        check()
        return links_of(cid, data)

    return links


def pinned_root(store: BlockingStore) -> Block:
    """Something for gc to walk."""
    root = node(salt=b"pinned")
    store.rows.put([root])
    store.pins.add(Pin("m", root.cid, ""))
    return root


def all_there(store: BlockingStore, blocks: list[Block]) -> bool:
    found = store.rows.get_many([block.cid for block in blocks])
    return found == {block.cid: block.data for block in blocks}


def test_blocks_older_than_the_grace_go(store: BlockingStore, path: Path) -> None:
    old, young = [*random_blocks(5, 100), *random_blocks(2, 100_000)], random_blocks(5, 100, seed=1)
    store.rows.put(old)
    age(path, 2 * HOUR)
    store.rows.put(young)
    assert store.gc(links_of) == 7
    assert all_there(store, young)
    assert blob_files(path) == []


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_known_block_that_is_put_again_gets_a_new_grace(store: BlockingStore, path: Path, size: int) -> None:
    blocks = random_blocks(3, size)
    store.rows.put(blocks)
    age(path, 2 * HOUR)
    assert store.rows.put(blocks) == 0
    assert store.gc(links_of) == 0
    assert all_there(store, blocks)


def test_a_known_block_has_three_quarters_of_the_grace_after_any_put(store: BlockingStore, path: Path) -> None:
    blocks = random_blocks(3, 100)
    store.rows.put(blocks)
    for minutes in (14, 10, 3, 14, 14, 14):  # put again and again, sometimes without a new stamp
        age(path, 60 * minutes)
        store.rows.put(blocks)
    age(path, 60 * 44)
    assert store.gc(links_of) == 0


def test_refresh_keeps_old_blocks_and_says_which_are_there(store: BlockingStore, path: Path) -> None:
    [refreshed, *others] = random_blocks(3, 100)
    unknown = raw(b"unknown")
    store.rows.put([refreshed, *others])
    age(path, 2 * HOUR)
    assert store.rows.refresh([refreshed.cid, unknown.cid]) == {refreshed.cid}
    assert store.rows.refresh([refreshed.cid]) == {refreshed.cid}
    assert store.gc(links_of) == 2
    assert store.rows.refresh([refreshed.cid, others[0].cid]) == {refreshed.cid}


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_block_put_again_while_gc_walks_stays(
    store: BlockingStore, other: BlockingStore, path: Path, size: int
) -> None:
    blocks = random_blocks(300, size // 10) + random_blocks(2, size)
    pinned_root(store)
    store.rows.put(blocks)
    age(path, 2 * HOUR)
    assert store.gc(acting_links_of(lambda: other.rows.put(blocks))) == 0
    assert all_there(store, blocks)


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_block_put_again_right_before_gc_removes_it_stays(
    store: BlockingStore, other: BlockingStore, path: Path, size: int
) -> None:
    blocks = random_blocks(4, size)
    store.rows.put(blocks)
    age(path, 2 * HOUR)
    # Without pins there is nothing to walk: the first check comes when gc has chosen what to remove.
    assert store.gc(links_of, once(lambda: other.rows.put(blocks))) == 0
    assert all_there(store, blocks)


@pytest.mark.parametrize("size", [100, 100_000])
def test_a_block_that_gc_removes_while_it_is_put_is_written_again(
    store: BlockingStore, other: BlockingStore, path: Path, size: int
) -> None:
    blocks = random_blocks(4, size)
    store.rows.put(blocks)
    age(path, 2 * HOUR)
    # The plan says: known and old, stamp them. Then gc is faster.
    assert store.rows.put(blocks, once(lambda: other.gc(links_of))) == 4
    assert all_there(store, blocks)
    assert len(blob_files(path)) == (4 if size == 100_000 else 0)


def test_a_block_that_gc_removes_while_it_is_refreshed_is_not_reported(
    store: BlockingStore, other: BlockingStore, path: Path
) -> None:
    blocks = random_blocks(4, 100)
    store.rows.put(blocks)
    age(path, 2 * HOUR)
    assert store.rows.refresh([block.cid for block in blocks], once(lambda: other.gc(links_of))) == set()


def test_a_block_that_another_process_stores_while_we_write_it_is_stored_once(
    store: BlockingStore, other: BlockingStore, path: Path
) -> None:
    blocks = [*random_blocks(3, 100), *random_blocks(3, 100_000)]
    # The plan says: all new. The files are written, then the other process is faster with the rows.
    faster = once(lambda: other.rows.put(blocks), when=lambda: len(blob_files(path)) == 3)
    assert store.rows.put(blocks, faster) == 0
    assert all_there(store, blocks)
    assert len(blob_files(path)) == 3


def test_a_dag_pinned_while_gc_walks_stays(store: BlockingStore, other: BlockingStore, path: Path) -> None:
    leaves = random_blocks(10, 100)
    root = node(*(leaf.cid for leaf in leaves))
    store.rows.put([root, *leaves])
    pinned_root(store)
    age(path, 2 * HOUR)
    assert store.gc(acting_links_of(lambda: other.pins.add(Pin("other", root.cid, "")))) == 0
    assert all_there(store, [root, *leaves])


def test_a_dag_pinned_while_gc_removes_stays(store: BlockingStore, other: BlockingStore, path: Path) -> None:
    garbage = random_blocks(600, 100)
    leaves = random_blocks(10, 100, seed=1)
    root = node(*(leaf.cid for leaf in leaves))
    store.rows.put([*garbage, root, *leaves])  # gc goes by age: the garbage first
    age(path, 2 * HOUR)
    pin = once(lambda: other.pins.add(Pin("other", root.cid, "")), when=lambda: store.rows.stats().blocks < 600)
    assert store.gc(links_of, pin) == 600
    assert all_there(store, [root, *leaves])


def test_an_old_dag_that_gc_has_begun_to_remove_is_reported_when_pinned_without_a_refresh(
    store: BlockingStore, other: BlockingStore, path: Path
) -> None:
    leaves = random_blocks(600, 100)
    root = node(*(leaf.cid for leaf in leaves))
    store.rows.put([*leaves, root])
    age(path, 2 * HOUR)
    pin = once(lambda: other.pins.add(Pin("other", root.cid, "")), when=lambda: store.rows.stats().blocks < 600)
    with pytest.raises(BlockNotFound):
        store.gc(links_of, pin)
    assert 0 < store.rows.stats().blocks < 600


def test_a_pin_dropped_while_gc_walks_may_or_may_not_count_but_breaks_nothing(
    store: BlockingStore, other: BlockingStore, path: Path
) -> None:
    root = pinned_root(store)
    age(path, 2 * HOUR)
    assert store.gc(acting_links_of(lambda: other.pins.remove("m", root.cid))) == 0
    assert store.gc(links_of) == 1


def test_two_collections_at_once_do_the_work_of_one(store: BlockingStore, other: BlockingStore, path: Path) -> None:
    store.rows.put(random_blocks(600, 100))
    kept = pinned_root(store)
    age(path, 2 * HOUR)
    theirs: list[int] = []
    ours = store.gc(links_of, once(lambda: theirs.append(other.gc(links_of))))
    assert ours + sum(theirs) == 600
    assert all_there(store, [kept])


def test_a_block_read_while_gc_removes_it_is_not_found_rather_than_damaged(
    store: BlockingStore, other: BlockingStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = random_blocks(1, 100_000)
    store.rows.put([block])
    age(path, 2 * HOUR)
    fetch = store.rows._fetch
    monkeypatch.setattr(store.rows, "_fetch", lambda cids: (fetch(cids), other.gc(links_of))[0])
    with pytest.raises(BlockNotFound):
        store.rows.get(block.cid)


def test_a_block_read_while_it_is_removed_and_put_again_is_read(
    store: BlockingStore, other: BlockingStore, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [block] = random_blocks(1, 100_000)
    store.rows.put([block])
    age(path, 2 * HOUR)
    fetch = store.rows._fetch
    again = once(lambda: (other.gc(links_of), other.rows.put([block])))
    monkeypatch.setattr(store.rows, "_fetch", lambda cids: (fetch(cids), again())[0])
    assert store.rows.get(block.cid) == block.data


def test_gc_gives_the_space_back(store: BlockingStore, path: Path) -> None:
    store.rows.put(random_blocks(500, 40_000))
    store.rows.put(random_blocks(10, 1_000_000))
    age(path, 2 * HOUR)
    before = store.rows.stats().disk_bytes
    store.gc(links_of)
    store.close()
    with BlockingStore(path) as again:
        after = again.rows.stats()
    assert before > 29_000_000
    assert after.blocks == after.bytes_stored == 0
    assert after.disk_bytes < 1_000_000


async def test_a_cancelled_gc_leaves_the_store_whole_and_the_next_goes_on(path: Path) -> None:
    async with EmbeddedStore(path, grace_s=0) as store:
        blocks = random_blocks(3000, 100)
        root = node(*(block.cid for block in blocks[:500]))
        await store.put([*blocks, root])
        await store.pin(Pin("m", root.cid, ""))
        with trio.CancelScope() as scope:

            def links_then_cancel(cid: CID, data: bytes) -> Iterable[CID]:
                trio.from_thread.run_sync(scope.cancel)
                return links_of(cid, data)

            await store.gc(links_then_cancel)
        assert scope.cancelled_caught
        assert check_invariants(path) == 3001
        assert await store.gc(links_of) == 2500
    assert check_invariants(path) == 501
