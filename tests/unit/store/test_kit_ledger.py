"""What a node has confirmed."""

from __future__ import annotations

from pathlib import Path

import pytest

from fused.cid import CID, DAG_CBOR, RAW, cid_of
from fused.errors import StoreUnavailable
from fused.store.base import Block
from fused.store.kit.ledger import Ledger
from tests.support.memos import damage_leaves
from tests.support.toy_blocks import random_blocks


def test_only_the_first_confirmation_is_news(tmp_path: Path) -> None:
    one, two = Ledger(str(tmp_path / "ledger")), Ledger(str(tmp_path / "ledger"))
    blocks = random_blocks(1200, 10)
    assert one.add(blocks[:700]) == 700
    assert two.add(blocks) == 500
    assert one.known([block.cid for block in blocks]) == {block.cid for block in blocks}
    assert one.totals() == (1200, 12_000)
    one.close()
    two.close()


def test_the_same_bytes_under_another_codec_are_not_confirmed_for_it(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    as_raw, as_cbor, other = cid_of(RAW, b"\xa0"), cid_of(DAG_CBOR, b"\xa0"), cid_of(RAW, b"other")
    ledger.add([Block(as_raw, b"\xa0")])
    assert ledger.known([as_raw, as_cbor, other]) == {as_raw}
    assert ledger.known_otherwise([as_raw, as_cbor, other]) == {as_cbor}
    ledger.forget([as_cbor])  # a node that has lost the bytes has lost them for both
    assert ledger.known([as_raw]) == set()
    ledger.close()


def test_another_node_begins_with_nothing(tmp_path: Path) -> None:
    ledger = Ledger(str(tmp_path / "ledger"))
    assert ledger.marker() is None
    ledger.begin(CID(b"one"))
    ledger.add(random_blocks(3, 10))
    ledger.begin(CID(b"two"))
    assert (ledger.marker(), ledger.totals()) == (b"two", (0, 0))
    ledger.close()
    ledger.close()


def test_a_ledger_that_can_not_be_written_is_a_store_that_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(StoreUnavailable, match="nowhere"):
        Ledger(str(tmp_path / "nowhere" / "ledger"))


def test_a_damaged_one_is_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "ledger").write_bytes(b"no database" * 1000)
    ledger = Ledger(str(tmp_path / "ledger"))
    assert (ledger.marker(), ledger.totals()) == (None, (0, 0))
    assert "made anew" in caplog.text
    ledger.close()


def test_one_that_is_found_damaged_in_use_is_made_anew_and_believes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ledger, blocks = Ledger(str(tmp_path / "ledger")), random_blocks(3000, 10)
    ledger.begin(CID(b"marker"))
    ledger.add(blocks)
    ledger.close()
    damage_leaves(tmp_path / "ledger")
    ledger = Ledger(str(tmp_path / "ledger"))
    with pytest.raises(StoreUnavailable, match="can't be used"):
        ledger.known([block.cid for block in blocks])
    assert "made anew" in caplog.text
    assert (ledger.marker(), ledger.totals()) == (None, (0, 0))
    assert ledger.add(blocks) == 3000
    ledger.close()
