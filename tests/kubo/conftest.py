"""A Kubo repository for the tests in this directory. The first run on a machine may build Kubo: some minutes."""

from __future__ import annotations

import pytest

from tests.support.kubo import KuboRepo


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> KuboRepo:
    """One repository for all tests: nothing in it can change what another test sees, as blocks are named by content."""
    return KuboRepo(tmp_path_factory.mktemp("kubo") / "repo")
