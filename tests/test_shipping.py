"""Code of local modules goes by name, beside their files: between real interpreters, as client and worker are.

A client in its project packs; the files that the closure names are put into the worker's directory, and nothing else is; the
worker builds. What goes by value is in test_payload.py.
"""

from __future__ import annotations

import importlib
import math
import pickle
import shutil
import subprocess
import sys
import textwrap
import threading
import timeit
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from discoro import modules, payload, shipping
from discoro.building import Namespace
from discoro.errors import UnpackError
from discoro.modules import Referred, closure
from discoro.shipping import note_files

ROOT = Path(__file__).resolve().parent.parent

# ------------------------------------------------------------------ between interpreters

PROJECT = {
    "jobs.py": """
        from __future__ import annotations
        import collections, contextlib, dataclasses, enum, functools, threading, typing
        from pathlib import Path
        import tools
        from shop import shelf

        T = typing.TypeVar("T")
        UserId = typing.NewType("UserId", int)
        Old = collections.namedtuple("Old", "x y")
        guard = threading.Lock()                       # cannot be packed, and need not be
        count = 0
        def counts():
            global count
            count += 1
            return count
        def recount(): return count
        def makes_counter(): return lambda n: counts() * n
        counter = makes_counter()
        def with_guard():
            with guard: return "held"
        def adder(n): return lambda x: x + n + tools.FACTOR
        def pure(n): return lambda x: x + n
        def compute(n): return tools.scaled(n) + len(shelf.rows())
        @functools.lru_cache(maxsize=None)
        def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
        @contextlib.contextmanager
        def managed(): yield count
        @tools.logged
        def decorated(n): return n
        @dataclasses.dataclass
        class Point:
            x: int
            inner: Point | None = None
            def moved(self): return Point(self.x + 1, self)
        def hints(): return sorted(typing.get_type_hints(Point))
        class Color(enum.Enum):
            RED = 1
        class Pair(typing.NamedTuple):
            a: int
        class Base:
            def hello(self): return "base"
        class Child(Base):
            def hello(self): return "child of " + super().hello()
        def local_class():
            class Local(Base):
                def of(self): return recount()
            return Local
        Local = local_class()
        class Alone:
            def __reduce__(self): return "ALONE"
        ALONE = Alone()
        def file_there(): return Path(__file__).name, Path(__file__).parent == Path.cwd()
        def late():
            import late_one
            return late_one.VALUE
    """,
    "tools.py": """
        import functools
        FACTOR = 10
        def scaled(n): return n * FACTOR
        def logged(function):
            @functools.wraps(function)
            def wrapper(*args): return ("logged", function(*args))
            return wrapper
    """,
    "late_one.py": "from shop.back import deep\nVALUE = deep.VALUE\n",
    "main_only.py": "VALUE = 'main only'\n",
    "dynamic.py": "VALUE = 'dynamic'\n",
    "unused.py": "raise SystemExit\n",
    "shop/__init__.py": "",
    "shop/shelf.py": """
        from importlib import resources
        from .back import deep
        def rows(): return resources.files("shop").joinpath("data.csv").read_text().split()
    """,
    "shop/data.csv": "1 2 3\n",
    "shop/back/__init__.py": "",
    "shop/back/deep.py": "VALUE = 'deep'\n",
    "beside.txt": "beside\n",
}

CLIENT = """
import pickle, sys
from pathlib import Path
from discoro import payload
from discoro.modules import Referred, closure
import jobs, tools, shop.shelf
from jobs import Point, compute, Color, Pair, T
import main_only as other

def uses_all(n): return [compute(n), tools.FACTOR, shop.shelf.rows(), jobs.counts(), jobs.recount(), other.VALUE]
def class_of_module(): return [Point(1).moved().x, Color(1) is Color.RED, Pair(2).a, jobs.Child().hello(), jobs.hints()]
class Mine(jobs.Base):
    def hello(self): return "mine of " + super().hello()
def own_class(): return Mine().hello()
def same_globals():
    found = [jobs.counts(), jobs.counter(10), jobs.recount()]
    jobs.count = 50
    found += [jobs.counter(1), jobs.makes_counter()(1)]
    return [*found, sys.modules["jobs"] is jobs, jobs.counts.__globals__ is vars(jobs)]
def pickles(): return pickle.loads(pickle.dumps(Point(3))).x
def dynamic():
    import importlib
    return importlib.import_module("dynamic").VALUE
def my_file(): return Path(__file__).parent.joinpath("beside.txt").read_text().strip()
nested, counter, adder, Local = jobs.pure(1), jobs.makes_counter(), jobs.adder(2), jobs.local_class()
def uses_local():
    return [Local().of(), Local().hello(), isinstance(Local(), jobs.Base), jobs.recount.__globals__ is Local.of.__globals__]
def uses_nested(): return [nested(1), counter(2), adder(1), jobs.recount()]
def typed() -> T: return T.__module__
def alone(): return jobs.ALONE is single
single = jobs.ALONE

CODE = {
    "all of it": ([uses_all], (2,)), "by name": ([jobs.compute], (2,)), "classes": ([class_of_module], ()),
    "own class": ([own_class], ()), "globals": ([same_globals], ()), "pickle": ([pickles], ()), "dynamic": ([dynamic], ()),
    "late": ([jobs.late], ()), "file": ([jobs.file_there], ()), "my file": ([my_file], ()), "nested": ([uses_nested], ()),
    "nested class": ([uses_local], ()), "class itself": ([Local], ()), "lock": ([jobs.with_guard], ()),
    "lru_cache": ([jobs.fib], (20,)), "decorated": ([jobs.decorated], (1,)), "type variable": ([typed], ()),
    "singleton": ([alone], ()), "lambda": ([lambda: other.VALUE], ()), "bound": ([Point(4).moved], ()),
    "closure": ([adder], (1,)),
}
ARGUMENTS = {
    "instance": Point(1, Point(2)), "class": Point, "function": jobs.compute, "closure": jobs.pure(5), "over globals": adder,
    "own": Mine(), "nested class": Local(), "enum": [Color.RED], "named": {"jobs": 1}, "nothing": [1, "a", {"b": 2.0}],
    "lambda": lambda: __import__("main_only").VALUE, "package": shop.shelf.rows, "singleton": jobs.ALONE,
}

def packed(pack, what):
    referred = Referred()
    parts = pack(what, referred)
    found = closure(referred)
    files = {name: str(path) for each in found.files.values() for name, path in each.items()}
    return parts, files, sorted(found.files), sorted(found.required)

if __name__ == "__main__":
    sent = {
        "code": {name: (packed(payload.pack_code, objects), args) for name, (objects, args) in CODE.items()},
        "arguments": {name: packed(payload.pack, value) for name, value in ARGUMENTS.items()},
    }
    pickle.dump(sent, sys.stdout.buffer)
    sys.stdout.flush()
    answer = payload.unpack(pickle.load(sys.stdin.buffer))
    point, function, made, local = answer
    print([type(point) is Point, function is jobs.compute, made(1), made.__globals__ is vars(jobs), type(local) is Local])
"""

WORKER = """
import pickle, sys
from pathlib import Path
from discoro import payload
sys.path.insert(0, "")
received, known, what = pickle.load(sys.stdin.buffer)
def namespace(files=()): return payload.Namespace("n", Path.cwd(), files)
def outcome(make):
    try: return repr(make())
    except BaseException as error: return f"failed: {type(error).__name__}: {error}"
if what == "code":
    parts, args = received
    results = outcome(lambda: payload.unpack_code(parts, namespace())[0](*args))
elif what == "message":
    found = payload.unpack(received, namespace(known))
    results = outcome(lambda: found(1) if hasattr(found, "__code__") else found), "jobs" in sys.modules
else:
    import jobs
    results = payload.pack([jobs.Point(7), jobs.compute, jobs.adder(5), payload.unpack(received, namespace(known))])
sys.stdout.buffer.write(pickle.dumps(results))
"""


def interpreter(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    """One of its own, which can import discoro, and nothing local but what lies in its folder."""
    environment, pipe = {"PYTHONPATH": str(ROOT), "PATH": ""}, subprocess.PIPE
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)


def worker(folder: Path, received: Any, known: list[str], what: str) -> Any:
    with interpreter(folder, "-c", WORKER) as process:
        output, trouble = process.communicate(pickle.dumps((received, known, what)), timeout=60)
    assert process.returncode == 0, trouble.decode()
    return pickle.loads(output)


def put(files: dict[str, str], folder: Path) -> Path:
    folder.mkdir()
    for name, path in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / name)
    return folder


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(textwrap.dedent(text))


class Client:
    """What the client sent, and the process that waits for an answer."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self.process = process
        try:
            self.sent = pickle.load(process.stdout)
        except EOFError:
            raise AssertionError(process.communicate(timeout=60)[1].decode()) from None


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    home = tmp_path_factory.mktemp("home")
    write(home, PROJECT)
    write(home, {"client.py": CLIENT})
    with interpreter(home, "client.py") as process:
        yield Client(process)
        process.kill()


JOBS = {"jobs", "shop", "tools", "late_one"}
CODE: dict[str, tuple[object, set[str]]] = {
    "all of it": ([23, 10, ["1", "2", "3"], 1, 1, "main only"], {"main_only"}),
    "by name": (23, set()),
    "classes": ([2, True, 2, "child of base", ["inner", "x"]], set()),
    "own class": ("mine of base", set()),
    "globals": ([1, 20, 2, 51, 52, True, True], set()),
    "pickle": (3, set()),
    "dynamic": ("dynamic", {"dynamic", "-jobs"}),
    "late": ("deep", set()),
    "file": (("jobs.py", True), set()),
    "nested": ([2, 2, 13, 1], set()),
    "nested class": ([0, "base", True, True], set()),
    "lock": ("held", set()),
    "lru_cache": (6765, set()),
    "decorated": (("logged", 1), set()),
    "type variable": ("jobs", set()),
    "singleton": (True, set()),
    "lambda": ("main only", {"main_only", "-jobs"}),
    "closure": (13, set()),
}


@pytest.mark.parametrize("name", CODE)
def test_code_of_local_modules_runs_where_their_files_are(name: str, client: Client, tmp_path: Path) -> None:
    (parts, files, tops, required), args = client.sent["code"][name]
    expected, more = CODE[name]
    assert worker(put(files, tmp_path / "away"), (parts, args), tops, "code") == repr(expected)
    assert set(tops) == (more - {"-jobs"} if "-jobs" in more else JOBS | more)
    assert required == []


def test_code_finds_the_files_beside_it(client: Client, tmp_path: Path) -> None:
    """With depends=["beside.txt"]: in the worker's directory, and so is what `__file__` of `__main__` names."""
    (parts, files, tops, _), args = client.sent["code"]["my file"]
    away = put(files, tmp_path / "away")
    (away / "beside.txt").write_text("brought along")
    assert worker(away, (parts, args), tops, "code") == repr("brought along")


def test_instances_of_nested_classes_and_methods_of_points(client: Client, tmp_path: Path) -> None:
    for name, expected in (("class itself", ".Local object at"), ("bound", "Point(x=5, inner=Point(x=4, inner=None))")):
        (parts, files, tops, _), args = client.sent["code"][name]
        assert expected in worker(put(files, tmp_path / name), (parts, args), tops, "code")


ARGUMENTS: dict[str, tuple[str, set[str]]] = {
    "instance": ("Point(x=1, inner=Point(x=2, inner=None))", JOBS),
    "class": ("<class 'jobs.Point'>", JOBS),
    "function": ("13", JOBS),
    "closure": ("6", JOBS),
    "over globals": ("13", JOBS),
    "own": ("Mine object", JOBS),
    "nested class": ("Local object", JOBS),
    "enum": ("[<Color.RED: 1>]", JOBS),
    "named": ("{'jobs': 1}", set()),
    "nothing": ("[1, 'a', {'b': 2.0}]", set()),
    "lambda": ("takes 0 positional arguments", {"main_only"}),
    "package": ("takes 0 positional arguments", {"shop"}),
    "singleton": ("Alone object", JOBS),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_what_arguments_refer_to_is_known(name: str, client: Client, tmp_path: Path) -> None:
    parts, files, tops, _ = client.sent["arguments"][name]
    expected, wanted = ARGUMENTS[name]
    result, loaded = worker(put(files, tmp_path / "away"), parts, tops, "message")
    assert expected in result
    assert set(tops) == wanted and loaded is ("jobs" in wanted)


def test_a_closure_goes_with_its_values_where_its_module_is_not(client: Client, tmp_path: Path) -> None:
    parts, *_ = client.sent["arguments"]["closure"]
    assert worker(put({}, tmp_path / "away"), parts, [], "message") == ("6", False)


def test_a_module_that_is_not_there_is_named(client: Client) -> None:
    for name in ("instance", "over globals"):
        with pytest.raises(UnpackError, match=r"No module named '(jobs|tools)'; .*`depends`"):
            payload.unpack(client.sent["arguments"][name][0], Namespace("n"))


def test_what_comes_home_is_of_the_clients_own_modules(client: Client, tmp_path: Path) -> None:
    parts, files, tops, _ = client.sent["arguments"]["nested class"]
    answer = worker(put(files, tmp_path / "away"), parts, tops, "answer")
    output, trouble = client.process.communicate(pickle.dumps(answer), timeout=60)
    assert output.decode() == "[True, True, 16, True, True]\n", trouble.decode()


def test_a_script_in_a_package_keeps_its_relative_imports(tmp_path: Path) -> None:
    """`python -m shop.script`: `__main__` has a package, and goes by value all the same."""
    script = """
        import pickle, sys
        from discoro import payload
        from discoro.modules import Referred, closure
        from .back import deep
        def lately():
            from . import shelf
            from .back.deep import VALUE
            return len(shelf.rows()), VALUE, deep.VALUE
        referred = Referred()
        parts = payload.pack_code([lately], referred)
        found = closure(referred)
        files = {name: str(path) for name, path in found.files["shop"].items()}
        sys.stdout.buffer.write(pickle.dumps((parts, files)))
    """
    write(tmp_path / "home", {**PROJECT, "shop/script.py": script})
    with interpreter(tmp_path / "home", "-m", "shop.script") as process:
        output, trouble = process.communicate(timeout=60)
    assert process.returncode == 0, trouble.decode()
    parts, files = pickle.loads(output)
    assert worker(put(files, tmp_path / "away"), (parts, ()), ["shop"], "code") == repr((3, "deep", "deep"))


# ------------------------------------------------------------------ in this process


@pytest.fixture
def local(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, str], types.ModuleType]]:
    """Makes local modules; the test leaves none of them loaded."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = dict(sys.modules)

    def make(name: str, text: str) -> types.ModuleType:
        write(tmp_path, {f"{name}.py": text})
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield make
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def test_a_local_module_is_never_taken_to_be_shipped_code(local: Callable[[str, str], types.ModuleType]) -> None:
    """Else its instances would go as bytes, past plain pickle."""
    module = local("plain_local", "class Point: pass\ndef make(): return lambda: Point()\n")
    payload.pack_code([module.Point, module.make, module.make()])
    assert "plain_local" not in shipping._Shipped.modules
    assert payload.pack(module.Point())[0] == pickle.dumps(module.Point(), 5)


def test_code_run_over_other_globals_goes_by_value(local: Callable[[str, str], types.ModuleType]) -> None:
    """It has the module's name, and is not the module's."""
    local("plain_local", "value = 'the module'\n")
    values: dict[str, Any] = {"__name__": "plain_local", "value": "its own"}
    exec("def f(): return value", values)
    referred = Referred()
    (found,) = payload.unpack_code(payload.pack_code([values["f"]], referred), Namespace("n", files=["plain_local"]))
    assert found() == "its own"


def test_a_module_that_was_loaded_again_is_one(local: Callable[[str, str], types.ModuleType]) -> None:
    module = local("plain_local", "def f(): return value\nvalue = 1\n")
    before = module.f
    importlib.reload(module)
    (found,) = payload.unpack_code(payload.pack_code([before]), Namespace("n"))
    assert found is not module.f and found.__globals__ is vars(module)


def test_extension_modules_and_functions_of_c_are_referred_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modules, "EVERYWHERE", frozenset({"discoro"}))  # pyzmq stands for any installed package
    referred = Referred()
    payload.pack_code([zmq.Frame, zmq.Context.socket, threading.Thread, math.hypot], referred)
    assert {"zmq.sugar.frame", "zmq.sugar.context"} <= referred.names and not {"threading", "math"} & referred.names
    referred = Referred()
    payload.pack_code([zmq.zmq_version_info], referred)  # of a function of Cython, only itself says where it is from
    assert "zmq.backend.cython._zmq" in referred.names


def test_what_was_referred_to_before_is_no_news(local: Callable[[str, str], types.ModuleType]) -> None:
    module = local("plain_local", "class Point:\n    def f(self): pass\n")

    class Own(module.Point):  # type: ignore[misc, name-defined]
        def f(self) -> Any:
            import hypothesis

            return hypothesis

    first = Referred()
    payload.pack([Own(), module.Point()], first)
    assert first.names == {"plain_local"} and closure(first).required == {"hypothesis"}
    again = Referred(known=first)
    payload.pack([Own(), module.Point()], again)
    assert not again
    for obj, known in ((module.Point(), Referred(tops=frozenset({"plain_local"}))), (1, None)):
        referred = Referred(known)
        payload.pack(obj, referred)
        assert not referred


def test_what_was_sent_once_as_a_class_refers_again() -> None:
    """Its bytes are made once; whoever gets them needs the same modules each time."""

    class Here:
        def f(self) -> Any:
            import pytest

            return pytest

    for _ in range(2):
        referred = Referred()
        payload.pack(Here(), referred)
        assert closure(referred).required == {"pytest"}


# ------------------------------------------------------------------ names in a plain pickle


def noted(body: bytes, *known: str) -> set[str]:
    referred = Referred(Referred(tops=frozenset(known)))
    note_files(body, referred)
    return referred.names


def test_a_name_is_told_from_a_text(local: Callable[[str, str], types.ModuleType]) -> None:
    module = local("plain_local", "class Point: pass\n")
    point = module.Point()
    texts = ["plain_local", "plain_local.x", {"plain_local": 1}, b"\x8c\x0bplain_local\x94", threading.Thread]
    for obj in texts:
        assert noted(pickle.dumps(obj, 5)) == set()
    for obj in (point, [point] * 3, ["plain_local", point], {"plain_local": point}, [module.Point, point], texts + [point]):
        assert noted(pickle.dumps(obj, 5)) == {"plain_local"}
        assert noted(pickle.dumps(obj, 5), "plain_local") == set()


def test_a_large_pickle_is_believed(local: Callable[[str, str], types.ModuleType]) -> None:
    local("plain_local", "")
    many = [threading.Thread, *range(1_000_000)]
    assert noted(pickle.dumps(["plain_local", many], 5)) == {"plain_local"}
    assert noted(pickle.dumps(["something_else", many], 5)) == set()


def test_the_modules_of_a_package_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, {"parcel/__init__.py": "", "parcel/one.py": "class One: pass\n", "parcel/two.py": "class Two: pass\n"})
    monkeypatch.syspath_prepend(str(tmp_path))
    one, two = (importlib.import_module(f"parcel.{name}") for name in ("one", "two"))
    try:
        assert noted(pickle.dumps([two.Two()], 5)) == {"parcel.two"}
        assert noted(pickle.dumps([two.Two(), one.One], 5)) == {"parcel.one", "parcel.two"}
    finally:
        for name in ("parcel", "parcel.one", "parcel.two"):
            del sys.modules[name]


def test_it_costs_little_where_there_is_nothing_new() -> None:
    """On the way of every run. 1 µs on an idle machine; the limit leaves room for a busy one."""
    body, referred = pickle.dumps(((1, threading.Thread), {"three": 3.0}), 5), Referred(Referred(tops=frozenset({"tests"})))
    assert min(timeit.repeat(lambda: note_files(body, referred), number=1000, repeat=20)) / 1000 < 20e-6
