"""`bench/fs` measures what it says; how fast anything is depends on the machine, and is not looked at here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.fs import peers
from bench.fs.rows import EmptiedError
from tests.support.kubo import CACHE, kubo_binary
from tests.support.mountproc import REPO, mounts_under
from tests.support.poll import wait_until

ROOT_ONLY = ("-first", "-cold")


def bench(tmp_path: Path, *args: str) -> dict[str, Any]:
    """Run it in its smoke form, on disk if nothing else is said; the JSON file."""
    out = tmp_path / "figures.json"
    at = tmp_path / "at"
    at.mkdir()
    place = [] if "--tmpfs" in args else ["--at", str(at)]
    done = subprocess.run(
        [sys.executable, "-m", "bench.fs", "--size", "smoke", "--json", out, *place, *args],
        cwd=REPO,
        env=os.environ | {"CI": "1", "XDG_CACHE_HOME": str(CACHE.parent)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=270,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert os.listdir(at) == []
    assert not mounts_under(tmp_path)
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def check(place: dict[str, Any], columns: set[str]) -> None:
    """Every row is measured in every column, but for those that only root can measure."""
    for name, row in place["rows"].items():
        assert set(row["cells"]) == columns
        for column, cell in row["cells"].items():
            needs_root = name.endswith(ROOT_ONLY) or name == "readdir-large"
            if os.geteuid() != 0 and needs_root:
                assert cell["cant"], (name, column)
            else:
                assert cell.get("median", 0) > 0, (name, column, cell)


def test_requests_are_timed_and_counted(tmp_path: Path) -> None:
    found = bench(tmp_path, "--tmpfs", "requests", "--columns", "native,ipfsfs")
    place = found["places"]["tmpfs"]
    check(place, {"native", "ipfsfs"})
    rows = {name: row["cells"]["ipfsfs"].get("requests") for name, row in place["rows"].items()}
    assert rows["stat-again"] == {}
    assert rows["create"]["create"] == 1
    assert rows["unlink"]["unlink"] == 1
    if os.geteuid() == 0:
        assert rows["stat-first"]["lookup"] >= 1


def test_data_and_programs_are_measured(tmp_path: Path, need: Callable[..., None]) -> None:
    need("git", "tar")
    found = bench(tmp_path, "data", "programs", "--columns", "native,ipfsfs")
    place = found["places"]["disk"]
    check(place, {"native", "ipfsfs"})
    assert place["rows"]["sqlite-wal"]["ratios"]["native"]["least"] == 0.6


@pytest.mark.kubo
def test_every_column_is_measured(tmp_path: Path, need: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    need("bindfs", "mergerfs", "rclone", "setpriv")
    monkeypatch.setenv("IPFSFS_TEST_KUBO", str(kubo_binary()))
    rows = ["create", "stat-again"]
    found = bench(tmp_path, "--at", str(tmp_path / "at"), "--tmpfs", *rows)
    columns = {"native", "ipfsfs", "write-through", "bindfs", "passthrough_ll", "mergerfs", "rclone", "kubo"}
    assert set(found["columns"]) == columns
    assert all(column["version"] for column in found["columns"].values())
    for place in ("disk", "tmpfs"):
        assert set(found["places"][place]["rows"]) == set(rows)
        check(found["places"][place], columns)


@pytest.mark.kubo
def test_a_node_that_does_not_come_to_rest_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column = peers.Kubo(tmp_path / "kubo")
    try:
        column.start()
        (column.path / "directory").mkdir()
        (before,) = column.pids()
        with monkeypatch.context() as patched:
            patched.setattr(peers, "SETTLE_S", 0.0)
            with pytest.raises(EmptiedError, match="ipfs files flush"):
                column.settle()
        assert column.alive()
        assert column.pids() != [before]
        assert os.listdir(column.path) == []
        (column.path / "another").mkdir()
        column.settle()
    finally:
        column.close()
    assert not mounts_under(tmp_path)
    assert not Path(f"/proc/{before}").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_everything_ends_when_it_is_interrupted(tmp_path: Path, need: Callable[..., None], number: int) -> None:
    need("bindfs", "setpriv")
    columns = "native,ipfsfs,bindfs"
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.fs", "--size", "medium", "--at", tmp_path, "--columns", columns, "data"],
        cwd=REPO,
        env=os.environ | {"XDG_CACHE_HOME": str(CACHE.parent)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(lambda: len(list(tmp_path.glob("*/bindfs/mnt/*"))) > 0, "a measurement under way", 60)
        mounted = [point for point, _ in mounts_under(tmp_path)]
        process.send_signal(number)
        said, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert len(mounted) == 2
    assert process.returncode not in (0, -number), said
    assert "Traceback" not in said
    assert not mounts_under(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_missing_tool_is_told_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("setpriv", "fusermount3", "stat"):
        found = next(Path(d, name) for d in os.environ["PATH"].split(":") if Path(d, name).exists())
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    figures = bench(tmp_path, "create", "--columns", "native,rclone")
    cell = figures["places"]["disk"]["rows"]["create"]["cells"]["rclone"]
    assert "rclone is not installed" in cell["cant"]
