"""Every block of a store, read and verified once: first what the roots reach, then the rest.

Also what no root reaches is verified: a block that is stored counts as stored for the next snapshot that needs it, and
is not written again.

Memory: a bit for each block, the part of a DAG between a node and its siblings, and what is damaged. Leaves are read
and hashed by a few threads; nodes, which are few and small, by the calling one.
"""

from __future__ import annotations

import os
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from fused.cid import CID, RAW, codec_of, inline_block
from fused.dag.node import links_of
from fused.errors import BlockNotFound, DagError, StoreError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from concurrent.futures import Future

    from fused.check.findings import Report
    from fused.check.stores import Reads
    from fused.store.rows import Row

PHASE = "verifying"

_NODES = 32  # read at a time: mostly a few KiB each, 1 MiB at the most
_LEAVES = 500
_LEAF_BYTES = 8 << 20  # read at a time by one thread; SQLite takes 500 names in a statement
_THREADS = min(4, os.cpu_count() or 1)
_AHEAD = _THREADS + 1  # batches of leaves under way


class Bits:
    """A growing set of row ids."""

    def __init__(self) -> None:
        self._bytes = bytearray()

    def add(self, number: int) -> bool:
        """Whether it was new."""
        missing = (number >> 3) + 1 - len(self._bytes)
        if missing > 0:
            self._bytes.extend(bytes(missing + 4096))
        bit = 1 << (number & 7)
        if self._bytes[number >> 3] & bit:
            return False
        self._bytes[number >> 3] |= bit
        return True

    def __contains__(self, number: int) -> bool:
        return number >> 3 < len(self._bytes) and bool(self._bytes[number >> 3] >> (number & 7) & 1)


class Bad(NamedTuple):
    """A block that can't be had. `reached`: something links to it, or it is a root."""

    why: str
    reached: bool
    malformed: bool = False
    """Its bytes are those that its CID names, and they say nothing that makes sense."""


class Verifier:
    """One pass. `bad` and `blocks` grow as it goes; `falsely_marked` are whole and counted as damaged."""

    def __init__(self, audit: Reads, report: Report) -> None:
        self.bad: dict[CID, Bad] = {}
        self.falsely_marked: list[CID] = []
        self.blocks = 0
        self.bytes = 0
        self._audit = audit
        self._report = report
        self._seen = Bits()
        self._total = audit.known_blocks()
        self._leaves: list[Row] = []
        self._leaf_bytes = 0
        self._under_way: deque[Future[list[tuple[Row, int | StoreError]]]] = deque()
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="verify")

    def run(self, roots: Iterable[CID]) -> None:
        """Verify it all. Raises StoreUnavailable."""
        try:
            self._reach(list(dict.fromkeys(roots)))
            self._rest()
        finally:
            self._threads.shutdown(cancel_futures=True)

    def _reach(self, roots: Sequence[CID]) -> None:
        nodes = self._new(roots)
        while nodes:
            some, nodes = nodes[-_NODES:], nodes[:-_NODES]
            rows = {row.cid: row for row in some}
            links: dict[CID, None] = {}
            for cid, data in self._audit.read(list(rows)):
                self._note(rows[cid], data if isinstance(data, StoreError) else len(data), reached=True)
                if isinstance(data, StoreError):
                    continue
                try:
                    links.update(dict.fromkeys(links_of(cid, data)))
                except DagError as exc:
                    self.bad[cid] = Bad(str(exc), True, malformed=True)
            nodes += self._new(list(links))
        self._flush(reached=True)

    def _new(self, cids: Sequence[CID]) -> list[Row]:
        """Those of `cids` that were not seen yet and may have links; leaves go off to the threads."""
        stored = [cid for cid in cids if inline_block(cid) is None and cid not in self.bad]
        rows = self._audit.rows(stored)
        nodes: list[Row] = []
        for cid in stored:
            row = rows.get(cid)
            if row is None:
                self.bad[cid] = Bad(str(BlockNotFound(cid)), True)
            elif self._seen.add(row.id):
                if codec_of(cid) == RAW:
                    self._leaf(row, reached=True)
                else:
                    nodes.append(row)
        return nodes

    def _rest(self) -> None:
        for rows in self._audit.all_rows():
            for row in rows:
                if self._seen.add(row.id):
                    self._leaf(row, reached=False)
        self._flush(reached=False)

    def _leaf(self, row: Row, *, reached: bool) -> None:
        self._leaves.append(row)
        self._leaf_bytes += row.size if isinstance(row.size, int) else 0
        if len(self._leaves) == _LEAVES or self._leaf_bytes >= _LEAF_BYTES:
            self._send(reached)

    def _send(self, reached: bool) -> None:
        rows, self._leaves, self._leaf_bytes = self._leaves, [], 0
        self._under_way.append(self._threads.submit(self._verify, rows))
        while len(self._under_way) > _AHEAD:
            self._collect(reached)

    def _flush(self, *, reached: bool) -> None:
        self._send(reached)
        while self._under_way:
            self._collect(reached)

    def _verify(self, rows: list[Row]) -> list[tuple[Row, int | StoreError]]:
        by_cid = {row.cid: row for row in rows}
        read = self._audit.read(list(by_cid))
        return [(by_cid[cid], data if isinstance(data, StoreError) else len(data)) for cid, data in read]

    def _collect(self, reached: bool) -> None:
        for row, found in self._under_way.popleft().result():
            self._note(row, found, reached=reached)

    def _note(self, row: Row, found: int | StoreError, *, reached: bool) -> None:
        """`found` is how many bytes it has, or what is wrong with it."""
        if isinstance(found, BlockNotFound) and not reached and row.cid not in self._audit.rows([row.cid]):
            return  # garbage that was collected since its row was read
        self.blocks += 1
        if isinstance(found, StoreError):
            self.bad[row.cid] = Bad(str(found), reached)
        else:
            self.bytes += found
            if row.damaged:
                self.falsely_marked.append(row.cid)
        total = None if self._total is None else max(self._total, self.blocks)
        self._report(PHASE, self.blocks, total, "blocks")
