"""`ipfsfs fsck`: arguments, exit codes and words. What it finds is tested in tests/unit/check and tests/kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from fused.cid import CID, RAW, cid_of, format_cid
from fused.cli import fsck
from fused.cli.exits import Fsck
from fused.cli.main import main


@pytest.mark.parametrize("args", [["--fly"], ["a", "b"], ["--state-dir"]])
def test_wrong_usage_has_the_code_of_fsck(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fsck", *args])
    assert caught.value.code == Fsck.USAGE
    assert "error: " in capsys.readouterr().err


def test_help_is_no_error_and_says_the_codes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fsck", "--help"])
    assert caught.value.code == 0
    assert "as fsck(8) has them" in capsys.readouterr().out


def test_interruption_has_the_code_of_fsck(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fsck, "_check", interrupt)
    assert main(["fsck", "--store-dir", str(tmp_path)]) == Fsck.CANCELLED
    assert "interrupted" in capsys.readouterr().err


def test_many_paths_are_cut_short_with_their_number_and_control_characters_are_shown(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from fused.check.findings import Finding

    cid = cid_of(RAW, b"x")
    finding = Finding(
        "block", f"block {format_cid(cid)} is damaged", cid, [CID(cid)] * 7, [b"a\x1b%d" % i for i in range(9)]
    )
    lines = fsck._finding(finding, lambda colour, text: text)
    assert lines[0] == f"block {format_cid(cid)} is damaged"
    assert lines[1].startswith("    7 snapshots: ")
    assert lines[1].endswith(", and 4 more (--json has them all)")
    assert lines[2].startswith("    9 paths: a\\x1b0, ")
    assert lines[2].endswith(", and 4 more (--json has them all)")
