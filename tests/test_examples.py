"""The programs in examples/ run as they stand, with a node of this machine only, and say what they should."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"

# Runs an example on two slots of this machine, whatever it asks for itself, and where given with another library to survey.
WITHIN_LIMITS = """
import functools, os, runpy, sys, sysconfig
import discoro

sys.path.insert(0, os.path.dirname(sys.argv[1]))  # as for any script

discoro.run = functools.partial(discoro.run, local=True, local_options=("-c", "2"))
if len(sys.argv) > 2:
    sysconfig.get_path = lambda name: sys.argv[2]
runpy.run_path(sys.argv[1], run_name="__main__")
"""

# Five lines, three levels; the `elif` is no deeper than its `if`.
LONG = """def long_one(x):
    for each in x:
        if each:
            pass
        elif each is None: pass
"""


def run_example(name: str, directory: Path, *library: Path) -> subprocess.CompletedProcess[str]:
    """The ended program; its files and its key lie in `directory`."""
    own = {
        "PYTHONPATH": str(ROOT),
        "DISCORO_KEY_FILE": str(directory / "cluster.key"),
        "DISCORO_DEST_PATH": str(directory / "files"),
    }
    command = [sys.executable, "-c", WITHIN_LIMITS, EXAMPLES / name, *library]
    return subprocess.run(command, cwd=directory, env=os.environ | own, capture_output=True, text=True, timeout=60)


def write_library(directory: Path) -> Path:
    """A small standard library: three files of its own, one that is no Python, and one that was installed."""
    library = directory / "library"
    for folder in ("package", "site-packages"):
        (library / folder).mkdir(parents=True)
    (library / "long.py").write_text(LONG)
    (library / "package" / "short.py").write_text("class Short:\n    def short_one(self): pass\n")
    (library / "empty.py").write_text("")
    (library / "broken.py").write_text("def broken(:\n")
    (library / "site-packages" / "foreign.py").write_text("def foreign():\n" + "    pass\n" * 100)
    return library


@pytest.fixture(scope="module")
def report() -> ModuleType:
    """examples/stdlib_report.py, imported and not run."""
    spec = importlib.util.spec_from_file_location("stdlib_report", EXAMPLES / "stdlib_report.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_a_package_of_ones_own_travels_along_and_a_file_comes_back(tmp_path: Path) -> None:
    done = run_example("own_package.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == (tmp_path / "results" / "table.txt").read_text() == "d 6\nl 3\nf 2\n"


def test_the_first_program_prints_who_answered_and_what(tmp_path: Path) -> None:
    done = run_example("first.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"\S+/\d+/\d+ 49\n", done.stdout)
    assert "Traceback" not in done.stderr


def test_the_first_program_is_the_one_in_the_readme() -> None:
    shown = re.search(r"(?ms)^```python\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert shown is not None
    program = (EXAMPLES / "first.py").read_text(encoding="utf-8")
    assert ast.dump(ast.parse(program)) == ast.dump(ast.parse(shown[1]))


SAYS = {
    "ring": (
        r"5000 times handed on, each time by another of 1000 coroutines on 2 slots\n"
        r"\d+ us each\n5000 in the end, by their own count\n"
    ),
    "ping_pong": r"2000 balls came back, \d+ us each\nnobody there: .*/\d+/\d+\)? (has ended|ended before it replied).*\n",
    "chat": "".join(f"{name}: {line}\n" for name in ("ada", "barbara", "grace") for line in ("goodbye", "hello"))
    + "channel closed\n"
    + "".join(f"{name} heard 6 lines\n" for name in ("ada", "grace", "barbara")),
    "pipeline": "100 blocks of 1 MiB taken, checksum d9a0707b\nthe producer's memory grew by less than 20 MiB\n",
    "supervisor": (
        r"job 3: exception: job 3 is a bad one\njob 6: worker lost: \S+/\d+ was killed by SIGKILL, by somebody.*\n"
        r"done: {0: 0, 1: 1, 2: 4, 4: 16, 5: 25, 7: 49, 8: 64, 9: 81}\n"
    ),
}


@pytest.mark.parametrize("style", ["", "_async"], ids=["generators", "async def"])
@pytest.mark.parametrize("name", SAYS)
def test_a_program_says_the_same_in_both_styles(name: str, style: str, tmp_path: Path) -> None:
    done = run_example(f"{name}{style}.py", tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(SAYS[name], done.stdout), done.stdout
    assert "Traceback" not in done.stderr and "never awaited" not in done.stderr


def test_the_report_of_a_small_library(tmp_path: Path) -> None:
    done = run_example("stdlib_report.py", tmp_path, write_library(tmp_path))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert re.fullmatch(r"4 source files of Python [\d.]+ for 2 slots", lines[0])
    assert lines[1:5] == [" 25%, 1 files", " 50%, 2 files", " 75%, 3 files", "100%, 4 files"]
    functions = [line.split() for line in lines if "_one" in line]
    assert functions == [["5", "long_one", "long.py:1"], ["1", "short_one", "package/short.py:2"]]
    shares = [line.split() for line in lines if re.search(r"\d +\S+/\d+/\d+$", line)]
    assert len(shares) == 2
    assert (sum(int(share[0]) for share in shares), sum(int(share[1]) for share in shares)) == (4, 8)
    assert lines[-2:] == ["2 functions; deepest nesting 3 levels, at long.py:3", "files that could not be parsed: 1"]
    assert "Traceback" not in done.stderr


def test_the_report_leaves_nothing_behind(tmp_path: Path) -> None:
    library = write_library(tmp_path)
    run_example("stdlib_report.py", tmp_path, library)
    assert list((tmp_path / "files").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"cluster.key", "files", "library"}


def test_a_failure_is_one_line_and_a_status(tmp_path: Path) -> None:
    (tmp_path / "files").write_text("no directory")
    done = run_example("stdlib_report.py", tmp_path, write_library(tmp_path))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith("stdlib_report.py: ")


@pytest.mark.parametrize(
    "source",
    [b"def f(:\n", b"x = '\0'\n", b"x = '\xff'\n", b"-" * 100_000 + b"1"],
    ids=["syntax", "null byte", "encoding", "too deep"],
)
def test_a_file_that_cannot_be_parsed_is_counted(report: ModuleType, source: bytes) -> None:
    found = report.look_at("bad.py", source, ["FunctionDef"])
    assert (found.files, found.unparsable, found.functions) == (1, 1, 0)


def test_only_what_the_data_file_names_is_a_level(report: ModuleType) -> None:
    assert report.look_at("long.py", LONG.encode(), ["FunctionDef", "For", "If"]).deepest == (3, "long.py:3")
    assert report.look_at("long.py", LONG.encode(), ["If"]).deepest == (1, "long.py:3")
    assert report.look_at("long.py", LONG.encode(), []).deepest == (0, "nowhere")


def test_findings_add_up(report: ModuleType) -> None:
    first = report.look_at("a.py", LONG.encode(), ["For"])
    both = first + report.look_at("b.py", b"def f(): pass\n" * 20, ["For"])
    assert (both.files, both.lines, both.functions, both.deepest) == (2, 25, 21, (1, "a.py:2"))
    assert len(both.longest) == report.TOP
    assert both.longest[0] == (5, "long_one", "a.py:1")
