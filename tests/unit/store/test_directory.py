"""The store's directory: who may look in; what happens to one that is newer, foreign, damaged or not writable."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
import trio

from fused.errors import StoreUnavailable
from fused.store.embedded import EmbeddedStore
from tests.support.toy_blocks import random_blocks


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def no_umask() -> Iterator[None]:
    """As in the daemon."""
    before = os.umask(0)
    yield
    os.umask(before)


async def fill(path: Path, count: int = 200, size: int = 2000) -> None:
    """A closed store with blocks in it."""
    async with EmbeddedStore(path) as store:
        await store.put(random_blocks(count, size))


async def refusal(path: Path) -> str:
    """The one sentence with which opening the store fails."""
    with pytest.raises(StoreUnavailable) as caught:
        async with EmbeddedStore(path):
            pass
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.usefixtures("no_umask")
async def test_nobody_else_can_look_in_whatever_the_umask(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "parents" / "store"
    async with EmbeddedStore(path) as store:
        await store.put([*random_blocks(3, 100), *random_blocks(3, 100_000)])
        files = [p for p in tmp_path.rglob("*") if p.is_file()]
        assert {p.name for p in files} >= {"blocks.sqlite3", "blocks.sqlite3-wal", "blocks.sqlite3-shm", "format"}
        for p in tmp_path.rglob("*"):
            assert stat.S_IMODE(p.stat().st_mode) == (0o700 if p.is_dir() else 0o600), p


async def test_opening_changes_nothing_in_a_store_that_is_there(path: Path) -> None:
    await fill(path)
    async with EmbeddedStore(path) as store:
        assert (await store.stats()).blocks == 200


async def test_many_openings_at_once_make_one_store(path: Path) -> None:
    stores = [EmbeddedStore(path) for _ in range(8)]
    async with trio.open_nursery() as nursery:
        for store in stores:
            nursery.start_soon(store.open)
    blocks = random_blocks(1, 100)
    assert [await store.put(blocks) for store in stores] == [1, 0, 0, 0, 0, 0, 0, 0]
    for store in stores:
        await store.aclose()


async def test_a_newer_format_is_refused(path: Path) -> None:
    await fill(path)
    (path / "format").write_text("ipfsfs store 2\n")
    assert "format 2, made by a newer ipfsfs" in await refusal(path)


async def test_somebody_elses_directory_is_refused_and_left_alone(path: Path) -> None:
    path.mkdir()
    (path / "thesis.tex").write_text("x")
    assert "'thesis.tex'" in await refusal(path)
    assert [p.name for p in path.iterdir() if p.name != "lock"] == ["thesis.tex"]
    (path / "format").write_text("MP3")
    assert "not a block store" in await refusal(path)


async def test_a_file_in_its_place_is_one_sentence(path: Path) -> None:
    path.write_text("x")
    assert str(path) in await refusal(path)
    assert str(path) in await refusal(path / "below")


async def test_a_lost_format_file_costs_nothing(path: Path) -> None:
    await fill(path)
    (path / "format").unlink()
    async with EmbeddedStore(path) as store:
        assert (await store.stats()).blocks == 200
    assert (path / "format").exists()


async def test_a_making_that_crashed_is_finished(path: Path) -> None:
    path.mkdir()
    (path / "blobs").mkdir()
    (path / "blocks.sqlite3").touch()
    await fill(path)


async def test_a_making_that_crashed_in_its_first_transaction_is_finished(path: Path) -> None:
    path.mkdir()
    with closing(sqlite3.connect(path / "blocks.sqlite3", isolation_level=None)) as c:
        c.execute("PRAGMA cache_size = 1")
        c.execute("BEGIN")
        c.execute("CREATE TABLE blocks (x)")
        c.executemany("INSERT INTO blocks VALUES (?)", [(bytes(3000),)] * 50)
        assert (path / "blocks.sqlite3-journal").exists()
        killed = shutil.copytree(path, path.with_name("killed"))
    await fill(killed)


def overwrite_header(database: Path) -> None:
    with database.open("r+b") as f:
        f.write(b"not SQLite at all")


def fill_with_noise(database: Path) -> None:
    database.write_bytes(os.urandom(database.stat().st_size))


def truncate(database: Path) -> None:
    os.truncate(database, 5000)


def truncate_to_nothing(database: Path) -> None:
    os.truncate(database, 0)


def remove(database: Path) -> None:
    database.unlink()


@pytest.mark.parametrize("damage", [overwrite_header, fill_with_noise, truncate, truncate_to_nothing, remove])
async def test_a_damaged_database_is_one_sentence_with_a_way_out(path: Path, damage: Callable[[Path], None]) -> None:
    await fill(path)
    damage(path / "blocks.sqlite3")
    sentence = await refusal(path)
    assert "is damaged" in sentence
    assert f"move {path} aside" in sentence
    shutil.move(path, path.with_name("aside"))  # the way out
    await fill(path)


async def test_damage_inside_the_database_is_the_same_sentence(path: Path) -> None:
    await fill(path)
    database = path / "blocks.sqlite3"
    with database.open("r+b") as f:
        f.seek(20 * 4096)
        f.write(os.urandom(database.stat().st_size - 30 * 4096))
    with pytest.raises(StoreUnavailable, match="is damaged"):
        async with EmbeddedStore(path) as store:
            await store.get_many([block.cid for block in random_blocks(200, 2000)])


async def test_a_store_that_was_removed_while_open_acknowledges_nothing(path: Path) -> None:
    async with EmbeddedStore(path) as store:
        await store.put(random_blocks(1, 100))
        shutil.rmtree(path)
        with pytest.raises(StoreUnavailable, match="removed or replaced"):
            await store.put(random_blocks(1, 100, seed=1))
        with pytest.raises(StoreUnavailable):
            await store.put(random_blocks(1, 100_000, seed=1))


async def test_a_closed_store_says_so(path: Path) -> None:
    store = EmbeddedStore(path)
    with pytest.raises(StoreUnavailable, match="not open"):
        await store.put([])


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Callable[[Path], None]]:
    """Makes a directory one that can't be written: root needs a read-only mount for that."""
    mounted: list[Path] = []

    def protect(directory: Path) -> None:
        if os.geteuid() != 0:
            directory.chmod(0o500)
            return
        subprocess.run(["mount", "--bind", directory, directory], check=True)
        mounted.append(directory)
        subprocess.run(["mount", "-o", "remount,ro,bind", directory], check=True)

    yield protect
    for directory in mounted:
        subprocess.run(["umount", directory], check=True)


async def test_a_directory_that_can_not_be_written_is_one_sentence(
    path: Path, read_only: Callable[[Path], None]
) -> None:
    path.mkdir()
    read_only(path)
    assert "can't be written" in await refusal(path)
    assert "--store-dir" in await refusal(path / "below")


async def test_a_store_that_becomes_read_only_says_so(path: Path, read_only: Callable[[Path], None]) -> None:
    await fill(path)
    read_only(path)
    assert "can't be" in await refusal(path)
