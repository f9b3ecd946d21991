"""Read a whole UnixFS tree into a dict, for comparisons."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from fused.dag.walk import list_directory, read_file, read_link, stat_node

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from fused.cid import CID

    Get = Callable[[CID], Awaitable[bytes]]

Tree = dict[bytes, object]
"""Path to the bytes of a file, ("link", target) of a symbolic link, None for a directory."""


async def read_tree(get: Get, root: CID, prefix: bytes = b"") -> Tree:
    """The tree at `root`."""
    found: Tree = {}
    async for entry in list_directory(get, root):
        path = prefix + entry.name
        kind = (await stat_node(get, entry.cid)).kind
        if kind == "dir":
            found[path] = None
            found |= await read_tree(get, entry.cid, path + b"/")
        elif kind == "link":
            found[path] = ("link", await read_link(get, entry.cid))
        else:
            found[path] = b"".join([chunk async for chunk in read_file(get, entry.cid)])
    return found


def plain_tree(root: Path) -> Tree:
    """The same of a plain directory."""
    found: Tree = {}
    base = os.fsencode(root)
    for directory, dirs, files in os.walk(base):
        for name in dirs + files:
            path = os.path.join(directory, name)
            shown = os.path.relpath(path, base)
            if os.path.islink(path):
                found[shown] = ("link", os.readlink(path))
            elif os.path.isdir(path):
                found[shown] = None
            elif os.path.isfile(path):
                with open(path, "rb") as stream:
                    found[shown] = stream.read()
    return found
