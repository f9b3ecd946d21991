"""The storing process: reads, hashes and stores chunks of large files, one thing at a time.

    python -ISB -c … FD PARENT DIRECTORY DATABASE GRACE      started and spoken to by `storer.py`, and by nobody else

A request is a packet on the Unix socket FD: which chunks of a file of what size, and with it a descriptor of the file.
The answer, when they are durable, are their CIDs. No event loop, no FUSE, no thread; it knows nothing of snapshots.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from fused.cid import RAW, cid_of
from fused.dag.chunker import CHUNK, chunk_size
from fused.errors import StoreUnavailable
from fused.store.blocking import BlockingStore
from fused.turns import take_long_turns
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Sequence

IDLE_SECONDS = 60.0
"""How long it waits for another request before it ends. Starting it takes a tenth of a second."""

NICE = 5

MAX_PACKET = 64 << 10

_PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def main() -> None:
    """Serve until the other end of the socket is closed, or nothing is asked for a while."""
    fd, parent, directory, database, grace_s = sys.argv[1:6]
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # They come to all processes of a terminal or a unit. The daemon has a last snapshot to take after them.
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):  # it died before it could be our death
        return
    take_long_turns(NICE)
    with socket.socket(fileno=int(fd)) as peer:
        try:
            with _open(directory, database, float(grace_s)) as store:
                _serve(peer, store)
        except StoreUnavailable as exc:
            _answer_with(peer, {"refused": str(exc)})


def _open(directory: str, database: str, grace_s: float) -> BlockingStore:
    """The store that the daemon has open, and no other that was put in its place. Raises StoreUnavailable."""
    if database != identity(directory):
        raise StoreUnavailable(f"the store {directory} was removed or replaced")
    return BlockingStore(directory, grace_s=grace_s)


def identity(directory: str) -> str:
    """What tells the embedded store in `directory` from any other, as long as somebody has it open."""
    try:
        st = os.stat(os.path.join(directory, "blocks.sqlite3"))
    except OSError:
        return ""
    return f"{st.st_dev}:{st.st_ino}"


def _serve(peer: socket.socket, store: BlockingStore) -> None:
    peer.settimeout(IDLE_SECONDS)
    while True:
        try:
            packet, fds, _, _ = socket.recv_fds(peer, MAX_PACKET, 1)
        except (TimeoutError, ConnectionError):
            return
        if not packet:
            return
        try:
            answer = _handle(store, json.loads(packet), fds)
        except MemoryError:
            answer = {"refused": "out of memory"}
        finally:
            for fd in fds:
                os.close(fd)
        if not _answer_with(peer, answer):
            return


def _answer_with(peer: socket.socket, answer: dict[str, object]) -> bool:
    """Whether anybody is there to hear it."""
    try:
        peer.send(json.dumps(answer).encode("ascii"))
    except ConnectionError:
        return False
    return True


def _handle(store: BlockingStore, request: dict[str, object], fds: Sequence[int]) -> dict[str, object]:
    if not fds:
        return {"refused": "out of descriptors"}
    try:
        return store_chunks(store, fds[0], request["chunks"], request["size"])  # type: ignore[arg-type]  # ours
    except StoreUnavailable as exc:
        return {"failed": type(exc).__name__, "message": str(exc)}
    except OSError as exc:
        return {"errno": exc.errno, "message": exc.strerror}


def store_chunks(store: BlockingStore, fd: int, chunks: Sequence[int], size: int) -> dict[str, object]:
    """Store these chunks of a file of `size` bytes. What is shorter than it should be is left out, with None for a CID.

    Raises StoreUnavailable, and OSError if the file can't be read.
    """
    blocks: list[Block] = []
    cids: list[str | None] = []
    for i in chunks:
        want = chunk_size(size, i)
        data = os.pread(fd, want, i * CHUNK)
        while 0 < len(data) < want and (more := os.pread(fd, want - len(data), i * CHUNK + len(data))):
            data += more
        if len(data) != want:
            cids.append(None)
            continue
        block = Block(cid_of(RAW, data), data)
        blocks.append(block)
        cids.append(block.cid.hex())
    return {"cids": cids, "new": store.rows.put(blocks)}
