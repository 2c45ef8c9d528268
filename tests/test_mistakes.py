"""Mistakes that users make: each is an error that names the thing and the place, and says what to write instead."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import gc
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import (
    Channel,
    Computation,
    ConfigError,
    Coro,
    CoroRef,
    Mesh,
    NameTaken,
    NoMesh,
    NotACoroutine,
    PackError,
    Unreachable,
    current_mesh,
)
from tests.support.nodes import client_of, node_here

FORGOT = "did you forget yield or await?"
OPTIONS: dict[str, Any] = {"open": True, "ip_addr": ["127.0.0.1"], "mdns": False, "cluster": "mistakes", "name": "ada"}


def value_of(function: Callable[..., Any], *args: Any, debug: bool = False) -> Any:
    """The value of a coroutine of this function, in a mesh of its own."""

    async def program() -> Any:
        async with asyncio.timeout(30), Mesh(**OPTIONS, debug=debug) as mesh:
            return await mesh.run(function, *args)

    return asyncio.run(program(), debug=False)


@contextlib.contextmanager
def raises(kind: type[BaseException], *words: str) -> Iterator[None]:
    """That error, with all of these words in its text and its notes."""
    with pytest.raises(kind) as caught:
        yield
    text = "\n".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    del caught
    gc.collect()  # what was not awaited goes now, and is not warned of in a later test
    assert [word for word in words if word not in text] == [], text


def line_of(text: str) -> int:
    """Where that text stands in this file, first."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, line in enumerate(lines, 1) if text in line)


# What is yielded.


@pytest.mark.parametrize("junk", [3.2, "text", [1], len, object])
def test_yielding_a_value(junk: Any) -> None:
    def yields() -> Any:
        yield junk

    with raises(TypeError, f"yielded {junk!r}", "cannot be awaited", "return gives a value"):
        value_of(yields)


def test_the_error_of_a_yield_points_at_the_line() -> None:
    def yields() -> Any:
        yield 3.2  # this line

    with pytest.raises(TypeError) as caught:
        value_of(yields)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert (__file__, line_of("yield 3.2  # this" + " line")) in [(frame.filename, frame.lineno) for frame in frames]


# An operation that nobody awaits.


def drops(coro: Any = None) -> Any:
    yield
    coro.receive()  # this is dropped


async def drops_awaited(coro: Any = None) -> Any:
    coro.receive()


@pytest.mark.parametrize("function", [drops, drops_awaited])
def test_a_dropped_operation_is_warned_of_by_name(function: Callable[..., Any]) -> None:
    with pytest.warns(RuntimeWarning, match=r"coroutine 'Coro\.receive' was never awaited") as seen:
        value_of(function)
    assert (seen[0].filename, len(seen)) == (__file__, 1)


def test_in_debug_the_line_that_made_it_is_named() -> None:
    with pytest.warns(RuntimeWarning, match="never awaited") as seen:
        value_of(drops, debug=True)
    assert f'File "{__file__}", line {line_of("coro.receive()  # this is" + " dropped")}, in drops' in str(seen[0].message)


def returns(coro: Any = None) -> Any:
    yield
    return coro.receive(3)  # this is returned


async def returns_unawaited(coro: Any = None) -> Any:
    return coro.receive(3)


def returns_deliver(coro: Any = None) -> Any:
    yield
    return coro.ref.deliver("m")


@pytest.mark.parametrize(
    ("function", "operation"),
    [(returns, "Coro.receive"), (returns_unawaited, "Coro.receive"), (returns_deliver, "Handle.deliver")],
)
def test_returning_an_operation(function: Callable[..., Any], operation: str) -> None:
    with raises(
        TypeError, f"{function.__name__} (ada/", "returned an operation that nobody awaited", operation, "return (yield ...)"
    ):
        value_of(function)


def test_in_debug_the_line_of_a_returned_operation_is_named() -> None:
    with raises(TypeError, f"made in {__file__}, line {line_of('coro.receive(3)  # this is' + ' returned')}"):
        value_of(returns, debug=True)


def helper(coro: Any) -> Any:
    yield coro.sleep(0)


def returns_generator(coro: Any = None) -> Any:
    yield
    return helper(coro)


def test_returning_a_generator() -> None:
    with raises(TypeError, "returns_generator (ada/", "returned a generator that nobody ran (helper)", "return (yield ...)"):
        value_of(returns_generator)


def returns_values() -> Any:
    yield
    running = helper(None)
    with contextlib.suppress(AttributeError):
        next(running)
    return running, (n for n in range(3))


def test_generators_that_are_values_are_taken() -> None:
    def expression() -> Any:
        yield
        return (n for n in range(3))

    assert list(value_of(expression)) == [0, 1, 2]
    assert len(value_of(returns_values)) == 2


def test_a_monitor_is_told_of_an_operation_returned() -> None:
    async def main(coro: Any = None) -> Any:
        await coro.monitor(Coro(returns))
        return await coro.receive()

    notice = value_of(main)
    assert notice.reason == "exception"
    assert "nobody awaited" in str(notice.error)


# An operation taken for its value.


def added(coro: Any) -> Any:
    return coro.receive() + 1


def attribute(coro: Any) -> Any:
    return coro.receive().upper()


def unpacked(coro: Any) -> Any:
    one, two = coro.receive()
    return one, two


def indexed(coro: Any) -> Any:
    return coro.receive()[0]


def converted(coro: Any) -> Any:
    return int(coro.receive())


def joined(coro: Any) -> Any:
    return "got " + coro.receive()


def measured(coro: Any) -> Any:
    return len(coro.receive())


def compared(coro: Any) -> Any:
    return coro.receive() < 3


def generated(coro: Any) -> Any:
    return helper(coro)[0]


@pytest.mark.filterwarnings("ignore:coroutine 'Coro.receive' was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    "use", [added, attribute, unpacked, indexed, converted, joined, measured, compared, generated], ids=lambda use: use.__name__
)
@pytest.mark.parametrize("style", ["generator", "async"])
def test_an_operation_taken_for_its_value(use: Callable[[Any], Any], style: str) -> None:
    def generator(coro: Any = None) -> Any:
        yield
        use(coro)

    async def native(coro: Any = None) -> Any:
        use(coro)

    source, kind = ("a generator function", "generator") if use is generated else ("an operation", "coroutine")
    with raises(AttributeError if use is attribute else TypeError, kind, f"{source} gives a {kind} object until", FORGOT):
        value_of(generator if style == "generator" else native)


def ordinary() -> Any:
    return "text" + 1  # type: ignore[operator]


def of_discoro() -> Any:
    return Coro(ordinary)  # says "coroutine", and what to do


def of_asyncio() -> Any:
    return asyncio.create_task(3)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [ordinary, of_discoro, of_asyncio], ids=lambda wrong: wrong.__name__)
def test_other_errors_get_no_such_note(wrong: Callable[[], Any]) -> None:
    def coroutine() -> Any:
        yield
        wrong()

    with pytest.raises(TypeError) as caught:
        value_of(coroutine)
    assert getattr(caught.value, "__notes__", []) == []


def adds(coro: Any = None) -> Any:
    yield
    return added(coro)


@pytest.mark.filterwarnings("ignore:coroutine 'Coro.receive' was never awaited:RuntimeWarning")
def test_the_note_is_made_once_and_stands_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    async def main(coro: Any = None) -> Any:
        added_up = Coro(adds)
        await coro.monitor(added_up)
        await coro.receive()
        with contextlib.suppress(TypeError):
            await added_up.result()
        Coro(adds)
        await coro.sleep(0)
        return added_up

    with raises(TypeError, FORGOT):
        value_of(adds)

    async def asked_twice(coro: Any = None) -> Any:
        ended = Coro(adds)
        for _ in range(2):
            try:
                await ended.result()
            except TypeError as error:
                notes = list(error.__notes__)
        return notes

    assert len(value_of(asked_twice)) == 1
    value_of(main)
    assert FORGOT in caplog.text


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")

    __repr__ = __str__


def raises_unspeakable() -> Any:
    yield
    raise Unspeakable


def unspeakable_at_the_end(coro: Any = None) -> Any:
    try:
        yield coro.receive()
    finally:
        raise Unspeakable


def test_an_exception_without_a_text_is_told_all_the_same() -> None:
    async def main(coro: Any = None) -> Any:
        ended, terminated = Coro(raises_unspeakable), Coro(unspeakable_at_the_end)
        await coro.monitor(ended)
        notice = await coro.receive()
        await coro.monitor(terminated)
        await terminated.terminate()
        return notice, await coro.receive()

    first, second = value_of(main)
    assert (first.reason, type(first.error)) == ("exception", Unspeakable)
    assert second.reason == "terminated" and "while ending it raised Unspeakable: <its str() failed>" in str(second.error)


# What is sent.


def sends_operation(to: Any, coro: Any = None) -> Any:
    yield
    (to or coro).send(coro.receive())


def sends_nested(to: Any, coro: Any = None) -> Any:
    yield
    to.send({"n": coro.receive()})


def sends_generator(to: Any, coro: Any = None) -> Any:
    yield
    to.send([helper(coro)])


def sends_open_file(to: Any, coro: Any = None) -> Any:
    yield
    with open(__file__, encoding="utf-8") as file:
        to.send({"files": [file]})


ELSEWHERE = CoroRef("00000000000000aa", 7, 0xAA, 1, "bob", ("127.0.0.1:1",))


@pytest.mark.filterwarnings("ignore:coroutine 'Coro.receive' was never awaited:RuntimeWarning")
@pytest.mark.parametrize(
    ("function", "words"),
    [
        (sends_operation, ["message: ", "Coro.receive", FORGOT]),
        (sends_nested, ["message['n']: ", "Coro.receive", FORGOT]),
        (sends_generator, ["message[0]: ", "helper(...)", FORGOT]),
        (sends_open_file, ["message['files'][0]: ", "TextIOWrapper", "send the path of the file"]),
    ],
)
def test_sending_what_cannot_travel(function: Callable[..., Any], words: list[str]) -> None:
    with raises(PackError, *words):
        value_of(function, ELSEWHERE)


def test_sending_an_operation_within_a_process() -> None:
    with raises(PackError, "message: an operation that nobody awaited (Coro.receive)", FORGOT):
        value_of(sends_operation, None)


def test_returning_what_cannot_travel_is_told_where_it_is_asked_for(tmp_path: Path) -> None:
    def returns_lock() -> Any:
        import threading

        yield
        return {"lock": threading.Lock()}

    async def program() -> None:
        async with asyncio.timeout(30), node_here(tmp_path) as node, client_of(node) as mesh:
            await mesh.run(in_worker, returns_lock, PackError, "message['lock']", "_thread.lock")
            await mesh.run(in_worker, returns, TypeError, "returns (node/", "returned an operation", "return (yield ...)")
            await mesh.run(in_worker, sums, TypeError, "'coroutine' and 'int'", FORGOT)

    async def in_worker(function: Any, kind: type[BaseException], *words: str) -> None:
        server = await Coro.locate("discoro_server")
        computation = Computation(function)
        await computation.setup(server)
        with raises(kind, *words):
            await (await computation.run(server)).result()
        await computation.close(server)

    asyncio.run(program())


def sums(coro: Any = None) -> Any:
    yield
    return coro.receive() + 1


# Whose messages.


def other_coroutine(coro: Any = None) -> Any:
    yield coro.receive()


def receives_for_another(coro: Any = None) -> Any:
    other = Coro(other_coroutine)
    other.send("for it alone")
    try:
        yield other.receive()
    finally:
        assert len(other.mailbox) == 1, "nothing was taken from it"


def test_receiving_for_another_coroutine() -> None:
    with raises(RuntimeError, "receives_for_another (ada/", "other_coroutine (ada/", "only that one can; have it send them on"):
        value_of(receives_for_another)


def test_receiving_outside_of_any_coroutine() -> None:
    async def program() -> None:
        async with Mesh(**OPTIONS):
            coro = Coro(other_coroutine)
            with raises(RuntimeError, "code outside of any coroutine", "other_coroutine (ada/"):
                await coro.receive()

    asyncio.run(program())


def test_a_task_of_the_coroutine_receives_for_it() -> None:
    async def coroutine(coro: Any = None) -> Any:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(coro.receive())
            coro.send("m")
        return task.result()

    assert value_of(coroutine) == "m"


@pytest.mark.parametrize("name", ["receive", "sleep", "suspend", "reply", "monitor", "register", "child", "link"])
def test_a_reference_only_sends(name: str) -> None:
    with raises(
        AttributeError,
        f"'CoroRef' object has no attribute {name!r}",
        "a reference only sends",
        f"{name} is what a coroutine does",
    ):
        getattr(ELSEWHERE, name)


def test_what_no_coroutine_has_is_no_attribute_without_a_hint() -> None:
    with pytest.raises(AttributeError) as caught:
        ELSEWHERE.recieve  # type: ignore[attr-defined]  # noqa: B018
    assert str(caught.value) == "'CoroRef' object has no attribute 'recieve'"


# What a coroutine is made of.


def test_a_function_that_was_called_already() -> None:
    async def main(coro: Any = None) -> None:
        for made in (helper(coro), other_coroutine()):
            with raises(NotACoroutine, f"{made.__name__} and not {made.__name__}()"):
                Coro(made)

    value_of(main)


def plain(coro: Any = None) -> Any:
    return coro


async def both() -> Any:
    yield 1


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (plain, ["plain", "it has no `yield`", "Write a generator function"]),
        (both, ["async generator"]),
        (3, ["3", "not a function"]),
    ],
)
def test_what_is_no_coroutine_function(function: Any, words: list[str]) -> None:
    async def main() -> None:
        Coro(function)

    with raises(NotACoroutine, *words):
        value_of(main)


def test_no_warning_follows_an_error_that_said_it_all() -> None:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        for function in (returns, returns_unawaited):
            with pytest.raises(TypeError):
                value_of(function)
        with pytest.raises(PackError):
            value_of(sends_operation, None)
    assert [str(each.message) for each in seen] == []


# Names that cannot be, and what is no coroutine.


@pytest.mark.parametrize("name", ["", "x" * 256, 5])
def test_a_name_that_cannot_be_is_refused_where_it_is_registered_and_where_it_is_looked_for(name: Any) -> None:
    async def registers(coro: Any) -> None:
        await coro.register(name)

    async def looks() -> None:
        await Coro.locate(name)  # which would wait for ever

    for function in (registers, looks):
        with raises(ConfigError, "a name is a text of 1 to 255 bytes; this is"):
            value_of(function)


def test_whoever_looks_for_a_channel_or_takes_its_name_reads_the_name_as_it_was_written() -> None:
    async def twice() -> None:
        await Channel("news").register()
        await Channel("news").register()

    with raises(NameTaken, "channel 'news' is the name of"):
        value_of(twice)


@pytest.mark.parametrize("operation", ["monitor", "link", "unlink", "adopt"])
def test_what_is_no_coroutine_cannot_be_monitored_linked_or_adopted(operation: str) -> None:
    async def tries(what: Callable[[], Any], coro: Any) -> None:
        await getattr(coro, operation)(what())

    with raises(TypeError, "a coroutine or its reference is wanted, this is 'ada/4711/12'"):
        value_of(tries, lambda: "ada/4711/12")
    with raises(TypeError, "an operation that nobody awaited (Coro.locate", FORGOT):
        value_of(tries, lambda: Coro.locate("x"))


# Threads.


def in_another_loop(operation: Callable[[], Any]) -> Any:
    async def wait() -> Any:
        return await operation()

    return asyncio.run(wait())


def replies(coro: Any = None) -> Any:
    while True:
        coro.reply((yield coro.receive()))


@pytest.mark.parametrize("operation", ["ask", "result", "receive", "suspend", "locate"])
def test_what_waits_is_refused_in_the_loop_of_another_thread_where_nothing_would_wake_it(operation: str) -> None:
    async def program(coro: Any) -> None:
        other = Coro(replies)
        operations = {"ask": lambda: other.ask(1), "locate": lambda: Coro.locate("x"), "result": other.result}
        await asyncio.to_thread(in_another_loop, operations.get(operation) or getattr(coro, operation))

    with raises(RuntimeError, "another thread than the mesh's", "only send works", "run_coroutine_threadsafe"):
        value_of(program)


def test_a_coroutine_cannot_be_created_in_a_thread_and_nothing_of_it_stays() -> None:
    async def program(coro: Any) -> tuple[int, list[Any]]:
        for create in (Coro, coro.child):
            with raises(RuntimeError, "another thread than the mesh's"):
                await asyncio.to_thread(create, replies)
        return len(current_mesh().coros()), coro.children()

    assert value_of(program) == (1, [])  # and the mesh ended in order


def test_a_thread_hands_over_what_waits() -> None:
    async def program() -> Any:
        loop, other = asyncio.get_running_loop(), Coro(replies)
        return await asyncio.to_thread(lambda: asyncio.run_coroutine_threadsafe(other.ask("hello"), loop).result(10))

    assert value_of(program) == "hello"


def test_in_a_thread_of_its_own_there_is_no_mesh_and_the_error_names_the_threads_that_have_one() -> None:
    async def program(coro: Any) -> None:
        with concurrent.futures.ThreadPoolExecutor() as pool:
            await asyncio.wrap_future(pool.submit(coro.ref.send, 1))

    with raises(NoMesh, "of threads, those of asyncio.to_thread", "mesh.wait(function, ...)"):
        value_of(program)


# A coroutine that does not end.


def test_a_coroutine_that_goes_on_though_terminated_is_named_when_the_program_leaves(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("discoro.mesh.CLOSE_TIMEOUT", 0.2)
    enough = False

    async def endless(coro: Any) -> None:
        while not enough:
            with contextlib.suppress(asyncio.CancelledError):
                await coro.receive()

    async def main(coro: Any) -> None:
        Coro(endless)
        await coro.sleep(0)

    async def program() -> None:
        nonlocal enough
        async with Mesh(**OPTIONS) as mesh:
            await mesh.run(main)
        enough = True  # asyncio.run cancels it once more

    asyncio.run(program())
    assert "1 coroutines caught their CancelledError and went on: endless (ada/" in caplog.text


def test_a_process_that_no_reference_names_is_named_by_its_birth() -> None:
    async def program() -> None:
        nameless = CoroRef("", 0, 0xABC, 0, "", ("127.0.0.1:1",))  # as a node has of a peer to be told something
        await current_mesh().request(nameless, "alive", {}, timeout=20)

    with raises(Unreachable, "birth 0000000000000abc: not to be reached"):
        value_of(program)
