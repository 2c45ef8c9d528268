"""Coroutines: what users write, refer to and send messages to.

A coroutine (`Coro`) is a generator function or an `async def`, run as an asyncio task with a mailbox. A generator is driven by
`drive`, which awaits what it yields: `x = yield op` and `x = await op` mean the same. A reference (`CoroRef`) is a small frozen
value that stands for a coroutine anywhere; both share `Handle`, the operations that work on either.

This module never touches the network. Whatever concerns another coroutine goes to the `Host` around it (the mesh), found
through a context variable, so that several meshes can live in one process.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import re
from collections import deque
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

from discoro import payload
from discoro.errors import CoroEnded, DiscoroError, NoMesh, NotACoroutine, Overloaded, PeerLost, UnpackError, WorkerLost
from discoro.messages import Part, body_size

MAILBOX_MESSAGES = 10_000  # about 10 MB of small objects
MAILBOX_BYTES = 16 << 20  # packed bytes; an empty mailbox takes one larger message
READY_RECEIVES = 256  # receives that never wait starve everything else of the loop, acknowledgements first

NORMAL, EXCEPTION, TERMINATED = "normal", "exception", "terminated"
CLOSED, PEER_LOST, WORKER_LOST, UNKNOWN = "computation closed", "peer lost", "worker lost", "unknown"


class Host(Protocol):
    """What a coroutine needs of the mesh around it; `mesh.Mesh` is one."""

    def enter(self, coro: Coro) -> CoroRef: ...
    def leave(self, coro: Coro, outcome: Outcome) -> None: ...
    def drained(self, coro: Coro) -> None: ...
    def send(self, to: CoroRef, message: object) -> None: ...
    async def deliver(self, to: CoroRef, message: object, timeout: float | None) -> int: ...
    async def result(self, of: CoroRef, timeout: float | None) -> Any: ...
    async def monitor(self, observer: Coro, observed: CoroRef) -> int: ...
    async def terminate(self, who: CoroRef) -> int: ...
    async def is_alive(self, who: CoroRef) -> bool: ...
    async def register(self, coro: Coro, name: str) -> int: ...
    async def unregister(self, coro: Coro, name: str | None) -> int: ...
    async def locate(self, name: str, location: str | None, timeout: float | None) -> CoroRef: ...


current_host: contextvars.ContextVar[Host] = contextvars.ContextVar("discoro_host")
_current_coro: contextvars.ContextVar[Coro] = contextvars.ContextVar("discoro_coro")


def host_here() -> Host:
    """The mesh that this code runs in; NoMesh where there is none."""
    try:
        return current_host.get()
    except LookupError:
        raise NoMesh("no mesh runs here: start with discoro.run(main), or `async with discoro.Mesh()`") from None


def current_coro() -> Coro:
    """The coroutine that this code runs in; what a parameter named `coro` receives. NoMesh outside of one."""
    try:
        return _current_coro.get()
    except LookupError:
        raise NoMesh("not inside a coroutine: create one with discoro.Coro(function)") from None


def sender() -> Coro | None:
    """The coroutine that this code runs in, if any."""
    return _current_coro.get(None)


class Handle:
    """What can be done with a coroutine, be it here or anywhere else; every method but `send` is used with yield or await."""

    __slots__ = ()

    @property
    def ref(self) -> CoroRef:
        raise NotImplementedError

    def send(self, message: object) -> None:
        """Queue a message to its mailbox and return at once.

        Raises Overloaded where it has no room, PackError or TooLarge where the message cannot travel; NoSuchCoro, PeerLost,
        WorkerLost or Unreachable where this process already knows that nobody is there; NoMesh.
        """
        host_here().send(self.ref, message)

    async def deliver(self, message: object, timeout: float | None = None) -> int:
        """Send, and wait (at most `timeout` seconds) until the message is in its mailbox, for room there too. Returns 1.

        Raises Timeout, NoSuchCoro, PeerLost, WorkerLost, Unreachable, PackError, TooLarge.
        """
        return await host_here().deliver(self.ref, message, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait (at most `timeout` seconds) until it ends, and return what it returned.

        Raises what it raised, with the remote traceback as cause; CoroEnded where it was terminated or its computation closed;
        PeerLost or WorkerLost where its process is gone; NoSuchCoro where it ended too long ago to be known; Timeout.
        """
        return await host_here().result(self.ref, timeout)

    async def finish(self, timeout: float | None = None) -> Any:
        """The same as `result`, by the name it has in asyncoro."""
        return await self.result(timeout)

    async def terminate(self) -> int:
        """End it: CancelledError is raised where it waits, `finally` blocks run. Returns 0 once asked, or if it had ended."""
        return await host_here().terminate(self.ref)

    async def is_alive(self) -> bool:
        """Whether it still runs; False too where its process is gone."""
        return await host_here().is_alive(self.ref)


_REPR = re.compile(r"(?:CoroRef\(')?([^/']{1,255})/(\d{1,10})/(\d{1,20})@([0-9a-f]{16})\.([0-9a-f]{16})(?:'\))?")


@dataclass(frozen=True, slots=True)
class CoroRef(Handle):
    """A reference to a coroutine anywhere: (node, pid, coro-id).

    `str` is short, for people: ada/4711/12. `repr` carries the node's id and the process's birth as well, so that it means one
    coroutine for ever; only it can be parsed back. `addresses` are hints where its process listens, and are not compared.
    """

    node: str
    pid: int
    birth: int
    id: int
    name: str = field(default="", compare=False)
    addresses: tuple[str, ...] = field(default=(), compare=False)

    @property
    def ref(self) -> CoroRef:
        return self

    def __str__(self) -> str:
        return f"{self.name or self.node}/{self.pid}/{self.id}"

    def __reduce__(self) -> Any:
        return CoroRef, (self.node, self.pid, self.birth, self.id, self.name, self.addresses)

    def __repr__(self) -> str:
        return f"CoroRef('{self}@{self.node}.{self.birth:016x}')"

    @classmethod
    def parse(cls, text: str) -> CoroRef:
        """The reference whose `repr` this is; ValueError for anything else, the short `str` too."""
        found = _REPR.fullmatch(text)
        if not found:
            raise ValueError(f"not the repr of a reference: {text!r} (its str, like ada/4711/12, does not say which birth)")
        name, pid, coro, node, birth = found.groups()
        return cls(node, int(pid), int(birth, 16), int(coro), name)

    def to_plain(self) -> list[Any]:
        """The reference as plain values, for the header of a frame."""
        return [self.node, self.pid, self.birth, self.id, self.name, list(self.addresses)]

    @classmethod
    def from_plain(cls, values: Any) -> CoroRef:
        """What `to_plain` gave; ValueError for anything else."""
        match values:
            case [str(node), int(pid), int(birth), int(coro), str(name), list(addresses)]:
                if len(addresses) <= 16 and all(isinstance(a, str) for a in addresses):
                    return cls(node, pid, birth, coro, name, tuple(addresses))
        raise ValueError("not a reference")


@dataclass(frozen=True, slots=True)
class ExitNotice:
    """What a monitor receives when the coroutine ends, once.

    `reason` is "normal", "exception", "terminated", "computation closed", "worker lost", "peer lost" or "unknown" (it ended
    before, and is no longer known); `value` what it returned, `error` what it raised or what became of it, else None.
    """

    ref: CoroRef
    reason: str
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a coroutine ended: an object of this process, or the packed body that came from another."""

    reason: str
    value: Any = None
    error: BaseException | None = None
    text: str = ""
    body: Sequence[Part] | None = None
    trace: TracebackType | None = field(init=False, repr=False, compare=False)  # of the error, as it was raised first

    def __post_init__(self) -> None:
        object.__setattr__(self, "trace", self.error.__traceback__ if self.error is not None else None)

    @property
    def size(self) -> int:
        """Bytes that its packed body holds."""
        return sum(len(part) for part in self.body) if self.body else 0

    def unpacked(self, namespace: payload.Namespace | None, where: str = "") -> Outcome:
        """The same with its body opened; one that cannot be opened becomes an UnpackError in place of the value.

        `where` it ended stands beneath an exception: with several machines, that is the first thing to know.
        """
        if self.body is None:
            return self
        if self.reason not in (NORMAL, EXCEPTION):
            return Outcome(self.reason, error=_ERRORS.get(self.reason, CoroEnded)(self.text), text=self.text)
        try:
            if self.reason == EXCEPTION:
                error = payload.unpack_error(self.body, namespace)
                if where:
                    error.add_note(f"raised in the coroutine {where}")
                return Outcome(EXCEPTION, error=error, text=self.text)
            return Outcome(NORMAL, payload.unpack(self.body, namespace))
        except UnpackError as error:
            return Outcome(EXCEPTION, error=error, text=str(error))

    def packed(self) -> tuple[Sequence[Part], str, str]:
        """(body, reason, text) for the wire; a value that cannot travel, unpackable or too large, is the error that says so."""
        if self.body is not None:
            return self.body, self.reason, self.text
        try:
            if self.reason == NORMAL:
                body = payload.pack(self.value)
                body_size(body)
                return body, NORMAL, ""
            if self.reason == EXCEPTION and self.error is not None:
                return payload.pack_error(self.error), EXCEPTION, self.text
        except DiscoroError as error:
            return payload.pack_error(error), EXCEPTION, str(error)
        return (), self.reason, self.text

    def get(self) -> Any:
        """The value, or the error raised."""
        if self.error is not None:
            raise self.error.with_traceback(self.trace)  # else every asker's frames would stay with it
        if self.reason != NORMAL:
            raise _ERRORS.get(self.reason, CoroEnded)(self.text or self.reason)
        return self.value


_ERRORS: dict[str, type[DiscoroError]] = {PEER_LOST: PeerLost, WORKER_LOST: WorkerLost}


class Mailbox:
    """What was sent to one coroutine and not yet received: packed bodies from other processes, objects from this one."""

    __slots__ = ("_items", "_size", "wake")

    def __init__(self) -> None:
        self._items: deque[tuple[object, int]] = deque()  # (object or packed body, its size; -1: an object)
        self._size = 0
        self.wake: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._items)

    @property
    def full(self) -> bool:
        return len(self._items) >= MAILBOX_MESSAGES or self._size >= MAILBOX_BYTES

    @property
    def half_empty(self) -> bool:
        return len(self._items) <= MAILBOX_MESSAGES // 2 and self._size <= MAILBOX_BYTES // 2

    def put(self, message: object) -> None:
        self._put(message, -1)

    def put_packed(self, body: Sequence[Part]) -> None:
        self._put(body, sum(len(part) for part in body))

    def _put(self, item: object, size: int) -> None:
        self._items.append((item, size))
        self._size += max(size, 0)
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def take(self, namespace: payload.Namespace | None) -> Any:
        """The oldest message; UnpackError for one that cannot be opened here, which is then gone."""
        item, size = self._items.popleft()
        if size < 0:
            return item
        self._size -= size
        return payload.unpack(item, namespace)  # type: ignore[arg-type]


class Coro(Handle):
    """A coroutine of this process: `Coro(function, *args, **kwargs)` starts one in the mesh around.

    `function` is a generator function or an `async def`; a parameter of it named `coro` receives this object. What it returns
    is its value. Raises NotACoroutine, and NoMesh outside of a mesh.
    """

    __slots__ = (
        *("__weakref__", "_ending", "_host", "_ready", "_ref", "_task"),
        *("held", "load", "mailbox", "name", "namespace", "observed", "serves"),
    )

    def __init__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self._start(host_here(), function, args, kwargs)

    @classmethod
    def start(
        cls,
        host: Host,
        function: Callable[..., Any],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        namespace: payload.Namespace | None = None,
        name: str | None = None,
    ) -> Coro:
        """A coroutine of `host`, wherever the caller stands; its messages are opened in `namespace`."""
        coro = cls.__new__(cls)
        coro._start(host, function, args, kwargs or {}, namespace, name)
        return coro

    def _start(
        self,
        host: Host,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        namespace: payload.Namespace | None = None,
        name: str | None = None,
    ) -> None:
        check_coroutine(function)
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        creator = sender()
        # what it creates is part of its computation
        self.namespace: payload.Namespace | None = namespace or (creator.namespace if creator is not None else None)
        self.mailbox = Mailbox()
        self.held = False  # the mailbox was announced as full
        self.serves: frozenset[str] = frozenset()  # verbs whose requests go to the mailbox
        self.observed = False  # somebody in this process takes its outcome as it is
        self.load = 0  # how busy: what locate weighs
        self._host = host
        self._ready = 0
        self._ending = ""
        self._ref = host.enter(self)
        if "coro" not in kwargs and wants_coro(function):
            kwargs = {**kwargs, "coro": self}
        context = contextvars.copy_context()
        context.run(current_host.set, host)
        context.run(_current_coro.set, self)
        self._task = asyncio.get_running_loop().create_task(_run(function, args, kwargs), context=context)
        self._task.add_done_callback(self._ended)

    @property
    def ref(self) -> CoroRef:
        """The reference to send to others; sending the Coro itself sends this."""
        return self._ref

    def __repr__(self) -> str:
        state = "ended" if self._task.done() else "running"
        return f"<Coro {self._ref} {self.name} {state} mailbox={len(self.mailbox)}>"

    def __str__(self) -> str:
        return str(self._ref)

    def __reduce__(self) -> Any:
        return self._ref.__reduce__()

    # -------------------------------------------------------------- for the coroutine itself

    async def receive(self, timeout: float | None = None, alarm_value: Any = None) -> Any:
        """The oldest message in the mailbox; waits for one, at most `timeout` seconds, then gives `alarm_value`.

        0 only looks. Raises UnpackError for a message that cannot be opened here; that message is then gone. RuntimeError where
        another task of this coroutine waits in receive already.
        """
        if not self.mailbox:
            if timeout is not None and timeout <= 0:
                return alarm_value
            await self._wait(timeout)
            if not self.mailbox:
                return alarm_value
        else:
            self._ready += 1
            if self._ready >= READY_RECEIVES:
                self._ready = 0
                await asyncio.sleep(0)
        try:
            return self.mailbox.take(self.namespace)
        finally:
            if self.held and self.mailbox.half_empty:
                self._host.drained(self)

    async def _wait(self, timeout: float | None) -> None:
        """Until the mailbox has something or the time is over. The future only wakes: a message that it carried would be lost
        with a cancellation in the same turn."""
        if self.mailbox.wake is not None:
            raise RuntimeError(f"{self.name} ({self}) already waits in another receive: only one at a time can be woken")
        loop = asyncio.get_running_loop()
        self._ready = 0
        wake = self.mailbox.wake = loop.create_future()
        alarm = loop.call_later(timeout, _wake, wake) if timeout is not None else None
        try:
            await wake
        finally:
            self.mailbox.wake = None
            if alarm:
                alarm.cancel()

    async def sleep(self, timeout: float, alarm_value: Any = None) -> Any:
        """Let others run for `timeout` seconds; gives `alarm_value`."""
        return await asyncio.sleep(timeout, alarm_value)

    async def monitor(self, observed: Handle) -> int:
        """Have one ExitNotice sent to this coroutine when `observed` ends, at once where it has. Returns 0."""
        return await self._host.monitor(self, observed.ref)

    async def register(self, name: str | None = None) -> int:
        """Be found by `Coro.locate` under `name` (default: its own). Returns 0 once the known nodes confirmed.

        Raises NameTaken where another coroutine of this process has the name, ValueError for one of 0 or over 255 bytes.
        """
        return await self._host.register(self, name or self.name)

    async def unregister(self, name: str | None = None) -> int:
        """No longer be found under `name` (default: under any). Returns 0."""
        return await self._host.unregister(self, name)

    @staticmethod
    async def locate(name: str, location: str | None = None, timeout: float | None = None) -> CoroRef:
        """The reference of a coroutine registered under `name`, in this process or anywhere on the mesh.

        Where many carry the name, one that is not busy. `location` limits the search to the node of that name or address. Waits
        for it to appear, at most `timeout` seconds (None: for ever), then raises Timeout. Raises NoNodes where no usable node
        was found in `discover_timeout`.
        """
        return await host_here().locate(name, location, timeout)

    # -------------------------------------------------------------- for the host

    def stop(self, reason: str) -> None:
        """Begin to end it, for `reason`: CancelledError is raised where it waits."""
        if not self._task.done():
            self._ending = self._ending or reason
            self._task.cancel(reason)

    def notify(self, observed: CoroRef, outcome: Outcome) -> None:
        """Put the ExitNotice of a coroutine that this one monitors into the mailbox; never refused, however full it is."""
        outcome = outcome.unpacked(self.namespace, str(observed))
        self.mailbox.put(ExitNotice(observed, outcome.reason, outcome.value, outcome.error))

    async def result_here(self) -> Any:
        """Wait until it ends; its value as the very object, or what it raised."""
        self.observed = True
        await asyncio.wait([self._task])
        return self._outcome(self._task).get()

    async def stopped(self) -> None:
        """Wait until it ended, however it did."""
        await asyncio.wait([self._task])

    @property
    def done(self) -> bool:
        return self._task.done()

    def runs_as(self, task: asyncio.Task[Any]) -> bool:
        return self._task is task

    def accept(self, message: object, packed: bool = False) -> None:
        """Put a message into the mailbox. Overloaded where an object of this process finds it full."""
        if packed:
            self.mailbox.put_packed(message)  # type: ignore[arg-type]
        elif self.mailbox.full:
            raise Overloaded(f"the mailbox of {self} has {len(self.mailbox)} messages and takes no more: use deliver, or wait")
        else:
            self.mailbox.put(message)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._host.leave(self, self._outcome(task))

    def _outcome(self, task: asyncio.Task[Any]) -> Outcome:
        error: BaseException | None = None if task.cancelled() else task.exception()
        if isinstance(error, _Exit):  # raised where somebody asks for the result, it would end that program
            error = CoroEnded(f"{self.name} ({self}) ended itself with {error.__cause__!r}")
        if self._ending or task.cancelled():
            reason = self._ending or TERMINATED
            text = f"{self.name} ({self}) was ended: {reason}" + (f"; while ending it raised {error!r}" if error else "")
            return Outcome(reason, error=CoroEnded(text), text=text)
        if error is not None:
            return Outcome(EXCEPTION, error=error, text=f"{type(error).__name__}: {error}")
        return Outcome(NORMAL, task.result())


class _Exit(Exception):
    """Carries SystemExit or KeyboardInterrupt of one coroutine past the loop, which either would end."""


async def _run(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    try:
        made = function(*args, **kwargs)
        return await (drive(made) if inspect.isgenerator(made) else made)
    except (SystemExit, KeyboardInterrupt) as error:
        raise _Exit from error


async def drive(generator: Generator[Any, Any, Any]) -> Any:
    """Run a generator to its end, awaiting what it yields; gives what it returns.

    A generator yielded runs as with `yield from`; None lets others run; what cannot be awaited raises TypeError inside.
    """
    step: Callable[[Any], Any] = generator.send
    argument: Any = None
    while True:
        try:
            operation = step(argument)
        except StopIteration as stop:
            return stop.value
        try:
            step, argument = generator.send, await _awaitable(operation)
        except GeneratorExit:
            generator.close()
            raise
        except BaseException as error:  # whatever it is, CancelledError too, it belongs into the generator
            step, argument = generator.throw, error


def _awaitable(operation: Any) -> Awaitable[Any]:
    if operation is None:
        return asyncio.sleep(0)
    if inspect.isgenerator(operation):
        return drive(operation)
    if inspect.isawaitable(operation):
        return operation
    raise TypeError(f"yielded {operation!r:.80}, which cannot be awaited: yield waits for an operation, return gives a value")


def check_coroutine(function: Any) -> None:
    """NotACoroutine unless `function` is a generator function or an `async def`, bound or partial ones too."""
    if inspect.isgeneratorfunction(function) or inspect.iscoroutinefunction(function):
        return
    what = getattr(function, "__qualname__", repr(function))
    hint = "it has no `yield`" if callable(function) else "it is not a function"
    if inspect.iscoroutine(function) or inspect.isgenerator(function):
        raise NotACoroutine(f"{what} was called already: pass the function itself, {what} and not {what}()")
    if inspect.isasyncgenfunction(function):
        hint = "it is an async generator: it has `async def` and `yield`, use one of them"
    raise NotACoroutine(f"{what} is not a coroutine function: {hint}. Write a generator function (with yield) or an async def")


def wants_coro(function: Callable[..., Any]) -> bool:
    """Whether it has a parameter named `coro`, and so receives its Coro there."""
    try:
        return "coro" in inspect.signature(function).parameters
    except (TypeError, ValueError):
        return False


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


