"""What a row is: something that a program does in a directory, which is timed in every column."""

from __future__ import annotations

import enum
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

T = TypeVar("T")

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


class CantError(Exception):
    """Why something can't be measured here, in a few words; shown in the table in place of the figure."""


class EmptiedError(CantError):
    """As well; and the column was mounted anew, so that nothing is in it any more."""


class State(enum.Enum):
    """What the caches hold when the clock starts."""

    AS_IS = "as is"
    """What the preparation has left there."""
    FIRST = "first"
    """The kernel knows nothing of the mount; what lies beneath it is warm, so that no disk is measured."""
    AGAIN = "again"
    """The same was done just before."""
    COLD = "cold"
    """Nothing is cached, above or below: it comes from the disk."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    turns: int
    seconds: float
    """After so long a measurement of many like operations ends, however many there were."""
    operations: int
    names: int
    """In a directory that is listed."""
    many: int
    """In the large one."""
    big: int
    """Bytes of a large file."""
    repository: int
    """Files of the repository."""
    modules: int
    wheel: int
    """Files in the wheel."""
    transactions: int
    database_rows: int
    small: int
    """Files that the engine stores at once."""
    known: int
    """Files of which nothing has changed."""
    inputs: Path = Path()
    """Where what programs are given is made."""


@dataclass(frozen=True, slots=True)
class Timed:
    """What one measurement gave: how many operations took how long."""

    seconds: float
    operations: float


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `prepare` and `run` work in a process of their own and get a directory of the column's.

    With `keeps`, what `prepare` made stays and serves every turn, and other rows with the same `prepare`: `run` must
    leave it as it found it. `unit` is what one operation is: "op", "MiB", or "run" for a whole program; "bytes" is for
    what is no time.
    """

    name: str
    group: str
    run: Callable[[Path, Sizes], Timed] | None = None
    """None: not measured in a column's directory, see engine.py."""
    prepare: Callable[[Path, Sizes], None] | None = None
    keeps: bool = False
    state: State = State.AS_IS
    unit: str = "op"
    limit: float = 300.0
    """Seconds after which a measurement is given up."""
    inputs: Callable[[Sizes], None] | None = None
    """Makes in `sizes.inputs`, once, what the row needs beside its directory."""
    plant: Callable[[Sizes], int] | None = None
    """In place of `prepare`: so many empty files, made in the quickest way that the column has."""


def repeat(act: Callable[[T], object], items: Iterable[T], seconds: float) -> Timed:
    """Do `act` with one after the other, until there are no more or the time is over."""
    todo = list(items)
    clock = time.perf_counter_ns
    done = 0
    begun = clock()
    end = begun + int(seconds * 1e9)
    while done < len(todo):
        for item in todo[done : done + 16]:  # looking at the clock each time would be a part of a quick operation
            act(item)
        done = min(done + 16, len(todo))
        if clock() > end:
            break
    return Timed((clock() - begun) / 1e9, done)


def once(act: Callable[[], object], operations: float = 1) -> Timed:
    """The time that it takes as a whole."""
    begun = time.perf_counter_ns()
    act()
    return Timed((time.perf_counter_ns() - begun) / 1e9, operations)
