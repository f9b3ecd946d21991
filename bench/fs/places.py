"""Where is measured: on a disk, and in memory, so that the disk doesn't hide what a mount costs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.support.mountproc import mounts_under

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

_SHM = Path("/dev/shm")


@contextmanager
def on_disk(at: Path) -> Iterator[Path]:
    """A new directory in `at`, removed at the end."""
    base = Path(tempfile.mkdtemp(prefix="ipfsfs-bench-", dir=at)).resolve()
    try:
        yield base
    finally:
        _remove(base)


@contextmanager
def in_memory(at: Path) -> Iterator[Path]:
    """A tmpfs of our own, which takes root; for others a new directory in that of the system."""
    if os.geteuid() != 0:
        with on_disk(_SHM) as base:
            yield base
        return
    with on_disk(at) as base:
        subprocess.run(["mount", "-t", "tmpfs", "-o", "size=90%,mode=700", "ipfsfs-bench", base], check=True)
        try:
            yield base
        finally:
            subprocess.run(["umount", "--lazy", base], check=False)


def _remove(base: Path) -> None:
    """All of it, unless something is still mounted there: then nothing, and it says so."""
    if left := mounts_under(base):
        raise SystemExit(f"still mounted: {', '.join(point for point, _ in left)}")
    for attempt in (False, True):
        with suppress(OSError):
            shutil.rmtree(base, ignore_errors=attempt)


def file_system(directory: Path) -> str:
    """Its type, as ext4."""
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True, check=False)
    kind = done.stdout.strip()
    return "ext4" if kind == "ext2/ext3" else kind


_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def hold_signals() -> None:
    """From here on nothing interrupts us, until `let_signals`: what is mounted is being unmounted."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)


def let_signals() -> None:
    """See `hold_signals`."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


@contextmanager
def signals_held() -> Iterator[None]:
    """For the time of a fork: what a signal's handler raises is printed and dropped if it falls into the functions that
    Python calls then (os.register_at_fork), and we would go on as if nobody had asked for an end."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def end_in_order() -> None:
    """Let a request to end unmount everything, as Ctrl-C does."""

    def end(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, end)
    signal.signal(signal.SIGHUP, end)
