"""The pins of the embedded store: which roots are kept, and for whom. Blocking, no trio here."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused.cid import CID
from fused.errors import BlockNotFound
from fused.store.base import Pin
from fused.store.rows import select

if TYPE_CHECKING:
    from fused.store.database import Database


class PinRows:
    """The table `pins` of one store."""

    def __init__(self, db: Database) -> None:
        """Over the tables of `db`."""
        self._db = db

    def add(self, pin: Pin) -> None:
        """See PinStore.pin. Pinning again changes the name only, not the age."""
        with self._db.writing() as c:
            if not any(not row.damaged for row in select(c, [pin.cid])):
                raise BlockNotFound(pin.cid)
            c.execute(
                "INSERT INTO pins (owner, cid, name) VALUES (?, ?, ?)"
                " ON CONFLICT (owner, cid) DO UPDATE SET name = excluded.name",
                (pin.owner, pin.cid, pin.name),
            )

    def remove(self, owner: str, cid: CID) -> None:
        """See PinStore.unpin."""
        with self._db.writing() as c:
            c.execute("DELETE FROM pins WHERE owner = ? AND cid = ?", (owner, cid))

    def list(self, owner: str | None) -> list[Pin]:
        """See PinStore.pins."""
        with self._db.reading() as c:
            rows = c.execute(
                "SELECT owner, cid, name FROM pins WHERE ?1 IS NULL OR owner = ?1 ORDER BY id", (owner,)
            ).fetchall()
        return [Pin(owner, CID(cid), name) for owner, cid, name in rows]
