"""The daemon's end of the control socket, of which `control` tells what goes over it."""

from __future__ import annotations

import json
import logging
import os
import socket
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from fused import paths
from fused.control import encode, peer_uid
from fused.errors import ControlError, IpfsfsError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from fused.control import Json, Report

    Handler = Callable[[Mapping[str, object], Report], Awaitable[Mapping[str, object]]]
    """Carries out one op. What it raises goes to the client as an error; the daemon lives on.

    It runs to its end though the client has gone away. It is cancelled only with the server, and the client
    is told. A handler that makes the daemon stop (umount) sets its event as the last thing before it returns:
    the reply is sent even though the server is being cancelled by then.
    """

log = logging.getLogger(__name__)

_LINE_MAX = 1 << 20  # a request's arguments are options and a few paths
_PROGRESS_SECONDS = 0.1  # between two progress lines: enough for a bar, and a slow reader is no burden
_SEND_SECONDS = 5.0  # for a client that has stopped reading


def _error(kind: str, message: str) -> Json:
    return {"error": {"kind": kind, "message": message}}


def parse_request(line: bytes) -> tuple[str, Json]:
    """The op and arguments in a request. Raises ControlError for anything else, whatever it is."""
    try:
        request = json.loads(line)
        op, args = request["op"], request.get("args", {})
        if isinstance(op, str) and isinstance(args, dict):
            return op, args
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ControlError('a request is not of the form {"op": …, "args": {…}}')


def _bind(state_dir_fd: int) -> socket.socket:
    """A listening socket. Whoever calls this holds the state directory's lock, so a socket in the way is dead."""
    with suppress(FileNotFoundError):
        os.unlink(paths.CONTROL, dir_fd=state_dir_fd)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    umask = os.umask(0o177)  # synchronous from here to the reset: no task of ours sees it
    try:
        sock.bind(f"/proc/self/fd/{state_dir_fd}/{paths.CONTROL}")
    except BaseException:
        sock.close()
        raise
    finally:
        os.umask(umask)
    sock.listen(16)
    return sock


async def serve_control(
    state_dir_fd: int,
    handlers: Mapping[str, Handler],
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Answer requests on the state directory's socket until cancelled. The socket's name goes at the end."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(_bind(state_dir_fd)))

    async def connection(stream: trio.SocketStream) -> None:
        try:
            await _Connection(stream, handlers).run()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            log.debug("a control client went away")
        except Exception:
            log.exception("a control connection failed")

    started = trio.TASK_STATUS_IGNORED if task_status is None else _Started(task_status)
    try:
        await trio.serve_listeners(connection, [listener], task_status=started)
    finally:
        with suppress(OSError):
            os.unlink(paths.CONTROL, dir_fd=state_dir_fd)


class _Started:
    """Hands trio's report of its listeners on without them."""

    def __init__(self, task_status: trio.TaskStatus[None]) -> None:
        self._task_status = task_status

    def started(self, _listeners: object = None) -> None:
        self._task_status.started()


class _Connection:
    """One client. Progress is sent by a task of its own, which has ended when a reply is sent: one sender at a time."""

    def __init__(self, stream: trio.SocketStream, handlers: Mapping[str, Handler]) -> None:
        self._stream = stream
        self._handlers = handlers
        self._progress: Json | None = None
        self._alive = True

    async def run(self) -> None:
        async with self._stream:
            if peer_uid(self._stream.socket) not in (0, os.geteuid()):
                await self._send(_error("ControlError", "this mount belongs to another user"))
                return
            buffer = bytearray()
            while self._alive:
                line, end, rest = buffer.partition(b"\n")
                if end:
                    buffer = rest
                    if not await self._answer(bytes(line)):
                        return
                elif len(buffer) > _LINE_MAX:
                    await self._send(_error("ControlError", f"a request is longer than {_LINE_MAX} bytes"))
                    return
                else:
                    received = await self._stream.receive_some()
                    if not received:
                        return
                    buffer += received

    async def _answer(self, line: bytes) -> bool:
        """Carry out the request in `line`. False if no further one makes sense."""
        try:
            op, args = parse_request(line)
        except ControlError as exc:
            await self._send(_error("ControlError", str(exc)))
            return False
        handler = self._handlers.get(op)
        if handler is None:
            await self._send(_error("ControlError", f"this daemon does not know the request {op!r}"))
            return True
        reply = _error("DaemonGone", "the daemon was stopped before it had finished this")
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_progress)
                reply = await self._carry_out(op, handler, args)
                nursery.cancel_scope.cancel()
        finally:
            # The server may be cancelled by now: by this very handler, or in the middle of it.
            with trio.CancelScope(shield=True):
                await self._send(reply)
        return True

    async def _carry_out(self, op: str, handler: Handler, args: Json) -> Json:
        def report(phase: str, done: int, total: int | None, unit: str) -> None:
            self._progress = {"phase": phase, "done": done, "total": total, "unit": unit}

        try:
            return {"result": dict(await handler(args, report))}
        except IpfsfsError as exc:
            return _error(type(exc).__name__, str(exc))
        except OSError as exc:
            log.warning("a control request failed: %s op=%s", exc, op)
            return _error("OSError", str(exc))
        except Exception as exc:
            log.exception("a control request failed op=%s", op)
            return _error("InternalError", f"{type(exc).__name__}: {exc}; the daemon's log has the details")

    async def _send_progress(self) -> None:
        """Send the latest progress now and then. Cancelled when the request has been carried out."""
        while True:
            await trio.sleep(_PROGRESS_SECONDS)
            progress, self._progress = self._progress, None
            if progress is not None:
                with trio.CancelScope(shield=True):  # half a line must not be left behind
                    await self._send({"progress": progress})

    async def _send(self, message: Mapping[str, object]) -> None:
        """Send one line. A client that has gone, or does not read, is not sent to any more."""
        if not self._alive:
            return
        try:
            with trio.fail_after(_SEND_SECONDS):
                await self._stream.send_all(encode(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError, trio.TooSlowError):
            self._alive = False
