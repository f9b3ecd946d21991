"""The measurement of how handlers stall each other runs and measures something; what, is for `make bench` to show."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.support.mountproc import GATES, REPO, mounts_under

ROWS = {"ingest", "snapshot", "write", "slow-write", "slow-sync", "readdir", "remove", "truncate", "statfs"}
if os.geteuid() == 0:  # they take a loop device
    ROWS |= {"ext4-write", "ext4-sync"}


def test_every_row_of_the_stall_benchmark_is_measured(tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    environ = {name: value for name, value in os.environ.items() if name not in GATES}
    command = [sys.executable, "bench/stall.py", "--size", "smoke", "--at", tmp_path, "--json", out]
    done = subprocess.run(
        command,
        cwd=REPO,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=420,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    rows = json.loads(out.read_text())["rows"]
    assert set(rows) == ROWS
    for name, row in rows.items():
        for place in ("mount", "plain"):
            for kind in ("stat", "create", "read"):
                found = row[place][kind]
                assert found["idle"]["samples"] > 0, (name, place, kind)
                assert found["loaded"]["samples"] > 0, (name, place, kind)
                assert found["ratio"] > 0, (name, place, kind)
    assert os.listdir(tmp_path) == ["figures.json"]
    assert not mounts_under(tmp_path)
