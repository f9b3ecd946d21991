"""When not to mount, and the one line that says why.

The variables are those that ipfs_accelerate_py itself reads, and they are read the way it reads them:
`1`, `true` or `yes` in any case, not stripped, no `on`; for `CI` anything that is not empty, `false` too.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping

_YES = frozenset({"1", "true", "yes"})
DEVICE = "/dev/fuse"
_FUSE_CONF = "/etc/fuse.conf"


class Gate(NamedTuple):
    """One variable that can keep ipfsfs from mounting. `value` is None if it is not set."""

    name: str
    value: str | None
    closed: bool


def gates(environ: Mapping[str, str] = os.environ) -> list[Gate]:
    """Every gate with its state, in the order in which they are asked."""
    states = []
    for name in ("IPFS_KIT_DISABLE", "STORAGE_FORCE_LOCAL"):
        value = environ.get(name)
        states.append(Gate(name, value, value is not None and value.lower() in _YES))
    value = environ.get("CI")
    states.append(Gate("CI", value, bool(value)))
    return states


def closed_gate(environ: Mapping[str, str] = os.environ) -> Gate | None:
    """The first gate that says not to mount."""
    return next((gate for gate in gates(environ) if gate.closed), None)


def fuse_obstacle(environ: Mapping[str, str] = os.environ) -> str | None:
    """Why this machine can't mount a FUSE file system for us, as far as can be told without trying.

    fusermount3 opens the device with the rights of the user who calls it, so everybody needs access to it.
    """
    return device_obstacle() or fusermount_obstacle(environ)


def device_obstacle() -> str | None:
    """Why the FUSE device can't be used by us."""
    if not os.path.exists(DEVICE):
        return f"{DEVICE} does not exist (is the fuse kernel module loaded, or the device passed to this container?)"
    try:
        os.close(os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except OSError as exc:
        return f"{DEVICE} can't be opened: {exc.strerror}"
    return None


def fusermount_obstacle(environ: Mapping[str, str] = os.environ) -> str | None:
    """Whether fusermount3 is missing. Root needs none."""
    if os.geteuid() != 0 and find_fusermount3(environ) is None:
        return "fusermount3 is not installed (Debian and Ubuntu: package fuse3)"
    return None


def find_fusermount3(environ: Mapping[str, str] = os.environ) -> str | None:
    """Where fusermount3 is."""
    import shutil  # 7 ms, and `ipfsfs status` asks only for the gates

    return shutil.which("fusermount3", path=environ.get("PATH"))


def allow_other_obstacle() -> str | None:
    """Why fusermount3 would refuse --allow-other. Root needs no permission."""
    if os.geteuid() == 0:
        return None
    try:
        with open(_FUSE_CONF, encoding="utf-8", errors="replace") as conf:
            if any(line.strip() == "user_allow_other" for line in conf):
                return None
    except OSError:
        pass
    return f"--allow-other needs the line user_allow_other in {_FUSE_CONF}"


def store_only_entries(state_dir: str) -> int:
    """How many entries of the mount exist only in the store, so that the plain directory is incomplete.

    Nothing evicts yet: always 0.
    """
    del state_dir
    return 0
