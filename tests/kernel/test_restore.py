"""Old versions, back through the mount: restore, diff against the live tree, ls and cat of the newest snapshot."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
from typing import TYPE_CHECKING, Any

import pytest

from tests.support.compare import assert_same_tree, describe_tree

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.mountproc import MountProcess


def on_mount(
    mount: MountProcess, command: str, *args: str | Path, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """A command about this mount, from outside it."""
    return mount.ipfsfs(command, "--mount", mount.path, *args, check=check, timeout=240)


def changes(mount: MountProcess, *trees: str) -> list[tuple[str, str]]:
    value: dict[str, Any] = json.loads(on_mount(mount, "diff", "--json", *trees, check=False).stdout)
    return [(change["change"], change["path"]) for change in value["changes"]]


def fill(path: Path) -> None:
    """Something of every kind, written through the mount."""
    (path / "dir" / "deep").mkdir(parents=True)
    (path / "text").write_text("first version\n")
    (path / "text").chmod(0o640)
    (path / "large").write_bytes(random.Random(1).randbytes((3 << 20) + 5))
    (path / "dir" / "deep" / "file").write_text("deep")
    os.link(path / "text", path / "dir" / "same as text")
    (path / "link").symlink_to("dir/deep")
    os.mkfifo(path / "fifo", 0o600)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(path / "sock"))
    for name in (b"\xff\xfe not utf-8", b"new\nline", b"n" * 255):
        with open(os.fsencode(path) + b"/" + name, "wb") as file:
            file.write(name)
    os.setxattr(path / "text", "user.k", b"v")
    (path / "dir" / "deep").chmod(0o2555)
    os.utime(path / "text", ns=(0, 1_234_567_890))
    os.utime(path / "dir", ns=(0, 987_654_321_012_345_678))


@pytest.fixture
def filled(mounted: MountProcess) -> tuple[MountProcess, str]:
    """A mount with content, and its snapshot."""
    fill(mounted.path)
    return mounted, mounted.sync()


def test_snapshot_comes_back_complete_elsewhere(filled: tuple[MountProcess, str], tmp_path: Path) -> None:
    mount, snapshot = filled
    on_mount(mount, "restore", snapshot, "--to", tmp_path / "out")
    assert_same_tree(mount.path, tmp_path / "out")
    assert on_mount(mount, "diff", snapshot).stdout == ""


def test_everything_lost_comes_back_through_the_mount(filled: tuple[MountProcess, str]) -> None:
    mount, snapshot = filled
    before = describe_tree(mount.path)
    for entry in list(mount.path.iterdir()):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    said = on_mount(mount, "restore", snapshot)
    assert said.stdout == ""
    assert describe_tree(mount.path) == before
    assert describe_tree(mount.plain) == before
    assert on_mount(mount, "diff", snapshot).stdout == ""


def test_one_deleted_file_comes_back_and_nothing_else_is_touched(filled: tuple[MountProcess, str]) -> None:
    mount, snapshot = filled
    (mount.path / "large").unlink()
    (mount.path / "text").write_text("second version\n")
    assert changes(mount, snapshot) == [("modified", "dir/same as text"), ("removed", "large"), ("modified", "text")]
    on_mount(mount, "restore", snapshot, mount.path / "large")
    assert (mount.path / "large").read_bytes() == random.Random(1).randbytes((3 << 20) + 5)
    assert (mount.path / "text").read_text() == "second version\n"
    assert changes(mount, snapshot) == [("modified", "dir/same as text"), ("modified", "text")]


def test_live_changes_are_named_and_kept_until_overwriting_is_asked_for(filled: tuple[MountProcess, str]) -> None:
    mount, snapshot = filled
    (mount.path / "text").write_text("second version\n")
    (mount.path / "link").unlink()
    (mount.path / "link").symlink_to("elsewhere")
    said = on_mount(mount, "restore", snapshot, "text", "link", check=False)
    assert said.returncode == 1
    assert "differs: text: has other content" in said.stderr
    assert "differs: link: points elsewhere" in said.stderr
    assert (mount.path / "text").read_text() == "second version\n"
    with open(mount.path / "text") as reader:
        on_mount(mount, "restore", "--overwrite", snapshot)
        assert reader.read() == "second version\n"
    assert (mount.path / "text").read_text() == "first version\n"
    assert os.readlink(mount.path / "link") == "dir/deep"
    assert (mount.path / "text").samefile(mount.path / "dir" / "same as text")
    assert on_mount(mount, "diff", snapshot).stdout == ""


def test_diff_against_the_live_tree_sees_what_is_not_written_out_yet(mounted: MountProcess) -> None:
    (mounted.path / "log").write_text("one\n")
    snapshot = mounted.sync()
    with open(mounted.path / "log", "a", buffering=1) as log:
        log.write("two\n")
        assert changes(mounted, snapshot) == [("modified", "log")]
        log.write("three\n")
        assert changes(mounted, snapshot) == [("modified", "log")]
        assert on_mount(mounted, "cat", "latest/log").stdout == "one\ntwo\nthree\n"


def test_latest_names_the_newest_snapshot(filled: tuple[MountProcess, str]) -> None:
    mount, snapshot = filled
    assert on_mount(mount, "ls", "latest").stdout == on_mount(mount, "ls", snapshot).stdout
    (mount.path / "text").write_text("second version\n")
    mount.sync()
    assert on_mount(mount, "cat", "latest/text").stdout == "second version\n"
    assert on_mount(mount, "cat", f"{snapshot}/text").stdout == "first version\n"


def test_old_versions_are_reachable_while_nothing_is_mounted(filled: tuple[MountProcess, str], tmp_path: Path) -> None:
    mount, snapshot = filled
    expected = describe_tree(mount.path)
    mount.stop()
    mount.restore(snapshot, tmp_path / "out")
    assert describe_tree(tmp_path / "out") == expected


def test_snapshot_of_one_mount_comes_back_in_another(new_mount: Callable[..., MountProcess], tmp_path: Path) -> None:
    first, second = new_mount("first").start(), new_mount("second")
    second.store = first.store
    second.start()
    fill(first.path)
    snapshot = first.sync()
    on_mount(second, "restore", snapshot)
    assert_same_tree(first.path, second.path)
    assert on_mount(second, "diff", snapshot).stdout == ""
