"""Modules of one's own run there as they do here: found without being named, shipped as files, imported as ever.

Rows as in `test_shipped_code.py`; here the code uses modules, packages and files that lie beside the script.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.shipped import SOURCES, STYLES, Clients, Row

ROWS = (
    Row(
        "a module, used as a module",
        """
        import tools_used

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            return tools_used.twice(n), tools_used.LIMIT, tools_used.Point(n)

        def check(worker):
            twice, limit, point = worker.run(computation, 4)
            assert (twice, limit) == (8, 5)
            assert type(point) is tools_used.Point and point.x == 4
        """,
        {
            "tools_used.py": """
                LIMIT = 5
                class Point:
                    def __init__(self, x): self.x = x
                def twice(n): return 2 * n
                if __name__ == "__main__":
                    raise SystemExit("it was run as a script")
            """
        },
    ),
    Row(
        "names of a module",
        """
        from tools_named import Point, twice as doubled, LIMIT

        DEF computation(point, coro=None):
            WAIT coro.sleep(0)
            import tools_named
            assert type(point) is tools_named.Point is Point and doubled is tools_named.twice
            return doubled(point.x), LIMIT, Point(1)

        def check(worker):
            twice, limit, point = worker.run(computation, Point(4))
            assert (twice, limit) == (8, 5) and type(point) is Point
        """,
        {
            "tools_named.py": """
                LIMIT = 5
                class Point:
                    def __init__(self, x): self.x = x
                def twice(n): return 2 * n
            """
        },
    ),
    Row(
        "everything of a module, by a star",
        """
        from tools_star import *

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return helper(), CONSTANT, isinstance(Thing(), Thing)

        def check(worker):
            assert worker.run(computation) == ("hidden", 3, True)
        """,
        {
            "tools_star.py": """
                __all__ = ["helper", "CONSTANT", "Thing"]
                CONSTANT = 3
                class Thing: pass
                def _hidden(): return "hidden"
                def helper(): return _hidden()
            """
        },
    ),
    Row(
        "imports inside functions",
        """
        def helper():
            import inside_module
            from inside_package import first
            from inside_package.second import value
            return inside_module.VALUE, first.value(), value()

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return helper()

        def check(worker):
            assert worker.run(computation) == ("module", "first", ["second", "first", "sibling"])
        """,
        {
            "inside_module.py": 'VALUE = "module"',
            "inside_package/__init__.py": "",
            "inside_package/first.py": 'def value(): return "first"',
            "inside_package/second.py": """
                def value():
                    from . import first
                    from .sibling import NAME
                    return ["second", first.value(), NAME]
            """,
            "inside_package/sibling.py": 'NAME = "sibling"',
        },
    ),
    Row(
        "dotted imports",
        """
        import dotted.middle.deep
        import dotted.middle.other as renamed

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return dotted.middle.deep.value(), renamed.value(), dotted.TOP

        def check(worker):
            assert worker.run(computation) == ("deep of top", "other", "top")
        """,
        {
            "dotted/__init__.py": 'TOP = "top"',
            "dotted/middle/__init__.py": "",
            "dotted/middle/deep.py": """
                from .. import TOP
                def value(): return f"deep of {TOP}"
            """,
            "dotted/middle/other.py": 'def value(): return "other"',
        },
    ),
    Row(
        "relative imports and a class hierarchy in a package",
        """
        from shapes import Square, area_of
        from shapes.base import Shape

        DEF computation(square, coro=None):
            WAIT coro.sleep(0)
            assert isinstance(square, Shape) and type(square) is Square
            return area_of(square), Square(5)

        def check(worker):
            area, square = worker.run(computation, Square(3))
            assert area == 9 and type(square) is Square and isinstance(square, Shape)
        """,
        {
            "shapes/__init__.py": """
                from .solid.square import Square
                from .measure import area_of
                __all__ = ["Square", "area_of"]
            """,
            "shapes/base.py": """
                class Shape:
                    def __init__(self, side): self.side = side
                    def area(self): raise NotImplementedError
            """,
            "shapes/measure.py": """
                from . import base
                def area_of(shape):
                    assert isinstance(shape, base.Shape)
                    return shape.area()
            """,
            "shapes/solid/__init__.py": "",
            "shapes/solid/square.py": """
                from ..base import Shape
                class Square(Shape):
                    def area(self): return self.side**2
            """,
        },
    ),
    Row(
        "the computation itself in a package",
        """
        from jobs.work import computation

        def check(worker):
            assert worker.run(computation, 4) == (9, "jobs.work")
        """,
        {
            "jobs/__init__.py": "",
            "jobs/work.py": """
                from .parts import added
                DEF computation(n, coro=None):
                    WAIT coro.sleep(0)
                    return added(n, 5), __name__
            """,
            "jobs/parts.py": "def added(a, b): return a + b",
        },
    ),
    Row(
        "import_module",
        """
        import importlib

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            plugin = importlib.import_module("plugin_of_ours")
            inner = importlib.import_module(".inner", package="plugins_of_ours")
            return plugin.NAME, inner.NAME, __import__("plugin_by_hand").NAME

        def check(worker):
            assert worker.run(computation) == ("plugin", "inner", "by hand")
        """,
        {
            "plugin_of_ours.py": 'NAME = "plugin"',
            "plugin_by_hand.py": 'NAME = "by hand"',
            "plugins_of_ours/__init__.py": "",
            "plugins_of_ours/inner.py": 'NAME = "inner"',
        },
    ),
    Row(
        "optional imports",
        """
        try:
            import surely_not_installed_anywhere as fast
        except ImportError:
            fast = None
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from surely_not_installed_either import Hint

        from optional_user import choice

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            try:
                import surely_not_installed_for_this
            except ModuleNotFoundError:
                return fast, choice(), "none"

        def check(worker):
            assert worker.run(computation) == (None, "slow", "none")
        """,
        {
            "optional_user.py": """
                try:
                    from surely_not_installed_anywhere import choice
                except ImportError:
                    def choice(): return "slow"
            """
        },
    ),
    Row(
        "modules that need each other",
        """
        import circle_first

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            return circle_first.is_even(n), circle_first.circle_second.is_odd(n)

        def check(worker):
            assert worker.run(computation, 10) == (True, False)
        """,
        {
            "circle_first.py": """
                import circle_second
                def is_even(n): return True if n == 0 else circle_second.is_odd(n - 1)
            """,
            "circle_second.py": """
                import circle_first
                def is_odd(n): return False if n == 0 else circle_first.is_even(n - 1)
            """,
        },
    ),
    Row(
        "a chain of modules",
        """
        from chain_one import one

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return one()

        def check(worker):
            assert worker.run(computation) == [1, 2, 3]
        """,
        {
            "chain_one.py": "import chain_two\ndef one(): return [1, *chain_two.two()]",
            "chain_two.py": "def two():\n    from chain_three import three\n    return [2, *three()]",
            "chain_three.py": "def three(): return [3]",
        },
    ),
    Row(
        "one module, one set of globals",
        """
        import state
        from state import count, prepare

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            import sys
            assert sys.modules["state"] is state and count.__globals__ is vars(state)
            return count(), count(), state.number, state.items

        def check(worker):
            state.number = 1000
            assert worker.run(computation, func=prepare, args=(40,)) == (41, 42, 42, [40])
            assert state.number == 1000 and state.items == []
        """,
        {
            "state.py": """
                number = 0
                items = []
                def prepare(start):
                    global number
                    number = start
                    items.append(start)
                def count():
                    global number
                    number += 1
                    return number
            """
        },
    ),
    Row(
        "nested functions of a module",
        """
        import maker

        DEF computation(function, coro=None):
            WAIT coro.sleep(0)
            mine = maker.made(100)
            assert maker.Outer.Inner().value() == 7
            return function(1), mine(1), maker.calls, maker.TABLE["twice"](4)

        def check(worker):
            assert worker.run(computation, maker.made(40)) == (41, 101, 2, 8)
            assert maker.calls == 0
        """,
        {
            "maker.py": """
                calls = 0
                TABLE = {"twice": lambda n: 2 * n}
                class Outer:
                    class Inner:
                        def value(self): return 7
                def made(n):
                    def add(m):
                        global calls
                        calls += 1
                        return n + m
                    return add
            """
        },
    ),
    Row(
        "data beside a package's modules",
        """
        import stock

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return stock.by_path(), stock.by_resources(), stock.deeper()

        def check(worker):
            assert worker.run(computation) == ("apples\\n", "apples\\n", "pears")
        """,
        {
            "stock/__init__.py": """
                import importlib.resources
                import pkgutil
                from pathlib import Path
                def by_path(): return (Path(__file__).parent / "list.txt").read_text()
                def by_resources(): return importlib.resources.files("stock").joinpath("list.txt").read_text()
                def deeper(): return pkgutil.get_data("stock", "more/list.txt").decode()
            """,
            "stock/list.txt": "apples\n",
            "stock/more/list.txt": "pears",
        },
    ),
    Row(
        "a package without __init__",
        """
        import spaced.inner

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return spaced.inner.value()

        def check(worker):
            assert worker.run(computation) == "spaced"
        """,
        {"spaced/inner.py": "from .other import NAME\ndef value(): return NAME", "spaced/other.py": 'NAME = "spaced"'},
    ),
    Row(
        "a package that imports late, by __getattr__",
        """
        import lazy

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return lazy.heavy.NAME

        def check(worker):
            assert worker.run(computation) == "heavy"
        """,
        {
            "lazy/__init__.py": """
                def __getattr__(name):
                    import importlib
                    return importlib.import_module(f"lazy.{name}")
            """,
            "lazy/heavy.py": 'NAME = "heavy"',
        },
    ),
    Row(
        "postponed annotations, enums and hints in a module",
        """
        import model

        DEF computation(tree, coro=None):
            WAIT coro.sleep(0)
            import typing
            hints = typing.get_type_hints(model.Tree)
            assert hints["left"] == model.Tree | None and typing.get_type_hints(model.Pair)["first"] is model.Tree
            assert tree.color is model.Color.RED and isinstance(tree, model.Tree)
            return model.Tree(tree, model.Color.GREEN), model.Pair(tree, 2)

        def check(worker):
            tree, pair = worker.run(computation, model.Tree())
            assert tree == model.Tree(model.Tree(), model.Color.GREEN) and type(pair) is model.Pair
        """,
        {
            "model.py": """
                from __future__ import annotations
                import enum
                from dataclasses import dataclass
                from typing import NamedTuple

                class Color(enum.Enum):
                    RED = 1
                    GREEN = 2

                @dataclass(slots=True)
                class Tree:
                    left: Tree | None = None
                    color: Color = Color.RED

                class Pair(NamedTuple):
                    first: Tree
                    second: int = 0
            """
        },
    ),
    Row(
        "exceptions of a module",
        """
        import faults

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            faults.fail(3)

        def check(worker):
            try:
                worker.run(computation)
            except faults.Fault as error:
                assert error.code == 3 and "in fail" in str(error.__cause__)
            else:
                raise AssertionError("nothing was raised")
        """,
        {
            "faults.py": """
                class Fault(Exception):
                    def __init__(self, code):
                        super().__init__(code)
                        self.code = code
                def fail(code): raise Fault(code)
            """
        },
    ),
    Row(
        "a module that only a message brings",
        """
        DEF computation(coro=None):
            thing = WAIT coro.receive()
            return thing.value(), type(thing).__module__

        def check(worker):
            import messenger
            with worker.opened(computation, depends=[messenger]) as start:
                remote = start()
                remote.send(messenger.Thing(5))
                assert remote.result(20) == (5, "messenger")
        """,
        {
            "messenger.py": """
                class Thing:
                    def __init__(self, n): self.n = n
                    def value(self): return self.n
            """
        },
    ),
    Row(
        "a module in depends",
        """
        import dependency_module

        DEF computation(name, coro=None):
            WAIT coro.sleep(0)
            return __import__(name).VALUE

        def check(worker):
            assert worker.run(computation, "dependency_" + "module", depends=[dependency_module]) == 5
        """,
        {"dependency_module.py": "VALUE = 5"},
    ),
    Row(
        "a package in depends",
        """
        import dependency_package.inner

        DEF computation(name, coro=None):
            WAIT coro.sleep(0)
            import importlib
            return importlib.import_module(name).VALUE, importlib.import_module(name + ".inner").VALUE

        def check(worker):
            assert worker.run(computation, "dependency_" + "package", depends=[dependency_package]) == (5, 6)
            assert worker.run(computation, "dependency_" + "package", depends=[dependency_package.inner]) == (5, 6)
        """,
        {"dependency_package/__init__.py": "VALUE = 5", "dependency_package/inner.py": "VALUE = 6"},
    ),
    Row(
        "a function and a class of a module in depends",
        """
        import dependency_names

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return globals().get("helper", dependency_names.helper)(2), dependency_names.Thing().value

        def check(worker):
            assert worker.run(computation, depends=[dependency_names.helper, dependency_names.Thing]) == (4, 5)
        """,
        {"dependency_names.py": "def helper(n): return 2 * n\nclass Thing: value = 5"},
    ),
    Row(
        "a file and a directory in depends",
        """
        from pathlib import Path

        HERE = Path.cwd()

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            with open("table.csv") as file:
                return file.read(), Path("folder/deep/leaf.txt").read_text(), sorted(map(str, Path("folder").rglob("*.txt")))

        def check(worker):
            found = worker.run(computation, depends=["table.csv", HERE / "folder"])
            assert found == ("a,b\\n", "leaf", ["folder/deep/leaf.txt", "folder/top.txt"])
        """,
        {"table.csv": "a,b\n", "folder/deep/leaf.txt": "leaf", "folder/top.txt": "top"},
    ),
    Row(
        "a module file in depends, by its path",
        """
        DEF computation(coro=None):
            WAIT coro.sleep(0)
            import importlib
            return importlib.import_module("by_" + "path").VALUE

        def check(worker):
            assert worker.run(computation, depends=["elsewhere/by_path.py"]) == "by path"
        """,
        {"elsewhere/by_path.py": 'VALUE = "by path"'},
    ),
)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    with Clients(tmp_path_factory.mktemp("modules"), ROWS) as clients:
        yield clients


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_modules_run_there_as_here(clients: Clients, row: Row, source: str, style: str) -> None:
    if source in row.not_in:
        pytest.skip(row.not_in[source])
    clients.check(row, source, style)
