"""What code imports: each way to write an import, whether it is run for certain, and files that are no Python."""

from __future__ import annotations

import os
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

from discoro import imports
from discoro.errors import ConfigError
from discoro.imports import imports_of, imports_of_file


def found_in(code: CodeType) -> list[str]:
    """`a:b,c` for `from a import b, c`, with a question mark where it is not certain."""
    found = imports_of(code, "p.q")
    return sorted(each.module + (":" + ",".join(each.names) if each.names else "") + "?" * (not each.certain) for each in found)


def function(source: str) -> CodeType:
    values: dict[str, Any] = {}
    exec(source, values)
    code: CodeType = values["f"].__code__
    return code


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("source", "line", "why"),
    [
        ("def f(:\n", 1, "invalid syntax"),
        ("x = 1\n\n  y = 2\n", 3, "unexpected indent"),
        ("# -*- coding: no-such -*-\n", 0, "unknown encoding"),
        ("x = '\xff'\n".encode("latin-1"), 1, "utf-8"),
        ("from __future__ import braces\n", 1, "not a chance"),
    ],
)
def test_a_file_that_does_not_compile_is_named_with_the_line(tmp_path: Path, source: str | bytes, line: int, why: str) -> None:
    path = tmp_path / "odd.py"
    path.write_bytes(source if isinstance(source, bytes) else source.encode())
    with pytest.raises(ConfigError, match=rf"odd\.py.*{why}.* could not import odd"):
        imports_of_file(path, "odd")
    if line:
        with pytest.raises(ConfigError, match=rf"line {line}\b"):
            imports_of_file(path, "odd")


def test_null_bytes_and_endless_nesting_are_told(tmp_path: Path) -> None:
    for number, source in enumerate((b"x = 1\0", b"x = " + b"(" * 5000 + b")" * 5000)):
        path = tmp_path / f"odd{number}.py"
        path.write_bytes(source)
        with pytest.raises(ConfigError, match=path.name):
            imports_of_file(path, "odd")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the module gone cannot be read: .*gone\.py: No such file"):
        imports_of_file(tmp_path / "gone.py", "gone")


# ------------------------------------------------------------------ what is found

MODULES = [
    ("import a", ["a"]),
    ("import a.b as c, d", ["a.b", "d"]),
    ("from a import b, c as d", ["a:b,c"]),
    ("from a import *", ["a"]),
    ("from . import x\nfrom ..y import z\nfrom .v.w import u", ["p.q.v.w:u", "p.q:x", "p.y:z"]),
    ("from ...... import x", []),  # an error where it is run
    # handlers
    ("try:\n import a\nexcept ImportError:\n a = None", ["a?"]),
    ("try:\n import a\nexcept ModuleNotFoundError as e:\n a = e", ["a?"]),
    ("try:\n import a\nexcept (OSError, ImportError):\n import b", ["a?", "b?"]),
    ("try:\n import a\nexcept Exception:\n pass\nimport c", ["a?", "c"]),
    ("try:\n import a\nexcept:\n import b\nimport c", ["a?", "b?", "c"]),
    ("try:\n import a\nexcept OSError:\n pass\nexcept ImportError:\n pass", ["a?"]),
    ("try:\n import a\nexcept ValueError:\n raise\nimport c", ["a", "c"]),
    ("try:\n import a\nfinally:\n x = 1", ["a"]),
    ("try:\n try:\n  import a\n finally:\n  x = 1\nexcept ImportError:\n pass", ["a?"]),
    ("try:\n try:\n  import a\n except ValueError:\n  x = 1\nexcept ImportError:\n pass\nimport c", ["a?", "c"]),
    ("try:\n import a\nexcept ImportError:\n raise SystemExit\nelse:\n import b\nimport c", ["a?", "b", "c"]),
    # branches
    ("with x:\n import a\nimport b", ["a", "b"]),
    ("if x:\n import a\nelse:\n import b\nimport c", ["a?", "b?", "c"]),
    ("for i in x:\n import a\nimport c", ["a?", "c"]),
    ("while x:\n import a\nimport c", ["a?", "c"]),
    ("match x:\n case 1:\n  import a\nimport c", ["a?", "c"]),
    # what no worker runs
    ("if TYPE_CHECKING:\n import a\nimport b", ["b"]),
    ("import typing as t\nif t.TYPE_CHECKING:\n import a\nelse:\n import b\nx = 1", ["b", "typing"]),
    ("if __name__ == '__main__':\n import a\n def f():\n  import q\nimport b", ["b"]),
    ("if __name__ == 'elsewhere':\n import a", ["a?"]),
    # inside
    ("def f():\n import a", ["a?"]),
    ("class A:\n import a\n def f(self):\n  from . import b", ["a?", "p.q:b?"]),
    # by a text
    ("import importlib\nimportlib.import_module('a.b')", ["a.b?", "importlib"]),
    ("import_module('.b', __package__)", ["p.q.b?"]),
    ("x = __import__('a')", ["a?"]),
    ("x = lambda: __import__('a')", ["a?"]),
    ("if x:\n import_module('a')", ["a?"]),
    ("import_module(name)\nimport_module(1)\nimport_module", []),
    ("'import_module', 'a'", []),
]


@pytest.mark.parametrize(("source", "expected"), MODULES, ids=lambda value: repr(value)[:60])
def test_every_import_is_found(source: str, expected: list[str]) -> None:
    assert found_in(compile(source, "x", "exec")) == expected


FUNCTIONS = [
    ("def f():\n import a\n yield 1\n import b", ["a", "b"]),
    ("async def f():\n async with x:\n  import a\n await y\n import b", ["a", "b"]),
    ("def f(x):\n if x: return 1\n import a", ["a?"]),
    ("async def f(x):\n for i in x:\n  yield i\n import b", ["b"]),
    ("def f(x):\n yield from x\n import b", ["b"]),
    ("async def f():\n try:\n  import a\n except ImportError:\n  pass\n import b", ["a?", "b"]),
    ("def f():\n return [__import__('a') for x in y]", None),  # inlined since 3.12
    ("def f():\n def g():\n  import a\n return g", ["a?"]),
]


@pytest.mark.parametrize(("source", "expected"), FUNCTIONS, ids=lambda value: repr(value)[:60])
def test_every_import_of_a_function_is_found(source: str, expected: list[str] | None) -> None:
    assert found_in(function(source)) == (expected or ["a?"])


# ------------------------------------------------------------------ files


def test_a_module_has_its_package_and_a_package_itself(tmp_path: Path) -> None:
    for name in ("__init__.py", "part.py"):
        (tmp_path / name).write_text("from . import x\n")
    assert imports_of_file(tmp_path / "__init__.py", "shop")[0].module == "shop"
    assert imports_of_file(tmp_path / "part.py", "shop.part")[0].module == "shop"
    assert imports_of_file(tmp_path / "part.py", "shop.back.part")[0].module == "shop.back"


def test_a_file_that_was_edited_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, reads = tmp_path / "one.py", []
    path.write_text("import a\n")
    read = imports._read
    monkeypatch.setattr(imports, "_read", lambda *each: reads.append(each) or read(*each))
    assert imports_of_file(path, "one") == imports_of_file(path, "one")
    assert len(reads) == 1
    path.write_text("import other\n")
    assert [each.module for each in imports_of_file(path, "one")] == ["other"]


def test_the_files_remembered_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imports, "FILES_KEPT", 3)
    monkeypatch.setattr(imports, "_known", {})
    for number in range(10):
        path = tmp_path / f"m{number}.py"
        path.write_text(f"import a{number}\n")
        assert imports_of_file(path, f"m{number}")[0].module == f"a{number}"
    assert len(imports._known) == 3


def test_nothing_is_run(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text(f"import a\nopen({os.fspath(tmp_path / 'ran')!r}, 'w').close()\nraise SystemExit\n")
    assert [each.module for each in imports_of_file(tmp_path / "loud.py", "loud")] == ["a"]
    assert not (tmp_path / "ran").exists()
