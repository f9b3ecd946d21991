"""From exceptions to the errno that a program sees: the only place."""

from __future__ import annotations

import errno
import logging
from typing import Protocol

from fused import errors

log = logging.getLogger(__name__)

ERRNO: dict[type[errors.IpfsfsError], int] = {
    errors.IpfsfsError: errno.EIO,
    errors.UsageError: errno.EINVAL,
    errors.MountError: errno.EIO,
    errors.NotMounted: errno.EIO,
    errors.ControlError: errno.EIO,
    errors.StoreError: errno.EIO,
    # Not EAGAIN or ETIMEDOUT: programs take the first for a non-blocking descriptor, and few expect the second.
    errors.StoreUnavailable: errno.EIO,
    errors.StoreDamaged: errno.EIO,
    errors.BlockNotFound: errno.EIO,
    errors.BlockCorrupt: errno.EIO,
    errors.DagError: errno.EIO,
    errors.PathNotInDag: errno.ENOENT,
    errors.IndexDamaged: errno.EIO,
    errors.IndexUnavailable: errno.EIO,
    errors.Busy: errno.EBUSY,
    errors.DaemonGone: errno.EIO,
    errors.NamesCollide: errno.EIO,
    errors.RestoreFailed: errno.EIO,
}


def errno_of(error: BaseException) -> int | None:
    """The errno for an expected error; None for one that nobody expected."""
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    if isinstance(error, OSError) and error.errno:
        # The program has not reached a limit of its own.
        return errno.ENFILE if error.errno == errno.EMFILE else error.errno
    if isinstance(error, errors.IpfsfsError):
        return next(ERRNO[kind] for kind in type(error).__mro__ if kind in ERRNO)
    return None


class HasRoom(Protocol):
    """Who can make room for more open files."""

    def make_room(self) -> bool:
        """Close descriptors that are kept for speed only; False if there were none."""
        ...


def may_try_again(who: HasRoom, error: OSError) -> bool:
    """Whether there are descriptors now after there were none. A request opens what it needs before it changes
    anything (or takes the change back), so it can be made again from the beginning."""
    return error.errno in (errno.EMFILE, errno.ENFILE) and who.make_room()


def failure(kind: str, error: Exception) -> int:
    """The errno for what a handler raised, which is logged if it is worth it."""
    number = errno_of(error)
    if number is None:
        log.exception("a bug in a handler: op=%s answered with errno=EIO", kind, exc_info=error)
        return errno.EIO
    if isinstance(error, errors.IpfsfsError):
        log.warning("%s: op=%s errno=%s", error, kind, errno.errorcode.get(number, number))
    elif log.isEnabledFor(logging.DEBUG):
        log.debug("op=%s errno=%s", kind, errno.errorcode.get(number, number))
    return number
