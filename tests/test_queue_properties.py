"""Any interleaving of put, get, giving up, cut connections and close over three processes loses and doubles no item.

What is asked of a queue, whoever used it: what `put` said is in comes out at most once, and once where no process was lost;
what it said is not in never comes out; what one process put in, one after the other, is left in that order; nobody waits for
ever, and nothing is kept of what is over. PROPERTY_EXAMPLES=N in the environment tries that many, at random."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from discoro import DiscoroError, Queue, QueueClosed
from discoro import Timeout as DiscoroTimeout
from discoro.coro import Coro
from discoro.mesh import Mesh
from discoro.queues import _Line
from tests.simulation.mortal_network import MortalNetwork
from tests.support.meshes import World, simulate, start, until

MORE = int(os.environ.get("PROPERTY_EXAMPLES", "0"))
EXAMPLES = MORE or 300

MS = 0.001
LATENCIES = {("a", "b"): 2 * MS, ("b", "a"): 3 * MS, ("a", "c"): 5 * MS, ("c", "a"): 4 * MS}  # a, where the queue is, to others
PAUSES = (0.0, 0.0, MS, 2 * MS, 3 * MS, 5 * MS, 8 * MS, 0.1)  # between two steps: one is under way, there, or answered
TIMEOUTS = (None, None, 0.0, 2 * MS, 5 * MS, 6 * MS, 9 * MS, 12 * MS, 1.0)  # in which a round trip just is over, or not
APART = (1 * MS, 1.0, 5.0, 40.0)  # within the notice of a loss; past it, and found again; lost
ENOUGH = 120.0  # seconds in which everything is settled


class Step(NamedTuple):
    """One thing that happens, `pause` seconds after the one before."""

    pause: float
    verb: str
    who: int = 0  # the mesh that does it, or the operation it is done to, counted from the last
    value: Any = None


def steps() -> st.SearchStrategy[list[Step]]:
    def step(verbs: str, who: st.SearchStrategy[int], values: Any = (None,)) -> st.SearchStrategy[Step]:
        parts = st.sampled_from(PAUSES), st.sampled_from(verbs.split()), who, st.sampled_from(values)
        return st.tuples(*parts).map(lambda made: Step(*made))

    three = st.integers(0, 2)
    uses, cancels = step("put put get get", three, TIMEOUTS), step("cancel", st.integers(0, 6))
    return st.lists(
        st.one_of(uses, uses, uses, uses, cancels, cancels, step("cut close", three), step("part", three, APART)),
        min_size=2,
        max_size=30,
    )


class Item(NamedTuple):
    by: int
    number: int


class Use(NamedTuple):
    """A put, get or close under way, and what is put."""

    verb: str
    item: Item | None
    timeout: float | None
    coro: Coro


class Play:
    """One program, on one stage."""

    def __init__(self, world: World, meshes: list[Mesh], queue: Queue, home: _Line) -> None:
        self.world, self.meshes, self.queue, self.home = world, meshes, queue, home
        self.uses: list[Use] = []
        self.was_lost = False
        self._partitions: list[asyncio.Task[None]] = []
        for mesh in meshes:
            mesh.on_peer_lost.append(self._lost)

    def _lost(self, *_: Any) -> None:
        self.was_lost = True

    async def step(self, step: Step) -> None:
        await asyncio.sleep(step.pause)
        await getattr(self, f"_{step.verb}")(step)

    async def _put(self, step: Step) -> None:
        item = Item(step.who, len(self.uses))

        async def put() -> str:
            return await outcome(lambda: self.queue.put(item, step.value))

        self.uses.append(Use("put", item, step.value, start(self.meshes[step.who], put)))

    async def _get(self, step: Step) -> None:
        async def get() -> Any:
            return await outcome(lambda: self.queue.get(step.value))

        self.uses.append(Use("get", None, step.value, start(self.meshes[step.who], get)))

    async def _cancel(self, step: Step) -> None:
        if self.uses:
            self.uses[-1 - step.who % len(self.uses)].coro.stop("terminated")

    async def _cut(self, step: Step) -> None:
        self.world.network.cut(*pair(step.who))

    async def _part(self, step: Step) -> None:
        async def part() -> None:
            with self.world.network.partition(*pair(step.who)):
                await asyncio.sleep(step.value)

        self._partitions.append(asyncio.ensure_future(part()))

    async def _close(self, step: Step) -> None:
        async def close() -> str:
            return await outcome(self.queue.close)

        self.uses.append(Use("close", None, 0.0, start(self.meshes[step.who], close)))

    async def end(self) -> tuple[list[tuple[Item, str]], list[Item], list[Item]]:
        """Let everything settle: what became of each put; what was got; what was left, in order."""
        if self._partitions:
            await asyncio.wait(self._partitions)
        await asyncio.sleep(ENOUGH)
        self._nobody_waits_in_vain()
        for use in self.uses:
            use.coro.stop("terminated")
        await asyncio.sleep(ENOUGH)
        ends = [(use.item, await ending(use.coro)) for use in self.uses]
        closed = self.home._closed
        left = await start(self.meshes[0], drains, self.queue).result_here()
        line = self.home
        assert not (line._items or line._getters or line._putters or line._under_way)
        assert line._bytes == 0 and (closed or line._putting_bytes == 0)
        if closed:
            await until(lambda: self.meshes[0].coro(self.queue.ref.id) is None, 1)
        assert not any(len(mesh._requests) for mesh in self.meshes)
        return [(item, how) for item, how in ends if item], [how for item, how in ends if isinstance(how, Item)], left

    def _nobody_waits_in_vain(self) -> None:
        line, waiting = self.home, [use for use in self.uses if not use.coro.done]
        assert all(use.timeout is None for use in waiting), f"past their time: {waiting}"
        assert not line._under_way
        if any(use.verb == "put" for use in waiting):
            assert len(line._items) >= line._maxsize and not line._closed, f"there is room, and they wait: {waiting}"
        if any(use.verb == "get" for use in waiting):
            assert not line._items and not line._closed, f"there are items, and they wait: {waiting}"


def pair(number: int) -> tuple[str, str]:
    return list(combinations("abc", 2))[number]


async def outcome(operation: Callable[[], Any]) -> Any:
    try:
        return await operation()
    except DiscoroError as error:
        return type(error).__name__


async def ending(coro: Coro) -> Any:
    try:
        return await coro.result_here()
    except DiscoroError as error:  # terminated
        return type(error).__name__


async def drains(queue: Queue) -> list[Item]:
    left = []
    try:
        while True:
            left.append(await queue.get(0))
    except (DiscoroTimeout, QueueClosed):
        return left


async def played(world: World, program: list[Step], maxsize: int) -> None:
    world.network = MortalNetwork(LATENCIES)
    async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:

        async def makes() -> Queue:
            return Queue(maxsize)

        queue = await a.run(makes)
        home = a.coro(queue.ref.id)
        assert home is not None and isinstance(home.service, _Line)
        play = Play(world, [a, b, c], queue, home.service)
        for step in program:
            await play.step(step)
        put, got, left = await play.end()
        check(put, got, left, play.was_lost)


def check(put: list[tuple[Item, Any]], got: list[Item], left: list[Item], was_lost: bool) -> None:
    came = Counter([*got, *left])
    assert all(times == 1 for times in came.values()), f"doubled: {came}"
    for item, how in put:
        match how:
            case 0 if not was_lost:
                assert item in came, f"{item} was put in, and is lost"
            case "Timeout" | "QueueClosed" | "Overloaded":
                assert item not in came, f"{item} was not put in ({how}), and came out"
            case 0 | "CoroEnded" | "PeerLost" | "Unreachable":
                pass
            case _:
                raise AssertionError(f"put of {item} gave {how!r}")
    for who in range(3):
        mine = [item.number for item in left if item.by == who]
        assert mine == sorted(mine), f"left out of order: {left}"


@settings(
    max_examples=EXAMPLES,
    derandomize=not MORE,
    deadline=None,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(steps(), st.integers(1, 3))
@example([Step(0, "get", 1), Step(0.1, "put", 2), Step(2 * MS, "part", 0, 40.0)], 1)  # the answer is held, then lost
@example([Step(0, "get", 1), Step(0.1, "put"), Step(MS, "cancel", 1), Step(0, "close")], 1)  # given up under way, and closed
@example([Step(0, "get", 1), Step(0.1, "put"), Step(0, "put"), Step(MS, "cancel", 2)], 3)  # it comes back before the next
def test_no_interleaving_loses_or_doubles_an_item(program: list[Step], maxsize: int) -> None:
    simulate(lambda world: played(world, program, maxsize))


# ------------------------------------------------------------------ the check finds what is wrong


@pytest.mark.parametrize(
    ("put", "got", "left", "what"),
    [
        ([(Item(0, 1), 0)], [], [], "is lost"),
        ([(Item(0, 1), 0)], [Item(0, 1)], [Item(0, 1)], "doubled"),
        ([(Item(0, 1), "Timeout")], [], [Item(0, 1)], "came out"),
        ([(Item(0, 1), 0), (Item(0, 2), 0)], [], [Item(0, 2), Item(0, 1)], "out of order"),
        ([(Item(0, 1), "TypeError")], [], [], "gave 'TypeError'"),
    ],
)
def test_the_check_sees_each_kind_of_loss(put: Any, got: Any, left: Any, what: str) -> None:
    with pytest.raises(AssertionError, match=what):
        check(put, got, left, False)


# ------------------------------------------------------------------ one turn


@pytest.mark.parametrize("how", ["cancel", "throw"])
def test_a_getter_given_up_in_the_turn_in_which_the_queue_closes_leaves_its_item_in(how: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:

            async def makes() -> Queue:
                return Queue()

            queue = await a.run(makes)
            line = a._coros[queue.ref.id].service
            assert isinstance(line, _Line)

            async def gets() -> Any:
                return await queue.get()

            getting = start(a, gets)
            await until(lambda: bool(line._getters))

            async def closes() -> Any:
                await line.put("item", None)
                await line.close()
                getting.stop("terminated") if how == "cancel" else getting.throw_here(ValueError())
                return await queue.get(1)

            assert await a.run(closes) == "item"
            await until(lambda: a.coro(queue.ref.id) is None)

    simulate(test)
