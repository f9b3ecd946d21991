"""Take the turns: each row in each column, one after the other, in another order each time.

Each measurement begins with nothing left to be written: the column has come to rest and the disk is synced. It runs in
a process of its own with one thread, so that none sees what another has left in the interpreter, and so that one that
hangs can be given up.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import shutil
import signal
import traceback
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.fs.places import let_signals, signals_held
from bench.fs.rows import CantError, EmptiedError, Row, Sizes, State, Timed

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from multiprocessing.connection import Connection

    from bench.fs.columns import Column

_libc = ctypes.CDLL(None)
DROP = Path("/proc/sys/vm/drop_caches")


@dataclass
class Cell:
    """All that was measured of one row in one column. `seconds` are for one operation, one figure a turn."""

    seconds: list[float] = field(default_factory=list)
    operations: float = 0
    requests: dict[str, float] | None = None
    """By kind, for one operation; of the last turn."""
    cpu_seconds: list[float] = field(default_factory=list)
    """Of the processes that serve the mount, for one operation."""
    cant: str | None = None


def in_child(function: Callable[..., Any], *args: object, limit: float) -> Any:
    """Call it in another process, and return what it returns. Raises CantError if it fails or takes too long."""
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)
    child = fork.Process(target=_answer, args=(theirs, function, args))
    with signals_held():
        child.start()
    assert child.pid is not None
    with suppress(OSError):
        os.setpgid(child.pid, child.pid)  # so that it can be ended together with the programs that it has started
    theirs.close()
    try:
        if not ours.poll(limit):
            raise CantError(f"not finished within {limit:g} s")
        done, result = ours.recv()
    except EOFError:
        child.join()
        raise CantError(f"its process ended with {child.exitcode}") from None
    finally:
        if child.is_alive():
            child.join(0.5)
        if child.is_alive():
            # What waits for an answer of a daemon ends when that has come, or its mount is gone.
            os.killpg(child.pid, signal.SIGKILL)
            child.join(5)
        ours.close()
    if not done:
        raise CantError(result)
    return result


def _answer(pipe: Connection, function: Callable[..., Any], args: tuple[object, ...]) -> None:
    with suppress(OSError):
        os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    let_signals()
    try:
        result = function(*args)
    except CantError as error:
        pipe.send((False, str(error)))
    except OSError as error:
        pipe.send((False, f"{error.strerror or error} ({traceback.extract_tb(error.__traceback__)[-1].name})"))
    except Exception as error:
        pipe.send((False, f"{type(error).__name__}: {error}"))
    else:
        pipe.send((True, result))


@contextmanager
def _opened(directory: Path) -> Iterator[int]:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """Write out all of one file system, and not what others have to do on other disks (syncfs(2)).

    Errors don't count, as with sync(2): some mounts have them for inodes that are gone.
    """
    _libc.syncfs(fd)


def drop_caches() -> None:
    """The kernel's pages, names and attributes of everything that is not in use. Raises CantError.

    What is dirty stays: sync before.
    """
    try:
        DROP.write_text("3")
    except OSError:
        raise CantError("dropping the caches takes root") from None


def cpu_seconds(pids: Sequence[int]) -> float:
    """What the processes' living threads have used so far."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
            with suppress(OSError):
                total += int(task.read_text().split()[0])
    return total / 1e9


class Measuring:
    """The rows in the columns that could be mounted. `tell` gets what is being done now."""

    def __init__(self, columns: Sequence[Column], sizes: Sizes, turns: int, tell: Callable[[str], None]) -> None:
        self._columns = columns
        self._sizes = sizes
        self._turns = turns
        self._tell = tell
        self._rng = random.Random(1)
        self._kept: dict[tuple[str, str], str | None] = {}
        """Directories that serve several rows, by column and name: None if it is there, else why it can't be."""
        self._dead: dict[str, str] = {}

    def row(self, row: Row) -> dict[str, Cell]:
        """Measure one row in all columns."""
        cells = {column.name: Cell() for column in self._columns}
        if row.inputs is not None and not self._sizes.inputs.exists():
            self._tell("making what the programs are given")
            try:
                in_child(row.inputs, self._sizes, limit=row.limit)
            except CantError as error:
                shutil.rmtree(self._sizes.inputs, ignore_errors=True)
                return {column.name: Cell(cant=str(error)) for column in self._columns}
        for turn in range(self._turns):
            for column in self._rng.sample(self._columns, len(self._columns)):
                cell = cells[column.name]
                if cell.cant is None:
                    self._tell(f"{row.name}, turn {turn + 1} of {self._turns}: {column.name}")
                    self._one(row, column, turn, cell)
        return cells

    def _one(self, row: Row, column: Column, turn: int, cell: Cell) -> None:
        try:
            if why := self._dead.get(column.name):
                raise CantError(why)
            self._measure(row, column, turn, cell)
        except CantError as error:
            cell.cant = str(error)
            if isinstance(error, EmptiedError):
                self._kept = {key: why for key, why in self._kept.items() if key[0] != column.name}
            if not column.alive():
                cell.cant = self._dead[column.name] = f"its daemon ended in {row.name}: {column.said() or error}"

    def _measure(self, row: Row, column: Column, turn: int, cell: Cell) -> None:
        assert row.run is not None
        name = self._prepare(row, column, turn)
        root = column.path / name
        try:
            self._bring_about(row, column, name)
            with _opened(column.path) as mount:
                requests, cpu = column.requests(), cpu_seconds(column.pids())
                timed: Timed = in_child(row.run, root, self._sizes, limit=row.limit)
                used = cpu_seconds(column.pids()) - cpu
                if requests is not None:
                    # Times that the kernel still keeps are a part of what was done.
                    in_child(sync_file_system, mount, limit=row.limit)
                    column.rest()
                    cell.requests = _fewer(column.requests() or {}, requests, timed.operations)
        finally:
            if not row.keeps:
                self._remove(column, name, row.limit)
        cell.seconds.append(timed.seconds / timed.operations)
        cell.operations = timed.operations
        if column.pids():
            cell.cpu_seconds.append(used / timed.operations)

    def _prepare(self, row: Row, column: Column, turn: int) -> str:
        """Make the row's directory, if it is not there; its name."""
        made_by = row.prepare.__name__ if row.prepare else "planted"
        name = f"kept-{made_by}" if row.keeps else f"{row.name}-{turn}"
        if why := self._kept.get((column.name, name)):
            raise CantError(why)
        if (column.name, name) not in self._kept:
            try:
                self._make(row, column, name)
            except CantError as error:
                self._kept[column.name, name] = str(error)
                raise
            if row.keeps:
                self._kept[column.name, name] = None
        return name

    def _make(self, row: Row, column: Column, name: str) -> None:
        if row.plant is not None:
            column.plant(name, row.plant(self._sizes))
        else:
            in_child(_fill, row, column.path / name, self._sizes, limit=row.limit)

    def _bring_about(self, row: Row, column: Column, name: str) -> None:
        """Let everything be written, and the caches hold what the row wants."""
        column.settle()
        for place in (column.path, column.base):  # the mount, and what is beneath
            with _opened(place) as fd:
                in_child(sync_file_system, fd, limit=row.limit)
        if row.state in (State.FIRST, State.COLD):
            in_child(drop_caches, limit=row.limit)
            column.rest()
        if row.state is State.FIRST:
            in_child(column.warm, name, limit=row.limit)
        elif row.state is State.AGAIN:
            assert row.run is not None
            in_child(row.run, column.path / name, self._sizes, limit=row.limit)

    def _remove(self, column: Column, name: str, limit: float) -> None:
        with suppress(CantError):  # the figure is there; and all is removed at the end
            in_child(shutil.rmtree, column.path / name, limit=limit)
            column.rest()


def _fill(row: Row, root: Path, sizes: Sizes) -> None:
    os.mkdir(root)
    if row.prepare is not None:
        row.prepare(root, sizes)


def _fewer(after: dict[str, int], before: dict[str, int], operations: float) -> dict[str, float]:
    """Requests between two counts, for one operation."""
    grown = {kind: count - before.get(kind, 0) for kind, count in after.items()}
    return {kind: count / operations for kind, count in sorted(grown.items()) if count}
