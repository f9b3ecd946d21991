"""The control socket of a running mount: JSON lines, both ends.

A connection carries requests one after the other:

    {"op": "sync", "args": {}}
    {"progress": {"phase": "storing", "done": 3, "total": 10, "unit": "files"}}     any number of these
    {"result": {...}}  or  {"error": {"kind": "StoreUnavailable", "message": "one sentence"}}

File names are in the form of `os.fsdecode`; what is not UTF-8 becomes a lone surrogate, which JSON carries as
an escape. The socket is 0600 in a 0700 directory, and a peer must have our uid or be root. It is bound and
connected through /proc/self/fd, as a path in a socket address has 107 bytes at most. A client other than root talks
only to a daemon of its own user: anybody can make a mount that claims any state directory.

The client half is standard library only and blocks: quick commands must not wait for trio to be imported.
A request has no deadline of its own (storing a tree takes as long as it takes); when the daemon dies, the
kernel closes the socket, which the client sees at once. `timeout` is for a daemon that lives but hangs.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING

from fused import errors, paths
from fused.errors import ControlError, DaemonGone, IpfsfsError

if TYPE_CHECKING:
    import trio

log = logging.getLogger(__name__)

Json = dict[str, object]
Report = Callable[[str, int, int | None, str], None]
"""Tell how far a request is: phase, done, total if known, unit. Cheap, never blocks, may be called often."""

Handler = Callable[[Mapping[str, object], Report], Awaitable[Mapping[str, object]]]
"""Carries out one op. What it raises goes to the client as an error; the daemon lives on.

It runs to its end though the client has gone away. It is cancelled only with the server, and the client
is told. A handler that makes the daemon stop (umount) sets its event as the last thing before it returns:
the reply is sent even though the server is being cancelled by then.
"""

_LINE_MAX = 1 << 20  # a request's arguments are options and a few paths
_PROGRESS_SECONDS = 0.1  # between two progress lines: enough for a bar, and a slow reader is no burden
_SEND_SECONDS = 5.0  # for a client that has stopped reading


def _encode(message: Mapping[str, object]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


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


def parse_answer(line: bytes, on_progress: Report | None) -> Json | None:
    """The result in a line of the daemon's, None if it tells progress, which is handed on.

    Raises what the daemon reports, and ControlError for a line that makes no sense.
    """
    try:
        message = json.loads(line)
        if "progress" in message:
            step = message["progress"]
            phase, done, total, unit = (step[key] for key in ("phase", "done", "total", "unit"))
            whole = isinstance(done, int) and (total is None or isinstance(total, int))
            if whole and isinstance(phase, str) and isinstance(unit, str):
                if on_progress is not None:
                    on_progress(phase, done, total, unit)
                return None
        elif "result" in message:
            if isinstance(result := message["result"], dict):
                return result
        else:
            kind, sentence = message["error"]["kind"], message["error"]["message"]
            if isinstance(kind, str) and isinstance(sentence, str):
                raise as_error(kind, sentence)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        pass
    raise ControlError("the daemon's answer could not be understood")


# --- the daemon's end ------------------------------------------------------------------------------------


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


def _peer_uid(sock: trio.socket.SocketType | socket.socket) -> int:
    """Of a client, who connected; of a server, who listens (unix(7), SO_PEERCRED)."""
    credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    uid: int = struct.unpack("3i", credentials)[1]
    return uid


async def serve_control(
    state_dir_fd: int,
    handlers: Mapping[str, Handler],
    task_status: trio.TaskStatus[None] | None = None,
) -> None:
    """Answer requests on the state directory's socket until cancelled. The socket's name goes at the end."""
    import trio

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
        import trio

        self._stream = stream
        self._handlers = handlers
        self._progress: Json | None = None
        self._alive = True
        self._trio = trio

    async def run(self) -> None:
        async with self._stream:
            if _peer_uid(self._stream.socket) not in (0, os.geteuid()):
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
            async with self._trio.open_nursery() as nursery:
                nursery.start_soon(self._send_progress)
                reply = await self._carry_out(op, handler, args)
                nursery.cancel_scope.cancel()
        finally:
            # The server may be cancelled by now: by this very handler, or in the middle of it.
            with self._trio.CancelScope(shield=True):
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
            await self._trio.sleep(_PROGRESS_SECONDS)
            progress, self._progress = self._progress, None
            if progress is not None:
                with self._trio.CancelScope(shield=True):  # half a line must not be left behind
                    await self._send({"progress": progress})

    async def _send(self, message: Mapping[str, object]) -> None:
        """Send one line. A client that has gone, or does not read, is not sent to any more."""
        if not self._alive:
            return
        try:
            with self._trio.fail_after(_SEND_SECONDS):
                await self._stream.send_all(_encode(message))
        except (self._trio.BrokenResourceError, self._trio.ClosedResourceError, self._trio.TooSlowError):
            self._alive = False


# --- the command's end -----------------------------------------------------------------------------------


def _connect(state_dir: str, timeout: float | None) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.settimeout(timeout)
            owner = os.fstat(directory).st_uid
            if os.geteuid() not in (0, owner):
                raise PermissionError
            sock.connect(f"/proc/self/fd/{directory}/{paths.CONTROL}")
            if _peer_uid(sock) != owner:  # who listens there is not who made the directory
                raise PermissionError
        finally:
            os.close(directory)
    except PermissionError:
        sock.close()
        raise ControlError(f"the mount of {state_dir} belongs to another user") from None
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        sock.close()
        raise DaemonGone(f"no daemon answers in {state_dir}") from None
    except OSError as exc:  # a queue full of connections that are not accepted, or the like
        sock.close()
        raise ControlError(f"the daemon of {state_dir} can't be reached: {exc.strerror or exc}") from None
    return sock


def as_error(kind: str, message: str) -> IpfsfsError:
    """The error of ours that another process has reported. A kind that we don't know becomes a ControlError."""
    cls = getattr(errors, kind, None)
    if not (isinstance(cls, type) and issubclass(cls, IpfsfsError)):
        cls = ControlError
    return cls.__new__(cls, message)  # not cls(message): some have constructors of their own


def call(
    state_dir: str,
    op: str,
    args: Mapping[str, object] | None = None,
    on_progress: Report | None = None,
    *,
    timeout: float | None = None,
) -> Json:
    """Ask the daemon that runs with `state_dir` for `op` and return its result.

    `timeout` is the longest silence in seconds; None waits for ever. Raises DaemonGone if no daemon answers
    or it dies meanwhile, ControlError for a silence or an answer that makes no sense, and what the daemon reports,
    as the same class of error.
    """
    with _connect(state_dir, timeout) as sock:
        try:
            with suppress(BrokenPipeError):  # refused before it was read: the answer that is there says why
                sock.sendall(_encode({"op": op, "args": dict(args or {})}))
            with sock.makefile("rb") as lines:
                for line in lines:
                    result = parse_answer(line, on_progress)
                    if result is not None:
                        return result
        except TimeoutError:
            raise ControlError(f"the daemon of {state_dir} has not answered for {timeout:g} seconds") from None
        except OSError:
            pass  # it died: said below
    raise DaemonGone("the daemon went away before it had answered")
