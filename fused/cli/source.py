"""What `ls`, `cat`, `diff` and `restore` read from: a store, and a tree in it that an argument names."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from fused.cid import format_cid, parse_cid
from fused.cli.options import DIRECTORY, add_store, completes
from fused.errors import NotMounted, PathNotInDag, StoreUnavailable, UsageError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Awaitable, Callable

    from fused.cid import CID
    from fused.config import Settings
    from fused.store.base import Store
    from fused.store.spec import StoreSpec
    from fused.view.directory import Names

_STORE_FLAGS = ("store", "store_dir", "auth_file", "ca_file")
_CACHE_KEYS = ("store_dir", "cache_bytes", "read_seconds")

LATEST = "latest"
"""Stands for the newest snapshot of the mount, wherever a CID may stand."""


class Tree(NamedTuple):
    """A CID and a path below it, as an argument names them."""

    cid: CID
    path: Names


def add_source(parser: argparse.ArgumentParser) -> None:
    """--mount, --store and what belongs to it, and --store-dir."""
    completes(
        parser.add_argument(
            "--mount", metavar="DIR", default=".", help="any path inside the mount that is meant (default: here)"
        ),
        DIRECTORY,
    )
    add_store(parser, "the mount's, else this user's")
    completes(
        parser.add_argument(
            "--store-dir",
            metavar="DIR",
            help="where the embedded store is, or what is known of a node (default: the mount's, else this user's)",
        ),
        DIRECTORY,
    )


def parse_tree(text: str, args: argparse.Namespace) -> Tree:
    """`CID[/PATH]`, also as `/ipfs/CID/PATH` or `ipfs://CID/PATH`. Raises UsageError, PathNotInDag.

    `latest` in place of a CID is the newest snapshot of the mount; raises NotMounted if there is no mount.
    """
    from fused.view.directory import names_of

    rest = text.removeprefix("/ipfs/").removeprefix("ipfs://")
    head, _, path = rest.partition("/")
    cid = _latest(args) if head == LATEST else parse_cid(head)
    return Tree(cid, names_of(os.fsencode(path)))


def _latest(args: argparse.Namespace) -> CID:
    from fused.cli.log import snapshots
    from fused.cli.target import find_target

    target = find_target(args.mount)
    found = snapshots(target)
    if not found:
        raise PathNotInDag(f"{target.mountpoint} has no snapshot yet; `ipfsfs sync {target.mountpoint}` takes one")
    return parse_cid(str(found[0]["snapshot"]))


def store_spec(args: argparse.Namespace) -> StoreSpec:
    """The store that is meant: flags, else the mount's own settings, else what settings say for this user."""
    from fused.cli.target import find_target
    from fused.config import read_settings

    try:
        settings = read_settings(find_target(args.mount).state_dir)
    except NotMounted:
        settings = None
    return named_store(args, settings, args.mount)


def named_store(args: argparse.Namespace, settings: Settings | None, directory: str) -> StoreSpec:
    """The same with `settings`, those of the mount that is meant if there is one; `directory` is in it."""
    from fused.config import load_settings

    flags = {key: getattr(args, key) for key in _STORE_FLAGS if getattr(args, key) is not None}
    if settings is None:
        known: dict[str, object] = {"store": "embedded"} if "store_dir" in flags else {}
    elif not flags:
        return settings.store_spec
    else:
        # What one node asks for is not told to another.
        keys = _CACHE_KEYS if "store" in flags else (*_STORE_FLAGS, *_CACHE_KEYS)
        known = {key: getattr(settings, key) for key in keys}
    return load_settings(directory, known | flags).store_spec


def with_store(args: argparse.Namespace, work: Callable[[Store], Awaitable[int]]) -> int:
    """Run `work` on the open store. Raises StoreUnavailable if there is none: reading makes no new one."""
    import trio

    from fused.store.opening import make_store

    spec = store_spec(args)
    if spec.kind == "embedded" and not os.path.isdir(spec.directory):
        raise StoreUnavailable(
            f"there is no store at {spec.directory}; --store-dir names another, --mount a mount to use its"
        )
    store = make_store(spec)

    async def main() -> int:
        await store.open()
        try:
            return await work(store)
        finally:
            with trio.CancelScope(shield=True):
                await store.aclose()

    return trio.run(main)


def paths_below(mountpoint: str | None, paths: list[str]) -> list[Names]:
    """Paths as a person names them on a command line: inside the tree, or absolute below the mount point."""
    from fused.view.directory import names_of

    found = []
    for path in paths:
        inside = path
        if os.path.isabs(path):
            if mountpoint is None:
                raise UsageError(f"{path} is an absolute path; name it as it is called inside the snapshot")
            whole = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
            inside = os.path.relpath(whole, mountpoint)
            if inside.split("/")[0] == "..":
                raise UsageError(f"{path} is not below {mountpoint}")
            inside = "" if inside == "." else inside
        found.append(names_of(os.fsencode(inside)))
    return found


def quoted(path: Names) -> str:
    """A path in the form of `os.fsdecode`, for output that decides itself what to escape."""
    return os.fsdecode(b"/".join(path)) or "."


def cid_text(cid: CID | None) -> str | None:
    """The text form, None for what has no CID."""
    return None if cid is None else format_cid(cid)
