"""The system's mounts, as far as they concern us: find ours, tell dead ones, detach, say who keeps one busy.

Standard library only, so that the command line can look for a mount without loading trio or pyfuse3, and what finding
one does not need is imported where it is used: `ipfsfs sync` must not wait for 20 ms of imports. Nothing here
touches a path under a mount unless its docstring says so: a daemon that hangs must not hang whoever asks about it.
"""

from __future__ import annotations

import errno
import os

from fused.errors import MountError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

FILESYSTEM_TYPE = "fuse.ipfsfs"
SUBTYPE = "ipfsfs"
_SOURCE_PREFIX = "ipfsfs:"

_MNT_DETACH = 2
_UMOUNT_NOFOLLOW = 8


class MountPoint:
    """One line of mountinfo (proc_pid_mountinfo(5)). `path` may contain surrogate escapes, as `os.fsdecode` makes."""

    __slots__ = ("device", "filesystem", "mount_id", "options", "path", "source")

    def __init__(
        self, mount_id: int, device: int, path: str, filesystem: str, source: str, options: frozenset[str]
    ) -> None:
        self.mount_id = mount_id
        self.device = device
        self.path = path
        self.filesystem = filesystem
        self.source = source
        self.options = options

    @property
    def state_dir(self) -> str | None:
        """Where the daemon of an ipfsfs mount keeps its state; None for other mounts."""
        if self.filesystem != FILESYSTEM_TYPE or not self.source.startswith(_SOURCE_PREFIX):
            return None
        quoted = self.source.removeprefix(_SOURCE_PREFIX)
        if "%" not in quoted:
            return quoted
        from urllib.parse import unquote

        return unquote(quoted, errors="surrogateescape")


def source_name(state_dir: str) -> str:
    """The `fsname` of a mount: what `MountPoint.state_dir` is read from. Plain ASCII without commas or blanks."""
    from urllib.parse import quote

    return _SOURCE_PREFIX + quote(os.fsencode(state_dir))


def _unescape(field: str) -> str:
    r"""mountinfo writes blank, tab, newline and backslash as \ooo."""
    first, *others = field.split("\\")
    return first + "".join(chr(int(part[:3], 8)) + part[3:] for part in others)


def _parse(line: str) -> MountPoint:
    before, _, after = line.rstrip("\n").partition(" - ")
    fields = before.split(" ")
    filesystem, source, _ = (after + " ").split(" ", 2)
    major, _, minor = fields[2].partition(":")
    return MountPoint(
        mount_id=int(fields[0]),
        device=os.makedev(int(major), int(minor)),
        path=_unescape(fields[4]),
        filesystem=_unescape(filesystem),
        source=_unescape(source),
        options=frozenset(fields[5].split(",")),
    )


def mounts(having: str = "") -> list[MountPoint]:
    """All mounts that this process sees, in the kernel's order: a later one may lie over an earlier one.

    `having`: only those with this in their line of mountinfo.
    """
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return [_parse(line) for line in lines if having in line]


def _is_inside(path: str, directory: str) -> bool:
    return path == directory or path.startswith(directory.rstrip("/") + "/")


def find_mount(path: str) -> MountPoint | None:
    """The nearest ipfsfs mount that `path` is in or at; the path need not exist.

    Looks at the path as it is written first, without touching it, and only then through symbolic links.
    """
    ours = [mount for mount in mounts(FILESYSTEM_TYPE) if mount.filesystem == FILESYSTEM_TYPE]
    if not ours:
        return None
    written = os.path.abspath(path)
    return _nearest(ours, written) or _nearest(ours, os.path.realpath(written))


def _nearest(candidates: list[MountPoint], path: str) -> MountPoint | None:
    enclosing = [mount for mount in candidates if _is_inside(path, mount.path)]
    # Of several mounts over one directory the last one shows; max() would return the first.
    return max(reversed(enclosing), key=lambda mount: len(mount.path), default=None)


def find_mount_at(path: str) -> MountPoint | None:
    """The ipfsfs mount that shows at `path`, an absolute, resolved path; None if it is another one or none at all."""
    here = [mount for mount in mounts() if mount.path == path]
    return here[-1] if here and here[-1].filesystem == FILESYSTEM_TYPE else None


def nested_mounts(directory: str) -> list[MountPoint]:
    """Mounts strictly below an absolute, resolved directory."""
    return [mount for mount in mounts() if mount.path != directory and _is_inside(mount.path, directory)]


def filesystem_type(device: int) -> str | None:
    """The type of the file system with this `st_dev`, if it is mounted under that number."""
    return next((mount.filesystem for mount in mounts() if mount.device == device), None)


def is_stale(path: str) -> bool:
    """Whether `path` is at or in a FUSE mount whose daemon is gone. Touches the path; a living daemon is asked.

    statvfs is never answered from the kernel's cache, as stat is: for as long as the dead daemon has allowed.
    """
    try:
        os.statvfs(path)
    except OSError as error:
        return error.errno in (errno.ENOTCONN, errno.ECONNABORTED)
    return False


def detach(path: str) -> None:
    """Take a mount off its directory at once, also a dead or busy one. Raises MountError.

    Programs that have files open on it keep them; the connection ends with the last of them.
    """
    import ctypes
    import subprocess

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.umount2(os.fsencode(path), _MNT_DETACH | _UMOUNT_NOFOLLOW) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EPERM, errno.EACCES):
        raise MountError(f"{path} can't be unmounted: {os.strerror(number)}")
    try:
        done = subprocess.run(
            ["fusermount3", "-u", "-z", "--", path], capture_output=True, text=True, check=False, errors="replace"
        )
    except FileNotFoundError as error:
        raise MountError("fusermount3 is not installed: it is needed to unmount without being root") from error
    if done.returncode != 0:
        raise MountError(f"{path} can't be unmounted: {fusermount_reason(done.stderr)}")


def detach_mounts_of(state_dir: str, mountpoint: str) -> None:
    """Take away every mount at `mountpoint` that the daemon with this state directory has made. Raises MountError.

    For whoever knows that the daemon is dead: the mount is not touched to find out.
    """
    while (mount := find_mount_at(mountpoint)) is not None and mount.state_dir == state_dir:
        detach(mountpoint)


def fusermount_reason(stderr: str) -> str:
    """The last thing that fusermount3 or umount complained about, without its own name."""
    import re

    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return re.sub(r"^(fusermount3|fuse|umount): *", "", lines[-1]) if lines else "no reason was given"


class Holder:
    """A process that keeps a mount busy, with the first path found."""

    __slots__ = ("command", "path", "pid")

    def __init__(self, pid: int, command: str, path: str) -> None:
        self.pid = pid
        self.command = command
        self.path = path

    def __str__(self) -> str:
        return f"{self.command} (pid {self.pid}, {self.path})"


def holders(mountpoint: str) -> list[Holder]:
    """Which other processes have a working directory, an open file or a mapping on the mount, as far as we may see.

    Reads only /proc: what a process has open is told there without asking the file system. An open file counts by the
    mount that it is on, as the daemon's own descriptor of the covered directory has the same path.
    """
    here = [mount for mount in mounts() if mount.path == mountpoint]
    if not here:
        return []
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit() and entry != str(os.getpid()):
            path = next(_paths_on(here[-1], entry), None)
            if path is not None:
                found.append(Holder(int(entry), _command(entry), path))
    return found


def _paths_on(mount: MountPoint, pid: str) -> Iterator[str]:
    import contextlib

    for link in (f"/proc/{pid}/cwd", f"/proc/{pid}/root", f"/proc/{pid}/exe"):
        with contextlib.suppress(OSError):
            path = os.readlink(link)
            if _is_inside(path, mount.path):
                yield path
    with contextlib.suppress(OSError):  # gone, or not ours to look into
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                path = os.readlink(f"/proc/{pid}/fd/{fd}")
                if _is_inside(path, mount.path) and _mount_of(pid, fd) == mount.mount_id:
                    yield path
    with (
        contextlib.suppress(OSError),
        open(f"/proc/{pid}/maps", encoding="utf-8", errors="surrogateescape", newline="\n") as maps,
    ):
        for line in maps:
            fields = line.rstrip("\n").split(None, 5)
            if len(fields) == 6 and _is_inside(fields[5], mount.path):
                yield fields[5]


def _mount_of(pid: str, fd: str) -> int | None:
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii", errors="replace") as lines:
        return next((int(line.split()[1]) for line in lines if line.startswith("mnt_id:")), None)


def _command(pid: str) -> str:
    try:
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as comm:
            return comm.read().strip()
    except OSError:
        return "a process"
