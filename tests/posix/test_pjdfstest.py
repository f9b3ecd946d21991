"""pjdfstest on a mount, and the same run on the plain directory below it, which says what is right.

Its cases come to the same on both, but for those in `differences.py`. The cases that remount a file system read-only
run apart: others leave files open and removed, with which no file system can be remounted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.posix.differences import ALLOWED
from tests.support import namespace
from tests.support.cargo_tools import PJDFSTEST, cargo_tool
from tests.support.mountproc import MountProcess
from tests.support.pjdfstest import CASES, Results, run_suite, write_configuration
from tests.support.plainmount import NOBODY, PlainMount, as_user, new_plain_mount
from tests.support.users import directory_for_everybody

__all__ = ["new_plain_mount"]

REMOUNTING = "erofs"
"""Part of the names of all cases that remount, and of no others."""

REMOUNTING_CASES = 13

NEED_ROOT = 143
"""Cases that an ordinary user can't run: 142 need root, those that remount among them, and one mounts something."""


class Place:
    """A directory in /tmp that every user can reach, and the suite in it."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.covered = base / "covered"
        self.tmpfs = base / "tmpfs"
        self.bin = base / "bin"
        self.program = self.bin / "pjdfstest"
        for directory in (self.covered, self.tmpfs, self.bin):
            directory.mkdir()
        shutil.copy2(cargo_tool("pjdfstest", PJDFSTEST), self.program)
        # mount(8) would hand a remount of ours to mount.fuse, which makes mounts and does not change them. With -i it
        # asks the kernel itself.
        mount = self.bin / "mount"
        mount.write_text(f'#!/bin/sh\nexec {shutil.which("mount")} -i "$@"\n')
        mount.chmod(0o755)
        self.plain_conf = write_configuration(base / "conf", second_filesystem=self.tmpfs, remount=False)
        self.remounting_conf = write_configuration(base / "remount.conf", second_filesystem=self.tmpfs, remount=True)

    def run(self, directory: Path, **options: object) -> Results:
        """All cases but those that remount."""
        return run_suite(self.program, directory, self.plain_conf, **options)  # type: ignore[arg-type]

    def run_remounting(self, directory: Path) -> Results:
        """The cases that remount, in `directory`, which has to be where something is mounted."""
        return run_suite(self.program, directory, self.remounting_conf, REMOUNTING, path=self.bin)


@pytest.fixture
def place() -> Iterator[Place]:
    with directory_for_everybody() as base:
        place = Place(base)
        subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "none", place.tmpfs], check=True)
        yield place
        subprocess.run(["umount", place.tmpfs], check=True)


@pytest.fixture
def new_mount(place: Place) -> Iterator[Callable[..., MountProcess]]:
    """Makes mounts over the covered directory of the place."""
    made: list[MountProcess] = []

    def make(name: str, *flags: str) -> MountProcess:
        covered = place.base / name
        covered.mkdir(mode=0o755)
        made.append(MountProcess(place.base / f"{name}.daemon", path=covered))
        return made[-1].start("--allow-other", *flags)

    yield make
    for mount in reversed(made):
        mount.close()


def assert_same(plain: Results, mount: Results) -> None:
    """The same cases, each with the same outcome, but for what is allowed to differ."""
    assert set(plain.outcomes) == set(mount.outcomes)
    allowed = {(difference.case, difference.on_mount) for difference in ALLOWED}
    differ = {
        case
        for case, outcome in mount.outcomes.items()
        if outcome != plain.outcomes[case] and (case, outcome) not in allowed
    }
    assert not differ, f"on the mount:\n{mount.explain(differ)}\non the plain directory:\n{plain.explain(differ)}"


def test_every_case_ends_as_on_the_plain_directory(place: Place, new_mount: Callable[..., MountProcess]) -> None:
    plain = place.run(place.covered)
    assert len(plain.outcomes) == CASES
    remounting = {case for case in plain.outcomes if REMOUNTING in case}
    not_run = {difference.case for difference in ALLOWED if difference.on_mount == "skipped"}
    assert len(remounting) == REMOUNTING_CASES
    assert remounting <= plain.those("skipped") <= remounting | not_run, plain.explain(plain.those("skipped"))
    for name, flags in (("default", []), ("through", ["--write-through"])):
        mount = place.run(new_mount(name, *flags).path)
        assert_same(plain, mount)
        assert len(mount.those("ok") | mount.those("FAILED")) >= CASES - REMOUNTING_CASES - len(not_run)


def test_every_case_on_a_read_only_remount_ends_as_on_a_plain_file_system(
    place: Place, new_mount: Callable[..., MountProcess]
) -> None:
    plain = place.run_remounting(place.tmpfs)
    mount = place.run_remounting(new_mount("remounted").path)
    assert len(plain.outcomes) == REMOUNTING_CASES
    assert plain.those("ok") == set(plain.outcomes), plain.explain(set(plain.outcomes))
    assert_same(plain, mount)


def test_every_case_of_an_ordinary_user_ends_as_on_the_plain_directory(
    place: Place, new_mount: Callable[..., MountProcess]
) -> None:
    """On a mount that root serves for all."""
    mount = new_mount("for-all")
    for root in (place.covered, mount.path):
        (root / "user").mkdir()
        os.chown(root / "user", NOBODY, NOBODY)
    plain = place.run(place.covered / "user", enter=as_user(NOBODY))
    shared = place.run(mount.path / "user", enter=as_user(NOBODY))
    _check_user(plain, shared)


def test_every_case_of_an_ordinary_user_ends_as_on_the_plain_directory_on_a_mount_of_his_own(
    place: Place, new_plain_mount: Callable[..., PlainMount]
) -> None:
    """On a private mount, where the kernel checks no permissions and the local layer does."""
    os.chown(place.covered, NOBODY, NOBODY)
    plain = place.run(place.covered, enter=as_user(NOBODY))
    with namespace.with_open_fuse(place.base / "fuse") as enter:
        mount = new_plain_mount(path=place.covered, uid=NOBODY, enter=enter)
        private = place.run(mount.path, enter=[*enter, *as_user(NOBODY)])
        _check_user(plain, private)
        mount.close()


def _check_user(plain: Results, mount: Results) -> None:
    unable = {case for case, reason in plain.reasons.items() if "requires root" in reason or "CAP_SYS_ADMIN" in reason}
    assert len(plain.outcomes) == CASES
    assert len(unable) == NEED_ROOT
    assert_same(plain, mount)
    assert len(mount.those("ok") | mount.those("FAILED")) >= CASES - NEED_ROOT - len(ALLOWED)
