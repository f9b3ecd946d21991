"""The control socket of a running mount: JSON lines, and the end of whoever asks. The daemon's is `control_server`.

A connection carries requests one after the other:

    {"op": "sync", "args": {}}
    {"progress": {"phase": "storing", "done": 3, "total": 10, "unit": "files"}}     any number of these
    {"result": {...}}  or  {"error": {"kind": "StoreUnavailable", "message": "one sentence"}}

File names are in the form of `os.fsdecode`; what is not UTF-8 becomes a lone surrogate, which JSON carries as
an escape. The socket is 0600 in a 0700 directory, and a peer must have our uid or be root. It is bound and
connected through /proc/self/fd, as a path in a socket address has 107 bytes at most. A client other than root talks
only to a daemon of its own user: anybody can make a mount that claims any state directory.

Standard library only, little even of that, and blocking: `ipfsfs sync` must not wait for what it does not need.
`typing`, `json` and `socket` take 10, 10 and 5 ms to import, of the 50 that the command may take; `_json` and `_socket`
are the halves of the latter two that are in C.
A request has no deadline of its own (storing a tree takes as long as it takes); when the daemon dies, the
kernel closes the socket, which the client sees at once. `timeout` is for a daemon that lives but hangs.
"""

from __future__ import annotations

import _socket
import os

from fused import errors, paths
from fused.errors import ControlError, DaemonGone, IpfsfsError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from typing import Any

    import trio

    Report = Callable[[str, int, int | None, str], None]
    """Tell how far a request is: phase, done, total if known, unit. Cheap, never blocks, may be called often."""

Json = dict[str, object]

_RECEIVED = 1 << 16


def encode(message: Mapping[str, object]) -> bytes:
    """One line."""
    import json

    return json.dumps(message, separators=(",", ":")).encode("ascii") + b"\n"


class _Plain:
    """What `_json.make_scanner` wants to know (json/scanner.py): everything as `json.loads` does it."""

    strict = True
    object_hook = object_pairs_hook = None
    parse_float, parse_int = float, int
    parse_constant = float  # NaN and infinities by the names that `float` knows as well


def _loads(line: bytes) -> Any:
    """`json.loads`, without importing `json` (and `re`) for a line that is as we write them. Raises ValueError."""
    try:
        from _json import make_scanner

        value, end = make_scanner(_Plain)(line.decode("ascii"), 0)  # type: ignore[arg-type]
        if end == len(line.rstrip()):
            return value
    except (ImportError, ValueError, TypeError, StopIteration):
        pass
    import json

    return json.loads(line)


def parse_answer(line: bytes, on_progress: Report | None) -> Json | None:
    """The result in a line of the daemon's, None if it tells progress, which is handed on.

    Raises what the daemon reports, and ControlError for a line that makes no sense.
    """
    try:
        message = _loads(line)
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


def peer_uid(sock: trio.socket.SocketType | _socket.socket) -> int:
    """Of a client, who connected; of a server, who listens (unix(7), SO_PEERCRED: pid, uid, gid)."""
    credentials = sock.getsockopt(_socket.SOL_SOCKET, _socket.SO_PEERCRED, 12)
    return memoryview(credentials).cast("i")[1]


def _connect(state_dir: str, timeout: float | None) -> _socket.socket:
    sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM | _socket.SOCK_CLOEXEC)
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.settimeout(timeout)
            owner = os.fstat(directory).st_uid
            if os.geteuid() not in (0, owner):
                raise PermissionError
            sock.connect(f"/proc/self/fd/{directory}/{paths.CONTROL}")
            if peer_uid(sock) != owner:  # who listens there is not who made the directory
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
    sock = _connect(state_dir, timeout)
    try:
        try:  # noqa: SIM105 - `contextlib` has to be imported, too
            sock.sendall(encode({"op": op, "args": dict(args)}) if args else b'{"op":"%s"}\n' % op.encode("ascii"))
        except BrokenPipeError:
            pass  # refused before it was read: the answer that is there says why
        for line in _lines(sock):
            result = parse_answer(line, on_progress)
            if result is not None:
                return result
    except TimeoutError:
        raise ControlError(f"the daemon of {state_dir} has not answered for {timeout:g} seconds") from None
    except OSError:
        pass  # it died: said below
    finally:
        sock.close()
    raise DaemonGone("the daemon went away before it had answered")


def _lines(sock: _socket.socket) -> Iterator[bytes]:
    """What comes, line by line, to its end; also a last one that is cut off."""
    rest = b""
    while received := sock.recv(_RECEIVED):
        *lines, rest = (rest + received).split(b"\n")
        yield from lines
    if rest:
        yield rest
