"""`ipfsfs umount`: a last snapshot, then the plain directory again."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING, cast

from fused import state
from fused.cli.exits import Exit
from fused.cli.options import add_directory, add_json, add_progress, add_state_dir
from fused.cli.output import counted, human_bytes, print_json, say
from fused.cli.progress import Progress
from fused.cli.target import Target, find_target
from fused.control import Json, call
from fused.errors import Busy, ControlError, DaemonGone, MountError, NotMounted
from fused.fs import mounts

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

_GONE_S = 60.0
"""For a daemon that has unmounted to end; it has closing of files and databases left to do."""

_SHOWN = 5
"""Processes named in the sentence that says who keeps the mount busy."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs umount`."""
    parser.description = (
        "Take a last snapshot of the directory, wait until it is stored, and uncover the directory: its plain files "
        "stay where they are. A mount that is in use stays, and the processes that use it are named."
    )
    parser.epilog = """\
examples:
  ipfsfs umount ~/data               with a last snapshot
  ipfsfs umount --now ~/data         at once; says what is not stored yet (it is found at the next mount)
"""
    add_directory(parser, "any path inside the mount (default: the working directory)")
    parser.add_argument("--now", action="store_true", help="do not wait for a last snapshot")
    add_state_dir(parser)
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs umount`."""
    target = find_target(args.dir, args.state_dir)
    if not target.mounted and not state.is_locked(target.state_dir):
        raise NotMounted(f"{target.mountpoint} is not mounted")
    os.chdir("/")  # our own working directory may be what keeps it busy
    try:
        result = _ask_daemon(target, args.now, args.progress)
    except DaemonGone:
        _without_daemon(target)
        result = {"snapshot": None, "unstored": None}
    _wait_until_plain(target)
    unstored = cast("dict[str, int] | None", result.get("unstored"))
    if args.json:
        print_json(result)
    elif result.get("scanned") is False and args.now:
        say(
            f"not all of {target.mountpoint} had been looked at, so how much is not stored yet is not known; "
            "the next mount of it does it"
        )
    elif unstored and unstored["files"]:
        left = f"{counted(unstored['files'], 'file')} ({human_bytes(unstored['bytes'])}) not stored yet"
        if args.now:
            say(f"{left}; the next mount of {target.mountpoint} does it")
        else:
            say(f"the last snapshot failed, so {left}; {target.mountpoint} has the plain files, the log says why")
    return Exit.TROUBLE if unstored and unstored["files"] and not args.now else Exit.OK


def _ask_daemon(target: Target, now: bool, show_progress: bool | None) -> Json:
    with Progress(show_progress) as progress:
        try:
            return call(target.state_dir, "umount", {"now": now}, progress)
        except MountError as exc:
            if mounts.find_mount_at(target.mountpoint) is None:  # somebody else was quicker; its end is waited for
                return {"snapshot": None, "unstored": None}
            users = [str(holder) for holder in mounts.holders(target.mountpoint)]
            users += [f"a mount on {mount.path}" for mount in mounts.nested_mounts(target.mountpoint)]
            if not users and not isinstance(exc, Busy):
                raise
            more = f" and {len(users) - _SHOWN} more" if len(users) > _SHOWN else ""
            by = f" by {', '.join(users[:_SHOWN])}{more}" if users else ""
            raise Busy(f"{target.mountpoint} is in use{by}; it stays mounted") from None


def _without_daemon(target: Target) -> None:
    """The daemon is dead. Stop who would bring it back, and take the dead mount away."""
    supervision = state.read_supervision(target.state_dir)
    if supervision is not None and state.is_locked(target.state_dir):
        with suppress(ProcessLookupError):
            os.kill(supervision.pid, signal.SIGTERM)
        _wait_for(lambda: not state.is_locked(target.state_dir), f"supervisor {supervision.pid} does not end")
    if mounts.find_mount_at(target.mountpoint) is not None:
        mounts.detach(target.mountpoint)
    say(
        f"the daemon of {target.mountpoint} had died, so no last snapshot was taken; "
        "what is not stored yet is found at the next mount"
    )


def _wait_until_plain(target: Target) -> None:
    _wait_for(
        lambda: mounts.find_mount_at(target.mountpoint) is None and not state.is_locked(target.state_dir),
        f"the daemon of {target.mountpoint} has not ended",
    )


def _wait_for(condition: Callable[[], bool], otherwise: str) -> None:
    """Look every 10 ms. There is nothing to wait on: neither process is a child of ours."""
    deadline = time.monotonic() + _GONE_S
    while not condition():
        if time.monotonic() > deadline:
            raise ControlError(f"{otherwise} after {_GONE_S:g} seconds")
        time.sleep(0.01)
