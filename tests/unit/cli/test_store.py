"""Which store a command means: its flags, the settings of the mount that it is about, or the user's."""

from __future__ import annotations

import argparse
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from fused import paths
from fused.cli.asking import ask_node
from fused.cli.source import add_source, store_spec
from fused.cli.status import _lines
from fused.config import load_settings, save_settings
from fused.errors import UsageError
from fused.store.spec import StoreSpec


def spec(*flags: str) -> StoreSpec:
    parser = argparse.ArgumentParser()
    add_source(parser)
    return store_spec(parser.parse_args(flags))


@pytest.fixture
def once_mounted(tmp_path: Path) -> Path:
    """A directory that was mounted with a node as its store."""
    directory = tmp_path / "data"
    directory.mkdir()
    flags = {"store": "kubo=http://node:1", "auth_file": "/auth", "cache_bytes": "1M", "store_dir": "/known"}
    settings = load_settings(str(directory), flags)
    os.makedirs(settings.state_dir, 0o700)
    save_settings(settings)
    return directory


def test_the_mounts_own_store_is_meant_in_and_below_it(once_mounted: Path) -> None:
    for place in (once_mounted, once_mounted / "deep/below"):
        meant = spec("--mount", str(place))
        assert (meant.kind, meant.address, meant.auth_file) == ("kubo", "http://node:1", "/auth")
        assert (meant.directory, meant.cache_bytes) == ("/known", 1 << 20)


def test_another_store_is_not_told_the_secret_of_the_mounts(once_mounted: Path) -> None:
    meant = spec("--mount", str(once_mounted), "--store", "kubo=http://other:1")
    assert (meant.address, meant.auth_file, meant.directory) == ("http://other:1", None, "/known")
    assert spec("--mount", str(once_mounted), "--store", "embedded").kind == "embedded"
    assert spec("--mount", str(once_mounted), "--auth-file", "/mine").auth_file == "/mine"


def test_elsewhere_the_users_settings_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spec("--mount", str(tmp_path)) == StoreSpec("embedded", paths.default_store_dir())
    monkeypatch.setenv("IPFSFS_STORE", "kubo=http://mine:1")
    assert spec("--mount", str(tmp_path)).address == "http://mine:1"
    # A directory alone has always meant an embedded store.
    assert spec("--mount", str(tmp_path), "--store-dir", "/old") == StoreSpec("embedded", "/old")


# --- asking a node --------------------------------------------------------------------------------------------


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of something that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = []
        thread = threading.Thread(target=lambda: taken.append(server.accept()), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        with socket.create_connection(server.getsockname()):
            thread.join()
        for connection, _ in taken:
            connection.close()


@pytest.mark.slow
def test_a_node_that_is_down_or_silent_is_told_in_time(silent: str, tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{free.getsockname()[1]}"
    for address, says in ((down, "refused"), (silent, "did not answer within 1 s")):
        status = ask_node(StoreSpec("kubo", str(tmp_path / "store"), address), 1.0 if address == silent else 20.0)
        assert status.error is not None
        assert says in status.error
        assert address in status.error
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_an_address_that_is_none_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        ask_node(StoreSpec("kubo", str(tmp_path), "ftp://there"))


# --- status ---------------------------------------------------------------------------------------------------


def report(**more: object) -> dict[str, object]:
    """The least that a daemon says."""
    count = dict.fromkeys(("total", "dirty", "storing", "stored", "excluded", "skipped"), 0)
    store = {"kind": "embedded", "path": "/s", "healthy": True, "error": None, "blocks": None}
    fixed: dict[str, object] = {
        **{"mountpoint": "/m", "state": "serving", "pid": 1, "version": "1", "options": {}, "files": count},
        **{"bytes": count, "scan": {"running": False}, "skipped": [], "snapshot": None, "store": store, "wrong": []},
        **{"local": {"total_bytes": 1, "free_bytes": 1}, "requests": {}, "gates": [], "waiting": None},
    }
    return json.loads(json.dumps(fixed | more))  # type: ignore[no-any-return]


def lines(**more: object) -> str:
    return "\n".join(_lines(report(**more), lambda _, text: text))


def test_what_waits_is_told_in_words() -> None:
    waiting = {"files": 12, "bytes": 3 << 20, "since": "2020-01-02T03:04:05.678Z", "seconds": 1, "error": "no\nnode"}
    said = lines(waiting=waiting)
    assert "waiting   12 files (3.0 MiB) for the store since 2020-01-0" in said
    assert r": no\nnode" in said
    assert "waiting" not in lines()


def test_the_node_is_told_in_words() -> None:
    store = {
        **{"kind": "kubo", "path": "/s", "address": "http://h:1", "version": "0.42.0", "peer_id": "12D3"},
        **{"healthy": True, "error": None, "reach": "private", "blocks": None},
    }
    assert "store     kubo 0.42.0 at http://h:1, healthy\n          private: " in lines(store=store)
    down = store | {"version": None, "healthy": False, "error": "it is down", "reach": "unknown"}
    assert "store     kubo at http://h:1, NOT healthy: it is down" in lines(store=down)
