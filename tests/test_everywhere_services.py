"""Channels, queues and offered functions: the same within one process, between two, and between two machines.

To add a row, see the first lines of test_everywhere_messages.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from discoro import (
    RCI,
    BadArguments,
    Channel,
    Coro,
    CoroEnded,
    CoroRef,
    ExitNotice,
    NameTaken,
    NoSuchCoro,
    Overloaded,
    PeerLost,
    Queue,
    QueueClosed,
    Timeout,
    Unreachable,
)
from discoro.mailbox import MAILBOX_MESSAGES
from tests.support.three_ways import TWO_PROCESSES, in_both_styles, three_ways

SOON = 5.0  # seconds for what must come; the end of a killed process too
A_MOMENT = 0.1  # seconds for what must not


class Mishap(Exception):
    """An exception of the user's own."""


def serves_generator(to: CoroRef, coro: Any = None) -> Any:
    """Make something here, hand it out, and keep it until terminated."""
    to.send((Channel("news"), Queue(2), RCI(doubled)))
    yield coro.suspend()


async def serves(to: CoroRef, coro: Any = None) -> None:
    to.send((Channel("news"), Queue(2), RCI(doubled)))
    await coro.suspend()


async def doubled(number: int, *, add: int = 0, waits: bool = False, coro: Any = None) -> int:
    await coro.receive(None if waits else 0)
    return 2 * number + add


async def services(far: Any, coro: Any) -> tuple[Channel, Queue, RCI]:
    """A channel, a queue of two places and an offered function of the far side."""
    await far.create(serves, coro.ref)
    channel, queue, rci = await coro.receive(SOON)
    return channel, queue, rci


# ------------------------------------------------------------------ channels


def listens_generator(channel: Channel, to: CoroRef, coro: Any = None) -> Any:
    yield channel.subscribe(coro)
    to.send("subscribed")
    heard = []
    while not isinstance(message := (yield coro.receive()), ExitNotice):
        heard.append(message)
    return heard, message.reason, message.ref == channel.ref


async def listens(channel: Channel, to: CoroRef, coro: Any = None) -> Any:
    await channel.subscribe(coro)
    to.send("subscribed")
    heard = []
    while not isinstance(message := await coro.receive(), ExitNotice):
        heard.append(message)
    return heard, message.reason, message.ref == channel.ref


@in_both_styles("listening", listens_generator, listens)
@pytest.mark.parametrize("where", ["near", "far"])
@three_ways
async def test_every_subscriber_gets_everything_and_is_told_of_the_end(far: Any, coro: Any, listening: Any, where: str) -> None:
    channel = Channel("news") if where == "near" else (await services(far, coro))[0]
    ears = [Coro(listening, channel, coro.ref), await far.create(listening, channel, coro.ref)]
    assert [await coro.receive(SOON) for _ in ears] == ["subscribed"] * 2
    for number in range(100):
        channel.send(number)
    assert await channel.deliver("last", SOON, n=2) == 2
    assert await channel.close() == 0
    for ear in ears:
        assert await ear.result(SOON) == ([*range(100), "last"], "channel closed", True)
    with pytest.raises(NoSuchCoro, match="channel news"):
        await channel.deliver("nobody", SOON)
    assert await channel.close() == 0, "it had ended"


@three_ways
async def test_deliver_waits_for_as_many_as_it_is_told(far: Any, coro: Any) -> None:
    channel, _, _ = await services(far, coro)
    waits = asyncio.ensure_future(channel.deliver("m", SOON, n=2))
    with pytest.raises(Timeout, match="0 of the 3 wanted had the message"):
        await channel.deliver("too few", A_MOMENT, n=3)
    ears = [await far.create(listens, channel, coro.ref), Coro(listens, channel, coro.ref)]
    assert await waits == 2
    assert await channel.deliver("none", SOON) == 2
    await ears[0].terminate()
    with pytest.raises(CoroEnded):
        await ears[0].result(SOON)
    while await channel.deliver("fewer", SOON) != 1:
        pass  # the end of a subscriber travels, too
    assert await channel.unsubscribe(ears[1]) == 0
    assert await channel.deliver("nobody", SOON) == 0


def shouted(name: str, message: Any) -> Any:
    if message == "raise":
        raise Mishap(name)
    return None if message == "drop" else f"{name}: {message}!"


@pytest.mark.parametrize("where", ["near", "far"])
@three_ways
async def test_a_transform_changes_drops_and_raises(far: Any, coro: Any, where: str) -> None:
    channel = Channel("news") if where == "near" else (await services(far, coro))[0]
    assert await channel.set_transform(shouted) == 0
    await channel.subscribe(coro)
    assert await channel.deliver("drop", SOON) == 0
    assert await channel.deliver("m", SOON) == 1
    assert await coro.receive(SOON) == "news: m!"
    with pytest.raises(Mishap) as caught:
        await channel.deliver("raise", SOON)
    assert caught.value.args == ("news",)
    assert await channel.set_transform(None) == 0
    channel.send("plain")
    assert await coro.receive(SOON) == "plain"


@three_ways
async def test_channels_subscribe_to_channels_and_a_circle_goes_round_once(far: Any, coro: Any) -> None:
    there, _, _ = await services(far, coro)
    here = Channel("here")
    await there.subscribe(here)
    await here.subscribe(there)
    await here.subscribe(coro)
    far_ear = await far.create(listens, there, coro.ref)
    assert await coro.receive(SOON) == "subscribed"
    assert await there.deliver("m", SOON) == 2
    there.send("n")
    assert [await coro.receive(SOON), await coro.receive(SOON)] == ["m", "n"]
    await there.close()
    assert (await far_ear.result(SOON))[0] == ["m", "n"]
    assert await coro.receive(A_MOMENT, "nothing more") == "nothing more"


def full(to: CoroRef, coro: Any = None) -> Any:
    to.send("here")
    yield coro.suspend()
    while True:
        yield coro.receive()


@three_ways
async def test_send_names_who_has_no_room_and_the_others_get_it(far: Any, coro: Any) -> None:
    channel = Channel("news")
    crowded = await far.create(full, coro.ref)
    assert await coro.receive(SOON) == "here"
    await channel.subscribe(crowded)
    await channel.subscribe(coro)
    for sent in range(MAILBOX_MESSAGES - 1):
        channel.send(sent)
        assert await coro.receive(SOON) == sent
    assert await channel.deliver("the last that has room", 6 * SOON) == 2  # and this side was told so
    assert await coro.receive(0) == "the last that has room"
    with pytest.raises(Overloaded, match=str(crowded)):
        for sent in range(MAILBOX_MESSAGES, 3 * MAILBOX_MESSAGES):
            channel.send(sent)
            assert await coro.receive(SOON) == sent
    assert await coro.receive(0) == sent


@three_ways
async def test_a_channel_is_found_by_its_name_and_only_by_that(far: Any, coro: Any) -> None:
    channel = Channel("weather")
    assert await channel.register() == 0
    with pytest.raises(NameTaken):
        await Channel("weather").register()
    assert await coro.register("weather") == 0, "a coroutine may have the name as well"
    looking = await far.create(locates_channel, "weather")
    assert await looking.result(SOON) == channel
    assert await (await far.create(locates_coroutine, "weather")).result(SOON) == coro.ref
    assert await channel.unregister() == 0
    with pytest.raises(Timeout):
        await (await far.create(locates_channel, "weather", A_MOMENT)).result(SOON)


async def locates_channel(name: str, timeout: float = SOON) -> Channel:
    return await Channel.locate(name, timeout=timeout)


async def locates_coroutine(name: str) -> CoroRef:
    return await Coro.locate(name, timeout=SOON)


@three_ways(ways=TWO_PROCESSES)
async def test_subscribers_are_told_when_the_process_of_a_channel_is_lost(far: Any, coro: Any) -> None:
    channel, _, _ = await services(far, coro)
    await channel.subscribe(coro)
    assert await channel.deliver("m", SOON) == 1
    await far.kill()
    assert await coro.receive(SOON) == "m"
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason) == (channel.ref, "peer lost")
    assert await coro.receive(A_MOMENT, "once") == "once"
    with pytest.raises((PeerLost, Unreachable)):
        await channel.deliver("nobody", SOON)


@three_ways(ways=TWO_PROCESSES)
async def test_subscribers_of_a_lost_process_are_dropped(far: Any, coro: Any) -> None:
    channel = Channel("news")
    await far.create(listens, channel, coro.ref)
    assert await coro.receive(SOON) == "subscribed"
    await channel.subscribe(coro)
    assert await channel.deliver("m", SOON) == 2
    assert await coro.receive(SOON) == "m"
    await far.kill()
    delivered = 2
    while delivered == 2:
        delivered = await channel.deliver("n", SOON)
        assert await coro.receive(SOON) == "n"
    assert delivered == 1


# ------------------------------------------------------------------ queues


def produces_generator(queue: Queue, count: int, to: CoroRef) -> Any:
    for number in range(count):
        yield queue.put(number)
        to.send(number)
    yield queue.close()


async def produces(queue: Queue, count: int, to: CoroRef) -> None:
    for number in range(count):
        await queue.put(number)
        to.send(number)
    await queue.close()


@in_both_styles("producing", produces_generator, produces)
@pytest.mark.parametrize("where", ["near", "far"])
@three_ways
async def test_a_producer_is_never_further_ahead_than_the_queue(far: Any, coro: Any, producing: Any, where: str) -> None:
    queue = Queue(2) if where == "near" else (await services(far, coro))[1]
    there = await far.create(producing, queue, 20, coro.ref)
    taken = 0
    while (said := await coro.receive(A_MOMENT)) is not None:
        assert said < taken + 2
        if said == taken + 1 or said == 19:
            assert await queue.get(SOON) == taken
            taken += 1
    async for number in queue:
        assert number == taken
        taken += 1
    assert taken == 20
    assert await there.result(SOON) is None
    with pytest.raises(QueueClosed):
        await queue.get(SOON)
    with pytest.raises(QueueClosed):
        await queue.put("too late")


@pytest.mark.parametrize("where", ["near", "far"])
@three_ways
async def test_time_that_is_over_leaves_a_queue_as_it_was(far: Any, coro: Any, where: str) -> None:
    queue = Queue(2) if where == "near" else (await services(far, coro))[1]
    for _ in range(3):
        with pytest.raises(Timeout):
            await queue.get(0.01)
    with pytest.raises(Timeout):
        await queue.get(0)
    assert await queue.put("a") == await queue.put("b") == 0
    for _ in range(3):
        with pytest.raises(Timeout):
            await queue.put("never in", 0.01)
    assert await queue.size() == 2
    assert [await queue.get(SOON), await queue.get(0)] == ["a", "b"]
    assert await queue.size() == 0


@pytest.mark.parametrize("where", ["near", "far"])
@three_ways
async def test_who_gives_up_waiting_loses_no_item(far: Any, coro: Any, where: str) -> None:
    queue = Queue(2) if where == "near" else (await services(far, coro))[1]
    got = []
    for number in range(50):
        waits = asyncio.ensure_future(queue.get(SOON))
        await asyncio.sleep(0)
        await queue.put(number)
        waits.cancel()
        try:
            got.append(await waits)
        except asyncio.CancelledError:
            got.append(await queue.get(SOON))
    assert got == list(range(50))
    assert await queue.size() == 0


@three_ways
async def test_waiting_getters_are_served_in_turn_and_told_of_the_end(far: Any, coro: Any) -> None:
    _, queue, _ = await services(far, coro)
    waits = [asyncio.ensure_future(queue.get(SOON)) for _ in range(4)]
    await asyncio.sleep(0)
    for number in range(3):
        await queue.put(number)
    assert [await each for each in waits[:3]] == [0, 1, 2]
    await queue.close()
    with pytest.raises(QueueClosed):
        await waits[3]


@three_ways(ways=TWO_PROCESSES)
async def test_the_loss_of_a_process_frees_its_places_and_fails_its_users(far: Any, coro: Any) -> None:
    _, there, _ = await services(far, coro)
    here = Queue(1)
    taker = await far.create(takes, here)
    while not await taker.is_alive():
        pass
    waits = asyncio.ensure_future(there.get(SOON))
    await asyncio.sleep(0)
    await far.kill()
    with pytest.raises((PeerLost, Unreachable)):
        await waits
    await here.put("kept")
    assert await here.get(SOON) == "kept", "who was lost takes nothing"


async def takes(queue: Queue) -> Any:
    return await queue.get()


# ------------------------------------------------------------------ offered functions


@pytest.mark.parametrize("where", ["near", "far"])
@three_ways
async def test_coroutines_are_created_by_a_function_that_is_offered(far: Any, coro: Any, where: str) -> None:
    rci = RCI(doubled) if where == "near" else (await services(far, coro))[2]
    created = await rci(21, waits=True)
    assert created in coro.children()
    created.send("go on")
    assert await created.result(SOON) == 42
    assert await (await rci(1, add=1)).result(SOON) == 3
    for args, kwargs in [((), {}), ((1, 2), {}), ((1,), {"multiply": 2})]:
        with pytest.raises(BadArguments, match=r"doubled\(number"):
            await rci(*args, **kwargs)
    running = await rci(1)
    await rci.close()
    with pytest.raises(NoSuchCoro, match="rci doubled"):
        await rci(1)
    assert await running.result(SOON) == 2, "what was created goes on"


@three_ways
async def test_a_function_is_found_by_its_name_in_its_own_process_too(far: Any, coro: Any) -> None:
    await far.create(offers, "twice", coro.ref)
    assert await coro.receive(SOON) == "offered"
    rci = await RCI.locate("twice", timeout=SOON)
    assert await (await rci(4)).result(SOON) == 8
    mine = RCI(doubled, "mine")
    await mine.register()
    assert await RCI.locate("mine", timeout=SOON) == mine
    assert await (await far.create(calls, "mine", 5)).result(SOON) == 10


async def offers(name: str, to: CoroRef, coro: Any = None) -> None:
    await RCI(doubled, name).register()
    to.send("offered")
    await coro.suspend()


async def calls(name: str, number: int) -> Any:
    created = await (await RCI.locate(name, timeout=SOON))(number)
    return await created.result()


# ------------------------------------------------------------------ threads


@three_ways
async def test_in_a_thread_a_channel_sends_and_the_rest_is_refused(far: Any, coro: Any) -> None:
    channel, queue, rci = await services(far, coro)
    await channel.subscribe(coro)

    def work() -> None:
        channel.send("from a thread")
        for operation in (queue.put(1), queue.get(), channel.deliver(1), rci(1)):
            with pytest.raises(RuntimeError, match="another thread than the mesh's"):
                asyncio.run(operation)
        with pytest.raises(RuntimeError, match="another thread than the mesh's"):
            Queue(1)

    await asyncio.to_thread(work)
    assert await coro.receive(SOON) == "from a thread"
