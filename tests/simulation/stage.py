"""Plays a program of `programs.py` on meshes in one process, and writes down what happened, for `promises.py` to judge.

Each coroutine takes its steps one after the other, from a queue of its own; half of them are generators. Every process has a
`discoro_server`, where coroutines set up computations and create visitors. At the end all faults heal, every coroutine empties
its mailbox for a minute, then all are terminated, and the tables of every mesh are looked at. Nothing here decides whether what
happened is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import itertools
import logging
import os
import random
import secrets
import tempfile
import time
import types
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from typing import Any

import discoro
from discoro import holding, mailbox, messages, outbox
from discoro import mesh as mesh_module
from discoro.connections import Ended as EndOfConnection
from discoro.coro import Coro
from discoro.interfaces import Interfaces, interfaces
from discoro.link import Link
from discoro.mesh import Mesh
from discoro.messages import Message, Part
from discoro.options import Place
from discoro.security import Security
from tests.simulation import programs, shared
from tests.simulation.loop import PROCESS, SimulatedLoop
from tests.simulation.mortal_network import MortalNetwork, MortalTransport
from tests.simulation.programs import PIECES, Program
from tests.simulation.promises import (
    Began,
    Bug,
    Condemned,
    Counted,
    Died,
    Done,
    Ended,
    Event,
    Exceeded,
    Frozen,
    Heard,
    Hindered,
    History,
    Home,
    Left,
    Leftover,
    Linked,
    Lives,
    Lost,
    Noticed,
    Omitted,
    Over,
    Parted,
    Received,
    Refused,
    Sent,
    Tag,
    Visited,
    Who,
)
from tests.simulation.shared import Disk, Shop
from tests.support import moved_clock

OPEN = Security.from_options(open=True)
MAILBOX = 4  # messages
HELD = 6  # messages that wait at a sender
WINDOW = 6  # frames
HEALING = 60.0  # seconds: a loss, a new link, and emptying what was held
ENDING = 40.0  # seconds until whatever waits for a terminated coroutine has ended
CLOSING = 20.0  # seconds that a close may take at most, as its default is
FIRST_PORT = 30_000
PID = 4711  # of all processes: it is in the texts of errors, and the same seed gives the same trace


def play(program: Program) -> History:
    """What happened."""
    with small_limits(), seeded(program.seed), wall_clock(), nothing_of_this_machine(), log_to_itself():
        return History(moved_clock.run(lambda: _play(program), limit=100_000.0, loop=SimulatedLoop))


async def _play(program: Program) -> list[Event]:
    stage = Stage(program)
    with stage.listening_for_bugs(), contextlib.ExitStack() as rest:
        rest.callback(stage.disk.remove)
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
    state = random.getstate()
    random.seed(seed)
    try:
        yield
    finally:
        secrets.randbits = before
        random.setstate(state)


@contextlib.contextmanager
def nothing_of_this_machine() -> Iterator[None]:
    """Its interfaces are not asked for, which takes longer than all else that starts a process; directories are in memory."""
    directory, pid = tempfile.tempdir, os.getpid
    os.getpid = lambda: PID
    setattr(mesh_module, "interfaces", lambda addresses: _interfaces(*addresses))  # noqa: B010
    tempfile.tempdir = "/dev/shm" if os.access("/dev/shm", os.W_OK) else directory
    try:
        yield
    finally:
        tempfile.tempdir, os.getpid = directory, pid
        setattr(mesh_module, "interfaces", interfaces)  # noqa: B010


@functools.cache
def _interfaces(*addresses: str) -> Interfaces:
    return interfaces(addresses)


@contextlib.contextmanager
def log_to_itself() -> Iterator[None]:
    """What discoro logs as errors goes to the stage alone. Put back here, outside of the loop: where that stops in the middle,
    as for a mutant that turns in circles, nothing inside of it is ended any more.
    """
    logger = logging.getLogger("discoro")
    level, propagate, handlers = logger.level, logger.propagate, list(logger.handlers)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


_wall = [0.0]  # how far the clock on the wall was set, in seconds


@contextlib.contextmanager
def wall_clock() -> Iterator[None]:
    """A clock on the wall that a program may set: nothing that is promised may depend on it."""
    before, _wall[0] = time.time, 0.0
    time.time = lambda: before() + _wall[0]
    try:
        yield
    finally:
        time.time = before


def _visitor(client: Any, number: int, coro: Any = None) -> Any:
    """What computations run. It is sent by value, so that no file has a part in it, and finds the stage by its loop."""
    import asyncio

    stage = asyncio.get_running_loop().stage  # type: ignore[attr-defined]
    stage.visited(client, number, coro)
    try:
        while True:
            yield coro.receive()
    finally:
        stage.left(client, number)


def visitor() -> Callable[..., Any]:
    """As code typed into a prompt is: a function of no module."""
    function = types.FunctionType(_visitor.__code__, {"__name__": "__main__"}, "visitor", _visitor.__defaults__)
    function.__module__ = "__main__"
    return function


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
        self.server: Coro
        self.shop: Shop
        self.losses: Counter[Home] = Counter()
        self.context = contextvars.copy_context()
        self.context.run(PROCESS.set, self)

    def does(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Have this process do something, when it does not stand still."""
        return asyncio.get_running_loop().create_task(work, context=self.context.copy())

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
        self.computation = discoro.Computation(visitor())
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
                await self.call("link", other.who, None, lambda: self.coro.link(self.ref_of(other)))
            case programs.Receive(_, count, timeout):
                for _ in range(count):
                    await self.receive(timeout)
            case programs.Monitor(_, of, old):
                other = self.stage.actor(of, old)
                await self.call("monitor", other.who, None, lambda: self.coro.monitor(self.ref_of(other)))
            case programs.Result(_, of, timeout, aside, old):
                await self.result(self.stage.actor(of, old), timeout, aside)
            case programs.Alive(_, of, old):
                other = self.stage.actor(of, old)
                await self.call("alive", other.who, None, lambda: self.ref_of(other).is_alive())
            case programs.Terminate(_, of, old):
                other = self.stage.actor(of, old)
                self.write(Condemned(self.now, other.who))
                await self.call("terminate", other.who, None, lambda: self.ref_of(other).terminate())
            case programs.Stall(_, seconds):
                await asyncio.sleep(seconds)
            case programs.Setup(_, process, timeout):
                await self.at_server("setup", process, timeout)
            case programs.Run(_, process):
                await self.at_server("run", process, None)
            case programs.Close(_, process):
                await self.at_server("close", process, None)
            case None:
                await self.empty()
            case _:
                await shared.perform(self, step)

    async def at_server(self, verb: str, process: int, timeout: float | None) -> None:
        """One of the calls of a computation, at the server of that process."""
        life = self.stage.life(process)
        number = next(self.stage.visits)
        server = life.server.ref
        work = {
            "setup": lambda: self.computation.setup(server, timeout),
            "run": lambda: self.computation.run(server, [*self.who], number),
            "close": lambda: self.computation.close(server),
        }[verb]
        timeout = CLOSING if verb == "close" else timeout
        await self.call(verb, Who(*life.home, 0), timeout, work, number=number if verb == "run" else 0)

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
        await self.call("deliver", other.who, timeout, lambda: self.ref_of(other).deliver((tag, bytes(size)), timeout), tag)

    async def ask(self, other: Actor, timeout: float | None, size: int) -> None:
        tag = self.stage.tag(self.who, other.who)
        await self.call("ask", other.who, timeout, lambda: self.ref_of(other).ask((tag, bytes(size)), timeout), tag)

    async def result(self, other: Actor, timeout: float | None, aside: bool) -> None:
        calling = self.call("result", other.who, timeout, lambda: self.ref_of(other).result(timeout))
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
            case discoro.ExitNotice(ref) if channel := self.stage.channel(ref):
                event: Event = Over(self.now, self.who, channel)
            case shared.News(channel, by, number):
                event = Heard(self.now, self.who, channel, by, number)
            case discoro.ExitNotice(ref, reason, value, error):
                kind = type(error).__name__ if error is not None else ""
                about = self.stage.whose(ref)
                event = Noticed(self.now, self.who, about, reason, value, kind, str(error or ""), lay)
            case (Tag() as tag, _):
                event = Received(self.now, self.who, tag, lay)
        self.write(event)
        if isinstance(event, Received) and not lay:
            self.coro.reply(event.tag)

    async def empty(self) -> None:
        self.over = True
        while True:
            await self.receive(None)

    async def call(
        self,
        verb: str,
        to: Who,
        timeout: float | None,
        work: Callable[[], Awaitable[Any]],
        tag: Tag | None = None,
        number: int = 0,
    ) -> None:
        """Whatever comes of it is written down, and the coroutine goes on."""
        call = next(self.stage.calls)
        self.write(Began(self.now, call, self.who, verb, to, timeout, tag, number))
        try:
            value = await work()
        except asyncio.CancelledError:
            self.write(Done(self.now, call, None, "CancelledError"))
            raise
        except Exception as error:
            text = str(error).replace(str(self.stage.disk.root), "")  # its name is another one each time
            self.write(Done(self.now, call, None, type(error).__name__, text))
        else:
            self.write(Done(self.now, call, str(value) if verb == "run" else value))


def name_of(process: int) -> str:
    """What a process is called; later ones have the greater names."""
    return f"p{process:02d}"


def _is_numbered(between: set[str], sender: str, receiver: str, parts: list[Part]) -> bool:
    """Whether a frame between these two carries operations."""
    if {sender, receiver} != between:
        return False
    try:
        return isinstance(messages.decode(parts), messages.Data)
    except discoro.ProtocolError:
        return False


class Stage:
    """All processes of one program."""

    def __init__(self, program: Program) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimulatedLoop)
        self._loop = loop
        self.program = program
        self.events: list[Event] = []
        self.calls = itertools.count(1)
        self.visits = itertools.count(1)
        self.goods = itertools.count(1)  # items, news and files
        self.disk = Disk()
        self._numbers = itertools.count(1)
        self._tags = itertools.count(1)
        names = [name_of(process) for process in range(program.processes)]
        slow = {(a, b): program.latency for a in names for b in names if a < b}
        self._network = MortalNetwork(slow if program.latency else {}, program.slow_dials, random.Random(program.seed))
        self._lives: list[list[Life]] = [[] for _ in range(program.processes)]
        self._actors: list[list[Actor]] = [[] for _ in range(program.coroutines)]
        self._by_ref: dict[discoro.CoroRef, Who] = {}
        self._channels: dict[discoro.CoroRef, Home] = {}
        self._homes: dict[int, Home] = {}
        self._visitors: dict[int, Life] = {}
        self._background: set[asyncio.Task[None]] = set()
        self._faults: set[object] = set()  # under way; each once at a time
        self._loop.stage = self  # type: ignore[attr-defined]
        self._loop.after_turn = self._look_at_limits

    @property
    def now(self) -> float:
        return asyncio.get_running_loop().time()

    def actor(self, index: int, old: bool = False) -> Actor:
        """Who carries the index, or carried it first."""
        return self._actors[index][0 if old else -1]

    def tag(self, by: Who, to: Who) -> Tag:
        return Tag(by, to, next(self._tags))

    def channel(self, ref: discoro.CoroRef) -> Home | None:
        """The life whose channel it is; None where it is a coroutine."""
        return self._channels.get(ref)

    def whose(self, ref: discoro.CoroRef) -> Who:
        return self._by_ref[ref]

    @contextlib.contextmanager
    def listening_for_bugs(self) -> Iterator[None]:
        """What reaches the loop's exception handler, or the log as an error, is written down."""
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._bug(repr(context)))
        handler, logger = _Errors(self._bug), logging.getLogger("discoro")
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)

    def _bug(self, text: str) -> None:
        self.events.append(Bug(self.now, text))

    # -------------------------------------------------------------- the program

    async def open(self) -> None:
        for process in range(self.program.processes):
            await self._begin(process)

    async def take(self, step: programs.Step) -> None:
        """Begin a step; only Wait takes time."""
        match step:
            case programs.Wait(seconds):
                await asyncio.sleep(seconds)
            case programs.Start(index):
                self._start(index)
            case programs.Restart(process, how, pause):
                if self.life(process).up:
                    self.life(process).up = False
                    self._later(self._restart(process, how, pause))
            case programs.Cut(a, b):
                self._cut(a, b)
            case programs.Part(a, b, seconds) | programs.OneWay(a, b, seconds):
                ways = self._network.partition if isinstance(step, programs.Part) else self._network.one_way
                fault = Parted(self.now, self.now + seconds, frozenset((a, b)))
                self._later(self._during(fault, seconds, frozenset((a, b)), lambda: ways(name_of(a), name_of(b))))
            case programs.Double(a, b, seconds) | programs.Omit(a, b, seconds):
                garble = self._network.duplicating if isinstance(step, programs.Double) else self._network.dropping
                pair, omitted = {name_of(a), name_of(b)}, Omitted(self.now, self.now + seconds, frozenset((a, b)))
                which = partial(_is_numbered, pair)
                self._later(self._during(omitted, seconds, (a, b, garble.__name__), lambda: garble(which)))
            case programs.Freeze(process, seconds):
                frozen, life = Frozen(self.now, self.now + seconds, process), self.life(process)
                self._later(self._during(frozen, seconds, process, lambda: self._loop.frozen(life)))
            case programs.Firewall(process, seconds, rejects):
                how = EndOfConnection.REFUSED if rejects else EndOfConnection.UNREACHABLE
                hindered = Hindered(self.now, self.now + seconds, process)
                wall = (process, "wall")
                self._later(self._during(hindered, seconds, wall, lambda: self._network.firewalled(name_of(process), how)))
            case programs.SetClock(seconds):
                _wall[0] += seconds
            case _:
                actor = self.actor(step.by)
                where: int | None = getattr(step, "process", None)
                if where is not None and not self.life(where).up:
                    return
                if not isinstance(step, programs.Send | programs.Deliver | programs.Receive) or actor.life.up:
                    actor.script.put_nowait(step)

    def _later(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _cut(self, a: int, b: int) -> None:
        self.events.append(Parted(self.now, self.now, frozenset((a, b))))
        self._network.cut(name_of(a), name_of(b))

    async def _during(self, fault: Event, seconds: float, which: object, begin: Callable[[], Any]) -> None:
        if which in self._faults:
            return
        self._faults.add(which)
        self.events.append(fault)
        with begin():
            await asyncio.sleep(seconds)
        self._faults.discard(which)

    # -------------------------------------------------------------- processes

    def life(self, process: int) -> Life:
        """The latest life of a process."""
        return self._lives[process][-1]

    async def _begin(self, process: int) -> None:
        """Another life of a process, with its coroutines."""
        life = Life(Home(process, len(self._lives[process])), FIRST_PORT + process)
        await life.does(self._boot(life))
        self._homes[life.birth] = life.home
        self._lives[process].append(life)
        life.up = True
        for index in range(process, self.program.coroutines, self.program.processes):
            self._start(index)

    async def _boot(self, life: Life) -> None:
        process = life.home.process
        name, host = name_of(process), f"10.0.0.{process + 1}" if self.program.apart else ""

        def transport(security: Security, owner: Any) -> MortalTransport:
            life.transport = self._network.mortal(name, host, security, owner)
            return life.transport

        place = Place(security=OPEN, transport=transport, ports=range(life.port, life.port + 1))
        options: dict[str, Any] = {"name": name, "mdns": False, "ip_addr": ["127.0.0.1"], "ext_ip_addr": host or None}
        options["dest_path"] = self.disk.root / str(life.home)
        life.mesh = Mesh.placed(place, **options)
        await life.mesh._start()
        life.mesh._peers.on_ended.append(lambda link: self._lost(life, link))
        life.shop = Shop(life.mesh, life.home, self.disk.root / str(life.home))
        self._channels[life.shop.channel.ref] = life.home
        life.server = Coro.start(life.mesh, discoro.discoro_server, (f"server of {name}",))

    def _lost(self, life: Life, link: Link) -> None:
        other = self._homes[link.birth]
        life.losses[other] += 1
        if life.speaks:
            self.events.append(Lost(self.now, life.home, other, link.opened))

    def _start(self, index: int) -> None:
        life = self.life(index % self.program.processes)
        if life.up:
            actor = Actor(self, life, Who(*life.home, next(self._numbers)))
            life.context.copy().run(actor.start)
            self._by_ref[actor.coro.ref] = actor.who
            self._actors[index].append(actor)

    async def _restart(self, process: int, how: str, pause: float) -> None:
        life = self.life(process)
        self.events.append(Died(self.now, life.home, how))
        if how != "closed":
            life.speaks = False
            life.transport.die(silently=how == "unplugged")
            self._loop.thaw(life)
        await life.does(self._close(life))
        await asyncio.sleep(pause)
        await self._begin(process)

    async def _close(self, life: Life) -> None:
        await life.mesh.close()
        if life.speaks:
            lost = life.mesh.lost_messages + life.mesh.lost_operations
            self.events.append(Counted(self.now, life.home, lost))

    # -------------------------------------------------------------- limits

    def _look_at_limits(self) -> None:
        """Whatever has a limit is within it, whenever a process has done what was to do."""
        for lives in self._lives:
            life = lives[-1] if lives else None
            if life is not None and life.up:
                for what in _exceeded(life.mesh):
                    self.events.append(Exceeded(self.now, life.home, what))

    # -------------------------------------------------------------- visitors

    def visited(self, client: list[int], number: int, coro: Coro) -> None:
        """A coroutine of a computation began."""
        home = self._homes[coro.ref.birth]
        self._visitors[number] = next(life for life in self._lives[home.process] if life.home == home)
        if self._visitors[number].speaks:
            self.events.append(Visited(self.now, home, Who(*client), number, str(coro.ref)))

    def left(self, client: list[int], number: int) -> None:
        """It ended."""
        life = self._visitors[number]
        if life.speaks:
            self.events.append(Left(self.now, life.home, Who(*client), number))

    # -------------------------------------------------------------- the end

    async def finish(self) -> None:
        """Heal, let everything arrive, end everything, and look what is left."""
        while self._background:
            await asyncio.wait(self._background)
        everybody = [actor for actors in self._actors for actor in actors]
        for actor in everybody:
            actor.script.put_nowait(None)
        await self._heal(everybody)
        living = [actor for actor in everybody if actor.life.up and not actor.coro.done]
        for actor in living:
            self.events.append(Lives(self.now, actor.who, actor.over or not actor.coro.held))
        for actor in living:
            self.events.append(Condemned(self.now, actor.who))
            actor.coro.stop("terminated")
        await asyncio.sleep(ENDING)
        lives = [self.life(process) for process in range(self.program.processes)]
        for life in lives:
            self.events += life.shop.look(self.now)
            life.server.stop("terminated")
            life.shop.close()
        await asyncio.sleep(ENDING)
        for life in lives:
            self._look_for_leftovers(life)
        for actor in everybody:
            while len(actor.coro.mailbox):
                actor.came(actor.coro.mailbox.take(None), lay=True)
        await asyncio.gather(*(life.does(self._close(life)) for life in lives))

    async def _heal(self, everybody: list[Actor]) -> None:
        """Until nobody began another step for so long: what the last one sent has had the time to arrive."""
        before = None
        while (left := sum(actor.script.qsize() for actor in everybody)) != before:
            before = left
            await asyncio.sleep(HEALING)

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


def _exceeded(mesh: Mesh) -> Iterator[str]:
    """What holds more than its limit allows, in words."""
    for link in mesh._peers:
        box = link.outbox  # beside its window, one empty frame may ask whether all came
        if len(box._sent) > WINDOW + 1 or box._sent_bytes > outbox.WINDOW_BYTES or box._sent_pieces > outbox.PIECES_BYTES:
            yield f"{len(box._sent)} frames of {box._sent_bytes} bytes, {box._sent_pieces} in pieces, for {link.who}"
    for (_, coro_id), queue in mesh.sending.holding._queues.items():
        count = sum(isinstance(each.operation, Message) for each in queue.waiting)
        if count > HELD or queue.size > holding.HELD_BYTES + PIECES:
            yield f"{count} messages of {queue.size} bytes wait for coroutine {coro_id}"


class _Errors(logging.Handler):
    def __init__(self, tell: Callable[[str], None]) -> None:
        super().__init__(logging.ERROR)
        self._tell = tell

    def emit(self, record: logging.LogRecord) -> None:
        self._tell(record.getMessage() + (f": {record.exc_info[1]!r}" if record.exc_info else ""))
