"""Running what users wrote: generators by awaiting what they yield, and both kinds with two ways in from outside.

`Steered` is what the task of a coroutine runs: the user's function, where an exception can be raised at the place it waits
(`throw`), and which can go on as another function (`Swap`). It knows nothing of mailboxes and the mesh.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import re
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from types import CodeType, CoroutineType, FrameType, TracebackType
from typing import Any

from discoro.errors import BadArguments, NoSuchCoro, NotACoroutine, SwapRefused, Timeout
from discoro.payload import error_text

_NOT_THE_USERS = (os.path.dirname(__file__), os.path.dirname(asyncio.__file__))

SHOWN = 300  # characters of a signature in an error: a default value can have any length


class Exited(Exception):
    """Carries SystemExit or KeyboardInterrupt of one coroutine past the loop, which either would end."""


class HotSwap(Exception):
    """Raised in a hot-swappable coroutine that is to go on as another function, `args[0]`.

    No error: a coroutine accepts by letting it pass, after putting in order what it has to. Where it catches that, and waits in
    `receive`, `suspend` or `sleep` again, it has refused.
    """


class Swap:
    """Another function for a coroutine to go on as. `done` is answered when it runs, or why it does not."""

    __slots__ = ("begin", "done", "offer")

    def __init__(
        self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], done: asyncio.Future[int]
    ) -> None:
        self.begin = function, args, kwargs
        self.done = done
        self.offer: HotSwap | None = None  # once raised in the coroutine

    def answer(self, error: BaseException | None = None) -> None:
        if not self.done.done():
            self.done.set_result(0) if error is None else self.done.set_exception(error)


class Steered(Coroutine[Any, Any, Any]):
    """What the task of one coroutine runs; `function(*args, **kwargs)` is called at its first step, in the task's context.

    An object with the methods of a coroutine, and not an `async def` around the user's: that would be one more frame for each
    coroutine that waits, and could not choose the exception that comes out of a wait.
    """

    __slots__ = ("_begin", "_made", "_thrown", "name", "swap", "swappable")

    def __init__(self, name: str, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> None:
        self.name = name
        self._begin: tuple[Callable[..., Any], Sequence[Any], dict[str, Any]] | None = (function, args, kwargs)
        self._made: Coroutine[Any, Any, Any] | None = None
        self._thrown: list[BaseException] | None = None  # each to be raised in place of a cancellation
        self.swap: Swap | None = None
        self.swappable = False

    # -------------------------------------------------------------- from outside

    def raise_later(self, error: BaseException) -> None:
        """Raise this where it waits, or will wait next; the caller cancels the task, which brings it there."""
        self._thrown = [*(self._thrown or ()), error]

    @property
    def not_raised(self) -> BaseException | None:
        """What was to be raised where it waits next, and it did not wait any more."""
        return self._thrown[0] if self._thrown else None

    def forget_raised(self) -> None:
        """The next cancellation is meant."""
        self._thrown = None

    def offer_swap(self) -> None:
        """Where the coroutine waits: raise HotSwap if it is to be swapped and allows it. Caught before, it is refused."""
        swap = self.swap
        if swap is not None and swap.offer is not None:
            self.swap = None
            swap.answer(SwapRefused(f"{self.name} caught HotSwap and went on as it was"))
        elif swap is not None and self.swappable:
            swap.offer = HotSwap(swap.begin[0])
            raise swap.offer

    # -------------------------------------------------------------- what the task calls

    def send(self, value: Any, /) -> Any:
        try:
            if self._made is None:
                self._made = self._start()
            waits_for = self._made.send(value)
        except HotSwap as error:
            self._accept(error)
        except (SystemExit, KeyboardInterrupt) as error:
            raise Exited from error
        else:
            if self._thrown:
                self._cancel_again()
            return waits_for
        return self.send(None)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        error = _exception(kind, value)
        if self._thrown and isinstance(error, asyncio.CancelledError):
            if self._made is None:  # it does not wait yet
                return self.send(None)
            error = self._thrown.pop(0)
            _own_task().uncancel()
        if self._made is None:  # ended before its first step
            raise error
        try:
            waits_for = self._made.throw(error)
        except HotSwap as swapped:
            self._accept(swapped)
        except (SystemExit, KeyboardInterrupt) as exited:
            raise Exited from exited
        else:
            if self._thrown:
                self._cancel_again()
            return waits_for
        return self.send(None)

    def _cancel_again(self) -> None:
        """It waits, and more is to be raised: the cancellation for it came before its first step, served another, or was lost
        with a task that it waited for."""
        task = _own_task()
        task.uncancel()
        task.cancel()

    def close(self) -> None:
        if self._made is not None:
            self._made.close()

    def __await__(self) -> Generator[Any, Any, Any]:
        raise TypeError("a coroutine of discoro is run by its own task: wait for its result()")

    @property
    def cr_frame(self) -> FrameType | None:
        """Where it stands, for asyncio's own printing of stacks."""
        return getattr(self._made, "cr_frame", None)

    @property
    def __name__(self) -> str:
        """For asyncio's own printing of tasks."""
        return self.name

    def __repr__(self) -> str:
        return f"<Steered {self.name}>"

    # -------------------------------------------------------------- parts

    def _start(self) -> Coroutine[Any, Any, Any]:
        assert self._begin is not None
        (function, args, kwargs), self._begin = self._begin, None
        made = function(*args, **kwargs)
        if inspect.isgenerator(made):
            return Driven(made)
        return made if inspect.iscoroutine(made) else awaiting(made)

    def _accept(self, error: HotSwap) -> None:
        """Go on as the new function, if this is the swap that was offered; else it is an exception as any other."""
        swap = self.swap
        if swap is None or swap.offer is not error:
            raise error
        self.swap, self._made, self._begin = None, None, swap.begin
        swap.answer()

    def ends(self) -> None:
        """The task is over, or told to end: a swap that still waits comes to nothing."""
        if self.swap is not None:
            self.swap.answer(NoSuchCoro(f"{self.name} ended before it could be swapped"))
            self.swap = None


class Driven(Coroutine[Any, Any, Any]):
    """Runs a generator to its end by awaiting what it yields; gives what it returns. Can be awaited, and run as a task.

    A generator yielded runs as with `yield from`; None lets others run; what cannot be awaited raises TypeError inside. An
    object, and not an `async def` with a loop in it: a frame for each generator that waits takes five times as much memory.
    """

    __slots__ = ("_generator", "_operation")

    def __init__(self, generator: Generator[Any, Any, Any]) -> None:
        self._generator = generator
        self._operation: Coroutine[Any, Any, Any] | None = None  # that it waits for

    def __repr__(self) -> str:
        return f"<Driven {self._generator!r}>"

    @property
    def cr_frame(self) -> FrameType | None:
        frame: FrameType | None = getattr(self._generator, "gi_frame", None)
        return frame

    def send(self, value: Any, /) -> Any:
        if self._operation is None:
            return self._go_on(self._generator.send, value)
        try:
            return self._operation.send(value)
        except StopIteration as stop:
            step, argument = self._generator.send, stop.value
        except BaseException as error:  # whatever it is, CancelledError too, it belongs into the generator
            step, argument = self._generator.throw, error
        return self._go_on(step, argument)

    def throw(self, kind: Any, value: Any = None, trace: TracebackType | None = None, /) -> Any:
        thrown = _exception(kind, value)
        if self._operation is None:
            return self._go_on(self._generator.throw, thrown)
        try:
            return self._operation.throw(thrown)
        except StopIteration as stop:
            step, argument = self._generator.send, stop.value
        except BaseException as error:
            step, argument = self._generator.throw, error
        return self._go_on(step, argument)

    def close(self) -> None:
        if self._operation is not None:
            self._operation.close()
        self._generator.close()

    def __await__(self) -> Driven:
        return self

    def __iter__(self) -> Driven:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def _go_on(self, step: Callable[[Any], Any], argument: Any) -> Any:
        """Take steps of the generator until it waits for what is not there yet; its end is StopIteration, as of a coroutine."""
        while True:
            yielded = step(argument)
            try:
                self._operation = operation = yielded if type(yielded) is CoroutineType else _operation(yielded)
                return operation.send(None)
            except StopIteration as stop:
                step, argument = self._generator.send, stop.value
            except BaseException as error:
                step, argument = self._generator.throw, error


def _operation(yielded: Any) -> Coroutine[Any, Any, Any]:
    """What a generator yielded, as a coroutine that can be run in its place."""
    if yielded is None:
        return asyncio.sleep(0)
    if inspect.isgenerator(yielded):
        return Driven(yielded)
    if inspect.isawaitable(yielded):
        return awaiting(yielded)
    raise TypeError(f"yielded {yielded!r:.80}, which cannot be awaited: yield waits for an operation, return gives a value")


async def awaiting(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


def _own_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    assert task is not None  # every step is taken by it
    return task


def _exception(kind: Any, value: Any) -> BaseException:
    """The one exception that the arguments of a coroutine's `throw` mean."""
    error: BaseException = kind if value is None else value
    return error() if isinstance(error, type) else error


# ------------------------------------------------------------------ what users forget


def not_awaited(value: object) -> str:
    """In words, where a value is an operation, or a call of a generator function, that nobody awaited; "" for any other.

    Closes a coroutine object, so that Python does not complain a second time. A generator expression is taken as a value.
    """
    if inspect.iscoroutine(value):
        made = f", made in {value.cr_origin[0][0]}, line {value.cr_origin[0][1]}," if value.cr_origin else ""
        value.close()
        return f"an operation that nobody awaited ({value.__qualname__}{made})"
    if inspect.isgenerator(value) and inspect.getgeneratorstate(value) == inspect.GEN_CREATED:
        if value.__name__ != "<genexpr>":
            return f"a generator that nobody ran ({value.__qualname__})"
    return ""


_OBJECT = re.compile(r"['\"](coroutine|generator)['\"]|(?:type|not|non-iterable) (?:a )?(coroutine|generator)\b")


def explain(error: BaseException) -> None:
    """Note on a TypeError or AttributeError that shows a coroutine object where a value was wanted, once, what is missing."""
    found = _OBJECT.search(error_text(error)) if type(error) in (TypeError, AttributeError) else None
    if found:
        kind = found[1] or found[2]
        source = "an operation" if kind == "coroutine" else "a generator function"
        note = f"{source} gives a {kind} object until it is awaited: did you forget yield or await?"
        if note not in getattr(error, "__notes__", ()):
            error.add_note(note)


class TimeLimit:
    """`with coro.timeout(seconds):` in a generator: what asyncio.timeout is in an `async def`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._over = False

    def __enter__(self) -> TimeLimit:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        self._alarm = asyncio.get_running_loop().call_later(self._seconds, self._expire)
        return self

    def _expire(self) -> None:
        self._over = True
        self._task.cancel()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._alarm.cancel()
        if self._over and self._task.uncancel() <= self._cancelling and isinstance(error, asyncio.CancelledError):
            raise Timeout(f"not done within {self._seconds:g} s") from error


def from_user(trace: TracebackType | None) -> TracebackType | None:
    """A traceback from the first frame that is neither discoro's nor asyncio's; the whole of it where there is none."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        found = found.tb_next
    return found or trace


_COROUTINE = inspect.CO_GENERATOR | inspect.CO_COROUTINE


def check_coroutine(function: Any) -> None:
    """NotACoroutine unless `function` is a generator function or an `async def`, bound or partial ones too."""
    code = getattr(function, "__code__", None)
    if type(code) is CodeType and code.co_flags & _COROUTINE and not code.co_flags & inspect.CO_ASYNC_GENERATOR:
        return
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return
    what = getattr(function, "__qualname__", repr(function))
    hint = "it has no `yield`" if callable(function) else "it is not a function"
    if inspect.iscoroutine(function) or inspect.isgenerator(function):
        raise NotACoroutine(f"{what} was called already: pass the function itself, {what} and not {what}()")
    if inspect.isasyncgenfunction(function):
        hint = "it is an async generator: it has `async def` and `yield`, use one of them"
    raise NotACoroutine(f"{what} is not a coroutine function: {hint}. Write a generator function (with yield) or an async def")


def check_arguments(name: str, signature: inspect.Signature, args: Sequence[Any], kwargs: dict[str, Any]) -> None:
    """BadArguments where a function of that signature does not take them."""
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        raise BadArguments(f"{f'{name}{signature}':.{SHOWN}} does not take these arguments: {error}") from None


def wants_coro(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter named `coro`, and so receives its Coro there."""
    code = getattr(function, "__code__", None)
    if isinstance(code, CodeType) and not hasattr(function, "__wrapped__"):  # ten times as fast as its signature
        return "coro" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    try:
        return "coro" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False
