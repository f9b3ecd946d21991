"""Whether a directory can be covered, or how the mount that covers it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from fused import paths
from fused.cli.checkup.check import Check, fail, ok, warn
from fused.cli.exits import Exit
from fused.cli.output import human_bytes
from fused.cli.place import refuse_overlap, refuse_place
from fused.cli.status import report_of
from fused.errors import UsageError
from fused.fs import mounts
from fused.fs.pace import PASSED_ON
from fused.gates import allow_other_obstacle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fused.cli.target import Target
    from fused.config import Settings

LITTLE_BYTES = 256 << 20
"""Less free space is worth a word: storing makes a second copy of what is written."""


def check_mount(target: Target) -> Iterator[Check]:
    """How a mount is that is there: what `ipfsfs status` says of it."""
    report, code = report_of(target)
    more = f"`ipfsfs status {target.mountpoint}` shows more"
    wrong = cast("list[str]", report["wrong"])
    if code is Exit.OK:
        daemon = f"daemon {report['pid']}, ipfsfs {report['version']}"
        yield ok("mount", f"{target.mountpoint} is mounted and serves ({daemon})")
        for sentence in wrong:
            yield warn("mount", sentence, more)
        return
    for sentence in wrong:
        detail, _, advice = sentence.partition("; ")
        yield fail("mount", code, detail, advice or more)


def check_place(settings: Settings) -> Iterator[Check]:
    """Whether a directory that is not mounted can be."""
    mountpoint = settings.mountpoint
    try:
        refuse_place(settings)
        refuse_overlap(settings)
    except UsageError as exc:
        yield fail("directory", Exit.USAGE, str(exc), "choose another directory, or correct this one")
        return
    outer = mounts.find_mount(mountpoint)
    if outer is not None:
        yield warn(
            "directory",
            f"{mountpoint} lies in {outer.path}, which is mounted and stores it",
            f"`ipfsfs doctor {outer.path}` looks at that",
        )
    elif os.path.isdir(mountpoint):
        yield ok("directory", f"{mountpoint} can be covered")
    else:
        yield ok("directory", f"{mountpoint} does not exist; `ipfsfs mount` makes it")
    where = existing(mountpoint)
    yield check_filesystem(where)
    yield check_space("space", where)
    yield from check_allow_other_setting(settings)


def existing(path: str) -> str:
    """`path`, or the nearest directory above it that is there."""
    return next(place for place in paths.ancestors(path) if os.path.isdir(place))


def check_filesystem(path: str) -> Check:
    """Which file system the plain files are on."""
    kind = mounts.filesystem_type(os.stat(path).st_dev)
    if kind is None:
        return ok("file system", "is of a type that can't be told")
    if kind.startswith(PASSED_ON):
        return warn(
            "file system",
            f"{kind} passes each write on to another process or machine, so every write here waits for a thread",
            "everything works; a directory on a local disk is faster",
        )
    return ok("file system", kind)


def check_space(name: str, path: str) -> Check:
    """How much is free, for this user. Some file systems in memory have no limit, and count no blocks."""
    found = os.statvfs(path)
    free, total = found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize
    detail = f"{human_bytes(free)} of {human_bytes(total)} free at {path}"
    if total and free < LITTLE_BYTES:
        return warn(name, detail, "make room: on a full disk programs get ENOSPC, and nothing new is stored")
    return ok(name, detail if total else f"{path} has no limit")


def check_allow_other_setting(settings: Settings) -> Iterator[Check]:
    """Whether the setting `allow_other` can be met."""
    why = allow_other_obstacle() if settings.allow_other else None
    if why is not None:
        yield fail("allow_other", Exit.USAGE, why, "as root: echo user_allow_other >> /etc/fuse.conf")
