"""The child process in which ipfs_kit_py runs. A script: it imports nothing of ours, and knows nothing of blocks.

    python -IBu worker.py '{"package": DIRECTORY, "ipfs_path": PATH, "ipfs": PROGRAM}'

It reads requests from its standard input and writes answers to its standard output, a line of JSON each:

    {"id": 1, "args": ["dag", "import", …], "timeout": 30.0}
    {"id": 1, "returncode": 0, "stdout": "…", "stderr": "…", "error": "…", "timed_out": false, "odd": "…"}

An answer comes when it is ready, so several commands can be under way at once. `odd` is set if ipfs_kit_py's result
does not say how the command ended: then none has run. The first line is {"ready": FILE} with the module's file, or
{"failed": WHY} when it could not be imported.

ipfs_kit_py's own `__init__` is never run: it looks for programs to download with wget, reconfigures logging and
imports some hundred modules. And should a submodule try such things, it is refused: but for the `ipfs` program no
process can be started here, and no connection made.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import IO, Any

# Commands at once. More would only wait: for a repository's lock, or for the node.
_THREADS = 4
_SHOWN = 300  # characters of what makes no sense

# https://docs.python.org/3/library/audit_events.html
_STARTS = ("os.exec", "os.fork", "os.forkpty", "os.posix_spawn", "os.spawn", "os.startfile", "os.system", "pty.spawn")
_TALKS = ("socket.bind", "socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def main() -> None:
    """Answer until the standard input ends, then end, and whatever runs below this process with it."""
    config = json.loads(sys.argv[1])
    requests, answers = _take_pipes()
    try:
        _confine(config["ipfs"])
        kit, file = _load(config["package"], config["ipfs_path"])
    except BaseException as exc:  # also SystemExit: whatever an import may come up with
        answers.send({"failed": f"{type(exc).__name__}: {exc}"})
        return
    answers.send({"ready": file})
    pool = ThreadPoolExecutor(_THREADS)
    for line in requests:
        pool.submit(_answer, kit, config["ipfs"], json.loads(line), answers)
    # Whoever asked is gone, or wants nothing more. The parent made us the leader of a process group.
    os.killpg(0, signal.SIGKILL)


class _Answers:
    """The pipe to whoever asks, for several threads."""

    def __init__(self, pipe: IO[str]) -> None:
        self._pipe = pipe
        self._lock = threading.Lock()

    def send(self, answer: dict[str, Any]) -> None:
        with self._lock:
            self._pipe.write(json.dumps(answer) + "\n")
            self._pipe.flush()


def _take_pipes() -> tuple[IO[str], _Answers]:
    """Our ends of the pipes, as files that no command inherits. What anybody prints goes to standard error."""
    requests = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    return requests, _Answers(answers)


def _confine(program: str) -> None:
    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _STARTS or event in _TALKS or (event == "subprocess.Popen" and args[0] != program):
            what = repr(args[:2])[:_SHOWN]
            print(f"ipfsfs refused {event} {what}", file=sys.stderr, flush=True)
            raise PermissionError(f"ipfsfs lets ipfs_kit_py start only {program}, not: {event} {what}")

    sys.addaudithook(hook)


def _load(package: str, ipfs_path: str) -> tuple[Any, str]:
    """An `ipfs_py` object, and the file that its module came from."""
    sys.path.append(os.path.dirname(package))  # for what was installed beside it
    bare = types.ModuleType("ipfs_kit_py")
    bare.__path__ = [package]
    sys.modules["ipfs_kit_py"] = bare
    module = importlib.import_module("ipfs_kit_py.ipfs")
    return module.ipfs_py(None, metadata={"ipfs_path": ipfs_path}), str(module.__file__)


def _answer(kit: Any, program: str, request: dict[str, Any], answers: _Answers) -> None:
    answer: dict[str, Any] = {"id": request["id"]}
    result = _run(kit, [program, *request["args"]], request["timeout"])
    answer["returncode"] = result.get("returncode")
    answer["stdout"] = _stdout(result)
    answer["stderr"] = str(result.get("stderr") or "")
    answer["error"] = None if result.get("success") else str(result.get("error") or "no reason given")
    answer["timed_out"] = result.get("error_type") == "IPFSTimeoutError"
    runs_or_says_why = "returncode" in result or "error_type" in result
    answer["odd"] = None if runs_or_says_why else repr(result)[:_SHOWN]
    answers.send(answer)


def _run(kit: Any, command: list[str], timeout_s: float) -> dict[str, Any]:
    """The result of a command. It begins with the program's full path, not with "ipfs": the repository's newer code
    first sends what begins with "ipfs" to a wrong HTTP address, and drops all arguments but the last on the way."""
    try:
        try:
            result = kit.run_ipfs_command(command, timeout=timeout_s)
        except TypeError:  # imitations take no deadline; what they answer says best what they are
            result = kit.run_ipfs_command(command)
    except Exception as exc:
        result = {"raised": f"{type(exc).__name__}: {exc}"}
    return result if isinstance(result, dict) else {"result": result}


def _stdout(result: dict[str, Any]) -> str:
    for name in ("stdout_raw", "stdout"):
        if isinstance(result.get(name), str):
            return str(result[name])
    return json.dumps(result["stdout_json"]) if "stdout_json" in result else ""


if __name__ == "__main__":
    main()
