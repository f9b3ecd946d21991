"""A SQLite database under constant writes: every snapshot of it is one that SQLite would have recovered to."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mountproc import MountProcess

SNAPSHOTS = 50

# Moves money between accounts: the sum never changes. Every transaction touches many pages; some are rolled back,
# some grow the file, some shrink it. Says the number of each committed transaction.
WRITER = """
import random, sqlite3, sys
rng = random.Random(7)
db = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=60)
assert db.execute(f"PRAGMA journal_mode = {sys.argv[2]}").fetchone() == (sys.argv[2],)
db.execute("PRAGMA cache_size = 40")  # small: pages are spilled into the database in the middle of a transaction
db.execute("CREATE TABLE account (id INTEGER PRIMARY KEY, money INTEGER, pad TEXT)")
db.execute("CREATE TABLE done (n INTEGER)")
db.execute("INSERT INTO done VALUES (0)")
db.execute("BEGIN")
db.executemany("INSERT INTO account VALUES (?, 100, ?)", ((n, "p" * 300) for n in range(2000)))
db.execute("COMMIT")
db.execute("CREATE INDEX by_money ON account (money)")
print(0, flush=True)
for n in range(1, 1000000):
    db.execute("BEGIN IMMEDIATE")
    for _ in range(30):
        one, two, sum = rng.randrange(2000), rng.randrange(2000), rng.randrange(10)
        db.execute("UPDATE account SET money = money - ? WHERE id = ?", (sum, one))
        db.execute("UPDATE account SET money = money + ?, pad = ? WHERE id = ?", (sum, "q" * rng.randrange(900), two))
    db.execute("UPDATE done SET n = ?", (n,))
    if n % 7 == 0:
        db.execute("ROLLBACK")
        continue
    db.execute("COMMIT")
    if n % 50 == 0 and sys.argv[2] == "delete":
        db.execute("VACUUM")
    print(n, flush=True)
"""


@pytest.mark.parametrize("journal", ["delete", "wal"])
def test_every_snapshot_of_a_busy_database_is_sound(
    new_mount: Callable[..., MountProcess], tmp_path: Path, journal: str
) -> None:
    mount = new_mount().start("--quiet-seconds", "0.2", "--interval-seconds", "2")
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(mount.path / "bank.db"), journal],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert writer.stdout is not None
        assert writer.stdout.readline() == "0\n"
        numbers = []
        for number in range(SNAPSHOTS):
            for _ in range(3):  # some work between two snapshots
                committed = int(writer.stdout.readline())
            snapshot = mount.sync()
            target = mount.restore(snapshot, tmp_path / "restored")
            try:
                with sqlite3.connect(target / "bank.db") as db:
                    assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)], (number, snapshot)
                    assert db.execute("SELECT sum(money) FROM account").fetchone() == (2000 * 100,), (number, snapshot)
                    numbers.append(db.execute("SELECT n FROM done").fetchone()[0])
                db.close()
            except sqlite3.DatabaseError as exc:
                kept = tmp_path / "broken"
                shutil.copytree(target, kept)
                raise AssertionError(f"snapshot {number} ({snapshot}): {exc}; kept in {kept}") from exc
            assert numbers[-1] >= committed, "a transaction that was committed before the sync is not in it"
            shutil.rmtree(target)
        assert numbers == sorted(numbers)
        assert writer.poll() is None, writer.communicate()[1]
    finally:
        writer.kill()
        writer.communicate(timeout=20)
