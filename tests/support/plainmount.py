"""A mount without the rest of the program, for tests of the `fs` layer through the kernel.

As a script, `plainmount.py DIR [option ...]` covers DIR until it is unmounted. It prints `ready` when requests are
served, and at SIGUSR1 a JSON line with counters. Options: read_only, allow_other, write_through;
`ticks` runs a task that counts its own wake-ups every millisecond.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support.poll import wait_until

REPO = Path(__file__).resolve().parents[2]
NOBODY = 65534


def as_user(uid: int, *groups: int) -> list[str]:
    """The start of a command line that runs the rest as an ordinary user."""
    supplementary = [f"--groups={','.join(map(str, groups))}"] if groups else ["--clear-groups"]
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", *supplementary]


class PlainMount:
    """`path` is the mount, `plain` the covered directory beneath it, through a descriptor opened before.

    `enter` is the start of a command line that runs the rest in another mount namespace.
    """

    def __init__(self, path: Path, *options: str, uid: int | None = None, enter: Sequence[str] = ()) -> None:
        self.path = path
        self._enter = enter
        path.mkdir(exist_ok=True)
        self._fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        self.plain = Path(f"/proc/{os.getpid()}/fd/{self._fd}")
        command = [sys.executable, "-m", "tests.support.plainmount", str(path), *options]
        environ = {**os.environ, "PYTHONPATH": str(REPO), "PYTHONDONTWRITEBYTECODE": "1"}
        self.log = path.parent / f"{path.name}.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*enter, *(as_user(uid) if uid is not None else []), *command],
                stdout=subprocess.PIPE,
                stderr=log,
                env=environ,
                cwd="/",
            )
        try:
            assert self._line() == b"ready\n", self.log.read_text(errors="replace")
        except BaseException:
            self.close()
            raise

    def _line(self) -> bytes:
        assert self.process.stdout is not None
        readable, _, _ = select.select([self.process.stdout], [], [], 20)
        assert readable, "no answer within 20 s"
        return self.process.stdout.readline()

    def counters(self) -> dict[str, Any]:
        """What the daemon counts: inodes, handles, orphans, writers, requests as {kind: [count, errors]}."""
        self.process.send_signal(signal.SIGUSR1)
        counted: dict[str, Any] = json.loads(self._line())
        return counted

    def requests_during(self, work: Callable[[], object]) -> dict[str, int]:
        """How many requests of each kind were served while `work` ran."""
        before = self.counters()["requests"]
        work()
        after = self.counters()["requests"]
        return {kind: n - before.get(kind, [0])[0] for kind, (n, _) in after.items() if n != before.get(kind, [0])[0]}

    def cpu_ticks(self) -> int:
        """CPU time of the daemon so far, in clock ticks."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    def mounted(self) -> bool:
        """Whether the kernel still shows the mount."""
        shown = subprocess.run(
            [*self._enter, "cat", "/proc/self/mountinfo"], capture_output=True, text=True, check=True
        )
        lines = shown.stdout.splitlines()
        return any(line.split()[4] == str(self.path) and " - fuse.ipfsfs " in line for line in lines)

    def unmount(self) -> None:
        """Unmount in order; the daemon ends by itself, without a complaint."""
        command = [*self._enter, "fusermount3", "-u", "--", str(self.path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert self.process.wait(20) == 0, self.log.read_text(errors="replace")

    def close(self) -> None:
        """Leave nothing behind, whatever happened. May be called twice."""
        if self._fd < 0:
            return
        if self.process.poll() is None and self.mounted():
            with contextlib.suppress(AssertionError, subprocess.TimeoutExpired):
                self.unmount()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(20)
        if self.mounted():
            subprocess.run([*self._enter, "fusermount3", "-u", "-z", "--", str(self.path)], check=True)
            wait_until(lambda: not self.mounted(), "unmounted directory")
        if self.process.stdout is not None:
            self.process.stdout.close()
        os.close(self._fd)
        self._fd = -1


@pytest.fixture
def new_plain_mount(tmp_path: Path) -> Iterator[Callable[..., PlainMount]]:
    """Makes mounts over new directories (or over `path=`). Afterwards their logs must not complain."""
    if not os.path.exists("/dev/fuse"):
        pytest.skip("/dev/fuse is missing")
    made: list[PlainMount] = []

    def make(*options: str, path: Path | None = None, uid: int | None = None, enter: Sequence[str] = ()) -> PlainMount:
        made.append(PlainMount(path or tmp_path / f"mount{len(made)}", *options, uid=uid, enter=enter))
        return made[-1]

    yield make
    for mount in reversed(made):
        mount.close()
    for mount in made:
        for line in mount.log.read_text(errors="replace").splitlines():
            expected = "using its own request loop" in line
            assert expected or not line.startswith(("WARNING", "ERROR", "Traceback")), mount.log.read_text()


@pytest.fixture
def plain_mount(new_plain_mount: Callable[..., PlainMount]) -> PlainMount:
    """A mount over an empty directory."""
    return new_plain_mount()


async def _run(directory: str, options: set[str]) -> None:
    import trio

    from fused.fs import mounts, session
    from fused.fs.changes_protocol import NullChangeSink
    from fused.fs.filesystem import FileSystem

    root_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    fs = FileSystem(
        root_fd,
        NullChangeSink(),
        private="allow_other" not in options,
        write_through="write_through" in options,
        read_only="read_only" in options,
    )
    mount_options = session.MountOptions(
        mountpoint=directory,
        fsname=mounts.source_name("/nowhere"),
        read_only="read_only" in options,
        allow_other="allow_other" in options,
        write_through="write_through" in options,
    )
    ticks = 0

    async def count_ticks() -> None:
        nonlocal ticks
        while True:
            await trio.sleep(0.001)
            ticks += 1

    def counters() -> str:
        return json.dumps(
            {
                "inodes": fs.inode_count(),
                "handles": fs.handle_count(),
                "orphans": fs.reach.orphan_count(),
                "writers": [os.fsdecode(path) for path in fs.writers()],
                "requests": {kind: [stats.count, stats.errors] for kind, stats in fs.counters().items()},
                "p50_us": {kind: stats.p50_us for kind, stats in fs.counters().items()},
                "ticks": ticks,
            }
        )

    async def answer_signals() -> None:
        with trio.open_signal_receiver(signal.SIGUSR1) as signals:
            async for _ in signals:
                fs.inodes.check_invariants()
                print(counters(), flush=True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(answer_signals)
        if "ticks" in options:
            nursery.start_soon(count_ticks)
        await session.serve(fs, mount_options, lambda: print("ready", flush=True))
        nursery.cancel_scope.cancel()
    os.close(root_fd)


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring."""
    import logging

    import trio

    logging.basicConfig(level=logging.INFO, stream=sys.stderr, format="%(levelname)s %(name)s %(message)s")
    trio.run(_run, os.path.realpath(arguments[0]), set(arguments[1:]))


if __name__ == "__main__":
    main(sys.argv[1:])
