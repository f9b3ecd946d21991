"""stress-ng's file system stressors with --verify, on a mount and on the plain directory, which is the reference."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.stress.conftest import Figures
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess, run
from tests.support.profile import FULL, by_profile

LEFT_OUT = {
    "bind-mount": "makes bind mounts of directories outside",
    "binderfs": "is about a file system of its own",
    "eventfd": "touches no file in the directory",
    "fanotify": "watches every mount of the machine",
    "io": "calls sync, and syncfs on every mount of the machine; iomix does the same on its own files",
    "ioprio": "is about scheduling; its file is only written to",
    "procfs": "is about /proc",
    "fpunch": "needs fallocate, for which nothing can stand in",
    "fiemap": "needs ioctl, which pyfuse3 does not offer",
    "inode-flags": "needs ioctl, and does nothing on ext4 either",
    "verity": "needs ioctl, and a file system made with this feature",
}

SECONDS = by_profile(2, 60)
AT_ONCE = by_profile(10, 1)

# stress-ng stands in for fallocate by writing, 1 GiB for some of these if nothing is said.
SIZES = ("--fallocate-bytes", "1M", "--iomix-bytes", "1M", "--sync-file-bytes", "1M", "--copy-file-bytes", "128M")

# When its time is up in the middle of that it stops writing and reports success, which these two take for a wrong size
# or a missing EFBIG: they are ended by their count.
COUNTED = {"fsize": by_profile(20, 500), "file-ioctl": by_profile(100, 20_000)}

_OPS = re.compile(r"^ *- stressor: (\S+)\n *bogo-ops: (\d+)", re.MULTILINE)


def stressors() -> list[str]:
    """Those that this stress-ng has and that can say something about a directory."""
    done = subprocess.run(["stress-ng", "--class", "filesystem?"], capture_output=True, text=True, check=False)
    listed = re.search(r"stressors: (.*)", done.stdout + done.stderr)
    assert listed, f"stress-ng does not list its stressors:\n{done.stdout}{done.stderr}"
    return [name for name in listed[1].split() if name not in LEFT_OUT]


def stress(directory: Path, names: Sequence[str], outside: Path, *limits: str, seconds: int) -> dict[str, int]:
    """Run stressors at once in `directory`; how often each went round. Fails on any failure that they report."""
    metrics = outside / "metrics.yaml"
    metrics.unlink(missing_ok=True)
    each = [word for name in names for word in (f"--{name}", "1")]
    common = ["--verify", "--timeout", str(seconds), "--temp-path", directory, "--metrics", "--yaml", metrics]
    done = run(["stress-ng", *each, *limits, *SIZES, *common], cwd=outside, check=False, timeout=1800)
    said = done.stdout + done.stderr
    bad = [line for line in said.splitlines() if re.search(r"\b(fail|error|skipping)\b", line)]
    assert done.returncode == 0, f"stress-ng {' '.join(names)}: exit {done.returncode}\n{said}"
    assert not bad, f"stress-ng {' '.join(names)}:\n{said}"
    counts = {name: int(count) for name, count in _OPS.findall(metrics.read_text())}
    assert set(counts) == set(names), f"not all stressors ran: {counts}\n{said}"
    return counts


def stress_with_all(directory: Path, outside: Path, *, seconds: int, at_once: int) -> dict[str, int]:
    """Every stressor, some at once. Each must go round at least once, so one that did not gets as long as it takes."""
    names = [name for name in stressors() if name not in COUNTED]
    counts = dict.fromkeys(COUNTED, 0)
    for first in range(0, len(names), at_once):
        counts |= stress(directory, names[first : first + at_once], outside, seconds=seconds)
    for name in [name for name, count in counts.items() if count == 0]:
        counts |= stress(directory, [name], outside, f"--{name}-ops", str(COUNTED.get(name, 1)), seconds=600)
    idle = [name for name, count in counts.items() if count == 0]
    assert not idle, f"these did nothing: {idle}"
    return counts


@pytest.fixture(autouse=True)
def _stress_ng(need: Callable[..., None]) -> None:
    need("stress-ng")


def test_no_stressor_fails_on_a_plain_directory(plain: Path, tmp_path: Path, figures: Figures) -> None:
    counts = stress_with_all(plain, tmp_path, seconds=2, at_once=10)
    figures.add("stress-ng, plain directory", f"{len(counts)} stressors, 2 s each", "no failure")


@pytest.mark.parametrize("flags", [(), ("--write-through",)], ids=["write-back", "write-through"])
def test_no_stressor_fails_on_a_mount(
    busy_mount: Callable[..., MountProcess], tmp_path: Path, figures: Figures, flags: tuple[str, ...]
) -> None:
    mount = busy_mount(*flags)
    seconds, at_once = (SECONDS, AT_ONCE) if not flags else (2, 10)
    begun = time.monotonic()
    counts = stress_with_all(mount.path, tmp_path, seconds=seconds, at_once=at_once)
    took = time.monotonic() - begun
    restored = mount.restore(mount.sync(), tmp_path / "restored")
    assert_same_tree(mount.plain, restored)
    figures.add(
        " ".join(("stress-ng", *flags)),
        f"{len(counts)} stressors, {seconds} s each",
        f"no failure, {took:.0f} s",
    )
    if FULL:
        figures.say("rounds: " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items())))
