"""Covered directories, stored for real and not mounted, to be damaged and checked."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import trio

from fused.cid import CID, format_cid, parse_cid
from fused.cli.main import main
from fused.config import Settings, save_settings
from fused.paths import mount_id
from fused.store.embedded import EmbeddedStore
from fused.sync.changes import ChangeLog
from fused.sync.engine import Engine
from fused.sync.ingest import racy
from tests.support.poll import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


@dataclass
class Report:
    """What `ipfsfs fsck --json` said."""

    code: int
    said: dict[str, Any]
    err: str

    @property
    def findings(self) -> list[dict[str, Any]]:
        """Everything that was found."""
        found: list[dict[str, Any]] = self.said["findings"]
        return found

    def of(self, kind: str) -> list[dict[str, Any]]:
        """What was found of one kind."""
        return [found for found in self.findings if found["kind"] == kind]

    @property
    def damaged(self) -> set[CID]:
        """The blocks that are named as damaged and were left so."""
        return {parse_cid(found["cid"]) for found in self.of("block") if not found["repaired"]}

    @property
    def repaired(self) -> set[CID]:
        """The blocks that are named as damaged and were repaired."""
        return {parse_cid(found["cid"]) for found in self.of("block") if found["repaired"]}


@dataclass
class Checked:
    """One covered directory with state and store, as the daemon leaves them, and `ipfsfs fsck` in this process."""

    base: Path
    capture: pytest.CaptureFixture[str]
    root: Path = field(init=False)
    state: Path = field(init=False)
    store: Path = field(init=False)

    def __post_init__(self) -> None:
        self.root, self.state, self.store = (self.base / name for name in ("root", "state", "store"))
        for directory in (self.root, self.state):
            directory.mkdir(parents=True)
        self.root = self.root.resolve()
        save_settings(
            Settings(
                mountpoint=str(self.root),
                state_dir=str(self.state),
                store_dir=str(self.store),
                owner=mount_id(str(self.root)),
            )
        )

    def snapshot(self) -> CID:
        """Store the tree as it is; the index's memos of it hold from now on. The snapshot's CID."""
        wait_until(lambda: not racy(self._newest_ctime_ns()), "moment after the last change")
        return trio.run(self._snapshot)

    def _newest_ctime_ns(self) -> int:
        walked = os.walk(os.fsencode(self.root))
        return max(
            os.lstat(os.path.join(at, name)).st_ctime_ns for at, dirs, files in walked for name in (b"", *dirs, *files)
        )

    async def _snapshot(self) -> CID:
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY)
        try:
            async with EmbeddedStore(self.store) as store:
                engine = Engine(
                    root_fd=fd,
                    changes=ChangeLog(str(self.state)),
                    store=store,
                    state_dir=str(self.state),
                    owner=mount_id(str(self.root)),
                )
                try:
                    return (await engine.sync()).cid
                finally:
                    await engine.aclose()
        finally:
            os.close(fd)

    def fsck(self, *args: str) -> Report:
        """`ipfsfs fsck --json` of the directory."""
        return self.run(str(self.root), "--state-dir", str(self.state), *args)

    def fsck_store(self, *args: str) -> Report:
        """`ipfsfs fsck --json` of the store alone."""
        return self.run("--store-dir", str(self.store), *args)

    def run(self, *args: str) -> Report:
        """`ipfsfs fsck --json` with these arguments."""
        self.capture.readouterr()
        code = main(["fsck", "--json", *args])
        out, err = self.capture.readouterr()
        said = json.loads(out) if out else {"findings": []}
        assert said.get("exit", code) == code
        return Report(code, said, err)


def shown(cids: set[CID]) -> set[str]:
    """CIDs in their text form, for assertions that people can read."""
    return {format_cid(cid) for cid in cids}
