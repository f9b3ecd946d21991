"""`ipfsfs log`: the snapshots of a covered directory, mounted or not."""

from __future__ import annotations

import argparse
import sys
import time
from typing import cast

from fused.cli.exits import Exit
from fused.cli.options import add_directory, add_json, add_state_dir
from fused.cli.output import counted, human_bytes, painter, print_json, printable
from fused.cli.target import Target, find_target
from fused.control import Json, call
from fused.errors import DaemonGone


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs log`."""
    parser.epilog = """\
examples:
  ipfsfs log                         of the mount that the working directory is in
  ipfsfs log -n 5 ~/data             the last five
  ipfsfs log --json ~/data           a list of objects: snapshot, tree, time, files, bytes, changed
  ipfsfs ls $(ipfsfs log --json ~/data | jq -r '.[1].snapshot')
                                     what was there one snapshot ago

`changed` counts files against the snapshot before: added, modified, removed.
"""
    add_directory(parser, "any path inside the directory (default: the working directory); it need not be mounted")
    add_state_dir(parser)
    parser.add_argument("-n", "--limit", type=_count, metavar="N", help="only the N newest")
    add_json(parser)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, 0 or more")
    return int(text)


def snapshots(target: Target) -> list[Json]:
    """The snapshots of `target`, newest first: from its daemon, else from its index. Raises IndexDamaged."""
    if target.mounted:
        try:
            return cast("list[Json]", call(target.state_dir, "log")["snapshots"])
        except DaemonGone:
            pass  # dead: the index is as good
    from fused.cid import format_cid
    from fused.index.index import read_snapshots
    from fused.private import is_ours

    if not is_ours(target.state_dir):
        return []
    try:
        rows = read_snapshots(target.state_dir)
    except FileNotFoundError:
        return []
    return [
        {
            "snapshot": format_cid(row.cid),
            "tree": format_cid(row.tree),
            "time": _iso_time(row.time_ns),
            "files": row.files,
            "bytes": row.bytes,
            "changed": {"added": row.added, "modified": row.modified, "removed": row.removed},
        }
        for row in rows
    ]


def _iso_time(time_ns: int) -> str:
    """As the daemon writes it."""
    seconds, rest_ns = divmod(time_ns, 1_000_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{rest_ns // 1_000_000:03d}Z"


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs log`."""
    found = snapshots(find_target(args.dir, args.state_dir))[: args.limit]
    if args.json:
        print_json(found)
        return Exit.OK
    paint = painter(sys.stdout)
    for entry in found:
        print(paint("yellow", printable(str(entry["snapshot"]))))
        print(f"    time     {printable(str(entry['time']))}")
        print(f"    tree     {printable(str(entry['tree']))}")
        print(
            f"    content  {counted(cast('int', entry['files']), 'file')}, {human_bytes(cast('int', entry['bytes']))}"
        )
        print(f"    changed  {_changes(cast('dict[str, int]', entry.get('changed') or {}))}")
    if not found:
        print("no snapshots yet", file=sys.stderr)
    return Exit.OK


def _changes(changed: dict[str, int]) -> str:
    parts = [f"{changed[kind]:,} {kind}" for kind in ("added", "modified", "removed") if changed.get(kind)]
    return ", ".join(parts) or "no content"
