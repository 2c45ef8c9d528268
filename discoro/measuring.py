"""How fast a mesh is: from this process to its nodes and between them, measured by coroutines like any other.

`Ways.measure` sets one computation up at one slot of each node: a coroutine there that answers and counts, and one that
measures against another. What is measured goes the way that users' messages go: by `ask`, `send` and `run`. What it means,
`remarks` says in words; drawing.py draws it.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from discoro.computation import Computation
from discoro.coro import Coro, current_coro
from discoro.errors import DiscoroError, Overloaded
from discoro.program import servers, status
from discoro.references import CoroRef
from discoro.status import NodeStatus

SMALL = bytes(64)  # a message
LARGE = bytes(1 << 20)
TURN = 500  # messages that are sent before others have a turn
AT_ONCE = 100  # coroutines under way
LIMIT = 30.0  # seconds for one answer: whoever takes longer is hung
TRIPS = 5  # at the least
SLOW = 12.5e6  # bytes a second: 100 Mbit/s, which few mean to have between machines any more
FRACTION = 0.4  # of the median way: below it, something is wrong with this one
SHAKY = 20.0  # times the median round trip, that one of a hundred takes
HERE = "this process"


@dataclass(frozen=True)
class Way:
    """From one process to a worker of a node. Times are seconds, rates are for a second; `coros` only from here."""

    source: str
    target: str
    round_trip: float  # of a message of 64 bytes that is answered; half of them take longer
    slow: float  # one of a hundred takes longer
    messages: float  # of 64 bytes, one way
    bulk: float  # bytes, in messages of 1 MiB
    coros: float | None = None  # that do nothing, created and their results received, 100 at a time


# ------------------------------------------------------------------ what runs at the nodes


async def answers(coro: Coro) -> None:
    """Answer what is asked; of a number, count so many messages and tell."""
    while True:
        message = await coro.receive()
        if isinstance(message, tuple):
            count, to = message
            for _ in range(count):
                await coro.receive()
            to.send("all")
        else:
            coro.reply(message)


async def nothing() -> None:
    """What is created."""


async def measures(to: CoroRef, seconds: float) -> list[float]:
    """Round trip, slow round trip, messages and bytes a second, to a coroutine that `answers`; each for about so long."""
    trips = await _trips(to, seconds)
    messages, bulk = await _rate(to, SMALL, 1000, seconds), await _rate(to, LARGE, 4, seconds) * len(LARGE)
    return [statistics.median(trips), statistics.quantiles(trips, n=100)[98], messages, bulk]


async def at_node(what: str, *args: Any) -> Any:
    """The one function of the computation: what it is told to be."""
    if what == "answers":
        await answers(current_coro())
    return await measures(*args) if what == "measures" else None


async def _trips(to: CoroRef, seconds: float) -> list[float]:
    trips: list[float] = []
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end or len(trips) < TRIPS:
        await to.ask(SMALL, LIMIT)
        trips.append(time.perf_counter() - start)
    return trips


async def _rate(to: CoroRef, message: bytes, count: int, seconds: float) -> float:
    """Messages a second: more of them, until they take a good part of that time."""
    while True:
        took = await _streamed(to, message, count)
        if took >= seconds / 3:
            return count / took
        count = int(count * min(8.0, max(2.0, seconds / took)))


async def _streamed(to: CoroRef, message: bytes, count: int) -> float:
    """Seconds until the last of so many is received, and that is known here."""
    coro = current_coro()
    start = time.perf_counter()
    await to.deliver((count, coro.ref), LIMIT)
    for number in range(count):
        try:
            to.send(message)
        except Overloaded:
            await to.deliver(message, LIMIT)
        if number % TURN == 0:
            await asyncio.sleep(0)
    if await coro.receive(LIMIT) is None:
        raise TimeoutError(f"{to} did not tell of {count} messages in {LIMIT:g} s")
    return time.perf_counter() - start


# ------------------------------------------------------------------ what runs here


@dataclass(frozen=True)
class Node:
    """A node, and what was set up at one of its slots."""

    name: str
    server: CoroRef
    target: CoroRef
    computation: Computation


class Ways:
    """All ways between this process and its nodes. `tell` is called with a line for people when another way is measured."""

    def __init__(self, seconds: float, tell: Callable[[str], None]) -> None:
        self._seconds = seconds
        self._tell = tell
        self.ways: list[Way] = []
        self.statuses: list[NodeStatus] = []
        self.failures: list[str] = []  # ways that could not be measured, and why

    async def measure(self, timeout: float | None, between: bool) -> None:
        """Find the nodes, and measure the way to each, and `between` each two. Raises NoNodes."""
        first = {server.node: server for server in reversed(await servers(timeout=timeout))}  # the free ones come first
        nodes = [node for server in first.values() if (node := await self._set_up(server)) is not None]
        try:
            for node in nodes:
                await self._try(HERE, node, self._from_here)
            for source in nodes if between else ():
                for target in nodes:
                    if source is not target:
                        await self._try(source.name, target, partial(self._from_node, source))
        finally:
            await asyncio.gather(*(node.computation.close(node.server) for node in nodes), return_exceptions=True)

    async def _set_up(self, server: CoroRef) -> Node | None:
        computation = Computation(at_node)
        try:
            self.statuses.append(await status(server))
            await computation.setup(server, timeout=LIMIT)
            return Node(server.name, server, await computation.run(server, "answers"), computation)
        except DiscoroError as error:
            self.failures.append(f"{server.name}: {error}")
            return None

    async def _try(self, source: str, target: Node, measured: Callable[[Node], Any]) -> None:
        self._tell(f"{source} to {target.name}")
        try:
            self.ways.append(Way(source, target.name, *await measured(target)))
        except (DiscoroError, TimeoutError) as error:
            self.failures.append(f"{source} to {target.name}: {error}")

    async def _from_here(self, to: Node) -> list[float]:
        return [*await measures(to.target, self._seconds), await self._coros(to)]

    async def _from_node(self, source: Node, to: Node) -> list[float]:
        coro = await source.computation.run(source.server, "measures", to.target, self._seconds)
        found: list[float] = await coro.result(10 * LIMIT)
        return found

    async def _coros(self, at: Node) -> float:
        """Coroutines a second, created there and their results received here."""
        end, done = time.perf_counter() + self._seconds, 0

        async def some() -> None:
            nonlocal done
            while not done or time.perf_counter() < end:
                coro = await at.computation.run(at.server, "nothing")
                await coro.result(LIMIT)
                done += 1

        start = time.perf_counter()
        await asyncio.gather(*(some() for _ in range(AT_ONCE)))
        return done / (time.perf_counter() - start)


def remarks(ways: Sequence[Way], statuses: Sequence[NodeStatus]) -> list[str]:
    """What somebody should look at: slow and shaky ways, workers that are at work meanwhile."""
    found = []
    middle = statistics.median(way.bulk for way in ways) if ways else 0.0
    for way in ways:
        name = f"{way.source} to {way.target}"
        if way.bulk < SLOW:
            found.append(f"slow link: {name} carries {way.bulk / 1e6:.1f} MB/s, less than 100 Mbit/s: Wi-Fi, or an old switch?")
        elif way.bulk < FRACTION * middle:
            found.append(f"slow link: {name} carries {way.bulk / 1e6:.0f} MB/s, where others carry {middle / 1e6:.0f}")
        if way.slow > SHAKY * way.round_trip:
            times = f"{way.slow / way.round_trip:.0f} times as long"
            found.append(f"shaky link: one of a hundred round trips of {name} takes {times}")
    for node in statuses:
        busy = [worker for worker in node.workers if worker.busy]
        others = {worker.client for worker in node.workers if worker.client}
        if busy:
            found.append(f"busy workers: {node.name} has {len(busy)} that compute: its figures are lower than it can do")
        elif len(others) > 0:
            found.append(f"{node.name} serves {', '.join(sorted(others))} too, which may take from its figures")
    return found
