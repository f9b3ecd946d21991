"""SQLite in WAL mode with several writing processes, and DuckDB."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mountproc import run
from tests.support.workspace import Workspace

WRITERS = 4
ROWS = 250

WRITE_ROWS = """
import sqlite3, sys
path, writer, rows = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
db = sqlite3.connect(path, timeout=120, isolation_level=None)
assert db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
for number in range(rows):
    db.execute("BEGIN IMMEDIATE")
    db.execute("INSERT INTO entry VALUES (?, ?, ?)", (writer, number, "x" * (number * 7 % 3000)))
    db.execute("UPDATE total SET rows = rows + 1")
    db.execute("COMMIT")
db.close()
"""

FILL_DUCKDB = """
import sys, duckdb
db = duckdb.connect(sys.argv[1])
db.execute("CREATE TABLE t AS SELECT range AS id, range % 97 AS bucket, md5(range::VARCHAR) AS text FROM range(200000)")
db.execute("CREATE INDEX by_id ON t (id)")
db.execute("CHECKPOINT")
for bucket in range(20):
    db.execute("BEGIN")
    db.execute("UPDATE t SET text = text || '!' WHERE bucket = ?", [bucket])
    db.execute("DELETE FROM t WHERE bucket = ?", [bucket + 50])
    db.execute("COMMIT")
db.execute(f"COPY t TO '{sys.argv[2]}' (FORMAT parquet)")
db.close()
"""

READ_DUCKDB = """
import sys, duckdb
db = duckdb.connect(sys.argv[1], read_only=True)
here = db.execute("SELECT count(*), sum(id), sum(length(text)) FROM t").fetchone()
there = duckdb.execute(f"SELECT count(*), sum(id), sum(length(text)) FROM '{sys.argv[2]}'").fetchone()
assert here == there, (here, there)
print(*here)
"""


def sqlite(path: Path, sql: str) -> str:
    return run(["sqlite3", "-batch", path, sql], cwd=path.parent).stdout


def test_sqlite_wal_with_four_writing_processes(workspace: Workspace, need: Callable[..., None]) -> None:
    need("sqlite3")
    path = workspace.path / "four.db"
    assert sqlite(path, "PRAGMA journal_mode = WAL") == "wal\n"
    sqlite(path, "CREATE TABLE entry (writer, number, text); CREATE TABLE total (rows); INSERT INTO total VALUES (0)")
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITE_ROWS, str(path), str(writer), str(ROWS)])
        for writer in range(WRITERS)
    ]
    assert [writer.wait(timeout=200) for writer in writers] == [0] * WRITERS
    assert sqlite(path, "PRAGMA integrity_check") == "ok\n"
    assert sqlite(path, "SELECT rows FROM total") == f"{WRITERS * ROWS}\n"
    counts = sqlite(path, "SELECT writer, count(DISTINCT number) FROM entry GROUP BY writer ORDER BY writer")
    assert counts == "".join(f"{writer}|{ROWS}\n" for writer in range(WRITERS))
    assert sqlite(path, "VACUUM; PRAGMA wal_checkpoint(TRUNCATE); PRAGMA integrity_check").endswith("ok\n")
    workspace.check()


@pytest.mark.parametrize("journal", ["delete", "truncate", "persist", "memory", "wal"])
def test_sqlite_rolls_back_in_every_journal_mode(workspace: Workspace, need: Callable[..., None], journal: str) -> None:
    need("sqlite3")
    path = workspace.path / "rollback.db"
    script = (
        f"PRAGMA journal_mode = {journal}; CREATE TABLE t (n); INSERT INTO t VALUES (1); "
        "BEGIN; WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < 50000) "
        "INSERT INTO t SELECT n FROM c; ROLLBACK; SELECT count(*) FROM t; PRAGMA integrity_check"
    )
    assert sqlite(path, script) == f"{journal}\n1\nok\n"


def test_duckdb_writes_updates_exports_and_reads_again(workspace: Workspace) -> None:
    pytest.importorskip("duckdb")
    database, parquet = workspace.path / "bench.duckdb", workspace.path / "bench.parquet"
    run([sys.executable, "-c", FILL_DUCKDB, database, parquet], cwd=workspace.path)
    first = run([sys.executable, "-c", READ_DUCKDB, database, parquet], cwd=workspace.path).stdout
    assert int(first.split()[0]) == sum(1 for n in range(200000) if not 50 <= n % 97 < 70)
    workspace.check()
    assert run([sys.executable, "-c", READ_DUCKDB, database, parquet], cwd=workspace.path).stdout == first
