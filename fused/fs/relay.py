"""libfuse's seat: it serves a socket in place of the kernel's descriptor, and gets what `answers.py` does not answer.

Mounting, the agreement on the protocol, and saying no to all that is not supported are libfuse's and pyfuse3's. The
session's descriptor is one end of a socket; requests go in at the other, and what comes out, replies and notifications,
goes to the kernel as it is. Only in the first exchange, INIT, something is changed:

- the kernel's offers to splice, which a socket like this can't, and of another form of SETXATTR than we read are kept
  from libfuse;
- the kernel is asked for FUSE_HANDLE_KILLPRIV_V2 where we want it, for which libfuse 3.14 has no switch;
- it is asked for no larger writes than there is room for (`LARGEST`).

Whatever is not as we know it is passed on as it is.
"""

from __future__ import annotations

import logging
import os
import socket
from dataclasses import dataclass

import trio

from fused.fs import protocol
from fused.fs.protocol import Opcode

log = logging.getLogger(__name__)

MAX_WRITE = 1 << 20
"""The largest write that is asked for. libfuse's own on a machine with pages of 4 KiB."""

LARGEST = MAX_WRITE + (8 << 10)
"""Room for any request. The kernel wants it for a write and 4 KiB, and never less than 8 KiB (FUSE_MIN_READ_BUFFER)."""

_LARGEST_REPLY = 64 << 10
"""Of libfuse's: what is said in INIT, errors, and names in notifications."""

_KEPT = protocol.SPLICE_READ | protocol.SPLICE_WRITE | protocol.SPLICE_MOVE | protocol.SETXATTR_EXT


@dataclass(frozen=True, slots=True)
class Wishes:
    """What is to be changed in libfuse's answer to INIT.

    With `kill_privileges` the daemon sees to it that writing, truncating and chown take set-ID bits away, and the
    kernel remembers which files have none and no capabilities, where it otherwise asks before every single write
    (Linux fs/fuse/inode.c, process_init_reply: SB_NOSEC).
    """

    kill_privileges: bool = False


def is_init(request: bytes) -> bool:
    """Whether this is an INIT that we understand."""
    if len(request) < protocol.REQUEST.size + protocol.INIT.size:
        return False
    length, opcode, *_ = protocol.REQUEST.unpack_from(request)
    major, *_ = protocol.INIT.unpack_from(request, protocol.REQUEST.size)
    return (length, opcode, major) == (len(request), Opcode.INIT, protocol.MAJOR)


def changed_request(request: bytes) -> bytes:
    """The kernel's INIT without the offers that are kept from libfuse."""
    changed = bytearray(request)
    *head, flags = protocol.INIT.unpack_from(request, protocol.REQUEST.size)
    protocol.INIT.pack_into(changed, protocol.REQUEST.size, *head, flags & ~_KEPT)
    return bytes(changed)


def changed_reply(request: bytes, reply: bytes, wishes: Wishes) -> bytes:
    """libfuse's answer to the kernel's `request` with our wishes; `reply` itself if it is none of INIT, or an error."""
    start = protocol.REPLY.size
    if not is_init(request) or len(reply) < start + protocol.INIT.size:
        return reply
    if protocol.REPLY.unpack_from(reply) != (len(reply), 0, protocol.REQUEST.unpack_from(request)[2]):
        return reply
    major, minor, max_readahead, flags = protocol.INIT.unpack_from(reply, start)
    if major != protocol.MAJOR:
        return reply
    if wishes.kill_privileges:
        flags |= protocol.INIT.unpack_from(request, protocol.REQUEST.size)[3] & protocol.HANDLE_KILLPRIV_V2
    changed = bytearray(reply)
    protocol.INIT.pack_into(changed, start, major, minor, max_readahead, flags)
    at = start + protocol.MAX_WRITE_AT
    if len(reply) >= at + protocol.MAX_WRITE.size:
        (largest,) = protocol.MAX_WRITE.unpack_from(reply, at)
        protocol.MAX_WRITE.pack_into(changed, at, min(largest, MAX_WRITE))
    return bytes(changed)


class Relay:
    """Takes `fd`, the session's descriptor, and gives it back with `close`. `kernel` is another one of the same."""

    def __init__(self, fd: int, wishes: Wishes) -> None:
        """`fd` was mounted just now, and nothing was read from it yet. Raises OSError, with nothing changed."""
        self._fd = fd
        self._wishes = wishes
        self._inheritable = os.get_inheritable(fd)
        self._init: bytes | None = None
        self._said = memoryview(bytearray(_LARGEST_REPLY))  # taken now, as memory may be scarce later
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                self._ours.setblocking(False)
                theirs.setblocking(False)
                self.kernel = os.dup(fd)
            except OSError:
                self._ours.close()
                raise
            os.dup2(theirs.fileno(), fd, inheritable=self._inheritable)

    async def pass_on(self, request: memoryview) -> None:
        """Let libfuse have a request, and wait a moment for its answer: a later one is `run`'s. Raises OSError."""
        message = bytes(request)
        if self._init is None and is_init(message):
            self._init = message
            message = changed_request(message)
        while True:
            try:
                self._ours.send(message)
                break
            except BlockingIOError:  # it has not taken the last ones yet
                await trio.lowlevel.wait_writable(self._ours)
        for _ in range(3):  # pyfuse3's task is woken, reads, and answers
            await trio.lowlevel.checkpoint()
            if self._forward():
                break

    def _forward(self) -> bool:
        """Give the kernel what has come out. Whether there was something."""
        found = False
        while True:
            try:
                length = self._ours.recv_into(self._said)
            except BlockingIOError:
                return found
            if not length:
                return found
            found = True
            message = bytes(self._said[:length])
            if self._init is not None:
                message = changed_reply(self._init, message, self._wishes)
            try:
                os.write(self.kernel, message)
            except OSError as error:  # nobody waits for the answer any more, or knows the name of a notification
                log.debug("the kernel does not take what libfuse has to say: %s", error)

    async def run(self) -> None:
        """Forward what comes later, as long as the mount lives: cancel it."""
        while True:
            await trio.lowlevel.wait_readable(self._ours)
            self._forward()

    def close(self) -> None:
        """Give the session its descriptor back. Nothing may wait for any of them."""
        os.dup2(self.kernel, self._fd, inheritable=self._inheritable)
        os.close(self.kernel)
        self._ours.close()
