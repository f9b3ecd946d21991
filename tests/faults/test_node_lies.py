"""A node that says what is not so. Nothing is acknowledged, status says why, and the truth sets all of it right."""

from __future__ import annotations

import json

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
WHEN_MET: dict[str, tuple[str, Act, str]] = {
    "wrong bytes": ("block/get", Rewrite(flipped), "sent back|came back|other bytes|match"),
    "always the same CID": ("dag/import", Answer(constant_cid), "block"),
    "an old version": ("version", Rewrite(old_version), r"0\.9\.1"),
    "not a Kubo": ("*", Answer(web_page, 200, "text/html"), "Kubo"),
    "not a Kubo, and 404": ("*", Answer(web_page, 404, "text/html"), r"Kubo|404"),
}


def test_no_lie_is_an_acknowledgement(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE, LOST)
    outage.write("before", 300_000)
    outage.start()
    outage.sync()
    for number, (lie, (pattern, act, sentence)) in enumerate(AT_ANY_TIME.items()):
        outage.proxy.rule(pattern, act)
        outage.write(f"{number}/large", 3 << 20)
        outage.write(f"{number}/small", 10)
        assert_refused(outage, lie, sentence)
        outage.proxy.honest()
        outage.wait_stored()
    outage.assert_kept()


def test_a_node_that_comes_back_as_something_else_gets_nothing(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE, LOST)
    outage.start()
    outage.sync()
    for number, (lie, (pattern, act, sentence)) in enumerate(WHEN_MET.items()):
        outage.proxy.down()
        outage.write(f"{number}", 20_000)
        outage.sync_fails("reached")
        outage.proxy.rule(pattern, act)
        outage.proxy.up()
        assert_refused(outage, lie, sentence)
        outage.proxy.honest()
        outage.wait_stored()
    outage.assert_kept()


def test_what_is_no_node_at_mount_gets_nothing_and_is_waited_for(outage: Outage) -> None:
    outage.mount.expect_log(CANT_STORE)
    outage.proxy.rule("*", Answer(web_page, 200, "text/html"))
    outage.write("file")
    outage.start()
    assert_refused(outage, "not a Kubo", "Kubo")
    assert outage.proxy.count("dag/import") == 0
    outage.proxy.honest()
    outage.wait_stored()
    outage.assert_kept()


def assert_refused(outage: Outage, lie: str, sentence: str) -> None:
    """Asked or not, nothing counts as stored, and it is said why."""
    outage.sync_fails(sentence)
    wait_until(outage.wrong, f"word in status of {lie}")
    status = outage.status()
    assert status["waiting"] is not None, lie
    newest = status["snapshot"] and status["snapshot"]["snapshot"]
    assert newest == (outage.acknowledged[-1] if outage.acknowledged else None), lie
