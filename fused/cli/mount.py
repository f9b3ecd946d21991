"""`ipfsfs mount`: decide whether to mount, refuse what can't work, then start the daemon.

The order matters: what stops a mount on purpose comes first (gates), then what is wrong with the request
(nothing has been changed by then), then what this machine can't do (fallback), and only then things are made.
"""

from __future__ import annotations

import argparse
import os

from fused import state
from fused.cli.exits import Exit
from fused.cli.options import DIRECTORY, FILE, add_store, completes
from fused.cli.output import printable, say
from fused.cli.place import is_served, refuse
from fused.config import LOG_LEVELS, ON_CRASH, Settings, load_settings, save_settings
from fused.errors import Busy, MountError, UsageError
from fused.fs import mounts
from fused.gates import closed_gate, fuse_obstacle, store_only_entries

_FLAGS = (
    "state_dir",
    "store_dir",
    "store",
    "auth_file",
    "ca_file",
    "cache_bytes",
    "read_seconds",
    "keep_snapshots",
    "public_is_fine",
    "read_only",
    "allow_other",
    "write_through",
    "on_crash",
    "exclude",
    "quiet_seconds",
    "interval_seconds",
    "log_level",
    "log_file",
)


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `ipfsfs mount`."""
    parser.description = (
        "Cover DIR: every program goes on working in it as before, and what is in it is stored and versioned in the "
        "background. DIR keeps plain files under their own names: they are there again after `ipfsfs umount`."
    )
    parser.epilog = """\
examples:
  ipfsfs mount ~/.cache/ipfs_accelerate     returns when the mount serves
  ipfsfs mount --exclude '*.tmp' ~/data     see also the file .ipfsfsignore in DIR
  ipfsfs mount -f --require /srv/models     under systemd or in a container
  ipfsfs mount --store kubo ~/data          store at the Kubo node of this machine (see docs/operations.md)
  ipfsfs mount --on-crash=error ~/data      while a dead daemon is restarted, errors instead of plain files

IPFS_KIT_DISABLE or STORAGE_FORCE_LOCAL (1, true, yes) or a CI that is not empty leave DIR as it is, with one
line that says so and exit code 0; so does a machine without FUSE. Every option can be set in
~/.config/ipfsfs/config.toml (read_only = true) or the environment (IPFSFS_READ_ONLY=1) too.
"""
    completes(parser.add_argument("dir", metavar="DIR", help="the directory to cover; created if missing"), DIRECTORY)
    parser.add_argument("-f", "--foreground", action="store_true", help="serve in this process, log to standard error")
    parser.add_argument("--require", action="store_true", help="if FUSE can't be used here: an error, not a warning")
    parser.add_argument("--force", action="store_true", help="mount although a gate (see below) says not to")
    switch = argparse.BooleanOptionalAction
    parser.add_argument("--read-only", action=switch, default=None, help="let nobody change anything through the mount")
    parser.add_argument("--allow-other", action=switch, default=None, help="let other users in, by the files' modes")
    parser.add_argument(
        "--write-through",
        action=switch,
        default=None,
        help="hand every write() to the local file at once, instead of at close() or earlier",
    )
    parser.add_argument(
        "--on-crash",
        choices=ON_CRASH,
        help="what programs see until a dead daemon is back: the plain directory, or errors (default: auto, "
        "plain unless entries exist only in the store)",
    )
    parser.add_argument(
        "--exclude",
        metavar="PATTERN",
        action="append",
        help="cover, but do not store, what matches (gitignore syntax; may be repeated)",
    )
    parser.add_argument("--quiet-seconds", metavar="S", help="snapshot after S seconds without a change (default: 2)")
    parser.add_argument("--interval-seconds", metavar="S", help="and after S seconds in any case (default: 60)")
    completes(parser.add_argument("--state-dir", metavar="DIR", help="index, log and control socket"), DIRECTORY)
    add_store(parser, "embedded, a store of your own without a server")
    completes(
        parser.add_argument(
            "--store-dir", metavar="DIR", help="the embedded store, or what is known of a node; shared by all mounts"
        ),
        DIRECTORY,
    )
    parser.add_argument("--cache-bytes", metavar="SIZE", help="the most that a node's blocks take here (default: 1G)")
    parser.add_argument("--read-seconds", metavar="S", help="wait so long for a block from a node (default: 30)")
    parser.add_argument(
        "--keep-snapshots",
        metavar="N",
        help="keep the N newest snapshots, 0: all (default: 0 in the embedded store, 100 at a node)",
    )
    parser.add_argument(
        "--i-understand-this-is-public",
        dest="public_is_fine",
        action="store_true",
        default=None,
        help="store files that look like credentials, too, at a node that anybody can ask for them",
    )
    parser.add_argument("--log-level", choices=LOG_LEVELS, help="how much to log (default: info)")
    completes(parser.add_argument("--log-file", metavar="FILE", help="log there"), FILE)


def run(args: argparse.Namespace) -> int:
    """Run `ipfsfs mount`."""
    settings = load_settings(args.dir, {key: getattr(args, key) for key in _FLAGS}, foreground=args.foreground)
    gate = None if args.force else closed_gate()
    if gate is not None:
        return _fall_back(settings, f"{gate.name}={gate.value} says not to (--force mounts all the same)")
    refuse(settings)
    obstacle = fuse_obstacle()
    if obstacle is not None:
        return _without_fuse(settings, obstacle, args.require)
    state.prepare(settings.state_dir)
    lock_fd = state.take_lock(settings.state_dir)
    _detach_dead(settings)
    _make_directory(settings.mountpoint)
    try:
        # Opened before anything is mounted on it: this descriptor is the only way to the files below the mount.
        root_fd = os.open(settings.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as exc:
        raise UsageError(f"{settings.mountpoint} can't be opened: {exc.strerror}") from None
    if settings.store_spec.kind != "embedded":
        from fused.cli.node import greet_node

        greet_node(settings, root_fd)
    save_settings(settings)
    try:
        return _serve(settings, root_fd, lock_fd)
    except Busy:
        raise
    except MountError as exc:
        return _without_fuse(settings, str(exc), args.require)


def _serve(settings: Settings, root_fd: int, lock_fd: int) -> int:
    if settings.foreground:
        from fused.serve import serve

        return serve(settings, root_fd, lambda: None)
    from fused.supervise import launch

    pid = launch(settings, root_fd, lock_fd)
    print(f"{printable(settings.mountpoint)} is covered (daemon {pid}); `ipfsfs status` shows how far it is stored")
    return Exit.OK


# --- not mounting ----------------------------------------------------------------------------------------


def _without_fuse(settings: Settings, why: str, require: bool) -> int:
    if require:
        say(f"{settings.mountpoint} can't be mounted: {why}")
        return Exit.NO_MOUNT
    return _fall_back(settings, why, "warning: ")


def _fall_back(settings: Settings, why: str, prefix: str = "") -> int:
    """Leave the plain directory (there is one afterwards, so that the same scripts work) and say why in one line."""
    missing = store_only_entries(settings.state_dir)
    line = f"{prefix}not mounting {settings.mountpoint}: {why}"
    if missing:
        line += f"; {missing} entries exist only in the store, `ipfsfs hydrate {settings.mountpoint}` brings them back"
    else:
        try:
            if mounts.find_mount_at(settings.mountpoint) is not None and mounts.is_stale(settings.mountpoint):
                mounts.detach(settings.mountpoint)
                line += "; a dead mount was taken away"
            os.makedirs(settings.mountpoint, exist_ok=True)
        except (OSError, MountError):
            line += "; what is there stays as it is"
    say(line)
    return Exit.OK


# --- making the place ------------------------------------------------------------------------------------


def _detach_dead(settings: Settings) -> None:
    """Take dead mounts of ours away from the mountpoint (several may lie on each other). We hold the lock."""
    while (mounted := mounts.find_mount_at(settings.mountpoint)) is not None:
        if mounted.state_dir != settings.state_dir and is_served(mounted):
            raise Busy(f"{settings.mountpoint} is already mounted")
        mounts.detach(settings.mountpoint)
        say(f"the daemon of {settings.mountpoint} had died; its dead mount was taken away")


def _make_directory(mountpoint: str) -> None:
    if os.path.isdir(mountpoint):
        return
    try:
        os.makedirs(mountpoint)
    except OSError as exc:
        raise UsageError(f"{mountpoint} can't be made: {exc.strerror}") from None
    say(f"{mountpoint} did not exist and was made")
