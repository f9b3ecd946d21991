"""Arguments that several commands share, and the words that tell shells how to complete them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

DIRECTORY = {"bash": "_shtab_compgen_dirs", "zsh": "_files -/"}  # shtab.DIRECTORY, without importing shtab
FILE = {"bash": "_shtab_compgen_files", "zsh": "_files"}


def completes(action: argparse.Action, how: dict[str, str]) -> None:
    """Have shells complete `action`'s value with `how` (the attribute that shtab looks for)."""
    action.complete = how  # type: ignore[attr-defined]


def add_directory(parser: argparse.ArgumentParser, about: str) -> None:
    """The argument DIR (default: here) that names a mount by any path inside it."""
    completes(parser.add_argument("dir", metavar="DIR", nargs="?", default=".", help=about), DIRECTORY)


def add_state_dir(parser: argparse.ArgumentParser) -> None:
    """--state-dir, for a directory that is not mounted and has its state elsewhere than by default."""
    completes(
        parser.add_argument(
            "--state-dir", metavar="DIR", help="where the mount keeps its state (default: found from the path)"
        ),
        DIRECTORY,
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """--json."""
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def add_progress(parser: argparse.ArgumentParser) -> None:
    """--progress and --no-progress; neither leaves it to whether standard error is a terminal."""
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--progress", action="store_true", default=None, help="show a progress bar in any case")
    group.add_argument("--no-progress", action="store_false", dest="progress", help="show no progress bar")


def add_store(parser: argparse.ArgumentParser, default: str) -> None:
    """Which store is meant, and how to get into it: --store, --auth-file, --ca-file."""
    parser.add_argument(
        "--store",
        metavar="STORE",
        help="embedded, kubo, kubo=URL (http://…, https://…, unix:///…, or a multiaddr), ipfs-kit, or "
        f"ipfs-kit=IPFS_PATH (default: {default})",
    )
    completes(
        parser.add_argument(
            "--auth-file", metavar="FILE", help="what the node's API wants: bearer:TOKEN or basic:USER:PASSWORD"
        ),
        FILE,
    )
    completes(
        parser.add_argument("--ca-file", metavar="FILE", help="certificates to believe a node behind TLS by (PEM)"),
        FILE,
    )
