"""fio: random writes by several jobs and engines, each block with its CRC-32C, all of them read back and checked."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.stress.conftest import Figures
from tests.support.compare import assert_same_tree
from tests.support.mountproc import MountProcess, run
from tests.support.profile import by_profile

ENGINES = ("sync", "psync", "pvsync2", "mmap", "libaio", "io_uring")
JOBS = by_profile(2, 4)
SIZE_MIB = by_profile(4, 256)
BLOCKS = "512-64k"
"""Of any size: blocks that are no whole pages make the kernel read before it writes."""


def fio(directory: Path, outside: Path, engine: str, *more: str, jobs: int, size_mib: int) -> int:
    """Write randomly, verify; returns the bytes written. Fails on any error that fio or one of its jobs reports."""
    blocks = "4k-64k" if engine == "mmap" else BLOCKS  # fio refuses others than whole pages for mmap
    command = [
        "fio",
        f"--name={engine}",
        f"--directory={directory}",
        f"--ioengine={engine}",
        "--rw=randwrite",
        f"--bsrange={blocks}",
        f"--size={size_mib}m",
        f"--numjobs={jobs}",
        "--iodepth=8",
        "--fsync=500",
        "--fallocate=none",  # not offered by pyfuse3: fio would only say so
        "--verify=crc32c",
        "--verify_fatal=1",
        "--do_verify=1",
        "--randrepeat=0",  # a random generator is seeded anew by each run
        "--output-format=json",
        *more,
    ]
    done = run(command, cwd=outside, check=False, timeout=3600)
    said = f"{' '.join(map(str, command))}: exit {done.returncode}\n{done.stdout[-4000:]}{done.stderr}"
    assert done.returncode == 0, said
    assert not done.stderr.strip(), said
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert [job["error"] for job in report["jobs"]] == [0] * jobs, said
    written = [job["write"]["io_bytes"] for job in report["jobs"]]
    verified = [job["read"]["io_bytes"] for job in report["jobs"]]
    assert all(written), said
    assert verified == written, said
    return sum(written)


@pytest.fixture(autouse=True)
def _fio(need: Callable[..., None]) -> None:
    need("fio")


def test_fio_verifies_a_plain_directory(plain: Path, tmp_path: Path, figures: Figures) -> None:
    written = sum(fio(plain, tmp_path, engine, jobs=2, size_mib=4) for engine in ENGINES)
    figures.add("fio, plain directory", ", ".join(ENGINES), f"{written / 1048576:,.0f} MiB verified")


@pytest.mark.parametrize("flags", [(), ("--write-through",)], ids=["write-back", "write-through"])
def test_fio_verifies_a_mount(
    busy_mount: Callable[..., MountProcess], tmp_path: Path, figures: Figures, flags: tuple[str, ...]
) -> None:
    mount = busy_mount(*flags)
    size = SIZE_MIB if not flags else max(1, SIZE_MIB // 8)
    for engine in ENGINES:
        written = fio(mount.path, tmp_path, engine, jobs=JOBS, size_mib=size)
        figures.add(" ".join(("fio", *flags)), f"{engine}, {JOBS} jobs", f"{written / 1048576:,.0f} MiB verified")
        for path in mount.path.iterdir():  # each engine's files are in snapshots of their own: no need to keep all
            if engine != ENGINES[-1]:
                path.unlink()
    restored = mount.restore(mount.sync(), tmp_path / "restored")
    assert_same_tree(mount.plain, restored)
