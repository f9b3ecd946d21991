"""Which names count as those of credentials."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused.sync.credentials import HARMLESS, PATTERNS, Credentials, find_credentials
from fused.sync.excludes import Excludes

SECRET = """
.env .env.local .ENV .env.production .envrc id_rsa deploy/id_ed25519 server.pem tls/server.key putty.ppk AuthKey_1.p8
bundle.p12 cert.pfx app.keystore truststore.jks passwords.kdbx .netrc _netrc .git-credentials .npmrc .pypirc .pgpass
.aws/credentials home/.aws/credentials .docker/config.json .kube/config gh/hosts.yml .cargo/credentials.toml
.config/gcloud/application_default_credentials.json .config/gcloud/credentials.db huggingface/token token
huggingface/stored_tokens my-service-account.json service_account-prod.json client_secret_123.apps.json
credentials.json secrets.yaml .streamlit/secrets.toml terraform.tfstate .ipfs/config swarm.key wallet.dat
"""

ORDINARY = """
env .environment .env.example .env.sample id_rsa.pub id_ed25519.pub ssl/cacert.pem certifi/cacert.pem ca.pem
fullchain.pem pubkey.pem.txt public.pem tokenizer.json token.py tokens tokenizer_config.json config.json config
credentials.py credentials.md key monkey keyboard.py key4.db.py model.safetensors secrets.py kube/config
docker/config.json aws/credentials notes.txt .gitconfig .ssh.md known_hosts
"""


@pytest.mark.parametrize("name", SECRET.split())
def test_names_of_credentials_are_told(name: str) -> None:
    assert Credentials(b"/srv/data").what(name.encode(), is_dir=False)


@pytest.mark.parametrize("name", ORDINARY.split())
def test_other_names_are_not(name: str) -> None:
    assert Credentials(b"/srv/data").what(name.encode(), is_dir=False) is None


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("/home/a/.aws", "credentials"),
        ("/home/a/.kube", "config"),
        ("/home/a/.ssh", "known_hosts"),
        ("/home/a/.ssh/keys", "work"),
        ("/home/a/.cache/huggingface", "token"),
    ],
)
def test_the_covered_directorys_own_name_counts(root: str, path: str) -> None:
    assert Credentials(root.encode()).what(path.encode(), is_dir=False)


def test_a_directory_of_keys_is_one_and_a_directory_with_a_files_name_is_not() -> None:
    credentials = Credentials(b"/srv/data")
    assert credentials.what(b".ssh", is_dir=True)
    assert credentials.what(b"a/.gnupg", is_dir=True)
    assert credentials.what(b".env", is_dir=True) is None  # a Python environment, often
    assert credentials.what(b"token", is_dir=True) is None
    assert credentials.what(b"\xff\xfe.pem", is_dir=False)


def find(root: Path, *patterns: str) -> list[str]:
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sorted(map(os.fsdecode, find_credentials(fd, os.fsencode(root), Excludes(patterns))))
    finally:
        os.close(fd)


def test_a_directory_is_searched_without_what_is_excluded_and_without_links(tmp_path: Path) -> None:
    for name in ("a/b/.env", "a/id_rsa", "venv/x/certifi/cacert.pem", "venv/x/test.key", ".ssh/config", "a/b/plain"):
        (tmp_path / "root" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "root" / name).write_bytes(b"")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/token").write_bytes(b"")
    (tmp_path / "root/link").symlink_to(tmp_path / "outside")
    (tmp_path / "root/.netrc").symlink_to("nowhere")
    root = tmp_path / "root"
    assert find(root) == [".ssh/", "a/b/.env", "a/id_rsa", "venv/x/test.key"]
    assert find(root, "/venv/", ".env", ".ssh") == ["a/id_rsa"]


def test_every_pattern_is_in_the_documentation() -> None:
    text = (Path(__file__).resolve().parents[3] / "docs/security.md").read_text()
    for word in [*(word for _, line in PATTERNS for word in line.split()), *HARMLESS.split()]:
        assert f"`{word}`" in text, word
