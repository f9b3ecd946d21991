"""A full disk: an error that says so, nothing half acknowledged, and all is well when there is room again."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from fused.errors import StoreUnavailable
from fused.store.base import Block, Pin
from fused.store.embedded import EmbeddedStore
from tests.support.store_files import blob_files, check_invariants, temporary_files
from tests.support.toy_blocks import links_of, random_blocks

Resize = Callable[[int], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Resize]]:
    """A disk of 6 MiB, and a way to give it another size."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk (tmpfs)")
    directory = tmp_path / "disk"
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "ipfsfs-test", directory], check=True)

    def resize(mebibytes: int) -> None:
        subprocess.run(["mount", "-o", f"remount,size={mebibytes}m", directory], check=True)

    yield directory, resize
    subprocess.run(["umount", directory], check=True)


async def fill(store: EmbeddedStore, count: int, size: int) -> tuple[list[Block], list[Block]]:
    """Put batches until one fails; returns what was acknowledged and the batch that was not."""
    acknowledged: list[Block] = []
    for seed in range(1000):
        batch = random_blocks(count, size, seed=seed)
        try:
            await store.put(batch)
        except StoreUnavailable:
            with pytest.raises(StoreUnavailable, match=r"^[^\n]*is full[^\n]*$"):
                await store.put(batch)
            return acknowledged, batch
        acknowledged += batch
    raise AssertionError("the disk was never full")


@pytest.mark.parametrize(("count", "size"), [(100, 1000), (30, 30_000), (8, 100_000), (2, 1 << 20)])
async def test_when_the_disk_is_full_put_says_so_and_goes_on_when_there_is_room(
    disk: tuple[Path, Resize], count: int, size: int
) -> None:
    directory, resize = disk
    async with EmbeddedStore(directory / "store") as store:
        acknowledged, refused = await fill(store, count, size)
        assert len(acknowledged) * size > 1 << 20
        cids = [block.cid for block in acknowledged]
        assert await store.has(cids) == set(cids)
        for block in acknowledged:
            assert await store.get(block.cid) == block.data
        for _ in range(3):
            with pytest.raises(StoreUnavailable, match="is full"):
                await store.put(refused)
        stored = await store.has([block.cid for block in refused])
        assert (await store.stats()).blocks == len(acknowledged) + len(stored)
        assert len(temporary_files(directory / "store")) == (size > 65536)  # the writer's own directory
        assert len(blob_files(directory / "store")) == (len(acknowledged) + len(stored)) * (size > 65536)

        resize(64)
        assert await store.put(refused) == len(refused) - len(stored)
        await store.pin(Pin("m", refused[0].cid, ""))
        assert len(await store.get_many([block.cid for block in (*acknowledged, *refused)])) == (
            len(acknowledged) + len(refused)
        )
    assert check_invariants(directory / "store") == len(acknowledged) + len(refused)


@pytest.mark.parametrize(("count", "size", "room"), [(100, 1000, 20), (2, 500_000, 6)])
async def test_gc_makes_room_on_a_full_disk(disk: tuple[Path, Resize], count: int, size: int, room: int) -> None:
    directory, resize = disk
    async with EmbeddedStore(directory / "store", grace_s=0) as store:
        _, refused = await fill(store, count, size)
        resize(room)  # where small blocks took the last page, the log of their removal has none
        assert await store.gc(links_of) > 0
        assert await store.put(refused) == count
    check_invariants(directory / "store")


async def test_a_store_can_not_be_made_on_a_full_disk_but_later(disk: tuple[Path, Resize]) -> None:
    directory, resize = disk
    with (directory / "ballast").open("wb") as f:
        os.posix_fallocate(f.fileno(), 0, os.fstatvfs(f.fileno()).f_bavail * 4096)
    with pytest.raises(StoreUnavailable, match="is full"):
        await EmbeddedStore(directory / "store").open()
    resize(16)
    async with EmbeddedStore(directory / "store") as store:
        assert await store.put(random_blocks(3, 100)) == 3
