"""Changes of contents that a thread is making just now, and how an instant is fixed all the same.

A change that is made inline, on the trio thread, is over before anything else runs there. One that may take long (a
write that the kernel holds up because too much is dirty, the cutting of a large file) is announced on the trio thread
and then made in a thread, so that other requests go on. An instant must not fall into it. Hence: whoever fixes an
instant *holds* the files that it is about. No new change of them begins, those under way end, and then the instant
is fixed, with no `await`. Nobody holds longer than the longest system call under way takes, and only changes of the
contents of held files wait for it.

Trio thread only.
"""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterator

    from fused.types import FileKey


class InFlight:
    """See the module."""

    def __init__(self) -> None:
        self._under_way: dict[FileKey, int] = {}
        self._holds: list[Collection[FileKey] | None] = []  # None: all files
        self._lot = trio.lowlevel.ParkingLot()

    def __contains__(self, key: FileKey) -> bool:
        """Whether a thread is changing the file."""
        return key in self._under_way

    def held(self, key: FileKey) -> bool:
        """Whether an instant of the file is being fixed."""
        return bool(self._holds) and any(held is None or key in held for held in self._holds)

    async def wait_to_begin(self, key: FileKey) -> None:
        """Wait while the file is held. Returns at once, without a checkpoint, if it is not."""
        while self.held(key):
            await self._lot.park()

    @contextmanager
    def change(self, key: FileKey) -> Iterator[None]:
        """For the time that a thread changes the file. No `await` since `wait_to_begin` returned."""
        self._under_way[key] = self._under_way.get(key, 0) + 1
        try:
            yield
        finally:
            self._under_way[key] -= 1
            if not self._under_way[key]:
                del self._under_way[key]
            self._lot.unpark_all()

    @asynccontextmanager
    async def settled(self, keys: Collection[FileKey] | None = None) -> AsyncIterator[None]:
        """For the time of a `with` block, which must not `await`: no change of these files (None: any) is under way."""
        self._holds.append(keys)
        try:
            while any(keys is None or key in keys for key in self._under_way):
                await self._lot.park()
            yield
        finally:
            self._holds.remove(keys)
            self._lot.unpark_all()
