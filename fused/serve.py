"""The serving process: what surrounds `run_daemon` in it, and how it reports to whoever started it.

Nothing that the process uses may lie under its own mount, or it waits for itself: see `_leave_the_mount`.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import signal
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from fused import allocator, paths
from fused.errors import IpfsfsError, MountError

if TYPE_CHECKING:
    from collections.abc import Callable

    from fused.config import Settings

log = logging.getLogger(__name__)


def report_ready(report_fd: int) -> None:
    """Tell whoever waits on the other end of the pipe that the mount serves."""
    _report(report_fd, {"ready": os.getpid()})


def report_error(report_fd: int, exc: IpfsfsError) -> None:
    """Tell whoever waits on the other end of the pipe why there will be no mount."""
    _report(report_fd, {"error": {"kind": type(exc).__name__, "message": str(exc)}})


def _report(report_fd: int, message: dict[str, object]) -> None:
    with suppress(OSError):  # nobody waits any more
        os.write(report_fd, json.dumps(message).encode("ascii") + b"\n")


def configure_logging(settings: Settings) -> None:
    """Log to standard error, or to the file that was asked for. In the background standard error is the log already."""
    to_stderr = settings.log_file is None or not settings.foreground
    handler: logging.Handler = logging.StreamHandler()
    if not to_stderr:
        # Private from its first byte on, as the log of a mount in the background is. The stream stays open to the end.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        handler = logging.StreamHandler(os.fdopen(os.open(settings.log_file or "", flags, 0o600), "a"))
    stamp = "" if settings.foreground and to_stderr else "%(asctime)s "  # journald, or a person, sees the time
    handler.setFormatter(logging.Formatter(stamp + "%(levelname)s %(name)s: %(message)s"))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level.upper())


def _leave_the_mount(settings: Settings) -> None:
    """Keep the process from walking into its own mount: by its working directory, imports, temporary files."""
    os.chdir("/")

    def outside(place: str) -> bool:
        return os.path.isabs(place) and not paths.lies_in(place, settings.mountpoint)

    sys.path[:] = [place for place in sys.path if outside(place)]  # python -m, PYTHONPATH
    sys.path_importer_cache.clear()
    for variable in ("TMPDIR", "SQLITE_TMPDIR"):
        os.environ[variable] = settings.state_dir


def serve(settings: Settings, root_fd: int, on_ready: Callable[[], None]) -> int:
    """Mount and serve in this process until unmounted or told to stop; returns the exit code.

    Raises MountError and others of ours, as `run_daemon` does.
    """
    _leave_the_mount(settings)
    configure_logging(settings)
    allocator.bound_arenas()
    import faulthandler

    faulthandler.enable()
    gc.disable()  # until it serves: nothing that is imported is garbage, and looking for some takes a tenth of the time
    try:
        _import_trio()
        import trio

        from fused.daemon import run_daemon
    except ImportError as exc:
        raise MountError(f"a library is missing: {exc}") from exc
    try:
        return trio.run(run_daemon, settings, root_fd, on_ready)
    except BaseExceptionGroup as group:
        raise _only(group) from group


def _import_trio() -> None:
    """Without running ldconfig, which `ctypes.util.find_library` does to find the library for names of threads."""
    import ctypes.util

    stock = ctypes.util.find_library
    ctypes.util.find_library = lambda name: f"lib{name}.so.0"  # as glibc calls it; without it threads have no names
    try:
        import trio  # noqa: F401
    finally:
        ctypes.util.find_library = stock


def _only(exc: BaseException) -> BaseException:
    """The one exception that a group of one, or of one of ours among others, is about; else the group."""
    while isinstance(exc, BaseExceptionGroup):
        ours = exc.subgroup(IpfsfsError)
        members = (ours or exc).exceptions
        if ours is None and len(members) > 1:
            return exc
        exc = members[0]
    return exc


def serve_as_child(settings: Settings, root_fd: int, report_fd: int) -> int:
    """`serve` for a process that was forked for it: reports to `report_fd`, raises nothing, returns the exit code."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # until the daemon has set up its own
    try:
        return serve(settings, root_fd, lambda: report_ready(report_fd))
    except IpfsfsError as exc:
        log.error("%s", exc)
        report_error(report_fd, exc)
    except BaseException as exc:
        log.exception("the daemon failed")
        report_error(report_fd, IpfsfsError(f"the daemon failed: {type(exc).__name__}: {exc}"))
    return 1
