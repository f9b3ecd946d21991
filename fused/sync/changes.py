"""What has changed in the local layer, and what it was before: the meeting point of `fs` and `sync`.

Not for: finding changes made while nothing was mounted (`scan.py` does that, by stat), and not for
deciding what to store.

How it works
------------
The file-system layer tells us of every change *before* it makes it, on the trio thread, with no
`await` between the call and the system call. So on that thread a change is atomic: `freeze`, which
runs there too, falls before or after it, never into it. A change of content that may take long is
announced there as well and then made in a thread; `settled` sees to it that no instant falls into one
(`inflight.py`).

`freeze` marks an instant T. All that was dirty at T moves into the *frozen* generation and a new,
empty one begins. From then until `thaw`, a change to something frozen that has not been captured
yet first saves what is about to be lost: the chunks of a file that a write will overwrite, the
listing of a directory that will change, a descriptor of a file or directory whose name goes. Chunks are saved by the
thread that makes the change, right before it: `before_write` and `before_truncate` return the
function that does so. The snapshot thread reads at leisure and sees the tree as it was at T. Copy-on-write, like a
block-level snapshot. It costs nothing while nobody writes to what is being captured, and it never
makes a writer wait for the snapshot. This is why a live database comes out whole: its main file
and its journal are seen at the same instant.

Races, and why they are none
----------------------------
1. Snapshot thread reads chunk i while a write to i begins. The writer saves i (from the old
   content) before it writes. The reader looks for a saved copy *after* its own read: if there is
   one, the read may be torn and the copy is the truth; if there is none, no write to i had begun
   when the read ended. Two writes to i at once: one saves it, the other waits for that before it
   writes. (`FileCapture.read`, `FileCapture.save`)
2. Writer between `before_write` and `pwrite` while the snapshot thread begins with the file. The
   file's instant was fixed on the trio thread (`freeze` or `adopt`), so the writer either finished
   before it or sees the file frozen and saves. Hence `adopt` must run on the trio thread, and both
   within `settled`.
3. Directory listed by the snapshot thread while a name changes: as with chunks. Whoever is about to
   change it saves a listing first; the snapshot thread looks for that after its own. (`listing`)

Threads: methods marked "trio thread" only there. `_lock` protects everything else; the snapshot thread
holds it for microseconds, never during input or output, so that no request waits for a disk because of it.
"""

from __future__ import annotations

import os
import stat as stat_
import threading
from collections.abc import Callable, Collection, Iterable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from fused.dag.chunker import CHUNK
from fused.local.listing import RawListing
from fused.sync.frozen import ChangedTooFast, DirtyFile, FileCapture, Frozen
from fused.sync.inflight import InFlight
from fused.types import FileKey, Stat

if TYPE_CHECKING:
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

Save = Callable[[], None]
"""Saves what a change is about to destroy. To be called right before the change, by whoever makes it, in any thread."""

Dirs = Callable[[], Iterable[FileKey]]
"""The keys of all directories that contain something by its known names, nearest first."""


class DirtyCounts(NamedTuple):
    """Files not stored as they are now, the bytes in their changed chunks; of these the files that are `new`.

    `gone`: files that were removed. Where nothing is known of what changed in a file, its bytes are not counted.
    """

    files: int
    bytes: int
    new: int
    new_bytes: int
    gone: int


class ChangeLog:
    """See the module. One per daemon; `spill_directory` must not lie under the mount."""

    def __init__(self, spill_directory: str) -> None:
        self._spill_directory = spill_directory
        self._lock = threading.Lock()
        self._files: dict[FileKey, DirtyFile] = {}
        self._dirs: set[FileKey] = set()
        self._frozen: Frozen | None = None
        self._carries: dict[FileKey, tuple[Stat, Stat]] = {}
        self._gone: list[FileKey] = []
        self._linked: set[FileKey] = set()
        self._in_flight = InFlight()
        self.serial = 0
        """Grows with every change; two equal readings mean that nothing changed in between."""
        self.on_first_change: Callable[[], None] | None = None
        """Called on the trio thread when a clean tree becomes dirty."""

    # --- told by fs: trio thread, before the change -----------------------------------------------------------

    def held(self, key: FileKey) -> bool:
        """Whether `wait_to_begin` would wait."""
        return self._in_flight.held(key)

    async def wait_to_begin(self, key: FileKey) -> None:
        """Wait while an instant of the file is being fixed: before a change that a thread may have to make."""
        await self._in_flight.wait_to_begin(key)

    def change(self, key: FileKey) -> AbstractContextManager[None]:
        """For the time that a thread makes a change of the file's content that was just announced."""
        return self._in_flight.change(key)

    def before_write(self, key: FileKey, fd: int, offset: int, length: int, dirs: Dirs) -> Save | None:
        """Bytes offset…offset+length of the file open at `fd` will be overwritten or appended."""
        with self._lock:
            save = self._save(key, fd, offset, offset + length)
            dirty = self._mark(key, fd, dirs)
            dirty.end = max(dirty.end, offset + length)
            if dirty.chunks is not None and length:
                first, last = offset // CHUNK, (offset + length - 1) // CHUNK
                if first == last:
                    dirty.chunks.add(first)
                else:
                    dirty.chunks.update(range(first, last + 1))
        return save

    def before_truncate(self, key: FileKey, fd: int, size: int, dirs: Dirs) -> Save | None:
        """The file open at `fd` will be cut or extended to `size` bytes."""
        with self._lock:
            save = self._save(key, fd, size, 1 << 63)
            dirty = self._mark(key, fd, dirs)
            dirty.cut = size if dirty.cut is None else min(dirty.cut, size)
        return save

    def _save(self, key: FileKey, fd: int, start: int, stop: int) -> Save | None:
        """What saves bytes start…stop, if that is needed."""
        capture = self._frozen.capture(key, fd) if self._frozen is not None else None
        if capture is None or not capture.wants(start, stop):
            return None
        return partial(capture.save, fd, start, stop)

    def before_add(self, dir_key: FileKey, dir_fd: int, dirs: Dirs) -> None:
        """A name will appear in the directory open at `dir_fd`."""
        with self._lock:
            if self._frozen is not None and self._frozen.covers(dir_key):
                self._frozen.save_listing(dir_key, dir_fd)
            self._mark_dirs(dirs)

    def before_remove(self, dir_key: FileKey, dir_fd: int, name: bytes, dirs: Dirs) -> None:
        """`name` will vanish from the directory open at `dir_fd`, or will stand for something else."""
        with self._lock:
            if self._frozen is not None and self._frozen.covers(dir_key):
                self._frozen.save_listing(dir_key, dir_fd)
                self._frozen.keep(dir_fd, name)
            self._mark_dirs(dirs)

    def created(self, key: FileKey) -> None:
        """A regular file was made. Its inode number may have belonged to another file until just now."""
        with self._lock:
            if self._frozen is not None:
                self._frozen.files.pop(key, None)
                self._frozen.captures.pop(key, None)
            self._files[key] = DirtyFile(fresh=True)
            self._touch()

    def gone(self, key: FileKey) -> None:
        """The last name of the file went."""
        with self._lock:
            if self._frozen is None:
                self._files.pop(key, None)
            # Else it may be in the tree at T, and whether it was written to since is still asked.
            self._gone.append(key)
            self._touch()

    def metadata(self, key: FileKey, before: os.stat_result, after: os.stat_result, dirs: Dirs) -> None:
        """The stat of a file changed and its content did not: what is known of the content stays true."""
        with self._lock:
            self._mark_dirs(dirs)
            if max(before.st_nlink, after.st_nlink) > 1 and not stat_.S_ISDIR(after.st_mode):
                self._linked.add(key)
            if stat_.S_ISDIR(after.st_mode):
                self._dirs.add(key)
            elif self._frozen is None and key in self._files:
                pass  # of content that has changed since nothing is known that could stay true
            elif stat_.S_ISREG(after.st_mode) and key not in self._in_flight:
                # While a thread writes to the file, the two stats may differ by that as well.
                was, now = Stat.of(before), Stat.of(after)
                earlier = self._carries.get(key)
                self._carries[key] = (earlier[0] if earlier is not None and earlier[1] == was else was, now)

    def _mark(self, key: FileKey, fd: int, dirs: Dirs) -> DirtyFile:
        dirty = self._files.get(key)
        if dirty is None:
            dirty = self._files[key] = DirtyFile(base=Stat.of(os.fstat(fd)))
            self._mark_dirs(dirs)
        else:
            self.serial += 1
        return dirty

    def _mark_dirs(self, dirs: Dirs) -> None:
        self._dirs.update(dirs())
        self._touch()

    def _touch(self) -> None:
        self.serial += 1
        if self.on_first_change is not None:
            self.on_first_change()

    # --- used by sync ---------------------------------------------------------------------------------------

    def freeze(self) -> None:
        """Fix the instant T: all that is dirty now will be captured as it is now. Trio thread, within `settled`.

        `thaw` ends it. Files that were adopted and not captured are dirty again first.
        """
        with self._lock:
            self._thaw(stored=False)
            frozen = Frozen(self._spill_directory)
            frozen.files, self._files = self._files, {}
            frozen.dirs, self._dirs = self._dirs, set()
            frozen.linked, self._linked = self._linked, set()
            frozen.tree = True
            self._frozen = frozen

    def settled(self, keys: Collection[FileKey] | None = None) -> AbstractAsyncContextManager[None]:
        """For a `with` block without `await`: no thread is changing the content of these files (None: of any)."""
        return self._in_flight.settled(keys)

    async def adopt(self, keys: Collection[FileKey]) -> None:
        """Fix the instant of single files, outside or inside of a generation. Trio thread."""
        async with self.settled(keys):
            self._adopt(keys)

    def _adopt(self, keys: Iterable[FileKey]) -> None:
        with self._lock:
            if self._frozen is None:
                self._frozen = Frozen(self._spill_directory)
            for key in keys:
                if key not in self._frozen.files:
                    self._frozen.files[key] = self._take(key)

    def _take(self, key: FileKey) -> DirtyFile:
        return self._files.pop(key) if key in self._files else DirtyFile(chunks=None)

    def capture(self, key: FileKey, fd: int) -> FileCapture:
        """Begin to capture a frozen file that is open at `fd`. Raises ChangedTooFast if it is not frozen, OSError."""
        with self._lock:
            capture = self._frozen.capture(key, fd) if self._frozen is not None else None
            if capture is None:
                raise ChangedTooFast
            return capture

    def captured(self, key: FileKey, *, stored: bool) -> None:
        """End the capture of a file; if it was not `stored`, it is dirty again."""
        with self._lock:
            frozen = self._frozen
            if frozen is None:
                return
            frozen.captures.pop(key, None)
            dirty = frozen.files.pop(key, None)
            if dirty is not None and not stored:
                self._merge_back(key, dirty)

    def frozen_file(self, key: FileKey) -> bool:
        """Whether the file is to be captured as it was at its instant."""
        return self._frozen is not None and key in self._frozen.files

    def frozen_files(self) -> list[FileKey]:
        """All files still to be captured."""
        with self._lock:
            return list(self._frozen.files) if self._frozen is not None else []

    def frozen_dirs(self) -> list[FileKey]:
        """All directories in or below which something had changed at T."""
        with self._lock:
            return list(self._frozen.dirs) if self._frozen is not None else []

    def frozen_linked(self) -> list[FileKey]:
        """Files with several names whose attributes had changed at T, through names that `frozen_dir` knows of."""
        with self._lock:
            return list(self._frozen.linked) if self._frozen is not None else []

    def frozen_dir(self, key: FileKey) -> bool:
        """Whether the directory, or something below it, had changed at T."""
        return self._frozen is not None and key in self._frozen.dirs

    def freeze_also(self, dirs: Iterable[FileKey]) -> None:
        """Count directories as changed at T: another name of a changed file stands in them."""
        with self._lock:
            if self._frozen is not None:
                self._frozen.dirs.update(dirs)

    def carried(self, key: FileKey, was: Stat, now: Stat) -> bool:
        """Whether the file's stat went from `was` to `now` with the same content, as far as not yet taken."""
        return self._carries.get(key) == (was, now)

    def fresh(self, key: FileKey) -> bool:
        """Whether the file was created after T."""
        dirty = self._files.get(key)
        return dirty is not None and dirty.fresh

    def dir_changed_since(self, key: FileKey) -> bool:
        """Whether the directory, or something below it, has changed since T."""
        return key in self._dirs

    def changed_since(self, key: FileKey) -> bool:
        """Whether the file's content has changed since it was captured, or since T."""
        return key in self._files

    def listing(self, key: FileKey, fd: int) -> RawListing:
        """The directory's names at T. Raises OSError if it can't be listed."""
        listed = RawListing(fd)  # without the lock: a cold disk may take its time
        with self._lock:
            frozen = self._frozen
            if frozen is None or not frozen.covers(key):
                return listed
            # If there is one that was saved before a change, ours may be of after it. If not, no change had begun.
            return frozen.listings.setdefault(key, listed)

    def kept(self, key: FileKey) -> int | None:
        """A descriptor of what lost its name after T: read-only, ours, open until `thaw`."""
        return self._frozen.kept.get(key) if self._frozen is not None else None

    def finish_dir(self, key: FileKey) -> None:
        """The directory and all in it have been captured; its changes need not be saved any more."""
        with self._lock:
            if self._frozen is not None:
                self._frozen.done_dirs.add(key)
                self._frozen.listings.pop(key, None)

    def thaw(self, *, stored: bool) -> None:
        """End the generation. If it was not `stored`, all of it is dirty again."""
        with self._lock:
            self._thaw(stored=stored)

    def _thaw(self, *, stored: bool) -> None:
        frozen, self._frozen = self._frozen, None
        if frozen is None:
            return
        if not stored:
            # Had it been stored, files that were not visited would have no name in the tree at T.
            for key, dirty in frozen.files.items():
                self._merge_back(key, dirty)
            self._dirs |= frozen.dirs
            self._linked |= frozen.linked
        frozen.close()

    def _merge_back(self, key: FileKey, dirty: DirtyFile) -> None:
        later = self._files.get(key)
        if later is not None and not later.fresh:
            dirty.merge(later)
        elif later is not None:
            dirty = later
        self._files[key] = dirty

    def take_carries(self) -> dict[FileKey, tuple[Stat, Stat]]:
        """Stats that changed without their content: (before, after) by file, each once."""
        with self._lock:
            carries, self._carries = self._carries, {}
            return carries

    def take_gone(self) -> list[FileKey]:
        """Files that are no more, each once."""
        with self._lock:
            gone, self._gone = self._gone, []
            return gone

    def dirty(self) -> bool:
        """Whether anything has changed since the last `freeze`."""
        return bool(self._files or self._dirs)

    def dirty_files(self) -> int:
        """How many files are dirty or frozen; cheap."""
        return len(self._files) + (len(self._frozen.files) if self._frozen is not None else 0)

    def dirty_counts(self) -> DirtyCounts:
        """What is dirty or frozen."""
        with self._lock:
            every = dict(self._files)
            if self._frozen is not None:
                every.update(self._frozen.files)
            new = [d for d in every.values() if d.fresh]
            return DirtyCounts(len(every), _bytes_in(every.values()), len(new), _bytes_in(new), len(self._gone))


def _bytes_in(files: Iterable[DirtyFile]) -> int:
    """Whole chunks have to be stored, but the last one only as far as it was written."""
    return sum(min(len(d.chunks) * CHUNK, d.end) for d in files if d.chunks)
