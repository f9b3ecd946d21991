"""Settings: which source wins, what each value may be, and how a bad one is told."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fused import paths
from fused.config import Settings, load_settings, read_settings, save_settings
from fused.errors import UsageError
from fused.store.spec import StoreSpec


def load(tmp_path: Path, flags: dict[str, object] | None = None, toml: str | bytes = b"", **environ: str) -> Settings:
    file = tmp_path / "config" / "ipfsfs" / "config.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(toml.encode() if isinstance(toml, str) else toml)
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path / "config")} | environ
    return load_settings(str(tmp_path / "data"), flags or {}, environ=environ)


def test_defaults(tmp_path: Path) -> None:
    settings = load(tmp_path)
    assert settings.mountpoint == str(tmp_path / "data")
    assert settings.state_dir == str(tmp_path / ".local/state/ipfsfs/mounts" / settings.owner)
    assert settings.store_dir == str(tmp_path / ".local/share/ipfsfs/store")
    switches = (settings.read_only, settings.allow_other, settings.write_through, settings.replace_stale)
    assert switches == (False, False, False, False)
    assert (settings.on_crash, settings.exclude) == ("auto", ())
    assert (settings.quiet_seconds, settings.interval_seconds) == (2.0, 60.0)


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    toml = "quiet-seconds = 1\ninterval_seconds = 10\nlog-level = 'debug'"
    settings = load(tmp_path, {"quiet_seconds": "3"}, toml, IPFSFS_QUIET_SECONDS="2", IPFSFS_INTERVAL_SECONDS="20")
    assert (settings.quiet_seconds, settings.interval_seconds, settings.log_level) == (3.0, 20.0, "debug")


def test_flag_can_take_back_what_the_file_sets(tmp_path: Path) -> None:
    assert load(tmp_path, {"read_only": False}, "read_only = true").read_only is False
    assert load(tmp_path, {"read_only": None}, "read_only = true").read_only is True


def test_excluded_patterns_of_all_sources_add_up(tmp_path: Path) -> None:
    settings = load(tmp_path, {"exclude": ["c"]}, "exclude = ['a', '!a/keep']", IPFSFS_EXCLUDE="b 1\n\nb:2")
    assert settings.exclude == ("a", "!a/keep", "b 1", "b:2", "c")


def test_mountpoint_is_the_real_path_and_names_the_mount(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "data").symlink_to("real")
    settings = load(tmp_path)
    assert settings.mountpoint == str(tmp_path / "real")
    assert settings.owner == paths.mount_id(str(tmp_path / "real"))


def test_directories_are_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load(tmp_path, {"state_dir": "s/../state", "store_dir": "~/store"})
    assert (settings.state_dir, settings.store_dir) == (str(tmp_path / "state"), "/home/someone/store")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("quiet_seconds", "soon"),
        ("quiet_seconds", "-1"),
        ("quiet_seconds", "nan"),
        ("interval_seconds", "inf"),
        ("on_crash", "panic"),
        ("log_level", "loud"),
        ("store_dir", "a\0b"),
        ("store", "s3"),
        ("store", "kubo="),
        ("store", "embedded=x"),
        ("cache_bytes", "lots"),
        ("cache_bytes", "-1"),
        ("read_seconds", "0"),
        ("keep_snapshots", "-1"),
        ("keep_snapshots", "1.5"),
    ],
)
def test_bad_flag_is_named(tmp_path: Path, key: str, value: str) -> None:
    with pytest.raises(UsageError, match="^--" + key.replace("_", "-") + " must be "):
        load(tmp_path, {key: value})


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("embedded", "embedded"),
        ("kubo", "kubo"),
        ("kubo=http://127.0.0.1:5001", "kubo=http://127.0.0.1:5001"),
        ("kubo=/ip4/127.0.0.1/tcp/5001", "kubo=/ip4/127.0.0.1/tcp/5001"),
        ("ipfs-kit", "ipfs-kit"),
        ("ipfs-kit=repo", "ipfs-kit=/here/repo"),
        ("ipfs-kit=~/.ipfs", "ipfs-kit=/home/someone/.ipfs"),
    ],
)
def test_store_is_one_value_that_means_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, meant: str
) -> None:
    monkeypatch.setattr("os.getcwd", lambda: "/here")
    monkeypatch.setenv("HOME", "/home/someone")
    settings = load(tmp_path, {"store": given})
    assert settings.store == meant
    kind, _, address = meant.partition("=")
    assert (settings.store_spec.kind, settings.store_spec.address) == (kind, address or None)


def test_ipfs_kits_repository_of_the_environment_is_remembered(tmp_path: Path) -> None:
    assert load(tmp_path, {"store": "ipfs-kit"}, IPFS_PATH="/srv/ipfs").store == "ipfs-kit=/srv/ipfs"
    assert load(tmp_path, {"store": "kubo"}, IPFS_PATH="/srv/ipfs").store == "kubo"


def test_everything_about_a_store_gets_to_it(tmp_path: Path) -> None:
    toml = "store = 'kubo'\nauth-file = '/a'\nca_file = '/c'\ncache_bytes = '2G'\nread_seconds = 1.5"
    assert load(tmp_path, {"store_dir": "/d"}, toml).store_spec == StoreSpec(
        "kubo", "/d", None, "/a", "/c", 2 << 30, 1.5
    )


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ("0", 0),
        ("1234", 1234),
        (1 << 40, 1 << 40),
        ("512M", 512 << 20),
        ("2g", 2 << 30),
        ("3 KiB", 3072),
        ("1TB", 1 << 40),
    ],
)
def test_sizes_have_units(tmp_path: Path, given: object, size: int) -> None:
    assert load(tmp_path, {"cache_bytes": given}).cache_bytes == size


def test_all_snapshots_are_kept_in_a_store_of_our_own_and_a_hundred_at_a_node(tmp_path: Path) -> None:
    assert load(tmp_path).snapshots_kept == 0
    assert load(tmp_path, {"store": "kubo"}).snapshots_kept == 100
    assert load(tmp_path, {"store": "kubo", "keep_snapshots": "0"}).snapshots_kept == 0
    assert load(tmp_path, IPFSFS_KEEP_SNAPSHOTS="7").snapshots_kept == 7


def test_password_in_an_address_is_refused_and_not_repeated(tmp_path: Path) -> None:
    for address in ("http://me:secret@host:5001", "me:secret@host"):
        with pytest.raises(UsageError, match="auth-file") as refused:
            load(tmp_path, {"store": f"kubo={address}"})
        assert "secret" not in str(refused.value)
    assert load(tmp_path, {"store": "kubo=/unix/srv/a@b/api.sock"}).store_spec.address == "/unix/srv/a@b/api.sock"


def test_public_is_only_fine_if_that_was_said(tmp_path: Path) -> None:
    assert load(tmp_path).public_is_fine is False
    assert load(tmp_path, {"public_is_fine": True}).public_is_fine is True


def test_bad_variable_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"^IPFSFS_READ_ONLY must be true or false, not 'maybe'$"):
        load(tmp_path, IPFSFS_READ_ONLY="maybe")


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        ("read_only = 'perhaps'", "config.toml: read_only must be true or false"),
        ("quiet_seconds = true", "config.toml: quiet_seconds must be a number of seconds"),
        ("exclude = [1]", "config.toml: exclude must be a list of patterns"),
        ("colour = 'red'", "there is no setting 'colour'"),
        ("mountpoint = '/x'", "there is no setting 'mountpoint'"),
        ("= 1", "config.toml is not valid TOML"),
        (b"\xff", "config.toml is not valid TOML"),
    ],
)
def test_bad_file_is_named_with_what_is_wrong(tmp_path: Path, toml: str | bytes, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load(tmp_path, toml=toml)


def test_saved_settings_are_read_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    flags = {"exclude": ["*.tmp", "a\nb"], "read_only": True, "store": "kubo=http://h:1", "keep_snapshots": 3}
    settings = load(tmp_path, {"state_dir": str(tmp_path / name), "cache_bytes": "1M", **flags})
    (tmp_path / name).mkdir()
    save_settings(settings)
    assert read_settings(settings.state_dir) == settings


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"store": "x"}', '{"store": "kubo=a@b"}', '{"mountpoint": "/x"}', '{"exclude": 7}']
)
def test_damaged_saved_settings_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "settings.json").write_text(content)
    assert read_settings(str(tmp_path)) is None


def test_settings_never_saved_are_none(tmp_path: Path) -> None:
    assert read_settings(str(tmp_path / "nothing")) is None
