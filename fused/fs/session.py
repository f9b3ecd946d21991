"""One mount: its options, its request loop, its end.

pyfuse3 keeps its session in module globals, so there is one mount in a process, and the functions here are as global
as that.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import resource
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fused.errors import Busy, MountError
from fused.fs import handshake, mounts
from fused.fs.operations import Handlers
from fused.fs.reader import RequestReader
from fused.fs.write_queue import write_queue_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from fused.fs.filesystem import FileSystem

log = logging.getLogger(__name__)

MAX_TASKS = 64
"""Requests being waited for at a time. With the reader token pyfuse3 can't see idle tasks and starts one for each
request until there are so many; a parked task takes a few KiB."""


MOST_FILES = 1 << 20
"""Open files, where there is no limit: the kernel's own (fs.nr_open), which a process can't go beyond."""


@dataclass(frozen=True, slots=True)
class MountOptions:
    """`mountpoint` is absolute. `fsname` comes from `mounts.source_name`."""

    mountpoint: str
    fsname: str
    read_only: bool
    allow_other: bool
    write_through: bool


def fuse_options(options: MountOptions, covered: os.statvfs_result) -> set[str]:
    """The options for libfuse. `covered` describes the file system of the covered directory."""
    chosen = {f"fsname={options.fsname}", f"subtype={mounts.SUBTYPE}"}
    if options.read_only or covered.f_flag & os.ST_RDONLY:
        chosen.add("ro")
    if covered.f_flag & os.ST_NOEXEC:
        chosen.add("noexec")
    if options.allow_other:
        # The kernel checks modes for everybody. A private mount has one user, whose own rights the daemon has: the
        # local layer checks, and the kernel needs no attributes to do so (a getattr for each change of a directory).
        chosen |= {"allow_other", "default_permissions"}
    if os.geteuid() == 0:
        # libfuse's defaults are nodev and nosuid, as for anybody's mount; root's files work as without the mount.
        chosen |= {
            "nodev" if covered.f_flag & os.ST_NODEV else "dev",
            "nosuid" if covered.f_flag & os.ST_NOSUID else "suid",
        }
    return chosen


@contextlib.contextmanager
def _stderr_of_libfuse(lines: list[str]) -> Iterator[None]:
    """Collect what libfuse and fusermount3 print on descriptor 2: the only place where they give a reason."""
    with tempfile.TemporaryFile() as caught:
        saved = os.dup(2)
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            caught.seek(0)
            lines += caught.read().decode(errors="replace").splitlines()


def _fuse_fds() -> set[int]:
    """This process's descriptors of /dev/fuse. pyfuse3 does not tell which one is its session's."""
    found = set()
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{entry}") == "/dev/fuse":
                found.add(int(entry))
    return found


def _mount(handlers: Handlers, options: MountOptions, covered: os.statvfs_result) -> int | None:
    """Make the mount. Returns the session's descriptor if it can be told. Raises MountError."""
    before = _fuse_fds()
    said: list[str] = []
    try:
        with _stderr_of_libfuse(said):
            pyfuse3.init(handlers, options.mountpoint, fuse_options(options, covered))
    except RuntimeError as error:
        reason = mounts.fusermount_reason("\n".join(said)) if said else str(error)
        raise MountError(f"{options.mountpoint} can't be mounted: {reason}") from error
    for line in said:
        log.warning("libfuse: %s", line)
    new = _fuse_fds() - before
    return new.pop() if len(new) == 1 else None


def _wishes(options: MountOptions) -> handshake.Wishes:
    """What we ask the kernel for beyond libfuse.

    On a private mount the local file system takes privileges away as it does without the mount. The daemon has its
    only user's rights, so each write, cut and chown of the daemon's own clears set-ID bits, or leaves them for
    CAP_FSETID, as the user's would have done. (Of file capabilities the kernel takes care itself, with this or
    without.) Where others use root's mount it is not so: the daemon's writes clear nothing, and in which writes the
    kernel wants it done libfuse does not tell (FUSE_WRITE_KILL_SUIDGID). There the kernel does it, and asks each time.
    """
    return handshake.Wishes(kill_privileges=not options.allow_other)


class _Loop:
    """pyfuse3's request loop with our way of waiting, where its inside is as we know it (3.5.0)."""

    def __init__(self, fd: int | None, wishes: handshake.Wishes | None = None) -> None:
        """`wishes` are put into the first exchange with the kernel, which must not have begun yet."""
        self._stock_wait = getattr(pyfuse3, "_wait_fuse_readable", None)
        self._stock_loop = getattr(pyfuse3, "_session_loop", None)
        self.reader: RequestReader | None = None
        self._handshake: handshake.Handshake | None = None
        if fd is None or self._stock_wait is None or self._stock_loop is None:
            log.warning("pyfuse3 %s is not as we know it: using its own request loop", pyfuse3.__version__)
            return
        self.reader = RequestReader(fd)
        # A request can vanish between poll and read, when its program is killed. A blocking read would then stop the
        # whole process until the next request; a non-blocking one raises, and the loop is entered again.
        os.set_blocking(fd, False)
        if wishes is not None:
            self._handshake = handshake.begin(fd, wishes)
        self._replace(self.reader.wait if self._handshake is None else self._wait_at_first, self._retrying_loop)

    def _replace(self, wait: object, loop: object) -> None:
        setattr(pyfuse3, "_wait_fuse_readable", wait)  # noqa: B010 - mypy knows that the name is not public
        setattr(pyfuse3, "_session_loop", loop)  # noqa: B010

    async def _wait_at_first(self) -> bool:
        """In place of the reader's own `wait`, until the first exchange is over."""
        assert self.reader is not None
        # Whoever has the token and comes back has handled the first request, without an `await` in between.
        if self.reader.is_held():
            self._finish_handshake()
            self._replace(self.reader.wait, self._retrying_loop)
        return await self.reader.wait()

    def _finish_handshake(self) -> None:
        if self._handshake is not None:
            self._handshake.finish()
            self._handshake = None

    async def _retrying_loop(self, nursery: trio.Nursery, min_tasks: int, max_tasks: int) -> None:
        stock: Callable[[trio.Nursery, int, int], Awaitable[None]] = self._stock_loop  # type: ignore[assignment]
        while True:
            try:
                await stock(nursery, min_tasks, max_tasks)
            except BlockingIOError:
                log.debug("a request was withdrawn before it could be read")
                continue
            except MemoryError as error:
                # The request was read and never came to a handler: nobody can answer it, and its program would wait
                # for ever. When we end, it gets an error, and the supervisor mounts again.
                raise MountError("there was no memory to take up a request; the daemon has to end") from error
            # It ends only when the session does. That may show in the read alone (ENODEV), when the unmount falls
            # between poll and read: then nobody has told those who wait for the token.
            if self.reader is not None:
                self.reader.close()
            return

    def restore(self) -> None:
        """Give pyfuse3 its own functions back."""
        self._finish_handshake()
        if self.reader is not None:
            self._replace(self._stock_wait, self._stock_loop)


def _is_worth_a_line(record: logging.LogRecord) -> bool:
    """Drops what pyfuse3 reports as an error when the kernel no longer waits for a reply: after an abort, and for the
    last release of a mount that was detached while in use (ENOENT, Linux fs/fuse/dev.c, fuse_dev_do_write)."""
    return "fuse_reply_* failed" not in str(record.msg) or record.args != (os.strerror(errno.ENOENT),)


_loop: _Loop | None = None


async def serve(fs: FileSystem, options: MountOptions, on_ready: Callable[[], None]) -> None:
    """Mount, call `on_ready` when the kernel's first request has come in, and serve until unmounted.

    Raises MountError if the mount can't be made. Closes `fs` at the end. Sets the process's umask to 0, as the modes
    in requests are final, and raises its limit of open files as far as it may. If cancelled, or stopped while still
    mounted, the mount is detached and what the kernel has not written yet is lost: unmount first.
    """
    global _loop
    ready = trio.Event()
    handlers = Handlers(fs, on_init=ready.set)
    _raise_file_limit()
    fd = _mount(handlers, options, os.fstatvfs(fs.root_fd))
    umask = os.umask(0)
    loop = _loop = _Loop(fd, _wishes(options))
    if loop.reader is not None:
        fs.waiting.before_wait = loop.reader.hand_over
        loop.reader.threads_work = fs.waiting.threads_work
    write_queue = write_queue_of(options.mountpoint)
    replies_log = logging.getLogger("pyfuse3")
    replies_log.addFilter(_is_worth_a_line)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tell_when_ready, ready, on_ready)
            if write_queue is not None:
                fs.files.on_large_write = write_queue.large_write
                nursery.start_soon(write_queue.run)
            await pyfuse3.main(max_tasks=MAX_TASKS)
            nursery.cancel_scope.cancel()
    finally:
        _loop = None
        loop.restore()
        fs.files.on_large_write = None
        replies_log.removeFilter(_is_worth_a_line)
        pyfuse3.close(unmount=True)
        os.umask(umask)
        fs.close()


async def _tell_when_ready(ready: trio.Event, on_ready: Callable[[], None]) -> None:
    await ready.wait()
    on_ready()


def _raise_file_limit() -> None:
    """Each open file of each program is one of ours, beside cached directories and removed files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_FILES if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError) as error:
            log.debug("the limit of open files stays at %d: %s", soft, error)


def stop() -> None:
    """End the request loop, from trio's thread. Does nothing when none is running."""
    if _loop is not None:
        pyfuse3.terminate()
        if _loop.reader is not None:
            _loop.reader.close()


async def unmount(mountpoint: str, *, lazy: bool = False) -> None:
    """Unmount, which makes the kernel write out what it has, and `serve` return.

    Done by another process, as the daemon has to serve requests meanwhile. `lazy` detaches a busy mount; it is served
    until the last program has closed its files. Raises Busy, naming who keeps the mount busy, or
    another MountError.
    """
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    try:
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    except FileNotFoundError:
        command = ["umount", *(["-l"] if lazy else []), "--", mountpoint]
        done = await trio.run_process(command, capture_stdout=True, capture_stderr=True, check=False)
    if done.returncode == 0:
        return
    holders = await trio.to_thread.run_sync(mounts.holders, mountpoint)
    if holders:
        named = ", ".join(str(holder) for holder in holders[:5])
        more = f" and {len(holders) - 5} more" if len(holders) > 5 else ""
        raise Busy(f"{mountpoint} is busy: in use by {named}{more}")
    raise MountError(
        f"{mountpoint} can't be unmounted: {mounts.fusermount_reason(done.stderr.decode(errors='replace'))}"
    )
