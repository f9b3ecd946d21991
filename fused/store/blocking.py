"""The embedded store without trio: every call blocks. `embedded.py` runs it in threads.

For a command that reads a few blocks and ends, this saves importing trio: `BlockingStore(path).rows.get(cid)`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Self

from fused.errors import StoreUnavailable
from fused.store.audit import Audit
from fused.store.blobs import BlobFiles
from fused.store.clock import start_clock
from fused.store.collect import Collection
from fused.store.database import Database, explain_os_error
from fused.store.directory import prepare
from fused.store.pins import PinRows
from fused.store.rows import BlockRows, never

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.store.base import LinksOf

GRACE_S = 3600.0
"""How long, in time that the machine was running, gc leaves a block alone after its last put."""


class BlockingStore:
    """An open store: `rows` has the blocks, `pins` the pins, and `audit` is for fsck.

    For use from any thread; `close` it, or use `with`.
    """

    def __init__(self, path: str | os.PathLike[str], *, grace_s: float = GRACE_S) -> None:
        """Open the store in directory `path`, or make it there. Raises StoreUnavailable.

        All processes that share a store must agree on `grace_s`; it is a parameter for tests.
        """
        path = os.path.abspath(path)
        prepare(path)
        self._grace_ms = int(grace_s * 1000)
        try:
            self._db = Database(path)
            self._clock = start_clock(self._db)
            self._blobs = BlobFiles(path)
            self._blobs.sweep()
        except OSError as err:
            raise StoreUnavailable(explain_os_error(path, err)) from err
        self.rows = BlockRows(self._db, self._blobs, self._clock, self._grace_ms)
        self.pins = PinRows(self._db)
        self.audit = self.bookkeeping = Audit(self._db, self._blobs, self.rows)

    def gc(self, links_of: LinksOf, check: Callable[[], None] = never) -> int:
        """See PinStore.gc and `collect.py`. `check` is called now and then and may raise."""
        stamped_until = self._clock.now_ms() - self._grace_ms
        return Collection(self._db, self._blobs, self.rows, check).run(links_of, stamped_until)

    def close(self) -> None:
        """Release files and connections. Idempotent; calls under way must have ended."""
        self._blobs.close()
        self._db.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
