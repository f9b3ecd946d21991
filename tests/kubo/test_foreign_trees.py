"""Trees that Kubo made in other ways than ours are read too: old CIDs, other layouts, fan-outs, inline blocks."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from fused.cid import CID, format_cid, parse_cid, verify
from fused.dag import walk
from fused.dag.meta import Attrs, MetaEntry, Snapshot, encode_meta_dir, encode_snapshot
from tests.support.blocks import Blocks
from tests.support.kubo import KuboRepo
from tests.support.pytree import tree_node

pytestmark = pytest.mark.kubo

LAYOUTS = {
    "version 0": ("--cid-version=0", "--raw-leaves=false"),
    "version 0 with raw leaves": ("--cid-version=0", "--raw-leaves=true", "--chunker=size-1000"),
    "no raw leaves": ("--raw-leaves=false", "--chunker=size-500", "--max-file-links=3"),
    "two links a node": ("--chunker=size-1000", "--max-file-links=2"),
    "trickle": ("--trickle", "--chunker=size-300", "--max-file-links=5"),
    "trickle without raw leaves": ("--trickle", "--raw-leaves=false", "--chunker=size-300", "--max-file-links=5"),
    "rabin": ("--chunker=rabin-512-1024-2048",),
    "buzhash": ("--chunker=buzhash",),
    "inline": ("--inline", "--inline-limit=120", "--chunker=size-100"),
    "sha2-512": ("--hash=sha2-512",),
    "blake2b": ("--hash=blake2b-256",),
    "sharded by count": ("--max-directory-links=5", "--max-hamt-fanout=8"),
    "wide shards": ("--max-directory-links=5", "--max-hamt-fanout=1024"),
    "mode and mtime": ("--preserve-mode", "--preserve-mtime", "--raw-leaves=false"),
}


def make_tree(path: Path) -> dict[bytes, bytes]:
    """A small tree, and its files' contents by path."""
    rng = random.Random(7)
    contents = {b"empty": b"", b"tiny": b"tiny", b"file": rng.randbytes(30_000), b"same": bytes(20_000)}
    contents |= {b"dir/%d" % number: b"%d" % number for number in range(60)}
    (path / "dir").mkdir(parents=True)
    for name, content in contents.items():
        (path / os.fsdecode(name)).write_bytes(content)
    os.symlink("../gone", path / "link")
    return contents


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
async def test_tree_of_another_layout_is_read(kubo: KuboRepo, tmp_path: Path, options: tuple[str, ...]) -> None:
    contents = make_tree(tmp_path / "tree")
    root = kubo.add(tmp_path / "tree", *options)
    store = Blocks(kubo.blocks(root).items())
    for cid, data in store.data.items():
        verify(cid, data)
    seen = {entry.name async for entry in walk.list_directory(store.get, parse_cid(root))}
    assert seen == {b"empty", b"tiny", b"file", b"same", b"dir", b"link"}
    link = await walk.resolve(store.get, parse_cid(root), b"link")
    assert await walk.read_link(store.get, link) == b"../gone"
    for path, content in contents.items():
        cid = await walk.resolve(store.get, parse_cid(root), path)
        assert await walk.stat_node(store.get, cid) == ("file", len(content))
        assert await walk.read_range(store.get, cid, 0, 1 << 20) == content
        assert await walk.read_range(store.get, cid, 990, 1020, get_many=store.get_many) == content[990:2010]
        if b"/" not in path:
            leaves = [leaf async for leaf in walk.leaves(store.get, cid)]
            assert sum(leaf.size for leaf in leaves) == len(content)


@pytest.mark.parametrize("options", LAYOUTS.values(), ids=LAYOUTS)
def test_links_reach_every_block(kubo: KuboRepo, tmp_path: Path, options: tuple[str, ...]) -> None:
    make_tree(tmp_path / "tree")
    root = kubo.add(tmp_path / "tree", *options)
    blocks = {cid: data for cid, data in kubo.blocks(root).items() if cid[2] != 0}  # inline ones need no keeping
    reached: set[CID] = set()
    pending = [parse_cid(root)]
    while pending:
        cid = pending.pop()
        if cid not in reached:
            reached.add(cid)
            pending += walk.links_of(cid, blocks[cid])
    assert reached == blocks.keys()


def test_snapshot_and_metadata_are_plain_dag_cbor_to_kubo(kubo: KuboRepo, tmp_path: Path) -> None:
    make_tree(tmp_path / "tree")
    tree, _ = tree_node(os.fsencode(tmp_path / "tree"))
    assert format_cid(tree) == kubo.add(tmp_path / "tree")
    file = Attrs("file", 0o644, 1000, 1000, 1_700_000_000_000_000_007, size=3, xattrs=((b"user.x", b"\xff"),))
    meta, blocks = encode_meta_dir(Attrs("dir", 0o755, 0, 0, 0), [MetaEntry(b"file", file, None)])
    snapshot = encode_snapshot(Snapshot(tree, meta, 5, "host", "0.1.0"))
    for block in (*blocks, snapshot):
        assert kubo.put(block, "dag-cbor") == format_cid(block.cid)
    shown = json.loads(kubo.run("dag", "get", format_cid(snapshot.cid)))
    assert shown["tree"] == {"/": format_cid(tree)}
    assert (shown["host"], shown["time"], shown["ipfsfs"]) == ("host", 5, "0.1.0")
    entry = json.loads(kubo.run("dag", "get", format_cid(snapshot.cid) + "/meta/entries/0"))
    assert (entry["name"], entry["mode"], entry["mtime"]) == ("file", 0o644, [1_700_000_000, 7])
    listed = kubo.run("ls", "--size=false", f"/ipfs/{format_cid(snapshot.cid)}/tree").decode()
    assert [line.split()[-1] for line in listed.splitlines()] == ["dir/", "empty", "file", "link", "same", "tiny"]
