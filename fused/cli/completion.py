"""`ipfsfs completion`: scripts for bash and zsh, generated from the parsers themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused.cli.exits import Exit

if TYPE_CHECKING:
    import argparse


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs completion`."""
    parser.epilog = """\
examples:
  eval "$(ipfsfs completion bash)"                              in ~/.bashrc, or once:
  ipfsfs completion bash > ~/.local/share/bash-completion/completions/ipfsfs
  ipfsfs completion zsh > ~/.zfunc/_ipfsfs                      with fpath+=~/.zfunc before compinit
"""
    parser.add_argument("shell", choices=("bash", "zsh"), help="the shell to complete for")


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs completion`."""
    import shtab

    from fused.cli.main import COMMANDS, build_parser

    print(shtab.complete(build_parser(COMMANDS, brief=True), shell=args.shell))
    return Exit.OK
