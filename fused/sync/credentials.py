"""Names of files that usually hold credentials, which a node that anybody can ask must not get unasked.

Only names are looked at, never contents, so that the answer is quick and anybody can check it against the list. It is
chosen for few false alarms: what is public by nature (certificates, `*.pub`, examples) is left out where the name shows
it, and so are names that many other things have. `docs/security.md` has the list too.
"""

from __future__ import annotations

import fnmatch
import os
import re
from typing import TYPE_CHECKING

from fused.sync.visit import join, open_dir

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fused.sync.excludes import Excludes

PATTERNS: tuple[tuple[str, str], ...] = (
    ("private keys", "id_rsa id_dsa id_ecdsa id_ecdsa_sk id_ed25519 id_ed25519_sk *.pem *.key *.ppk *.p8 swarm.key"),
    ("stores of keys and passwords", "*.p12 *.pfx *.jks *.keystore *.kdbx key4.db logins.json wallet.dat"),
    ("directories of keys", ".ssh/ .gnupg/ .password-store/ .ipfs/keystore/ .ipfs/config"),
    ("settings of a deployment", ".env .env.* .envrc secrets.toml secrets.json secrets.yaml secrets.yml *.tfstate"),
    ("passwords of a client", ".netrc _netrc .git-credentials .pgpass .my.cnf .s3cfg .boto rclone.conf .htpasswd"),
    ("tokens of a package registry", ".npmrc .pypirc .cargo/credentials .cargo/credentials.toml .gem/credentials"),
    ("tokens of a service", "token .token stored_tokens .vault-token kaggle.json gh/hosts.yml credentials.tfrc.json"),
    ("keys of a cloud", ".aws/credentials .azure/msal_token_cache.* .azure/accesstokens.json gcloud/*credentials*"),
    ("keys of a cloud", "*service-account*.json *service_account*.json client_secret*.json credentials.json"),
    ("access to containers", ".docker/config.json .dockercfg .kube/config kubeconfig"),
)
"""What a file is likely to hold, and names: `name`, `directory/name`, or `directory/` for all that is in it.

`*` stands for anything but a slash; case does not count. Why these: each is where a widely used program keeps what
lets anybody act as its user, under a name that little else has.
"""

HARMLESS = (
    ".env.example .env.sample .env.template .env.dist "
    "*cacert*.pem ca.pem ca-*.pem *-ca.pem cert.pem chain.pem fullchain.pem roots.pem *public*.pem *pub.pem public.key"
)
"""Of the names above: examples without a secret, and certificates, some of which are in every Python environment."""


class Credentials:
    """Tells such names. `root` is the absolute path of the covered directory, whose own name may count: `~/.aws`."""

    def __init__(self, root: bytes) -> None:
        self._root = root.strip(b"/")
        words = [(word, what) for what, line in PATTERNS for word in line.split()]
        names = {word: what for word, what in words if "/" not in word}
        self._what = list(names.values())
        self._names = re.compile("|".join(f"({fnmatch.translate(name)})" for name in names))
        self._harmless = re.compile("|".join(map(fnmatch.translate, HARMLESS.split())))
        self._dirs = {word[:-1]: what for word, what in words if word.find("/") == len(word) - 1}
        below = [(word.split("/"), what) for word, what in words if "/" in word.rstrip("/")]
        self._parents = {parts[0] for parts, _ in below}
        self._below = [("/".join(parts).rstrip("/"), what) for parts, what in below]

    def what(self, path: bytes, *, is_dir: bool) -> str | None:
        """What a file, or all in a directory, of this path below the root is likely to be; None if nothing of that.

        Nothing above it was, except perhaps the covered directory itself and what that lies in.
        """
        above, _, last = b"/".join((self._root, path)).rpartition(b"/")
        name = os.fsdecode(last).lower()
        parents = os.fsdecode(above).lower().split("/")
        for parent in parents:
            if parent in self._dirs:
                return self._dirs[parent]
        if is_dir and name in self._dirs:
            return self._dirs[name]
        if parents[-1] in self._parents:
            for pattern, what in self._below:
                if fnmatch.fnmatchcase(f"{parents[-1]}/{name}", pattern):
                    return what
        found = None if is_dir else self._names.match(name)
        if found is None or self._harmless.match(name):
            return None
        return next(what for what, group in zip(self._what, found.groups(), strict=True) if group is not None)


def find_credentials(root_fd: int, root: bytes, excludes: Excludes) -> Iterator[bytes]:
    """Paths below the directory open at `root_fd` whose names are such, without what is excluded.

    Other file systems mounted in it are left out, as they are not stored, and so is what can't be looked at.
    """
    credentials = Credentials(root)
    device = os.fstat(root_fd).st_dev
    stack = [b""]
    while stack:
        directory = stack.pop()
        try:
            fd = _open_path(directory, root_fd)
        except OSError:
            continue
        try:
            if os.fstat(fd).st_dev == device:
                for entry in sorted(os.scandir(fd), key=lambda entry: entry.name):
                    path, is_dir = join(directory, os.fsencode(entry.name)), entry.is_dir(follow_symlinks=False)
                    if not (is_dir or entry.is_file(follow_symlinks=False)) or excludes.match(path, is_dir=is_dir):
                        continue
                    if credentials.what(path, is_dir=is_dir):
                        yield path + b"/" * is_dir
                    elif is_dir:
                        stack.append(path)
        except OSError:
            continue
        finally:
            os.close(fd)


def _open_path(path: bytes, root_fd: int) -> int:
    """A descriptor on the directory, found name by name without following links."""
    fd = open_dir(b".", root_fd)
    for name in path.split(b"/") if path else ():
        try:
            below = open_dir(name, fd)
        finally:
            os.close(fd)
        fd = below
    return fd
