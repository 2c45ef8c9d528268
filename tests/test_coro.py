"""Coroutines: how they receive and end, with a host of a few lines, and what they do with each other, in the real mesh."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading
import traceback
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from discoro import coro as coroutines
from discoro import messages, payload
from discoro.coro import Coro, current_coro, host_here
from discoro.driving import Driven, check_coroutine
from discoro.errors import (
    BadArguments,
    CoroEnded,
    NoMesh,
    NoReply,
    NoSuchCoro,
    NotACoroutine,
    Overloaded,
    ProtocolError,
    RemoteError,
    Timeout,
    TooLarge,
)
from discoro.mailbox import MAILBOX_BYTES, MAILBOX_MESSAGES
from discoro.mesh import Mesh
from discoro.outcomes import ExitNotice, Outcome
from discoro.program import join
from discoro.references import CoroRef, Running
from tests.support.meshes import World, simulate, start


class SmallHost:
    """What a Coro needs of a mesh, and no more: ids, and what was told."""

    def __init__(self) -> None:
        self.thread = threading.get_ident()
        self.left: dict[int, Outcome] = {}
        self.drained_count = 0
        self._next = 0

    def enter(self, coro: Coro) -> int:
        self._next += 1
        return self._next

    def ref_of(self, coro_id: int) -> CoroRef:
        return CoroRef("00000000000000aa", 7, 0xAA, coro_id, "ada")

    def leave(self, coro: Coro, outcome: Outcome) -> None:
        self.left[coro.ref.id] = outcome

    def check_thread(self) -> None:
        pass

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
    "junk",
    [None, [], [1, 2], ["n", 1, 2, "3", "a", []], ["n", 1, 2, 3, "a", [4]], ["n", 1, 2, 3, "a", ["x"] * 17]]
    + [["n", -1, 2, 3, "a", []], ["n", 1, True, 3, "a", []], ["n", 1, 2, 1 << 64, "a", []]]
    + [["n" * 256, 1, 2, 3, "a", []], ["n", 1, 2, 3, "a" * 256, []], ["n", 1, 2, 3, "a", ["x" * 256]]],
)
def test_what_is_no_reference_is_refused(junk: object) -> None:
    with pytest.raises(ProtocolError, match="not a reference"):
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


# ------------------------------------------------------------------ with others: the real mesh, on a clock that jumps


def in_world(test: Callable[[Mesh, Coro], Awaitable[Any]]) -> Any:
    """Run a test as a coroutine of a mesh."""

    async def world(world: World) -> Any:
        async with world.mesh("ada") as mesh:

            async def body(coro: Any = None) -> Any:
                return await test(mesh, coro)

            return await start(mesh, body).result_here()

    return simulate(world)


async def waits(coro: Any = None) -> Any:
    return await coro.receive()


async def pauses(coro: Any = None) -> Any:
    return await coro.suspend()


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def ended(coro: Coro) -> str:
    assert coro._outcome is not None
    return coro._outcome.reason


def test_a_receive_that_another_task_was_faster_than_waits_on() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        async def slow() -> Any:
            return await coro.receive(timeout=10, alarm_value="late")

        waiting = asyncio.create_task(slow())
        await turns()
        began = asyncio.get_running_loop().time()
        coro.send("first")
        assert await coro.receive() == "first"
        await turns()
        assert not waiting.done()
        assert await waiting == "late"
        assert asyncio.get_running_loop().time() - began == pytest.approx(10, abs=0.1)

    in_world(test)


def test_one_that_ended_is_freed_at_once_without_the_collector() -> None:
    def generator(coro: Any = None) -> Any:
        yield coro.receive()

    async def test(mesh: Mesh, coro: Coro) -> None:
        gone = []
        for function in (generator, waits):
            child: Coro | None = start(mesh, function)
            assert child is not None
            await turns()
            weakref.finalize(child, gone.append, function.__name__)
            child.send("end")
            child = None
            await turns(5)
        assert gone == ["generator", "waits"]

    gc.disable()
    try:
        in_world(test)
    finally:
        gc.enable()


def test_its_result_is_there_after_it_ended_and_so_is_its_name() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        child = start(mesh, native, 1)
        await child.stopped()
        assert (child.done, await child.result_here(), await child.result()) == (True, 2, 2)
        assert "native ended" in repr(child)
        child.stop("terminated")
        child.throw_here(ValueError())
        assert await child.result_here() == 2

    in_world(test)


# -------------------------------------------------------------- ask and reply


async def answers_later(log: list[Any], coro: Any = None) -> None:
    await coro.receive()
    question = coro.question
    assert coro.question is None
    assert coro.reply("nobody waits for it here") == 0
    await coro.receive()
    log.append(question.reply("later"))


def test_a_question_taken_is_answered_whenever_the_coroutine_likes() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        log: list[Any] = []
        other = start(mesh, answers_later, log)
        asked = asyncio.ensure_future(other.ask("?"))
        await turns()
        other.send("now")
        assert await asked == "later"
        assert log == [1]

    in_world(test)


async def drops(how: str, coro: Any = None) -> None:
    await coro.receive()
    if how == "goes on":
        await coro.receive()
    elif how == "drops it":
        assert coro.question is not None
        await coro.suspend()
    elif how == "fails":
        raise ValueError("of its own")


WHY = {"goes on": "next message", "drops it": "dropped", "fails": "of its own", "returns": "normal"}


@pytest.mark.parametrize(("how", "why"), WHY.items())
def test_who_asked_and_gets_no_reply_is_told_at_once(how: str, why: str) -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        other = start(mesh, drops, how)
        await coro.monitor(other)
        with pytest.raises(NoReply, match=why):
            await other.ask("?")
        await other.terminate()

    in_world(test)


def test_questions_that_were_not_received_yet_are_answered_when_it_ends() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        other = start(mesh, pauses)
        asked = [asyncio.ensure_future(other.ask(number)) for number in range(3)]
        await turns()
        await other.terminate()
        for each in asked:
            with pytest.raises(NoReply, match="terminated"):
                await each
        with pytest.raises(NoSuchCoro):
            await other.ask("?")

    in_world(test)


# -------------------------------------------------------------- suspend, throw, swap


def test_an_update_is_not_lost_with_a_swap_that_comes_in_the_same_turn() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        got = []

        async def first(coro: Any = None) -> None:
            coro.hot_swappable()
            while True:
                got.append(await coro.suspend())

        other = start(mesh, first)
        await turns()
        other.resume_here("update")
        assert await other.hot_swap(native, 1) == 0
        assert got == ["update"]
        assert await other.result() == 2

    in_world(test)


def test_a_pause_that_no_swap_can_end_any_more_goes_on_until_its_time() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        async def stubborn(coro: Any = None) -> Any:
            coro.hot_swappable()
            asyncio.get_running_loop().call_later(1, swap, coro)
            return await coro.suspend(10, "over"), asyncio.get_running_loop().time()

        def swap(coro: Coro) -> None:
            refused.append(coro.swap_here(native, (1,), {}))
            coro.hot_swappable(False)

        refused: list[asyncio.Future[int]] = []
        began = asyncio.get_running_loop().time()
        value, at = await start(mesh, stubborn).result()
        assert (value, at - began) == ("over", pytest.approx(10, abs=0.1))
        with pytest.raises(NoSuchCoro):
            await refused[0]

    in_world(test)


def test_arguments_that_the_new_function_does_not_take_are_refused_and_the_old_one_goes_on() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        async def old(coro: Any = None) -> Any:
            coro.hot_swappable()
            return await coro.receive()

        other = start(mesh, old)
        with pytest.raises(BadArguments, match="missing a required argument: 'x'"):
            await other.hot_swap(native)
        other.send("old")
        assert await other.result() == "old"

    in_world(test)


def test_one_that_is_told_to_end_is_not_swapped_while_it_ends() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        async def tidies(coro: Any = None) -> None:
            try:
                await coro.suspend()
            finally:
                coro.hot_swappable()
                await coro.receive()

        other = start(mesh, tidies)
        waiting = asyncio.ensure_future(other.hot_swap(native, 1))
        await turns()
        other.stop("terminated")
        with pytest.raises(NoSuchCoro):
            await waiting
        with pytest.raises(NoSuchCoro, match="about to end"):
            await other.hot_swap(native, 1)
        other.send("tidied")
        with pytest.raises(CoroEnded):
            await other.result()

    in_world(test)


def test_what_is_thrown_in_the_turn_in_which_it_returns_is_how_it_ended() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        async def throws_at_itself(error: BaseException, coro: Any = None) -> str:
            await coro.throw(error)
            return "lost"

        with pytest.raises(ValueError, match="at the end"):
            await start(mesh, throws_at_itself, ValueError("at the end")).result()
        with pytest.raises(CoroEnded, match="SystemExit"):
            await start(mesh, throws_at_itself, SystemExit(3)).result()

    in_world(test)


@pytest.mark.parametrize("junk", ["text", ValueError, StopIteration()])
def test_what_cannot_be_thrown_is_refused(junk: Any) -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        other = start(mesh, waits)
        with pytest.raises(TypeError, match="throw takes"):
            await other.throw(junk)
        other.send("unharmed")
        assert await other.result() == "unharmed"

    in_world(test)


# -------------------------------------------------------------- links, children, daemons


async def ends(how: str, coro: Any = None) -> None:
    await coro.receive()
    if how == "exception":
        raise ValueError("bad")
    if how == "terminated":
        await coro.terminate()
        await coro.receive()


@pytest.mark.parametrize("how", ["exception", "terminated", "normal"])
def test_linked_ones_end_together_unless_one_just_returns(how: str) -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        dies, lives, unlinked = start(mesh, ends, how), start(mesh, waits), start(mesh, waits)
        await coro.monitor(dies)
        for other in (lives, unlinked):
            assert await mesh.link(other, dies.ref) == 0
        assert await mesh.unlink(unlinked, dies.ref) == 0
        dies.send("go")
        assert (await coro.receive()).reason == how
        await turns()
        if how == "normal":
            assert not lives.done
        else:
            await lives.stopped()
            assert ended(lives) == "linked"
            with pytest.raises(CoroEnded, match="linked with it"):
                await lives.result()
        assert not unlinked.done

    in_world(test)


def test_a_link_to_one_that_ended_takes_effect_at_once() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        for how, reason in (("exception", "linked"), ("normal", "normal")):
            dead, other = start(mesh, ends, how), start(mesh, waits)
            dead.send("go")
            await coro.monitor(dead)
            await coro.receive()
            assert await mesh.link(other, dead.ref) == 0
            other.send("go on")
            await other.stopped()
            assert ended(other) == reason

    in_world(test)


def test_a_coroutine_linked_with_itself_ends_as_any_other() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        other = start(mesh, ends, "exception")
        assert await mesh.link(other, other.ref) == 0
        other.send("go")
        with pytest.raises(ValueError, match="bad"):
            await other.result()

    in_world(test)


@pytest.mark.parametrize("how", ["exception", "terminated", "normal"])
def test_children_end_with_their_parent_however_it_ends_and_not_the_other_way(how: str) -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        parent, adopted = start(mesh, ends, how), start(mesh, waits)
        child, grandchild_of = parent.child(waits), parent.child(waits)
        grandchild = grandchild_of.child(waits)
        just_created = Coro.start(mesh, waits, creator=parent)
        assert await parent.adopt(adopted) == 0
        assert set(parent.children()) == {each.ref for each in (child, grandchild_of, adopted, just_created)}
        await child.terminate()
        await child.stopped()
        assert set(parent.children()) == {each.ref for each in (grandchild_of, adopted, just_created)}
        assert not parent.done
        await coro.monitor(parent)
        parent.send("go")
        await coro.receive()
        for each in (grandchild_of, adopted, grandchild):
            await each.stopped()
            assert ended(each) == "parent ended"
        assert not just_created.done

    in_world(test)


def test_one_that_ended_gets_no_children() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        parent = start(mesh, native, 1)
        await parent.stopped()
        with pytest.raises(RuntimeError, match="native .* has ended"):
            parent.child(waits)
        with pytest.raises(NoSuchCoro):
            await coro.adopt(parent)

    in_world(test)


def test_many_children_are_looked_through_as_often_as_their_number_doubles() -> None:
    looked = 0

    def still_runs(ref: CoroRef) -> bool:
        nonlocal looked
        looked += 1
        return ref.id <= 999 or ref.id > 50_000

    running = Running(still_runs)
    for number in range(1, 50_001):
        running.add(CoroRef("n", 1, 2, number))
        assert len(running) <= 2000
    assert [ref.id for ref in running.refs()] == list(range(1, 1000))
    assert looked < 3 * 50_000
    looked = 0
    for number in range(50_001, 100_001):
        running.add(CoroRef("n", 1, 2, number))
    assert len(running) == 50_999
    assert looked < 3 * 50_000


def test_join_waits_for_all_but_daemons_and_for_those_created_meanwhile() -> None:
    async def test(mesh: Mesh, coro: Coro) -> None:
        over = []

        async def lasts(seconds: float, then: float = 0) -> None:
            await asyncio.sleep(seconds)
            if then:
                Coro(lasts, then)
            over.append(seconds)

        async def becomes_daemon(coro: Any = None) -> None:
            await coro.sleep(1)
            coro.set_daemon()
            await coro.receive()

        daemon = start(mesh, waits)
        daemon.set_daemon()
        start(mesh, becomes_daemon)
        start(mesh, lasts, 3, 4)
        start(mesh, lasts, 2)
        assert await join() == 0
        assert over == [2, 3, 4]
        daemon.set_daemon(False)
        with pytest.raises(Timeout, match=r"^1 coroutines still ran after 5 s: waits"):
            await join(timeout=5)

    in_world(test)
