"""`ipfsfs status`: how a covered directory is, in a table for people and in JSON for scripts."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, cast

from fused import paths, state
from fused.cli.exits import Exit
from fused.cli.options import add_directory, add_json, add_state_dir
from fused.cli.output import counted, human_bytes, human_seconds, painter, print_json, printable, table
from fused.cli.target import Target, find_target
from fused.control import Json, call
from fused.errors import ControlError, DaemonGone, IndexDamaged
from fused.gates import gates, store_only_entries

if TYPE_CHECKING:
    import argparse

    from fused.cli.output import Paint

_ANSWER_S = 10.0
"""A daemon that is silent for longer hangs; that is what `status` then says."""

_SKIPPED_SHOWN = 10
_KINDS = ("total", "dirty", "storing", "stored", "excluded", "skipped")


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs status`."""
    parser.description = (
        "Say whether DIR is mounted, what of it is stored and what is not yet, what was skipped and why, "
        "how store and disk are, and what is wrong. Exit code 0: mounted and serving, 3: not mounted, "
        "4: the daemon has died or does not answer."
    )
    parser.epilog = """\
examples:
  ipfsfs status                                  the mount that the working directory is in
  ipfsfs status --json ~/data | jq .files        numbers for a script
  ipfsfs status --json ~/data | jq -r '.wrong[]' what a person should look at
"""
    add_directory(parser, "any path inside the directory (default: the working directory)")
    add_state_dir(parser)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs status`."""
    target = find_target(args.dir, args.state_dir)
    report, code = report_of(target)
    report["gates"] = [gate._asdict() for gate in gates()]
    if args.json:
        print_json(report)
    else:
        print("\n".join(_lines(report, painter(sys.stdout))))
    return code


# --- what there is to say --------------------------------------------------------------------------------


def report_of(target: Target) -> tuple[Json, Exit]:
    """The daemon's own report, or what can be told without one."""
    seen = state.read_supervision(target.state_dir)
    supervised = seen is not None and state.is_locked(target.state_dir)
    supervision = None if seen is None else {**seen._asdict(), "running": supervised and seen.gave_up is None}
    if target.mounted:
        try:
            report = call(target.state_dir, "status", timeout=_ANSWER_S)
            report["supervisor"] = supervision
            if seen is not None and seen.deaths:
                sentence = (
                    f"the daemon has died and was restarted {counted(seen.deaths, 'time')}, last {seen.last_death}"
                )
                report["wrong"] = [*cast("list[str]", report["wrong"]), sentence]
            return report, Exit.OK
        except DaemonGone:
            sentence, mounted_as = "the daemon has died: the dead mount answers every request with an error", "dead"
            hint = f"`ipfsfs mount {target.mountpoint}` mounts again, `ipfsfs umount {target.mountpoint}` uncovers"
            if supervised and seen is not None and seen.gave_up is None:
                hint = "it is being restarted"
            wrong = [f"{sentence}; {hint}"]
        except ControlError as exc:
            wrong, mounted_as = [str(exc)], "silent"
    else:
        wrong, mounted_as = [], "unmounted"
    if seen is not None and seen.gave_up is not None:
        wrong.append(seen.gave_up)
    report = {"mountpoint": target.mountpoint, "state": mounted_as, "pid": None, "supervisor": supervision}
    from fused.cli.log import snapshots

    try:
        taken = snapshots(Target(target.mountpoint, target.state_dir, mounted=False))
        report |= {"snapshots": len(taken), "snapshot": taken[0] if taken else None}
    except IndexDamaged as exc:
        wrong.append(str(exc))
        report |= {"snapshots": None, "snapshot": None}
    missing = store_only_entries(target.state_dir)
    if missing and not target.mounted:
        wrong.append(f"{missing} entries exist only in the store: `ipfsfs hydrate {target.mountpoint}` gets them")
    report |= {"log": os.path.join(target.state_dir, paths.LOG), "wrong": wrong}
    return report, Exit.TROUBLE if target.mounted else Exit.NOT_MOUNTED


# --- for people ------------------------------------------------------------------------------------------


def _lines(report: Json, paint: Paint) -> list[str]:
    serving = "files" in report
    colour = "green" if serving and not report["wrong"] else "yellow" if serving else "red"
    head = f"{paint('bold', printable(str(report['mountpoint'])))}  {paint(colour, str(report['state']))}"
    if serving:
        head += f"  pid {report['pid']}, ipfsfs {report['version']}{_options(cast('Json', report['options']))}"
    lines = [head, ""]
    if serving:
        lines += _counts(report)
    lines += _snapshot(report)
    if serving:
        lines += [*_waiting(report, paint), *_disks(report), "", *_requests(report)]
    lines += _gates(report)
    wrong = cast("list[str]", report["wrong"])
    lines += [paint("red", f"wrong     {printable(sentence)}") for sentence in wrong]
    return lines


def _options(options: Json) -> str:
    return "".join(f", {key.replace('_', '-')}" for key, value in options.items() if value is True)


def _counts(report: Json) -> list[str]:
    files, sizes = cast("dict[str, int]", report["files"]), cast("dict[str, int]", report["bytes"])
    rows = [(kind, counted(files[kind], "file"), human_bytes(sizes[kind])) for kind in _KINDS]
    lines = table(rows, right=(False, True, True))
    scan = cast("dict[str, int]", report["scan"])
    if scan["running"]:
        lines.append(f"scanning  {scan['seen']:,} entries seen so far")
    skipped = cast("list[dict[str, str]]", report["skipped"])
    lines += [f"  skipped {printable(entry['path'])}: {entry['why']}" for entry in skipped[:_SKIPPED_SHOWN]]
    if len(skipped) > _SKIPPED_SHOWN:
        lines.append(f"  and {len(skipped) - _SKIPPED_SHOWN} more; --json has them all")
    return [*lines, ""]


def _snapshot(report: Json) -> list[str]:
    snapshot = cast("Json | None", report["snapshot"])
    if snapshot is None:
        return ["snapshot  none yet"]
    age = f", {human_seconds(cast('float', snapshot['age_seconds']))} ago" if "age_seconds" in snapshot else ""
    content = f"{counted(cast('int', snapshot['files']), 'file')}, {human_bytes(cast('int', snapshot['bytes']))}"
    return [
        f"snapshot  {snapshot['snapshot']}",
        f"          {snapshot['time']}{age}: {content}",
        f"tree      {snapshot['tree']}",
    ]


def _waiting(report: Json, paint: Paint) -> list[str]:
    waiting = cast("Json | None", report.get("waiting"))
    if waiting is None:
        return []
    what = f"{counted(cast('int', waiting['files']), 'file')} ({human_bytes(cast('int', waiting['bytes']))})"
    since = _clock(str(waiting["since"]))
    return [paint("yellow", printable(f"waiting   {what} for the store since {since}: {waiting['error']}"))]


def _clock(iso: str) -> str:
    """`14:03` of today, with the date of another day, in the time of this machine."""
    from datetime import datetime

    try:
        when = datetime.fromisoformat(iso).astimezone()
    except ValueError:
        return iso
    return when.strftime("%H:%M" if when.date() == datetime.now().astimezone().date() else "%Y-%m-%d %H:%M")


_REACHES = {
    "public": "public: whoever knows a CID can get its content",
    "private": "private: its swarm key keeps others out",
    "offline": "offline: nobody can get anything from it",
    "unknown": "whether it is public is not known",
}


def _disks(report: Json) -> list[str]:
    store, local = cast("Json", report["store"]), cast("Json", report["local"])
    health = "healthy" if store["healthy"] else f"NOT healthy: {store['error']}"
    if "address" in store:
        version = f" {store['version']}" if store["version"] else ""
        where = f"{version} at {printable(str(store['address']))}"
    else:
        where = f" in {printable(str(store['path']))}"
    lines = [f"store     {store['kind']}{where}, {printable(health)}"]
    if "reach" in store:
        lines.append(f"          {_REACHES.get(str(store['reach']), store['reach'])}")
    if store.get("blocks") is not None:
        sizes = [human_bytes(cast("int", store[key])) for key in ("bytes", "disk_bytes")]
        lines.append(f"          {counted(cast('int', store['blocks']), 'block')}, {sizes[0]} in {sizes[1]} on disk")
    total, free = (human_bytes(cast("int", local[key])) for key in ("total_bytes", "free_bytes"))
    return [*lines, f"local     {free} of {total} free"]


def _requests(report: Json) -> list[str]:
    requests = cast("dict[str, dict[str, float]]", report["requests"])
    served = sorted((kind for kind in requests if requests[kind]["count"]), key=lambda kind: -requests[kind]["count"])
    if not served:
        return []
    columns = ("count", "errors", "p50_us", "p99_us", "max_us")
    rows = [("requests", "count", "errors", "p50 µs", "p99 µs", "max µs")]
    rows += [(kind, *(f"{requests[kind][column]:,.0f}" for column in columns)) for kind in served]  # type: ignore[misc]
    return [*table(rows, right=(False, True, True, True, True, True)), ""]


def _gates(report: Json) -> list[str]:
    closed = [gate for gate in cast("list[Json]", report["gates"]) if gate["closed"]]
    if not closed:
        return ["gates     open: nothing in this environment keeps `ipfsfs mount` from mounting"]
    return [f"gates     {gate['name']}={gate['value']} keeps `ipfsfs mount` from mounting" for gate in closed]
