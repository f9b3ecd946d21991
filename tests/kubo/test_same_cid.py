"""The tree of a snapshot is byte for byte what `ipfs add -r -H` makes under the profile `unixfs-v1-2025`."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from fused.cid import format_cid
from fused.dag.chunker import CHUNK
from tests.support.kubo import KuboRepo
from tests.support.pytree import tree_node
from tests.support.trees import SHARD_ABOVE, make_directory_of_block_size, make_random_tree, make_sparse_file

pytestmark = pytest.mark.kubo

CASES = 200
FIRST_SEED = int(os.environ.get("IPFSFS_TEST_SEED", "0"))  # tests themselves see no IPFSFS_ variable


def ours(path: Path) -> str:
    return format_cid(tree_node(os.fsencode(path))[0])


def special_of(seed: int) -> str:
    return "chunks" if seed % 10 == 1 else "shards" if seed % 10 == 2 else ""


def test_random_trees_have_the_cid_that_kubo_gives(kubo: KuboRepo, tmp_path: Path) -> None:
    """One `ipfs add` for all of them. IPFSFS_TEST_SEED moves the seeds; a failure names those that differ."""
    forest = tmp_path / "forest"
    forest.mkdir()
    seeds = {f"tree-{seed}": seed for seed in range(FIRST_SEED, FIRST_SEED + CASES)}
    for name, seed in seeds.items():
        make_random_tree(os.fsencode(forest / name), random.Random(seed), special=special_of(seed))
    theirs = kubo.add_children(forest)
    assert theirs.keys() == seeds.keys()
    different = [seed for name, seed in seeds.items() if ours(forest / name) != theirs[name]]
    assert not different, f"the trees made from these seeds have another CID than Kubo's: {different}"


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 1])
def test_file_around_a_chunk_border(kubo: KuboRepo, tmp_path: Path, size: int) -> None:
    (tmp_path / "file").write_bytes(random.Random(size).randbytes(size))
    assert ours(tmp_path / "file") == kubo.add(tmp_path / "file")


@pytest.mark.parametrize("size", [1024 * CHUNK, 1024 * CHUNK + 1, 1026 * CHUNK - 1])
def test_file_around_the_most_links_of_a_node(kubo: KuboRepo, tmp_path: Path, size: int) -> None:
    make_sparse_file(os.fsencode(tmp_path / "file"), size)
    assert ours(tmp_path / "file") == kubo.add(tmp_path / "file")


@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_directory_around_the_sharding_threshold(kubo: KuboRepo, tmp_path: Path, beyond: int) -> None:
    directory = tmp_path / "directory"
    make_directory_of_block_size(os.fsencode(directory), SHARD_ABOVE + beyond, random.Random(beyond))
    theirs = kubo.add(directory)
    assert ours(directory) == theirs
    assert (len(kubo.run("block", "get", theirs)) > SHARD_ABOVE - 2) == (beyond <= 0)  # it is the threshold


def test_directory_of_many_files(kubo: KuboRepo, tmp_path: Path) -> None:
    directory = tmp_path / "directory"
    directory.mkdir()
    for number in range(10_000):
        (directory / f"{number}.json").write_text(str(number % 7))
    assert ours(directory) == kubo.add(directory)


def test_names_that_are_not_utf8_are_stored_as_they_are(kubo: KuboRepo, tmp_path: Path) -> None:
    directory = os.fsencode(tmp_path / "directory")
    os.mkdir(directory)
    for name in (b"\xff\xfe", b"a\nb", b"\xc3", "ü".encode(), "u\u0308".encode(), b"x" * 255):
        with open(directory + b"/" + name, "wb") as stream:
            stream.write(name)
    assert ours(tmp_path / "directory") == kubo.add(directory)
