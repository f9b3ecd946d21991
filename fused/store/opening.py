"""The store that a specification means. The only place that knows all kinds; each is imported when it is wanted."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fused.store.base import NodeStore, Store
    from fused.store.spec import StoreSpec


def make_store(spec: StoreSpec) -> Store:
    """A store, not yet opened. Raises UsageError for an address that is none, or a missing library."""
    if spec.kind == "embedded":
        from fused.store.embedded import EmbeddedStore

        return EmbeddedStore(spec.directory)
    return make_node_store(spec)


def make_node_store(spec: StoreSpec) -> NodeStore:
    """The same for the kinds with a node behind them."""
    if spec.kind == "kubo":
        from fused.store.kubo.store import KuboStore

        return KuboStore(spec)
    from fused.store.kit.store import KitStore

    return KitStore(spec)
