"""When writes are made in threads, and when they are tried inline again."""

from __future__ import annotations

import pytest

from fused.fs.pace import MAX_PATIENCE_SECONDS, PATIENCE_SECONDS, SLOW_SECONDS, Pace

SLOW = 2 * SLOW_SECONDS
QUICK = SLOW_SECONDS / 2


def pace(filesystem: str | None = "ext4") -> Pace:
    return Pace(1, lambda _: filesystem)


def test_writes_are_inline_until_one_is_held_up() -> None:
    it = pace()
    it.took(QUICK, 10.0, inline=True)
    assert it.inline(10.0)
    it.took(SLOW, 11.0, inline=True)
    assert not it.inline(11.1)
    assert it.inline(11.1 + PATIENCE_SECONDS)


def test_writes_stay_in_threads_as_long_as_they_are_slow_there() -> None:
    it = pace()
    it.took(SLOW, 10.0, inline=True)
    it.took(SLOW, 14.0, inline=False)
    it.took(QUICK, 18.0, inline=False)
    assert not it.inline(18.9)
    assert it.inline(19.1)


def test_each_trial_that_fails_is_followed_by_a_longer_wait_for_the_next() -> None:
    it, now, waits = pace(), 100.0, []
    for _ in range(7):
        it.took(SLOW, now, inline=True)
        begun = now
        while not it.inline(now):
            now += 0.5
        waits.append(now - begun)
    assert (
        waits
        == [pytest.approx(PATIENCE_SECONDS * 2**i, abs=0.6) for i in range(5)]
        + [pytest.approx(MAX_PATIENCE_SECONDS, abs=0.6)] * 2
    )


def test_after_a_long_quick_time_the_wait_is_short_again() -> None:
    it = pace()
    for now in (100.0, 106.0, 117.0):
        it.took(SLOW, now, inline=True)
    assert not it.inline(117.0 + 3 * PATIENCE_SECONDS)
    it.took(SLOW, 1000.0, inline=True)
    assert it.inline(1000.1 + PATIENCE_SECONDS)


@pytest.mark.parametrize("filesystem", ["fuse.sshfs", "fuseblk", "9p", "virtiofs"])
def test_where_each_write_is_passed_on_to_somebody_else_none_is_inline(filesystem: str) -> None:
    assert not pace(filesystem).inline(1e9)


@pytest.mark.parametrize("filesystem", ["tmpfs", "nfs4", None])
def test_where_writes_go_to_memory_first_they_are_inline(filesystem: str | None) -> None:
    assert pace(filesystem).inline(1e9)
