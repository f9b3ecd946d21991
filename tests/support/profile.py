"""Short forms or full ones: IPFSFS_TEST_PROFILE=soak, which `make soak` sets, asks for the full ones."""

from __future__ import annotations

import os
from typing import TypeVar

T = TypeVar("T")

# Read when this file is loaded: the `clean_env` fixture takes our variables away.
FULL = os.environ.get("IPFSFS_TEST_PROFILE") == "soak"

HOURS = float(os.environ.get("IPFSFS_TEST_HOURS") or 1)
"""How long the full form of a test without an end of its own runs."""


def by_profile(short: T, full: T) -> T:
    """`short` in `make test`, `full` in `make soak`."""
    return full if FULL else short
