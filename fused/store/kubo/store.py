"""The store at a Kubo node: blocks go there, and there only; pins are the node's pins.

This module is the trio side. All HTTP is done by blocking code in threads (`node.py`, `pins.py` over `rpc.py`), so a
node that hangs holds up whoever asked it and nobody else. Cancelling any call returns at once; its threads end when the
node answers or a deadline passes, and what they were doing may still happen. Beside the node there are, in a directory
of this node's own, two memos: the ledger of what it has confirmed (`ledger.py`) and a cache of what it was read from
(`fused/store/cache.py`).

What is another's: a node has one repository for all who use it. This store removes nothing but its own pins. `gc` does
nothing, therefore: garbage of the node is collected by the node, when whoever runs it says so.
"""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import trio

from fused import private
from fused.cid import RAW, codec_of
from fused.errors import BlockCorrupt, BlockNotFound, StoreUnavailable, UsageError
from fused.store.base import OpenedInContext, StoreStats
from fused.store.cache import BlockCache
from fused.store.kubo.address import Place
from fused.store.kubo.auth import read_secret
from fused.store.kubo.ledger import Ledger
from fused.store.kubo.node import Node
from fused.store.kubo.pins import Pins
from fused.store.kubo.rpc import Rpc
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from fused.cid import CID
    from fused.errors import StoreError
    from fused.store.base import LinksOf, NodeStatus, Pin
    from fused.store.spec import StoreSpec

_STREAMS = 4
_STREAM_BYTES = 8 << 20
_STREAM_BLOCKS = 1024
_READERS = 8
_ASKERS = 4  # pins, stats, shop window
_CLOSE_S = 5.0

T = TypeVar("T")
R = TypeVar("R")

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Opened:
    rpc: Rpc
    ledger: Ledger
    cache: BlockCache
    node: Node
    pins: Pins


class _Stopped(Exception):
    """In a thread: nobody waits for its result any more."""


class _Stop:
    """Tells the threads of one call that it was cancelled."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise _Stopped


class KuboStore(OpenedInContext):
    """NodeStore over a node's RPC API. `open` before use, `aclose` after, or `async with`.

    Every method raises StoreUnavailable with a sentence that names the node when it does not answer in time, refuses
    or says what no node says.
    """

    def __init__(self, spec: StoreSpec) -> None:
        """Raises UsageError for an address, an authorization file or a file of certificates that can't be used."""
        self._place = Place(spec.address)
        self._secret = None if spec.auth_file is None else read_secret(spec.auth_file)
        self._rpc = Rpc(self._place, self._secret, spec.ca_file)
        self.path = os.path.join(spec.directory, "nodes", self._place.key)
        """Where the memos are."""
        self._spec = spec
        self._streams = trio.CapacityLimiter(_STREAMS)
        self._readers = trio.CapacityLimiter(_READERS)
        self._askers = trio.CapacityLimiter(_ASKERS)
        self._inside: _Opened | None = None

    async def open(self) -> None:
        """See Store. Contacts nobody."""
        self._inside = await trio.to_thread.run_sync(self._open, limiter=self._askers)

    def _open(self) -> _Opened:
        try:
            private.prepare(self.path, "the directory for a node")
            ledger = Ledger(os.path.join(self.path, "ledger.sqlite3"))
            try:
                cache = BlockCache(os.path.join(self.path, "cache.sqlite3"), self._spec.cache_bytes)
            except BaseException:
                ledger.close()
                raise
        except UsageError as err:
            raise StoreUnavailable(f"{err}; --store-dir names another") from None
        except OSError as err:
            raise StoreUnavailable(f"the directory {self.path} can't be used: {err.strerror or err}") from err
        node = Node(self._rpc, ledger)
        return _Opened(self._rpc, ledger, cache, node, Pins(node))

    # --- blocks -----------------------------------------------------------------------------------------------

    async def put(self, blocks: Sequence[Block]) -> int:
        """See BlockStore. New is what this node has not confirmed to us before, whoever else has put it there.

        What it has confirmed is not sent again, unless it has collected garbage since, or is another node. In several
        streams at once. Whether it is durable is the node's: Kubo's usual datastore does not sync (Datastore.Spec,
        "sync": false), so a power cut there may take blocks that it has confirmed.
        """
        if not blocks:
            return 0
        inside = self._opened()
        unknown = await self._ask(lambda stop: _unknown(inside, blocks, stop.check))

        def send(part: list[Block], stop: _Stop) -> int:
            inside.node.send(part, stop.check)
            new = inside.ledger.confirm(part)
            inside.cache.put(block for block in part if codec_of(block.cid) != RAW)
            return new

        return sum(await self._each(self._streams, _parts(unknown), send))

    async def get(self, cid: CID) -> bytes:
        """See BlockStore. Through the cache; the node looks for it in the network for `read_seconds`."""
        return (await self.get_many([cid]))[cid]

    async def get_many(self, cids: Sequence[CID]) -> Mapping[CID, bytes]:
        """See BlockStore. Several at a time."""
        if not cids:
            return {}
        inside = self._opened()
        found = await trio.to_thread.run_sync(inside.cache.get, cids, limiter=self._readers, abandon_on_cancel=True)
        missing = list(dict.fromkeys(cid for cid in cids if cid not in found))

        def get(some: list[CID], stop: _Stop) -> dict[CID, bytes]:
            got: dict[CID, bytes] = {}
            try:
                for cid in some:
                    stop.check()
                    got[cid] = inside.node.get(cid, self._spec.read_seconds)
            finally:
                inside.cache.put(Block(cid, data) for cid, data in got.items())
            return got

        for got in await self._each(self._readers, _shares(missing, _READERS), get):
            found.update(got)
        return found

    async def inspect(self, cids: Sequence[CID]) -> Mapping[CID, bytes | StoreError]:
        """See NodeStore. Several at a time."""
        inside = self._opened()
        found: dict[CID, bytes | StoreError] = {}

        def look(some: list[CID], stop: _Stop) -> None:
            for cid in some:
                stop.check()
                try:
                    found[cid] = inside.node.get(cid, self._spec.read_seconds, offline=True)
                except (BlockCorrupt, BlockNotFound) as err:
                    found[cid] = err

        await self._each(self._readers, _shares(list(dict.fromkeys(cids)), _READERS), look)
        return found

    async def has(self, cids: Sequence[CID]) -> set[CID]:
        """See BlockStore. Asks the node for every one; the cache and other nodes don't count."""
        inside = self._opened()
        shares = _shares(list(dict.fromkeys(cids)), _READERS)
        found = await self._each(self._readers, shares, lambda some, stop: inside.node.present(some, stop.check))
        return set().union(*found)

    async def refresh(self, cids: Sequence[CID]) -> set[CID]:
        """Those of `cids` that are at the node. It has no grace that could begin anew: `pin` finds out what it lost."""
        return await self.has(cids)

    async def repair(self, blocks: Sequence[Block]) -> int:
        """See Store. Raises BlockCorrupt for a block that the node keeps damaged although it was sent again."""
        inside = self._opened()

        def repair(some: list[Block], stop: _Stop) -> int:
            count = 0
            for block in some:
                stop.check()
                count += inside.node.repair(block)
            return count

        if not blocks:
            return 0
        await self._ask(lambda _: inside.node.believe_ledger())
        shares = _shares(list({block.cid: block for block in blocks}.values()), _STREAMS)
        return sum(await self._each(self._streams, shares, repair))

    async def stats(self) -> StoreStats:
        """See BlockStore. Blocks and bytes are what we have put and the node has not lost as far as we know.

        What others have there is not ours to count. `disk_bytes` is of the whole repository.
        """
        inside = self._opened()

        def ask(_: _Stop) -> StoreStats:
            disk_bytes = inside.node.disk_bytes()
            return StoreStats(*inside.ledger.totals(), disk_bytes)

        return await self._ask(ask)

    # --- pins -------------------------------------------------------------------------------------------------

    async def pin(self, pin: Pin) -> None:
        """See PinStore. Raises BlockNotFound also for a block below the root: at the node all of it is kept or nothing.

        What we believed the node to have is forgotten then, so that putting it again sends it again.
        """
        inside = self._opened()
        await self._ask(lambda stop: inside.pins.add(pin, stop.check))

    async def unpin(self, owner: str, cid: CID) -> None:
        """See PinStore."""
        inside = self._opened()
        await self._ask(lambda _: inside.pins.remove(owner, cid))

    async def pins(self, owner: str | None = None) -> list[Pin]:
        """See PinStore: what the node holds for us now, also for mounts on other machines."""
        inside = self._opened()
        return await self._ask(lambda _: inside.pins.of(owner))

    async def gc(self, links_of: LinksOf) -> int:
        """Does nothing: see the module. What was unpinned goes when the node collects garbage (`ipfs repo gc`)."""
        await trio.lowlevel.checkpoint()
        return 0

    # --- the node ---------------------------------------------------------------------------------------------

    async def node(self) -> NodeStatus:
        """See NodeStore."""
        inside = self._opened()
        return await self._ask(lambda _: inside.node.status())

    async def show(self, name: str, tree: CID) -> None:
        """See NodeStore. Raises UsageError for a name that is none."""
        if not name or "/" in name or name in (".", "..") or not name.isprintable():
            raise UsageError(f"{name!r} can't be the name of a directory that a node shows")
        inside = self._opened()
        await self._ask(lambda _: inside.node.show(name, tree))

    async def aclose(self) -> None:
        """See BlockStore. Threads of cancelled calls are waited for, a few seconds."""
        inside, self._inside = self._inside, None
        if inside is None:
            return
        with trio.CancelScope(shield=True):
            if await self._threads_have_ended():
                await trio.to_thread.run_sync(_close, inside)
            else:
                log.info("%s hangs; its connections are left to the end of the process", inside.rpc)

    async def _threads_have_ended(self) -> bool:
        """Wait for all threads by taking their place."""
        taken: list[tuple[trio.CapacityLimiter, object]] = []
        with trio.move_on_after(_CLOSE_S) as scope:
            for limiter, count in ((self._streams, _STREAMS), (self._readers, _READERS), (self._askers, _ASKERS)):
                for _ in range(count):
                    place = object()
                    await limiter.acquire_on_behalf_of(place)
                    taken.append((limiter, place))
        for limiter, place in taken:
            limiter.release_on_behalf_of(place)
        return not scope.cancelled_caught

    # --- threads ----------------------------------------------------------------------------------------------

    async def _ask(self, call: Callable[[_Stop], R]) -> R:
        """Run `call` in a thread."""
        return (await self._each(self._askers, [None], lambda _, stop: call(stop)))[0]

    async def _each(self, limiter: trio.CapacityLimiter, items: Sequence[T], call: Callable[[T, _Stop], R]) -> list[R]:
        """The results of `call` on each of `items`, in threads. The first error stops the others, and is raised."""
        results: dict[int, R] = {}
        errors: list[Exception] = []
        stop = _Stop()

        async def run(number: int, item: T) -> None:
            try:
                results[number] = await trio.to_thread.run_sync(
                    call, item, stop, limiter=limiter, abandon_on_cancel=True
                )
            except Exception as err:  # kept out of the nursery, which would wrap it into a group
                errors.append(err)
                nursery.cancel_scope.cancel()

        try:
            async with trio.open_nursery() as nursery:
                for number, item in enumerate(items):
                    nursery.start_soon(run, number, item)
        finally:
            stop.set()
        if errors:
            raise errors[0]
        return [results[number] for number in range(len(items))]

    def _opened(self) -> _Opened:
        if self._inside is None:
            raise StoreUnavailable(f"the store at {self._rpc} is not open")
        return self._inside


def _unknown(inside: _Opened, blocks: Sequence[Block], check: Callable[[], None]) -> list[Block]:
    """Those of `blocks` that have to be sent, each once."""
    inside.node.believe_ledger()
    check()
    wanted = {block.cid: block for block in blocks}
    known = inside.ledger.known(list(wanted))
    return [block for cid, block in wanted.items() if cid not in known]


def _parts(blocks: Sequence[Block]) -> list[list[Block]]:
    """`blocks` as streams."""
    parts: list[list[Block]] = []
    size = 0
    for block in blocks:
        if not parts or size >= _STREAM_BYTES or len(parts[-1]) >= _STREAM_BLOCKS:
            parts.append([])
            size = 0
        parts[-1].append(block)
        size += len(block.data)
    return parts


def _shares(items: Sequence[T], count: int) -> list[list[T]]:
    """`items` for `count` threads, the first ones first."""
    return [share for start in range(count) if (share := list(items[start::count]))]


def _close(inside: _Opened) -> None:
    inside.rpc.close()
    inside.ledger.close()
    inside.cache.close()
