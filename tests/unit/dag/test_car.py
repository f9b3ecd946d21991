"""CARv1 streams, read back by the plainest reader."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from fused.cid import CID, cid_from_bytes
from fused.dag import car
from fused.dag.dagcbor import decode
from fused.dag.dagpb import read_varint
from fused.types import Block
from tests.support.toy_blocks import node, raw


def read(stream: bytes) -> tuple[object, list[Block]]:
    length, at = read_varint(stream, 0)
    header = decode(raw(b"").cid, stream[at : at + length])
    at += length
    blocks = []
    while at < len(stream):
        length, at = read_varint(stream, at)
        section, at = stream[at : at + length], at + length
        blocks.append(Block(cid_from_bytes(section[:36]), section[36:]))
    return header, blocks


@given(st.lists(st.binary(max_size=300), min_size=1, max_size=10))
def test_blocks_come_out_as_they_went_in(contents: list[bytes]) -> None:
    blocks = [*map(raw, contents), node(*(raw(content).cid for content in contents))]
    roots = [blocks[-1].cid]
    sections = [car.section_head(block) + block.data for block in blocks]
    assert list(map(len, sections)) == list(map(car.section_size, blocks))
    assert read(car.header(roots) + b"".join(sections)) == ({"version": 1, "roots": list(map(bytes, roots))}, blocks)


def test_a_section_may_have_a_long_cid() -> None:
    cid = CID(bytes((1, 0x55, 0x13, 64)) + bytes(64))
    assert car.section_head(Block(cid, bytes(200))) == bytes((0x8C, 0x02)) + cid
