"""Which blocks a node has confirmed to us: so that equal blocks are not sent twice, and a cut upload goes on.

A memo in SQLite on local disk, good only while it is true. A node tells nobody what it removes, so the ledger goes with
a *marker*: a random block of ours at the node that no pin holds. A node's garbage collection removes everything that is
not pinned, the marker too; and another node, or one whose repository was made anew, never had it. No marker there, and
the ledger is void (`void`). Whoever believes the ledger looks for the marker first.

That is why the marker is not pinned: a pinned one would outlive a collection that took our blocks.

`settle` is called once a pin holds everything: what was confirmed or asked for after that is *fresh*, and is what a
collection of garbage could have taken. When the ledger becomes void, some of it are kept as *suspects*: whoever pins
next looks for those. Not for: what is at the node; only the node knows.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from fused.cid import CID
from fused.store.memo import MemoForm, SharedMemo

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Sequence

    from fused.types import Block

_SCHEMA = """
CREATE TABLE IF NOT EXISTS blocks (
    id INTEGER PRIMARY KEY,    -- rises with the time of the last put: above about.settled it is fresh
    cid BLOB NOT NULL UNIQUE,
    size INTEGER NOT NULL
);
CREATE TABLE IF NOT EXISTS about (
    marker BLOB,               -- NULL: the node has never been met, or the ledger is void
    blocks INTEGER NOT NULL,   -- how many rows there are, and the sum of their sizes: counting takes long
    bytes INTEGER NOT NULL,
    next INTEGER NOT NULL,     -- the next id
    settled INTEGER NOT NULL   -- no pin held the blocks from this id on when they were put
);
CREATE TABLE IF NOT EXISTS suspects (cid BLOB PRIMARY KEY) WITHOUT ROWID;
-- A ledger that was made anew begins above the one before it: `settle` may come with a number from that.
-- (Microseconds; there are fewer puts than those.)
INSERT INTO about SELECT NULL, 0, 0, now.us, now.us
    FROM (SELECT CAST((julianday('now') - 2440587.5) * 86400e6 AS INTEGER) AS us) AS now
    WHERE NOT EXISTS (SELECT * FROM about);
"""
# What a power cut takes from the end of it is sent once more.
_FORM = MemoForm("ledger", _SCHEMA, version=1, busy_seconds=20.0)
_IN_MAX = 500
_SUSPECTS = 1000  # a collection takes everything that no pin holds: one would nearly do


class Ledger:
    """See the module. From any thread, and from several processes. All methods raise StoreUnavailable."""

    def __init__(self, path: str) -> None:
        """The ledger in file `path`, made if it is missing, and made anew if it can't be read."""
        # One that was made anew has no marker: whoever tries again voids it first.
        self._memo = SharedMemo(path, _FORM, f"the list of what the node has, {path}")

    def marker(self) -> CID | None:
        """The block that is at the node as long as the ledger is true; None if it can't be."""
        with self._memo.transaction() as c:
            marker = c.execute("SELECT marker FROM about").fetchone()[0]
        return None if marker is None else CID(marker)

    def void(self, marker: CID | None, instead_of: CID | None) -> None:
        """Forget everything, and go by `marker` from now on; but do nothing if it goes by another than `instead_of`.

        For somebody else has noticed, too, then.
        """
        with self._memo.transaction() as c:
            if c.execute("UPDATE about SET marker = ? WHERE marker IS ?", (marker, instead_of)).rowcount:
                c.executemany("INSERT OR IGNORE INTO suspects VALUES (?)", [(cid,) for cid in _fresh(c, _SUSPECTS)])
                c.execute("DELETE FROM blocks")
                c.execute("UPDATE about SET blocks = 0, bytes = 0, settled = next")

    def suspects(self) -> list[CID]:
        """Blocks that the node had, and may have lost without our putting them again."""
        with self._memo.transaction() as c:
            return [CID(cid) for (cid,) in c.execute("SELECT cid FROM suspects")]

    def acquit(self, cids: Sequence[CID]) -> None:
        """Strike `cids` from the suspects."""
        with self._memo.transaction() as c:
            c.executemany("DELETE FROM suspects WHERE cid = ?", [(cid,) for cid in cids])

    def known(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that were confirmed. They are fresh now: their pin may have gone long ago."""
        found: set[CID] = set()
        with self._memo.transaction() as c:
            settled, stale = c.execute("SELECT settled FROM about").fetchone()[0], []
            for start in range(0, len(cids), _IN_MAX):
                some = cids[start : start + _IN_MAX]
                marks = ",".join("?" * len(some))
                for id, cid in c.execute(f"SELECT id, cid FROM blocks WHERE cid IN ({marks})", some):
                    found.add(CID(cid))
                    if id < settled:
                        stale.append(id)
            after = _take_ids(c, len(stale))
            c.executemany(
                "UPDATE blocks SET id = ? WHERE id = ?", zip(range(after, after + len(stale)), stale, strict=True)
            )
        return found

    def confirm(self, blocks: Sequence[Block]) -> int:
        """Note that the node has `blocks`, and return how many of them were not noted before."""
        with self._memo.transaction() as c:
            first = _take_ids(c, len(blocks))
            new = [0, 0]
            for id, block in enumerate(blocks, first):
                if c.execute(
                    "INSERT OR IGNORE INTO blocks VALUES (?, ?, ?)", (id, block.cid, len(block.data))
                ).rowcount:
                    new[0] += 1
                    new[1] += len(block.data)
            c.execute("UPDATE about SET blocks = blocks + ?, bytes = bytes + ?", new)
            if c.execute("SELECT EXISTS (SELECT * FROM suspects)").fetchone()[0]:
                c.executemany("DELETE FROM suspects WHERE cid = ?", [(block.cid,) for block in blocks])
        return new[0]

    def fresh(self, most: int) -> list[CID]:
        """At most `most` of the fresh blocks: the oldest, which a collection is likeliest to have taken, and any."""
        with self._memo.transaction() as c:
            return _fresh(c, most)

    def fresh_totals(self) -> tuple[int, int]:
        """How many blocks are fresh, and their bytes."""
        with self._memo.transaction() as c:
            query = "SELECT count(*), coalesce(sum(size), 0) FROM blocks WHERE id >= (SELECT settled FROM about)"
            count, size = c.execute(query).fetchone()
        return int(count), int(size)

    def now(self) -> int:
        """For `settle`: what is put from here on."""
        with self._memo.transaction() as c:
            return int(c.execute("SELECT next FROM about").fetchone()[0])

    def settle(self, until: int) -> None:
        """A pin holds all that was put before `until`, as far as anybody wants it."""
        with self._memo.transaction() as c:
            c.execute("UPDATE about SET settled = max(settled, ?)", (until,))

    def totals(self) -> tuple[int, int]:
        """Blocks and bytes."""
        with self._memo.transaction() as c:
            blocks, size = c.execute("SELECT blocks, bytes FROM about").fetchone()
        return int(blocks), int(size)

    def close(self) -> None:
        """Idempotent."""
        self._memo.close()


def _take_ids(c: sqlite3.Connection, count: int) -> int:
    first = int(c.execute("SELECT next FROM about").fetchone()[0])
    c.execute("UPDATE about SET next = next + ?", (count,))
    return first


def _fresh(c: sqlite3.Connection, most: int) -> list[CID]:
    settled, end = c.execute("SELECT settled, next FROM about").fetchone()
    if end - settled <= most:
        return [CID(cid) for (cid,) in c.execute("SELECT cid FROM blocks WHERE id >= ?", (settled,))]
    ids = [settled, *random.sample(range(settled, end), most - 1)]
    found = [c.execute("SELECT cid FROM blocks WHERE id >= ? ORDER BY id LIMIT 1", (id,)).fetchone() for id in ids]
    return list({CID(row[0]) for row in found if row is not None})
