"""Names, kinds and paths in snapshots and in plain trees."""

from __future__ import annotations

import os
import random
import socket
from typing import TYPE_CHECKING

import pytest

from fused.cid import DAG_CBOR, cid_of
from fused.dag import dagcbor
from fused.errors import DagError, PathNotInDag
from fused.store.base import Block
from fused.view.directory import children, children_looked_up, find, follow, names_of, open_root, shown, walk
from tests.support.compare import walk as walk_disk
from tests.support.snapshot_builder import file_of, snapshot_of, tree_of
from tests.support.trees import make_random_tree

if TYPE_CHECKING:
    from pathlib import Path

    from tests.unit.view.conftest import CountingStore


@pytest.mark.parametrize("seed", range(10))
async def test_walk_gives_every_path_in_order(tmp_path: Path, store: CountingStore, seed: int) -> None:
    path = os.fsencode(tmp_path / "random")
    make_random_tree(path, random.Random(seed), special="shards" if seed == 0 else "")
    on_disk = sorted((tuple(p.split(b"/")), st.st_size) for p, st in walk_disk(path) if p)
    for cid in (await snapshot_of(store, path), await tree_of(store, path)):
        root = await open_root(store, cid)
        found = [(names, node) async for names, node in walk(store, root.node)]
        assert [names for names, _ in found] == [names for names, _ in on_disk]
        for (_, node), (_, size) in zip(found, on_disk, strict=True):
            assert node.size == (0 if node.kind == "dir" else size)


async def test_snapshot_has_attributes_and_special_files(source: Path, store: CountingStore) -> None:
    (source / "file").write_text("text")
    (source / "file").chmod(0o640)
    os.mkfifo(source / "fifo")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(source / "sock"))
    root = await open_root(store, await snapshot_of(store, str(source)))
    assert root.snapshot is not None
    assert root.node.attrs is not None
    assert root.node.attrs.mtime_ns == source.stat().st_mtime_ns
    entries = dict(await children(store, root.node))
    assert {name: node.kind for name, node in entries.items()} == {b"fifo": "fifo", b"file": "file", b"sock": "sock"}
    assert entries[b"fifo"].cid is None
    assert entries[b"file"].attrs is not None
    assert entries[b"file"].attrs.mode == 0o640
    with pytest.raises(PathNotInDag, match="fifo is not a directory"):
        await find(store, root.node, (b"fifo", b"x"))


async def test_plain_tree_has_kinds_only_when_looked_up(source: Path, store: CountingStore) -> None:
    (source / "dir").mkdir()
    (source / "large").write_bytes(bytes(range(256)) * 8192)
    (source / "link").symlink_to("large")
    (source / "small").write_text("text")
    root = await open_root(store, await tree_of(store, str(source)))
    assert root.snapshot is None
    unknown = {name: node.kind for name, node in await children(store, root.node)}
    assert unknown == {b"dir": None, b"large": None, b"link": None, b"small": "file"}
    known = {name: (node.kind, node.size) for name, node in await children_looked_up(store, root.node)}
    assert known == {b"dir": ("dir", 0), b"large": ("file", 2 << 20), b"link": ("link", 5), b"small": ("file", 4)}


async def test_find_reads_only_the_shards_on_the_way(source: Path, store: CountingStore) -> None:
    for number in range(6000):
        (source / f"a rather long name for an entry {number:06}").touch()
    root = await open_root(store, await tree_of(store, str(source)))
    store.asked.clear()
    node = await find(store, root.node, (b"a rather long name for an entry 004711",))
    assert node.kind == "file"
    assert len(store.asked) <= 5


async def test_open_root_of_a_file_is_that_file(store: CountingStore) -> None:
    cid, _ = await file_of(store, b"content")
    root = await open_root(store, cid)
    assert (root.node.kind, root.node.size) == ("file", 7)


async def test_cbor_that_is_no_snapshot_is_refused(store: CountingStore) -> None:
    data = dagcbor.encode({"tree": 1})
    block = Block(cid_of(DAG_CBOR, data), data)
    await store.put([block])
    with pytest.raises(DagError, match="not a snapshot"):
        await open_root(store, block.cid)


async def test_follow_goes_through_links_inside_the_tree(source: Path, store: CountingStore) -> None:
    (source / "blobs").mkdir()
    (source / "blobs" / "abc").write_text("weights")
    (source / "snapshots" / "main").mkdir(parents=True)
    (source / "snapshots" / "main" / "model").symlink_to("../../blobs/abc")
    (source / "current").symlink_to("snapshots/main")
    (source / "round").symlink_to("./round")
    (source / "out").symlink_to("../etc/passwd")
    (source / "absolute").symlink_to("/etc/passwd")
    root = (await open_root(store, await snapshot_of(store, str(source)))).node
    node = await follow(store, root, (b"current", b"model"))
    assert (node.kind, node.size) == ("file", 7)
    for name, message in {b"round": "too many", b"out": "out of the tree", b"absolute": "outside the tree"}.items():
        with pytest.raises(PathNotInDag, match=message):
            await follow(store, root, (name,))
    with pytest.raises(PathNotInDag, match="snapshots/main/gone"):
        await follow(store, root, (b"current", b"gone"))


def test_paths_as_people_write_them() -> None:
    assert names_of(b"/a//b/") == (b"a", b"b")
    assert names_of(b"") == ()
    with pytest.raises(PathNotInDag):
        names_of(b"a/../b")


def test_shown_paths_stay_on_one_line() -> None:
    assert shown((b"a\nb", b"\xff\x1b[31m", "é".encode())) == "a\\nb/\\xff\\x1b[31m/é"
    assert shown(()) == "."
