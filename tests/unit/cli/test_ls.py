"""ipfsfs ls."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from fused.cli.main import main
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
    (source / "dir").mkdir(mode=0o750)
    (source / "dir" / "file").write_text("in it")
    (source / "run").write_text("#!/bin/sh")
    (source / "run").chmod(0o4755)
    (source / "link").symlink_to("dir/file")
    os.mkfifo(source / "fifo", 0o600)
    os.setxattr(source / "run", "user.k", b"v")
    os.utime(source / "run", ns=(0, 86_400_000_000_123))
    with open(os.fsencode(source) + b"/\xff\n\x1b", "wb"):
        pass
    return source


def test_snapshot_is_listed_like_ls_does(stored: Stored, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "UTC")
    said = stored.run("ls", stored.snapshot(filled))
    assert (said.code, said.err) == (0, "")
    lines = said.out.split(b"\n")
    assert [line.split()[0] for line in lines if line and line[0] not in b"\x1b"] == [
        b"drwxr-x---",
        b"prw-------",
        b"lrwxrwxrwx",
        b"-rwsr-xr-x",
        b"-rw-r--r--",
    ]
    assert lines[2].endswith(b"link -> dir/file")
    assert b" 9  1970-01-02 00:00:00  run" in lines[3]


def test_json_has_everything_that_is_known(stored: Stored, filled: Path) -> None:
    cid = stored.snapshot(filled)
    objects = {entry["name"]: entry for entry in stored.run("ls", "--json", cid).json}
    assert list(objects) == ["dir", "fifo", "link", "run", "\udcff\n\x1b"]
    run = objects["run"]
    assert (run["kind"], run["size"], run["mode"], run["uid"]) == ("file", 9, "4755", os.geteuid())
    assert (run["mtime"], run["mtime_ns"]) == ("1970-01-02T00:00:00.000000123Z", 86_400_000_000_123)
    assert run["xattrs"] == {"user.k": "dg=="}
    assert objects["link"]["target"] == "dir/file"
    assert (objects["fifo"]["kind"], objects["fifo"]["cid"]) == ("fifo", None)
    # what has a CID can be listed and printed by it
    assert stored.run("cat", run["cid"]).out == b"#!/bin/sh"
    assert [entry["name"] for entry in stored.run("ls", "--json", objects["dir"]["cid"]).json] == ["file"]


def test_plain_tree_has_no_attributes(stored: Stored, filled: Path) -> None:
    cid = stored.tree(filled)
    objects = {entry["name"]: entry for entry in stored.run("ls", "--json", cid).json}
    assert {name: (entry["kind"], entry["size"]) for name, entry in objects.items()} == {
        "dir": ("dir", 0),
        "link": ("link", 8),
        "run": ("file", 9),
        "\udcff\n\x1b": ("file", 0),
    }
    assert objects["run"]["mode"] is None
    assert stored.run("ls", f"{cid}/dir").out.split() == [b"-?????????", b"-", b"-", b"5", b"-", b"file"]


def test_recursive_null_and_single_entries(stored: Stored, filled: Path) -> None:
    cid = stored.snapshot(filled)
    said = stored.run("ls", "-R0", cid)
    assert said.out == b"dir\0dir/file\0fifo\0link\0run\0\xff\n\x1b\0"
    assert [entry["path"] for entry in stored.run("ls", "-R", "--json", cid).json][1] == "dir/file"
    assert stored.run("ls", "-0", f"{cid}/dir/file").out == b"file\0"
    assert stored.run("ls", "-d0", f"{cid}/dir").out == b"dir\0"
    assert stored.run("ls", f"{cid}/dir", f"{cid}/run").out.startswith(f"{cid}/dir:\n".encode())
    assert stored.run("ls", "-c", f"{cid}/dir").out.count(b"bafkrei") == 1
    said = stored.run("ls", f"{cid}/gone")
    assert (said.code, said.err) == (7, "ipfsfs: gone is not in the tree\n")


def test_names_do_not_reach_a_terminal_raw(stored: Stored, filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert b"\\n\\x1b" in stored.run("ls", stored.snapshot(filled)).out


def test_latest_needs_a_mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["ls", "latest"]) == 3
