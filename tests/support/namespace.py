"""Run a command in a mount name space of its own: what it mounts is seen by nobody else and goes with it.

    python tests/support/namespace.py COMMAND…

As `unshare --mount`, but it works in a plain chroot as well. There the root directory is not the root of a mount, so
propagation can't be turned off on it (mount(2), EINVAL), and what is mounted might show up outside.
"""

from __future__ import annotations

import ctypes
import os
import sys

_CLONE_NEWNS = 0x00020000
_MS_REC, _MS_PRIVATE = 0x4000, 1 << 18
_libc = ctypes.CDLL(None, use_errno=True)


def command(*words: str | os.PathLike[str]) -> list[str]:
    """The command line that runs `words` in a mount name space of its own. For root."""
    return [sys.executable, os.path.abspath(__file__), *map(os.fspath, words)]


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _make_private(path: bytes) -> None:
    _check(_libc.mount(None, path, None, _MS_REC | _MS_PRIVATE, None))


def _make_private_in_a_chroot() -> None:
    """Go up to the root of the name space's first mount, turn propagation off from there, and come back."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY)
    here = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chroot("/proc")  # any directory below: `..` stops at the root only on the way up from inside of it
    os.fchdir(root)
    for _ in range(64):
        os.chdir("..")
    _make_private(b".")
    os.fchdir(root)
    os.chroot(".")
    os.fchdir(here)
    os.close(root)
    os.close(here)


def main() -> None:
    """Leave the common name space and become the command."""
    _check(_libc.unshare(_CLONE_NEWNS))
    try:
        _make_private(b"/")
    except OSError:
        _make_private_in_a_chroot()
    os.execvp(sys.argv[1], sys.argv[1:])


if __name__ == "__main__":
    main()
