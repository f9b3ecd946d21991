"""Which syncs take a thread."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from fused.fs import files
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.types import Caller

CALLER = Caller(os.getuid(), os.getgid(), os.getpid(), 0)


@pytest.mark.parametrize(("kind", "threads"), [("tmpfs", 0), ("ramfs", 0), ("ext4", 4), (None, 4)])
async def test_files_in_memory_are_synced_inline(
    kind: str | None, threads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "filesystem_type", lambda _device: kind)
    files._is_in_memory.cache_clear()
    covered = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fs = FileSystem(covered, NullChangeSink(), private=True, write_through=False, read_only=False)
    offloaded = 0
    offload = fs.waiting.offload

    async def counting(function: Callable[[], object], *, on: int | None = None) -> object:
        nonlocal offloaded
        offloaded += 1
        return await offload(function, on=on)

    monkeypatch.setattr(fs.waiting, "offload", counting)
    try:
        opened, _ = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
        directory, _ = fs.tree.opendir(1)
        for data_only in (False, True):
            await fs.files.fsync(opened.fh, data_only=data_only)
            await fs.files.fsync_directory(directory, data_only=data_only)
        assert offloaded == threads
    finally:
        files._is_in_memory.cache_clear()
        fs.close()
        os.close(covered)
