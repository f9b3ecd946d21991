"""What several processes do to one store, each run as `python -m tests.support.store_worker STORE WORK …`.

put SEED COUNT SIZE      put batches of COUNT blocks for ever; print a batch's number once it is acknowledged
snapshots SECONDS GRACE  for SECONDS: put a DAG, pin it, unpin the one before, read the new one again
gc SECONDS GRACE         for SECONDS: collect garbage; print how many blocks went
"""

from __future__ import annotations

import os
import sys
import time

import trio

from fused.store.base import Pin
from fused.store.embedded import EmbeddedStore
from tests.support.toy_blocks import links_of, node, random_blocks


async def put(path: str, seed: int, count: int, size: int) -> None:
    async with EmbeddedStore(path) as store:
        batch = 0
        while True:
            await store.put(random_blocks(count, size, seed=seed * 1_000_000 + batch))
            print(batch, flush=True)
            batch += 1


async def snapshots(path: str, seconds: float, grace_s: float) -> None:
    owner = f"worker-{os.getpid()}"
    end = time.monotonic() + seconds
    taken = 0
    before = None
    async with EmbeddedStore(path, grace_s=grace_s) as store:
        while time.monotonic() < end:
            # The same few leaves again and again, by all workers: put meets blocks that gc is about to remove.
            leaves = random_blocks(30, 300, seed=taken % 5) + random_blocks(2, 70_000, seed=taken % 5)
            root = node(*(leaf.cid for leaf in leaves), salt=f"{owner} {taken}".encode())
            while True:
                started = time.monotonic()
                await store.put([*leaves, root])
                if time.monotonic() - started < grace_s / 4:
                    await store.pin(Pin(owner, root.cid, ""))
                    if time.monotonic() - started < grace_s / 2:
                        break  # else this machine is too slow for so short a grace: nothing was promised
            found = await store.get_many([root.cid, *(leaf.cid for leaf in leaves)])
            assert len(found) == len(leaves) + 1
            if before is not None:
                await store.unpin(owner, before)
            before = root.cid
            taken += 1
    print(taken)


async def gc(path: str, seconds: float, grace_s: float) -> None:
    end = time.monotonic() + seconds
    removed = 0
    async with EmbeddedStore(path, grace_s=grace_s) as store:
        while time.monotonic() < end:
            removed += await store.gc(links_of)
    print(removed)


if __name__ == "__main__":
    path, work, *numbers = sys.argv[1:]
    if work == "put":
        trio.run(put, path, *map(int, numbers))
    else:
        trio.run({"snapshots": snapshots, "gc": gc}[work], path, *map(float, numbers))
