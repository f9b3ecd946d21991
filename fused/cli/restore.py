"""`ipfsfs restore`: a snapshot, or parts of it, as plain files again."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from fused.cid import format_cid
from fused.cli.exits import Exit
from fused.cli.options import DIRECTORY, add_json, add_progress, completes
from fused.cli.output import human_bytes, print_json, say
from fused.cli.progress import Progress
from fused.cli.source import Tree, add_source, parse_tree, paths_below, quoted, with_store
from fused.errors import NotMounted, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

    from fused.control import Json
    from fused.store.base import Store
    from fused.view.directory import Names
    from fused.view.plan import Finding, Plan
    from fused.view.restore import Report

_SHOWN = 50
"""Conflicts named on a terminal before "and so many more"; --json has all of them."""

_KINDS = {
    "file": "file",
    "dir": "director{y|ies}",
    "link": "symbolic link",
    "hardlink": "hard link",
    "fifo": "fifo",
    "sock": "socket",
    "chr": "device",
    "blk": "device",
}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs restore`."""
    parser.description = (
        "Write a snapshot, or the named paths of it, into a directory: contents, modes, times, xattrs, hard links, "
        "symbolic links, fifos and sockets; owners and devices as far as your rights go. What is there with the same "
        "content and attributes is left alone, what is there besides is never touched."
    )
    parser.epilog = """\
examples:
  ipfsfs restore bafy… --to ~/old              all of it, to another directory (made if missing)
  ipfsfs restore bafy… notes/plan.md           one file, back into the mount that we are in
  ipfsfs restore latest --overwrite notes      a directory, as it was in the newest snapshot
  ipfsfs restore bafy…/models --to ~/models    a directory of the snapshot as the root
  ipfsfs restore --dry-run bafy…               say what would be done

PATHs are paths inside the snapshot; below the mount point they may be absolute, too.

Existing things that differ stop it: they are listed, nothing at all is changed, and the exit code is 1. With
--overwrite they are replaced, each in one step, so that nobody ever sees half a file; a directory in the place
of a file has to be removed by hand. Existing directories keep their mode and times unless --overwrite is given,
or the directory restored to is empty.

Of a snapshot that no mount with this store has taken, set-ID bits, devices, owners, and attributes other than
user.* are left out, and that is said: somebody else chose them. --trust restores them, as far as your rights go.

Exit codes: 0 all of it is there and synced to disk; 1 something is not, and is named; more: trouble.
"""
    parser.add_argument("snapshot", metavar="SNAPSHOT[/PATH]", help="what to restore; `latest` is the newest snapshot")
    parser.add_argument("path", metavar="PATH", nargs="*", help="only these paths of it")
    completes(
        parser.add_argument("--to", metavar="DIR", help="restore to this directory (default: the mount)"), DIRECTORY
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what exists and differs")
    parser.add_argument("-n", "--dry-run", action="store_true", help="change nothing, say what would be done")
    parser.add_argument(
        "--trust", action="store_true", help="also what is privileged in a snapshot that is not your own"
    )
    add_json(parser)
    add_progress(parser)
    add_source(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs restore`."""
    tree = parse_tree(args.snapshot, args)
    destination, mountpoint = _destination(args)
    paths = paths_below(mountpoint, args.path)

    async def work(store: Store) -> int:
        return await _restore(store, tree, destination, paths, args)

    return with_store(args, work)


def _destination(args: argparse.Namespace) -> tuple[str, str | None]:
    """The directory to restore to, and the mount point that absolute paths are taken relative to."""
    from fused.cli.target import find_mounted

    if args.to:
        return args.to, None
    try:
        target = find_mounted(args.mount)
    except NotMounted as e:
        raise UsageError(f"{e}; name a directory to restore to with --to, or a mount with --mount") from None
    return target.mountpoint, target.mountpoint


async def _restore(store: Store, tree: Tree, destination: str, paths: list[Names], args: argparse.Namespace) -> int:
    from fused.fs.mounts import find_mount
    from fused.view.directory import find, open_root
    from fused.view.restore import Report, Restore

    node = await find(store, (await open_root(store, tree.cid)).node, tree.path)
    if node.kind != "dir":
        raise UsageError(
            f"{args.snapshot} is not a directory; name it as a path: ipfsfs restore {format_cid(tree.cid)} "
            f"{quoted(tree.path)}"
        )
    trusted = args.trust or any(pin.cid == tree.cid for pin in await store.pins())
    with (
        Progress(args.progress) as progress,
        Restore(
            store, node, destination, paths, overwrite=args.overwrite, trusted=trusted, on_progress=progress
        ) as restore,
    ):
        plan = await restore.plan()
        stopped = bool(plan.blocked or (plan.conflicts and not args.overwrite))
        report = Report()
        if not stopped and not args.dry_run:
            # Through our own mount, only sync(2) reaches the disk: see Target.sync.
            report = await restore.run(plan, sync_everything=find_mount(destination) is not None)
    if args.json:
        print_json(_object(tree, destination, plan, report, stopped, args))
    else:
        _say(destination, plan, report, stopped, args)
    return Exit.FAILED if stopped or report.failed or report.skipped else Exit.OK


def _say(destination: str, plan: Plan, report: Report, stopped: bool, args: argparse.Namespace) -> None:
    _list(plan.blocked, "in the way")
    if not args.overwrite or args.dry_run:
        _list(plan.conflicts, "would be overwritten" if args.overwrite else "differs")
    if stopped:
        differing = len(plan.conflicts) + len(plan.blocked)
        advice = "remove what is in the way" if plan.blocked else "--overwrite replaces it, --to restores elsewhere"
        what = "1 path there differs" if differing == 1 else f"{differing:,} paths there differ"
        say(f"nothing was changed in {destination}: {what}; {advice}")
        return
    if args.dry_run:
        _list(plan.skipped, "would be skipped")
        print(f"would restore {_counts(plan.counts)} to {destination}, writing {human_bytes(plan.bytes_to_write)}")
        return
    _list(report.skipped, "skipped")
    _list(report.failed, "failed")
    for note in report.notes:
        say(note)
    unchanged = f"; {_count(report.unchanged, 'entr{y|ies}')} unchanged" if report.unchanged else ""
    print(
        f"restored {_counts(report.restored)} ({human_bytes(report.bytes_written)}) to {destination}{unchanged}",
        file=sys.stderr,
    )


def _list(findings: list[Finding], word: str) -> None:
    for finding in findings[:_SHOWN]:
        say(f"{word}: {quoted(finding.path)}: {finding.why}")
    if len(findings) > _SHOWN:
        say(f"{word}: and {len(findings) - _SHOWN:,} more; --json lists all")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(_count(counts[kind], word) for kind, word in _KINDS.items() if counts.get(kind)) or "nothing"


def _count(number: int, word: str) -> str:
    """`1 file`, `2 files`, `2 directories` for `director{y|ies}`."""
    stem, brace, ends = word.partition("{")
    one, many = ends.rstrip("}").split("|") if brace else ("", "s")
    return f"{number:,} {stem}{one if number == 1 else many}"


def _object(tree: Tree, destination: str, plan: Plan, report: Report, stopped: bool, args: argparse.Namespace) -> Json:
    return {
        "cid": format_cid(tree.cid),
        "target": os.path.abspath(destination),
        "dry_run": args.dry_run,
        "stopped": stopped,
        "planned": {**plan.counts, "bytes": plan.bytes_to_write},
        "restored": {
            **{kind: count for kind, count in report.restored.items() if count},
            "bytes": report.bytes_written,
        },
        "unchanged": report.unchanged,
        "conflicts": _findings(plan.conflicts),
        "blocked": _findings(plan.blocked),
        "skipped": _findings(plan.skipped if args.dry_run or stopped else report.skipped),
        "failed": _findings(report.failed),
        "notes": report.notes,
    }


def _findings(findings: Iterable[Finding]) -> list[Json]:
    return [{"path": quoted(finding.path), "why": finding.why} for finding in findings]
