"""What `ipfsfs mount` says of a node before anything goes to it, and when it refuses.

A node that is down does not keep anybody from mounting. What it would have been asked here it is asked by the daemon,
before the first block goes to it (`sync/disclosure.py`).
"""

from __future__ import annotations

import os
from itertools import islice
from typing import TYPE_CHECKING

from fused.cli.asking import ask_node
from fused.cli.output import say
from fused.errors import UsageError
from fused.sync.credentials import find_credentials
from fused.sync.excludes import Excludes, read_ignore_file

if TYPE_CHECKING:
    from fused.config import Settings
    from fused.store.base import NodeStatus

_NAMED = 3

REACHES = {
    "public": "is public: whoever knows the CID of something in it can get that",
    "private": "is private: only who has its swarm key gets anything",
    "offline": "is offline: nobody else gets anything from it, until it is started with a network",
    None: "does not say whether it is public, and counts as public",
}


def greet_node(settings: Settings, root_fd: int) -> None:
    """Say in one line how the node is. Raises UsageError if what is in the directory should not go there."""
    status = ask_node(settings.store_spec)
    if status.error is not None:
        say(f"warning: what is written stays local until the node can be reached: {status.error}")
        return
    if status.reach not in ("private", "offline") and not settings.public_is_fine:
        why = credentials_obstacle(settings, root_fd, status)
        if why is not None:
            raise UsageError(why)
    version = "" if status.version is None else f" ({status.version})"
    say(f"the node at {status.address}{version} {REACHES[status.reach]}")


def credentials_obstacle(settings: Settings, root_fd: int, status: NodeStatus) -> str | None:
    """Why what is in the directory should not go to a node that may be public."""
    excludes = Excludes([*settings.exclude, *read_ignore_file(root_fd)])
    found = list(islice(find_credentials(root_fd, os.fsencode(settings.mountpoint), excludes), _NAMED + 1))
    if found:
        named = ", ".join(os.fsdecode(path) for path in found[:_NAMED]) + (", …" if len(found) > _NAMED else "")
        return (
            f"{settings.mountpoint} is not mounted: it has files that look like credentials ({named}), and the node at "
            f"{status.address} {REACHES[status.reach]}; leave them out (--exclude PATTERN, or .ipfsfsignore), use "
            "another store (--store embedded), or say --i-understand-this-is-public"
        )
    return None
