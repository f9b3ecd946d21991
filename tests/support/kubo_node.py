"""A real Kubo node for tests: its daemon, on loopback only, with a repository of its own and no way to the world.

    with KuboNode(tmp_path / "node") as node:              # init and start; killed at the end, whatever happens
        KuboStore(StoreSpec("kubo", directory, node.url))
        node.rpc("repo/stat")                              # the JSON that it answers
        node.kill(); node.start()                          # the same address and repository as before
        node.clear(); node.start()                         # the same address, an empty repository, another peer id

Options are given to the constructor and hold from the next `start` on: `config` is laid over the repository's
configuration (dotted names: `{"API.Authorizations": {...}}`), `unix=True` has the API on a socket of the file system
(`node.url` is its multiaddr then), `swarm_key=new_swarm_key()` makes it private, `offline=True` gives it no network.
Two nodes see each other after `one.connect(other)`, and never by themselves.

Where a node wants authorization, give `headers={"Authorization": "Bearer …"}`, or the fixture can't talk to it either.

Start it on the main thread: the daemon is told to end with the thread that started it, so that it does not stay behind
when the tests are killed.
"""

from __future__ import annotations

import http.client
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from tests.support.kubo import kubo_binary
from tests.support.poll import wait_until

_START_S = 60.0
_STOP_S = 20.0


class KuboNode:
    """See the module. `url` is what `--store kubo=` takes; `port` is None for a Unix socket."""

    def __init__(
        self,
        path: Path,
        *,
        config: Mapping[str, Any] | None = None,
        unix: bool = False,
        offline: bool = False,
        swarm_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        flags: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
    ) -> None:
        """A node whose repository is made in directory `path` by `start`, if it is not there."""
        self.path = path
        self.config = dict(config or {})
        self.offline = offline
        self.swarm_key = swarm_key
        self.headers = dict(headers or {})
        self.flags = flags
        self._environ = dict(environ or {})
        self.port = None if unix else free_port()
        self.socket = path / "api.sock" if unix else None
        self._log = path.with_name(path.name + ".log")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where the API is, a URL or the multiaddr of a socket."""
        return f"/unix{self.socket}" if self.port is None else f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """The daemon's process id."""
        assert self._process is not None, "it does not run"
        return self._process.pid

    # --- running --------------------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start the daemon and wait until it answers and has written where."""
        assert self._process is None, "it runs already"
        if not (self.path / "config").exists():
            self.run("init", "--profile=test")
        self._configure()
        (self.path / "api").unlink(missing_ok=True)
        if self.socket is not None:
            self.socket.unlink(missing_ok=True)
        flags = ["--migrate=false", *(["--offline"] if self.offline else []), *self.flags]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig=KILL", kubo_binary(), "daemon", *flags],
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            wait_until(self._answers, f"answer of the node; it says: {self.log()[-2000:]}", _START_S)
        except BaseException:
            self.kill()
            raise
        return self

    def _configure(self) -> None:
        file = self.path / "config"
        config = json.loads(file.read_text())
        api = f"/unix{self.socket}" if self.port is None else f"/ip4/127.0.0.1/tcp/{self.port}"
        settings = {"Addresses.API": api, "Addresses.Gateway": [], "Bootstrap": [], **self.config}
        for name, value in settings.items():
            at = config
            *sections, last = name.split(".")
            for section in sections:
                at = at.setdefault(section, {})
            at[last] = value
        file.write_text(json.dumps(config))
        key = self.path / "swarm.key"
        if self.swarm_key is None:
            key.unlink(missing_ok=True)
        else:
            key.write_text(self.swarm_key)

    def _environment(self) -> dict[str, str]:
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(("IPFS_", "LIBP2P_"))}
        return {**inherited, "IPFS_PATH": str(self.path), "IPFS_TELEMETRY": "off", **self._environ}

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, f"the node has ended: {self.log()[-2000:]}"
        try:
            self.rpc("id", timeout=5.0)
        except (OSError, http.client.HTTPException):
            return False
        # Kubo answers before it says where it is: it writes this file when all its listeners serve.
        return (self.path / "api").exists()

    def stop(self) -> None:
        """End the daemon in order. Nothing happens if it does not run."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def kill(self) -> None:
        """End the daemon as a power cut would, as far as the process is concerned."""
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.kill()
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Let the daemon answer nothing, though connections are taken, until `thaw`."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """See `freeze`."""
        os.kill(self.pid, signal.SIGCONT)

    def clear(self) -> None:
        """Kill the daemon and remove its repository; the address stays for the next `start`."""
        self.kill()
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()

    # --- talking to it --------------------------------------------------------------------------------------------

    def rpc(self, command: str, *args: str, timeout: float = 30.0, **options: str) -> Any:
        """What the node answers to a command of its RPC API: the last JSON value, or None if there is none.

        Raises AssertionError with what it said if that is an error.
        """
        query = urllib.parse.urlencode([*(("arg", arg) for arg in args), *options.items()])
        connection = self._connect(timeout)
        try:
            connection.request("POST", f"/api/v0/{command}?{query}", headers=self.headers)
            response = connection.getresponse()
            body = response.read()
        finally:
            connection.close()
        assert response.status == 200, f"{command}: {response.status} {body.decode(errors='replace')}"
        lines = body.strip().splitlines()
        return json.loads(lines[-1]) if lines else None

    def _connect(self, timeout: float) -> http.client.HTTPConnection:
        if self.port is not None:
            return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        end = socket.socket(socket.AF_UNIX)
        end.settimeout(timeout)
        try:
            end.connect(str(self.socket))
        except OSError:
            end.close()
            raise
        connection = http.client.HTTPConnection("localhost", timeout=timeout)
        connection.sock = end
        return connection

    def run(self, *args: str | Path, stdin: bytes = b"", timeout: float | None = None) -> bytes:
        """The standard output of `ipfs ARGS` on this repository, through the daemon if it runs.

        Raises AssertionError if it fails, and subprocess.TimeoutExpired after `timeout` seconds.
        """
        command = [kubo_binary(), *args]
        done = subprocess.run(
            command, input=stdin, capture_output=True, env=self._environment(), check=False, timeout=timeout
        )
        assert done.returncode == 0, f"{args} failed with {done.returncode}: {done.stderr.decode(errors='replace')}"
        return done.stdout

    def log(self) -> str:
        """What the daemon has written so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def peer_id(self) -> str:
        """Its peer id; another after `clear`."""
        return str(json.loads((self.path / "config").read_text())["Identity"]["PeerID"])

    @property
    def swarm_address(self) -> str:
        """A multiaddr that other nodes reach it by, peer id included."""
        return str(next(address for address in self.rpc("id")["Addresses"] if "/127.0.0.1/tcp/" in address))

    def connect(self, other: KuboNode) -> None:
        """Connect to another node's swarm."""
        self.rpc("swarm/connect", other.swarm_address)

    def collect_garbage(self) -> None:
        """Let the node remove everything that is not pinned, as its own GC would. It waits for a pin under way."""
        self.rpc("repo/gc", timeout=180, quiet="true")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def new_swarm_key() -> str:
    """The content of a swarm.key file."""
    return f"/key/swarm/psk/1.0.0/\n/base16/\n{secrets.token_hex(32)}\n"
