"""Write a stored tree, or parts of it, into a directory.

First everything is looked at (`plan.py`), then, if nothing stands against it, everything is written
(`target.py`). Fetching and writing overlap: one task reads the tree and the contents of small files in
batches, another writes, large files streamed. Both are bounded, whatever the size of the tree.

A damaged or missing block costs the files it is part of and no other; the rest is restored and the failures are
named. What an error ends for good (disk full, store gone) leaves complete entries and no partial ones.
"""

from __future__ import annotations

import errno
import os
from collections import Counter
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import trio

from fused.cid import RAW, codec_of
from fused.dag import walk as dag_walk
from fused.errors import DagError, RestoreFailed, StoreError, StoreUnavailable
from fused.view import content
from fused.view.directory import shown
from fused.view.holes import DataRanges
from fused.view.plan import Entry, Finding, Plan, Planner, Situation, selected
from fused.view.target import NOT_TRUSTED, OWNER_NOT_SET, XATTR_NOT_SET, Key, NewFile, Skipped, Target
from fused.view.tasks import single_error

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.cid import CID
    from fused.dag.meta import Attrs
    from fused.view.directory import Blocks, Names, Node

    Progress = Callable[[str, int, int | None, str], None]
    """(what is done, how much, of how much, unit "files" or "bytes")"""

_BATCH_ENTRIES = 128
_BATCH_BYTES = 4 << 20
"""Small files fetched in one go and written in one go. Up to three batches are in memory."""

_SMALL_BYTES = 1 << 20
"""Files of one leaf of at most this size go in batches, larger ones are streamed."""

_FATAL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ENOTCONN, errno.EMFILE, errno.ENFILE})
"""Errors that would meet the next entry too."""


@dataclass(slots=True)
class Report:
    """What was done. `restored` counts by kind; "hardlink" are further names of a restored file."""

    restored: Counter[str] = field(default_factory=Counter)
    bytes_written: int = 0
    unchanged: int = 0
    skipped: list[Finding] = field(default_factory=list)
    failed: list[Finding] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What was not restored about many entries at once, in sentences."""


class _Work(NamedTuple):
    """An entry on its way to the writer. `content`: of a small file, its bytes; of a symlink, its text."""

    entry: Entry
    situation: Situation
    content: bytes | None


class Restore:
    """One restore of `root` into the directory `destination`, which need not exist. Use as a context manager."""

    def __init__(
        self,
        blocks: Blocks,
        root: Node,
        destination: str,
        paths: Sequence[Names] = (),
        *,
        overwrite: bool = False,
        trusted: bool = True,
        on_progress: Progress = lambda phase, done, total, unit: None,
    ) -> None:
        """`paths` are the parts to restore; none means all.

        Unless `trusted`, no set-ID bits, devices, owners and privileged xattrs: they are whoever made the tree's.
        """
        self._trusted = trusted
        self._blocks = blocks
        self._root = root
        self._destination = destination
        self._paths = paths
        self._overwrite = overwrite
        self._on_progress = on_progress
        self._target: Target | None = None
        self._report = Report()
        self._finish: list[tuple[Names, Attrs | None, Key]] = []

    def __enter__(self) -> Restore:
        try:
            self._target = Target(self._destination, trusted=self._trusted)
        except FileNotFoundError:
            self._target = None
        return self

    def __exit__(self, *_: object) -> None:
        if self._target is not None:
            self._target.close()

    async def plan(self) -> Plan:
        """Look at everything, write nothing."""
        planner = Planner(self._blocks, self._target, whole=not self._paths, room=_room(self._destination))
        seen = 0

        def count() -> None:
            nonlocal seen
            seen += 1
            self._on_progress("comparing", seen, None, "files")

        async with aclosing(selected(self._blocks, self._root, self._paths)) as entries:
            return await planner.run(entries, count)

    async def run(self, plan: Plan, *, sync_everything: bool = False) -> Report:
        """Write what `plan` found missing, and with `overwrite` what differs; synced to disk on return.

        Nothing may be blocked in the plan, and nothing in conflict unless `overwrite`. Raises
        RestoreFailed, StoreUnavailable, or what reading the tree's directories raises. After any error or
        cancellation every file under its final name is whole.
        """
        if self._target is None:
            os.makedirs(self._destination, exist_ok=True)
            self._target = Target(self._destination, trusted=self._trusted)
        target = self._target
        self._report.skipped += plan.skipped
        send, receive = trio.open_memory_channel[list[_Work]](1)
        with single_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write_all, receive, plan, target)
                async with send:
                    await self._read_all(send, plan)
        await trio.to_thread.run_sync(self._finish_directories, target)
        self._on_progress("syncing to disk", 0, None, "files")
        await trio.to_thread.run_sync(lambda: target.sync(everything=sync_everything))
        self._report.notes += _notes(target)
        self._report.skipped.sort()
        self._report.failed.sort()
        return self._report

    # -- reading ---------------------------------------------------------------------------------

    async def _read_all(self, send: trio.MemorySendChannel[list[_Work]], plan: Plan) -> None:
        batch: list[_Work] = []
        pending_bytes = 0
        async with aclosing(selected(self._blocks, self._root, self._paths)) as entries:
            async for entry in entries:
                situation = plan.situation(entry.path)
                if situation is Situation.SAME and entry.node.kind != "dir":
                    self._report.unchanged += 1
                    continue
                if entry.node.kind == "file" and entry.node.cid is None:
                    continue
                batch.append(_Work(entry, situation, None))
                pending_bytes += entry.node.size or 0 if _is_small(entry) else 0
                if len(batch) == _BATCH_ENTRIES or pending_bytes >= _BATCH_BYTES:
                    await send.send(await self._with_contents(batch, plan))
                    batch, pending_bytes = [], 0
        await send.send(await self._with_contents(batch, plan))

    async def _with_contents(self, batch: list[_Work], plan: Plan) -> list[_Work]:
        """The batch with the contents of its small files and symlinks; without the entries whose blocks are damaged."""
        wanted = {
            work.entry.node.cid: None
            for work in batch
            if work.entry.node.cid is not None and _is_small(work.entry) and _needs_content(work, plan)
        }
        blocks: Mapping[CID, bytes] = {}
        try:
            blocks = await self._blocks.get_many(list(wanted))
        except StoreUnavailable:
            raise
        except StoreError:
            pass  # one of them is damaged: below, each is asked for alone
        loaded = []
        for work in batch:
            cid = work.entry.node.cid
            try:
                if cid is not None and work.entry.node.kind == "link" and _needs_content(work, plan):
                    work = work._replace(content=await dag_walk.read_link(self._blocks.get, cid))
                elif cid in wanted:
                    data = blocks[cid] if cid in blocks else await self._blocks.get(cid)
                    _check_size(work.entry.node, len(data))
                    work = work._replace(content=data)
            except StoreUnavailable:
                raise
            except (StoreError, DagError) as e:
                self._report.failed.append(Finding(work.entry.path, str(e)))
            else:
                loaded.append(work)
        return loaded

    # -- writing ---------------------------------------------------------------------------------

    async def _write_all(self, receive: trio.MemoryReceiveChannel[list[_Work]], plan: Plan, target: Target) -> None:
        async for batch in receive:
            start = 0
            for at, work in enumerate(batch):
                if work.content is None and work.entry.node.kind == "file" and _needs_content(work, plan):
                    await trio.to_thread.run_sync(self._write_batch, batch[start:at], plan, target)
                    await self._stream(work, plan, target)
                    start = at + 1
            await trio.to_thread.run_sync(self._write_batch, batch[start:], plan, target)
            self._on_progress("restoring", self._report.bytes_written, plan.bytes_to_write, "bytes")

    def _write_batch(self, batch: list[_Work], plan: Plan, target: Target) -> None:
        for work in batch:
            try:
                self._write(work, plan, target)
            except (OSError, Skipped, DagError) as e:
                self._failed(work.entry, e)

    def _write(self, work: _Work, plan: Plan, target: Target) -> None:
        (path, node, ancestor), situation = work.entry, work.situation
        replace = self._overwrite and situation is not Situation.NEW
        attrs = node.attrs
        if node.kind == "dir":
            new = path != () and target.make_directory(path, replace=replace)
            adopted = path == () and plan.adopt_root
            if new or adopted or (self._overwrite and not ancestor and attrs is not None):
                self._finish.append((path, attrs, target.key(path)))
            self._report.restored["dir"] += new
            return
        if situation is Situation.ATTRIBUTES:
            if attrs is not None:
                target.set_attributes(path, attrs, plan.keys[path])
        elif (leader := _leader(work, plan)) is not None:
            target.make_hard_link(leader, path, replace=replace)
            self._report.restored["hardlink"] += 1
            return
        elif node.kind == "file":
            file = target.new_file(path)
            try:
                file.write(work.content or b"")
            except BaseException:
                file.discard()
                raise
            file.finish(attrs, replace=replace)
            self._report.bytes_written += len(work.content or b"")
        elif node.kind == "link":
            target.make_symlink(path, work.content or b"", attrs, replace=replace)
        elif attrs is not None:
            target.make_special(path, attrs, replace=replace)
        self._report.restored[node.kind or "file"] += 1

    async def _stream(self, work: _Work, plan: Plan, target: Target) -> None:
        """Write one large file. After an error in its blocks nothing of it is left; other files are not concerned."""
        path, node, _ = work.entry
        assert node.cid is not None
        file: NewFile | None = None
        try:
            file = await trio.to_thread.run_sync(target.new_file, path)
            size = await content.size_of(self._blocks, node.cid)
            _check_size(node, size)
            await trio.to_thread.run_sync(file.expect, size)
            at = 0
            async for data in DataRanges(self._blocks.get, node.cid, size):
                self._skip(file, data.start - at, plan)
                at = data.stop
                async with content.open_stream(self._blocks, node.cid, data.start, len(data)) as chunks:
                    async for chunk in chunks:
                        await trio.to_thread.run_sync(file.write, chunk)
                        self._report.bytes_written += len(chunk)
                        self._on_progress("restoring", self._report.bytes_written, plan.bytes_to_write, "bytes")
            self._skip(file, size - at, plan)
            replace = self._overwrite and work.situation is not Situation.NEW
            finished, file = file, None  # from here on it cleans up after itself
            await trio.to_thread.run_sync(lambda: finished.finish(node.attrs, replace=replace))
            self._report.restored["file"] += 1
        except StoreUnavailable:
            raise
        except (OSError, StoreError, DagError) as e:
            self._failed(work.entry, e)
        finally:
            if file is not None:
                file.discard()

    def _skip(self, file: NewFile, size: int, plan: Plan) -> None:
        file.skip(size)
        self._report.bytes_written += size
        self._on_progress("restoring", self._report.bytes_written, plan.bytes_to_write, "bytes")

    def _failed(self, entry: Entry, error: Exception) -> None:
        """Note that one entry could not be restored; raise if no other could be either."""
        if isinstance(error, Skipped):
            self._report.skipped.append(Finding(entry.path, str(error)))
        elif isinstance(error, FileExistsError):
            self._report.failed.append(Finding(entry.path, "appeared while restoring and was left as it is"))
        elif isinstance(error, OSError):
            why = error.strerror or str(error)
            if error.errno in _FATAL:
                raise RestoreFailed(
                    f"restoring {shown(entry.path)}: {why}; what was restored before is whole"
                ) from error
            self._report.failed.append(Finding(entry.path, why))
        else:
            self._report.failed.append(Finding(entry.path, str(error)))

    def _finish_directories(self, target: Target) -> None:
        """Set the directories' attributes, the innermost first: everything made in one moves its mtime."""
        for path, attrs, key in reversed(self._finish):
            try:
                if attrs is not None:
                    target.set_attributes(path, attrs, key)
                else:
                    target.set_default_mode(path, key)
            except OSError as e:
                self._report.failed.append(Finding(path, e.strerror or str(e)))


def _is_small(entry: Entry) -> bool:
    node = entry.node
    return (
        node.kind == "file" and node.cid is not None and codec_of(node.cid) == RAW and (node.size or 0) <= _SMALL_BYTES
    )


def _check_size(node: Node, size: int) -> None:
    """Refuse content that is not as long as the attributes beside it say. A plain tree's claim is a mere hint."""
    if node.attrs is not None and size != node.size:
        raise DagError(f"a file of {size} bytes where the snapshot's metadata says {node.size}", node.cid)


def _room(destination: str) -> int | None:
    """How many files can be made in `destination`, which need not exist; None if the file system has no limit."""
    place = os.path.abspath(destination)
    while not os.path.exists(place):
        place = os.path.dirname(place)
    found = os.statvfs(place)
    return found.f_favail if found.f_files else None


def _leader(work: _Work, plan: Plan) -> Names | None:
    """The name that this one becomes a hard link to, None if it is to be made itself."""
    attrs = work.entry.node.attrs
    if attrs is None or attrs.hardlink is None:
        return None
    leader = plan.leaders.get(attrs.hardlink)
    return None if leader == work.entry.path else leader


def _needs_content(work: _Work, plan: Plan) -> bool:
    return work.situation in (Situation.NEW, Situation.DIFFERENT) and _leader(work, plan) is None


def _notes(target: Target) -> list[str]:
    notes = []
    if count := target.notes[OWNER_NOT_SET]:
        notes.append(f"{count} entries belong to you instead of their owners: only root can give files away")
    if count := target.notes[XATTR_NOT_SET]:
        notes.append(f"{count} extended attributes were not set: this file system or your rights don't allow it")
    if count := target.notes[NOT_TRUSTED]:
        notes.append(
            f"{count} owners, set-ID bits or privileged attributes were left out: none of your mounts has taken this "
            "snapshot; --trust restores them"
        )
    return notes
