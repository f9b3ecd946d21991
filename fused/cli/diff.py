"""`ipfsfs diff`: what differs between two snapshots, or between a snapshot and the live tree."""

from __future__ import annotations

import json
import sys
from contextlib import aclosing, nullcontext
from typing import TYPE_CHECKING

from fused.cid import format_cid, parse_cid
from fused.cli.exits import Exit
from fused.cli.options import add_json, add_progress
from fused.cli.output import JsonList, painter, printable
from fused.cli.source import Tree, add_source, cid_text, parse_tree, quoted, with_store
from fused.errors import NotMounted, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import AsyncGenerator

    from fused.cid import CID
    from fused.control import Json
    from fused.store.base import Store
    from fused.view.compare import Change
    from fused.view.directory import Node

_COLOURS = {"A": "green", "D": "red", "M": "yellow", "T": "yellow", "m": "dim"}
_NAMES = {"A": "added", "D": "removed", "M": "modified", "T": "type", "m": "metadata"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs diff`."""
    parser.description = (
        "Say what changed from the first tree to the second. Without a second, the first is compared with the live "
        "tree of the mount that we are in: what was written so far is stored first, as `ipfsfs sync` does."
    )
    parser.epilog = """\
examples:
  ipfsfs diff bafy…                  what changed in the live tree since that snapshot
  ipfsfs diff latest                 … since the newest one
  ipfsfs diff bafy…A bafy…B          between two snapshots
  ipfsfs diff bafy…A/etc bafy…B/etc  in one directory

A line has a letter and a path: A added, D removed, M other content, T became another kind of thing, m the same
content with another mode, owner, group, mtime or xattrs. A directory's mtime is not worth a line where something
in it changed. Between a snapshot and a plain tree, only contents are compared.

Exit codes, as those of diff(1): 0 no difference, 1 there are differences, more: trouble.
"""
    parser.add_argument("before", metavar="SNAPSHOT[/PATH]", help="the first tree; `latest` is the newest snapshot")
    parser.add_argument("after", metavar="SNAPSHOT[/PATH]", nargs="?", help="the second (default: the live tree)")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing, only give the exit code")
    parser.add_argument("--no-metadata", action="store_true", help="leave out what differs in attributes only")
    add_json(parser)
    add_progress(parser)
    add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs diff`."""
    before = parse_tree(args.before, args)
    after = parse_tree(args.after, args) if args.after else Tree(_live(args), before.path)

    async def work(store: Store) -> int:
        from fused.view.compare import compare

        old, new = await _find(store, before), await _find(store, after)
        head = {"before": format_cid(before.cid), "after": format_cid(after.cid), "changes": None}
        array = JsonList(json.dumps(head).removesuffix("null}"), "}") if args.json and not args.quiet else nullcontext()
        async with aclosing(compare(store, old, new)) as changes:
            with array as objects:
                different = await show(changes, objects)
        return Exit.FAILED if different else Exit.OK

    async def show(changes: AsyncGenerator[Change], objects: JsonList | None) -> bool:
        from fused.view.compare import ChangeKind

        paint = painter(sys.stdout)
        different = False
        async for change in changes:
            if args.no_metadata and change.kind is ChangeKind.METADATA:
                continue
            different = True
            if args.quiet:
                break
            if objects is not None:
                objects.add(_object(change))
            else:
                print(paint(_COLOURS[change.kind.value], _line(change)))
        return different

    return with_store(args, work)


def _live(args: argparse.Namespace) -> CID:
    """A snapshot of what the mount holds now. Raises UsageError where there is no mount."""
    from fused.cli.barrier import flush
    from fused.cli.progress import Progress
    from fused.cli.target import find_mounted
    from fused.control import call

    try:
        target = find_mounted(args.mount)
    except NotMounted as e:
        raise UsageError(f"{e}; name a second snapshot to compare with, or a mount with --mount") from None
    flush(target)
    with Progress(args.progress) as progress:
        return parse_cid(str(call(target.state_dir, "sync", {}, progress)["snapshot"]))


async def _find(store: Store, tree: Tree) -> Node:
    from fused.view.directory import find, open_root

    return await find(store, (await open_root(store, tree.cid)).node, tree.path)


def _line(change: Change) -> str:
    shown = printable if sys.stdout.isatty() else str
    node = change.after or change.before
    name = shown(quoted(change.path)) + ("/" if node is not None and node.kind == "dir" else "")
    what = ", ".join(change.attributes)
    if change.kind.value == "T" and change.before is not None and change.after is not None:
        what = f"{change.before.kind} -> {change.after.kind}"
    return f"{change.kind.value}  {name}" + (f"  ({what})" if what and change.kind.value in "mT" else "")


def _object(change: Change) -> Json:
    return {
        "change": _NAMES[change.kind.value],
        "path": quoted(change.path),
        "attributes": list(change.attributes),
        "before": _side(change.before),
        "after": _side(change.after),
    }


def _side(node: Node | None) -> Json | None:
    if node is None:
        return None
    value: Json = {"kind": node.kind, "size": node.size, "cid": cid_text(node.cid)}
    if node.attrs is not None:
        value |= {
            "mode": f"{node.attrs.mode:04o}",
            "uid": node.attrs.uid,
            "gid": node.attrs.gid,
            "mtime_ns": node.attrs.mtime_ns,
        }
    return value
