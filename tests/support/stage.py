"""Plays a program of `programs.py` on meshes in one process, and writes down what happened, for `promises.py` to judge.

Each coroutine takes its steps one after the other, from a queue of its own; half of them are generators. At the end all faults
heal, every coroutine empties its mailbox for a minute, then all are terminated, and the tables of every mesh are looked at.
Nothing here decides whether what happened is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import discoro
from discoro import holding, mailbox, outbox
from discoro.coro import Coro
from discoro.link import Link
from discoro.mesh import Mesh
from discoro.options import Place
from discoro.security import Security
from tests.support import moved_clock, programs
from tests.support.mortal_network import MortalNetwork, MortalTransport
from tests.support.programs import Program
from tests.support.promises import (
    Began,
    Bug,
    Condemned,
    Counted,
    Died,
    Done,
    Ended,
    Event,
    History,
    Home,
    Leftover,
    Linked,
    Lives,
    Lost,
    Noticed,
    Parted,
    Received,
    Refused,
    Sent,
    Tag,
    Who,
)

OPEN = Security.from_options(open=True)
MAILBOX = 4  # messages
HELD = 6  # messages that wait at a sender
WINDOW = 6  # frames
HEALING = 60.0  # seconds: a loss, a new link, and emptying what was held
ENDING = 40.0  # seconds until whatever waits for a terminated coroutine has ended
FIRST_PORT = 30_000


def play(program: Program) -> History:
    """What happened."""
    with small_limits(), seeded(program.seed):
        return History(moved_clock.run(lambda: _play(program), limit=100_000.0))


async def _play(program: Program) -> list[Event]:
    stage = Stage(program)
    with stage.listening_for_bugs():
        await stage.open()
        for step in program.steps:
            await stage.take(step)
        await stage.finish()
    return stage.events


@contextlib.contextmanager
def small_limits() -> Iterator[None]:
    """Mailboxes, windows and queues so small that a few messages fill them."""
    limits = [(mailbox, "MAILBOX_MESSAGES", MAILBOX), (holding, "HELD_MESSAGES", HELD), (outbox, "WINDOW_FRAMES", WINDOW)]
    before = [(module, name, getattr(module, name)) for module, name, _ in limits]
    try:
        for module, name, value in limits:
            setattr(module, name, value)
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Births and sessions are the same each time."""
    before, secrets.randbits = secrets.randbits, random.Random(seed).getrandbits
    try:
        yield
    finally:
        secrets.randbits = before


class Failure(Exception):
    """What a coroutine raises to end with an exception; it travels as itself."""


class Life:
    """One life of a process: its mesh, its transport, its coroutines."""

    def __init__(self, home: Home, port: int) -> None:
        self.home = home
        self.port = port
        self.up = False  # it takes part in the program
        self.speaks = True  # what happens in it counts
        self.mesh: Mesh
        self.transport: MortalTransport
        self.losses: Counter[Home] = Counter()

    @property
    def birth(self) -> int:
        return self.mesh.me.birth


class Actor:
    """One coroutine on the stage."""

    def __init__(self, stage: Stage, life: Life, who: Who) -> None:
        self.stage = stage
        self.life = life
        self.who = who
        self.script: asyncio.Queue[programs.Step | None] = asyncio.Queue()
        self.coro: Coro
        self.asides: set[asyncio.Task[None]] = set()
        self.over = False  # its steps are done, and it empties its mailbox

    def start(self) -> None:
        act = self.acts_by_yield if self.who.number % 2 else self.acts_by_await
        self.coro = Coro.start(self.life.mesh, act)

    def write(self, event: Event) -> None:
        if self.life.speaks:
            self.stage.events.append(event)

    @property
    def now(self) -> float:
        return self.stage.now

    # -------------------------------------------------------------- its life

    async def acts_by_await(self) -> str:
        with self._end():
            while True:
                step = await self.script.get()
                if isinstance(step, programs.Finish):
                    return self._finish(step)
                await self.perform(step)

    def acts_by_yield(self) -> Any:
        with self._end():
            while True:
                step = yield self.script.get()
                if isinstance(step, programs.Finish):
                    return self._finish(step)
                yield self.perform(step)

    def _finish(self, step: programs.Finish) -> str:
        if step.raises:
            raise Failure(repr(self.who))
        return repr(self.who)

    @contextlib.contextmanager
    def _end(self) -> Iterator[None]:
        """Writes down how it ended, as seen from inside."""
        how = "normal"
        try:
            yield
        except Failure:
            how = "exception"
            raise
        except asyncio.CancelledError:
            how = "terminated"
            raise
        except BaseException as error:
            self.write(Bug(self.now, f"{self.who} raised {error!r}"))
            raise
        finally:
            self.write(Ended(self.now, self.who, how))

    # -------------------------------------------------------------- its steps

    async def perform(self, step: programs.Step | None) -> None:
        match step:
            case programs.Send(_, to, count, size, old):
                for _ in range(count):
                    self.send(self.stage.actor(to, old), size)
            case programs.Deliver(_, to, timeout, size, old):
                await self.deliver(self.stage.actor(to, old), timeout, size)
            case programs.Ask(_, to, timeout, size, old):
                await self.ask(self.stage.actor(to, old), timeout, size)
            case programs.Link(_, with_whom, old):
                other = self.stage.actor(with_whom, old)
                self.write(Linked(self.now, self.who, other.who))
                await self.call("link", other, None, lambda: self.coro.link(self.ref_of(other)))
            case programs.Receive(_, count, timeout):
                for _ in range(count):
                    await self.receive(timeout)
            case programs.Monitor(_, of, old):
                other = self.stage.actor(of, old)
                await self.call("monitor", other, None, lambda: self.coro.monitor(self.ref_of(other)))
            case programs.Result(_, of, timeout, aside, old):
                await self.result(self.stage.actor(of, old), timeout, aside)
            case programs.Alive(_, of, old):
                other = self.stage.actor(of, old)
                await self.call("alive", other, None, lambda: self.ref_of(other).is_alive())
            case programs.Terminate(_, of, old):
                other = self.stage.actor(of, old)
                self.write(Condemned(self.now, other.who))
                await self.call("terminate", other, None, lambda: self.ref_of(other).terminate())
            case programs.Stall(_, seconds):
                await asyncio.sleep(seconds)
            case None:
                await self.empty()

    def ref_of(self, other: Actor) -> discoro.CoroRef:
        return other.coro.ref

    def send(self, other: Actor, size: int) -> None:
        tag = self.stage.tag(self.who, other.who)
        before = self.life.losses[other.who.home]
        try:
            self.ref_of(other).send((tag, bytes(size)))
        except discoro.DiscoroError as error:
            self.write(Refused(self.now, tag, type(error).__name__, str(error)))
            return
        after = self.life.losses[other.who.home]
        self.write(Sent(self.now, tag, before if before == after else None))

    async def deliver(self, other: Actor, timeout: float | None, size: int) -> None:
        tag = self.stage.tag(self.who, other.who)
        await self.call("deliver", other, timeout, lambda: self.ref_of(other).deliver((tag, bytes(size)), timeout), tag)

    async def ask(self, other: Actor, timeout: float | None, size: int) -> None:
        tag = self.stage.tag(self.who, other.who)
        await self.call("ask", other, timeout, lambda: self.ref_of(other).ask((tag, bytes(size)), timeout), tag)

    async def result(self, other: Actor, timeout: float | None, aside: bool) -> None:
        calling = self.call("result", other, timeout, lambda: self.ref_of(other).result(timeout))
        if not aside:
            await calling
            return
        task = asyncio.create_task(calling)
        self.asides.add(task)
        task.add_done_callback(self.asides.discard)

    async def receive(self, timeout: float | None) -> bool:
        """Whether something came."""
        message = await self.coro.receive(timeout, None)
        if message is not None:
            self.came(message)
        return message is not None

    def came(self, message: Any, lay: bool = False) -> None:
        match message:
            case discoro.ExitNotice(ref, reason, value, error):
                kind = type(error).__name__ if error is not None else ""
                about = self.stage.whose(ref)
                event: Event = Noticed(self.now, self.who, about, reason, value, kind, str(error or ""), lay)
            case (Tag() as tag, _):
                event = Received(self.now, self.who, tag, lay)
        if lay:
            self.stage.events.append(event)
        else:
            self.write(event)
            if isinstance(event, Received):
                self.coro.reply(event.tag)

    async def empty(self) -> None:
        self.over = True
        while True:
            await self.receive(None)

    async def call(
        self, verb: str, other: Actor, timeout: float | None, work: Callable[[], Awaitable[Any]], tag: Tag | None = None
    ) -> None:
        """Whatever comes of it is written down, and the coroutine goes on."""
        number = next(self.stage.calls)
        self.write(Began(self.now, number, self.who, verb, other.who, timeout, tag))
        try:
            value = await work()
        except asyncio.CancelledError:
            self.write(Done(self.now, number, None, "CancelledError"))
            raise
        except Exception as error:
            self.write(Done(self.now, number, None, type(error).__name__, str(error)))
        else:
            self.write(Done(self.now, number, value))


class Stage:
    """All processes of one program."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.events: list[Event] = []
        self.calls = itertools.count(1)
        self._numbers = itertools.count(1)
        self._tags = itertools.count(1)
        slow = {(a, b): program.latency for a in "abcd" for b in "abcd" if a < b}
        self._network = MortalNetwork(slow if program.latency else {})
        self._lives: list[list[Life]] = [[] for _ in range(program.processes)]
        self._actors: list[list[Actor]] = [[] for _ in range(program.coroutines)]
        self._by_ref: dict[discoro.CoroRef, Who] = {}
        self._homes: dict[int, Home] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._parted: set[frozenset[int]] = set()

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def actor(self, index: int, old: bool = False) -> Actor:
        """Who carries the index, or carried it first."""
        return self._actors[index][0 if old else -1]

    def tag(self, by: Who, to: Who) -> Tag:
        return Tag(by, to, next(self._tags))

    def whose(self, ref: discoro.CoroRef) -> Who:
        return self._by_ref[ref]

    @contextlib.contextmanager
    def listening_for_bugs(self) -> Iterator[None]:
        """What reaches the loop's exception handler, or the log as an error, is written down."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._bug(repr(context)))
        handler = _Errors(self._bug)
        logger = logging.getLogger("discoro")
        before = logger.level, logger.propagate
        logger.addHandler(handler)
        logger.setLevel(logging.ERROR)
        logger.propagate = False
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.level, logger.propagate = before
            logger.setLevel(before[0])

    def _bug(self, text: str) -> None:
        self.events.append(Bug(self.now, text))

    # -------------------------------------------------------------- the program

    async def open(self) -> None:
        for process in range(self.program.processes):
            await self._boot(process)

    async def take(self, step: programs.Step) -> None:
        """Begin a step; only Wait takes time."""
        match step:
            case programs.Wait(seconds):
                await asyncio.sleep(seconds)
            case programs.Start(index):
                self._start(index)
            case programs.Restart(process, how, pause):
                if self._life(process).up:
                    self._life(process).up = False
                    self._later(self._restart(process, how, pause))
            case programs.Cut(a, b):
                self._network.cut("abcd"[a], "abcd"[b])
            case programs.Part(a, b, seconds):
                self._later(self._part(a, b, seconds))
            case _:
                actor = self.actor(step.by)
                if not isinstance(step, programs.Send | programs.Deliver | programs.Receive) or actor.life.up:
                    actor.script.put_nowait(step)

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _part(self, a: int, b: int, seconds: float) -> None:
        pair = frozenset((a, b))
        if pair in self._parted:
            return
        self._parted.add(pair)
        self.events.append(Parted(self.now, self.now + seconds, pair))
        with self._network.partition("abcd"[a], "abcd"[b]):
            await asyncio.sleep(seconds)
        self._parted.discard(pair)

    # -------------------------------------------------------------- processes

    def _life(self, process: int) -> Life:
        return self._lives[process][-1]

    async def _boot(self, process: int) -> None:
        life = Life(Home(process, len(self._lives[process])), FIRST_PORT + process)
        name, host = "abcd"[process], f"10.0.0.{process + 1}" if self.program.apart else ""

        def transport(security: Security, owner: Any) -> MortalTransport:
            life.transport = self._network.mortal(name, host, security, owner)
            return life.transport

        place = Place(security=OPEN, transport=transport, ports=range(life.port, life.port + 1))
        options = {"name": name, "mdns": False, "ip_addr": ["127.0.0.1"], "ext_ip_addr": host or None}
        life.mesh = Mesh.placed(place, **options)
        await life.mesh._start()
        life.mesh._peers.on_ended.append(lambda link: self._lost(life, link))
        self._homes[life.birth] = life.home
        self._lives[process].append(life)
        life.up = True
        for index in range(process, self.program.coroutines, self.program.processes):
            self._start(index)

    def _lost(self, life: Life, link: Link) -> None:
        other = self._homes[link.birth]
        life.losses[other] += 1
        if life.speaks:
            self.events.append(Lost(self.now, life.home, other, link.opened))

    def _start(self, index: int) -> None:
        life = self._life(index % self.program.processes)
        if life.up:
            actor = Actor(self, life, Who(*life.home, next(self._numbers)))
            actor.start()
            self._by_ref[actor.coro.ref] = actor.who
            self._actors[index].append(actor)

    async def _restart(self, process: int, how: str, pause: float) -> None:
        life = self._life(process)
        self.events.append(Died(self.now, life.home, how))
        if how != "closed":
            life.speaks = False
            life.transport.die(silently=how == "unplugged")
        await self._close(life)
        await asyncio.sleep(pause)
        await self._boot(process)

    async def _close(self, life: Life) -> None:
        await life.mesh.close()
        if life.speaks:
            lost = life.mesh.lost_messages + life.mesh.lost_operations
            self.events.append(Counted(self.now, life.home, lost))

    # -------------------------------------------------------------- the end

    async def finish(self) -> None:
        """Heal, let everything arrive, end everything, and look what is left."""
        while self._background:
            await asyncio.wait(self._background)
        everybody = [actor for actors in self._actors for actor in actors]
        for actor in everybody:
            actor.script.put_nowait(None)
        await asyncio.sleep(HEALING)
        living = [actor for actor in everybody if actor.life.up and not actor.coro.done]
        for actor in living:
            self.events.append(Lives(self.now, actor.who, actor.over or not actor.coro.held))
        for actor in living:
            self.events.append(Condemned(self.now, actor.who))
            actor.coro.stop("terminated")
        await asyncio.sleep(ENDING)
        lives = [self._life(process) for process in range(self.program.processes)]
        for life in lives:
            self._look_for_leftovers(life)
        for actor in everybody:
            while len(actor.coro.mailbox):
                actor.came(actor.coro.mailbox.take(None), lay=True)
        await asyncio.gather(*(self._close(life) for life in lives))

    def _look_for_leftovers(self, life: Life) -> None:
        mesh = life.mesh
        tables = {"requests": mesh._requests, "holding": mesh.sending.holding, "tasks": mesh._tasks, "coros": mesh._coros}
        kept = ("_waiters", "_monitors", "_observed", "_deferred", "_unheard", "_subscribed", "_watchers")
        tables |= {name: getattr(mesh._exits, name) for name in kept}
        for name, table in tables.items():
            if len(table):
                self.events.append(Leftover(self.now, life.home, f"{name}: {getattr(table, '__dict__', table)!r:.500}"))
        for link in mesh._peers:
            if not link.outbox.is_empty():
                self.events.append(Leftover(self.now, life.home, f"{link!r}"))


class _Errors(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else ""))
