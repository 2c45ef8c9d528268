"""Queues among meshes in one process: bounds, turns, and that no item is lost or doubled whenever somebody gives up."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from discoro import (
    ConfigError,
    NoMesh,
    NoSuchCoro,
    Overloaded,
    PackError,
    PeerLost,
    ProtocolError,
    Queue,
    QueueClosed,
    UnpackError,
    queues,
)
from discoro import Timeout as DiscoroTimeout
from discoro.coro import READY_RECEIVES, Coro
from discoro.mesh import Mesh
from discoro.queues import _Line
from tests.support.meshes import World, simulate, start, until

SOON = 5.0


async def make(mesh: Mesh, *args: Any) -> Queue:
    """A queue of that mesh."""

    async def makes() -> Queue:
        return Queue(*args)

    made = await mesh.run(makes)
    assert isinstance(made, Queue)
    return made


async def does(mesh: Mesh, operation: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    """The result of an operation on a queue, made in that mesh."""

    async def run() -> Any:
        return await operation(*args)

    return await mesh.run(run)


def begins(mesh: Mesh, operation: Callable[..., Awaitable[Any]], *args: Any) -> Coro:
    """An operation under way in that mesh."""

    async def run() -> Any:
        return await operation(*args)

    return start(mesh, run)


def line_of(mesh: Mesh, queue: Queue) -> _Line:
    coro = mesh.coro(queue.ref.id)
    assert coro is not None and isinstance(coro.service, _Line)
    return coro.service


def is_idle(line: _Line) -> bool:
    """Whether nobody waits, and no item is under way."""
    return not (line._getters or line._putters or line._putting_bytes or line._under_way)


async def drained(mesh: Mesh, queue: Queue) -> list[Any]:
    """What is in it, in order, without waiting."""
    items = []
    for _ in range(await does(mesh, queue.size)):
        items.append(await does(mesh, queue.get, 0))
    return items


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("maxsize", [0, -1, 2.5, "2", None, True])
def test_a_queue_holds_a_number_of_items(maxsize: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(ConfigError, match="maxsize is a number of items, 1 or more"):
                await make(a, maxsize)
            assert not a.coros()

    simulate(test)


def test_outside_of_a_mesh_there_is_no_queue() -> None:
    with pytest.raises(NoMesh):
        Queue()


def test_a_queue_without_a_name_is_registered_under_one() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            queue = await make(a)
            with pytest.raises(ConfigError, match="the name of a queue is a text of 1 to 249 bytes"):
                await does(a, queue.register)
            assert await does(a, queue.register, "jobs") == 0
            assert await does(a, Queue.locate, "jobs") == queue

    simulate(test)


def test_a_request_that_is_none_breaks_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            for verb in ("put", "get", "took", "withdraw"):
                for arguments in ({}, {"id": -1}, {"id": "1"}, {"id": 1.0}):
                    with pytest.raises(ProtocolError):
                        await b.request(queue.ref, verb, arguments)
            for verb in ("nonsense", "deliver", "ask", "swap", "subscribed"):
                with pytest.raises(ProtocolError, match="it is a queue"):
                    await b.request(queue.ref, verb, {})
            with pytest.raises(ProtocolError, match="takes no messages"):
                await does(a, lambda_coroutine(partial(queue.ref.send, "m")))
            waiting = begins(b, partial(b.request, queue.ref, "get", {"id": 7}))
            await until(lambda: bool(line_of(a, queue)._getters))
            with pytest.raises(ProtocolError, match="waits already"):
                await b.request(queue.ref, "get", {"id": 7})
            waiting.stop("terminated")
            assert await b.request(queue.ref, "withdraw", {"id": 7})
            assert is_idle(line_of(a, queue))

    simulate(test)


def lambda_coroutine(function: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    async def run() -> Any:
        return function()

    return run


def test_what_cannot_travel_stays_for_those_of_its_process() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            item = asyncio.get_running_loop().create_future()
            with pytest.raises(PackError):
                await does(b, queue.put, item)
            far = begins(b, queue.get)
            await until(lambda: bool(line_of(a, queue)._getters))
            await does(a, queue.put, item)
            await does(a, queue.put, "next")
            with pytest.raises(PackError):
                await far.result_here()
            assert await does(a, queue.get) is item
            assert await does(b, queue.get) == "next"
            await until(lambda: is_idle(line_of(a, queue)))

    simulate(test)


class Brittle:
    """Cannot be opened."""

    def __reduce__(self) -> Any:
        return breaks, ()


def breaks() -> None:
    raise ValueError("broken")


def test_an_item_that_cannot_be_opened_is_gone_as_a_message_is() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            for getter in (a, b):
                await does(b, queue.put, Brittle())
                with pytest.raises(UnpackError, match="broken"):
                    await does(getter, queue.get)
                with pytest.raises(DiscoroTimeout):
                    await does(getter, queue.get, 0)

    simulate(test)


# ------------------------------------------------------------------ bounds and turns


def test_it_is_full_by_items_and_by_bytes_and_empty_takes_one_larger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "QUEUE_BYTES", 1000)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 3)
            for mesh, item, fits in [
                *[(b, bytes(5000), True), (a, "small", False), (b, "small", False), (None, 0, True)],
                *[(b, bytes(600), True), (b, bytes(600), False), (b, bytes(300), True), (a, 1, True), (a, 2, False)],
            ]:
                if mesh is None:
                    assert len(await does(b, queue.get)) == 5000
                elif fits:
                    assert await does(mesh, queue.put, item, 1) == 0
                else:
                    with pytest.raises(DiscoroTimeout, match="queue .* had no room within 1 s: the item is not in it"):
                        await does(mesh, queue.put, item, 1)
            assert [len(each) if isinstance(each, bytes) else each for each in await drained(b, queue)] == [600, 300, 1]
            await until(lambda: is_idle(line_of(a, queue)))
            assert line_of(a, queue)._bytes == 0

    simulate(test)


def test_items_come_out_in_the_order_they_went_in_and_who_waits_longest_is_first() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            queue = await make(a, 2)
            putting = []
            for number in range(12):
                putting.append(begins((a, b, c)[number % 3], queue.put, number))
                await until(lambda number=number: line_of(a, queue)._next + len(line_of(a, queue)._putters) > number)  # type: ignore[misc]
            getting = []
            for number in range(18):
                getting.append(begins((c, a, b)[number % 3], queue.get))
                await asyncio.sleep(0.1)
            for number in range(12, 18):
                await does((b, c)[number % 2], queue.put, number)
            assert [await each.result_here() for each in getting] == list(range(18))
            assert [await each.result_here() for each in putting] == [0] * 12
            await until(lambda: is_idle(line_of(a, queue)))

    simulate(test)


def test_a_producer_of_large_items_fills_no_memory_beyond_the_queue() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 4)
            items, line = 0, line_of(a, queue)

            async def produces() -> None:
                for _ in range(40):
                    await queue.put(bytes(1 << 20))
                await queue.close()

            begins(b, produces)
            async for item in in_mesh(a, queue):
                items += 1
                assert len(item) == 1 << 20
                assert len(line._items) <= 4 and len(line._putters) <= 1
                await asyncio.sleep(0.1)
            assert items == 40

    async def in_mesh(mesh: Mesh, queue: Queue) -> Any:
        while True:
            try:
                yield await does(mesh, queue.get)
            except QueueClosed:
                return

    simulate(test)


def test_past_their_number_and_bytes_nobody_may_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queues, "MAX_WAITING", 3)
    monkeypatch.setattr(queues, "WAITING_BYTES", 1000)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 1)
            getting = [begins(mesh, queue.get) for mesh in (a, b, b)]
            await until(lambda: len(line_of(a, queue)._getters) == 3)
            for mesh in (a, b):
                with pytest.raises(Overloaded, match="3 wait for an item of queue"):
                    await does(mesh, queue.get)
            for number in range(3):
                await does(a, queue.put, number)
            assert sorted([await each.result_here() for each in getting]) == [0, 1, 2]
            await does(a, queue.put, "full")
            large = begins(b, queue.put, bytes(5000))
            await until(lambda: len(line_of(a, queue)._putters) == 1)
            with pytest.raises(Overloaded, match=r"1 items of 50\d\d bytes wait for room"):
                await does(b, queue.put, "small")
            putting = [begins(a, queue.put, number) for number in range(2)]
            await until(lambda: len(line_of(a, queue)._putters) == 3)
            with pytest.raises(Overloaded, match="3 items"):
                await does(a, queue.put, "one too many")
            got = [await does(b, queue.get) for _ in range(4)]
            assert [got[0], len(got[1]), *got[2:]] == ["full", 5000, 0, 1]
            for each in (large, *putting):
                assert await each.result_here() == 0

    simulate(test)


def test_who_always_finds_an_item_lets_others_run() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            queue, turns = await make(a), 0

            async def others() -> None:
                nonlocal turns
                while True:
                    turns += 1
                    await asyncio.sleep(0)

            async def both() -> None:
                for number in range(2000):
                    await queue.put(number)
                for number in range(2000):
                    assert await queue.get() == number

            begins(a, others)
            await does(a, both)
            assert turns >= 4000 // READY_RECEIVES

    simulate(test)


# ------------------------------------------------------------------ giving up, at any moment

DELAYS = [number / 100 for number in range(11)]  # seconds, while one way takes 0.03


@pytest.mark.parametrize("how", ["timeout", "cancelled"])
@pytest.mark.parametrize("getter", ["a", "b"])
def test_an_item_is_not_lost_to_who_gives_up_while_it_is_on_its_way(getter: str, how: str) -> None:
    async def gives_up(queue: Queue, after: float) -> Any:
        try:
            if how == "timeout":
                return await queue.get(after)
            async with asyncio.timeout(after):
                return await queue.get()
        except TimeoutError:
            return None

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            got: list[Any] = []
            with world.network.delaying(0.03):
                for number, after in enumerate([*DELAYS, *DELAYS]):
                    first = begins({"a": a, "b": b}[getter], gives_up, queue, after)
                    await asyncio.sleep(0.05 if number < len(DELAYS) else 0.02)
                    for part in "xy":
                        await does(a, queue.put, (number, part))
                    got += [item] if (item := await first.result_here()) else []
                    await asyncio.sleep(2)  # a connection that is made anew for want of order takes less
                    got += await drained(a, queue)
            assert got == [(number, part) for number in range(2 * len(DELAYS)) for part in "xy"]
            assert is_idle(line_of(a, queue))

    simulate(test)


@pytest.mark.parametrize("putter", ["a", "b"])
def test_timeout_of_put_means_that_the_item_never_gets_in(putter: str) -> None:
    async def tries(queue: Queue, item: int, after: float) -> list[int]:
        try:
            return [item][: 1 + await queue.put(item, after)]
        except DiscoroTimeout:
            return []

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 1)
            said: list[int] = []
            got: list[int] = []
            with world.network.delaying(0.03):
                for number, after in enumerate(DELAYS):
                    await does(a, queue.put, -1)
                    trying = begins({"a": a, "b": b}[putter], tries, queue, number, after)
                    await asyncio.sleep(0.05)
                    assert await does(a, queue.get) == -1
                    said += await trying.result_here()
                    await asyncio.sleep(2)  # a connection that is made anew for want of order takes less
                    got += await drained(a, queue)
            assert got == said and 0 < len(got) < len(DELAYS), "both ways were tried"
            assert is_idle(line_of(a, queue))

    simulate(test)


def test_a_put_that_is_cancelled_leaves_no_one_waiting() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 1)
            await does(a, queue.put, "first")
            putting = [begins(mesh, queue.put, "never") for mesh in (a, b)]
            await until(lambda: len(line_of(a, queue)._putters) == 2)
            for each in putting:
                each.stop("terminated")
            await until(lambda: is_idle(line_of(a, queue)))
            assert await drained(b, queue) == ["first"]

    simulate(test)


def test_an_exception_thrown_into_who_waits_loses_no_item() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            for mesh in (a, b):
                getting = begins(mesh, queue.get)
                await until(lambda: bool(line_of(a, queue)._getters))
                begins(a, queue.put, "kept")
                await asyncio.sleep(0)
                getting.throw_here(ValueError("thrown"))
                with pytest.raises(ValueError, match="thrown"):
                    await getting.result_here()
                await until(lambda: is_idle(line_of(a, queue)))
                assert await drained(a, queue) == ["kept"]

    simulate(test)


def test_items_that_come_back_take_their_old_places() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            with world.network.delaying(0.03):
                getting = [begins(b, queue.get) for _ in range(4)]
                await until(lambda: len(line_of(a, queue)._getters) == 4)
                for number in range(6):
                    await does(a, queue.put, number)
                for each in (2, 0, 3):
                    getting[each].stop("terminated")
                assert await getting[1].result_here() == 1
                await asyncio.sleep(2)
            assert await drained(a, queue) == [0, 2, 3, 4, 5]

    simulate(test)


def test_zero_only_looks_wherever_the_queue_is() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 1)
            for mesh in (a, b):
                with pytest.raises(DiscoroTimeout, match="no item came from queue .* within 0 s"):
                    await does(mesh, queue.get, 0)
                assert await does(mesh, queue.put, "item", 0) == 0
                with pytest.raises(DiscoroTimeout, match="had no room within 0 s"):
                    await does(mesh, queue.put, "no", 0)
                assert await does(mesh, queue.get, 0) == "item"
            await until(lambda: is_idle(line_of(a, queue)))

    simulate(test)


# ------------------------------------------------------------------ closing


@pytest.mark.parametrize("closer", ["a", "b"])
def test_closed_it_gives_what_is_left_and_tells_everybody(closer: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a, 2, "jobs")
            for item in "xy":
                await does(b, queue.put, item)
            putting = [begins(mesh, queue.put, "never") for mesh in (a, b)]
            await until(lambda: len(line_of(a, queue)._putters) == 2)
            for _ in range(2):
                assert await does({"a": a, "b": b}[closer], queue.close) == 0
            for each in putting:
                with pytest.raises(QueueClosed, match="queue jobs .* was closed before there was room"):
                    await each.result_here()
            for mesh in (a, b):
                with pytest.raises(QueueClosed, match="queue jobs .* is closed"):
                    await does(mesh, queue.put, "no")
            assert [await does(mesh, queue.get) for mesh in (b, a)] == ["x", "y"]
            await until(lambda: a.coro(queue.ref.id) is None)
            for mesh in (a, b):
                with pytest.raises(QueueClosed):
                    await does(mesh, queue.get)
                with pytest.raises(QueueClosed):
                    await does(mesh, queue.put, "no")
                with pytest.raises(QueueClosed):
                    await does(mesh, queue.register)
                assert await does(mesh, queue.close) == 0

    simulate(test)


def test_closed_it_waits_for_an_item_that_may_come_back() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            with world.network.delaying(0.03):
                gives_up, waits = begins(b, queue.get), None
                await until(lambda: bool(line_of(a, queue)._getters))
                await does(a, queue.put, "last")
                await does(a, queue.close)
                waits = begins(a, queue.get)
                gives_up.stop("terminated")
                assert await waits.result_here() == "last"
                await until(lambda: a.coro(queue.ref.id) is None)

    simulate(test)


@pytest.mark.parametrize("end", ["closed", "terminated"])
def test_who_waits_is_told_when_the_queue_ends(end: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            getting = [begins(mesh, queue.get) for mesh in (a, b)]
            await until(lambda: len(line_of(a, queue)._getters) == 2)
            await does(b, queue.close if end == "closed" else queue.ref.terminate)
            for each in getting:
                with pytest.raises(QueueClosed, match="closed" if end == "closed" else r"\(queue .* was ended: terminated\)"):
                    await each.result_here()
            with pytest.raises(NoSuchCoro):
                await does(b, queue.ref.throw, ValueError())

    simulate(test)


def test_items_that_nobody_took_are_said(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            queue = await make(a)
            await does(a, queue.put, 1)
            with caplog.at_level(logging.INFO):
                await does(a, queue.ref.terminate)
                await until(lambda: a.coro(queue.ref.id) is None)
            assert "with 1 items that nobody took" in caplog.text

    simulate(test)


# ------------------------------------------------------------------ losses


def test_who_waited_in_a_lost_process_gets_and_puts_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            queue, full = await make(a), await make(a, 1)
            await does(a, full.put, "in")
            async with world.mesh("b", a) as b:
                begins(b, queue.get)
                begins(b, full.put, "never")
                line, filled = line_of(a, queue), line_of(a, full)
                await until(lambda: len(line._getters) == len(filled._putters) == 1)
                with world.network.partition("a", "b"):
                    await until(lambda: is_idle(line) and is_idle(filled))
            await does(a, queue.put, "kept")
            assert await does(a, queue.get, 0) == "kept"
            assert await drained(a, full) == ["in"]

    simulate(test)


def test_an_item_under_way_to_a_lost_process_is_said_and_not_handed_out_twice(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await make(a)
            getting = begins(b, queue.get)
            await until(lambda: bool(line_of(a, queue)._getters))
            with world.network.partition("a", "b"), caplog.at_level(logging.WARNING):
                for item in "xy":
                    await does(a, queue.put, item)
                await until(lambda: is_idle(line_of(a, queue)))
                with pytest.raises(PeerLost):
                    await getting.result_here()
            assert "1 items of queue" in caplog.text and "whether they arrived is unknown" in caplog.text
            assert await drained(a, queue) == ["y"]

    simulate(test)


def test_a_put_out_of_reach_is_known_when_the_queue_is_reached_or_lost() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue, loop = await make(a, 2), asyncio.get_running_loop()
            await does(a, queue.put, "first")
            with world.network.partition("a", "b"):
                trying = begins(b, queue.put, "second", 1)
                await asyncio.sleep(2)
            assert await trying.result_here() == 0, "it got in after all"
            assert await drained(a, queue) == ["first", "second"]
            with world.network.partition("a", "b"):
                began = loop.time()
                with pytest.raises(PeerLost):
                    await does(b, queue.put, "third", 1)
                assert loop.time() - began < 25

    simulate(test)


def test_cuts_lose_and_double_no_item() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            queue = await make(a, 3)

            async def produces() -> None:
                for number in range(100):
                    await queue.put(number)
                await queue.close()

            async def consumes() -> list[int]:
                return [item async for item in queue]

            producing, consuming = begins(b, produces), [begins(mesh, consumes) for mesh in (c, b, a)]
            for pair in ["ab", "ac", "bc"] * 10:
                await asyncio.sleep(0.01)
                world.network.cut(*pair)
            await producing.result_here()
            got = [await each.result_here() for each in consuming]
            assert sorted(number for each in got for number in each) == list(range(100))
            assert all(each == sorted(each) for each in got)

    simulate(test)
