"""The coroutines of `dag` without an event loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

R = TypeVar("R")


def without_waiting(coroutine: Coroutine[Any, Any, R]) -> R:
    """Run a coroutine whose `get` blocks, so that it never waits."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: R = done.value
        return result
    coroutine.close()
    raise AssertionError("it waited")
