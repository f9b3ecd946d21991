"""What must be true after everything: `ipfsfs fsck` finds nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.support.mountproc import MountProcess


def findings(mount: MountProcess, *, content: bool = False) -> list[dict[str, Any]]:
    """What is damaged, mounted or not. Rubbish that a killed process left is none."""
    flags = ["--content"] if content else []
    done = mount.ipfsfs("fsck", "--json", *flags, "--state-dir", mount.state, mount.path, check=False)
    report = json.loads(done.stdout)
    found = [finding for finding in report["findings"] if not finding["harmless"]]
    assert bool(done.returncode & 4) == bool(found), done.stdout
    assert done.returncode & ~4 == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
    return found


def assert_whole(mount: MountProcess, *, content: bool = True) -> None:
    """Store, snapshots and index of the mount are whole, and the index is true of the local files."""
    found = findings(mount, content=content)
    assert not found, json.dumps(found, indent=1)


def assert_whole_store(mount: MountProcess, store: Path) -> None:
    """A store alone is whole, with everybody's snapshots."""
    done = mount.ipfsfs("fsck", "--json", "--store-dir", store, check=False)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}{done.stderr}"
