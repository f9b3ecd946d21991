"""Several processes at one file, and many files in one directory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.support.workspace import Workspace

APPENDERS = 8
LINES = 500
FILES = 10_000

APPEND = """
import os, sys
fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
for number in range(int(sys.argv[3])):
    line = b"%s %d %s\\n" % (sys.argv[2].encode(), number, b"x" * (number % 300))
    assert os.write(fd, line) == len(line)
os.close(fd)
"""

# Both sides map the file. For each line on stdin: check that the other side's value has arrived, write the next.
PING_PONG = """
import mmap, os, struct, sys
fd = os.open(sys.argv[1], os.O_RDWR)
shared = mmap.mmap(fd, 0)
mine, theirs = int(sys.argv[2]), int(sys.argv[3])
for line in sys.stdin:
    expected, value = map(int, line.split())
    seen = struct.unpack_from("<q", shared, theirs)[0]
    struct.pack_into("<q", shared, mine, value)
    print("ok" if seen == expected else f"saw {seen}, not {expected}", flush=True)
shared.close()
"""


def test_eight_processes_append_to_one_log_without_a_lost_line(workspace: Workspace) -> None:
    log = workspace.path / "shared.log"
    processes = [
        subprocess.Popen([sys.executable, "-c", APPEND, str(log), f"writer{n}", str(LINES)]) for n in range(APPENDERS)
    ]
    assert [process.wait(timeout=100) for process in processes] == [0] * APPENDERS
    lines = log.read_bytes().split(b"\n")
    assert lines.pop() == b""
    expected = [b"writer%d %d %s" % (n, i, b"x" * (i % 300)) for n in range(APPENDERS) for i in range(LINES)]
    assert sorted(lines) == sorted(expected)
    for n in range(APPENDERS):  # each writer's own lines stand in its order
        own = [line for line in lines if line.startswith(b"writer%d " % n)]
        assert own == [b"writer%d %d %s" % (n, i, b"x" * (i % 300)) for i in range(LINES)]
    workspace.check()


def _mapper(path: Path, mine: int, theirs: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PING_PONG, str(path), str(mine), str(theirs)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_file_mapped_by_two_processes_is_shared(workspace: Workspace) -> None:
    path = workspace.path / "mapped"
    path.write_bytes(bytes(3 * 1024 * 1024))
    offsets = (4096 * 5 + 8, 4096 * 600)
    sides = _mapper(path, *offsets), _mapper(path, *reversed(offsets))
    last = [0, 0]
    try:
        for turn in range(200):
            me = turn % 2
            stdin, stdout = sides[me].stdin, sides[me].stdout
            assert stdin is not None
            assert stdout is not None
            value = turn + 1
            stdin.write(f"{last[1 - me]} {value}\n")
            stdin.flush()
            assert stdout.readline() == "ok\n"
            last[me] = value
            if turn == 100:
                workspace.check()  # while both have it mapped
    finally:
        for side in sides:
            side.communicate(timeout=20)
    assert [side.returncode for side in sides] == [0, 0]
    data = path.read_bytes()
    assert [int.from_bytes(data[at : at + 8], "little") for at in offsets] == last
    workspace.check()


def test_ten_thousand_files_in_one_directory(workspace: Workspace) -> None:
    directory = workspace.path / "many"
    directory.mkdir()
    for number in range(FILES):
        (directory / f"file-{number:05}").write_bytes(b"%d" % number)
    assert sorted(os.listdir(directory)) == [f"file-{number:05}" for number in range(FILES)]
    workspace.check()
    seen = set()
    with os.scandir(directory) as entries:  # rename and remove while listing: every other file must come exactly once
        for entry in entries:
            number = int(entry.name.rpartition("-")[2])
            if entry.name.startswith("file-"):
                assert number not in seen
                seen.add(number)
                if number % 3 == 0:
                    os.unlink(entry.path)
                elif number % 3 == 1:
                    os.rename(entry.path, directory / f"moved-{number:05}")
    assert seen == set(range(FILES))
    expected = [f"moved-{n:05}" if n % 3 == 1 else f"file-{n:05}" for n in range(FILES) if n % 3]
    assert sorted(os.listdir(directory)) == sorted(expected)
    assert all((directory / name).read_bytes() == b"%d" % int(name.rpartition("-")[2]) for name in expected)
    workspace.check()
