"""Exit codes. Scripts rely on them: they are documented in docs/operations.md and do not change meaning."""

from __future__ import annotations

from enum import IntEnum, IntFlag

from fused import errors


class Exit(IntEnum):
    """What the exit code of a command says."""

    OK = 0
    """Done. Also: not mounted, because a gate is closed or FUSE is missing, and that was not made an error."""
    FAILED = 1
    """It did not work, for a reason that is none of those below."""
    USAGE = 2
    """A command, option, setting or path can't be used as given. Nothing was changed."""
    NOT_MOUNTED = 3
    """The directory is not inside a running mount."""
    TROUBLE = 4
    """The daemon does not answer or has died, or the store is unavailable or damaged."""
    BUSY = 5
    """Somebody uses what should be undone: open files below a mount, another ipfsfs at work."""
    NO_MOUNT = 6
    """The mount could not be made, and --require was given; `doctor`: it could not be made."""
    NOT_FOUND = 7
    """There is no such block, snapshot or path in a snapshot."""
    INTERRUPTED = 130
    """Ctrl-C."""
    BROKEN_PIPE = 141
    """The reader of the output went away."""


class Fsck(IntFlag):
    """What the exit code of `ipfsfs fsck` says: the bits of fsck(8), which mean something else than those above."""

    CLEAN = 0
    """Nothing is wrong."""
    CORRECTED = 1
    """Something was wrong, or left over, and is no more."""
    UNCORRECTED = 4
    """Something is wrong and was left so."""
    OPERATIONAL = 8
    """The check could not be made, or not all of it."""
    USAGE = 16
    """A command, option, setting or path can't be used as given."""
    CANCELLED = 32
    """Ctrl-C."""


_CODES: tuple[tuple[type[errors.IpfsfsError], Exit], ...] = (  # the first that fits counts
    (errors.UsageError, Exit.USAGE),
    (errors.NotMounted, Exit.NOT_MOUNTED),
    (errors.Busy, Exit.BUSY),
    (errors.PathNotInDag, Exit.NOT_FOUND),
    (errors.BlockNotFound, Exit.NOT_FOUND),
    (errors.ControlError, Exit.TROUBLE),
    (errors.StoreError, Exit.TROUBLE),
    (errors.DagError, Exit.TROUBLE),
    (errors.IndexDamaged, Exit.TROUBLE),
    (errors.IndexUnavailable, Exit.TROUBLE),
)


def exit_code(exc: errors.IpfsfsError) -> Exit:
    """The exit code of a command that ended with `exc`."""
    return next((code for cls, code in _CODES if isinstance(exc, cls)), Exit.FAILED)
