"""What is fuzzed: one function for each decoder of bytes that others may have made.

Each takes any bytes and raises nothing, unless the decoder does something that its docstring does not say: an exception
of another class, an error without the block's CID, a value that does not survive a round trip. Time and memory are the
fuzzer's to watch. `fuzz.py` runs them with atheris, and `tests/property/test_fuzz_targets.py` in every `make test`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from itertools import islice

from fused import cid as cids
from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, cid_of, format_cid, parse_cid
from fused.config import parse_config, parse_settings
from fused.control import parse_answer
from fused.control_server import parse_request
from fused.dag import dagcbor, walk
from fused.dag.attrs import XattrsApart, encode_bytes
from fused.dag.build import DirEntry, directory, file_root, symlink_node
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import decode_node, encode_link, encode_node
from fused.dag.meta import Attrs, MetaEntry, Snapshot, decode_snapshot, encode_meta_dir, encode_snapshot, read_meta_dir
from fused.dag.node import decode
from fused.dag.unixfs import DIRECTORY_DATA, decode_unixfs, file_data, shard_data, symlink_data
from fused.errors import BlockCorrupt, BlockNotFound, DagError, IpfsfsError, PathNotInDag, UsageError
from fused.state import parse_supervision
from fused.types import Block

STEPS = 300
"""Entries or leaves taken from one listing: a few hostile blocks may stand for 2**60 of them, which is no mistake."""

LEAF = Block(cid_of(RAW, b"leaf"), b"leaf")
_PLACEHOLDER = 0xFE
"""In the blocks of the target `dag`, this byte and a number stand for the CID of an earlier block."""


def _refused(cid: CID, read: Callable[[], object]) -> None:
    """Call a decoder of one block: it may refuse, naming the block."""
    refusal: DagError | None = None
    try:
        read()
    except DagError as error:
        refusal = error
    if refusal is not None:
        assert refusal.cid == cid, f"{refusal} does not name its block"
        assert format_cid(cid) in str(refusal)


def _finish(step: Awaitable[object]) -> None:
    """Run what never waits, as nothing does over blocks in memory."""
    try:
        step.__await__().send(None)  # type: ignore[attr-defined]  # a coroutine's iterator is a generator
    except StopIteration:
        return
    raise AssertionError("it waited")


def dag_pb(data: bytes) -> None:
    """A dag-pb block, and what a file tree makes of it."""
    cid = cid_of(DAG_PB, data)
    _refused(cid, lambda: decode_node(cid, data))
    _refused(cid, lambda: decode(cid, data))
    with suppress(DagError):
        walk.links_of(cid, data)
    with suppress(DagError):
        node = decode_node(cid, data)
        again = encode_node([encode_link(link.cid, link.name, link.tsize) for link in node.links], node.data or b"")
        assert decode_node(cid_of(DAG_PB, again), again).links == node.links


def unixfs(data: bytes) -> None:
    """The data field of a node."""
    block = encode_node([], data)
    cid = cid_of(DAG_PB, block)
    _refused(cid, lambda: decode_unixfs(cid, data))
    _refused(cid, lambda: decode(cid, block))


def hamt(data: bytes) -> None:
    """A shard: the first byte is its fan-out as a power of two, then the bit field, then a name in each slot."""
    if len(data) < 3:
        return
    fanout, width = 1 << data[0] % 12, data[1] % 40
    bits = int.from_bytes(data[2 : 2 + width], "big")
    digits = len(f"{fanout - 1:X}")
    names = iter(data[2 + width :].split(b"\0"))
    taken = (slot for slot in range(bits.bit_length()) if bits >> slot & 1)
    links = [encode_link(LEAF.cid, b"%0*X" % (digits, slot) + next(names, b""), 4) for slot in islice(taken, 64)]
    block = encode_node(links, shard_data(bits, fanout))
    cid = cid_of(DAG_PB, block)
    _refused(cid, lambda: decode(cid, block))
    _read_tree({cid: block, LEAF.cid: LEAF.data}, cid)


def dag(data: bytes) -> None:
    """A DAG: blocks, each with a length before it; in one, 0xFE and a number stand for the CID of an earlier block."""
    store: dict[CID, bytes] = dict([LEAF])
    order, at = [LEAF.cid], 0
    while at + 3 <= len(data) and len(order) < 40:
        codec = (DAG_PB, DAG_PB, DAG_CBOR, RAW)[data[at] & 3]
        length = int.from_bytes(data[at + 1 : at + 3], "big") % 2048
        raw, at = data[at + 3 : at + 3 + length], at + 3 + length
        out = bytearray()
        pieces = iter(raw)
        for byte in pieces:
            number = next(pieces, None) if byte == _PLACEHOLDER else None
            out += bytes((byte,)) if number is None else order[number % len(order)]
        cid = cid_of(codec, bytes(out))
        store[cid] = bytes(out)
        order.append(cid)
    _read_tree(store, order[-1])


def dag_cbor(data: bytes) -> None:
    """A DAG-CBOR block: any object, a snapshot, a directory's metadata."""
    cid = cid_of(DAG_CBOR, data)
    _refused(cid, lambda: decode_snapshot(cid, data))
    _refused(cid, lambda: dagcbor.decode(cid, data))
    with suppress(DagError):
        assert dagcbor.encode(dagcbor.decode(cid, data)) == data
    with suppress(DagError):
        walk.links_of(cid, data)
    _read_tree({cid: data, LEAF.cid: LEAF.data}, cid)


def xattrs(data: bytes) -> None:
    """A list of extended attributes that is kept apart."""
    root = cid_of(RAW, data)
    attrs = {"kind": "dir", "mode": 0, "uid": 0, "gid": 0, "mtime": [0, 0], "xattrs": root}
    block = dagcbor.encode({"attrs": attrs, "entries": []})
    cid = cid_of(DAG_CBOR, block)
    _read_tree({cid: block, root: data}, cid)

    async def get(_: CID) -> bytes:
        return data

    async def read() -> None:
        refusal: DagError | None = None
        try:
            pairs = await XattrsApart(get).read(root)
            again = [[encode_bytes(name), encode_bytes(content)] for name, content in pairs]
            assert dagcbor.encode(again) == data
        except DagError as error:
            refusal = error
        assert refusal is None or refusal.cid == root

    _finish(read())


def cid_bytes(data: bytes) -> None:
    """A binary CID, and a block checked against it."""
    try:
        cid = cids.cid_from_bytes(data)
    except DagError:
        return
    assert cids.cid_from_bytes(cid) == cid
    assert parse_cid(format_cid(cid)) == cid
    cids.codec_of(cid)
    cids.inline_block(cid)
    with suppress(BlockCorrupt, DagError):
        cids.verify(cid, data)
    _read_tree({cid: data}, cid)


def cid_text(data: bytes) -> None:
    """The text form of a CID."""
    with suppress(UsageError):
        cid = parse_cid(data.decode("utf-8", "surrogateescape"))
        assert parse_cid(format_cid(cid)) == cid


def control(data: bytes) -> None:
    """A line of a client's, and one of a daemon's."""
    with suppress(IpfsfsError):
        op, args = parse_request(data)
        assert (type(op), type(args)) == (str, dict)
    with suppress(IpfsfsError):
        result = parse_answer(data, lambda phase, done, total, unit: None)
        assert result is None or isinstance(result, dict)


def config(data: bytes) -> None:
    """`config.toml`."""
    with suppress(UsageError):
        parse_config(data, "config.toml")


def settings(data: bytes) -> None:
    """`settings.json` and `supervisor.json` of a state directory."""
    found = parse_settings(data)
    assert found is None or isinstance(found.store_dir, str)
    seen = parse_supervision(data)
    assert seen is None or seen.pid > 0


def _read_tree(store: dict[CID, bytes], root: CID) -> None:
    """Everything that reads a tree; each may refuse as its docstring says."""

    async def get(cid: CID) -> bytes:
        try:
            return store[cid]
        except KeyError:
            raise BlockNotFound(cid) from None

    async def some(steps: object) -> None:
        for _ in range(STEPS):
            await anext(steps)  # type: ignore[call-overload]  # any of the three iterators

    async def read() -> None:
        for attempt in (
            lambda: walk.stat_node(get, root),
            lambda: walk.read_link(get, root),
            lambda: walk.lookup(get, root, b"1"),
            lambda: walk.resolve(get, root, b"1/2"),
            lambda: walk.read_range(get, root, 2, 10),
            lambda: walk.read_range(get, root, CHUNK - 1, 10),
            lambda: read_meta_dir(get, root),
            lambda: some(walk.list_directory(get, root)),
            lambda: some(walk.leaves(get, root)),
            lambda: some(walk.read_file(get, root)),
        ):
            with suppress(StopAsyncIteration, DagError, BlockNotFound, PathNotInDag):
                await attempt()

    _finish(read())


def _seeds_of_dags() -> list[bytes]:
    """Valid blocks of each kind."""
    entries = [DirEntry(b"%d" % n, cid_of(RAW, b"%d" % n), n) for n in range(5)]
    many = [DirEntry(b"%0100d" % n, LEAF.cid, n) for n in range(2600)]
    meta = [MetaEntry(b"%d" % n, Attrs("file", 0o644, 0, 0, n, xattrs=((b"a", b"\xff"),)), None) for n in range(5)]
    sub = MetaEntry(b"sub", Attrs("dir", 0, 0, 0, 0), LEAF.cid)
    blocks = [
        *file_root([LEAF.cid] * 3, 3 * CHUNK)[1],
        symlink_node(b"target")[1],
        *directory(entries)[1],
        *directory(many)[1][-2:],
        *encode_meta_dir(Attrs("dir", 0o755, 0, 0, 0), [*meta, sub])[1],
        encode_snapshot(Snapshot(LEAF.cid, LEAF.cid, 1, "host", "1")),
    ]
    return [block.data for block in blocks]


def _dag_seed(*blocks: tuple[int, bytes]) -> bytes:
    return b"".join(bytes((kind,)) + len(data).to_bytes(2, "big") + data for kind, data in blocks)


def _with_link(data: bytes) -> bytes:
    """A block that links to the leaf, in the form of the target `dag`."""
    return data.replace(LEAF.cid, bytes((_PLACEHOLDER, 0)))


BLOCKS = _seeds_of_dags()
_SNAPSHOT = BLOCKS[-1]
_DIRECTORY = encode_node([encode_link(LEAF.cid, b"1", 4)], DIRECTORY_DATA)
_FILE = encode_node([encode_link(LEAF.cid, b"", 4)] * 2, file_data([4, 4]))
_SHARD = encode_node([encode_link(LEAF.cid, b"00a", 4)], shard_data(1, 256))
_SETTINGS = b'{"version":"1","mountpoint":"/m","state_dir":"/s","store_dir":"/d","owner":"o","exclude":["*.o"]}'
_REQUESTS = [
    b'{"op":"log","args":{"limit":3}}',
    b'{"result":{"snapshot":"bafy","files":1}}',
    b'{"progress":{"phase":"storing","done":1,"total":null,"unit":"files"}}',
    b'{"error":{"kind":"StoreUnavailable","message":"the store is full"}}',
]

TARGETS: dict[str, tuple[Callable[[bytes], None], list[bytes]]] = {
    "dag_pb": (dag_pb, [*BLOCKS, _DIRECTORY, _FILE, _SHARD]),
    "unixfs": (unixfs, [DIRECTORY_DATA, file_data([1, 2]), symlink_data(b"x"), shard_data(255, 256)]),
    "hamt": (hamt, [b"\x08\x02\x00\x03a\0b", b"\x03\x01\xffa\0b\0c"]),
    "dag": (dag, [_dag_seed((0, _with_link(_FILE)), (0, _with_link(_DIRECTORY)), (2, _with_link(_SNAPSHOT)))]),
    "dag_cbor": (dag_cbor, [*BLOCKS, b"\x81" * 40, b"\xa1aa\xd8*E\0\x01U\0\0"]),
    "xattrs": (
        xattrs,
        [dagcbor.encode([["user.a", "b"], ["user.c", dagcbor.literal(b"\xff")]]), b"\x98\x18" + b"\x80" * 24],
    ),
    "cid_bytes": (
        cid_bytes,
        [LEAF.cid, b"\x12\x20" + bytes(32), b"\x01\x55\x00\x03abc", b"\x01\x70\x13\x40" + bytes(64)],
    ),
    "cid_text": (
        cid_text,
        [format_cid(LEAF.cid).encode(), b"QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn", b"f0155"],
    ),
    "control": (control, _REQUESTS),
    "config": (config, [b'read-only = true\nquiet_seconds = 1.5\nexclude = ["*.o"]\n', b"[[a]]\nb = 1979-05-27\n"]),
    "settings": (settings, [_SETTINGS, b'{"pid":7,"daemon_pid":8,"deaths":0,"last_death":null,"gave_up":null}']),
}
"""By name: the function, and inputs to begin with."""
