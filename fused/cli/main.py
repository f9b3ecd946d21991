"""The `ipfsfs` command: finds the command's module, runs it, and turns errors into sentences and exit codes.

Only the module of the command that was asked for is imported, and none of them imports trio or pyfuse3 before it
must: `ipfsfs status` in a shell prompt or a health check costs little more than starting Python. `ipfsfs sync` with
nothing to store is to take less than 50 ms, of which Python and pip's script take 30, so what it comes by imports
neither argparse nor `typing`.

A command's module has `configure(parser)`, which sets description, epilog (with examples) and arguments, and
`run(args) -> int`, which returns an exit code or raises an error of ours.
"""

from __future__ import annotations

import os
import sys

from fused import __version__
from fused.cli.plain import plain_arguments
from fused.errors import IpfsfsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from collections.abc import Collection, Sequence
    from types import ModuleType
    from typing import NoReturn

COMMANDS = {
    "mount": "cover a directory: store and version what is in it, in the background",
    "umount": "uncover a directory again, after a last snapshot",
    "status": "say how a mount is: what is stored, what is not, what is wrong",
    "doctor": "say what a mount needs, what of it is there, and what to do about the rest",
    "sync": "store everything that was written so far, and print the snapshot's CID",
    "log": "list the snapshots of a directory, newest first",
    "ls": "list a directory in a snapshot or any other UnixFS tree in the store",
    "cat": "print a file in a snapshot or any other UnixFS tree in the store",
    "diff": "say what differs between two snapshots, or a snapshot and the live tree",
    "restore": "bring a snapshot, or parts of it, back as plain files",
    "fsck": "check a directory's snapshots, its index and its store, and say exactly what is damaged",
    "completion": "print a completion script for bash or zsh",
}

_EPILOG = """\
examples:
  ipfsfs mount ~/.cache/ipfs_accelerate    cover it; go on working in it with any program
  ipfsfs status ~/.cache/ipfs_accelerate   what is stored, and what is not yet
  ipfsfs sync ~/.cache/ipfs_accelerate     everything written so far is stored; prints its CID
  ipfsfs umount ~/.cache/ipfs_accelerate   plain files again

`ipfsfs COMMAND --help` has more examples. Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not mounted,
4 trouble with daemon or store, 5 busy, 6 no mount (--require), 7 not found. `ipfsfs fsck` has those of fsck(8).
"""


def build_parser(configured: Collection[str] = (), *, brief: bool = False) -> argparse.ArgumentParser:
    """The parser for all commands, of which those in `configured` know their own arguments.

    `brief`: each command is described by its line in COMMANDS only.
    """
    import argparse

    parser = argparse.ArgumentParser(
        prog="ipfsfs",
        description=_filled(
            "A FUSE mount over plain directories: unmodified programs work in them as before, "
            "and everything is stored, deduplicated, verified and versioned in IPFS behind them."
        ),
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ipfsfs {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, title="commands")
    for name, about in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=about,
            description=about[0].upper() + about[1:] + ".",
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        if name in configured:
            _module(name).configure(sub)
            sub.description = about if brief else _filled(sub.description or "")
    return parser


def _filled(text: str) -> str:
    """Wrapped, as argparse would without the formatter that leaves the examples as they are."""
    import shutil
    import textwrap

    return textwrap.fill(text, min(shutil.get_terminal_size().columns, 100) - 2)


def run(argv: Sequence[str]) -> int:
    """Run the command that `argv` (without the program's name) asks for. Raises what it raises."""
    plain = plain_arguments(argv)
    if plain is not None:
        return int(_module(argv[0]).run(plain))
    command = next((word for word in argv if not word.startswith("-")), None)
    try:
        args = build_parser([command] if command in COMMANDS else []).parse_args(argv)
    except SystemExit as exc:
        if command == "fsck":
            _module(command).refuse(exc)
        raise
    return int(_module(args.command).run(args))


def _module(command: str) -> ModuleType:
    return __import__(f"fused.cli.{command}", fromlist=["run"])  # importlib itself would have to be imported


def main(argv: Sequence[str] | None = None) -> int:
    """`run`, with every expected failure as one sentence on standard error and an exit code."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # file names are bytes
    try:
        code = run(sys.argv[1:] if argv is None else argv)
        sys.stdout.flush()
    except (IpfsfsError, KeyboardInterrupt, OSError) as exc:
        return _failed(exc)
    return code


def _failed(exc: IpfsfsError | KeyboardInterrupt | OSError) -> int:
    from fused.cli.exits import Exit, exit_code
    from fused.cli.output import say

    if isinstance(exc, IpfsfsError):
        say(str(exc))
        return exit_code(exc)
    if isinstance(exc, KeyboardInterrupt):
        say("interrupted")
        return Exit.INTERRUPTED
    _drop_output()
    if isinstance(exc, BrokenPipeError):
        return Exit.BROKEN_PIPE
    say(f"{os.fsdecode(exc.filename)}: {exc.strerror}" if exc.filename else str(exc.strerror or exc))
    return Exit.FAILED


def _drop_output() -> None:
    """What is still to be written to standard output is not: flushing it at exit would fail again, with a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def console_main() -> NoReturn:
    """The entry point of the console script and of `python -m fused`."""
    sys.exit(main())
