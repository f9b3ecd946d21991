"""Where a node's RPC API is: what stands behind `--store kubo=`, or the usual place, as something to connect to.

Understood are URLs (`http://host:5001`, `https://host/path`, `unix:///run/kubo.sock`) and the multiaddrs that Kubo
itself writes to `$IPFS_PATH/api`: `/ip4/…/tcp/…`, `/dns…/…/tcp/…/https`, `/unix/…`
(https://github.com/multiformats/multiaddr). Nothing is contacted here.
"""

from __future__ import annotations

import hashlib
import ipaddress
import os
import re
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from fused.errors import UsageError

USUAL = "http://127.0.0.1:5001"
_WANTED = "a URL (http://HOST:PORT, https://…, unix:///PATH) or a multiaddr (/ip4/…/tcp/PORT, /unix/PATH) is wanted"
_HOST = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,251}[A-Za-z0-9_.])?")
_API = "/api/v0"


@dataclass(frozen=True, slots=True)
class Address:
    """A base URL without a slash at its end, and the socket that stands for its host, if it is one."""

    url: str
    socket: str | None = None

    def __str__(self) -> str:
        return self.url if self.socket is None else f"unix://{self.socket}"

    @property
    def encrypted(self) -> bool:
        """Whether nobody on the way can listen."""
        return self.url.startswith("https:") or self.socket is not None or _is_loopback(urlsplit(self.url).hostname)


class Place:
    """The address as it was given. Where none was, the node says where it is, in a file, each time that it starts."""

    def __init__(self, given: str | None) -> None:
        """Raises UsageError for what is no address."""
        self._given = None if given is None else parse_address(given)
        self._file = os.path.join(os.environ.get("IPFS_PATH") or os.path.expanduser("~/.ipfs"), "api")

    def find(self) -> Address:
        """The address of now. Raises UsageError if the node has written nonsense."""
        if self._given is not None:
            return self._given
        try:
            with open(self._file, encoding="utf-8") as file:
                text = file.read(4096).strip()
        except (OSError, UnicodeDecodeError):  # no node has run here, or it is not ours to read
            return parse_address(USUAL)
        try:
            return parse_address(text)
        except UsageError as err:
            raise UsageError(f"{self._file} does not say where the node is: {err}") from None

    def find_quietly(self) -> Address | None:
        """The same, None for nonsense."""
        try:
            return self.find()
        except UsageError:
            return None

    @property
    def key(self) -> str:
        """A directory name that is the same for the same place."""
        place = self._file if self._given is None else str(self._given)
        return "kubo-" + hashlib.sha256(os.fsencode(place)).hexdigest()[:24]


def parse_address(text: str) -> Address:
    """See the module. Raises UsageError with a sentence that shows no password."""
    if any(ch.isspace() or not ch.isprintable() for ch in text):
        raise UsageError(f"a node's address has no blanks or control characters in it; {_WANTED}")
    if text.startswith("/"):
        return _from_multiaddr(text)
    if text.startswith("unix://"):
        return _at_socket(text.removeprefix("unix://"))
    return _from_url(text)


def _at_socket(path: str) -> Address:
    if not path.startswith("/") or path.endswith("/"):
        raise UsageError(f"unix://{path} names no socket; unix:///PATH is wanted, with a whole path")
    return Address("http://localhost", path)


def _from_url(text: str) -> Address:
    try:
        url = urlsplit(text)
        host, port = url.hostname, url.port
    except ValueError:
        raise UsageError(f"that is no address of a node; {_WANTED}") from None
    if "@" in url.netloc or "@" in url.path:
        raise UsageError(
            "a node's address must have no user or password in it, as others can see it; put them into a file, "
            "as basic:USER:PASSWORD or bearer:TOKEN"
        )
    if url.scheme not in ("http", "https") or not host:
        raise UsageError(f"{text!r} is no address of a node; {_WANTED}")
    if url.query or url.fragment:
        raise UsageError(f"a node's address has no ? or # in it; {_WANTED}")
    path = url.path.rstrip("/").removesuffix(_API)
    return Address(f"{url.scheme}://{_in_url(host, text)}{'' if port is None else f':{port}'}{quote(path, '/%')}")


def _from_multiaddr(text: str) -> Address:
    kind, _, rest = text[1:].partition("/")
    if kind == "unix":
        return _at_socket("/" + rest)
    words = text[1:].rstrip("/").split("/")
    if len(words) < 4 or kind not in ("ip4", "ip6", "dns", "dns4", "dns6", "dnsaddr") or words[2] != "tcp":
        raise UsageError(f"{text!r} is no address of a node's API; {_WANTED}")
    port, end = words[3], tuple(words[4:])
    if not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
        raise UsageError(f"{text!r} has no port from 1 to 65535")
    if end not in ((), ("http",), ("https",), ("tls",), ("tls", "http")):
        raise UsageError(f"{text!r} ends in something else than /http, /https or /tls/http")
    scheme = "https" if end and end != ("http",) else "http"
    if kind.startswith("ip"):
        try:
            right = kind == f"ip{ipaddress.ip_address(words[1]).version}"
        except ValueError:
            right = False
        if not right:
            raise UsageError(f"{text!r} has no {kind} address in it")
    return Address(f"{scheme}://{_in_url(words[1], text)}:{int(port)}")


def _in_url(host: str, text: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        if not _HOST.fullmatch(host):
            raise UsageError(f"{text!r} has no name or number of a host in it") from None
        return host


def _is_loopback(host: str | None) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
