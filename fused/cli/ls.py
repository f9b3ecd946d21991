"""`ipfsfs ls`: what is in a stored directory."""

from __future__ import annotations

import base64
import os
import stat
import sys
import time
from contextlib import aclosing, nullcontext
from functools import cache
from typing import TYPE_CHECKING

from fused.cli.exits import Exit
from fused.cli.output import JsonList, printable, table
from fused.cli.source import Tree, add_source, cid_text, parse_tree, quoted, with_store

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator, Iterable

    from fused.control import Json
    from fused.store.base import Store
    from fused.view.directory import Names, Node

_AT_ONCE = 1000
"""Lines that share their column widths: a listing of any length starts at once and needs little memory."""

_TYPES = {
    "dir": stat.S_IFDIR,
    "file": stat.S_IFREG,
    "link": stat.S_IFLNK,
    "fifo": stat.S_IFIFO,
    "sock": stat.S_IFSOCK,
    "chr": stat.S_IFCHR,
    "blk": stat.S_IFBLK,
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs ls`."""
    parser.description = (
        "List a directory of a snapshot, with modes, owners and times, or of any other UnixFS tree in the store, "
        "which has none. Symbolic links are not followed."
    )
    parser.epilog = """\
examples:
  ipfsfs ls bafy…                    the root of a snapshot or tree
  ipfsfs ls latest/models            in the newest snapshot of the mount that we are in
  ipfsfs ls -R --json bafy…          everything: name, path, kind, size, cid, mode, uid, gid, mtime, …
  ipfsfs ls -R -0 bafy… | xargs -0 …  raw names, each with a zero byte after it

On a terminal, control characters in names are shown as escapes; elsewhere names are the bytes that they are.
"""
    parser.add_argument("tree", metavar="CID[/PATH]", nargs="+", help="what to list; `latest` is the newest snapshot")
    parser.add_argument("-R", "--recursive", action="store_true", help="everything below, too, as paths")
    parser.add_argument("-d", "--directory", action="store_true", help="a directory itself, not what is in it")
    parser.add_argument("-c", "--cid", action="store_true", help="show the CIDs of contents")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("-0", "--null", action="store_true", help="only names, raw, each ended by a zero byte")
    form.add_argument("--json", action="store_true", help="print JSON, for scripts")
    add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs ls`."""
    trees = [parse_tree(text, args) for text in args.tree]

    async def work(store: Store) -> int:
        with JsonList() if args.json else nullcontext() as objects:
            await show(store, objects)
        return Exit.OK

    async def show(store: Store, objects: JsonList | None) -> None:
        for at, tree in enumerate(trees):
            if len(trees) > 1 and not (args.json or args.null):
                print(f"{chr(10) if at else ''}{args.tree[at]}:")
            batch: list[tuple[Names, Node, str | None]] = []
            async with aclosing(_entries(store, tree, args.recursive, args.directory)) as entries:
                async for path, node in entries:
                    entry = (path, node, await _link_text(store, node))
                    if objects is not None:
                        objects.add(_object(*entry))
                        continue
                    batch.append(entry)
                    if len(batch) == _AT_ONCE:
                        _print(batch, args)
                        batch = []
            if objects is None:
                _print(batch, args)

    return with_store(args, work)


async def _entries(store: Store, tree: Tree, recursive: bool, itself: bool) -> AsyncGenerator[tuple[Names, Node]]:
    """The entries that the arguments ask for, with paths as they are to be shown."""
    from fused.view.directory import children_looked_up, find, open_root, walk

    root = await open_root(store, tree.cid)
    node = await find(store, root.node, tree.path)
    if node.kind != "dir" or itself:
        yield tree.path[-1:], node
    elif recursive:
        async with aclosing(walk(store, node)) as below:
            async for path, child in below:
                yield path, child
    else:
        for name, child in await children_looked_up(store, node):
            yield (name,), child


async def _link_text(store: Store, node: Node) -> str | None:
    """Where a symlink points to. Raises StoreError, DagError."""
    from fused.dag.walk import read_link

    if node.kind != "link" or node.cid is None:
        return None
    return os.fsdecode(await read_link(store.get, node.cid))


def _object(path: Names, node: Node, link_text: str | None) -> Json:
    """An entry for a script. What is not known is null; names are in the form of os.fsdecode."""
    value: Json = {
        "name": os.fsdecode(path[-1]) if path else "",
        "path": os.fsdecode(b"/".join(path)),
        "kind": node.kind,
        "size": node.size,
        "cid": cid_text(node.cid),
        "target": link_text,
    }
    attrs = node.attrs
    if attrs is None:
        return (
            value
            | dict.fromkeys(("mode", "uid", "gid", "mtime", "mtime_ns", "rdev", "hardlink"), None)
            | {"xattrs": {}}
        )
    return value | {
        "mode": f"{attrs.mode:04o}",
        "uid": attrs.uid,
        "gid": attrs.gid,
        "mtime": _iso_time(attrs.mtime_ns),
        "mtime_ns": attrs.mtime_ns,
        "rdev": attrs.rdev or None,
        "hardlink": attrs.hardlink,
        "xattrs": {os.fsdecode(name): base64.b64encode(content).decode() for name, content in attrs.xattrs},
    }


def _print(entries: Iterable[tuple[Names, Node, str | None]], args: argparse.Namespace) -> None:
    if args.null:
        for path, _, _ in entries:
            print(quoted(path), end="\0")
        return
    rows = [_row(path, node, text, args.cid) for path, node, text in entries]
    for line in table(rows, [False, False, False, True, False, *([False] if args.cid else []), False]):
        print(line)


def _row(path: Names, node: Node, link_text: str | None, show_cid: bool) -> list[str]:
    shown = printable if sys.stdout.isatty() else str
    name = shown(quoted(path)) + (f" -> {shown(link_text)}" if link_text is not None else "")
    cid = [cid_text(node.cid) or "-"] if show_cid else []
    attrs = node.attrs
    kind = _TYPES[node.kind or "file"]
    if attrs is None:
        return [stat.filemode(kind)[0] + "?" * 9, "-", "-", str(node.size), "-", *cid, name]
    size = f"{os.major(attrs.rdev)}, {os.minor(attrs.rdev)}" if attrs.rdev else str(node.size)
    return [
        stat.filemode(kind | attrs.mode),
        _user(attrs.uid),
        _group(attrs.gid),
        size,
        time.strftime("%Y-%m-%d %H:%M:%S", _local_time(attrs.mtime_ns)),
        *cid,
        name,
    ]


def _local_time(time_ns: int) -> time.struct_time:
    """A stored time may be any number; what the C library can't turn into a date is shown as the epoch."""
    try:
        return time.localtime(time_ns // 1_000_000_000)
    except (OverflowError, OSError, ValueError):
        return time.localtime(0)


def _iso_time(time_ns: int) -> str | None:
    try:
        seconds, rest = divmod(time_ns, 1_000_000_000)
        return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest:09d}Z"
    except (OverflowError, OSError, ValueError):
        return None


@cache
def _user(uid: int) -> str:
    """The name on this machine, which need not be the one where the snapshot was taken."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


@cache
def _group(gid: int) -> str:
    import grp

    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)
