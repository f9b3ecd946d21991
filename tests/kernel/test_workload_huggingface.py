"""The real huggingface_hub, with its cache on the mount, downloading from a small hub that the test runs.

Its layout: blobs named by hash, downloaded as `.incomplete` and renamed; snapshots full of relative symbolic
links to them; refs; and lock files, taken by every process that downloads the same file.
"""

from __future__ import annotations

import hashlib
import http.server
import os
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.mountproc import run
from tests.support.workspace import Workspace

REPO = "someone/some-model"
COMMITS = ["1" * 40, "2" * 40]
_RNG = random.Random(5)
WEIGHTS = _RNG.randbytes(7 * 1024 * 1024 + 11)
FILES = {
    COMMITS[0]: {"config.json": b'{"v": 1}', "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n" * 5000},
    COMMITS[1]: {"config.json": b'{"v": 2}', "model.safetensors": WEIGHTS, "sub/vocab.txt": b"a\nb\n" * 5000},
}

DOWNLOAD = """
import sys
from huggingface_hub import hf_hub_download
cache, repo, revision, *files = sys.argv[1:]
for file in files:
    print(hf_hub_download(repo, file, revision=revision, cache_dir=cache))
"""

SCAN = """
import sys
from huggingface_hub import scan_cache_dir, try_to_load_from_cache
info = scan_cache_dir(sys.argv[1])
assert not info.warnings, info.warnings
[repo] = info.repos
print(repo.repo_id, repo.size_on_disk, repo.nb_files, *sorted(r.commit_hash for r in repo.revisions))
if len(sys.argv) > 2:
    strategy = info.delete_revisions(sys.argv[2])
    strategy.execute()
"""


class Hub(http.server.BaseHTTPRequestHandler):
    """Answers /REPO/resolve/REVISION/FILE as the hub does, and /range requests of a resumed download."""

    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        _, _, rest = self.path.partition("/resolve/")
        revision, _, name = rest.partition("/")
        content = FILES.get(COMMITS[1] if revision == "main" else revision, {}).get(name)
        if content is None:
            self.send_error(404)
            return
        start = 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes="):
            start = int(wanted[6:].partition("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMITS[1] if revision == "main" else revision)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if body:
            self.wfile.write(content[start:])

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Iterator[str]:
    """The address of a hub on this machine."""
    pytest.importorskip("huggingface_hub")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def environment(workspace: Workspace, endpoint: str) -> dict[str, str]:
    return {
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(workspace.path / "hf home"),
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1",
    }


def test_huggingface_cache_is_filled_shared_scanned_and_pruned(workspace: Workspace, endpoint: str) -> None:
    env = environment(workspace, endpoint)
    cache = workspace.path / "hub"
    names = list(FILES[COMMITS[0]])
    # Several processes want the same files at once: the locks see to it that one downloads.
    command = [sys.executable, "-c", DOWNLOAD, str(cache), REPO, COMMITS[0], *names]
    downloads = [
        subprocess.Popen(command, env=os.environ | env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    for download in downloads:
        out, err = download.communicate(timeout=100)
        assert download.returncode == 0, err
        for name, path in zip(names, out.splitlines(), strict=True):
            assert Path(path).read_bytes() == FILES[COMMITS[0]][name]
            assert Path(path).is_symlink()
            assert not os.readlink(path).startswith("/")
    run([sys.executable, "-c", DOWNLOAD, cache, REPO, "main", *names], cwd=workspace.path, **env)
    assert list(cache.rglob("*.incomplete")) == []
    model = cache / "models--someone--some-model"
    assert len(list((model / "blobs").iterdir())) == 4  # the weights and the vocabulary are shared
    assert (model / "refs/main").read_text() == COMMITS[1]
    scanned = run([sys.executable, "-c", SCAN, cache], cwd=workspace.path, **env).stdout.split()
    size = sum(len(content) for content in {c for files in FILES.values() for c in files.values()})
    assert scanned == [REPO, str(size), "4", *COMMITS]
    workspace.check()
    run([sys.executable, "-c", SCAN, cache, COMMITS[0]], cwd=workspace.path, **env)
    assert len(list((model / "blobs").iterdir())) == 3
    assert run([sys.executable, "-c", SCAN, cache], cwd=workspace.path, **env).stdout.split()[-1] == COMMITS[1]
    workspace.check()


FILELOCK = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1] + ".lock", timeout=100)
for _ in range(int(sys.argv[2])):
    with lock:
        with open(sys.argv[1], "r+") as counter:
            value = int(counter.read())
            counter.seek(0)
            counter.write(str(value + 1))
            counter.truncate()
"""


def test_filelock_keeps_processes_apart(workspace: Workspace) -> None:
    pytest.importorskip("filelock")
    counter = workspace.path / "counter"
    counter.write_text("0")
    processes = [subprocess.Popen([sys.executable, "-c", FILELOCK, str(counter), "60"]) for _ in range(4)]
    assert [process.wait(timeout=100) for process in processes] == [0] * 4
    assert counter.read_text() == "240"
    workspace.check()
