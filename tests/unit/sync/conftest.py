"""An engine over a plain directory, with a store in memory, and no mount."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from fused.store.memory import MemoryStore
from fused.sync.changes import ChangeLog
from fused.sync.engine import Engine
from tests.support.dagread import read_tree
from tests.support.direct import DirectFs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fused.index.index import SnapshotRow


@dataclass
class Covered:
    """One covered directory and all that belongs to it. `restart` stands for a new run of the daemon."""

    root: Path
    state: Path
    store: MemoryStore
    changes: ChangeLog
    fs: DirectFs
    engine: Engine
    fd: int

    async def restart(self, **options: object) -> None:
        await self.engine.aclose()
        self.changes = ChangeLog(str(self.state))
        self.fs = DirectFs(self.root, self.changes)
        self.engine = make_engine(self, **options)

    async def tree(self, row: SnapshotRow) -> dict[bytes, object]:
        """The snapshot's content: path to bytes of a file, ("link", target), or None for a directory."""
        return await read_tree(self.store.get, row.tree)


def make_engine(covered: Covered, **options: object) -> Engine:
    return Engine(
        root_fd=covered.fd,
        changes=covered.changes,
        store=covered.store,
        state_dir=str(covered.state),
        owner="test",
        **options,  # type: ignore[arg-type]
    )


@pytest.fixture
async def covered(tmp_path: Path) -> AsyncIterator[Covered]:
    root, state = tmp_path / "covered", tmp_path / "state"
    root.mkdir()
    state.mkdir()
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    changes = ChangeLog(str(state))
    made = Covered(root, state, MemoryStore(), changes, DirectFs(root, changes), None, fd)  # type: ignore[arg-type]
    made.engine = make_engine(made)
    yield made
    await made.engine.aclose()
    os.close(fd)
