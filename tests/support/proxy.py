"""An HTTP proxy on loopback between us and a real node, which goes wrong in the ways that a test asks for.

Not a mock: what is not told otherwise goes to the node and comes back byte for byte, streaming both ways. Each request
has a connection of its own to the node, which closes it after the answer; so the end of an answer is the end of the
connection, and no framing has to be understood but that of requests.

A `Rule` says what happens to requests of some commands (`dag/import`, or `block/*`); the first that fits and has not
been used up counts. Threads: one for the listener, one for each connection, one more for each answer under way.
"""

from __future__ import annotations

import contextlib
import json
import select
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import BinaryIO
from urllib.parse import parse_qs, urlsplit

_PIECE = 64 << 10
_DEADLINE = 60.0  # of anything here that waits, so that no thread outlives a test by much


@dataclass(slots=True)
class Request:
    """A request's head, and what has come of its body."""

    method: str
    command: str
    """`dag/import` of `/api/v0/dag/import?…`."""
    args: dict[str, list[str]]
    head: bytes
    body_bytes: int = 0
    """Of the body as it is sent, without the framing of chunks."""


class Act:
    """What happens to a request. This one: it goes to the node, and the answer comes back."""


@dataclass(frozen=True, slots=True)
class Cut(Act):
    """The connection breaks after so many bytes of the request's body, or of the answer with its head."""

    request_bytes: int | None = None
    answer_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Delay(Act):
    """It waits before it goes on to the node."""

    seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Hang(Act):
    """No answer, and nothing goes to the node, until `Proxy.release`, or the client gives up."""


@dataclass(frozen=True, slots=True)
class Answer(Act):
    """The node never sees it: the body is swallowed, and `make` gives the answer's body."""

    make: Callable[[Request], bytes]
    status: int = 200
    content_type: str = "application/json"


@dataclass(frozen=True, slots=True)
class Rewrite(Act):
    """The node does it, and `change` makes another answer's body of the true one."""

    change: Callable[[Request, bytes], bytes]


@dataclass(frozen=True, slots=True)
class Before(Act):
    """Something else happens at the node before it sees the request."""

    work: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Garbage(Act):
    """Bytes that are no HTTP."""

    data: bytes = b"\x00\x01SSH-2.0-no such thing\r\n\r\n" * 3


@dataclass(slots=True)
class Rule:
    """`act` for requests whose command is like `pattern`, `times` times (None: always)."""

    pattern: str
    act: Act
    times: int | None = None
    used: int = 0

    def fits(self, command: str) -> bool:
        """Whether it counts for this command."""
        return (self.times is None or self.used < self.times) and fnmatchcase(command, self.pattern)


@dataclass(slots=True)
class _Counts:
    requests: Counter[str] = field(default_factory=Counter)
    body_bytes: Counter[str] = field(default_factory=Counter)
    answered: Counter[str] = field(default_factory=Counter)


class Proxy:
    """Listens on a port of its own, which it keeps while it is `down`. `close` at the end."""

    def __init__(self, node: str) -> None:
        """`node` is the URL of the node's RPC API, `http://127.0.0.1:PORT`."""
        parts = urlsplit(node)
        assert parts.hostname is not None
        assert parts.port is not None
        self._node = (parts.hostname, parts.port)
        self._lock = threading.Lock()  # protects all below
        self._rules: list[Rule] = []
        self._counts = _Counts()
        self._open: set[socket.socket] = set()
        self._held = 0
        self._released = threading.Event()
        self._listener: socket.socket | None = None
        self._threads: list[threading.Thread] = []
        self._port = 0
        self.up()

    @property
    def url(self) -> str:
        """Where we stand in for the node."""
        return f"http://127.0.0.1:{self._port}"

    # --- what a test does -------------------------------------------------------------------------------------

    def rule(self, pattern: str, act: Act, times: int | None = None) -> Rule:
        """From now on, before all rules that are there already."""
        rule = Rule(pattern, act, times)
        with self._lock:
            self._rules.insert(0, rule)
        return rule

    def honest(self) -> None:
        """No rules any more; what hangs goes on to the node."""
        with self._lock:
            self._rules.clear()
        self.release()

    def release(self) -> None:
        """Let everything that hangs go on."""
        with self._lock:
            released, self._released = self._released, threading.Event()
        released.set()

    def down(self) -> None:
        """Refuse connections, and break those that are there."""
        with self._lock:
            listener, self._listener = self._listener, None
            broken = list(self._open)
        if listener is not None:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)  # wakes the thread in accept(2)
            listener.close()
        for sock in broken:
            _break(sock)
        self.release()

    def up(self, node: str | None = None) -> None:
        """Take connections, on the same port as before; `node`: to another node."""
        with self._lock:
            if node is not None:
                parts = urlsplit(node)
                self._node = (parts.hostname or "", parts.port or 0)
            if self._listener is not None:
                return
            listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", self._port))
            listener.listen(128)
            self._port = listener.getsockname()[1]
            self._listener = listener
        self._start(self._accept, listener)

    def close(self) -> None:
        """End everything."""
        self.down()
        for thread in self._threads:
            thread.join(_DEADLINE)
        assert not any(thread.is_alive() for thread in self._threads), "a thread of the proxy did not end"

    # --- what a test asks -------------------------------------------------------------------------------------

    def count(self, pattern: str = "*") -> int:
        """Requests for commands like `pattern` that have come so far, whatever became of them."""
        with self._lock:
            return sum(n for command, n in self._counts.requests.items() if fnmatchcase(command, pattern))

    def answered(self, pattern: str = "*") -> int:
        """Requests that were answered to the end."""
        with self._lock:
            return sum(n for command, n in self._counts.answered.items() if fnmatchcase(command, pattern))

    def body_bytes(self, pattern: str = "dag/import") -> int:
        """Bytes of bodies that went on to the node."""
        with self._lock:
            return sum(n for command, n in self._counts.body_bytes.items() if fnmatchcase(command, pattern))

    def counts(self) -> dict[str, int]:
        """All requests by command."""
        with self._lock:
            return dict(self._counts.requests)

    @property
    def held(self) -> int:
        """Requests that hang just now."""
        with self._lock:
            return self._held

    # --- threads ----------------------------------------------------------------------------------------------

    def _start(self, work: Callable[..., None], *args: object) -> threading.Thread:
        thread = threading.Thread(target=work, args=args, name="proxy", daemon=True)
        with self._lock:
            self._threads = [known for known in self._threads if known.is_alive() or known.ident is None]
            self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:  # down
                return
            self._start(self._connection, client)

    def _connection(self, client: socket.socket) -> None:
        with self._registered(client):
            client.settimeout(_DEADLINE)
            with contextlib.suppress(OSError), client.makefile("rb") as stream:
                request = _read_head(stream)
                if request is not None:
                    self._serve(client, stream, request)

    @contextlib.contextmanager
    def _registered(self, sock: socket.socket) -> Iterator[None]:
        """Known to `down` while it is used, and closed after that."""
        with self._lock:
            self._open.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _serve(self, client: socket.socket, stream: BinaryIO, request: Request) -> None:
        with self._lock:
            self._counts.requests[request.command] += 1
            rule = next((rule for rule in self._rules if rule.fits(request.command)), None)
            if rule is not None:
                rule.used += 1
            released = self._released
        match rule.act if rule is not None else Act():
            case Garbage(data=data):
                client.sendall(data)
                return
            case Hang():
                self._hold(client, released)
            case Delay(seconds=seconds):
                released.wait(seconds)
            case Before(work=work):
                work()
            case Answer(make=make, status=status, content_type=content_type):
                for _ in _body(stream, request):
                    pass
                client.sendall(_answer(make(request), status, content_type))
                self._answered(request)
                return
            case Cut() as cut:
                self._pass_on(client, stream, request, cut=cut)
                return
            case Rewrite(change=change):
                self._pass_on(client, stream, request, change=change)
                return
        self._pass_on(client, stream, request)

    def _hold(self, client: socket.socket, released: threading.Event) -> None:
        with self._lock:
            self._held += 1
        try:
            while not released.wait(0.05):
                if _has_gone(client):
                    raise ConnectionAbortedError
        finally:
            with self._lock:
                self._held -= 1

    def _answered(self, request: Request) -> None:
        with self._lock:
            self._counts.answered[request.command] += 1

    def _pass_on(
        self,
        client: socket.socket,
        stream: BinaryIO,
        request: Request,
        *,
        cut: Cut | None = None,
        change: Callable[[Request, bytes], bytes] | None = None,
    ) -> None:
        node = socket.create_connection(self._node, timeout=_DEADLINE)
        with self._registered(node):
            node.sendall(_without_keeping_alive(request.head))
            back = self._start(self._come_back, client, node, request, cut, change)
            try:
                for raw, size in _body(stream, request):
                    with self._lock:
                        self._counts.body_bytes[request.command] += size
                    node.sendall(raw)
                    if cut is not None and cut.request_bytes is not None and request.body_bytes >= cut.request_bytes:
                        _break(client)
                        _break(node)
                        break
            except OSError:
                _break(node)  # either has gone: there is nothing to come any more
            back.join(_DEADLINE * 2)

    def _come_back(
        self,
        client: socket.socket,
        node: socket.socket,
        request: Request,
        cut: Cut | None,
        change: Callable[[Request, bytes], bytes] | None,
    ) -> None:
        sent = 0
        try:
            if change is not None:
                whole = b"".join(iter(lambda: node.recv(_PIECE), b""))
                client.sendall(_answer(change(request, _answer_body(whole)), _status(whole), "application/json"))
                self._answered(request)
                _finish(client)
                return
            while data := node.recv(_PIECE):
                if cut is not None and cut.answer_bytes is not None:
                    data = data[: cut.answer_bytes - sent]
                client.sendall(data)
                sent += len(data)
                if cut is not None and cut.answer_bytes is not None and sent >= cut.answer_bytes:
                    _break(client)
                    _break(node)
                    return
            self._answered(request)
            _finish(client)
        except OSError:
            _break(client)


# --- HTTP, as much as is needed ----------------------------------------------------------------------------------


def _read_head(stream: BinaryIO) -> Request | None:
    lines = []
    while (line := stream.readline(_PIECE)) not in (b"\r\n", b""):
        lines.append(line)
    if not lines or not line:
        return None
    method, target, _ = lines[0].decode("latin-1").split(" ", 2)
    parts = urlsplit(target)
    command = parts.path.removeprefix("/api/v0/").strip("/")
    return Request(method, command, parse_qs(parts.query, keep_blank_values=True), b"".join(lines))


def _header(head: bytes, name: bytes) -> bytes | None:
    for line in head.splitlines()[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip()
    return None


def _without_keeping_alive(head: bytes) -> bytes:
    lines = [line for line in head.splitlines() if not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"Connection: close", b"", b""])


def _body(stream: BinaryIO, request: Request) -> Iterator[tuple[bytes, int]]:
    """The body as it came, in pieces, each with how much of it is content."""
    if (_header(request.head, b"transfer-encoding") or b"").lower() == b"chunked":
        while True:
            line = stream.readline(_PIECE)
            size = int(line.split(b";")[0], 16)
            yield line, 0
            left = size
            while left:
                data = _some(stream, left)
                left -= len(data)
                request.body_bytes += len(data)
                yield data, len(data)
            yield stream.readline(_PIECE), 0  # of the last chunk: no trailers are sent by us
            if size == 0:
                return
    left = int(_header(request.head, b"content-length") or 0)
    while left:
        data = _some(stream, left)
        left -= len(data)
        request.body_bytes += len(data)
        yield data, len(data)


def _some(stream: BinaryIO, most: int) -> bytes:
    data = stream.read(min(most, _PIECE))
    if not data:
        raise ConnectionAbortedError
    return data


def _answer(body: bytes, status: int, content_type: str) -> bytes:
    head = (
        f"HTTP/1.1 {status} As It Is\r\nContent-Type: {content_type}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + body


def _status(whole: bytes) -> int:
    return int(whole.split(b" ", 2)[1])


def _answer_body(whole: bytes) -> bytes:
    """The content of a whole answer, out of its chunks if it has any."""
    head, _, rest = whole.partition(b"\r\n\r\n")
    if (_header(head, b"transfer-encoding") or b"").lower() != b"chunked":
        return rest
    content = b""
    while True:
        line, _, rest = rest.partition(b"\r\n")
        size = int(line.split(b";")[0] or b"0", 16)
        if size == 0:
            return content
        content, rest = content + rest[:size], rest[size + 2 :]


def _has_gone(sock: socket.socket) -> bool:
    try:
        readable, _, _ = select.select([sock], [], [], 0)
        return bool(readable) and sock.recv(1, socket.MSG_PEEK) == b""
    except (OSError, ValueError):
        return True


def _finish(sock: socket.socket) -> None:
    """The answer is over; what is still to come of the request is not waited for."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_WR)


def _break(sock: socket.socket) -> None:
    """End a connection as a crash does: the other side gets a reset."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RDWR)


# --- lies --------------------------------------------------------------------------------------------------------

CONSTANT_CID = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku"  # of no bytes at all


def error_inside(_: Request) -> bytes:
    """Of dag/import: a 200 that was begun before the node noticed that its disk is full."""
    said = {"Message": "import failed: write /blocks: no space left on device", "Code": 0, "Type": "error"}
    return json.dumps(said).encode() + b"\n"


def constant_cid(_: Request) -> bytes:
    """Of dag/import: one root, always the same, and no word of how many blocks there were."""
    return json.dumps({"Root": {"Cid": {"/": CONSTANT_CID}, "PinErrorMsg": ""}}).encode() + b"\n"


def pinned_as_asked(request: Request) -> bytes:
    """Of pin/add and pin/update: done, it says."""
    return json.dumps({"Pins": request.args.get("arg", [])}).encode() + b"\n"


def flipped(_: Request, body: bytes) -> bytes:
    """Of block/get: as many bytes as there should be, and one of them another."""
    return bytes([body[0] ^ 1]) + body[1:] if body else b"x"


def internal_error(_: Request) -> bytes:
    """What Kubo says with a 500."""
    return json.dumps({"Message": "datastore is closed", "Code": 0, "Type": "error"}).encode() + b"\n"
