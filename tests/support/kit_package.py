"""ipfs_kit_py from PyPI in versions other than the one that is installed here."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

# As it was when the tests began: fixtures hide the user's own directories, and pip keeps its cache there.
_ENVIRONMENT = dict(os.environ)
_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ipfsfs-tests"


def kit_package(version: str) -> Path:
    """A directory with ipfs_kit_py of this version in it, and nothing that it depends on: for the front of sys.path.

    The one that was installed there earlier, else installed now, which needs pip and its index.
    """
    target = _CACHE / f"ipfs_kit_py-{version}"
    _CACHE.mkdir(parents=True, exist_ok=True)
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two test runs at once install it once
        if not target.exists():
            partial = target.with_suffix(".partial")
            shutil.rmtree(partial, ignore_errors=True)
            # Not compiled: it holds files that can't be.
            options = ["--quiet", "--no-deps", "--no-compile", "--target", str(partial)]
            command = [sys.executable, "-m", "pip", "install", *options, f"ipfs_kit_py=={version}"]
            done = subprocess.run(command, env=_ENVIRONMENT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{' '.join(command)} failed with {done.returncode}:\n{done.stderr}"
            os.replace(partial, target)
    return target
