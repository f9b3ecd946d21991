"""Several users: a mount of an ordinary user, and one of root's that others may use."""

from __future__ import annotations

import os
import shutil
import stat
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from tests.support import namespace
from tests.support.plainmount import NOBODY, PlainMount, as_user
from tests.support.users import ALICE, BOB, TEAM, directory_for_everybody


@pytest.fixture
def open_path() -> Iterator[Path]:
    with directory_for_everybody() as path:
        yield path


def run_as(uid: int, code: str, *arguments: object, groups: tuple[int, ...] = (), enter: Sequence[str] = ()) -> str:
    """Run Python code as a user; its standard output, or the last line of its traceback."""
    done = subprocess.run(
        [*enter, *as_user(uid, *groups), sys.executable, "-c", "import os,stat,sys\n" + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


# The ordinary user's own mount


@pytest.fixture
def enter(open_path: Path) -> Iterator[list[str]]:
    with namespace.with_open_fuse(open_path / "fuse") as start:
        yield start


class UsersMount:
    """A mount in a namespace, and how to run code there."""

    def __init__(self, mount: PlainMount, enter: list[str]) -> None:
        self.path = mount.path
        self.plain = mount.path  # seen from outside of the namespace
        self.enter = enter

    def run(self, uid: int, code: str, *arguments: object) -> str:
        return run_as(uid, code, *arguments, enter=self.enter)


@pytest.fixture
def users_mount(open_path: Path, enter: list[str], new_plain_mount: Callable[..., PlainMount]) -> Iterator[UsersMount]:
    """A private mount, made and served by an ordinary user through fusermount3."""
    covered = open_path / "covered"
    covered.mkdir()
    os.chown(covered, NOBODY, NOBODY)
    (covered / "root's").write_text("not yours")
    (covered / "root's").chmod(0o600)
    (covered / "shared").write_text("group's")
    os.chown(covered / "shared", 0, NOBODY)
    (covered / "shared").chmod(0o664)
    mount = new_plain_mount(path=covered, uid=NOBODY, enter=enter)
    yield UsersMount(mount, enter)
    mount.close()


def test_an_ordinary_user_works_on_his_own_mount(users_mount: UsersMount) -> None:
    code = """
d = sys.argv[1]
with open(d + '/a', 'w') as f: f.write('mine')
os.mkdir(d + '/dir'); os.rename(d + '/a', d + '/dir/a'); os.link(d + '/dir/a', d + '/b')
os.symlink('b', d + '/l'); os.mkfifo(d + '/p'); os.chmod(d + '/b', 0o640)
os.setxattr(d + '/b', 'user.x', b'1'); os.utime(d + '/b', ns=(1, 2))
with open(d + '/b', 'a') as f: f.write(' still')
os.truncate(d + '/b', 4)
st = os.stat(d + '/dir/a')
print(st.st_uid, st.st_gid, stat.filemode(st.st_mode), st.st_nlink, open(d + '/l').read(), sorted(os.listdir(d)))
"""
    assert users_mount.run(NOBODY, code, users_mount.path) == (
        f"{NOBODY} {NOBODY} -rw-r----- 2 mine ['b', 'dir', 'l', 'p', \"root's\", 'shared']"
    )


def test_the_local_files_permissions_hold_on_a_private_mount(users_mount: UsersMount) -> None:
    path = users_mount.path
    denied = "PermissionError: [Errno 13] Permission denied"
    assert users_mount.run(NOBODY, "open(sys.argv[1])", path / "root's").startswith(denied)
    assert users_mount.run(NOBODY, "os.truncate(sys.argv[1], 0)", path / "root's").startswith(denied)
    assert "Operation not permitted" in users_mount.run(NOBODY, "os.chmod(sys.argv[1], 0o666)", path / "root's")
    assert "Operation not permitted" in users_mount.run(NOBODY, "os.mknod(sys.argv[1], 0o020666, 0x105)", path / "dev")
    assert "Operation not permitted" in users_mount.run(NOBODY, "os.chown(sys.argv[1], 0, 0)", path / "shared")
    checks = "print([os.access(sys.argv[1], m) for m in (0, 4, 2, 1, 6)])"
    assert users_mount.run(NOBODY, checks, path / "root's") == "[True, False, False, False, False]"
    assert users_mount.run(NOBODY, checks, path / "shared") == "[True, True, True, False, True]"


def test_nobody_else_may_look_into_a_private_mount(users_mount: UsersMount) -> None:
    assert "Permission denied" in users_mount.run(ALICE, "os.listdir(sys.argv[1])", users_mount.path)
    assert "Permission denied" in users_mount.run(0, "os.listdir(sys.argv[1])", users_mount.path)


def test_a_file_that_may_be_written_but_not_read(users_mount: UsersMount) -> None:
    code = """
p = sys.argv[1]
fd = os.open(p, os.O_WRONLY | os.O_CREAT, 0o200); os.write(fd, b'one'); os.close(fd)
fd = os.open(p, os.O_WRONLY | os.O_APPEND); os.write(fd, b' two'); os.close(fd)
fd = os.open(p, os.O_WRONLY); os.pwrite(fd, b'ONE', 0); os.close(fd)
try: open(p)
except PermissionError: print('unreadable')
os.truncate(p, 5)
os.chmod(p, 0o600); print(open(p).read())
"""
    assert users_mount.run(NOBODY, code, users_mount.path / "w") == "unreadable\nONE t"


def test_writing_to_a_file_that_belongs_to_someone_else(users_mount: UsersMount) -> None:
    """The kernel's late update of mtime is refused by the host, and close must not report that."""
    code = """
p = sys.argv[1]
with open(p, 'r+') as f: f.write('GROUP'); f.flush(); os.fsync(f.fileno())
print(open(p).read())
os.utime(p)
try: os.utime(p, (1, 1))
except PermissionError: print('times are the owner\\'s')
"""
    assert users_mount.run(NOBODY, code, users_mount.path / "shared") == "GROUP's\ntimes are the owner's"


def test_directories_that_can_be_entered_but_not_listed(users_mount: UsersMount) -> None:
    code = """
d = sys.argv[1]
os.mkdir(d); open(d + '/known', 'w').write('x'); os.mkdir(d + '/sub'); os.chmod(d, 0o300)
try: os.listdir(d)
except PermissionError: print('unlisted')
print(open(d + '/known').read()); open(d + '/new', 'w').close(); os.unlink(d + '/new')
open(d + '/sub/deep', 'w').close(); os.rename(d + '/known', d + '/sub/k')
os.chmod(d, 0o400); print(os.listdir(d))
os.chmod(d, 0o700); print(sorted(os.listdir(d + '/sub')))
"""
    expected = "unlisted\nx\n['sub']\n['deep', 'k']"
    plain = run_as(NOBODY, code, users_mount.plain / "plain")
    assert plain == expected
    assert users_mount.run(NOBODY, code, users_mount.path / "mounted") == expected


# Root's mount for everybody


@pytest.fixture
def shared_mount(open_path: Path, new_plain_mount: Callable[..., PlainMount]) -> Iterator[PlainMount]:
    """Root's mount with allow_other over a directory that everybody may write to, with the sticky bit."""
    covered = open_path / "covered"
    covered.mkdir()
    covered.chmod(0o1777)
    mount = new_plain_mount("allow_other", path=covered)
    yield mount
    mount.close()


MAKE_ALL = """
os.umask(0o022)
d = sys.argv[1]
open(d + '/f', 'w').close(); os.mkdir(d + '/d'); os.mkfifo(d + '/p'); os.symlink('x', d + '/l')
os.close(os.open(d + '/s', os.O_CREAT | os.O_WRONLY, 0o6755)); os.mknod(d + '/r', 0o100640)
for n in 'fdplsr':
    st = os.lstat(d + '/' + n); print(n, st.st_uid, st.st_gid, stat.filemode(st.st_mode))
"""


def test_new_files_belong_to_the_caller(shared_mount: PlainMount, open_path: Path) -> None:
    for top in (shared_mount.path, open_path):
        (top / "here").mkdir()
        os.chown(top / "here", ALICE, ALICE)
    mounted = run_as(ALICE, MAKE_ALL, shared_mount.path / "here")
    assert mounted == run_as(ALICE, MAKE_ALL, open_path / "here")
    assert f"f {ALICE} {ALICE} -rw-r--r--" in mounted


@pytest.mark.parametrize("groups", [(), (TEAM,)], ids=["outsider", "member"])
def test_set_group_id_directories_give_their_group(
    shared_mount: PlainMount, open_path: Path, groups: tuple[int, ...]
) -> None:
    for top in (shared_mount.path, open_path):
        (top / "here").mkdir()
        os.chown(top / "here", ALICE, TEAM)
        os.chmod(top / "here", 0o2777)
    mounted = run_as(ALICE, MAKE_ALL, shared_mount.path / "here", groups=groups)
    assert mounted == run_as(ALICE, MAKE_ALL, open_path / "here", groups=groups)
    assert f"d {ALICE} {TEAM} drwxr-sr-x" in mounted


def test_the_kernel_checks_modes_for_everybody(shared_mount: PlainMount) -> None:
    path = shared_mount.path
    run_as(ALICE, "os.umask(0o077); open(sys.argv[1], 'w').write('secret')", path / "alice")
    assert "Permission denied" in run_as(BOB, "open(sys.argv[1])", path / "alice")
    assert "Operation not permitted" in run_as(BOB, "os.chmod(sys.argv[1], 0o666)", path / "alice")
    assert "Operation not permitted" in run_as(BOB, "os.unlink(sys.argv[1])", path / "alice")  # sticky directory
    assert "Operation not permitted" in run_as(BOB, "os.rename(sys.argv[1], sys.argv[1] + '2')", path / "alice")
    assert run_as(ALICE, "os.chmod(sys.argv[1], 0o664); print(open(sys.argv[1]).read())", path / "alice") == "secret"
    assert run_as(BOB, "print(open(sys.argv[1]).read())", path / "alice") == "secret"
    assert run_as(BOB, "print([os.access(sys.argv[1], m) for m in (4, 2)])", path / "alice") == "[True, False]"
    assert run_as(ALICE, "os.unlink(sys.argv[1])", path / "alice") == ""


def test_set_id_bits_go_when_an_ordinary_user_writes(shared_mount: PlainMount, open_path: Path) -> None:
    code = """
p = sys.argv[1]
open(p, 'w').write('x'); os.chmod(p, 0o6775); first = stat.filemode(os.stat(p).st_mode)
open(p, 'a').write('y'); written = stat.filemode(os.stat(p).st_mode)
os.chmod(p, 0o6775); os.truncate(p, 0); print(first, written, stat.filemode(os.stat(p).st_mode))
"""
    shown = run_as(ALICE, code, shared_mount.path / "s")
    (open_path / "plain").mkdir()
    os.chown(open_path / "plain", ALICE, ALICE)
    assert shown == run_as(ALICE, code, open_path / "plain" / "s")
    assert shown.startswith("-rwsrwsr-x -rwxrwxr-x")


def test_set_id_bits_stay_on_whatever_is_made_with_them(shared_mount: PlainMount, open_path: Path) -> None:
    code = """
os.umask(0); os.chdir(sys.argv[1])
for kind in (stat.S_IFREG, stat.S_IFIFO, stat.S_IFSOCK):
    for mode in (0o4755, 0o2755, 0o6711, 0o2700):
        os.mknod(f'{kind}-{mode}', kind | mode)
        print(stat.filemode(os.stat(f'{kind}-{mode}').st_mode))
"""
    shown = run_as(ALICE, code, shared_mount.path)
    (open_path / "plain").mkdir()
    os.chown(open_path / "plain", ALICE, ALICE)
    assert shown == run_as(ALICE, code, open_path / "plain")
    assert "prwsr-xr-x" in shown


def test_renaming_with_a_whiteout_leaves_the_callers_device_as_on_the_host(
    shared_mount: PlainMount, open_path: Path
) -> None:
    code = """
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
os.chdir(sys.argv[1]); open('a', 'w').write('content'); open('over', 'w').close()
for old, new, flags in (('a', 'over', 4), ('over', 'new', 5), ('new', 'a', 6), ('new', 'a', 5)):
    done = libc.renameat2(-100, old.encode(), -100, new.encode(), flags)
    print(old, new, flags, errno.errorcode[ctypes.get_errno()] if done else 'done')
for name in sorted(os.listdir('.')):
    st = os.stat(name)
    print(name, st.st_uid, st.st_gid, stat.filemode(st.st_mode), st.st_rdev, st.st_nlink)
print(open('new').read())
"""
    (shared_mount.path / "here").mkdir()
    (open_path / "plain").mkdir()
    for directory in (shared_mount.path / "here", open_path / "plain"):
        os.chown(directory, ALICE, ALICE)
    shown = run_as(ALICE, code, shared_mount.path / "here")
    assert shown == run_as(ALICE, code, open_path / "plain")
    assert f"a {ALICE} {ALICE} c" in shown


def test_set_id_bits_go_on_a_private_mount_too(users_mount: UsersMount) -> None:
    code = """
p = sys.argv[1]
open(p, 'w').write('x'); os.chmod(p, 0o6775)
open(p, 'a').write('y'); print(stat.filemode(os.stat(p).st_mode))
"""
    assert users_mount.run(NOBODY, code, users_mount.path / "s") == "-rwxrwxr-x"
    assert stat.filemode(os.stat(users_mount.plain / "s").st_mode) == "-rwxrwxr-x"


def test_devices_and_set_id_programs_work_on_roots_mount(shared_mount: PlainMount) -> None:
    os.mknod(shared_mount.path / "zero", 0o020666, os.makedev(1, 5))
    os.chmod(shared_mount.path / "zero", 0o666)
    assert run_as(ALICE, "print(open(sys.argv[1], 'rb').read(3))", shared_mount.path / "zero") == r"b'\x00\x00\x00'"
    shutil.copy("/usr/bin/id", shared_mount.path / "id")
    os.chmod(shared_mount.path / "id", 0o4755)
    shown = subprocess.run([*as_user(ALICE), shared_mount.path / "id"], capture_output=True, text=True, check=True)
    assert "euid=0(root)" in shown.stdout


def test_only_root_sees_trusted_attributes(shared_mount: PlainMount) -> None:
    path = shared_mount.path / "f"
    path.touch()
    path.chmod(0o644)
    os.setxattr(path, "trusted.t", b"")
    os.setxattr(path, "user.u", b"")
    assert sorted(os.listxattr(path)) == ["trusted.t", "user.u"]
    assert run_as(ALICE, "print(os.listxattr(sys.argv[1]))", path) == "['user.u']"


def test_access_control_lists_are_refused_where_they_would_not_be_obeyed(shared_mount: PlainMount) -> None:
    """Documented: on a mount for everybody the kernel checks modes only."""
    (shared_mount.path / "f").touch()
    users = struct.pack("<IHHIHHIHHIHHIHHI", 2, 1, 6, 0, 2, 6, BOB, 4, 4, 0, 16, 6, 0, 32, 4, 0)  # u::rw u:bob:rw …
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(shared_mount.path / "f", "system.posix_acl_access", users)
