"""Exceptions: what was raised arrives as itself, with the causes that its author gave, and the traceback as the last of them.

First what is broken or hostile, then one exception, then causes and groups, then exceptions as values in messages, then a
journey between two interpreters, and from a worker.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import Computation, CoroRef, errors, packing, payload
from discoro.raised import MAX_CAUSES, MAX_NODES, lay_out, told_there
from tests.support.sites import Site, running_site

ROOT = Path(__file__).resolve().parent.parent


def raised(error: BaseException, cause: BaseException | None = None) -> BaseException:
    """As it is caught where it was raised."""
    try:
        if cause is not None:
            raise error from cause
        raise error
    except BaseException as caught:
        return caught


def sent(error: BaseException) -> BaseException:
    return payload.unpack_error(payload.pack_error(error))


def causes(error: BaseException) -> list[BaseException]:
    """The chain of causes, without the traceback at its end, which is asserted to be there."""
    chain = []
    while error.__cause__ is not None:
        chain.append(error := error.__cause__)
    assert isinstance(chain[-1], errors.RemoteError) and str(chain[-1]).startswith("the traceback where it was raised:")
    return chain[:-1]


# ---- what is broken -------------------------------------------------------------------------------


class Guarded(Exception):
    def __init__(self, *args: object) -> None:
        super().__init__(*args)
        self.lock = threading.Lock()


class Locked(Exception):
    """Packs here, and cannot be rebuilt anywhere."""

    def __reduce__(self) -> Any:
        return refuse, (str(self),)


def refuse(text: str) -> Exception:
    raise LookupError(f"no {text} here")


class NoText(Exception):
    def __str__(self) -> str:
        raise KeyError("no text")


class Odd(Exception):
    def __reduce__(self) -> Any:
        return "a_global"


class Listed(Exception):
    def __reduce__(self) -> Any:
        return Listed, (), None, iter([1])


def test_an_error_that_cannot_travel_arrives_as_text_with_its_causes_in_it() -> None:
    found = sent(raised(Guarded("g"), raised(ValueError("v"))))
    assert type(found) is errors.RemoteError and found.__cause__ is None
    assert "Guarded: g" in str(found) and "ValueError: v" in str(found) and "in raised" in str(found)


@pytest.mark.parametrize("kind", [Guarded, Locked, Odd, Listed])
def test_a_cause_that_cannot_travel_is_replaced_by_its_text(kind: type[Exception]) -> None:
    found = sent(raised(KeyError("k"), raised(kind("told"), raised(ValueError("deep")))))
    assert type(found) is KeyError
    stand_in, deep = causes(found)
    assert type(stand_in) is errors.RemoteError and "told" in str(stand_in) and kind.__qualname__ in str(stand_in)
    assert "it did not" in str(stand_in)
    assert type(deep) is ValueError


@pytest.mark.parametrize("kind", [Guarded, Locked])
def test_a_member_that_cannot_travel_is_replaced_by_its_text(kind: type[Exception]) -> None:
    found = sent(raised(ExceptionGroup("all", [kind("told"), ValueError("v")])))
    assert isinstance(found, ExceptionGroup)
    stand_in, other = found.exceptions
    assert type(stand_in) is errors.RemoteError and "told" in str(stand_in) and type(other) is ValueError


@pytest.mark.parametrize(
    "table",
    [
        b"garbage",
        pickle.dumps(5),
        pickle.dumps([]),
        pickle.dumps([1]),
        pickle.dumps([([b"x"], "text", None, False, None)]),
        pickle.dumps([(None, "text", None, False, None)]),
        pickle.dumps([(payload.pack((ValueError, (), None)), "text", 7, False, None)]),
        pickle.dumps([(payload.pack((print, (), None)), "text", None, False, None)]),
        pickle.dumps([(payload.pack((int, (), None)), "text", None, False, None)]),
        pickle.dumps([(payload.pack((ValueError, (), None)), "text", None, False, [0])]),
    ],
)
def test_a_broken_table_leaves_the_text(table: bytes) -> None:
    texts = payload.pack_error(raised(ValueError("lost")))[0]
    found = payload.unpack_error([texts, table])
    assert type(found) is errors.RemoteError and "ValueError: lost" in str(found)
    assert "did not arrive" in "".join(traceback.format_exception(found))


@pytest.mark.parametrize("error", [SyntaxError("bad", ("f", 1, 2, 5)), NoText("x")])
def test_an_error_that_nobody_can_print_is_still_told(error: Exception) -> None:
    assert type(sent(raised(error))) is type(error)


# ---- one exception --------------------------------------------------------------------------------


class TwoArguments(Exception):
    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code}: {text}")
        self.code = code


class KeywordOnly(Exception):
    def __init__(self, *, code: int) -> None:
        super().__init__()
        self.code = code


class NoArguments(OSError):
    def __init__(self) -> None:
        super().__init__(2, "gone", "file")


class WithSlots(Exception):
    __slots__ = ("code",)

    def __init__(self, code: int) -> None:
        self.code = code


@dataclasses.dataclass
class AsData(Exception):
    code: int
    tags: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class AsFrozenData(Exception):
    code: int


class Reduces(Exception):
    """As many libraries have it."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(f"{code} {why}")
        self.code, self.why = code, why

    def __reduce__(self) -> Any:
        return Reduces, (self.code, self.why)


class WithProperty(Exception):
    def __init__(self, code: int) -> None:
        super().__init__(code)
        self._code = code

    @property
    def code(self) -> int:
        return self._code


class New(ValueError):
    code: int

    def __new__(cls, code: int) -> New:
        made = super().__new__(cls, code, "more")
        made.code = code
        return made

    def __init__(self, code: int) -> None:
        pass


def a_wrong_import() -> Exception:
    try:
        from discoro import no_such_name  # type: ignore[attr-defined]  # noqa: F401
    except ImportError as error:
        return error
    raise AssertionError


def a_wrong_literal() -> Exception:
    try:
        compile("1 +", "file.py", "exec")
    except SyntaxError as error:
        return error
    raise AssertionError


ONE = [
    ValueError("no", 3, {"a": [1]}),
    Exception(),
    KeyError("k"),
    OSError(2, "gone", "file"),
    OSError(2, "gone", "file", None, "other"),
    BlockingIOError(11, "again", 5),
    UnicodeDecodeError("utf-8", b"x", 0, 1, "bad"),
    StopIteration(5),
    StopAsyncIteration(),
    SystemExit(3),
    KeyboardInterrupt(),
    asyncio.CancelledError("why"),
    asyncio.IncompleteReadError(b"ab", 5),
    TimeoutError("late"),
    json.JSONDecodeError("bad", "doc", 1),
    subprocess.CalledProcessError(3, ["ls"], b"out", b"err"),
    a_wrong_import(),
    a_wrong_literal(),
    errors.PackError("what"),
    errors.RemoteError("what"),
    TwoArguments(7, "seven"),
    KeywordOnly(code=7),
    NoArguments(),
    WithSlots(7),
    AsData(7, ["a"]),
    AsFrozenData(7),
    Reduces(7, "seven"),
    WithProperty(7),
    New(7),
    ExceptionGroup("all", [ValueError("a")]),
    BaseExceptionGroup("all", [KeyboardInterrupt()]),
]
LOOKED_AT = (
    "args", "code", "tags", "why", "value", "errno", "strerror", "filename", "filename2", "characters_written", "pos", "start",
    "object", "reason", "name", "path", "lineno", "text", "offset", "returncode", "stderr", "partial", "expected", "message",
)  # fmt: skip


def looks(error: BaseException) -> dict[str, object]:
    """What can be seen of an exception, but for the members of a group."""
    seen = {name: getattr(error, name) for name in (*LOOKED_AT, *vars(error)) if hasattr(error, name)}
    if isinstance(error, BaseExceptionGroup):
        seen["args"] = [(type(each), each.args) for each in error.exceptions]
    return seen


@pytest.mark.parametrize("error", ONE, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_itself_with_its_notes_and_its_traceback(error: BaseException) -> None:
    if not isinstance(error, AsFrozenData):  # which refuses notes as everything else
        error.add_note("on ada")
    original = error if isinstance(error, AsFrozenData) else raised(error)
    found = sent(original)
    assert type(found) is type(error) and str(found) == str(error)
    assert looks(found) == looks(error)
    assert found.__traceback__ is None and found.__context__ is None
    assert causes(found) == []
    if original is not error or original.__traceback__ is not None:
        assert "in raised" in told_there(found) and "on ada" in told_there(found)


def test_what_was_not_raised_says_so() -> None:
    assert told_there(sent(ValueError("never raised"))).endswith("\n\nValueError: never raised\n")
    assert told_there(ValueError("from here")) == told_there(None) == ""


def test_an_error_that_refers_to_itself_arrives() -> None:
    error = ValueError("me")
    error.me = error  # type: ignore[attr-defined]
    found = sent(raised(error))
    assert type(found.me) is ValueError  # type: ignore[attr-defined]


# ---- causes ---------------------------------------------------------------------------------------


def test_causes_arrive_as_they_were_and_the_traceback_is_the_last() -> None:
    deep = TwoArguments(7, "seven")
    deep.add_note("deep down")
    found = sent(raised(KeyError("k"), raised(OSError(2, "gone"), raised(deep))))
    assert type(found) is KeyError
    middle, last = causes(found)
    assert type(middle) is FileNotFoundError and middle.errno == 2
    assert type(last) is TwoArguments and last.code == 7 and last.__notes__ == ["deep down"]


def test_the_printed_chain_begins_with_the_remote_traceback() -> None:
    printed = "".join(traceback.format_exception(sent(raised(KeyError("k"), raised(ValueError("v"))))))
    places = [
        printed.index(text) for text in ("the traceback where it was raised", "in raised", "\nValueError: v", "\nKeyError: 'k'")
    ]
    assert places == sorted(places)
    assert printed.rstrip().endswith("KeyError: 'k'")


def test_a_context_that_is_no_cause_is_in_the_traceback_only() -> None:
    try:
        try:
            raise ValueError("first")
        except ValueError:
            raise KeyError("second")  # noqa: B904
    except KeyError as error:
        found = sent(error)
    assert causes(found) == [] and found.__context__ is None
    assert "ValueError: first" in told_there(found)


@pytest.mark.parametrize("suppressed", [True, False])
def test_whether_the_context_is_suppressed_is_kept(suppressed: bool) -> None:
    error, cause = ValueError("e"), ValueError("c")
    error.__cause__ = cause
    error.__suppress_context__ = cause.__suppress_context__ = suppressed
    found = sent(error)
    assert found.__suppress_context__ is suppressed
    assert found.__cause__ is not None and type(found.__cause__) is ValueError


def test_a_circle_of_causes_ends() -> None:
    one, two = ValueError("one"), KeyError("two")
    one.__cause__, two.__cause__ = two, one
    assert [type(each) for each in causes(sent(one))] == [KeyError]
    one.__cause__ = one
    assert causes(sent(one)) == []


def test_a_member_whose_cause_is_its_group_ends() -> None:
    member = ValueError("m")
    group = ExceptionGroup("g", [member])
    member.__cause__ = group
    found = sent(group)
    assert isinstance(found, ExceptionGroup) and found.exceptions[0].__cause__ is None
    assert type(causes(sent(member))[0]) is ExceptionGroup


@pytest.mark.parametrize("length", [MAX_CAUSES, MAX_CAUSES + 1, 5000])
def test_a_long_chain_is_cut(length: int) -> None:
    error: BaseException = ValueError(0)
    for number in range(1, length):
        error = raised(ValueError(number), error)
    chain = causes(sent(error))
    assert [each.args[0] for each in chain] == list(range(length - 2, length - 1 - MAX_CAUSES, -1))
    assert len(chain) == MAX_CAUSES - 1


def test_each_journey_adds_its_traceback_and_none_doubles() -> None:
    error = raised(KeyError("k"), raised(ValueError("v")))
    sizes = []
    for _ in range(6):
        error = raised(sent(error))
        assert [type(each) for each in causes(error)] == [ValueError]
        sizes.append(len(told_there(error)))
    steps = [after - before for before, after in zip(sizes, sizes[1:], strict=False)]
    assert max(steps) < 2 * sizes[0], "each journey adds one traceback"
    assert "ValueError: v" in told_there(error)


def test_an_error_raised_from_one_that_arrived_has_it_as_cause() -> None:
    found = sent(raised(RuntimeError("outer"), raised(sent(raised(TwoArguments(7, "seven"))))))
    (cause,) = causes(found)
    assert type(cause) is TwoArguments and "TwoArguments: 7: seven" in told_there(found)


def test_a_cause_too_large_is_replaced_and_the_rest_arrives() -> None:
    found = sent(raised(KeyError("k"), raised(ValueError("large", bytes(2 * payload.ERROR_OBJECT)), ValueError("deep"))))
    stand_in, deep = causes(found)
    assert type(found) is KeyError and type(deep) is ValueError
    assert type(stand_in) is errors.RemoteError and "more than 1048576 bytes" in str(stand_in)


def test_an_error_is_never_too_large_to_be_told() -> None:
    group = ExceptionGroup("g", [raised(ValueError("x" * 100_000, number)) for number in range(500)])
    for error in (raised(ValueError("x" * 10_000_000)), raised(group), raised(KeyError("k"), group)):
        parts = payload.pack_error(error)
        assert sum(len(part) for part in parts) < 2 * payload.ERROR_OBJECT + 3 * packing.MAX_TEXT
        assert payload.unpack_error(parts) is not None


# ---- groups ---------------------------------------------------------------------------------------


class Group(ExceptionGroup[Exception]):
    """With more than its class takes, and what `split` needs."""

    def __new__(cls, message: str, members: list[Exception], code: int) -> Group:
        made = super().__new__(cls, message, members)
        made.code = code
        return made

    code: int

    def derive(self, members: Any) -> Group:
        return Group(self.message, members, self.code)


def test_a_group_arrives_with_its_members_and_their_causes() -> None:
    inner = ExceptionGroup("inner", [raised(TwoArguments(7, "seven"), raised(KeyError("k")))])
    found = sent(raised(Group("outer", [ValueError("v"), inner], 5), raised(OSError(2, "gone"))))
    assert type(found) is Group and found.code == 5 and str(found) == "outer (2 sub-exceptions)"
    (cause,) = causes(found)
    assert type(cause) is FileNotFoundError
    first, second = found.exceptions
    assert type(first) is ValueError and isinstance(second, ExceptionGroup)
    assert type(second.exceptions[0]) is TwoArguments and type(second.exceptions[0].__cause__) is KeyError
    match, rest = found.split(TwoArguments)
    assert type(match) is Group and match.code == 5 and rest is not None


def test_the_same_exception_as_cause_and_member_stays_one() -> None:
    member = ValueError("v")
    found = sent(raised(ExceptionGroup("g", [member, KeyError("k")]), member))
    assert isinstance(found, ExceptionGroup) and found.__cause__ is found.exceptions[0]


def test_members_that_come_before_their_group() -> None:
    member = ValueError("v")
    found = sent(raised(ExceptionGroup("g", [member, ExceptionGroup("h", [member])])))
    assert isinstance(found, ExceptionGroup) and isinstance(found.exceptions[1], ExceptionGroup)
    assert found.exceptions[1].exceptions[0] is found.exceptions[0]


@pytest.mark.parametrize("make", [lambda: deep_group(50), lambda: ExceptionGroup("g", [ValueError() for _ in range(5000)])])
def test_a_group_past_the_limits_is_told(make: Callable[[], Exception]) -> None:
    error = make()
    nodes = lay_out(error)
    assert len(nodes) <= MAX_NODES
    found = sent(raised(KeyError("k"), error))
    assert type(found) is KeyError
    innermost: Any = causes(found)[0]
    while isinstance(innermost, ExceptionGroup):
        (innermost,) = innermost.exceptions
    assert type(innermost) is errors.RemoteError and "a group with more than 1000 exceptions, or more than 16 deep" in str(
        innermost
    )


def deep_group(depth: int) -> Exception:
    error: Exception = ValueError("bottom")
    for _ in range(depth):
        error = ExceptionGroup("g", [error])
    return error


# ---- exceptions as values -------------------------------------------------------------------------


@dataclasses.dataclass
class Result:
    error: BaseException


class Refusing(Exception):
    def __setstate__(self, state: object) -> None:
        raise TypeError("this is what went wrong first")


def test_what_went_wrong_first_is_told() -> None:
    error = Refusing()
    error.more = 1  # type: ignore[attr-defined]
    with pytest.raises(errors.UnpackError, match="this is what went wrong first"):
        payload.unpack(payload.pack(Result(error)))


@pytest.mark.parametrize(
    "wrap",
    [
        lambda error: error,
        lambda error: {"id": 5, "error": error},
        lambda error: [1, (2, {"a": [error]})],
        lambda error: [*range(1000), error],
        lambda error: AsData(error),  # type: ignore[arg-type]
    ],
    ids=["alone", "in a dict", "deeper", "among many", "in another"],
)
@pytest.mark.parametrize("error", ONE, ids=lambda error: type(error).__name__)
def test_an_exception_in_a_message_arrives_as_itself(error: BaseException, wrap: Callable[[Any], Any]) -> None:
    (found,) = exceptions_in(payload.unpack(payload.pack(wrap(error))))
    assert type(found) is type(error) and looks(found) == looks(error)
    assert found.__traceback__ is None


FORGETFUL = (asyncio.IncompleteReadError, json.JSONDecodeError, Reduces, AsFrozenData)  # of notes, or of everything


@pytest.mark.parametrize(
    "wrap", [lambda error: Result(error), lambda error: [[[[[[error]]]]]]], ids=["in an object", "deep down"]
)
@pytest.mark.parametrize(
    "error", [each for each in ONE if not isinstance(each, FORGETFUL)], ids=lambda error: type(error).__name__
)
def test_an_exception_deep_inside_arrives_as_pickle_has_it(error: BaseException, wrap: Callable[[Any], Any]) -> None:
    (found,) = exceptions_in(payload.unpack(payload.pack(wrap(error))))
    assert type(found) is type(error) and looks(found) == looks(error)


def exceptions_in(obj: Any) -> Iterator[BaseException]:
    if isinstance(obj, AsData) and isinstance(obj.code, BaseException):
        yield obj.code
    elif isinstance(obj, Result):
        yield obj.error
    elif isinstance(obj, BaseException):
        yield obj
    elif isinstance(obj, list | tuple | dict):
        for each in obj.values() if isinstance(obj, dict) else obj:
            yield from exceptions_in(each)


def test_an_exception_in_a_message_keeps_its_cause_and_who_it_is() -> None:
    member = raised(TwoArguments(7, "seven"), raised(KeyError("k")))
    group = raised(ExceptionGroup("g", [member]), member)  # type: ignore[type-var]
    one, other, same = payload.unpack(payload.pack([member, group, member]))
    assert one is same is other.exceptions[0] is other.__cause__
    assert type(one.__cause__) is KeyError and one.__suppress_context__


def test_exceptions_in_a_message_may_be_a_ring() -> None:
    one, two = raised(ValueError("one")), raised(ValueError("two"))
    one.__cause__, two.__cause__ = two, one
    two.me = two  # type: ignore[attr-defined]
    found = payload.unpack(payload.pack([one]))[0]
    assert found.__cause__.__cause__ is found and found.__cause__.me is found.__cause__


def test_exception_classes_are_values_like_others() -> None:
    assert payload.unpack(payload.pack([ValueError, TwoArguments, errors.PackError])) == [
        ValueError,
        TwoArguments,
        errors.PackError,
    ]


# ---- from one interpreter to another --------------------------------------------------------------

SENDER = """
import dataclasses, pickle, sys, threading
from discoro import payload
class Base(Exception):
    def __init__(self, code, text):
        super().__init__(f"{code}: {text}")
        self.code = code
class Failing(Base):
    kind = "failing"
    def __str__(self): return f"<{self.code}>"
@dataclasses.dataclass
class Details(Exception):
    where: str
class Many(ExceptionGroup):
    def derive(self, members): return Many(self.message, members)
class Stuck(Exception):
    def __init__(self): self.lock = threading.Lock()
class Fresh(Exception):
    "Known here only, and the receiver is given no namespace."
def fail():
    try:
        try:
            {}["k"]
        except KeyError as error:
            raise Failing(7, "seven") from error
    except Failing as error:
        raise Many("many", [Details("here"), ValueError("v")]) from error
def caught(function):
    try:
        function()
    except BaseException as error:
        error.add_note("on ada")
        return error
def stuck():
    try:
        raise Stuck
    except Stuck as error:
        raise Failing(8, "eight") from error
def fresh():
    raise Fresh(1, 2)
pickle.dump([payload.pack_error(caught(function)) for function in (fail, stuck, fresh)], sys.stdout.buffer)
"""

RECEIVER = """
import pickle, sys, traceback
from discoro import payload
from discoro.errors import RemoteError
many, stuck, fresh = pickle.load(sys.stdin.buffer)
namespace = payload.Namespace("n")
error = payload.unpack_error(many, namespace)
assert type(error).__name__ == "Many" and error.message == "many" and error.__notes__ == ["on ada"], error
assert [type(each).__name__ for each in error.exceptions] == ["Details", "ValueError"]
assert error.exceptions[0].where == "here"
cause = error.__cause__
assert type(cause).__name__ == "Failing" and cause.kind == "failing" and str(cause) == "<7>" and cause.code == 7
assert type(cause.__cause__) is KeyError and cause.__cause__.args == ("k",)
assert type(cause.__cause__.__cause__) is RemoteError and 'in fail' in str(cause.__cause__.__cause__)
error = payload.unpack_error(stuck, namespace)
assert type(error) is type(cause)
assert type(error.__cause__) is RemoteError and "__main__.Stuck" in str(error.__cause__) and "lock" in str(error.__cause__)
assert type(error.__cause__.__cause__) is RemoteError and "in stuck" in str(error.__cause__.__cause__)
error = payload.unpack_error(fresh)
assert type(error).__name__ == "Fresh" and error.args == (1, 2)
print("".join(traceback.format_exception(payload.unpack_error(many, namespace))))
"""


def test_from_one_main_to_another(tmp_path: Path) -> None:
    printed = b""
    for name, source in (("sender", SENDER), ("receiver", RECEIVER)):
        (tmp_path / f"{name}.py").write_text(source)
        done = subprocess.run(
            [sys.executable, f"{name}.py"],
            cwd=tmp_path,
            env={"PYTHONPATH": str(ROOT), "PATH": ""},
            input=printed,
            capture_output=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr.decode()
        printed = done.stdout
    text = printed.decode()
    assert "sender.py" in text and text.index("in fail") < text.rindex("<7>") < text.rindex("many (2 sub-exceptions)")


# ---- from a worker --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with running_site(tmp_path_factory.mktemp("site")) as site:
        yield site


def fails(kind: Any, *args: Any) -> Any:
    yield
    try:
        raise LookupError("deep")
    except LookupError as error:
        raise kind(*args) from error


@pytest.mark.parametrize(
    ("kind", "args"),
    [(ValueError, ("a", 1)), (TwoArguments, (7, "seven")), (AsFrozenData, (7,)), (ExceptionGroup, ("g", [ValueError("v")]))],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_a_computation_raises_has_its_cause_and_its_traceback(site: Site, kind: Any, args: tuple[Any, ...]) -> None:
    async def client(server: CoroRef) -> None:
        computation = Computation(fails, depends=[TwoArguments, AsFrozenData])
        await computation.setup(server)
        with pytest.raises(kind) as caught:
            await (await computation.run(server, kind, *args)).result()
        error = caught.value
        assert type(error) is kind and str(error) == str(kind(*args))
        (cause,) = causes(error)
        assert type(cause) is LookupError and "in fails" in told_there(error)
        assert any("raised in the coroutine" in note for note in error.__notes__)
        await computation.close(server)

    site.run("node", client)
