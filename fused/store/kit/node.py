"""A node through ipfs_kit_py, without trio: every call blocks. `store.py` runs it in threads.

Nothing that the node says is taken on trust. Before its first use, and after each loss of contact, it has to give back
a random block; every block that comes from it is compared with its CID; a pin is looked up after it was made, and some
of what is below it is read back.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import threading
from collections import deque
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fused import private
from fused.cid import CID, RAW, codec_of, inline_block, verify
from fused.errors import BlockCorrupt, BlockNotFound, StoreError, StoreUnavailable, UsageError
from fused.store.base import Block, NodeStatus, Pin, Reach, StoreStats
from fused.store.cache import BlockCache
from fused.store.canary import new_canary
from fused.store.kit.child import Child
from fused.store.kit.commands import QUICK_S, CommandFailed, Commands, sweep, text
from fused.store.kit.ledger import Ledger
from fused.store.kit.package import refusal
from fused.store.kit.pins import Pins

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from fused.store.kit.package import Package

MIN_VERSION = (0, 30)
"""Of Kubo. Pins have had names since 0.26 (its changelog); only 0.42 was tried."""

_PUT_BYTES = 32 << 20  # of blocks in one command: what is lost when it fails
_PUT_BLOCKS = 8192
_GET_BLOCKS = 1024
_GET_REMOTE = 64  # the node fetches them one after the other, all within one deadline
_INSPECT_BLOCKS = 64  # in memory at once, of 1 MiB mostly
_SAMPLE = 8  # blocks that are remembered of each command, to be read back after pinning
_RECENT = 256

log = logging.getLogger(__name__)


class KitNode:
    """See the module. `open` before use; for use from any thread. Each method takes `check`, which may raise at any
    time to interrupt it: what was begun at the node goes on there."""

    def __init__(self, package: Package, ipfs_path: str, directory: str, read_s: float, cache_bytes: int) -> None:
        """`directory` is ours, for the ledger, the cache, and files on their way."""
        self.ipfs_path = ipfs_path
        self._package = package
        self._directory = os.path.join(
            directory, "nodes", f"kit-{hashlib.sha256(os.fsencode(ipfs_path)).hexdigest()[:16]}"
        )
        self._read_s = read_s
        self._child = Child(package, ipfs_path)
        scratch = os.path.join(self._directory, "tmp")
        self._commands = Commands(self._child, ipfs_path, scratch)
        self._pins = Pins(self._commands)
        self._scratch = scratch
        self._cache_bytes = cache_bytes
        self._cache: BlockCache | None = None
        self._ledger: Ledger | None = None
        self._contact = threading.Lock()
        self._in_contact = False
        self._recent: deque[CID] = deque(maxlen=_RECENT)

    def open(self) -> None:
        """Make what is ours on local disk. Raises StoreUnavailable."""
        try:
            private.prepare(self._scratch, "the store")
            sweep(self._scratch)
            self._cache = BlockCache(os.path.join(self._directory, "cache.sqlite3"), self._cache_bytes)
        except (OSError, UsageError) as exc:
            raise StoreUnavailable(f"{exc}; --store-dir names another place") from exc
        self._ledger = Ledger(os.path.join(self._directory, "ledger.sqlite3"))

    def close(self) -> None:
        """End the child and its commands. Idempotent."""
        self._child.close()
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            ledger.close()
        if self._cache is not None:
            self._cache.close()

    # --- blocks -------------------------------------------------------------------------------------------------

    def put(self, blocks: Sequence[Block], check: Callable[[], None]) -> int:
        """See BlockStore. What this node has confirmed before is not sent again."""
        wanted = {block.cid: block for block in blocks if inline_block(block.cid) is None}
        new = 0
        with self._talking(check) as ledger:
            if ledger.known(list(wanted)):
                self._check_marker(ledger, check)
                for known in ledger.known(list(wanted)):
                    del wanted[known]
            for some in _slices(list(wanted.values())):
                self._commands.put(some, check)
                new += ledger.add(some)
                # What leads to other blocks is read again soon, and small.
                self._keep(block for block in some if codec_of(block.cid) != RAW)
                self._recent.extend(block.cid for block in random.sample(some, min(len(some), _SAMPLE)))
        return new

    def get_many(self, cids: Sequence[CID], check: Callable[[], None]) -> dict[CID, bytes]:
        """See BlockStore. Looks at the node, then, if that has anybody to ask, in the network, until the deadline."""
        found: dict[CID, bytes] = {}
        for cid in cids:
            data = inline_block(cid)
            if data is not None:
                found[cid] = data
        if self._cache is not None:
            found |= self._cache.get([cid for cid in dict.fromkeys(cids) if cid not in found])
        wanted = [cid for cid in dict.fromkeys(cids) if cid not in found]
        if wanted:
            with self._talking(check) as ledger:
                for at in range(0, len(wanted), _GET_BLOCKS):
                    some = wanted[at : at + _GET_BLOCKS]
                    self._get(some, found, ledger, check)
                    self._keep(Block(cid, found[cid]) for cid in some)
        return {cid: found[cid] for cid in cids}

    def _keep(self, blocks: Iterable[Block]) -> None:
        if self._cache is not None:
            self._cache.put(blocks)

    def _get(self, cids: list[CID], found: dict[CID, bytes], ledger: Ledger, check: Callable[[], None]) -> None:
        while cids:
            try:
                data, missing = self._commands.get(cids, self._read_s, check, offline=True)
            except StoreUnavailable as exc:
                raise StoreUnavailable(f"block {text(cids[0])} can't be read from the node {self}: {exc}") from exc
            _take(data, found)
            if missing is None:
                return
            ledger.forget([missing])
            cids = [cid for cid in cids if cid not in found]
            if not self._has_peers(check):
                raise BlockNotFound(missing)
            here, some = missing, cids[:_GET_REMOTE]
            try:
                data, missing = self._commands.get(some, self._read_s, check, offline=False)
            except StoreUnavailable as exc:
                raise StoreUnavailable(
                    f"block {text(here)} is not at the node {self}, and nobody that it asked gave it: {exc}"
                ) from exc
            if missing is not None:
                raise BlockNotFound(missing)
            _take(data, found)
            cids = [cid for cid in cids if cid not in found]

    def inspect(self, cids: Sequence[CID], check: Callable[[], None]) -> dict[CID, bytes | StoreError]:
        """See NodeStore."""
        found: dict[CID, bytes | StoreError] = {}
        wanted = list(dict.fromkeys(cids))
        with self._talking(check):
            while wanted:
                data, missing = self._commands.get(wanted[:_INSPECT_BLOCKS], self._read_s, check, offline=True)
                for cid, content in data.items():
                    try:
                        verify(cid, content)
                        found[cid] = content
                    except BlockCorrupt as exc:
                        found[cid] = exc
                if missing is not None:
                    found[missing] = BlockNotFound(missing)
                wanted = [cid for cid in wanted if cid not in found]
        return found

    def has(self, cids: Sequence[CID], check: Callable[[], None]) -> set[CID]:
        """See BlockStore: what the node itself has, but for what is known to be there for another codec only."""
        inline = {cid for cid in cids if inline_block(cid) is not None}
        asked = [cid for cid in dict.fromkeys(cids) if cid not in inline]
        if not asked:
            return inline
        with self._talking(check) as ledger:
            present = self._commands.has(asked, check)
            if gone := ledger.known([cid for cid in asked if cid not in present]):
                log.warning("the node %s has lost %d blocks that it had confirmed", self, len(gone))
                ledger.forget(list(gone))
            return inline | present - ledger.known_otherwise(list(present))

    def repair(self, blocks: Sequence[Block], check: Callable[[], None]) -> int:
        """See Store. A block that the node keeps damaged is removed there and put again; one that is pinned it won't
        let go, then it is BlockCorrupt."""
        bad = [block for block in blocks if inline_block(block.cid) is None and not self._is_whole(block.cid, check)]
        with self._talking(check) as ledger:
            ledger.forget([block.cid for block in bad])
        for block in bad:
            self.put([block], check)
            if not self._is_whole(block.cid, check):
                with self._talking(check) as ledger:
                    ledger.forget([block.cid])
                    try:
                        self._commands.remove(block.cid, check)
                    except CommandFailed as exc:
                        raise BlockCorrupt(
                            block.cid, f"the node keeps it damaged, and does not let it go: {exc}"
                        ) from exc
                self.put([block], check)
        return len(bad)

    def _is_whole(self, cid: CID, check: Callable[[], None]) -> bool:
        """Whether the node itself has it, and gives the right bytes."""
        with self._talking(check):
            data, missing = self._commands.get([cid], QUICK_S, check, offline=True)
        try:
            _take(data, {})
        except BlockCorrupt:
            return False
        return missing is None

    def stats(self, check: Callable[[], None]) -> StoreStats:
        """See BlockStore: what this node has confirmed to us; `disk_bytes` is all of its repository."""
        with self._talking(check) as ledger:
            said = self._commands.run(["repo", "stat", "--size-only", "--enc=json"], QUICK_S, check)
            blocks, size = ledger.totals()
            return StoreStats(blocks, size, int(json.loads(said)["RepoSize"]))

    # --- pins ---------------------------------------------------------------------------------------------------

    def pin(self, pin: Pin, check: Callable[[], None]) -> None:
        """See PinStore. The whole DAG must be at the node; BlockNotFound names what is missing."""
        with self._talking(check) as ledger:
            try:
                self._pins.add(pin, list(self._recent), check)
            except BlockNotFound:
                # It was all there once, so something collects garbage under us. Told once: it may be that nobody needs
                # it any more, and nobody puts it again.
                ledger.clear()
                self._recent.clear()
                raise
            self._recent.clear()  # read back now, and pinned

    def unpin(self, owner: str, cid: CID, check: Callable[[], None]) -> None:
        """See PinStore."""
        with self._talking(check):
            self._pins.remove(owner, cid, check)

    def pins(self, owner: str | None, check: Callable[[], None]) -> list[Pin]:
        """See PinStore."""
        with self._talking(check):
            return self._pins.of(owner, check)

    # --- shop windows -------------------------------------------------------------------------------------------

    def show(self, name: str, tree: CID, check: Callable[[], None]) -> None:
        """See NodeStore."""
        path = f"/ipfsfs/{name}"
        with self._talking(check):
            self._commands.run(["files", "rm", "--recursive", "--force", path], QUICK_S, check)
            self._commands.run(["--offline", "files", "cp", "--parents", f"/ipfs/{text(tree)}", path], QUICK_S, check)

    def publish(self, key: str, cid: CID, check: Callable[[], None]) -> str:
        """Let the IPNS name of `key`, which is made if the node has none, lead to `cid`; returns the name."""
        with self._talking(check):
            keys = json.loads(self._commands.run(["key", "list", "--enc=json"], QUICK_S, check))["Keys"] or []
            if key not in {entry["Name"] for entry in keys}:
                self._commands.run(["key", "gen", "--", key], QUICK_S, check)
            command = ["name", "publish", "--quieter", "--allow-offline", "--resolve=false", f"--key={key}"]
            return self._commands.run([*command, f"/ipfs/{text(cid)}"], QUICK_S, check).strip()

    # --- the node itself ----------------------------------------------------------------------------------------

    def status(self, check: Callable[[], None]) -> NodeStatus:
        """See NodeStore."""
        try:
            said = json.loads(self._commands.run(["id", "--enc=json"], QUICK_S, check))
            with self._talking(check):
                reach = self._reach(check)
        except StoreUnavailable as exc:
            return NodeStatus(str(self), str(exc))
        return NodeStatus(str(self), None, said["AgentVersion"].split("/")[1], said["ID"], reach)

    def __str__(self) -> str:
        return f"ipfs-kit={self.ipfs_path}"

    def _reach(self, check: Callable[[], None]) -> Reach:
        if not self._is_online(check):
            return "offline"
        return "private" if os.path.exists(os.path.join(self.ipfs_path, "swarm.key")) else "public"

    def _is_online(self, check: Callable[[], None]) -> bool:
        return self._peers(check) is not None

    def _has_peers(self, check: Callable[[], None]) -> bool:
        return bool(self._peers(check))

    def _peers(self, check: Callable[[], None]) -> int | None:
        """How many others it is connected to; None without a network."""
        try:
            said = json.loads(self._commands.run(["swarm", "peers", "--enc=json"], QUICK_S, check))
        except CommandFailed as exc:
            if "online mode" in exc.said:
                return None
            raise
        return len(said.get("Peers") or [])

    @contextmanager
    def _talking(self, check: Callable[[], None]) -> Iterator[Ledger]:
        """The ledger, once the node has shown that it is one. After an error it has to show that again."""
        if self._ledger is None:
            raise StoreUnavailable(f"the store {self} is not open")
        with self._contact:
            if not self._in_contact:
                self._make_contact(self._ledger, check)
                self._in_contact = True
        try:
            yield self._ledger
        except StoreUnavailable:
            self._in_contact = False
            raise

    def _make_contact(self, ledger: Ledger, check: Callable[[], None]) -> None:
        said = self._commands.run(["version", "--number"], QUICK_S, check).strip()
        version = said.split("-")[0].split(".")
        if not all(part.isdecimal() for part in version) or tuple(map(int, version)) < MIN_VERSION:
            at_least = ".".join(map(str, MIN_VERSION))
            raise StoreUnavailable(f"{self._package.ipfs} is Kubo {said[:40]!r}; {at_least} or newer is needed")
        self._canary(check)
        self._check_marker(ledger, check)

    def _canary(self, check: Callable[[], None]) -> None:
        block = new_canary()
        self._commands.put([block], check, self._read_s)
        data, missing = self._commands.get([block.cid], self._read_s, check, offline=True)
        if missing is not None or data[block.cid] != block.data:
            came = "nothing" if missing is not None else repr(data[block.cid][:40])
            raise StoreUnavailable(
                refusal(self._package, f"a block of {len(block.data)} bytes that it had just put came back as {came}")
            )

    def _check_marker(self, ledger: Ledger, check: Callable[[], None]) -> None:
        """Void the ledger if its marker is not at the node: no pin holds it, so a collection takes it, too."""
        marker = ledger.marker()
        if marker is not None and self._commands.has([marker], check):
            return
        if marker is not None:
            log.warning("the node %s has collected garbage, or is another one: what it had is not relied on", self)
        block = new_canary()
        self._commands.put([block], check)
        ledger.begin(block.cid)


def _take(data: dict[CID, bytes], found: dict[CID, bytes]) -> None:
    for cid, content in data.items():
        verify(cid, content)
        found[cid] = content


def _slices(blocks: list[Block]) -> Iterator[list[Block]]:
    some: list[Block] = []
    size = 0
    for block in blocks:
        some.append(block)
        size += len(block.data)
        if len(some) >= _PUT_BLOCKS or size >= _PUT_BYTES:
            yield some
            some, size = [], 0
    if some:
        yield some
