"""Where things are kept: the XDG directories and the files of a state directory.

One state directory belongs to one covered directory, and one embedded store to all mounts of a user.
Source: the XDG Base Directory Specification 0.8 (a relative value in a variable is to be ignored).
"""

from __future__ import annotations

import os

TYPE_CHECKING = False  # `typing` takes 10 ms to import, and `ipfsfs sync` comes by here
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONTROL = "control"  # the control socket
LOCK = "lock"  # flocked while a daemon or its supervisor lives
SETTINGS = "settings.json"  # what the directory was last mounted with
SUPERVISOR = "supervisor.json"  # the supervisor's pid and what it has seen
LOG = "log"  # of a mount in the background

_NAME_MAX = 48  # of the readable part of a mount id; with the hash it stays far below NAME_MAX


def _xdg(environ: Mapping[str, str], variable: str, *default: str) -> str:
    value = environ.get(variable, "")
    if os.path.isabs(value):
        return os.path.join(value, "ipfsfs")
    home = environ.get("HOME") or os.path.expanduser("~")
    return os.path.join(home, *default, "ipfsfs")


def state_home(environ: Mapping[str, str] = os.environ) -> str:
    """The parent of what this user's mounts remember."""
    return _xdg(environ, "XDG_STATE_HOME", ".local", "state")


def default_store_dir(environ: Mapping[str, str] = os.environ) -> str:
    """The embedded store that all mounts of this user share."""
    return os.path.join(_xdg(environ, "XDG_DATA_HOME", ".local", "share"), "store")


def config_file(environ: Mapping[str, str] = os.environ) -> str:
    """The file with this user's defaults; it need not exist."""
    return os.path.join(_xdg(environ, "XDG_CONFIG_HOME", ".config"), "config.toml")


def mount_id(mountpoint: str) -> str:
    """A name for the covered directory `mountpoint` (its real path): readable, unique, safe as a file name.

    It depends on the path alone, so that a lost state directory does not lose the mount's pins.
    """
    from hashlib import sha256  # 5 ms, and whoever finds a mount needs none

    base = os.path.basename(mountpoint) or "root"
    readable = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "_" for c in base)[:_NAME_MAX]
    return f"{readable}-{sha256(os.fsencode(mountpoint)).hexdigest()[:12]}"


def default_state_dir(mountpoint: str, environ: Mapping[str, str] = os.environ) -> str:
    """The state directory of the covered directory `mountpoint`, given as its real path."""
    return os.path.join(state_home(environ), "mounts", mount_id(mountpoint))


def ancestors(path: str) -> Iterator[str]:
    """`path` itself, its parent, … up to the root. `path` must be absolute and normal."""
    while True:
        yield path
        parent = os.path.dirname(path)
        if parent == path:
            return
        path = parent


def lies_in(path: str, directory: str) -> bool:
    """Whether a walk down to `path` passes `directory` (or ends there). Neither has to exist.

    Besides the real paths, identities are compared: where mounts propagate, something mounted over one
    name of a directory appears over its other names too (bind mounts).
    """
    path, directory = os.path.realpath(path), os.path.realpath(directory)
    if directory in ancestors(path):
        return True
    try:
        wanted = os.stat(directory)
    except OSError:
        return False
    for place in ancestors(path):
        try:
            if os.path.samestat(os.stat(place), wanted):
                return True
        except OSError:
            continue
    return False
