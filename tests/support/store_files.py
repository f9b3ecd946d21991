"""What must be true of an embedded store's files, looked at from outside; and damaging them on purpose."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from fused.cid import CID, format_cid, verify


def check_invariants(store: Path) -> int:
    """Every row has its bytes, they hash to its CID, and the totals are right. Returns how many blocks there are."""
    with closing(sqlite3.connect(store / "blocks.sqlite3")) as c:
        assert c.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = c.execute("SELECT cid, size, stamp, file, s.data FROM blocks LEFT JOIN small s USING (id)").fetchall()
        stray = c.execute("SELECT count(*) FROM small WHERE id NOT IN (SELECT id FROM blocks)").fetchone()
        totals = c.execute("SELECT blocks, bytes, file_bytes, newest_stamp FROM state").fetchone()
    assert stray == (0,)
    in_files = 0
    for cid, size, _, file, data in rows:
        assert (file is None) != (data is None)
        if file is not None:
            data = (store / "blobs" / format_cid(cid)[-3:-1] / file).read_bytes()
            in_files += size
        assert len(data) == size
        verify(cid, data)
    assert totals[:3] == (len(rows), sum(row[1] for row in rows), in_files)
    assert all(row[2] <= totals[3] for row in rows)
    return len(rows)


def blob_files(store: Path) -> list[Path]:
    """All files of large blocks, also those that no row names."""
    return [path for path in (store / "blobs").rglob("*") if path.is_file()]


def temporary_files(store: Path) -> list[Path]:
    """What writers have left or are writing."""
    return sorted((store / "tmp").rglob("*"))


def age(store: Path, seconds: float) -> None:
    """Make all blocks look as if put that much earlier."""
    with closing(sqlite3.connect(store / "blocks.sqlite3", timeout=30)) as c, c:
        c.execute("UPDATE blocks SET stamp = stamp - ?", (int(seconds * 1000),))


def block_file(store: Path, cid: CID) -> Path:
    """The file of a large block."""
    [path] = (store / "blobs").glob(f"*/{format_cid(cid)}.*")
    return path


def change_block(store: Path, cid: CID, change: Callable[[bytes], bytes]) -> None:
    """Replace a stored block's bytes by `change` of them, wherever they are, behind the store's back."""
    files = list((store / "blobs").glob(f"*/{format_cid(cid)}.*"))
    if files:
        files[0].write_bytes(change(files[0].read_bytes()))
        return
    with closing(sqlite3.connect(store / "blocks.sqlite3")) as c, c:
        [(number, data)] = c.execute("SELECT s.id, data FROM small s JOIN blocks b USING (id) WHERE cid = ?", (cid,))
        c.execute("UPDATE small SET data = ? WHERE id = ?", (change(data), number))


def flip_bit(data: bytes) -> bytes:
    """One bit in the middle is another."""
    at = len(data) // 2
    return data[:at] + bytes((data[at] ^ 0x10,)) + data[at + 1 :]


def cut(data: bytes) -> bytes:
    """The last byte is missing."""
    return data[:-1]


def lengthen(data: bytes) -> bytes:
    """There is a byte too many."""
    return data + b"\0"


def empty(data: bytes) -> bytes:
    """As after a power cut on a file system that wrote the name before the content."""
    return b""
