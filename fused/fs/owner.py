"""To whom new files belong."""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fused.types import Caller

_CAPABILITY_VERSION_3 = 0x20080522  # capget(2)

_libc = ctypes.CDLL(None, use_errno=True)
_setfsuid, _setfsgid = _libc.setfsuid, _libc.setfsgid
for _function in (_setfsuid, _setfsgid):
    _function.argtypes = (ctypes.c_uint32,)
    _function.restype = ctypes.c_int
_NO_ID = 0xFFFFFFFF  # changes nothing, and so tells what is set (setfsuid(2))


class NewOwner:
    """Lets the daemon make a file as the program that asked for it: `with new_owner.acting_for(caller): os.mkdir(…)`.

    On a private mount the kernel lets in nobody but the daemon's own user, so there is nothing to do. With
    `--allow-other` served by root, files go to the caller. A daemon of an ordinary user can't give files away; those
    that others create through its mount stay its own.

    The file belongs to the caller from the start. Giving it away afterwards, by its name, would give away whatever
    somebody who reaches the covered directory by another way has put under that name meanwhile. The group is the host's
    to choose: the caller's, or in a set-group-ID directory the directory's. What the caller may do was checked by the
    kernel, with all his groups, which we don't know; so our other capabilities stay in force.
    """

    def __init__(self, *, private: bool) -> None:
        self._needed = not private and os.geteuid() == 0
        self._capabilities = _Capabilities() if self._needed else None
        self._works = not self._needed or _can_act()
        self._nobody_else = _Acting(None, 0, 0)

    def acting_for(self, caller: Caller) -> _Acting:
        """For a `with` block without `await` around the one call that makes the file. Raises PermissionError."""
        if not self._needed or (caller.uid == 0 and caller.gid == 0):
            return self._nobody_else
        if not self._works:  # a root without CAP_SETUID and CAP_SETGID: no file rather than one of root's
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))
        return _Acting(self._capabilities, caller.uid, caller.gid)


class _Acting:
    """This thread's file system identity, for a moment: setfsuid(2) is made for file servers."""

    __slots__ = ("_capabilities", "_gid", "_uid")

    def __init__(self, capabilities: _Capabilities | None, uid: int, gid: int) -> None:
        self._capabilities = capabilities
        self._uid = uid
        self._gid = gid

    def __enter__(self) -> None:
        if self._capabilities is not None:
            _setfsgid(self._gid)
            _setfsuid(self._uid)  # takes the capabilities that concern files away (capabilities(7))
            self._capabilities.restore()

    def __exit__(self, *_: object) -> None:
        if self._capabilities is not None:
            _setfsuid(0)
            _setfsgid(0)


class _Capabilities:
    """The capabilities of this thread, to be had again."""

    def __init__(self) -> None:
        self._header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
        self._sets = (ctypes.c_uint32 * 6)()
        if _libc.capget(self._header, self._sets) != 0:
            raise OSError(ctypes.get_errno(), "capget")

    def restore(self) -> None:
        """Make effective again what was when this was made."""
        _libc.capset(self._header, self._sets)  # can't fail: it is what we had, and are still permitted


def _can_act() -> bool:
    _setfsuid(1)
    _setfsgid(1)
    works = (_setfsuid(_NO_ID), _setfsgid(_NO_ID)) == (1, 1)
    _setfsuid(0)
    _setfsgid(0)
    return works
