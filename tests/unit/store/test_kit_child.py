"""The process that ipfs_kit_py runs in: what it may do, and what becomes of us when it dies or hangs.

Where the package misbehaves here, it is one that was written to; with the real one see tests/kubo/test_kit_package.py.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from fused.errors import StoreUnavailable
from fused.store.kit.child import Child
from fused.store.kit.package import Package
from tests.support.poll import wait_until

RUNS = """
import subprocess
class ipfs_py:
    def __init__(self, resources, metadata): pass
    def run_ipfs_command(self, command, timeout):
        done = subprocess.run(command, capture_output=True, timeout=timeout, text=True)
        return {"success": done.returncode == 0, "returncode": done.returncode, "stdout": done.stdout,
                "stderr": done.stderr}
"""

New = Callable[[str], Child]


@pytest.fixture
def new_child(tmp_path: Path) -> Iterator[New]:
    """Children of a package whose module `ipfs` is this; the program that they may run is a shell."""
    made: list[Child] = []

    def make(module: str) -> Child:
        package = tmp_path / "ipfs_kit_py"
        package.mkdir()
        (package / "__init__.py").write_text("raise SystemExit('the package itself was imported')")
        (package / "ipfs.py").write_text(module)
        made.append(Child(Package(str(package), "9.9", "/bin/sh"), str(tmp_path)))
        return made[-1]

    yield make
    for child in made:
        child.close()


def never() -> None:
    """Nobody interrupts."""


def run(child: Child, script: str, timeout_s: float = 20.0) -> str:
    answer = child.run(["-c", script], timeout_s, never)
    assert answer.error is None, answer
    return answer.stdout


def test_a_command_is_run_without_importing_the_package_itself(new_child: New) -> None:
    child = new_child(RUNS)
    assert run(child, "echo out") == "out\n"
    failed = child.run(["-c", "echo err >&2; exit 3"], 20.0, never)
    assert failed.error is not None
    assert failed.stderr == "err\n"


def test_what_it_prints_goes_to_the_log(
    new_child: New, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    child = new_child(f"import sys; print('noise'); sys.stderr.write('more\\n'){RUNS}")
    assert run(child, "/bin/cat") == ""  # its standard input is not ours
    wait_until(lambda: {"ipfs_kit_py: noise", "ipfs_kit_py: more"} <= set(caplog.messages), "lines in the log", 10.0)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "attempt",
    [
        "import subprocess; subprocess.run(['wget', 'http://127.0.0.1/'])",
        "import subprocess; subprocess.run(['/bin/true'])",
        "import subprocess; subprocess.run('exit', shell=True, executable='/bin/bash')",
        "import os; os.system('true')",
        "import os; os.posix_spawn('/bin/true', ['true'], {})",
        "import os; os.fork()",
        "import os; os.execv('/bin/true', ['true'])",
        "import urllib.request; urllib.request.urlopen('http://localhost:1/')",
        "import socket; socket.socket().connect(('127.0.0.1', 1))",
    ],
)
def test_no_other_program_and_no_connection(new_child: New, attempt: str) -> None:
    with pytest.raises(StoreUnavailable, match=r"can't be imported \((PermissionError|URLError).*ipfsfs lets"):
        run(new_child(attempt), "true")


@pytest.mark.parametrize(
    ("module", "why"),
    [
        ("import no_such_module", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("x = {", "SyntaxError"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("ipfs_py = None", "TypeError"),
    ],
)
def test_a_module_that_can_not_be_imported_is_named(new_child: New, module: str, why: str) -> None:
    child = new_child(module)
    with pytest.raises(StoreUnavailable, match=r"^ipfs_kit_py 9\.9 in .*can't be imported .*") as caught:
        run(child, "true")
    assert why in str(caught.value)
    assert "install ipfs_kit_py==0.2.0" in str(caught.value)


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        ("{'success': True, 'output': 'Command executed successfully'}", "Command executed successfully"),
        ("'fine'", "fine"),
        ("1 / 0", "ZeroDivisionError"),
        ("None", "None"),
    ],
)
def test_an_answer_without_a_command_behind_it_is_none(new_child: New, result: str, shown: str) -> None:
    child = new_child(f"class ipfs_py:\n def __init__(s, r, metadata): 0\n def run_ipfs_command(s, c): return {result}")
    with pytest.raises(StoreUnavailable, match=f"ran no command and answered .*{shown}"):
        run(child, "true")


def test_a_child_that_dies_is_started_again(new_child: New) -> None:
    child = new_child(RUNS)
    run(child, "true")
    before = child.pid
    assert before is not None
    with pytest.raises(StoreUnavailable, match="has ended"):
        run(child, "kill -9 $PPID; /bin/sleep 20")
    assert run(child, "echo again") == "again\n"
    assert child.pid != before


def test_a_child_that_hangs_is_given_up_and_replaced(new_child: New, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fused.store.kit.child._GRACE_S", 0.2)
    child = new_child(RUNS)
    run(child, "true")
    assert child.pid is not None
    status = Path(f"/proc/{child.pid}/stat")
    os.kill(child.pid, signal.SIGSTOP)
    wait_until(lambda: ") T " in status.read_text(), "stopped process", 10.0)
    with pytest.raises(StoreUnavailable, match="did not answer"):
        run(child, "true", 0.2)
    assert run(child, "echo again") == "again\n"


def test_closing_ends_the_child_and_its_commands(new_child: New, tmp_path: Path) -> None:
    child = new_child(RUNS)
    run(child, "true")
    pid = child.pid
    assert pid is not None
    child.close()
    child.close()
    with pytest.raises(ProcessLookupError):
        os.killpg(pid, 0)
    with pytest.raises(StoreUnavailable, match="closed"):
        run(child, "true")


def test_when_we_are_killed_it_ends_with_its_commands(new_child: New) -> None:
    package = new_child(RUNS)._package
    code = (
        "import sys; from fused.store.kit.child import Child; from fused.store.kit.package import Package\n"
        "child = Child(Package(sys.argv[1], '9.9', '/bin/sh'), '/')\n"
        "child.run(['-c', 'true'], 20.0, lambda: None); print(child.pid, flush=True)\n"
        "child.run(['-c', '/bin/sleep 600'], 700.0, lambda: None)"
    )
    with subprocess.Popen([sys.executable, "-c", code, package.directory], stdout=subprocess.PIPE) as ours:
        assert ours.stdout is not None
        group = int(ours.stdout.readline())
        wait_until(lambda: "sleep" in names_of(group), "command", 20.0)
        ours.kill()
    wait_until(lambda: not names_of(group), "end of the group", 20.0)


def names_of(group: int) -> set[str]:
    """The programs that run in a process group."""
    names = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            before, _, after = stat.read_text().rpartition(") ")
            state, _, pgrp, *_ = after.split()
            if int(pgrp) == group and state != "Z":
                names.add(before.partition("(")[2])
    return names


def test_whoever_waits_can_be_interrupted(new_child: New) -> None:
    def interrupt() -> None:
        raise KeyError("enough")

    child = new_child(RUNS)
    run(child, "true")
    with pytest.raises(KeyError):
        child.run(["-c", "/bin/sleep 20"], 20.0, interrupt)
    assert run(child, "echo on") == "on\n"


def test_commands_run_beside_each_other(new_child: New, tmp_path: Path) -> None:
    child = new_child(RUNS)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with ThreadPoolExecutor(2) as pool:
        reading = pool.submit(run, child, f"/bin/cat {pipe}")
        pool.submit(run, child, f"echo met > {pipe}").result()
        assert reading.result() == "met\n"
