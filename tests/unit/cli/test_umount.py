"""What `ipfsfs umount --now` says of what was not stored."""

from __future__ import annotations

from argparse import Namespace

import pytest

from fused.cli import umount
from fused.cli.target import Target


@pytest.mark.parametrize(
    ("scanned", "said"),
    [
        (True, "ipfsfs: 3 files (5 B) not stored yet; the next mount of /x does it\n"),
        (
            False,
            "ipfsfs: not all of /x had been looked at, so how much is not stored yet is not known; "
            "the next mount of it does it\n",
        ),
    ],
)
def test_files_are_only_counted_when_all_have_been_looked_at(
    scanned: bool, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"snapshot": None, "unstored": {"files": 3, "bytes": 5}, "scanned": scanned}
    monkeypatch.setattr(umount, "find_target", lambda *_: Target("/x", "/state", mounted=True))
    monkeypatch.setattr(umount, "_ask_daemon", lambda *_: answer)
    monkeypatch.setattr(umount, "_wait_until_plain", lambda _: None)
    monkeypatch.setattr(umount.os, "chdir", lambda _: None)
    assert umount.run(Namespace(dir="/x", state_dir=None, now=True, json=False, progress=False)) == 0
    assert capsys.readouterr().err == said
