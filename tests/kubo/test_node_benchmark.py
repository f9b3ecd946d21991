"""`bench/node.py` measures what it says; how fast anything is depends on the machine, and is not looked at here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.kubo import kubo_binary

pytestmark = pytest.mark.kubo

REPO = Path(__file__).parents[2]


def test_every_row_is_measured_on_both_sides(tmp_path: Path) -> None:
    to = tmp_path / "figures.json"
    done = subprocess.run(
        [sys.executable, REPO / "bench/node.py", "--size", "smoke", "--json", to, "--at", tmp_path],
        env=os.environ | {"PYTHONPATH": str(REPO), "IPFSFS_TEST_KUBO": str(kubo_binary())},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(to.read_text())
    for row in ("large", "small"):
        assert all(seconds > 0 for times in found[row]["seconds"].values() for seconds in times), row
    for what in ("status", "write"):
        assert found["slow-node"][what]["ratio"] > 0
    assert os.listdir(tmp_path) == ["figures.json"]
