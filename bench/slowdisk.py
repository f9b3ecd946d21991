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

from fused.fs import protocol, session
from fused.fs.answers import Answer, Answers
from fused.fs.changes_protocol import NullChangeSink
from fused.fs.filesystem import FileSystem
from fused.fs.protocol import Opcode

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.fs.protocol import Head


class SlowAnswers(Answers):
    """The answers of ipfsfs with delays."""

    rate = 1.0
    sync_seconds = 0.0

    def __init__(self, fs: FileSystem, forget_name: Callable[[int, bytes], None]) -> None:
        super().__init__(fs, forget_name)
        self._handles = fs.handles
        self._disk = trio.Lock()
        self.by_opcode[Opcode.WRITE] = Answer("write", self._slow_write, waits=True)
        self.by_opcode[Opcode.FSYNC] = Answer("fsync", self._slow_fsync, waits=True)

    async def _take(self, seconds: float) -> None:
        async with self._disk:
            await trio.sleep(seconds)

    async def _slow_write(self, _head: Head, body: memoryview) -> bytes:
        fh, offset, size, *_ = protocol.WRITE.unpack_from(body)
        await self.waiting.wait_for(lambda: self._take(size / self.rate))
        start = protocol.WRITE.size
        return protocol.SIZE.pack(os.pwrite(self._handles.file(fh).fd, body[start : start + size], offset), 0)

    async def _slow_fsync(self, _head: Head, _body: memoryview) -> bytes:
        await self.waiting.wait_for(lambda: self._take(self.sync_seconds))
        return b""


def main() -> None:
    directory, mountpoint, rate, sync_seconds = sys.argv[1:]
    SlowAnswers.rate, SlowAnswers.sync_seconds = float(rate), float(sync_seconds)
    setattr(session, "Answers", SlowAnswers)  # noqa: B010 - `serve` makes them itself
    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fs = FileSystem(root_fd, NullChangeSink(), private=True, write_through=True, read_only=False)
    options = session.MountOptions(mountpoint, "slowdisk", read_only=False, allow_other=False, write_through=True)
    trio.run(session.serve, fs, options, lambda: print("ready", flush=True))


if __name__ == "__main__":
    main()
