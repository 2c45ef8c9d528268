"""`bin/test` where the machine lacks something: one line says what. And the closing line of every run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

OLD = "exit 1"
# It answers the question for its version, and has no modules.
BARE = "case $2 in *version_info*) exit 0;; esac; exit 1"


@pytest.mark.parametrize(
    ("pythons", "said"),
    [
        ({}, "Python 3.11 or newer is needed, and none was found"),
        ({"python3": OLD}, "Python 3.11 or newer is needed, and python3 is older"),
        ({"python3": OLD, "python3.12": BARE}, "python3.12 lacks the modules venv and ensurepip"),
    ],
)
def test_what_is_missing_is_said_in_one_line(tmp_path: Path, pythons: dict[str, str], said: str) -> None:
    path = tmp_path / "path"
    path.mkdir()
    for tool in ("sh", "dirname"):
        (path / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
    for name, body in pythons.items():
        (path / name).write_text(f"#!/bin/sh\n{body}\n")
        (path / name).chmod(0o755)
    command, bare = [ROOT / "bin" / "test"], {"PATH": str(path)}
    done = subprocess.run(command, env=bare, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 69
    assert done.stdout == ""
    assert done.stderr.startswith(f"bin/test: {said}") and done.stderr.count("\n") == 1


SUITE = """
import pytest
def test_good(): pass
def test_bad(): assert False
@pytest.mark.parametrize("n", [1, 2])
def test_nets(n): pytest.skip("needs network namespaces")
@pytest.mark.skip(reason="only one Python")
def test_pythons(): pass
"""


def run_suite(folder: Path, *arguments: str) -> list[str]:
    """The lines that pytest prints for SUITE under this project's conftest.py."""
    (folder / "tests").mkdir()
    shutil.copy(ROOT / "tests" / "conftest.py", folder / "tests")
    (folder / "tests" / "test_it.py").write_text(SUITE)
    (folder / "pytest.ini").write_text("[pytest]\n")
    without = ["-p", "no:cacheprovider", "-p", "no:hypothesispytest"]
    command = [sys.executable, "-m", "pytest", *without, *arguments]
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=60)
    return done.stdout.splitlines()


def test_the_last_line_counts_the_skipped_by_reason(tmp_path: Path) -> None:
    lines = run_suite(tmp_path)
    assert lines[-1] == "1 passed, 1 failed, 3 skipped (2: needs network namespaces; 1: only one Python)"
    assert "1 failed, 1 passed, 3 skipped" in lines[-2]


def test_what_was_left_out_is_counted_too(tmp_path: Path) -> None:
    assert run_suite(tmp_path, "-k", "good")[-1] == "1 passed, 0 failed, 0 skipped, 4 deselected"


def test_listing_the_tests_counts_nothing(tmp_path: Path) -> None:
    assert "passed" not in "\n".join(run_suite(tmp_path, "--collect-only"))
