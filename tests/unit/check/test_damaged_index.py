"""Damage of every kind in an index: named with the path, and told from files that are only not stored yet."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable

import pytest

from fused.cid import RAW, cid_of, format_cid
from fused.cli.exits import Fsck
from tests.support.checked import Checked
from tests.unit.check.damage import change_row, index_sql, ino


def test_changed_new_and_renamed_files_are_dirty_and_no_error(checked: Checked) -> None:
    (checked.root / "mid").write_text("changed")
    (checked.root / "new").write_text("new")
    (checked.root / "twice/a").rename(checked.root / "moved")
    (checked.root / "twice/b").unlink()
    report = checked.fsck("--content")
    assert (report.code, report.findings) == (Fsck.CLEAN, [])
    assert report.said["checked"]["dirty"] >= 2


def test_flipped_bit_in_a_row_is_named_with_the_path(checked: Checked) -> None:
    index_sql(checked, "UPDATE files SET size = size + 1 WHERE ino = ?", ino(checked.root / "mid"))
    index_sql(checked, "UPDATE dirs SET bytes = bytes + 1 WHERE ino = ?", ino(checked.root / "deep"))
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert [(found["kind"], found["paths"]) for found in report.findings] == [("index", ["mid"]), ("index", ["deep"])]
    assert all("row of it is damaged" in found["what"] for found in report.findings)


def test_wrong_content_in_a_sound_row_is_found_by_reading_the_file_only(checked: Checked) -> None:
    other = cid_of(RAW, (checked.root / "mid").read_bytes())
    change_row(checked, "files", checked.root / "deep/er/small", cid=other)
    change_row(checked, "dirs", checked.root / "deep/er", racy=1)  # or else the two rows contradict each other
    assert checked.fsck().code == Fsck.CLEAN
    report = checked.fsck("--content")
    assert report.code == Fsck.UNCORRECTED
    [found] = report.findings
    assert (found["kind"], found["paths"], found["cid"]) == ("index", ["deep/er/small"], format_cid(other))


def test_row_whose_content_is_not_in_the_store_is_named(checked: Checked) -> None:
    nowhere = cid_of(RAW, b"nowhere")
    change_row(checked, "files", checked.root / "mid", cid=nowhere)
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    by_path = {found["paths"][0]: found for found in report.findings}
    assert by_path["mid"]["cid"] == format_cid(nowhere)


def test_row_whose_leaves_do_not_make_its_content_is_named(checked: Checked) -> None:
    [(leaves,)] = index_sql(checked, "SELECT leaves FROM files WHERE ino = ?", ino(checked.root / "large"))
    assert isinstance(leaves, bytes)
    change_row(checked, "files", checked.root / "large", leaves=leaves[37:74] + leaves[:37] + leaves[74:])
    [found] = checked.fsck().findings
    assert (found["paths"], "contradicts" in found["what"]) == (["large"], True)


def test_directory_that_counts_as_unchanged_and_remembers_something_else_is_named(checked: Checked) -> None:
    """As after a file's change was remembered and its directory's was not."""
    other = cid_of(RAW, (checked.root / "mid").read_bytes())
    change_row(checked, "files", checked.root / "deep/er/small", cid=other)
    [found] = checked.fsck().findings
    assert (found["kind"], found["paths"]) == ("index", ["deep/er"])


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[: len(data) // 2], lambda data: b"", lambda data: data[:100] + b"\xff" * 900 + data[1000:]],
)
def test_index_that_makes_no_sense_is_named_and_left_as_it_is(
    checked: Checked, damage: Callable[[bytes], bytes]
) -> None:
    index = checked.state / "index.sqlite"
    index.write_bytes(damage(index.read_bytes()))
    before = index.read_bytes()
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert [found["kind"] for found in report.findings] == ["index"]
    assert "index.sqlite" in report.findings[0]["what"]
    assert index.read_bytes() == before
    assert not list(checked.state.glob("*.damaged"))


def test_missing_index_is_named(checked: Checked) -> None:
    (checked.state / "index.sqlite").unlink()
    report = checked.fsck()
    assert (report.code, len(report.findings)) == (Fsck.UNCORRECTED, 1)
    assert "there is no index" in report.findings[0]["what"]


def test_damaged_row_in_the_list_of_snapshots_is_named(checked: Checked) -> None:
    index_sql(checked, "UPDATE snapshots SET files = files + 1")
    report = checked.fsck()
    assert report.code == Fsck.UNCORRECTED
    assert [found["kind"] for found in report.findings] == ["snapshot"]


def test_nobody_can_mount_or_check_while_it_is_checked(checked: Checked) -> None:
    from fused import state

    lock = state.take_lock(str(checked.state))
    try:
        report = checked.fsck()
    finally:
        os.close(lock)
    assert report.code == Fsck.OPERATIONAL
    assert "another ipfsfs process" in report.err


def test_directory_that_is_mounted_a_second_time_elsewhere_in_the_tree_is_no_error(empty: Checked) -> None:
    """It is stored as the empty directory underneath, and has a memo for its own place."""
    if os.geteuid() != 0:
        pytest.skip("only root may make a bind mount")
    for name in ("once", "twice"):
        (empty.root / name).mkdir()
    (empty.root / "once/file").write_text("x")
    subprocess.run(["mount", "--bind", empty.root / "once", empty.root / "twice"], check=True)
    try:
        empty.snapshot()
        report = empty.fsck("--content")
    finally:
        subprocess.run(["umount", empty.root / "twice"], check=True)
    assert (report.code, report.findings) == (Fsck.CLEAN, [])
