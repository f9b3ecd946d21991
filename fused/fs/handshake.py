"""The first exchange with the kernel, INIT, with what libfuse has no switch for.

In it the kernel offers what it can do, and the daemon answers with what of that it wants. libfuse writes that answer,
and its release 3.14 can't ask for FUSE_HANDLE_KILLPRIV_V2; pyfuse3 lets us ask for even less. So for this one exchange
a socket takes the place of the session's descriptor: we read the kernel's request, hand it to libfuse through the
socket, catch the answer, change it, and give it to the kernel. Then the descriptor has its number and its open file
description again.

Whatever is not as we know it is passed on as it is: then the mount works as without this module.

The messages are those of Linux include/uapi/linux/fuse.h: fuse_in_header and fuse_init_in, fuse_out_header and
fuse_init_out.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import struct
from dataclasses import dataclass

log = logging.getLogger(__name__)

FUSE_INIT = 26
HANDLE_KILLPRIV_V2 = 1 << 28
"""A flag of INIT, since protocol 7.33 (Linux 5.11)."""

MAJOR = 7

_REQUEST_HEAD = struct.Struct("=IIQQIIIHH")  # length, opcode, unique, …
_REQUEST = struct.Struct("=IIII")  # major, minor, max_readahead, flags; more follows
_REPLY_HEAD = struct.Struct("=IiQ")  # length, error, unique
_REPLY = struct.Struct("=IIII")  # major, minor, max_readahead, flags; more follows

_LARGEST = 128 << 10
"""Room for the request. The kernel takes less than 8 KiB for a mistake (FUSE_MIN_READ_BUFFER)."""

_PATIENCE_MS = 1000
"""The kernel has queued the request before mount(2) returns."""


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be changed in libfuse's answer.

    With `kill_privileges` the daemon sees to it that writing, truncating and chown take set-ID bits away, and the
    kernel remembers which files have none and no capabilities, where it otherwise asks before every single write
    (Linux fs/fuse/inode.c, process_init_reply: SB_NOSEC).
    """

    kill_privileges: bool = False


def changed_reply(request: bytes, reply: bytes, wishes: Wishes) -> bytes:
    """libfuse's answer to INIT with our wishes; `reply` itself if there is nothing to change, or it is none of INIT."""
    if len(request) < _REQUEST_HEAD.size + _REQUEST.size or len(reply) < _REPLY_HEAD.size + _REPLY.size:
        return reply
    length, opcode, unique, *_ = _REQUEST_HEAD.unpack_from(request)
    major, _, _, offered = _REQUEST.unpack_from(request, _REQUEST_HEAD.size)
    if (length, opcode, major) != (len(request), FUSE_INIT, MAJOR):
        return reply
    if _REPLY_HEAD.unpack_from(reply) != (len(reply), 0, unique):
        return reply
    fields = list(_REPLY.unpack_from(reply, _REPLY_HEAD.size))
    if fields[0] != MAJOR:
        return reply
    if wishes.kill_privileges:
        fields[3] |= offered & HANDLE_KILLPRIV_V2
    changed = bytearray(reply)
    _REPLY.pack_into(changed, _REPLY_HEAD.size, *fields)
    return bytes(changed)


class Handshake:
    """A socket in the place of the session's descriptor, from `begin` to `finish`."""

    def __init__(self, fd: int, kernel: int, ours: socket.socket, request: bytes, wishes: Wishes) -> None:
        """For `begin`. `kernel` is another descriptor of what `fd` was."""
        self._fd = fd
        self._kernel = kernel
        self._ours = ours
        self._request = request
        self._wishes = wishes

    def finish(self) -> None:
        """libfuse has handled the request: give the kernel its answer, and the descriptor back. Never raises OSError.

        Nothing may wait for the descriptor meanwhile. Without an answer of libfuse's the kernel gets none.
        """
        reply = b""
        with contextlib.suppress(BlockingIOError):
            reply = self._ours.recv(_LARGEST, socket.MSG_DONTWAIT)
        os.dup2(self._kernel, self._fd, inheritable=os.get_inheritable(self._kernel))
        os.close(self._kernel)
        self._ours.close()
        if not reply:
            return
        changed = changed_reply(self._request, reply, self._wishes)
        log.debug("INIT is answered %s", "as libfuse would" if changed == reply else "with more than libfuse asks for")
        try:
            os.write(self._fd, changed)
        except OSError as error:  # unmounted meanwhile, as a rule; the next read tells
            log.debug("INIT can't be answered: %s", error)


def begin(fd: int, wishes: Wishes) -> Handshake | None:
    """Take the kernel's first request from `fd`, which was mounted just now and is not blocking, and put it where
    libfuse will read it: behind `fd`. None if that can't be done; then nothing has been changed.
    """
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    kernel = -1
    sockets: tuple[socket.socket, ...] = ()
    try:
        inheritable = os.get_inheritable(fd)
        sockets = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sockets[1].setblocking(False)
        kernel = os.dup(fd)
        os.set_inheritable(kernel, inheritable)
        poll.poll(_PATIENCE_MS)
        request = os.read(fd, _LARGEST)  # the last step that can fail, but for want of memory
    except OSError as error:
        log.warning("the mount's first request can't be taken, so it works without what we would ask for: %s", error)
        for end in sockets:
            end.close()
        if kernel >= 0:
            os.close(kernel)
        return None
    sockets[0].send(request)
    os.dup2(sockets[1].fileno(), fd, inheritable=inheritable)
    sockets[1].close()
    return Handshake(fd, kernel, sockets[0], request, wishes)
