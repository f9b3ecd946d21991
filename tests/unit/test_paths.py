"""Where state is kept, and when one path lies in another."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused import paths


def test_default_places_follow_the_xdg_variables() -> None:
    environ = {"HOME": "/h", "XDG_STATE_HOME": "/s", "XDG_DATA_HOME": "/d", "XDG_CONFIG_HOME": "/c"}
    assert paths.default_state_dir("/srv/models", environ).startswith("/s/ipfsfs/mounts/models-")
    assert paths.default_store_dir(environ) == "/d/ipfsfs/store"
    assert paths.config_file(environ) == "/c/ipfsfs/config.toml"


@pytest.mark.parametrize("value", ["", "relative/place"])
def test_xdg_variables_that_are_empty_or_relative_are_ignored(value: str) -> None:
    environ = {"HOME": "/h", "XDG_STATE_HOME": value, "XDG_DATA_HOME": value, "XDG_CONFIG_HOME": value}
    assert paths.state_home(environ) == "/h/.local/state/ipfsfs"
    assert paths.default_store_dir(environ) == "/h/.local/share/ipfsfs/store"
    assert paths.config_file(environ) == "/h/.config/ipfsfs/config.toml"


@pytest.mark.parametrize(
    "path",
    ["/", "/data", "/data/my dir", "/d/café", "/" + "x" * 255, os.fsdecode(b"/\xff\xfe"), "/a\nb", "/..data"],
)
def test_mount_id_is_a_safe_file_name_and_stays_the_same(path: str) -> None:
    name = paths.mount_id(path)
    assert name == paths.mount_id(path)
    assert name.isascii()
    assert name.isprintable()
    assert not set(name) & set("/ \\:,")
    assert len(name) < 100


def test_mount_ids_of_directories_with_one_name_differ() -> None:
    assert paths.mount_id("/a/data") != paths.mount_id("/b/data")


def test_lies_in_by_name(tmp_path: Path) -> None:
    top = str(tmp_path)
    assert paths.lies_in(top, top)
    assert paths.lies_in(f"{top}/a/b/not/there", top)
    assert paths.lies_in(f"{top}/a/../b", top)
    assert not paths.lies_in(f"{top}/a/../../b", top)
    assert not paths.lies_in(f"{top}x", top)
    assert not paths.lies_in(top, f"{top}/a")


def test_lies_in_through_symlinks_on_either_side(tmp_path: Path) -> None:
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    assert paths.lies_in(str(tmp_path / "link" / "deep" / "new"), str(tmp_path / "real"))
    assert paths.lies_in(str(tmp_path / "real" / "deep"), str(tmp_path / "link"))
    assert not paths.lies_in(str(tmp_path / "link"), str(tmp_path / "real" / "deep"))
