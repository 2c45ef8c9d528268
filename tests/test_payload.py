"""Payloads: code and messages between two real interpreters; buffers, errors and refusals in this one."""

from __future__ import annotations

import contextlib
import functools
import json
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from discoro import building, errors, messages, packing, payload, shipping
from discoro.memory import Unkept
from discoro.payload import Namespace, Part

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def nothing_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was shipped is remembered per process; each test begins as a process does."""
    monkeypatch.setattr(shipping._Shipped, "modules", frozenset())
    monkeypatch.setattr(shipping._Shipped, "marks", (b"__main__",))


# ---- bad input ----------------------------------------------------------------------------------


class Holder:
    def __init__(self, **attributes: object) -> None:
        self.__dict__.update(attributes)


class Slotted:
    __slots__ = ("guard",)

    def __init__(self, guard: object) -> None:
        self.guard = guard


class Sulking:
    def __reduce__(self) -> str:
        raise ValueError("not today")


guard = threading.Lock()


def uses_guard() -> bool:
    return guard.locked()


def over_a_variable(value: object) -> Callable[[], object]:
    return lambda: value


def with_a_default(value: object = guard) -> object:
    return value


def looped(lock: object) -> Holder:
    parent, child = Holder(), Holder()
    parent.__dict__.update(child=child, lock=lock)
    child.__dict__.update(parent=parent)
    return parent


LOCK = "cannot pickle '_thread.lock' object"


@pytest.mark.parametrize(
    ("message", "place", "reason"),
    [
        (threading.Lock(), "message:", LOCK),
        ([1, 2, {"lock": threading.Lock()}], "message[2]['lock']:", LOCK),
        ({"a": {7: (0, threading.Lock())}}, "message['a'][7][1]:", LOCK),
        ([Holder(inner=Holder(lock=threading.Lock()))], "message[0].inner.lock:", LOCK),
        ([Slotted(threading.Lock())], "message[0].guard:", LOCK),
        (looped(threading.Lock()), "message.lock:", LOCK),
        ((over_a_variable(threading.Lock()),), "message[0]:", "(from 'value' in "),
        ([(x for x in "")], "message[0]:", "cannot pickle 'generator' object"),
        ([memoryview(b"xyz")[::2]], "message[0]:", "cannot pickle a memoryview that is not C-contiguous; send bytes(view)"),
        ({"f": sys.stdout.buffer}, "message['f']:", "cannot pickle"),
        ([functools.partial(print, threading.Lock())], "message[0]", LOCK),
        ([0, Sulking()], "message[1]:", "ValueError: not today"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,  # an address would change with each process
)
def test_what_cannot_be_packed_is_named_with_its_place(message: object, place: str, reason: str) -> None:
    with pytest.raises(errors.PackError) as caught:
        payload.pack(message)
    assert str(caught.value).startswith(place) and reason in str(caught.value)
    assert caught.value.__cause__ is not None


def test_a_global_that_cannot_be_packed_is_named_by_its_module() -> None:
    with pytest.raises(errors.PackError, match=r"message\['f'\]: .*lock.* \(from tests.test_payload.guard\)"):
        shipped = payload.pack_code([uses_guard])  # from now on its module is known to be shipped
        assert shipped
        payload.pack({"f": uses_guard})


def test_code_that_cannot_be_packed_is_named() -> None:
    stream = sys.stdout.buffer

    def careless(target: object = stream) -> object:
        return target

    with pytest.raises(errors.PackError, match=r"code\[0\]: cannot pickle .* \(from a default of .*careless\)"):
        payload.pack_code([careless])


def test_nesting_too_deep_is_no_crash() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(errors.PackError, match="message: RecursionError.* flatter"):
        payload.pack(deep)
    while deep:  # freed one by one: the interpreter would recurse
        deep = deep.pop()  # type: ignore[assignment]


class Endless:
    """Made anew by every look at it, and with a way back to where it was."""

    def __init__(self, root: list[object]) -> None:
        self.root = root

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (), [threading.Lock(), self.root]


def test_a_culprit_that_cannot_be_found_again_is_still_told() -> None:
    root: list[object] = []
    root.append(Endless(root))
    with pytest.raises(errors.PackError, match=f"message: {LOCK}"):
        payload.pack(root)


class Fickle(dict[str, int]):
    looks = 0

    def items(self) -> Any:
        Fickle.looks += 1
        if Fickle.looks > 2:
            raise RuntimeError("enough")
        return super().items()


def test_a_search_that_stumbles_over_an_object_hides_nothing() -> None:
    with pytest.raises(errors.PackError, match=f"message: {LOCK}"):
        payload.pack([Fickle(), [[threading.Lock()]]])
    assert Fickle.looks == 3


@pytest.mark.parametrize(
    ("parts", "reason"),
    [
        ([], "without parts"),
        (Unkept(5_000_000), "cannot unpack a message of 5000000 bytes, for which no memory is left: send less"),
        ([b""], "EOFError|Ran out of input"),
        ([b"garbage"], "cannot unpack a message"),
        ([payload.pack([1, 2, 3])[0][:-3]], "cannot unpack a message"),
        (payload.pack(pickle.PickleBuffer(bytes(100_000)))[:1], "buffer"),
        ([b"cno_such_module_here\nthing\n."], "install no_such_module_here on this machine"),
        ([b"csys\nno_such_name\n."], "no_such_name"),
        ([b"csys\nexit\n(I3\ntR."], "SystemExit: 3"),
        ([b"\x80\x05\x8c\x10discoro.building\x94\x8c\x04load\x94\x93."], "cannot unpack a message"),
    ],
)
def test_what_cannot_be_unpacked_is_an_error(parts: Sequence[Part], reason: str) -> None:
    with pytest.raises(errors.UnpackError, match=reason):
        payload.unpack(parts)
    with pytest.raises(errors.UnpackError):
        payload.unpack(parts, Namespace("n"))
    if not parts:
        with pytest.raises(errors.UnpackError, match=reason.replace("a message", "code")):
            payload.unpack_code(parts, Namespace("n"))
        with pytest.raises(errors.UnpackError, match=reason.replace("a message", "an error")):
            payload.unpack_error(parts)


def test_what_is_no_code_is_refused_as_such() -> None:
    with pytest.raises(errors.UnpackError, match="a list was expected"):
        payload.unpack_code(payload.pack({"a": 1}), Namespace("n"))


@pytest.mark.parametrize("parts", [[], [b"x"], payload.pack(3), payload.pack(("a", "b", 3)), payload.pack([1])])
def test_what_is_no_error_is_refused_as_one(parts: Sequence[Part]) -> None:
    with pytest.raises(errors.UnpackError, match="error"):
        payload.unpack_error(parts)


# ---- plain data and buffers ---------------------------------------------------------------------


class Array:
    """What an array library does: its memory goes as a buffer of its own."""

    def __init__(self, memory: object) -> None:
        self.memory = memoryview(memory)  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return Array, (pickle.PickleBuffer(self.memory),)


@pytest.mark.parametrize("value", [None, 1, "text", [1, (2.5,)], {"a": {1, 2}}, range(3), bytearray(b"x")])
def test_plain_values_are_plain_pickle(value: object) -> None:
    assert payload.pack(value) == [pickle.dumps(value, 5)]
    assert payload.unpack(payload.pack(value)) == value


@pytest.mark.parametrize("value", [b"", b"=", b"bytes", bytes(payload.OUT_OF_BAND - 1)])
def test_small_bytes_travel_as_they_are(value: bytes) -> None:
    (body,) = payload.pack(value)
    assert body == b"=" + value
    assert payload.unpack_small(bytes(body), None) == payload.unpack([memoryview(body)]) == value
    assert payload.unpack([body], shared=True) == value


@pytest.mark.parametrize("size", [0, 1, payload.OUT_OF_BAND - 1, payload.OUT_OF_BAND, 1_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_bytes_of_any_size_come_back_as_they_were(kind: type, size: int) -> None:
    for wire in (bytes, bytearray, memoryview):
        found = payload.unpack([wire(part) for part in payload.pack(kind(size))])
        assert type(found) is kind and found == kind(size)


def test_large_read_only_buffers_are_not_copied_on_their_way_out() -> None:
    data = bytes(100_000)
    assert payload.pack(data)[1] is data
    below = bytearray(100_000)
    packed = payload.pack({"a": Array(memoryview(below).toreadonly())})
    below[0] = 7  # only this test may: who hands out a read-only view promises that it stays
    assert len(packed) == 2 and packed[1][0] == 7


@pytest.mark.parametrize("wrap", [lambda data: data, Array, lambda data: [Array(data)]])
def test_writable_buffers_are_copied_at_once(wrap: Callable[[bytearray], object]) -> None:
    data = bytearray(b"a" * 100_000)
    packed = payload.pack(wrap(data))
    data[:] = b"b" * 100_000
    assert bytes(packed[1]) == b"a" * 100_000


def test_small_buffers_stay_in_the_pickle() -> None:
    assert len(payload.pack([Array(bytearray(payload.OUT_OF_BAND - 1))] * 3)) == 1


def test_more_buffers_than_a_message_may_have_stay_in_the_pickle() -> None:
    memory = bytes(payload.OUT_OF_BAND)
    packed = payload.pack([Array(memory) for _ in range(messages.MAX_PARTS + 5)])
    assert len(packed) < messages.MAX_PARTS
    assert len(payload.unpack(packed)) == messages.MAX_PARTS + 5


@pytest.mark.parametrize("wire", [bytes, bytearray])
@pytest.mark.parametrize("original", [bytes, bytearray])
def test_an_array_may_be_written_to_where_the_original_could(original: type, wire: type) -> None:
    body, buffer = payload.pack(Array(original(100_000)))
    found = payload.unpack([body, wire(buffer)])
    assert found.memory.readonly is (original is bytes)


def test_an_array_takes_over_a_writable_part() -> None:
    body, buffer = payload.pack(Array(bytearray(100_000)))
    arrived = bytearray(buffer)
    payload.unpack([body, memoryview(arrived)]).memory[0] = 7
    assert arrived[0] == 7


# ---- in this process ----------------------------------------------------------------------------


def test_lambdas_and_nested_functions_travel_in_messages() -> None:
    found = payload.unpack(payload.pack([lambda x: x + 1, over_a_variable(5)]))
    assert found[0](1) == 2 and found[1]() == 5


def test_functions_of_importable_modules_stay_what_they_are() -> None:
    assert payload.unpack(payload.pack([json.dumps, over_a_variable])) == [json.dumps, over_a_variable]
    assert payload.unpack_code(payload.pack_code([json.dumps, Path]), Namespace("n")) == [json.dumps, Path]


def test_an_unnamed_class_is_built_once_for_each_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    def make(base: int) -> type:
        return type("Local", (), {"value": base, "__qualname__": "make.<locals>.Local"})

    one, two = make(1), make(2)
    packed = payload.pack([one(), one, two])
    for namespace in (None, Namespace("n")):
        assert payload.unpack(packed, namespace)[1] is one  # back where it is from
    monkeypatch.setattr(building, "_known_here", {})  # as in another process
    for namespace in (None, Namespace("n")):
        first, again = payload.unpack(packed, namespace), payload.unpack(packed, namespace)
        assert type(first[0]) is first[1] is again[1] is not one
        assert first[2].value == 2 and first[2] is again[2] is not first[1]


def test_classes_kept_by_identity_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "CLASSES_KEPT", 3)
    namespace = Namespace("n")
    for number in range(10):
        monkeypatch.setattr(building, "_known_here", {})
        cls = type("Local", (), {"number": number, "__qualname__": "f.<locals>.Local"})
        packed = payload.pack(cls)
        building._known_here.clear()  # as in another process
        assert payload.unpack(packed, namespace).number == number
    assert len(namespace.known) == 3


def test_a_long_chain_of_functions_is_not_too_deep() -> None:
    chain: dict[str, Any] = {"__name__": "chain"}
    exec("".join(f"def f{i}(): return f{i + 1}\n" for i in range(2000)) + "f2000 = 7", chain)
    (first,) = payload.unpack_code(payload.pack_code([chain["f0"]]), Namespace("n"))
    for _ in range(2000):
        first = first()
    assert first == 7


def test_a_namespace_says_what_it_holds() -> None:
    namespace = Namespace("sums")
    namespace.globals_of("m")["x"] = 1
    assert repr(namespace) == "<Namespace 'sums': names {'m': 1}>"
    assert namespace.globals_of("m") is namespace.globals_of("m")
    assert namespace.lookup("m", "x") == 1
    assert namespace.lookup("m", "x.no") is namespace.lookup("m", "y") is namespace.lookup("k", "x") is None
    assert "k" not in repr(namespace)


counter = 0


def count() -> int:
    global counter
    counter += 1
    return counter


def recount() -> int:
    return counter * 100


def test_later_code_with_keep_finds_what_earlier_code_set() -> None:
    namespace = Namespace("n")
    (count_there,) = payload.unpack_code(payload.pack_code([count]), namespace)
    assert [count_there(), count_there()] == [1, 2] and counter == 0
    (recount_there,) = payload.unpack_code(payload.pack_code([recount]), namespace, keep=True)
    assert recount_there() == 200
    payload.unpack_code(payload.pack_code([recount]), namespace)  # fresh code brings its globals
    assert recount_there() == 0 and count_there() == 1


def test_code_in_a_message_replaces_nothing() -> None:
    namespace = Namespace("n")
    (count_there,) = payload.unpack_code(payload.pack_code([count]), namespace)
    count_there()
    found = payload.unpack(payload.pack(lambda: counter), namespace)
    assert found() == 1


def test_code_kept_keeps_its_classes() -> None:
    namespace = Namespace("n")
    (first,) = payload.unpack_code(payload.pack_code([Holder]), namespace)
    (again,) = payload.unpack_code(payload.pack_code([Holder]), namespace, keep=True)
    (fresh,) = payload.unpack_code(payload.pack_code([Holder]), namespace)
    assert again is first is not Holder and fresh is not first
    assert namespace.lookup(__name__, "Holder") is fresh


def test_a_class_that_is_kept_stays_as_it_is() -> None:
    namespace = Namespace("n")
    (there,) = payload.unpack_code(payload.pack_code([Holder]), namespace)
    there.__init__ = there.note = None
    payload.unpack_code(payload.pack_code([Holder]), namespace, keep=True)
    assert there.__init__ is there.note is None


def test_a_class_that_came_with_a_message_has_its_name_in_the_namespace() -> None:
    namespace = Namespace("n")
    shipping._Shipped.add(__name__)
    packed = payload.pack(Holder())
    building._known_here.clear()  # as in another process
    holder = payload.unpack(packed, namespace)
    assert namespace.lookup(__name__, "Holder") is type(holder) is not Holder


class Bare:
    pass


def test_a_class_without_methods_makes_its_module_known_as_shipped() -> None:
    assert payload.unpack(payload.pack(Bare)) is Bare
    packed = payload.pack(Bare())
    payload.pack_code([Bare])
    assert len(payload.pack(Bare())[0]) > len(packed[0])


def test_a_plain_name_is_looked_up_in_the_namespace() -> None:
    """What a sender can import goes by name, and the receiver may have it by shipping only."""
    namespace = Namespace("n")
    namespace.globals_of("no_such_module_here")["thing"] = here = object()
    packed = b"\x80\x05\x8c\x13no_such_module_here\x94\x8c\x05thing\x94\x93."
    assert payload.unpack([packed], namespace) is here


@contextlib.contextmanager
def managed() -> Iterator[int]:
    yield counter


def test_a_wrapper_from_an_installed_module_keeps_its_globals_there() -> None:
    (found,) = payload.unpack_code(payload.pack_code([managed]), Namespace("n"))
    assert found.__globals__ is vars(contextlib)
    with found() as value:
        assert value == counter


def test_a_class_of_a_shipped_module_finds_its_namespace() -> None:
    """Both ways, though here its module could be imported."""
    namespace = Namespace("n")
    (there,) = payload.unpack_code(payload.pack_code([Holder]), namespace)
    sent = payload.unpack(payload.pack(Holder(x=1)), namespace)
    assert type(sent) is there and vars(sent) == {"x": 1}
    back = payload.unpack(payload.pack(sent))
    assert type(back) is Holder and vars(back) == {"x": 1}


def test_dill_is_imported_by_code_only() -> None:
    check = "import sys, discoro.payload as p; p.unpack(p.pack([1, b'x'])); assert 'dill' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT, timeout=60)


def test_warming_up_imports_dill() -> None:
    check = "import sys, discoro.payload as p; p.warm_up(); assert 'dill' in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True, cwd=ROOT, timeout=60)


def test_a_nested_function_of_an_installed_module_leaves_the_rest_of_it_by_name() -> None:
    payload.pack_code([functools.cmp_to_key, functools.singledispatch(len)])  # a closure of functools
    assert payload.pack([functools.reduce, functools.update_wrapper]) == [
        pickle.dumps([functools.reduce, functools.update_wrapper], 5)
    ]
    assert not shipping._Shipped.modules


# ---- errors -------------------------------------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class Guarded(Exception):
    def __init__(self) -> None:
        super().__init__("guarded")
        self.lock = threading.Lock()


class NoText(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no", 3),
        KeyError("k"),
        OSError(2, "gone", "file"),
        UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
        StopIteration(5),
        SystemExit(3),
        KeyboardInterrupt(),
        TwoArguments(7, "seven"),
        errors.PackError("what"),
        json.JSONDecodeError("bad", "doc", 1),
        ExceptionGroup("all", [ValueError("a")]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_arrives_as_itself_caused_by_its_traceback(error: BaseException) -> None:
    found = payload.unpack_error(payload.pack_error(raised(error)))
    assert type(found) is type(error) and str(found) == str(error) and found.args[0:1] == error.args[0:1]
    assert {key: getattr(found, key) for key in vars(error)} == vars(error)
    assert isinstance(found.__cause__, errors.RemoteError) and "in raised" in str(found.__cause__)
    for name in ("code", "value", "errno", "pos", "start"):
        assert getattr(found, name, None) == getattr(error, name, None)


def test_notes_travel_with_an_error() -> None:
    error = ValueError("x")
    error.add_note("on ada")
    assert payload.unpack_error(payload.pack_error(error)).__notes__ == ["on ada"]


def test_an_error_that_cannot_travel_arrives_as_text() -> None:
    found = payload.unpack_error(payload.pack_error(raised(Guarded())))
    assert type(found) is errors.RemoteError
    assert "Guarded: guarded" in str(found) and "in raised" in str(found)


def test_an_error_that_cannot_be_rebuilt_arrives_as_text_and_says_why() -> None:
    texts, _ = payload.pack_error(raised(ValueError("lost")))
    found = payload.unpack_error([texts, b"cno_such_module_here\nError\n."])
    assert type(found) is errors.RemoteError and "ValueError: lost" in str(found)
    assert "install no_such_module_here" in "".join(traceback.format_exception(found))


@pytest.mark.parametrize("error", [NoText(), raised(NoText())])
def test_an_error_whose_str_fails_is_still_told(error: BaseException) -> None:
    found = payload.unpack_error(payload.pack_error(error))
    assert type(found) is NoText


def test_an_error_is_never_too_large_to_be_told() -> None:
    parts = payload.pack_error(raised(ValueError("x" * 10_000_000, bytes(10_000_000))))
    assert sum(len(part) for part in parts) < 3 * packing.MAX_TEXT
    assert "characters left out" in str(payload.unpack_error(parts))


# ---- between two interpreters -------------------------------------------------------------------

HELPERS = '''
"""A local module: it travels as this file, and is the same module on both sides."""
import math
FACTOR = 10
class Thing:
    def __init__(self, n): self.n = n
    def area(self): return round(math.pi * self.n, 2)
    def __eq__(self, other): return isinstance(other, Thing) and other.n == self.n
def scaled(n): return grown(n) * FACTOR
def grown(n): return n + 1
def logged(function):
    import functools
    @functools.wraps(function)
    def wrapper(*args):
        return ("logged", function(*args), FACTOR)
    return wrapper
'''

SENDER = """
import abc, asyncio, collections, contextlib, dataclasses, enum, functools, json, math, pickle, sys, threading, typing
import os
import os.path as osp
import xml.etree.ElementTree
import email.mime.text
from pathlib import Path
from discoro import payload
import helpers
from helpers import scaled, logged, Thing

LIMIT = 3
UNUSED = threading.current_thread()     # cannot be packed, and must not be tried
table = {"a": 1}
state = None
T = typing.TypeVar("T")
UserId = typing.NewType("UserId", int)
lock = threading.Lock()

def helper(n): return n * LIMIT
def simple(n): return helper(n) + len(table)
def recursive(n): return 1 if n < 2 else n * recursive(n - 1)
def even(n): return True if n == 0 else odd(n - 1)
def odd(n): return False if n == 0 else even(n - 1)
def defaults(a, b=2, *rest, c, d=[LIMIT], **more): return [a, b, rest, c, d, more]
def call_defaults(): return defaults(1, c=3)
def shared():
    value = 0
    def put(v):
        nonlocal value
        value = v
    def get(): return value
    return put, get
put, get = shared()
def use_shared(): put(42); return get()
def nested_recursion(n):
    def down(k): return 0 if k == 0 else 1 + down(k - 1)
    return down(n)
def make_down():
    def down(k): return [] if k == 0 else [k] + other(k - 1)
    def other(k): return down(k)
    return down
down = make_down()
@logged
def decorated(n): return n + LIMIT
@contextlib.contextmanager
def managed(): yield LIMIT
def use_managed():
    with managed() as value: return value
@functools.lru_cache(maxsize=None)
def fib(n): return n if n < 2 else fib(n - 1) + fib(n - 2)
@functools.singledispatch
def kind(x): return "other"
@kind.register
def _(x: int): return "int"
def use_kind(): return [kind(1), kind("")]
def use_fib(): return fib(30)
def generator(n):
    for i in range(n): yield helper(i)
async def coroutine(n):
    await asyncio.sleep(0)
    return helper(n)
async def agen(n):
    for i in range(n): yield i
async def use_agen(n): return [i async for i in agen(n)]
anonymous = lambda n: [helper(i) for i in range(n)]
def in_class_body():
    class Inner:
        limit = LIMIT
        factor = helpers.FACTOR if False else 0
    return Inner.limit
def modules(): return [math.floor(2.5), osp.join("a", "b"), json.dumps(1), xml.etree.ElementTree.Element("x").tag]
def submodules(): return email.mime.text.MIMEText("x").get_content_type()
def local_module(n): return scaled(n)
def with_lock():
    with lock: return "held"
def counts(n):
    global state
    state = (state or 0) + n
    return state
def counted(): return state
def use_counts(): return [counts(2), counts(3), counted()]
def annotated(user: UserId, items: "list[T]" = ()) -> typing.Optional[T]: return user
def dunder_name(): return __name__
def no_file(): return "__file__" in globals()
partial_global = functools.partial(helper, 5)
def use_partial(): return partial_global()

class Base:
    registry = []
    def __init__(self, n): self.n = n
    def __init_subclass__(cls, *, tag, **kw): super().__init_subclass__(**kw); Base.registry.append(tag); cls.tag = tag
    def describe(self): return f"{type(self).__name__}:{self.n}"
    def __eq__(self, other): return type(other) is type(self) and vars(other) == vars(self)
class Child(Base, tag="child"):
    def __init__(self, n): super().__init__(n); self.m = helper(n)
    def describe(self): return super().describe() + f":{self.m}"
    def __repr__(self): return self.describe()
    @property
    def double(self): return self.n * 2
    @staticmethod
    def static(n): return helper(n)
    @classmethod
    def make(cls, n): return cls(n)
    @functools.cached_property
    def slow(self): return helper(self.n)
    class Part:
        size = LIMIT
def use_child():
    c = Child.make(4)
    return [c.describe(), c.double, c.static(2), c.slow, c.Part().size, isinstance(c, Base), Base.registry, Child.tag,
            Child.__qualname__, Child.Part.__qualname__, Child.__module__]
class Node:
    def __init__(self, parent=None): self.parent = parent
    def up(self): return Node(self)
def use_node(): return type(Node().up().parent) is Node
@dataclasses.dataclass(order=True)
class Point:
    x: int
    y: int = 2
    tags: list = dataclasses.field(default_factory=list)
    def norm(self): return math.hypot(self.x, self.y)
@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Frozen:
    x: int = LIMIT
def use_point():
    p = Point(3, 4)
    return [p.norm(), repr(p), Point(1) < p, dataclasses.asdict(p), dataclasses.replace(p, x=1).x, repr(Frozen(x=1)),
            [f.name for f in dataclasses.fields(Point)], Point(1).tags is not Point(1).tags]
class Color(enum.Enum):
    RED = 1
    GREEN = enum.auto()
    CRIMSON = 1
    def pretty(self): return self.name.title() + str(LIMIT)
    @classmethod
    def _missing_(cls, value): return cls.GREEN
class Planet(enum.Enum):
    EARTH = (5.976e24, 6.37814e6)
    def __init__(self, mass, radius): self.mass = mass; self.radius = radius
    @property
    def gravity(self): return round(6.67430e-11 * self.mass / self.radius ** 2, 1)
class Perm(enum.Flag):
    R = 4
    W = 2
    RW = R | W
class Level(enum.IntEnum):
    LOW = 1
class Word(enum.StrEnum):
    A = enum.auto()
def use_enums():
    return [Color.RED.pretty(), Color(1) is Color.RED, Color.CRIMSON is Color.RED, [c.name for c in Color],
            Color(99).name, Planet.EARTH.gravity, str(Perm.R | Perm.W), (Perm.RW & Perm.R).value, Level.LOW + 1, Word.A + "!"]
class Pair(typing.NamedTuple):
    a: int
    b: int = 9
    def total(self): return self.a + self.b + LIMIT
Old = collections.namedtuple("Old", "x y")
def use_tuples(): return [Pair(1).total(), Pair(1)._asdict(), Old(1, 2).y, Old(1, 2)._replace(x=5), repr(Pair(2))]
class Shape(abc.ABC):
    @abc.abstractmethod
    def area(self): ...
class Square(Shape):
    def area(self): return 4
def use_abc():
    try: Shape()
    except TypeError: return [Square().area(), isinstance(Square(), Shape)]
class Box(typing.Generic[T]):
    def __init__(self, value: T): self.value = value
class Sized(typing.Protocol):
    def size(self) -> int: ...
class Options(typing.TypedDict, total=False):
    name: str
def use_typing(): return [Box[int](3).value, Options(name="x"), issubclass(Box, typing.Generic)]
class Meta(type):
    def __new__(mcls, name, bases, body, **kw):
        body["made"] = body.get("made", 0) + 1
        return super().__new__(mcls, name, bases, body)
    def __len__(cls): return LIMIT
class WithMeta(metaclass=Meta): pass
def use_meta(): return [WithMeta.made, len(WithMeta), type(WithMeta) is Meta]
class Slots:
    __slots__ = ("a", "__hidden")
    def __init__(self): self.a = 1; self.__hidden = 2
    def both(self): return [self.a, self.__hidden, hasattr(self, "__dict__")]
def use_slots(): return Slots().both()
class Descriptor:
    def __set_name__(self, owner, name): self.name = name
    def __get__(self, obj, owner=None): return self.name
class Described:
    field = Descriptor()
def use_descriptor(): return Described().field
class Failing(Exception):
    def __init__(self, code, text): super().__init__(text); self.code = code
def use_failing():
    try: raise Failing(3, "no")
    except Failing as error: return [error.code, str(error)]
class Call:
    def __call__(self, n): return helper(n)
def key_hash(n): return hash(n) + LIMIT
class Key:                              # can be hashed only where its helper is
    def __init__(self, n): self.n = n
    def __hash__(self): return key_hash(self.n)
    def __eq__(self, other): return self.n == other.n
    def known(self): return self in SEEN
SEEN = {Key(1): 1}
def use_keys(): return [Key(1).known(), Key(2).known()]
def use_seen(): return [key.known() for key in SEEN]
def by_name_only(): return [globals()["Helped"]().n(), globals()["helped"]()]
def helped(): return LIMIT
helped.tag = "tagged"
def attributes(): return helped.tag
class Helped:
    def n(self): return LIMIT

def reply(items):                       # what a remote coroutine does with a message: look at it and send it back
    point, child, thing, colors, pair, local, f, bound = items
    assert isinstance(point, Point) and isinstance(child, Child), type(point)
    assert colors["c"] is Color.GREEN and type(pair) is Pair
    return [Point(point.x + 1), child, thing, colors, pair, local, f(5), bound(), lambda n: helper(n) + point.x]
def local_class():
    class Local:
        def __init__(self, n): self.n = n
    return Local
Local = local_class()

CODE = {
    "simple": ([simple], (5,)), "recursive": ([recursive], (5,)), "mutual": ([even], (10,)),
    "defaults": ([call_defaults], ()), "shared cells": ([use_shared], ()),
    "shared cells directly": ([lambda: (put(1), get())[1]], ()),
    "nested recursion": ([nested_recursion], (4,)), "recursive closure": ([down], (3,)),
    "decorated": ([decorated], (4,)), "managed": ([use_managed], ()), "lru_cache": ([use_fib], ()),
    "singledispatch": ([use_kind], ()), "generator": ([generator], (3,)), "coroutine": ([coroutine], (7,)),
    "async generator": ([agen], (3,)), "async generator inside": ([use_agen], (3,)),
    "lambda": ([anonymous], (3,)), "class body": ([in_class_body], ()), "modules": ([modules], ()),
    "submodules": ([submodules], ()), "local module": ([local_module], (1,)), "lock": ([with_lock], ()),
    "global statement": ([use_counts], ()), "annotated": ([annotated], (1,)),
    "__name__": ([dunder_name], ()), "no __file__": ([no_file], ()), "partial": ([use_partial], ()),
    "inheritance": ([use_child], ()), "class in itself": ([use_node], ()), "dataclass": ([use_point], ()),
    "enum": ([use_enums], ()), "named tuples": ([use_tuples], ()), "abc": ([use_abc], ()),
    "typing": ([use_typing], ()), "metaclass": ([use_meta], ()), "slots": ([use_slots], ()),
    "descriptor": ([use_descriptor], ()), "exception": ([use_failing], ()),
    "class first": ([Child, use_child], (1,)), "bound method": ([Child(2).describe], ()),
    "callable": ([Call()], (2,)), "keys": ([use_keys], ()),
    "keys in data only": ([use_seen], ()), "depends by name": ([by_name_only, Helped, helped], ()),
    "attributes": ([attributes], ()),
}

if __name__ == "__main__":
    message = [Point(1), Child(2), Thing(3), {"c": Color.GREEN}, Pair(4), Local(5), lambda n: helper(n) + LIMIT,
               Point(3, 4).norm]
    code = {name: (payload.pack_code(objects), args) for name, (objects, args) in CODE.items()}
    sent = {"code": code, "reply": payload.pack_code([reply]), "message": payload.pack(message),
            "error": payload.pack_error(Failing(3, "no")),
            "steps": [payload.pack_code([f]) for f in (counts, counted)]}
    pickle.dump(sent, sys.stdout.buffer)
    sys.stdout.flush()
    os.close(1)
    back = payload.unpack(pickle.load(sys.stdin.buffer))
    point, child, thing, colors, pair, local, number, norm, function = back
    print([type(point) is Point and point == Point(2), child == Child(2), thing == Thing(3) and type(thing) is Thing,
           colors["c"] is Color.GREEN, type(pair) is Pair and pair.total(), type(local) is Local and local.n,
           number, norm, function(1)], file=sys.stderr)
"""

RECEIVER = """
import asyncio, inspect, pickle, sys
from discoro import payload

def drive(value):
    if inspect.isgenerator(value): return list(value)
    if inspect.iscoroutine(value): return asyncio.run(value)
    if inspect.isasyncgen(value):
        async def collect(): return [item async for item in value]
        return asyncio.run(collect())
    return value

def outcome(parts, args):
    try: return repr(drive(payload.unpack_code(parts, payload.Namespace("n"))[0](*args)))
    except BaseException as error: return f"failed: {type(error).__name__}: {error}"

sent = pickle.loads(sys.stdin.buffer.read())
results = {name: outcome(parts, args) for name, (parts, args) in sent["code"].items()}
namespace = payload.Namespace("n")
(reply,) = payload.unpack_code(sent["reply"], namespace)
answer = payload.pack(reply(payload.unpack(sent["message"], namespace)))
without = payload.unpack(sent["message"])
results["without namespace"] = repr([without[0], type(without[2]).__name__, without[6](5), without[7]()])
results["twice the same class"] = repr(type(payload.unpack(sent["message"])[0]) is type(without[0]))
error = payload.unpack_error(sent["error"], namespace)
results["error"] = repr([type(error).__name__, error.code, str(error)])
(counts,) = payload.unpack_code(sent["steps"][0], namespace)
counts(5)
(counted,) = payload.unpack_code(sent["steps"][1], namespace, keep=True)
results["steps"] = repr(counted())
results["own __main__ untouched"] = repr(hasattr(sys.modules["__main__"], "helper"))
sys.stdout.buffer.write(pickle.dumps((results, answer)))
"""

EXPECTED = {
    "simple": 16,
    "recursive": 120,
    "mutual": True,
    "defaults": [1, 2, (), 3, [3], {}],
    "shared cells": 42,
    "shared cells directly": 1,
    "nested recursion": 4,
    "recursive closure": [3, 2, 1],
    "decorated": ("logged", 7, 10),
    "managed": 3,
    "lru_cache": 832040,
    "singledispatch": ["int", "other"],
    "generator": [0, 3, 6],
    "coroutine": 21,
    "async generator": [0, 1, 2],
    "async generator inside": [0, 1, 2],
    "lambda": [0, 3, 6],
    "class body": 3,
    "modules": [2, "a/b", "1", "x"],
    "submodules": "text/plain",
    "local module": 20,
    "lock": "held",
    "global statement": [2, 5, 5],
    "annotated": 1,
    "__name__": "__main__",
    "no __file__": False,
    "partial": 15,
    "inheritance": [
        "Child:4:12",
        8,
        6,
        12,
        3,
        True,
        ["child"],
        "child",
        "Child",
        "Child.Part",
        "__main__",
    ],
    "class in itself": True,
    "dataclass": [
        5.0,
        "Point(x=3, y=4, tags=[])",
        True,
        {"x": 3, "y": 4, "tags": []},
        1,
        "Frozen(x=1)",
        ["x", "y", "tags"],
        True,
    ],
    "enum": [
        "Red3",
        True,
        True,
        ["RED", "GREEN"],
        "GREEN",
        9.8,
        "Perm.RW",
        4,
        2,
        "a!",
    ],
    "abc": [4, True],
    "typing": [3, {"name": "x"}, True],
    "metaclass": [1, 3, True],
    "slots": [1, 2, False],
    "descriptor": "field",
    "exception": [3, "no"],
    "bound method": "Child:2:6",
    "callable": 6,
    "keys": [True, False],
    "keys in data only": [True],
    "depends by name": [3, 3],
    "attributes": "tagged",
    "twice the same class": True,
    "error": ["Failing", 3, "no"],
    "steps": 5,
    "own __main__ untouched": False,
}
EXPECTED_TEXT = {
    "named tuples": "[13, {'a': 1, 'b': 9}, 2, Old(x=5, y=2), 'Pair(a=2, b=9)']",
    "class first": "Child:1:3",
    "without namespace": "[Point(x=1, y=2, tags=[]), 'Thing', 18, 5.0]",
}


def start(folder: Path, name: str) -> subprocess.Popen[bytes]:
    """An interpreter of its own, which can import discoro, and nothing local but what lies in its folder."""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    command = [sys.executable, "-W", "error", f"{name}.py"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=folder, env=environment, stdin=pipe, stdout=pipe, stderr=pipe)


@pytest.fixture(scope="module")
def journey(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Everything in SENDER, packed where it is `__main__`, unpacked elsewhere, and the answer taken home."""
    home, away = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("away")
    for folder, name, source in (
        (home, "helpers", HELPERS),
        (away, "helpers", HELPERS),
        (home, "sender", SENDER),
        (away, "receiver", RECEIVER),
    ):
        (folder / f"{name}.py").write_text(source)
    with start(home, "sender") as sender, start(away, "receiver") as receiver:
        assert sender.stdout is not None
        output, trouble = receiver.communicate(sender.stdout.read(), timeout=120)
        assert receiver.returncode == 0, trouble.decode()
        results, answer = pickle.loads(output)
        _, report = sender.communicate(pickle.dumps(answer), timeout=120)
        return {**results, "back home": report.decode()}


@pytest.mark.parametrize("name", [*EXPECTED, *EXPECTED_TEXT, "back home"])
def test_between_interpreters(name: str, journey: dict[str, str]) -> None:
    home = f"{[True, True, True, True, 16, 5, 18, 5.0, 4]}\n"
    expected = {**{key: repr(value) for key, value in EXPECTED.items()}, **EXPECTED_TEXT, "back home": home}
    assert journey[name] == expected[name]


def test_every_result_is_checked(journey: dict[str, str]) -> None:
    assert journey.keys() == {*EXPECTED, *EXPECTED_TEXT, "back home"}
