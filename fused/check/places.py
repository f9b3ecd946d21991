"""Which snapshots, and which paths in them, need a damaged block.

Asked only when something is damaged. Goes through the inner nodes once more, each once, children first, and remembers
for each node from which the damage can be reached what it leads to and by which names; subtrees that snapshots share
are looked at once. Memory: a bit for each whole node, and the answer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fused.check.blocks import Bits
from fused.cid import CID, DAG_CBOR, DAG_PB, RAW, codec_of, inline_block
from fused.dag import dagcbor
from fused.dag.attrs import decode_bytes
from fused.dag.hamt import Shard
from fused.dag.node import DirectoryNode, FileNode, decode
from fused.errors import DagError, StoreError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from fused.check.stores import Reads

Hits = dict[CID, set[bytes]]
"""For each damaged block, the paths that lead to it, from wherever this is said of."""


def named_links(cid: CID, block: bytes) -> Iterator[tuple[bytes, CID]]:
    """The links in a block of a tree or of a snapshot, with the name that each adds to a path; b"" for none.

    Raises DagError.
    """
    if codec_of(cid) == DAG_PB:
        match decode(cid, block):
            case DirectoryNode(entries=entries):
                yield from ((entry.name, entry.cid) for entry in entries)
            case Shard() as shard:
                yield from ((shard.name_in(link), link.cid) for link in shard.links.values())
            case FileNode(children=children):
                yield from ((b"", child) for child, _ in children)
    elif codec_of(cid) == DAG_CBOR:
        value = dagcbor.decode(cid, block)
        entries = value.pop("entries", []) if isinstance(value, dict) else []
        for link in dagcbor.links_of_value(value):
            yield b"", link
        for entry in entries if isinstance(entries, list) else []:
            name = decode_bytes(entry["name"]) if isinstance(entry, dict) and "name" in entry else b""
            for link in dagcbor.links_of_value(entry):
                yield name, link


@dataclass(slots=True)
class _Frame:
    cid: CID
    number: int | None
    links: Iterator[tuple[bytes, CID]]
    name: bytes = b""
    hits: Hits = field(default_factory=dict)


class Places:
    """Answers for any number of roots."""

    def __init__(self, audit: Reads, damaged: Collection[CID]) -> None:
        self._audit = audit
        self._damaged = damaged
        self._whole = Bits()
        self._tainted: dict[CID, Hits] = {}

    def below(self, root: CID) -> Hits:
        """What of the damage the DAG at `root` needs, and by which paths."""
        top = _Frame(root, None, iter([(b"", root)]))
        stack = [top]
        while stack:
            frame = stack[-1]
            link = next(frame.links, None)
            if link is None:
                stack.pop()
                if stack:
                    self._finish(frame)
                    _merge(stack[-1].hits, frame.hits, frame.name)
                continue
            name, cid = link
            if cid in self._damaged:
                frame.hits.setdefault(cid, set()).add(name)
            elif cid in self._tainted:
                _merge(frame.hits, self._tainted[cid], name)
            elif codec_of(cid) != RAW:
                below = self._open(cid, name)
                if below is not None:
                    stack.append(below)
        return top.hits

    def _open(self, cid: CID, name: bytes) -> _Frame | None:
        """None if nothing below is damaged."""
        number: int | None = None
        data = inline_block(cid)
        if data is None:
            row = self._audit.rows([cid]).get(cid)
            if row is None or row.id in self._whole:
                return None
            number = row.id
            [(_, read)] = self._audit.read([cid])
            if isinstance(read, StoreError):  # damaged since
                return None
            data = read
        try:
            return _Frame(cid, number, iter(list(named_links(cid, data))), name)
        except DagError:
            return None

    def _finish(self, frame: _Frame) -> None:
        if frame.hits:
            self._tainted[frame.cid] = frame.hits
        elif frame.number is not None:
            self._whole.add(frame.number)


def _merge(into: Hits, hits: Hits, name: bytes) -> None:
    for cid, paths in hits.items():
        if name:
            paths = {name + b"/" + path if path else name for path in paths}
        into.setdefault(cid, set()).update(paths)
