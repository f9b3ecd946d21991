"""Other users of the machine: Python code run as one, and a directory that all of them can reach."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.plainmount import as_user

ALICE, BOB, TEAM = 12_001, 12_002, 12_100


def python_as(uid: int, code: str, *arguments: object, groups: tuple[int, ...] = (), umask: int = 0o022) -> str:
    """Run Python code as a user and return its output. What it raises is the last line of it, not a failure."""
    head = f"import errno,fcntl,json,os,shutil,socket,stat,sys\nos.umask({umask})\n"
    done = subprocess.run(
        [*as_user(uid, *groups), sys.executable, "-c", head + code, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        timeout=120,
    )
    return done.stdout.strip() if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


@contextmanager
def umask(mask: int) -> Iterator[None]:
    """Another umask for this process and what it starts."""
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


@contextmanager
def directory_for_everybody() -> Iterator[Path]:
    """A directory that every user can enter; pytest's own are root's alone."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to be several users")
    path = Path(tempfile.mkdtemp(prefix="ipfsfs-users-", dir="/tmp"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@pytest.fixture
def common() -> Iterator[Path]:
    """See `directory_for_everybody`."""
    with directory_for_everybody() as path:
        yield path
