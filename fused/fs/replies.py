"""From exceptions to the errno that a program sees, and the account of every request.

The only place that does either. pyfuse3 lets nothing but `FUSEError` out of a handler: any other exception ends its
loop and with it the mount. Cancellation passes, it is how the loop is ended.
"""

from __future__ import annotations

import errno
import functools
import logging
from time import perf_counter_ns
from typing import TYPE_CHECKING, Concatenate, ParamSpec, Protocol, TypeVar

import pyfuse3

from fused import errors

if TYPE_CHECKING:
    from collections import defaultdict
    from collections.abc import Awaitable, Callable, Coroutine

    from fused.fs.requests import RequestCounter

log = logging.getLogger(__name__)

P = ParamSpec("P")
R = TypeVar("R")

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


class HasHandlers(Protocol):
    """What a class with handlers has to offer."""

    request_counters: defaultdict[str, RequestCounter]

    def make_room(self) -> bool:
        """Close descriptors that are kept for speed only; False if there were none."""
        ...


S = TypeVar("S", bound=HasHandlers)


def _may_try_again(self: HasHandlers, error: OSError) -> bool:
    """Whether there are descriptors now after there were none. A request opens what it needs before it changes
    anything (or takes the change back), so it can be made again from the beginning."""
    return error.errno in (errno.EMFILE, errno.ENFILE) and self.make_room()


def _failure(kind: str, counter: RequestCounter, error: Exception) -> pyfuse3.FUSEError:
    counter.errors += 1
    if isinstance(error, pyfuse3.FUSEError):
        return error
    number = errno_of(error)
    if number is None:
        log.exception("a bug in a handler: op=%s answered with errno=EIO", kind, exc_info=error)
        return pyfuse3.FUSEError(errno.EIO)
    if isinstance(error, errors.IpfsfsError):
        log.warning("%s: op=%s errno=%s", error, kind, errno.errorcode.get(number, number))
    elif log.isEnabledFor(logging.DEBUG):
        log.debug("op=%s errno=%s", kind, errno.errorcode.get(number, number))
    return pyfuse3.FUSEError(number)


def handler(function: Callable[Concatenate[S, P], R]) -> Callable[Concatenate[S, P], Coroutine[object, object, R]]:
    """Make a request handler for pyfuse3 from a method that raises whatever the layers below raise.

    For methods that never wait, written as plain functions: one coroutine less for each request.
    """
    kind = function.__name__

    async def inline(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        counter = self.request_counters[kind]
        begun = perf_counter_ns()
        try:
            try:
                return function(self, *args, **kwargs)
            except OSError as error:
                if not _may_try_again(self, error):
                    raise
            return function(self, *args, **kwargs)
        except Exception as error:
            raise _failure(kind, counter, error) from None
        finally:
            counter.add(perf_counter_ns() - begun)

    functools.update_wrapper(inline, function)
    return inline


def waiting_handler(
    function: Callable[Concatenate[S, P], Awaitable[R]],
) -> Callable[Concatenate[S, P], Coroutine[object, object, R]]:
    """The same for methods that may wait (through `waiting.py` only)."""
    kind = function.__name__

    async def waiting(self: S, /, *args: P.args, **kwargs: P.kwargs) -> R:
        counter = self.request_counters[kind]
        begun = perf_counter_ns()
        try:
            try:
                return await function(self, *args, **kwargs)
            except OSError as error:
                if not _may_try_again(self, error):
                    raise
            return await function(self, *args, **kwargs)
        except Exception as error:
            raise _failure(kind, counter, error) from None
        finally:
            counter.add(perf_counter_ns() - begun)

    functools.update_wrapper(waiting, function)
    return waiting
