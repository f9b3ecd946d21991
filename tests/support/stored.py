"""A store on disk, and the command line in this process, for tests of the commands that read stored trees."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple

import trio

from fused.cid import CID, format_cid
from fused.cli.main import main
from fused.store.embedded import EmbeddedStore
from tests.support.snapshot_builder import snapshot_of, tree_of

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Said(NamedTuple):
    """What a command did."""

    code: int
    out: bytes
    err: str

    @property
    def json(self) -> Any:
        """Its output, parsed."""
        return json.loads(self.out)


class Stored:
    """Stores trees, and runs commands on the store."""

    def __init__(self, path: Path, capture: pytest.CaptureFixture[bytes]) -> None:
        self.path = path
        self._capture = capture

    def snapshot(self, tree: Path) -> str:
        """The CID of a snapshot of `tree`."""
        return format_cid(self._store(tree, plain=False))

    def tree(self, tree: Path) -> str:
        """The CID of the plain UnixFS tree of `tree`."""
        return format_cid(self._store(tree, plain=True))

    def _store(self, tree: Path, *, plain: bool) -> CID:
        async def act() -> CID:
            async with EmbeddedStore(self.path) as store:
                return await (tree_of if plain else snapshot_of)(store, str(tree))

        return trio.run(act)

    def run(self, command: str, *args: str | Path) -> Said:
        """`ipfsfs command --store-dir … args`."""
        self._capture.readouterr()
        code = main([command, "--store-dir", str(self.path), *map(str, args)])
        out, err = self._capture.readouterr()
        return Said(code, out, err.decode(errors="surrogateescape"))
