"""Bring what the kernel still holds of a mount's files to the daemon, before a snapshot is asked for.

With the write-back cache the kernel keeps what was written until a file is closed, and what was stored through a
shared mapping until it is unmapped. So each file that is open for writing is opened and fsynced here, through the
mount. This must not be the daemon's process: a thread of the daemon that waits for its own mount can wait for ever.
`syncfs` comes after that, for what was opened meanwhile; it alone does not do, as newer kernels start the write-back
of a FUSE file system and do not wait for it.
"""

from __future__ import annotations

import errno
import os
import stat

from fused.cli.output import say
from fused.control import call

TYPE_CHECKING = False
if TYPE_CHECKING:
    from fused.cli.target import Target


_NOT_OF_IT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EXDEV)
"""The file has gone. A path that leads through a link, or out of the mount, is of no file that the daemon has open."""


def flush(target: Target) -> None:
    """Write out what is in the kernel's cache. Files that vanish meanwhile have nothing to be waited for.

    Says which files could not be flushed: those whose mode lets not even their owner open them. Raises OSError, naming
    the file, when one that is still open can't be written out, and ControlError.
    """
    root = os.open(target.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        device = os.fstat(root).st_dev
        paths: list[str] = call(target.state_dir, "writers")["paths"]  # type: ignore[assignment]
        for path in paths:
            try:
                _fsync(root, device, path)
            except OSError as exc:
                if exc.errno not in _NOT_OF_IT:
                    raise
        _syncfs(root)
    finally:
        os.close(root)


def _fsync(root: int, device: int, path: str) -> None:
    """Fsync one file. The path may lead elsewhere by now, so what it leads to is looked at before it is opened."""
    from fused.local.layer import open_beneath

    place = open_beneath(root, os.fsencode(path), os.O_PATH)
    try:
        st = os.fstat(place)
        if not stat.S_ISREG(st.st_mode) or st.st_dev != device:
            return
        try:
            fd = _reopen(place)
        except PermissionError:
            say(f"{path} is open for writing and can't be flushed: its mode lets nobody open it")
            return
        try:
            os.fsync(fd)
        except OSError as exc:
            raise OSError(exc.errno, os.strerror(exc.errno or 0), path) from exc
        finally:
            os.close(fd)
    finally:
        os.close(place)


def _reopen(place: int) -> int:
    name = f"/proc/self/fd/{place}"
    try:
        return os.open(name, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except PermissionError:
        return os.open(name, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)


def _syncfs(fd: int) -> None:
    """Start the write-back of what is left.

    A write-back that failed at some time before, when the disk was full perhaps, is reported once more by the first
    syncfs after it (Linux lib/errseq.c): to us, though whoever wrote that was told at close or fsync. A second call
    tells of new failures only, and those count.
    """
    import ctypes

    syncfs = ctypes.CDLL(None, use_errno=True).syncfs
    if syncfs(fd) == 0:
        return
    earlier = os.strerror(ctypes.get_errno())
    if syncfs(fd) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    say(f"something that was written earlier did not reach the local files ({earlier}); what did is stored")
