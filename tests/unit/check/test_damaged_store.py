"""Damage of every kind in a store: named exactly, with who needs it."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fused.cid import CID, RAW, cid_of, format_cid, parse_cid
from fused.cli.exits import Fsck
from tests.support.checked import Checked
from tests.support.store_files import blob_files, block_file, change_block, cut, empty, flip_bit, lengthen
from tests.unit.check.damage import leaf_of, store_sql


def test_whole_store_is_clean(checked: Checked) -> None:
    for report in (checked.fsck(), checked.fsck_store(), checked.fsck("--content")):
        assert (report.code, report.findings, report.err) == (Fsck.CLEAN, [], "")
    said = checked.fsck().said["checked"]
    assert (said["files"], said["directories"], said["dirty"], said["snapshots"]) == (5, 4, 0, 1)
    [(blocks,)] = store_sql(checked, "SELECT count(*) FROM blocks")
    assert said["blocks"] == blocks


@pytest.mark.parametrize("change", [flip_bit, cut, lengthen, empty])
@pytest.mark.parametrize("name", ["large", "deep/er/small"])
def test_damaged_block_is_named_with_snapshot_and_path(
    checked: Checked, name: str, change: Callable[[bytes], bytes]
) -> None:
    bad = leaf_of(checked.root / name)
    change_block(checked.store, bad, change)
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    [found] = report.findings
    assert (found["kind"], found["cid"], found["paths"]) == ("block", format_cid(bad), [name])
    assert len(found["snapshots"]) == 1
    assert checked.fsck_store().damaged == {bad}


def test_missing_file_of_a_block_is_named(checked: Checked) -> None:
    bad = leaf_of(checked.root / "large", 1)
    block_file(checked.store, bad).unlink()
    report = checked.fsck()
    assert (report.code, report.damaged, len(report.findings)) == (Fsck.UNCORRECTED, {bad}, 1)


def test_block_of_several_paths_and_snapshots_is_named_with_all_of_them(checked: Checked) -> None:
    (checked.root / "new").write_text("new")
    checked.snapshot()
    bad = leaf_of(checked.root / "twice/a")
    change_block(checked.store, bad, flip_bit)
    [found] = checked.fsck().findings
    assert found["paths"] == ["twice/a", "twice/b"]
    assert len(found["snapshots"]) == 2


def test_row_that_is_gone_is_a_missing_block_and_wrong_totals_and_an_orphan(checked: Checked) -> None:
    bad = leaf_of(checked.root / "large")
    store_sql(checked, "DELETE FROM blocks WHERE cid = ?", bad)
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert report.damaged == {bad}
    assert [found["what"].split()[1] for found in report.of("store")] == ["totals", "file"]
    assert report.of("store")[1]["harmless"]
    assert "not in the store" in report.of("block")[0]["what"]
    assert report.of("block")[0]["paths"] == ["large"]


def test_wrong_totals_are_said_with_what_they_should_be(checked: Checked) -> None:
    [(blocks, size)] = store_sql(checked, "SELECT blocks, bytes FROM state")
    store_sql(checked, "UPDATE state SET blocks = blocks + 1")
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    [found] = report.findings
    assert f"{int(str(blocks)) + 1} blocks" in found["what"]
    assert f"there are {blocks} blocks, {size} bytes" in found["what"]


def test_orphan_file_is_named_and_does_no_harm(checked: Checked) -> None:
    whole = blob_files(checked.store)[0]
    orphan = whole.with_name(whole.name.partition(".")[0] + ".0badc0de-1")
    orphan.write_bytes(b"left by a writer that died")
    report = checked.fsck()
    assert report.code == Fsck.CLEAN
    [found] = report.findings
    assert (found["kind"], found["harmless"]) == ("store", True)
    assert orphan.name in found["what"]


def test_content_that_belongs_to_no_block_is_found(checked: Checked) -> None:
    store_sql(checked, "INSERT INTO small (id, data) VALUES (1000000, x'00')")
    report = checked.fsck()
    assert (report.code, len(report.findings)) == (Fsck.UNCORRECTED, 1)
    assert "1 contents that belong to no block" in report.findings[0]["what"]


def test_missing_root_of_a_pinned_snapshot_is_named_and_what_is_below_it_still_verified(checked: Checked) -> None:
    [(root,)] = store_sql(checked, "SELECT cid FROM pins")
    assert isinstance(root, bytes)
    store_sql(checked, "DELETE FROM small WHERE id = (SELECT id FROM blocks WHERE cid = ?)", root)
    store_sql(checked, "DELETE FROM blocks WHERE cid = ?", root)
    bad = leaf_of(checked.root / "mid")
    change_block(checked.store, bad, flip_bit)
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert report.damaged == {root, bad}
    found = {parse_cid(entry["cid"]): entry for entry in report.of("block")}
    assert found[CID(root)]["snapshots"] == found[bad]["snapshots"] == [format_cid(CID(root))]
    assert (found[CID(root)]["paths"], found[bad]["paths"]) == (["."], ["mid"])


@pytest.mark.parametrize("kind", ["tree", "meta"])
def test_damaged_directory_node_is_named_with_the_directory(checked: Checked, kind: str) -> None:
    with closing(sqlite3.connect(checked.state / "index.sqlite")) as c:
        ino = os.stat(checked.root / "deep/er").st_ino
        [(node,)] = c.execute(f"SELECT {kind} FROM dirs WHERE ino = ?", (ino,))
    change_block(checked.store, node, flip_bit)
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert report.damaged == {node}
    assert report.of("block")[0]["paths"] == ["deep/er"]
    assert len(report.findings) == 1


def test_damage_that_no_snapshot_needs_is_named_too(checked: Checked) -> None:
    extra = cid_of(RAW, b"extra")
    store_sql(checked, "INSERT INTO blocks SELECT max(id) + 1, ?, 5, 0, NULL, 0 FROM blocks", extra)
    store_sql(checked, "INSERT INTO small SELECT max(id), ? FROM blocks", b"extrb")
    store_sql(checked, "UPDATE state SET blocks = blocks + 1, bytes = bytes + 5")
    report = checked.fsck()
    assert (report.code, report.damaged) == (Fsck.UNCORRECTED, {extra})
    assert (report.findings[0]["snapshots"], report.findings[0]["paths"]) == ([], [])


def test_whole_block_that_is_marked_as_damaged_is_found(checked: Checked) -> None:
    marked = leaf_of(checked.root / "mid")
    store_sql(checked, "UPDATE blocks SET damaged = 1 WHERE cid = ?", marked)
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert {found["cid"] for found in report.of("store")} == {format_cid(marked)}
    assert not report.damaged


def test_snapshot_that_is_listed_and_not_pinned_is_found(checked: Checked) -> None:
    store_sql(checked, "DELETE FROM pins")
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert [found["kind"] for found in report.findings] == ["pin"]


def test_pinned_snapshot_that_is_not_listed_does_no_harm(checked: Checked) -> None:
    with closing(sqlite3.connect(checked.state / "index.sqlite")) as c, c:
        c.execute("DELETE FROM snapshots")
    report = checked.fsck()
    assert report.code == Fsck.CLEAN
    assert [(found["kind"], found["harmless"]) for found in report.findings] == [("pin", True)]


def test_listed_snapshot_of_which_the_store_has_nothing_is_found(checked: Checked) -> None:
    first = checked.snapshot()
    os.rename(checked.store, checked.base / "old")
    (checked.root / "new").write_text("new")
    second = checked.snapshot()
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert [(found["kind"], found["cid"]) for found in report.findings] == [("snapshot", format_cid(first))]
    assert first != second


@pytest.mark.parametrize("damage", [lambda data: data[:4000], lambda data: b"", lambda data: b"x" * len(data)])
def test_store_whose_database_makes_no_sense_is_an_error_and_not_a_failure(
    checked: Checked, damage: Callable[[bytes], bytes]
) -> None:
    database = checked.store / "blocks.sqlite3"
    database.write_bytes(damage(database.read_bytes()))
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert "damaged" in report.of("store")[0]["what"]


def test_garbled_page_of_the_database_is_said_in_the_words_of_sqlite(checked: Checked) -> None:
    database = checked.store / "blocks.sqlite3"
    content = bytearray(database.read_bytes())
    at = content.index(b"small", 8192) // 4096 * 4096  # a page of contents
    content[at : at + 4] = b"\xff\xff\xff\xff"
    database.write_bytes(bytes(content))
    report = checked.fsck()
    assert report.code & Fsck.UNCORRECTED
    assert any("database" in found["what"] for found in report.of("store"))


def test_no_store_is_a_failure_and_makes_none(empty: Checked, tmp_path: Path) -> None:
    report = empty.run("--store-dir", str(tmp_path / "nowhere"))
    assert report.code == Fsck.OPERATIONAL
    assert "there is no store" in report.err
    assert not (tmp_path / "nowhere").exists()


def test_directory_that_was_never_mounted_is_a_failure(tmp_path: Path, empty: Checked) -> None:
    report = empty.run(str(tmp_path))
    assert report.code == Fsck.OPERATIONAL
    assert "never was" in report.err
