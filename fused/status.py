"""How a mount is, as `ipfsfs status` shows it: what is stored and what waits, the store, requests, what is wrong.

Not for: changing anything. Whatever is asked here answers from memory, but for the store, which is waited for a while.
"""

from __future__ import annotations

import os
import resource
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from fused import __version__
from fused.cid import format_cid
from fused.errors import StoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fused.config import Settings
    from fused.control import Json, Report
    from fused.fs.filesystem import FileSystem
    from fused.fs.requests import RequestStats
    from fused.index.index import SnapshotRow
    from fused.store.base import NodeStatus, NodeStore, Store, StoreStats
    from fused.sync.changes import ChangeLog
    from fused.sync.engine import Engine

STORE_SECONDS = 5
"""For the store, and a node behind it, to say how they are. `ipfsfs status` waits twice as long for us."""
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


def named(skipped: Sequence[tuple[bytes, str]]) -> list[Json]:
    """Paths, and why, as commands print them; not more of them than fit into an answer."""
    return [{"path": os.fsdecode(path), "why": why} for path, why in skipped[:SKIPPED_SHOWN]]


class Status:
    """What there is to say about one mount. It owns nothing; `node` is the store once more, if one is behind it."""

    def __init__(
        self,
        settings: Settings,
        root_fd: int,
        fs: FileSystem,
        changes: ChangeLog,
        engine: Engine,
        store: Store,
        node: NodeStore | None,
    ) -> None:
        self._settings = settings
        self._root_fd = root_fd
        self._fs = fs
        self._changes = changes
        self._engine = engine
        self._store = store
        self._node = node

    async def report(self, _args: Mapping[str, object], _report: Report) -> Json:
        """Everything, for the control request of that name; also when the store is away, after a few seconds then."""
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
            "skipped": named(skipped),
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
