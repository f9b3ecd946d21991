"""Directories and files of the daemon's own that no other local user may read, write, swap or have prepared.

A directory is ours if we own it and nobody else can put another one in its place: every directory on the way to it
belongs to us or to root and is not writable by everybody, unless it is sticky as /tmp is. A group that may write there
was let in by whoever set the mode, and is trusted. (OpenSSH asks the same of ~/.ssh, see sshd_config(5), StrictModes.)
"""

from __future__ import annotations

import os
import stat

from fused.errors import UsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import IO

_OTHERS = 0o077
_WRITABLE_BY_OTHERS = 0o022


def prepare(path: str, what: str) -> None:
    """Make the directory `path` for us alone, or make sure that it is. Raises UsageError, OSError.

    Missing parents are made, and private too, whatever the umask. A directory of ours that is too open is closed; if
    others could write to it, what is in it must be ours as well. `what` names it in the error's sentence.
    """
    whole = os.path.abspath(path)
    for place in reversed(list(_ancestors(whole))):
        if not os.path.isdir(place):
            _make(place)
        if why := _swappable(place, itself=place == whole):
            raise UsageError(f"{what} {path} is not safe: {why}")
    real = os.path.realpath(whole)
    for place in _ancestors(real):
        if why := _swappable(place, itself=place == real):
            raise UsageError(f"{what} {path} is not safe: {why}")
    fd = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _close_to_others(fd, path, what)
    finally:
        os.close(fd)


def _make(place: str) -> None:
    try:
        os.mkdir(place, 0o700)
    except FileExistsError:
        if not os.path.isdir(place):  # it is not that another of our processes was quicker
            raise


def _close_to_others(fd: int, path: str, what: str) -> None:
    st = os.fstat(fd)
    if st.st_uid != os.geteuid():
        raise UsageError(f"{what} {path} belongs to another user (uid {st.st_uid})")
    if not st.st_mode & _OTHERS:
        return
    os.fchmod(fd, 0o700)
    if not st.st_mode & _WRITABLE_BY_OTHERS:
        return
    if why := _theirs(fd, st, path, what):
        os.fchmod(fd, stat.S_IMODE(st.st_mode))
        raise UsageError(why)


def _theirs(fd: int, st: os.stat_result, path: str, what: str) -> str | None:
    """What in a directory that others could write to may be theirs, as a sentence."""
    for name in os.listdir(fd):
        inside = os.stat(name, dir_fd=fd, follow_symlinks=False)
        link = stat.S_ISLNK(inside.st_mode) or (stat.S_ISREG(inside.st_mode) and inside.st_nlink > 1)
        if inside.st_uid != st.st_uid or link or inside.st_mode & _WRITABLE_BY_OTHERS:
            return (
                f"{what} {path} could be written by other users, and {os.path.join(path, name)} may be theirs; "
                "look at it, then remove the directory or choose another"
            )
    return None


def obstacle(path: str, what: str) -> str | None:
    """Why `prepare` would fail, as far as can be told without changing anything; None if it would not."""
    whole = os.path.abspath(path)
    try:
        for way in dict.fromkeys((whole, os.path.realpath(whole))):
            for place in reversed(_ancestors(way)):
                if not os.path.isdir(place):
                    return _unmakeable(place, path, what)
                if why := _swappable(place, itself=place == way):
                    return f"{what} {path} is not safe: {why}"
        return _unusable(whole, path, what)
    except OSError as exc:
        return f"{what} {path} can't be used: {exc.strerror}"


def _unmakeable(place: str, path: str, what: str) -> str | None:
    if os.path.lexists(place):
        return f"{what} {path} can't be used: {place} is not a directory"
    parent = os.path.dirname(place)
    if not os.access(parent, os.W_OK | os.X_OK, effective_ids=True):
        return f"{what} {path} can't be made: {parent} is not ours to write"
    return None


def _unusable(whole: str, path: str, what: str) -> str | None:
    fd = os.open(whole, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        st = os.fstat(fd)
        if st.st_uid != os.geteuid():
            return f"{what} {path} belongs to another user (uid {st.st_uid})"
        if not os.access(whole, os.W_OK | os.X_OK, effective_ids=True):
            return f"{what} {path} is not ours to write"
        return _theirs(fd, st, path, what) if st.st_mode & _WRITABLE_BY_OTHERS else None
    finally:
        os.close(fd)


def is_ours(path: str) -> bool:
    """Whether `path` is a directory that belongs to this process's user. What is in another's is not to be believed."""
    try:
        st = os.stat(path)
    except OSError:
        return False
    return stat.S_ISDIR(st.st_mode) and st.st_uid == os.geteuid()


def why_not_believed(st: os.stat_result) -> str | None:
    """Why a file with this stat can't be taken for what we, or root, wrote; None if it can."""
    if st.st_uid not in (0, os.geteuid()):
        return f"belongs to another user (uid {st.st_uid})"
    if st.st_mode & stat.S_IWOTH:
        return "can be written by everybody"
    return None


def create(path: str) -> IO[str]:
    """A text file for us alone, empty. Never through a symbolic link."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "w", encoding="ascii")


def _ancestors(path: str) -> list[str]:
    """`path`, which is absolute, its parent, … up to the root."""
    found = [path]
    while (parent := os.path.dirname(path)) != path:
        found.append(parent)
        path = parent
    return found


def _swappable(place: str, *, itself: bool) -> str | None:
    """Why somebody else could put something else in the place of `place` or of what is in it; None if nobody could.

    `itself`: it is the directory that is wanted, whose mode is looked at later.
    """
    st = os.lstat(place)
    if st.st_uid not in (0, os.geteuid()) and not _is_unmapped(st.st_uid):
        return f"{place} belongs to another user (uid {st.st_uid})"
    if not itself and stat.S_ISDIR(st.st_mode) and st.st_mode & stat.S_IWOTH and not st.st_mode & stat.S_ISVTX:
        return f"everybody may write to {place}"
    return None


def _is_unmapped(uid: int) -> bool:
    """Whether `uid` stands for root outside of a user namespace, as the root directory's owner does in containers."""
    with open("/proc/sys/kernel/overflowuid", encoding="ascii") as number, open("/proc/self/uid_map") as mapping:
        return uid == int(number.read()) and mapping.read().split() != ["0", "0", "4294967295"]
