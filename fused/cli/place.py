"""Whether a directory can be covered by a mount. Looks, and changes nothing."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from typing import TYPE_CHECKING

from fused import paths, state
from fused.errors import Busy, UsageError
from fused.fs import mounts
from fused.gates import allow_other_obstacle

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fused.config import Settings

_ENDING_S = 5.0
"""For the mount of a daemon that was killed a moment ago to be dead."""


def refuse(settings: Settings) -> None:
    """Raise UsageError, or Busy, if the mount can't work. Changes nothing."""
    mountpoint = settings.mountpoint
    mounted = mounts.find_mount_at(mountpoint)
    if mounted is not None and is_served(mounted):
        raise Busy(f"{mountpoint} is already mounted; `ipfsfs status {mountpoint}` shows it")
    if mounted is None:  # a dead mount can't be looked at; it was a directory when it was covered
        refuse_place(settings)
    refuse_overlap(settings)
    if settings.allow_other:
        obstacle = allow_other_obstacle()
        if obstacle is not None:
            raise UsageError(obstacle)


def refuse_overlap(settings: Settings) -> None:
    """Raise UsageError if what the daemon uses lies under the mount, or the mount in what it uses."""
    mountpoint = settings.mountpoint
    for what, place in _places(settings).items():
        if paths.lies_in(place, mountpoint):
            raise UsageError(
                f"{mountpoint} can't be covered: {what} ({place}) lies in it, the daemon would wait for itself"
            )
    for what, place in (("state directory", settings.state_dir), ("store", settings.store_dir)):
        if paths.lies_in(mountpoint, place):
            raise UsageError(f"{mountpoint} can't be covered: it lies in the {what} ({place})")


def is_served(mounted: mounts.MountPoint) -> bool:
    """Whether the mount's daemon lives, as far as can be told.

    While a killed process ends, the kernel closes its files one by one: its lock may be free already and its mount
    look alive for some milliseconds more. A daemon that lives holds its lock, so that is waited for.
    """
    deadline = time.monotonic() + _ENDING_S
    while not mounts.is_stale(mounted.path):
        if mounted.state_dir is None or state.is_locked(mounted.state_dir) or time.monotonic() > deadline:
            return True
        time.sleep(0.01)
    return False


def refuse_place(settings: Settings) -> None:
    """What must hold for the directory itself, or for the place where it is to be made."""
    mountpoint = settings.mountpoint
    try:
        st = os.stat(mountpoint)
    except FileNotFoundError:
        parent = next(place for place in paths.ancestors(os.path.dirname(mountpoint)) if os.path.lexists(place))
        if not os.path.isdir(parent):
            raise UsageError(f"{mountpoint} can't be made: {parent} is not a directory") from None
        if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
            raise UsageError(f"{mountpoint} does not exist, and {parent} is not ours to write") from None
        return
    except NotADirectoryError:
        raise UsageError(f"{mountpoint} is below something that is not a directory") from None
    except OSError as exc:
        raise UsageError(f"{mountpoint} can't be looked at: {exc.strerror}") from None
    if not stat.S_ISDIR(st.st_mode):
        raise UsageError(f"{mountpoint} is not a directory")
    root = os.geteuid() == 0
    if not os.access(mountpoint, os.R_OK | os.X_OK, effective_ids=True):
        raise UsageError(f"{mountpoint} is not ours to read")
    # fusermount3 wants write access for a read-only mount too; root may cover a read-only file system.
    if not os.access(mountpoint, os.W_OK, effective_ids=True):
        read_only_disk = bool(os.statvfs(mountpoint).f_flag & os.ST_RDONLY)
        if not (root and (settings.read_only or read_only_disk)):
            why = "on a read-only file system, which only root can cover" if read_only_disk else "not ours to write"
            raise UsageError(f"{mountpoint} is {why}")
    if not root and st.st_mode & stat.S_ISVTX and st.st_uid != os.geteuid():
        raise UsageError(f"{mountpoint} is shared (sticky) and belongs to another user")


def _places(settings: Settings) -> Mapping[str, str]:
    """What the daemon uses while it serves, by name: none of it may lie under the mount."""
    import fused

    places = {
        "the state directory": settings.state_dir,
        "the store": settings.store_dir,
        "ipfsfs itself": os.path.dirname(os.path.abspath(fused.__file__)),
        "the Python that runs ipfsfs": os.path.realpath(sys.executable),
        "the Python environment of ipfsfs": sys.prefix,
        "the Python installation": sys.base_prefix,
    }
    if settings.log_file is not None:
        places["the log file"] = settings.log_file
    spec = settings.store_spec
    if spec.auth_file is not None:
        places["the file with the node's authorization"] = spec.auth_file
    if spec.ca_file is not None:
        places["the file with certificates"] = spec.ca_file
    if spec.kind != "embedded":
        # Storing changes it, which would have to be stored. Where the node behind a URL keeps its own, we can't know.
        repository = spec.address if spec.kind == "ipfs-kit" else None
        if spec.address is None or repository is not None:
            places["the node's repository"] = repository or os.environ.get("IPFS_PATH") or os.path.expanduser("~/.ipfs")
        socket = re.fullmatch(r"(?:unix://|/unix)(/.*)", spec.address or "")
        if socket is not None:
            places["the node's socket"] = socket[1]
    return places
