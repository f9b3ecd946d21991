"""One real node for many tests, one after the other: a daemon takes a second to start, and emptying it less.

shared = SharedNode()
node = shared.for_test(tmp_path)     # started when first wanted; empty for each other directory
shared.close()                       # in a fixture, whatever happens
"""

from __future__ import annotations

from pathlib import Path

from tests.support.kubo_node import KuboNode


class SharedNode:
    """See the module. Its repository lies beside the directory of the first test."""

    def __init__(self) -> None:
        self._node: KuboNode | None = None
        self._user: Path | None = None

    def for_test(self, directory: Path) -> KuboNode:
        """The node, empty if the last who used it had another `directory`. Call it on the main thread."""
        if self._node is None:
            self._node = KuboNode(directory.with_name(directory.name + "-node")).start()
        elif directory != self._user:
            self._empty(self._node)
        self._user = directory
        return self._node

    def close(self) -> None:
        """End the daemon. Idempotent."""
        node, self._node = self._node, None
        if node is not None:
            node.kill()

    @staticmethod
    def _empty(node: KuboNode) -> None:
        pinned = list((node.rpc("pin/ls", type="recursive") or {}).get("Keys") or {})
        for cid in pinned:
            node.rpc("pin/rm", cid)
        node.collect_garbage()
