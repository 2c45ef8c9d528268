"""The pages build without a warning, and the programs in them are Python."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")])


def programs(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"(?ms)^```python\n(.*?)^```$", page.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    strict = ["-W", "--keep-going", "-q", "-d", "doctrees"]
    command = [sys.executable, "-m", "sphinx", *strict, str(ROOT / "docs"), "html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "html" / "tutorial" / "first-program.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_program_compiles(page: Path) -> None:
    for program in programs(page):
        compile(program, str(page), "exec")


def test_links_between_files_lead_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8")):
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def test_the_first_screen_shows_both_commands_and_the_first_program() -> None:
    """The README's program is the tutorial's, and both commands come before it."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = programs(ROOT / "README.md")[0]
    assert first in programs(ROOT / "docs" / "tutorial" / "first-program.md")
    assert readme.index("./bin/quickstart") < readme.index("./bin/test") < readme.index(first)
    assert readme[: readme.index(first)].count("\n") < 30
