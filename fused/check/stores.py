"""What a check needs of a store: the embedded one, as it is, or one behind a node.

The embedded store knows which blocks it has, keeps books of them, and may hold more than the snapshots need; all of
that is checked. A node's blocks are its own affair, and most may be somebody else's: there only what the snapshots need
is looked at, and a block counts as there if the node itself has it. What the network or our cache has is no store.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Protocol, TypeVar

import trio

from fused.store.blocking import BlockingStore
from fused.store.opening import make_node_store
from fused.store.rows import Row

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Sequence

    from fused.cid import CID
    from fused.errors import StoreError
    from fused.store.audit import Audit
    from fused.store.base import Block, NodeStore, Pin
    from fused.store.spec import StoreSpec

T = TypeVar("T")

_NOMINAL_BYTES = 512 << 10
"""What a leaf at a node is taken to have until it is read: by this the bytes are bounded that are read at a time."""


class Blocks(Protocol):
    """As `store.rows.BlockRows`."""

    def get(self, cid: CID) -> bytes:
        """The block's bytes, verified. Raises BlockNotFound, BlockCorrupt, StoreUnavailable."""
        ...

    def has(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that are stored."""
        ...

    def repair(self, blocks: Sequence[Block]) -> int:
        """Put that trusts nothing."""
        ...


class Pins(Protocol):
    """As `store.pins.PinRows`."""

    def add(self, pin: Pin) -> None:
        """Keep everything reachable from `pin.cid`. Raises BlockNotFound."""
        ...

    def list(self, owner: str | None) -> list[Pin]:
        """All pins of ours, or those of one owner, oldest first."""
        ...


class Reads(Protocol):
    """The part of `store.audit.Audit` that looks at blocks. From any thread."""

    def known_blocks(self) -> int | None:
        """How many there are to look at, if that can be known."""
        ...

    def rows(self, cids: Sequence[CID]) -> dict[CID, Row]:
        """A number and a size for each of `cids`, but for those that are known not to be there."""
        ...

    def all_rows(self) -> Iterator[list[Row]]:
        """Every block that it is our business to look at, whoever needs it."""
        ...

    def read(self, cids: Sequence[CID]) -> Iterator[tuple[CID, bytes | StoreError]]:
        """The verified bytes of each of `cids`, or why there are none: BlockCorrupt, BlockNotFound."""
        ...


class CheckedStore(Protocol):
    """Blocking, for use from any thread but trio's. `BlockingStore` is one."""

    @property
    def rows(self) -> Blocks:
        """The blocks."""
        ...

    @property
    def pins(self) -> Pins:
        """Which roots are kept."""
        ...

    @property
    def audit(self) -> Reads:
        """The blocks as they really are."""
        ...

    @property
    def bookkeeping(self) -> Audit | None:
        """What it has written down about itself, if that is ours."""
        ...


class CheckedNode:
    """A CheckedStore of a store behind a node."""

    bookkeeping: None = None

    def __init__(self, store: NodeStore, token: trio.lowlevel.TrioToken) -> None:
        """`store` is open and lives in the trio loop of `token`, which must outlive all calls."""

        def call(work: Callable[..., Awaitable[T]], *args: object) -> T:
            return trio.from_thread.run(work, *args, trio_token=token)

        self.rows: Blocks = _NodeBlocks(store, call)
        self.pins: Pins = _NodePins(store, call)
        self.audit: Reads = _NodeReads(store, call)


@contextmanager
def checked_node(make: Callable[[], NodeStore]) -> Iterator[CheckedNode]:
    """Open a store for a command that blocks, in a trio loop in a thread of its own; both end with the block.

    Raises what `make` and `open` raise.
    """
    found: SimpleQueue[tuple[CheckedNode, Callable[[], None]] | BaseException] = SimpleQueue()

    async def serve() -> None:
        token = trio.lowlevel.current_trio_token()
        with trio.CancelScope() as scope:
            store = make()
            try:
                await store.open()
                found.put((CheckedNode(store, token), lambda: token.run_sync_soon(scope.cancel)))
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    await store.aclose()

    def run() -> None:
        try:
            trio.run(serve)
        except BaseException as exc:  # raised where it can be told
            found.put(exc)

    thread = Thread(target=run, name="node", daemon=True)
    thread.start()
    opened = found.get()
    if isinstance(opened, BaseException):
        raise opened
    node, end = opened
    try:
        yield node
    finally:
        end()
        thread.join()


@contextmanager
def checked_store(spec: StoreSpec) -> Iterator[CheckedStore]:
    """Open the store that is meant, for a command that blocks. Raises StoreUnavailable, UsageError."""
    if spec.kind == "embedded":
        with BlockingStore(spec.directory) as store:
            yield store
    else:
        with checked_node(lambda: make_node_store(spec)) as node:
            yield node


class _Call(Protocol):
    def __call__(self, work: Callable[..., Awaitable[T]], *args: object) -> T: ...


@dataclass(frozen=True, slots=True)
class _NodeBlocks:
    store: NodeStore
    call: _Call

    def get(self, cid: CID) -> bytes:
        return self.call(self.store.get, cid)

    def has(self, cids: Sequence[CID]) -> set[CID]:
        return self.call(self.store.has, cids)

    def repair(self, blocks: Sequence[Block]) -> int:
        return self.call(self.store.repair, blocks)


@dataclass(frozen=True, slots=True)
class _NodePins:
    store: NodeStore
    call: _Call

    def add(self, pin: Pin) -> None:
        self.call(self.store.pin, pin)

    def list(self, owner: str | None) -> list[Pin]:
        return self.call(self.store.pins, owner)


@dataclass(slots=True)
class _NodeReads:
    """Whether a block is there is known when it is read, so it is asked for once. Numbers are our own."""

    store: NodeStore
    call: _Call
    numbers: dict[CID, int] = field(default_factory=dict)

    def known_blocks(self) -> None:
        return None

    def rows(self, cids: Sequence[CID]) -> dict[CID, Row]:
        numbers = self.numbers
        return {
            cid: Row(numbers.setdefault(cid, len(numbers)), cid, _NOMINAL_BYTES, 0, None, damaged=False) for cid in cids
        }

    def all_rows(self) -> Iterator[list[Row]]:
        return iter(())

    def read(self, cids: Sequence[CID]) -> Iterator[tuple[CID, bytes | StoreError]]:
        yield from self.call(self.store.inspect, cids).items()
