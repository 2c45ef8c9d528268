"""Channels where they live: what is given up, doubled or late there; see test_channels.py for what users see of them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from discoro import (
    Channel,
    ConfigError,
    ExitNotice,
    NoSuchCoro,
    Overloaded,
    ProtocolError,
    hubs,
    mailbox,
    payload,
)
from discoro import Timeout as DiscoroTimeout
from discoro.coro import Coro
from discoro.hubs import Hub
from discoro.mesh import Mesh
from discoro.outcomes import CLOSED
from tests.support.meshes import World, simulate, start, until


@pytest.fixture(autouse=True)
def no_bug(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing of all this is a bug to whoever answers."""
    yield
    assert not [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


async def make(mesh: Mesh, name: str = "news") -> Channel:
    async def makes() -> Channel:
        return Channel(name)

    made = await mesh.run(makes)
    assert isinstance(made, Channel)
    return made


async def does(mesh: Mesh, operation: Any, *args: Any) -> Any:
    async def run() -> Any:
        return await operation(*args)

    return await mesh.run(run)


def begins(mesh: Mesh, operation: Any, *args: Any) -> Coro:
    async def run() -> Any:
        return await operation(*args)

    return start(mesh, run)


def hub_of(mesh: Mesh, channel: Channel) -> Hub:
    coro = mesh.coro(channel.ref.id)
    assert coro is not None and isinstance(coro.service, Hub)
    return coro.service


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


async def hears(coro: Any = None) -> list[Any]:
    """Everything that comes until nothing did for a minute; the reason in place of a notice."""
    heard: list[Any] = []
    while (message := await coro.receive(60, "nothing")) != "nothing":
        heard.append(message.reason if isinstance(message, ExitNotice) else message)
    return heard


def fill(coro: Coro) -> None:
    while not coro.mailbox.full:
        coro.mailbox.put("filler")


# ------------------------------------------------------------------ deliveries that are given up


@pytest.mark.parametrize("how", ["cancel", "timeout"])
def test_a_deliver_that_arrives_together_with_its_withdrawal_leaves_nothing(how: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            with world.network.partition("a", "b"):
                trying = begins(a, channel.deliver, "m", 1 if how == "timeout" else None, 1)
                await asyncio.sleep(0.1)
                if how == "cancel":
                    trying.stop("terminated")
                await trying.stopped()
            await asyncio.sleep(2)
            hub = hub_of(b, channel)
            assert not hub._deliveries and not hub._asked

    simulate(test)


def test_a_deliver_through_another_channel_is_withdrawn_there_too() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            first, second, full = await make(a, "first"), await make(b, "second"), start(b, waits)
            await does(a, first.subscribe, second)
            await does(b, second.subscribe, full)
            fill(full)
            for apart in (False, True):
                if apart:
                    with world.network.partition("a", "b"), pytest.raises(DiscoroTimeout, match=f"not yet: {second.ref}"):
                        await does(a, first.deliver, "m", 1)
                else:
                    with pytest.raises(DiscoroTimeout, match=f"0 had the message; not yet: {second.ref}"):
                        await does(a, first.deliver, "m", 1)
                await asyncio.sleep(2)
                assert not hub_of(a, first)._deliveries and not hub_of(b, second)._deliveries

    simulate(test)


def test_a_number_that_waits_already_is_refused_and_the_first_goes_on() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            first = asyncio.ensure_future(a.request(channel.ref, "deliver", {"id": 7, "n": 1}, payload.pack("m")))
            await until(lambda: bool(hub_of(b, channel)._deliveries))
            with pytest.raises(ProtocolError, match="a number that waits already"):
                await a.request(channel.ref, "deliver", {"id": 7, "n": 1}, payload.pack("m"))
            subscriber = start(b, hears)
            await does(b, channel.subscribe, subscriber)
            assert (await first).value == 1
            assert await subscriber.result_here() == ["m"]

    simulate(test)


def test_who_withdraws_what_never_was_or_is_somebody_else_s_changes_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            channel = await make(b)
            first = asyncio.ensure_future(a.request(channel.ref, "deliver", {"id": 7, "n": 1}, payload.pack("m")))
            await until(lambda: bool(hub_of(b, channel)._deliveries))
            for mesh, number in [(a, 8), (b, 7), (c, 7)]:
                assert (await mesh.request(channel.ref, "withdraw", {"id": number})).value == 0
            assert not first.done()
            for _ in range(2):
                assert (await a.request(channel.ref, "withdraw", {"id": 7})).value == 0
            with pytest.raises(DiscoroTimeout, match="0 of the 1 wanted had the message"):
                await first

    simulate(test)


@pytest.mark.parametrize("home", ["a", "b"])
@pytest.mark.parametrize("n", [-1, "2", 1.5, None, True])
def test_n_is_a_number_of_coroutines_wherever_the_channel_is(n: Any, home: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make({"a": a, "b": b}[home])
            subscriber = start(a, waits)
            await does(a, channel.subscribe, subscriber)
            with pytest.raises(ConfigError, match="n is a number of coroutines, 0 or more"):
                await does(a, channel.deliver, "m", 1, n)
            assert not subscriber.mailbox, "nobody got it"

    simulate(test)


@pytest.mark.parametrize("end", ["cancel", "timeout", "close", "full one ends", "sub-channel closes", "lost"])
def test_one_message_to_all_kinds_of_subscribers_ends_once_however_it_ends(end: str) -> None:
    """a delivers to a channel of b, with subscribers in all three, a channel of b and one of c behind it; one is full."""

    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            top, near, far = await make(b, "top"), await make(b, "near"), await make(c, "far")
            for channel in (near, far):
                await does(a, top.subscribe, channel)
            listening = [start(mesh, hears) for mesh in (a, b, c, b, c)]
            for ear, channel in zip(listening, (top, top, top, near, far), strict=True):
                await does(a, channel.subscribe, ear)
            full = start(c, waits)
            await does(a, far.subscribe, full)
            fill(full)
            trying = begins(a, top.deliver, "m", 5)
            await until(lambda: len(hub_of(c, far)._deliveries) == 1)
            match end:
                case "cancel":
                    trying.stop("terminated")
                    await trying.stopped()
                case "timeout":
                    with pytest.raises(DiscoroTimeout, match=f"after 5 s 4 had the message; not yet: {far.ref}"):
                        await trying.result_here()
                case "close":
                    await does(c, top.close)
                    with pytest.raises(NoSuchCoro, match=r"channel closed\), and 4 had the message"):
                        await trying.result_here()
                case "full one ends":
                    full.stop("terminated")
                    assert await trying.result_here() == 5
                case "sub-channel closes":
                    await does(a, far.close)
                    assert await trying.result_here() == 4
                case "lost":
                    with world.network.partition("b", "c"):
                        with pytest.raises(DiscoroTimeout):
                            await trying.result_here()
                        await asyncio.sleep(30)
            await asyncio.sleep(5)
            for mesh, channel in [(b, top), (b, near), (c, far)]:
                coro = mesh.coro(channel.ref.id)
                if coro is not None:
                    assert isinstance(coro.service, Hub) and not coro.service._deliveries and not coro.service._asked
            heard = [await ear.result_here() for ear in listening]
            assert [each[:1] for each in heard] == [["m"]] * 5
            assert all(len(each) == len(set(each)) for each in heard), heard

    simulate(test)


# ------------------------------------------------------------------ ways that meet again


@pytest.mark.parametrize("homes", ["aaaa", "abca", "abbc", "abab"])
def test_where_two_ways_lead_to_a_subscriber_it_comes_by_each(homes: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            at = {"a": a, "b": b, "c": c}
            top, left, right, bottom = [await make(at[home], f"n{number}") for number, home in enumerate(homes)]
            for upper, lower in [(top, left), (top, right), (left, bottom), (right, bottom)]:
                await does(a, upper.subscribe, lower)
            subscriber = start(at[homes[3]], hears)
            await does(a, bottom.subscribe, subscriber)
            assert await does(a, top.deliver, "m", 5) == 2
            assert await does(a, top.deliver, "n", 5, 2) == 2
            assert await subscriber.result_here() == ["m", "m", "n", "n"]

    simulate(test)


# ------------------------------------------------------------------ subscribers at the edge


def test_who_subscribes_already_may_say_so_again_where_no_other_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_SUBSCRIBERS", 1)

    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            channel, first, second = await make(a), start(a, waits), start(a, waits)
            for _ in range(2):
                assert await does(a, channel.subscribe, first) == 0
            with pytest.raises(Overloaded, match="has 1 subscribers"):
                await does(a, channel.subscribe, second)

    simulate(test)


def test_a_channel_that_ends_while_another_is_to_subscribe_leaves_no_trace_there() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            first, second = await make(a, "first"), await make(b, "second")
            with world.network.delaying(0.1):
                subscribing = begins(a, first.subscribe, second)
                await until(lambda: second.ref.id in b._exits._subscriptions)
                await does(a, first.close)
                with pytest.raises(NoSuchCoro, match="channel first .* has ended"):
                    await subscribing.result_here()
                await until(lambda: not b._exits._subscriptions)

    simulate(test)


def test_subscribed_unsubscribed_and_subscribed_again_in_one_breath_is_subscribed() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            channel, subscriber = await make(b), start(c, hears)

            async def hurries() -> None:
                operations = (channel.subscribe, channel.unsubscribe, channel.subscribe)
                with world.network.delaying(0.05):
                    assert await asyncio.gather(*[operation(subscriber.ref) for operation in operations]) == [0, 0, 0]

            await a.run(hurries)
            assert await does(a, channel.deliver, "m") == 1
            await does(a, channel.close)
            assert await subscriber.result_here() == ["m", "channel closed"]

    simulate(test)


# ------------------------------------------------------------------ the end comes last, once


@pytest.mark.parametrize("where", ["a", "b"])
def test_a_channel_is_part_of_the_computation_that_made_it_and_its_end_comes_behind_held_messages(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MESSAGES", 5)

    async def makes() -> Channel:
        return Channel("news")

    async def starts_late(coro: Any = None) -> Any:
        await coro.suspend()
        return await hears(coro)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            maker = Coro.start(a, makes, namespace=payload.Namespace("a computation"))
            channel = await maker.result_here()
            home, subscriber = a.coro(channel.ref.id), start({"a": a, "b": b}[where], starts_late)
            assert home is not None and home.namespace is maker.namespace
            await does(a, channel.subscribe, subscriber)
            count = 5 if where == "a" else 12  # here there is room or not; there, what finds none is held back

            async def sends() -> None:
                for number in range(count):
                    channel.send(number)
                    await asyncio.sleep(0.01)

            await a.run(sends)
            home.stop(CLOSED)
            await home.stopped()
            await asyncio.sleep(1)
            await does(a, partial(subscriber.ref.resume))
            assert await subscriber.result_here() == [*range(count), "computation closed"]
            with pytest.raises(NoSuchCoro):
                await does(b, channel.deliver, "nobody")

    simulate(test)


def test_one_channel_lost_and_met_again_is_told_once() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel, subscriber = await make(b), start(a, hears)
            await does(a, channel.subscribe, subscriber)
            with world.network.partition("a", "b"):
                await asyncio.sleep(30)
            await until(lambda: a.linked(b.me.birth) and not hub_of(b, channel)._subscribers)
            assert await does(a, channel.deliver, "nobody") == 0
            await does(a, channel.close)
            assert await subscriber.result_here() == ["peer lost"]

    simulate(test)


# ------------------------------------------------------------------ what only coroutines do


@pytest.mark.parametrize("home", ["a", "b"])
@pytest.mark.parametrize("verb", ["resume", "throw", "swap"])
def test_a_channel_is_neither_woken_nor_thrown_into_nor_swapped_wherever_it_is(verb: str, home: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make({"a": a, "b": b}[home])
            operation = {
                "resume": channel.ref.resume,
                "throw": partial(channel.ref.throw, ValueError()),
                "swap": partial(channel.ref.hot_swap, waits),
            }[verb]
            with pytest.raises(ProtocolError, match=rf"channel news \(.*\) does not answer '{verb}'"):
                await does(a, operation)
            assert await does(b, channel.deliver, "m") == 0, "it lives"

    simulate(test)
