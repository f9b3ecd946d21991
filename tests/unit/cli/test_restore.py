"""ipfsfs restore to a directory. Into a mount: tests/kernel/test_restore.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fused.cid import RAW, cid_of, format_cid
from tests.support.compare import assert_same_tree, describe_tree
from tests.support.store_files import change_block, flip_bit
from tests.support.stored import Stored

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def stored(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> Stored:
    return Stored(tmp_path / "store", capfdbinary)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    path = tmp_path / "source"
    path.mkdir()
    return path


@pytest.fixture
def filled(source: Path) -> Path:
    (source / "dir").mkdir()
    (source / "dir" / "file").write_text("in it")
    os.link(source / "dir" / "file", source / "again")
    (source / "text").write_text("text")
    (source / "link").symlink_to("text")
    return source


def test_all_of_it_to_a_new_directory(stored: Stored, filled: Path, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out"
    said = stored.run("restore", stored.snapshot(filled), "--to", out)
    assert (said.code, said.out) == (0, b"")
    assert said.err == f"restored 2 files, 1 directory, 1 symbolic link, 1 hard link (9 B) to {out}\n"
    assert_same_tree(filled, out)


def test_differences_are_listed_and_nothing_is_changed(stored: Stored, filled: Path, tmp_path: Path) -> None:
    cid, out = stored.snapshot(filled), tmp_path / "out"
    out.mkdir()
    (out / "text").write_text("mine")
    (out / "dir").mkdir()
    before = describe_tree(out)
    said = stored.run("restore", cid, "--to", out)
    assert said.code == 1
    assert "ipfsfs: differs: text: has other content\n" in said.err
    assert f"nothing was changed in {out}: 1 path there differs" in said.err
    assert describe_tree(out) == before
    value = stored.run("restore", cid, "--to", out, "--json").json
    assert (value["stopped"], value["conflicts"]) == (True, [{"path": "text", "why": "has other content"}])
    said = stored.run("restore", cid, "--to", out, "--overwrite", "--dry-run")
    assert (said.code, describe_tree(out)) == (0, before)
    assert "would be overwritten: text" in said.err
    assert said.out.decode() == f"would restore 3 files, 1 directory, 1 symbolic link to {out}, writing 9 B\n"
    said = stored.run("restore", cid, "--to", out, "--overwrite", "--json")
    assert said.code == 0
    assert said.json["restored"] == {"file": 2, "link": 1, "hardlink": 1, "bytes": 9}
    assert_same_tree(filled, out)


def test_named_paths_and_subdirectories(stored: Stored, filled: Path, tmp_path: Path) -> None:
    cid = stored.snapshot(filled)
    assert stored.run("restore", cid, "dir/file", "link", "--to", tmp_path / "some").code == 0
    assert describe_tree(tmp_path / "some").keys() == {b"", b"dir", b"dir/file", b"link"}
    assert stored.run("restore", f"{cid}/dir", "--to", tmp_path / "sub").code == 0
    assert_same_tree(filled / "dir", tmp_path / "sub")
    said = stored.run("restore", cid, "gone", "--to", tmp_path / "none")
    assert (said.code, said.err) == (7, "ipfsfs: gone is not in the snapshot\n")
    assert not (tmp_path / "none").exists()
    said = stored.run("restore", f"{cid}/text", "--to", tmp_path / "none")
    assert said.code == 2
    assert f"ipfsfs restore {cid} text" in said.err
    said = stored.run("restore", cid, "/dir", "--to", tmp_path / "none")
    assert (said.code, "absolute path" in said.err) == (2, True)


def test_damaged_block_is_named_and_the_rest_restored(stored: Stored, filled: Path, tmp_path: Path) -> None:
    cid = stored.snapshot(filled)
    bad = cid_of(RAW, b"text")
    change_block(stored.path, bad, flip_bit)
    said = stored.run("restore", cid, "--to", tmp_path / "out")
    assert said.code == 1
    assert "failed: text: " in said.err
    assert format_cid(bad) in said.err
    assert sorted(os.listdir(tmp_path / "out")) == ["again", "dir", "link"]


def test_without_a_mount_a_target_is_asked_for(stored: Stored, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cid = stored.snapshot(filled)
    monkeypatch.chdir(filled)
    said = stored.run("restore", cid)
    assert said.code == 2
    assert "--to" in said.err


def test_target_that_is_a_file_is_said(stored: Stored, filled: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = stored.run("restore", stored.snapshot(filled), "--to", tmp_path / "file")
    assert (said.code, said.err) == (1, f"ipfsfs: {tmp_path / 'file'}: Not a directory\n")
