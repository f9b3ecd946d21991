"""The store at a real Kubo node, beyond what the contract asks of every store."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused.cid import format_cid
from fused.dag.build import DirEntry, directory
from fused.dag.seal import plain_seal
from fused.errors import BlockCorrupt, BlockNotFound, StoreUnavailable, UsageError
from fused.store.base import Pin
from fused.store.kubo import pins
from fused.store.kubo.store import KuboStore
from fused.store.opening import make_store
from fused.store.spec import StoreSpec
from tests.support.kubo_node import KuboNode, free_port, new_swarm_key
from tests.support.toy_blocks import node, random_blocks, raw

pytestmark = pytest.mark.kubo


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboNode]:
    """One online node, without peers, for all tests of this file that do it no harm."""
    with KuboNode(tmp_path_factory.mktemp("node") / "repo") as node:
        yield node


def spec_of(tmp_path: Path, kubo: KuboNode, **more: object) -> StoreSpec:
    return StoreSpec("kubo", str(tmp_path / "store"), kubo.url, **more)  # type: ignore[arg-type]


# --- contact ----------------------------------------------------------------------------------------------------


async def test_opening_contacts_nobody_and_a_node_that_is_down_is_one_sentence(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with KuboStore(StoreSpec("kubo", str(tmp_path), url)) as store:
        for call in (store.put([raw(b"x")]), store.get(raw(b"x").cid), store.stats(), store.pins()):
            with pytest.raises(StoreUnavailable, match=f"the Kubo node at {url} can't be reached .* is it running"):
                await call
        status = await store.node()
        assert status.address == url
        assert status.error is not None
        assert "can't be reached" in status.error
        assert status.reach is None


async def test_the_usual_place_is_found_again_after_a_restart_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPFS_PATH", str(tmp_path / "repo"))
    async with make_store(StoreSpec("kubo", str(tmp_path / "store"))) as store:  # type: ignore[attr-defined]
        with KuboNode(tmp_path / "repo") as kubo:
            assert await store.put([raw(b"x")]) == 1
            kubo.stop()
            kubo.port = free_port()
            with pytest.raises(StoreUnavailable):
                await store.put([raw(b"y")])
            kubo.start()
            assert await store.put([raw(b"x"), raw(b"y")]) == 1


async def test_a_node_that_hangs_is_given_up_and_cancelling_does_not_wait_for_it(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo, read_seconds=0.2)) as store:
            await store.put([raw(b"x")])
            kubo.freeze()
            began = time.monotonic()
            status = await store.node()
            assert time.monotonic() - began < 5
            assert status.error is not None
            assert "does not answer" in status.error
            kubo.thaw()
            assert (await store.node()).error is None


async def test_a_directory_that_is_not_ours_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file")
    store = KuboStore(StoreSpec("kubo", str(tmp_path / "store"), "http://127.0.0.1:1"))
    with pytest.raises(StoreUnavailable):
        await store.open()
    with pytest.raises(UsageError):
        make_store(StoreSpec("kubo", str(tmp_path), "nonsense"))


# --- blocks -----------------------------------------------------------------------------------------------------


async def test_a_block_that_nobody_has_is_given_up_after_the_deadline(tmp_path: Path, running: KuboNode) -> None:
    [block] = random_blocks(1, 50, seed=1)
    async with KuboStore(spec_of(tmp_path, running, read_seconds=0.5)) as store:
        began = time.monotonic()
        with pytest.raises(
            StoreUnavailable, match=r"did not come within 0.5 s: the Kubo node .* found nobody"
        ) as caught:
            await store.get(block.cid)
        assert time.monotonic() - began < 5
    assert format_cid(block.cid) in str(caught.value)
    assert running.url in str(caught.value)


async def test_a_block_comes_from_another_node_on_the_network(tmp_path: Path, running: KuboNode) -> None:
    batch = [*random_blocks(20, 1000, seed=2), *random_blocks(3, 1 << 20, seed=2)]
    with KuboNode(tmp_path / "repo") as other:
        async with KuboStore(spec_of(tmp_path / "there", other)) as store:
            await store.put(batch)
        running.connect(other)
        async with KuboStore(spec_of(tmp_path / "here", running)) as store:
            assert await store.has([block.cid for block in batch]) == set()
            assert await store.get_many([block.cid for block in batch]) == dict(batch)


async def test_what_was_read_is_read_again_without_the_node(tmp_path: Path) -> None:
    batch = random_blocks(20, 1000)
    tree = node(*(block.cid for block in batch))
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            await store.put([*batch, tree])
            await store.get_many([block.cid for block in batch[:10]])
        kubo.kill()
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            assert len(await store.get_many([block.cid for block in batch[:10]])) == 10
            assert await store.get(tree.cid) == tree.data  # what is no leaf is kept when it is put
            with pytest.raises(StoreUnavailable):
                await store.get(batch[10].cid)


async def test_a_node_that_lost_everything_is_sent_everything(tmp_path: Path) -> None:
    batch = random_blocks(50, 1000)
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            assert await store.put(batch) == 50
            kubo.clear()
            kubo.start()
            assert await store.has([block.cid for block in batch]) == set()
            assert await store.put(batch) == 50
            assert len(await store.has([block.cid for block in batch])) == 50
            assert (await store.stats()).blocks == 50


async def test_a_block_above_two_mib_is_neither_put_nor_taken(tmp_path: Path, running: KuboNode) -> None:
    large = raw(os.urandom((2 << 20) + 1))
    running.run("block", "put", "--allow-big-block", "--cid-codec=raw", stdin=large.data)
    async with KuboStore(spec_of(tmp_path, running)) as store:
        with pytest.raises(BlockCorrupt, match="more than 2097152 bytes"):
            await store.get(large.cid)
        with pytest.raises(StoreUnavailable, match="over 2MiB"):
            await store.put([large])


def file_of(kubo: KuboNode, data: bytes) -> Path:
    """Where the node keeps these bytes."""
    return next(
        f for f in (kubo.path / "blocks").rglob("*.data") if f.stat().st_size == len(data) and f.read_bytes() == data
    )


async def test_damage_at_the_node_is_found_and_repaired(tmp_path: Path) -> None:
    good, damaged, lost = random_blocks(3, 3000)
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            await store.put([good, damaged, lost])
            file_of(kubo, damaged.data).write_bytes(damaged.data[:-1] + b"?")
            with pytest.raises(BlockCorrupt, match=f"the Kubo node at {kubo.url} gave 3000 bytes for it"):
                await store.get(damaged.cid)
            kubo.run("block", "rm", format_cid(lost.cid))
            assert await store.repair([good, damaged, lost]) == 2
            assert await store.repair([good, damaged, lost]) == 0
            assert await store.get(damaged.cid) == damaged.data


# --- pins -------------------------------------------------------------------------------------------------------


async def test_pins_are_named_for_people_and_found_by_any_store(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo") as kubo:
        leaves, root = random_blocks(3, 100), node(raw(b"x").cid)
        async with KuboStore(spec_of(tmp_path / "a", kubo)) as store:
            await store.put([*leaves, raw(b"x"), root])
            await store.pin(Pin("srv-data", root.cid, "2 files, 7 bytes"))
        listed = kubo.run("pin", "ls", "--names").decode()
        assert f"{format_cid(root.cid)} recursive ipfsfs:srv-data" in listed
        assert f":{format_cid(root.cid)}:2 files, 7 bytes" in listed
        async with KuboStore(spec_of(tmp_path / "b", kubo)) as store:
            assert await store.pins() == [Pin("srv-data", root.cid, "2 files, 7 bytes")]


async def test_the_next_pin_looks_at_the_difference_and_is_whole(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            leaves = random_blocks(300, 500)
            old = node(node(*(leaf.cid for leaf in leaves)).cid, salt=b"1")
            await store.put([*leaves, node(*(leaf.cid for leaf in leaves)), old])
            await store.pin(Pin("m", old.cid, "first"))
            more = random_blocks(5, 500, seed=9)
            new = node(node(*(leaf.cid for leaf in (*leaves, *more))).cid, salt=b"2")
            await store.put([*more, node(*(leaf.cid for leaf in (*leaves, *more))), new])
            await store.pin(Pin("m", new.cid, "second"))
            await store.unpin("m", old.cid)
            kubo.collect_garbage()
            wanted = [new.cid, *(leaf.cid for leaf in (*leaves, *more))]
            assert await store.has([*wanted, old.cid]) == set(wanted)
            assert await store.pins() == [Pin("m", new.cid, "second")]


async def test_what_somebody_else_pinned_stays_pinned_and_keeps_its_name(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            leaf, root = raw(b"x"), node(raw(b"x").cid)
            await store.put([leaf, root])
            kubo.run("pin", "add", "--name=photos", format_cid(root.cid))
            await store.pin(Pin("m", root.cid, "ours"))
            assert await store.pins() == [Pin("m", root.cid, "ours")]
            await store.unpin("m", root.cid)
            assert await store.pins() == []
            kubo.collect_garbage()
            assert await store.has([leaf.cid]) == {leaf.cid}
            assert b"photos" in kubo.run("pin", "ls", "--names")


async def test_what_a_kill_leaves_of_a_pin_is_no_pin_and_goes(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            one, two = node(salt=b"1"), node(salt=b"2")
            await store.put([one, two])
            await store.pin(Pin("m", one.cid, "first"))
            kubo.rpc("pin/rm", format_cid(one.cid))  # as if killed between the two steps of pin, or of unpin
            assert await store.pins() == []
            await store.pin(Pin("m", two.cid, "second"))
            assert len(kubo.rpc("pin/ls", type="direct")["Keys"]) == 1


async def test_garbage_collected_before_the_pin_is_missed_at_once_and_sent_again(tmp_path: Path) -> None:
    # The node is online, where Kubo would look for a missing block in the network until it is stopped.
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            old = [raw(b"old"), node(raw(b"old").cid)]
            await store.put(old)
            await store.pin(Pin("m", old[1].cid, "first"))
            leaves = random_blocks(50, 500)
            root = node(*(leaf.cid for leaf in leaves), old[0].cid)
            await store.put(leaves)
            kubo.collect_garbage()
            began = time.monotonic()
            await store.put([root])
            with pytest.raises(BlockNotFound) as caught:
                await store.pin(Pin("m", root.cid, "second"))
            assert time.monotonic() - began < 5
            assert caught.value.cid in {leaf.cid for leaf in leaves}
            assert await store.pins() == [Pin("m", old[1].cid, "first")]
            assert await store.put([*leaves, *old, root]) >= 50
            await store.pin(Pin("m", root.cid, "second"))
            assert len(await store.has([leaf.cid for leaf in leaves])) == 50


async def test_pins_wait_for_no_network_when_a_block_was_removed_by_hand(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo", offline=True) as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            leaves = random_blocks(50, 500)
            root = node(*(leaf.cid for leaf in leaves))
            await store.put([*leaves, root])
            kubo.run("block", "rm", format_cid(leaves[7].cid))
            with pytest.raises(BlockNotFound) as caught:
                await store.pin(Pin("m", root.cid, ""))
            assert caught.value.cid == leaves[7].cid
            assert await store.put([*leaves, root]) == 51
            await store.pin(Pin("m", root.cid, ""))


@pytest.mark.parametrize("pinned_before", [False, True])
async def test_a_hole_that_nobody_can_fill_is_found_while_the_node_looks_for_it_in_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pinned_before: bool
) -> None:
    monkeypatch.setattr(pins, "_STALLED_S", 1.0)
    monkeypatch.setattr(pins, "_WALK_S", 2.0)
    with KuboNode(tmp_path / "repo") as kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            leaves = random_blocks(20, 500)
            old, root = node(leaves[0].cid), node(*(leaf.cid for leaf in leaves))
            await store.put([*leaves, root, old])
            if pinned_before:
                await store.pin(Pin("m", old.cid, ""))
            kubo.run("block", "rm", format_cid(leaves[7].cid))
            with pytest.raises(BlockNotFound):
                await store.pin(Pin("m", root.cid, ""))
            assert await store.pins() == ([Pin("m", old.cid, "")] if pinned_before else [])
            assert await store.put([*leaves, root]) == 21
            await store.pin(Pin("m", root.cid, ""))


# --- the node ---------------------------------------------------------------------------------------------------


async def test_the_latest_tree_can_be_seen_in_mfs(tmp_path: Path, running: KuboNode) -> None:
    async with KuboStore(spec_of(tmp_path, running)) as store:
        for name in (b"one", b"two"):
            leaf = raw(name)
            tree, blocks, _ = directory([DirEntry(name, leaf.cid, len(leaf.data))], plain_seal)
            await store.put([leaf, *blocks])
            await store.show("laptop", tree)
            assert running.run("files", "ls", "/ipfsfs/laptop").split() == [name]
            assert running.run("files", "read", f"/ipfsfs/laptop/{name.decode()}") == name
        with pytest.raises(UsageError):
            await store.show("../x", tree)


@pytest.mark.parametrize("reach", ["public", "private", "offline"])
async def test_the_status_says_who_can_find_what_is_there(tmp_path: Path, reach: str) -> None:
    kubo = KuboNode(
        tmp_path / "repo",
        offline=reach == "offline",
        swarm_key=new_swarm_key() if reach == "private" else None,
    )
    with kubo:
        async with KuboStore(spec_of(tmp_path, kubo)) as store:
            status = await store.node()
    assert (status.error, status.version, status.peer_id) == (None, "0.42.0", kubo.peer_id)
    assert (status.address, status.reach) == (kubo.url, reach)


async def test_what_is_no_node_is_called_none(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo", config={"Addresses.Gateway": f"/ip4/127.0.0.1/tcp/{(port := free_port())}"}):
        async with KuboStore(StoreSpec("kubo", str(tmp_path), f"http://127.0.0.1:{port}")) as store:
            with pytest.raises(StoreUnavailable, match=r"no RPC API there|HTTP status"):
                await store.put([raw(b"x")])
