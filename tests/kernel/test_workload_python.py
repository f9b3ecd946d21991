"""`python -m venv` and `pip install` on the mount, without a network: the packages are made here."""

from __future__ import annotations

import base64
import hashlib
import sys
import tarfile
import zipfile
from pathlib import Path

from tests.support.mountproc import run
from tests.support.workspace import Workspace

MODULES = 300

# A build backend inside the source distribution, so that building it needs nothing from anywhere.
BACKEND = """
import os, zipfile

def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    name = "fromsource-1.0-py3-none-any.whl"
    files = {
        "fromsource.py": open("fromsource.py").read(),
        "fromsource-1.0.dist-info/METADATA": "Metadata-Version: 2.1\\nName: fromsource\\nVersion: 1.0\\n",
        "fromsource-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n",
    }
    files["fromsource-1.0.dist-info/RECORD"] = "".join(f"{file},,\\n" for file in files)
    with zipfile.ZipFile(os.path.join(wheel_directory, name), "w") as wheel:
        for file, text in files.items():
            wheel.writestr(file, text)
    return name
"""


def make_wheel(directory: Path, version: str) -> None:
    """A wheel `manymodules` of some hundred modules, a data file and a console script."""
    info = f"manymodules-{version}.dist-info"
    files = {f"manymodules/m{n}.py": f"value = {n}\nversion = {version!r}\n" for n in range(MODULES)}
    files |= {
        "manymodules/__init__.py": f"version = {version!r}\ndef main():\n    print('manymodules', version)\n",
        "manymodules/data.bin": "x" * 3_000_000,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: manymodules\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/entry_points.txt": "[console_scripts]\nmanymodules = manymodules:main\n",
    }
    record = []
    for name, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record.append(f"{name},sha256={digest},{len(text)}\n")
    files[f"{info}/RECORD"] = "".join(record) + f"{info}/RECORD,,\n"
    with zipfile.ZipFile(directory / f"manymodules-{version}-py3-none-any.whl", "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)


def make_sdist(directory: Path) -> Path:
    """A source distribution `fromsource` with its own build backend."""
    tree = directory / "fromsource-1.0"
    tree.mkdir()
    (tree / "fromsource.py").write_text("where = __file__\n")
    (tree / "backend.py").write_text(BACKEND)
    (tree / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: fromsource\nVersion: 1.0\n")
    (tree / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
        '[project]\nname = "fromsource"\nversion = "1.0"\n'
    )
    with tarfile.open(directory / "fromsource-1.0.tar.gz", "w:gz") as archive:
        archive.add(tree, tree.name)
    return directory / "fromsource-1.0.tar.gz"


def test_venv_pip_install_upgrade_and_uninstall(workspace: Workspace) -> None:
    packages = workspace.outside / "packages"
    packages.mkdir()
    make_wheel(packages, "1.0")
    sdist = make_sdist(packages)
    here = workspace.path
    env = {
        "PIP_CONFIG_FILE": "/dev/null",
        "PIP_NO_INDEX": "1",
        "PIP_FIND_LINKS": str(packages),
        "PIP_CACHE_DIR": str(here / "pip cache"),
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "TMPDIR": str(here),  # builds and unpacks on the mount, too
        "PYTHONPATH": "",
    }
    run([sys.executable, "-m", "venv", here / "env"], cwd=here, **env)
    python = here / "env/bin/python"
    pip = [python, "-m", "pip", "-q"]
    run([*pip, "install", "manymodules==1.0", sdist], cwd=here, **env)
    assert run([here / "env/bin/manymodules"], cwd=here, **env).stdout == "manymodules 1.0\n"
    where = run([python, "-c", "import fromsource; print(fromsource.where)"], cwd=here, **env).stdout
    assert where.startswith(str(here / "env"))
    count = "import importlib; print(sum(importlib.import_module(f'manymodules.m{n}').value for n in range(300)))"
    assert run([python, "-c", count], cwd=here, **env).stdout == f"{sum(range(MODULES))}\n"
    workspace.check()

    make_wheel(packages, "2.0")
    run([*pip, "install", "--upgrade", "manymodules"], cwd=here, **env)
    assert run([here / "env/bin/manymodules"], cwd=here, **env).stdout == "manymodules 2.0\n"
    run([*pip, "check"], cwd=here, **env)
    run([*pip, "uninstall", "-y", "manymodules"], cwd=here, **env)
    assert not (here / "env/bin/manymodules").exists()
    assert list((here / "env").rglob("manymodules*")) == []
    workspace.check()
