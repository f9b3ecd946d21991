"""Waiting in tests: look again until a deadline, never sleep and hope."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def wait_until(look: Callable[[], T], what: str, seconds: float = 20.0, every: float = 0.02) -> T:
    """Return the first true result of `look`. Fails, naming `what`, after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        result = look()
        if result:
            return result
        assert time.monotonic() < deadline, f"after {seconds:g} s there was still no {what}"
        time.sleep(every)
