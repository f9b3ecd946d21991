"""One mount: its options, its request loop, its end.

pyfuse3 keeps its session in module globals, so there is one mount in a process, and the functions here are as global
as that.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import tempfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyfuse3
import trio

from fused.errors import Busy, MountError
from fused.fs import mounts
from fused.fs.answers import Answers
from fused.fs.operations import Operations
from fused.fs.reader import RequestReader
from fused.fs.relay import Relay, Wishes
from fused.fs.serving import MAX_TASKS, Server, is_want_of_memory, no_memory
from fused.fs.write_queue import write_queue_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fused.fs.filesystem import FileSystem
    from fused.fs.waiting import Waiting

log = logging.getLogger(__name__)

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


def _mount(operations: Operations, options: MountOptions, covered: os.statvfs_result) -> int:
    """Make the mount. Returns the session's descriptor. Raises MountError."""
    before = _fuse_fds()
    said: list[str] = []
    try:
        with _stderr_of_libfuse(said):
            pyfuse3.init(operations, options.mountpoint, fuse_options(options, covered))
    except RuntimeError as error:
        reason = mounts.fusermount_reason("\n".join(said)) if said else str(error)
        raise MountError(f"{options.mountpoint} can't be mounted: {reason}") from error
    for line in said:
        log.warning("libfuse: %s", line)
    new = _fuse_fds() - before
    if len(new) != 1:
        pyfuse3.close(unmount=True)
        raise MountError(
            f"{options.mountpoint} can't be mounted: of pyfuse3 {pyfuse3.__version__} it can't be told which descriptor"
            " of /dev/fuse is its session's; take the version that ipfsfs is installed with"
        )
    return new.pop()


def _wishes(options: MountOptions) -> Wishes:
    """What we ask the kernel for beyond libfuse.

    On a private mount the local file system takes privileges away as it does without the mount. The daemon has its
    only user's rights, so each write, cut and chown of the daemon's own clears set-ID bits, or leaves them for
    CAP_FSETID, as the user's would have done. (Of file capabilities the kernel takes care itself, with this or
    without.) Where others use root's mount it is not so: the daemon's writes clear nothing, and whether the kernel
    wants it done is said in each write (FUSE_WRITE_KILL_SUIDGID). There the kernel does it, and asks each time.
    """
    return Wishes(kill_privileges=not options.allow_other)


_reader: RequestReader | None = None


async def serve(fs: FileSystem, options: MountOptions, on_ready: Callable[[], None]) -> None:
    """Mount, call `on_ready` when the kernel's first request has come in, and serve until unmounted.

    Raises MountError if the mount can't be made. Closes `fs` at the end. Sets the process's umask to 0, as the modes
    in requests are final, and raises its limit of open files as far as it may. If cancelled, or stopped while still
    mounted, the mount is detached and what the kernel has not written yet is lost: unmount first.
    """
    global _reader
    ready = trio.Event()
    operations = Operations(ready.set, write_back=not fs.write_through)
    _raise_file_limit()
    fd = _mount(operations, options, os.fstatvfs(fs.root_fd))
    # A request can vanish between poll and read, when its program is killed. A blocking read would then stop the whole
    # process until the next request.
    os.set_blocking(fd, False)
    umask = os.umask(0)
    try:
        relay = Relay(fd, _wishes(options))
        try:
            _reader = reader = RequestReader(relay.kernel)
            fs.waiting.before_wait = reader.hand_over
            reader.threads_work = fs.waiting.threads_work
            reader.tasks_wait = fs.waiting.tasks_wait
            write_queue = write_queue_of(options.mountpoint)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_tell_when_ready, ready, on_ready)
                nursery.start_soon(relay.run)
                nursery.start_soon(_serve_requests, Server(Answers(fs, _forget_name), reader, relay), fs.waiting)
                if write_queue is not None:
                    fs.files.on_large_write = write_queue.large_write
                    nursery.start_soon(write_queue.run)
                await pyfuse3.main()
                nursery.cancel_scope.cancel()
        except* (MemoryError, OSError) as errors:  # libfuse needs some for each request, too
            if errors.split(is_want_of_memory)[1] is not None:
                raise
            raise no_memory() from errors
        finally:
            _reader = None
            fs.files.on_large_write = None
            relay.close()
    finally:
        pyfuse3.close(unmount=True)
        os.umask(umask)
        fs.close()


async def _serve_requests(server: Server, waiting: Waiting) -> None:
    try:
        async with trio.open_nursery() as nursery:
            for _ in range(MAX_TASKS):
                nursery.start_soon(server.work)
    finally:
        with trio.CancelScope(shield=True):  # they answer to the session's descriptor, and use those of `fs`
            await waiting.finish()
    pyfuse3.terminate()


def _forget_name(parent: int, name: bytes) -> None:
    # By pyfuse3's own thread: the notification takes locks that a request may hold.
    pyfuse3.invalidate_entry_async(parent, name, ignore_enoent=True)


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
    if _reader is not None:
        _reader.close()


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
