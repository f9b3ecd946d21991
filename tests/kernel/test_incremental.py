"""Of a big file with a small change only what changed is read, hashed and stored. Counted, not timed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mountproc import MountProcess

MIB = 1024 * 1024
SIZE = 1024 * MIB
SMALL = 256 * 1024
"""More than the other new blocks take together: one file node of 1,024 links, a few directories, the snapshot."""


def bytes_read(pid: int) -> int:
    """All bytes that the process has read by system calls, of files and of the FUSE device alike."""
    lines = Path(f"/proc/{pid}/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar:")).split()[1])


@pytest.mark.parametrize("over_the_edge", [False, True], ids=["inside-a-chunk", "over-a-chunk-border"])
def test_four_kib_changed_in_one_gib_store_at_most_two_leaves(
    new_mount: Callable[..., MountProcess], over_the_edge: bool
) -> None:
    mount = new_mount()
    rng = random.Random(9)
    with open(mount.plain / "big", "wb") as big:
        block = bytearray(rng.randbytes(MIB))
        for number in range(SIZE // MIB):
            block[:8] = number.to_bytes(8, "big")
            big.write(block)
    mount.start("--quiet-seconds", "3600", "--interval-seconds", "3600")
    first = mount.sync(timeout=250)
    before = mount.status()
    read_before = bytes_read(before["pid"])
    with open(mount.path / "big", "r+b") as big:
        os.pwrite(big.fileno(), rng.randbytes(4096), 500 * MIB - (2048 if over_the_edge else 9000))
    second = mount.sync()
    assert second != first
    read = bytes_read(before["pid"]) - read_before
    after = mount.status()
    new_bytes = after["store"]["bytes"] - before["store"]["bytes"]
    new_blocks = after["store"]["blocks"] - before["store"]["blocks"]
    leaves, rest = divmod(new_bytes, MIB)
    print(f"new blocks={new_blocks} new bytes={new_bytes} bytes read={read}")
    assert leaves == (2 if over_the_edge else 1)
    assert rest < SMALL
    assert new_blocks - leaves <= 5, "file node, directory, its meta, the snapshot: four, and one to spare"
    assert read <= 8 * MIB
