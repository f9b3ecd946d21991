"""Kubo for the tests in this directory: a repository, or nodes. The first run on a machine may build it for minutes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.kubo import KuboRepo
from tests.support.kubo_node import KuboNode


@pytest.fixture(scope="session")
def kubo(tmp_path_factory: pytest.TempPathFactory) -> KuboRepo:
    """One repository for all tests: nothing in it can change what another test sees, as blocks are named by content."""
    return KuboRepo(tmp_path_factory.mktemp("kubo") / "repo")


@pytest.fixture
def new_node(tmp_path: Path) -> Iterator[Callable[..., KuboNode]]:
    """Makes real nodes, not started yet, that end with the test. Ask for it before `new_mount`: mounts go first."""
    made: list[KuboNode] = []

    def make(name: str = "node", **options: object) -> KuboNode:
        made.append(KuboNode(tmp_path / "nodes" / name, **options))  # type: ignore[arg-type]
        made[-1].path.parent.mkdir(exist_ok=True)
        return made[-1]

    yield make
    for node in made:
        node.kill()
