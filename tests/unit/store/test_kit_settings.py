"""Settings that `--store ipfs-kit` can't use are refused, not ignored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fused.errors import UsageError
from fused.store.opening import make_store
from fused.store.spec import StoreSpec


@pytest.mark.parametrize("name", ["auth_file", "ca_file"])
def test_a_secret_or_certificate_is_refused_in_one_sentence(tmp_path: Path, name: str) -> None:
    given: dict[str, Any] = {name: "/some/file"}
    with pytest.raises(UsageError) as refused:
        make_store(StoreSpec("ipfs-kit", str(tmp_path / "store"), str(tmp_path / "repository"), **given))
    sentence = str(refused.value)
    assert f"--store ipfs-kit can't use --{name.replace('_', '-')} (/some/file)" in sentence
    assert "--store kubo" in sentence
    assert "\n" not in sentence
    assert not list(tmp_path.iterdir())
