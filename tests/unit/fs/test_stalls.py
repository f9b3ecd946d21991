"""What may take long does not keep other requests from being answered."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
import trio.testing

from fused.fs import files, pace, protocol, tree
from fused.fs.answers import FORGOTTEN_AT_ONCE, Answers
from fused.fs.attrs import NewAttrs
from fused.fs.changes_protocol import Dirs, NullChangeSink, Save
from fused.fs.filesystem import FileSystem
from fused.local import closing
from fused.types import Caller, FileKey
from tests.support.listed import listed
from tests.support.poll import wait_until

CALLER = Caller(os.getuid(), os.getgid(), os.getpid(), 0)
MIB = 1 << 20


class SlowDisk(NullChangeSink):
    """Whoever has something to save before a change waits until it may go on."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.waited = False

    def _wait(self) -> None:
        assert threading.current_thread() is not threading.main_thread()
        self.waited = self.go_on.wait(60)

    def before_write(self, key: FileKey, fd: int, offset: int, length: int, dirs: Dirs) -> Save | None:
        return self._wait

    def before_truncate(self, key: FileKey, fd: int, size: int, dirs: Dirs) -> Save | None:
        return self._wait


@pytest.fixture
def disk() -> Iterator[SlowDisk]:
    made = SlowDisk()
    yield made
    made.go_on.set()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., FileSystem]]:
    made = []
    covered = tmp_path / "covered"
    covered.mkdir()
    fd = os.open(covered, os.O_PATH)

    def maker(changes: NullChangeSink) -> FileSystem:
        made.append(FileSystem(fd, changes, private=True, write_through=False, read_only=False))
        return made[-1]

    yield maker
    for fs in made:
        fs.close()
    os.close(fd)


async def test_others_are_answered_while_old_content_is_saved(make: Callable[..., FileSystem], disk: SlowDisk) -> None:
    fs = make(disk)
    opened, entry = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
    with trio.fail_after(60):
        for change in (
            lambda: fs.files.write(opened.fh, 0, b"x" * 10),
            lambda: fs.files.truncate(entry.ino, 5, None),
            lambda: fs.files.open(entry.ino, os.O_RDWR | os.O_TRUNC),
        ):
            disk.go_on.clear()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(change)
                await trio.testing.wait_all_tasks_blocked()
                other, _ = await fs.files.create(1, b"other", 0o600, os.O_RDWR, CALLER)
                fs.files.release(other.fh)
                assert fs.tree.lookup(1, b"other") is not None
                fs.tree.unlink(1, b"other")
                disk.go_on.set()
            assert disk.waited


async def test_large_cuts_are_made_in_threads_and_all_else_inline_while_the_disk_keeps_up(
    make: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SLOW_SECONDS", float("inf"))
    fs = make(NullChangeSink())
    opened, entry = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
    offloaded = 0
    offload = fs.waiting.offload

    async def counting(function: Callable[[], object], **on: int) -> object:
        nonlocal offloaded
        offloaded += 1
        return await offload(function, **on)

    monkeypatch.setattr(fs.waiting, "offload", counting)
    await fs.files.write(opened.fh, 0, b"x" * MIB)
    await fs.files.truncate(entry.ino, 64 * MIB, opened.fh)
    await fs.files.truncate(entry.ino, 64 * MIB - files.MAX_INLINE_CUT, opened.fh)
    assert offloaded == 0
    await fs.files.truncate(entry.ino, 0, None)
    assert offloaded == 1
    assert os.fstat(fs.handles.file(opened.fh).fd).st_size == 0


async def test_writes_go_to_threads_for_a_while_once_one_was_held_up(
    make: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "SLOW_SECONDS", -1.0)
    monkeypatch.setattr(pace, "PATIENCE_SECONDS", 1e6)
    fs = make(NullChangeSink())
    opened, _ = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
    await fs.files.write(opened.fh, 0, b"one")
    assert not fs.handles.file(opened.fh).changed_in_thread
    await fs.files.write(opened.fh, 3, b"two")
    assert fs.handles.file(opened.fh).changed_in_thread
    assert os.pread(fs.handles.file(opened.fh).fd, 10, 0) == b"onetwo"


class SlowToSave(NullChangeSink):
    """Writes wait until they may go on, and it is noted what is said of the stat."""

    def __init__(self) -> None:
        self.go_on = threading.Event()
        self.modes: list[tuple[int, int]] = []

    def before_write(self, key: FileKey, fd: int, offset: int, length: int, dirs: Dirs) -> Save | None:
        def wait() -> None:
            self.go_on.wait(60)

        return wait

    def metadata(self, key: FileKey, before: os.stat_result, after: os.stat_result, dirs: Dirs) -> None:
        self.modes.append((before.st_mode & 0o777, after.st_mode & 0o777))


async def test_what_changes_a_file_that_a_thread_writes_to_is_done_in_a_thread_too(
    make: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowToSave()
    fs = make(disk)
    opened, entry = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
    _, other = await fs.files.create(1, b"other", 0o600, os.O_RDWR, CALLER)
    threads: list[object] = []
    monkeypatch.setattr(os, "chmod", noting(threads, os.chmod))
    monkeypatch.setattr(os, "ftruncate", noting(threads, os.ftruncate))
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.files.write, opened.fh, 0, b"x" * 10)
            await trio.testing.wait_all_tasks_blocked()
            changed = await fs.attributes.setattr(entry.ino, NewAttrs(mode=0o640))
            await fs.files.truncate(entry.ino, 5, None)
            assert threading.main_thread() not in threads
            threads.clear()
            await fs.attributes.setattr(other.ino, NewAttrs(mode=0o640))
            assert threads == [threading.main_thread()]
            disk.go_on.set()
        threads.clear()
        await fs.attributes.setattr(entry.ino, NewAttrs(mode=0o600))
        assert threads == [threading.main_thread()]
    assert changed.st.st_mode & 0o777 == 0o640
    assert disk.modes == [(0o600, 0o640), (0o600, 0o640), (0o640, 0o600)]


async def test_a_time_that_is_set_while_a_thread_writes_is_the_one_that_is_left(
    make: Callable[..., FileSystem],
) -> None:
    disk = SlowToSave()
    fs = make(disk)
    opened, entry = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.files.write, opened.fh, 0, b"x" * 10)
            await trio.testing.wait_all_tasks_blocked()
            await fs.attributes.setattr(entry.ino, NewAttrs(mtime_ns=5_000, ctime_ns=6_000))
            disk.go_on.set()
    fs.files.release(opened.fh)
    assert fs.attributes.getattr(entry.ino).st.st_mtime_ns == 5_000


async def test_a_change_of_mode_that_fails_in_a_thread_fails_as_it_would_inline(
    make: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowToSave()
    fs = make(disk)
    opened, entry = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "chmod", refuse)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(fs.files.write, opened.fh, 0, b"x" * 10)
            await trio.testing.wait_all_tasks_blocked()
            with pytest.raises(PermissionError):
                await fs.attributes.setattr(entry.ino, NewAttrs(mode=0o640))
            disk.go_on.set()
    assert disk.modes == [(0o600, 0o600)]


def noting(threads: list[object], function: Callable[..., object]) -> Callable[..., object]:
    """`function`, with the thread that calls it noted."""

    def wrapped(*args: object, **kwargs: object) -> object:
        threads.append(threading.current_thread())
        return function(*args, **kwargs)

    return wrapped


async def test_a_large_removed_file_is_let_go_of_in_a_thread(
    make: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(closing, "LARGE_BLOCKS", 0)
    fs = make(NullChangeSink())
    opened, entry = await fs.files.create(1, b"f", 0o600, os.O_RDWR, CALLER)
    await fs.files.write(opened.fh, 0, b"x" * MIB)
    fs.tree.unlink(1, b"f")
    descriptors = [os.path.realpath(f"/proc/self/fd/{fs.handles.file(opened.fh).fd}")]
    fs.files.release(opened.fh)
    fs.inodes.forget(entry.ino, 1)
    assert fs.reach.orphan_count() == 0

    def let_go() -> bool:
        return not any(os.path.realpath(f"/proc/self/fd/{fd}") in descriptors for fd in os.listdir("/proc/self/fd"))

    await trio.to_thread.run_sync(lambda: wait_until(let_go, "the file to be closed", 30))


async def test_a_large_directory_is_listed_in_a_thread(
    make: Callable[..., FileSystem], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree, "MAX_LISTED_INLINE", 0)
    fs = make(NullChangeSink())
    fs.tree.mkdir(1, b"sub", 0o700, CALLER)
    waited = False

    def before_wait() -> None:
        nonlocal waited
        waited = True

    fs.waiting.before_wait = before_wait
    fh, _ = fs.tree.opendir(1)
    await fs.tree.list(fh)
    assert waited
    assert [name for name, _ in listed(fs, fh)] == [b".", b"..", b"sub"]


async def test_forgetting_very_many_lets_others_read_in_between(make: Callable[..., FileSystem]) -> None:
    fs = make(NullChangeSink())
    answers = Answers(fs, lambda *_: None)
    entry = fs.tree.mkdir(1, b"sub", 0o700, CALLER)
    for _ in range(3 * FORGOTTEN_AT_ONCE - 1):
        fs.tree.lookup(1, b"sub")
    turns = 0

    def before_wait() -> None:
        nonlocal turns
        turns += 1

    fs.waiting.before_wait = before_wait
    count = 3 * FORGOTTEN_AT_ONCE
    body = protocol.BATCH_FORGET.pack(count, 0) + protocol.FORGET_ONE.pack(entry.ino, 1) * count
    await answers.forget((0, protocol.Opcode.BATCH_FORGET, 0, 0, 0, 0, 0, 0, 0), memoryview(body))
    assert turns == 2
    assert len(fs.inodes) == 1
