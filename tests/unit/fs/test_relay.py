"""What is passed on to libfuse and back, and what of the first exchange is changed."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from fused.fs import relay
from fused.fs.protocol import HANDLE_KILLPRIV_V2, SETXATTR_EXT, SPLICE_READ
from fused.fs.relay import Relay, Wishes, changed_reply, changed_request

UNIQUE = 2
OFFERED = HANDLE_KILLPRIV_V2 | 0x8000_000B
KILL = Wishes(kill_privileges=True)


def request(*, major: int = 7, flags: int = OFFERED, opcode: int = 26, tail: bytes = bytes(48)) -> bytes:
    """fuse_in_header and fuse_init_in, as Linux 6.18 sends them."""
    body = struct.pack("=IIII", major, 44, 1 << 17, flags) + tail
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, UNIQUE, 0, 0, 0, 0, 0, 0) + body


def reply(
    *,
    major: int = 7,
    error: int = 0,
    unique: int = UNIQUE,
    flags: int = 0x0B,
    largest: int = 1 << 20,
    tail: bytes = bytes(36),
) -> bytes:
    """fuse_out_header and fuse_init_out, as libfuse 3.14 writes them."""
    body = struct.pack("=IIIIHHI", major, 37, 1 << 17, flags, 12, 9, largest) + tail
    return struct.pack("=IiQ", 16 + len(body), error, unique) + body


def test_the_flag_is_added_and_nothing_else_is_touched() -> None:
    tail = bytes(range(36))
    assert changed_reply(request(), reply(tail=tail), KILL) == reply(flags=0x0B | HANDLE_KILLPRIV_V2, tail=tail)


def test_a_flag_that_the_kernel_does_not_offer_is_not_asked_for() -> None:
    old = request(flags=OFFERED & ~HANDLE_KILLPRIV_V2)
    assert changed_reply(old, reply(), KILL) == reply()


def test_short_messages_of_old_protocols_are_understood() -> None:
    """Before 7.36 the kernel sends 16 bytes, and before 7.23 it takes 24."""
    assert changed_reply(request(tail=b""), reply(tail=b""), KILL) == reply(flags=0x0B | HANDLE_KILLPRIV_V2, tail=b"")


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        (request(major=8), reply()),  # the kernel will ask again
        (request(), reply(major=6)),
        (request(), reply(error=-71)),
        (request(), struct.pack("=IiQ", 16, -71, UNIQUE)),
        (request(), reply(unique=4)),
        (request(opcode=1), reply()),
        (request()[:-1], reply()),
        (request() + b"x", reply()),
        (request(), reply()[:-1]),
        (request(), reply() + b"x"),
        (b"", reply()),
        (request(), b""),
        (request()[:41], reply()),
        (bytes(range(104)), bytes(range(80))),
    ],
)
def test_whatever_is_not_as_we_know_it_is_left_alone(asked: bytes, answered: bytes) -> None:
    assert changed_reply(asked, answered, KILL) == answered


def test_no_larger_writes_are_asked_for_than_there_is_room_for() -> None:
    assert changed_reply(request(), reply(largest=16 << 20), Wishes()) == reply(largest=relay.MAX_WRITE)
    assert changed_reply(request(), reply(largest=4096), Wishes()) == reply(largest=4096)


def test_libfuse_is_not_offered_to_splice_nor_another_form() -> None:
    assert changed_request(request(flags=OFFERED | SPLICE_READ | SETXATTR_EXT)) == request()
    assert changed_request(request()) == request()


# With a socket in the place of /dev/fuse


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end, and the session's, whose descriptor changes its meaning."""
    kernel, session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    session.setblocking(False)
    yield kernel, session
    kernel.close()
    session.close()


@pytest.fixture
def passing(device: tuple[socket.socket, socket.socket]) -> Iterator[Relay]:
    """A relay in the session's place."""
    made = Relay(device[1].fileno(), KILL)
    yield made
    made.close()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_libfuse_sees_the_request_and_the_kernel_the_changed_reply(
    device: tuple[socket.socket, socket.socket],
) -> None:
    kernel, session = device
    fd = session.fileno()
    before = os.fstat(fd), os.get_inheritable(fd), _open_files()
    passing = Relay(fd, KILL)
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passing.run)
            await passing.pass_on(memoryview(request(flags=OFFERED | SPLICE_READ | SETXATTR_EXT)))
            assert os.read(fd, 4096) == request()
            with pytest.raises(BlockingIOError):
                os.read(fd, 4096)
            os.writev(fd, [reply()[:16], reply()[16:]])
            await wait_all_tasks_blocked()
            assert kernel.recv(4096) == reply(flags=0x0B | HANDLE_KILLPRIV_V2)
            # All others are as they are, in both directions and also without having been asked for.
            await passing.pass_on(memoryview(b"the next one"))
            assert os.read(fd, 4096) == b"the next one"
            os.write(fd, b"a notification")
            os.write(fd, b"an answer")
            await wait_all_tasks_blocked()
            assert (kernel.recv(4096), kernel.recv(4096)) == (b"a notification", b"an answer")
            nursery.cancel_scope.cancel()
    passing.close()
    after = os.fstat(fd), os.get_inheritable(fd), _open_files()
    assert (os.path.samestat(before[0], after[0]), after[1:]) == (True, before[1:])


async def test_an_answer_that_comes_at_once_is_there_when_it_was_passed_on(
    device: tuple[socket.socket, socket.socket], passing: Relay
) -> None:
    kernel, session = device

    async def libfuse() -> None:
        await trio.lowlevel.wait_readable(session.fileno())
        os.write(session.fileno(), os.read(session.fileno(), 4096)[::-1])

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(libfuse)
            await wait_all_tasks_blocked()
            await passing.pass_on(memoryview(b"question"))
            assert kernel.recv(4096) == b"noitseuq"


async def test_requests_wait_until_libfuse_has_room(
    device: tuple[socket.socket, socket.socket], passing: Relay
) -> None:
    _, session = device
    taken = 0

    async def libfuse() -> None:
        nonlocal taken
        while taken < 200:
            await trio.lowlevel.wait_readable(session.fileno())
            while True:
                try:
                    assert len(os.read(session.fileno(), 1 << 16)) == 10_000
                except BlockingIOError:
                    break
                taken += 1

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:

            async def pass_on_all() -> None:
                for _ in range(200):
                    await passing.pass_on(memoryview(bytes(10_000)))

            nursery.start_soon(pass_on_all)
            await wait_all_tasks_blocked()
            assert taken == 0
            nursery.start_soon(libfuse)
    assert taken == 200


async def test_a_kernel_that_is_gone_when_the_answer_comes_is_no_error(
    device: tuple[socket.socket, socket.socket], passing: Relay
) -> None:
    kernel, session = device
    kernel.close()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(passing.run)
            os.write(session.fileno(), reply())
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()


def test_a_descriptor_that_child_processes_inherit_stays_so(device: tuple[socket.socket, socket.socket]) -> None:
    _, session = device
    os.set_inheritable(session.fileno(), True)
    passing = Relay(session.fileno(), KILL)
    assert os.get_inheritable(session.fileno())
    assert not os.get_inheritable(passing.kernel)
    passing.close()
    assert os.get_inheritable(session.fileno())


def test_where_there_is_no_descriptor_nothing_is_changed(
    device: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, session = device
    before, files = os.fstat(session.fileno()), _open_files()

    def full(_fd: int) -> int:
        raise OSError(24, "too many")

    monkeypatch.setattr(os, "dup", full)
    with pytest.raises(OSError, match="too many"):
        Relay(session.fileno(), KILL)
    monkeypatch.undo()
    assert os.path.samestat(os.fstat(session.fileno()), before)
    assert _open_files() == files
