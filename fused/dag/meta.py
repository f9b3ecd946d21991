"""The snapshot object, and the tree of what UnixFS has no place for: owners, modes, times, xattrs, hard links,
special files.

Both are DAG-CBOR, made to be read by people too (`ipfs dag get`):

    snapshot   {"tree": link, "meta": link, "time": ns since 1970, "host": text, "ipfsfs": version}
    directory  {"attrs": attrs, "entries": [entry, …]}     entries sorted by the bytes of their names
               {"attrs": attrs, "pages": [link, …]}        a large one
    page       {"entries": [entry, …]} or {"pages": [link, …]}
    attrs      {"kind", "mode", "uid", "gid", "mtime": [s, ns]}, and where they are not zero or none:
               "size", "rdev", "hardlink", "xattrs": [[name, value], …] or, if large, a link to a file with that list
    entry      attrs with "name" and, for a subdirectory, "node": link

Names and xattrs are text if they are UTF-8, else byte strings. Pages are cut by content, not by count: after a
name whose hash begins with a zero byte, so that one name more or less changes one page, wherever it sorts.
"""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from fused.cid import CID, DAG_CBOR
from fused.dag import dagcbor
from fused.dag.attrs import (
    MAX_INLINE_XATTRS,
    Attrs,
    XattrsApart,
    as_int,
    as_list,
    as_map,
    as_text,
    decode_attrs,
    decode_bytes,
    encode_attrs,
    encode_bytes,
)
from fused.dag.build import is_entry_name
from fused.dag.dagcbor import as_link
from fused.dag.seal import Seal, plain_seal
from fused.errors import DagError
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from fused.dag.node import Get

__all__ = [
    "Attrs",
    "MetaEntry",
    "Snapshot",
    "decode_snapshot",
    "encode_meta_dir",
    "encode_snapshot",
    "read_meta_dir",
]

INLINE_ENTRIES = 256
"""A directory of at most so many entries is not cut by content: paging pays when the rest is worth saving."""

MIN_PAGE_ENTRIES = 16
"""No cut before so many: whatever the names, a level of pages is at most a 16th of the one below."""

MAX_PAGE_ENTRIES = 1024
MAX_PAGE_BYTES = 256 << 10
"""A page is closed before it passes one of these, so that no block comes near the 2 MiB above which nobody reads it."""

_ENTRY_BYTES = 128  # an entry without its name and xattrs, or a link, encoded; rounded up
_MAX_DEPTH = 8  # levels of pages: 16**8 pages at the least
_MAX_TIME = (1 << 64) - 1
_SNAPSHOT_FIELDS = frozenset(("tree", "meta", "time", "host", "ipfsfs"))
_BODY_FIELDS = frozenset(("entries", "pages"))


@dataclass(frozen=True, slots=True)
class Snapshot:
    """`tree` is plain UnixFS, `meta` the directory node for the same root. `time_ns` is since 1970, UTC."""

    tree: CID
    meta: CID
    time_ns: int
    host: str
    version: str


class MetaEntry(NamedTuple):
    """One name. `child` is the directory node of a subdirectory, None for everything else."""

    name: bytes
    attrs: Attrs
    child: CID | None


def encode_snapshot(snapshot: Snapshot, seal: Seal = plain_seal) -> Block:
    """The block of a snapshot object."""
    value = {
        "tree": snapshot.tree,
        "meta": snapshot.meta,
        "time": snapshot.time_ns,
        "host": snapshot.host,
        "ipfsfs": snapshot.version,
    }
    return Block(*seal(DAG_CBOR, dagcbor.encode(value)))


def decode_snapshot(cid: CID, block: bytes) -> Snapshot:
    """The snapshot in `block`. Raises DagError."""
    with _naming(cid, "not a snapshot of ipfsfs"):
        value = as_map(dagcbor.decode(cid, block), _SNAPSHOT_FIELDS)
        return Snapshot(
            tree=as_link(value["tree"]),
            meta=as_link(value["meta"]),
            time_ns=as_int(value["time"], -_MAX_TIME, _MAX_TIME),
            host=as_text(value["host"]),
            version=as_text(value["ipfsfs"]),
        )


def encode_meta_dir(attrs: Attrs, entries: Iterable[MetaEntry], seal: Seal = plain_seal) -> tuple[CID, list[Block]]:
    """The node of a directory with its own attributes and entries, in any order: its CID and all its blocks."""
    blocks: list[Block] = []
    items: list[_Item] = []
    for entry in sorted(entries, key=lambda entry: entry.name):
        if (entry.attrs.kind == "dir") != (entry.child is not None):
            raise ValueError(f"the {entry.attrs.kind} {entry.name!r} with the node of another kind")
        value = encode_attrs(entry.attrs, seal, blocks)
        value["name"] = encode_bytes(entry.name)
        if entry.child is not None:
            value["node"] = entry.child
        items.append(_Item(entry.name, value, _weight(entry)))
    field = "entries"
    pages = _cut(items)
    while len(pages) > 1:
        links = []
        for page in pages:
            cid, data = seal(DAG_CBOR, dagcbor.encode({field: page}))
            blocks.append(Block(cid, data))
            links.append(_Item(cid, cid, _ENTRY_BYTES))
        field = "pages"
        pages = _cut(links)
    cid, data = seal(DAG_CBOR, dagcbor.encode({"attrs": encode_attrs(attrs, seal, blocks), field: pages[0]}))
    blocks.append(Block(cid, data))
    return cid, blocks


async def read_meta_dir(get: Get, cid: CID) -> tuple[Attrs, list[MetaEntry]]:
    """A directory's own attributes and all its entries, sorted by name.

    Raises DagError for a node that this module would not have written, and whatever `get` raises.
    """
    block = await get(cid)
    apart = XattrsApart(get)
    with _naming(cid):
        root = as_map(dagcbor.decode(cid, block), frozenset(("attrs",)), _BODY_FIELDS)
        attrs = await decode_attrs(apart, root.pop("attrs"))
        if attrs.kind != "dir":
            raise DagError(f"a directory with the attributes of a {attrs.kind}")
    entries: list[MetaEntry] = []
    await _read_page(get, apart, cid, root, 0, entries)
    return attrs, entries


async def _read_page(
    get: Get, apart: XattrsApart, cid: CID, page: dict[str, object], depth: int, entries: list[MetaEntry]
) -> None:
    """Append the entries below one node.

    Entries must strictly ascend and no page may be empty, so the second visit to any page fails at its first entry:
    however the links are knotted, the work is at most one pass over the distinct pages.
    """
    with _naming(cid):
        if len(page) != 1 or depth > _MAX_DEPTH:
            raise DagError("not one list of entries or pages, or pages nested too deeply")
        for item in as_list(page.get("entries", [])):
            entry = await _decode_entry(apart, item)
            if entries and entries[-1].name >= entry.name:
                raise DagError(f"the entry {entry.name!r} twice or out of order")
            entries.append(entry)
        links = [as_link(link) for link in as_list(page.get("pages", []))]
        if depth and not links and not page.get("entries"):
            raise DagError("an empty page")
    for link in links:
        block = await get(link)
        with _naming(link):
            below = as_map(dagcbor.decode(link, block), frozenset(), _BODY_FIELDS)
        await _read_page(get, apart, link, below, depth + 1, entries)


class _Item(NamedTuple):
    """What goes into a page. `weight` is its encoded length in bytes, roughly and not too low."""

    key: bytes
    value: object
    weight: int


def _cut(items: Sequence[_Item]) -> list[list[object]]:
    """Split items into pages: by the hash of the key, and before a page grows too large."""
    pages: list[list[object]] = []
    page: list[object] = []
    weight = 0
    by_content = len(items) > INLINE_ENTRIES
    for item in items:
        if page and (weight + item.weight > MAX_PAGE_BYTES or len(page) == MAX_PAGE_ENTRIES):
            pages.append(page)
            page, weight = [], 0
        page.append(item.value)
        weight += item.weight
        if by_content and len(page) >= MIN_PAGE_ENTRIES and hashlib.sha256(item.key).digest()[0] == 0:
            pages.append(page)
            page, weight = [], 0
    if page or not pages:
        pages.append(page)
    return pages


def _weight(entry: MetaEntry) -> int:
    xattrs = sum(len(name) + len(content) + 16 for name, content in entry.attrs.xattrs)
    return _ENTRY_BYTES + len(entry.name) + min(xattrs, MAX_INLINE_XATTRS)


async def _decode_entry(apart: XattrsApart, item: object) -> MetaEntry:
    if not isinstance(item, dict):
        raise DagError("an entry that is not a map")
    fields = dict(item)
    name = decode_bytes(fields.pop("name", None))
    if not is_entry_name(name):
        raise DagError(f"the entry name {name!r}")
    child = as_link(fields.pop("node")) if "node" in fields else None
    attrs = await decode_attrs(apart, fields)
    if (attrs.kind == "dir") != (child is not None):
        raise DagError(f"the {attrs.kind} {name!r} with the node of another kind")
    return MetaEntry(name, attrs, child)


@contextmanager
def _naming(cid: CID, what: str = "not a directory's metadata of ipfsfs") -> Iterator[None]:
    """Errors from inside name the block, unless they already name one."""
    try:
        yield
    except DagError as err:
        raise err if err.cid is not None else DagError(f"{what}: {err}", cid) from None
