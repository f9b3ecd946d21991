"""The place where a workload runs: a real mount, or a plain directory to check the test itself.

IPFSFS_TEST_PLAIN=1 runs the workloads on a plain directory: a test that fails there is wrong.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.background import Background
from tests.support.mountproc import MountProcess
from tests.support.plainmount import new_plain_mount, plain_mount  # noqa: F401 - fixtures of the POSIX tests
from tests.support.workspace import Workspace

# Read when this file is loaded: the `clean_env` fixture takes our variables away.
PLAIN = os.environ.get("IPFSFS_TEST_PLAIN") == "1"


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
def background(new_mount: Callable[..., MountProcess]) -> Iterator[Background]:
    """An empty directory, not mounted yet, for `ipfsfs mount` in the background."""
    place = Background(new_mount())
    yield place
    place.close()
