"""Exceptions out of a nursery as they went in."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def single_error() -> Iterator[None]:
    """Raise the first error in an exception group instead of the group.

    Trio wraps whatever leaves a nursery, because several tasks may fail at once. Where a nursery is an
    implementation detail, callers should see the StoreError or OSError that they would see without it. The
    others, if there are any, are consequences of the first or of the cancellation that it caused.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        errors = list(_leaves(group))
        for error in errors:
            if not isinstance(error, trio.Cancelled):
                raise error from error.__cause__
        raise


def _leaves(group: BaseExceptionGroup[BaseException]) -> Iterator[BaseException]:
    for error in group.exceptions:
        if isinstance(error, BaseExceptionGroup):
            yield from _leaves(error)
        else:
            yield error
