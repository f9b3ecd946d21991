"""What a node may be given: nothing whose name looks like that of credentials, if anybody can ask the node for it.

A node's reach can change whenever it is started again, so it is asked before each scan and each snapshot, before any
block goes to it. One that does not answer gets nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fused.errors import StoreUnavailable
from fused.sync.credentials import Credentials

if TYPE_CHECKING:
    from fused.store.base import NodeStatus, NodeStore


class Disclosure:
    """The rule for one mount. `seen` is what the node said last."""

    def __init__(self, node: NodeStore | None, root: bytes, *, public_is_fine: bool) -> None:
        """`node` is None for a store that nobody else can reach; `root` is the covered directory's absolute path."""
        self._node = node
        self._root = root
        self._public_is_fine = public_is_fine
        self.seen: NodeStatus | None = None

    async def withheld(self) -> Credentials | None:
        """The names that are not to be stored just now, or None. Raises StoreUnavailable if the node doesn't answer."""
        if self._node is None:
            return None
        self.seen = status = await self._node.node()
        if status.error is not None:
            raise StoreUnavailable(status.error)
        # A reach that is not known may be any.
        known = status.reach in ("private", "offline")
        return None if known or self._public_is_fine else Credentials(self._root)
