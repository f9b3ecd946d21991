"""When to scan and when to take a snapshot; one at a time, and what to do when it fails.

A snapshot is taken when nothing has changed for `quiet_seconds`, after `interval_seconds` if something
always changes, and when somebody asks for one (`sync`). What fails is tried again, less and less often,
and is shown in `problems` until it works; files stay dirty meanwhile and no file operation notices.
The same for single files that the disk can't read: snapshots are taken without them, and try again.

A store may lose what it had (another repository behind a node, garbage collected too early). Whenever that shows,
nothing of what the index says is stored is believed any more, and everything is stored again.
"""

from __future__ import annotations

import logging
import math
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

from fused.dag.seal import plain_seal
from fused.errors import BlockNotFound, IndexDamaged, IpfsfsError, StoreError
from fused.index.index import Index, SnapshotRow
from fused.sync.disclosure import Disclosure
from fused.sync.taker import Store, Taker
from fused.sync.visit import Notes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from fused.dag.seal import Seal
    from fused.store.base import NodeStore
    from fused.sync.changes import ChangeLog

log = logging.getLogger(__name__)

R = TypeVar("R")

RETRY_FIRST = 1.0
RETRY_MOST = 60.0
"""Seconds between tries of a snapshot that fails, or lacks files, doubling from the first to the most."""

LOOK_SECONDS = 600.0
"""How often a node is asked whether it still has what it took, while nothing changes: it may have been made anew."""

SETTLE_SECONDS = 1.0

TIDY_SECONDS = 10.0
"""For what follows a snapshot, is no part of it, and has to wait for a node: `sync` waits for it, too."""


@dataclass(frozen=True, slots=True)
class Progress:
    """What is going on: scanning, storing, pinning, checking (what is in between), or idle.

    `total` is None where it can't be known.
    """

    phase: str = "idle"
    done: int = 0
    total: int | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """What is to be stored and can't be, since when (seconds since the epoch), and why."""

    files: int
    bytes: int
    since: float
    error: str


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
        store_id: str = "",
        node: NodeStore | None = None,
        root: bytes = b"/",
        keep_snapshots: int = 0,
        public_is_fine: bool = False,
    ) -> None:
        """`node` is the store once more, if it is one with a node behind it; `root` is the covered directory's path.

        `keep_snapshots`: so many of the newest stay pinned and listed; 0: all.
        """
        self._root_fd = root_fd
        self._changes = changes
        self._store = store
        self._state_dir = state_dir
        self._owner = owner
        self._exclude = exclude
        self._quiet = quiet_seconds
        self._interval = interval_seconds
        self._seal = seal
        self._store_id = store_id
        self._node = node
        self._keep = keep_snapshots
        self.disclosure = Disclosure(node, root, public_is_fine=public_is_fine)
        self._index: Index | None = None
        self._taker: Taker | None = None
        self._lock = trio.Lock()
        self._wake = trio.Event()
        self._scanned = False
        self._syncing = False
        self._recovered = False
        self._tidied: SnapshotRow | None = None
        self._failing: tuple[float, str] | None = None
        self._backlog: tuple[int, int] | None = None
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
        if taker is not None and taker.pinning:
            return Progress("pinning")
        return Progress("checking") if self._syncing else Progress()

    def storing(self) -> tuple[int, int]:
        """(files, bytes) captured so far by the scan or snapshot under way."""
        capturer = self._taker.capturer if self._taker is not None else None
        return (0, 0) if capturer is None else (capturer.files, capturer.bytes)

    def clean(self) -> bool:
        """Whether everything is in the last snapshot, as far as we know."""
        return self._scanned and self.last is not None and not self._changes.dirty()

    @property
    def scanned(self) -> bool:
        """Whether all files have been looked at since the start; if not, more may have changed than is known."""
        return self._scanned

    def waiting(self) -> Waiting | None:
        """What waits for a store that fails; None if it works, or nothing is to be stored."""
        if self._failing is None or self.clean():
            return None
        dirty = self._changes.dirty_counts()
        files, size = dirty.files, dirty.bytes
        if (unseen := self.backlog()) is not None:
            files, size = files + unseen[0], size + unseen[1]
        since, error = self._failing
        return Waiting(files, size, since, error)

    def backlog(self) -> tuple[int, int] | None:
        """(files, bytes) not stored at the start nor changed since, while no scan can store them; None if it can."""
        return None if self._scanned else self._backlog

    async def sync(self, *, verify: bool = False) -> SnapshotRow:
        """Store everything that was changed before this call, and return the snapshot that has it.

        The snapshot is durable and pinned. With `verify`, a node is asked whether it still is, if nothing has changed.
        Raises StoreError, OSError, IndexUnavailable. Cancelling gives up the snapshot under way; nothing is lost by
        that.
        """
        async with self._lock:
            self._syncing = True
            try:
                row = await self._store_all(verify)
            except BaseException as exc:
                if isinstance(exc, StoreError):
                    self._failing = (time.time() if self._failing is None else self._failing[0], str(exc))
                # The worker thread has ended by now. What it did not finish is dirty again, whatever stopped it.
                self._changes.thaw(stored=False)
                self._wake.set()
                _let_go(exc)
                raise
            finally:
                self._syncing = False
            self.last = row
            self._failing = self._backlog = None
            self.problems.pop("snapshot", None)
            await self._tidy(row)
            return row

    async def snapshots(self, limit: int = -1) -> list[SnapshotRow]:
        """The newest `limit` snapshots, newest first, also when the index is found damaged by that."""
        # Without the lock, if it can be had without: a snapshot under way may have to wait for a node.
        if self._index is None or not self._recovered:
            with trio.move_on_after(TIDY_SECONDS):
                async with self._lock:
                    try:
                        await self._ready()
                    except (StoreError, IndexDamaged) as exc:
                        log.debug("the list of snapshots may not be whole: %s", exc)
        if self._index is None:
            return []
        try:
            return await trio.to_thread.run_sync(self._index.snapshots, limit)
        except IndexDamaged as exc:
            return await self._snapshots_anew(exc, limit)

    async def _snapshots_anew(self, damage: IndexDamaged, limit: int) -> list[SnapshotRow]:
        """The snapshots that the store's pins know, for an index that is damaged. Waits for a snapshot under way."""
        async with self._lock:
            index, _ = await self._opened()
            try:
                return await trio.to_thread.run_sync(index.snapshots, limit)  # it was mended while this waited
            except IndexDamaged:
                await self._rebuild(damage)
            try:
                await self._ready()
            except StoreError as exc:
                log.debug("the list of snapshots may not be whole: %s", exc)
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
                with trio.move_on_after(delay):
                    await self._count_backlog()
                    await trio.sleep_forever()
                continue
            again = _next_delay(again) if self.notes.unread() or self._tidied is not self.last else 0.0
            with trio.move_on_after(again or (math.inf if self._node is None else LOOK_SECONDS)) as waiting:
                await self._wake.wait()
            if waiting.cancelled_caught and not again:
                await self._look_at_node()
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

    async def _look_at_node(self) -> None:
        """Store everything again if the node has lost it while nothing changed. One that is down is asked later."""
        try:
            async with self._lock:
                try:
                    _, taker = await self._ready()
                    if not await taker.check_store():
                        self._look_again()
                except IndexDamaged as exc:
                    await self._rebuild(exc)
        except (IpfsfsError, OSError) as exc:
            log.debug("whether the node still has everything is not known: %s", exc)

    async def _count_backlog(self) -> None:
        """What has not been looked at since the start waits, too. Once is enough: it is for people to read."""
        if self._scanned or self._taker is None or self._backlog is not None:
            return
        try:
            self._backlog = await self._taker.backlog()
        except (IpfsfsError, OSError) as exc:
            log.debug("what waits is not counted: %s", exc)

    async def settle(self) -> None:
        """Make memos good that were made too soon after a change: call it a moment later, when nothing changes."""
        async with self._lock:
            _, taker = await self._ready()
            try:
                await taker.settle()
            except IndexDamaged as exc:
                await self._rebuild(exc)

    async def between_snapshots(self, work: Callable[[Index], R], *, rescan: bool) -> R:
        """Run `work` in a thread while no snapshot is under way. For `fsck`.

        `rescan`: it changes the index, so the whole tree is looked at again, soon. Raises what `work` raises.
        """
        async with self._lock:
            index, _ = await self._opened()
            result = await trio.to_thread.run_sync(work, index)
            if rescan:
                self._scanned = self._recovered = False
                self._wake.set()
                await self._ready()
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
                store_id=self._store_id,
                node=self._node,
                disclosure=self.disclosure,
            )
            self._index, self._taker = index, taker
            with suppress(IndexDamaged):  # whoever wants more of it finds that out, too, and knows what to do
                await self._find_last()
        return self._index, self._taker

    async def _find_last(self) -> None:
        assert self._index is not None
        newest = await trio.to_thread.run_sync(self._index.snapshots, 1)
        self.last = newest[0] if newest else None

    async def _ready(self) -> tuple[Index, Taker]:
        """The index, open and with the list of snapshots. Raises StoreError if that is lost and the store can't say."""
        index, taker = await self._opened()
        if not self._recovered:
            await taker.recover()
            self._recovered = True
            if self.last is None:
                await self._find_last()
        return index, taker

    async def _store_all(self, verify: bool) -> SnapshotRow:
        try:
            return await self._scan_and_take(verify)
        except IndexDamaged as exc:
            await self._rebuild(exc)
        except BlockNotFound as exc:
            await self._distrust(exc)
            self._look_again()
        try:
            return await self._scan_and_take(verify)
        except BlockNotFound as exc:
            await self._distrust(exc)
            self._look_again()
            raise

    async def _rebuild(self, damage: IndexDamaged) -> None:
        """Begin an empty index; the whole tree is looked at again, soon."""
        log.warning("%s; it is rebuilt, nothing is lost", damage)
        index, _ = await self._opened()
        await trio.to_thread.run_sync(index.rebuild)
        self._recovered = False
        self._look_again()
        self._wake.set()

    async def _distrust(self, exc: BlockNotFound) -> None:
        _, taker = await self._opened()
        await taker.distrust(f"the store has lost something that it took: {exc}")

    def _look_again(self) -> None:
        self._changes.thaw(stored=False)
        self._scanned = False

    async def _scan_and_take(self, verify: bool) -> SnapshotRow:
        _, taker = await self._ready()
        if self._scanned:
            settled = not self._changes.dirty() and not self.notes.unread()
            if self.last is None or not settled or await taker.excludes_changed():
                return await taker.take(self.last, self._frozen)
            if not verify or self._node is None or await taker.check_store():
                return self.last
        await taker.scan()
        self._scanned = True
        # The scan stands for every directory; take() has to look at those that it found changed.
        return await taker.take(self.last, self._frozen)

    async def _tidy(self, row: SnapshotRow) -> None:
        """What follows a snapshot. It may fail: then it is tried again, and shown in `problems` meanwhile."""
        taker = self._taker
        if taker is None or self._tidied is row:
            return
        unpinned = await self._try("retention", "old snapshots can't be unpinned now", lambda: taker.retain(self._keep))
        shown = await self._try("view", "the node's /ipfsfs is not up to date", lambda: taker.show(row.tree))
        self._tidied = row if unpinned and shown else None

    async def _try(self, what: str, failed: str, act: Callable[[], Awaitable[None]]) -> bool:
        why = f"the node did not answer within {TIDY_SECONDS:.0f} s"
        try:
            with trio.move_on_after(TIDY_SECONDS) as scope:
                await act()
        except IndexDamaged as exc:
            await self._rebuild(exc)
            why = "the index is rebuilt first"
        except (IpfsfsError, OSError) as exc:
            why = str(exc)
        else:
            if not scope.cancelled_caught:
                self.problems.pop(what, None)
                return True
        log.log(logging.DEBUG if what in self.problems else logging.WARNING, "%s: %s", failed, why)
        self.problems[what] = f"{failed}: {why}"
        return False

    def _frozen(self) -> None:
        self._wake = trio.Event()


def _let_go(exc: BaseException) -> None:
    """Drop what the functions that `exc` came through had in hand: batches of blocks, of 16 MiB each.

    Some of them keep the error itself, so they are garbage in circles, for which a full collection would have to be
    waited for. Those are rare (`GC_THRESHOLDS` in daemon.py), and while a store is away there is an error a minute.
    """
    step: BaseException | None = exc
    while step is not None:
        traceback.clear_frames(step.__traceback__)
        step = step.__cause__ or step.__context__


def _next_delay(before: float) -> float:
    return min(max(RETRY_FIRST, before * 2), RETRY_MOST)
