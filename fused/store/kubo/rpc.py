"""Kubo's RPC API over HTTP, one blocking call at a time: https://docs.ipfs.tech/reference/kubo/rpc/. No trio here.

Not for: what the commands mean (`node.py`). Whatever goes wrong between us and a node becomes one sentence here, which
names the node and never the secret. Every call has a deadline for each wait (a connection, a send, a piece of the
answer) and a limit on what it takes.
"""

from __future__ import annotations

import json
import logging
import ssl
import threading
from typing import TYPE_CHECKING, Any, cast

import httpx2

from fused.errors import StoreUnavailable, UsageError

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator

    from fused.store.kubo.address import Address, Place
    from fused.store.kubo.auth import Secret

CONNECT_S = 5.0
ANSWER_S = 30.0
"""For a connection, and for any further sign of life; another where a command works long in silence."""

_ANSWER_BYTES = 256 << 20  # a list of two million pins; a node that sends more without end is none
_LINE_BYTES = 1 << 20
_SAID_CHARS = 300  # of what a node says, in a sentence of ours
_BOUNDARY = "ipfsfs-5f0c2d5b7e1a4c0e9d3b"
_CONNECTIONS = 16
_REFUSED = (401, 403)

log = logging.getLogger(__name__)

Options = dict[str, str]


class NoContact(StoreUnavailable):
    """The node did not answer, or what answered is none: nothing that was known of it need be true any more."""


class NodeSaid(StoreUnavailable):
    """The node answered with an error of its own. `said` is its text."""

    def __init__(self, sentence: str, said: str) -> None:
        super().__init__(sentence)
        self.said = said


class Rpc:
    """Calls to one node, from any thread. Close it when no call is under way."""

    def __init__(self, place: Place, secret: Secret | None, ca_file: str | None) -> None:
        """Contacts nobody. Raises UsageError if `ca_file` is no list of certificates."""
        self._place = place
        self._secret = secret
        self._tls = _trust(ca_file) if ca_file is not None else None
        self._lock = threading.Lock()  # held for moments: for `_client` and `_address`
        self._client: httpx2.Client | None = None
        self._address: Address | None = None
        self._left: list[httpx2.Client] = []
        self._closed = False
        self.losses = 0
        """How often contact was lost: changes whenever another node may be there than before."""

    def __str__(self) -> str:
        address = self._address
        if address is None:
            try:
                address = self._place.find()
            except UsageError:
                return "the Kubo node"
        return f"the Kubo node at {address}"

    @property
    def address(self) -> str:
        """For people."""
        return str(self).removeprefix("the Kubo node at ")

    # --- calls ------------------------------------------------------------------------------------------------

    def call(
        self, command: str, *args: str, most: int = _ANSWER_BYTES, wait_s: float = ANSWER_S, **options: str
    ) -> bytes:
        """The body of the answer. Raises StoreUnavailable: NodeSaid, NoContact, or TooMuch above `most` bytes."""
        with _Explained(self), self._stream(command, args, options, wait_s) as response:
            return self._body(response, command, most)

    def ask(self, command: str, *args: str, wait_s: float = ANSWER_S, **options: str) -> dict[str, Any]:
        """The one JSON object of the answer."""
        with _Explained(self), self._stream(command, args, options, wait_s) as response:
            return self._object(command, self._body(response, command, _ANSWER_BYTES))

    def lines(self, command: str, *args: str, wait_s: float = ANSWER_S, **options: str) -> Generator[dict[str, Any]]:
        """The JSON objects of an answer that comes bit by bit, one a line. Close it if it is not read to its end."""
        with _Explained(self), self._stream(command, args, options, wait_s) as response:
            self._check(response, command)
            rest = b""
            for piece in response.iter_bytes():
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) > _LINE_BYTES:
                    raise self.senseless(command, "a line without end")
                for line in whole:
                    if line.strip():
                        yield self._object(command, line)
            if rest.strip():
                yield self._object(command, rest)

    def send(self, command: str, pieces: Iterable[bytes], size: int, **options: str) -> bytes:
        """Send `pieces`, of `size` bytes together, as the command's file. Returns the body of the answer.

        An exception out of `pieces` cuts the connection, so the node sees that the file is not whole, and passes.
        """
        head = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{_BOUNDARY}--\r\n".encode()

        def body() -> Iterator[bytes]:
            yield head
            yield from pieces
            yield tail

        headers = {
            "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        with _Explained(self), self._stream(command, (), options, ANSWER_S, headers, body()) as response:
            return self._body(response, command, _LINE_BYTES)

    def _stream(
        self,
        command: str,
        args: tuple[str, ...],
        options: Options,
        wait_s: float,
        headers: dict[str, str] | None = None,
        content: Iterator[bytes] | None = None,
    ) -> Any:  # httpx2's context manager
        client = self._connected()
        # Python's keywords have no hyphens: allow_big_block is allow-big-block.
        query: list[tuple[str, str | int | float | bool | None]] = [("arg", arg) for arg in args]
        query += [(name.replace("_", "-"), value) for name, value in options.items()]
        timeout = httpx2.Timeout(wait_s, connect=CONNECT_S, pool=max(wait_s, ANSWER_S))
        return client.stream(
            "POST", f"{self._base}/api/v0/{command}", params=query, headers=headers, content=content, timeout=timeout
        )

    def _body(self, response: httpx2.Response, command: str, most: int) -> bytes:
        self._check(response, command)
        parts: list[bytes] = []
        size = 0
        for piece in response.iter_bytes():
            parts.append(piece)
            size += len(piece)
            if size > most:
                raise TooMuch(f"{self} answered {command} with more than {most} bytes")
        return b"".join(parts)

    def _object(self, command: str, text: bytes) -> dict[str, Any]:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise self.senseless(command, _shown(text)) from None
        if not isinstance(value, dict):
            raise self.senseless(command, _shown(text))
        # What goes wrong after the answer has begun can't be told by its status any more.
        if value.get("Type") == "error" and "Message" in value:
            raise NodeSaid(f"{self} says: {_shown(value['Message'])}", str(value["Message"]))
        return cast("dict[str, Any]", value)

    def senseless(self, command: str, what: str) -> NoContact:
        """The error for an answer that no Kubo node gives."""
        return NoContact(f"what answers as {self} is no Kubo node that we understand: {command} gave {what}")

    # --- errors -----------------------------------------------------------------------------------------------

    def _check(self, response: httpx2.Response, command: str) -> None:
        status = response.status_code
        if status == 200:
            return
        if status in _REFUSED:
            raise NodeSaid(f"{self} refuses us ({status}): {self._about_secret()}", "")
        text = b""
        for piece in response.iter_bytes():
            text += piece
            if len(text) > _LINE_BYTES:
                break
        try:
            said = json.loads(text)["Message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            if status == 404:
                raise NoContact(f"what answers as {self} has no RPC API there (404): is it another port?") from None
            raise NoContact(f"{self} answered {command} with the HTTP status {status}: {_shown(text)}") from None
        raise NodeSaid(f"{self} says: {_shown(said)}", str(said))

    def _about_secret(self) -> str:
        if self._secret is None:
            return "it wants authorization (API.Authorizations in its configuration), and no file with a secret is set"
        return f"the secret in {self._secret.file} is not one of its API.Authorizations, or is not for this API"

    # --- connecting -------------------------------------------------------------------------------------------

    def _connected(self) -> httpx2.Client:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._client is None:
                try:
                    self._address = self._place.find()
                except UsageError as err:
                    raise NoContact(str(err)) from None
                self._client = self._new_client(self._address)
            return self._client

    def _new_client(self, address: Address) -> httpx2.Client:
        if self._secret is not None and not address.encrypted:
            log.warning("the secret for the node at %s goes over the network in the clear: use https", address)
        self._base = address.url
        transport = httpx2.HTTPTransport(
            verify=self._tls if self._tls is not None else ssl.create_default_context(),
            uds=address.socket,
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=_CONNECTIONS),
            trust_env=False,  # a proxy of the environment is for the world outside, and would see the secret
        )
        headers = {} if self._secret is None else self._secret.headers()
        return httpx2.Client(transport=transport, headers=headers, trust_env=False)

    def lost_contact(self) -> None:
        """Ask anew where the node is before the next call: it may have come back at another port."""
        with self._lock:
            self.losses += 1
            if self._client is None or self._place.find_quietly() in (None, self._address):
                return
            self._left.append(self._client)  # closed in the end: others may be in the middle of a call on it
            self._client = None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            clients = [*self._left, *([self._client] if self._client is not None else [])]
            self._left, self._client, self._closed = [], None, True
        for client in clients:
            client.close()


class TooMuch(StoreUnavailable):
    """The answer has more bytes than what was asked for can have."""


class _Explained:
    """Turns what httpx raises into NoContact."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (httpx2.HTTPError, httpx2.StreamError, httpx2.InvalidURL, OSError)):
            self._rpc.lost_contact()
            raise NoContact(f"{self._rpc} {_why(error)}") from error
        if isinstance(error, NoContact):
            self._rpc.lost_contact()


def _why(error: BaseException) -> str:
    text = str(error)
    if isinstance(error, httpx2.ConnectTimeout):
        return f"did not take a connection within {CONNECT_S:g} s"
    if isinstance(error, httpx2.TimeoutException):
        return "takes connections, but does not answer"
    if isinstance(error, httpx2.ConnectError):
        if "CERTIFICATE" in text.upper():
            return f"is not believed, as its certificate is not: {text}; a CA of your own can be set"
        return f"can't be reached ({text}): is it running?"
    return f"broke off ({text or type(error).__name__})"


def _shown(text: object) -> str:
    said = text.decode(errors="replace") if isinstance(text, bytes) else str(text)
    said = " ".join("".join(ch if ch.isprintable() else " " for ch in said).split())
    return said if len(said) <= _SAID_CHARS else said[:_SAID_CHARS] + "…"


def _trust(ca_file: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        context.load_verify_locations(ca_file)
    except OSError as err:  # ssl.SSLError is one
        raise UsageError(f"the file of certificates {ca_file} can't be used: {err.strerror or err}") from None
    return context
