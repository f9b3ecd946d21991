"""Scan and snapshots over a plain directory: what is stored, what is not read again, what survives."""

from __future__ import annotations

import os
import random
import sqlite3
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import trio

from fused.dag.chunker import CHUNK
from fused.dag.meta import read_meta_dir
from fused.index.index import Index
from fused.sync.changes import ChangeLog
from tests.support.dagread import plain_tree
from tests.unit.dag.test_build import COLLIDING

if TYPE_CHECKING:
    from fused.index.index import SnapshotRow
    from fused.sync.engine import Engine
    from fused.types import FileKey
    from tests.unit.sync.conftest import Covered


def fill(covered: Covered) -> None:
    root = covered.root
    (root / "a/b").mkdir(parents=True)
    (root / "empty").mkdir()
    (root / "a/one").write_bytes(b"one")
    (root / "a/b/two").write_bytes(b"two" * 1000)
    (root / "big").write_bytes(random.Random(1).randbytes(3 * CHUNK + 17))
    (root / ".hidden").write_bytes(b"")
    os.symlink("a/one", root / "link")
    with open(os.fsencode(root) + b"/\xff\n\x01", "wb") as stream:
        stream.write(b"odd")


async def test_first_snapshot_has_everything(covered: Covered) -> None:
    fill(covered)
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert (row.files, row.added) == (5, 5)
    assert row.bytes == 3 * CHUNK + 17 + 3 + 3000 + 3
    assert [pin.cid for pin in await covered.store.pins("test")] == [row.cid]


async def test_nothing_changed_is_the_same_snapshot(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    assert await covered.engine.sync() == first
    await covered.restart()
    assert not covered.engine.scanned
    assert await covered.engine.sync() == first
    assert covered.engine.scanned
    assert len(await covered.engine.snapshots()) == 1


async def test_changes_while_running_are_in_the_next_snapshot(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    fs = covered.fs
    fs.write("a/one", b"ONE!")
    fs.unlink("a/b/two")
    fs.mkdir("new")
    fs.write("new/file", b"fresh")
    fs.rename("big", "new/big")
    fs.symlink("../x", "empty/l")
    second = await covered.engine.sync()
    assert await covered.tree(second) == plain_tree(covered.root)
    assert second.cid != first.cid
    assert await covered.tree(first) != await covered.tree(second)
    assert [row.cid for row in await covered.engine.snapshots()] == [second.cid, first.cid]


async def test_changes_while_not_running_are_found_by_the_scan(covered: Covered) -> None:
    fill(covered)
    await covered.engine.sync()
    (covered.root / "a/b/two").write_bytes(b"other")
    (covered.root / "a/b/more").write_bytes(b"more")
    (covered.root / "a/one").unlink()
    await covered.restart()
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert (row.added, row.modified, row.removed) == (1, 1, 1)


async def test_only_the_changed_chunk_is_read_and_stored(covered: Covered) -> None:
    size = 40 * CHUNK
    (covered.root / "big").write_bytes(random.Random(2).randbytes(size))
    await covered.engine.sync()
    before = (await covered.store.stats()).blocks
    covered.fs.write("big", b"x" * 4096, 17 * CHUNK + 5000)
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    # one leaf, the file's root, the directory, its meta node, the snapshot
    assert (await covered.store.stats()).blocks - before == 5


async def test_chunks_are_read_again_if_the_file_changed_while_not_running(covered: Covered) -> None:
    content = bytearray(random.Random(3).randbytes(5 * CHUNK))
    (covered.root / "big").write_bytes(content)
    await covered.engine.sync()
    content[CHUNK : CHUNK + 10] = b"while away"
    (covered.root / "big").write_bytes(content)
    await covered.restart()
    covered.fs.write("big", b"while here", 3 * CHUNK)  # before the scan has come by
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)


async def test_extending_and_cutting_a_file(covered: Covered) -> None:
    fs = covered.fs
    fs.write("f", b"a" * (CHUNK + 10))
    await covered.engine.sync()
    for step in (
        lambda: fs.write("f", b"b" * 20, CHUNK + 10),
        lambda: fs.truncate("f", CHUNK),
        lambda: fs.truncate("f", CHUNK + 1),
        lambda: fs.truncate("f", 3 * CHUNK),
        lambda: (fs.truncate("f", 5), fs.truncate("f", 3 * CHUNK)),
        lambda: fs.write("f", b"c" * 3, 4 * CHUNK + 7),
        lambda: fs.truncate("f", 0),
    ):
        step()
        row = await covered.engine.sync()
        assert await covered.tree(row) == plain_tree(covered.root)


async def test_rename_and_chmod_do_not_read_the_file_again(covered: Covered, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = covered.fs
    fs.write("big.incomplete", random.Random(4).randbytes(3 * CHUNK))
    await covered.engine.sync()
    captured: list[FileKey] = []
    capture = ChangeLog.capture
    monkeypatch.setattr(ChangeLog, "capture", lambda self, key, fd: (captured.append(key), capture(self, key, fd))[1])
    fs.rename("big.incomplete", "big")
    fs.chmod("big", 0o600)
    row = await covered.engine.sync()
    assert set(await covered.tree(row)) == {b"big"}
    _, entries = await read_meta_dir(covered.store.get, row.meta)
    assert entries[0].attrs.mode == 0o600
    assert captured == []
    await trio.sleep(0.1)  # older than the clock's tick, so that the memo can be trusted by another run
    await covered.engine.settle()
    await covered.restart()
    assert (await covered.engine.sync()).cid == row.cid
    assert captured == []


async def test_hard_links_share_content_and_are_told_in_meta(covered: Covered) -> None:
    fs = covered.fs
    fs.mkdir("d")
    fs.mkdir("e")
    fs.write("d/one", b"1")
    fs.link("d/one", "e/two")
    await covered.engine.sync()
    await covered.restart()
    await covered.engine.sync()
    covered.fs.write("d/one", b"2")  # e is not told: only this name is known
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    _, top = await read_meta_dir(covered.store.get, row.meta)
    groups = set()
    for entry in top:
        assert entry.child is not None
        _, below = await read_meta_dir(covered.store.get, entry.child)
        groups |= {e.attrs.hardlink for e in below}
    assert len(groups) == 1
    assert None not in groups


async def test_special_files_are_in_meta_and_not_in_tree(covered: Covered) -> None:
    os.mkfifo(covered.root / "pipe")
    (covered.root / "file").write_bytes(b"x")
    row = await covered.engine.sync()
    assert await covered.tree(row) == {b"file": b"x"}
    _, entries = await read_meta_dir(covered.store.get, row.meta)
    assert {e.name: e.attrs.kind for e in entries} == {b"pipe": "fifo", b"file": "file"}


async def test_excluded_files_are_not_stored_and_come_when_the_pattern_goes(covered: Covered) -> None:
    fill(covered)
    (covered.root / ".ipfsfsignore").write_text("# a comment\nbig\n/a/b/\n")
    row = await covered.engine.sync()
    tree = await covered.tree(row)
    assert b"big" not in tree
    assert b"a/b" not in tree
    assert b"a/one" in tree
    assert covered.engine.notes.excluded() == (2, 3 * CHUNK + 17 + 3000)
    covered.fs.unlink(".ipfsfsignore")
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)


async def test_lost_index_is_rebuilt_and_snapshots_are_listed_again(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    covered.fs.write("a/one", b"changed")
    second = await covered.engine.sync()
    await covered.engine.aclose()
    for path in covered.state.glob("index.sqlite*"):
        path.unlink()
    await covered.restart()
    assert (await covered.engine.sync()).cid == second.cid
    listed = await covered.engine.snapshots()
    assert [(row.cid, row.files, row.bytes) for row in listed] == [
        (row.cid, row.files, row.bytes) for row in (second, first)
    ]


async def test_damaged_index_never_leads_to_a_wrong_tree(covered: Covered) -> None:
    fill(covered)
    good = await covered.engine.sync()
    await covered.engine.aclose()
    db = sqlite3.connect(covered.state / "index.sqlite")
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    pristine = (covered.state / "index.sqlite").read_bytes()
    rng = random.Random(5)
    for _ in range(60):
        broken = bytearray(pristine)
        for path in covered.state.glob("index.sqlite*"):
            path.unlink()
        if rng.random() < 0.2:
            del broken[rng.randrange(len(broken)) :]
        else:
            for _ in range(rng.choice((1, 1, 50))):
                broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
        (covered.state / "index.sqlite").write_bytes(broken)
        await covered.restart()
        row = await covered.engine.sync()
        assert row.tree == good.tree
        assert await covered.tree(row) == plain_tree(covered.root)
    await covered.engine.aclose()


async def test_store_that_lost_everything_gets_everything_again(covered: Covered) -> None:
    fill(covered)
    await covered.engine.sync()
    await covered.engine.aclose()
    covered.store = type(covered.store)()
    await covered.restart()
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)


async def snapshot_after(engine: Engine, earlier: SnapshotRow | None) -> None:
    with trio.fail_after(60):
        while engine.last == earlier or not engine.clean():  # noqa: ASYNC110  what tells us is not an event
            await trio.sleep(0.01)


async def test_background_snapshot_after_quiet_time(covered: Covered) -> None:
    await covered.restart(quiet_seconds=0.05, interval_seconds=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(covered.engine.run)
        covered.fs.write("f", b"1")
        await snapshot_after(covered.engine, None)
        first = covered.engine.last
        covered.fs.write("f", b"2")
        await snapshot_after(covered.engine, first)
        assert covered.engine.last is not None
        assert await covered.tree(covered.engine.last) == {b"f": b"2"}
        nursery.cancel_scope.cancel()


async def test_files_that_are_gone_are_not_remembered_while_there_is_no_quiet_moment(
    covered: Covered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fused.sync.ingest.RACY_NS", 10**12)
    for number in range(20):
        covered.fs.write(f"f{number}", b"x")
    await covered.engine.sync()
    assert covered.engine._taker is not None
    remembered = covered.engine._taker._racy
    assert len(remembered) == 20
    for number in range(20):
        covered.fs.unlink(f"f{number}")
    await covered.engine.sync()
    assert not remembered  # memory shows it only after millions of files


async def test_new_directory_with_the_inode_number_of_a_removed_one_is_not_taken_for_it(covered: Covered) -> None:
    fs = covered.fs
    fs.mkdir("d")
    fs.write("d/f", b"old")
    first = await covered.engine.sync()
    await trio.sleep(0.1)  # so that its memo is not made again for being too young
    fs.chmod("d", 0o700)
    first = await covered.engine.sync()
    ino = (covered.root / "d").stat().st_ino
    index = Index(str(covered.state))
    memo = index.dirs([ino])[ino]
    fs.unlink("d/f")
    fs.rmdir("d")
    fs.mkdir("d")
    # A file system may give the number out again at once, or not; here it did.
    reused = replace(memo, ino=(covered.root / "d").stat().st_ino, racy=False)
    index.put_dirs([reused])
    index.close()
    row = await covered.engine.sync()
    assert row.tree != first.tree
    assert await covered.tree(row) == {b"d": None}


@pytest.mark.slow
async def test_name_that_collides_with_another_in_a_hamt_is_skipped_and_named(covered: Covered) -> None:
    directory = covered.root / "large"
    directory.mkdir()
    for number in range(9000):
        (directory / str(number)).write_bytes(b"")
    for name in COLLIDING:
        (directory / os.fsdecode(name)).write_bytes(b"x")
    row = await covered.engine.sync()
    assert row.files == 9001
    (path, why), *others = covered.engine.notes.skipped()
    assert not others
    assert path in {b"large/" + name for name in COLLIDING}
    assert "hash" in why


def damage_in_use(covered: Covered) -> None:
    """Overwrite all but the first page of the open index, and make its connection read it again."""
    path = covered.state / "index.sqlite"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("INSERT OR REPLACE INTO about VALUES ('damaged', '')")
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        page = db.execute("PRAGMA page_size").fetchone()[0]
    with path.open("r+b") as stream:
        stream.seek(page)
        stream.write(random.Random(7).randbytes(path.stat().st_size - page))


async def test_snapshots_are_listed_though_the_index_is_damaged(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    damage_in_use(covered)
    assert [row.cid for row in await covered.engine.snapshots()] == [first.cid]
    assert (await covered.engine.sync()).tree == first.tree


async def test_snapshots_are_listed_before_the_first_scan_though_the_index_is_damaged(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    damage_in_use(covered)
    await covered.restart()
    assert [row.cid for row in await covered.engine.snapshots()] == [first.cid]
    assert (await covered.engine.sync()).tree == first.tree


async def test_an_index_that_is_damaged_at_the_start_can_be_looked_at(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    damage_in_use(covered)
    await covered.restart()
    assert await covered.engine.between_snapshots(lambda index: "looked at", rescan=False) == "looked at"
    assert (await covered.engine.sync()).tree == first.tree


async def test_an_index_found_damaged_in_a_quiet_moment_is_made_anew(covered: Covered) -> None:
    fill(covered)
    first = await covered.engine.sync()
    damage_in_use(covered)
    await covered.engine.settle()
    assert not covered.engine.clean()  # everything is looked at again
    assert (await covered.engine.sync()).tree == first.tree
    assert [row.cid for row in await covered.engine.snapshots()] == [first.cid]
