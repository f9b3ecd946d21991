"""fsx, the file system exerciser: random reads, writes, mappings, truncations on a file whose content it knows.

Snapshots are taken all the while, so that captures race with every kind of change; what the last one has must be the
file as fsx left it.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.stress.conftest import Figures
from tests.support.cargo_tools import cargo_tool
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess
from tests.support.profile import by_profile

VERSION = "0.3.2"
CONFIG = Path(__file__).with_name("fsx.toml")
SEEDS = (1, 2, 3, 5, 8, 13, 21)
"""Always the same, and one fresh seed beside them: eight files at a time."""

ALONE = by_profile(20_000, 1_000_000)
EACH_OF_EIGHT = by_profile(4_000, 125_000)
"""In full a million in all, as with one file alone."""
WRITE_THROUGH = by_profile(1_000, 12_500)
MSYNCED = by_profile(500, 10_000)


@contextmanager
def configured(directory: Path, *lines: str) -> Iterator[Path]:
    """The configuration with `lines` before it, in a file."""
    path = directory / "fsx.toml"
    path.write_text("\n".join([*lines, CONFIG.read_text()]))
    yield path
    path.unlink()


def run_fsx(root: Path, seeds: Sequence[int], operations: int, config: Path, artifacts: Path) -> None:
    """One fsx for each of `seeds`, all at once, each on a file of its own in `root`. Fails, naming seeds."""
    fsx = cargo_tool("fsx", VERSION)
    artifacts.mkdir()
    running = {}
    try:
        for seed in seeds:
            command = [
                fsx,
                "-N",
                str(operations),
                "-S",
                str(seed),
                "-f",
                config,
                "-P",
                artifacts,
                root / f"seed-{seed}",
            ]
            running[seed] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        said = {seed: process.communicate()[0] for seed, process in running.items()}
    finally:
        for process in running.values():
            process.kill()
            process.wait()
    bad = {seed: process.returncode for seed, process in running.items() if process.returncode != 0}
    assert not bad, f"fsx -N {operations} failed, exit codes by seed: {bad}\n" + "\n".join(
        f"--- seed {seed} ---\n{said[seed][-4000:]}" for seed in bad
    )
    assert all("All operations completed A-OK!" in text for text in said.values()), said


@pytest.mark.parametrize(
    ("what", "flags", "operations", "files", "settings"),
    [
        ("one file", (), ALONE, 1, ("nomsyncafterwrite = true",)),
        ("eight files", (), EACH_OF_EIGHT, 8, ("nomsyncafterwrite = true",)),
        ("eight files, msync after each mapped write", (), MSYNCED, 8, ()),
        ("eight files, --write-through", ("--write-through",), WRITE_THROUGH, 8, ("nomsyncafterwrite = true",)),
    ],
    ids=["one", "eight", "msync", "write-through"],
)
def test_fsx_finds_no_wrong_byte_and_the_snapshot_has_what_it_left(
    busy_mount: Callable[..., MountProcess],
    tmp_path: Path,
    figures: Figures,
    what: str,
    flags: tuple[str, ...],
    operations: int,
    files: int,
    settings: tuple[str, ...],
) -> None:
    mount = busy_mount(*flags)
    fresh = secrets.randbits(63)
    seeds = [*SEEDS, fresh][-files:]
    figures.say(f"fsx {what}: {operations:,} operations each, seeds {' '.join(map(str, seeds))}")
    begun = time.monotonic()
    with configured(tmp_path, *settings) as config:
        run_fsx(mount.path, seeds, operations, config, tmp_path / "artifacts")
    took = time.monotonic() - begun
    taken = len(json.loads(mount.ipfsfs("log", "--json", mount.path).stdout))
    restored = mount.restore(mount.sync(), tmp_path / "restored")
    assert_same_tree(mount.path, restored)
    assert_same_tree(mount.path, mount.plain)
    figures.add(f"fsx {what}", f"{operations:,} operations each", f"clean, {took:.0f} s, {taken} snapshots meanwhile")
