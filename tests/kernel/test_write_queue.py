"""How much the kernel has queued for us while large writes come in, where that can be set: with fusectl, by root."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fused.fs.write_queue import DIRTY_BYTES, REQUESTS_WHILE_WRITING
from tests.support import namespace
from tests.support.mountproc import REPO

PROGRAM = """
import json, os, sys
from pathlib import Path
from tests.support.plainmount import PlainMount
from tests.support.poll import wait_until

mount = PlainMount(Path(sys.argv[1]))
try:
    device = os.stat(mount.path).st_dev
    requests = Path(f"/sys/fs/fuse/connections/{os.minor(device)}/max_background")
    dirty = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/max_bytes")
    ratio = dirty.with_name("max_ratio_fine")

    def now():
        return [int(path.read_text()) for path in (requests, dirty, ratio)]

    before = now()
    seen = []
    with open(mount.path / "large", "wb", buffering=0) as f:
        for _ in range(16):
            f.write(bytes(1 << 20))
            os.fsync(f.fileno())
            seen.append(now())
    wait_until(lambda: now()[0] == before[0], "queue of the usual length", 30)
    wait_until(lambda: now()[2] == before[2], "as many dirty pages as usual", 30)
    print(json.dumps([before, seen[-1], now()]))
    mount.unmount()
finally:
    mount.close()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root: it mounts fusectl, in a name space of its own")
def test_it_is_short_while_large_writes_come_in_and_as_long_as_usual_afterwards(tmp_path: Path) -> None:
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
    assert done.returncode == 0, done.stderr
    before, meanwhile, afterwards = json.loads(done.stdout)
    usual_requests, usual_dirty, usual_ratio = before
    requests, dirty, _ = meanwhile
    _, dirty_again, ratio_again = afterwards
    assert (usual_requests, requests) == (12, REQUESTS_WHILE_WRITING)
    # The kernel keeps a share of the memory that can be dirty, in millionths, and works out bytes from it each time.
    assert DIRTY_BYTES * 0.9 < dirty <= DIRTY_BYTES < usual_dirty
    assert ratio_again == usual_ratio
    assert abs(dirty_again - usual_dirty) < usual_dirty / 2
