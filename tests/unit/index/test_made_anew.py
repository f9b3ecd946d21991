"""An index that its maker did not finish."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fused.index.index import Index
from fused.index.schema import FILE_NAME


def header_only(path: Path) -> None:
    """As far as SQLite is when it has been told of the journal and of nothing else."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")


@pytest.mark.parametrize("leave", [Path.touch, header_only])
def test_whoever_was_killed_while_making_the_index_leaves_nothing_to_warn_of(
    tmp_path: Path, leave: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / FILE_NAME
    leave(path)
    with caplog.at_level(logging.INFO):
        index = Index(str(tmp_path))
    try:
        index.set_about("excludes", "none")
        assert {file.stat().st_mode & 0o777 for file in tmp_path.glob(f"{FILE_NAME}*")} == {0o600}
    finally:
        index.close()
    again = Index(str(tmp_path))
    try:
        assert again.about("excludes") == "none"
    finally:
        again.close()
    assert not caplog.records
    assert not list(tmp_path.glob("*.damaged*"))


def test_an_index_of_something_else_is_set_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        connection.execute("CREATE TABLE other (x)")
    Index(str(tmp_path)).close()
    assert "no such table: about" in caplog.text
    assert (tmp_path / f"{FILE_NAME}.damaged").exists()
