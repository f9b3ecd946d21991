"""A Kubo node as a place for blocks, without trio: every call blocks, and may be made from any thread.

Contact: a node is *met* before anything is put there: its version is looked at, and a block is sent ahead
(`fused/store/canary.py`). After any loss of contact it has to be met again, for another may be in its place. Reads need
no meeting, as every block that comes is verified.

`offline` in a command's options means: do not look in the network. Nothing that is put or asked about is looked for
there; only `get` is, as the block may be at another node.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from fused.cid import CID, format_cid, parse_cid, verify
from fused.dag import car
from fused.errors import BlockCorrupt, BlockNotFound, DagError, StoreError, StoreUnavailable, UsageError
from fused.store.base import NodeStatus, Reach
from fused.store.canary import send_canary
from fused.store.kubo.rpc import NodeSaid, TooMuch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fused.store.kubo.ledger import Ledger
    from fused.store.kubo.rpc import Rpc
    from fused.types import Block

MAX_BLOCK = 2 << 20
"""Bytes: what nodes exchange (https://specs.ipfs.tech/bitswap-protocol/#block-sizes), and what Kubo takes."""

# Pins are found by a part of their name since 0.29 (docs/changelogs/v0.29.md there); options that a node does not know
# it ignores. Run with 0.42.
_OLDEST = (0, 29)
_PIECE = 256 << 10  # bytes handed to the socket at once, at least: many small sends cost more than copying
_IMPORT_S = 120.0  # a slow disk takes its time over a thousand blocks, and Kubo says nothing until it is done
_STATUS_S = 3.0
_CID_IN_ERROR = re.compile(r"(?:could not find|get) ([A-Za-z0-9]{20,})")


def never() -> None:
    """The check of those who are never stopped."""


class Node:
    """See the module. Owns neither of the two."""

    def __init__(self, rpc: Rpc, ledger: Ledger) -> None:
        self.rpc = rpc
        self.ledger = ledger
        # Held while the node is met or the marker looked for, by one thread, which may wait for the node's deadlines;
        # whoever else wants to put waits for the same answer.
        self._meeting = threading.Lock()
        self._met_after: int | None = None
        self.has_lost = False
        """It has collected garbage, or is another node, since a pin held everything: what we put may be gone."""

    def __str__(self) -> str:
        return str(self.rpc)

    # --- contact ----------------------------------------------------------------------------------------------

    def believe_ledger(self) -> bool:
        """Meet the node if need be, and look for the ledger's marker. False if the ledger was void, and is empty now.

        Raises StoreUnavailable.
        """
        with self._meeting:
            marker = self.ledger.marker()
            if self._met_after != self.rpc.losses:
                losses = self.rpc.losses
                self._check_version()
                canary: CID | None = self._send_canary()
                self._met_after = losses
            else:
                canary = None
            if marker is not None and self.present([marker]):
                return True
            self.has_lost = self.has_lost or marker is not None
            self.ledger.void(self._send_canary() if canary is None else canary, marker)
            return False

    def _send_canary(self) -> CID:
        def get(cid: CID) -> bytes:
            with self._missing_is_not_found(cid):
                return self._raw(cid, offline="true")

        return send_canary(str(self), self.send, get, self.present).cid

    def _check_version(self) -> str:
        said = self.rpc.ask("version")
        version = said.get("Version")
        numbers = re.match(r"(\d+)\.(\d+)", version) if isinstance(version, str) else None
        if numbers is None:
            raise self.rpc.senseless("version", repr(said)[:100])
        if (int(numbers[1]), int(numbers[2])) < _OLDEST:
            oldest = ".".join(map(str, _OLDEST))
            raise StoreUnavailable(
                f"{self} is Kubo {version}, and can't find pins by name; {oldest} or newer is needed"
            )
        return str(version)

    # --- blocks -----------------------------------------------------------------------------------------------

    def send(self, blocks: Sequence[Block], check: Callable[[], None] = never) -> None:
        """Store `blocks`, as one CAR stream. `check` is called between pieces and may raise to give up.

        Then, as after any error, any part of them may be stored. Kubo's default datastore does not sync: what a power
        cut takes from a node nobody tells us.
        """
        head = car.header([blocks[0].cid])

        def pieces() -> Iterator[bytes]:
            parts, length = [head], len(head)
            for block in blocks:
                parts.append(car.section_head(block))
                if len(block.data) >= _PIECE:  # as it is: to copy a megabyte costs more than to send twice
                    check()
                    yield b"".join(parts)
                    yield block.data
                    parts, length = [], 0
                    continue
                parts.append(block.data)
                length += len(block.data)
                if length >= _PIECE:
                    check()
                    yield b"".join(parts)
                    parts, length = [], 0
            yield b"".join(parts)

        size = len(head) + sum(map(car.section_size, blocks))
        # Nothing is pinned here, and the root is only a formality, so it need not be announced at once, either.
        options = {"pin_roots": "false", "stats": "true", "fast_provide_root": "false"}
        body = self.rpc.send("dag/import", pieces, size, wait_s=_IMPORT_S, **options)
        count = None
        with suppress(ValueError, KeyError, TypeError, IndexError):
            count = json.loads(body.strip().splitlines()[-1])["Stats"]["BlockCount"]
        if count != len(blocks):
            said = body[:200].decode(errors="replace").strip()
            raise StoreUnavailable(f"{self} was sent {len(blocks)} blocks and does not say that it has them: {said!r}")

    def present(self, cids: Sequence[CID], check: Callable[[], None] = never) -> set[CID]:
        """Those of `cids` that the node has itself."""
        found: set[CID] = set()
        for cid in cids:
            check()
            try:
                said = self.rpc.ask("block/stat", format_cid(cid), offline="true")
            except NodeSaid as err:
                if not is_missing(err):
                    raise
                continue
            if _as_cid(said.get("Key")) != cid:
                raise self.rpc.senseless("block/stat", f"{said.get('Key')!r} when asked for {format_cid(cid)}")
            found.add(cid)
        return found

    def get(self, cid: CID, seconds: float, *, offline: bool = False) -> bytes:
        """The block, verified. Without `offline` it is looked for in the network, for `seconds`.

        Raises BlockNotFound, BlockCorrupt, StoreUnavailable.
        """
        if not offline and _is_empty(cid):
            return b""  # nodes don't send each other blocks of no bytes (Kubo 0.42, measured)
        try:
            with self._missing_is_not_found(cid):
                where = {"offline": "true"} if offline else {}
                data = self._raw(cid, seconds + 5, timeout=f"{max(1, round(seconds * 1000))}ms", **where)
        except TooMuch:
            raise BlockCorrupt(cid, f"{self} gives more than {MAX_BLOCK} bytes for it, which no block has") from None
        except NodeSaid as err:
            if "deadline exceeded" not in err.said:
                raise
            raise StoreUnavailable(
                f"block {format_cid(cid)} did not come within {seconds:g} s: {self} does not have it, "
                "and found nobody who has"
            ) from None
        except StoreUnavailable as err:
            raise type(err)(f"block {format_cid(cid)} did not come: {err}") from err
        try:
            verify(cid, data)
        except BlockCorrupt:
            raise BlockCorrupt(cid, f"{self} gave {len(data)} bytes for it that do not match its CID") from None
        return data

    def _raw(self, cid: CID, wait_s: float = 30.0, **options: str) -> bytes:
        return self.rpc.call("block/get", format_cid(cid), most=MAX_BLOCK, wait_s=wait_s, **options)

    def repair(self, block: Block) -> bool:
        """See Store.repair. Raises BlockCorrupt if the node keeps the damaged bytes."""
        try:
            self.get(block.cid, 30.0, offline=True)
            return False
        except BlockNotFound:
            pass
        except BlockCorrupt:
            # Kubo writes nothing that it remembers to have, unless that was removed. What is pinned it does not remove.
            self.rpc.call("block/rm", format_cid(block.cid), force="true")
        self.send([block])
        try:
            self.get(block.cid, 30.0, offline=True)
        except BlockCorrupt:
            raise BlockCorrupt(
                block.cid,
                f"{self} was sent it again and still gives other bytes, as it does not write what it remembers to "
                "have; restart the node, then try again",
            ) from None
        return True

    # --- the node itself --------------------------------------------------------------------------------------

    def status(self) -> NodeStatus:
        """See NodeStore.node."""
        try:
            version = self.rpc.ask("version", wait_s=_STATUS_S).get("Version")
            peer = self.rpc.ask("id", wait_s=_STATUS_S, offline="true").get("ID")
            reach = self._reach(peer)
        except StoreError as err:
            return NodeStatus(self.rpc.address, str(err))
        return NodeStatus(self.rpc.address, None, _text(version), _text(peer), reach)

    def _reach(self, peer: object) -> Reach:
        """In doubt "public": for whoever relies on it that is the safe side.

        Kubo's API does not tell of a swarm key, so we look for it in the repository, if that is on this machine:
        `diag/sys` names it, and the peer id in its configuration shows that it is this node's.
        """
        try:
            told = self.rpc.ask("diag/sys", wait_s=_STATUS_S)
            online = told["net"]["online"]
            repo = told["environment"]["IPFS_PATH"] or os.path.expanduser("~/.ipfs")
        except (NodeSaid, KeyError, TypeError):
            return "public"
        if online is False:
            return "offline"
        try:
            with open(os.path.join(repo, "config"), "rb") as file:
                ours = json.load(file)["Identity"]["PeerID"] == peer
            private = ours and os.path.getsize(os.path.join(repo, "swarm.key")) > 0
        except (OSError, ValueError, KeyError, TypeError):
            return "public"
        return "private" if private else "public"

    def disk_bytes(self) -> int:
        """What the whole repository takes, of all who use the node. Kubo keeps the sum, so it is cheap."""
        size = self.rpc.ask("repo/stat", size_only="true").get("RepoSize")
        if not isinstance(size, int):
            raise self.rpc.senseless("repo/stat", f"a size of {size!r}")
        return size

    def show(self, name: str, tree: CID) -> None:
        """See NodeStore.show."""
        path = f"/ipfsfs/{name}"
        self.rpc.call("files/rm", path, recursive="true", force="true")
        self.rpc.call("files/cp", f"/ipfs/{format_cid(tree)}", path, parents="true", offline="true")

    def _missing_is_not_found(self, cid: CID) -> _MissingIsNotFound:
        return _MissingIsNotFound(cid)


class _MissingIsNotFound:
    def __init__(self, cid: CID) -> None:
        self._cid = cid

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if isinstance(error, NodeSaid) and is_missing(error):
            raise BlockNotFound(self._cid) from None


def _is_empty(cid: CID) -> bool:
    try:
        verify(cid, b"")
    except (BlockCorrupt, DagError):
        return False
    return True


def is_missing(err: NodeSaid) -> bool:
    """Whether the node says that it lacks a block: boxo's `ipld.ErrNotFound`, under whatever words stand before it."""
    return "ipld: could not find" in err.said or "block was not found locally" in err.said


def named_in(err: NodeSaid) -> CID | None:
    """The block that a node names as the one it lacks."""
    found = _CID_IN_ERROR.search(err.said)
    return None if found is None else _as_cid(found[1])


def _as_cid(text: object) -> CID | None:
    try:
        return parse_cid(text) if isinstance(text, str) else None
    except (UsageError, DagError):
        return None


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None
