"""How many of its own writes the kernel may have queued before a request of a program.

What programs wrote the kernel writes out in requests of 1 MiB. Two lengths decide how long others wait for these:

- **Requests under way** (`max_background` of the mount, 12): requests are taken up in order, so a stat that comes then
  waits for up to 12 MiB to be written.
- **Dirty pages** (`max_bytes` of the mount's bdi): what is over that number of requests waits in the kernel's own
  queue, in order as well, and it may be as much as is dirty, one percent of the memory. The first kilobyte of a new
  file is written out when the file is closed, behind all that.

While large writes come in, both are short; one request at a time is enough to keep us busy. Where the disk holds writes
up, each is made in a thread and may take long, and others must not wait behind it in the kernel: then the number of
requests is what it was, and still fewer pages may be dirty. At other times all is as before, since reading ahead counts
as well.

The one is set through fusectl, by the mount's owner (Linux Documentation/filesystems/fuse.rst), the other through
sysfs, by root (Documentation/ABI/testing/sysfs-class-bdi; Linux 6.2). systemd mounts both. What can't be set stays as
it is.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass

import trio

from fused.fs import mounts

log = logging.getLogger(__name__)

REQUESTS_WHILE_WRITING = 1
"""Writing 1 GiB takes as long with one request at a time as with two: the kernel fills the next one meanwhile."""

DIRTY_BYTES = 32 << 20
"""Dirty pages while large writes come in. Writing 512 MiB to ext4 was as fast with 32 MiB as without a limit (1,050 MiB
a second), 0.8 times as fast with 16 MiB, and 0.5 times with 8. A new file of 1 KiB took 25 ms meanwhile (99th
percentile), without a limit 370, and with 8 MiB 13."""

DIRTY_BYTES_WHILE_SLOW = 2 << 20
"""The same while the disk holds writes up: then it is the disk that sets the speed. With one request at a time a new
file of 1 KiB took 560 ms (99th percentile) beside a copy to a disk of 40 MB a second, with the usual number 78."""

QUIET_SECONDS = 1.0
"""So long after the last large write both are again what they were."""

_CONNECTIONS = "/sys/fs/fuse/connections"
_BDI = "/sys/class/bdi"


@dataclass(frozen=True, slots=True)
class Setting:
    """A file that takes a number of at most `usual`. Writing `before` to `restored_by` brings back what there was."""

    path: str
    restored_by: str
    before: bytes
    usual: int

    def set(self, number: int) -> None:
        """Set it, to no more than what it was at first. Does nothing when the mount is gone."""
        _write(self.path, b"%d\n" % min(number, self.usual))

    def restore(self) -> None:
        """Bring back what there was. Does nothing when the mount is gone."""
        _write(self.restored_by, self.before)


def _write(path: str, content: bytes) -> None:
    # Both take one write for each open file description (Linux fs/fuse/control.c, fs/kernfs/file.c).
    with contextlib.suppress(OSError), open(path, "wb", buffering=0) as stream:
        stream.write(content)


class WriteQueue:
    """Keeps the queue of one mount short while large writes come in. Trio thread only; `run` serves until cancelled."""

    def __init__(self, requests: Setting | None, dirty: Setting | None) -> None:
        self._requests = requests
        self._dirty = dirty
        self._short = trio.Event()
        self._slow = False
        self._last = 0.0

    def large_write(self, *, slow: bool) -> None:
        """One is about to be made; `slow` if the disk holds up writes, so that it is made in a thread."""
        self._last = trio.current_time()
        if self._short.is_set() and slow == self._slow:
            return
        if self._requests is not None:
            self._requests.set(self._requests.usual if slow else REQUESTS_WHILE_WRITING)
        if self._dirty is not None:
            self._dirty.set(DIRTY_BYTES_WHILE_SLOW if slow else DIRTY_BYTES)
        self._slow = slow
        self._short.set()

    async def run(self) -> None:
        """Bring back what there was each time when large writes have ended."""
        while True:
            await self._short.wait()
            while trio.current_time() < (quiet := self._last + QUIET_SECONDS):  # noqa: ASYNC110  not for each write
                await trio.sleep_until(quiet)
            for setting in (self._requests, self._dirty):
                if setting is not None:
                    setting.restore()
            self._short = trio.Event()


def write_queue_of(mountpoint: str) -> WriteQueue | None:
    """For the mount that shows there; None if nothing can be set."""
    mount = mounts.find_mount_at(mountpoint)
    if mount is None:
        return None
    major, minor = os.major(mount.device), os.minor(mount.device)
    bdi = f"{_BDI}/{major}:{minor}"
    control = f"{_CONNECTIONS}/{minor}/max_background"
    requests = _setting(control, control)
    # A percentage is what was set, and bytes are worked out from it and from the memory that there is: setting those
    # again would make it a number that no longer follows.
    dirty = _setting(f"{bdi}/max_bytes", f"{bdi}/max_ratio_fine")
    return None if requests is dirty is None else WriteQueue(requests, dirty)


def _setting(path: str, restored_by: str) -> Setting | None:
    try:
        if not (os.access(path, os.W_OK) and os.access(restored_by, os.W_OK)):
            return None
        with open(path, "rb") as number, open(restored_by, "rb") as before:
            return Setting(path, restored_by, before.read(), int(number.read()))
    except (OSError, ValueError) as exc:
        log.debug("%s stays as it is: %s", path, exc)
        return None
