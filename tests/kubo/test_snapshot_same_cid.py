"""The `tree` of a real mount's snapshot equals what a real Kubo computes with `ipfs add -r` for the same directory.

The trees are written through the mount, half of them before a first sync, so that they are stored by the scan, by a
snapshot, and by a snapshot after changes.
"""

from __future__ import annotations

import json
import os
import random
from typing import TYPE_CHECKING

import pytest

from tests.support.trees import make_random_tree

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.support.kubo import KuboRepo
    from tests.support.mountproc import MountProcess

pytestmark = pytest.mark.kubo

CASES = 200
FIRST_SEED = int(os.environ.get("IPFSFS_TEST_SEED", "0"))


def special_of(seed: int) -> str:
    return "chunks" if seed % 20 == 1 else "shards" if seed % 20 == 2 else ""


def grow(base: Path, seeds: range) -> None:
    for seed in seeds:
        make_random_tree(os.fsencode(base / f"tree-{seed}"), random.Random(seed), special=special_of(seed))


def trees_of(mount: MountProcess, snapshot: str) -> dict[str, str]:
    """The CID of each directory at the root of a snapshot."""
    listed = json.loads(mount.ipfsfs("ls", "--json", *mount.store_flags, snapshot).stdout)
    return {entry["name"]: entry["cid"] for entry in listed}


def test_random_trees_through_the_mount_have_the_cid_that_kubo_gives(
    new_mount: Callable[..., MountProcess], kubo: KuboRepo
) -> None:
    mount = new_mount(time_limit=900)
    grow(mount.path, range(FIRST_SEED, FIRST_SEED + CASES // 4))  # plain files, for the scan
    mount.start()
    grow(mount.path, range(FIRST_SEED + CASES // 4, FIRST_SEED + CASES // 2))
    first = mount.sync(timeout=600)
    grow(mount.path, range(FIRST_SEED + CASES // 2, FIRST_SEED + CASES))
    last = json.loads(mount.ipfsfs("sync", "--json", mount.path, timeout=600).stdout)
    assert last["snapshot"] != first
    ours = trees_of(mount, last["snapshot"])
    mount.stop()
    theirs = kubo.add_children(mount.path)
    different = sorted(name for name in theirs if ours.get(name) != theirs[name])
    assert not different, f"these trees have another CID than Kubo's: {different}"
    assert len(theirs) == CASES
    assert last["tree"] == kubo.add(mount.path)
