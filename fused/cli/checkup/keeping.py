"""Whether what a mount keeps, state and store, can be kept where the settings say."""

from __future__ import annotations

import os
import stat
import tempfile
from dataclasses import replace
from typing import TYPE_CHECKING

from fused import paths, private, state
from fused.cli.asking import ask_node
from fused.cli.checkup.check import Check, fail, ok, warn
from fused.cli.checkup.place import check_space, existing
from fused.cli.exits import Exit
from fused.cli.node import REACHES, credentials_obstacle
from fused.config import Settings, load_settings
from fused.errors import StoreError, UsageError
from fused.store.directory import inspect

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_FACTS = frozenset({"mountpoint", "owner", "state_dir", "store_dir", "foreground", "replace_stale"})


def load(directory: str, flags: Mapping[str, object]) -> tuple[Settings | None, Check]:
    """The settings that a mount of `directory` would have, and what there is to say of them."""
    file = paths.config_file()
    try:
        settings = load_settings(directory, flags)
    except UsageError as exc:
        return None, fail("settings", Exit.USAGE, str(exc), "correct it: no directory is mounted until then")
    source = file if os.path.exists(file) else f"{file} does not exist, and need not"
    usual = Settings(mountpoint="", owner="", state_dir="", store_dir="")
    own = [
        name for name in Settings.__slots__ if name not in _FACTS and getattr(settings, name) != getattr(usual, name)
    ]
    values = ", ".join(f"{name} = {_shown(getattr(settings, name))}" for name in own)
    return settings, ok("settings", f"{source}; {values or 'all are the defaults'}")


def _shown(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def check_state(settings: Settings, *, mounted: bool) -> Check:
    """The state directory is private, or can be made so, and nobody else is at work in it."""
    where = settings.state_dir
    why = private.obstacle(where, "the state directory")
    if why is not None:
        return fail("state", Exit.USAGE, why, "correct owner and mode, or choose another with --state-dir")
    if not mounted and state.is_locked(where):
        return fail(
            "state",
            Exit.BUSY,
            f"another ipfsfs process is using the state directory {where}",
            f"wait for it to end; `ipfsfs status {settings.mountpoint}` says what it is",
        )
    return ok("state", _described(where))


def _described(path: str) -> str:
    if not os.path.isdir(path):
        return f"{path} does not exist; `ipfsfs mount` makes it, for you alone"
    mode = stat.S_IMODE(os.stat(path).st_mode)
    closed = "" if mode & 0o077 == 0 else ", which `ipfsfs mount` makes 700"
    return f"{path} is yours (uid {os.geteuid()}, mode {mode:o}{closed})"


def check_store(settings: Settings) -> Iterator[Check]:
    """The store can be used; a node is asked how it is."""
    where = settings.store_dir
    why = private.obstacle(where, "the store")
    if why is not None:
        yield fail("store", Exit.TROUBLE, why, "correct owner and mode, or choose another with --store-dir")
        return
    if settings.store_spec.kind == "embedded":
        yield _embedded(where)
    else:
        yield _node(settings)
    yield check_space("store space", existing(where))


def _embedded(where: str) -> Check:
    try:
        found = inspect(where)
    except StoreError as exc:
        return fail("store", Exit.TROUBLE, str(exc), "`ipfsfs fsck` says what is damaged; --store-dir names another")
    if found:
        return ok("store", f"embedded, {_described(where)}; `ipfsfs fsck` checks what is in it")
    return ok("store", f"embedded, {_described(where)}" if not os.path.isdir(where) else f"embedded, {where} is empty")


def _node(settings: Settings) -> Check:
    """A directory in the place of ours is given to the store, which makes one for what it knows of the node."""
    try:
        with tempfile.TemporaryDirectory(prefix="ipfsfs-doctor-") as scratch:
            status = ask_node(replace(settings.store_spec, directory=scratch))
    except UsageError as exc:
        return fail("store", Exit.USAGE, str(exc), "correct --store, or what stands beside it in the settings")
    except OSError as exc:  # no place for temporary files
        return warn("store", f"the node can't be asked: {exc.strerror}", "make room in a directory for temporary files")
    if status.error is not None:
        return warn("store", status.error, "start the node; what is written stays local until it can be reached")
    version = "" if status.version is None else f" ({status.version})"
    detail = f"the node at {status.address}{version} {REACHES[status.reach]}"
    if status.reach in ("private", "offline") or settings.public_is_fine:
        return ok("store", detail)
    try:
        root_fd = os.open(settings.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ok("store", detail)  # not made yet, or refused, which was said
    try:
        why = credentials_obstacle(settings, root_fd, status)
    finally:
        os.close(root_fd)
    if why is None:
        return ok("store", detail)
    what, _, advice = why.partition("; ")
    return fail("store", Exit.USAGE, what, advice)
