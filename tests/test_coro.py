"""Coroutines by themselves: driving, mailboxes, endings, references. No mesh: a host of a few lines stands in for it."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from discoro import coro as coroutines
from discoro import messages, payload
from discoro.coro import Coro, current_coro, host_here
from discoro.driving import Driven, check_coroutine
from discoro.errors import CoroEnded, NoMesh, NotACoroutine, Overloaded, RemoteError, TooLarge
from discoro.mailbox import MAILBOX_BYTES, MAILBOX_MESSAGES
from discoro.outcomes import ExitNotice, Outcome
from discoro.references import CoroRef


class SmallHost:
    """What a Coro needs of a mesh, and no more: ids, and what was told."""

    def __init__(self) -> None:
        self.left: dict[int, Outcome] = {}
        self.drained_count = 0
        self._next = 0

    def enter(self, coro: Coro) -> CoroRef:
        self._next += 1
        return CoroRef("00000000000000aa", 7, 0xAA, self._next, "ada")

    def leave(self, coro: Coro, outcome: Outcome) -> None:
        self.left[coro.ref.id] = outcome

    def drained(self, coro: Coro) -> None:
        coro.held = False
        self.drained_count += 1


def in_loop(test: Callable[[SmallHost], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(5):
            await test(SmallHost())

    asyncio.run(bounded())


def outcome_of(function: Callable[..., Any], *args: Any, stop: str = "") -> Outcome:
    """How a coroutine ends; stopped in its second turn where `stop` says why."""
    found: list[Outcome] = []

    async def test(host: SmallHost) -> None:
        coro = Coro.start(host, function, args)  # type: ignore[arg-type]
        if stop:
            await asyncio.sleep(0)
            coro.stop(stop)
        await coro.stopped()
        await asyncio.sleep(0)
        found.append(host.left[coro.ref.id])

    in_loop(test)
    return found[0]


def gen(x: int) -> Any:
    yield asyncio.sleep(0)
    return x + 1


async def native(x: int) -> int:
    await asyncio.sleep(0)
    return x + 1


def no_yield_reached(x: int) -> Any:
    if x < 0:
        yield
    return x + 1


@pytest.mark.parametrize("function", [gen, native, no_yield_reached])
def test_value_is_what_it_returns(function: Callable[..., Any]) -> None:
    outcome = outcome_of(function, 41)
    assert (outcome.reason, outcome.get()) == ("normal", 42)


def test_yield_waits_for_whatever_can_be_awaited() -> None:
    def inner() -> Any:
        got = yield native(1)
        return got * 10

    def outer() -> Any:
        first = yield inner()
        yield  # lets others run
        future = asyncio.get_running_loop().create_future()
        future.set_result(5)
        second = yield future
        return first, second

    assert outcome_of(outer).get() == (20, 5)


@pytest.mark.parametrize("junk", [3.2, "text", [1], object()])
def test_yielding_what_cannot_be_awaited_raises_inside(junk: object) -> None:
    def coroutine() -> Any:
        try:
            yield junk
        except TypeError as error:
            return str(error)

    assert "cannot be awaited" in outcome_of(coroutine).get()


def test_an_error_of_an_operation_is_raised_at_the_yield() -> None:
    async def failing() -> None:
        raise KeyError("k")

    def coroutine() -> Any:
        try:
            yield failing()
        except KeyError:
            return "caught"

    assert outcome_of(coroutine).get() == "caught"


def test_an_exception_is_its_outcome() -> None:
    def coroutine() -> Any:
        yield
        raise ValueError("bad", 3)

    outcome = outcome_of(coroutine)
    assert outcome.reason == "exception"
    with pytest.raises(ValueError, match="bad"):
        outcome.get()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_an_exit_in_one_coroutine_does_not_end_the_loop(error: type[BaseException]) -> None:
    def coroutine() -> Any:
        yield
        raise error(3)

    outcome = outcome_of(coroutine)
    assert outcome.reason == "exception"
    assert isinstance(outcome.error, CoroEnded)
    assert f"{error.__name__}(3)" in str(outcome.error)


def test_wrong_arguments_are_its_outcome() -> None:
    outcome = outcome_of(gen)
    assert outcome.reason == "exception"
    assert isinstance(outcome.error, TypeError)


def test_stop_raises_cancelled_error_where_it_waits_and_finally_runs() -> None:
    ran = []

    def generator() -> Any:
        try:
            yield asyncio.sleep(60)
        except asyncio.CancelledError:
            ran.append("cancelled")
            raise
        finally:
            yield asyncio.sleep(0)  # it may still wait while ending
            ran.append("finally")

    outcome = outcome_of(generator, stop="computation closed")
    assert ran == ["cancelled", "finally"]
    assert outcome.reason == "computation closed"
    with pytest.raises(CoroEnded, match="computation closed"):
        outcome.get()


def test_stop_before_the_first_step_still_tells_the_end() -> None:
    async def test(host: SmallHost) -> None:
        coro = Coro.start(host, native, (1,))  # type: ignore[arg-type]
        coro.stop("terminated")
        await coro.stopped()
        await asyncio.sleep(0)
        assert host.left[coro.ref.id].reason == "terminated"

    in_loop(test)


def test_a_reason_stands_even_where_the_end_was_swallowed() -> None:
    def swallowing() -> Any:
        try:
            yield asyncio.sleep(60)
        except asyncio.CancelledError:
            return "went on"

    assert outcome_of(swallowing, stop="terminated").reason == "terminated"


def test_parameter_named_coro_and_current_coro_are_the_same() -> None:
    def coroutine(x: int, coro: Any = None) -> Any:
        yield
        return coro is current_coro(), x

    assert outcome_of(coroutine, 3).get() == (True, 3)


def test_current_coro_and_host_outside_of_a_mesh() -> None:
    for call in (current_coro, host_here, lambda: Coro(gen, 1)):
        with pytest.raises(NoMesh, match="discoro.run|Coro"):
            call()


@pytest.mark.parametrize(
    ("junk", "hint"), [(len, "no `yield`"), (3, "not a function"), (lambda: 1, "no `yield`"), ("f", "not a function")]
)
def test_what_is_no_coroutine_function_is_refused(junk: Any, hint: str) -> None:
    with pytest.raises(NotACoroutine, match=hint):
        check_coroutine(junk)


def test_async_generator_is_refused_with_its_own_hint() -> None:
    async def both() -> Any:
        yield 1

    with pytest.raises(NotACoroutine, match="async generator"):
        check_coroutine(both)


def test_driving_a_generator_that_is_closed_closes_it() -> None:
    closed = []

    def generator() -> Any:
        try:
            yield asyncio.sleep(60)
        except GeneratorExit:
            closed.append(True)
            raise

    async def body() -> None:
        driver = Driven(generator())
        operation = driver.send(None)  # a future of the sleep
        driver.close()
        assert closed == [True]
        del operation

    asyncio.run(body())


# ------------------------------------------------------------------ mailbox


def with_coro(test: Callable[[SmallHost, Coro], Awaitable[None]]) -> None:
    """Run a test inside of a coroutine: only that one can receive what is sent to it."""

    async def run(host: SmallHost) -> None:
        async def inside(coro: Coro) -> None:
            await test(host, coro)

        await Coro.start(host, inside).result_here()  # type: ignore[arg-type]

    in_loop(run)


def test_messages_come_in_the_order_sent() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        for number in range(1000):
            if number % 2:
                coro.accept(number)
            else:
                coro.accept(payload.pack(number), packed=True)
        assert [await coro.receive() for _ in range(1000)] == list(range(1000))

    with_coro(test)


def test_receive_gives_the_alarm_value_at_once_for_zero_and_later_for_more() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        assert await coro.receive(timeout=0, alarm_value="none") == "none"
        assert await coro.receive(timeout=0.001, alarm_value="late") == "late"
        coro.accept("m")
        assert await coro.receive(timeout=0) == "m"

    with_coro(test)


def test_a_cancellation_in_the_same_turn_loses_no_message() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        receiving = asyncio.ensure_future(coro.receive())
        await asyncio.sleep(0)
        coro.accept("kept")
        receiving.cancel()
        await asyncio.wait([receiving])
        assert receiving.cancelled()
        assert await coro.receive(timeout=0) == "kept"

    with_coro(test)


def test_a_second_receive_at_the_same_time_is_refused() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        first = asyncio.ensure_future(coro.receive())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already waits in another receive"):
            await coro.receive()
        coro.accept("m")
        assert await first == "m"

    with_coro(test)


def test_receives_that_are_always_ready_let_others_run() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        turns = 0

        async def other() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.ensure_future(other())
        for number in range(3000):
            coro.mailbox.put(number)
        for _ in range(3000):
            await coro.receive()
        task.cancel()
        assert turns >= 3000 // coroutines.READY_RECEIVES - 1

    with_coro(test)


def test_a_full_mailbox_refuses_local_messages_and_says_when_it_is_half_empty() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        for number in range(MAILBOX_MESSAGES):
            coro.accept(number)
        with pytest.raises(Overloaded, match="deliver"):
            coro.accept("too many")
        coro.held = True
        for _ in range(MAILBOX_MESSAGES // 2):
            await coro.receive()
        assert host.drained_count == 1

    with_coro(test)


def test_an_empty_mailbox_takes_one_message_of_any_size() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        coro.accept(payload.pack(bytes(2 * MAILBOX_BYTES)), packed=True)
        assert coro.mailbox.full
        assert len(await coro.receive()) == 2 * MAILBOX_BYTES
        assert not coro.mailbox.full

    with_coro(test)


# ------------------------------------------------------------------ references and outcomes

REF = CoroRef("00000000000000aa", 4711, 0xBB, 12, "ada", ("127.0.0.1:1",))


def test_str_is_for_people_and_only_repr_parses_back() -> None:
    assert str(REF) == "ada/4711/12"
    assert CoroRef.parse(repr(REF)) == REF
    with pytest.raises(ValueError, match="birth"):
        CoroRef.parse(str(REF))
    with pytest.raises(ValueError, match="not the repr"):
        CoroRef.parse("CoroRef('x')")


def test_references_compare_without_their_hints_and_with_their_birth() -> None:
    assert REF == CoroRef(REF.node, REF.pid, REF.birth, REF.id, "other", ())
    assert hash(REF) == hash(CoroRef(REF.node, REF.pid, REF.birth, REF.id))
    assert REF != CoroRef(REF.node, REF.pid, REF.birth + 1, REF.id)


def test_references_travel_whole() -> None:
    copy = pickle.loads(pickle.dumps(REF))
    assert (copy, copy.name, copy.addresses) == (REF, "ada", REF.addresses)
    assert CoroRef.from_plain(REF.to_plain()) == REF


@pytest.mark.parametrize(
    "junk", [None, [], [1, 2], ["n", 1, 2, "3", "a", []], ["n", 1, 2, 3, "a", [4]], ["n", 1, 2, 3, "a", ["x"] * 17]]
)
def test_what_is_no_reference_is_refused(junk: object) -> None:
    with pytest.raises(ValueError, match="not a reference"):
        CoroRef.from_plain(junk)


def test_a_coro_sends_as_its_reference() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        assert payload.unpack(payload.pack([coro])) == [coro.ref]

    with_coro(test)


def test_outcomes_travel_with_value_error_and_reason() -> None:
    body, reason, text = Outcome("normal", [1, 2]).packed()
    assert Outcome(reason, text=text, body=body).unpacked(None).get() == [1, 2]
    body, reason, text = outcome_of(gen).packed()  # a TypeError: wrong arguments
    with pytest.raises(TypeError) as caught:
        Outcome(reason, text=text, body=body).unpacked(None).get()
    assert isinstance(caught.value.__cause__, RemoteError)
    ended = Outcome("terminated", text="was ended").packed()
    with pytest.raises(CoroEnded, match="was ended"):
        Outcome(ended[1], text=ended[2], body=ended[0]).unpacked(None).get()


async def fails() -> None:
    raise ValueError("bad")


def test_a_value_too_large_to_travel_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE", 100)
    body, reason, text = Outcome("normal", bytes(200)).packed()
    assert reason == "exception"
    with pytest.raises(TooLarge, match="at most 100 travel in one"):
        Outcome(reason, text=text, body=body).unpacked(None).get()


def test_an_error_keeps_no_frames_of_those_who_asked_for_it() -> None:
    def depth(error: BaseException) -> int:
        return len(list(traceback.walk_tb(error.__traceback__)))

    outcome = outcome_of(fails)
    assert outcome.error is not None
    depths = set()
    for _ in range(3):
        with pytest.raises(ValueError, match="bad"):
            outcome.get()
        depths.add(depth(outcome.error))
    assert len(depths) == 1


def test_a_value_that_cannot_travel_becomes_an_error_that_says_so() -> None:
    body, reason, text = Outcome("normal", {"lock": asyncio.Lock, "bad": (x for x in ())}).packed()
    outcome = Outcome(reason, text=text, body=body).unpacked(None)
    assert outcome.reason == "exception"
    assert "generator" in str(outcome.error)


def test_a_monitor_gets_the_notice_however_full_its_mailbox_is() -> None:
    async def test(host: SmallHost, coro: Coro) -> None:
        for number in range(MAILBOX_MESSAGES):
            coro.accept(number)
        coro.notify(REF, Outcome("normal", 5))
        for _ in range(MAILBOX_MESSAGES):
            await coro.receive()
        assert await coro.receive(timeout=0) == ExitNotice(REF, "normal", 5)

    with_coro(test)


def test_a_function_that_was_called_already_is_named_as_that() -> None:
    made, awaiting = gen(1), native(1)
    for called in (made, awaiting):
        with pytest.raises(NotACoroutine, match="was called already: pass the function itself"):
            check_coroutine(called)
    awaiting.close()
