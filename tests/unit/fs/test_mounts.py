"""Finding mounts in mountinfo."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.fs import mounts

LINE = (
    "36 35 98:0 / /mnt/a\\040b\\134c\\012d rw,noatime shared:1 master:2 - fuse.ipfsfs "
    "ipfsfs:/state/a%20b%25%2C%FF rw,user_id=0\n"
)


def ours(path: str, mount_id: int = 1) -> mounts.MountPoint:
    return mounts.MountPoint(mount_id, 1, path, "fuse.ipfsfs", mounts.source_name(path), frozenset())


def test_a_line_of_mountinfo_is_read_with_its_escapes() -> None:
    mount = mounts._parse(LINE)
    assert mount.path == "/mnt/a b\\c\nd"
    assert mount.device == os.makedev(98, 0)
    assert mount.filesystem == "fuse.ipfsfs"
    assert mount.options == {"rw", "noatime"}
    assert mount.state_dir == "/state/a b%,\udcff"


def test_a_line_without_optional_fields_is_read() -> None:
    mount = mounts._parse("1 2 0:40 / /x rw - tmpfs none rw\n")
    assert (mount.path, mount.filesystem, mount.source, mount.state_dir) == ("/x", "tmpfs", "none", None)


@pytest.mark.parametrize("directory", ["/a b,c\\d", "/\udcff\n", "/ü/%20", "/plain"])
def test_the_state_directory_survives_the_way_through_the_mount_table(directory: str) -> None:
    source = mounts.source_name(directory)
    assert source.isascii()
    assert not set(source) & set(" ,\\\n")
    assert ours(directory).state_dir == directory


def test_of_several_mounts_the_nearest_enclosing_one_is_found() -> None:
    all_mounts = [ours("/data", 1), ours("/data/deep", 2), ours("/data/deeper", 3), ours("/data/deep", 4)]
    nearest = {
        path: getattr(mounts._nearest(all_mounts, path), "mount_id", None)
        for path in ("/data", "/data/x", "/data/deep", "/data/deep/x/y", "/data/deeper", "/database", "/")
    }
    assert nearest == {
        "/data": 1,
        "/data/x": 1,
        "/data/deep": 4,
        "/data/deep/x/y": 4,
        "/data/deeper": 3,
        "/database": None,
        "/": None,
    }


def test_this_systems_mounts_are_read() -> None:
    found = mounts.mounts()
    assert any(mount.path == "/proc" and mount.filesystem == "proc" for mount in found)
    assert mounts.filesystem_type(os.stat("/proc").st_dev) == "proc"
    assert mounts.find_mount("/") is None
    assert "/proc" in {mount.path for mount in mounts.nested_mounts("/")}
    assert mounts.nested_mounts("/proc/self") == []


def test_a_plain_directory_is_neither_stale_nor_held(tmp_path: Path) -> None:
    assert not mounts.is_stale(str(tmp_path))
    assert not mounts.is_stale(str(tmp_path / "missing"))
    assert mounts.holders(str(tmp_path)) == []


def test_the_reason_is_what_fusermount_said_last() -> None:
    said = "fusermount3: option allow_other only allowed if 'user_allow_other' is set in /etc/fuse.conf\n"
    assert mounts.fusermount_reason(said).startswith("option allow_other")
    assert mounts.fusermount_reason("\n") == "no reason was given"
