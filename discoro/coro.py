"""Coroutines: what users write. A generator function or an `async def`, run as an asyncio task with a mailbox.

`Coro` is one of this process; whatever concerns another coroutine goes to the `Host` around it (the mesh). It never touches
the network. references.py has what can be done with any coroutine, mailbox.py what waits to be received, driving.py how the
user's function is run, outcomes.py how it ends.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import logging
from collections.abc import Callable, Sequence
from threading import get_ident
from types import CoroutineType
from typing import Any, Protocol, cast

from discoro import allowance, payload
from discoro.driving import (
    Exited,
    Steered,
    Swap,
    TimeLimit,
    check_arguments,
    check_coroutine,
    explain,
    from_user,
    not_awaited,
    wants_coro,
)
from discoro.errors import CoroEnded, NoMesh, NoSuchCoro, Overloaded, PackError, SwapRefused
from discoro.mailbox import Mailbox, Question
from discoro.outcomes import EXCEPTION, NORMAL, TERMINATED, ExitNotice, Outcome
from discoro.references import CoroRef, Handle, Reach, Running, current_host, reach_here, waiting_here
from discoro.requests import Service

log = logging.getLogger("discoro.coro")

READY_RECEIVES = 256  # receives that never wait starve everything else of the loop, acknowledgements first


class Host(Reach, Protocol):
    """What a coroutine needs of the mesh around it; `mesh.Mesh` is one."""

    thread: int  # that it belongs to
    def enter(self, coro: Coro) -> int: ...
    def ref_of(self, coro_id: int) -> CoroRef: ...
    def leave(self, coro: Coro, outcome: Outcome) -> None: ...
    def drained(self, coro: Coro) -> None: ...
    def still_runs(self, ref: CoroRef) -> bool: ...
    async def monitor(self, observer: Coro, observed: CoroRef) -> int: ...
    async def link(self, coro: Coro, other: CoroRef) -> int: ...
    async def unlink(self, coro: Coro, other: CoroRef) -> int: ...
    async def adopt(self, parent: Coro, child: CoroRef) -> int: ...
    def follow_here(self, child: Coro, parent: Coro) -> None: ...
    async def register(self, coro: Coro, name: str) -> int: ...
    async def unregister(self, coro: Coro, name: str | None) -> int: ...


_current_coro: contextvars.ContextVar[Coro] = contextvars.ContextVar("discoro_coro")


def host_here() -> Host:
    """The mesh that this code runs in; NoMesh where there is none."""
    return cast(Host, reach_here())


def current_coro() -> Coro:
    """The coroutine that this code runs in; what a parameter named `coro` receives. NoMesh outside of one."""
    try:
        return _current_coro.get()
    except LookupError:
        raise NoMesh("not inside a coroutine: create one with discoro.Coro(function)") from None


def sender() -> Coro | None:
    """The coroutine that this code runs in, if any."""
    return _current_coro.get(None)


def _loop_host() -> Host:
    """The same, for what belongs into its thread; RuntimeError in another."""
    return cast(Host, waiting_here())


def _ref_of(other: object) -> CoroRef:
    """The reference of a coroutine, a channel, or whatever has one; TypeError for anything else."""
    ref = getattr(other, "ref", None)
    if isinstance(ref, CoroRef):
        return ref
    forgot = not_awaited(other)
    what = f"{forgot}; did you forget yield or await?" if forgot else f"{other!r:.80}"
    raise TypeError(f"a coroutine or its reference is wanted, this is {what}")


_LOOK: object = object()  # what wakes a pause for a swap to be offered


class Coro(Handle):
    """A coroutine of this process: `Coro(function, *args, **kwargs)` starts one in the mesh around.

    `function` is a generator function or an `async def`; a parameter of it named `coro` receives this object. What it returns
    is its value. Raises NotACoroutine, and NoMesh outside of a mesh.
    """

    __slots__ = (
        *("__weakref__", "_children", "_ending", "_host", "_joins", "_outcome", "_pauses", "_ready", "_ref", "_steered"),
        "exited",
        *("_task", "daemon", "held", "id", "load", "mailbox", "name", "namespace", "observed", "parent", "service"),
    )

    def __init__(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        self._start(_loop_host(), function, args, kwargs, creator=sender())

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
        creator: Coro | None = None,
    ) -> Coro:
        """A coroutine of `host`, wherever the caller stands; its messages are opened in `namespace`."""
        coro = cls.__new__(cls)
        coro._start(host, function, args, kwargs or {}, namespace, name, creator or sender())
        return coro

    def _start(
        self,
        host: Host,
        function: Callable[..., Any],
        args: Sequence[Any],
        kwargs: dict[str, Any],
        namespace: payload.Namespace | None = None,
        name: str | None = None,
        creator: Coro | None = None,
    ) -> None:
        check_coroutine(function)
        loop = asyncio.get_running_loop()  # RuntimeError before anybody knows of it
        self.name: str = name or str(getattr(function, "__name__", type(function).__name__))
        # what it creates is part of its computation
        self.namespace: payload.Namespace | None = namespace or (creator.namespace if creator is not None else None)
        self.mailbox = Mailbox()
        self.held = False  # the mailbox was announced as full
        self.service: Service | None = None  # what answers in its place: it is a discoro_server, a channel, a queue
        self.observed = False  # somebody in this process takes its outcome as it is
        self.load = 0  # how busy: what locate weighs
        self.daemon = False
        self.parent = 0  # the id of the coroutine that created it
        self._children: Running | None = None
        self._pauses: list[asyncio.Future[Any]] | None = None
        self._joins: list[asyncio.Future[None]] | None = None
        self._host = host
        self._ready = 0
        self._ending: tuple[str, str] | None = None  # the reason, and why in words
        self._outcome: Outcome | None = None
        self.exited: BaseException | None = None  # what it ended itself with: SystemExit, KeyboardInterrupt
        self.id = host.enter(self)
        self._ref: CoroRef | None = None  # once it is asked for: many end before
        if creator is not None:
            self.parent = creator.id
            creator.created(self.ref)
        self._steered = Steered(self.name, function, args, self._with_coro(function, kwargs))
        context = contextvars.copy_context()
        if current_host.get(None) is not host:
            context.run(current_host.set, host)
        context.run(_current_coro.set, self)
        # None once it ended: the task has the context, that has this coroutine, and nothing frees a ring of them at once.
        # Not by the loop, whose factory may start it at once: nothing is started in the middle of what a frame brings.
        self._task: asyncio.Task[Any] | None = asyncio.Task(self._steered, loop=loop, name=self.name, context=context)
        self._task.add_done_callback(_ended, context=context)

    def _with_coro(self, function: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
        return {**kwargs, "coro": self} if "coro" not in kwargs and wants_coro(function) else kwargs

    @property
    def ref(self) -> CoroRef:
        """The reference to send to others; sending the Coro itself sends this."""
        if self._ref is None:
            self._ref = self._host.ref_of(self.id)
        return self._ref

    def send(self, message: object) -> None:  # what the mesh would do in the end, by a third of the calls
        host = reach_here()
        if host is self._host and self.service is None and self._task is not None and get_ident() == self._host.thread:
            self.accept(message)
        else:
            host.send(self.ref, message)

    def __repr__(self) -> str:
        state = "ended" if self.done else "running"
        return f"<Coro {self.ref} {self.name} {state} mailbox={len(self.mailbox)}>"

    def __str__(self) -> str:
        return str(self.ref)

    def __reduce__(self) -> Any:
        return self.ref.__reduce__()

    # -------------------------------------------------------------- receiving, for the coroutine itself

    async def receive(self, timeout: float | None = None, alarm_value: Any = None) -> Any:
        """The oldest message in the mailbox; waits for one, at most `timeout` seconds, then gives `alarm_value`.

        0 only looks. Raises UnpackError for a message that cannot be opened here; that message is then gone. RuntimeError in
        another coroutine than this one, and where another task of this coroutine waits in receive already.
        """
        if _current_coro.get(None) is not self:
            raise RuntimeError(self._not_yours())
        if self._steered.swap is not None:
            self._steered.offer_swap()
        mailbox = self.mailbox
        if mailbox.asked is not None:
            mailbox.go_on("received its next message without a reply to this one: coro.reply(value), or keep coro.question")
        until = None
        while not mailbox.count:
            if timeout is not None:
                if until is None:
                    until = asyncio.get_running_loop().time() + timeout
                if asyncio.get_running_loop().time() >= until:
                    return alarm_value
            if mailbox.wake is not None or get_ident() != self._host.thread:
                self._cannot_wait()
            self._ready = 0
            wake = mailbox.waits()
            alarm = asyncio.get_running_loop().call_at(until, _wake, wake) if until is not None else None
            try:
                await wake
            finally:
                mailbox.wake = None
                if alarm is not None:
                    alarm.cancel()
            if self._steered.swap is not None:
                self._steered.offer_swap()
        self._ready += 1
        if self._ready >= READY_RECEIVES:
            self._ready = 0
            await asyncio.sleep(0)
            if not mailbox.count:  # another task of this coroutine was faster
                return await self.receive(timeout, alarm_value)
        if not self.held:
            return mailbox.take(self.namespace)
        try:
            return mailbox.take(self.namespace)
        finally:
            if mailbox.half_empty:
                self._host.drained(self)

    def _not_yours(self) -> str:
        here = sender()
        where = f"{here.name} ({here})" if here is not None else "code outside of any coroutine"
        return f"{where} tried to receive the messages of {self.name} ({self}): only that one can; have it send them on"

    def _cannot_wait(self) -> None:
        """RuntimeError that says why."""
        self._host.check_thread()
        raise RuntimeError(f"{self.name} ({self}) already waits in another receive: only one at a time can be woken")

    def reply(self, value: object = None) -> int:
        """Answer the message received last, where it was sent by `ask`; not used with yield.

        Returns 1; 0 where it was merely sent, or is answered. To answer later, or from another task, keep `coro.question`.
        Raises PackError, TooLarge.
        """
        asked = self.mailbox.asked
        if asked is None:
            return 0
        done = asked.reply(value)
        self.mailbox.asked = None
        return done

    @property
    def question(self) -> Question | None:
        """The message received last, to be answered later with its `reply` or `fail`; None where it was merely sent.

        To be taken once, before the next receive.
        """
        asked, self.mailbox.asked = self.mailbox.asked, None
        return asked

    # -------------------------------------------------------------- pausing

    async def suspend(self, timeout: float | None = None, alarm_value: Any = None) -> Any:
        """Wait until somebody calls `resume(update)`, which gives `update`; at most `timeout` seconds, then `alarm_value`.

        `sleep` is the same. 0 only lets others run.
        """
        if self._steered.swap is not None:
            self._steered.offer_swap()
        if timeout is not None and timeout <= 0:
            return await asyncio.sleep(0, alarm_value)
        self._host.check_thread()
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout if timeout is not None else None
        while True:
            pause: asyncio.Future[Any] = loop.create_future()
            alarm = loop.call_at(until, _wake, pause, alarm_value) if until is not None else None
            self._pauses = pauses = self._pauses if self._pauses is not None else []
            pauses.append(pause)
            try:
                update = await pause
            finally:
                pauses.remove(pause)
                if alarm:
                    alarm.cancel()
            if update is not _LOOK:
                return update  # a swap that is offered at the same time waits: the update would be lost
            self._steered.offer_swap()

    sleep = suspend

    @staticmethod
    def timeout(seconds: float) -> TimeLimit:
        """`with coro.timeout(seconds):` raises Timeout in what it waits for; an `async def` may use asyncio.timeout."""
        return TimeLimit(seconds)

    # -------------------------------------------------------------- others

    async def monitor(self, observed: Handle) -> int:
        """Have one ExitNotice sent to this coroutine when `observed` ends, at once where it has. Returns 0."""
        return await self._host.monitor(self, _ref_of(observed))

    async def link(self, other: Handle) -> int:
        """Die together: where one of both ends for another reason than "normal", the other is terminated, reason "linked".

        At once where `other` has ended so, or is no longer known. Returns 0.
        """
        return await self._host.link(self, _ref_of(other))

    async def unlink(self, other: Handle) -> int:
        """Undo `link`, on both sides. Returns 0."""
        return await self._host.unlink(self, _ref_of(other))

    def child(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coro:
        """A new coroutine of this process that is terminated when this one ends, however it does, with reason "parent ended".

        Its own end leaves this one as it is. Not used with yield. Raises NotACoroutine.
        """
        self._host.check_thread()
        if self.done:  # a task of its own goes on without it
            raise RuntimeError(f"{self.name} ({self}) has ended: nothing ends with it any more")
        child = Coro.start(self._host, function, args, kwargs, creator=self)
        self._host.follow_here(child, self)
        return child

    async def adopt(self, other: Handle) -> int:
        """Have a coroutine, here or elsewhere, terminated when this one ends, as a `child` is. Returns 0. Raises NoSuchCoro."""
        ref = _ref_of(other)
        await self._host.adopt(self, ref)
        self.created(ref)
        return 0

    def children(self) -> list[CoroRef]:
        """References of the coroutines that it created or adopted, here or elsewhere, and that run as far as is known here."""
        return self._children.refs() if self._children is not None else []

    async def register(self, name: str | None = None) -> int:
        """Be found by `Coro.locate` under `name` (default: its own). Returns 0 once the known nodes confirmed.

        Raises NameTaken where another coroutine of this process has the name, ConfigError for one of 0 or over 255 bytes.
        """
        return await self._host.register(self, self.name if name is None else name)

    async def unregister(self, name: str | None = None) -> int:
        """No longer be found under `name` (default: under any). Returns 0."""
        return await self._host.unregister(self, name)

    @staticmethod
    async def locate(name: str, location: str | None = None, timeout: float | None = None) -> CoroRef:
        """The reference of a coroutine registered under `name`, in this process or anywhere on the mesh.

        Where many carry the name, one that is not busy. `location` limits the search to the node of that name or address. Waits
        for it to appear, at most `timeout` seconds (None: for ever), then raises Timeout. Raises NoNodes where no usable node
        was found in `discover_timeout`, ConfigError for what can be no name.
        """
        return await _loop_host().locate(name, location, timeout)

    # -------------------------------------------------------------- settings

    def hot_swappable(self, flag: bool = True) -> None:
        """Whether `hot_swap` may replace its function, where it waits in receive, suspend or sleep (at first: no)."""
        self._steered.swappable = flag

    def set_daemon(self, flag: bool = True) -> None:
        """Whether `discoro.join` leaves it out (at first: no)."""
        self.daemon = flag
        for join in self._joins or ():
            _wake(join)

    # -------------------------------------------------------------- for the host

    def stop(self, reason: str, why: str = "") -> None:
        """Begin to end it, for `reason`, in words `why`: CancelledError is raised where it waits."""
        if self._task is not None and not self._task.done():
            self._ending = self._ending or (reason, why)
            self._steered.forget_raised()
            self._steered.ends()
            self._task.cancel(reason)

    def resume_here(self, update: object) -> None:
        """Wake it from suspend or sleep."""
        waiting = [pause for pause in self._pauses or () if not pause.done()]
        for pause in waiting:
            pause.set_result(update)
        if not waiting:
            log.info("! %s (%s) was resumed, but is not suspended: the update is gone", self.name, self)

    def throw_here(self, error: BaseException) -> None:
        """Raise an exception where it waits."""
        if self._task is not None and not self._task.done() and self._ending is None:
            self._steered.raise_later(error)
            self._task.cancel()

    def swap_here(self, function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> asyncio.Future[int]:
        """Have it go on as another function; the future is answered once that runs."""
        check_coroutine(function)
        kwargs = self._with_coro(function, kwargs)
        name = str(getattr(function, "__name__", type(function).__name__))
        check_arguments(name, inspect.signature(function), args, kwargs)  # found out later, it would end the coroutine
        if self._ending is not None:
            raise NoSuchCoro(f"{self.name} ({self}) is about to end")
        if self._steered.swap is not None:
            raise SwapRefused(f"{self.name} ({self}) is to be swapped already")
        done: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._steered.swap = Swap(function, args, kwargs, done)
        if self._steered.swappable:
            for waits in (self.mailbox.wake, *(self._pauses or ())):
                if waits is not None:
                    _wake(waits, _LOOK)
        return done

    def created(self, ref: CoroRef) -> None:
        """It created or adopted a coroutine."""
        if self._children is None:
            self._children = Running(self._host.still_runs)
        self._children.add(ref)

    def child_ended(self, ref: CoroRef) -> None:
        """A child of this process ended."""
        if self._children is not None:
            self._children.discard(ref)

    def notify(self, observed: CoroRef, outcome: Outcome) -> None:
        """Put the ExitNotice of a coroutine that this one monitors into the mailbox; never refused, however full it is."""
        outcome = outcome.unpacked(self.namespace, str(observed))
        self.mailbox.put(ExitNotice(observed, outcome.reason, outcome.value, outcome.error))

    async def result_here(self) -> Any:
        """Wait until it ends; its value as the very object, or what it raised."""
        return (await self.outcome_here()).get()

    async def outcome_here(self) -> Outcome:
        """Wait until it ends; how it did."""
        self.observed = True
        await self.stopped()
        assert self._outcome is not None
        return self._outcome

    async def stopped(self) -> None:
        """Wait until it ended, however it did, and whoever is to be told was told."""
        if self._task is not None:
            await asyncio.wait([self._task])

    async def joined(self) -> None:
        """Wait until it ended, or is a daemon."""
        if self._task is None or self.daemon:
            return
        join = asyncio.get_running_loop().create_future()
        self._joins = [*(self._joins or ()), join]
        try:
            await asyncio.wait([self._task, join], return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._joins = [other for other in self._joins if other is not join]

    @property
    def done(self) -> bool:
        return self._task is None or self._task.done()

    def runs_as(self, task: asyncio.Task[Any]) -> bool:
        """Whether that task is this coroutine."""
        return task is self._task

    def accept(self, message: object, packed: bool = False, question: Question | None = None) -> None:
        """Put a message into the mailbox. Overloaded where an object of this process finds it full."""
        if packed:
            self.mailbox.put_packed(message, question)  # type: ignore[arg-type]
            return
        self.check_room()
        if type(message) is CoroutineType:  # which could not go to another process either
            raise PackError(f"message: {not_awaited(message)}; did you forget yield or await?")
        self.mailbox.put(message, question)

    def check_room(self) -> None:
        """Raise Overloaded where the mailbox is full."""
        if self.mailbox.full:
            raise Overloaded(f"the mailbox of {self} has {len(self.mailbox)} messages and takes no more: use deliver, or wait")

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._outcome = outcome = self._judge(task)
        self._steered.ends()
        if self.mailbox.count or self.mailbox.asked is not None:
            self.mailbox.close(f"ended before it replied ({outcome.text or outcome.reason})")
        self._host.leave(self, outcome)
        self._task = None
        if isinstance(outcome.error, MemoryError):
            allowance.settle(outcome.error)

    def _judge(self, task: asyncio.Task[Any]) -> Outcome:
        error = self._steered.not_raised if task.cancelled() else task.exception()
        if isinstance(error, Exited):
            error = error.__cause__
        if isinstance(error, SystemExit | KeyboardInterrupt):  # would end the program that asks for the result
            self.exited = error
            error = CoroEnded(f"{self.name} ({self}) ended itself with {error!r}")
        if self._ending or (task.cancelled() and error is None):
            reason, why = self._ending or (TERMINATED, "")
            raised = f"; while ending it raised {_told(error)}" if error else ""
            text = f"{self.name} ({self}) was ended: {why or reason}{raised}"
            return Outcome(reason, error=CoroEnded(text), text=text)
        if error is None:
            value = task.result()
            returned = not_awaited(value) if value is not None else ""
            if not returned:
                return Outcome(NORMAL, value)
            error = TypeError(f"{self.name} ({self}) returned {returned}: write `return (yield ...)`, or `return await ...`")
        if isinstance(error, MemoryError):
            allowance.lift(error)
        explain(error)
        error = error.with_traceback(from_user(error.__traceback__))  # an assignment is what a frozen dataclass refuses
        return Outcome(EXCEPTION, error=error, text=_told(error))


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {payload.error_text(error)}"


def _ended(task: asyncio.Task[Any]) -> None:
    """The task of a coroutine is over; called in that coroutine's context, so that not each needs a callback of its own."""
    current_coro()._end(task)


def _wake(future: asyncio.Future[Any], value: object = None) -> None:
    if not future.done():
        future.set_result(value)
