"""How many files two trees differ in, for the list of snapshots. Equal subtrees have equal CIDs and are not read."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from fused.cid import DAG_PB, codec_of
from fused.dag.walk import list_directory, stat_node

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fused.cid import CID
    from fused.dag.build import DirEntry

    Get = Callable[[CID], Awaitable[bytes]]


class Changed(NamedTuple):
    """Files (and links) by path: only in the new tree, different in both, only in the old one."""

    added: int
    modified: int
    removed: int


async def count_changes(get: Get, old: CID, new: CID) -> Changed:
    """Compare two directories of trees that this program made. Raises as `get` does, and DagError."""
    added = modified = removed = 0
    pairs: list[tuple[CID, CID]] = [(old, new)]
    while pairs:
        before, after = pairs.pop()
        was = {entry.name: entry async for entry in list_directory(get, before)}
        async for entry in list_directory(get, after):
            earlier = was.pop(entry.name, None)
            if earlier is not None and earlier.cid == entry.cid:
                continue
            is_dir = await _is_dir(get, entry)
            was_dir = earlier is not None and await _is_dir(get, earlier)
            if earlier is None:
                added += await _files_in(get, entry)
            elif is_dir and was_dir:
                pairs.append((earlier.cid, entry.cid))
            elif not is_dir and not was_dir:
                modified += 1
            else:
                added += await _files_in(get, entry)
                removed += await _files_in(get, earlier)
        for entry in was.values():
            removed += await _files_in(get, entry)
    return Changed(added, modified, removed)


async def _is_dir(get: Get, entry: DirEntry) -> bool:
    # Our files of one chunk are raw leaves: most names need no block to be told from a directory.
    return codec_of(entry.cid) == DAG_PB and (await stat_node(get, entry.cid)).kind == "dir"


async def _files_in(get: Get, entry: DirEntry) -> int:
    files = 0
    entries = [entry]
    while entries:
        entry = entries.pop()
        if await _is_dir(get, entry):
            entries += [below async for below in list_directory(get, entry.cid)]
        else:
            files += 1
    return files
