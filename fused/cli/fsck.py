"""`ipfsfs fsck`: is everything that should be stored there, and whole? It names exactly what is not."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NoReturn

from fused import state
from fused.cli.exits import Fsck
from fused.cli.options import DIRECTORY, add_json, add_progress, add_state_dir, completes
from fused.cli.output import Paint, counted, human_bytes, painter, print_json, printable, say
from fused.cli.progress import Progress
from fused.cli.target import Target, find_target
from fused.control import call
from fused.errors import DaemonGone, IndexDamaged, IpfsfsError, StoreUnavailable, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from fused.check.findings import Finding
    from fused.check.index import IndexState
    from fused.check.snapshots import Shown, StoreCheck
    from fused.config import Settings
    from fused.store.blocking import BlockingStore

_PATHS_SHOWN = 5
_SNAPSHOTS_SHOWN = 3


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs fsck`."""
    parser.description = (
        "Check the store (its bookkeeping, and every block in it, whoever's snapshots need it), the snapshots of DIR, "
        "and what is remembered of DIR's files. It works while DIR is mounted and in use, and while it is not. Names "
        "each damaged block with the snapshots and paths that need it. Of clean local files only the stat is looked "
        "at, unless --content is given. Files that are not stored yet are counted, and are no error."
    )
    parser.epilog = """\
examples:
  ipfsfs fsck ~/data                          the store, ~/data's snapshots and index
  ipfsfs fsck --json ~/data | jq '.findings'  everything that was found, with all paths
  ipfsfs fsck --store-dir /mnt/disk/store     a store alone, with the snapshots of all

exit codes, as fsck(8) has them and no other command of ipfsfs (add them up): 0 nothing is wrong, 1 something was
put right, 4 something is wrong and was left so, 8 the check itself failed, 16 wrong usage, 32 interrupted.
"""
    completes(
        parser.add_argument(
            "dir",
            metavar="DIR",
            nargs="?",
            help="any path inside the directory (default: the working directory; with --store-dir, none)",
        ),
        DIRECTORY,
    )
    parser.add_argument(
        "--content",
        action="store_true",
        help="read every clean local file and compare it with what is remembered of it",
    )
    completes(
        parser.add_argument("--store-dir", metavar="DIR", help="the store to check (default: the directory's)"),
        DIRECTORY,
    )
    add_state_dir(parser)
    add_json(parser)
    add_progress(parser)


def refuse(exc: SystemExit) -> NoReturn:
    """End because of arguments that can't be understood: argparse has said so, and has chosen a code of others."""
    raise SystemExit(Fsck.USAGE if exc.code == 2 else exc.code)


@dataclass(slots=True)
class _Result:
    """All that a run has found out. `failed` says why a part of the check could not be made."""

    findings: list[Finding] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    store: StoreCheck | None = None
    index: IndexState | None = None
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
        if args.dir is not None or args.store_dir is None:
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
        result.failed.append(_sentence(exc))
    for sentence in result.failed:
        say(sentence)
    if args.json:
        print_json(_object(target, result))
    elif not result.failed or result.findings:
        print("\n".join(_lines(result, painter(sys.stdout))))
    return result.code()


def _sentence(exc: Exception) -> str:
    if isinstance(exc, OSError):
        return f"{os.fsdecode(exc.filename)}: {exc.strerror}" if exc.filename else str(exc.strerror or exc)
    return str(exc)


# --- checking --------------------------------------------------------------------------------------------


def _check(args: argparse.Namespace, target: Target | None, result: _Result, progress: Progress) -> None:
    from fused.check.snapshots import StoreCheck
    from fused.store.blocking import BlockingStore

    settings = _settings(target)
    store_dir = os.path.abspath(os.path.expanduser(args.store_dir)) if args.store_dir else _store_dir(settings)
    lock = None if target is None or target.mounted else state.take_lock(target.state_dir)
    try:
        with _opened(store_dir, BlockingStore, result) as store:
            result.store = StoreCheck(store, _shown(target, settings), progress)
            try:
                result.store.run()
            finally:
                result.findings += result.store.findings
            if target is not None:
                _check_index(args, target, settings, store, result, progress)
    except StoreUnavailable as exc:
        _store_failed(exc, result)
    finally:
        if lock is not None:
            os.close(lock)


def _settings(target: Target | None) -> Settings | None:
    from fused.config import read_settings

    return None if target is None else read_settings(target.state_dir)


def _store_dir(settings: Settings | None) -> str:
    from fused.paths import default_store_dir

    return settings.store_dir if settings is not None else default_store_dir()


def _opened(store_dir: str, opener: Callable[[str], BlockingStore], result: _Result) -> BlockingStore:
    """The store, which must exist: looking for damage makes no new one."""
    if not os.path.isdir(store_dir) or not os.listdir(store_dir):
        raise StoreUnavailable(f"there is no store at {store_dir}; --store-dir names another")
    return opener(store_dir)


def _store_failed(exc: StoreUnavailable, result: _Result) -> None:
    from fused.check.findings import Finding
    from fused.errors import StoreDamaged

    if isinstance(exc, StoreDamaged):
        result.findings.append(Finding("store", str(exc)))
    else:
        result.failed.append(str(exc))


def _shown(target: Target | None, settings: Settings | None) -> Shown | None:
    """The list of snapshots, if it can be read. That it can't is found again, and told, with the rest of the index."""
    from fused.check.snapshots import Shown
    from fused.index.reading import IndexReader
    from fused.paths import mount_id

    if target is None:
        return None
    try:
        with IndexReader(target.state_dir) as reader:
            return Shown(settings.owner if settings is not None else mount_id(target.mountpoint), reader.snapshots())
    except (IndexDamaged, FileNotFoundError):
        return None


def _check_index(
    args: argparse.Namespace,
    target: Target,
    settings: Settings | None,
    store: BlockingStore,
    result: _Result,
    progress: Progress,
) -> None:
    from fused.check.index import check_index, state_from_json
    from fused.check.memos import NothingRuns

    if target.mounted:
        try:
            said = call(target.state_dir, "check-index", {"content": args.content}, progress)
        except DaemonGone:
            result.failed.append(
                f"the daemon has died and the dead mount hides {target.mountpoint}, so its files could not be looked "
                f"at: `ipfsfs umount {target.mountpoint}` uncovers them"
            )
            return
        result.index = state_from_json(said)
    else:
        root_fd = os.open(target.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            patterns = settings.exclude if settings is not None else ()
            result.index = check_index(
                root_fd,
                target.state_dir,
                store,
                patterns,
                NothingRuns(),
                progress,
                content=args.content,
                quietly=lambda work: work(),
            )
        finally:
            os.close(root_fd)
    known = result.store.bad if result.store is not None else {}
    result.findings += [found for found in result.index.findings if found.cid is None or found.cid not in known]


# --- what there is to say --------------------------------------------------------------------------------


def _object(target: Target | None, result: _Result) -> dict[str, object]:
    checked, index = result.store, result.index
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
    checked, index = result.store, result.index
    if checked is not None:
        lines.append(
            f"{counted(checked.blocks, 'block')} verified ({human_bytes(checked.bytes)}), "
            f"{counted(checked.snapshots, 'snapshot')}"
        )
    if index is not None and not index.damaged:
        lines.append(
            f"{counted(index.files, 'file')} in {counted(index.directories, 'directory').replace('ys', 'ies')} "
            f"compared with the index; {index.dirty:,} of them not stored as they are now"
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
