"""What this node has confirmed: blocks that need not be sent again. SQLite; every process of ours shares it.

It is a memo. A row is written after the node has taken the block, and goes when the node turns out not to have it. It
is void when the node collects garbage, or is not the one that it was written for: `marker` is a random block of ours
that no pin holds there, and is missing then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused.cid import CID, codec_of, encode_varint
from fused.store.memo import MemoForm, SharedMemo

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fused.store.base import Block

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    digest BLOB NOT NULL,    -- multihash: a node keeps blocks by it, whatever their codec
    codec INTEGER NOT NULL,
    size INTEGER NOT NULL,
    PRIMARY KEY (digest, codec)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS node (
    marker BLOB NOT NULL     -- one row: the CID of a block at the node
);
"""
_IN_MAX = 500  # parameters of a statement; SQLite takes some thousand
# What is lost in a power cut is sent once more.
_FORM = MemoForm("ledger", _SCHEMA, version=1, busy_seconds=30.0)


def digest_of(cid: CID) -> bytes:
    """The multihash in `cid`."""
    return cid[1 + len(encode_varint(codec_of(cid))) :]


class Ledger:
    """See the module. For use from any thread. Every method raises StoreUnavailable if the disk or database fails."""

    def __init__(self, path: str) -> None:
        """The ledger in file `path`, made if it is missing, and made anew if it can't be read."""
        # One that was made anew has no marker: after an error the node is met anew, and given one.
        self._memo = SharedMemo(path, _FORM, f"what is known of the node, in {path}")

    def marker(self) -> CID | None:
        """What `begin` was given last."""
        with self._memo.transaction() as c:
            row = c.execute("SELECT marker FROM node").fetchone()
        return None if row is None else CID(row[0])

    def begin(self, marker: CID) -> None:
        """Forget everything: from now on this is about the node with that marker."""
        with self._memo.transaction() as c:
            c.execute("DELETE FROM blocks")
            c.execute("DELETE FROM node")
            c.execute("INSERT INTO node VALUES (?)", (marker,))

    def known(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that the node has confirmed, under that very codec."""
        found = self._codecs(cids)
        return {cid for cid in cids if codec_of(cid) in found.get(digest_of(cid), ())}

    def known_otherwise(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that were put under other codecs only: the node has their bytes, but not for them."""
        found = self._codecs(cids)
        return {cid for cid in cids if codec_of(cid) not in found.get(digest_of(cid), (codec_of(cid),))}

    def add(self, blocks: Sequence[Block]) -> int:
        """Note that the node has confirmed `blocks`; returns how many it is news of."""
        with self._memo.transaction() as c:
            before = c.total_changes
            c.executemany(
                "INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)",
                [(digest_of(block.cid), codec_of(block.cid), len(block.data)) for block in blocks],
            )
            return c.total_changes - before

    def forget(self, cids: Sequence[CID]) -> None:
        """The node does not have `cids`, under any codec."""
        with self._memo.transaction() as c:
            c.executemany("DELETE FROM blocks WHERE digest = ?", [(digest_of(cid),) for cid in cids])

    def clear(self) -> None:
        """The node has lost some of what it had, and nobody knows what."""
        with self._memo.transaction() as c:
            c.execute("DELETE FROM blocks")

    def totals(self) -> tuple[int, int]:
        """Blocks and bytes."""
        with self._memo.transaction() as c:
            blocks, size = c.execute("SELECT count(*), coalesce(sum(size), 0) FROM blocks").fetchone()
        return int(blocks), int(size)

    def close(self) -> None:
        """Idempotent."""
        self._memo.close()

    def _codecs(self, cids: Sequence[CID]) -> dict[bytes, set[int]]:
        digests = list({digest_of(cid) for cid in cids})
        found: dict[bytes, set[int]] = {}
        with self._memo.transaction() as c:
            for at in range(0, len(digests), _IN_MAX):
                some = digests[at : at + _IN_MAX]
                marks = ",".join("?" * len(some))
                for digest, codec in c.execute(f"SELECT digest, codec FROM blocks WHERE digest IN ({marks})", some):
                    found.setdefault(digest, set()).add(codec)
        return found
