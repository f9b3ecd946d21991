"""The command as an ordinary user, through fusermount3.

As root, the user is nobody in a mount name space of its own, where /dev/fuse is open to all, as udev makes it, and
nothing is left behind. It may read everything (the interpreter may be in root's home), and write what is its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.support import namespace
from tests.support.mountproc import clean_environment

NOBODY = 65534

NAME_SPACE = f"""
    set -e
    mount -t tmpfs -o dev,mode=755 none /mnt
    mknod -m 666 /mnt/fuse c 10 229
    mount --bind /mnt/fuse /dev/fuse
    mkdir /mnt/user /mnt/foreign
    chown {NOBODY}:{NOBODY} /mnt/user
    eval "$1"; shift
    cd /mnt/user
    exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups --inh-caps=-all,+dac_read_search \\
        --ambient-caps=-all,+dac_read_search "$@"
"""

PRELUDE = """
    import json, os, signal, subprocess, sys, time
    from tests.support.mountproc import mounts_under
    from tests.support.poll import wait_until
    from pathlib import Path

    here = Path.cwd()
    place = here / "data"
    place.mkdir()

    def ipfsfs(*args, check=True):
        done = subprocess.run([sys.executable, "-m", "fused", *map(str, args)], capture_output=True, text=True)
        assert not check or done.returncode == 0, (args, done)
        return done

    def status():
        return json.loads(ipfsfs("status", "--json", place, check=False).stdout)
"""


def run_as_user(program: str, tmp_path: Path, prepare: str = ":") -> None:
    """Run a Python program as an ordinary user, in an empty directory of its own; it must not fail.

    `prepare` is for root, in the name space, before.
    """
    command = [sys.executable, "-c", textwrap.dedent(PRELUDE) + textwrap.dedent(program)]
    root = os.geteuid() == 0
    if root:
        command = namespace.command("sh", "-c", NAME_SPACE, "sh", prepare, *command)
    home = Path("/mnt/user/home") if root else tmp_path / "home"
    work = tmp_path / "user"
    work.mkdir()
    done = subprocess.run(
        command, env=clean_environment(home), cwd=work, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_mount_work_sync_and_umount(tmp_path: Path) -> None:
    run_as_user(
        """
        (place / "before").write_text("x")
        assert ipfsfs("mount", place).stderr == ""
        (place / "file").write_text("y")
        assert (place / "file").stat().st_uid == os.getuid()
        cid = ipfsfs("sync", place).stdout.strip()
        assert ipfsfs("cat", cid + "/file").stdout == "y"
        assert status()["files"]["stored"] == 2
        assert ipfsfs("umount", place).stderr == ""
        assert not mounts_under(place)
        assert sorted(os.listdir(place)) == ["before", "file"]
        """,
        tmp_path,
    )


@pytest.mark.parametrize("on_crash", ["plain", "error"])
def test_killed_daemon_comes_back(tmp_path: Path, on_crash: str) -> None:
    run_as_user(
        f"""
        ipfsfs("mount", "--on-crash={on_crash}", place)
        (place / "file").write_text("y")
        pid = status()["pid"]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: status().get("pid") not in (None, pid), "new daemon", 20)
        assert (place / "file").read_text() == "y"
        ipfsfs("umount", place)
        assert os.listdir(place) == ["file"]
        """,
        tmp_path,
    )


def test_dead_mount_is_taken_away_and_mounted_again(tmp_path: Path) -> None:
    run_as_user(
        """
        ipfsfs("mount", place)
        [state] = (Path(os.environ["XDG_STATE_HOME"]) / "ipfsfs" / "mounts").iterdir()
        supervisor = json.loads((state / "supervisor.json").read_text())
        os.kill(supervisor["pid"], signal.SIGKILL)
        os.kill(supervisor["daemon_pid"], signal.SIGKILL)
        wait_until(lambda: status()["state"] == "dead", "dead mount")
        assert "its dead mount was taken away" in ipfsfs("mount", place).stderr
        ipfsfs("umount", place)
        assert not mounts_under(place)
        """,
        tmp_path,
    )


def test_busy_mount_stays_and_the_process_that_uses_it_is_named(tmp_path: Path) -> None:
    run_as_user(
        """
        ipfsfs("mount", place)
        with open(place / "file", "w"):
            done = ipfsfs("umount", place, check=False)
        assert done.returncode == 5, done
        assert f"(pid {os.getpid()}, " in done.stderr, done
        ipfsfs("umount", place)
        """,
        tmp_path,
    )


def test_directory_that_is_not_ours_to_write_is_refused(tmp_path: Path) -> None:
    run_as_user(
        """
        place.chmod(0o500)
        foreign = [Path("/mnt/foreign"), Path("/mnt/foreign/new")] if os.path.isdir("/mnt/foreign") else []
        for directory in [place, *foreign]:
            for flags in ([], ["--read-only"]):
                done = ipfsfs("mount", *flags, directory, check=False)
                assert done.returncode == 2, done
                assert done.stderr.rstrip().endswith("is not ours to write"), done
                assert not mounts_under(directory)
        done = ipfsfs("mount", "/tmp", check=False)
        assert (done.returncode, done.stderr) == (2, "ipfsfs: /tmp is shared (sticky) and belongs to another user\\n")
        assert not Path(os.environ["XDG_STATE_HOME"]).exists()
        """,
        tmp_path,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to change what the user sees as /etc/fuse.conf")
@pytest.mark.parametrize("allowed", [False, True])
def test_allow_other_needs_permission_and_works_with_it(tmp_path: Path, allowed: bool) -> None:
    conf = tmp_path / "fuse.conf"
    conf.write_text("user_allow_other\n" if allowed else "# user_allow_other\n")
    run_as_user(
        f"""
        if {allowed}:
            ipfsfs("mount", "--allow-other", place)
            assert "allow_other" in Path("/proc/self/mountinfo").read_text()
            ipfsfs("umount", place)
        else:
            done = ipfsfs("mount", "--allow-other", place, check=False)
            assert done.returncode == 2
            assert done.stderr == "ipfsfs: --allow-other needs the line user_allow_other in /etc/fuse.conf\\n"
        """,
        tmp_path,
        prepare=f"mount --bind {conf} /etc/fuse.conf",
    )


def test_state_is_private(tmp_path: Path) -> None:
    run_as_user(
        """
        os.umask(0)
        ipfsfs("mount", place)
        [state] = (Path(os.environ["XDG_STATE_HOME"]) / "ipfsfs" / "mounts").iterdir()
        assert state.stat().st_mode & 0o777 == 0o700
        assert (state / "control").lstat().st_mode & 0o777 == 0o600
        ipfsfs("umount", place)
        """,
        tmp_path,
    )


def test_doctor_says_what_keeps_a_user_from_mounting(tmp_path: Path) -> None:
    run_as_user(
        """
        def failures(path):
            done = ipfsfs("doctor", "--json", path, check=False)
            answer = json.loads(done.stdout)
            assert answer["ok"] is (done.returncode == 0), done
            return done.returncode, {c["name"]: c["detail"] for c in answer["checks"] if c["state"] == "fail"}

        assert failures(place) == (0, {})
        closed = here / "closed"
        closed.mkdir()
        closed.chmod(0o500)
        code, found = failures(closed)
        assert (code, found) == (2, {"directory": f"{closed} is not ours to write"}), found
        assert ipfsfs("mount", closed, check=False).returncode == 2
        assert "not ours to write" in failures(closed / "below")[1]["directory"]
        no_new_privileges = ["setpriv", "--no-new-privs", sys.executable, "-m", "fused", "doctor"]
        done = subprocess.run(no_new_privileges, capture_output=True, text=True)
        assert done.returncode == 6 and "no_new_privs" in done.stdout, done
        """,
        tmp_path,
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to close the device")
def test_doctor_says_that_the_device_is_closed(tmp_path: Path) -> None:
    run_as_user(
        """
        done = ipfsfs("doctor", place, check=False)
        assert done.returncode == 6, done
        assert "/dev/fuse can't be opened: Permission denied" in done.stdout
        assert ipfsfs("mount", "--require", place, check=False).returncode == 6
        """,
        tmp_path,
        prepare="chmod 600 /dev/fuse",
    )
