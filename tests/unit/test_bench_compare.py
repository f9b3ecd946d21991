"""`bench/compare.py` tells a change of the program from one of the machine."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from bench.compare import differences, lost_and_found, main, unlike


def cell(*seconds: float, requests: dict[str, float] | None = None) -> dict[str, Any]:
    return {"median": statistics.median(seconds), "seconds": list(seconds), "requests": requests}


def figures(cells: dict[str, Any], unit: str = "op", kernel: str = "6") -> dict[str, Any]:
    return {
        "version": 1,
        "size": "full",
        "machine": {"kernel": kernel, "python": "3", "processors": 2, "memory_bytes": 1},
        "places": {"disk": {"rows": {"create": {"unit": unit, "group": "requests", "cells": cells}}}},
    }


def test_what_is_faster_by_itself_is_faster() -> None:
    a = figures({"native": cell(1.0), "ipfsfs": cell(4.0, 4.1, 3.9)})
    b = figures({"native": cell(1.0), "ipfsfs": cell(2.0, 2.1, 1.9)})
    (found,) = differences(a, b, "ipfsfs")
    assert found.speed == pytest.approx(2.0)
    assert found.verdict == "faster"
    (back,) = differences(b, a, "ipfsfs")
    assert back.verdict == "slower"


def test_what_is_faster_as_all_others_are_is_not() -> None:
    a = figures({"native": cell(1.0), "bindfs": cell(2.0), "kubo": cell(9.0), "ipfsfs": cell(4.0, 4.1)})
    b = figures({"native": cell(0.5), "bindfs": cell(1.0), "kubo": cell(9.0), "ipfsfs": cell(2.0, 2.05)})
    (found,) = differences(a, b, "ipfsfs")
    assert found.machine == 2.0
    assert found.speed == pytest.approx(1.0, rel=0.02)
    assert found.verdict == "within the spread"


def test_a_difference_within_the_spread_is_none() -> None:
    a = figures({"native": cell(1.0), "ipfsfs": cell(4.0, 2.0, 3.0)})
    b = figures({"native": cell(1.0), "ipfsfs": cell(2.5, 2.4, 2.6)})
    (found,) = differences(a, b, "ipfsfs")
    assert found.verdict == "within the spread"


def test_our_own_other_column_is_no_measure_of_the_machine() -> None:
    a = figures({"native": cell(1.0), "write-through": cell(4.0), "ipfsfs": cell(4.0), "limit": cell(0.3)})
    b = figures({"native": cell(1.0), "write-through": cell(2.0), "ipfsfs": cell(2.0), "limit": cell(0.3)})
    (found,) = differences(a, b, "ipfsfs")
    assert found.machine == 1.0


def test_memory_is_not_corrected() -> None:
    a = figures({"native": cell(1.0), "ipfsfs": cell(100.0)}, unit="bytes")
    b = figures({"native": cell(0.5), "ipfsfs": cell(80.0)}, unit="bytes")
    (found,) = differences(a, b, "ipfsfs")
    assert (found.machine, found.verdict) == (1.0, "less")


def test_a_row_that_only_one_could_do_is_told() -> None:
    a = figures({"ipfsfs": cell(1.0)})
    b = figures({"ipfsfs": {"cant": "Input/output error"}})
    assert list(differences(a, b, "ipfsfs")) == []
    assert list(lost_and_found(a, b, "ipfsfs")) == ["disk create: not in B, Input/output error"]


def test_runs_on_different_machines_are_told() -> None:
    a, b = figures({}), figures({}, kernel="7")
    assert unlike(a, a) == []
    assert unlike(a, b) == ["kernel is 6 in A, 7 in B"]


def test_the_table_shows_speeds_and_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = figures({"native": cell(1e-5), "ipfsfs": cell(4e-4, requests={"create": 1.0, "lookup": 5.0})})
    after = figures({"native": cell(1e-5), "ipfsfs": cell(2e-4, requests={"create": 1.0, "lookup": 1.0})})
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, content in zip(paths, (before, after), strict=True):
        path.write_text(json.dumps(content))
    assert main([str(path) for path in paths]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.split() == ["disk", "create", "400", "us", "200", "us", "2.00", "1.00", "faster", "6.00", "->", "2.00"]


def test_another_file_is_refused_in_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.json"
    path.write_text("[]")
    with pytest.raises(SystemExit) as ended:
        main([str(path), str(path)])
    assert ended.value.code == 2
    assert "is not what python -m bench.fs --json writes" in capsys.readouterr().err
