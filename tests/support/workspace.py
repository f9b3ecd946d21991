"""A directory to work in, and the proof that what was done there can be had again from the store."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess, run


class Workspace:
    """A directory to work in. `check` proves that what was done there can be had again from the store."""

    def __init__(self, path: Path, outside: Path, mount: MountProcess | None) -> None:
        self.path = path
        self.outside = outside
        self.mount = mount
        self._checks = 0

    def check(self) -> None:
        """Store everything, bring it back elsewhere, and compare; then compare with the plain files beneath."""
        self._checks += 1
        restored = self.outside / f"restored-{self._checks}"
        if self.mount is None:
            run(["cp", "-a", self.path, restored], cwd=self.outside)
            assert_same_tree(self.path, restored)
            return
        snapshot = self.mount.sync()
        self.mount.restore(snapshot, restored)
        assert_same_tree(self.mount.plain, restored)
        assert_same_tree(self.path, self.mount.plain)
        shutil.rmtree(restored)
