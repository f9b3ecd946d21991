"""What works behind a mount that serves: storing, checking, telling how it is. Also what clients ask of these.

Apart from `daemon`, which imports it only when the mount serves: its modules take a quarter of the time that there is
from the command to the first request.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import trio

from fused.check.beside import IndexChecks
from fused.cid import format_cid
from fused.status import Status, describe, named
from fused.sync.engine import Engine
from fused.sync.visit import NESTED_MOUNT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fused.config import Settings
    from fused.control import Json, Report
    from fused.control_server import Handler
    from fused.fs.filesystem import FileSystem
    from fused.index.index import SnapshotRow
    from fused.store.base import NodeStore, Store
    from fused.sync.changes import ChangeLog

PROGRESS_SECONDS = 0.1


class Behind:
    """Everything behind one mount. `node` is the store once more, if it is one with a node behind it."""

    def __init__(
        self,
        settings: Settings,
        root_fd: int,
        fs: FileSystem,
        changes: ChangeLog,
        store: Store,
        node: NodeStore | None,
    ) -> None:
        self._changes = changes
        self.engine = Engine(
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
            engine=self.engine,
        )
        self._status = Status(settings, root_fd, fs, changes, self.engine, store, node)
        self.handlers: Mapping[str, Handler] = {
            "status": self._status.report,
            "sync": self._sync,
            "log": self._log,
            "check-index": self._checks.check,
            "mend-list": self._checks.mend_list,
        }

    async def _sync(self, _args: Mapping[str, object], report: Report) -> Json:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.report_progress, report)
            row: SnapshotRow | Exception
            try:
                row = await self.engine.sync(verify=True)
            except Exception as exc:  # kept out of the nursery, which would wrap it into a group
                row = exc
            nursery.cancel_scope.cancel()
        if isinstance(row, Exception):
            raise row
        left_out = [(path, why) for path, why in self.engine.notes.skipped() if why != NESTED_MOUNT]
        return describe(row) | {"skipped": named(left_out)}

    async def report_progress(self, report: Report) -> None:
        """Tell how far it is, until cancelled."""
        while True:
            now = self.engine.progress
            report(now.phase, now.done, now.total, "files")
            await trio.sleep(PROGRESS_SECONDS)

    async def _log(self, args: Mapping[str, object], _report: Report) -> Json:
        limit = args.get("limit")
        rows = await self.engine.snapshots(limit if isinstance(limit, int) else -1)
        return {"snapshots": [describe(row) for row in rows]}

    def left(self) -> Json:
        """The last snapshot, and what is not in it."""
        left = self.engine.waiting() or self._changes.dirty_counts()
        none = self.engine.clean()
        unstored = {"files": 0 if none else left.files, "bytes": 0 if none else left.bytes}
        last = self.engine.last
        snapshot = None if last is None else format_cid(last.cid)
        return {"snapshot": snapshot, "unstored": unstored, "scanned": self.engine.scanned}


def _store_id(settings: Settings) -> str:
    """Tells whether the index is about this store."""
    kind = settings.store_spec.kind
    return f"{kind} {os.path.realpath(settings.store_dir)}" if kind == "embedded" else settings.store
