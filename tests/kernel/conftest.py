"""The place where a workload runs: a real mount, or a plain directory to check the test itself.

IPFSFS_TEST_PLAIN=1 runs the workloads on a plain directory: a test that fails there is wrong.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess, run

# Read when this file is loaded: the `clean_env` fixture takes our variables away.
PLAIN = os.environ.get("IPFSFS_TEST_PLAIN") == "1"


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
        assert_same_tree(self.path, restored)
        assert_same_tree(self.path, self.mount.plain)
        shutil.rmtree(restored)


@pytest.fixture
def workspace(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Workspace]:
    """An empty directory on a mount, and one outside it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    if PLAIN:
        plain = tmp_path / "plain"
        plain.mkdir()
        yield Workspace(plain, outside, None)
        return
    make: Callable[..., MountProcess] = request.getfixturevalue("new_mount")
    mount = make().start()
    yield Workspace(mount.path, outside, mount)


@pytest.fixture
def need() -> Callable[..., None]:
    """Skips the test, naming what is missing, unless all the programs are there."""

    def check(*programs: str) -> None:
        path = os.environ["PATH"] + ":/usr/sbin:/sbin"
        missing = [program for program in programs if shutil.which(program, path=path) is None]
        if missing:
            pytest.skip(f"not installed: {', '.join(missing)}")

    return check
