"""Several users at work on a mount that root serves for all: everything ends as on a plain directory.

pjdfstest tries each call by itself; this finds what only comes of several together.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import side_by_side
from tests.support.mountproc import MountProcess
from tests.support.users import directory_for_everybody

SEEDS = range(int(os.environ.get("IPFSFS_TEST_SEEDS", "20")))
"""Each takes about half a second."""

STEPS = 80


@pytest.fixture
def base() -> Iterator[Path]:
    with directory_for_everybody() as path:
        yield path


@pytest.mark.parametrize("flags", [(), ("--write-through",)], ids=["write-back", "write-through"])
def test_random_operations_end_as_on_a_plain_directory(base: Path, flags: tuple[str, ...]) -> None:
    mount = MountProcess(base / "daemon", path=base / "mount")
    try:
        mount.start("--allow-other", *flags)
        for seed in SEEDS:
            places = []
            for top in (base / "plain", mount.path):
                (top / str(seed)).mkdir(parents=True)
                (top / str(seed)).chmod(0o777)
                places.append(top / str(seed))
            command = [sys.executable, side_by_side.__file__, *map(str, places), str(seed), str(STEPS)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    finally:
        mount.close()
