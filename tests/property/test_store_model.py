"""Random operations on the embedded store, from two openings at once, against a model in three dicts."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from fused.cid import CID
from fused.errors import BlockCorrupt, BlockNotFound
from fused.store.base import Pin
from fused.store.blocking import BlockingStore
from tests.support.store_files import age, change_block, check_invariants, flip_bit
from tests.support.toy_blocks import links_of, node, random_blocks

# Few blocks, so that the same ones meet again and again: leaves on both sides of the border between database and files,
# and nodes over some of them.
LEAVES = [*random_blocks(5, 40), *random_blocks(3, 70_000)]
NODES = [node(*(leaf.cid for leaf in LEAVES[start : start + 3])) for start in range(0, 6, 2)]
ROOTS = [node(NODES[0].cid, NODES[1].cid), node(NODES[1].cid, NODES[2].cid, LEAVES[7].cid)]
BLOCKS = {block.cid: block for block in (*LEAVES, *NODES, *ROOTS)}

# An example takes a few tenths of a second, most of it in syncs: fewer than of others.
EXAMPLES = settings().max_examples // 4

batches = st.lists(st.sampled_from(sorted(BLOCKS)), max_size=8)
one_cid = st.sampled_from(sorted(BLOCKS))
owners = st.sampled_from(["a", "b"])
side = st.integers(0, 1)


class EmbeddedStoreMachine(RuleBasedStateMachine):
    """`young`: has the block been put within the grace? `damaged`: changed on disk; `noticed`: and a read found it."""

    @initialize()
    def open(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.path = self.directory / "store"
        self.stores = [BlockingStore(self.path), BlockingStore(self.path)]
        self.young: dict[CID, bool] = {}
        self.damaged: set[CID] = set()
        self.noticed: set[CID] = set()
        self.pins: dict[tuple[str, CID], None] = {}

    def teardown(self) -> None:
        if hasattr(self, "stores"):
            for store in self.stores:
                store.close()
            shutil.rmtree(self.directory)

    def stored(self) -> set[CID]:
        return set(self.young) - self.noticed

    @rule(cids=batches, at=side)
    def put(self, cids: list[CID], at: int) -> None:
        new = set(cids) - self.stored()
        assert self.stores[at].rows.put([BLOCKS[cid] for cid in cids]) == len(new)
        self.young |= dict.fromkeys(cids, True)
        self.damaged -= new
        self.noticed -= new

    @rule(cids=batches, at=side)
    def repair(self, cids: list[CID], at: int) -> None:
        bad = {cid for cid in cids if cid in self.damaged or cid not in self.young}
        assert self.stores[at].rows.repair([BLOCKS[cid] for cid in cids]) == len(bad)
        self.young |= dict.fromkeys(cids, True)
        self.damaged -= bad
        self.noticed -= bad

    @rule(cids=batches, at=side)
    def get(self, cids: list[CID], at: int) -> None:
        for cid in cids:
            if cid not in self.young or cid in self.damaged:
                with pytest.raises(BlockCorrupt if cid in self.young else BlockNotFound) as caught:
                    self.stores[at].rows.get_many(cids)
                assert caught.value.cid == cid
                self.noticed |= {cid} & set(self.young)
                return
        assert self.stores[at].rows.get_many(cids) == {cid: BLOCKS[cid].data for cid in cids}

    @rule(cids=batches, at=side)
    def has(self, cids: list[CID], at: int) -> None:
        assert self.stores[at].rows.has(cids) == set(cids) & self.stored()

    @rule(cids=batches, at=side)
    def refresh(self, cids: list[CID], at: int) -> None:
        present = set(cids) & self.stored()
        assert self.stores[at].rows.refresh(cids) == present
        self.young |= dict.fromkeys(present, True)

    @rule(owner=owners, cid=one_cid, at=side)
    def pin(self, owner: str, cid: CID, at: int) -> None:
        if cid in self.stored():
            self.stores[at].pins.add(Pin(owner, cid, ""))
            self.pins[owner, cid] = None
        else:
            with pytest.raises(BlockNotFound):
                self.stores[at].pins.add(Pin(owner, cid, ""))

    @rule(owner=owners, cid=one_cid, at=side)
    def unpin(self, owner: str, cid: CID, at: int) -> None:
        self.stores[at].pins.remove(owner, cid)
        self.pins.pop((owner, cid), None)

    @rule()
    def time_passes(self) -> None:
        age(self.path, 7200)
        self.young = dict.fromkeys(self.young, False)

    @rule(at=side)
    def gc(self, at: int) -> None:
        leaves = {leaf.cid for leaf in LEAVES}
        reached: set[CID] = set()
        whole = True
        todo = [cid for _, cid in self.pins]
        while todo:
            cid = todo.pop()
            reached.add(cid)
            whole = whole and cid in self.young and (cid in leaves or cid not in self.damaged)
            todo += links_of(cid, BLOCKS[cid].data)
        if whole:
            garbage = {cid for cid, young in self.young.items() if not young and cid not in reached}
            assert self.stores[at].gc(links_of) == len(garbage)
            self.young = {cid: young for cid, young in self.young.items() if cid not in garbage}
            self.damaged -= garbage
            self.noticed -= garbage
        else:
            with pytest.raises((BlockNotFound, BlockCorrupt)) as caught:
                self.stores[at].gc(links_of)
            assert caught.value.cid in reached
            if isinstance(caught.value, BlockCorrupt):
                self.noticed.add(caught.value.cid)
        assert self.stores[at].rows.has(list(BLOCKS)) == self.stored()

    @precondition(lambda self: set(self.young) - self.damaged)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        cid = data.draw(st.sampled_from(sorted(set(self.young) - self.damaged)))
        change_block(self.path, cid, flip_bit)
        self.damaged.add(cid)

    @rule(at=side)
    def reopen(self, at: int) -> None:
        self.stores[at].close()
        self.stores[at] = BlockingStore(self.path)

    @invariant()
    def pins_are_those_of_the_model(self) -> None:
        if hasattr(self, "stores"):
            assert [(pin.owner, pin.cid) for pin in self.stores[0].pins.list(None)] == list(self.pins)

    @invariant()
    def the_files_are_in_order(self) -> None:
        if hasattr(self, "stores") and not self.damaged:
            assert check_invariants(self.path) == len(self.young)


EmbeddedStoreMachine.TestCase.settings = settings(max_examples=EXAMPLES, stateful_step_count=40)
TestEmbeddedStore = EmbeddedStoreMachine.TestCase
