"""Errors become an errno at one place, and nothing but FUSEError leaves a handler."""

from __future__ import annotations

import errno
import logging
from collections import defaultdict

import pyfuse3
import pytest
import trio

from fused import errors
from fused.cid import CID
from fused.fs.replies import ERRNO, errno_of, handler, waiting_handler
from fused.fs.requests import RequestCounter


def all_conditions() -> list[type[errors.IpfsfsError]]:
    found = [errors.IpfsfsError]
    for kind in found:
        found += kind.__subclasses__()
    return found


@pytest.mark.parametrize("kind", all_conditions())
def test_every_condition_has_an_errno(kind: type[errors.IpfsfsError]) -> None:
    # What a store tells apart for itself is to others the condition that it refines.
    known = [base for base in kind.__mro__ if base.__module__ == errors.__name__]
    assert known[0] in ERRNO, f"say in replies.py what a program sees for {known[0].__name__}"
    assert kind.__module__ == errors.__name__ or known[0] is not errors.IpfsfsError


class Sample:
    """A class with handlers."""

    def __init__(self) -> None:
        self.request_counters: defaultdict[str, RequestCounter] = defaultdict(RequestCounter)
        self.room: list[bool] = []
        self.calls = 0

    def make_room(self) -> bool:
        return self.room.pop(0) if self.room else False

    @handler
    def opens(self, succeeds_at: int) -> int:
        self.calls += 1
        if self.calls < succeeds_at:
            raise OSError(errno.EMFILE, "too many")
        return 7

    @handler
    def inline(self, error: BaseException | None) -> int:
        if error is not None:
            raise error
        return 7

    @waiting_handler
    async def waits(self, error: BaseException | None) -> int:
        await trio.lowlevel.checkpoint()
        if error is not None:
            raise error
        return 7


@pytest.mark.parametrize("name", ["inline", "waits"])
async def test_results_and_errors_pass_and_are_counted(name: str) -> None:
    sample = Sample()
    call = getattr(sample, name)
    assert await call(None) == 7
    for error, expected in (
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (FileNotFoundError(errno.ENOENT, "none"), errno.ENOENT),
        (pyfuse3.FUSEError(errno.ENOSYS), errno.ENOSYS),
        (errors.PathNotInDag("no such entry"), errno.ENOENT),
        (errors.StoreUnavailable("down"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (OSError(errno.EMFILE, "the daemon's own limit"), errno.ENFILE),
    ):
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await call(error)
        assert caught.value.errno == expected
    stats = sample.request_counters[name].stats()
    assert (stats.count, stats.errors) == (8, 7)


@pytest.mark.parametrize("name", ["inline", "waits"])
async def test_a_bug_becomes_eio_with_one_traceback(name: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(pyfuse3.FUSEError) as caught:
        await getattr(Sample(), name)(KeyError("bug"))
    assert caught.value.errno == errno.EIO
    (record,) = caplog.records
    assert record.exc_info is not None
    assert f"op={name}" in record.getMessage()


async def test_a_broken_block_is_logged_with_its_cid(caplog: pytest.LogCaptureFixture) -> None:
    cid = CID(b"\x01\x55\x12\x20" + bytes(32))
    with caplog.at_level(logging.WARNING), pytest.raises(pyfuse3.FUSEError):
        await Sample().inline(errors.BlockCorrupt(cid))
    assert "bafkrei" in caplog.text


@pytest.mark.parametrize("name", ["inline", "waits"])
async def test_cancellation_passes(name: str) -> None:
    with pytest.raises(KeyboardInterrupt):
        await getattr(Sample(), name)(KeyboardInterrupt())
    with trio.move_on_after(0) as scope:
        await Sample().waits(None)
    assert scope.cancelled_caught


async def test_a_request_without_descriptors_is_made_once_more_when_there_are_some() -> None:
    sample = Sample()
    sample.room = [True]
    assert await sample.opens(2) == 7
    assert sample.calls == 2
    assert sample.request_counters["opens"].stats().errors == 0
    for room, calls in (([], 1), ([True, True], 2)):
        sample = Sample()
        sample.room = room
        with pytest.raises(pyfuse3.FUSEError) as caught:
            await sample.opens(9)
        assert caught.value.errno == errno.ENFILE
        assert sample.calls == calls


def test_an_oserror_without_a_number_is_unexpected() -> None:
    assert errno_of(OSError("made by hand")) is None
    assert errno_of(ValueError()) is None
