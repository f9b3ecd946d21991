"""The one exception hierarchy. Each class names a condition and carries what it is about.

Calls on the local layer let `OSError` through; everything else that can go wrong in a way a person
should read about is one of these. `fs/replies.py` is the only place that turns them into an errno,
`cli/main.py` the only one that turns them into an exit code and a sentence. The text of an error is
one sentence that says what is wrong and, where something can be done, what to do.
"""

from __future__ import annotations

TYPE_CHECKING = False  # `typing` takes 10 ms to import, and `ipfsfs sync` comes by here
if TYPE_CHECKING:
    from fused.cid import CID


class IpfsfsError(Exception):
    """Root of everything this program raises on purpose."""


class UsageError(IpfsfsError):
    """A command, option, setting or path that can't be used as given."""


class MountError(IpfsfsError):
    """The mount can't be made, or can't be undone."""


class Busy(MountError):
    """Somebody uses what should be undone or taken: open files below a mount, another ipfsfs process."""


class NotMounted(IpfsfsError):
    """The path is not inside a running ipfsfs mount."""


class ControlError(IpfsfsError):
    """The daemon did not answer, or answered with an error."""


class DaemonGone(ControlError):
    """No daemon answers where one should: it died, or was never started."""


class StoreError(IpfsfsError):
    """Something in the block store failed."""


class StoreUnavailable(StoreError):
    """The store can't be reached or can't take more (node down, deadline passed, disk full)."""


class StoreDamaged(StoreUnavailable):
    """The store's database can't be understood: damaged, or something else. Trying again does not help."""


class BlockNotFound(StoreError):
    """No store at hand has this block."""

    def __init__(self, cid: CID) -> None:
        from fused.cid import format_cid

        super().__init__(f"block {format_cid(cid)} is not in the store")
        self.cid = cid


class BlockCorrupt(StoreError):
    """A block's bytes do not hash to its CID, or it is shorter or longer than recorded."""

    def __init__(self, cid: CID, why: str = "its bytes do not match its CID") -> None:
        from fused.cid import format_cid

        super().__init__(f"block {format_cid(cid)} is damaged: {why}")
        self.cid = cid


class DagError(IpfsfsError):
    """A block is intact but does not say what a block in its place must say (malformed or hostile).

    `cid` names the block where it is known.
    """

    def __init__(self, why: str, cid: CID | None = None) -> None:
        from fused.cid import format_cid

        super().__init__(why if cid is None else f"block {format_cid(cid)}: {why}")
        self.cid = cid


class NamesCollide(IpfsfsError):
    """Two names with the same hash: no sharded directory can hold both, here or in Kubo.

    By chance that takes billions of names; on purpose it is easy, since the hash is not a cryptographic one.
    Leave one of `names` out and build the directory again.
    """

    def __init__(self, first: bytes, second: bytes) -> None:
        super().__init__(f"{first!r} and {second!r} have the same hash, so no sharded directory can hold both")
        self.names = (first, second)


class PathNotInDag(IpfsfsError):
    """The DAG has no entry of this name."""


class RestoreFailed(IpfsfsError):
    """A restore's target can't be written to any more. What was restored so far is complete."""


class IndexUnavailable(IpfsfsError):
    """The index can't be read or written just now (disk full, no permission)."""


class IndexDamaged(IpfsfsError):
    """The index can't be read. It is a memo: it is set aside and rebuilt, nothing is lost."""
