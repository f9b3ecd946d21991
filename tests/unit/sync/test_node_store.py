"""The engine over a store with a node behind it: what goes there, what waits, what is lost and stored again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from fused.errors import BlockNotFound, StoreUnavailable
from fused.store.base import Pin
from fused.sync import engine as engine_module
from fused.sync import recover
from tests.support.dagread import plain_tree
from tests.support.memory_node import MemoryNode
from tests.unit.sync.conftest import Covered, make_engine


@pytest.fixture
async def at_node(covered: Covered, tmp_path: Path) -> tuple[Covered, MemoryNode]:
    """A covered directory whose store is a node in memory. It has one file."""
    node = MemoryNode()
    covered.store = node
    (covered.root / "file").write_bytes(b"content" * 1000)
    await restart(covered, node)
    return covered, node


async def restart(covered: Covered, node: MemoryNode, **options: object) -> None:
    covered.store = node
    options.setdefault("root", os.fsencode(covered.root))
    await covered.restart(node=node, **options)


async def lose(node: MemoryNode) -> None:
    """The node starts again with an empty repository."""
    node.blocks.clear()
    for pin in await node.pins():
        await node.unpin(pin.owner, pin.cid)


# --- shown ----------------------------------------------------------------------------------------------------


async def test_the_newest_tree_is_shown_under_the_mounts_name(at_node: tuple[Covered, MemoryNode]) -> None:
    covered, node = at_node
    assert node.shown == {}
    row = await covered.engine.sync()
    assert node.shown == {"test": row.tree}
    covered.fs.write("file", b"other")
    assert node.shown == {"test": (await covered.engine.sync()).tree}


async def test_a_node_that_shows_nothing_has_the_snapshot_all_the_same(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    node.refuses_to_show = True
    row = await covered.engine.sync()
    assert [pin.cid for pin in await node.pins("test")] == [row.cid]
    assert covered.engine.problems == {
        "view": "the node's /ipfsfs is not up to date: the node in memory shows nothing",
    }
    assert "shows nothing" in caplog.text
    node.refuses_to_show = False
    assert await covered.engine.sync() == row
    assert covered.engine.problems == {}
    assert node.shown == {"test": row.tree}


# --- retention ------------------------------------------------------------------------------------------------


async def test_only_the_newest_snapshots_stay_pinned_and_listed(at_node: tuple[Covered, MemoryNode]) -> None:
    covered, node = at_node
    await restart(covered, node, keep_snapshots=3)
    rows = []
    for number in range(6):
        covered.fs.write("file", b"%d" % number)
        rows.append(await covered.engine.sync())
    newest = [row.cid for row in reversed(rows[-3:])]
    assert [row.cid for row in await covered.engine.snapshots()] == newest
    assert {pin.cid for pin in await node.pins("test")} == set(newest)


async def test_fewer_are_kept_from_the_next_mount_on_and_all_with_zero(at_node: tuple[Covered, MemoryNode]) -> None:
    covered, node = at_node
    for number in range(4):
        covered.fs.write("file", b"%d" % number)
        await covered.engine.sync()
    assert len(await node.pins("test")) == 4
    await restart(covered, node, keep_snapshots=1)
    row = await covered.engine.sync()
    assert [pin.cid for pin in await node.pins("test")] == [row.cid]
    assert await covered.engine.snapshots() == [row]


async def test_nothing_is_unpinned_before_the_new_snapshot_is(at_node: tuple[Covered, MemoryNode]) -> None:
    covered, node = at_node
    await restart(covered, node, keep_snapshots=1)
    first = await covered.engine.sync()
    covered.fs.write("file", b"new")
    pin = node.pin

    async def failing(_: Pin) -> None:
        raise StoreUnavailable("not now")

    node.pin = failing  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await covered.engine.sync()
    assert [pin.cid for pin in await node.pins("test")] == [first.cid]
    assert await covered.engine.snapshots() == [first]
    node.pin = pin  # type: ignore[method-assign]
    second = await covered.engine.sync()
    assert [pin.cid for pin in await node.pins("test")] == [second.cid]


async def test_unpinning_that_fails_is_a_problem_and_done_later(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    await restart(covered, node, keep_snapshots=1)
    await covered.engine.sync()
    covered.fs.write("file", b"new")
    unpin = node.unpin

    async def failing(owner: str, cid: object) -> None:
        raise StoreUnavailable("not now")

    node.unpin = failing  # type: ignore[method-assign]
    row = await covered.engine.sync()
    assert "retention" in covered.engine.problems
    assert len(await node.pins("test")) == len(await covered.engine.snapshots()) == 2
    node.unpin = unpin  # type: ignore[method-assign]
    assert await covered.engine.sync() == row
    assert covered.engine.problems == {}
    assert [pin.cid for pin in await node.pins("test")] == [row.cid]


# --- lost -----------------------------------------------------------------------------------------------------


async def test_blocks_that_go_between_put_and_pin_are_stored_again_in_the_same_sync(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    (covered.root / "d").mkdir()
    (covered.root / "d/deep").write_bytes(b"deep")
    pin = node.pin

    async def collect_first(wanted: Pin) -> None:
        node.pin = pin  # type: ignore[method-assign]
        node.blocks.clear()
        await node.pin(wanted)

    node.pin = collect_first  # type: ignore[method-assign]
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert [pin.cid for pin in await node.pins("test")] == [row.cid]
    assert "all files are stored again" in caplog.text


async def test_a_node_that_always_loses_blocks_is_an_error_and_not_a_loop(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    pin = node.pin

    async def collect(wanted: Pin) -> None:
        node.blocks.clear()
        await pin(wanted)

    node.pin = collect  # type: ignore[method-assign]
    with pytest.raises(BlockNotFound):
        await covered.engine.sync()
    assert await covered.engine.snapshots() == []
    node.pin = pin  # type: ignore[method-assign]
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)


async def test_a_node_that_starts_again_empty_gets_everything_with_the_next_change(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    await covered.engine.sync()
    await lose(node)
    covered.fs.write("other", b"new")
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert [pin.cid for pin in await node.pins("test")] == [row.cid]


async def test_a_node_that_starts_again_empty_gets_everything_though_nothing_changes(
    at_node: tuple[Covered, MemoryNode], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    for name in ("LOOK_SECONDS", "SETTLE_SECONDS"):
        monkeypatch.setattr(engine_module, name, 0.01)
    await restart(covered, node, quiet_seconds=0.05)
    await covered.engine.sync()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(covered.engine.run)
        await lose(node)
        lost = covered.engine.last
        await until(lambda: covered.engine.last is not lost)
        nursery.cancel_scope.cancel()
    assert covered.engine.last is not None
    assert covered.engine.last.cid in {pin.cid for pin in await node.pins("test")}
    assert await covered.tree(covered.engine.last) == plain_tree(covered.root)
    assert "does not have the last snapshot any more" in caplog.text


async def test_sync_of_nothing_new_asks_the_node_whether_it_still_has_everything(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    first = await covered.engine.sync()
    assert await covered.engine.sync(verify=True) == first
    await lose(node)
    row = await covered.engine.sync(verify=True)
    assert await covered.tree(row) == plain_tree(covered.root)
    assert [pin.cid for pin in await node.pins("test")] == [row.cid]
    node.down = True
    with pytest.raises(StoreUnavailable):
        await covered.engine.sync(verify=True)
    assert await covered.engine.sync() == row


async def test_a_snapshot_that_somebody_unpinned_is_pinned_again(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    first = await covered.engine.sync()
    await node.unpin("test", first.cid)
    puts = node.puts
    assert await covered.engine.sync(verify=True) == first
    assert [pin.cid for pin in await node.pins("test")] == [first.cid]
    assert node.puts == puts
    # And if a part of it went before that was noticed, all of it is stored again.
    await node.unpin("test", first.cid)
    leaf = next(cid for cid, data in node.blocks.items() if data == b"content" * 1000)
    del node.blocks[leaf]
    row = await covered.engine.sync(verify=True)
    assert await covered.tree(row) == plain_tree(covered.root)


async def test_memos_of_another_store_are_not_believed(
    at_node: tuple[Covered, MemoryNode], caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    await restart(covered, node, store_id="one")
    first = await covered.engine.sync()
    other = MemoryNode()
    await restart(covered, other, store_id="two")
    (covered.root / "late").write_bytes(b"late")
    node_pin, other.pin = other.pin, _unavailable  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await covered.engine.sync()  # the files are stored there, and no snapshot
    other.pin = node_pin  # type: ignore[method-assign]
    await restart(covered, node, store_id="one")
    row = await covered.engine.sync()
    assert row.cid != first.cid
    assert await covered.tree(row) == plain_tree(covered.root)


async def _unavailable(_: Pin) -> None:
    raise StoreUnavailable("not now")


async def test_snapshots_of_another_machine_are_not_listed_as_ours(
    at_node: tuple[Covered, MemoryNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    covered, node = at_node
    await covered.engine.sync()
    await covered.engine.aclose()
    for path in covered.state.glob("index.sqlite*"):
        path.unlink()
    monkeypatch.setattr("socket.gethostname", lambda: "another")
    await restart(covered, node, keep_snapshots=1)
    row = await covered.engine.sync()
    assert await covered.engine.snapshots() == [row]
    assert len(await node.pins("test")) == 2


# --- down -----------------------------------------------------------------------------------------------------


async def until(condition: Callable[[], object]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110  it is about state, which has no events
            await trio.sleep(0.01)


async def test_what_waits_for_a_node_is_counted_with_what_was_there_before(
    at_node: tuple[Covered, MemoryNode], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    covered, node = at_node
    monkeypatch.setattr(engine_module, "RETRY_MOST", 0.2)
    await restart(covered, node, quiet_seconds=0.05)
    engine = covered.engine
    node.down = True
    assert engine.waiting() is None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await until(engine.backlog)
        covered.fs.write("new", b"12345")
        waiting = engine.waiting()
        assert waiting is not None
        assert (waiting.files, waiting.bytes) == (2, 7005)
        assert waiting.error == "the node in memory can't be reached: connection refused"
        await trio.sleep(0.5)
        later = engine.waiting()
        assert later is not None
        assert later.since == waiting.since
        assert node.puts == 0
        node.down = False
        await until(engine.clean)
        assert engine.waiting() is None
        assert engine.backlog() is None
        assert engine.last is not None
        assert await covered.tree(engine.last) == plain_tree(covered.root)
        nursery.cancel_scope.cancel()


async def test_files_stored_before_the_node_went_are_not_stored_again(at_node: tuple[Covered, MemoryNode]) -> None:
    covered, node = at_node
    for number in range(5):
        (covered.root / f"{number}").write_bytes(b"%d" % number * 10)
    await trio.sleep(0.1)  # older than the clock's tick
    put = node.put
    handled = []

    async def few(blocks: object) -> int:
        handled.append(len(blocks))  # type: ignore[arg-type]
        done = await put(blocks)  # type: ignore[arg-type]
        node.down = True  # right after the files, before the directory
        return done

    node.put = few  # type: ignore[method-assign]
    with pytest.raises(StoreUnavailable):
        await covered.engine.sync()
    node.down, node.put = False, put  # type: ignore[method-assign]
    captured: list[object] = []
    capture = covered.changes.capture
    covered.changes.capture = lambda key, fd: (captured.append(key), capture(key, fd))[1]  # type: ignore[method-assign]
    row = await covered.engine.sync()
    assert captured == []
    assert await covered.tree(row) == plain_tree(covered.root)


async def test_lists_are_had_while_a_snapshot_waits_for_the_node(at_node: tuple[Covered, MemoryNode]) -> None:
    covered, node = at_node
    row = await covered.engine.sync()
    covered.fs.write("file", b"new")
    put = node.put
    reached, release = trio.Event(), trio.Event()

    async def hanging(blocks: object) -> int:
        reached.set()
        await release.wait()
        return await put(blocks)  # type: ignore[arg-type]

    node.put = hanging  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(covered.engine.sync)
        await reached.wait()
        with trio.fail_after(5):
            assert await covered.engine.snapshots() == [row]
        release.set()


async def test_the_list_is_recovered_though_the_node_was_down_at_first(
    at_node: tuple[Covered, MemoryNode], monkeypatch: pytest.MonkeyPatch
) -> None:
    covered, node = at_node
    first = await covered.engine.sync()
    await covered.engine.aclose()
    for path in covered.state.glob("index.sqlite*"):
        path.unlink()
    node.down = True
    await restart(covered, node)
    monkeypatch.setattr(engine_module, "TIDY_SECONDS", 1.0)
    with pytest.raises(StoreUnavailable):
        await covered.engine.sync()
    assert await covered.engine.snapshots() == []
    node.down = False
    assert (await covered.engine.sync()).cid == first.cid
    assert [row.cid for row in await covered.engine.snapshots()] == [first.cid]
    assert recover.pin_name(1, 7000) == (await node.pins("test"))[0].name


# --- privacy --------------------------------------------------------------------------------------------------


def add_credentials(covered: Covered) -> None:
    (covered.root / ".env").write_bytes(b"TOKEN=very secret")
    (covered.root / ".ssh").mkdir()
    (covered.root / ".ssh/known_hosts").write_bytes(b"hosts that are secret")
    (covered.root / "id_rsa.pub").write_bytes(b"public")


@pytest.mark.parametrize("reach", ["public", None])
async def test_nothing_that_looks_like_credentials_reaches_a_public_node(
    at_node: tuple[Covered, MemoryNode], reach: None
) -> None:
    covered, node = at_node
    add_credentials(covered)
    node.reach = reach
    row = await covered.engine.sync()
    assert set(await covered.tree(row)) == {b"file", b"id_rsa.pub"}
    assert not any(b"secret" in data or b".ssh" in data or b".env" in data for data in node.blocks.values())
    assert covered.engine.notes.skipped() == [
        (b".env", "has a name as settings of a deployment have, and the node is public"),
        (b".ssh", "has a name as directories of keys have, and the node is public"),
    ]
    covered.fs.write("server.key", b"also secret")
    await covered.engine.sync()
    assert not any(b"secret" in data for data in node.blocks.values())
    assert len(covered.engine.notes.skipped()) == 3
    assert covered.engine.clean()


@pytest.mark.parametrize("reach", ["private", "offline"])
async def test_other_nodes_and_who_understands_get_everything(at_node: tuple[Covered, MemoryNode], reach: None) -> None:
    covered, node = at_node
    add_credentials(covered)
    node.reach = reach
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    public = MemoryNode("public")
    await restart(covered, public, public_is_fine=True, store_id="public")
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert covered.engine.notes.skipped() == []


async def test_a_node_that_proves_public_later_gets_no_credentials_and_a_private_one_gets_the_rest(
    at_node: tuple[Covered, MemoryNode],
) -> None:
    covered, node = at_node
    add_credentials(covered)
    node.reach, node.down = "public", True
    with pytest.raises(StoreUnavailable):
        await covered.engine.sync()
    node.down = False
    row = await covered.engine.sync()
    assert set(await covered.tree(row)) == {b"file", b"id_rsa.pub"}
    node.reach = "private"
    covered.fs.write("file", b"changed")
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
    assert covered.engine.notes.skipped() == []
    node.reach = "public"
    covered.fs.write("file", b"changed again")
    row = await covered.engine.sync()
    assert set(await covered.tree(row)) == {b"file", b"id_rsa.pub"}


async def test_a_store_that_nobody_reaches_gets_everything(covered: Covered) -> None:
    add_credentials(covered)
    covered.engine = make_engine(covered)
    row = await covered.engine.sync()
    assert await covered.tree(row) == plain_tree(covered.root)
