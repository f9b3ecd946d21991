"""Whether this machine, and this environment, let us mount."""

from __future__ import annotations

import ctypes
import errno
import importlib
import importlib.metadata
import os
import platform
import re
import stat
import sys
from typing import TYPE_CHECKING

from fused.cli.checkup.check import Check, fail, ok, warn
from fused.cli.exits import Exit
from fused.gates import DEVICE, allow_other_obstacle, device_obstacle, find_fusermount3, fusermount_obstacle, gates

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

CONNECTIONS = "/sys/fs/fuse/connections"
_SELF = "/proc/self/status"
_MAPS = "/proc/self/maps"
_CAP_SYS_ADMIN = 21  # Linux include/uapi/linux/capability.h

_NEWER = (
    ((5, 8), "the store syncs each of its files by itself instead of many at once"),
    ((5, 11), "the kernel asks for capabilities before each small write"),
    ((6, 2), "other requests wait longer beside large copies, as the dirty pages of a mount can't be limited"),
    ((6, 12), "programs wait longer for their turn while something is stored"),
)
"""Without which version of Linux what is worse: where `store/blobs.py`, `fs/relay.py`, `fs/write_queue.py` and
`turns.py` say why. None of it is needed."""


def check_machine(environ: Mapping[str, str] = os.environ) -> Iterator[Check]:
    """Everything that is the same for each directory."""
    yield from check_gates(environ)
    yield check_device()
    yield check_fusermount3(environ)
    yield check_right()
    yield check_allow_other()
    yield check_pyfuse3()
    yield ok("python", f"{platform.python_version()}, {sys.executable}")
    yield check_kernel(platform.release())
    yield check_fusectl()


def check_gates(environ: Mapping[str, str]) -> Iterator[Check]:
    """A closed gate is no failure: `ipfsfs mount` ends with 0, too, and leaves the plain directory on purpose."""
    for gate in gates(environ):
        name = f"gate {gate.name}"
        if gate.closed:
            yield warn(
                name,
                f"{gate.name}={gate.value} is set: `ipfsfs mount` leaves the plain directory, with exit code 0",
                f"unset {gate.name} to mount, or mount with --force",
            )
        elif gate.value is None:
            yield ok(name, "is not set")
        else:
            yield ok(name, f"{gate.name}={gate.value} does not keep from mounting")


def check_device() -> Check:
    """The device can be opened by us."""
    why = device_obstacle()
    if why is None:
        return ok("device", f"{DEVICE} can be opened")
    advice = "load the kernel module (modprobe fuse); pass it to a container with --device /dev/fuse"
    if os.path.exists(DEVICE):
        advice = "let everybody read and write it (chmod 666, as udev has it); a container needs --device /dev/fuse"
    return fail("device", Exit.NO_MOUNT, why, advice)


def check_fusermount3(environ: Mapping[str, str]) -> Check:
    """It mounts for users other than root, for which it has to be root's, and set-user-ID."""
    found = find_fusermount3(environ)
    why = fusermount_obstacle(environ)
    if why is not None:
        return fail("fusermount3", Exit.NO_MOUNT, why, "install it: apt install fuse3")
    if found is None:
        return ok("fusermount3", "is not installed, and root needs none")
    if os.geteuid() != 0 and not _is_privileged(found):
        return fail(
            "fusermount3",
            Exit.NO_MOUNT,
            f"{found} does not run as root: it has lost its set-user-ID bit",
            f"as root: chown root {found} && chmod u+s {found}",
        )
    return ok("fusermount3", found)


def _is_privileged(program: str) -> bool:
    st = os.stat(program)
    if st.st_uid == 0 and st.st_mode & stat.S_ISUID:
        return True
    try:
        return bool(os.getxattr(program, "security.capability"))
    except OSError as exc:
        return exc.errno not in (errno.ENODATA, errno.ENOTSUP)


def check_right() -> Check:
    """Root in a container is often without the right to mount; others may be kept from becoming root in fusermount3."""
    fields = _own_status()
    if os.geteuid() == 0:
        if fields is not None and not int(fields.get("CapEff", "0"), 16) >> _CAP_SYS_ADMIN & 1:
            return fail(
                "right to mount",
                Exit.NO_MOUNT,
                "this process is root's, but has no right to mount (CAP_SYS_ADMIN)",
                "start the container with --cap-add SYS_ADMIN (and, with AppArmor, --security-opt apparmor=unconfined)",
            )
        return ok("right to mount", "root may mount")
    if fields is not None and fields.get("NoNewPrivs") == "1":
        return fail(
            "right to mount",
            Exit.NO_MOUNT,
            "this process may not gain privileges (no_new_privs), so fusermount3 can't mount for it",
            "start it without no-new-privileges (systemd: NoNewPrivileges=, Docker: --security-opt)",
        )
    return ok("right to mount", f"fusermount3 mounts for uid {os.geteuid()}")


def _own_status() -> dict[str, str] | None:
    try:
        with open(_SELF, encoding="ascii", errors="replace") as lines:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}
    except OSError:
        return None


def check_allow_other() -> Check:
    """Only information, as hardly anybody wants it; for who does, see `place.check_allow_other_setting`."""
    if os.geteuid() == 0:
        return ok("allow_other", "root needs no permission for --allow-other")
    allowed = allow_other_obstacle() is None
    return ok("allow_other", "/etc/fuse.conf lets every user mount with --allow-other" if allowed else _NOT_ALLOWED)


_NOT_ALLOWED = "only root may mount with --allow-other, as /etc/fuse.conf has no line user_allow_other"


def check_pyfuse3() -> Check:
    """The library between Python and libfuse is there, and finds libfuse."""
    try:
        importlib.import_module("pyfuse3")
        version = importlib.metadata.version("pyfuse3")
    except (ImportError, OSError) as exc:
        return fail(
            "pyfuse3",
            Exit.NO_MOUNT,
            f"pyfuse3 can't be loaded: {exc}",
            "install libfuse3 (apt install libfuse3-dev pkg-config gcc), then ipfsfs again",
        )
    libfuse = _libfuse_version()
    return ok("pyfuse3", f"pyfuse3 {version}" + (f", libfuse {libfuse}" if libfuse else ""))


def _libfuse_version() -> str | None:
    """Of the library that pyfuse3 has loaded, wherever it lies (wheels bring their own)."""
    try:
        with open(_MAPS, encoding="utf-8", errors="surrogateescape") as maps:
            found = next((line.split(None, 5)[5].strip() for line in maps if "/libfuse3" in line), None)
        if found is None:
            return None
        number = int(ctypes.CDLL(found).fuse_version())
    except (OSError, AttributeError):
        return None
    return f"{number // 100}.{number % 100}"  # FUSE_MAKE_VERSION, libfuse include/fuse_common.h


def check_kernel(release: str) -> Check:
    """Every kernel will do that has FUSE; what an old one lacks costs time."""
    found = re.match(r"(\d+)\.(\d+)", release)
    if found is None:
        return ok("kernel", f"Linux {release}")
    version = (int(found[1]), int(found[2]))
    missing = [f"{what} (Linux {major}.{minor})" for (major, minor), what in _NEWER if version < (major, minor)]
    if not missing:
        return ok("kernel", f"Linux {release} has everything that ipfsfs uses")
    return warn("kernel", f"Linux {release}: {'; '.join(missing)}", "everything works; a newer kernel is faster")


def check_fusectl() -> Check:
    """Through it the mount's owner sets how many requests the kernel queues (`fs/write_queue.py`)."""
    if os.path.ismount(CONNECTIONS):
        return ok("fusectl", f"is mounted at {CONNECTIONS}: the queue is kept short beside large writes")
    return warn(
        "fusectl",
        f"is not mounted at {CONNECTIONS}: requests wait longer beside large copies",
        f"as root: mount -t fusectl none {CONNECTIONS} (systemd does it)",
    )
