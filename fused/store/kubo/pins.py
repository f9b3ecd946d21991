"""Pins at a node: a root that Kubo keeps whole, and a label that says for whom, since when and why.

Kubo has one pin for a CID, with one name, and can't rename it without reading the whole DAG again: `pin/add` walks all
of it, leaves too, and drops the old pin first; `pin/update` walks the difference only, and gives the new pin the old
one's name. So a root's recursive pin is called `ipfsfs:OWNER`, which may be inherited. What differs from pin to pin
stands on a *label*: a block of some bytes, pinned by itself ("direct"), whose name, and content, is

    ipfsfs:OWNER:TIME_MS:CID:NAME

`ipfs pin ls --names` shows both. A pin of ours is a label whose root is pinned. The label is made before the root's pin
and removed after it, so whatever is killed in between leaves a label without a root, which is no pin, and is removed at
the owner's next one. A root that somebody else has pinned, under another name, keeps that pin whatever we do.

Whether all is there: Kubo looks for missing blocks in the network while it pins, whatever `offline` says (its pinner
has a DAG service of its own), and would do so for ever. So what a collection of garbage may have taken is looked for
first, the walk has a deadline, and what came out is verified. All calls block; one pin at a time in a store.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, unquote

from fused.cid import CID, RAW, cid_of, format_cid, parse_cid
from fused.errors import BlockNotFound, StoreUnavailable, UsageError
from fused.store.base import Pin
from fused.store.kubo.node import named_in, never
from fused.store.kubo.rpc import NodeSaid
from fused.types import Block

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fused.store.kubo.node import Node

_OURS = "ipfsfs:"
_MOST_BYTES = 255  # of a pin's name, in Kubo (core/commands/cmdutils/utils.go, MaxPinNameBytes)
_LABEL = re.compile(r"ipfsfs:([^:\n]+):(\d{1,18}):(\w+):(.*)")

_LOOKED_FOR = 2048  # fresh blocks that are looked for after a collection; it takes all that no pin holds
_READ_BACK = 4
_STALLED_S = 30.0  # without progress Kubo is not walking, but waiting for the network
_WALK_S = 120.0  # for the difference of two snapshots, and what is new in it at this rate:
_WALK_BYTES_S = 4 << 20
_READ_S = 30.0


class Label(NamedTuple):
    """See the module."""

    owner: str
    time_ms: int
    cid: CID
    name: str

    def text(self) -> str:
        """The pin's name: `name` is cut where it has no room."""
        head = f"{_OURS}{quote(self.owner, safe=' @+,=~')}:{self.time_ms}:{format_cid(self.cid)}:"
        room = _MOST_BYTES - len(head.encode())
        if room < 0:
            raise StoreUnavailable(f"the owner of a pin can't be called {self.owner!r}: there is no room for it")
        text = head
        for ch in self.name:
            ch = ch if ch.isprintable() and ch != "%" else quote(ch, safe="", errors="surrogatepass")
            room -= len(ch.encode())
            if room < 0:
                break
            text += ch
        return text

    def block(self) -> Block:
        """The block that is pinned under this name."""
        data = self.text().encode()
        return Block(cid_of(RAW, data), data)


def parse_label(text: str) -> Label | None:
    """The label with this name; None if it is none."""
    found = _LABEL.fullmatch(text)
    if found is None:
        return None
    try:
        cid = parse_cid(found[3])
    except UsageError:
        return None
    return Label(unquote(found[1]), int(found[2]), cid, unquote(found[4], errors="surrogatepass"))


class Pins:
    """See the module."""

    def __init__(self, node: Node) -> None:
        self._node = node
        self._rpc = node.rpc
        self._ledger = node.ledger
        # One pin at a time: it takes the owner's other pins for done or dead. Held during network I/O, by one thread;
        # nobody but callers of pin and unpin waits for it.
        self._lock = threading.Lock()

    # --- asking -----------------------------------------------------------------------------------------------

    def of(self, owner: str | None) -> list[Pin]:
        """See PinStore.pins."""
        labels = [label for label in self._labels() if owner in (None, label.owner)]
        roots = self._roots(label.cid for label in labels)
        pins: dict[tuple[str, CID], Pin] = {}
        for label in sorted(labels, key=lambda label: label.time_ms):
            if label.cid in roots:
                pins[label.owner, label.cid] = Pin(label.owner, label.cid, label.name)
        return list(pins.values())

    def _labels(self) -> list[Label]:
        return [label for name in self._listed("direct").values() if (label := parse_label(name)) is not None]

    def _roots(self, wanted: Iterable[CID]) -> set[CID]:
        """Those of `wanted` that are pinned with all below them, whatever the pin is called."""
        ours = {*self._listed("recursive")}
        return {cid for cid in set(wanted) if cid in ours or self._is_pinned(cid)}

    def _listed(self, kind: str) -> dict[CID, str]:
        """The pins of a kind that bear our names."""
        keys = self._rpc.ask("pin/ls", type=kind, names="true", name=_OURS).get("Keys", {})
        try:
            named = {parse_cid(cid): str(pin["Name"]) for cid, pin in keys.items()}
        except (AttributeError, KeyError, TypeError, UsageError):
            raise self._rpc.senseless("pin/ls", f"{str(keys)[:100]!r}") from None
        return {
            cid: name for cid, name in named.items() if name.startswith(_OURS)
        }  # a node finds it in the middle, too

    def _is_pinned(self, cid: CID) -> bool:
        try:
            self._rpc.ask("pin/ls", format_cid(cid), type="recursive")
        except NodeSaid as err:
            if "not pinned" not in err.said:
                raise
            return False
        return True

    # --- pinning ----------------------------------------------------------------------------------------------

    def add(self, pin: Pin, check: Callable[[], None] = never) -> None:
        """See PinStore.pin. All that is reachable is there afterwards, or it raises BlockNotFound.

        Given up in the middle it leaves a pin more or less than there should be, which the next one sets right.
        """
        with self._lock:
            until = self._ledger.now()
            self._look_for_losses(pin.cid)
            check()
            labels = self._labels()
            mine = [label for label in labels if label.owner == pin.owner]
            same = [label for label in mine if label.cid == pin.cid]
            last = max((label.time_ms for label in labels), default=0)
            # Later than all others, so that the order is kept whatever a clock does.
            since = min(label.time_ms for label in same) if same else max(time.time_ns() // 1_000_000, last + 1)
            label = Label(pin.owner, since, pin.cid, pin.name)
            self._add_label(label)
            if not self._is_pinned(pin.cid):
                if self._node.has_lost:
                    self._look_for_holes(pin.cid)
                self._hold(pin, mine, check)
                self._verify(pin.cid)
                self._node.has_lost = False
            self._tidy(label, mine)
            self._ledger.settle(until)

    def _look_for_losses(self, root: CID) -> None:
        """Raise BlockNotFound for a block that the node had, and lacks now, as far as that can be told quickly."""
        self._node.believe_ledger()
        marker, suspects = self._ledger.marker(), self._ledger.suspects()
        try:
            self._raise_for_lost([root, *suspects])
        except BlockNotFound as err:
            if err.cid == root:
                self._ledger.void(None, marker)
            raise
        finally:
            # Told once: if nobody needs them any more, nobody puts them again.
            self._ledger.acquit(suspects)

    def _raise_for_lost(self, cids: list[CID]) -> None:
        there = self._node.present(cids)
        for cid in cids:
            if cid not in there:
                raise BlockNotFound(cid)

    def _add_label(self, label: Label) -> None:
        block = label.block()
        self._node.send([block])
        self._rpc.ask("pin/add", format_cid(block.cid), recursive="false", name=label.text(), offline="true")

    def _hold(self, pin: Pin, mine: list[Label], check: Callable[[], None]) -> None:
        """Pin the root with all below it."""
        try:
            ours = self._listed("recursive")
            before = max((label for label in mine if label.cid in ours), key=lambda label: label.time_ms, default=None)
            if before is None or not self._update(before.cid, pin.cid):
                self._walk(pin, check)
        except NodeSaid as err:
            self._explain_hole(pin.cid, err)
            raise

    def _update(self, old: CID, new: CID) -> bool:
        """Pin `new`, of which what is below `old` need not be looked at. False if `old` is pinned no more."""
        seconds = _WALK_S + self._ledger.fresh_totals()[1] / _WALK_BYTES_S
        try:
            self._rpc.ask(
                "pin/update",
                format_cid(old),
                format_cid(new),
                wait_s=seconds + 10,
                unpin="false",
                offline="true",
                timeout=f"{seconds:.0f}s",
            )
        except NodeSaid as err:
            if "not recursively pinned already" in err.said:
                return False
            if "already recursively pinned" not in err.said:  # somebody was faster
                raise
        return True

    def _walk(self, pin: Pin, check: Callable[[], None]) -> None:
        """Pin a root about which nothing is known. As long as it gets on it may take as long as it wants."""
        name = f"{_OURS}{quote(pin.owner, safe=' @+,=~')}"
        lines = self._rpc.lines("pin/add", format_cid(pin.cid), name=name, offline="true", progress="true")
        seen, since = -1, time.monotonic()
        try:
            for line in lines:
                check()
                if line.get("Pins"):
                    return
                count = line.get("Progress", 0)
                if count != seen:
                    seen, since = count, time.monotonic()
                elif time.monotonic() - since > _STALLED_S:
                    break
        finally:
            lines.close()
        said = f"after {seen} blocks it found no more"
        raise NodeSaid(f"{self._node} did not pin {format_cid(pin.cid)}: {said}", said)

    def _explain_hole(self, root: CID, err: NodeSaid) -> None:
        """Raise BlockNotFound if the node did not pin `root` because it lacks a block."""
        marker, missing = self._ledger.marker(), named_in(err)
        try:
            if missing is not None and not self._node.present([missing]):
                raise BlockNotFound(missing) from None
            self._raise_for_lost(self._ledger.fresh(_LOOKED_FOR))
        except BlockNotFound:
            self._ledger.void(None, marker)
            raise
        self._look_for_holes(root)

    def _look_for_holes(self, root: CID) -> None:
        """Raise BlockNotFound if the node lacks something below `root`. Walks all of it, but never in the network."""
        marker = self._ledger.marker()
        try:
            for line in self._rpc.lines("refs", format_cid(root), recursive="true", unique="true", offline="true"):
                if line.get("Err"):
                    said = NodeSaid("", str(line["Err"]))
                    raise BlockNotFound(named_in(said) or root)  # it does not always name the one
        except BlockNotFound:
            self._ledger.void(None, marker)
            raise

    def _verify(self, root: CID) -> None:
        """Don't believe a node that says that it has pinned: look, and read some of it back."""
        marker = self._ledger.marker()
        if not self._is_pinned(root):
            raise StoreUnavailable(f"{self._node} said that it has pinned {format_cid(root)}, but does not list it")
        try:
            for cid in {root, *self._ledger.fresh(_READ_BACK)}:
                self._node.get(cid, _READ_S, offline=True)
        except BlockNotFound:
            self._ledger.void(None, marker)
            self._drop(root)
            raise

    def _tidy(self, label: Label, mine: list[Label]) -> None:
        """Remove the owner's labels that are no pins: older ones of this root, and leavings of what was killed."""
        others = [other for other in mine if other.text() != label.text()]
        roots = self._roots(other.cid for other in others)
        for other in others:
            if other.cid == label.cid or other.cid not in roots:
                self._drop(other.block().cid)

    # --- unpinning --------------------------------------------------------------------------------------------

    def remove(self, owner: str, cid: CID) -> None:
        """See PinStore.unpin. The root's pin goes with the last label of any owner, if it bears our name."""
        with self._lock:
            labels = [label for label in self._labels() if label.cid == cid]
            mine = [label for label in labels if label.owner == owner]
            if mine and len(mine) == len(labels) and cid in self._listed("recursive"):
                self._drop(cid)
            for label in mine:
                self._drop(label.block().cid)

    def _drop(self, cid: CID) -> None:
        try:
            self._rpc.call("pin/rm", format_cid(cid), offline="true")
        except NodeSaid as err:
            if "not pinned" not in err.said:
                raise
