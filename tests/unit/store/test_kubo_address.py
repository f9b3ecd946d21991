"""Addresses of nodes: what is understood, what is refused, and that no secret is shown."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fused.errors import UsageError
from fused.store.kubo.address import USUAL, Place, parse_address


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("http://127.0.0.1:5001", "http://127.0.0.1:5001"),
        ("http://127.0.0.1:5001/", "http://127.0.0.1:5001"),
        ("http://node:5001/api/v0/", "http://node:5001"),
        ("HTTPS://Node.Example/behind/it", "https://node.example/behind/it"),
        ("http://[::1]:5001", "http://[::1]:5001"),
        ("/ip4/127.0.0.1/tcp/5001", "http://127.0.0.1:5001"),
        ("/ip4/10.0.0.1/tcp/5001/http", "http://10.0.0.1:5001"),
        ("/ip6/::1/tcp/5001", "http://[::1]:5001"),
        ("/dns/node.example/tcp/443/https", "https://node.example:443"),
        ("/dns4/node/tcp/443/tls/http", "https://node:443"),
        ("/dns6/node/tcp/05001/", "http://node:5001"),
    ],
)
def test_urls_and_multiaddrs_are_understood(text: str, url: str) -> None:
    address = parse_address(text)
    assert (address.url, address.socket, str(address)) == (url, None, url)


@pytest.mark.parametrize("text", ["/unix/run/kubo.sock", "unix:///run/kubo.sock"])
def test_sockets_are_understood(text: str) -> None:
    address = parse_address(text)
    assert address.socket == "/run/kubo.sock"
    assert str(address) == "unix:///run/kubo.sock"
    assert address.encrypted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5001",
        "localhost:5001",
        "ftp://node",
        "http://",
        "http://node:99999",
        "http://node:x",
        "http://no de",
        "http://node\n",
        "http://node?arg=1",
        "http://node#part",
        "http://[::1",
        "http://a/b@c",
        "/ip4/127.0.0.1",
        "/ip4/127.0.0.1/udp/5001",
        "/ip4/127.0.0.1/tcp/0",
        "/ip4/127.0.0.1/tcp/65536",
        "/ip4/127.0.0.1/tcp/²",
        "/ip4/::1/tcp/5001",
        "/ip4/node/tcp/5001",
        "/ip4/127.0.0.1/tcp/5001/p2p/12D3",
        "/dns/a@b/tcp/5001",
        "/unix/",
        "/unix/run/",
        "unix://relative",
    ],
)
def test_anything_else_is_refused_with_a_sentence(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) > 30


@pytest.mark.parametrize("text", ["http://user:s3cret@node", "https://s3cret@node:5001/x", "http://u:s3cret@[::1]:1"])
def test_a_password_in_a_url_is_refused_and_not_shown(text: str) -> None:
    with pytest.raises(UsageError, match="put them into a file") as caught:
        parse_address(text)
    assert "s3cret" not in str(caught.value)


@given(st.text(max_size=60) | st.from_regex(r"(/(ip4|ip6|dns|unix|tcp|[a-z0-9:.]+)){1,5}", fullmatch=True))
def test_no_text_breaks_it_and_what_is_understood_is_stable(text: str) -> None:
    try:
        address = parse_address(text)
    except UsageError:
        return
    assert parse_address(str(address)) == address


def test_only_what_nobody_can_listen_to_counts_as_encrypted() -> None:
    assert parse_address("https://node").encrypted
    assert parse_address("http://localhost:5001").encrypted
    assert parse_address("http://127.8.9.10:5001").encrypted
    assert not parse_address("http://10.0.0.1:5001").encrypted
    assert not parse_address("http://node:5001").encrypted


def test_without_an_address_the_node_says_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IPFS_PATH", str(tmp_path))
    place = Place(None)
    assert place.find() == parse_address(USUAL)
    (tmp_path / "api").write_text("/ip4/127.0.0.1/tcp/1234\n")
    assert place.find().url == "http://127.0.0.1:1234"
    (tmp_path / "api").write_text("/ip4/127.0.0.1/tcp/4321")
    assert place.find().url == "http://127.0.0.1:4321"
    (tmp_path / "api").write_text("nonsense")
    with pytest.raises(UsageError, match="does not say where the node is"):
        place.find()


def test_without_ipfs_path_it_is_looked_for_at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IPFS_PATH", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".ipfs").mkdir()
    (tmp_path / ".ipfs" / "api").write_text("/ip4/127.0.0.1/tcp/1234")
    assert Place(None).find().url == "http://127.0.0.1:1234"


def test_the_same_place_has_the_same_directory() -> None:
    assert Place("http://127.0.0.1:5001/").key == Place("/ip4/127.0.0.1/tcp/5001").key
    assert Place("http://127.0.0.1:5001").key != Place("http://127.0.0.1:5002").key
