"""The wheel and the sdist hold what they should and nothing else, and install into a clean environment.

Everything is built from a copy of the checkout, since builds leave files behind. Needs a package index; slow.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
INSTALLED = {"discoro", "pyzmq", "msgpack", "dill", "zeroconf", "ifaddr"}

pytestmark = pytest.mark.slow


def run(*command: str | Path, cwd: Path) -> str:
    """Runs a command outside the checkout, leaving no compiled files; what it printed."""
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@dataclass(frozen=True)
class Built:
    """The two files that are handed out, and what each holds (paths below its top folder)."""

    wheel: Path
    sdist: Path

    def wheel_names(self) -> set[str]:
        with zipfile.ZipFile(self.wheel) as archive:
            return set(archive.namelist())

    def sdist_names(self) -> set[str]:
        with tarfile.open(self.sdist) as archive:
            return {member.name.partition("/")[2] for member in archive if member.isfile()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Builds the sdist from a copy of the checkout, and the wheel from that sdist."""
    if importlib.util.find_spec("build") is None:
        pytest.skip("build is not installed")
    folder = tmp_path_factory.mktemp("packaging")
    ignored = shutil.ignore_patterns(".discoro", ".git", "__pycache__", "*.egg-info", "build", "dist")
    copy = Path(shutil.copytree(ROOT, folder / "copy", ignore=ignored))
    run(sys.executable, "-m", "build", "--outdir", folder / "dist", copy, cwd=folder)
    (wheel,), (sdist,) = (folder / "dist").glob("*.whl"), (folder / "dist").glob("*.tar.gz")
    return Built(wheel, sdist)


def sources() -> set[str]:
    """The package's files as the checkout has them."""
    files = (path for path in (ROOT / "discoro").rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {path.relative_to(ROOT).as_posix() for path in files}


def test_the_wheel_holds_the_package_and_nothing_else(built: Built) -> None:
    names = built.wheel_names()
    package = {name for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert package == sources()
    assert "discoro/py.typed" in package
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)
    assert built.wheel.name.endswith("-py3-none-any.whl")


def test_the_sdist_holds_the_package_and_its_documents(built: Built) -> None:
    names = built.sdist_names()
    beside = {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "setup.cfg", "docs/index.md"}
    assert sources() | beside <= names
    folders = {name.partition("/")[0] for name in names if "/" in name}
    assert folders == {"discoro", "discoro.egg-info", "docs", "examples"}


def test_the_licence_is_named_in_the_metadata(built: Built) -> None:
    with zipfile.ZipFile(built.wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = archive.read(name).decode()
    assert "\nLicense-Expression: MIT\n" in metadata
    assert "\nRequires-Python: >=3.11\n" in metadata


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_five_packages_come_with_it_and_it_starts(built: Built, tmp_path: Path, kind: str) -> None:
    python = tmp_path / "venv" / "bin" / "python"
    venv.create(tmp_path / "venv", symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    run(*pip, "install", "--no-compile", getattr(built, kind), cwd=tmp_path)
    listed = run(*pip, "list", "--format=freeze", cwd=tmp_path)
    assert {line.partition("==")[0].lower() for line in listed.splitlines()} == INSTALLED
    where = run(python, "-c", "import discoro; print(discoro.__file__)", cwd=tmp_path)
    assert Path(where.strip()).is_relative_to(tmp_path / "venv")
    assert "--json-ready" in run(python.with_name("discoro-node"), "--help", cwd=tmp_path)
