"""To whom new files belong."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING

from fused.local import layer

if TYPE_CHECKING:
    from fused.types import Caller


class NewOwner:
    """Gives a file that the daemon just created to the program that asked for it.

    On a private mount the kernel lets in nobody but the daemon's own user, so there is nothing to do. With
    `--allow-other` served by root, files go to the caller. A daemon of an ordinary user can't give files away; those
    that others create through its mount stay its own.
    """

    def __init__(self, *, private: bool) -> None:
        self._needed = not private and os.geteuid() == 0

    def settle(self, dir_fd: int, name: bytes, caller: Caller, mode: int) -> None:
        """Set owner and group of a new file; on an error the file is as it was.

        The group comes from the caller, but in a set-group-ID directory from the directory, as the host has already
        done it. chown takes the set-ID bits off an executable, for root too (chown(2)), so they are put back.
        """
        if not self._needed:
            return
        from_directory = os.fstat(dir_fd).st_mode & stat.S_ISGID
        gid = -1 if from_directory else caller.gid
        os.chown(name, caller.uid, gid, dir_fd=dir_fd, follow_symlinks=False)
        if stat.S_ISREG(mode) and mode & (stat.S_ISUID | stat.S_ISGID):
            fd = layer.open_path(dir_fd, name)
            try:
                os.chmod(layer.proc_path(fd), stat.S_IMODE(mode))
            finally:
                os.close(fd)
