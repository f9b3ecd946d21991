"""The daemon's end of the storing process (`storing.py`): started when it is first needed, asked, and let go of.

Reading, hashing and writing a large file keeps more than one processor busy if threads do it side by side, and then
every program that is woken by an answer waits for one (`docs/performance.md`). Another process does it one thing at
a time, in long turns that all others may interrupt, and never holds the interpreter that serves requests.

It owns nothing that matters: whatever becomes of it, the daemon can do its work, and does so.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, NamedTuple

import fused
from fused import errors
from fused.cid import CID
from fused.dag.seal import plain_seal
from fused.errors import StoreUnavailable
from fused.store.embedded import EmbeddedStore
from fused.sync.storing import MAX_PACKET, identity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fused.dag.seal import Seal

log = logging.getLogger(__name__)

AGAIN_SECONDS = 60.0
"""After it could not be started, or died."""

_END_SECONDS = 10.0

_BOOT = "import sys; sys.path[:] = sys.argv[6:]; from fused.sync.storing import main; main()"


class Stored(NamedTuple):
    """`cids` are those of the chunks that were asked for, None where the file was too short; `new` is how many were."""

    cids: list[CID | None]
    new: int


class _Refused(Exception):
    """It can't do this one, or does not live."""


def storer_for(store: object, seal: Seal) -> Storer | None:
    """A storer for `store`; None if it is no store that another process may write to, or has blocks made otherwise."""
    if isinstance(store, EmbeddedStore) and seal is plain_seal:
        return Storer(store.path, store.grace_s)
    return None


class Storer:
    """For one thread at a time. `close` it in the end."""

    def __init__(self, directory: str, grace_s: float) -> None:
        """`directory` is that of an embedded store, which is there already. Starts nothing yet."""
        self._store = [directory, identity(directory), str(grace_s)]
        self._peer: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._keeper: threading.Thread | None = None
        self._not_before = 0.0
        self._told = False

    def store(self, fd: int, chunks: Sequence[int], size: int) -> Stored | None:
        """Have these chunks of the file open at `fd`, which has `size` bytes, read and stored durably.

        None if that can't be done now: then it is to be done here. Raises StoreUnavailable, and OSError if the file
        can't be read.
        """
        if time.monotonic() < self._not_before:
            return None
        request = json.dumps({"chunks": list(chunks), "size": size}).encode("ascii")
        try:
            return self._ask(request, fd)
        except _Refused as exc:
            self._not_before = time.monotonic() + AGAIN_SECONDS
            self.close()
            if not self._told:
                self._told = True
                log.warning("there is no storing process, large files are stored by the daemon itself: %s", exc)
            return None

    def _ask(self, request: bytes, fd: int) -> Stored:
        while True:
            started = self._peer is None
            peer = self._peer or self._start()
            try:
                socket.send_fds(peer, [request], [fd])
                answer = peer.recv(MAX_PACKET)
            except ConnectionError:
                answer = b""
            except OSError as exc:
                raise _Refused(exc.strerror) from exc
            if answer:
                return _understood(json.loads(answer))
            code = self._end()
            if code != 0 or started:
                raise _Refused(f"it ended with code {code}")
            # It had nothing to do for a while and has just gone.

    def close(self) -> None:
        """Let the process end, and wait for it."""
        if self._peer is not None:
            self._end()

    # --- its life ---------------------------------------------------------------------------------------------

    def _start(self) -> socket.socket:
        ours, theirs = None, None
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            started: Future[subprocess.Popen[bytes]] = Future()
            self._keeper = threading.Thread(target=self._keep, args=(theirs, started), name="keeper", daemon=True)
            self._keeper.start()
            self._process = started.result()
        except (OSError, RuntimeError, MemoryError, ValueError) as exc:  # RuntimeError: "can't start new thread"
            if ours is not None:
                ours.close()
            raise _Refused(str(exc)) from exc
        finally:
            if theirs is not None:
                theirs.close()
        self._peer = ours
        return ours

    def _keep(self, theirs: socket.socket, started: Future[subprocess.Popen[bytes]]) -> None:
        """Start the process and wait for its end: in a thread of its own, as it is killed when that ends (prctl(2))."""
        places = [place for place in sys.path if os.path.isabs(place)]
        places.append(os.path.dirname(os.path.dirname(os.path.abspath(fused.__file__))))
        # Isolated, and without `site`: it imports from where this process does, and never from under its mount.
        command = [sys.executable, "-ISB", "-c", _BOOT, str(theirs.fileno()), str(os.getpid()), *self._store, *places]
        try:
            process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], cwd="/", stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
            )
        except BaseException as exc:
            started.set_exception(exc)
            return
        started.set_result(process)
        process.wait()

    def _end(self) -> int | None:
        """Let it go, and return its exit code; None if it does not even end when it is killed."""
        peer, process, keeper = self._peer, self._process, self._keeper
        self._peer = self._process = self._keeper = None
        if peer is None or process is None or keeper is None:
            return None
        peer.close()
        keeper.join(_END_SECONDS)
        if keeper.is_alive():
            process.kill()
            keeper.join(_END_SECONDS)
        return process.returncode


def _understood(answer: dict[str, object]) -> Stored:
    message = str(answer.get("message"))
    if "refused" in answer:
        raise _Refused(str(answer["refused"]))
    if "failed" in answer:
        kind = getattr(errors, str(answer["failed"]), StoreUnavailable)
        raise kind(message)
    if "errno" in answer:
        raise OSError(answer["errno"], message)
    cids: list[str | None] = answer["cids"]  # type: ignore[assignment]  # ours
    return Stored([None if cid is None else CID(bytes.fromhex(cid)) for cid in cids], int(str(answer["new"])))
