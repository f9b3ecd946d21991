"""The store's clock goes on across reboots and ignores what the wall clock does."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest

from fused.store.blocking import BlockingStore
from tests.support.toy_blocks import links_of, random_blocks


def state(path: Path) -> tuple[str, int, int]:
    with closing(sqlite3.connect(path / "blocks.sqlite3")) as c:
        row: tuple[str, int, int] = c.execute("SELECT boot, clock_base, newest_stamp FROM state").fetchone()
    return row


def pretend_last_boot(path: Path, uptime_ms: int) -> None:
    """As if all that was put had been put under another boot, which had lasted that long."""
    with closing(sqlite3.connect(path / "blocks.sqlite3")) as c, c:
        c.execute("UPDATE state SET boot = 'another', clock_base = 0, newest_stamp = ?", (uptime_ms,))
        c.execute("UPDATE blocks SET stamp = ?", (uptime_ms,))


@pytest.mark.parametrize("uptime_ms", [1000, 10**9, 10**13])
def test_after_a_reboot_the_clock_goes_on_from_the_last_stamp(tmp_path: Path, uptime_ms: int) -> None:
    with BlockingStore(tmp_path) as store:
        store.rows.put(random_blocks(3, 100))
    pretend_last_boot(tmp_path, uptime_ms)
    with BlockingStore(tmp_path) as store:
        assert store.gc(links_of) == 0  # down time is no time
        store.rows.put(random_blocks(3, 100, seed=1))
    assert uptime_ms <= state(tmp_path)[2] < uptime_ms + 60_000


def test_within_one_boot_all_openings_share_the_clock(tmp_path: Path) -> None:
    with BlockingStore(tmp_path):
        boot, base, _ = state(tmp_path)
    with BlockingStore(tmp_path):
        assert state(tmp_path)[:2] == (boot, base)


def test_a_wall_clock_that_jumps_makes_nothing_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with BlockingStore(tmp_path) as store:
        store.rows.put(random_blocks(3, 100))
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 10 * 365 * 86400)
        assert store.gc(links_of) == 0
