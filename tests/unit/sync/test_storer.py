"""Chunks that another process reads and stores, and what becomes of them when it can't."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
import trio

from fused.cid import RAW, cid_of
from fused.dag.chunker import CHUNK
from fused.dag.seal import plain_seal
from fused.errors import StoreUnavailable
from fused.store.blocking import BlockingStore
from fused.store.embedded import EmbeddedStore
from fused.store.memory import MemoryStore
from fused.sync import storer as storer_module
from fused.sync.changes import ChangeLog
from fused.sync.engine import Engine
from fused.sync.storer import Storer, storer_for
from tests.support.dagread import plain_tree, read_tree
from tests.support.direct import DirectFs
from tests.support.poll import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.unit.sync.conftest import Covered


@pytest.fixture
def directory(tmp_path: Path) -> str:
    BlockingStore(tmp_path / "store").close()
    return str(tmp_path / "store")


@pytest.fixture
def storer(directory: str) -> Iterator[Storer]:
    made = Storer(directory, 3600.0)
    yield made
    made.close()


@pytest.fixture
def big(tmp_path: Path) -> Iterator[int]:
    """A file of four and a half chunks."""
    path = tmp_path / "big"
    path.write_bytes(b"".join(bytes([i]) * CHUNK for i in range(4)) + b"end" * 1000)
    fd = os.open(path, os.O_RDONLY)
    yield fd
    os.close(fd)


def size_of(fd: int) -> int:
    return os.fstat(fd).st_size


def pid_of(storer: Storer) -> int:
    assert storer._process is not None
    return storer._process.pid


def test_chunks_are_in_the_store_when_their_cids_come_back(storer: Storer, directory: str, big: int) -> None:
    stored = storer.store(big, [1, 2, 4], size_of(big))
    assert stored is not None
    wanted = [bytes([1]) * CHUNK, bytes([2]) * CHUNK, b"end" * 1000]
    assert (stored.cids, stored.new) == ([cid_of(RAW, data) for data in wanted], 3)
    with BlockingStore(directory) as store:
        assert [store.rows.get(cid) for cid in stored.cids if cid is not None] == wanted
    again = storer.store(big, [0, 1], size_of(big))
    assert again is not None
    assert again.new == 1


def test_a_chunk_that_is_shorter_than_the_file_should_be_has_no_cid(storer: Storer, big: int) -> None:
    stored = storer.store(big, [3, 4, 5], size_of(big) + CHUNK)
    assert stored is not None
    assert stored.cids == [cid_of(RAW, bytes([3]) * CHUNK), None, None]


def test_a_file_that_cannot_be_read_raises_what_reading_it_here_would(storer: Storer, tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        with pytest.raises(IsADirectoryError):
            storer.store(fd, [0], CHUNK)
    finally:
        os.close(fd)


def test_a_store_that_fails_raises_what_it_would_here(storer: Storer, directory: str, big: int) -> None:
    assert storer.store(big, [0], size_of(big)) is not None
    shutil.rmtree(directory)
    with pytest.raises(StoreUnavailable, match=r"removed or replaced|failed"):
        storer.store(big, [1], size_of(big))


def test_another_store_in_its_place_is_not_written_to(storer: Storer, directory: str, big: int) -> None:
    os.rename(directory, directory + ".old")  # removed, its inode numbers might come again
    BlockingStore(directory).close()
    assert storer.store(big, [0], size_of(big)) is None
    with BlockingStore(directory) as store:
        assert store.rows.stats().blocks == 0


def test_the_process_holds_nothing_but_its_socket_and_the_store(storer: Storer, directory: str, big: int) -> None:
    storer.store(big, [0], size_of(big))
    pid = pid_of(storer)
    held = {os.readlink(f"/proc/{pid}/fd/{n}") for n in os.listdir(f"/proc/{pid}/fd") if int(n) > 2}
    assert [place for place in held if not place.startswith(("socket:", directory))] == []
    assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_it_ends_when_it_is_let_go_of_and_leaves_no_file_of_its_own(storer: Storer, directory: str, big: int) -> None:
    storer.store(big, [0], size_of(big))
    pid = pid_of(storer)
    storer.close()
    assert not os.path.exists(f"/proc/{pid}")
    assert os.listdir(os.path.join(directory, "tmp")) == []


def test_it_dies_with_the_daemon_also_in_the_middle_of_something(directory: str, big: int) -> None:
    program = (
        "import os, signal, sys; from fused.sync.storer import Storer\n"
        "storer = Storer(sys.argv[1], 3600.0); storer.store(int(sys.argv[2]), [0], 5 << 20)\n"
        "os.kill(storer._process.pid, signal.SIGSTOP)\n"  # it does not read its socket now
        "print(storer._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    place = os.path.dirname(os.path.dirname(storer_module.fused.__file__))
    command = [sys.executable, "-c", program, directory, str(big)]
    done = subprocess.run(command, cwd=place, pass_fds=[big], stdout=subprocess.PIPE, check=False)
    pid = int(done.stdout)
    try:
        wait_until(lambda: not is_alive(pid), "the storing process to die", 30)
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def is_alive(pid: int) -> bool:
    """A zombie is not: in a container nobody may reap it."""
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rpartition(")")[2].split()[0] not in ("Z", "X")
    except FileNotFoundError:
        return False


def test_one_that_had_nothing_to_do_and_ended_is_started_again(
    storer: Storer, big: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        storer_module,
        "_BOOT",
        storer_module._BOOT.replace("; main()", "; import fused.sync.storing as s; s.IDLE_SECONDS = 0.01; main()"),
    )
    for _ in range(3):
        assert storer.store(big, [0], size_of(big)) is not None
        keeper = storer._keeper
        assert keeper is not None
        keeper.join(10)
    assert not caplog.records


def test_one_that_was_killed_is_told_of_once_and_not_started_again_for_a_while(
    storer: Storer, big: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert storer.store(big, [0], size_of(big)) is not None
    os.kill(pid_of(storer), signal.SIGKILL)
    assert storer.store(big, [1], size_of(big)) is None
    assert storer.store(big, [1], size_of(big)) is None
    assert storer._process is None
    assert [record.levelno for record in caplog.records] == [logging.WARNING]
    monkeypatch.setattr(storer, "_not_before", 0.0)
    assert storer.store(big, [1], size_of(big)) is not None


def test_without_a_python_to_run_it_there_is_none(
    storer: Storer, big: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nowhere/python")
    assert storer.store(big, [0], size_of(big)) is None
    assert "no storing process" in caplog.text


def test_only_an_embedded_store_with_plain_blocks_has_one(tmp_path: Path) -> None:
    embedded = EmbeddedStore(tmp_path)
    assert storer_for(embedded, plain_seal) is not None
    assert storer_for(embedded, lambda codec, data: plain_seal(codec, data)) is None
    assert storer_for(MemoryStore(), plain_seal) is None


# --- with an engine ---------------------------------------------------------------------------------------------


@pytest.fixture
async def engine(covered: Covered, tmp_path: Path) -> AsyncIterator[Engine]:
    """One whose store is on disk."""
    await covered.engine.aclose()
    async with EmbeddedStore(tmp_path / "store") as store:
        covered.store = store  # type: ignore[assignment]
        covered.changes = ChangeLog(str(covered.state))
        made = Engine(
            root_fd=covered.fd, changes=covered.changes, store=store, state_dir=str(covered.state), owner="test"
        )
        yield made
        await made.aclose()


def storer_of(engine: Engine) -> Storer:
    assert engine._taker is not None
    assert engine._taker._storer is not None
    return engine._taker._storer


async def test_a_large_file_is_stored_by_the_process_and_reads_as_it_is(engine: Engine, covered: Covered) -> None:
    (covered.root / "big").write_bytes(os.urandom(20 * CHUNK + 5))
    (covered.root / "small").write_bytes(os.urandom(2 * CHUNK))
    row = await engine.sync()
    assert await read_tree(covered.store.get, row.tree) == plain_tree(covered.root)
    pid = pid_of(storer_of(engine))
    await engine.aclose()
    assert not os.path.exists(f"/proc/{pid}")


async def test_a_large_file_is_stored_although_the_process_dies(
    engine: Engine, covered: Covered, monkeypatch: pytest.MonkeyPatch
) -> None:
    (covered.root / "big").write_bytes(os.urandom(40 * CHUNK))
    ask = Storer._ask
    asked = []

    def kill_it_at_the_second(self: Storer, request: bytes, fd: int) -> object:
        asked.append(request)
        if len(asked) == 2:
            os.kill(pid_of(self), signal.SIGKILL)
        return ask(self, request, fd)

    monkeypatch.setattr(Storer, "_ask", kill_it_at_the_second)
    row = await engine.sync()
    assert await read_tree(covered.store.get, row.tree) == plain_tree(covered.root)
    assert len(asked) == 2


async def test_a_snapshot_that_is_given_up_ends_after_the_request_at_hand(
    engine: Engine, covered: Covered, monkeypatch: pytest.MonkeyPatch
) -> None:
    (covered.root / "big").write_bytes(os.urandom(64 * CHUNK))
    store = Storer.store
    asked = []

    def cancel_at_the_first(self: Storer, fd: int, chunks: list[int], size: int) -> object:
        asked.append(chunks)
        trio.from_thread.run_sync(scope.cancel)
        return store(self, fd, chunks, size)

    monkeypatch.setattr(Storer, "store", cancel_at_the_first)
    with trio.CancelScope() as scope:
        await engine.sync()
    assert scope.cancelled_caught
    assert len(asked) == 1


async def test_what_is_overwritten_while_the_process_reads_is_stored_as_it_was(
    engine: Engine, covered: Covered, monkeypatch: pytest.MonkeyPatch
) -> None:
    (covered.root / "big").write_bytes(b"".join(bytes([i]) * CHUNK for i in range(40)))
    fs = DirectFs(covered.root, covered.changes)
    await engine.sync()
    for at in range(0, 40 * CHUNK, CHUNK):
        fs.write("big", os.urandom(10), at)
    before = plain_tree(covered.root)
    ask = Storer._ask
    asked = 0

    def write_before_and_after(self: Storer, request: bytes, fd: int) -> object:
        nonlocal asked
        asked += 1
        trio.from_thread.run_sync(fs.write, "big", b"early" * 300_000, (asked - 1) * 16 * CHUNK + 5)
        stored = ask(self, request, fd)
        trio.from_thread.run_sync(fs.write, "big", b"late" * 300_000, ((asked - 1) * 16 + 8) * CHUNK + 7)
        trio.from_thread.run_sync(fs.truncate, "big", 39 * CHUNK + 1)
        return stored

    monkeypatch.setattr(Storer, "_ask", write_before_and_after)
    row = await engine.sync()
    assert asked == 3
    assert await read_tree(covered.store.get, row.tree) == before
    monkeypatch.setattr(Storer, "_ask", ask)
    row = await engine.sync()
    assert await read_tree(covered.store.get, row.tree) == plain_tree(covered.root)
