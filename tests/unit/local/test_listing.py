"""Raw listings of directories."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.local.listing import RawListing


@pytest.mark.parametrize("count", [0, 1, 20_000])
def test_all_names_are_listed_with_their_inode_numbers(tmp_path: Path, count: int) -> None:
    for i in range(count):
        os.mkdir(tmp_path / (f"{i}-" + "x" * (i % 200)))
    if count:
        (tmp_path / os.fsdecode(b"\xff\n")).symlink_to("nowhere")
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with os.scandir(tmp_path) as entries:
            expected = {os.fsencode(entry.name): entry.inode() for entry in entries}
        for _ in range(2):  # from the beginning each time
            listing = RawListing(fd)
            assert dict(listing) == expected
            assert len(list(listing)) == len(expected)
    finally:
        os.close(fd)


def test_a_listing_stays_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "before").touch()
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    listing = RawListing(fd)
    (tmp_path / "before").rename(tmp_path / "after")
    assert [name for name, _ in listing] == [b"before"]
    os.close(fd)


def test_a_directory_that_can_not_be_listed_is_an_error(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    with pytest.raises(OSError, match="Bad file descriptor"):
        RawListing(fd)
    os.close(fd)


def test_a_removed_directory_is_empty(tmp_path: Path) -> None:
    (tmp_path / "gone").mkdir()
    fd = os.open(tmp_path / "gone", os.O_RDONLY | os.O_DIRECTORY)
    (tmp_path / "gone").rmdir()
    assert list(RawListing(fd)) == []
    os.close(fd)
