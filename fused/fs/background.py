"""How many of its own writes the kernel may have queued before a request of a program.

What programs wrote the kernel writes out in requests of 1 MiB, up to 12 at a time (`max_background`), and requests are
taken up in order: a stat that comes then waits for 12 MiB to be written. While large writes come in, two at a time are
enough to keep us busy. At other times there may be as many as before, since reading ahead counts as well.

The number can be set while mounted through fusectl, by the mount's owner (Linux Documentation/filesystems/fuse.rst).
systemd mounts that; where it is not mounted, nothing is set.
"""

from __future__ import annotations

import contextlib
import logging
import os

import trio

from fused.fs import mounts

log = logging.getLogger(__name__)

WHILE_WRITING = 2
QUIET_SECONDS = 1.0
"""So long after the last large write the number is again what it was."""

_CONNECTIONS = "/sys/fs/fuse/connections"


class Background:
    """Sets the number for one mount. Trio thread only; `run` serves until cancelled."""

    def __init__(self, control: str) -> None:
        """`control` is the file `max_background` of the mount. Raises OSError."""
        self._control = control
        with open(control, "rb") as stream:
            self._usual = int(stream.read())
        self._lowered = trio.Event()
        self._last = 0.0

    def large_write(self) -> None:
        """One has just been made inline."""
        self._last = trio.current_time()
        if not self._lowered.is_set():
            self._set(min(self._usual, WHILE_WRITING))
            self._lowered.set()

    async def run(self) -> None:
        """Bring the number back each time when large writes have ended."""
        while True:
            await self._lowered.wait()
            while trio.current_time() < (quiet := self._last + QUIET_SECONDS):  # noqa: ASYNC110  not for each write
                await trio.sleep_until(quiet)
            self._set(self._usual)
            self._lowered = trio.Event()

    def _set(self, number: int) -> None:
        # It takes one write for each open file description (Linux fs/fuse/control.c).
        with contextlib.suppress(OSError), open(self._control, "wb", buffering=0) as stream:  # the mount may be gone
            stream.write(b"%d\n" % number)


def background_of(mountpoint: str) -> Background | None:
    """For the mount that shows there; None if the number can't be set."""
    mount = mounts.find_mount_at(mountpoint)
    if mount is None:
        return None
    control = f"{_CONNECTIONS}/{os.minor(mount.device)}/max_background"
    try:
        return Background(control) if os.access(control, os.W_OK) else None
    except OSError as exc:
        log.debug("the kernel's queue of writes stays as long as it is: %s", exc)
        return None
