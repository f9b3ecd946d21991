"""Handlers' functions that wait for nothing, called without an event loop."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that must not wait, and return what it returns."""
    try:
        coroutine.send(None)
    except StopIteration as done:
        result: T = done.value
        return result
    coroutine.close()
    raise AssertionError("it waited")
