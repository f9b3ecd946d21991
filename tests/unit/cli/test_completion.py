"""Completion scripts, run by the shells they are for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fused.cli.main import COMMANDS


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("completion")
    for shell in ("bash", "zsh"):
        with open(place / shell, "wb") as script:
            subprocess.run([sys.executable, "-m", "fused", "completion", shell], stdout=script, timeout=60, check=True)
    return place


def complete(scripts: Path, *words: str) -> set[str]:
    """What bash offers for the last of `words`."""
    program = """
        source "$1"; shift
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_LINE="$*"; COMP_POINT=${#COMP_LINE}
        function=$(complete -p ipfsfs | sed 's/.*-F \\([^ ]*\\).*/\\1/')
        "$function" ipfsfs "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "--norc", "-c", program, "bash", str(scripts / "bash"), *words],
        capture_output=True,
        text=True,
        cwd=scripts,
        timeout=30,
        check=True,
    )
    assert done.stderr == ""
    return {line.strip() for line in done.stdout.splitlines() if line.strip()}


def test_bash_accepts_the_script(scripts: Path) -> None:
    subprocess.run(["bash", "-n", str(scripts / "bash")], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_accepts_the_script(scripts: Path) -> None:
    subprocess.run(["zsh", "-n", str(scripts / "zsh")], check=True, timeout=30)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_loads_the_script_for_the_command(scripts: Path) -> None:
    (scripts / "_ipfsfs").write_bytes((scripts / "zsh").read_bytes())
    program = 'fpath=("$1" $fpath); autoload -U compinit; compinit -u -D; echo ${_comps[ipfsfs]}; autoload +X _ipfsfs'
    done = subprocess.run(
        ["zsh", "-f", "-c", program, "zsh", str(scripts)], capture_output=True, text=True, timeout=30, check=True
    )
    assert (done.stdout, done.stderr) == ("_ipfsfs\n", "")


def test_zsh_script_is_an_autoloadable_function_for_every_command(scripts: Path) -> None:
    text = (scripts / "zsh").read_text()
    assert text.startswith("#compdef ipfsfs\n")
    assert all(f"    {command}:'" in text for command in COMMANDS)


def test_bash_completes_commands(scripts: Path) -> None:
    assert complete(scripts, "ipfsfs", "") >= set(COMMANDS)
    assert complete(scripts, "ipfsfs", "st") == {"status"}


def test_bash_completes_options_of_the_command(scripts: Path) -> None:
    assert complete(scripts, "ipfsfs", "mount", "--re") == {"--require", "--read-only", "--read-seconds"}
    assert complete(scripts, "ipfsfs", "sync", "--re") == set()
    assert complete(scripts, "ipfsfs", "doctor", "--js") == {"--json"}


def test_bash_completes_values(scripts: Path) -> None:
    assert complete(scripts, "ipfsfs", "mount", "--on-crash", "") == {"auto", "plain", "error"}
    assert complete(scripts, "ipfsfs", "completion", "") >= {"bash", "zsh"}


def test_bash_completes_directories_and_not_files(scripts: Path) -> None:
    (scripts / "some-directory").mkdir(exist_ok=True)
    (scripts / "some-file").touch()
    assert complete(scripts, "ipfsfs", "mount", "some-") == {"some-directory"}
    assert complete(scripts, "ipfsfs", "doctor", "some-") == {"some-directory"}
    assert complete(scripts, "ipfsfs", "mount", "--store-dir", "some-") == {"some-directory"}
