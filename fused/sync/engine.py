"""When to scan and when to take a snapshot; one at a time, and what to do when it fails.

A snapshot is taken when nothing has changed for `quiet_seconds`, after `interval_seconds` if something
always changes, and when somebody asks for one (`sync`). What fails is tried again, less and less often,
and is shown in `problems` until it works; files stay dirty meanwhile and no file operation notices.
The same for single files that the disk can't read: snapshots are taken without them, and try again.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

from fused.dag.seal import plain_seal
from fused.errors import IndexDamaged, IpfsfsError
from fused.index.index import Index, SnapshotRow
from fused.sync.taker import Store, Taker
from fused.sync.visit import Notes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fused.dag.seal import Seal
    from fused.sync.changes import ChangeLog

log = logging.getLogger(__name__)

R = TypeVar("R")

RETRY_FIRST = 1.0
RETRY_MOST = 60.0
"""Seconds between tries of a snapshot that fails, or lacks files, doubling from the first to the most."""

SETTLE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Progress:
    """What is going on. `total` is None where it can't be known."""

    phase: str = "idle"
    done: int = 0
    total: int | None = None


class Engine:
    """See the module. `run` serves until cancelled; `sync` may be called whether it runs or not."""

    def __init__(
        self,
        *,
        root_fd: int,
        changes: ChangeLog,
        store: Store,
        state_dir: str,
        owner: str,
        exclude: Sequence[str] = (),
        quiet_seconds: float = 2.0,
        interval_seconds: float = 60.0,
        seal: Seal = plain_seal,
    ) -> None:
        self._root_fd = root_fd
        self._changes = changes
        self._store = store
        self._state_dir = state_dir
        self._owner = owner
        self._exclude = exclude
        self._quiet = quiet_seconds
        self._interval = interval_seconds
        self._seal = seal
        self._index: Index | None = None
        self._taker: Taker | None = None
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self._scanned = False
        self.notes = Notes()
        self.last: SnapshotRow | None = None
        self.problems: dict[str, str] = {}
        """What does not work just now, in words, by what it concerns."""
        changes.on_first_change = self._changed

    def _changed(self) -> None:
        self._wake.set()

    # --- asked from outside -------------------------------------------------------------------------------

    @property
    def progress(self) -> Progress:
        """What is going on just now."""
        taker = self._taker
        if taker is not None and taker.scanning is not None:
            return Progress("scanning", taker.scanning.seen, self.last.files if self.last is not None else None)
        if taker is not None and taker.capturer is not None:
            done = taker.capturer.files
            return Progress("storing", done, done + self._changes.dirty_files())
        return Progress()

    def storing(self) -> tuple[int, int]:
        """(files, bytes) captured so far by the scan or snapshot under way."""
        capturer = self._taker.capturer if self._taker is not None else None
        return (0, 0) if capturer is None else (capturer.files, capturer.bytes)

    def clean(self) -> bool:
        """Whether everything is in the last snapshot, as far as we know."""
        return self._scanned and self.last is not None and not self._changes.dirty()

    async def sync(self) -> SnapshotRow:
        """Store everything that was changed before this call, and return the snapshot that has it.

        The snapshot is durable and pinned. Raises StoreError, OSError, IndexUnavailable. Cancelling gives up the
        snapshot under way; nothing is lost by that.
        """
        async with self._lock:
            try:
                row = await self._store_all()
            except BaseException:
                # The worker thread has ended by now. What it did not finish is dirty again, whatever stopped it.
                self._changes.thaw(stored=False)
                self._wake.set()
                raise
            self.last = row
            self.problems.pop("snapshot", None)
            return row

    async def snapshots(self, limit: int = -1) -> list[SnapshotRow]:
        """The newest `limit` snapshots, newest first."""
        async with self._lock:
            index, _ = await self._opened()
        return await trio.to_thread.run_sync(index.snapshots, limit)

    # --- the loop -----------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Scan, then take snapshots as the tree changes, until cancelled."""
        delay = again = 0.0
        while True:
            try:
                await self.sync()
                delay = 0.0
                with trio.move_on_after(SETTLE_SECONDS):
                    await self._wake.wait()
                if not self._wake.is_set():
                    await self.settle()
            except Exception as exc:
                delay = _next_delay(delay)
                self._failed(exc, delay)
                await trio.sleep(delay)
                continue
            again = _next_delay(again) if self.notes.unread() else 0.0
            with trio.move_on_after(again or math.inf):
                await self._wake.wait()
            await self._wait_for_quiet()

    def _failed(self, exc: Exception, delay: float) -> None:
        if isinstance(exc, (IpfsfsError, OSError)):
            log.warning("what changed can't be stored now, next try in %.0f s: %s", delay, exc)
            self.problems["snapshot"] = f"what changed can't be stored now: {exc}"
        elif isinstance(exc, MemoryError) or "start new thread" in str(exc):
            log.warning("what changed can't be stored now, next try in %.0f s: out of memory", delay)
            self.problems["snapshot"] = "what changed can't be stored now: the daemon may not use more memory"
        else:
            log.exception("snapshot failed, next try in %.0f s", delay)
            self.problems["snapshot"] = "what changed can't be stored: there is an error in ipfsfs, see the log"

    async def _wait_for_quiet(self) -> None:
        until = trio.current_time() + self._interval
        while (left := until - trio.current_time()) > 0:
            serial = self._changes.serial
            await trio.sleep(min(self._quiet, left))
            if self._changes.serial == serial:
                return

    async def settle(self) -> None:
        """Make memos good that were made too soon after a change: call it a moment later, when nothing changes."""
        async with self._lock:
            _, taker = await self._opened()
            await taker.settle()

    async def between_snapshots(self, work: Callable[[Index], R], *, rescan: bool) -> R:
        """Run `work` in a thread while no snapshot is under way. For `fsck`.

        `rescan`: it changes the index, so the whole tree is looked at again, soon. Raises what `work` raises.
        """
        async with self._lock:
            index, taker = await self._opened()
            result = await trio.to_thread.run_sync(work, index)
            if rescan:
                self._scanned = False
                await taker.recover()
                self._wake.set()
            return result

    async def aclose(self) -> None:
        """Close the index, and end what was started to store."""
        if self._taker is not None:
            await trio.to_thread.run_sync(self._taker.close)
        if self._index is not None:
            self._index.close()

    # --- with the lock held -----------------------------------------------------------------------------------

    async def _opened(self) -> tuple[Index, Taker]:
        if self._index is None or self._taker is None:
            index = await trio.to_thread.run_sync(Index, self._state_dir)
            taker = Taker(
                root_fd=self._root_fd,
                changes=self._changes,
                store=self._store,
                index=index,
                owner=self._owner,
                exclude=self._exclude,
                notes=self.notes,
                seal=self._seal,
            )
            self._index, self._taker = index, taker
            await taker.recover()
            newest = await trio.to_thread.run_sync(index.snapshots, 1)
            self.last = newest[0] if newest else None
        return self._index, self._taker

    async def _store_all(self) -> SnapshotRow:
        try:
            return await self._scan_and_take()
        except IndexDamaged as exc:
            log.warning("%s; it is rebuilt, nothing is lost", exc)
            self._changes.thaw(stored=False)
            self._scanned = False
            index, taker = await self._opened()
            await trio.to_thread.run_sync(index.rebuild)
            await taker.recover()
            return await self._scan_and_take()

    async def _scan_and_take(self) -> SnapshotRow:
        _, taker = await self._opened()
        if not self._scanned:
            await taker.scan()
            self._scanned = True
            # The scan stands for every directory; take() has to look at those that it found changed.
            return await taker.take(self.last, self._frozen)
        settled = not self._changes.dirty() and not self.notes.unread()
        if self.last is not None and settled and not await taker.excludes_changed():
            return self.last
        return await taker.take(self.last, self._frozen)

    def _frozen(self) -> None:
        self._wake = trio.Event()


def _next_delay(before: float) -> float:
    return min(max(RETRY_FIRST, before * 2), RETRY_MOST)
