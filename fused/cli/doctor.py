"""`ipfsfs doctor`: would a mount be made here, and serve? Looks at everything that it needs, and changes nothing."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from fused.cli.checkup.machine import check_machine
from fused.cli.exits import Exit
from fused.cli.options import DIRECTORY, add_json, add_store, completes
from fused.cli.output import counted, painter, print_json, printable

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from fused.cli.checkup.check import Check
    from fused.cli.output import Paint

_FLAGS = ("state_dir", "store_dir", "store", "auth_file", "ca_file")
_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs doctor`."""
    parser.description = (
        "Say what a mount needs, what of it is there, and what to do about the rest: the gates, FUSE, the settings, "
        "and, with DIR, the directory, its state directory and its store. Nothing is made or changed. Exit code 0: a "
        "mount would be made and serve, or does, or a gate says not to, when `ipfsfs mount` ends with 0, too; "
        "else that of the first failure: 2 the directory or a setting, 4 daemon or store, 5 busy, 6 no FUSE."
    )
    parser.epilog = """\
examples:
  ipfsfs doctor                                  this machine alone
  ipfsfs doctor ~/data                           and whether ~/data can be covered, or how its mount is
  ipfsfs doctor --store kubo ~/data              with the store that `ipfsfs mount` would be given
  ipfsfs doctor --json ~/data | jq -r '.checks[] | select(.state != "ok") | .detail'
"""
    about = "the directory to cover, or a covered one (default: none, only this machine)"
    completes(parser.add_argument("dir", metavar="DIR", nargs="?", help=about), DIRECTORY)
    completes(parser.add_argument("--state-dir", metavar="DIR", help="as for ipfsfs mount"), DIRECTORY)
    add_store(parser, "what the settings say, else embedded")
    completes(parser.add_argument("--store-dir", metavar="DIR", help="as for ipfsfs mount"), DIRECTORY)
    add_json(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs doctor`."""
    checks = []
    paint = painter(sys.stdout)
    for check in _checks(args):
        checks.append(check)
        if not args.json:
            print("\n".join(_lines(check, paint)), flush=True)  # a node may take seconds
    failed = [check for check in checks if check.state == "fail"]
    if args.json:
        print_json({"checks": [check.as_json() for check in checks], "ok": not failed})
    else:
        print(_summary(checks, paint))
    return failed[0].code if failed else Exit.OK


def _checks(args: argparse.Namespace) -> Iterator[Check]:
    yield from check_machine()
    from fused.cli.checkup.keeping import check_state, check_store, load
    from fused.cli.checkup.place import check_mount, check_place
    from fused.cli.target import Target
    from fused.config import read_settings
    from fused.fs import mounts

    settings, said = load(os.curdir if args.dir is None else args.dir, {key: getattr(args, key) for key in _FLAGS})
    yield said
    if args.dir is None or settings is None:
        return
    mounted = mounts.find_mount_at(settings.mountpoint)
    if mounted is None or mounted.state_dir is None:
        yield from check_place(settings)
    else:
        yield from check_mount(Target(mounted.path, mounted.state_dir, True))
        settings = read_settings(mounted.state_dir) or settings  # those that it was mounted with
    yield check_state(settings, mounted=mounted is not None)
    yield from check_store(settings)


def _lines(check: Check, paint: Paint) -> list[str]:
    mark = paint(_COLOURS[check.state], f"{check.state:4}")
    lines = [f"{mark}  {check.name:24}  {printable(check.detail)}"]
    if check.advice is not None:
        lines.append(f"{'':32}{printable(check.advice)}")
    return lines


def _summary(checks: list[Check], paint: Paint) -> str:
    failed, warned = (sum(check.state == state for check in checks) for state in ("fail", "warn"))
    if failed:
        return paint("red", f"{counted(failed, 'failure')}: a mount would not be made, or does not serve")
    if any(check.state == "warn" and check.name.startswith("gate ") for check in checks):
        return paint("yellow", "a gate is closed: `ipfsfs mount` leaves the plain directory (--force mounts)")
    return paint("green", "ready to mount and serve") + (f", {counted(warned, 'warning')}" if warned else "")
