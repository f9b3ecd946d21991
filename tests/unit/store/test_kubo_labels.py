"""Labels: an owner, a time, a root and a name in a pin's name, and out of it again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused.errors import StoreUnavailable
from fused.store.kubo.pins import Label, parse_label
from tests.support.toy_blocks import raw

ROOT = raw(b"root").cid
TEXT = st.text(st.characters(codec=None), max_size=40)


@given(st.text(min_size=1, max_size=20), st.integers(0, 10**15), TEXT)
def test_a_label_is_what_it_was(owner: str, time_ms: int, name: str) -> None:
    label = Label(owner, time_ms, ROOT, name)
    text = label.text()
    assert len(text.encode()) <= 255
    assert text.isprintable()
    read = parse_label(text)
    assert read is not None
    assert read[:3] == label[:3]
    assert name.startswith(read.name)


@given(st.text(max_size=300))
def test_a_long_name_is_cut_between_characters(name: str) -> None:
    text = Label("mount", 1, ROOT, name).text()
    assert len(text.encode()) <= 255
    read = parse_label(text)
    assert read is not None
    assert name.startswith(read.name)


def test_people_can_read_it() -> None:
    label = Label("srv-data-1a2b", 1_700_000_000_000, ROOT, "12 files, 345 bytes")
    assert label.text().startswith("ipfsfs:srv-data-1a2b:1700000000000:bafk")
    assert label.text().endswith(":12 files, 345 bytes")


@pytest.mark.parametrize("text", ["", "ipfsfs:", "ipfsfs:m", "ipfsfs:m:x:bafk:", "ipfsfs:m:1:nocid:", "photos"])
def test_other_names_are_no_labels(text: str) -> None:
    assert parse_label(text) is None


def test_an_owner_without_end_is_refused() -> None:
    with pytest.raises(StoreUnavailable, match="no room"):
        Label("m" * 300, 1, ROOT, "").text()
