"""`ipfsfs sync` after the local file system has refused a write: the writer is told, and later snapshots go on."""

from __future__ import annotations

import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.mountproc import MountProcess


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    small = tmp_path / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", small], check=True)
    yield small
    subprocess.run(["umount", small], check=True)


@pytest.fixture
def small_mount(small_disk: Path, new_mount: Callable[..., MountProcess]) -> MountProcess:
    """A mount over a directory on it."""
    return new_mount(path=small_disk / "mnt").start()


def write_too_much(out: io.FileIO, *, sync: bool = True) -> int | None:
    """Write 3 MiB; the errno that the writer is told, which without `sync` depends on when the kernel writes back."""
    try:
        for _ in range(3):
            out.write(bytes(1 << 20))
        if sync:
            os.fsync(out.fileno())
    except OSError as exc:
        return exc.errno
    return None


def test_sync_does_not_fail_for_what_a_writer_was_told_long_ago(small_mount: MountProcess, tmp_path: Path) -> None:
    (small_mount.path / "kept").write_bytes(b"kept")
    with open(small_mount.path / "big", "wb", buffering=0) as big:
        assert write_too_much(big) == errno.ENOSPC
        os.ftruncate(big.fileno(), 0)
    done = small_mount.ipfsfs("sync", small_mount.path)
    assert "No space left" in done.stderr
    restored = small_mount.restore(done.stdout.strip(), tmp_path / "restored")
    assert (restored / "kept").read_bytes() == b"kept"
    assert not small_mount.ipfsfs("sync", small_mount.path).stderr


def test_sync_names_the_open_file_that_can_not_be_written_out(small_mount: MountProcess) -> None:
    with open(small_mount.path / "big", "wb", buffering=0) as big:
        write_too_much(big, sync=False)
        done = small_mount.ipfsfs("sync", small_mount.path, check=False)
        if done.returncode:
            assert "big" in done.stderr
            assert "No space left" in done.stderr
        os.ftruncate(big.fileno(), 0)
    small_mount.sync()
