"""Random damage to the stores of random trees: exactly the damaged blocks are named, with the paths they hit."""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Mapping
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from fused.check.snapshots import StoreCheck
from fused.cid import CID, RAW, cid_of, codec_of, format_cid
from fused.dag.chunker import CHUNK
from fused.dag.node import links_of
from fused.store.base import Pin
from fused.store.blocking import BlockingStore
from fused.store.embedded import EmbeddedStore
from tests.support.snapshot_builder import snapshot_of
from tests.support.store_files import block_file, change_block, cut, empty, flip_bit, lengthen
from tests.support.trees import make_random_tree
from tests.unit.check.damage import statement_on

# An example makes a store on disk, which takes some syncs.
EXAMPLES = settings().max_examples // 4

CHANGES = {"flipped": flip_bit, "cut": cut, "lengthened": lengthen, "emptied": empty}
KINDS = [*CHANGES, "bytes gone", "row gone"]

seeds = st.integers(0, 2**32)
specials = st.sampled_from(["", "", "", "chunks"])
damages = st.lists(st.tuples(st.integers(0, 2**16), st.sampled_from(KINDS)), max_size=6)


def snapshots_of_a_changing_tree(base: Path, seed: int, special: str) -> list[CID]:
    """Two snapshots of a random tree, the second after a change, pinned in the store at `base`."""
    rng = random.Random(seed)
    root = os.fsencode(base / "tree")
    make_random_tree(root, rng, special=special)

    async def store_it() -> list[CID]:
        async with EmbeddedStore(base / "store") as store:
            first = await snapshot_of(store, root, time_ns=1)
            Path(base, "tree", "another name").write_bytes(rng.randbytes(rng.choice((10, 70_000))))
            second = await snapshot_of(store, root, time_ns=2)
            for cid in (first, second):
                await store.pin(Pin("test", cid, ""))
            return [first, second]

    return trio.run(store_it)


def read_all(store: Path) -> dict[CID, bytes]:
    """Every block of a store that is whole."""
    with BlockingStore(store) as opened:
        return {row.cid: opened.rows.get(row.cid) for rows in opened.audit.all_rows() for row in rows}


def do_damage(store: Path, cid: CID, kind: str) -> None:
    """Damage one block behind the store's back."""
    if kind in CHANGES:
        change_block(store, cid, CHANGES[kind])  # type: ignore[arg-type]
        return
    in_file = statement_on(store / "blocks.sqlite3", "SELECT file FROM blocks WHERE cid = ?", cid)[0][0] is not None
    if in_file:
        block_file(store, cid).unlink()
    else:
        number = "SELECT id FROM blocks WHERE cid = ?"
        statement_on(store / "blocks.sqlite3", f"DELETE FROM small WHERE id = ({number})", cid)
    if kind == "row gone":
        statement_on(store / "blocks.sqlite3", "DELETE FROM blocks WHERE cid = ?", cid)


def reached(blocks: Mapping[CID, bytes], roots: list[CID], damaged: Mapping[CID, str]) -> set[CID]:
    """What can be found by following links that can be read: the plainest way to say it."""
    found: set[CID] = set()
    todo = list(roots)
    while todo:
        cid = todo.pop()
        if cid not in found:
            found.add(cid)
            if cid not in damaged:
                todo += links_of(cid, blocks[cid])
    return found


def paths_of_leaves(root: bytes) -> dict[CID, set[bytes]]:
    """For each chunk of content, the files in which it is."""
    found: dict[CID, set[bytes]] = {}
    for directory, _, files in os.walk(root):
        for name in files:
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                with open(path, "rb") as file:
                    content = file.read()
                for at in range(0, max(len(content), 1), CHUNK):
                    leaf = cid_of(RAW, content[at : at + CHUNK])
                    found.setdefault(leaf, set()).add(os.path.relpath(path, root))
    return found


@settings(max_examples=EXAMPLES)
@given(seeds, specials, damages)
def test_exactly_the_damaged_blocks_are_named(seed: int, special: str, damage: list[tuple[int, str]]) -> None:
    with tempfile.TemporaryDirectory() as base:
        store = Path(base, "store")
        roots = snapshots_of_a_changing_tree(Path(base), seed, special)
        blocks = read_all(store)
        cids = sorted(blocks)
        damaged = {cids[number % len(cids)]: kind for number, kind in damage}
        for cid in damaged:
            if not blocks[cid] and damaged[cid] in CHANGES:
                damaged[cid] = "lengthened"  # an empty block has no bit to flip and no byte to lose
        for cid, kind in damaged.items():
            do_damage(store, cid, kind)
        with BlockingStore(store) as opened:
            check = StoreCheck(opened, None, lambda *_: None)
            check.run()
        can_be_found = reached(blocks, roots, damaged)
        expected = {cid for cid, kind in damaged.items() if kind != "row gone" or cid in can_be_found}
        named = [found for found in check.findings if found.kind == "block"]
        assert {format_cid(found.cid) for found in named if found.cid} == {format_cid(cid) for cid in expected}
        assert len(named) == len(expected)
        leaves = paths_of_leaves(os.fsencode(Path(base, "tree")))
        nodes_are_whole = all(codec_of(cid) == RAW for cid in damaged)
        for found in named:
            assert found.cid is not None
            assert bool(found.snapshots) == (found.cid in can_be_found)
            if nodes_are_whole:
                assert set(found.paths) == leaves[found.cid]
