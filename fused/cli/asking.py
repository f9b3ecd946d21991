"""Ask a node how it is, from a command that goes on without trio and threads: `mount` forks the daemon afterwards."""

from __future__ import annotations

import json
import logging
import os
import select
import signal
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, NoReturn

from fused.store.base import NodeStatus

if TYPE_CHECKING:
    from fused.store.base import NodeStore
    from fused.store.spec import StoreSpec

ANSWER_S = 5.0
_CLOSE_S = 1.0


def ask_node(spec: StoreSpec, seconds: float = ANSWER_S) -> NodeStatus:
    """How the node is; `error` says so if it has not answered after so many seconds. Raises UsageError.

    A child process asks, so that nothing that hangs there (a name server, say) can hold us up.
    """
    from fused.store.opening import make_node_store

    store = make_node_store(spec)
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer(store, write_fd)
    os.close(write_fd)
    try:
        answer = _read(read_fd, time.monotonic() + seconds)
    finally:
        os.close(read_fd)
        _end(pid)
    address = spec.address or "its usual address"
    if answer is None:
        return NodeStatus(address, f"the node at {address} did not answer within {seconds:.0f} s")
    try:
        return NodeStatus(**json.loads(answer))
    except (ValueError, TypeError):
        return NodeStatus(address, f"the node at {address} could not be asked")


def _answer(store: NodeStore, write_fd: int) -> NoReturn:
    """In the child."""
    try:
        import trio

        from fused.errors import IpfsfsError

        logging.disable(logging.CRITICAL)

        async def ask() -> None:
            try:
                await store.open()
                status = await store.node()
            except (IpfsfsError, OSError) as exc:
                status = NodeStatus("", str(exc))
            os.write(write_fd, json.dumps(asdict(status)).encode())
            os.close(write_fd)  # nobody has to wait for what comes
            await store.aclose()

        trio.run(ask)
    finally:
        os._exit(0)


def _end(pid: int) -> None:
    """Let the child close what it has open (a process of its own, perhaps), but not for long."""
    deadline = time.monotonic() + _CLOSE_S
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            return
        time.sleep(0.005)


def _read(fd: int, deadline: float) -> bytes | None:
    """All that comes until the other end is closed; None if that takes too long."""
    found = b""
    while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
        more = os.read(fd, 65536)
        if not more:
            return found
        found += more
    return None
