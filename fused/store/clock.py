"""The store's clock: time in which somebody could have made progress.

gc keeps blocks that were put within its grace, because their pin may be on its way. Wall-clock time can't measure
that: a laptop sleeps between a put and its pin and a timer starts gc on waking; a machine boots with a wrong date and
then learns the right one. CLOCK_MONOTONIC does neither jump nor count sleep, and all processes of one boot share it,
but it starts again at each boot. So the store keeps an offset for the present boot, chosen so that the clock goes on
where the last stamp left it. Down time doesn't count either.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fused.store.database import Database


def start_clock(db: Database) -> StoreClock:
    """The clock of this store under the present boot."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    with db.reading() as c:
        known, base = c.execute("SELECT boot, clock_base FROM state").fetchone()
    if known != boot:
        with db.writing() as c:
            known, base, newest = c.execute("SELECT boot, clock_base, newest_stamp FROM state").fetchone()
            if known != boot:  # else another process was faster
                base = newest - _monotonic_ms()
                c.execute("UPDATE state SET boot = ?, clock_base = ?", (boot, base))
    return StoreClock(base)


class StoreClock:
    """Milliseconds since the store was made, without sleep and down time."""

    def __init__(self, base_ms: int) -> None:
        """`base_ms` is what to add to CLOCK_MONOTONIC."""
        self._base_ms = base_ms

    def now_ms(self) -> int:
        """The present reading."""
        return self._base_ms + _monotonic_ms()


def _monotonic_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1_000_000
