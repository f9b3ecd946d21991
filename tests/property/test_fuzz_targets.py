"""The fuzzer's targets in every run of the tests: random bytes, and valid ones with a few changes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fuzz.targets import TARGETS


@st.composite
def changed(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A seed with some bytes changed, cut out, doubled or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, min(len(data), 600) - 1)))
        match draw(st.integers(0, 3)):
            case 0:
                data[at : at + 1] = draw(st.binary(min_size=1, max_size=1))
            case 1:
                del data[at : at + draw(st.integers(1, 40))]
            case 2:
                data[at:at] = data[at : at + draw(st.integers(1, 60))]
            case _:
                data[at:at] = draw(st.binary(min_size=1, max_size=6))
    return bytes(data)


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_decoded_or_refused_in_the_way_that_is_documented(name: str) -> None:
    target, seeds = TARGETS[name]
    for seed in (b"", *seeds):
        target(seed)

    @given(st.one_of(changed(seeds), st.binary(max_size=300)))
    def run(data: bytes) -> None:
        target(data)

    run()
