"""`ipfsfs cat`: the content of a stored file on standard output."""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from fused.cli.exits import Exit
from fused.cli.source import Tree, add_source, parse_tree, with_store
from fused.errors import PathNotInDag, UsageError

if TYPE_CHECKING:
    from fused.store.base import Store


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs cat`."""
    parser.description = (
        "Print files of a snapshot or of any other UnixFS tree in the store. Symbolic links are followed inside the "
        "tree. Every block is verified: if one is damaged or missing, the command fails and names its CID, and "
        "what was printed before it is right."
    )
    parser.epilog = """\
examples:
  ipfsfs cat bafy…/config/settings.json        a file in a snapshot
  ipfsfs cat latest/notes.txt                  in the newest snapshot of the mount that we are in
  ipfsfs cat bafkrei… > file                   a file by its own CID
  ipfsfs cat --offset 1048576 --length 4096 bafy…/model.bin
                                               a part of it; no more than that is read
  ipfsfs cat --store kubo bafkrei… > file      through a Kubo node, from wherever in its network the file is
"""
    parser.add_argument("file", metavar="CID[/PATH]", nargs="+", help="the file; `latest` is the newest snapshot")
    parser.add_argument("--offset", type=_bytes, default=0, metavar="BYTES", help="skip so many bytes of each file")
    parser.add_argument("--length", type=_bytes, metavar="BYTES", help="print at most so many of each file")
    add_source(parser)


def _bytes(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes, 0 or more")
    return int(text)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs cat`."""
    files = [parse_tree(text, args) for text in args.file]
    sys.stdout.flush()

    async def work(store: Store) -> int:
        for file, text in zip(files, args.file, strict=True):
            await _print(store, file, text, args.offset, args.length)
        return Exit.OK

    return with_store(args, work)


async def _print(store: Store, file: Tree, text: str, offset: int, length: int | None) -> None:
    import trio

    from fused.view import content
    from fused.view.directory import follow, open_root

    root = await open_root(store, file.cid)
    node = await follow(store, root.node, file.path)
    if node.kind == "dir":
        raise UsageError(f"{text} is a directory; `ipfsfs ls` lists it")
    if node.kind != "file":
        raise UsageError(f"{text} is not a file, and has no content")
    if node.cid is None:
        raise PathNotInDag(f"the content of {text} is not in the snapshot: it could not be read when that was taken")
    async with content.open_stream(store, node.cid, offset, length) as chunks:
        async for chunk in chunks:
            # Abandoned when interrupted: the thread may wait for a reader who never reads.
            await trio.to_thread.run_sync(_write, chunk, abandon_on_cancel=True)


def _write(chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(sys.stdout.fileno(), rest) :]
