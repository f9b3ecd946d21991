"""What the stress tests have in common: their figures, shown as they come and in one table at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.mountproc import MountProcess

BUSY = ("--quiet-seconds", "0.1", "--interval-seconds", "0.5")
"""Snapshots as often as they can be taken, so that what they race with is met often."""

_ROWS: list[tuple[str, str, str]] = []


class Figures:
    """Figures of one test. Each is printed at once, past pytest's capture, and again in the table at the end."""

    def __init__(self, capture: pytest.CaptureFixture[str]) -> None:
        self._capture = capture

    def say(self, line: str) -> None:
        """Print a line at once."""
        with self._capture.disabled():
            print(f"\n    {line}", end="", flush=True)

    def add(self, suite: str, what: str, result: str) -> None:
        """A row of the table."""
        _ROWS.append((suite, what, result))
        self.say(f"{suite}: {what}: {result}")


@pytest.fixture
def figures(capsys: pytest.CaptureFixture[str]) -> Figures:
    """Where a test puts what it has measured or counted."""
    return Figures(capsys)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of all figures."""
    if not _ROWS:
        return
    terminalreporter.section("stress")
    widths = [max(len(row[column]) for row in _ROWS) for column in (0, 1)]
    for suite, what, result in _ROWS:
        terminalreporter.write_line(f"{suite:<{widths[0]}}  {what:<{widths[1]}}  {result}")


@pytest.fixture
def busy_mount(new_mount: Callable[..., MountProcess]) -> Callable[..., MountProcess]:
    """Makes and starts a mount that takes snapshots all the time, for tests of up to some hours."""

    def make(*flags: str, name: str = "fs") -> MountProcess:
        return new_mount(name, time_limit=6 * 3600).start(*BUSY, *flags)

    return make


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """An ordinary directory on the file system that is below the mounts: the reference."""
    directory = tmp_path / "plain"
    directory.mkdir()
    return directory
