"""The index against the store, and against the local layer.

A file whose stat is not the remembered one is *dirty*: it will be stored, and nothing is wrong. What is wrong is a memo
that would put something else into the next snapshot than what is there:

- a row whose sum does not match, or that contradicts itself;
- a row that says a content is stored, and the store does not have all of it;
- a directory's row, by which nothing in the directory has changed, beside rows of its files that say something else;
- with `content`, a clean file whose content is not the remembered one. Nothing else can find that: its row is sound.

Beside a daemon, files and rows change while we look. So what the walk finds is a suspicion, and `again` looks once
more at the directories concerned: the caller sees to it that no snapshot is under way by then. What changes is marked
as dirty before it changes (`sync/changes.py`), so whether something is dirty is asked last.
"""

from __future__ import annotations

import os
import stat as stat_
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from fused.check.findings import Finding
from fused.cid import RAW, cid_of
from fused.dag.build import file_root
from fused.dag.chunker import CHUNK, chunk_count
from fused.dag.walk import list_directory
from fused.errors import DagError, StoreError
from fused.inline import run_inline
from fused.sync.changes import ChangeLog
from fused.sync.ingest import open_for_reading
from fused.sync.visit import join, mount_id, open_dir, visit
from fused.types import FileKey, Stat, key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from fused.check.findings import Report
    from fused.check.stores import CheckedStore
    from fused.cid import CID
    from fused.dag.build import DirEntry
    from fused.index.index import DirMemo, FileMemo
    from fused.index.reading import IndexReader
    from fused.sync.excludes import Excludes
    from fused.sync.visit import Child

PHASE = "checking the index"

_DAMAGED_ROW = "the index's row of it is damaged"
_CONTRADICTS_ITSELF = "the index's row of it contradicts itself"


class Live(Protocol):
    """What a running daemon knows of changes."""

    def dirty_file(self, key: FileKey) -> bool:
        """Whether its content has changed and is not stored yet."""
        ...

    def dirty_dir(self, key: FileKey) -> bool:
        """Whether something in or below it has changed and is not in a snapshot yet."""
        ...


class NothingRuns:
    """No daemon."""

    def dirty_file(self, key: FileKey) -> bool:
        """No."""
        return False

    def dirty_dir(self, key: FileKey) -> bool:
        """No."""
        return False


@dataclass(slots=True)
class Wrong:
    """What is wrong with one row, and where in the local layer its file or directory is, once that is known."""

    what: str
    cid: CID | None = None
    matters: bool = True
    """Also if nothing in the local layer has this inode number any more."""
    paths: list[bytes] = field(default_factory=list)
    above: set[int] = field(default_factory=set)
    """The directories that hold it, and those above: their rows rest on it."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A directory on the way; `above` are the inode numbers from the root to itself."""

    fd: int
    key: FileKey
    path: bytes
    above: tuple[int, ...]


class MemoCheck:
    """One check of one index, in one thread. `files` and `dirs` are the bad rows by inode number."""

    def __init__(
        self,
        root_fd: int,
        reader: IndexReader,
        store: CheckedStore,
        excludes: Excludes,
        live: Live,
        report: Report,
        *,
        content: bool = False,
    ) -> None:
        self.files: dict[int, Wrong] = {}
        self.dirs: dict[int, Wrong] = {}
        self.suspects: set[bytes] = set()
        """Directories about which the walk has found something."""
        self.seen = self.seen_dirs = self.dirty = 0
        self._root_fd = root_fd
        self._reader = reader
        self._store = store
        self._excludes = excludes
        self._live = live
        self._report = report
        self._content = content
        self._names = ChangeLog("/nonexistent")  # one that knows of no changes: directories as they are

    def run(self) -> None:
        """Check it all. Raises IndexDamaged, StoreUnavailable, OSError if the root can't be read."""
        self._report(PHASE, 0, None, "files")
        self._rows()
        self._walk()

    def findings(self) -> list[Finding]:
        """What was found, for a person."""
        found = []
        for kind, wrongs in (("file", self.files), ("directory", self.dirs)):
            for ino, wrong in sorted(wrongs.items()):
                what = wrong.what if wrong.paths else f"{wrong.what} (a {kind} that is gone, inode {ino})"
                harmless = not wrong.paths and not wrong.matters
                found.append(Finding("index", what, wrong.cid, [], sorted(wrong.paths), harmless))
        return found

    def rows_to_drop(self) -> tuple[set[int], set[int]]:
        """Files and directories, by inode number, that have to be looked at again to be right."""
        above = {ino for wrong in (*self.files.values(), *self.dirs.values()) for ino in wrong.above}
        return set(self.files), set(self.dirs) | above

    # --- rows against the store -------------------------------------------------------------------------------

    def _rows(self) -> None:
        for batch in self._reader.all_files():
            wanted: dict[int, tuple[CID, ...]] = {}
            for ino, memo in batch:
                if memo is None:
                    self.files[ino] = Wrong(_DAMAGED_ROW)
                elif not _sound(memo):
                    self.files[ino] = Wrong(_CONTRADICTS_ITSELF, memo.cid)
                else:
                    wanted[ino] = (memo.cid, *memo.leaves)
            self._stored(wanted, self.files)
        for dirs in self._reader.all_dirs():
            wanted = {}
            for ino, dir_memo in dirs:
                if dir_memo is None:
                    self.dirs[ino] = Wrong(_DAMAGED_ROW)
                else:
                    wanted[ino] = (dir_memo.tree, dir_memo.meta)
            self._stored(wanted, self.dirs)

    def _stored(self, wanted: dict[int, tuple[CID, ...]], wrong: dict[int, Wrong]) -> None:
        stored = self._store.rows.has(list({cid for cids in wanted.values() for cid in cids}))
        for ino, cids in wanted.items():
            missing = next((cid for cid in cids if cid not in stored), None)
            if missing is not None:
                wrong[ino] = Wrong("it is remembered as stored, and not all of it is in the store", missing, False)

    # --- rows against the local layer ---------------------------------------------------------------------------

    def _walk(self) -> None:
        root_fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
        root_mount = mount_id(root_fd)
        key = key_of(os.fstat(root_fd))
        stack: list[tuple[_Place, Iterator[Child]]] = []
        try:
            place = _Place(root_fd, key, b"", (key[1],))
            stack.append((place, iter(())))
            stack[-1] = (place, iter(self._look(place)))
            while stack:
                above, subdirs = stack[-1]
                child = next(subdirs, None)
                if child is None:
                    os.close(stack.pop()[0].fd)
                    continue
                try:
                    fd = open_dir(child.name, above.fd)
                except OSError:
                    continue  # gone, or not readable: `status` names it
                place = _Place(fd, child.key, join(above.path, child.name), (*above.above, child.st.st_ino))
                stack.append((place, iter(())))
                if mount_id(fd) == root_mount:
                    stack[-1] = (place, iter(self._look(place)))
        finally:
            for place, _ in stack:
                os.close(place.fd)

    def again(self) -> None:
        """Look once more at what is suspected, and believe only what is still so."""
        suspects, self.suspects = self.suspects, set()
        seen = self.seen, self.seen_dirs, self.dirty
        self.files, self.dirs = {}, {}
        self._rows()
        for path in sorted(suspects):
            fd = os.open(b".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._root_fd)
            above = [os.fstat(fd).st_ino]
            try:
                for name in filter(None, path.split(b"/")):
                    below = open_dir(name, fd)
                    os.close(fd)
                    fd = below
                    above.append(os.fstat(fd).st_ino)
                self._look(_Place(fd, key_of(os.fstat(fd)), path, tuple(above)))
            except FileNotFoundError:
                continue
            finally:
                os.close(fd)
        self.seen, self.seen_dirs, self.dirty = seen

    def _look(self, place: _Place) -> list[Child]:
        """Check one directory and the files in it; returns its subdirectories."""
        try:
            st = os.fstat(place.fd)
            seen = visit(place.fd, place.key, place.path, self._names, self._excludes)
        except OSError:
            return []
        self.seen_dirs += 1
        files = [child for child in seen.children if stat_.S_ISREG(child.st.st_mode)]
        subdirs = [child for child in seen.children if stat_.S_ISDIR(child.st.st_mode)]
        memos = self._reader.files(child.st.st_ino for child in files)
        clean: dict[bytes, CID] = {}
        for child in files:
            self.seen += 1
            path = join(place.path, child.name)
            memo = memos.get(child.st.st_ino)
            if memo is None or memo.racy or memo.stat != Stat.of(child.st):
                self.dirty += 1
            elif child.st.st_ino not in self.files:
                clean[child.name] = memo.cid
                if self._content:
                    self._compare_content(place, child, memo)
            self._at(self.files, child.st.st_ino, path, place)
        self._report(PHASE, self.seen, None, "files")
        dir_memos = self._reader.dirs([st.st_ino, *(child.st.st_ino for child in subdirs)])
        memo_here = dir_memos.get(st.st_ino)
        if memo_here is not None and _holds(memo_here, st) and st.st_ino not in self.dirs:
            for child in subdirs:
                below = dir_memos.get(child.st.st_ino)
                if below is not None and _holds(below, child.st) and child.st.st_ino not in self.dirs:
                    clean[child.name] = below.tree
            self._compare_listing(place, memo_here, seen.children, {c.name for c in seen.mountpoints}, clean)
        self._at(self.dirs, st.st_ino, place.path, place)
        return subdirs

    def _at(self, wrongs: dict[int, Wrong], ino: int, path: bytes, place: _Place) -> None:
        wrong = wrongs.get(ino)
        if wrong is not None:
            wrong.paths.append(path)
            wrong.above.update(place.above)
            self.suspects.add(place.path)

    def _compare_listing(
        self,
        place: _Place,
        memo: DirMemo,
        children: Iterable[Child],
        mountpoints: set[bytes],
        clean: dict[bytes, CID],
    ) -> None:
        """The directory that the index remembers, and which holds by its stat, against what is in it."""
        if self._reader.excludes() != self._excludes.digest:
            return  # other patterns: every directory will be looked at again
        try:
            entries = {entry.name: entry for entry in run_inline(self._entries(memo.tree))}
        except (StoreError, DagError):
            return  # a damaged block, which is named as such
        kinds = {child.name: stat_.S_IFMT(child.st.st_mode) for child in children}
        names = {name for name, kind in kinds.items() if kind in (stat_.S_IFREG, stat_.S_IFDIR, stat_.S_IFLNK)}
        differs = bool(names ^ (entries.keys() - mountpoints))
        differs = differs or any(
            entries[name].cid != cid and not _is_mounted(place.fd, name) for name, cid in clean.items()
        )
        if differs and not self._live.dirty_dir(place.key):
            what = "the index takes it for stored as it is, and what it remembers has another content"
            self.dirs[memo.ino] = Wrong(what, memo.tree)

    async def _entries(self, tree: CID) -> list[DirEntry]:
        async def get(cid: CID) -> bytes:
            return self._store.rows.get(cid)

        return [entry async for entry in list_directory(get, tree)]

    def _compare_content(self, place: _Place, child: Child, memo: FileMemo) -> None:
        try:
            cid = content_cid(child.name, place.fd, memo.stat, lambda: self._report(PHASE, self.seen, None, "files"))
        except OSError:
            return
        if cid is not None and cid != memo.cid and not self._live.dirty_file(child.key):
            self.files[child.st.st_ino] = Wrong("its content is not the one that the index remembers for it", memo.cid)


def content_cid(name: bytes, dir_fd: int, stat: Stat, step: Callable[[], None]) -> CID | None:
    """The CID of a file's content, or None if its stat is not, or no longer, `stat`. Raises OSError.

    `step` is called for each chunk and may raise.
    """
    fd = open_for_reading(name, dir_fd)
    try:
        if Stat.of(os.fstat(fd)) != stat:
            return None
        leaves = []
        for at in range(0, max(stat.size, 1), CHUNK):
            leaves.append(cid_of(RAW, os.pread(fd, CHUNK, at)))
            step()
        if Stat.of(os.fstat(fd)) != stat:
            return None
        return leaves[0] if len(leaves) == 1 else file_root(leaves, stat.size)[0]
    finally:
        os.close(fd)


def _is_mounted(dir_fd: int, name: bytes) -> bool:
    """Whether something is mounted on `name`, also of the same file system: it is stored as empty then."""
    try:
        fd = open_dir(name, dir_fd)
    except OSError:  # a file, mostly
        return False
    try:
        return mount_id(fd) != mount_id(dir_fd)
    finally:
        os.close(fd)


def _sound(memo: FileMemo) -> bool:
    """Whether size, leaves and root of a file belong together."""
    count = chunk_count(memo.stat.size)
    if count == 1:
        return not memo.leaves
    return len(memo.leaves) == count and file_root(memo.leaves, memo.stat.size)[0] == memo.cid


def _holds(memo: DirMemo, st: os.stat_result) -> bool:
    return not memo.racy and (memo.mtime_ns, memo.ctime_ns) == (st.st_mtime_ns, st.st_ctime_ns)
