"""What a restore would do: every entry of the stored tree held against what is in the target.

Nothing is written here. Of existing files the content is hashed, not fetched: a leaf whose bytes give the
same CID is the same. What comes out is kept only for entries that exist, so that restoring a large tree to an empty
place needs no memory for it.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from fused.cid import RAW, codec_of
from fused.dag import walk as dag_walk
from fused.dag.content import Leaf
from fused.dag.seal import Seal, plain_seal
from fused.errors import DagError, PathNotInDag, RestoreFailed
from fused.view import content
from fused.view.directory import Blocks, Names, Node, find, looked_up, shown, walk

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    from fused.view.target import Target

_CID_HEAD = 4  # bytes of version, codec, hash function and digest length in a CID of the usual kind

KIND_NAMES = {
    "dir": "directory",
    "file": "file",
    "link": "symbolic link",
    "fifo": "fifo",
    "sock": "socket",
    "chr": "character device",
    "blk": "block device",
}


class Situation(Enum):
    """What an entry of the stored tree meets in the target."""

    NEW = "new"
    SAME = "same"
    ATTRIBUTES = "attributes"
    """The same content with other attributes."""
    DIFFERENT = "different"
    BLOCKED = "blocked"
    """In the way is a directory, or a parent is something else: not even overwriting helps."""


class Finding(NamedTuple):
    """A path and a few words for a person."""

    path: Names
    why: str


class Entry(NamedTuple):
    """One entry to restore. `ancestor`: only made if it is missing, because something below it was asked for."""

    path: Names
    node: Node
    ancestor: bool


@dataclass(slots=True)
class Plan:
    """`situations` has existing paths only; every other is NEW. `counts` is by kind, without ancestors and the root."""

    situations: dict[Names, Situation] = field(default_factory=dict)
    conflicts: list[Finding] = field(default_factory=list)
    """Existing paths that differ: with overwriting they are replaced."""
    blocked: list[Finding] = field(default_factory=list)
    skipped: list[Finding] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    bytes_to_write: int = 0
    keys: dict[Names, tuple[int, int]] = field(default_factory=dict)
    """Of what has the stored content and other attributes: which inode it was that was compared."""
    leaders: dict[int, Names] = field(default_factory=dict)
    """Of each hard-linked file, by its number: the name that the others become links to."""
    adopt_root: bool = False
    """The target does not exist, or is empty and gets the whole tree: its attributes become the stored root's."""

    def situation(self, path: Names) -> Situation:
        """What `path` meets."""
        return self.situations.get(path, Situation.NEW)


async def selected(blocks: Blocks, root: Node, paths: Sequence[Names]) -> AsyncGenerator[Entry]:
    """The entries at and below `paths`, or all of them, each once; parents always before what is in them.

    Raises PathNotInDag for a path that the tree does not have.
    """
    done: set[Names] = set()
    tops: list[Names] = []
    for path in sorted(set(paths)) or [()]:
        if not any(path[: len(top)] == top for top in tops[-1:]):
            tops.append(path)
    for top in tops:
        node = root
        for depth, name in enumerate(top):
            above = top[:depth]
            if above not in done:
                done.add(above)
                yield Entry(above, node, ancestor=True)
            try:
                node = await find(blocks, node, (name,))
            except PathNotInDag:
                raise PathNotInDag(f"{shown(top[: depth + 1])} is not in the snapshot") from None
        node = await looked_up(blocks, node)
        yield Entry(top, node, ancestor=False)
        if node.kind == "dir":
            async with aclosing(walk(blocks, node, top)) as below:
                async for path, child in below:
                    yield Entry(path, child, ancestor=False)


class Planner:
    """Decides entry by entry. `target` is None if the target does not exist."""

    def __init__(
        self, blocks: Blocks, target: Target | None, *, whole: bool, room: int | None = None, seal: Seal = plain_seal
    ) -> None:
        """`whole`: no paths were named, so the target itself stands for the stored root.

        `room`: as many new entries fit in there, None if that is not known. A few blocks can stand for any number.
        """
        self._room = room
        self._new = 0
        self._blocks = blocks
        self._target = target
        self._seal = seal
        self._plan = Plan(adopt_root=target is None or (whole and target.is_empty(())))
        self._linked: dict[int, tuple[int, int]] = {}

    async def run(self, entries: AsyncIterator[Entry], on_entry: Callable[[], None] = lambda: None) -> Plan:
        """Go through all entries. Raises StoreError or DagError if the tree can't be read."""
        async for entry in entries:
            on_entry()
            await self._add(entry)
        return self._plan

    async def _add(self, entry: Entry) -> None:
        plan, attrs = self._plan, entry.node.attrs
        if not entry.ancestor and entry.path:
            plan.counts[entry.node.kind or "file"] += 1
        if entry.node.kind == "file" and entry.node.cid is None:
            plan.skipped.append(Finding(entry.path, "its content is not in the snapshot"))
            return
        situation = await self._decide(entry)
        self._new += situation is Situation.NEW
        if self._room is not None and self._new > self._room:
            raise RestoreFailed(
                f"there is room for {self._room:,} files, and the snapshot has more; nothing was changed"
            )
        if situation is not Situation.NEW:
            plan.situations[entry.path] = situation
        group = attrs.hardlink if attrs is not None else None
        leads = group is None or plan.leaders.setdefault(group, entry.path) == entry.path
        if leads and entry.node.kind == "file" and situation in (Situation.NEW, Situation.DIFFERENT):
            plan.bytes_to_write += entry.node.size or 0

    async def _decide(self, entry: Entry) -> Situation:
        st = self._target.lstat(entry.path) if self._target is not None else None
        if st is None or self._target is None:
            return Situation.NEW
        kind = KIND_NAMES[_kind(st)]
        wanted = KIND_NAMES[entry.node.kind or "file"]
        if kind != wanted:
            if kind == "directory":
                self._plan.blocked.append(Finding(entry.path, f"is a directory here and a {wanted} in the snapshot"))
                return Situation.BLOCKED
            if entry.ancestor:
                self._plan.blocked.append(Finding(entry.path, f"is a {kind} here, not a directory"))
                return Situation.BLOCKED
            self._plan.conflicts.append(Finding(entry.path, f"is a {kind} here and a {wanted} in the snapshot"))
            return Situation.DIFFERENT
        if kind == "directory":
            # An existing directory is gone into, not replaced; that its times differ is what one expects.
            return Situation.SAME
        if why := await self._content_difference(entry, st, self._target):
            self._plan.conflicts.append(Finding(entry.path, why))
            return Situation.DIFFERENT
        return self._attributes(entry, st, self._target)

    def _attributes(self, entry: Entry, st: os.stat_result, target: Target) -> Situation:
        """For an entry whose content is as stored: hard links, then attributes."""
        attrs = entry.node.attrs
        if attrs is None:
            return Situation.SAME
        if attrs.hardlink is not None:
            here = (st.st_dev, st.st_ino)
            if self._linked.setdefault(attrs.hardlink, here) != here:
                leader = shown(self._plan.leaders[attrs.hardlink])
                self._plan.conflicts.append(Finding(entry.path, f"is not the same file as {leader}"))
                return Situation.DIFFERENT
            self._lead(attrs.hardlink, entry)
        if differing := target.attribute_differences(entry.path, st, attrs):
            self._plan.conflicts.append(Finding(entry.path, f"has another {', '.join(differing)}"))
            self._plan.keys[entry.path] = (st.st_dev, st.st_ino)
            return Situation.ATTRIBUTES
        return Situation.SAME

    def _lead(self, group: int, entry: Entry) -> None:
        """The first existing, unchanged name leads: the missing ones become links to it and it is left alone."""
        leader = self._plan.leaders.get(group)
        if leader is not None and self._plan.situation(leader) in (Situation.NEW, Situation.DIFFERENT):
            self._plan.bytes_to_write -= entry.node.size or 0
            leader = None
        if leader is None:
            self._plan.leaders[group] = entry.path

    async def _content_difference(self, entry: Entry, st: os.stat_result, target: Target) -> str:
        """How the content at a path differs from the stored one of the same kind; empty if it does not."""
        node = entry.node
        if node.kind == "link" and node.cid is not None:
            text = await dag_walk.read_link(self._blocks.get, node.cid)
            return "" if target.readlink(entry.path) == text else "points elsewhere"
        if node.kind in ("chr", "blk"):
            return "" if node.attrs is not None and st.st_rdev == node.attrs.rdev else "is another device"
        if node.kind != "file" or node.cid is None:
            return ""
        if st.st_size != node.size:
            return "has other content"
        if st.st_size == 0:
            return ""
        try:
            fd = target.open_for_reading(entry.path)
        except OSError:
            return "can't be read here"
        try:
            if not os.path.samestat(os.fstat(fd), st):
                return "changes while it is compared"
            same = await same_content(self._blocks, node, fd, self._seal)
        finally:
            os.close(fd)
        return "" if same else "has other content"


async def same_content(blocks: Blocks, node: Node, fd: int, seal: Seal = plain_seal) -> bool:
    """Whether the open file has exactly the stored content.

    `seal` must be deterministic, as everything that deduplicates needs it to be: then another CID of the same
    form is other content, and a leaf is fetched only where its CID has another form than ours.
    """
    assert node.cid is not None
    if codec_of(node.cid) == RAW:
        return await _same_leaf(blocks, Leaf(node.cid, node.size or 0), os.pread(fd, (node.size or 0) + 1, 0), seal)
    offset = 0
    try:
        async for leaf in dag_walk.leaves(blocks.get, node.cid):
            if not await _same_leaf(blocks, leaf, os.pread(fd, leaf.size, offset), seal):
                return False
            offset += leaf.size
    except DagError:
        # The oldest writers kept bytes in inner nodes, so there is no list of leaves: compare the bytes.
        offset = 0
        async with content.open_stream(blocks, node.cid) as chunks:
            async for chunk in chunks:
                if os.pread(fd, len(chunk), offset) != chunk:
                    return False
                offset += len(chunk)
    return not os.pread(fd, 1, offset)


async def _same_leaf(blocks: Blocks, leaf: Leaf, data: bytes, seal: Seal) -> bool:
    ours = seal(RAW, data)[0]
    if ours[:_CID_HEAD] == leaf.cid[:_CID_HEAD]:
        return ours == leaf.cid
    return data == await content.read(blocks, leaf.cid, 0, leaf.size + 1)


def _kind(st: os.stat_result) -> str:
    return _KINDS[stat.S_IFMT(st.st_mode)]


_KINDS = {
    stat.S_IFDIR: "dir",
    stat.S_IFREG: "file",
    stat.S_IFLNK: "link",
    stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "sock",
    stat.S_IFCHR: "chr",
    stat.S_IFBLK: "blk",
}
