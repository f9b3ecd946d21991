"""A slow disk for measurements: `python bench/slowdisk.py DIRECTORY MOUNTPOINT RATE SYNC_SECONDS`.

Mounts DIRECTORY at MOUNTPOINT through FUSE, without any cache for what is written. A write takes its share of a
second at RATE bytes a second, one after the other as on one disk, and a sync takes SYNC_SECONDS; all else goes at
full speed. So a program that waits for a write or a sync here waits as it would for a busy disk, and it can be told
from one that waits for something else. Ends when it is unmounted.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import trio

from fused.fs import session
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.fs.operations import Handlers
from fused.fs.replies import waiting_handler

if TYPE_CHECKING:
    from collections.abc import Callable


class SlowHandlers(Handlers):
    """The handlers of ipfsfs with delays."""

    rate = 1.0
    sync_seconds = 0.0

    def __init__(self, fs: FileSystem, on_init: Callable[[], None]) -> None:
        super().__init__(fs, on_init)
        self._waiting = fs.waiting
        self._disk = trio.Lock()

    async def _take(self, seconds: float) -> None:
        async with self._disk:
            await trio.sleep(seconds)

    @waiting_handler
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self._waiting.wait_for(lambda: self._take(len(buf) / self.rate))
        fd = self._files._handles.file(fh).fd
        return os.pwrite(fd, buf, off)

    @waiting_handler
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._waiting.wait_for(lambda: self._take(self.sync_seconds))


def main() -> None:
    directory, mountpoint, rate, sync_seconds = sys.argv[1:]
    SlowHandlers.rate, SlowHandlers.sync_seconds = float(rate), float(sync_seconds)
    setattr(session, "Handlers", SlowHandlers)  # noqa: B010 - `serve` makes the handlers itself
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fs = FileSystem(root_fd, NullChangeSink(), private=True, write_through=True, read_only=False)
    options = session.MountOptions(mountpoint, "slowdisk", read_only=False, allow_other=False, write_through=True)
    trio.run(session.serve, fs, options, lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
