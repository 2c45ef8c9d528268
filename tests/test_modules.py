"""Which modules are the user's own, and what goes along with code: local files are found, installed packages named."""

from __future__ import annotations

import enum
import functools
import importlib
import importlib.util
import json
import math
import os
import sys
import types
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

import discoro
from discoro import modules
from discoro.errors import ConfigError, TooLarge
from discoro.modules import Closure, Kind, Referred, closure, is_installed, kind_of, local_tops, requirement_of, travels_as_file

Write = Callable[..., Path]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes files into a directory that modules are imported from; the test leaves none of them loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(sys.modules)

    def write(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path.joinpath(*name.split("__")).with_suffix(".py")
            path = path.with_name("__init__.py") if path.stem == "init" else path
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        importlib.invalidate_caches()
        return tmp_path

    yield write
    for name in set(sys.modules) - set(before):
        del sys.modules[name]
    sys.modules.update(before)


def needed(*names: str, named: tuple[str, ...] = ()) -> Closure:
    return closure(Referred(names=set(names)), named)


def files(found: Closure) -> dict[str, list[str]]:
    return {top: sorted(each) for top, each in found.files.items()}


# ------------------------------------------------------------------ bad input


def test_a_local_module_with_the_name_of_one_of_pythons_own_is_told_to_be_renamed(project: Write) -> None:
    top = project(turtle="x = 1\n", uses="import turtle\n")
    with pytest.raises(ConfigError, match=rf"{top}/turtle\.py has the name of a module of Python's own.*rename"):
        needed("uses")


def test_a_local_module_that_does_not_compile_is_named_with_its_line(project: Write) -> None:
    project(good="import bad\n", bad="x = 1\ndef f(:\n")
    with pytest.raises(ConfigError, match=r"bad\.py, line 2: invalid syntax"):
        needed("good")


def test_a_file_of_a_package_that_nobody_imports_need_not_compile(project: Write) -> None:
    project(shop__init="", shop__template="{{ not python }}\n")
    assert files(needed("shop")) == {"shop": ["shop/__init__.py", "shop/template.py"]}


def test_too_much_is_refused_with_the_largest_paths_and_the_cure(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    top = project(shop__init="")
    (top / "shop" / "many").mkdir()
    for number in range(20):
        (top / "shop" / "many" / f"{number}.png").write_bytes(bytes(300_000))
    for number, size in enumerate((3, 40, 20, 50, 1, 30, 2)):
        with open(top / "shop" / f"{number}.bin", "wb") as file:
            file.truncate(size << 20)
    with pytest.raises(TooLarge) as caught:
        needed("shop")
    text = str(caught.value)
    told = [f"shop/{name}" for name in ("3.bin: 50.0", "1.bin: 40.0", "5.bin: 30.0", "2.bin: 20.0", "many: 5.7")]
    assert [text.index(f"{top}/{each} MiB") for each in told] == sorted(text.index(f"{top}/{each}") for each in told)
    assert "0.bin" not in text and "151.7 MiB in 28 files" in text and "100.0 MiB" in text
    assert ".discoroignore" in text and "`depends`" in text
    assert len(needed("shop", named=("shop",)).files["shop"]) == 28
    (top / "shop" / ".discoroignore").write_text("[1-5].bin\n")
    assert "shop/0.bin" in needed("shop").files["shop"]


def test_too_many_files_are_refused_before_all_are_looked_at(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    top = project(shop__init="", shop__a="", shop__b="")
    monkeypatch.setattr(modules, "MAX_FILES", 2)
    with pytest.raises(ConfigError, match=rf"the package shop in {top}/shop has more than 2 files: .*\.discoroignore"):
        needed("shop")


def test_a_file_that_is_gone_when_it_is_measured_is_named(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project(one="")

    def gone(path: Path) -> Any:
        raise FileNotFoundError(2, "No such file or directory", str(path))

    search = Closure({"one": {"one.py": Path("/gone/one.py")}}, frozenset())
    monkeypatch.setattr(modules, "_Search", lambda: types.SimpleNamespace(todo=[], run=lambda: None, **search._asdict()))
    with pytest.raises(ConfigError, match=r"/gone/one\.py cannot be read: No such file"):
        needed("one")


@pytest.mark.parametrize("name", ["", ".", "a..b", "no_such_module_here", "no_such.module", "é", "with space"])
def test_names_that_are_no_modules_are_of_no_kind(name: str) -> None:
    assert kind_of(name) is Kind.VALUE and not is_installed(name) and not travels_as_file(name)
    assert needed(name).files == {}


# ------------------------------------------------------------------ kinds


def test_everywhere_and_site_packages_are_installed() -> None:
    for module in (sys, json, json.decoder, math, os.path, enum, functools, zmq, pytest, discoro, discoro.modules):
        assert is_installed(module.__name__) and not travels_as_file(module.__name__), module
    for name in ("builtins", "_io", "importlib._bootstrap", "zipimport", "antigravity", "discoro.not_loaded"):
        assert is_installed(name), name
    assert not is_installed(None) and not travels_as_file(None)


def test_ordinary_files_travel_and_what_another_loader_made_does_not(project: Write) -> None:
    project(one="", shop__init="", shop__back__init="", shop__back__shelf="")
    for name in ("one", "shop", "shop.back", "shop.back.shelf"):
        importlib.import_module(name)
        assert travels_as_file(name) and not is_installed(name), name
    for name in ("__main__", __name__, "tests.conftest"):  # pytest rewrites its modules: their files are not what runs
        assert kind_of(name) is Kind.VALUE, name


def test_a_module_without_file_goes_by_value(project: Write, tmp_path: Path) -> None:
    made = types.ModuleType("made_up")
    sys.modules["made_up"] = made
    exec("def f(): pass", vars(made))
    assert kind_of("made_up") is Kind.VALUE
    with zipfile.ZipFile(tmp_path / "bundle.zip", "w") as bundle:
        bundle.writestr("zipped.py", "x = 1\n")
    sys.path.insert(0, str(tmp_path / "bundle.zip"))
    try:
        importlib.import_module("zipped")
    finally:
        sys.path.remove(str(tmp_path / "bundle.zip"))
    assert kind_of("zipped") is Kind.VALUE
    assert needed("zipped", "made_up") == Closure({}, frozenset())


def test_a_file_that_is_gone_goes_by_value(project: Write) -> None:
    top = project(gone="", back="")
    importlib.import_module("gone")
    (top / "gone.py").unlink()
    assert kind_of("gone") is Kind.VALUE


def test_a_module_under_another_name_goes_by_value(project: Write) -> None:
    project(one="")
    sys.modules["alias"] = importlib.import_module("one")
    assert travels_as_file("one") and kind_of("alias") is Kind.VALUE


def test_a_part_that_lies_outside_its_package_goes_by_value(project: Write) -> None:
    """Where its name says, the worker would not find it."""
    top = project(shop__init="__path__.append(__path__[0] + '/../elsewhere')\n", elsewhere__part="", shop__own="")
    importlib.import_module("shop.part")
    importlib.import_module("shop.own")
    assert kind_of("shop.part") is Kind.VALUE and travels_as_file("shop.own")
    assert (top / "elsewhere" / "part.py").is_file()


def test_a_package_may_resolve_its_path(project: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    project(real__shop__init="import os\n__path__[:] = map(os.path.realpath, __path__)\n", real__shop__part="")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.syspath_prepend(str(tmp_path / "link"))
    part = importlib.import_module("shop.part")
    assert part.__file__ == str(tmp_path.resolve() / "real/shop/part.py") and travels_as_file("shop.part")
    assert files(needed("shop.part")) == {"shop": ["shop/__init__.py", "shop/part.py"]}


def test_a_module_loaded_by_hand_from_a_file_travels_under_its_name(project: Write) -> None:
    top = project(**{"odd-name": ""})
    spec = importlib.util.spec_from_file_location("by_hand", top / "odd-name.py")
    assert spec is not None and spec.loader is not None
    sys.modules["by_hand"] = importlib.util.module_from_spec(spec)
    assert needed("by_hand").files == {"by_hand": {"by_hand.py": top / "odd-name.py"}}


def test_directories_without_init_are_packages(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    top = project(space__one__part="", space__two__part="")
    (top / "site-packages" / "space" / "far").mkdir(parents=True)
    (top / "site-packages" / "space" / "far" / "part.py").touch()
    (top / "site-packages" / "lonely").mkdir()
    (top / "site-packages" / "lonely" / "part.py").touch()
    monkeypatch.syspath_prepend(str(top / "site-packages"))
    for name in ("space.one.part", "space.far.part", "lonely.part"):
        importlib.import_module(name)
    assert travels_as_file("space") and travels_as_file("space.one") and travels_as_file("space.one.part")
    assert is_installed("space.far.part") and is_installed("lonely") and is_installed("lonely.part")
    assert files(needed("space.one.part")) == {"space": ["space/one/part.py", "space/two/part.py"]}
    assert needed("lonely.part") == Closure({}, frozenset({"lonely"}))


def test_what_an_installed_package_makes_up_is_installed(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    top = project()
    (top / "site-packages").mkdir()
    made = "sys.modules['six_like.moves'] = types.ModuleType('six_like.moves')\n"
    (top / "site-packages" / "six_like.py").write_text(f"import sys, types\n{made}")
    monkeypatch.syspath_prepend(str(top / "site-packages"))
    importlib.import_module("six_like")
    assert is_installed("six_like.moves")


def test_a_module_loaded_anew_is_looked_at_anew(project: Write) -> None:
    top = project(one="")
    importlib.import_module("one")
    assert travels_as_file("one")
    sys.modules["one"] = types.ModuleType("one")
    assert not travels_as_file("one")
    del sys.modules["one"]
    assert kind_of("one") is Kind.VALUE  # not loaded: nothing of it can be packed
    importlib.import_module("one")
    assert travels_as_file("one") and (top / "one.py").is_file()


def test_a_module_that_waits_to_be_used_is_not_loaded_by_a_look(project: Write) -> None:
    top = project(lazy="raise SystemExit('loaded')\n")
    spec = importlib.util.spec_from_file_location("lazy", top / "lazy.py")
    assert spec is not None and spec.loader is not None
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["lazy"] = module
    spec.loader.exec_module(module)
    assert travels_as_file("lazy")
    assert needed("lazy").files == {"lazy": {"lazy.py": top / "lazy.py"}}


def test_what_is_no_module_in_a_modules_place_is_no_trouble(project: Write) -> None:
    for number, odd in enumerate((None, 5, types.SimpleNamespace(__file__=7), object())):
        sys.modules[f"odd{number}"] = odd  # type: ignore[assignment]
        assert kind_of(f"odd{number}") is Kind.VALUE
        assert needed(f"odd{number}").files == {}
    assert not {"odd0", "odd1", "odd2", "odd3"} & local_tops()


# ------------------------------------------------------------------ what goes along


def test_single_modules_and_whole_packages_are_followed(project: Write) -> None:
    top = project(
        one="from two import x\n",
        two="def f():\n import three.sub\n",
        three__init="",
        three__sub="from . import side\n",
        three__side="from .deep import part\n",
        three__deep__part="import four\n",
        three__unused="import five\n",
        four="import one\n",  # a circle
        five="",
        six="",
    )
    (top / "three" / "data.csv").write_text("1\n")
    found = needed("one")
    assert files(found) == {
        "one": ["one.py"],
        "two": ["two.py"],
        "three": [f"three/{name}" for name in ("__init__.py", "data.csv", "deep/part.py", "side.py", "sub.py", "unused.py")],
        "four": ["four.py"],
    }
    assert found.files["three"]["three/deep/part.py"] == top / "three/deep/part.py"
    assert found.required == frozenset()
    assert not {"one", "two", "three", "four"} & set(sys.modules), "nothing is imported"


def test_packages_above_a_module_are_followed_too(project: Write) -> None:
    project(shop__init="import one\n", shop__back__init="import two\n", shop__back__part="", one="", two="")
    assert set(needed("shop.back.part").files) == {"shop", "one", "two"}


def test_names_taken_out_of_a_package_may_be_modules(project: Write) -> None:
    project(shop__init="", shop__part="import one\n", uses="from shop import part, nothing\n", one="")
    assert set(needed("uses").files) == {"uses", "shop", "one"}


def test_code_objects_are_followed_with_their_package(project: Write) -> None:
    project(shop__init="", shop__part="import one\n", one="")
    code = compile("from . import part\nimport pytest\nimport no_such_package\nimport sys, zmq, discoro.mesh\n", "x", "exec")
    found = closure(Referred(codes={1: (code, "shop")}))
    assert set(found.files) == {"shop", "one"}
    assert found.required == {"pytest", "no_such_package"}


def test_required_is_what_is_imported_for_certain(project: Write) -> None:
    project(
        one="import pytest\ntry:\n import hypothesis\nexcept ImportError:\n import two\ndef f():\n import mypy\n",
        two="import dmypy_json\n",
        late="import one\nimport two\n",
    )
    assert needed("one").required == {"pytest"}
    assert set(needed("one").files) == {"one", "two"}  # local ones go along, wherever they are imported
    assert needed("one", "late").required == {"pytest", "dmypy_json"}


def test_a_module_reached_for_certain_later_is_followed_again(project: Write) -> None:
    project(a="def f():\n import c\nimport b\n", b="import c\n", c="import pytest\n")
    assert needed("a").required == {"pytest"}


def test_a_long_chain_of_imports_is_not_too_deep(project: Write) -> None:
    project(**{f"link{number}": f"import link{number + 1}\n" for number in range(1500)}, link1500="import pytest\n")
    assert len(needed("link0").files) == 1501
    assert needed("link0").required == {"pytest"}


def test_an_extension_module_travels_as_its_file(project: Write) -> None:
    top = project()
    suffix = modules.EXTENSION_SUFFIXES[0]
    (top / f"fast{suffix}").write_bytes(b"\x7fELF")
    (top / "shop").mkdir()
    (top / "shop" / "__init__.py").write_text("from . import quick\n")
    (top / "shop" / f"quick{suffix}").write_bytes(b"\x7fELF")
    importlib.invalidate_caches()
    assert files(needed("fast", "shop")) == {"fast": [f"fast{suffix}"], "shop": ["shop/__init__.py", f"shop/quick{suffix}"]}


def test_what_is_ignored_is_not_followed(project: Write) -> None:
    top = project(shop__init="from . import part\n", shop__part="import one\n", one="")
    (top / "shop" / ".discoroignore").write_text("part.py\n")
    assert set(needed("shop").files) == {"shop"}


def test_an_edited_module_is_read_anew(project: Write) -> None:
    project(one="import two\n", two="", three="")
    assert set(needed("one").files) == {"one", "two"}
    project(one="import three  # instead\n")
    assert set(needed("one").files) == {"one", "three"}


# ------------------------------------------------------------------ referred, marks, requirements


def test_referred_is_true_once_it_has_something() -> None:
    assert not Referred() and not Referred(Referred(names={"a"}), tops=frozenset({"a"}))
    assert Referred(names={"a"})
    referred, code = Referred(), compile("import b", "x", "exec")
    referred.note_code(code, "shop")
    assert referred and list(referred.codes.values()) == [(code, "shop")]


def test_what_every_worker_has_is_not_referred_to(project: Write) -> None:
    project(one="")
    importlib.import_module("one")
    referred = Referred()
    for name in ("one", "json.decoder", "zmq", "discoro.mesh", "__main__", __name__, "pytest", "no_such_module_here"):
        referred.note(name)
    assert referred.names == {"one", "pytest"}


def test_a_loaded_module_in_the_place_of_one_of_pythons_own_is_referred_to(project: Write) -> None:
    """So that the closure tells of it."""
    project(turtle="")
    importlib.import_module("turtle")
    referred = Referred()
    referred.note("turtle")
    with pytest.raises(ConfigError, match="rename"):
        closure(referred)


def test_what_is_known_is_taken_over_once(project: Write) -> None:
    project(one="", two="")
    for name in ("one", "two"):
        importlib.import_module(name)
    code, other = (compile(text, "x", "exec") for text in ("a", "b"))
    first = Referred(names={"one"}, codes={id(code): (code, "")}, tops=frozenset({"one"}))
    second = Referred(first)
    second.add(first)
    assert not second and second.tops == {"one"}
    second.add(Referred(names={"two"}, codes={id(other): (other, "")}))
    first.add(second)
    assert first.names == {"one", "two"} and list(first.codes.values()) == [(code, ""), (other, "")]


def test_local_tops_are_looked_for_when_a_module_was_loaded(project: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    project(one="", shop__init="", shop__part="")
    before = local_tops()
    assert not {"one", "shop"} & before and "tests" in before and not {"json", "pytest", "discoro", __name__} & before
    importlib.import_module("one")
    importlib.import_module("shop.part")
    assert local_tops() == before | {"one", "shop"}
    monkeypatch.setattr(modules, "travels_as_file", lambda name: 1 / 0)
    assert local_tops() == before | {"one", "shop"}  # not looked for again
    del sys.modules["one"]
    monkeypatch.undo()
    assert local_tops() == before | {"shop"}


def test_requirements_name_package_and_version() -> None:
    import _pytest

    assert requirement_of("pytest") == f"pytest=={pytest.__version__}"
    assert requirement_of("_pytest") == f"pytest=={_pytest.__version__}"
    assert requirement_of("zmq") == f"pyzmq=={zmq.__version__}"
    assert requirement_of("no_such_package") == "no_such_package"
