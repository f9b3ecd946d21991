"""How fast blocks go to a Kubo node, beside `ipfs add` to the same one: `python bench/kubo.py [MIB]`, PYTHONPATH=.

A large file in blocks of 1 MiB, and 10,000 files of 4 KiB, in batches as `fused/sync/outbox.py` makes them. Both
ways go to a fresh daemon on this machine with the usual datastore; hashing and reading before is not counted for ours.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from fused.cid import RAW, cid_of
from fused.store.kubo.store import KuboStore
from fused.store.spec import StoreSpec
from fused.sync.outbox import BATCH_BLOCKS, BATCH_BYTES
from fused.types import Block
from tests.support.kubo_node import KuboNode

if TYPE_CHECKING:
    from collections.abc import Callable

MIB = 1 << 20
SMALL, FILES = 4096, 10_000
ROUNDS = 3


def timed(work: Callable[[], object]) -> float:
    os.sync()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def batches(count: int, size: int) -> list[list[Block]]:
    at_once = min(BATCH_BLOCKS, BATCH_BYTES // size)
    contents = (os.urandom(size) for _ in range(count))
    blocks = [Block(cid_of(RAW, content), content) for content in contents]
    return [blocks[start : start + at_once] for start in range(0, count, at_once)]


async def put(directory: str, url: str, work: list[list[Block]]) -> None:
    async with KuboStore(StoreSpec("kubo", directory, url)) as store:
        for batch in work:
            await store.put(batch)


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1024
    with tempfile.TemporaryDirectory() as place:
        base = Path(place)
        store = str(base / "store")
        for number in range(ROUNDS):
            with KuboNode(base / f"large{number}") as node:
                file = base / "file"
                with open(file, "wb") as out:
                    for _ in range(count):
                        out.write(os.urandom(MIB))
                flags = ("-Q", "--cid-version=1", "--raw-leaves", "--chunker=size-1048576", "--pin=false")
                add = timed(lambda: node.run("add", *flags, file))  # noqa: B023  called at once
                file.unlink()
                work = batches(count, MIB)
                ours = timed(lambda: trio.run(put, store, node.url, work))  # noqa: B023
                del work
            print(f"{count} MiB: ipfs add {count / add:.0f} MiB/s, put {count / ours:.0f} MiB/s: {add / ours:.2f}")
        with KuboNode(base / "small") as node:
            (base / "files").mkdir()
            for number in range(FILES):
                (base / "files" / str(number)).write_bytes(os.urandom(SMALL))
            add = timed(lambda: node.run("add", "-r", "-Q", "--raw-leaves", "--pin=false", base / "files"))
            work = batches(FILES, SMALL)
            ours = timed(lambda: trio.run(put, store, node.url, work))
        print(f"{FILES} files of 4 KiB: ipfs add -r {add:.1f} s, put {ours:.1f} s: {add / ours:.1f}")


if __name__ == "__main__":
    main()
