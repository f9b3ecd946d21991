"""The measurement of what requests cost in the daemon alone: all kinds are measured, and nothing is left behind."""

from __future__ import annotations

from pathlib import Path

from bench.handlers import measure


def test_every_kind_of_request_is_measured(tmp_path: Path) -> None:
    found = measure(tmp_path, files=5, rounds=1)
    assert {"create", "setattr", "lookup", "open", "rename", "unlink", "mkdir"} <= set(found)
    assert all(us["handler"] > 0 for us in found.values())
    assert {kind for kind, us in found.items() if us["system call"] == 0} == {"flush"}
    assert list(tmp_path.iterdir()) == []
