"""The control socket: both ends, over a real socket in a real directory."""

from __future__ import annotations

import json
import os
import socket
import stat
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import trio

from fused.control import _loads, call
from fused.control_server import serve_control
from fused.errors import BlockNotFound, ControlError, DaemonGone, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping
    from pathlib import Path

    from fused.control import Report
    from fused.control_server import Handler


@asynccontextmanager
async def serving(state_dir: Path, handlers: Mapping[str, Handler]) -> AsyncIterator[trio.Nursery]:
    fd = os.open(state_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_control, fd, handlers)
            yield nursery
            nursery.cancel_scope.cancel()
    finally:
        os.close(fd)


async def ask(state_dir: Path, op: str, args: Mapping[str, object] | None = None, *rest: Report) -> dict[str, object]:
    with trio.fail_after(10):
        return await trio.to_thread.run_sync(lambda: call(str(state_dir), op, args, *rest, timeout=5))


async def raw(state_dir: Path, line: bytes) -> list[dict[str, dict[str, object]]]:
    """Send one line as it is, and return all answers up to the end of the connection."""

    def talk() -> bytes:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(5)
            sock.connect(str(state_dir / "control"))
            sock.sendall(line)
            sock.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: sock.recv(65536), b""))

    return [json.loads(answer) for answer in (await trio.to_thread.run_sync(talk)).splitlines()]


async def echo(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
    await trio.lowlevel.checkpoint()
    return {"args": dict(args)}


async def test_request_and_result_keep_names_that_are_not_utf8(tmp_path: Path) -> None:
    args = {"name": os.fsdecode(b"caf\xe9\n"), "n": [1, None, True]}
    async with serving(tmp_path, {"echo": echo}):
        assert await ask(tmp_path, "echo", args) == {"args": args}


async def test_socket_is_private_and_goes_with_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path, {}):
        mode = (tmp_path / "control").lstat().st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600
    assert not (tmp_path / "control").exists()


async def test_socket_left_by_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "control"))
    with pytest.raises(DaemonGone):
        call(str(tmp_path), "echo")
    async with serving(tmp_path, {"echo": echo}):
        assert await ask(tmp_path, "echo") == {"args": {}}


async def test_state_directory_with_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 120) / ("e" * 120)
    deep.mkdir(parents=True)
    async with serving(deep, {"echo": echo}):
        assert await ask(deep, "echo") == {"args": {}}


async def test_errors_arrive_as_the_same_class_and_sentence(tmp_path: Path) -> None:
    async def unavailable(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        raise StoreUnavailable("the disk is full")

    async def missing(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        exc = BlockNotFound.__new__(BlockNotFound, "block bafy is not in the store")
        raise exc

    async def vanished(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        raise FileNotFoundError(2, "No such file or directory", "/gone")

    async with serving(tmp_path, {"unavailable": unavailable, "missing": missing, "vanished": vanished}):
        with pytest.raises(StoreUnavailable, match=r"^the disk is full$"):
            await ask(tmp_path, "unavailable")
        with pytest.raises(BlockNotFound, match=r"^block bafy is not in the store$"):
            await ask(tmp_path, "missing")
        with pytest.raises(ControlError, match="No such file or directory: '/gone'"):
            await ask(tmp_path, "vanished")


async def test_bug_in_a_handler_is_reported_and_logged_and_the_server_lives(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        raise ZeroDivisionError("oops")

    async with serving(tmp_path, {"broken": broken, "echo": echo}):
        with pytest.raises(ControlError, match="ZeroDivisionError: oops"):
            await ask(tmp_path, "broken")
        assert await ask(tmp_path, "echo") == {"args": {}}
    assert [record.exc_info is not None for record in caplog.records if record.levelname == "ERROR"] == [True]


@pytest.mark.parametrize(
    "line",
    [
        b"not json\n",
        b"\xff\xfe\n",
        b"[]\n",
        b"7\n",
        b'"status"\n',
        b"{}\n",
        b'{"op": 7}\n',
        b'{"op": "echo", "args": []}\n',
        b"[" * 100_000 + b"\n",
        b"x" * (1 << 21),
    ],
    ids=lambda line: line[:12].decode("latin-1"),
)
async def test_malformed_request_is_answered_with_an_error(tmp_path: Path, line: bytes) -> None:
    async with serving(tmp_path, {"echo": echo}):
        try:
            answers = await raw(tmp_path, line)
        except (ConnectionResetError, BrokenPipeError):  # we were still sending 2 MiB when it hung up
            answers = [{"error": {"kind": "ControlError"}}]
        assert [answer["error"]["kind"] for answer in answers] == ["ControlError"]
        assert await ask(tmp_path, "echo") == {"args": {}}


async def test_unknown_request_leaves_the_connection_usable(tmp_path: Path) -> None:
    async with serving(tmp_path, {"echo": echo}):
        answers = await raw(tmp_path, b'{"op": "fly"}\n{"op": "echo"}\n')
    assert "does not know the request 'fly'" in str(answers[0]["error"]["message"])
    assert answers[1] == {"result": {"args": {}}}


async def test_progress_arrives_before_the_result(tmp_path: Path) -> None:
    async def slow(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        for done in range(4):
            report("storing", done, 4, "files")
            await trio.sleep(0.06)
        return {"done": True}

    seen: list[tuple[str, int, int | None, str]] = []
    async with serving(tmp_path, {"slow": slow}):
        assert await ask(tmp_path, "slow", None, lambda *step: seen.append(step)) == {"done": True}
    assert seen
    assert seen == sorted(seen)
    assert all(step[0] == "storing" and step[2:] == (4, "files") for step in seen)


async def test_request_runs_to_its_end_though_the_client_has_gone(tmp_path: Path) -> None:
    finished = trio.Event()
    begun = trio.Event()

    async def long(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        begun.set()
        report("storing", 1, None, "files")
        await trio.sleep(0.3)  # long enough for a progress line to meet the closed socket
        finished.set()
        return {}

    async with serving(tmp_path, {"long": long, "echo": echo}):
        stream = await trio.open_unix_socket(str(tmp_path / "control"))
        await stream.send_all(b'{"op": "long"}\n')
        await begun.wait()
        await stream.aclose()
        with trio.fail_after(5):
            await finished.wait()
        assert await ask(tmp_path, "echo") == {"args": {}}


async def test_handler_that_stops_the_server_still_gets_its_reply_out(tmp_path: Path) -> None:
    stop = trio.Event()

    async def umount(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        stop.set()
        return {"snapshot": "bafy"}

    async def stopper(nursery: trio.Nursery) -> None:
        await stop.wait()
        nursery.cancel_scope.cancel()

    async with serving(tmp_path, {"umount": umount}) as nursery:
        nursery.start_soon(stopper, nursery)
        with trio.CancelScope(shield=True):
            assert await ask(tmp_path, "umount") == {"snapshot": "bafy"}


async def test_request_cut_short_by_shutdown_is_told_so(tmp_path: Path) -> None:
    begun = trio.Event()

    async def forever(args: Mapping[str, object], report: Report) -> Mapping[str, object]:
        begun.set()
        await trio.sleep_forever()
        raise AssertionError

    async def stop_when_begun(nursery: trio.Nursery) -> None:
        await begun.wait()
        nursery.cancel_scope.cancel()

    async with serving(tmp_path, {"forever": forever}) as nursery:
        nursery.start_soon(stop_when_begun, nursery)
        with trio.CancelScope(shield=True), pytest.raises(DaemonGone, match="stopped before"):
            await ask(tmp_path, "forever")


async def test_hanging_daemon_is_noticed_after_the_timeout(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        with pytest.raises(ControlError, match=r"not answered for 0\.1 seconds"):
            call(str(tmp_path), "status", timeout=0.1)


async def test_daemon_that_dies_in_the_middle_is_noticed(tmp_path: Path) -> None:
    def die() -> None:
        connection, _ = listener.accept()
        connection.close()

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "control"))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, die)
            with pytest.raises(DaemonGone, match="went away"):
                await ask(tmp_path, "sync")


async def test_missing_state_directory_means_no_daemon(tmp_path: Path) -> None:
    with pytest.raises(DaemonGone):
        call(str(tmp_path / "nothing"), "status")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to be another user")
async def test_another_user_is_refused_even_when_the_socket_lets_it_in(tmp_path: Path) -> None:
    def as_nobody() -> bytes:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.chdir(tmp_path)
                os.setuid(65534)
                with socket.socket(socket.AF_UNIX) as sock:
                    sock.connect("control")
                    with suppress(BrokenPipeError):  # it may refuse us before it reads
                        sock.sendall(b'{"op": "echo"}\n')
                    os.write(write, sock.recv(65536))
            finally:
                os._exit(0)
        os.close(write)
        with os.fdopen(read, "rb") as answer:
            text = answer.read()
        os.waitpid(pid, 0)
        return text

    async with serving(tmp_path, {"echo": echo}):
        tmp_path.chmod(0o755)
        (tmp_path / "control").chmod(0o666)
        answer = await trio.to_thread.run_sync(as_nobody)
    assert json.loads(answer)["error"]["message"] == "this mount belongs to another user"


@pytest.mark.parametrize(
    "line",
    [
        b'{"a": [1, null, true, 2.5, -1e400, "\\ud800\\n", {}], "a": {"b": 1}}\n',
        b"[NaN, Infinity, -Infinity, 12345678901234567890123]",
        b' {"a": 1} \n',
        '{"a": "\u00fc"}'.encode(),
        '{"a": "\u00fc"}'.encode("utf-16"),
        b"1",
    ],
)
def test_an_answer_is_read_as_json_reads_it(line: bytes) -> None:
    assert repr(_loads(line)) == repr(json.loads(line))


@pytest.mark.parametrize("line", [b"", b"{", b'{"a": 1} x', b'{"a" 1}', b"\xff", b'"\n"', b"nul", b"["])
def test_an_answer_that_json_refuses_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        _loads(line)
