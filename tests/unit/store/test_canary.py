"""The block that is sent ahead: each way in which what stands behind a store may fail, as a function that does."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from fused.cid import CID, format_cid
from fused.errors import BlockNotFound, StoreUnavailable
from fused.store.canary import send_canary
from fused.types import Block

CONSTANT = "QmZULkCELmmk5XNfCgTnCyFgAVxBRBXyDHGGMVoLFLiXEN"


class Behind:
    """What keeps blocks as it should; the tests replace a part of it."""

    def __init__(self) -> None:
        self.blocks: dict[CID, bytes] = {}

    def put(self, blocks: Sequence[Block]) -> object:
        self.blocks.update(dict(blocks))
        return [format_cid(block.cid) for block in blocks]

    def get(self, cid: CID) -> bytes:
        if cid not in self.blocks:
            raise BlockNotFound(cid)
        return self.blocks[cid]

    def has(self, cids: Sequence[CID]) -> set[CID]:
        return self.blocks.keys() & set(cids)


def test_what_works_passes_and_has_another_block_each_time() -> None:
    behind = Behind()
    one, two = (send_canary("it", behind.put, behind.get, behind.has) for _ in range(2))
    assert behind.blocks == {one.cid: one.data, two.cid: two.data}


def test_what_says_nothing_of_cids_passes() -> None:
    behind = Behind()

    def put(blocks: Sequence[Block]) -> None:
        behind.put(blocks)

    send_canary("it", put, behind.get, behind.has)


@pytest.mark.parametrize("said", [CONSTANT, [CONSTANT]])
def test_constant_cids_are_found_out(said: object) -> None:
    behind = Behind()
    with pytest.raises(StoreUnavailable, match=f"the node can't be used: it called a test block '{CONSTANT}'"):
        send_canary("the node", lambda _: said, behind.get, behind.has)


def test_a_put_that_does_nothing_is_found_out() -> None:
    behind = Behind()
    with pytest.raises(StoreUnavailable, match=r"took the test block .* but does not have it"):
        send_canary("it", lambda _: None, behind.get, behind.has)


@pytest.mark.parametrize("back", [b"", b'{"success": true}', b"mock content" * 100])
def test_other_bytes_are_found_out_and_shown(back: bytes) -> None:
    behind = Behind()
    with pytest.raises(StoreUnavailable, match=f"came back as {len(back)} bytes, b"):
        send_canary("it", behind.put, lambda _: back, behind.has)


def test_an_answer_that_is_always_yes_is_found_out() -> None:
    behind = Behind()
    with pytest.raises(StoreUnavailable, match="never put anywhere"):
        send_canary("it", behind.put, behind.get, lambda cids: set(cids))


def test_an_answer_that_is_always_no_is_found_out() -> None:
    behind = Behind()
    with pytest.raises(StoreUnavailable, match="right after it gave it back"):
        send_canary("it", behind.put, behind.get, lambda _: set())
