"""The pages build without a warning, the programs in them are Python, and what they list is what there is."""

from __future__ import annotations

import ast
import dataclasses
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import discoro
from discoro.cli.node import CONFIG, UNAVAILABLE, parser
from discoro.options import MeshOptions
from discoro.server import VERBS
from tests.test_layers import FRONT_DOOR, ORDER, OUTSIDE

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *DOCS.rglob("*.md")])


def text_of(page: str) -> str:
    return (DOCS / page).read_text(encoding="utf-8")


def programs(page: Path) -> list[str]:
    """The Python blocks of a page."""
    return re.findall(r"(?ms)^```python\n(.*?)^```$", page.read_text(encoding="utf-8"))


def first_cells(page: str) -> list[str]:
    """What stands first in the rows of a page's tables, between backquotes."""
    return re.findall(r"(?m)^\| `([^`]+)`", text_of(page))


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path: Path) -> None:
    for name in ("sphinx", "myst_parser", "furo"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    strict = ["-W", "--keep-going", "-q", "-d", "doctrees"]
    command = [sys.executable, "-m", "sphinx", *strict, str(DOCS), "html"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / "html" / "tutorial" / "first-program.html").is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_program_compiles(page: Path) -> None:
    for program in programs(page):
        compile(program, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)  # as a notebook allows


def test_links_between_files_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) + re.findall(r"(?m)^```\{literalinclude\} (\S+)", text)
        for target in targets:
            assert "://" in target or (page.parent / target).exists(), f"{page}: {target}"


def test_the_first_screen_shows_both_commands_and_the_first_program() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    first = programs(ROOT / "README.md")[0]
    assert readme.index("./bin/quickstart") < readme.index("./bin/test") < readme.index(first)
    assert readme[: readme.index(first)].count("\n") < 30


def test_every_public_name_is_on_the_page_of_names_or_of_errors() -> None:
    names, errors = text_of("reference/api.md"), text_of("reference/errors.md")
    for name in discoro.__all__:
        kind = getattr(discoro, name)
        if isinstance(kind, type) and issubclass(kind, discoro.DiscoroError):
            assert re.search(rf"\b{name}\b", errors), name
        else:
            assert re.search(rf":: discoro\.{name}\b", names), name


def test_every_error_has_its_row() -> None:
    rows = [*first_cells("reference/errors.md"), "DiscoroError", "Timeout"]
    assert sorted(rows) == sorted(name for name in discoro.__all__ if name.endswith("Error") or name in rows)
    errors = {name for name in discoro.__all__ if isinstance(getattr(discoro, name), type)}
    errors = {name for name in errors if issubclass(getattr(discoro, name), discoro.DiscoroError)}
    assert errors == set(rows)


def test_every_option_of_a_mesh_has_its_row() -> None:
    rows = set(re.findall(r"`(\w+)`", "".join(re.findall(r"(?m)^\| (`[^|]+)\|", text_of("reference/api.md")))))
    assert rows == {field.name for field in dataclasses.fields(MeshOptions)}


def test_every_option_and_exit_status_of_the_node_is_on_its_page() -> None:
    page = text_of("reference/discoro-node.md")
    options = set(re.findall(r"(?<![\w-])--?[a-z][\w-]*", parser().format_help()))
    assert options >= {"-c", "--urp_port", "--json-ready"}  # the help was read
    assert {option for option in options if not re.search(rf"`{option}\b", page)} == set()
    assert {str(status) for status in (0, 1, 2, UNAVAILABLE, CONFIG, 130)} == set(re.findall(r"(?m)^\| (\d+) \|", page))


def test_the_modules_are_listed_in_the_order_of_their_imports() -> None:
    page = text_of("explanation/architecture.md")
    table = page[page.index("## Modules") : page.index("## Thinking")]
    package = Path(discoro.__file__).parent
    there = {path.relative_to(package).parts[0].removesuffix(".py") for path in package.rglob("*.py")}
    wanted = [room for room in ORDER if room in there - {FRONT_DOOR} and (room not in OUTSIDE or room == "cli")]
    assert re.findall(r"(?m)^\| `(\w+)`", table) == wanted


def test_the_tests_that_hold_the_promises_exist() -> None:
    items = re.findall(r"(?ms)^- `([\w/]+\.py)`: (.*?)(?=^-|^$)", text_of("explanation/promises.md"))
    assert len(items) > 20  # the page was read
    for file, names in items:
        source = (ROOT / "tests" / file).read_text(encoding="utf-8")
        for name in re.findall(r"`(test_\w+)`", names):
            assert f"def {name}(" in source, f"{file}: {name}"


def test_the_page_of_the_protocol_has_every_verb() -> None:
    tables = [line for line in text_of("reference/protocol.md").splitlines() if line.startswith("| `")]
    described = {verb for line in tables for verb in re.findall(r"`([a-z]+)`", line.split("|")[1])}
    answered = set(VERBS)
    for module in ("answers", "exchange", "hubs", "introducing", "mesh", "queues", "rci", "services", "transfers"):
        text = (ROOT / "discoro" / f"{module}.py").read_text(encoding="utf-8")
        answered.update(re.findall(r'"([a-z]+)"(?:: (?:self\._on|self\._[a-z]+[,}]|lambda|partial\()|\] = self\._)', text))
    assert {"ask", "reach", "took", "call", "register"} < answered  # so that the pattern finds them
    assert answered <= described, answered - described
