"""A file with several names, of which the kernel knows one: a snapshot has its attributes at all of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess


@pytest.mark.parametrize("change", ["utime", "chmod", "xattr"])
def test_attributes_changed_at_one_name_are_stored_at_the_others(
    mounted: MountProcess, tmp_path: Path, change: str
) -> None:
    for name in ("one", "two/below"):
        (mounted.path / name).mkdir(parents=True)
    first, second = mounted.path / "one" / "file", mounted.path / "two" / "below" / "file"
    first.write_text("content")
    os.link(first, second)
    mounted.sync()
    mounted.restart()
    mounted.sync()
    if change == "utime":
        os.utime(first, ns=(10**18, 10**18))
    elif change == "chmod":
        first.chmod(0o600)
    else:
        os.setxattr(first, "user.colour", b"blue")
    first.unlink()  # restored by this name, the other one would be a link to it
    restored = mounted.restore(mounted.sync(), tmp_path / "restored")
    assert_same_tree(mounted.plain, restored)
