"""Rows with large files."""

from __future__ import annotations

import mmap
import os
import random
from typing import TYPE_CHECKING

from bench.fs.rows import KIB, MIB, Row, Sizes, State, Timed, once, repeat

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GROUP = "data"
PAGE = 4 * KIB
PAGES = MIB // PAGE
_CONTENT = random.Random(1).randbytes(MIB)


def _mebibyte(number: int) -> bytes:
    """The content of one mebibyte of the file; its first page is like that of no other."""
    return number.to_bytes(16, "big") + _CONTENT[16:]


def big_file(root: Path, sizes: Sizes) -> None:
    """A file that is read, or overwritten with what is in it."""
    with open(root / "big", "wb", buffering=0) as file:
        for number in range(sizes.big // MIB):
            file.write(_mebibyte(number))


def _patience(sizes: Sizes) -> float:
    """Seconds, after which there is enough of a slow column."""
    return sizes.seconds * 5


def _write(root: Path, sizes: Sizes, *, sync: bool) -> Timed:
    chunks = [bytearray(_mebibyte(number)) for number in range(8)]
    done = 0.0

    def write_all() -> None:
        nonlocal done
        with open(root / "written", "wb", buffering=0) as file:
            numbers = range(sizes.big // MIB)
            done = repeat(lambda number: file.write(chunks[number % 8]), numbers, _patience(sizes)).operations
            if sync:
                os.fsync(file.fileno())

    whole = once(write_all)  # closing is a part of it
    return Timed(whole.seconds, done)


def _read(root: Path, sizes: Sizes) -> Timed:
    buffer = bytearray(MIB)
    with open(root / "big", "rb", buffering=0) as file:
        return repeat(lambda _: file.readinto(buffer), range(sizes.big // MIB), _patience(sizes))


def _read_mapped(root: Path, sizes: Sizes) -> Timed:
    buffer = bytearray(MIB)
    with (
        open(root / "big", "rb", buffering=0) as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped,
        memoryview(mapped) as view,
    ):

        def copy(number: int) -> None:
            buffer[:] = view[number * MIB : (number + 1) * MIB]

        return repeat(copy, range(sizes.big // MIB), _patience(sizes))


def _somewhere(sizes: Sizes) -> list[int]:
    """Pages all over the file, always the same; none that starts a mebibyte."""
    rng = random.Random(2)
    pages = (rng.randrange(sizes.big // PAGE) for _ in range(sizes.operations * 2))
    return [page * PAGE for page in pages if page % PAGES][: sizes.operations]


def _read_somewhere(root: Path, sizes: Sizes) -> Timed:
    fd = os.open(root / "big", os.O_RDONLY)
    try:
        return repeat(lambda at: os.pread(fd, PAGE, at), _somewhere(sizes), sizes.seconds)
    finally:
        os.close(fd)


def _overwrite_somewhere(root: Path, sizes: Sizes) -> Timed:
    """With what is there, so that the file stays as it was; synced at the end."""
    fd = os.open(root / "big", os.O_RDWR)
    done = 0.0

    def overwrite(at: int) -> None:
        within = at % MIB
        os.pwrite(fd, _CONTENT[within : within + PAGE], at)

    def all_of_them() -> None:
        nonlocal done
        done = repeat(overwrite, _somewhere(sizes), sizes.seconds).operations
        os.fsync(fd)

    try:
        return Timed(once(all_of_them).seconds, done)
    finally:
        os.close(fd)


def _on_big(name: str, run: Callable[[Path, Sizes], Timed], state: State, unit: str = "MiB") -> Row:
    return Row(name, GROUP, run, prepare=big_file, keeps=True, state=state, unit=unit)


ROWS = (
    Row("write", GROUP, lambda root, sizes: _write(root, sizes, sync=False), unit="MiB"),
    Row("write-fsync", GROUP, lambda root, sizes: _write(root, sizes, sync=True), unit="MiB"),
    _on_big("read-cold", _read, State.COLD),
    _on_big("read-again", _read, State.AGAIN),
    _on_big("read-random-cold", _read_somewhere, State.COLD, "op"),
    _on_big("mmap-cold", _read_mapped, State.COLD),
    _on_big("mmap-again", _read_mapped, State.AGAIN),
    _on_big("overwrite-random", _overwrite_somewhere, State.AGAIN, "op"),
)
"""All with one file of 1 GiB. `read-random-cold`, `overwrite-random`: 4 KiB each, the latter synced at the end."""
