"""What a block store is: four verbs, and three more for keeping things.

A store knows nothing of files. It keeps blocks, each named by the hash of its bytes, and it keeps
those that are reachable from a pin. Retry, verification, caching and limits are wrappers with the
same protocol (`verify.py` and its neighbours), composed once, in `daemon.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, Self

from fused.types import Block as Block  # noqa: TC001  re-exported: a store's callers find it here

if TYPE_CHECKING:
    from fused.cid import CID
    from fused.errors import StoreError


LinksOf = Callable[["CID", bytes], Iterable["CID"]]
"""The CIDs that a block links to; given to `gc`, so that a store needs to know no codec."""


@dataclass(frozen=True, slots=True)
class Pin:
    """A root that is kept, for whom and why. `owner` is one mount; `name` is for people."""

    owner: str
    cid: CID
    name: str


@dataclass(frozen=True, slots=True)
class StoreStats:
    """`blocks` and `bytes_stored` count the content; `disk_bytes` is what the store takes on disk."""

    blocks: int
    bytes_stored: int
    disk_bytes: int


class BlockStore(Protocol):
    """Blocks by CID. All methods may be called by several tasks at once."""

    async def put(self, blocks: Sequence[Block]) -> int:
        """Store `blocks` and return how many of them were new.

        Durable on return: they survive a power cut. Idempotent. After an error or a cancellation
        any part of them may be stored; calling again is safe. Raises StoreUnavailable.
        """
        ...

    async def get(self, cid: CID) -> bytes:
        """The block's bytes, verified. Raises BlockNotFound, BlockCorrupt, StoreUnavailable."""
        ...

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """The bytes of every one of `cids`, verified, in one go. Raises as `get` does, for the first that fails."""
        ...

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that are stored durably. Raises StoreUnavailable."""
        ...

    async def stats(self) -> StoreStats:
        """How much is stored. Raises StoreUnavailable."""
        ...

    async def aclose(self) -> None:
        """Release what the store holds. Idempotent; no other method may be called afterwards."""
        ...


class PinStore(Protocol):
    """Which roots are kept."""

    async def pin(self, pin: Pin) -> None:
        """Keep everything reachable from `pin.cid`. Durable on return. Pinning again changes the name only.

        Raises BlockNotFound if the root is not stored. Whether the rest is there is the caller's to know: what it
        put within the last minutes is; what it found stored long ago has to be put or refreshed before.
        """
        ...

    async def unpin(self, owner: str, cid: CID) -> None:
        """Drop `owner`'s pin on `cid`. Does nothing if there is none."""
        ...

    async def pins(self, owner: str | None = None) -> list[Pin]:
        """All pins, or those of one owner, oldest first."""
        ...

    async def gc(self, links_of: LinksOf) -> int:
        """Remove blocks that no pin reaches and return how many.

        Blocks put recently are kept: their pin may be on its way, also from another process.
        Raises BlockCorrupt or BlockNotFound, having removed nothing, if a pinned DAG can't be walked.
        """
        ...


class Store(BlockStore, PinStore, Protocol):
    """A whole store: what `opening.make_store` makes. `open` before use."""

    async def open(self) -> None:
        """Make or check what is ours on local disk. Raises StoreUnavailable.

        Of a node nothing is asked here: one that is down now may be there later, and no mount waits for it.
        """
        ...

    async def refresh(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that are stored, and keep them from gc for another grace, as a put would."""
        ...

    async def repair(self, blocks: Sequence[Block]) -> int:
        """Put that trusts nothing: what is damaged or missing is written again; returns how many that were."""
        ...


class OpenedInContext:
    """`async with store:` opens it, and closes it whatever happens. For classes with `open` and `aclose`."""

    async def open(self) -> None:
        """See Store."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """See BlockStore."""
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()


Reach = Literal["public", "private", "offline"]
"""Who can find a node's content by its CID: anybody; whoever has the swarm key; nobody, as there is no network."""


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """What is known of the node behind a store. `error` is None if it answered just now."""

    address: str
    """For people: never with a password or token in it."""
    error: str | None
    version: str | None = None
    peer_id: str | None = None
    reach: Reach | None = None
    """None: not known, as it did not answer."""


class NodeStore(Store, Protocol):
    """A store whose blocks are at a node, which others may see and which comes and goes."""

    async def node(self) -> NodeStatus:
        """Ask the node how it is, within seconds. Never raises for a node that is down: `error` says so."""
        ...

    async def inspect(self, cids: Sequence[CID]) -> Mapping[CID, bytes | StoreError]:
        """Each of `cids` as the node itself has it, verified, or why it has not: BlockNotFound, BlockCorrupt.

        For `fsck`: neither our cache nor the node's network is asked. Raises StoreUnavailable.
        """
        ...

    async def show(self, name: str, tree: CID) -> None:
        """Let people see `tree` as `/ipfsfs/<name>` in the node's MFS: a shop window, never the record.

        Raises StoreUnavailable. What was shown under that name before is gone then, also after an error.
        """
        ...
