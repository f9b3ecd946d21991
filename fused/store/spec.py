"""Which store is meant, before it is opened: what `--store` and the settings beside it say, as one value.

No store is imported here; `opening.py` makes one of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

StoreKind = Literal["embedded", "kubo", "ipfs-kit"]

STORE_KINDS: tuple[StoreKind, ...] = ("embedded", "kubo", "ipfs-kit")


@dataclass(frozen=True, slots=True)
class StoreSpec:
    """What is needed to open a store."""

    kind: StoreKind
    directory: str
    """Ours, on local disk, absolute: the embedded store itself. A node's store keeps there what it knows of it, and
    its cache of blocks, in a directory of their own for each node (`nodes/…`)."""
    address: str | None = None
    """What stands behind `kubo=` or `ipfs-kit=`: a URL or multiaddr of a node's RPC API, or an IPFS_PATH. None: the
    usual place, `$IPFS_PATH/api` and so on."""
    auth_file: str | None = None
    """A file with what the node's API.Authorizations wants: `bearer:TOKEN` or `basic:USER:PASSWORD`."""
    ca_file: str | None = None
    """A PEM file with the certificates that a node behind TLS is believed by, beside the system's."""
    cache_bytes: int = 1 << 30
    """The most that the local cache of a node's blocks takes."""
    read_seconds: float = 30.0
    """How long a block that is not at hand is waited for."""


def parse_store(text: str) -> tuple[StoreKind, str | None]:
    """`embedded`, `kubo[=ADDRESS]` or `ipfs-kit[=IPFS_PATH]`. Raises ValueError with the end of a sentence."""
    word, equals, address = text.partition("=")
    for kind in STORE_KINDS:
        if word == kind and (kind != "embedded" or not equals) and (address or not equals):
            return kind, address or None
    raise ValueError("must be embedded, kubo, kubo=URL, ipfs-kit or ipfs-kit=IPFS_PATH")
