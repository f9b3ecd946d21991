"""What a mount is to do: one frozen value, validated once.

Defaults < the file config.toml < the environment (IPFSFS_…) < flags. A key has the same name everywhere:
`quiet_seconds` in the file (or `quiet-seconds`), IPFSFS_QUIET_SECONDS, --quiet-seconds.
"""

from __future__ import annotations

import json
import math
import os
import re
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, cast

from fused import __version__, paths, private
from fused.errors import UsageError
from fused.store.spec import StoreSpec, parse_store

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OnCrash = Literal["auto", "plain", "error"]
"""What programs see while a dead daemon is being brought back: the plain directory, or errors.

`auto` is `plain`, unless entries exist only in the store: an incomplete tree that looks complete makes
other programs delete or download again.
"""

ON_CRASH: tuple[OnCrash, ...] = ("auto", "plain", "error")
LOG_LEVELS = ("debug", "info", "warning", "error")

NODE_SNAPSHOTS = 100
"""How many snapshots stay pinned at a node, which others use too; a store of our own keeps all."""

_UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything about one mount. All paths are absolute; `mountpoint` is a real path."""

    mountpoint: str
    state_dir: str
    store_dir: str
    owner: str
    """The name under which the mount's pins are kept in the store."""
    store: str = "embedded"
    """`embedded`, `kubo[=ADDRESS]` or `ipfs-kit[=IPFS_PATH]`, as `parse_store` takes it."""
    auth_file: str | None = None
    ca_file: str | None = None
    cache_bytes: int = 1 << 30
    read_seconds: float = 30.0
    """For these four see `StoreSpec`."""
    keep_snapshots: int | None = None
    """So many of the newest stay pinned and listed; 0: all; None: all in a store of our own, else NODE_SNAPSHOTS."""
    public_is_fine: bool = False
    """Files whose names look like those of credentials may go to a node that anybody can ask for them."""
    read_only: bool = False
    allow_other: bool = False
    write_through: bool = False
    on_crash: OnCrash = "auto"
    exclude: tuple[str, ...] = ()
    quiet_seconds: float = 2.0
    """A snapshot is taken when nothing has changed for so long,"""
    interval_seconds: float = 60.0
    """and after so long even if something always changes."""
    log_level: str = "info"
    log_file: str | None = None
    """None: standard error in the foreground, `log` in the state directory in the background."""
    foreground: bool = False
    replace_stale: bool = False
    """A dead mount of ours is on `mountpoint`: detach it right before mounting, not earlier."""

    @property
    def store_spec(self) -> StoreSpec:
        """The store that is meant."""
        kind, address = parse_store(self.store)
        return StoreSpec(
            kind, self.store_dir, address, self.auth_file, self.ca_file, self.cache_bytes, self.read_seconds
        )

    @property
    def snapshots_kept(self) -> int:
        """How many of the newest snapshots stay pinned; 0: all."""
        if self.keep_snapshots is not None:
            return self.keep_snapshots
        return 0 if self.store_spec.kind == "embedded" else NODE_SNAPSHOTS


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    word = value.lower() if isinstance(value, str) else None
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("must be true or false")


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError("must be a number of seconds")
    try:
        number = float(value)
    except (ValueError, OverflowError):  # a whole number of 400 digits
        raise ValueError("must be a number of seconds") from None
    if not math.isfinite(number) or number < 0:
        raise ValueError("must be a number of seconds, 0 or more")
    return number


def _waiting_seconds(value: object) -> float:
    number = _seconds(value)
    if number == 0:
        raise ValueError("must be a number of seconds, more than 0")
    return number


def _count(value: object) -> int:
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 10:
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1_000_000_000:
        return value
    raise ValueError("must be a number, 0 or more")


def _size(value: object) -> int:
    """Bytes; a string may have a unit, K, M, G or T, of 1024 each (also as KiB or KB)."""
    text = str(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else ""
    found = re.fullmatch(r"(\d{1,15}) ?([KMGT]?)(?:i?B)?", text, re.ASCII | re.IGNORECASE)
    if found is None:
        raise ValueError("must be a number of bytes, like 512M or 2G")
    return int(found[1]) << _UNITS[found[2].upper()]


def _store(value: object) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("must be embedded, kubo, kubo=URL, ipfs-kit or ipfs-kit=IPFS_PATH")
    kind, address = parse_store(value)
    if address is not None and "@" in (address.partition("://")[2] or address).partition("/")[0]:
        # Said without the value, which holds a secret.
        raise UsageError("no user and password in a store's address, please: write them to a file, see --auth-file")
    if address is None:
        return kind
    # The daemon's working directory is another one. A multiaddr (/ip4/…, /unix/…) is absolute and stays as it is.
    if kind == "ipfs-kit" or address.startswith(("~", ".")):
        address = os.path.abspath(os.path.expanduser(address))
    return f"{kind}={address}"


def _path(value: object) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError("must be a path")
    return os.path.abspath(os.path.expanduser(value))


def _patterns(value: object) -> tuple[str, ...]:
    if isinstance(value, str):  # one a line in the environment: a pattern may hold any other separator
        return tuple(line for line in value.splitlines() if line.strip())
    if isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value):
        return tuple(value)
    raise ValueError("must be a list of patterns")


def _one_of(words: tuple[str, ...]) -> Callable[[object], str]:
    def check(value: object) -> str:
        word = value.lower() if isinstance(value, str) else None
        if word not in words:
            raise ValueError(f"must be one of {', '.join(words)}")
        return word

    return check


_CHECKS: dict[str, Callable[[object], object]] = {
    "state_dir": _path,
    "store_dir": _path,
    "store": _store,
    "auth_file": _path,
    "ca_file": _path,
    "cache_bytes": _size,
    "read_seconds": _waiting_seconds,
    "keep_snapshots": _count,
    "public_is_fine": _boolean,
    "read_only": _boolean,
    "allow_other": _boolean,
    "write_through": _boolean,
    "on_crash": _one_of(ON_CRASH),
    "exclude": _patterns,
    "quiet_seconds": _seconds,
    "interval_seconds": _seconds,
    "log_level": _one_of(LOG_LEVELS),
    "log_file": _path,
}


def _checked(key: str, value: object, source: str) -> object:
    try:
        return _CHECKS[key](value)
    except ValueError as exc:
        raise UsageError(f"{source} {exc}, not {value!r}") from None


def _from_file(file: str) -> dict[str, object]:
    try:
        with open(file, "rb") as stream:
            if why := private.why_not_believed(os.fstat(stream.fileno())):
                raise UsageError(f"{file} is not used: it {why}")
            content = stream.read()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as exc:
        raise UsageError(f"{file} can't be read: {exc.strerror}") from None
    return parse_config(content, file)


def parse_config(content: bytes, file: str) -> dict[str, object]:
    """The settings in the text of a config file. Raises UsageError for whatever can't be one."""
    import tomllib  # 12 ms, and most people have no such file

    try:
        table = tomllib.loads(content.decode())
    except RecursionError:
        raise UsageError(f"{file} is nested too deeply") from None
    except ValueError as exc:
        raise UsageError(f"{file} is not valid TOML: {exc}") from None
    found: dict[str, object] = {}
    for name, value in table.items():
        key = name.replace("-", "_")
        if key not in _CHECKS:
            raise UsageError(f"{file}: there is no setting {name!r}; there are {', '.join(sorted(_CHECKS))}")
        found[key] = _checked(key, value, f"{file}: {name}")
    return found


def _from_environment(environ: Mapping[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    for key in _CHECKS:
        variable = f"IPFSFS_{key.upper()}"
        if environ.get(variable):
            found[key] = _checked(key, environ[variable], variable)
    return found


def load_settings(
    directory: str,
    flags: Mapping[str, object],
    *,
    foreground: bool = False,
    environ: Mapping[str, str] = os.environ,
) -> Settings:
    """The settings for a mount over `directory`. A flag of None, or an empty list, was not given.

    Excluded patterns of all sources add up; of everything else the strongest source wins.
    Raises UsageError for a value that can't be used, naming where it stands.
    """
    mountpoint = os.path.realpath(directory)
    values: dict[str, object] = {}
    exclude: tuple[str, ...] = ()
    given = {
        key: _checked(key, value, "--" + key.replace("_", "-"))
        for key, value in flags.items()
        if value is not None and value != []
    }
    for source in (_from_file(paths.config_file(environ)), _from_environment(environ), given):
        exclude += cast("tuple[str, ...]", source.pop("exclude", ()))
        values |= source
    values.setdefault("state_dir", paths.default_state_dir(mountpoint, environ))
    values.setdefault("store_dir", paths.default_store_dir(environ))
    if values.get("store") == "ipfs-kit" and environ.get("IPFS_PATH"):
        # Said out loud, so that commands that run later, from elsewhere, mean the same node.
        values["store"] = f"ipfs-kit={_path(environ['IPFS_PATH'])}"
    return Settings(
        mountpoint=mountpoint,
        owner=paths.mount_id(mountpoint),
        exclude=exclude,
        foreground=foreground,
        **values,  # type: ignore[arg-type]  # each was checked by its entry in _CHECKS
    )


def save_settings(settings: Settings) -> None:
    """Remember in the state directory what the mount was made with, for commands that run while it is not."""
    text = json.dumps({"version": __version__, **asdict(settings)}, indent=1)
    beside = os.path.join(settings.state_dir, paths.SETTINGS + ".new")
    with private.create(beside) as stream:
        stream.write(text + "\n")
    os.replace(beside, os.path.join(settings.state_dir, paths.SETTINGS))


def read_settings(state_dir: str) -> Settings | None:
    """What the mount of `state_dir` was last made with; None if that is not known (damaged, say, or not ours)."""
    if not private.is_ours(state_dir):
        return None
    try:
        with open(os.path.join(state_dir, paths.SETTINGS), "rb") as stream:
            return parse_settings(stream.read())
    except OSError:
        return None


def parse_settings(content: bytes) -> Settings | None:
    """What `save_settings` wrote; None for anything else. A value of a kind that it never writes is as bad as none."""
    try:
        saved = json.loads(content)
        known = {field.name for field in fields(Settings)}
        values = {key: value for key, value in saved.items() if key in known and value is not None}
        for key, value in values.items():
            if key in _CHECKS:
                values[key] = _CHECKS[key](value)
        texts = [values.get(key) for key in ("mountpoint", "state_dir", "store_dir", "owner")]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            return None
        return Settings(**values)
    except (ValueError, TypeError, AttributeError, RecursionError, UsageError):
        return None
