"""A mount without the rest of the program: `python plainmount.py DIR [option ...]` covers DIR until it is unmounted.

Prints `ready` when requests are served, and at SIGUSR1 one JSON line with the counters. Options are the keyword
arguments of `MountOptions` that are flags: read_only, allow_other, write_through; `stock` keeps pyfuse3's own loop.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys

import trio

from fused.fs import mounts, session
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem


def counters(fs: FileSystem) -> str:
    """What the tests ask for."""
    return json.dumps(
        {
            "inodes": fs.inode_count(),
            "handles": fs.handle_count(),
            "orphans": fs.reach.orphan_count(),
            "writers": [os.fsdecode(path) for path in fs.writers()],
            "requests": {kind: [stats.count, stats.errors] for kind, stats in fs.counters().items()},
            "p50": {kind: stats.p50_us for kind, stats in fs.counters().items()},
        }
    )


async def run(directory: str, options: set[str]) -> None:
    """Serve until unmounted."""
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    allow_other, write_through = "allow_other" in options, "write_through" in options
    read_only = "read_only" in options
    fs = FileSystem(
        root_fd, NullChangeSink(), private=not allow_other, write_through=write_through, read_only=read_only
    )
    mount_options = session.MountOptions(
        mountpoint=directory,
        fsname=mounts.source_name("/nowhere"),
        read_only=read_only,
        allow_other=allow_other,
        write_through=write_through,
    )

    async def answer_signals() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                fs.inodes.check_invariants()
                print(counters(fs), flush=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_signals)
        await session.serve(fs, mount_options, lambda: print("ready", flush=True))
        nursery.cancel_scope.cancel()
    os.close(root_fd)


def main() -> None:
    """See the module's docstring."""
    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    directory, *options = sys.argv[1:]
    if "stock" in options:
        import pyfuse3

        del pyfuse3._wait_fuse_readable
    trio.run(run, os.path.realpath(directory), set(options))


if __name__ == "__main__":
    main()
