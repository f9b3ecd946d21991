"""What a mount is to do: one frozen value, validated once.

Defaults < the file config.toml < the environment (IPFSFS_…) < flags. A key has the same name everywhere:
`quiet_seconds` in the file (or `quiet-seconds`), IPFSFS_QUIET_SECONDS, --quiet-seconds.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Literal, cast

from fused import __version__, paths, private
from fused.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

OnCrash = Literal["auto", "plain", "error"]
"""What programs see while a dead daemon is being brought back: the plain directory, or errors.

`auto` is `plain`, unless entries exist only in the store: an incomplete tree that looks complete makes
other programs delete or download again.
"""

ON_CRASH: tuple[OnCrash, ...] = ("auto", "plain", "error")
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything about one mount. All paths are absolute; `mountpoint` is a real path."""

    mountpoint: str
    state_dir: str
    store_dir: str
    owner: str
    """The name under which the mount's pins are kept in the store."""
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
        values = {key: value for key, value in saved.items() if key in known}
        for key, value in values.items():
            if key in _CHECKS and value is not None:
                values[key] = _CHECKS[key](value)
        texts = [values.get(key) for key in ("mountpoint", "state_dir", "store_dir", "owner")]
        if not all(isinstance(text, str) and "\0" not in text for text in texts):
            return None
        return Settings(**values)
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
