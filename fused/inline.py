"""Coroutines that never wait, run without an event loop.

`dag` and parts of `fs` are written with `await` because what they are given may wait. In a thread, where it blocks
instead, and in tests, it never does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

R = TypeVar("R")


def run_inline(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine that must not wait, and return what it returns; AssertionError if it waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    coroutine.close()
    raise AssertionError("it waited")
