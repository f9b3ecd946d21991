"""Which syncs take a thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.fs import files
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.fs.waiting import Later
from fused.types import Caller

CALLER = Caller(os.getuid(), os.getgid(), os.getpid(), 0)


@pytest.mark.parametrize(("kind", "in_thread"), [("tmpfs", False), ("ramfs", False), ("ext4", True), (None, True)])
async def test_files_in_memory_are_synced_inline(
    kind: str | None, in_thread: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "filesystem_type", lambda _device: kind)
    files._is_in_memory.cache_clear()
    covered = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    fs = FileSystem(covered, NullChangeSink(), private=True, write_through=False, read_only=False)
    try:
        opened, _ = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
        directory, _ = fs.tree.opendir(1)
        for data_only in (False, True):
            for answer in (
                fs.files.fsync(opened.fh, data_only=data_only),
                fs.files.fsync_directory(directory, data_only=data_only),
            ):
                assert isinstance(answer, Later) is in_thread
                assert (answer.work() if isinstance(answer, Later) else answer) == b""
    finally:
        files._is_in_memory.cache_clear()
        fs.close()
        os.close(covered)
