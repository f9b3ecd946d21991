"""Arguments read without argparse: the same as with it, and nothing imported that `ipfsfs sync` can do without."""

from __future__ import annotations

import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest

from fused.cli.main import build_parser
from fused.cli.plain import plain_arguments

WORDS = ["--json", "--progress", "--no-progress", "--help", "--js", "--state-dir=x", "--", "-", "", "a b", "dir"]
LINES = [list(words) for count in range(4) for words in product(WORDS, repeat=count)]
SLOW = {"argparse", "contextlib", "dataclasses", "enum", "hashlib", "json", "logging", "re", "socket", "typing"}


@pytest.mark.parametrize("command", ["sync", "status"])
def test_what_is_read_without_argparse_is_what_argparse_makes_of_it(command: str) -> None:
    parser = build_parser([command])
    read = 0
    for words in LINES:
        plain = plain_arguments([command, *words])
        if plain is not None:
            assert vars(plain) == vars(parser.parse_args([command, *words])), words
            read += 1
    assert read > 20


@pytest.mark.parametrize(
    "line",
    ["", "fly", "--help", "sync --help", "sync --progress --no-progress", "sync a b", "status --progress", "log"],
)
def test_help_errors_and_other_commands_are_left_to_argparse(line: str) -> None:
    assert plain_arguments(line.split()) is None


def test_sync_imports_nothing_that_takes_long(tmp_path: Path) -> None:
    """Up to the connection to the daemon, which answers nobody here."""
    code = (
        "import sys; before = set(sys.modules)\n"
        "from fused.cli.main import main\n"
        "from fused.cli import sync\n"
        "from fused.control import _loads, call\n"
        "from fused.fs.mounts import find_mount\n"
        "find_mount(sys.argv[1]); _loads(b'{\"a\": [1, null, 2.5]}\\n')\n"
        "try: call(sys.argv[1], 'sync')\n"
        "except Exception as exc: print(type(exc).__name__)\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run(
        [sys.executable, "-S", "-c", code, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
        cwd=Path(__file__).resolve().parents[3],
    )
    error, loaded = done.stdout.splitlines()
    assert error == "DaemonGone"
    assert not SLOW & set(loaded.split())
