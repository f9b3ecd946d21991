"""Checks of the index inside a running daemon, which alone can reach the covered files and knows what is changing.

They run in a thread of their own beside the requests, one at a time, and end early when the daemon does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from fused.check.index import Changes, IndexState, check_index, mend_index, row_from_json
from fused.check.stores import checked_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.check.findings import Report
    from fused.store.spec import StoreSpec
    from fused.sync.changes import ChangeLog
    from fused.sync.engine import Engine


class IndexChecks:
    """What the control socket offers to `fsck`."""

    def __init__(
        self,
        *,
        root_fd: int,
        state_dir: str,
        spec: StoreSpec,
        patterns: Sequence[str],
        changes: ChangeLog,
        engine: Engine,
    ) -> None:
        self._root_fd = root_fd
        self._state_dir = state_dir
        self._spec = spec
        self._patterns = patterns
        self._live = Changes(changes)
        self._engine = engine
        self._limiter = trio.CapacityLimiter(1)

    async def check(self, args: Mapping[str, object], report: Report) -> dict[str, object]:
        """Check, and with `repair` drop what is wrong, which is stored again. Raises StoreUnavailable, OSError."""
        content, repair = args.get("content") is True, args.get("repair") is True
        state = await trio.to_thread.run_sync(self._check, content, report, limiter=self._limiter)
        if repair and (state.damaged or state.files_to_drop or state.dirs_to_drop):
            await self._engine.between_snapshots(lambda index: mend_index(index, state), rescan=True)
        return state.as_json()

    async def mend_list(self, args: Mapping[str, object], _report: Report) -> dict[str, object]:
        """Take rows off the list of snapshots, by id, and put others in the place of damaged ones."""
        drop, replace = args["drop"], args["replace"]
        assert isinstance(drop, list)
        assert isinstance(replace, list)
        rows = [(number, row_from_json(row)) for number, row in replace]
        await self._engine.between_snapshots(lambda index: index.mend_snapshots(drop, rows), rescan=False)
        return {}

    def _check(self, content: bool, report: Report) -> IndexState:
        def told(phase: str, done: int, total: int | None, unit: str) -> None:
            trio.from_thread.check_cancelled()
            report(phase, done, total, unit)

        def quietly(work: Callable[[], None]) -> None:
            async def wait() -> None:
                await self._engine.between_snapshots(lambda _: work(), rescan=False)

            trio.from_thread.run(wait)

        with checked_store(self._spec) as store:
            return check_index(
                self._root_fd,
                self._state_dir,
                store,
                self._patterns,
                self._live,
                told,
                content=content,
                quietly=quietly,
            )
