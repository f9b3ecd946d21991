"""How many writes the kernel has queued for us at a time, where that can be set: with fusectl."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import namespace
from tests.support.mountproc import REPO

PROGRAM = """
import os, sys
from pathlib import Path
from tests.support.plainmount import PlainMount
from tests.support.poll import wait_until

mount = PlainMount(Path(sys.argv[1]))
try:
    number = os.minor(os.stat(mount.path).st_dev)
    control = Path(f"/sys/fs/fuse/connections/{number}/max_background")
    print(control.read_text().strip())
    seen = set()
    with open(mount.path / "large", "wb", buffering=0) as f:
        for _ in range(16):
            f.write(bytes(1 << 20))
            os.fsync(f.fileno())
            seen.add(int(control.read_text()))
    print(min(seen))
    wait_until(lambda: control.read_text() == "12\\n", "queue of the usual length", 30)
    mount.unmount()
finally:
    mount.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts fusectl, in a name space of its own")
def test_two_while_large_writes_come_in_and_as_many_as_usual_afterwards(tmp_path: Path) -> None:
    mounted = "grep -q ' /sys/fs/fuse/connections fusectl ' /proc/self/mounts"  # by systemd, where that runs
    script = f'{mounted} || mount -t fusectl none /sys/fs/fuse/connections && exec "$0" -c "$@"'
    done = subprocess.run(
        namespace.command("sh", "-c", script, sys.executable, PROGRAM, tmp_path / "mnt"),
        env=os.environ | {"PYTHONPATH": str(REPO)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "12\n2\n"), done.stderr
