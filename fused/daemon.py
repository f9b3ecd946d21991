"""One mount: wires the parts together, starts and stops them in order, and answers the control socket.

Start: state and store, the change log, the file system, then the mount; the scan comes after the mount serves.
Stop (somebody unmounted, or asked us to, or a signal): the kernel's last writes come in while it unmounts, then
the last snapshot is taken, then everything is closed. A second signal gives the last snapshot up; what it would
have stored is dirty at the next mount.

Nurseries: the one in `Daemon.run` owns the FUSE session, the control server, the engine and the signal watcher.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import resource
import signal
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from fused import __version__
from fused.check.beside import IndexChecks
from fused.cid import format_cid
from fused.control import serve_control
from fused.errors import IpfsfsError, MountError, StoreError
from fused.fs import mounts
from fused.fs.filesystem import FileSystem
from fused.fs.session import MountOptions, serve, stop, unmount
from fused.store.opening import make_node_store, make_store
from fused.sync.changes import ChangeLog
from fused.sync.engine import Engine
from fused.sync.visit import NESTED_MOUNT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.config import Settings
    from fused.control import Handler, Json, Report
    from fused.fs.requests import RequestStats
    from fused.index.index import SnapshotRow
    from fused.store.base import NodeStatus, NodeStore, Store, StoreStats

log = logging.getLogger(__name__)

_PR_SET_TIMERSLACK = 29  # <linux/prctl.h>

SWITCH_INTERVAL = 0.0001
"""Seconds that a storing thread may hold the interpreter while a request waits for it, which it may have to do after
each of its system calls. The default, 5 ms, is a hundred times what a request takes. (`docs/performance.md`)"""

TIMER_SLACK_NS = 1000
"""How much longer a wait for a time may take; by default 50,000, half of the interval above."""

GC_THRESHOLDS = (700, 10, 1000)
"""By default a full collection comes whenever the oldest generation has grown by a quarter. With 100,000 inodes known
one takes 0.25 s, in which no request is answered. Hardly anything here needs it: inodes form no cycles."""

PROGRESS_SECONDS = 0.1
REPLY_SECONDS = 2
"""For the reply to `umount` to be sent before the process ends."""
LINGER_SECONDS = 5
"""For programs that have files open when a signal ends us, before they get errors."""
STORE_SECONDS = 5
"""For the store, and a node behind it, to say how they are. `ipfsfs status` waits twice as long for us."""
LAST_TRY_SECONDS = 15
"""For the last snapshot, if the store has not taken what was before: nobody who unmounts waits for a node for long."""
SKIPPED_SHOWN = 1000


def iso_time(time_ns: int) -> str:
    """UTC, ISO 8601, to the millisecond."""
    return datetime.fromtimestamp(time_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def describe(row: SnapshotRow) -> Json:
    """A snapshot as commands print it."""
    return {
        "snapshot": format_cid(row.cid),
        "tree": format_cid(row.tree),
        "time": iso_time(row.time_ns),
        "files": row.files,
        "bytes": row.bytes,
        "changed": {"added": row.added, "modified": row.modified, "removed": row.removed},
    }


async def run_daemon(settings: Settings, root_fd: int, on_ready: Callable[[], None]) -> int:
    """Mount over `settings.mountpoint`, serve until unmounted, store what is left; returns the exit code.

    `root_fd` is the covered directory, opened before the mount; borrowed. `on_ready` is called once, when the
    mount serves. Raises MountError, StoreError, UsageError before that.
    """
    os.umask(0)  # the kernel has applied the caller's umask already
    sys.setswitchinterval(SWITCH_INTERVAL)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(TIMER_SLACK_NS))
    gc.set_threshold(*GC_THRESHOLDS)
    _raise_descriptor_limit()
    spec = settings.store_spec
    node = None if spec.kind == "embedded" else make_node_store(spec)
    store = make_store(spec) if node is None else node
    await store.open()
    try:
        return await Daemon(settings, root_fd, store, node).run(on_ready)
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


def _raise_descriptor_limit() -> None:
    """Files that programs have open on the mount are open here too: use all that we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 1 << 20 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as exc:
            log.debug("limit of open files stays at %d: %s", soft, exc)


class Daemon:
    """One run of one mount. `node` is the store once more, if it is one with a node behind it."""

    def __init__(self, settings: Settings, root_fd: int, store: Store, node: NodeStore | None) -> None:
        self._settings = settings
        self._root_fd = root_fd
        self._store = store
        self._node = node
        changes = ChangeLog(settings.state_dir)
        self._changes = changes
        self._fs = FileSystem(
            root_fd,
            changes,
            private=not settings.allow_other,
            write_through=settings.write_through,
            read_only=settings.read_only,
        )
        self._engine = Engine(
            root_fd=root_fd,
            changes=changes,
            store=store,
            state_dir=settings.state_dir,
            owner=settings.owner,
            exclude=settings.exclude,
            quiet_seconds=settings.quiet_seconds,
            interval_seconds=settings.interval_seconds,
            store_id=_store_id(settings),
            node=node,
            root=os.fsencode(settings.mountpoint),
            keep_snapshots=settings.snapshots_kept,
            public_is_fine=settings.public_is_fine,
        )
        self._checks = IndexChecks(
            root_fd=root_fd,
            state_dir=settings.state_dir,
            spec=settings.store_spec,
            patterns=settings.exclude,
            changes=changes,
            engine=self._engine,
        )
        self._take_last = True
        self._last_scope = trio.CancelScope()
        self._finished = trio.Event()
        self._answered = trio.Event()
        self._answered.set()

    async def run(self, on_ready: Callable[[], None]) -> int:
        """See `run_daemon`."""
        settings = self._settings
        state_fd = os.open(settings.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                await nursery.start(serve_control, state_fd, self._handlers())
                if settings.replace_stale:
                    mounts.detach_mounts_of(settings.state_dir, settings.mountpoint)
                options = MountOptions(
                    mountpoint=settings.mountpoint,
                    fsname="ipfsfs:" + quote(settings.state_dir),
                    read_only=settings.read_only,
                    allow_other=settings.allow_other,
                    write_through=settings.write_through,
                )

                def ready() -> None:
                    # What exists now stays: looking through it again and again would only delay requests.
                    gc.collect()
                    gc.freeze()
                    nursery.start_soon(self._engine.run)
                    log.info("serving mountpoint=%s pid=%d", settings.mountpoint, os.getpid())
                    on_ready()

                await serve(self._fs, options, ready)
                log.info("unmounted mountpoint=%s", settings.mountpoint)
                await self._finish()
                nursery.cancel_scope.cancel()
        finally:
            os.close(state_fd)
            self._fs.close()
            with trio.CancelScope(shield=True):
                await self._engine.aclose()
        return 0

    async def _finish(self) -> None:
        """The mount is gone: store what its last writes changed, and let whoever waits for that know."""
        try:
            if self._take_last and not self._settings.read_only:
                if self._engine.waiting() is not None:
                    self._last_scope.deadline = trio.current_time() + LAST_TRY_SECONDS
                with self._last_scope:
                    await self._engine.sync()
                if self._last_scope.cancelled_caught:
                    log.warning("the last snapshot was given up; what changed is stored at the next mount")
        except (IpfsfsError, OSError) as exc:
            log.warning("the last snapshot failed; what changed is stored at the next mount: %s", exc)
        except Exception:
            log.exception("the last snapshot failed; what changed is stored at the next mount")
        self._finished.set()
        with trio.move_on_after(REPLY_SECONDS):
            await self._answered.wait()

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                told = False
                async for number in signals:
                    if told:
                        log.warning("signal %d again: the last snapshot is given up", number)
                        self._last_scope.cancel()
                    else:
                        log.info("signal %d: unmounting", number)
                        nursery.start_soon(self._leave)
                    told = True

    async def _leave(self) -> None:
        """Unmount, whoever is still using the mount; they get a while to end by themselves."""
        try:
            await unmount(self._settings.mountpoint, lazy=True)
        except MountError as exc:
            log.error("%s", exc)
        await trio.sleep(LINGER_SECONDS)
        stop()

    # --- control ------------------------------------------------------------------------------------------

    def _handlers(self) -> Mapping[str, Handler]:
        return {
            "status": self._status,
            "sync": self._sync,
            "writers": self._writers,
            "log": self._log,
            "umount": self._umount,
            "check-index": self._checks.check,
            "mend-list": self._checks.mend_list,
        }

    async def _sync(self, _args: Mapping[str, object], report: Report) -> Json:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._report_progress, report)
            row: SnapshotRow | Exception
            try:
                row = await self._engine.sync(verify=True)
            except Exception as exc:  # kept out of the nursery, which would wrap it into a group
                row = exc
            nursery.cancel_scope.cancel()
        if isinstance(row, Exception):
            raise row
        left_out = [(path, why) for path, why in self._engine.notes.skipped() if why != NESTED_MOUNT]
        return describe(row) | {"skipped": _named(left_out)}

    async def _report_progress(self, report: Report) -> None:
        while True:
            now = self._engine.progress
            report(now.phase, now.done, now.total, "files")
            await trio.sleep(PROGRESS_SECONDS)

    async def _writers(self, _args: Mapping[str, object], _report: Report) -> Json:
        return {"paths": [os.fsdecode(path) for path in self._fs.writers()]}

    async def _log(self, args: Mapping[str, object], _report: Report) -> Json:
        limit = args.get("limit")
        rows = await self._engine.snapshots(limit if isinstance(limit, int) else -1)
        return {"snapshots": [describe(row) for row in rows]}

    async def _umount(self, args: Mapping[str, object], report: Report) -> Json:
        """Unmount, then wait for the last snapshot. With `now`, don't take one, and say what is not stored."""
        self._take_last = args.get("now") is not True
        self._answered = trio.Event()
        try:
            await unmount(self._settings.mountpoint)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._report_progress, report)
                await self._finished.wait()
                nursery.cancel_scope.cancel()
            left = self._engine.waiting() or self._changes.dirty_counts()
            none = self._engine.clean()
            unstored = {"files": 0 if none else left.files, "bytes": 0 if none else left.bytes}
            last = self._engine.last
            return {"snapshot": None if last is None else format_cid(last.cid), "unstored": unstored}
        except MountError:
            self._take_last = True
            raise
        finally:
            self._answered.set()

    async def _status(self, _args: Mapping[str, object], _report: Report) -> Json:
        settings, engine = self._settings, self._engine
        store = await self._store_status()
        wrong = list(engine.problems.values())
        if store["error"] and not any(str(store["error"]) in sentence for sentence in wrong):
            wrong.append(str(store["error"]))
        waiting = engine.waiting()
        skipped = engine.notes.skipped()
        if skipped:
            wrong.append(f"{len(skipped)} files or directories are covered but can't be stored; see skipped")
        files, size = self._counts(len(skipped))
        progress = engine.progress
        last = engine.last
        vfs = os.statvfs(self._root_fd)
        return {
            "mountpoint": settings.mountpoint,
            "pid": os.getpid(),
            "version": __version__,
            "state": "serving",
            "options": {
                "read_only": settings.read_only,
                "allow_other": settings.allow_other,
                "write_through": settings.write_through,
                "on_crash": settings.on_crash,
                "exclude": list(settings.exclude),
                "quiet_seconds": settings.quiet_seconds,
                "interval_seconds": settings.interval_seconds,
                "keep_snapshots": settings.snapshots_kept,
            },
            "files": files,
            "bytes": size,
            "skipped": _named(skipped),
            "waiting": None
            if waiting is None
            else {
                "files": waiting.files,
                "bytes": waiting.bytes,
                "since": iso_time(int(waiting.since * 1e9)),
                "seconds": max(0.0, time.time() - waiting.since),
                "error": waiting.error,
            },
            "scan": {"running": progress.phase == "scanning", "seen": progress.done},
            "activity": {"phase": progress.phase, "done": progress.done, "total": progress.total},
            "snapshot": None
            if last is None
            else {**describe(last), "age_seconds": max(0.0, (time.time_ns() - last.time_ns) / 1e9)},
            "store": store,
            "local": {
                "path": settings.mountpoint,
                "total_bytes": vfs.f_blocks * vfs.f_frsize,
                "free_bytes": vfs.f_bavail * vfs.f_frsize,
            },
            "requests": {kind: _latency(stats) for kind, stats in self._fs.counters().items()},
            "inodes": self._fs.inode_count(),
            "handles": self._fs.handle_count(),
            "rss_bytes": _resident_bytes(),
            "wrong": wrong,
        }

    def _counts(self, skipped: int) -> tuple[Json, Json]:
        """Files and bytes by state. Bytes that are dirty are those of changed chunks, so at most a little too many."""
        dirty = self._changes.dirty_counts()
        if (unseen := self._engine.backlog()) is not None:
            # Not looked at yet, as the store is away. Which of them are changes is not known: all count as new.
            files, size = unseen
            dirty = dirty._replace(
                files=dirty.files + files,
                bytes=dirty.bytes + size,
                new=dirty.new + files,
                new_bytes=dirty.new_bytes + size,
            )
        storing, storing_bytes = self._engine.storing()
        excluded, excluded_bytes = self._engine.notes.excluded()
        last = self._engine.last
        known, known_bytes = (last.files, last.bytes) if last is not None else (0, 0)
        progress = self._engine.progress
        if progress.phase == "scanning":
            known = max(known, progress.done)
        stored = max(0, known - (dirty.files - dirty.new) - dirty.gone)
        total = max(0, known + dirty.new - dirty.gone) + excluded + skipped
        return (
            {
                "total": total,
                "dirty": dirty.files,
                "storing": storing,
                "stored": stored,
                "excluded": excluded,
                "skipped": skipped,
            },
            {
                "total": known_bytes + excluded_bytes + dirty.new_bytes,
                "dirty": dirty.bytes,
                "storing": storing_bytes,
                "stored": max(0, known_bytes - (dirty.bytes - dirty.new_bytes)),
                "excluded": excluded_bytes,
                "skipped": 0,
            },
        )

    async def _store_status(self) -> Json:
        """How the store is, and the node behind it. Both are asked at once, and not for long."""
        stats: StoreStats | None = None
        status: NodeStatus | None = None
        error = f"the store did not answer within {STORE_SECONDS} s"
        node = self._node

        async def ask_store() -> None:
            nonlocal stats, error
            try:
                stats = await self._store.stats()
            except (StoreError, OSError) as exc:
                error = str(exc)

        async def ask_node(node: NodeStore) -> None:
            nonlocal status
            status = await node.node()

        with trio.move_on_after(STORE_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask_store)
                if node is not None:
                    nursery.start_soon(ask_node, node)
        spec = self._settings.store_spec
        counts: Json = {
            "blocks": None if stats is None else stats.blocks,
            "bytes": None if stats is None else stats.bytes_stored,
            "disk_bytes": None if stats is None else stats.disk_bytes,
        }
        if node is None:
            why = None if stats is not None else error
            return {"kind": spec.kind, "path": spec.directory, "healthy": why is None, "error": why} | counts
        known = status or self._engine.disclosure.seen
        address = known.address if known is not None else spec.address or "its usual address"
        why = status.error if status is not None else f"the node at {address} did not answer within {STORE_SECONDS} s"
        return {
            "kind": spec.kind,
            "path": spec.directory,
            "healthy": why is None,
            "error": why,
            "address": address,
            "version": None if known is None else known.version,
            "peer_id": None if known is None else known.peer_id,
            "reach": (None if known is None else known.reach) or "unknown",
        } | counts


def _store_id(settings: Settings) -> str:
    """Tells whether the index is about this store."""
    kind = settings.store_spec.kind
    return f"{kind} {os.path.realpath(settings.store_dir)}" if kind == "embedded" else settings.store


def _named(skipped: Sequence[tuple[bytes, str]]) -> list[Json]:
    return [{"path": os.fsdecode(path), "why": why} for path, why in skipped[:SKIPPED_SHOWN]]


def _latency(stats: RequestStats) -> Json:
    return {
        "count": stats.count,
        "errors": stats.errors,
        "p50_us": stats.p50_us,
        "p99_us": stats.p99_us,
        "max_us": stats.max_us,
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm", "rb") as stream:
        return int(stream.read().split()[1]) * resource.getpagesize()
