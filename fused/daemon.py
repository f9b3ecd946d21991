"""One mount: wires the parts together, starts and stops them in order, and answers the control socket.

Start: state and store, the change log, the file system, then the mount. What only works behind it (`behind`) is even
imported after the mount serves, and so is the scan made.
Stop (somebody unmounted, or asked us to, or a signal): the kernel's last writes come in while it unmounts, then
the last snapshot is taken, then everything is closed. A second signal gives the last snapshot up; what it would
have stored is dirty at the next mount.

Nurseries: the one in `Daemon.run` owns the FUSE session, the control server, the engine and the signal watcher.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
from typing import TYPE_CHECKING
from urllib.parse import quote

import trio

from fused.control_server import serve_control
from fused.errors import IpfsfsError, MountError
from fused.fs import mounts
from fused.store.opening import make_node_store, make_store
from fused.sync.changes import ChangeLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from fused.behind import Behind
    from fused.config import Settings
    from fused.control import Json, Report
    from fused.control_server import Handler
    from fused.store.base import NodeStore, Store

log = logging.getLogger(__name__)

_PR_SET_TIMERSLACK = 29  # <linux/prctl.h>

SWITCH_INTERVAL = 0.0001
"""Seconds that a storing thread may hold the interpreter while a request waits for it, which it may have to do after
each of its system calls. The default, 5 ms, is a hundred times what a request takes. (`docs/performance.md`)"""

TIMER_SLACK_NS = 1000
"""How much longer a wait for a time may take; by default 50,000, half of the interval above."""

GC_THRESHOLDS = (700, 10, 1000)
"""By default a full collection comes whenever the oldest generation has grown by a quarter. With 100,000 inodes known
one takes 0.25 s, in which no request is answered. Hardly anything here needs it: inodes form no cycles."""

REPLY_SECONDS = 2
"""For the reply to `umount` to be sent before the process ends."""
LINGER_SECONDS = 5
"""For programs that have files open when a signal ends us, before they get errors."""
LAST_TRY_SECONDS = 15
"""For the last snapshot, if the store has not taken what was before: nobody who unmounts waits for a node for long."""


async def run_daemon(settings: Settings, root_fd: int, on_ready: Callable[[], None]) -> int:
    """Mount over `settings.mountpoint`, serve until unmounted, store what is left; returns the exit code.

    `root_fd` is the covered directory, opened before the mount; borrowed. `on_ready` is called once, when the
    mount serves. Raises MountError, StoreError, UsageError before that.
    """
    os.umask(0)  # the kernel has applied the caller's umask already
    sys.setswitchinterval(SWITCH_INTERVAL)
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, ctypes.c_ulong(TIMER_SLACK_NS))
    gc.set_threshold(*GC_THRESHOLDS)
    spec = settings.store_spec
    node = None if spec.kind == "embedded" else make_node_store(spec)
    store = make_store(spec) if node is None else node
    try:
        await _open_and_import(store)
        return await Daemon(settings, root_fd, store, node).run(on_ready)
    finally:
        with trio.CancelScope(shield=True):
            await store.aclose()


async def _open_and_import(store: Store) -> None:
    """Open the store, in a thread, and meanwhile import what serves requests. Raises StoreError."""
    error: Exception | None = None

    async def open_store() -> None:
        nonlocal error
        try:
            await store.open()
        except Exception as exc:  # kept out of the nursery, which would wrap it into a group
            error = exc

    async with trio.open_nursery() as nursery:
        nursery.start_soon(open_store)
        await trio.lowlevel.checkpoint()  # it begins
        try:
            import fused.fs.filesystem
            import fused.fs.session  # noqa: F401
        except ImportError as exc:  # a missing libfuse3 shows here
            error = MountError(f"the FUSE library can't be loaded: {exc}")
    if error is not None:
        raise error


def _import_behind() -> type[Behind]:
    from fused.behind import Behind

    return Behind


class Daemon:
    """One run of one mount. `node` is the store once more, if it is one with a node behind it."""

    def __init__(self, settings: Settings, root_fd: int, store: Store, node: NodeStore | None) -> None:
        self._settings = settings
        self._root_fd = root_fd
        self._store = store
        self._node = node
        from fused.fs.filesystem import FileSystem

        changes = ChangeLog(settings.state_dir)
        self._changes = changes
        self._fs = FileSystem(
            root_fd,
            changes,
            private=not settings.allow_other,
            write_through=settings.write_through,
            read_only=settings.read_only,
        )
        self._behind: Behind | None = None
        self._behind_is_there = trio.Event()
        self._serves = trio.Event()
        self._take_last = True
        self._last_scope = trio.CancelScope()
        self._finished = trio.Event()
        self._answered = trio.Event()
        self._answered.set()

    async def run(self, on_ready: Callable[[], None]) -> int:
        """See `run_daemon`."""
        from fused.fs.session import MountOptions, serve

        settings = self._settings
        state_fd = os.open(settings.state_dir, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            async with trio.open_nursery() as nursery:
                await nursery.start(self._watch_signals)
                nursery.start_soon(self._work_behind)
                await nursery.start(serve_control, state_fd, self._handlers())
                if settings.replace_stale:
                    mounts.detach_mounts_of(settings.state_dir, settings.mountpoint)
                options = MountOptions(
                    mountpoint=settings.mountpoint,
                    fsname="ipfsfs:" + quote(settings.state_dir),
                    read_only=settings.read_only,
                    allow_other=settings.allow_other,
                    write_through=settings.write_through,
                )

                def ready() -> None:
                    # What exists now stays: looking through it again and again would only delay requests. Nor is
                    # it looked through now, for garbage of a few hundred KiB.
                    gc.freeze()
                    gc.enable()
                    self._serves.set()
                    log.info("serving mountpoint=%s pid=%d", settings.mountpoint, os.getpid())
                    on_ready()

                await serve(self._fs, options, ready)
                log.info("unmounted mountpoint=%s", settings.mountpoint)
                self._serves.set()  # whoever unmounts at once is quicker than the kernel's first request
                await self._finish()
                nursery.cancel_scope.cancel()
        finally:
            os.close(state_fd)
            self._fs.close()
            if self._behind is not None:
                with trio.CancelScope(shield=True):
                    await self._behind.engine.aclose()
        return 0

    async def _work_behind(self) -> None:
        """Make what works behind the mount, once that serves; it is imported by a thread. Then store."""
        await self._serves.wait()
        behind = await trio.to_thread.run_sync(_import_behind)
        self._behind = behind(self._settings, self._root_fd, self._fs, self._changes, self._store, self._node)
        gc.freeze()
        self._behind_is_there.set()
        await self._behind.engine.run()

    async def _what_is_behind(self) -> Behind:
        await self._behind_is_there.wait()
        assert self._behind is not None
        return self._behind

    async def _finish(self) -> None:
        """The mount is gone: store what its last writes changed, and let whoever waits for that know."""
        try:
            if self._take_last and not self._settings.read_only:
                engine = (await self._what_is_behind()).engine
                if engine.waiting() is not None:
                    self._last_scope.deadline = trio.current_time() + LAST_TRY_SECONDS
                with self._last_scope:
                    await engine.sync()
                if self._last_scope.cancelled_caught:
                    log.warning("the last snapshot was given up; what changed is stored at the next mount")
        except (IpfsfsError, OSError) as exc:
            log.warning("the last snapshot failed; what changed is stored at the next mount: %s", exc)
        except Exception:
            log.exception("the last snapshot failed; what changed is stored at the next mount")
        self._finished.set()
        with trio.move_on_after(REPLY_SECONDS):
            await self._answered.wait()

    async def _watch_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        for each in (signal.SIGTERM, signal.SIGINT):
            # What holds when the receiver has gone: one that comes while the last things are closed is no death by it.
            signal.signal(each, signal.SIG_IGN)
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            task_status.started()
            async with trio.open_nursery() as nursery:
                told = False
                async for number in signals:
                    if told:
                        log.warning("signal %d again: the last snapshot is given up", number)
                        self._last_scope.cancel()
                    else:
                        log.info("signal %d: unmounting", number)
                        nursery.start_soon(self._leave)
                    told = True

    async def _leave(self) -> None:
        """Unmount, whoever is still using the mount; they get a while to end by themselves."""
        from fused.fs.session import stop, unmount

        try:
            await unmount(self._settings.mountpoint, lazy=True)
        except MountError as exc:
            log.error("%s", exc)
        await trio.sleep(LINGER_SECONDS)
        stop()

    # --- control ------------------------------------------------------------------------------------------

    def _handlers(self) -> Mapping[str, Handler]:
        behind = {op: self._handed_on(op) for op in ("status", "sync", "log", "check-index", "mend-list")}
        return {**behind, "writers": self._writers, "umount": self._umount}

    def _handed_on(self, op: str) -> Handler:
        """What is behind the mount answers, once it is there."""

        async def handler(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
            return await (await self._what_is_behind()).handlers[op](args, report)

        return handler

    async def _writers(self, _args: Mapping[str, object], _report: Report) -> Json:
        return {"paths": [os.fsdecode(path) for path in self._fs.writers()]}

    async def _umount(self, args: Mapping[str, object], report: Report) -> Json:
        """Unmount, then wait for the last snapshot. With `now`, don't take one, and say what is not stored."""
        from fused.fs.session import unmount

        self._take_last = args.get("now") is not True
        self._answered = trio.Event()
        try:
            await unmount(self._settings.mountpoint)
            behind = await self._what_is_behind()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(behind.report_progress, report)
                await self._finished.wait()
                nursery.cancel_scope.cancel()
            return behind.left()
        except MountError:
            self._take_last = True
            raise
        finally:
            self._answered.set()
