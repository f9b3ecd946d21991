"""Set-ID bits and file capabilities go when a file is written to, cut or given away, as on the plain directory.

On a private mount the kernel leaves that to us, and in return does not ask before every write whether a file has them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.kernel.test_posix_users import UsersMount, enter, open_path, run_as, users_mount  # noqa: F401 - fixtures
from tests.support.plainmount import NOBODY, PlainMount

CAPABILITY = bytes.fromhex("0100000200200000" + "00" * 12)

WRITES = """
import errno
os.chdir(sys.argv[1])
def shown(path):
    try: has = os.getxattr(path, 'security.capability') != b''
    except OSError as error: has = errno.errorcode[error.errno]
    st = os.stat(path)
    return f'{stat.filemode(st.st_mode)} {st.st_uid} {st.st_size} {has}'
def on_fd(flags, act):
    def run(path):
        fd = os.open(path, flags)
        act(fd)
        print('  while open', shown(path))
        os.close(fd)
    return run
changes = {
    'append': on_fd(os.O_WRONLY | os.O_APPEND, lambda fd: os.write(fd, b'more')),
    'overwrite': on_fd(os.O_RDWR, lambda fd: os.pwrite(fd, b'X', 1)),
    'write nothing': on_fd(os.O_RDWR, lambda fd: os.pwrite(fd, b'', 1)),
    'many writes': on_fd(os.O_WRONLY | os.O_APPEND, lambda fd: [os.write(fd, bytes(5000)) for _ in range(9)]),
    'after chmod': on_fd(os.O_WRONLY, lambda fd: (os.write(fd, b'1'), os.fchmod(fd, 0o6775), os.write(fd, b'2'))),
    'before chmod': on_fd(os.O_WRONLY, lambda fd: (os.write(fd, b'1'), os.fchmod(fd, 0o6775))),
    'ftruncate': on_fd(os.O_RDWR, lambda fd: os.ftruncate(fd, 2)),
    'truncate': lambda path: os.truncate(path, 2),
    'extend': lambda path: os.truncate(path, 9000),
    'truncate to the same size': lambda path: os.truncate(path, os.stat(path).st_size),
    'open with O_TRUNC': on_fd(os.O_WRONLY | os.O_TRUNC, lambda fd: None),
    'chmod': lambda path: os.chmod(path, 0o6710),
    'chown to the same': lambda path: os.chown(path, -1, -1),
    'chown': lambda path: os.chown(path, os.getuid(), os.getgid()),
    'remove the attribute': lambda path: os.removexattr(path, 'security.capability'),
    'read': on_fd(os.O_RDONLY, lambda fd: os.read(fd, 10)),
}
for number, change in enumerate(changes):
    for mode in ('6775', '4711', '2755', '2764', '755'):
        name = f'{number}-{mode}'
        print(change, mode, shown(name))
        try: changes[change](name)
        except OSError as error: print('  ', errno.errorcode[error.errno])
        print('  afterwards', shown(name))
"""
CHANGES = 16


def _plant(directory: Path, uid: int) -> None:
    """Files beneath the mount, before it looks at them: only root can give a file capabilities."""
    for number in range(CHANGES):
        for mode in ("6775", "4711", "2755", "2764", "755"):
            path = directory / f"{number}-{mode}"
            path.write_bytes(b"content")
            os.chown(path, uid, uid)
            path.chmod(int(mode, 8))
            if mode == "755":
                os.setxattr(path, "security.capability", CAPABILITY)


def test_an_ordinary_users_changes_take_privileges_away_as_on_the_host(
    users_mount: UsersMount,  # noqa: F811 - the fixture
    open_path: Path,  # noqa: F811
) -> None:
    plain = open_path / "plain"
    plain.mkdir()
    for directory in (users_mount.plain, plain):
        _plant(directory, NOBODY)
    expected = run_as(NOBODY, WRITES, plain)
    assert users_mount.run(NOBODY, WRITES, users_mount.path) == expected
    assert "append 6775 -rwsrwsr-x" in expected
    assert "while open -rwxrwxr-x" in expected
    assert "755 -rwxr-xr-x 65534 7 True\n  while open -rwxr-xr-x 65534 11 ENODATA" in expected
    assert "EPERM\n  afterwards -rwxr-xr-x 65534 7 True" in expected
    for number in range(CHANGES):  # nor does it only show so
        for mode in ("6775", "4711", "2755", "2764", "755"):
            name = f"{number}-{mode}"
            beneath, wanted = os.stat(users_mount.plain / name), os.stat(plain / name)
            assert (name, oct(beneath.st_mode)) == (name, oct(wanted.st_mode))
            assert os.listxattr(users_mount.plain / name) == os.listxattr(plain / name), name


@pytest.mark.parametrize("options", [(), ("write_through",), ("allow_other",)])
def test_roots_changes_leave_set_id_bits_and_take_capabilities_away_as_on_the_host(
    options: tuple[str, ...], new_plain_mount: Callable[..., PlainMount], tmp_path: Path
) -> None:
    mount = new_plain_mount(*options)
    plain = tmp_path / "plain"
    plain.mkdir()
    for directory in (mount.plain, plain):
        _plant(directory, 0)
    expected = run_as(0, WRITES, plain)
    assert run_as(0, WRITES, mount.path) == expected
    assert "while open -rwsrwsr-x" in expected
    assert "755 -rwxr-xr-x 0 7 True\n  while open -rwxr-xr-x 0 11 ENODATA" in expected


def test_a_capability_given_between_two_writes_goes_with_the_second(plain_mount: PlainMount) -> None:
    """Also where the kernel has noted that the file has none."""
    path = plain_mount.path / "f"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY, 0o755)
    os.write(fd, b"one")
    os.fsync(fd)
    os.setxattr(path, "security.capability", CAPABILITY)
    assert os.getxattr(path, "security.capability") == CAPABILITY
    os.write(fd, b"two")
    assert "security.capability" not in os.listxattr(path)
    os.close(fd)
    assert os.listxattr(plain_mount.plain / "f") == []


def _append(directory: Path, times: int) -> None:
    with open(directory / "log", "ab", buffering=0) as stream:
        for _ in range(times):
            stream.write(b"line\n")


@pytest.mark.parametrize("options", [(), ("write_through",)])
def test_appends_to_a_private_mount_are_not_preceded_by_questions(
    options: tuple[str, ...], new_plain_mount: Callable[..., PlainMount]
) -> None:
    mount = new_plain_mount(*options)
    served = mount.requests_during(lambda: _append(mount.path, 200))
    assert served["getxattr"] == 1
    if not options:
        assert served["write"] == 1


def test_appends_to_a_mount_for_everybody_are(new_plain_mount: Callable[..., PlainMount]) -> None:
    """There the kernel has to take privileges away: the daemon can't tell in which writes it should."""
    mount = new_plain_mount("allow_other")
    assert mount.requests_during(lambda: _append(mount.path, 200))["getxattr"] == 200
