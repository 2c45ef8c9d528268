"""What `depends` takes, mistakes first; and all that goes along with a computation."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from discoro import depends
from discoro.depends import Depends, gathered, importable, merge, taken
from discoro.errors import ConfigError
from discoro.modules import Referred


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory that modules are imported from; the test leaves none of them loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def grow(top: Path, **files: str) -> Path:
    for name, text in files.items():
        path = top / (name.replace("__", "/").replace("/init", "/__init__") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    importlib.invalidate_caches()
    return top


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize("junk", [None, 5, 1.5, b"data.txt", object(), [], {"a": 1}])
def test_what_is_none_of_these_is_named(junk: Any) -> None:
    with pytest.raises(ConfigError, match="depends takes functions, classes, modules and paths; this is") as caught:
        taken([junk])
    assert repr(junk)[:30] in str(caught.value)


@pytest.mark.parametrize("text", ["data.txt", Path("data.txt")])
def test_a_path_in_place_of_a_list_is_not_taken_letter_by_letter(text: Any) -> None:
    with pytest.raises(ConfigError, match=r"depends is a list .* write \["):
        taken(text)


def test_paths_that_lead_nowhere_are_named_with_where_it_was_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=rf"no file {tmp_path}/missing\.txt .*current directory is {tmp_path}"):
        taken(["missing.txt"])
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match=r"pipe .* neither a file nor a directory"):
        taken([tmp_path / "pipe"])


def test_two_files_of_one_name_are_named_both(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "data.txt").touch()
    (tmp_path / "link").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"a/data\.txt and .*b/data\.txt would both be data\.txt"):
        taken([tmp_path / "a/data.txt", tmp_path / "b/data.txt"])
    same = [tmp_path / "a/data.txt", str(tmp_path / "a/data.txt"), tmp_path / "link/data.txt"]
    assert taken(same).files == {"data.txt": tmp_path / "a/data.txt"}
    with pytest.raises(ConfigError, match="would both be"):
        merge({"x": tmp_path / "gone"}, [("x", tmp_path / "a/data.txt")])


def test_too_many_files_are_refused_before_all_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(depends, "MAX_FILES", 3)
    for number in range(4):
        (tmp_path / f"{number}.txt").touch()
    os.mkfifo(tmp_path / "z-pipe")
    with pytest.raises(ConfigError, match="more than 3 files"):
        taken([tmp_path])


def test_a_module_without_a_file_is_named(project: Path) -> None:
    with pytest.raises(ConfigError, match="module made_up has no file"):
        taken([types.ModuleType("made_up")])
    (project / "space").mkdir()
    with pytest.raises(ConfigError, match="module space has no file"):
        taken([importlib.import_module("space")])
    grow(project, gone="")
    module = importlib.import_module("gone")
    (project / "gone.py").unlink()
    with pytest.raises(ConfigError, match="module gone has no file"):
        taken([module])


# ------------------------------------------------------------------ what is taken


def test_what_every_worker_has_brings_nothing() -> None:
    assert taken([sys, itertools, json, json.decoder, os.path, zmq]).files == {}
    assert taken([]) == Depends({}, [], frozenset())


def test_functions_and_classes_are_code() -> None:
    code = [len, json.dumps, dict, Path, Path.touch, grow]
    assert taken(code) == Depends({}, code, frozenset())


def test_modules_packages_files_and_directories(project: Path) -> None:
    grow(project, one="", shop__init="", shop__back__part="", space__part="")
    (project / "shop" / "data.csv").touch()
    (project / "shop" / "__pycache__").mkdir(exist_ok=True)
    (project / "files" / "deep").mkdir(parents=True)
    (project / "files" / "deep" / "x.txt").touch()
    one, part, space = (importlib.import_module(name) for name in ("one", "shop.back.part", "space.part"))
    found = taken([one, part, space, project / "files", project / "files/deep/x.txt", grow])
    names = ["one.py", "shop/__init__.py", "shop/data.csv", "shop/back/part.py", "space/part.py", "files/deep/x.txt", "x.txt"]
    assert list(found.files) == names
    assert found.modules == {"one", "shop.back.part", "space.part"} and found.code == [grow]


def test_a_directory_has_its_name_wherever_it_is_named_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.txt").touch()
    monkeypatch.chdir(tmp_path / "data")
    for named in (".", "../data", tmp_path / "data", f"{tmp_path}/data/"):
        assert list(taken([named]).files) == ["data/a.txt"]


def test_what_can_be_imported_where_files_lie() -> None:
    names = ["one.py", "shop/data.csv", "shop/part.py", "data/x.csv", "notes.txt", "py"]
    assert importable(names) == {"one", "shop"}
    assert importable([f"fast{depends.EXTENSION_SUFFIXES[0]}"]) == {"fast"}


# ------------------------------------------------------------------ what goes along


def test_what_modules_in_depends_import_goes_along(project: Path) -> None:
    grow(project, one="import two\nimport pytest\n", two="", three="import four\n", four="")
    found = gathered(taken([importlib.import_module("one")]), Referred(names={"three"}))
    assert set(found.files) == {"one.py", "two.py", "three.py", "four.py"}
    assert found.required == {"pytest"}


def test_a_package_in_depends_may_be_of_any_size(project: Path) -> None:
    grow(project, shop__init="", one="import shop\n")
    with open(project / "shop" / "model.bin", "wb") as file:
        file.truncate(200 << 20)
    with pytest.raises(Exception, match="more than the 100.0 MiB"):
        gathered(taken([]), Referred(names={"one"}))
    for named in (importlib.import_module("shop"), project / "shop"):
        found = gathered(taken([named]), Referred(names={"one"}))
        assert set(found.files) == {"one.py", "shop/__init__.py", "shop/model.bin"}


def test_what_depends_brings_is_not_required(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installed package that the worker lacks can be sent; so can a module that only the worker can import."""
    grow(project / "site-packages", helpful="")
    (project / "lib").mkdir()
    (project / "lib" / "elsewhere.py").touch()
    monkeypatch.syspath_prepend(str(project / "site-packages"))
    helpful = importlib.import_module("helpful")
    referred = Referred(names={"helpful"}, codes={1: (compile("import elsewhere, pytest", "x", "exec"), "")})
    assert gathered(taken([]), referred).required == {"helpful", "elsewhere", "pytest"}
    found = gathered(taken([helpful, project / "lib" / "elsewhere.py"]), referred)
    assert found.required == {"pytest"} and set(found.files) == {"helpful.py", "elsewhere.py"}


def test_a_file_in_depends_in_the_way_of_a_local_module_is_told(project: Path) -> None:
    grow(project, one="", elsewhere__one="")
    with pytest.raises(ConfigError, match=r"elsewhere/one\.py and .*one\.py would both be one\.py"):
        gathered(taken([project / "elsewhere" / "one.py"]), Referred(names={"one"}))


def test_what_was_gathered_changes_nothing_in_depends(project: Path) -> None:
    grow(project, one="")
    named = taken([])
    assert gathered(named, Referred(names={"one"})).files and not named.files
