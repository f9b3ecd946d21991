"""The command itself: help, usage errors, exit codes, and what it must not import."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused import errors
from fused.cli import main as cli
from fused.cli.exits import Exit, exit_code

QUICK = ["--help", "--version", "mount --help", "status .", "log .", "sync .", "umount ."]


def ipfsfs(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "fused", *args],
        capture_output=True,
        text=True,
        env=os.environ | environ,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_has_help_with_examples(command: str) -> None:
    done = ipfsfs(command, "--help", COLUMNS="100")
    assert done.returncode == 0
    assert "\nexamples:\n  ipfsfs " in done.stdout or '\nexamples:\n  eval "$(ipfsfs ' in done.stdout
    assert done.stderr == ""


def test_help_lists_every_command_and_the_exit_codes() -> None:
    out = ipfsfs("--help").stdout
    assert all(f"\n    {command}" in out for command in cli.COMMANDS)
    assert "3 not mounted" in out


def test_version_is_the_packages() -> None:
    from fused import __version__

    assert ipfsfs("--version").stdout == f"ipfsfs {__version__}\n"


@pytest.mark.parametrize(
    "args",
    [[], ["fly"], ["--fly"], ["mount"], ["mount", "a", "b"], ["mount", "--on-crash=panic", "a"], ["log", "-n", "-1"]],
)
def test_wrong_usage_is_exit_code_2_with_a_sentence(args: list[str]) -> None:
    done = ipfsfs(*args)
    assert done.returncode == Exit.USAGE
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize("command", ["status", "sync", "umount", "log"])
def test_directory_that_was_never_mounted_is_exit_code_3_with_one_sentence(command: str, tmp_path: Path) -> None:
    done = ipfsfs(command, str(tmp_path))
    assert done.returncode == Exit.NOT_MOUNTED
    assert done.stderr == f"ipfsfs: {tmp_path} is not inside an ipfsfs mount, and never was\n"
    assert done.stdout == ""


@pytest.mark.parametrize("line", QUICK)
def test_quick_commands_import_neither_trio_nor_pyfuse3(line: str) -> None:
    code = (
        "import sys; sys.argv = ['ipfsfs', *sys.argv[1:]]\n"
        "from fused.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'trio', 'pyfuse3', 'tqdm', 'shtab', 'pathspec'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *line.split()], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr.splitlines()[-1] == "[]"


def test_every_error_of_ours_has_an_exit_code_and_the_special_ones_their_own() -> None:
    def below(cls: type[errors.IpfsfsError]) -> list[type[errors.IpfsfsError]]:
        return [cls, *(found for sub in cls.__subclasses__() for found in below(sub))]

    classes = [cls for cls in below(errors.IpfsfsError) if cls.__module__ == "fused.errors"]
    codes = {cls.__name__: exit_code(cls.__new__(cls)) for cls in classes}
    plain_failures = {name for name, code in codes.items() if code is Exit.FAILED}
    assert plain_failures == {"IpfsfsError", "MountError", "NamesCollide", "RestoreFailed"}  # of a new error: decide
    assert codes["UsageError"] is Exit.USAGE
    assert codes["NotMounted"] is Exit.NOT_MOUNTED
    assert codes["DaemonGone"] is codes["StoreUnavailable"] is codes["BlockCorrupt"] is Exit.TROUBLE
    assert codes["Busy"] is Exit.BUSY
    assert codes["BlockNotFound"] is codes["PathNotInDag"] is Exit.NOT_FOUND


def test_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    assert print_to(write) == (Exit.BROKEN_PIPE, b"")


def test_output_that_can_not_be_written_is_an_error() -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    assert print_to(full) == (Exit.FAILED, b"ipfsfs: No space left on device\n")


def print_to(fd: int) -> tuple[int, bytes]:
    """Exit code and standard error of a command whose standard output is `fd`, which is closed."""
    command = [sys.executable, "-m", "fused", "completion", "bash"]
    done = subprocess.run(command, stdout=fd, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(fd)
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (errors.StoreUnavailable("the disk is full"), Exit.TROUBLE, "ipfsfs: the disk is full\n"),
        (
            FileNotFoundError(2, "No such file or directory", "/x"),
            Exit.FAILED,
            "ipfsfs: /x: No such file or directory\n",
        ),
        (KeyboardInterrupt(), Exit.INTERRUPTED, "ipfsfs: interrupted\n"),
        (errors.UsageError("a\x1b[31m\nb"), Exit.USAGE, "ipfsfs: a\\x1b[31m\\nb\n"),
    ],
)
def test_failures_are_one_sentence_and_an_exit_code(
    raised: BaseException, code: Exit, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(argv: object) -> int:
        raise raised

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main([]) == code
    assert capsys.readouterr().err == said
