"""Restoring: everything comes back, nothing is overwritten unasked, nothing half-written is ever seen."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest
import trio

from fused.cid import RAW, cid_of, format_cid
from fused.dag.build import DirEntry, directory, file_root
from fused.dag.chunker import CHUNK
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import DIRECTORY_DATA
from fused.errors import DagError, PathNotInDag, RestoreFailed, StoreUnavailable
from fused.store.base import Block
from fused.store.embedded import EmbeddedStore
from fused.view.directory import open_root
from fused.view.plan import Plan
from fused.view.restore import Report, Restore
from fused.view.target import NewFile, Target
from tests.support.compare import assert_same_tree, describe_tree, walk
from tests.support.faulty_store import Fail, FaultyStore
from tests.support.poll import wait_until
from tests.support.seeds import seeds
from tests.support.snapshot_builder import snapshot_of, tree_of
from tests.support.store_files import change_block, flip_bit
from tests.support.trees import make_random_tree, make_sparse_file

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fused.cid import CID
    from fused.view.directory import Blocks, Names
    from tests.unit.view.conftest import CountingStore

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make devices and give files away")


async def restored(
    blocks: Blocks, cid: CID, to: Path | str, paths: tuple[Names, ...] = (), *, overwrite: bool = False
) -> tuple[Plan, Report]:
    """Plan, and run if nothing stands against it, as the command does."""
    root = await open_root(blocks, cid)
    with Restore(blocks, root.node, str(to), paths, overwrite=overwrite) as restore:
        plan = await restore.plan()
        if plan.blocked or (plan.conflicts and not overwrite):
            return plan, Report()
        return plan, await restore.run(plan)


def make_everything(source: Path) -> None:
    """One of everything that a tree can hold."""
    (source / "empty").touch()
    (source / "text").write_text("text\n")
    (source / "large").write_bytes(random.Random(4).randbytes(3 * CHUNK + 17))
    (source / "exact").write_bytes(random.Random(5).randbytes(CHUNK))
    (source / "dir" / "deeper").mkdir(parents=True)
    (source / "dir" / "deeper" / "file").write_text("deep")
    (source / "empty dir").mkdir()
    (source / "link").symlink_to("dir/deeper")
    (source / "dangling").symlink_to("/nowhere/at all")
    os.link(source / "large", source / "dir" / "large again")
    os.link(source / "text", source / "dir" / "deeper" / "text again")
    os.link(source / "link", source / "link again", follow_symlinks=False)
    os.mkfifo(source / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(source / "sock"))
    for name in (b"not utf-8 \xff\xfe", b"line\nbreak", b"n" * 255, "ümläut 漢".encode(), b" ", b"-rf", b"\x1b[31m"):
        with open(os.fsencode(source) + b"/" + name, "wb") as file:
            file.write(name)
    (source / "text").chmod(0o4751)
    (source / "dir").chmod(0o2500)
    (source / "dir" / "deeper").chmod(0o555)
    (source / "empty").chmod(0)
    os.setxattr(source / "text", "user.plain", b"value")
    os.setxattr(source / "text", b"user.\xff", bytes(range(256)))
    os.setxattr(source / "dir", "user.dir", b"")
    os.utime(source / "text", ns=(0, 1))
    os.utime(source / "large", ns=(0, 4_102_444_800_123_456_789))
    os.utime(source / "link", ns=(0, 999_999_999), follow_symlinks=False)
    os.utime(source / "fifo", ns=(0, -5_000_000_001))
    for number, name in enumerate(("dir/deeper", "dir", "empty dir", ".")):
        os.utime(source / name, ns=(0, 1_000_000_000_000_000_000 + number))


async def test_everything_comes_back(source: Path, tmp_path: Path, store: CountingStore) -> None:
    make_everything(source)
    _, report = await restored(store, await snapshot_of(store, str(source)), tmp_path / "new" / "out")
    assert_same_tree(source, tmp_path / "new" / "out")
    assert (report.failed, report.skipped, report.notes) == ([], [], [])
    assert report.restored["hardlink"] == 3
    sizes = {(st.st_dev, st.st_ino): st.st_size for _, st in walk(os.fsencode(source)) if stat.S_ISREG(st.st_mode)}
    assert report.bytes_written == sum(sizes.values())


async def test_second_restore_finds_everything_the_same(source: Path, tmp_path: Path, store: CountingStore) -> None:
    make_everything(source)
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    await restored(store, cid, out)
    inodes = {path: st["mtime_ns"] for path, st in describe_tree(out).items()}
    plan, report = await restored(store, cid, out)
    assert plan.conflicts == []
    assert plan.bytes_to_write == 0
    assert not +report.restored
    assert {path: st["mtime_ns"] for path, st in describe_tree(out).items()} == inodes


@pytest.mark.parametrize("seed", seeds(12, quick=3))
async def test_random_trees_come_back(tmp_path: Path, seed: int) -> None:
    path = os.fsencode(tmp_path / "random")
    make_random_tree(path, random.Random(seed), special=("", "chunks", "shards")[seed % 3])
    async with EmbeddedStore(tmp_path / "store") as store:
        await restored(store, await snapshot_of(store, path), tmp_path / "out")
    assert_same_tree(path, tmp_path / "out")


async def test_plain_tree_comes_back_without_attributes(source: Path, tmp_path: Path, store: CountingStore) -> None:
    make_everything(source)
    await restored(store, await tree_of(store, str(source)), tmp_path / "out")
    expected, found = describe_tree(source, mtimes=False), describe_tree(tmp_path / "out", mtimes=False)
    assert found.keys() == {path for path, at in expected.items() if at["kind"] not in ("fifo", "socket")}
    umask = os.umask(0)
    os.umask(umask)
    for path, at in found.items():
        for field in ("kind", "sha256", "target"):
            assert at.get(field) == expected[path].get(field)
        if at["kind"] != "link":
            assert at["mode"] == oct((0o777 if at["kind"] == "directory" else 0o666) & ~umask)


async def test_named_paths_and_their_parents_come_back_alone(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    make_everything(source)
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    await restored(store, cid, out, ((b"dir", b"deeper"), (b"dir", b"deeper", b"file"), (b"text",)))
    found = describe_tree(out)
    assert found.keys() == {b"", b"dir", b"dir/deeper", b"dir/deeper/file", b"dir/deeper/text again", b"text"}
    assert found[b"text"]["links"] == [b"dir/deeper/text again", b"text"]
    assert found[b"dir"]["mode"] == "0o2500"
    with pytest.raises(PathNotInDag, match="dir/gone is not in the snapshot"):
        await restored(store, cid, out, ((b"dir", b"gone", b"x"),))


async def test_differences_stop_it_before_anything_is_changed(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    make_everything(source)
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    out.mkdir()
    (out / "text").write_text("mine\n")
    (out / "link").write_text("a file")
    (out / "dangling").symlink_to("elsewhere")
    (out / "exact").write_bytes((source / "exact").read_bytes())
    (out / "large").mkdir()
    (out / "mine only").touch()
    before = describe_tree(out)
    plan, _ = await restored(store, cid, out)
    assert {finding.path: finding.why for finding in plan.conflicts} == {
        (b"text",): "has other content",
        (b"link",): "is a file here and a symbolic link in the snapshot",
        (b"dangling",): "points elsewhere",
        (b"exact",): "has another mtime",
    }
    assert [finding.path for finding in plan.blocked] == [(b"large",)]
    assert describe_tree(out) == before
    plan, _ = await restored(store, cid, out, overwrite=True)
    assert plan.blocked
    assert describe_tree(out) == before


async def test_overwriting_replaces_what_differs_and_leaves_the_rest(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    make_everything(source)
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    await restored(store, cid, out)
    (out / "large").write_bytes(b"x" * (source / "large").stat().st_size)
    (out / "link").unlink()
    (out / "link").mkdir()
    (out / "link").rmdir()
    (out / "link").write_text("a file")
    (out / "fifo").unlink()
    (out / "fifo").symlink_to("text")
    (out / "empty").chmod(0o644)
    os.setxattr(out / "empty", "user.extra", b"1")
    (out / "dir").chmod(0o777)
    shutil.rmtree(out / "empty dir")
    (out / "empty dir").symlink_to(tmp_path)
    (out / "mine only").write_text("stays")
    kept = os.stat(out / "exact").st_ino
    reader = os.open(out / "large", os.O_RDONLY)
    await restored(store, cid, out, overwrite=True)
    assert os.read(reader, 10) == b"x" * 10, "a reader of the old content keeps it"
    os.close(reader)
    assert os.stat(out / "exact").st_ino == kept
    assert (out / "mine only").read_text() == "stays"
    (out / "mine only").unlink()
    os.utime(out, ns=(0, source.stat().st_mtime_ns))
    assert_same_tree(source, out)


async def test_restoring_a_missing_file_leaves_its_directory_as_it_is(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    make_everything(source)
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    await restored(store, cid, out)
    (out / "dir").chmod(0o700)
    (out / "dir" / "deeper").chmod(0o700)
    (out / "dir" / "deeper" / "file").unlink()
    plan, report = await restored(store, cid, out)
    assert plan.conflicts == []
    assert report.restored == {"file": 1, "dir": 0}
    assert stat.S_IMODE((out / "dir").stat().st_mode) == 0o700


async def test_hard_links_are_made_again_to_the_name_that_is_there(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    (source / "a").write_text("content")
    os.link(source / "a", source / "b")
    os.link(source / "a", source / "c")
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    await restored(store, cid, out)
    kept = (out / "b").stat().st_ino
    (out / "a").unlink()
    plan, report = await restored(store, cid, out)
    assert (plan.bytes_to_write, report.restored["hardlink"], report.restored["file"]) == (0, 1, 0)
    assert {(out / name).stat().st_ino for name in "abc"} == {kept}
    (out / "c").unlink()
    shutil.copy2(out / "a", out / "c")
    plan, _ = await restored(store, cid, out)
    assert [(finding.path, finding.why) for finding in plan.conflicts] == [((b"c",), "is not the same file as a")]
    await restored(store, cid, out, overwrite=True)
    assert_same_tree(source, out)


async def test_content_is_compared_without_fetching_it(source: Path, tmp_path: Path, store: CountingStore) -> None:
    make_everything(source)
    cid = await snapshot_of(store, str(source))
    out = tmp_path / "out"
    await restored(store, cid, out)
    leaves = {cid for cid in store.blocks if cid[1] == RAW}
    store.asked.clear()
    await restored(store, cid, out)
    assert not leaves & set(store.asked)


async def test_files_of_other_writers_are_compared_by_their_bytes(tmp_path: Path, store: CountingStore) -> None:
    """A leaf that is a dag-pb node, as CIDv0 adds make them, has no CID that local bytes could be hashed to."""
    from fused.cid import DAG_PB

    content = b"the content in a UnixFS file node"
    node = encode_node([], b"\x08\x02\x12" + bytes((len(content),)) + content + b"\x18" + bytes((len(content),)))
    leaf = Block(cid_of(DAG_PB, node), node)
    root, blocks, _ = directory([DirEntry(b"file", leaf.cid, len(node))])
    await store.put([leaf, *blocks])
    out = tmp_path / "out"
    await restored(store, root, out)
    assert (out / "file").read_bytes() == content
    plan, _ = await restored(store, root, out)
    assert plan.conflicts == []
    (out / "file").write_bytes(content[::-1])
    plan, _ = await restored(store, root, out)
    assert [finding.why for finding in plan.conflicts] == ["has other content"]


async def test_symlinks_in_the_target_are_never_followed(source: Path, tmp_path: Path, store: CountingStore) -> None:
    (source / "a" / "b").mkdir(parents=True)
    (source / "a" / "b" / "file").write_text("from the snapshot")
    (source / "top").write_text("from the snapshot")
    cid = await snapshot_of(store, str(source))
    outside = tmp_path / "outside"
    (outside / "b").mkdir(parents=True)
    (outside / "victim").write_text("precious")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").symlink_to(outside)
    (out / "top").symlink_to(outside / "victim")
    before = describe_tree(outside)
    plan, _ = await restored(store, cid, out, ((b"a", b"b", b"file"),), overwrite=True)
    assert [finding.why for finding in plan.blocked] == ["is a symbolic link here, not a directory"]
    await restored(store, cid, out, overwrite=True)
    assert describe_tree(outside) == before
    assert_same_tree(source, out, skip=lambda path: path == b"")


async def test_target_that_is_a_symlink_is_what_the_user_named(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    (source / "file").touch()
    (tmp_path / "real").mkdir()
    (tmp_path / "alias").symlink_to("real")
    await restored(store, await snapshot_of(store, str(source)), tmp_path / "alias")
    assert (tmp_path / "real" / "file").exists()


@pytest.mark.parametrize("name", [b"..", b".", b"", b"a/../../x", b"/etc/x", b"a\0b"])
async def test_hostile_names_are_refused(tmp_path: Path, store: CountingStore, name: bytes) -> None:
    leaf = Block(cid_of(RAW, b"evil"), b"evil")
    from fused.cid import DAG_PB

    data = encode_node([encode_link(leaf.cid, name, 4)], DIRECTORY_DATA)
    root = Block(cid_of(DAG_PB, data), data)
    await store.put([leaf, root])
    with pytest.raises(DagError):
        await restored(store, root.cid, tmp_path / "out")
    target = Target(tmp_path)
    try:
        with pytest.raises(DagError):
            target.new_file((name,))
    finally:
        target.close()
    assert sorted(entry.name for entry in tmp_path.iterdir()) == []


async def test_damaged_block_costs_only_the_files_it_is_in(source: Path, tmp_path: Path) -> None:
    rng = random.Random(6)
    (source / "small").write_bytes(rng.randbytes(100))
    (source / "small too").write_bytes(rng.randbytes(100))
    (source / "large").write_bytes(rng.randbytes(9 * CHUNK))
    (source / "large too").write_bytes(rng.randbytes(9 * CHUNK))
    (source / "link").symlink_to("small")
    async with EmbeddedStore(tmp_path / "store") as store:
        cid = await snapshot_of(store, str(source))
        bad_small = cid_of(RAW, (source / "small").read_bytes())
        bad_leaf = cid_of(RAW, (source / "large").read_bytes()[7 * CHUNK : 8 * CHUNK])
        for bad in (bad_small, bad_leaf):
            change_block(tmp_path / "store", bad, flip_bit)
        _, report = await restored(store, cid, tmp_path / "out")
    assert [finding.path for finding in report.failed] == [(b"large",), (b"small",)]
    for finding, bad in zip(report.failed, (bad_leaf, bad_small), strict=True):
        assert format_cid(bad) in finding.why
    assert sorted(os.listdir(tmp_path / "out")) == ["large too", "link", "small too"]
    assert (tmp_path / "out" / "large too").read_bytes() == (source / "large too").read_bytes()


async def test_store_that_goes_away_ends_it_without_partial_files(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    for number in range(5):
        (source / f"{number}").write_bytes(random.Random(number).randbytes(5 * CHUNK))
    cid = await snapshot_of(store, str(source))
    faulty = FaultyStore(store, Fail("get", nth=18, times=1e9))
    with pytest.raises(StoreUnavailable):
        await restored(faulty, cid, tmp_path / "out")
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (source / path.name).read_bytes()


async def test_full_disk_ends_it_and_says_where(
    source: Path, tmp_path: Path, store: CountingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source / "a").write_text("first")
    (source / "b").write_bytes(bytes(range(256)) * 16384)
    cid = await snapshot_of(store, str(source))

    def full(file: NewFile, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    root = await open_root(store, cid)
    with Restore(store, root.node, str(tmp_path / "out")) as restore:
        plan = await restore.plan()
        monkeypatch.setattr(NewFile, "write", full)
        with pytest.raises(RestoreFailed, match="No space left"):
            await restore.run(plan)
    assert os.listdir(tmp_path / "out") == []


async def test_file_that_appears_meanwhile_is_left_alone(source: Path, tmp_path: Path, store: CountingStore) -> None:
    (source / "file").write_text("stored")
    (source / "link").symlink_to("x")
    os.mkfifo(source / "fifo")
    cid = await snapshot_of(store, str(source))
    root = await open_root(store, cid)
    out = tmp_path / "out"
    with Restore(store, root.node, str(out)) as restore:
        plan = await restore.plan()
        out.mkdir()
        for name in ("file", "link", "fifo"):
            (out / name).write_text("new")
        report = await restore.run(plan)
    assert {finding.why for finding in report.failed} == {"appeared while restoring and was left as it is"}
    assert len(report.failed) == 3
    assert sorted(os.listdir(out)) == ["fifo", "file", "link"]
    assert {(out / name).read_text() for name in os.listdir(out)} == {"new"}


async def test_zeros_become_holes(source: Path, tmp_path: Path, store: CountingStore) -> None:
    make_sparse_file(os.fsencode(source / "sparse"), 30 * CHUNK + 5)
    await restored(store, await snapshot_of(store, str(source)), tmp_path / "out")
    assert_same_tree(source, tmp_path / "out")
    assert (tmp_path / "out" / "sparse").stat().st_blocks * 512 < CHUNK


async def test_file_of_more_chunks_than_one_node_links(tmp_path: Path, store: CountingStore) -> None:
    chunk = bytes(CHUNK)
    leaf = Block(cid_of(RAW, chunk), chunk)
    cid, nodes, tsize = file_root([leaf.cid] * 1030, 1030 * CHUNK)
    root, blocks, _ = directory([DirEntry(b"file", cid, tsize)])
    await store.put([leaf, *nodes, *blocks])
    await restored(store, root, tmp_path / "out")
    assert (tmp_path / "out" / "file").stat().st_size == 1030 * CHUNK


async def test_deep_trees_need_few_descriptors(tmp_path: Path, store: CountingStore) -> None:
    """700 levels, deeper than descriptors are kept open, and a path longer than PATH_MAX."""
    source = tmp_path / "source"
    source.mkdir()
    here = os.open(source, os.O_RDONLY)
    tree, blocks, tsize = directory([])
    await store.put(blocks)
    for _ in range(700):
        tree, blocks, tsize = directory([DirEntry(b"eight ch", tree, tsize)])
        await store.put(blocks)
    os.close(here)
    _, report = await restored(store, tree, tmp_path / "out")
    assert report.restored["dir"] == 700
    _run("rm", "-rf", tmp_path / "out")


@as_root
async def test_devices_and_owners_come_back_for_root(source: Path, tmp_path: Path, store: CountingStore) -> None:
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(source / "loop", stat.S_IFBLK | 0o660, os.makedev(7, 200))
    (source / "file").touch()
    (source / "link").symlink_to("x")
    os.chown(source / "file", 12345, 54321)
    (source / "file").chmod(0o6755)
    os.chown(source / "link", 12345, 54321, follow_symlinks=False)
    os.chown(source, 1, 2)
    os.setxattr(source / "file", "trusted.t", b"1")
    await restored(store, await snapshot_of(store, str(source)), tmp_path / "out")
    assert_same_tree(source, tmp_path / "out")
    assert os.getxattr(tmp_path / "out" / "file", "trusted.t") == b"1"
    with_other_number = await snapshot_of(store, str(source))
    (tmp_path / "out" / "null").unlink()
    os.mknod(tmp_path / "out" / "null", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    plan, _ = await restored(store, with_other_number, tmp_path / "out")
    assert ((b"null",), "is another device") in plan.conflicts


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), check=True)


def _as_nobody(act: Callable[[], str]) -> str:
    """What `act` returns in a child that is an ordinary user. A fork, as that user may not be able to start Python."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            answer = act()
        except BaseException:
            answer = traceback.format_exc()
        os.write(write_end, answer.encode())
        os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        answer = pipe.read().decode()
    os.waitpid(child, 0)
    return answer


@as_root
def test_ordinary_user_gets_what_is_permitted_and_is_told_the_rest(source: Path, tmp_path: Path) -> None:
    make_everything(source)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.setxattr(source / "text", "trusted.t", b"1")
    out = tmp_path / "home" / "out"
    out.parent.mkdir()
    os.chown(out.parent, 65534, 65534)
    for path in (tmp_path, *tmp_path.parents[:3]):
        path.chmod(path.stat().st_mode | 0o011)

    async def store_it() -> CID:
        async with EmbeddedStore(tmp_path / "store") as store:
            return await snapshot_of(store, str(source))

    async def restore_twice() -> str:
        reports = []
        async with EmbeddedStore(tmp_path / "store") as store:
            for _ in range(2):
                plan, report = await restored(store, cid, out)
                skipped = [tuple(finding) for finding in report.skipped]
                reports.append(f"{plan.conflicts} {skipped} {report.failed} {report.notes}")
        return "\n".join(reports)

    cid = trio.run(store_it)
    _run("chown", "-R", "65534:65534", tmp_path / "store")
    first, second = _as_nobody(lambda: trio.run(restore_twice)).splitlines()
    assert first.startswith("[] [((b'null',), 'making a character device is not permitted here')] [] ['")
    assert "entries belong to you" in first
    assert "1 extended attributes were not set" in first
    assert second == "[] [((b'null',), 'making a character device is not permitted here')] [] []"
    expected, found = describe_tree(source), describe_tree(out)
    assert found.keys() == expected.keys() - {b"null"}
    for path, at in found.items():
        ours = expected[path] | {"uid": 65534, "gid": 65534}
        if "mode" in ours:
            ours["mode"] = oct(int(str(ours["mode"]), 8) & ~0o6000)
        assert at == ours, path
    assert found[b"text"]["mode"] == "0o751", "nobody must not get a set-uid program of their own"


_RESTORE = """
import sys, trio
from fused.cid import parse_cid
from fused.store.embedded import EmbeddedStore
from fused.view.directory import open_root
from fused.view.restore import Restore

async def main():
    async with EmbeddedStore(sys.argv[1]) as store:
        root = await open_root(store, parse_cid(sys.argv[2]))
        with Restore(store, root.node, sys.argv[3], overwrite=True) as restore:
            await restore.run(await restore.plan())

trio.run(main)
"""


@pytest.mark.parametrize("after", [1, 5, 11])
def test_killed_restore_leaves_old_or_new_content_under_every_name(source: Path, tmp_path: Path, after: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for number in range(16):
        (source / f"{number:02}").write_bytes(random.Random(number).randbytes(CHUNK + number))
        (out / f"{number:02}").write_bytes(b"old")

    async def store_it() -> CID:
        async with EmbeddedStore(tmp_path / "store") as store:
            return await snapshot_of(store, str(source))

    async def restore_it() -> None:
        async with EmbeddedStore(tmp_path / "store") as store:
            await restored(store, cid, out, overwrite=True)

    cid = trio.run(store_it)
    process = subprocess.Popen([sys.executable, "-c", _RESTORE, str(tmp_path / "store"), format_cid(cid), str(out)])
    try:
        wait_until(lambda: (out / f"{after:02}").stat().st_size != 3, "restored file", every=0.001)
        process.send_signal(signal.SIGKILL)
    finally:
        assert process.wait() == -signal.SIGKILL
    for path in out.iterdir():
        if not path.name.startswith(".ipfsfs-restore-"):
            assert path.read_bytes() in (b"old", (source / path.name).read_bytes())
    trio.run(restore_it)
    for path in list(out.glob(".ipfsfs-restore-*")):
        path.unlink()
    os.utime(out, ns=(0, source.stat().st_mtime_ns))
    assert_same_tree(source, out)


async def test_memory_for_a_plan_is_needed_for_existing_entries_only(
    source: Path, tmp_path: Path, store: CountingStore
) -> None:
    for number in range(300):
        (source / f"{number}").touch()
    plan, _ = await restored(store, await snapshot_of(store, str(source)), tmp_path / "out")
    assert plan.situations == {}
    assert plan.counts["file"] == 300
