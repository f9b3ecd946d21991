"""Pins at a node through ipfs_kit_py: the same as `kubo/pins.py` makes, where the reasons are told.

A recursive pin on the root, and a *label*, which says for whom, since when and why, made first and removed last.
"""

from __future__ import annotations

import random
import threading
import time
from typing import TYPE_CHECKING
from urllib.parse import quote

from fused.cid import verify
from fused.errors import BlockNotFound, StoreUnavailable
from fused.store.base import Pin
from fused.store.kit.child import TimedOut
from fused.store.kit.commands import QUICK_S, CommandFailed, text
from fused.store.kubo.pins import Label, parse_label

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.cid import CID
    from fused.store.kit.commands import Commands

_HOLE_S = 20.0  # after which a pin is looked at: what does it wait for?
_SAMPLE = 8


class Pins:
    """See the module. One pin is made at a time."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self._lock = threading.Lock()  # held while commands run, by writers only

    def add(self, pin: Pin, recent: list[CID], check: Callable[[], None]) -> None:
        """See PinStore.pin. Some of the `recent` blocks are read back.

        Raises BlockNotFound for what the node does not have; then the root is not pinned.
        """
        with self._lock:
            labels = self._labels(check)
            roots = self._commands.pins("recursive", check)
            mine = [label for label in labels if label.owner == pin.owner]
            same = [label for label in mine if label.cid == pin.cid]
            last_ms = max((label.time_ms for label in labels), default=0)
            # Later than all others, so that the order is kept whatever a clock does.
            since = min(label.time_ms for label in same) if same else max(time.time_ns() // 1_000_000, last_ms + 1)
            label = Label(pin.owner, since, pin.cid, pin.name)
            self._commands.put([label.block()], check)
            self._commands.pin_alone(label.block().cid, label.text(), check)
            if pin.cid not in roots:
                before = [label.cid for label in mine if label.cid in roots]
                self._hold(pin, before[-1] if before else None, check)
                self._verify(pin.cid, recent, check)
            for other in mine:
                if (other.cid not in roots or other.cid == pin.cid) and other.text() != label.text():
                    self._commands.unpin(other.block().cid, check)

    def _hold(self, pin: Pin, like: CID | None, check: Callable[[], None]) -> None:
        name = f"ipfsfs:{quote(pin.owner, safe=' @+,=~')}"
        try:
            self._commands.pin(pin.cid, name, check, like=like, timeout_s=_HOLE_S)
        except CommandFailed as exc:
            if exc.missing is None:
                raise
            raise BlockNotFound(exc.missing) from exc
        except TimedOut as exc:  # it is large, or it is not whole, and the node looks for the rest in the network
            if (missing := self._commands.missing_below(pin.cid, check)) is not None:
                raise BlockNotFound(missing) from exc
            self._commands.pin(pin.cid, name, check, like=like)

    def _verify(self, cid: CID, recent: list[CID], check: Callable[[], None]) -> None:
        """Don't believe a node that says that it has pinned: look, and read some of it back."""
        if cid not in self._commands.pins("recursive", check):
            raise StoreUnavailable(f"the node called it a success to pin {text(cid)}, and has no such pin")
        sample = dict.fromkeys([cid, *random.sample(recent, min(len(recent), _SAMPLE))])
        data, missing = self._commands.get(list(sample), QUICK_S, check, offline=True)
        for one, content in data.items():
            verify(one, content)
        if missing is not None:
            self._commands.unpin(cid, check)
            raise BlockNotFound(missing)

    def remove(self, owner: str, cid: CID, check: Callable[[], None]) -> None:
        """See PinStore.unpin. The root's pin goes with the last label, unless somebody else made it."""
        with self._lock:
            labels = [label for label in self._labels(check) if label.cid == cid]
            mine = [label for label in labels if label.owner == owner]
            if mine and len(mine) == len(labels):
                name = self._commands.pins("recursive", check).get(cid, "")
                if name.startswith("ipfsfs:"):
                    self._commands.unpin(cid, check)
            for label in mine:
                self._commands.unpin(label.block().cid, check)

    def of(self, owner: str | None, check: Callable[[], None]) -> list[Pin]:
        """See PinStore.pins."""
        labels = self._labels(check)
        roots = self._commands.pins("recursive", check) if labels else {}
        found = [label for label in labels if label.cid in roots and owner in (None, label.owner)]
        newest = {(label.owner, label.cid): label for label in found}
        return [Pin(label.owner, label.cid, label.name) for label in newest.values()]

    def _labels(self, check: Callable[[], None]) -> list[Label]:
        """Oldest first."""
        found = [parse_label(name) for name in self._commands.pins("direct", check).values()]
        return sorted((label for label in found if label is not None), key=lambda label: label.time_ms)
