"""What changed between two stored trees, without looking into anything that did not.

Two places with the same CID have the same content, so a subtree whose `tree` and `meta` CIDs are both equal
is passed by unread; the cost follows the differences. Where one side is a plain tree without `meta`, content
and kinds are compared, attributes and special files are not.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, NamedTuple

from fused.view.directory import Names, Node, check_depth, children, looked_up

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterator

    from fused.view.directory import Blocks


class ChangeKind(Enum):
    """What happened to a path. The value is the letter that `diff` prints."""

    ADDED = "A"
    REMOVED = "D"
    MODIFIED = "M"
    """Other content: of a file, a symlink's text, a device's number. Attributes may differ as well."""
    TYPE = "T"
    """Another kind of thing under the same name. What lies below a directory follows as added or removed."""
    METADATA = "m"
    """The same content with other attributes."""


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `attributes` names those that differ: mode, owner, group, mtime, xattrs."""

    kind: ChangeKind
    path: Names
    before: Node | None
    after: Node | None
    attributes: tuple[str, ...] = ()


async def compare(blocks: Blocks, before: Node, after: Node, path: Names = ()) -> AsyncGenerator[Change]:
    """Every difference from `before` to `after`, in order of the paths' components, a directory before its contents.

    A directory whose mtime alone differs is left out if one of its entries differs: that is what moved
    the mtime. Raises StoreError, DagError.
    """
    # A stack of what is still to be compared, not recursion: a tree may be deeper than Python recurses.
    stack: list[Iterator[_Pair]] = [iter([_Pair(path, before, after)])]
    while stack:
        for pair in stack[-1]:
            old = pair.before and await looked_up(blocks, pair.before)
            new = pair.after and await looked_up(blocks, pair.after)
            below = await _differing(blocks, pair.path, old, new)
            change = _change(pair.path, old, new)
            if change is not None and not (
                below and change.attributes == ("mtime",) and change.kind is ChangeKind.METADATA
            ):
                yield change
            if below:
                check_depth(pair.path, old or new or before)
                stack.append(iter(below))
                break
        else:
            stack.pop()


class _Pair(NamedTuple):
    """One path in both trees; None where it does not exist."""

    path: Names
    before: Node | None
    after: Node | None


async def _differing(blocks: Blocks, path: Names, before: Node | None, after: Node | None) -> list[_Pair]:
    """The entries, by name, that may differ between two places, where either or both are directories."""
    old = before if before is not None and before.kind == "dir" else None
    new = after if after is not None and after.kind == "dir" else None
    if old is not None and new is not None and _same(old, new):
        return []
    left = dict(await children(blocks, old)) if old is not None else {}
    right = dict(await children(blocks, new)) if new is not None else {}
    if old is not None and new is not None and (old.meta is None or new.meta is None):
        # Only one side knows of fifos and the like; that the other does not is no difference.
        left = {name: node for name, node in left.items() if node.cid is not None}
        right = {name: node for name, node in right.items() if node.cid is not None}
    pairs = [_Pair((*path, name), left.get(name), right.get(name)) for name in sorted(left.keys() | right.keys())]
    return [pair for pair in pairs if pair.before is None or pair.after is None or not _same(pair.before, pair.after)]


def _same(before: Node, after: Node) -> bool:
    """Whether two places are known to be equal without fetching anything."""
    if before.cid != after.cid:
        return False
    if before.kind == "dir" == after.kind:
        return before.meta is None or after.meta is None or before.meta == after.meta
    return not _other_content(before, after) and not _attribute_differences(before, after)


def _change(path: Names, before: Node | None, after: Node | None) -> Change | None:
    """What happened at a path itself, whatever is below it."""
    if before is None:
        return Change(ChangeKind.ADDED, path, None, after)
    if after is None:
        return Change(ChangeKind.REMOVED, path, before, None)
    attributes = _attribute_differences(before, after)
    if before.kind != after.kind:
        return Change(ChangeKind.TYPE, path, before, after, attributes)
    if _other_content(before, after):
        return Change(ChangeKind.MODIFIED, path, before, after, attributes)
    if attributes:
        return Change(ChangeKind.METADATA, path, before, after, attributes)
    return None


def _other_content(before: Node, after: Node) -> bool:
    if before.kind == "dir":
        return False
    rdev = (before.attrs.rdev if before.attrs else 0, after.attrs.rdev if after.attrs else 0)
    return before.cid != after.cid or (before.kind in ("chr", "blk") and rdev[0] != rdev[1])


def _attribute_differences(before: Node, after: Node) -> tuple[str, ...]:
    """Names of attributes that differ. Which names a file has elsewhere is not one of them."""
    old, new = before.attrs, after.attrs
    if old is None or new is None or old == new:
        return ()
    pairs = {
        "mode": (old.mode, new.mode),
        "owner": (old.uid, new.uid),
        "group": (old.gid, new.gid),
        "mtime": (old.mtime_ns, new.mtime_ns),
        "xattrs": (sorted(old.xattrs), sorted(new.xattrs)),
    }
    return tuple(name for name, (left, right) in pairs.items() if left != right)
