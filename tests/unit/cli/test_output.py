"""What commands print: numbers, tables, colours and file names that are not text."""

from __future__ import annotations

import io
import os

import pytest

from fused.cli.output import counted, human_bytes, human_seconds, painter, printable, table
from fused.cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5.0 GiB"),
        (3 << 50, "3.0 PiB"),
        (3 << 60, "3072.0 PiB"),
    ],
)
def test_bytes_for_people(count: int, text: str) -> None:
    assert human_bytes(count) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.9, "59 s"), (60, "1 min"), (7260, "2 h 1 min"), (90000, "1 d 1 h")]
)
def test_durations_for_people(seconds: float, text: str) -> None:
    assert human_seconds(seconds) == text


def test_counts_for_people() -> None:
    assert [counted(n, "file") for n in (0, 1, 2, 1234567)] == ["0 files", "1 file", "2 files", "1,234,567 files"]


def test_table_aligns_columns() -> None:
    assert table([("a", "1", "x"), ("long", "100", "")], right=(False, True, False)) == ["a       1  x", "long  100"]
    assert table([], right=(False,)) == []


def test_colours_are_for_terminals_that_want_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm")
    assert painter(Terminal())("red", "bad") == "\033[31mbad\033[0m"
    assert painter(io.StringIO())("red", "bad") == "bad"
    monkeypatch.setenv("TERM", "dumb")
    assert painter(Terminal())("red", "bad") == "bad"
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    assert painter(Terminal())("red", "bad") == "bad"


def test_names_can_not_move_the_cursor_and_keep_their_bytes() -> None:
    assert printable("a\nb\x1b[2Jc\u202e") == "a\\nb\\x1b[2Jc\\u202e"
    name = os.fsdecode(b"caf\xe9")
    assert os.fsencode(printable(name)) == b"caf\xe9"
    assert printable("ünïcode 🎉") == "ünïcode 🎉"


def test_progress_says_nothing_unless_it_is_wanted(capsys: pytest.CaptureFixture[str]) -> None:
    for show in (None, False):
        with Progress(show) as progress:
            progress("storing", 1, 10, "files")
    assert capsys.readouterr() == ("", "")


def test_progress_shows_phase_and_numbers_on_standard_error_only(capsys: pytest.CaptureFixture[str]) -> None:
    with Progress(True) as progress:
        progress("scanning", 7, None, "files")
        progress("storing", 1 << 20, 4 << 20, "bytes")
        progress("storing", 4 << 20, 4 << 20, "bytes")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "scanning" in captured.err
    assert "storing" in captured.err
    assert "4.00M" in captured.err
