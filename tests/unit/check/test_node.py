"""A store that is reached as one behind a node is: by way of a trio loop, and without knowing what else is in it.

The blocks themselves are in an embedded store, so that they can be damaged one by one. `tests/faults/test_node_fsck.py`
has the same with real nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from fused.check.course import Course
from fused.check.stores import checked_node
from fused.cid import CID, RAW, cid_of
from fused.errors import BlockCorrupt, BlockNotFound, StoreError, StoreUnavailable
from fused.store.base import Block, NodeStatus
from fused.store.embedded import EmbeddedStore
from tests.support.checked import Checked
from tests.unit.check.damage import leaf_of, store_sql


class Reached(EmbeddedStore):
    """With the verbs that a store behind a node has besides."""

    async def inspect(self, cids: Sequence[CID]) -> Mapping[CID, bytes | StoreError]:
        found: dict[CID, bytes | StoreError] = {}
        for cid in cids:
            try:
                found[cid] = await self.get(cid)
            except (BlockNotFound, BlockCorrupt) as exc:
                found[cid] = exc
        return found

    async def node(self) -> NodeStatus:
        return NodeStatus("here", None)

    async def show(self, name: str, tree: CID) -> None:
        del name, tree


def course(store: Path, *, repair: bool = False) -> Course:
    """A check of a store alone."""
    with checked_node(lambda: Reached(store)) as node:
        done = Course(node, None, lambda *_: None, content=False, repair=repair)
        done.run()
        return done


def test_what_the_snapshots_need_is_verified_and_nothing_else(checked: Checked) -> None:
    whole = course(checked.store)
    assert whole.findings == []
    assert whole.checked is not None
    assert whole.checked.snapshots == 1
    with checked_node(lambda: Reached(checked.store)) as node:
        node.rows.repair([Block(cid_of(RAW, b"somebody else's"), b"somebody else's")])
    again = course(checked.store).checked
    assert again is not None
    assert (again.blocks, again.bytes) == (whole.checked.blocks, whole.checked.bytes)


def test_a_missing_block_is_named_with_snapshot_and_path(checked: Checked) -> None:
    lost = leaf_of(checked.root / "large", 1)
    store_sql(checked, "DELETE FROM blocks WHERE cid = ?", lost)
    [found] = course(checked.store).findings
    assert (found.kind, found.cid, found.paths) == ("block", lost, [b"large"])
    assert len(found.snapshots) == 1
    assert not found.mended


def test_bookkeeping_is_nobodys_business(checked: Checked) -> None:
    store_sql(checked, "UPDATE state SET blocks = blocks + 1")
    assert course(checked.store, repair=True).findings == []


def test_a_store_that_can_not_be_opened_is_an_error_and_no_thread_stays(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable), checked_node(lambda: Reached(tmp_path / "file")):
        pass


def test_an_interrupt_ends_the_loop_too(checked: Checked) -> None:
    with pytest.raises(KeyboardInterrupt), checked_node(lambda: Reached(checked.store)):
        raise KeyboardInterrupt
