"""What --repair sets right, from what; and what it leaves alone."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fused.cid import CID, RAW, cid_of, format_cid
from fused.cli.exits import Fsck
from fused.index.index import read_snapshots
from tests.support.checked import Checked
from tests.support.store_files import blob_files, block_file, change_block, check_invariants, flip_bit
from tests.unit.check.damage import change_row, index_sql, ino, leaf_of, store_sql


def all_blocks(checked: Checked, where: str = "1") -> list[CID]:
    return [CID(bytes(cid)) for (cid,) in store_sql(checked, f"SELECT cid FROM blocks WHERE {where}")]  # type: ignore[call-overload]


def assert_repaired(checked: Checked, *, blocks: set[CID] | None = None) -> None:
    """One repair is enough, says so, and a check after it is clean."""
    report = checked.fsck("--repair")
    assert report.code == Fsck.CORRECTED, report
    assert report.findings
    assert all(found["repaired"] or found["harmless"] for found in report.findings)
    assert not report.damaged
    if blocks is not None:
        assert report.repaired == blocks
    again = checked.fsck()
    assert (again.code, [found for found in again.findings if not found["harmless"]]) == (Fsck.CLEAN, [])
    check_invariants(checked.store)


def test_every_single_block_is_made_again_from_the_plain_files(checked: Checked) -> None:
    """One after the other: leaves, file nodes, directories, their metadata, the snapshot itself."""
    every = all_blocks(checked)
    assert len(every) > 12
    for cid in every:
        change_block(checked.store, cid, flip_bit)
        report = checked.fsck("--repair")
        assert (report.code, report.repaired, report.damaged) == (Fsck.CORRECTED, {cid}, set()), format_cid(cid)
    assert checked.fsck().code == Fsck.CLEAN
    check_invariants(checked.store)


def test_all_blocks_at_once_are_made_again_from_the_plain_files(checked: Checked) -> None:
    """Each level of damage comes to light when the one above it is repaired."""
    every = all_blocks(checked)
    for cid in every:
        change_block(checked.store, cid, flip_bit)
    assert_repaired(checked, blocks=set(every))


def test_blocks_are_made_again_without_an_index(checked: Checked) -> None:
    every = [cid for cid in all_blocks(checked) if cid not in set(all_blocks(checked, "cid IN (SELECT cid FROM pins)"))]
    for cid in every:
        change_block(checked.store, cid, flip_bit)
    (checked.state / "index.sqlite").unlink()
    assert_repaired(checked, blocks=set(every))


def test_missing_files_and_rows_are_made_again(checked: Checked) -> None:
    first, second, small = (
        leaf_of(checked.root / "large"),
        leaf_of(checked.root / "large", 1),
        leaf_of(checked.root / "deep/er/small"),
    )
    block_file(checked.store, first).unlink()
    store_sql(checked, "DELETE FROM blocks WHERE cid = ?", second)
    store_sql(checked, "DELETE FROM small WHERE id = (SELECT id FROM blocks WHERE cid = ?)", small)
    assert_repaired(checked, blocks={first, second, small})


def test_content_that_has_moved_is_found_wherever_it_is(checked: Checked) -> None:
    bad = leaf_of(checked.root / "mid")
    (checked.root / "mid").rename(checked.root / "twice/elsewhere")
    change_block(checked.store, bad, flip_bit)
    assert_repaired(checked, blocks={bad})


def test_what_no_file_has_any_more_stays_named_and_nothing_is_removed(checked: Checked) -> None:
    kept, lost = leaf_of(checked.root / "deep/er/small"), leaf_of(checked.root / "mid")
    (checked.root / "mid").write_text("changed since")
    before = len(all_blocks(checked))
    for cid in (kept, lost):
        change_block(checked.store, cid, flip_bit)
    report = checked.fsck("--repair")
    assert report.code == Fsck.CORRECTED | Fsck.UNCORRECTED
    assert (report.repaired, report.damaged) == ({kept}, {lost})
    again = checked.fsck("--repair")
    assert (again.code, again.damaged) == (Fsck.UNCORRECTED, {lost})
    assert again.of("block")[0]["paths"] == ["mid"]
    assert len(all_blocks(checked)) == before
    assert len(read_snapshots(str(checked.state))) == len(store_sql(checked, "SELECT * FROM pins")) == 1


def test_damage_that_no_snapshot_needs_and_no_file_has_goes(checked: Checked) -> None:
    extra = cid_of(RAW, b"extra")
    store_sql(checked, "INSERT INTO blocks SELECT max(id) + 1, ?, 5, 0, NULL, 0 FROM blocks", extra)
    store_sql(checked, "INSERT INTO small SELECT max(id), ? FROM blocks", b"extrb")
    store_sql(checked, "UPDATE state SET blocks = blocks + 1, bytes = bytes + 5")
    assert_repaired(checked, blocks={extra})
    assert extra not in all_blocks(checked)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE state SET blocks = blocks + 1, bytes = 0",
        "INSERT INTO small (id, data) VALUES (1000000, x'00')",
        "UPDATE blocks SET damaged = 1",
        "DELETE FROM pins",
    ],
)
def test_bookkeeping_is_set_right(checked: Checked, statement: str) -> None:
    store_sql(checked, statement)
    assert_repaired(checked, blocks=set())
    assert len(store_sql(checked, "SELECT * FROM pins")) == 1


def test_orphan_files_go_when_they_are_old_and_stay_when_they_are_new(checked: Checked) -> None:
    whole = blob_files(checked.store)[0]
    old, new = (whole.with_name(whole.name.partition(".")[0] + ending) for ending in (".0badc0de-1", ".0badc0de-2"))
    for orphan in (old, new):
        orphan.write_bytes(b"left by a writer that died")
    os.utime(old, (time.time() - 7200,) * 2)
    assert_repaired(checked)
    assert (old.exists(), new.exists(), whole.exists()) == (False, True, True)


def test_row_of_a_snapshot_of_which_the_store_has_nothing_goes(checked: Checked) -> None:
    os.rename(checked.store, checked.base / "old")
    (checked.root / "new").write_text("new")
    second = checked.snapshot()
    assert_repaired(checked)
    assert [row.cid for row in read_snapshots(str(checked.state))] == [second]


def test_damaged_rows_of_the_list_come_back_from_the_pins_in_their_places(checked: Checked) -> None:
    for number in range(3):
        (checked.root / "new").write_text(f"{number}")
        checked.snapshot()
    before = read_snapshots(str(checked.state))
    index_sql(checked, "UPDATE snapshots SET files = files + 1 WHERE id = 2")
    index_sql(checked, "UPDATE snapshots SET cid = x'0011' WHERE id = 3")
    assert_repaired(checked)
    after = read_snapshots(str(checked.state))
    assert [(row.cid, row.tree, row.files, row.bytes) for row in after] == [
        (row.cid, row.tree, row.files, row.bytes) for row in before
    ]


def test_damaged_rows_of_the_index_go_and_the_next_snapshot_is_the_same(checked: Checked) -> None:
    before = read_snapshots(str(checked.state))
    index_sql(checked, "UPDATE files SET size = size + 1 WHERE ino = ?", ino(checked.root / "mid"))
    index_sql(checked, "UPDATE dirs SET bytes = bytes + 1 WHERE ino = ?", ino(checked.root / "deep"))
    change_row(checked, "files", checked.root / "twice/a", cid=cid_of(RAW, b"nowhere"))
    assert_repaired(checked, blocks=set())
    checked.snapshot()
    assert read_snapshots(str(checked.state))[0].tree == before[0].tree


def test_wrong_content_in_a_sound_row_is_mended_with_content_only(checked: Checked) -> None:
    before = read_snapshots(str(checked.state))
    other = leaf_of(checked.root / "mid")
    change_row(checked, "files", checked.root / "deep/er/small", cid=other)
    change_row(checked, "dirs", checked.root / "deep/er", racy=1)
    assert checked.fsck("--repair").code == Fsck.CLEAN
    assert checked.fsck("--repair", "--content").code == Fsck.CORRECTED
    assert checked.fsck("--content").code == Fsck.CLEAN
    checked.snapshot()
    assert read_snapshots(str(checked.state))[0].tree == before[0].tree


def test_directory_that_remembers_something_else_than_its_files_is_mended(checked: Checked) -> None:
    (checked.root / "deep/er/small").write_text("after")
    checked.snapshot()
    [old] = [row for row in read_snapshots(str(checked.state)) if row.modified == 0]
    with closing(sqlite3.connect(checked.state / "index.sqlite")) as c:
        [(now,)] = c.execute("SELECT tree FROM dirs WHERE ino = ?", (ino(checked.root / "deep/er"),))
    change_row(checked, "dirs", checked.root / "deep/er", tree=old.tree)
    assert checked.fsck().code == Fsck.UNCORRECTED
    assert_repaired(checked, blocks=set())
    checked.snapshot()
    [(again,)] = index_sql(checked, "SELECT tree FROM dirs WHERE ino = ?", ino(checked.root / "deep/er"))
    assert again == now


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:100] + b"\xff" * 900 + path.read_bytes()[1000:]),
        lambda path: path.unlink(),
    ],
)
def test_index_is_made_anew_with_the_list_of_snapshots(checked: Checked, damage: Callable[[Path], object]) -> None:
    (checked.root / "new").write_text("new")
    checked.snapshot()
    before = read_snapshots(str(checked.state))
    damage(checked.state / "index.sqlite")
    assert_repaired(checked, blocks=set())
    assert [row.cid for row in read_snapshots(str(checked.state))] == [row.cid for row in before]
    checked.snapshot()
    assert read_snapshots(str(checked.state))[0].tree == before[0].tree


def test_store_alone_is_repaired_as_far_as_it_can_be(checked: Checked) -> None:
    bad = leaf_of(checked.root / "mid")
    change_block(checked.store, bad, flip_bit)
    store_sql(checked, "UPDATE state SET blocks = blocks + 1")
    report = checked.fsck_store("--repair")
    assert report.code == Fsck.CORRECTED | Fsck.UNCORRECTED
    assert report.damaged == {bad}
    assert [found["repaired"] for found in report.of("store")] == [True]
