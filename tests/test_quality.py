"""The source is clean for ruff and, under `--strict`, for mypy. Settings: pyproject.toml, setup.cfg."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def run_tool(name: str, *arguments: str) -> None:
    """Runs `python -m name` in the checkout; fails with its output, skips where it is not installed."""
    if importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")
    command = [sys.executable, "-m", name, *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"


def test_ruff_finds_nothing() -> None:
    run_tool("ruff", "check", "--quiet", ".", "bin/discoro", "bin/discoro-node")


@pytest.mark.slow
def test_mypy_strict_finds_nothing() -> None:
    run_tool("mypy", "--strict", "discoro")
