"""How fast is a node as the store? `python bench/node.py [--size SIZE] [--json FILE] [--at DIRECTORY] [ROW …]`.

    large       one file of 1 GiB: `ipfsfs sync` to a node against `ipfs add` to a node of the same kind
    small       10,000 files of 4 KiB: the same against `ipfs add -r`
    slow-node   `git status`, and writing small files, on a mount whose node answers after a second, beside one whose
                store is embedded

Each node is a real Kubo on loopback with a new repository, whose import profile is the one under which our trees are
equal to its own; both sides go through its RPC API, and both end up with the same blocks, pinned. They take turns, and
each repeat has new nodes. The files are on disk before the clock starts, and in the page cache, too.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from tests.support.kubo_node import KuboNode
from tests.support.mountproc import GATES
from tests.support.proxy import Delay, Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

MIB = 1 << 20
SIZES = {
    "full": (1024 * MIB, 10_000, 6, 1.0),
    "medium": (256 * MIB, 3_000, 3, 1.0),
    "smoke": (8 * MIB, 100, 1, 0.05),
}
"""Bytes of the large file, small files, repeats, seconds that a slow node waits before each answer."""

PROFILE: dict[str, Any] = {
    "Import.CidVersion": 1,
    "Import.HashFunction": "sha2-256",
    "Import.UnixFSRawLeaves": True,
    "Import.UnixFSChunker": "size-1048576",
    "Import.UnixFSFileMaxLinks": 1024,
}
"""Of `unixfs-v1-2025`, what one file and a directory of 10,000 names need."""


@contextmanager
def mounted(base: Path, name: str, *flags: str) -> Iterator[tuple[Path, Callable[..., str]]]:
    """A new mount, and a function that runs an `ipfsfs` command. Nothing is stored unless it is asked for."""
    covered = base / name
    covered.mkdir(parents=True)
    environ = {k: v for k, v in os.environ.items() if k not in GATES and not k.startswith(("IPFSFS_", "XDG_"))}
    environ |= {"HOME": str(base / "home")}

    def ipfsfs(*args: str) -> str:
        command = [sys.executable, "-m", "fused", *args]
        done = subprocess.run(command, env=environ, cwd=Path(__file__).parents[1], capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"ipfsfs {' '.join(args)}: {done.stdout}{done.stderr}")
        return done.stdout

    waits = ["--quiet-seconds", "36000", "--interval-seconds", "36000"]
    places = ["--state-dir", str(base / f"{name}-state"), "--store-dir", str(base / f"{name}-store")]
    ipfsfs("mount", "--force", "--require", *waits, *places, *flags, str(covered))
    try:
        yield covered, ipfsfs
    finally:
        ipfsfs("umount", "--now", str(covered))


def timed(act: Callable[[], T]) -> tuple[float, T]:
    begun = time.perf_counter()
    result = act()
    return time.perf_counter() - begun, result


def large(root: Path, rng: random.Random, size: int) -> None:
    content = bytearray(rng.randbytes(MIB))
    with open(root / "large", "wb", buffering=0) as file:
        for _ in range(size // MIB):
            content[:16] = rng.randbytes(16)
            file.write(content)


def small(root: Path, rng: random.Random, count: int) -> None:
    for i in range(count):
        (root / f"{i:06}").write_bytes(rng.randbytes(16) * 256)


def by_ipfsfs(base: Path, make: Callable[[Path], None]) -> tuple[float, str]:
    """Seconds, and the CID of the tree that `make` fills a directory with."""
    with (
        KuboNode(base / "node", config=PROFILE) as node,
        mounted(base, "fs", "--store", f"kubo={node.url}") as (covered, ipfsfs),
    ):
        ipfsfs("sync", str(covered))
        make(covered)
        os.sync()
        seconds, said = timed(partial(ipfsfs, "sync", "--json", str(covered)))
        return seconds, json.loads(said)["tree"]


def by_ipfs_add(base: Path, make: Callable[[Path], None]) -> tuple[float, str]:
    """The same."""
    plain = base / "plain"
    with KuboNode(base / "node", config=PROFILE) as node:
        plain.mkdir()
        make(plain)
        os.sync()
        seconds, said = timed(partial(node.run, "add", "-r", "-H", "-Q", str(plain)))
        return seconds, said.decode().strip()


def set_aside(base: Path) -> None:
    """Free the blocks and the memory of all that was made, but not the inodes.

    ext4 does not use an inode again for minutes after it was freed, and looks at every such one whenever it makes a
    file near it (`recently_deleted` in fs/ext4/ialloc.c): who comes after thousands of removals pays for them.
    """
    aside = base.with_name(base.name + ".aside")
    aside.mkdir(exist_ok=True)
    place = Path(tempfile.mkdtemp(dir=aside))
    for left in list(base.iterdir()):
        for path in [left, *left.rglob("*")]:
            if path.is_file():
                os.truncate(path, 0)
        left.rename(place / left.name)


def upload(base: Path, repeats: int, make: Callable[..., None]) -> dict[str, Any]:
    """Both in turn, each with a node of its own. Fails unless both give one and the same tree.

    Who is first changes from turn to turn, and both find the same behind them: to write to memory that was just freed
    can be much faster than to fresh memory, in a virtual machine above all.
    """
    sides = {"ipfsfs": by_ipfsfs, "ipfs add": by_ipfs_add}
    times: dict[str, list[float]] = {who: [] for who in sides}
    for turn in range(repeats):
        trees = set()
        for who in sorted(sides, reverse=bool(turn % 2)):
            seconds, tree = sides[who](base, partial(make, rng=random.Random(turn)))
            times[who].append(seconds)
            trees.add(tree)
            set_aside(base)
        if len(trees) != 1:
            raise SystemExit(f"the trees differ: {trees}")
    ours, theirs = (statistics.median(times[who]) for who in ("ipfsfs", "ipfs add"))
    return {"seconds": times, "median": {"ipfsfs": ours, "ipfs add": theirs}, "speed": round(theirs / ours, 2)}


def git(place: Path, *args: str) -> None:
    command = ["git", "-C", str(place), "-c", "user.name=bench", "-c", "user.email=bench@localhost", *args]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def slow_node(base: Path, repeats: int, files: int, delay: float) -> dict[str, Any]:
    """Local work on two mounts in turn."""
    times: dict[str, dict[str, list[float]]] = {what: {"embedded": [], "slow node": []} for what in ("status", "write")}
    with KuboNode(base / "node") as node, closing(Proxy(node.url)) as proxy:
        proxy.rule("*", Delay(delay))
        with mounted(base, "near") as (near, _), mounted(base, "far", "--store", f"kubo={proxy.url}") as (far, _):
            places = {"embedded": near, "slow node": far}
            for place in places.values():
                small(place, random.Random(0), files)
                git(place, "init", "-q")
                git(place, "add", "-A")
                git(place, "commit", "-qm1")
            rng = random.Random(1)
            for turn in range(repeats * 3):
                for name, place in places.items():
                    times["status"][name].append(timed(partial(git, place, "status", "-s"))[0])
                    new = place / f"new{turn}"
                    new.mkdir()
                    times["write"][name].append(timed(partial(small, new, rng, 500))[0])
    result: dict[str, Any] = {"seconds": times}
    for what, by_place in times.items():
        medians = {name: statistics.median(found) for name, found in by_place.items()}
        result[what] = {**medians, "ratio": round(medians["slow node"] / medians["embedded"], 2)}
    return result


def run(row: str, base: Path, sizes: tuple[int, int, int, float]) -> dict[str, Any]:
    """Measure and print one row."""
    size, files, repeats, delay = sizes
    if row == "slow-node":
        found = slow_node(base, repeats, files // 2, delay)
        for what in ("status", "write"):
            one = found[what]
            near, far = one["embedded"], one["slow node"]
            print(f"{what:10} embedded {near:7.3f} s   slow node {far:7.3f} s   ratio {one['ratio']}")
        return found
    found = upload(base, repeats, partial(large, size=size) if row == "large" else partial(small, count=files))
    ours, theirs = found["median"]["ipfsfs"], found["median"]["ipfs add"]
    print(f"{row:10} ipfsfs sync {ours:7.2f} s   ipfs add {theirs:7.2f} s   speed {found['speed']} of ipfs add's")
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    rows = ("large", "small", "slow-node")
    parser.add_argument("row", nargs="*", metavar="ROW", help="of large, small, slow-node; default: all")
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    parser.add_argument("--at", type=Path, metavar="DIRECTORY", default=Path("/var/tmp"), help="which disk is measured")
    args = parser.parse_args()
    if unknown := set(args.row) - set(rows):
        parser.error(f"no such row: {', '.join(sorted(unknown))}")
    base = Path(tempfile.mkdtemp(prefix="ipfsfs-node-", dir=args.at))
    try:
        found = {row: run(row, base, SIZES[args.size]) for row in args.row or rows}
    finally:
        for left in (base, base.with_name(base.name + ".aside")):
            shutil.rmtree(left, ignore_errors=True)
    if args.json:
        args.json.write_text(json.dumps(found, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
