"""The ways to a real node: with a secret, through a socket of the file system, through TLS."""

from __future__ import annotations

import logging
import socket
import ssl
import subprocess
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from fused.errors import StoreUnavailable, UsageError
from fused.store.kubo.store import KuboStore
from fused.store.spec import StoreSpec
from tests.support.kubo_node import KuboNode
from tests.support.toy_blocks import random_blocks, raw

pytestmark = pytest.mark.kubo

TOKEN, PASSWORD = "t0ken-of-4-test", "pa55:word"
SECRETS = {"bearer": f"bearer:{TOKEN}", "basic": f"basic:somebody:{PASSWORD}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KuboNode]:
    """A node that wants one of two secrets."""
    authorizations = {name: {"AuthSecret": secret, "AllowedPaths": ["/api/v0"]} for name, secret in SECRETS.items()}
    with KuboNode(
        tmp_path_factory.mktemp("node") / "repo",
        config={"API.Authorizations": authorizations},
        headers={"Authorization": f"Bearer {TOKEN}"},
    ) as node:
        yield node


def secret_file(tmp_path: Path, content: str) -> str:
    file = tmp_path / "secret"
    file.write_text(content)
    file.chmod(0o600)
    return str(file)


async def works(spec: StoreSpec) -> None:
    batch = [*random_blocks(5, 1000), *random_blocks(2, 1 << 20)]
    async with KuboStore(spec) as store:
        await store.put(batch)
        assert await store.get_many([block.cid for block in batch]) == dict(batch)
        assert (await store.node()).error is None


@pytest.mark.parametrize("kind", SECRETS)
async def test_a_secret_opens_the_node(tmp_path: Path, guarded: KuboNode, kind: str) -> None:
    await works(StoreSpec("kubo", str(tmp_path / "s"), guarded.url, secret_file(tmp_path, SECRETS[kind])))


@pytest.mark.parametrize("wrong", ["bearer:other-tok3n", "basic:somebody:other-pa55", None])
async def test_a_wrong_secret_is_said_and_never_shown(
    tmp_path: Path, guarded: KuboNode, wrong: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    file = None if wrong is None else secret_file(tmp_path, wrong)
    async with KuboStore(StoreSpec("kubo", str(tmp_path / "s"), guarded.url, file)) as store:
        with pytest.raises(StoreUnavailable, match=r"refuses us.*API.Authorizations") as caught:
            await store.put([raw(b"x")])
        status = await store.node()
    assert file is None or file in str(caught.value)
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text + str(status)
    for part in ("other-tok3n", "other-pa55", "c29tZWJvZHk"):
        assert part not in shown


async def test_the_right_secret_is_never_shown_either(
    tmp_path: Path, guarded: KuboNode, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with KuboStore(
        StoreSpec("kubo", str(tmp_path / "s"), guarded.url, secret_file(tmp_path, SECRETS["bearer"]), read_seconds=0.1)
    ) as store:
        await store.put([raw(b"x")])
        with pytest.raises(StoreUnavailable) as caught:
            await store.get(raw(b"nobody has this").cid)
        shown = f"{await store.node()} {store.__dict__}"
    assert TOKEN not in shown + caplog.text + "".join(traceback.format_exception(caught.value))


async def test_a_socket_of_the_file_system(tmp_path: Path) -> None:
    with KuboNode(tmp_path / "repo", unix=True) as node:
        await works(StoreSpec("kubo", str(tmp_path / "one"), node.url))
        await works(StoreSpec("kubo", str(tmp_path / "two"), f"unix://{node.socket}"))
        node.kill()
        async with KuboStore(StoreSpec("kubo", str(tmp_path / "one"), node.url)) as store:
            with pytest.raises(StoreUnavailable, match=f"node at unix://{node.socket} can't be reached"):
                await store.put([raw(b"new")])


# --- TLS --------------------------------------------------------------------------------------------------------


def openssl(*args: str) -> None:
    subprocess.run(["openssl", *args], check=True, capture_output=True)


@pytest.fixture
def certificate(tmp_path: Path, need: Callable[..., None]) -> tuple[str, str]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    need("openssl")
    file, key = str(tmp_path / "cert.pem"), str(tmp_path / "key.pem")
    names = ("-addext", "subjectAltName=IP:127.0.0.1", "-addext", "keyUsage=critical,digitalSignature,keyCertSign")
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
            "-subj", "/CN=ipfsfs test", *names, "-keyout", key, "-out", file)  # fmt: skip
    return file, key


@contextmanager
def tls_in_front_of(node: KuboNode, certificate: tuple[str, str]) -> Iterator[str]:
    """The URL of a proxy that takes TLS off and hands bytes on."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    ends: list[socket.socket] = []
    threads: list[threading.Thread] = []

    def start(target: Callable[..., None], *args: object) -> None:
        threads.append(threading.Thread(target=target, args=args))
        threads[-1].start()

    def copy(source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def serve(server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                plain, _ = server.accept()
                ends.append(plain)
                try:
                    outer = context.wrap_socket(plain, server_side=True)
                except OSError:  # the other side does not believe us
                    continue
                inner = socket.create_connection(("127.0.0.1", node.port or 0))
                ends.extend((outer, inner))
                start(copy, outer, inner)
                start(copy, inner, outer)

    with socket.create_server(("127.0.0.1", 0)) as server:
        start(serve, server)
        try:
            yield f"https://127.0.0.1:{server.getsockname()[1]}"
        finally:
            server.shutdown(socket.SHUT_RDWR)
            for end in ends:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()
            for end in ends:
                end.close()


async def test_tls_with_a_certificate_of_our_own(
    tmp_path: Path, guarded: KuboNode, certificate: tuple[str, str]
) -> None:
    secret = secret_file(tmp_path, SECRETS["basic"])
    with tls_in_front_of(guarded, certificate) as url:
        await works(StoreSpec("kubo", str(tmp_path / "s"), url, secret, ca_file=certificate[0]))


async def test_tls_with_a_certificate_that_nobody_knows_is_refused(
    tmp_path: Path, guarded: KuboNode, certificate: tuple[str, str]
) -> None:
    with tls_in_front_of(guarded, certificate) as url:
        async with KuboStore(StoreSpec("kubo", str(tmp_path / "s"), url)) as store:
            with pytest.raises(StoreUnavailable, match=r"is not believed.*a CA of your own can be set"):
                await store.put([raw(b"x")])


def test_a_file_of_certificates_that_is_none_is_refused(tmp_path: Path) -> None:
    for content in (None, b"nonsense"):
        file = tmp_path / "ca.pem"
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(UsageError, match="the file of certificates"):
            KuboStore(StoreSpec("kubo", str(tmp_path), "https://node", ca_file=str(file)))
