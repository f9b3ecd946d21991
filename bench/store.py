"""Measure the embedded store and what its design rests on: `python bench/store.py WHAT [DIRECTORY]`.

    put         throughput of put, against plain SQLite and against one file written and synced
    get         latency and throughput of get
    threshold   blocks of a size in SQLite, or as files: where is the border?
    sync        ways to make a batch of files durable
    dirty       the same beside 1 GB of other dirty pages

DIRECTORY (default: a new one under /var/tmp) decides which disk is measured. It needs 3 GB and is emptied.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import sqlite3
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from fused.cid import RAW, cid_of
from fused.store import rows
from fused.store.base import Block
from fused.store.blocking import BlockingStore
from fused.store.embedded import EmbeddedStore

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.cid import CID

KIB, MIB = 1 << 10, 1 << 20

libc = ctypes.CDLL(None)
libc.sync_file_range.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)


def new_blocks(count: int, size: int) -> list[Block]:
    return [Block(cid_of(RAW, content), content) for content in (os.urandom(size) for _ in range(count))]


def timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def put(directory: Path) -> None:
    for count, size, batches in ((1000, 4 * KIB, 10), (64, MIB, 16)):
        trio.run(_put, directory / "store", count, size, batches)
        (_plain_sqlite if size < MIB else _plain_file)(directory / "plain", count, size, batches)


async def _put(path: Path, count: int, size: int, batches: int) -> None:
    async with EmbeddedStore(path) as store:
        seconds = []
        for _ in range(batches):
            batch = new_blocks(count, size)
            started = time.perf_counter()
            await store.put(batch)
            seconds.append(time.perf_counter() - started)
        report("put", count, size, seconds)
        started = time.perf_counter()
        await store.put(batch)
        report("put, all known", count, size, [time.perf_counter() - started])


def _plain_sqlite(path: Path, count: int, size: int, batches: int) -> None:
    c = sqlite3.connect(path, isolation_level=None)
    c.execute("PRAGMA journal_mode = WAL")
    c.execute("PRAGMA synchronous = FULL")
    c.execute("CREATE TABLE blocks (cid BLOB PRIMARY KEY, data BLOB) WITHOUT ROWID")
    seconds = []
    for _ in range(batches):
        batch = new_blocks(count, size)
        started = time.perf_counter()
        c.execute("BEGIN IMMEDIATE")
        c.executemany("INSERT INTO blocks VALUES (?, ?)", batch)
        c.execute("COMMIT")
        seconds.append(time.perf_counter() - started)
    c.close()
    path.unlink()
    report("plain SQLite", count, size, seconds)


def _plain_file(path: Path, count: int, size: int, batches: int) -> None:
    """What `dd conv=fsync` does, a batch at a time."""
    seconds = []
    with path.open("wb", buffering=0) as f:
        for _ in range(batches):
            batch = new_blocks(count, size)
            started = time.perf_counter()
            for block in batch:
                f.write(block.data)
            os.fdatasync(f.fileno())
            seconds.append(time.perf_counter() - started)
    path.unlink()
    report("plain file", count, size, seconds)


def get(directory: Path) -> None:
    for count, size in ((2000, 4 * KIB), (128, MIB)):
        trio.run(_get, directory / "store", count, size)


async def _get(path: Path, count: int, size: int) -> None:
    async with EmbeddedStore(path) as store:
        blocks = new_blocks(count, size)
        await store.put(blocks)
        started = time.perf_counter()
        for block in blocks:
            await store.get(block.cid)
        report("get, one by one", count, size, [time.perf_counter() - started])
        started = time.perf_counter()
        await store.get_many([block.cid for block in blocks])
        report("get_many", count, size, [time.perf_counter() - started])
    with BlockingStore(path) as blocking:
        seconds = timed(lambda: [blocking.rows.get(block.cid) for block in blocks])
        report("get without trio", count, size, [seconds])


def threshold(directory: Path) -> None:
    for size in (KIB, 4 * KIB, 16 * KIB, 32 * KIB, 64 * KIB, 128 * KIB, 256 * KIB, MIB):
        count = max(8, min(1000, 8 * MIB // size))
        for where, limit in (("SQLite", 1 << 30), ("files", 0)):
            rows.SMALL_MAX = limit
            with BlockingStore(directory / "store") as store:
                batches = [new_blocks(count, size) for _ in range(6)]
                seconds = [timed(partial(store.rows.put, batch)) for batch in batches]
                report(where, count, size, seconds)
                wanted = [block.cid for batch in batches for block in batch][::7]
                report(
                    "  read from " + where,
                    len(wanted),
                    size,
                    [timed(partial(_get_all, store.rows, wanted))],
                )
            shutil.rmtree(directory / "store")


def _get_all(source: rows.BlockRows, wanted: list[CID]) -> None:
    for cid in wanted:
        source.get(cid)


def sync(directory: Path) -> None:
    for size, count in ((MIB, 1), (MIB, 4), (MIB, 64), (128 * KIB, 64), (16 * KIB, 256)):
        for way in ("syncfs", "each"):
            os.sync()
            contents = [[os.urandom(size) for _ in range(count)] for _ in range(6)]
            seconds = [timed(partial(_write, directory, batch, way)) for batch in contents]
            report(way, count, size, seconds)


def dirty(directory: Path) -> None:
    for way in ("syncfs", "each"):
        os.sync()
        other = directory / "other"
        with other.open("wb") as f:
            for _ in range(1000):
                f.write(os.urandom(MIB))
        contents = [os.urandom(MIB) for _ in range(8)]
        report(f"{way} beside 1 GB", 8, MIB, [timed(partial(_write, directory, contents, way))])


def _write(directory: Path, contents: list[bytes], way: str) -> None:
    """As `fused/store/blobs.py` does, or with one syncfs."""
    fds = []
    target = directory / "files"
    target.mkdir(exist_ok=True)
    for content in contents:
        name = os.urandom(8).hex()
        fds.append(os.open(directory / name, os.O_WRONLY | os.O_CREAT, 0o600))
        os.write(fds[-1], content)
        if way == "each":
            libc.sync_file_range(fds[-1], 0, 0, 2)
        (target / name[:2]).mkdir(exist_ok=True)
        (directory / name).rename(target / name[:2] / name)
    if way == "syncfs":
        libc.syncfs(fds[0])
    else:
        for fd in fds:
            os.fdatasync(fd)
        for shard in target.iterdir():
            fd = os.open(shard, os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)
    for fd in fds:
        os.close(fd)
    if way != "syncfs":
        assert all(len(os.listdir(shard)) for shard in target.iterdir())
    shutil.rmtree(target)


def report(what: str, count: int, size: int, seconds: list[float]) -> None:
    total = sum(seconds)
    rate = count * size * len(seconds) / total / 1e6
    each = total / len(seconds) / count * 1e6
    print(
        f"{what:24} {len(seconds):3} x {count:5} x {size // KIB:5} KiB  {rate:8.1f} MB/s  {each:9.1f} us a block  "
        f"batch {total / len(seconds) * 1e3:8.1f} ms, at most {max(seconds) * 1e3:8.1f} ms"
    )


def main() -> None:
    what, *where = sys.argv[1:]
    directory = Path(tempfile.mkdtemp(dir=where[0] if where else "/var/tmp"))
    try:
        {"put": put, "get": get, "threshold": threshold, "sync": sync, "dirty": dirty}[what](directory)
    finally:
        shutil.rmtree(directory)


if __name__ == "__main__":
    main()
