"""Running what users wrote, by itself: the driver of generators, and the two ways into a coroutine from outside."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable, Generator
from typing import Any

import pytest

from discoro import driving
from discoro.driving import Driven, Exited, HotSwap, Steered, Swap, TimeLimit, check_arguments, wants_coro
from discoro.errors import BadArguments, NoSuchCoro, SwapRefused, Timeout


def in_loop(test: Callable[[], Awaitable[Any]]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(5):
            return await test()

    return asyncio.run(bounded())


def begin(function: Callable[..., Any], *args: Any) -> tuple[Steered, asyncio.Task[Any]]:
    steered = Steered(function.__name__, function, args, {})
    return steered, asyncio.get_running_loop().create_task(steered)


def throw(steered: Steered, task: asyncio.Task[Any], *errors: BaseException) -> None:
    for error in errors:
        steered.raise_later(error)
        task.cancel()


async def turns(number: int = 3) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


def for_ever() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


# ------------------------------------------------------------------ generators


class Ready:
    """An awaitable as C code makes them: its iterator has no `send`."""

    def __await__(self) -> Any:
        return iter(())


def test_whatever_can_be_awaited_can_be_yielded() -> None:
    def inner() -> Any:
        got = yield asyncio.sleep(0, "sub-generator")
        return got

    def generator() -> Any:
        future = for_ever()
        asyncio.get_running_loop().call_soon(future.set_result, "future")
        task = asyncio.create_task(asyncio.sleep(0, "task"))
        return [
            (yield future),
            (yield task),
            (yield inner()),
            (yield asyncio.gather(asyncio.sleep(0, 1))),
            (yield Ready()),
            (yield),
        ]

    async def test() -> Any:
        return await Driven(generator())

    assert in_loop(test) == ["future", "task", "sub-generator", [1], None, None]


def test_an_awaited_generator_can_be_cancelled_and_goes_on_if_it_likes() -> None:
    def generator() -> Any:
        try:
            yield for_ever()
        except asyncio.CancelledError:
            return (yield asyncio.sleep(0, "went on"))

    async def test() -> Any:
        task = asyncio.create_task(Driven(generator()))
        await turns()
        task.cancel()
        return await task

    assert in_loop(test) == "went on"


def test_an_error_thrown_before_the_first_step_runs_nothing() -> None:
    def generator() -> Any:
        pytest.fail("it ran")
        yield

    with pytest.raises(KeyError):
        Driven(generator()).throw(KeyError("k"))


def test_closing_closes_what_it_waits_for_first() -> None:
    closed = []

    async def operation() -> None:
        try:
            await for_ever()
        finally:
            closed.append("operation")

    def generator() -> Any:
        try:
            yield operation()
        finally:
            closed.append("generator")

    async def test() -> None:
        driven = Driven(generator())
        driven.send(None)
        assert driven.cr_frame is not None
        assert driven.cr_frame.f_code.co_name == "generator"
        driven.close()
        assert driven.cr_frame is None

    in_loop(test)
    assert closed == ["operation", "generator"]


# ------------------------------------------------------------------ throw

Waits = Callable[[], Any]


async def waits_in_a_task() -> None:
    await asyncio.create_task(asyncio.Event().wait())


def waits_in_a_sub_generator() -> Any:
    yield asyncio.Event().wait()


WAITS: dict[str, Waits] = {
    "future": for_ever,
    "sleep": lambda: asyncio.sleep(3600),
    "task": waits_in_a_task,
    "gather": lambda: asyncio.gather(for_ever(), for_ever()),
    "wait_for": lambda: asyncio.wait_for(for_ever(), 3600),
    "shield": lambda: asyncio.shield(for_ever()),
}


def generator(wait: Waits) -> Generator[Any, Any, Any]:
    caught = []
    for _ in range(2):
        try:
            yield wait()
        except ValueError as error:
            caught.append(str(error))
    task = asyncio.current_task()
    assert task is not None
    return caught, task.cancelling()


async def native(wait: Waits) -> Any:
    caught = []
    for _ in range(2):
        try:
            await wait()
        except ValueError as error:
            caught.append(str(error))
    task = asyncio.current_task()
    assert task is not None
    return caught, task.cancelling()


STYLES = pytest.mark.parametrize("style", [generator, native])


@STYLES
@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("gap", [0, 1, 5])
def test_what_is_thrown_comes_out_of_any_wait_and_leaves_no_cancellation(style: Any, wait: str, gap: int) -> None:
    async def test() -> Any:
        steered, task = begin(style, WAITS[wait])
        await turns()
        throw(steered, task, ValueError("first"))
        await turns(gap)
        throw(steered, task, ValueError("second"))
        return await task

    assert in_loop(test) == (["first", "second"], 0)


def test_it_comes_out_of_a_sub_generator() -> None:
    async def test() -> Any:
        steered, task = begin(generator, waits_in_a_sub_generator)
        await turns()
        throw(steered, task, ValueError("first"), ValueError("second"))
        return await task

    assert in_loop(test) == (["first", "second"], 0)


@STYLES
def test_thrown_before_the_first_step_it_is_raised_at_the_first_wait(style: Any) -> None:
    async def test() -> Any:
        steered, task = begin(style, for_ever)
        throw(steered, task, ValueError("early"), ValueError("too"))
        return await task

    assert in_loop(test) == (["early", "too"], 0)


def test_thrown_into_one_that_does_not_wait_it_is_raised_nowhere() -> None:
    async def returns() -> str:
        return "done"

    async def test() -> Any:
        steered, task = begin(returns)
        error = ValueError()
        throw(steered, task, error)
        assert await task == "done"
        assert steered.not_raised is error

    in_loop(test)


@STYLES
def test_where_what_it_waits_for_swallows_the_cancellation_it_is_raised_at_the_next_wait(style: Any) -> None:
    async def swallowing() -> None:
        try:
            await for_ever()
        except asyncio.CancelledError:
            pass

    waits: list[Waits] = [lambda: asyncio.create_task(swallowing()), for_ever]

    async def test() -> Any:
        steered, task = begin(style, lambda: waits.pop(0)())
        await turns()
        throw(steered, task, ValueError("late"))
        return await task

    assert in_loop(test) == (["late"], 0)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
@pytest.mark.parametrize("started", [False, True])
@STYLES
def test_an_exit_that_is_thrown_ends_the_coroutine_and_not_the_loop(style: Any, started: bool, error: BaseException) -> None:
    async def test() -> None:
        steered, task = begin(style, for_ever)
        await turns(3 if started else 0)
        throw(steered, task, error)
        with pytest.raises(Exited) as caught:
            await task
        assert caught.value.__cause__ is error

    in_loop(test)


@STYLES
def test_after_forget_raised_a_cancellation_is_one(style: Any) -> None:
    async def test() -> None:
        steered, task = begin(style, for_ever)
        await turns()
        throw(steered, task, ValueError("no more"))
        steered.forget_raised()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(test)


def test_an_expired_limit_and_what_is_thrown_in_the_same_turn_leave_no_cancellation() -> None:
    async def limited() -> Any:
        task = asyncio.current_task()
        assert task is not None
        try:
            async with asyncio.timeout(0):
                await for_ever()
        except ValueError as error:
            return str(error), task.cancelling()

    async def test() -> Any:
        steered, task = begin(limited)
        await asyncio.sleep(0)  # it waits, and its limit expires in the next turn
        asyncio.get_running_loop().call_soon(throw, steered, task, ValueError("thrown"))
        return await task

    assert in_loop(test) == ("thrown", 0)


# ------------------------------------------------------------------ ends


@pytest.mark.parametrize("function", [generator, native])
def test_cancelled_before_the_first_step_it_is_never_called(function: Any) -> None:
    async def test() -> None:
        steered, task = begin(function, lambda: pytest.fail("it ran"))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(test)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
def test_an_exit_raised_inside_is_carried_past_the_loop(error: BaseException) -> None:
    def exits() -> Any:
        yield
        raise error

    async def test() -> None:
        with pytest.raises(Exited) as caught:
            await begin(exits)[1]
        assert caught.value.__cause__ is error

    in_loop(test)


def test_what_the_function_makes_need_only_be_awaitable() -> None:
    def makes_a_future() -> Any:
        future = for_ever()
        future.set_result(5)
        return future

    async def test() -> Any:
        return await begin(makes_a_future)[1]

    assert in_loop(test) == 5


def test_a_coroutine_is_not_awaited_itself_and_its_task_prints_its_name() -> None:
    async def test() -> None:
        steered, task = begin(native, for_ever)
        await turns()
        with pytest.raises(TypeError, match="wait for its result"):
            await steered
        assert "coro=<native()" in repr(task)
        assert [frame.f_code.co_name for frame in task.get_stack()] == ["native"]
        steered.close()
        assert steered.cr_frame is None
        task.cancel()
        await asyncio.wait([task])

    in_loop(test)


# ------------------------------------------------------------------ swap


def old_generator(steered: list[Steered], log: list[str], refuses: bool) -> Generator[Any, Any, Any]:
    while True:
        try:
            steered[0].offer_swap()
            yield
        except HotSwap as offer:
            assert offer.args == (new_native,)
            if not refuses:
                raise
            log.append("refused")
        finally:
            log.append("old")


async def old_native(steered: list[Steered], log: list[str], refuses: bool) -> None:
    while True:
        try:
            steered[0].offer_swap()
            await asyncio.sleep(0)
        except HotSwap as offer:
            assert offer.args == (new_native,)
            if not refuses:
                raise
            log.append("refused")
        finally:
            log.append("old")


async def new_native(*args: Any) -> Any:
    await asyncio.sleep(0)
    return "new", args


OLD = pytest.mark.parametrize("old", [old_generator, old_native])


def swapping(old: Any, refuses: bool = False) -> tuple[Steered, asyncio.Task[Any], list[str], Swap]:
    found: list[Steered] = []
    log: list[str] = []
    steered, task = begin(old, found, log, refuses)
    found.append(steered)
    swap = steered.swap = Swap(new_native, (1, 2), {}, for_ever())
    return steered, task, log, swap


@OLD
def test_a_swap_waits_until_it_is_allowed_then_the_old_one_tidies_up_and_the_new_one_runs(old: Any) -> None:
    async def test() -> None:
        steered, task, log, swap = swapping(old)
        await turns()
        assert not swap.done.done()
        steered.swappable = True
        assert await swap.done == 0
        assert log[-1] == "old"
        assert await task == ("new", (1, 2))
        assert steered.swap is None

    in_loop(test)


@OLD
def test_one_that_catches_the_offer_and_waits_again_has_refused(old: Any) -> None:
    async def test() -> None:
        steered, task, log, swap = swapping(old, refuses=True)
        steered.swappable = True
        with pytest.raises(SwapRefused, match="went on as it was"):
            await swap.done
        assert log.count("refused") == 1
        assert steered.swap is None
        await turns()
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])

    in_loop(test)


@OLD
def test_one_that_ends_answers_the_swap_that_waits(old: Any) -> None:
    async def test() -> None:
        steered, task, _, swap = swapping(old)
        await turns()
        task.cancel()
        await asyncio.wait([task])
        steered.ends()
        with pytest.raises(NoSuchCoro, match="ended before"):
            await swap.done

    in_loop(test)


def test_one_that_raises_hot_swap_by_itself_raised_an_exception() -> None:
    def raises() -> Any:
        yield
        raise HotSwap("mine")

    async def test() -> None:
        with pytest.raises(HotSwap, match="mine"):
            await begin(raises)[1]

    in_loop(test)


# ------------------------------------------------------------------ limits of time


def limited(seconds: float, operation: Callable[[], Any]) -> Generator[Any, Any, Any]:
    with TimeLimit(seconds):
        return (yield operation())


def test_a_limit_that_expires_raises_timeout_and_leaves_no_cancellation() -> None:
    def coroutine() -> Any:
        try:
            yield limited(0, for_ever)
        except Timeout as error:
            task = asyncio.current_task()
            assert task is not None
            return str(error), task.cancelling(), (yield asyncio.sleep(0, "goes on"))

    async def test() -> Any:
        return await begin(coroutine)[1]

    assert in_loop(test) == ("not done within 0 s", 0, "goes on")


def test_a_limit_that_does_not_expire_does_nothing() -> None:
    async def test() -> Any:
        return await begin(limited, 3600, lambda: asyncio.sleep(0, "in time"))[1]

    assert in_loop(test) == "in time"


def test_of_two_limits_the_one_that_expires_is_the_one_that_raises() -> None:
    def coroutine() -> Any:
        try:
            with TimeLimit(0):
                yield limited(3600, for_ever)
        except Timeout as error:
            return str(error)

    async def test() -> Any:
        return await begin(coroutine)[1]

    assert in_loop(test) == "not done within 0 s"


def test_a_cancellation_from_outside_stays_one_though_the_limit_expires_too() -> None:
    async def test() -> None:
        _, task = begin(limited, 0, for_ever)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(task.cancel)
        with pytest.raises(asyncio.CancelledError):
            await task

    in_loop(test)


def test_an_error_of_its_own_passes_a_limit() -> None:
    async def fails() -> None:
        raise KeyError("k")

    async def test() -> None:
        with pytest.raises(KeyError):
            await begin(limited, 3600, fails)[1]

    in_loop(test)


# ------------------------------------------------------------------ functions


class Methods:
    async def with_coro(self, *, coro: Any = None) -> None: ...
    async def without(self) -> None: ...


async def with_coro(x: int, coro: Any) -> None: ...


async def only_inside() -> None:
    coro = None
    del coro


@functools.wraps(with_coro)
async def wrapping(*args: Any, **kwargs: Any) -> None: ...


@pytest.mark.parametrize(
    ("function", "wants"),
    [
        (with_coro, True),
        (Methods().with_coro, True),
        (functools.partial(with_coro, 1), True),
        (wrapping, True),
        (only_inside, False),
        (Methods().without, False),
        (int, False),
        (3, False),
    ],
)
def test_who_has_a_parameter_named_coro_wants_it(function: Any, wants: bool) -> None:
    assert wants_coro(function) is wants


def test_arguments_that_a_function_does_not_take_are_named_with_its_signature() -> None:
    signature = inspect.signature(with_coro)
    check_arguments("f", signature, (1,), {"coro": None})
    with pytest.raises(BadArguments, match=r"f\(x: 'int', coro: 'Any'\) -> 'None' does not take .* missing .* 'coro'"):
        check_arguments("f", signature, (1,), {})

    def long(x: str = "x" * 1000) -> None: ...

    with pytest.raises(BadArguments) as caught:
        check_arguments("f", inspect.signature(long), (1, 2), {})
    assert len(str(caught.value)) < driving.SHOWN + 100
