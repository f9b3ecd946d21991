"""A snapshot is the tree of one instant, whatever is changed while it is being taken.

The changes come from the seal function: it is called in the storing thread for every block, so between any two
blocks, and it has the trio thread make random changes there, as requests would. What the tree was at the
instant is recorded when the change log freezes it.
"""

from __future__ import annotations

import os
import random
import threading
from typing import TYPE_CHECKING

import pytest
import trio

from fused.cid import RAW, cid_of
from fused.dag.chunker import CHUNK, chunk_size
from fused.dag.seal import plain_seal
from fused.store.memory import MemoryStore
from fused.sync import frozen as frozen_module
from fused.sync import ingest as ingest_module
from fused.sync import taker as taker_module
from fused.sync.changes import ChangeLog
from fused.sync.engine import Engine
from fused.sync.storer import Stored
from fused.types import Block
from tests.support.dagread import Tree, plain_tree, read_tree
from tests.support.direct import DirectFs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from fused.cid import CID

NAMES = ("a", "b", "c", "d/a", "d/b", "d/e/a", "d/e/b", "f/a")
DIRS = ("", "d", "d/e", "f")


SEEDS = range(int(os.environ.get("IPFSFS_TEST_SEEDS", "40")))
"""Each 0.2 s."""


class Writer:
    """Random changes. Small names, so that they meet; sizes around chunk borders."""

    def __init__(self, fs: DirectFs, rng: random.Random) -> None:
        self.fs = fs
        self.rng = rng

    def path(self) -> str:
        return self.rng.choice(NAMES)

    def change(self) -> None:
        """One change; one that can't be made is none."""
        op = self.rng.choice(
            (self.write, self.write, self.write, self.cut, self.rename, self.unlink, self.link, self.dirs)
        )
        try:
            op()
        except OSError:
            return

    def write(self) -> None:
        size = self.rng.choice((1, 100, 5000, CHUNK, CHUNK + 3))
        offset = self.rng.choice((0, 10, CHUNK - 2, CHUNK, 2 * CHUNK + 5))
        self.fs.write(self.path(), self.rng.randbytes(4) * (size // 4 + 1), offset)

    def cut(self) -> None:
        self.fs.truncate(self.path(), self.rng.choice((0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK)))

    def rename(self) -> None:
        if self.rng.random() < 0.3:
            self.fs.rename(self.rng.choice(DIRS[1:]), self.rng.choice(DIRS[1:]))
        else:
            self.fs.rename(self.path(), self.path())

    def unlink(self) -> None:
        self.fs.unlink(self.path())

    def link(self) -> None:
        self.fs.link(self.path(), self.path())

    def dirs(self) -> None:
        directory = self.rng.choice(DIRS[1:])
        if self.rng.random() < 0.5:
            self.fs.mkdir(directory)
        else:
            self.fs.rmdir(directory)


class Elsewhere:
    """What the storing process does, step by step, with `between` called between any two reads."""

    def __init__(self, store: MemoryStore, between: Callable[[], None]) -> None:
        self._store = store
        self._between = between

    def store(self, fd: int, chunks: Sequence[int], size: int) -> Stored:
        cids: list[CID | None] = []
        for i in chunks:
            self._between()
            data = os.pread(fd, CHUNK, i * CHUNK)[: chunk_size(size, i)]
            whole = len(data) == chunk_size(size, i)
            cids.append(cid_of(RAW, data) if whole else None)
            if whole:
                trio.from_thread.run(self._store.put, [Block(cid_of(RAW, data), data)])
            self._between()
        return Stored(cids, 0)

    def close(self) -> None:
        """There is nothing to end."""


@pytest.mark.parametrize("seed", SEEDS)
async def test_snapshot_is_the_tree_of_its_instant(tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = random.Random(seed)
    if seed % 4 == 0:
        monkeypatch.setattr(frozen_module, "SAVED_IN_MEMORY", CHUNK)  # the temporary file takes its part
    if seed % 3 == 0:
        monkeypatch.setattr(ingest_module, "SPARSE_FROM", 1)  # holes are looked for in small files, too
    root, state = tmp_path / "covered", tmp_path / "state"
    state.mkdir()
    for directory in DIRS:
        (root / directory).mkdir(parents=True, exist_ok=True)
    fd = os.open(root, os.O_PATH | os.O_DIRECTORY)
    changes = ChangeLog(str(state))
    writer = Writer(DirectFs(root, changes), rng)
    frozen: list[Tree] = []
    freeze = changes.freeze

    def recording_freeze() -> None:
        frozen.append(plain_tree(root))
        freeze()

    monkeypatch.setattr(changes, "freeze", recording_freeze)

    def seal(codec: int, data: bytes) -> tuple[CID, bytes]:
        if rng.random() < 0.5:
            if threading.current_thread() is main_thread:
                writer.change()
            else:
                trio.from_thread.run_sync(writer.change)
        return plain_seal(codec, data)

    def quiet_seal(codec: int, data: bytes) -> tuple[CID, bytes]:
        return seal(codec, data) if changes._frozen is not None and changes._frozen.tree else plain_seal(codec, data)

    def change_now_and_then() -> None:
        if rng.random() < 0.5 and changes._frozen is not None and changes._frozen.tree:
            trio.from_thread.run_sync(writer.change)

    main_thread = threading.current_thread()
    store = MemoryStore()
    if seed % 2 == 0:
        monkeypatch.setattr(ingest_module, "FEW", 1)
        monkeypatch.setattr(taker_module, "storer_for", lambda store, _: Elsewhere(store, change_now_and_then))
    engine = Engine(root_fd=fd, changes=changes, store=store, state_dir=str(state), owner="t", seal=quiet_seal)
    try:
        for _ in range(4):
            for _ in range(rng.randrange(12)):
                writer.change()
            row = await engine.sync()
            if frozen:
                assert await read_tree(store.get, row.tree) == frozen[-1]
        changes.on_first_change = None
        monkeypatch.setattr(engine, "_seal", plain_seal)
        rng.random = lambda: 1.0  # type: ignore[method-assign]  # no more changes
        row = await engine.sync()
        assert await read_tree(store.get, row.tree) == plain_tree(root)
    finally:
        await engine.aclose()
        os.close(fd)
