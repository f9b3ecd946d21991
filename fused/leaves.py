"""A file's leaves in order, with equal neighbours counted instead of repeated.

A sparse file may be a million times larger than what is in it. Its holes are leaves all the same, the same one again
and again, and nothing here or in `build.file_root` takes time or memory for each of them.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Sequence
from itertools import repeat
from typing import TYPE_CHECKING, NamedTuple, overload

from fused.cid import CID

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


class Run(NamedTuple):
    """The same leaf, several times in a row."""

    cid: CID
    times: int


class LeafList(Sequence[CID]):
    """Grows at its end only."""

    __slots__ = ("_cids", "_ends")

    def __init__(self, leaves: Iterable[CID] = ()) -> None:
        self._cids: list[CID] = []
        self._ends = array("Q")  # of each run, the number of leaves up to its end
        for cid in leaves:
            self.append(cid)

    def append(self, cid: CID, times: int = 1) -> None:
        """Add a leaf, so many times."""
        if times < 1:
            return
        if self._cids and self._cids[-1] == cid:
            self._ends[-1] += times
        else:
            self._cids.append(cid)
            self._ends.append(len(self) + times)

    def extend_from(self, other: LeafList, start: int, stop: int) -> None:
        """Add the leaves start…stop of another list."""
        for cid, times in other.runs(start, stop):
            self.append(cid, times)

    def runs(self, start: int = 0, stop: int | None = None) -> Iterator[Run]:
        """The leaves start…stop."""
        stop = len(self) if stop is None else min(stop, len(self))
        index = bisect_right(self._ends, start)
        while start < stop:
            end = min(self._ends[index], stop)
            yield Run(self._cids[index], end - start)
            start, index = end, index + 1

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @overload
    def __getitem__(self, index: int) -> CID: ...
    @overload
    def __getitem__(self, index: slice) -> list[CID]: ...
    def __getitem__(self, index: int | slice) -> CID | list[CID]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self._cids[bisect_right(self._ends, index)]

    def __iter__(self) -> Iterator[CID]:
        for cid, times in self.runs():
            yield from repeat(cid, times)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LeafList):
            return NotImplemented
        return self._cids == other._cids and self._ends == other._ends

    __hash__ = None  # type: ignore[assignment]  # it can grow


def runs_of(leaves: Sequence[CID]) -> Iterator[Run]:
    """The runs of any sequence of leaves."""
    if isinstance(leaves, LeafList):
        return leaves.runs()
    return LeafList(leaves).runs()
