"""ipfsfs diff between stored trees. Against a live tree: tests/kernel/test_restore.py."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

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


def test_lines_letters_and_exit_codes(stored: Stored, source: Path) -> None:
    for name in ("edited", "gone", "moded", "retyped"):
        (source / name).write_text(name)
    before = stored.snapshot(source)
    assert stored.run("diff", before, before) == (0, b"", "")
    (source / "edited").write_text("x")
    (source / "gone").unlink()
    (source / "moded").chmod(0o600)
    (source / "retyped").unlink()
    (source / "retyped").symlink_to("x")
    (source / "new").mkdir()
    (source / "new" / "\nname").touch()
    after = stored.snapshot(source)
    said = stored.run("diff", before, after)
    assert (said.code, said.err) == (1, "")
    assert said.out.decode() == (
        "M  edited\nD  gone\nm  moded  (mode)\nA  new/\nA  new/\nname\nT  retyped  (file -> link)\n"
    )
    assert stored.run("diff", "-q", before, after) == (1, b"", "")
    assert b"moded" not in stored.run("diff", "--no-metadata", before, after).out
    assert stored.run("diff", f"{before}/moded", f"{after}/moded").out == b"m  .  (mode)\n"
    assert stored.run("diff", "--no-metadata", f"{before}/moded", f"{after}/moded").code == 0


def test_json_has_both_sides(stored: Stored, source: Path) -> None:
    (source / "file").write_text("1")
    before = stored.snapshot(source)
    (source / "file").write_text("22")
    os.utime(source / "file", ns=(0, 5))
    said = stored.run("diff", "--json", before, after := stored.snapshot(source))
    assert said.code == 1
    value = said.json
    assert (value["before"], value["after"]) == (before, after)
    [change] = value["changes"]
    assert (change["change"], change["path"], change["attributes"]) == ("modified", "file", ["mtime"])
    assert (change["before"]["size"], change["after"]["size"], change["after"]["mtime_ns"]) == (1, 2, 5)
    assert change["before"]["cid"] != change["after"]["cid"]


def test_without_a_mount_a_second_tree_is_asked_for(
    stored: Stored, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(source)
    said = stored.run("diff", stored.snapshot(source))
    assert said.code == 2
    assert "name a second snapshot to compare with" in said.err
