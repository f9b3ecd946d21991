"""Damaged blocks made again from what still has their content, and the store's bookkeeping set right.

A block is whatever hashes to its CID, so nothing that is offered here has to be trusted: what does not fit is not used.
Cheap sources come first: the list of snapshots, the leaves that the index remembers, the plain files at the paths that
need the block; then the whole covered tree, encoded anew. Nothing is removed but what nobody needs: files without a
row, and contents without a block.
"""

from __future__ import annotations

import os
import socket
import stat as stat_
import tempfile
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import trio

from fused import __version__
from fused.cid import CID, DAG_CBOR, RAW, cid_of, codec_of
from fused.dag.build import file_root, symlink_node
from fused.dag.chunker import CHUNK
from fused.dag.meta import Snapshot, encode_snapshot
from fused.errors import BlockCorrupt, BlockNotFound, IndexDamaged, StoreDamaged
from fused.store.base import Block, Pin, StoreStats
from fused.store.blocking import GRACE_S
from fused.sync.changes import ChangeLog
from fused.sync.engine import Engine
from fused.sync.ingest import open_for_reading
from fused.sync.recover import pin_name
from fused.sync.visit import open_dir

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from fused.check.findings import Report
    from fused.check.snapshots import StoreCheck
    from fused.check.stores import CheckedStore
    from fused.index.index import SnapshotRow
    from fused.index.reading import IndexReader
    from fused.store.audit import Audit
    from fused.store.base import LinksOf

PHASE = "looking for lost content"

_PATHS_TRIED = 16  # for each block; they all need the same content


class BlockMender:
    """`wanted` shrinks as blocks are offered and fit; `mended` counts those."""

    def __init__(self, store: CheckedStore, wanted: Iterable[CID], report: Report) -> None:
        self.wanted = set(wanted)
        self.mended = 0
        self._store = store
        self._report = report
        self._seen = 0

    def offer(self, blocks: Sequence[Block]) -> None:
        """Store those of `blocks` that are wanted. Raises StoreUnavailable."""
        found = [block for block in blocks if block.cid in self.wanted]
        if found:
            self.wanted.difference_update(block.cid for block in found)
            try:
                self._store.rows.repair(found)
                self.mended += len(found)
            except BlockCorrupt:
                self.mended += sum(map(self._put, found))
        self._seen += len(blocks)
        self._report(PHASE, self._seen, None, "blocks")

    def _put(self, block: Block) -> bool:
        """False if it stays damaged: a node may keep the bytes that it has for a CID."""
        with suppress(BlockCorrupt):
            self._store.rows.repair([block])
            return True
        return False

    def from_list(self, rows: Iterable[SnapshotRow]) -> None:
        """Snapshots' own blocks, as this host and this version would have made them."""
        for row in rows:
            if row.cid in self.wanted:
                self.offer(
                    [encode_snapshot(Snapshot(row.tree, row.meta, row.time_ns, socket.gethostname(), __version__))]
                )

    def from_memos(self, reader: IndexReader) -> None:
        """Inner nodes of files, from the leaves that the index remembers."""
        if all(codec_of(cid) in (RAW, DAG_CBOR) for cid in self.wanted):
            return
        with suppress(IndexDamaged):
            for batch in reader.all_files():
                for _, memo in batch:
                    if memo is not None and memo.leaves:
                        with suppress(ValueError):
                            self.offer(file_root(memo.leaves, memo.stat.size)[1])

    def from_paths(self, root_fd: int, paths: Mapping[CID, Iterable[bytes]]) -> None:
        """What stands at the paths that need the blocks."""
        tried: set[bytes] = set()
        for cid in list(self.wanted):
            for path in sorted(paths.get(cid, ()))[:_PATHS_TRIED]:
                if cid in self.wanted and path not in tried:
                    tried.add(path)
                    with suppress(OSError), _parent(root_fd, path) as (fd, name):
                        self._from_entry(fd, name)

    def _from_entry(self, dir_fd: int, name: bytes) -> None:
        st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        if stat_.S_ISLNK(st.st_mode):
            self.offer([symlink_node(os.readlink(name, dir_fd=dir_fd))[1]])
        elif stat_.S_ISREG(st.st_mode):
            fd = open_for_reading(name, dir_fd)
            try:
                self._from_file(fd)
            finally:
                os.close(fd)

    def _from_file(self, fd: int) -> None:
        leaves: list[CID] = []
        size = 0
        while (data := os.pread(fd, CHUNK, size)) or not leaves:
            leaves.append(cid_of(RAW, data))
            size += len(data)
            self.offer([Block(leaves[-1], data)])
            if len(data) < CHUNK:
                break
        if len(leaves) > 1:
            self.offer(file_root(leaves, size)[1])

    def from_tree(self, root_fd: int, state_dir: str, patterns: Sequence[str]) -> None:
        """The covered tree as it is now, all of it, encoded as a snapshot is, and not stored but for what is wanted."""
        with tempfile.TemporaryDirectory(prefix="fsck-", dir=state_dir) as scratch, suppress(_Enough):
            trio.run(self._encode, root_fd, scratch, patterns)

    async def _encode(self, root_fd: int, scratch: str, patterns: Sequence[str]) -> None:
        engine = Engine(
            root_fd=root_fd,
            changes=ChangeLog(scratch),
            store=_Sieve(self),
            state_dir=scratch,
            owner="fsck",
            exclude=patterns,
        )
        try:
            await engine.sync()
        finally:
            await engine.aclose()


class _Enough(Exception):
    """Nothing is wanted any more."""


class _Sieve:
    """A store for one snapshot, which keeps nothing but what is wanted, and that in the real store."""

    def __init__(self, mender: BlockMender) -> None:
        self._mender = mender

    async def put(self, blocks: Sequence[Block]) -> int:
        await trio.to_thread.run_sync(self._mender.offer, blocks)
        if not self._mender.wanted:
            raise _Enough
        return 0

    async def get(self, cid: CID) -> bytes:
        raise BlockNotFound(cid)

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        raise BlockNotFound(cids[0])

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        return set(cids)

    async def stats(self) -> StoreStats:
        return StoreStats(0, 0, 0)

    async def aclose(self) -> None:
        return None

    async def pin(self, pin: Pin) -> None:
        del pin

    async def unpin(self, owner: str, cid: CID) -> None:
        del owner, cid

    async def pins(self, owner: str | None = None) -> list[Pin]:
        del owner
        return []

    async def gc(self, links_of: LinksOf) -> int:
        del links_of
        return 0


def mend_bookkeeping(store: CheckedStore, books: Audit, found: StoreCheck) -> None:
    """Set right what is wrong beside the blocks themselves. Raises StoreUnavailable."""
    with suppress(StoreDamaged):  # what can't be mended is found again, and named
        if found.broken_database:
            books.rebuild_indexes()
        if found.strays:
            books.remove_strays()
        if found.wrong_totals:
            books.correct_totals()
        books.remove_orphans([file for file in found.orphans if file.cid is not None and file.age_s > GRACE_S])
        for cid in found.falsely_marked:
            for _, data in books.read([cid]):
                if isinstance(data, bytes):
                    store.rows.repair([Block(cid, data)])


def pin_listed(store: CheckedStore, found: StoreCheck, owner: str) -> None:
    """Pin what is listed and not pinned, as far as it is there. Raises StoreUnavailable."""
    holed: set[CID] = set()
    if store.bookkeeping is None:  # a node pins nothing with holes, and would look in the network for what is missing
        holed.update(cid for finding in found.findings if finding.kind == "block" for cid in finding.snapshots)
    with suppress(StoreDamaged):
        for entry in found.unpinned:
            if entry.row is not None and entry.row.cid not in holed:
                with suppress(BlockNotFound):
                    store.pins.add(Pin(owner, entry.row.cid, pin_name(entry.row.files, entry.row.bytes)))


@contextmanager
def _parent(root_fd: int, path: bytes) -> Iterator[tuple[int, bytes]]:
    """A descriptor of the directory that `path` lies in, and the last name of it; no link is followed."""
    *above, name = path.split(b"/")
    fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=root_fd)
    try:
        for component in above:
            below = open_dir(component, fd)
            os.close(fd)
            fd = below
        yield fd, name or b"."
    finally:
        os.close(fd)
