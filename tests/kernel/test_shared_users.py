"""Root's mount for everybody: what one user can do to another is what he could do on the plain directory, no more."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.plainmount import PlainMount, as_user
from tests.support.users import ALICE, BOB, TEAM, common, python_as  # noqa: F401 - a fixture


@pytest.fixture
def shared(common: Path, new_plain_mount: Callable[..., PlainMount]) -> Iterator[PlainMount]:  # noqa: F811 - the fixture
    """Root's mount with allow_other over a directory that everybody may write to, with the sticky bit."""
    covered = common / "covered"
    covered.mkdir()
    covered.chmod(0o1777)
    mount = new_plain_mount("allow_other", path=covered)
    yield mount
    mount.close()


PRELUDE = """
os.chdir(sys.argv[1])
def t(what, *args, **kw):
    try: r = what(*args, **kw)
    except OSError as e: r = errno.errorcode[e.errno]
    print(what.__name__, *args, r if not isinstance(r, int) or what is not os.open else 'opened')
    return r
def content(p, data=None):
    if data is not None:
        with open(p, 'w') as f: f.write(data)
    with open(p) as f: return f.read()
CAPABILITY = bytes.fromhex('0100000200200000' + '00' * 12)
def mode(p): st = os.lstat(p); return st.st_uid, st.st_gid, stat.filemode(st.st_mode)
def reopen(p, first, then):
    fd = os.open(p, first)
    try: os.close(os.open('/proc/self/fd/%d' % fd, then)); return 'opened'
    finally: os.close(fd)
"""

STEPS: dict[str, list[tuple[int, tuple[int, ...], str]]] = {
    "supplementary groups": [
        (0, (), f"content('team', 'x'); os.chown('team', 0, {TEAM}); os.chmod('team', 0o660)"),
        (0, (), f"os.mkdir('room'); os.chown('room', {ALICE}, {TEAM}); os.chmod('room', 0o2770)"),
        (ALICE, (TEAM,), "t(content, 'team', 'by a member'); t(content, 'room/a', 'x'); t(mode, 'room/a')"),
        (BOB, (TEAM,), "t(content, 'room/b', 'y'); t(os.mkdir, 'room/d'); t(mode, 'room/d'); t(os.unlink, 'room/a')"),
        (BOB, (), "t(content, 'team'); t(content, 'team', 'z'); t(os.listdir, 'room'); t(content, 'room/b')"),
    ],
    "sticky directories": [
        (0, (), "os.mkdir('tmp'); os.chmod('tmp', 0o1777)"),
        (ALICE, (), "content('tmp/a', 'x'); os.mkdir('tmp/d'); os.symlink('a', 'tmp/l')"),
        (BOB, (), "content('tmp/b', 'y'); t(os.unlink, 'tmp/a'); t(os.rename, 'tmp/a', 'tmp/c'); t(os.rmdir, 'tmp/d')"),
        (BOB, (), "t(os.rename, 'tmp/b', 'tmp/a'); t(os.unlink, 'tmp/l'); t(os.unlink, 'tmp/b')"),
        (ALICE, (), "t(os.rename, 'tmp/a', 'tmp/c'); t(os.unlink, 'tmp/c'); t(sorted, os.listdir('tmp'))"),
    ],
    "set-ID bits and capabilities when others write": [
        (ALICE, (TEAM,), f"content('s', 'x'); os.chown('s', -1, {TEAM}); os.chmod('s', 0o6775); t(mode, 's')"),
        (BOB, (TEAM,), "t(content, 's', 'mine now'); t(mode, 's')"),
        (ALICE, (TEAM,), "os.chmod('s', 0o6775)"),
        (BOB, (TEAM,), "t(os.truncate, 's', 1); t(mode, 's'); t(os.chmod, 's', 0o6777); t(os.chown, 's', -1, -1)"),
        (
            0,
            (),
            "os.setxattr('s', 'security.capability', CAPABILITY); os.chmod('s', 0o777)",
        ),
        (BOB, (), "f = open('s', 'a'); f.write('y'); f.close(); t(os.getxattr, 's', 'security.capability')"),
        (
            BOB,
            (),
            "content('mine', 'x'); os.chmod('mine', 0o4755); t(os.chown, 'mine', 0, 0); t(os.chown, 'mine', -1, 0)",
        ),
    ],
    "hard links": [
        (0, (), "content('secret', 'x'); os.chmod('secret', 0o600); content('tool', 'x'); os.chmod('tool', 0o4755)"),
        (ALICE, (), "content('a', 'x'); os.chmod('a', 0o644); os.mkdir('own'); content('own/f', 'x')"),
        (
            BOB,
            (),
            "t(os.link, 'secret', 's2'); t(os.link, 'tool', 't2'); t(os.link, 'a', 'a2'); t(os.link, 'a', 'own/b')",
        ),
        (ALICE, (), "t(os.link, 'a', 'a3'); t(os.unlink, 'a'); t(content, 'a3'); t(mode, 'a3')"),
    ],
    "magic paths of open files": [
        (ALICE, (), "content('r', 'x'); os.chmod('r', 0o644); content('p', 'x'); os.chmod('p', 0o600)"),
        (BOB, (), "t(reopen, 'r', os.O_RDONLY, os.O_RDWR); t(reopen, 'r', os.O_PATH, os.O_WRONLY)"),
        (BOB, (), "t(reopen, 'p', os.O_PATH, os.O_RDONLY); t(reopen, 'r', os.O_RDONLY, os.O_RDONLY)"),
        (BOB, (), "fd = os.open('r', os.O_RDONLY); t(os.chmod, '/proc/self/fd/%d' % fd, 0o666)"),
        (ALICE, (), "fd = os.open('p', os.O_RDONLY); os.unlink('p'); t(reopen, '/proc/self/fd/%d' % fd, 0, os.O_RDWR)"),
    ],
    "extended attributes": [
        (ALICE, (), "content('x', 'x'); os.chmod('x', 0o644); content('h', 'x'); os.chmod('h', 0o600)"),
        (ALICE, (), "t(os.setxattr, 'x', 'user.u', b'1'); t(os.setxattr, 'h', 'user.u', b'1')"),
        (0, (), "os.setxattr('x', 'trusted.t', b'1'); os.setxattr('x', 'security.s', b'1')"),
        (ALICE, (), "t(os.setxattr, 'x', 'trusted.v', b'1'); t(os.removexattr, 'x', 'trusted.t')"),
        (ALICE, (), "t(os.setxattr, 'x', 'security.v', b'1'); t(os.removexattr, 'x', 'security.s')"),
        (ALICE, (), "t(os.setxattr, 'x', 'security.capability', CAPABILITY)"),
        (ALICE, (), "t(os.getxattr, 'x', 'trusted.t'); t(os.setxattr, 'x', 'system.none', b'1')"),
        (BOB, (), "t(os.getxattr, 'x', 'user.u'); t(os.setxattr, 'x', 'user.u', b'2'); t(os.getxattr, 'h', 'user.u')"),
        (
            BOB,
            (),
            "t(os.removexattr, 'x', 'user.u'); t(os.getxattr, 'x', 'trusted.t'); t(os.setxattr, '.', 'user.u', b'')",
        ),
        (BOB, (), "t(os.getxattr, 'x', 'security.s')"),
    ],
    "owners, times and devices": [
        (ALICE, (), "content('a', 'x'); os.chmod('a', 0o666)"),
        (
            BOB,
            (),
            f"t(os.chown, 'a', {BOB}, {BOB}); t(os.chmod, 'a', 0o777); t(os.utime, 'a', (1, 1)); t(os.utime, 'a')",
        ),
        (
            BOB,
            (),
            "t(os.mknod, 'dev', 0o020666, 0x105); t(os.mkfifo, 'p'); t(mode, 'p'); t(os.mknod, 'n'); t(mode, 'n')",
        ),
        (BOB, (), "t(os.symlink, '/etc/shadow', 'l'); t(mode, 'l'); t(content, 'l')"),
        (
            ALICE,
            (TEAM,),
            f"t(os.chown, 'a', -1, {TEAM}); t(mode, 'a'); t(os.chown, 'a', -1, 0); t(os.chown, 'a', {BOB}, -1)",
        ),
    ],
}


@pytest.mark.parametrize("subject", STEPS)
def test_users_can_do_to_each_other_what_they_can_on_the_plain_directory(
    shared: PlainMount,
    common: Path,  # noqa: F811 - the fixture
    subject: str,
) -> None:
    said = []
    for top in (shared.path, common):
        place = top / "here"
        place.mkdir()
        place.chmod(0o777)
        said.append([python_as(uid, PRELUDE + code, place, groups=groups) for uid, groups, code in STEPS[subject]])
    mounted, plain = said
    assert mounted == plain
    assert not any("Error" in line for line in mounted), mounted
    assert any("EACCES" in line or "EPERM" in line for line in mounted), "nothing was refused at all"


def test_capability_goes_when_somebody_else_writes(shared: PlainMount) -> None:
    path = shared.path / "f"
    path.touch()
    path.chmod(0o666)
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200200000" + "00" * 12))
    assert python_as(BOB, "open(sys.argv[1], 'a').write('x')", path) == ""
    assert os.listxattr(shared.plain / "f") == []


# What a user who reaches the covered directory by another way, too, can make the daemon do with its root's rights


def test_file_that_came_behind_the_kernels_back_is_not_opened_without_asking(shared: PlainMount, common: Path) -> None:  # noqa: F811
    """The name was free when the kernel looked, so it only asks whether a file may be made there."""
    home = shared.path / "home"
    home.mkdir()
    (home / "secret").write_text("root's")
    (home / "secret").chmod(0o600)
    os.chown(home, ALICE, ALICE)
    plain = os.open(shared.plain / "home", os.O_RDONLY)
    code = """
home, plain = sys.argv[1], int(sys.argv[2])
print(os.path.exists(home + '/free'))
os.rename('secret', 'free', src_dir_fd=plain, dst_dir_fd=plain)
print(open(os.open(home + '/free', os.O_CREAT | os.O_RDWR, 0o666)).read())
"""
    command = [*as_user(ALICE), sys.executable, "-c", "import os,sys\n" + code, str(home), str(plain)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, pass_fds=[plain], cwd="/")
    os.close(plain)
    assert done.stdout == "False\n"
    assert done.stderr.strip().endswith(f"Permission denied: '{home}/free'")


def test_new_file_is_the_callers_from_the_start_so_nothing_else_can_be_given_away(shared: PlainMount) -> None:
    """While files are made through the mount, their names are swapped for root's in the plain directory."""
    home = shared.path / "home"
    home.mkdir()
    for name in ("secret", "secret directory"):
        (home / name).mkdir(mode=0o700) if " " in name else (home / name).touch(0o600)
    os.chown(home, ALICE, ALICE)
    before = {name: os.stat(shared.plain / "home" / name) for name in ("secret", "secret directory")}
    plain = os.open(shared.plain / "home", os.O_RDONLY)
    code = """
import ctypes, mmap, signal, time
home, plain = sys.argv[1], int(sys.argv[2])
rename = ctypes.CDLL(None).renameat2
shared = mmap.mmap(-1, 16)
number, swaps = ((ctypes.c_uint64 * 1).from_buffer(shared, at) for at in (0, 8))
swapper = os.fork()
if swapper == 0:
    places = {b'f': b'secret', b'd': b'secret directory'}
    while True:
        for kind in places:
            new = b'%s%d' % (kind, number[0])
            if new != places[kind] and rename(plain, new, plain, places[kind], 2) == 0:  # RENAME_EXCHANGE
                places[kind] = new; swaps[0] += 1
end = time.monotonic() + 3
while time.monotonic() < end:
    number[0] += 1
    open(f'{home}/f{number[0]}', 'w').close(); os.mkdir(f'{home}/d{number[0]}')
os.kill(swapper, signal.SIGKILL); os.waitpid(swapper, 0)
print(swaps[0])
"""
    command = [*as_user(ALICE), sys.executable, "-c", "import os,sys\n" + code, str(home), str(plain)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, pass_fds=[plain], cwd="/", timeout=60)
    assert int(done.stdout) > 20, "the names were hardly ever swapped"
    found = {(st := entry.stat(follow_symlinks=False)).st_ino: st for entry in os.scandir(plain)}
    os.close(plain)
    for name, was in before.items():
        now = found[was.st_ino]
        assert (now.st_uid, now.st_gid, now.st_mode) == (0, 0, was.st_mode), f"{name} was given away"
