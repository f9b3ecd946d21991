"""A store that counts what is fetched, and trees to put into it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from fused.store.memory import MemoryStore

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from fused.cid import CID


class CountingStore(MemoryStore):
    """Remembers every CID that was asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[CID] = []

    async def get(self, cid: CID) -> bytes:
        self.asked.append(cid)
        return await super().get(cid)

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        self.asked += cids
        return await super().get_many(cids)


@pytest.fixture
def store() -> CountingStore:
    return CountingStore()


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An empty directory to make a tree in."""
    path = tmp_path / "source"
    path.mkdir()
    return path
