"""Random tests with many seeds, of which `make check` runs the first few."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from _pytest.mark import ParameterSet


def seeds(count: int, *, quick: int) -> list[ParameterSet]:
    """The numbers below `count` as parameters, those from `quick` on marked as slow."""
    return [pytest.param(seed, marks=[pytest.mark.slow] if seed >= quick else []) for seed in range(count)]
