"""Code runs there as it does here: what users write, as generators and async, from a script, a module, a notebook, from `exec`.

The machinery is in `tests/support/shipped.py`; `ROWS` is the table. What modules and packages of one's own do is in
`test_shipped_modules.py`, what happens when they are edited in `test_shipped_edits.py`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.shipped import SOURCES, STYLES, Clients, Row

BY_VALUE = ("script", "notebook", "exec")

ROWS = (
    Row(
        "helpers, imports and constants",
        """
        import math
        import xml.dom.minidom
        from collections import Counter
        from os import path as ospath

        UNIT = 10

        def helper(n):
            return math.isqrt(n) * UNIT

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            document = xml.dom.minidom.parseString("<a/>")
            return helper(n) + Counter("aab")["a"], ospath.basename("a/b"), document.documentElement.tagName

        def check(worker):
            assert worker.run(computation, 49) == (72, "b", "a")
        """,
    ),
    Row(
        "a helper that waits",
        """
        DEF twice(n, coro):
            WAIT coro.sleep(0)
            return 2 * n

        DEF four_times(n, coro):
            return (FROM twice((FROM twice(n, coro)), coro))

        DEF computation(n, coro=None):
            return (FROM four_times(n, coro))

        def check(worker):
            assert worker.run(computation, 3) == 12
        """,
    ),
    Row(
        "an async generator, used inside",
        """
        async def numbers(n):
            for number in range(n):
                yield number

        async def collect(n):
            return [2 * number async for number in numbers(n)]

        DEF computation(n, coro=None):
            return (WAIT collect(n))

        def check(worker):
            assert worker.run(computation, 4) == [0, 2, 4, 6]
        """,
    ),
    Row(
        "generators, comprehensions and iterators inside",
        """
        LIMIT = 4

        def numbers():
            yield from range(LIMIT)

        class Countdown:
            def __init__(self, n): self.n = n
            def __iter__(self): return self
            def __next__(self):
                if self.n == 0:
                    raise StopIteration
                self.n -= 1
                return self.n

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            nested = [[x * y for y in numbers() if y < LIMIT - 1] for x in numbers()]
            return nested[3], list(Countdown(3)), sum(LIMIT for _ in numbers()), [y := 1, y + LIMIT][1]

        def check(worker):
            assert worker.run(computation) == ([0, 3, 6], [2, 1, 0], 16, 5)
        """,
    ),
    Row(
        "a class with every kind of method",
        """
        class Account:
            opened = 0
            def __init__(self, balance):
                self._balance = balance
                type(self).opened += 1
            @property
            def balance(self): return self._balance
            @balance.setter
            def balance(self, value): self._balance = max(0, value)
            @classmethod
            def empty(cls): return cls(0)
            @staticmethod
            def of(text): return Account(int(text))
            def __add__(self, other): return Account(self.balance + other.balance)
            def __eq__(self, other): return isinstance(other, Account) and self.balance == other.balance
            def __hash__(self): return hash(self._balance)
            def __repr__(self): return f"Account({self._balance})"
            class Locked(Exception): pass

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            account = Account.of("5") + Account(n) + Account.empty()
            account.balance -= 1
            try:
                raise Account.Locked
            except Account.Locked:
                return account.balance, Account.opened, Account(4) in {Account(4)}, repr(account)

        def check(worker):
            assert worker.run(computation, 3) == (7, 5, True, "Account(7)")
            assert Account.opened == 0
        """,
    ),
    Row(
        "a closure as computation",
        """
        def made(n):
            calls = 0
            def count():
                nonlocal calls
                calls += 1
                return calls
            DEF computation(m, coro=None):
                WAIT coro.sleep(0)
                return n + m + count() + calls
            return computation

        def check(worker):
            with worker.opened(made(40)) as start:
                assert [start(m).result(20) for m in (1, 1)] == [43, 45]
        """,
    ),
    Row(
        "lambdas",
        """
        twice = lambda n: 2 * n
        TABLE = {"twice": twice, "square": lambda n: n * n}

        DEF computation(name, function, coro=None):
            WAIT coro.sleep(0)
            return TABLE[name](function(3)), lambda n: TABLE[name](n)

        def check(worker):
            offset = 1
            number, function = worker.run(computation, "square", lambda n: twice(n) + offset)
            assert number == 49
            assert function(5) == 25
        """,
    ),
    Row(
        "decorators of one's own",
        """
        import functools

        CALLS = []

        def noted(function):
            @functools.wraps(function)
            def wrapper(*args, **kwargs):
                CALLS.append(function.__name__)
                return function(*args, **kwargs)
            return wrapper

        def waiting(times):
            def decorator(function):
                @functools.wraps(function)
                DEF wrapper(*args, coro=None, **kwargs):
                    for _ in range(times):
                        WAIT coro.sleep(0)
                        CALLS.append("wait")
                    return (FROM function(*args, coro=coro, **kwargs))
                return wrapper
            return decorator

        @noted
        def helper(n):
            return n + 1

        @waiting(2)
        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            return helper(n), CALLS, helper.__wrapped__(1), computation.__name__

        def check(worker):
            assert worker.run(computation, 1) == (2, ["wait", "wait", "helper"], 2, "computation")
            assert CALLS == []
        """,
    ),
    Row(
        "decorators of the standard library",
        """
        import contextlib
        import functools

        @functools.lru_cache(maxsize=None)
        def fibonacci(n):
            return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)

        @functools.singledispatch
        def kind(value): return "something"
        @kind.register
        def _(value: int): return "a number"

        @functools.total_ordering
        class Version:
            def __init__(self, n): self.n = n
            def __eq__(self, other): return self.n == other.n
            def __lt__(self, other): return self.n < other.n
            @functools.cached_property
            def text(self): return f"v{self.n}"
            @functools.lru_cache
            def twice(self): return 2 * self.n
            __hash__ = object.__hash__

        @contextlib.contextmanager
        def appended(target):
            target.append("in")
            yield target
            target.append("out")

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            with appended([]) as found:
                found += [kind(1), kind("one"), Version(2) >= Version(1), Version(3).text, Version(4).twice()]
            return found, fibonacci(30), fibonacci.cache_info().currsize, functools.partial(pow, 2)(5)

        def check(worker):
            found = ["in", "a number", "something", True, "v3", 8, "out"]
            assert worker.run(computation) == (found, 832040, 31, 32)
        """,
    ),
    Row(
        "nested functions and classes",
        """
        BASE = 100

        def outer(n):
            class Inner:
                def value(self): return BASE + n
                def again(self): return outer(n - 1) if n else []
            def deeper(m):
                def deepest(): return Inner().value() + m
                return deepest
            return [deeper(1)(), *Inner().again()]

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            return outer(n)

        def check(worker):
            assert worker.run(computation, 2) == [103, 102, 101]
        """,
    ),
    Row(
        "bound methods",
        """
        class Adder:
            def __init__(self, n): self.n = n
            def add(self, m): return self.n + m
            DEF computation(self, function, coro=None):
                WAIT coro.sleep(0)
                return function(self.n), self.add
            @classmethod
            DEF made(cls, n, coro=None):
                WAIT coro.sleep(0)
                return cls(n)
            @staticmethod
            DEF free(n, coro=None):
                WAIT coro.sleep(0)
                return Adder(n).add(n)

        def check(worker):
            number, add = worker.run(Adder(1).computation, Adder(41).add)
            assert number == 42
            assert type(add.__self__) is Adder and add(1) == 2
            made = worker.run(Adder.made, 7)
            assert type(made) is Adder and made.n == 7
            assert worker.run(Adder.free, 4) == 8
        """,
    ),
    Row(
        "dataclasses",
        """
        import dataclasses
        from dataclasses import dataclass, field
        from typing import ClassVar

        @dataclass
        class Job:
            name: str
            parts: list = field(default_factory=list)
            count: ClassVar[int] = 0
            def __post_init__(self): self.parts = [*self.parts, self.name]

        @dataclass(frozen=True, order=True)
        class Point:
            x: int
            y: int = 0

        @dataclass(slots=True, kw_only=True)
        class Slotted(Job):
            size: int = 1

        @dataclass(frozen=True, slots=True)
        class Both:
            point: Point

        DEF computation(job, both, coro=None):
            WAIT coro.sleep(0)
            assert isinstance(job, Slotted) and isinstance(both.point, Point)
            try:
                both.point.x = 5
            except dataclasses.FrozenInstanceError as error:
                frozen = str(error)
            later = dataclasses.replace(both, point=Point(1, 2))
            ordered = sorted([Point(2), Point(1), Point(0, 5)])
            return job, later, ordered, dataclasses.asdict(later), frozen, [each.name for each in dataclasses.fields(Job)]

        def check(worker):
            job, later, ordered, plain, frozen, names = worker.run(computation, Slotted("a", size=3), Both(Point(3)))
            assert type(job) is Slotted and job == Slotted("a", size=3) and job.parts == ["a"]
            assert later == Both(Point(1, 2)) and ordered == [Point(0, 5), Point(1), Point(2)]
            assert plain == {"point": {"x": 1, "y": 2}}
            assert frozen == "cannot assign to field 'x'" and names == ["name", "parts"]
            assert hash(later) == hash(Both(Point(1, 2))) and not hasattr(later, "__dict__")
        """,
    ),
    Row(
        "postponed annotations",
        """
        from __future__ import annotations

        import typing
        from dataclasses import dataclass, fields

        @dataclass
        class Tree:
            value: int
            left: Tree | None = None
            right: Tree | None = None

            def total(self) -> int:
                return self.value + sum(each.total() for each in (self.left, self.right) if each)

        def grown(tree: Tree, by: int) -> Tree:
            return Tree(by, tree)

        DEF computation(tree: Tree, coro=None) -> tuple[Tree, int]:
            WAIT coro.sleep(0)

            @dataclass
            class Late:
                tree: Tree
                limit: typing.ClassVar[int] = 5

            hints = typing.get_type_hints(grown)
            names = [each.name for each in fields(Late)]
            return grown(tree, 10), tree.total(), hints["return"] is Tree and hints["by"] is int, names

        def check(worker):
            tree, total, known, names = worker.run(computation, Tree(1, Tree(2)))
            assert tree == Tree(10, Tree(1, Tree(2))) and type(tree.left.left) is Tree
            assert (total, known, names) == (3, True, ["tree"])
        """,
    ),
    Row(
        "type hints of classes",
        """
        from __future__ import annotations

        import typing

        class Node:
            value: int
            next: Node | None

            def follow(self) -> Node: ...

        class Options(typing.TypedDict, total=False):
            node: Node

        class Pair(typing.NamedTuple):
            first: Node
            second: int = 0

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            hints = typing.get_type_hints
            return [
                hints(Node) == {"value": int, "next": Node | None},
                hints(Node.follow)["return"] is Node,
                hints(Options) == {"node": Node},
                hints(Pair) == {"first": Node, "second": int},
            ]

        def check(worker):
            assert worker.run(computation) == [True] * 4
        """,
    ),
    Row(
        "NamedTuple, TypedDict, Protocol, generics",
        """
        import collections
        import typing

        T = typing.TypeVar("T")
        UserId = typing.NewType("UserId", int)
        Old = collections.namedtuple("Old", "x y", defaults=[5])

        class Point(typing.NamedTuple):
            x: int
            y: int = 0
            def moved(self, by): return self._replace(x=self.x + by)

        class Options(typing.TypedDict, total=False):
            size: int

        @typing.runtime_checkable
        class Sized(typing.Protocol):
            def size(self) -> int: ...

        class Box(typing.Generic[T]):
            def __init__(self, content: T): self.content = content
            def size(self) -> int: return 1

        DEF computation(point, coro=None):
            WAIT coro.sleep(0)
            hints = typing.get_type_hints(Point), typing.get_type_hints(Options)
            known = isinstance(Box(1), Sized), Box[int]("a").content, Options.__optional_keys__, UserId(3)
            return point.moved(2), Old(1), Options(size=1), Box(point), hints, known

        def check(worker):
            point, old, options, box, hints, known = worker.run(computation, Point(1))
            assert type(point) is Point and point == (3, 0)
            assert type(old) is Old and old.y == 5
            assert options == {"size": 1}
            assert type(box) is Box and type(box.content) is Point
            assert hints == ({"x": int, "y": int}, {"size": int})
            assert known == (True, "a", {"size"}, 3)
        """,
    ),
    Row(
        "enums",
        """
        import enum

        class Color(enum.Enum):
            RED = 1
            GREEN = enum.auto()
            ROT = 1
            @property
            def other(self): return Color.GREEN if self is Color.RED else Color.RED

        class Level(enum.IntEnum):
            LOW = 1
            HIGH = 2

        class Mode(enum.StrEnum):
            FAST = enum.auto()

        class Right(enum.Flag):
            READ = enum.auto()
            WRITE = enum.auto()

        class Planet(enum.Enum):
            EARTH = (5.9, 6.3)
            def __init__(self, mass, radius): self.mass = mass

        DEF computation(color, right, coro=None):
            WAIT coro.sleep(0)
            assert color is Color.RED is Color.ROT is Color(1) and right & Right.READ
            left = right ^ Right.READ
            return color.other, Level.HIGH > Level.LOW, Mode.FAST, left, Planet.EARTH, list(Color), Planet.EARTH.mass

        def check(worker):
            color, greater, mode, right, planet, colors, mass = worker.run(computation, Color.RED, Right.READ | Right.WRITE)
            assert color is Color.GREEN and greater and mode is Mode.FAST and right is Right.WRITE
            assert planet is Planet.EARTH and mass == 5.9 and colors == [Color.RED, Color.GREEN]
        """,
    ),
    Row(
        "functions that call each other",
        """
        def is_even(n): return True if n == 0 else is_odd(n - 1)
        def is_odd(n): return False if n == 0 else is_even(n - 1)

        class Even:
            def next(self): return Odd()
        class Odd:
            def next(self): return Even()

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            if n > 0:
                return (FROM computation(n - 2, coro))
            return is_even(10), type(Even().next().next()) is Even

        def check(worker):
            assert worker.run(computation, 5) == (True, True)
        """,
    ),
    Row(
        "one global, seen by all",
        """
        total = 0
        table = None

        def prepare(start):
            global total, table
            total, table = start, {"start": start}

        def added(n):
            global total
            total += n
            return total

        def finish():
            if total != 108:
                raise ValueError(f"total is {total}")

        DEF computation(n, coro=None):
            global total
            WAIT coro.sleep(0)
            before = total
            assert added(n) == total == before + n
            return total, table

        def check(worker):
            one = worker.mesh.computation(computation, depends=[added])
            one.setup(worker.server, 20, prepare, (100,))
            assert one.run(worker.server, 3).result(20) == (103, {"start": 100})
            assert one.run(worker.server, 5).result(20) == (108, {"start": 100})
            one.close(worker.server, finish)
            assert total == 0 and table is None
        """,
    ),
    Row(
        "computations have globals of their own",
        """
        count = 0

        def begin(n):
            global count
            count = n

        DEF computation(coro=None):
            global count
            WAIT coro.sleep(0)
            count += 1
            return count

        def check(worker):
            with worker.opened(computation, func=begin, args=(10,)) as one, worker.opened(computation) as other:
                assert [one().result(20), other().result(20), one().result(20), other().result(20)] == [11, 1, 12, 2]
        """,
        not_in={"module": "computations of one client share a module of one content, as they share a worker"},
    ),
    Row(
        "default arguments",
        """
        import re

        LIMIT = 3

        def helper(n, *rest, by=LIMIT, pattern=re.compile("a+"), seen=[]):
            seen.append(n)
            return n * by, rest, pattern.match("aab")[0], seen

        DEF computation(n=4, /, *, m=LIMIT + 1, coro=None):
            WAIT coro.sleep(0)
            helper(0)
            return helper(n, m)

        def check(worker):
            assert worker.run(computation) == (12, (4,), "aa", [0, 4])
            with worker.opened(computation) as start:
                assert start(5, m=6).result(20) == (15, (6,), "aa", [0, 5])
        """,
    ),
    Row(
        "class attributes",
        """
        class Registry:
            names = []
            count = 0
            LIMIT = 5
            TWICE = LIMIT * 2
            @classmethod
            def add(cls, name):
                cls.names.append(name)
                cls.count += 1
                return cls

        class Special(Registry):
            LIMIT = 6
            names = [f"special {n}" for n in range(2)]

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            Registry.add("a").add("b")
            Special.add("c")
            return Registry.names, Special.names, Registry.count, Special.count, Special.LIMIT, Special.TWICE

        def check(worker):
            assert worker.run(computation) == (["a", "b"], ["special 0", "special 1", "c"], 2, 3, 6, 10)
        """,
    ),
    Row(
        "super, mixins and abstract classes",
        """
        import abc

        class Base(abc.ABC):
            def __init__(self, name, **rest):
                super().__init__(**rest)
                self.name = name
            @abc.abstractmethod
            def speak(self): ...
            @classmethod
            def made(cls, name): return cls(name=name)

        class Mixin:
            def __init__(self, loud=False, **rest):
                super().__init__(**rest)
                self.loud = loud
            def speak(self): return "mixed"

        class Dog(Base, Mixin):
            def speak(self): return f"{self.name} {super(Base, self).speak()}"

        class Puppy(Dog):
            def speak(self): return f"small {super().speak()}"
            @classmethod
            def made(cls, name): return super().made(name.title())

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            try:
                Base("x")
            except TypeError:
                return Puppy.made("rex").speak(), Puppy("a", loud=True)

        def check(worker):
            spoken, puppy = worker.run(computation)
            assert spoken == "small Rex mixed"
            assert type(puppy) is Puppy and puppy.loud and puppy.speak() == "small a mixed"
        """,
    ),
    Row(
        "metaclasses, descriptors and hooks",
        """
        class Registered(type):
            known = []
            def __new__(kind, name, bases, body, **rest):
                cls = super().__new__(kind, name, bases, body)
                kind.known.append(name)
                return cls
            def __init__(cls, name, bases, body, **rest):
                super().__init__(name, bases, body)
            def __len__(cls): return 5

        class Positive:
            def __set_name__(self, owner, name): self.name = "_" + name
            def __get__(self, instance, owner=None): return self if instance is None else getattr(instance, self.name)
            def __set__(self, instance, value): setattr(instance, self.name, abs(value))

        class Plugin:
            plugins = []
            def __init_subclass__(cls, /, tag, **rest):
                super().__init_subclass__(**rest)
                cls.plugins.append(tag)

        class Value(metaclass=Registered):
            amount = Positive()
            def __init__(self, amount): self.amount = amount
            def __getattr__(self, name): return f"no {name}"
            def __call__(self): return self.amount

        class One(Plugin, tag="one"): pass

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            class Two(Plugin, tag="two"): pass
            class Late(Value): pass
            return Value(n)(), Late(n).missing, len(Value), Registered.known, Plugin.plugins

        def check(worker):
            assert worker.run(computation, -3) == (3, "no missing", 5, ["Value", "Late"], ["one", "two"])
        """,
    ),
    Row(
        "context managers",
        """
        import contextlib

        class Opened:
            def __init__(self, log): self.log = log
            def __enter__(self): self.log.append("enter"); return self
            def __exit__(self, kind, error, trace): self.log.append(kind.__name__); return True
            async def __aenter__(self): self.log.append("aenter")
            async def __aexit__(self, *error): self.log.append("aexit")

        @contextlib.asynccontextmanager
        async def later(log):
            log.append("later")
            try:
                yield
            finally:
                log.append("after")

        async def asynchronous(log):
            async with Opened(log), later(log), contextlib.AsyncExitStack() as stack:
                stack.callback(log.append, "stack")

        DEF computation(coro=None):
            log = []
            with Opened(log):
                WAIT coro.sleep(0)
                raise KeyError
            WAIT asynchronous(log)
            return log

        def check(worker):
            assert worker.run(computation) == ["enter", "KeyError", "aenter", "later", "stack", "after", "aexit"]
        """,
    ),
    Row(
        "values in globals",
        """
        import collections
        import datetime
        import decimal
        import logging
        import operator
        import pathlib
        import random
        import re
        import threading

        PATTERN = re.compile(r"(?P<n>\\d+)")
        FOLDER = pathlib.Path("data")
        DAY = datetime.date(2024, 2, 29)
        PRICE = decimal.Decimal("1.10")
        GROUPS = collections.defaultdict(list, a=[1])
        LOCK = threading.Lock()
        log = logging.getLogger(__name__)
        first = operator.itemgetter(0)
        dice = random.Random(5)
        HUGE = bytes(200_000)
        RANGES = {range(3): slice(1, 2), frozenset({1}): ...}
        ITSELF = []
        ITSELF.append(ITSELF)

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            log.debug("nobody reads this")
            GROUPS["b"].append(2)
            with LOCK:
                found = PATTERN.search("a 12")["n"]
            return (found, FOLDER / "x", DAY, PRICE * 2, GROUPS, first("abc"), dice.random(), len(HUGE), RANGES,
                    ITSELF[0] is ITSELF, log.name)

        def check(worker):
            found, path, day, price, groups, letter, number, size, ranges, itself, name = worker.run(computation)
            assert (found, path, day, price) == ("12", pathlib.Path("data/x"), DAY, decimal.Decimal("2.20"))
            assert groups == {"a": [1], "b": [2]} and groups.default_factory is list
            assert (letter, number, size, ranges) == ("a", random.Random(5).random(), 200_000, RANGES)
            assert itself and name == __name__
        """,
    ),
    Row(
        "pattern matching",
        """
        class Circle:
            __match_args__ = ("radius",)
            def __init__(self, radius): self.radius = radius

        LIMIT = 3

        def size(shape):
            match shape:
                case Circle(radius) if radius > LIMIT: return "large"
                case Circle(radius=1): return "one"
                case {"kind": str(kind), **rest}: return f"{kind} {rest}"
                case [first, *_]: return first
                case _: return None

        DEF computation(shapes, coro=None):
            WAIT coro.sleep(0)
            return [size(shape) for shape in shapes]

        def check(worker):
            shapes = [Circle(5), Circle(1), {"kind": "box", "a": 1}, (7, 8), 0]
            assert worker.run(computation, shapes) == ["large", "one", "box {'a': 1}", 7, None]
        """,
    ),
    Row(
        "instances, both ways",
        """
        class Point:
            def __init__(self, x, y): self.x, self.y = x, y
            def __eq__(self, other): return type(other) is Point and (self.x, self.y) == (other.x, other.y)
            def __hash__(self): return hash((self.x, self.y))

        class Slotted:
            __slots__ = ("value", "__weakref__")
            def __init__(self, value): self.value = value

        class Custom:
            def __init__(self, text): self.text = text
            def __reduce__(self): return Custom, (self.text.upper(),)

        class Kept:
            def __init__(self): self.file, self.n = open("/dev/null"), 1
            def __getstate__(self): return {"n": self.n}
            def __setstate__(self, state): self.n = state["n"] + 1

        class Numbers(list):
            def total(self): return sum(self)

        DEF computation(point, coro=None):
            assert type(point) is Point
            client = WAIT coro.receive()
            asked = WAIT client.ask({point: [Slotted(point)]})
            assert type(asked) is Slotted and type(asked.value) is Point
            slotted, custom, kept, numbers = WAIT coro.receive()
            assert type(slotted) is Slotted and custom.text == "A" and kept.n == 2 and numbers.total() == 6
            return point, slotted, custom, numbers, {Point(1, 2): {Point(5, 6)}}, Point

        def check(worker):
            with worker.opened(computation) as start:
                remote = start(Point(1, 2))
                remote.send(worker.mesh.ref)
                message = worker.mesh.receive(20)
                ((key, (slotted,)),) = message.items()
                assert type(key) is Point and type(slotted) is Slotted and slotted.value is key
                worker.mesh.reply(Slotted(Point(3, 4)))
                kept = Kept()
                with kept.file:
                    remote.send((Slotted(9), Custom("a"), kept, Numbers([1, 2, 3])))
                point, slotted, custom, numbers, table, cls = remote.result(20)
            assert cls is Point and type(point) is Point and point == Point(1, 2)
            assert type(slotted) is Slotted and slotted.value == 9
            assert type(custom) is Custom and custom.text == "A"
            assert type(numbers) is Numbers and numbers.total() == 6
            assert table == {Point(1, 2): {Point(5, 6)}}
        """,
    ),
    Row(
        "classes of a function, both ways",
        """
        def made():
            import collections
            import dataclasses
            import enum

            class Point:
                def __init__(self, x): self.x = x

            @dataclasses.dataclass
            class Job:
                point: Point

            class Color(enum.Enum):
                RED = 1

            Pair = collections.namedtuple("Pair", "a b")

            DEF computation(job, coro=None):
                WAIT coro.sleep(0)
                assert type(job) is Job and type(job.point) is Point
                return job.point, Job(Point(2)), Color.RED, Pair(1, 2)
            return Point, Job, Color, Pair, computation

        def check(worker):
            Point, Job, Color, Pair, computation = made()
            with worker.opened(computation) as start:
                for _ in range(2):
                    point, job, color, pair = start(Job(Point(1))).result(20)
                    assert type(point) is type(job.point) is Point and (point.x, job.point.x) == (1, 2)
                    assert type(job) is Job and color is Color.RED and type(pair) is Pair
        """,
    ),
    Row(
        "exceptions of one's own",
        """
        class Failure(Exception):
            def __init__(self, code, detail):
                super().__init__(f"{code}: {detail}")
                self.code, self.detail = code, detail

        class Deeper(Failure):
            pass

        class Custom(Failure):
            def __reduce__(self): return type(self), (self.code, self.detail)

        class Detail:
            def __init__(self, n): self.n = n

        DEF computation(kind, coro=None):
            WAIT coro.sleep(0)
            if kind == "group":
                raise ExceptionGroup("several", [Custom(1, Detail(2)), ValueError("plain")])
            try:
                {}["missing"]
            except KeyError as error:
                failure = Deeper(7, Detail(5))
                failure.add_note("seen there")
                raise failure from error

        def check(worker):
            with worker.opened(computation) as start:
                try:
                    start("one").result(20)
                except Failure as error:
                    assert type(error) is Deeper and error.code == 7
                    assert type(error.detail) is Detail and error.detail.n == 5
                    causes = [error.__cause__]
                    while causes[-1].__cause__ is not None:
                        causes.append(causes[-1].__cause__)
                    assert type(causes[0]) is KeyError and causes[0].args == ("missing",)
                    assert "in computation" in str(causes[-1])
                    assert "seen there" in error.__notes__
                else:
                    raise AssertionError("nothing was raised")
                try:
                    start("group").result(20)
                except* Failure as group:
                    assert [each.code for each in group.exceptions] == [1]
                except* ValueError as group:
                    assert [str(each) for each in group.exceptions] == ["plain"]
        """,
    ),
    Row(
        "copies and pickles made there",
        """
        import copy
        import pickle

        class Point:
            def __init__(self, x): self.x = x

        def helper(): pass

        def prepare():
            global prepared
            prepared = pickle.dumps(Point(5))

        DEF computation(point, coro=None):
            WAIT coro.sleep(0)
            assert pickle.loads(prepared).x == 5
            copied, again = copy.deepcopy(point), pickle.loads(pickle.dumps(point))
            assert type(copied) is type(again) is Point and copied.x == again.x == 5
            assert pickle.loads(pickle.dumps(helper)) is helper
            return again

        def check(worker):
            assert type(worker.run(computation, Point(5), func=prepare)) is Point
        """,
    ),
    Row(
        "processes that it starts",
        """
        import concurrent.futures
        import multiprocessing

        BASE = 10

        class Point:
            def __init__(self, x): self.x = x

        def helper(point): return Point(BASE + point.x)

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as pool:
                return [point.x for point in pool.map(helper, [Point(1), Point(2)])]

        def check(worker):
            assert worker.run(computation) == [11, 12]
        """,
    ),
    Row(
        "introspection",
        """
        import inspect
        import sys

        def helper():
            return 1  # a comment

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            module = sys.modules[__name__]
            assert vars(module) is globals() and inspect.getmodule(helper) is module
            return inspect.getsource(helper), inspect.signature(computation).parameters.keys() == {"coro"}

        def check(worker):
            assert worker.run(computation) == ("def helper():\\n    return 1  # a comment\\n", True)
        """,
        not_in=dict.fromkeys(BY_VALUE, "what was shipped by value has no module and no source at the worker"),
    ),
    Row(
        "a file beside the script, by __file__",
        """
        from pathlib import Path

        HERE = Path(__file__).parent

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            return (Path(__file__).parent / "beside.txt").read_text(), Path(__file__).name

        def check(worker):
            found = worker.run(computation, depends=[HERE / "beside.txt"])
            assert found == ("beside", Path(__file__).name)
        """,
        {"beside.txt": "beside"},
        not_in=dict.fromkeys(("notebook", "exec"), "there is no __file__ without a file"),
    ),
    Row(
        "threads",
        """
        import asyncio
        import concurrent.futures

        BASE = 10

        class Point:
            def __init__(self, x): self.x = x

        def helper(n): return Point(BASE + n)

        DEF computation(coro=None):
            point = WAIT asyncio.to_thread(helper, 1)
            with concurrent.futures.ThreadPoolExecutor(2) as pool:
                return [point, *pool.map(helper, range(2))]

        def check(worker):
            found = worker.run(computation)
            assert [point.x for point in found] == [11, 10, 11] and {type(point) for point in found} == {Point}
        """,
    ),
    Row(
        "functions and classes in depends",
        """
        class Point:
            def __init__(self, x): self.x = x

        def helper(n): return Point(2 * n)

        DEF computation(n, coro=None):
            WAIT coro.sleep(0)
            return globals()["helper"](n), globals()["Point"](n), eval("helper(1).x")

        def check(worker):
            doubled, plain, evaluated = worker.run(computation, 4, depends=[helper, Point])
            assert type(doubled) is type(plain) is Point and (doubled.x, plain.x, evaluated) == (8, 4, 2)
        """,
    ),
    Row(
        "further functions, sent later",
        """
        class Task:
            def __init__(self, function): self.function = function

        def offset(n): return n + 100
        DEF child(n, coro=None):
            WAIT coro.sleep(0)
            return offset(n)

        DEF computation(coro=None):
            task = WAIT coro.receive()
            assert type(task) is Task
            import discoro
            return task.function(1), (WAIT discoro.Coro(child, 2).result())

        def check(worker):
            with worker.opened(computation) as start:
                remote = start()
                remote.send(Task(lambda n: offset(n) + 1))
                assert remote.result(20) == (102, 102)
        """,
    ),
    Row(
        "classes made while it runs",
        """
        import dataclasses
        import enum
        import typing

        DEF computation(coro=None):
            WAIT coro.sleep(0)
            Point = dataclasses.make_dataclass("Point", ["x"])
            Color = enum.Enum("Color", "RED GREEN")
            Pair = typing.NamedTuple("Pair", [("a", int)])
            class Local:
                def __init__(self): self.points = [Point(1)]
            return Point(2).x, Color.RED.value, Pair(3).a, Local().points[0].x, type("Made", (Local,), {"n": 4})().n

        def check(worker):
            assert worker.run(computation) == (2, 1, 3, 1, 4)
        """,
    ),
)


@pytest.fixture(scope="module")
def clients(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clients]:
    with Clients(tmp_path_factory.mktemp("code"), ROWS) as clients:
        yield clients


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_code_runs_there_as_here(clients: Clients, row: Row, source: str, style: str) -> None:
    if source in row.not_in:
        pytest.skip(row.not_in[source])
    clients.check(row, source, style)
