"""Run a command in a mount name space of its own: what it mounts is seen by nobody else and goes with it.

    python tests/support/namespace.py [--reachable] COMMAND…

With --reachable everybody can reach the program and its interpreter there, also if they are in root's home.

As `unshare --mount`, but it works in a plain chroot as well. There the root directory is not the root of a mount, so
propagation can't be turned off on it (mount(2), EINVAL), and what is mounted might show up outside.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_CLONE_NEWNS = 0x00020000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 1 << 18
_REPO = Path(__file__).resolve().parents[2]
_libc = ctypes.CDLL(None, use_errno=True)


def command(*words: str | os.PathLike[str], reachable: bool = False) -> list[str]:
    """The command line that runs `words` in a mount name space of its own. For root."""
    options = ["--reachable"] if reachable else []
    return [sys.executable, os.path.abspath(__file__), *options, *map(os.fspath, words)]


@contextlib.contextmanager
def with_open_fuse(node: Path) -> Iterator[list[str]]:
    """The start of a command line for a mount name space where everybody may open /dev/fuse, as udev has it.

    `node` is a device node to make, in a directory that goes away by itself.
    """
    script = 'mount --bind "$0" /dev/fuse && echo ready && exec sleep infinity'
    os.mknod(node, 0o020666, os.stat("/dev/fuse").st_rdev)
    node.chmod(0o666)
    with subprocess.Popen(command("sh", "-c", script, node, reachable=True), stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n"
            process = f"/proc/{holder.pid}"
            # The root as well: entering the name space leaves a chroot.
            yield ["nsenter", f"--mount={process}/ns/mnt", f"--root={process}/root", "--"]
        finally:
            holder.kill()


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


def _make_reachable(wanted: set[Path]) -> None:
    """Cover the directories on the way to `wanted` that keep others out, and bind what is wanted back in its place."""
    outermost = [path for path in wanted if not any(path != other and path.is_relative_to(other) for other in wanted)]
    closed: dict[Path, list[Path]] = {}
    for path in outermost:
        for parent in reversed(path.parents):
            if parent.stat().st_mode & 0o005 != 0o005:
                closed.setdefault(parent, []).append(path)
                break
    for parent, paths in closed.items():
        places = [(path, os.open(path, os.O_PATH)) for path in paths]
        _check(_libc.mount(b"none", os.fsencode(parent), b"tmpfs", 0, b"mode=755"))
        for path, fd in places:
            path.mkdir(parents=True)
            _check(_libc.mount(b"/proc/self/fd/%d" % fd, os.fsencode(path), None, _MS_BIND | _MS_REC, None))
            os.close(fd)


def main(words: list[str]) -> None:
    """Leave the common name space and become the command."""
    _check(_libc.unshare(_CLONE_NEWNS))
    try:
        _make_private(b"/")
    except OSError:
        _make_private_in_a_chroot()
    if words[0] == "--reachable":
        _make_reachable({_REPO, *(Path(place).resolve() for place in (sys.prefix, sys.base_prefix))})
        words = words[1:]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
