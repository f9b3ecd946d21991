"""Rows with small operations, of which a mount sees a request or a few each."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from bench.fs.rows import KIB, Row, Sizes, State, Timed, repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP = "requests"
PAGE = b"0123456789abcdef" * 256
LINE = b"2026-01-01T00:00:00Z worker 7 step 000123 loss 0.123456 tokens 123456 elapsed 12.345678 s".ljust(119) + b"\n"
PROCESSES = 8
SAVED = {"model": "some/model", "revision": "main", "files": [f"shard-{i:05}" for i in range(40)]}


def _write(path: str) -> None:
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o644)
    os.write(fd, PAGE)
    os.close(fd)


def _open_and_read(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.read(fd, 4 * KIB)
    os.close(fd)


def _save(path: str) -> None:
    """As programs save their settings: beside, then over the old ones."""
    with open(f"{path}.tmp", "w") as file:
        json.dump(SAVED, file)
    os.replace(f"{path}.tmp", path)


def _stat_missing(path: str) -> None:
    try:
        os.stat(f"{path}.missing")
    except FileNotFoundError:
        return
    raise AssertionError(path)


def _list_and_stat(path: str) -> None:
    with os.scandir(path) as entries:
        for entry in entries:
            os.stat(f"{path}/{entry.name}")


# --- trees ------------------------------------------------------------------------------------------------------


def _paths(root: Path, sizes: Sizes) -> list[str]:
    return [f"{root}/d{i // 500:03}/f{i:06}" for i in range(sizes.operations)]


def files(root: Path, sizes: Sizes) -> None:
    """Files of 4 KiB, some hundred in a directory."""
    for path in _paths(root, sizes):
        if path.endswith("000") or path.endswith("500"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        _write(path)


def directories(root: Path, sizes: Sizes) -> None:
    """Some directories with many names each."""
    for path in _directories(root):
        os.mkdir(path)
        for i in range(sizes.names):
            os.close(os.open(f"{path}/name-{i:05}", os.O_CREAT | os.O_WRONLY, 0o644))


def _directories(root: Path) -> list[str]:
    return [f"{root}/d{i}" for i in range(4)]


# --- what is timed ----------------------------------------------------------------------------------------------


def _on_files(act: Callable[[str], object], times: int = 1) -> Callable[[Path, Sizes], Timed]:
    """What takes a few microseconds is done several times, or what is measured is over before it has begun."""
    return lambda root, sizes: repeat(act, _paths(root, sizes) * times, sizes.seconds)


def _on_directories(act: Callable[[str], object], times: int = 1) -> Callable[[Path, Sizes], Timed]:
    return lambda root, sizes: repeat(act, _directories(root) * times, sizes.seconds)


def _save_again_and_again(root: Path, sizes: Sizes) -> Timed:
    return repeat(_save, [f"{root}/saved-{i % 20}.json" for i in range(sizes.operations)], sizes.seconds)


def _new_names(act: Callable[[str], object]) -> Callable[[Path, Sizes], Timed]:
    return lambda root, sizes: repeat(act, [f"{root}/n{i:06}" for i in range(sizes.operations)], sizes.seconds)


def _rename(path: str) -> None:
    os.rename(path, f"{path}.renamed")


def _append(root: Path, sizes: Sizes) -> Timed:
    fd = os.open(root / "log", os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
    try:
        return repeat(lambda line: os.write(fd, line), [LINE] * (sizes.operations * 10), sizes.seconds)
    finally:
        os.close(fd)


def _fsync(root: Path, sizes: Sizes) -> Timed:
    fd = os.open(root / "synced", os.O_CREAT | os.O_WRONLY, 0o644)

    def write_and_sync(_: int) -> None:
        os.pwrite(fd, PAGE, 0)
        os.fsync(fd)

    try:
        return repeat(write_and_sync, range(sizes.operations), sizes.seconds)
    finally:
        os.close(fd)


def _create_at_once(root: Path, sizes: Sizes) -> Timed:
    """The time from the first one's start to the last one's end."""
    # Some daemons keep a descriptor of each file, and 20,000 may be all that they can have.
    fewer = replace(sizes, operations=sizes.operations // 2)
    fork = multiprocessing.get_context("fork")
    start = fork.Barrier(PROCESSES + 1)
    counts = fork.Array("q", PROCESSES)
    failed = fork.SimpleQueue()

    def work(number: int) -> None:
        start.wait()
        try:
            counts[number] = int(_new_names(_write)(root / f"p{number}", fewer).operations)
        except OSError as error:
            failed.put(error.strerror)

    for number in range(PROCESSES):
        (root / f"p{number}").mkdir()
    workers = [fork.Process(target=work, args=(number,), daemon=True) for number in range(PROCESSES)]
    for worker in workers:
        worker.start()
    begun = time.perf_counter()
    start.wait()
    for worker in workers:
        worker.join()
    seconds = time.perf_counter() - begun
    if not failed.empty():
        raise OSError(f"one of the processes failed: {failed.get()}")
    if any(worker.exitcode for worker in workers):
        raise OSError("one of the processes failed")
    return Timed(seconds, sum(counts[:]))


def _list_large(root: Path, sizes: Sizes) -> Timed:
    return repeat(_list_all(sizes.many), [str(root)], sizes.seconds)


def _list_all(count: int) -> Callable[[str], None]:
    def check(path: str) -> None:
        found = len(os.listdir(path))
        if found != count:
            raise OSError(f"{found:,} of {count:,} names are listed")

    return check


def _row(name: str, run: Callable[[Path, Sizes], Timed], **more: object) -> Row:
    return Row(name, GROUP, run, **more)  # type: ignore[arg-type]


ROWS = (
    _row("create", _new_names(_write)),
    _row("stat-first", _on_files(os.stat), prepare=files, keeps=True, state=State.FIRST),
    _row("stat-again", _on_files(os.stat, 20), prepare=files, keeps=True, state=State.AGAIN),
    _row("missing-first", _on_files(_stat_missing), prepare=files, keeps=True, state=State.FIRST),
    _row("missing-again", _on_files(_stat_missing, 20), prepare=files, keeps=True, state=State.AGAIN),
    _row("open-read-first", _on_files(_open_and_read), prepare=files, keeps=True, state=State.FIRST),
    _row("open-read-again", _on_files(_open_and_read, 4), prepare=files, keeps=True, state=State.AGAIN),
    _row("save-rename", _save_again_and_again),
    _row("rename", _on_files(_rename), prepare=files),
    _row("unlink", _on_files(os.unlink), prepare=files),
    _row("mkdir", _new_names(os.mkdir)),
    _row("readdir-first", _on_directories(os.listdir), prepare=directories, keeps=True, state=State.FIRST),
    _row("readdir-again", _on_directories(os.listdir, 8), prepare=directories, keeps=True, state=State.AGAIN),
    _row("readdir-stat-first", _on_directories(_list_and_stat), prepare=directories, keeps=True, state=State.FIRST),
    _row("readdir-stat-again", _on_directories(_list_and_stat, 8), prepare=directories, keeps=True, state=State.AGAIN),
    _row("append", _append),
    _row("fsync", _fsync),
    _row("create-8", _create_at_once),
    # Last, as making it takes the longest.
    _row("readdir-large", _list_large, plant=lambda sizes: sizes.many, keeps=True, state=State.FIRST),
)
"""`create`: open, write 4 KiB, close. `save-rename`: a JSON file, written beside and renamed over. `readdir-…`: one
directory of 1,000 names (`readdir-large`: of 100,000) is one operation. `fsync`: 4 KiB are written and synced.
`create-8`: eight processes at once; the time is that of all, for one file."""
