"""HTTP connections to one address, kept open between calls; blocking, for any thread.

On the standard library's http.client. Kubo sends blocks in chunks of 4 KiB, and a general client with a pure Python
parser makes several objects of each: httpx2 took three times as long for a block of 1 MiB, all of it with the
interpreter held, for which a request on the mount has to wait. It also shows no trailers, where Kubo says what went
wrong after an answer had begun (`X-Stream-Error`).
"""

from __future__ import annotations

import http.client
import select
import socket
import ssl
import threading
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fused.store.kubo.address import Address

CONNECT_S = 5.0
_IDLE_MOST = 16
_TRAILER = b"x-stream-error:"
_LINE = 65536

_GONE = (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError)


class NotConnected(OSError):
    """There was no connection to be had: nothing was sent. The cause is in `__cause__`."""


class Response(http.client.HTTPResponse):
    """An answer; `stream_error` is what its trailer says, once it was read to its end."""

    stream_error: str | None = None

    def _read_and_discard_trailer(self) -> None:  # called by http.client after the last chunk
        while True:
            line = self.fp.readline(_LINE)
            if line.lower().startswith(_TRAILER):
                self.stream_error = line[len(_TRAILER) :].decode(errors="replace").strip()
            if line in (b"\r\n", b"\n", b""):
                return


class Connections:
    """See the module. `close` it when no call is under way; those under way then close theirs."""

    def __init__(self, address: Address, headers: dict[str, str], tls: ssl.SSLContext | None) -> None:
        """`headers` go with every request. `tls` decides who is believed; None: whom the system believes."""
        url = urlsplit(address.url)
        self._host, self._port = url.hostname or "", url.port
        self._path = url.path
        self._socket = address.socket
        self._tls = (tls or ssl.create_default_context()) if url.scheme == "https" else None
        self._headers = headers
        self._lock = threading.Lock()  # held for moments: for the next two
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def post(
        self,
        target: str,
        wait_s: float,
        headers: dict[str, str] | None = None,
        body: Callable[[], Iterable[bytes]] | None = None,
    ) -> Call:
        """Send a request and wait for the head of its answer; `wait_s` for each sign of life.

        `body` is called again if an idle connection turns out to be closed. Raises OSError and HTTPException, and
        NotConnected; what `body` raises ends the connection in the middle of the request.
        """
        while True:
            connection, used = self._take()
            try:
                return Call(self, connection, self._send(connection, target, wait_s, headers or {}, body))
            except BaseException as err:
                connection.close()
                if not (used and isinstance(err, _GONE)):
                    raise

    def _send(
        self,
        connection: http.client.HTTPConnection,
        target: str,
        wait_s: float,
        headers: dict[str, str],
        body: Callable[[], Iterable[bytes]] | None,
    ) -> Response:
        if connection.sock is None:
            try:
                connection.connect()
            except OSError as err:
                raise NotConnected(str(err)) from err
        connection.sock.settimeout(wait_s)
        connection.putrequest("POST", self._path + target, skip_accept_encoding=True)
        for name, value in {"Content-Length": "0", **self._headers, **headers}.items():
            connection.putheader(name, value)
        try:
            connection.endheaders()
            for piece in body() if body is not None else ():
                connection.send(piece)
        except (BrokenPipeError, ConnectionResetError):
            if body is None:
                raise
            # A node that refuses does so before it has read all: its reason is what counts, if it still comes through.
        response = connection.getresponse()
        assert isinstance(response, Response)
        return response

    def _take(self) -> tuple[http.client.HTTPConnection, bool]:
        """A connection, and whether it was in use before."""
        while True:
            with self._lock:
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not _readable(connection):
                return connection, True
            connection.close()  # nothing was asked, so what can be read is its end
        return self._new(), False

    def _new(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._socket is not None:
            connection = _ToSocket(self._socket)
        elif self._tls is not None:
            connection = http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=self._tls)
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        connection.response_class = Response
        return connection

    def give_back(self, connection: http.client.HTTPConnection) -> None:
        """Keep a connection for the next request, if there is room."""
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE_MOST:
                self._idle.append(connection)
                return
        connection.close()

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            idle, self._idle, self._closed = self._idle, [], True
        for connection in idle:
            connection.close()


class Call:
    """An answer that is being read; use it in `with`. What is not read to its end costs the connection."""

    def __init__(self, connections: Connections, connection: http.client.HTTPConnection, response: Response) -> None:
        self._connections = connections
        self._connection = connection
        self.response = response

    def __enter__(self) -> Response:
        return self.response

    def __exit__(self, *_: object) -> None:
        # http.client closes the response when it has read the last byte of it.
        if self.response.isclosed() and self._connection.sock is not None:
            self._connections.give_back(self._connection)
        else:
            self.response.close()
            self._connection.close()


class _ToSocket(http.client.HTTPConnection):
    """A connection to a socket of the file system."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=CONNECT_S)
        self._path = path

    def connect(self) -> None:
        end = socket.socket(socket.AF_UNIX)
        try:
            end.settimeout(self.timeout)
            end.connect(self._path)
        except BaseException:
            end.close()
            raise
        self.sock = end


def _readable(connection: http.client.HTTPConnection) -> bool:
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))
