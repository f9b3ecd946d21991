"""Changing a store and an index behind their backs."""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path

from fused.cid import CID, RAW, cid_of
from fused.index.schema import row_sum
from tests.support.checked import Checked


def leaf_of(path: Path, index: int = 0) -> CID:
    """The CID of one chunk of a file."""
    return cid_of(RAW, path.read_bytes()[index << 20 : (index + 1) << 20])


def ino(path: Path) -> int:
    """The inode number by which the index knows a file or directory."""
    return os.lstat(path).st_ino


def store_sql(checked: Checked, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on the store's database."""
    return statement_on(checked.store / "blocks.sqlite3", statement, *values)


def index_sql(checked: Checked, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on the index."""
    return statement_on(checked.state / "index.sqlite", statement, *values)


def statement_on(path: Path, statement: str, *values: object) -> list[tuple[object, ...]]:
    """Run a statement on a database."""
    with closing(sqlite3.connect(path)) as c, c:
        return c.execute(statement, values).fetchall()


def change_row(checked: Checked, table: str, path: Path, **values: object) -> None:
    """Change a row of the index and its sum, as a bug would and no accident does."""
    sets = ", ".join(f"{name} = ?" for name in values)
    index_sql(checked, f"UPDATE {table} SET {sets} WHERE ino = ?", *values.values(), ino(path))
    [row] = index_sql(checked, f"SELECT * FROM {table} WHERE ino = ?", ino(path))
    index_sql(checked, f"UPDATE {table} SET sum = ? WHERE ino = ?", row_sum(*row[:-1]), ino(path))  # type: ignore[arg-type]
