"""What a mount that is not made says about entries that exist only in the store.

Nothing evicts yet, so their number is put in the place of the one function that will count them.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from fused.cli import main as cli
from fused.cli import mount
from fused.cli.exits import Exit


@pytest.fixture(autouse=True)
def three_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mount, "store_only_entries", lambda state_dir: 3)


def test_closed_gate_says_how_many_and_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CI", "1")
    assert cli.main(["mount", str(tmp_path)]) == Exit.OK
    assert capsys.readouterr().err == (
        f"ipfsfs: not mounting {tmp_path}: CI=1 says not to (--force mounts all the same); "
        f"3 entries exist only in the store, `ipfsfs hydrate {tmp_path}` brings them back\n"
    )


def test_missing_fuse_says_how_many_and_how_to_get_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mount, "fuse_obstacle", lambda: "there is no FUSE here")
    assert cli.main(["mount", str(tmp_path)]) == Exit.OK
    assert capsys.readouterr().err == (
        f"ipfsfs: warning: not mounting {tmp_path}: there is no FUSE here; "
        f"3 entries exist only in the store, `ipfsfs hydrate {tmp_path}` brings them back\n"
    )
