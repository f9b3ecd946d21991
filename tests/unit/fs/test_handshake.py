"""The first exchange with the kernel: what is changed in it, and that nothing else is."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from fused.fs import handshake
from fused.fs.handshake import HANDLE_KILLPRIV_V2, Wishes, changed_reply

UNIQUE = 2
OFFERED = HANDLE_KILLPRIV_V2 | 0x8000_000B
KILL = Wishes(kill_privileges=True)


def request(*, major: int = 7, flags: int = OFFERED, opcode: int = 26, tail: bytes = bytes(48)) -> bytes:
    """fuse_in_header and fuse_init_in, as Linux 6.18 sends them."""
    body = struct.pack("=IIII", major, 44, 1 << 17, flags) + tail
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, UNIQUE, 0, 0, 0, 0, 0, 0) + body


def reply(*, major: int = 7, error: int = 0, unique: int = UNIQUE, flags: int = 0x0B, tail: bytes = bytes(36)) -> bytes:
    """fuse_out_header and fuse_init_out, as libfuse 3.14 writes them."""
    body = struct.pack("=IIIIHHI", major, 37, 1 << 17, flags, 12, 9, 1 << 20) + tail
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


# With a socket in the place of /dev/fuse


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, int]]:
    """The kernel's end, and the session's descriptor."""
    kernel, session = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    kernel.setblocking(False)
    session.setblocking(False)
    yield kernel, session.fileno()
    kernel.close()
    session.close()


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_libfuse_sees_the_request_and_the_kernel_the_changed_reply(device: tuple[socket.socket, int]) -> None:
    kernel, fd = device
    before = os.fstat(fd), os.get_inheritable(fd), _open_files()
    kernel.send(request())
    exchange = handshake.begin(fd, KILL)
    assert exchange is not None
    assert os.read(fd, 4096) == request()
    with pytest.raises(BlockingIOError):
        os.read(fd, 4096)
    os.writev(fd, [reply()[:16], reply()[16:]])
    exchange.finish()
    assert kernel.recv(4096) == reply(flags=0x0B | HANDLE_KILLPRIV_V2)
    after = os.fstat(fd), os.get_inheritable(fd), _open_files()
    assert (os.path.samestat(before[0], after[0]), after[1:]) == (True, before[1:])
    kernel.send(b"the next one")
    assert os.read(fd, 4096) == b"the next one"


def test_a_descriptor_that_child_processes_inherit_stays_so(device: tuple[socket.socket, int]) -> None:
    kernel, fd = device
    os.set_inheritable(fd, True)
    kernel.send(request())
    exchange = handshake.begin(fd, KILL)
    assert exchange is not None
    assert os.get_inheritable(fd)
    exchange.finish()
    assert os.get_inheritable(fd)


def test_without_an_answer_the_descriptor_comes_back_and_the_kernel_hears_nothing(
    device: tuple[socket.socket, int],
) -> None:
    kernel, fd = device
    before, files = os.fstat(fd), _open_files()
    kernel.send(request())
    exchange = handshake.begin(fd, KILL)
    assert exchange is not None
    exchange.finish()
    assert os.path.samestat(os.fstat(fd), before)
    assert _open_files() == files
    with pytest.raises(BlockingIOError):
        kernel.recv(4096)


def test_a_kernel_that_is_gone_when_the_answer_comes_is_no_error(device: tuple[socket.socket, int]) -> None:
    kernel, fd = device
    before = os.fstat(fd)
    kernel.send(request())
    exchange = handshake.begin(fd, KILL)
    assert exchange is not None
    os.write(fd, reply())
    kernel.close()
    exchange.finish()
    assert os.path.samestat(os.fstat(fd), before)


def test_where_no_request_can_be_read_nothing_is_changed(
    device: tuple[socket.socket, int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(handshake, "_PATIENCE_MS", 1)
    _, fd = device
    before, files = os.fstat(fd), _open_files()
    assert handshake.begin(fd, KILL) is None
    assert "works without" in caplog.text
    assert os.path.samestat(os.fstat(fd), before)
    assert _open_files() == files
