"""Kubo's RPC API over HTTP, one blocking call at a time: https://docs.ipfs.tech/reference/kubo/rpc/. No trio here.

Not for: what the commands mean (`node.py`). Whatever goes wrong between us and a node becomes one sentence here, which
names the node and never the secret. Every call has a deadline for each wait (a connection, a send, a piece of the
answer) and a limit on what it takes.
"""

from __future__ import annotations

import http.client
import json
import logging
import secrets
import ssl
import threading
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlencode

from fused.errors import StoreUnavailable, UsageError
from fused.store.kubo.connections import CONNECT_S, Connections, NotConnected

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Iterator

    from fused.store.kubo.address import Address, Place
    from fused.store.kubo.auth import Secret
    from fused.store.kubo.connections import Call, Response

ANSWER_S = 30.0
"""For any sign of life; another where a command works long in silence."""

_ANSWER_BYTES = 256 << 20  # a list of two million pins; a node that sends more without end is none
_LINE_BYTES = 1 << 20
_SAID_CHARS = 300  # of what a node says, in a sentence of ours
_REFUSED = (401, 403)
_READ = 64 << 10

log = logging.getLogger(__name__)


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
        self._lock = threading.Lock()  # held for moments: for all that follows
        self._connections: Connections | None = None
        self._address: Address | None = None
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
        with _Explained(self), self._post(command, args, options, wait_s) as response:
            return self._body(response, command, most)

    def ask(self, command: str, *args: str, wait_s: float = ANSWER_S, **options: str) -> dict[str, Any]:
        """The one JSON object of the answer."""
        with _Explained(self), self._post(command, args, options, wait_s) as response:
            return self._object(command, self._body(response, command, _ANSWER_BYTES))

    def lines(self, command: str, *args: str, wait_s: float = ANSWER_S, **options: str) -> Generator[dict[str, Any]]:
        """The JSON objects of an answer that comes bit by bit, one a line. Close it if it is not read to its end."""
        with _Explained(self), self._post(command, args, options, wait_s) as response:
            self._check(response, command)
            rest = b""
            while piece := response.read1(_READ):
                *whole, rest = (rest + piece).split(b"\n")
                if len(rest) > _LINE_BYTES:
                    raise self.senseless(command, "a line without end")
                for line in whole:
                    if line.strip():
                        yield self._object(command, line)
            if rest.strip():
                yield self._object(command, rest)
            self._check_end(response)

    def send(
        self, command: str, pieces: Callable[[], Iterable[bytes]], size: int, *, wait_s: float, **options: str
    ) -> bytes:
        """Send the pieces, of `size` bytes together, as the command's file. Returns the body of the answer.

        `pieces` may be called twice. An exception out of it cuts the connection, so that the node sees that the file
        is not whole, and passes.
        """
        boundary = secrets.token_hex(24)  # new each time, or a file that holds it could never be stored
        head = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="file"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        tail = f"\r\n--{boundary}--\r\n".encode()

        def body() -> Iterator[bytes]:
            yield head
            yield from pieces()
            yield tail

        headers = {
            "Content-Type": f"multipart/form-data; boundary={boundary}",
            "Content-Length": str(len(head) + size + len(tail)),
        }
        with _Explained(self), self._post(command, (), options, wait_s, headers, body) as response:
            return self._body(response, command, _LINE_BYTES)

    def _post(
        self,
        command: str,
        args: tuple[str, ...],
        options: dict[str, str],
        wait_s: float,
        headers: dict[str, str] | None = None,
        body: Callable[[], Iterable[bytes]] | None = None,
    ) -> Call:
        # Python's keywords have no hyphens: allow_big_block is allow-big-block.
        query = [("arg", arg) for arg in args] + [(name.replace("_", "-"), value) for name, value in options.items()]
        return self._connected().post(f"/api/v0/{command}?{urlencode(query)}", wait_s, headers, body)

    def _body(self, response: Response, command: str, most: int) -> bytes:
        self._check(response, command)
        body = response.read(most + 1)
        if len(body) > most:
            raise TooMuch(f"{self} answered {command} with more than {most} bytes")
        if response.length:  # promised and not come, which http.client leaves to us
            raise http.client.IncompleteRead(body, response.length)
        self._check_end(response)
        return body

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

    def _check(self, response: Response, command: str) -> None:
        status = response.status
        if status == 200:
            return
        text = response.read(_LINE_BYTES)
        if status in _REFUSED:
            raise NodeSaid(f"{self} refuses us ({status}): {self._about_secret()}", "")
        try:
            said = json.loads(text)["Message"]
        except (ValueError, KeyError, TypeError, RecursionError):
            if status == 404:
                raise NoContact(f"what answers as {self} has no RPC API there (404): is it another port?") from None
            raise NoContact(f"{self} answered {command} with the HTTP status {status}: {_shown(text)}") from None
        raise NodeSaid(f"{self} says: {_shown(said)}", str(said))

    def _check_end(self, response: Response) -> None:
        """After the last byte: what went wrong after the status had been sent."""
        if response.stream_error is not None:
            raise NodeSaid(f"{self} says: {_shown(response.stream_error)}", response.stream_error)

    def _about_secret(self) -> str:
        if self._secret is None:
            return "it wants authorization (API.Authorizations in its configuration), and no file with a secret is set"
        return f"the secret in {self._secret.file} is not one of its API.Authorizations, or is not for this API"

    # --- connecting -------------------------------------------------------------------------------------------

    def _connected(self) -> Connections:
        with self._lock:
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if self._connections is None:
                try:
                    self._address = address = self._place.find()
                except UsageError as err:
                    raise NoContact(str(err)) from None
                if self._secret is not None and not address.encrypted:
                    log.warning("the secret for the node at %s goes over the network in the clear: use https", address)
                headers = {} if self._secret is None else self._secret.headers()
                self._connections = Connections(address, headers, self._tls)
            return self._connections

    def lost_contact(self) -> None:
        """Ask anew where the node is before the next call: it may have come back at another port."""
        with self._lock:
            self.losses += 1
            if self._connections is not None and self._place.find_quietly() not in (None, self._address):
                self._connections.close()
                self._connections = None

    def close(self) -> None:
        """Close all connections. Idempotent."""
        with self._lock:
            connections, self._connections, self._closed = self._connections, None, True
        if connections is not None:
            connections.close()


class TooMuch(StoreUnavailable):
    """The answer has more bytes than what was asked for can have."""


class _Explained:
    """Turns what http.client raises into NoContact."""

    def __init__(self, rpc: Rpc) -> None:
        self._rpc = rpc

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        if isinstance(error, (OSError, http.client.HTTPException, UnicodeError)):
            self._rpc.lost_contact()
            raise NoContact(f"{self._rpc} {_why(error)}") from error
        if isinstance(error, NoContact):
            self._rpc.lost_contact()


def _why(error: BaseException) -> str:
    if isinstance(error, NotConnected):
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"is not believed, as its certificate is not ({cause.verify_message}); a CA of your own can be set"
        if isinstance(cause, TimeoutError):
            return f"did not take a connection within {CONNECT_S:g} s"
        why = (cause.strerror or str(cause)) if isinstance(cause, OSError) else str(cause)
        return f"can't be reached ({why}): is it running?"
    if isinstance(error, TimeoutError):
        return "takes connections, but does not answer"
    return f"broke off ({str(error) or type(error).__name__})"


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
