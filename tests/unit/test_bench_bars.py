"""What `bench/fs` asks of each row."""

from __future__ import annotations

from bench.fs import bars, report
from bench.fs.__main__ import ROWS
from bench.fs.measure import Cell


def test_bars_name_rows_and_groups_that_exist() -> None:
    groups = {row.group for row in ROWS.values()}
    for bar in (*bars.BARS, *bars.INSTEAD):
        assert set(bar.rows) <= set(ROWS), bar
        assert set(bar.groups) <= groups, bar


def test_the_highest_of_several_bars_counts() -> None:
    assert bars.asked(ROWS["open-read-first"], "disk")["passthrough_ll"] == 2
    assert bars.asked(ROWS["rename"], "disk")["passthrough_ll"] == 1


def test_exceptions_count_in_place_of_the_rule() -> None:
    assert bars.asked(ROWS["readdir-again"], "disk")["mergerfs"] == 0.5
    assert bars.asked(ROWS["git-status-again"], "disk")["native"] == 1 / 1.2
    assert bars.asked(ROWS["sqlite-wal"], "disk")["native"] == 0.6


def test_some_bars_are_for_the_disk_only() -> None:
    assert "native" in bars.asked(ROWS["create"], "disk")
    assert "native" not in bars.asked(ROWS["create"], "tmpfs")


def test_the_table_marks_what_is_met_and_tells_what_cant_be_done() -> None:
    cells = {
        "native": Cell([1e-5]),
        "ipfsfs": Cell([2e-5, 2.2e-5], requests={"create": 1.0}, cpu_seconds=[1e-5]),
        "bindfs": Cell([1e-5]),
        "kubo": Cell([1e-3]),
        "rclone": Cell(cant="rclone is not installed"),
    }
    row = report.as_json(ROWS["create"], "disk", cells)
    text = report.tables({"rows": {"create": row}}, cells)
    ratios = next(line for line in text.splitlines() if line.startswith("create") and "met" in line)
    assert ratios.split() == ["create", "0.48", "met", "0.48", "<1", "48", "met", "can't"]
    assert "rclone can't: rclone is not installed [create]" in text
    assert "create 1.00" in text
