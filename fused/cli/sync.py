"""`ipfsfs sync`: the barrier. What was written before it is stored when it has printed a CID."""

from __future__ import annotations

from fused.cli.barrier import flush
from fused.cli.options import add_directory, add_json, add_progress
from fused.cli.output import counted, print_json, printable, say
from fused.cli.progress import Progress
from fused.cli.target import find_mounted
from fused.control import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

_SHOWN = 5
"""Files named that could not be stored; `ipfsfs status` names all."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs sync`."""
    parser.description = (
        "Store everything that was written before this command, wait until it is durable in the store and pinned, "
        "and print the CID of the snapshot, and nothing else, on standard output."
    )
    parser.epilog = """\
examples:
  ipfsfs sync                       the mount that the working directory is in
  cid=$(ipfsfs sync ~/data)         what is in ~/data now can be read by this CID for ever
  ipfsfs sync --json ~/data         with tree, time, files and bytes
"""
    add_directory(parser, "any path inside the mount (default: the working directory)")
    add_json(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs sync`."""
    target = find_mounted(args.dir)
    flush(target)
    with Progress(args.progress) as progress:
        snapshot = call(target.state_dir, "sync", {}, progress)
    if args.json:
        print_json(snapshot)
    else:
        print(printable(str(snapshot["snapshot"])))
        _tell_of(snapshot["skipped"])  # type: ignore[arg-type]
    return 0  # Exit.OK; importing `enum` takes 4 ms, as much as the rest of this


def _tell_of(skipped: list[dict[str, str]]) -> None:
    """Say what the snapshot lacks."""
    if skipped:
        named = ", ".join(f"{printable(entry['path'])} ({entry['why']})" for entry in skipped[:_SHOWN])
        more = ", …" if len(skipped) > _SHOWN else ""
        say(f"without {counted(len(skipped), 'file')} that could not be stored: {named}{more}")
