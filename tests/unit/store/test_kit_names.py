"""What a node's pins are called."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fused.errors import StoreUnavailable
from fused.store.kit.names import MAX_BYTES, Line, join, ledger, parse

TIMES = st.integers(min_value=0, max_value=1 << 45)


def test_a_name_says_who_when_and_why() -> None:
    name = join([Line("work", 1795523447320, "home 2"), Line("lab", 7, "")])
    assert name == "ipfsfs:work:1795523447320:home 2\nipfsfs:lab:7:"
    assert parse(name) == [Line("work", 1795523447320, "home 2"), Line("lab", 7, "")]


@given(st.text(max_size=20), TIMES, st.text(max_size=40))
@example("a:b\nc%", 5, "x:y")
@example("ledger", 5, "")
def test_owners_come_back_whatever_they_are_called(owner: str, time_ms: int, name: str) -> None:
    [line] = parse(join([Line(owner, time_ms, name)]))
    assert (line.owner, line.time_ms) == (owner, time_ms)
    assert line.name == " ".join(name.splitlines())


@given(st.text(max_size=200).filter(lambda text: "\n" not in text and not text.startswith("ipfsfs:")))
def test_what_others_call_a_pin_is_kept(theirs: str) -> None:
    name = join([*parse(theirs), Line("me", 5, "mine")])
    assert join([line for line in parse(name) if line.owner != "me"]) == theirs


@given(st.lists(st.tuples(st.text("ab", min_size=1, max_size=8), TIMES, st.text(max_size=300)), min_size=1, max_size=5))
def test_names_that_are_too_long_are_cut(owners: list[tuple[str, int, str]]) -> None:
    lines = [Line(*owner) for owner in owners]
    name = join(lines)
    assert len(name.encode()) <= MAX_BYTES
    assert [line[:2] for line in parse(name)] == [line[:2] for line in lines]


def test_too_many_owners_of_one_pin_are_refused() -> None:
    with pytest.raises(StoreUnavailable, match="12 owners"):
        join([Line("somebody with a long name", 1795523447320, "")] * 12)


def test_the_pin_of_the_ledger_belongs_to_nobody() -> None:
    assert [line.owner for line in parse(ledger("0a1b"))] == [None]
    assert [line.owner for line in parse("ipfsfs:nonsense\nipfsfs:me:late:x\nbackup")] == [None, None, None]
