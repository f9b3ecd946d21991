"""Counting requests."""

from __future__ import annotations

from fused.fs.requests import RequestCounter


def test_percentiles_are_within_a_factor_of_two() -> None:
    counter = RequestCounter()
    for _ in range(980):
        counter.add(50_000)
    for _ in range(20):
        counter.add(3_000_000)
    stats = counter.stats()
    assert stats.count == 1000
    assert 25 <= stats.p50_us <= 100
    assert 1_500 <= stats.p99_us <= 3_000
    assert stats.max_us == 3_000


def test_nothing_counted_is_nothing() -> None:
    stats = RequestCounter().stats()
    assert (stats.count, stats.p50_us, stats.p99_us, stats.max_us) == (0, 0, 0, 0)


def test_extremes_fit() -> None:
    counter = RequestCounter()
    counter.add(0)
    counter.add(10**18)
    assert counter.stats().p50_us <= 1
    assert counter.stats().max_us == 10**15
