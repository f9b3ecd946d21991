"""Whose `.ipfsfsignore` is obeyed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.sync.excludes import read_ignore_file
from tests.support.users import ALICE, BOB


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be several users")
def test_ignore_file_of_somebody_else_is_not_obeyed(tmp_path: Path) -> None:
    (tmp_path / ".ipfsfsignore").write_text("*\n")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert read_ignore_file(fd) == ["*"]
        os.chown(tmp_path / ".ipfsfsignore", ALICE, ALICE)
        assert read_ignore_file(fd) == []
        os.chown(tmp_path, BOB, BOB)
        assert read_ignore_file(fd) == []
        os.chown(tmp_path, ALICE, ALICE)
        assert read_ignore_file(fd) == ["*"]
    finally:
        os.close(fd)
