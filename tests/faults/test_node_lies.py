"""A node that says what is not so. Nothing is acknowledged, status says why, and the truth sets all of it right."""

from __future__ import annotations

import json

import pytest

from tests.support.outage import CANT_STORE, LOST, Outage
from tests.support.poll import wait_until
from tests.support.proxy import (
    Act,
    Answer,
    Garbage,
    Request,
    Rewrite,
    constant_cid,
    error_inside,
    flipped,
    internal_error,
    pinned_as_asked,
)


def old_version(_: Request, body: bytes) -> bytes:
    """A Kubo from before it could do what we need."""
    return json.dumps(json.loads(body) | {"Version": "0.9.1"}).encode()


def web_page(_: Request) -> bytes:
    """Of something else that listens on the port."""
    return b"<!DOCTYPE html><title>Router</title><p>Please log in</p>"


AT_ANY_TIME: dict[str, tuple[str, Act, str]] = {
    "an error inside a 200": ("dag/import", Answer(error_inside), "no space left"),
    "always the same CID": ("dag/import", Answer(constant_cid), "block"),
    "nothing pinned": ("pin/[au]*", Answer(pinned_as_asked), "pin"),
    "wrong bytes": ("block/get", Rewrite(flipped), "block"),
    "500": ("*", Answer(internal_error, 500), "datastore is closed"),
    "no HTTP": ("*", Garbage(), r"127\.0\.0\.1"),
}
AT_FIRST: dict[str, tuple[str, Act, str]] = {
    "wrong bytes": ("block/get", Rewrite(flipped), "sent back|came back|other bytes|match"),
    "always the same CID": ("dag/import", Answer(constant_cid), "block"),
    "an old version": ("version", Rewrite(old_version), r"0\.9\.1"),
    "not a Kubo": ("*", Answer(web_page, 200, "text/html"), "Kubo"),
    "not a Kubo, and 404": ("*", Answer(web_page, 404, "text/html"), r"Kubo|404"),
}


@pytest.mark.parametrize("lie", AT_ANY_TIME)
def test_a_lie_is_no_acknowledgement(outage: Outage, lie: str) -> None:
    pattern, act, sentence = AT_ANY_TIME[lie]
    outage.mount.expect_log(CANT_STORE, LOST)
    outage.write("before", 300_000)
    outage.start()
    outage.sync()
    outage.proxy.rule(pattern, act)
    outage.write("large", 3 << 20)
    outage.write("small", 10)
    assert_refused(outage, sentence)

    outage.proxy.honest()
    outage.wait_stored()
    outage.assert_kept()


@pytest.mark.parametrize("lie", AT_FIRST)
def test_a_node_that_is_none_gets_nothing(outage: Outage, lie: str) -> None:
    pattern, act, sentence = AT_FIRST[lie]
    outage.mount.expect_log(CANT_STORE)
    outage.proxy.rule(pattern, act)
    outage.write("file")
    outage.start()
    assert_refused(outage, sentence)

    outage.proxy.honest()
    outage.wait_stored()
    outage.assert_kept()


def assert_refused(outage: Outage, sentence: str) -> None:
    """Asked or not, nothing counts as stored, and it is said why."""
    outage.sync_fails(sentence)
    wait_until(outage.wrong, "word of it in status")
    status = outage.status()
    assert status["files"]["dirty"] > 0
    newest = status["snapshot"] and status["snapshot"]["snapshot"]
    assert newest == (outage.acknowledged[-1] if outage.acknowledged else None)
