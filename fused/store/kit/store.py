"""`--store ipfs-kit`: a Kubo node, or a repository without one, through ipfs_kit_py. The trio side.

What is done with it is told in `docs/ipfs_kit_py.md`. Each method runs in a thread (`node.py`), which has a child
process run commands (`child.py`, `commands.py`); what the node has confirmed is written down in `ledger.py`.
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, TypeVar

import trio

from fused.errors import UsageError
from fused.store.base import OpenedInContext
from fused.store.kit.node import KitNode
from fused.store.kit.package import find_package

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.cid import CID
    from fused.errors import StoreError
    from fused.store.base import Block, LinksOf, NodeStatus, Pin, StoreStats
    from fused.store.spec import StoreSpec

_READERS = 4
_WRITERS = 2

# How long a cancelled write waits for its command: what the node has just taken should be known to us, too.
_FINISH_S = 2.0

T = TypeVar("T")


class KitStore(OpenedInContext):
    """A NodeStore. `open` before use, `aclose` after, or `async with`.

    Cancelling a read returns at once, cancelling a write after two seconds at most; the node goes on with the command
    that it has. gc is the node's own business, here nothing is collected.
    """

    def __init__(self, spec: StoreSpec) -> None:
        """Raises UsageError if ipfs_kit_py or its `ipfs` program is missing, or is a version that can do nothing.

        Also for what only an API behind a secret or TLS needs: `ipfs` finds the API in the repository, and would have
        to be given the secret on its command line, where everybody can read it.
        """
        for name, file in (("auth-file", spec.auth_file), ("ca-file", spec.ca_file)):
            if file is not None:
                raise UsageError(
                    f"--store ipfs-kit can't use --{name} ({file}): ipfs_kit_py runs the program ipfs on an IPFS_PATH;"
                    " leave it out, or use --store kubo"
                )
        path = spec.address or os.environ.get("IPFS_PATH") or "~/.ipfs"
        path = os.path.abspath(os.path.expanduser(path))
        self._node = KitNode(find_package(), path, spec.directory, spec.read_seconds, spec.cache_bytes)
        self._readers = trio.CapacityLimiter(_READERS)
        self._writers = trio.CapacityLimiter(_WRITERS)

    async def open(self) -> None:
        """See Store."""
        await trio.to_thread.run_sync(self._node.open, limiter=self._writers)

    async def put(self, blocks: Sequence[Block]) -> int:
        """See BlockStore. Durable as far as the node is: Kubo's own setting says whether it syncs to its disk."""
        return await self._write(lambda check: self._node.put(blocks, check))

    async def get(self, cid: CID) -> bytes:
        """See BlockStore."""
        return (await self.get_many([cid]))[cid]

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """See BlockStore. One command for many: ask for as much at once as is wanted."""
        return await self._read(lambda check: self._node.get_many(cids, check))

    async def inspect(self, cids: Sequence[CID]) -> Mapping[CID, bytes | StoreError]:
        """See NodeStore."""
        return await self._read(lambda check: self._node.inspect(cids, check))

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        """See BlockStore. Asked for more than a few, the node lists all that it has."""
        return await self._read(lambda check: self._node.has(cids, check))

    async def refresh(self, cids: Sequence[CID]) -> set[CID]:
        """See Store. A node's gc has no grace that could begin anew; a pin that finds a hole says so."""
        return await self.has(cids)

    async def repair(self, blocks: Sequence[Block]) -> int:
        """See Store."""
        return await self._write(lambda check: self._node.repair(blocks, check))

    async def stats(self) -> StoreStats:
        """See BlockStore."""
        return await self._read(self._node.stats)

    async def pin(self, pin: Pin) -> None:
        """See PinStore; also the rest of the DAG must be at the node. Raises BlockNotFound for what is missing."""
        await self._write(lambda check: self._node.pin(pin, check))

    async def unpin(self, owner: str, cid: CID) -> None:
        """See PinStore."""
        await self._write(lambda check: self._node.unpin(owner, cid, check))

    async def pins(self, owner: str | None = None) -> list[Pin]:
        """See PinStore."""
        return await self._read(lambda check: self._node.pins(owner, check))

    async def gc(self, links_of: LinksOf) -> int:
        """Nothing: a node collects when its owner says so, and keeps what is pinned."""
        return 0

    async def node(self) -> NodeStatus:
        """See NodeStore."""
        return await self._read(self._node.status)

    async def show(self, name: str, tree: CID) -> None:
        """See NodeStore."""
        await self._write(lambda check: self._node.show(name, tree, check))

    async def publish(self, key: str, cid: CID) -> str:
        """Publish `cid` under the node's IPNS key `key`, which is made if there is none; returns the name (`k51…`).

        Without a network the record waits in the repository. Raises StoreUnavailable.
        """
        return await self._write(lambda check: self._node.publish(key, cid, check))

    async def aclose(self) -> None:
        """See BlockStore."""
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._node.close, limiter=self._writers)

    async def _read(self, call: Callable[[Callable[[], None]], T]) -> T:
        return await trio.to_thread.run_sync(call, trio.from_thread.check_cancelled, limiter=self._readers)

    async def _write(self, call: Callable[[Callable[[], None]], T]) -> T:
        return await trio.to_thread.run_sync(call, _Patient(), limiter=self._writers)


class _Patient:
    """Raises trio.Cancelled a while after the task was cancelled. For the thread of one call."""

    def __init__(self) -> None:
        self._since: float | None = None

    def __call__(self) -> None:
        try:
            trio.from_thread.check_cancelled()
        except trio.Cancelled:
            if self._since is None:
                self._since = time.monotonic()
            if time.monotonic() - self._since > _FINISH_S:
                raise
