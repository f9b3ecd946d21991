"""Which mount a command is about: from a path anywhere inside it to its state directory."""

from __future__ import annotations

import os

from fused import paths, private
from fused.errors import NotMounted
from fused.fs import mounts


class Target:
    """A covered directory, mounted at the moment or not."""

    __slots__ = ("mounted", "mountpoint", "state_dir")

    def __init__(self, mountpoint: str, state_dir: str, mounted: bool) -> None:
        """`mounted`: there is a mount of ours on it; its daemon may be dead."""
        self.mountpoint = mountpoint
        self.state_dir = state_dir
        self.mounted = mounted


def find_target(path: str, state_dir: str | None = None) -> Target:
    """The innermost mount that `path` lies in, else the innermost directory that was mounted once.

    `state_dir` is for a directory that is not mounted and keeps its state elsewhere than by default.
    Raises NotMounted if there is neither.
    """
    mount = mounts.find_mount(path)
    if mount is not None and mount.state_dir is not None:
        return Target(mount.path, mount.state_dir, True)
    where = os.path.realpath(path)
    for place in paths.ancestors(where):
        candidate = os.path.abspath(state_dir) if state_dir else paths.default_state_dir(place)
        if _remembered_mountpoint(candidate) == place:
            return Target(place, candidate, False)
    raise NotMounted(f"{where} is not inside an ipfsfs mount, and never was")


def find_mounted(path: str) -> Target:
    """The innermost mount that `path` lies in. Raises NotMounted."""
    target = find_target(path)
    if not target.mounted:
        raise NotMounted(f"{target.mountpoint} is not mounted; `ipfsfs mount {target.mountpoint}` mounts it")
    return target


def _remembered_mountpoint(state_dir: str) -> str | None:
    """What settings.json says. Parsed here, as `config` with its dataclasses costs quick commands 10 ms."""
    import json

    if not private.is_ours(state_dir):
        return None
    try:
        with open(os.path.join(state_dir, paths.SETTINGS), encoding="ascii") as stream:
            mountpoint = json.load(stream)["mountpoint"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return mountpoint if isinstance(mountpoint, str) else None
