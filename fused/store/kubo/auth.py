"""What a node wants to know before it talks to us, out of a file: Kubo's API.Authorizations.

The file holds what an `AuthSecret` there holds: `bearer:TOKEN` or `basic:USER:PASSWORD`
(https://github.com/ipfs/kubo/blob/master/docs/config.md#apiauthorizations-authsecret). Its content goes into one header
and nowhere else: no message, log or repr has it.
"""

from __future__ import annotations

import base64
import os
import stat

from fused.errors import UsageError
from fused.private import why_not_believed

_MOST = 8192  # bytes; what HTTP servers take for a header, by default
_FORMS = "it must hold bearer:TOKEN or basic:USER:PASSWORD"


class Secret:
    """The header's value, hidden from whoever prints it by accident."""

    __slots__ = ("_header", "file")

    def __init__(self, file: str, header: str) -> None:
        self.file = file
        self._header = header

    def headers(self) -> dict[str, str]:
        """For a request."""
        return {"Authorization": self._header}

    def __repr__(self) -> str:
        return f"<Secret of {self.file}>"


def read_secret(path: str) -> Secret:
    """Read an authorization file, which nobody but us and root may be able to read. Raises UsageError."""
    what = f"the authorization file {path}"
    try:
        with open(path, "rb") as file:
            st = os.fstat(file.fileno())
            if not stat.S_ISREG(st.st_mode):
                raise UsageError(f"{what} is not a file")
            if why := why_not_believed(st):
                raise UsageError(f"{what} {why}")
            if st.st_mode & 0o077:
                raise UsageError(f"{what} can be read by others; run: chmod 600 {path}")
            raw = file.read(_MOST + 1)
    except OSError as err:
        raise UsageError(f"{what} can't be read: {err.strerror}") from None
    return Secret(path, _header(raw, what))


def _header(raw: bytes, what: str) -> str:
    # No cause is chained anywhere here: it would show the text.
    if len(raw) > _MOST:
        raise UsageError(f"{what} is too long; {_FORMS}")
    try:
        text = raw.decode().strip()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not text; {_FORMS}") from None
    kind, colon, value = text.partition(":")
    if not colon or not value or not value.isprintable():
        raise UsageError(f"{what} is not understood; {_FORMS}")
    if kind == "basic" and ":" in value:
        return "Basic " + base64.b64encode(value.encode()).decode()
    if kind == "bearer" and value.isascii() and " " not in value:
        return "Bearer " + value
    raise UsageError(f"{what} is not understood; {_FORMS}")
