"""The state directory of one covered directory: making it, its lock, and what the supervisor notes in it.

The lock is an open file description lock (fcntl(2), F_OFD_SETLK) on the file `lock`: supervisor and daemon share
the description, so it is held while either of them lives, and others can ask for it without taking it, which
flock can't do.
"""

from __future__ import annotations

import fcntl
import json
import os
import struct
from contextlib import suppress
from typing import NamedTuple, cast

from fused import paths, private
from fused.errors import Busy, UsageError

_FLOCK = "hhqqi4x"  # struct flock: l_type, l_whence, l_start, l_len (0: to the end), l_pid (0 for this kind of lock)


class Supervision(NamedTuple):
    """What the supervisor of a mount in the background has seen."""

    pid: int
    daemon_pid: int | None
    deaths: int
    last_death: str | None
    """When and how, for a person."""
    gave_up: str | None
    """Why it does not try again; the supervisor has ended then."""


def prepare(state_dir: str) -> None:
    """Make the state directory, or check that it is ours alone. Raises UsageError."""
    try:
        private.prepare(state_dir, "the state directory")
    except FileExistsError as exc:
        if exc.filename == os.path.abspath(state_dir):
            raise UsageError(f"the state directory {state_dir} is not a directory") from None
        raise UsageError(f"the state directory {state_dir} can't be used: {exc.filename} is not a directory") from None
    except OSError as exc:
        raise UsageError(f"the state directory {state_dir} can't be used: {exc.strerror}") from None


def take_lock(state_dir: str) -> int:
    """Take the lock for as long as the returned descriptor, or a copy in a child, is open. Raises Busy."""
    fd = os.open(os.path.join(state_dir, paths.LOCK), os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except (BlockingIOError, PermissionError):
        os.close(fd)
        raise Busy(f"another ipfsfs process is using the state directory {state_dir}") from None
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_locked(state_dir: str) -> bool:
    """Whether a daemon or its supervisor lives. Of another user's directory nothing is said."""
    if not private.is_ours(state_dir):
        return False
    try:
        fd = os.open(os.path.join(state_dir, paths.LOCK), os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    finally:
        os.close(fd)
    return cast("int", struct.unpack(_FLOCK, answer)[0]) != fcntl.F_UNLCK


def note_supervision(state_dir: str, seen: Supervision) -> None:
    """Write down what the supervisor has seen. Failing (a full disk) must not end the supervisor: it does nothing."""
    file = os.path.join(state_dir, paths.SUPERVISOR)
    with suppress(OSError):
        with private.create(file + ".new") as stream:
            json.dump(seen._asdict(), stream)
        os.replace(file + ".new", file)


def forget_supervision(state_dir: str) -> None:
    """The supervisor has ended as it should."""
    with suppress(OSError):
        os.unlink(os.path.join(state_dir, paths.SUPERVISOR))


def read_supervision(state_dir: str) -> Supervision | None:
    """What the supervisor has seen; None if there is none, it has ended as it should, or it is not ours."""
    if not private.is_ours(state_dir):  # a process's id from somebody else must not be sent a signal
        return None
    try:
        with open(os.path.join(state_dir, paths.SUPERVISOR), "rb") as stream:
            return parse_supervision(stream.read())
    except OSError:
        return None


def parse_supervision(content: bytes) -> Supervision | None:
    """What `note_supervision` wrote; None for anything else. A number that is no process's id is never handed on."""
    try:
        seen = Supervision(**json.loads(content))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = all(type(n) is int and 0 < n < 1 << 31 for n in (seen.pid, seen.daemon_pid) if n is not None)
    texts = all(text is None or isinstance(text, str) for text in (seen.last_death, seen.gave_up))
    return seen if numbers and texts and type(seen.pid) is int and type(seen.deaths) is int else None
