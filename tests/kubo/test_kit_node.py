"""A Kubo node through ipfs_kit_py, beyond what every store does: with a daemon, without one, and when it goes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Protocol

import libipld
import pytest
import trio

from fused.cid import DAG_CBOR, DAG_PB, cid_of, format_cid, parse_cid
from fused.dag.dagpb import encode_link, encode_node
from fused.dag.unixfs import DIRECTORY_DATA
from fused.errors import BlockCorrupt, BlockNotFound, StoreUnavailable
from fused.store.base import Block, Pin
from fused.store.kit.store import KitStore
from fused.store.spec import StoreSpec
from tests.support.kubo import KuboRepo, kubo_binary
from tests.support.kubo_node import KuboNode, new_swarm_key
from tests.support.poll import wait_until
from tests.support.toy_blocks import random_blocks, raw

pytestmark = pytest.mark.kubo


class Open(Protocol):
    """Opens the store of a node; the same ledger and cache each time."""

    def __call__(self, path: Path, *, read_seconds: float = 30.0) -> AbstractAsyncContextManager[KitStore]: ...


@pytest.fixture
def kit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """See Open. Nothing is cached, so that every read asks the node."""
    monkeypatch.setenv("PATH", str(kubo_binary().parent), prepend=os.pathsep)

    @asynccontextmanager
    async def opened(path: Path, *, read_seconds: float = 30.0) -> AsyncIterator[KitStore]:
        spec = StoreSpec("ipfs-kit", str(tmp_path / "state"), str(path), cache_bytes=0, read_seconds=read_seconds)
        async with KitStore(spec) as store:
            yield store

    return opened


@pytest.fixture
def node(tmp_path: Path) -> Iterator[KuboNode]:
    """A daemon with an empty repository."""
    with KuboNode(tmp_path / "node") as running:
        yield running


def tree(*leaves: Block) -> Block:
    """A directory of files that are one leaf each."""
    links = [encode_link(leaf.cid, f"{i:04}".encode(), len(leaf.data)) for i, leaf in enumerate(leaves)]
    data = encode_node(links, DIRECTORY_DATA)
    return Block(cid_of(DAG_PB, data), data)


async def in_thread(node: KuboNode | KuboRepo, *args: str) -> str:
    """What `ipfs ARGS` writes, without holding up the store's tasks."""
    return (await trio.to_thread.run_sync(lambda: node.run(*args))).decode().strip()


# --- everything, on both ------------------------------------------------------------------------------------------


@pytest.fixture(params=["daemon", "repository"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[KuboNode | KuboRepo]:
    """A running node, and a repository without one."""
    if request.param == "repository":
        yield KuboRepo(tmp_path / "repo", profiles=("test",))
    else:
        with KuboNode(tmp_path / "node") as running:
            yield running


async def test_a_tree_is_put_pinned_shown_published_and_read(either: KuboNode | KuboRepo, kit: Open) -> None:
    leaves = random_blocks(300, 3000)
    root = tree(*leaves)
    async with kit(either.path) as store:
        assert await store.put([*leaves, root]) == 301
        await store.pin(Pin("work", root.cid, "first"))
        assert await store.pins() == [Pin("work", root.cid, "first")]
        await store.show("work", root.cid)
        name = await store.publish("ipfsfs-work", root.cid)
        assert await store.publish("ipfsfs-work", root.cid) == name
        assert await store.get_many([root.cid, leaves[0].cid]) == {root.cid: root.data, leaves[0].cid: leaves[0].data}
        status = await store.node()
    assert status.error is None
    assert status.version is not None
    assert status.version.startswith("0.42.")
    assert status.reach == ("public" if isinstance(either, KuboNode) else "offline")
    await in_thread(either, "repo", "gc", "--quiet")
    assert len((await in_thread(either, "files", "ls", "/ipfsfs/work")).split()) == 300
    assert await in_thread(either, "--offline", "name", "resolve", name) == f"/ipfs/{format_cid(root.cid)}"
    async with kit(either.path) as store:
        assert await store.has([block.cid for block in (root, *leaves)]) == {block.cid for block in (root, *leaves)}


async def test_bytes_of_any_codec_come_back_exactly(either: KuboNode | KuboRepo, kit: Open) -> None:
    leaf = raw(bytes(range(256)))
    content = libipld.encode_dag_cbor({"link": bytes(leaf.cid), "bytes": b"\xff\xfe\r\n\0"})
    blocks = [leaf, tree(leaf), Block(cid_of(DAG_CBOR, content), content), raw(b"")]
    async with kit(either.path) as store:
        await store.put(blocks)
        assert await store.get_many([block.cid for block in blocks]) == {block.cid: block.data for block in blocks}
        for block in blocks:
            assert await store.get(block.cid) == block.data


async def test_fsck_sees_what_is_there_and_what_is_not(either: KuboNode | KuboRepo, kit: Open) -> None:
    there, missing = random_blocks(100, 1000), random_blocks(3, 1000)
    asked = [*there[:50], missing[0], *there[50:], *missing[1:], there[0]]
    async with kit(either.path) as store:
        await store.put(there)
        found = await store.inspect([block.cid for block in asked])
    assert {cid for cid, data in found.items() if isinstance(data, BlockNotFound)} == {b.cid for b in missing}
    assert {b.cid: b.data for b in there} == {cid: data for cid, data in found.items() if isinstance(data, bytes)}


async def test_what_is_shown_under_a_name_is_replaced(node: KuboNode, kit: Open) -> None:
    leaf = raw(b"a")
    old, new = tree(leaf), tree(leaf, leaf)
    async with kit(node.path) as store:
        await store.put([leaf, old, new])
        for shown in (old, new, old):
            await store.show("two words", shown.cid)
            stat = await trio.to_thread.run_sync(lambda: node.rpc("files/stat", "/ipfsfs/two words"))
            assert parse_cid(stat["Hash"]) == shown.cid


# --- pins ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def suspicious(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pin that takes more than a second is suspected to have a hole."""
    monkeypatch.setattr("fused.store.kit.pins._HOLE_S", 1.0)


@pytest.mark.usefixtures("suspicious")
async def test_a_pin_of_an_incomplete_tree_names_what_is_missing(either: KuboNode | KuboRepo, kit: Open) -> None:
    here, missing = raw(b"here"), raw(b"missing")
    root = tree(here, missing)
    async with kit(either.path) as store:
        await store.put([here, root])
        with pytest.raises(BlockNotFound) as caught:
            await store.pin(Pin("work", root.cid, ""))
        assert caught.value.cid == missing.cid
        assert await store.pins() == []


@pytest.mark.usefixtures("suspicious")
async def test_what_the_node_collected_is_stored_anew(node: KuboNode, kit: Open) -> None:
    old, kept, new = raw(b"old"), raw(b"kept"), raw(b"new")
    first, second = tree(old, kept), tree(kept, new)
    async with kit(node.path) as store:
        await store.put([old, kept, first])
        await store.pin(Pin("work", first.cid, ""))
        await store.put([new, second])
        await trio.to_thread.run_sync(node.collect_garbage)
        with pytest.raises(BlockNotFound):
            await store.pin(Pin("work", second.cid, ""))
        await store.put([kept, new, second])  # as the engine does: all of it
        await store.pin(Pin("work", second.cid, ""))
        assert {pin.cid for pin in await store.pins()} == {first.cid, second.cid}
        assert await store.get(new.cid) == new.data


async def test_somebody_elses_pin_on_the_same_root_stays(node: KuboNode, kit: Open) -> None:
    block = raw(b"x")
    async with kit(node.path) as store:
        await store.put([block])
        await in_thread(node, "pin", "add", "--name=my backup", format_cid(block.cid))
        await store.pin(Pin("work", block.cid, "mine"))
        assert await store.pins() == [Pin("work", block.cid, "mine")]
        await store.unpin("work", block.cid)
        assert await store.pins() == []
    assert (await in_thread(node, "pin", "ls", "--names", format_cid(block.cid))).endswith("recursive my backup")


# --- nodes that come, go and change -------------------------------------------------------------------------------


async def test_commands_on_a_repository_wait_for_each_other(tmp_path: Path, kit: Open) -> None:
    repo = KuboRepo(tmp_path / "repo", profiles=("test",))
    batches = [random_blocks(20, 1000, seed=seed) for seed in range(4)]
    stop = threading.Event()

    def disturb() -> None:
        while not stop.is_set():  # another process that opens the repository; it may find it locked, too
            try:
                repo.run("repo", "stat")
            except AssertionError as exc:
                if "someone else has the lock" not in str(exc):
                    raise

    async with kit(repo.path) as store, trio.open_nursery() as nursery:
        nursery.start_soon(trio.to_thread.run_sync, disturb)
        async with trio.open_nursery() as putting:
            for batch in batches:
                putting.start_soon(store.put, batch)
        stop.set()
        found = await store.get_many([block.cid for batch in batches for block in batch])
    assert found == {block.cid: block.data for batch in batches for block in batch}


async def test_without_its_daemon_the_repository_goes_on_being_used(node: KuboNode, kit: Open) -> None:
    one, two, three = raw(b"1"), raw(b"2"), raw(b"3")
    async with kit(node.path) as store:
        await store.put([one])
        node.kill()
        assert await store.put([two]) == 1
        node.start()
        assert await store.put([one, two, three]) == 1
        assert len(await store.get_many([one.cid, two.cid, three.cid])) == 3


async def test_an_emptied_node_is_noticed(node: KuboNode, kit: Open, caplog: pytest.LogCaptureFixture) -> None:
    blocks = random_blocks(5, 100)
    async with kit(node.path) as store:
        await store.put(blocks)
    node.clear()
    node.start()
    async with kit(node.path) as store:
        assert (await store.stats()).blocks == 0
        assert await store.put(blocks) == 5
    assert "has collected garbage, or is another one" in caplog.text


@pytest.mark.slow
async def test_a_node_that_does_not_answer_is_given_up_at_the_deadline(node: KuboNode, kit: Open) -> None:
    block = raw(b"x")
    async with kit(node.path, read_seconds=1.5) as store:
        await store.put([block])
        node.freeze()
        with (
            trio.fail_after(20),
            pytest.raises(StoreUnavailable, match=f"{format_cid(block.cid)} can't be read.*1 s|2 s"),
        ):
            await store.get(block.cid)
        node.thaw()
        assert await store.get(block.cid) == block.data


async def test_a_cancelled_read_returns_at_once(node: KuboNode, kit: Open) -> None:
    block = raw(b"x")
    async with kit(node.path) as store:
        await store.put([block])
        node.freeze()
        with trio.fail_after(10), trio.move_on_after(0.3) as scope:
            await store.get(block.cid)
        assert scope.cancelled_caught
        node.thaw()


async def test_a_child_that_was_killed_is_started_again(node: KuboNode, kit: Open) -> None:
    block = raw(b"x")
    async with kit(node.path) as store:
        await store.put([block])
        pid = store._node._child.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: store._node._child._running.dead, "end of the child", 10.0)
        assert await store.get(block.cid) == block.data


# --- blocks of others, and damaged ones ---------------------------------------------------------------------------


async def test_blocks_of_another_node_are_fetched_through_ours(tmp_path: Path, node: KuboNode, kit: Open) -> None:
    leaves = random_blocks(20, 2000)
    with KuboNode(tmp_path / "other") as other:
        async with kit(other.path) as store:
            await store.put(leaves)
        await trio.to_thread.run_sync(node.connect, other)
        async with kit(node.path, read_seconds=60) as store:
            assert await store.has([leaf.cid for leaf in leaves]) == set()
            found = await store.get_many([leaf.cid for leaf in leaves])
    assert found == {leaf.cid: leaf.data for leaf in leaves}


@pytest.mark.slow
async def test_a_block_that_nobody_gives_is_waited_for_until_the_deadline(
    tmp_path: Path, node: KuboNode, kit: Open
) -> None:
    unknown = raw(b"unknown")
    with KuboNode(tmp_path / "other") as other:
        await trio.to_thread.run_sync(node.connect, other)
        async with kit(node.path, read_seconds=3) as store:
            with trio.fail_after(30), pytest.raises(StoreUnavailable, match=format_cid(unknown.cid)):
                await store.get(unknown.cid)


async def test_a_private_node_says_so(tmp_path: Path, kit: Open) -> None:
    with KuboNode(tmp_path / "node", swarm_key=new_swarm_key(), environ={"LIBP2P_FORCE_PNET": "1"}) as private:
        async with kit(private.path) as store:
            assert (await store.node()).reach == "private"


async def test_a_daemon_without_a_network_is_offline(tmp_path: Path, kit: Open) -> None:
    with KuboNode(tmp_path / "node", offline=True) as lonely:
        async with kit(lonely.path) as store:
            assert (await store.node()).reach == "offline"
            with pytest.raises(BlockNotFound):
                await store.get(raw(b"unknown").cid)


async def test_a_damaged_block_is_found_out_and_repaired(node: KuboNode, kit: Open) -> None:
    good, bad = random_blocks(2, 5000)
    async with kit(node.path) as store:
        await store.put([good, bad])
        [file] = [path for path in (node.path / "blocks").rglob("*.data") if path.read_bytes() == bad.data]
        file.write_bytes(bytes(5000))
        with pytest.raises(BlockCorrupt) as caught:
            await store.get_many([good.cid, bad.cid])
        assert caught.value.cid == bad.cid
        assert await store.repair([good, bad]) == 1
        assert await store.get(bad.cid) == bad.data
        assert await store.repair([good, bad]) == 0
