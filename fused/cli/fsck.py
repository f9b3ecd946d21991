"""`ipfsfs fsck`: is everything that should be stored there, and whole? It names exactly what is not."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from fused import state
from fused.cli.exits import Fsck
from fused.cli.options import DIRECTORY, add_json, add_progress, add_state_dir, add_store, completes
from fused.cli.output import counted, human_bytes, painter, print_json, printable, say
from fused.cli.progress import Progress
from fused.cli.source import named_store
from fused.cli.target import Target, find_target
from fused.control import call
from fused.errors import DaemonGone, IpfsfsError, StoreDamaged, StoreUnavailable, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from fused.check.course import Course, IndexSide, Subject
    from fused.check.findings import Finding
    from fused.check.index import IndexState
    from fused.check.stores import CheckedStore
    from fused.cli.output import Paint
    from fused.config import Settings
    from fused.index.index import SnapshotRow

_PATHS_SHOWN = 5
_SNAPSHOTS_SHOWN = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs fsck`."""
    parser.description = (
        "Check the store (its bookkeeping, and every block in it, whoever's snapshots need it), the snapshots of DIR, "
        "and what is remembered of DIR's files. Of a node's blocks, those that snapshots need are read. It works while "
        "DIR is mounted and in use, and while it is not. Names each damaged block with the snapshots and paths that "
        "need it. Of clean local files only the stat is looked at, unless --content is given. Files that are not "
        "stored yet are counted, and are no error. With --repair, damaged blocks are made again from DIR's plain files "
        "as far as these still have the content, the index is mended or made anew, and the bookkeeping is set right. "
        "What can't be repaired stays, and stays named."
    )
    parser.epilog = """\
examples:
  ipfsfs fsck ~/data                          the store, ~/data's snapshots and index
  ipfsfs fsck --repair ~/data                 set right what can be set right
  ipfsfs fsck --json ~/data | jq '.findings'  everything that was found, with all paths
  ipfsfs fsck --store-dir /mnt/disk/store     a store alone, with the snapshots of all
  ipfsfs fsck --store kubo                    all that ipfsfs has pinned at this machine's Kubo node

exit codes, as fsck(8) has them and no other command of ipfsfs (add them up): 0 nothing is wrong, 1 something was
put right, 4 something is wrong and was left so, 8 the check itself failed, 16 wrong usage, 32 interrupted.
"""
    completes(
        parser.add_argument(
            "dir",
            metavar="DIR",
            nargs="?",
            help="any path inside the directory (default: the working directory; with --store or --store-dir, none)",
        ),
        DIRECTORY,
    )
    parser.add_argument("--repair", action="store_true", help="set right what can be")
    parser.add_argument(
        "--content",
        action="store_true",
        help="read every clean local file and compare it with what is remembered of it",
    )
    completes(
        parser.add_argument("--store-dir", metavar="DIR", help="the store to check (default: the directory's)"),
        DIRECTORY,
    )
    add_store(parser, "the directory's")
    add_state_dir(parser)
    add_json(parser)
    add_progress(parser)


def refuse(exc: SystemExit) -> NoReturn:
    """End because of arguments that can't be understood: argparse has said so, and has chosen a code of others."""
    raise SystemExit(Fsck.USAGE if exc.code == 2 else exc.code)


@dataclass(slots=True)
class _Result:
    """All that a run has found out. `failed` says why a part of the check could not be made."""

    course: Course | None = None
    findings: list[Finding] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    interrupted: bool = False

    def code(self) -> int:
        code = Fsck.CLEAN
        if any(found.mended for found in self.findings):
            code |= Fsck.CORRECTED
        if any(not found.mended and not found.harmless for found in self.findings):
            code |= Fsck.UNCORRECTED
        if self.failed:
            code |= Fsck.OPERATIONAL
        if self.interrupted:
            code |= Fsck.CANCELLED
        return int(code)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs fsck`."""
    result = _Result()
    target: Target | None = None
    try:
        if args.dir is not None or (args.store_dir is None and args.store is None):
            target = find_target(args.dir or ".", args.state_dir)
        with Progress(args.progress) as progress:
            _check(args, target, result, progress)
    except KeyboardInterrupt:
        result.interrupted = True
        say("interrupted")
    except UsageError as exc:
        say(str(exc))
        return Fsck.USAGE
    except (IpfsfsError, OSError) as exc:
        _failed(exc, result)
    for sentence in result.failed:
        say(sentence)
    if args.json:
        print_json(_object(target, result))
    elif not result.failed or result.findings:
        print("\n".join(_lines(result, painter(sys.stdout))))
    return result.code()


def _failed(exc: Exception, result: _Result) -> None:
    """A damaged store is something found; all else that ends a check is a check that could not be made."""
    from fused.check.findings import Finding

    if isinstance(exc, StoreDamaged):
        if not any(found.kind == "store" and not found.mended for found in result.findings):
            result.findings.append(Finding("store", str(exc)))
    elif isinstance(exc, OSError) and exc.filename:
        result.failed.append(f"{os.fsdecode(exc.filename)}: {exc.strerror}")
    else:
        result.failed.append(str(exc))


def _check(args: argparse.Namespace, target: Target | None, result: _Result, progress: Progress) -> None:
    from fused.check.course import Course
    from fused.check.stores import checked_store
    from fused.config import read_settings

    settings = None if target is None else read_settings(target.state_dir)
    spec = named_store(args, settings, args.dir or ".")
    if spec.kind == "embedded" and (not os.path.isdir(spec.directory) or not os.listdir(spec.directory)):
        # Looking for damage makes no new store.
        raise StoreUnavailable(f"there is no store at {spec.directory}; --store-dir names another")
    lock = None if target is None or target.mounted else state.take_lock(target.state_dir)
    try:
        with checked_store(spec) as store:
            subject = None if target is None else _subject(target, settings, store, progress)
            result.course = Course(store, subject, progress, args.content, args.repair)
            try:
                result.course.run()
            finally:
                result.findings = result.course.findings
    except DaemonGone as exc:
        assert target is not None
        raise DaemonGone(
            f"the daemon has died and the dead mount hides {target.mountpoint}, so its files could not be looked at: "
            f"`ipfsfs umount {target.mountpoint}` uncovers them"
        ) from exc
    finally:
        if lock is not None:
            os.close(lock)


def _subject(target: Target, settings: Settings | None, store: CheckedStore, progress: Progress) -> Subject:
    from fused.check.course import OurIndex, Subject
    from fused.paths import mount_id

    owner = mount_id(target.mountpoint) if settings is None else settings.owner
    patterns = () if settings is None else settings.exclude
    index: IndexSide
    if target.mounted:
        index = _DaemonsIndex(target.state_dir, progress)
    else:
        index = OurIndex(target.mountpoint, target.state_dir, patterns, owner, store, progress)
    return Subject(owner, target.mountpoint, target.state_dir, patterns, index)


@dataclass(frozen=True, slots=True)
class _DaemonsIndex:
    """The index of a running mount, by way of its control socket."""

    state_dir: str
    progress: Progress

    def check(self, *, content: bool, repair: bool) -> IndexState:
        from fused.check.index import state_from_json

        return state_from_json(
            call(self.state_dir, "check-index", {"content": content, "repair": repair}, self.progress)
        )

    def mend_list(self, drop: Sequence[int], replace: Sequence[tuple[int, SnapshotRow]]) -> None:
        from fused.check.index import row_as_json

        rows = [[number, row_as_json(row)] for number, row in replace]
        call(self.state_dir, "mend-list", {"drop": list(drop), "replace": rows})


# --- what there is to say --------------------------------------------------------------------------------


def _object(target: Target | None, result: _Result) -> dict[str, object]:
    checked = None if result.course is None else result.course.checked
    index = None if result.course is None else result.course.index
    return {
        "mountpoint": None if target is None else target.mountpoint,
        "mounted": target is not None and target.mounted,
        "exit": result.code(),
        "findings": [found.as_json() for found in result.findings],
        "failed": result.failed,
        "checked": {
            "blocks": 0 if checked is None else checked.blocks,
            "bytes": 0 if checked is None else checked.bytes,
            "snapshots": 0 if checked is None else checked.snapshots,
            "files": 0 if index is None else index.files,
            "directories": 0 if index is None else index.directories,
            "dirty": 0 if index is None else index.dirty,
        },
    }


def _lines(result: _Result, paint: Paint) -> list[str]:
    lines = []
    for found in result.findings:
        lines += _finding(found, paint)
    checked = None if result.course is None else result.course.checked
    index = None if result.course is None else result.course.index
    if checked is not None:
        lines.append(
            f"{counted(checked.blocks, 'block')} verified ({human_bytes(checked.bytes)}), "
            f"{counted(checked.snapshots, 'snapshot')}"
        )
    if index is not None and not index.damaged:
        where = "1 directory" if index.directories == 1 else f"{index.directories:,} directories"
        lines.append(
            f"{counted(index.files, 'file')} in {where} compared with the index; "
            f"{index.dirty:,} of them not stored as they are now"
        )
    wrong = sum(1 for found in result.findings if not found.mended and not found.harmless)
    if not result.interrupted and not result.failed:
        lines.append(paint("red", counted(wrong, "error") + " left") if wrong else paint("green", "clean"))
    return lines


def _finding(found: Finding, paint: Paint) -> list[str]:
    from fused.cid import format_cid

    colour = "green" if found.mended else "yellow" if found.harmless else "red"
    name = "" if found.cid is None or format_cid(found.cid) in found.what else f" {format_cid(found.cid)}"
    note = " (repaired)" if found.mended else " (does no harm)" if found.harmless else ""
    what = found.what if found.kind != "block" else found.what.removeprefix("block ")
    lines = [f"{paint(colour, found.kind)}{name}{':' if found.kind != 'block' else ''} {printable(what)}{note}"]
    if found.snapshots:
        lines.append("    " + _some("snapshot", [format_cid(cid) for cid in found.snapshots], _SNAPSHOTS_SHOWN))
    elif found.kind == "block":
        lines.append("    in no snapshot")
    if found.paths:
        lines.append(
            "    " + _some("path", [printable(os.fsdecode(path) or ".") for path in found.paths], _PATHS_SHOWN)
        )
    return lines


def _some(what: str, items: list[str], limit: int) -> str:
    more = f", and {len(items) - limit:,} more (--json has them all)" if len(items) > limit else ""
    return f"{counted(len(items), what)}: {', '.join(items[:limit])}{more}"
