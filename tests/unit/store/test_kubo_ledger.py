"""The ledger of what a node has confirmed, without a node."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused.errors import StoreUnavailable
from fused.store.kubo.ledger import Ledger
from tests.support.memos import damage_leaves
from tests.support.toy_blocks import random_blocks, raw


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    ledger = Ledger(str(tmp_path / "ledger"))
    yield ledger
    ledger.close()


def test_what_was_confirmed_is_known_and_counted_once(ledger: Ledger) -> None:
    batch = random_blocks(700, 30)
    cids = [block.cid for block in batch]
    assert ledger.known(cids) == set()
    assert ledger.confirm(batch[:600]) == 600
    assert ledger.confirm(batch) == 100
    assert ledger.known(cids) == set(cids)
    assert ledger.totals() == (700, 700 * 30)


def test_it_is_kept(tmp_path: Path) -> None:
    first = Ledger(str(tmp_path / "ledger"))
    first.void(raw(b"marker").cid, None)
    first.confirm([raw(b"x")])
    first.close()
    second = Ledger(str(tmp_path / "ledger"))
    assert second.marker() == raw(b"marker").cid
    assert second.known([raw(b"x").cid]) == {raw(b"x").cid}
    second.close()


def test_two_that_are_open_are_one(tmp_path: Path, ledger: Ledger) -> None:
    other = Ledger(str(tmp_path / "ledger"))
    ledger.confirm([raw(b"x")])
    assert other.confirm([raw(b"x"), raw(b"y")]) == 1
    assert ledger.totals() == (2, 2)
    other.close()


def test_void_forgets_everything_unless_another_was_faster(ledger: Ledger) -> None:
    one, two = raw(b"one").cid, raw(b"two").cid
    ledger.void(one, None)
    ledger.confirm([raw(b"x")])
    ledger.void(two, raw(b"older").cid)
    assert (ledger.marker(), ledger.totals()) == (one, (1, 1))
    ledger.void(two, one)
    assert (ledger.marker(), ledger.totals()) == (two, (0, 0))
    assert ledger.fresh(10) == []


def test_fresh_is_what_came_after_the_last_pin_or_was_asked_for_again(ledger: Ledger) -> None:
    old, between, new = random_blocks(3, 10)
    ledger.confirm([old])
    until = ledger.now()
    ledger.confirm([between])
    ledger.settle(until)
    assert ledger.fresh(10) == [between.cid]
    ledger.settle(ledger.now())
    assert ledger.fresh(10) == []
    ledger.confirm([new])
    assert ledger.known([old.cid]) == {old.cid}
    assert set(ledger.fresh(10)) == {new.cid, old.cid}
    assert ledger.fresh_totals() == (2, 20)


def test_what_was_fresh_when_it_became_void_is_suspect_until_it_comes_again(ledger: Ledger) -> None:
    old, lost, again = random_blocks(3, 10)
    ledger.confirm([old])
    ledger.settle(ledger.now())
    ledger.confirm([lost, again])
    ledger.void(raw(b"marker").cid, None)
    assert set(ledger.suspects()) == {lost.cid, again.cid}
    ledger.confirm([again])
    assert ledger.suspects() == [lost.cid]
    ledger.acquit([lost.cid])
    assert ledger.suspects() == []


def test_some_of_many_fresh_ones_are_chosen_the_oldest_always(ledger: Ledger) -> None:
    batch = random_blocks(1000, 10)
    ledger.confirm(batch)
    chosen = ledger.fresh(20)
    assert batch[0].cid in chosen
    assert 2 <= len(chosen) <= 20
    assert set(chosen) <= {block.cid for block in batch}


def test_threads_share_it(ledger: Ledger) -> None:
    batch = random_blocks(500, 10)
    new: list[int] = []
    threads = [threading.Thread(target=lambda: new.append(ledger.confirm(batch))) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(new) == 500


def test_a_damaged_one_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").write_bytes(b"nonsense" * 1000)
    ledger = Ledger(str(tmp_path / "ledger"))
    assert ledger.totals() == (0, 0)
    assert "made anew" in caplog.text
    ledger.close()


def test_one_that_is_found_damaged_in_use_is_made_anew_and_believes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, blocks = Ledger(str(tmp_path / "ledger")), random_blocks(3000, 10)
    ledger.void(raw(b"marker").cid, None)
    ledger.confirm(blocks)
    until = ledger.now()
    ledger.close()
    damage_leaves(tmp_path / "ledger")
    ledger = Ledger(str(tmp_path / "ledger"))
    with pytest.raises(StoreUnavailable, match="can't be used"):
        ledger.known([block.cid for block in blocks])
    assert "made anew" in caplog.text
    assert (ledger.marker(), ledger.totals()) == (None, (0, 0))
    assert ledger.confirm(blocks[:3]) == 3
    ledger.settle(until)  # from the ledger that is gone: it is not about what came since
    assert set(ledger.fresh(10)) == {block.cid for block in blocks[:3]}
    ledger.close()


def test_a_disk_that_fails_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="the list of what the node has"):
        Ledger(str(tmp_path / "missing" / "ledger"))
