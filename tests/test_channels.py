"""Channels among meshes in one process: order, room, ends, losses, circles; and that nothing is kept of what is over."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from discoro import (
    Channel,
    ConfigError,
    CoroRef,
    ExitNotice,
    NoMesh,
    NoSuchCoro,
    Overloaded,
    PackError,
    ProtocolError,
    Queue,
    TooLarge,
    hubs,
    mailbox,
    spreading,
)
from discoro import Timeout as DiscoroTimeout
from discoro.coro import Coro
from discoro.exits import MAX_SUBSCRIPTIONS
from discoro.hubs import Hub
from discoro.mesh import Mesh
from tests.support.meshes import World, simulate, start, until

SOON = 5.0


async def make(mesh: Mesh, name: str = "news", transform: Any = None) -> Channel:
    """A channel of that mesh."""

    async def makes() -> Channel:
        return Channel(name, transform)

    made = await mesh.run(makes)
    assert isinstance(made, Channel)
    return made


async def does(mesh: Mesh, operation: Callable[[], Awaitable[Any]]) -> Any:
    """The result of an operation on a channel, made in that mesh."""

    async def run() -> Any:
        return await operation()

    return await mesh.run(run)


def hub_of(mesh: Mesh, channel: Channel) -> Hub:
    coro = mesh.coro(channel.ref.id)
    assert coro is not None and isinstance(coro.service, Hub)
    return coro.service


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


async def hears(channel: Channel, coro: Any = None) -> list[Any]:
    """Everything until the channel ends, and how it did."""
    await channel.subscribe(coro)
    heard = []
    while not isinstance(message := await coro.receive(), ExitNotice):
        heard.append(message)
    return [*heard, message.reason]


async def ears(channel: Channel, *meshes: Mesh) -> list[Coro]:
    """Subscribers in these meshes."""
    made = [start(mesh, hears, channel) for mesh in meshes]
    hub = next(each for mesh in meshes for each in [mesh.coro(channel.ref.id)] if mesh.me.birth == channel.ref.birth and each)
    await until(lambda: all(ear.ref in hub.service._subscribers for ear in made))  # type: ignore[union-attr]
    return made


def is_empty(mesh: Mesh) -> bool:
    """Whether a mesh keeps nothing of subscribers and requests."""
    exits = mesh._exits
    return not (exits._subscriptions or exits._monitors or len(mesh._requests) or len(mesh.sending.holding))


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("name", ["", "n" * 248, 7, None])
def test_a_name_that_cannot_be_registered_is_refused(name: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(ConfigError, match="the name of a channel is a text of 1 to 247 bytes"):
                await make(a, name)
            assert not a.coros()
            with pytest.raises(ConfigError):
                await does(a, lambda: Channel.locate(name))

    simulate(test)


@pytest.mark.parametrize("transform", ["no function", hears, lambda name, message: (yield)])
def test_a_transform_is_a_plain_function(transform: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            with pytest.raises(ConfigError, match="a transform is a plain function"):
                await make(a, "news", transform)
            channel = await make(a)
            for mesh in (a, b):
                with pytest.raises(ConfigError, match="a transform is a plain function"):
                    await does(mesh, lambda: channel.set_transform(transform))

    simulate(test)


def test_outside_of_a_mesh_there_is_no_channel() -> None:
    with pytest.raises(NoMesh):
        Channel("news")


def test_only_coroutines_and_channels_subscribe() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(a)
            with pytest.raises(ConfigError, match="what subscribes is a coroutine, its reference or a channel; this is 'me'"):
                await does(a, lambda: channel.subscribe("me"))  # type: ignore[arg-type]
            queue = await b.run(lambda_coroutine(lambda: Queue()))
            with pytest.raises(ProtocolError, match="it is a queue"):
                await does(b, lambda: channel.subscribe(queue.ref))
            gone = start(b, lambda_coroutine(lambda: None))
            await gone.stopped()
            with pytest.raises(NoSuchCoro, match=f"{gone.ref} cannot subscribe to channel news"):
                await does(a, lambda: channel.subscribe(gone.ref))
            assert not hub_of(a, channel)._subscribers and not hub_of(a, channel)._joining
            assert is_empty(a) and is_empty(b)

    simulate(test)


def lambda_coroutine(function: Callable[[], Any]) -> Callable[[], Awaitable[Any]]:
    async def run() -> Any:
        return function()

    return run


def test_a_request_that_is_none_breaks_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(a)
            (ear,) = await ears(channel, a)
            for verb, arguments in [
                *[("send", {"trail": trail}) for trail in ("x", [1], [[1]], [[1, "2"]], [[1, 2]] * 33)],
                *[("deliver", arguments) for arguments in ({"id": -1}, {"n": "2"}, {"id": True}, {"trail": 1})],
                *[("subscribe", {}), ("subscribe", {"subscriber": 1}), ("unsubscribe", {}), ("subscribed", {"channel": []})],
                *[("withdraw", {}), ("nonsense", {}), ("hear", {}), ("swap", {})],
            ]:
                with pytest.raises(ProtocolError):
                    await b.request(channel.ref, verb, arguments)
            with pytest.raises(ConfigError):
                await b.request(channel.ref, "register", {"name": 1})
            await does(b, lambda: channel.deliver("m"))
            await does(b, channel.close)
            assert await ear.result_here() == ["m", "channel closed"]

    simulate(test)


# ------------------------------------------------------------------ order, and one copy


def test_what_one_sends_arrives_in_order_everywhere_and_the_end_last() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            channel = await make(b)
            listening = await ears(channel, a, b, c)
            sent = [bytes(700_000 + number) if number % 50 == 0 else number for number in range(300)]

            async def sends() -> None:
                for message in sent:
                    channel.send(message)
                await channel.deliver("last")

            await a.run(sends)
            await does(c, channel.close)
            for ear in listening:
                assert await ear.result_here() == [*sent, "last", "channel closed"]
            assert is_empty(a) and is_empty(b) and is_empty(c)

    simulate(test)


class Counted:
    """Counts how often its instances are packed and opened."""

    packed = opened = 0

    def __reduce__(self) -> Any:
        Counted.packed += 1
        return opened, ()


def opened() -> Counted:
    Counted.opened += 1
    return Counted()


def test_a_message_is_packed_once_and_opened_by_who_receives_it() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            channel = await make(b)
            await ears(channel, a, a, b, b, c, c)
            Counted.packed = Counted.opened = 0
            assert await does(a, lambda: channel.deliver(Counted())) == 6
            await until(lambda: Counted.opened == 6)
            assert Counted.packed == 1
            Counted.packed = Counted.opened = 0
            assert await does(b, lambda: channel.deliver(Counted())) == 6
            await until(lambda: Counted.opened == 4)
            assert Counted.packed == 1, "those of its own process get the object"

    simulate(test)


def test_receivers_of_one_message_do_not_share_what_they_write_to() -> None:
    async def writes(channel: Channel, coro: Any = None) -> bool:
        await channel.subscribe(coro)
        message = await coro.receive()
        untouched = not any(message)
        message[:] = b"\1" * len(message)
        return untouched

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            writing = [start(b, writes, channel) for _ in range(3)]
            assert await does(a, lambda: channel.deliver(bytearray(1 << 20), n=3)) == 3
            assert [await each.result_here() for each in writing] == [True] * 3

    simulate(test)


def test_a_reference_sends_and_delivers_like_the_channel_and_asks_in_vain() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            (ear,) = await ears(channel, b)

            async def uses(ref: CoroRef) -> int:
                ref.send("sent")
                with pytest.raises(ProtocolError):
                    await ref.ask("?")
                return await ref.deliver("delivered")

            for mesh in (a, b):
                assert await mesh.run(uses, channel.ref) == 1
            await does(a, channel.close)
            assert await ear.result_here() == [*["sent", "delivered"] * 2, "channel closed"]

    simulate(test)


def test_a_cut_loses_and_doubles_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            channel = await make(b)
            listening = await ears(channel, a, b, c)

            async def sends() -> None:
                for number in range(400):
                    channel.send(number)
                    if number % 40 == 0:
                        await asyncio.sleep(0.001)
                        world.network.cut("b", "ac"[number % 80 == 0])
                await channel.deliver("last")

            await a.run(sends)
            await does(a, channel.close)
            for ear in listening:
                assert await ear.result_here() == [*range(400), "last", "channel closed"]

    simulate(test)


# ------------------------------------------------------------------ room


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> int:
    """How many messages a mailbox takes."""
    monkeypatch.setattr(mailbox, "MAILBOX_MESSAGES", 10)
    return 10


async def deaf(channel: Channel, coro: Any = None) -> list[Any]:
    """Subscribe, and receive nothing until resumed, then everything."""
    await channel.subscribe(coro)
    await coro.suspend()
    heard = []
    while (message := await coro.receive(1, "nothing")) != "nothing":
        heard.append(message)
    return heard


def test_send_here_names_who_has_no_room_after_all_others_got_it(small: int) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            channel = await make(a)
            full = [start(a, deaf, channel) for _ in range(2)]
            (ear,) = await ears(channel, a)

            async def sends() -> None:
                for number in range(small):
                    channel.send(number)
                    await asyncio.sleep(0)
                with pytest.raises(Overloaded) as caught:
                    channel.send("past it")
                assert all(str(each.ref) in str(caught.value) for each in full)
                assert str(ear.ref) not in str(caught.value)
                await channel.close()

            await a.run(sends)
            assert await ear.result_here() == [*range(small), "past it", "channel closed"]
            for each in full:
                await does(a, each.resume)
                heard = await each.result_here()
                assert heard[:-1] == list(range(small)) and isinstance(heard[-1], ExitNotice), "a notice always has room"

    simulate(test)


def test_what_comes_from_elsewhere_and_finds_no_room_is_counted_and_said(small: int, caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            full = start(b, deaf, channel)
            (ear,) = await ears(channel, b)

            async def sends() -> None:
                for number in range(small + 5):
                    channel.send(number)
                    await asyncio.sleep(0.01)
                await channel.unsubscribe(full.ref)
                await channel.deliver("last")

            with caplog.at_level(logging.WARNING):
                await a.run(sends)
            assert b.lost_messages == 5
            said = [record.getMessage() for record in caplog.records if "missed" in record.getMessage()]
            assert [message.partition("missed ")[2][0] for message in said] == ["1", "2", "4"]
            assert all(str(full.ref) in message for message in said)
            await does(a, channel.close)
            assert (await ear.result_here())[:-2] == list(range(small + 5))
            await does(b, full.resume)
            assert await full.result_here() == list(range(small)), "no notice of a channel that it left"

    simulate(test)


def test_messages_wait_for_room_elsewhere_and_the_end_comes_behind_them(small: int) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(a)
            full = start(b, deaf, channel)
            await until(lambda: full.ref in hub_of(a, channel)._subscribers)

            async def sends() -> None:
                for number in range(3 * small):
                    channel.send(number)
                    await asyncio.sleep(0.01)
                await channel.close()

            await a.run(sends)
            await asyncio.sleep(0.1)
            await does(b, full.resume)
            *heard, notice = await full.result_here()
            assert heard == list(range(3 * small))
            assert (notice.ref, notice.reason) == (channel.ref, "channel closed")
            await until(lambda: is_empty(a) and is_empty(b))

    simulate(test)


@pytest.mark.parametrize("deliverer", ["a", "b", "c"])
@pytest.mark.parametrize("home", ["a", "b"])
def test_deliver_waits_for_room_and_says_who_has_none(small: int, home: str, deliverer: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            meshes = {"a": a, "b": b, "c": c}
            by, channel = meshes[deliverer], await make(meshes[home])
            hub = hub_of(meshes[home], channel)
            full, roomy = start(b, deaf, channel), start(c, hears, channel)
            await until(lambda: len(hub._subscribers) == 2)
            for _ in range(small):
                assert await does(by, lambda: channel.deliver("m", SOON)) == 2
            with pytest.raises(DiscoroTimeout, match=rf"channel news .* after 1 s 1 had the message; not yet: {full.ref}"):
                await does(by, lambda: channel.deliver("too late", 1))
            assert not hub._deliveries and not hub._asked
            waiting = asyncio.ensure_future(does(by, lambda: channel.deliver("waits", SOON)))
            await asyncio.sleep(1)
            assert not waiting.done()
            await does(a, full.resume)
            assert await waiting == 2
            assert await full.result_here() == [*["m"] * small, "waits"]
            await does(by, channel.close)
            assert await roomy.result_here() == [*["m"] * small, "too late", "waits", "channel closed"]
            await until(lambda: all(map(is_empty, meshes.values())))

    simulate(test)


# ------------------------------------------------------------------ deliver to as many


@pytest.mark.parametrize("deliverer", ["a", "b"])
def test_one_who_comes_gets_it_where_one_who_had_it_coming_ends(small: int, deliverer: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(a)
            by, full = {"a": a, "b": b}[deliverer], start(a, deaf, channel)
            for _ in range(small):
                await does(a, lambda: channel.deliver("m", SOON, n=1))
            waiting = asyncio.ensure_future(does(by, lambda: channel.deliver("n", SOON, n=1)))
            await asyncio.sleep(0.1)
            (ear,) = await ears(channel, a)
            await asyncio.sleep(0.1)
            assert not waiting.done(), "it waits for the one that was there"
            full.stop("terminated")
            assert await waiting == 1
            await does(a, channel.close)
            assert await ear.result_here() == ["n", "channel closed"]

    simulate(test)


@pytest.mark.parametrize("end", ["close", "terminate", "leave", "cancel"])
def test_a_deliver_that_waits_ends_with_its_channel_and_its_deliverer(end: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            channel = await make(a)
            async with world.mesh("b", a) as b:
                waiting = start(b, delivers, channel)
                here = start(a, delivers, channel)
                await until(lambda: len(hub_of(a, channel)._deliveries) == 2)
                match end:
                    case "close":
                        await does(b, channel.close)
                    case "terminate":
                        await does(b, channel.ref.terminate)
                    case "cancel":
                        waiting.stop("terminated")
                        here.stop("terminated")
                        await until(lambda: not hub_of(a, channel)._deliveries)
                if end in ("close", "terminate"):
                    for each in (waiting, here):
                        assert await each.result_here() == "NoSuchCoro"
            if end == "leave":
                await until(lambda: len(hub_of(a, channel)._deliveries) == 1)
                assert not hub_of(a, channel)._asked

    simulate(test)


async def delivers(channel: Channel) -> str:
    try:
        await channel.deliver("m", n=1)
    except NoSuchCoro as error:
        assert "0 of the 1 wanted had the message" in str(error)
        return type(error).__name__
    return "delivered"


def test_how_many_had_it_is_not_waited_for_where_nobody_answers() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            with world.network.partition("a", "b"):
                began = asyncio.get_running_loop().time()
                with pytest.raises(DiscoroTimeout, match="channel news"):
                    await does(a, lambda: channel.deliver("m", 1))
                assert asyncio.get_running_loop().time() - began == pytest.approx(2, abs=0.1)

    simulate(test)


def test_who_delivers_to_nobody_again_and_again_lets_others_run() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            channel = await make(a)

            async def delivers_until_heard() -> None:
                start(a, once, channel)
                while await channel.deliver("m") == 0:
                    pass

            await a.run(delivers_until_heard)

    simulate(test)


# ------------------------------------------------------------------ transforms


def test_a_transform_that_raises_for_a_message_from_elsewhere_is_said_and_nobody_else_notices(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def picky(name: str, message: Any) -> Any:
        if message == 13:
            raise ValueError("unlucky")
        return message

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b, "news", picky)
            (ear,) = await ears(channel, b)

            async def sends() -> None:
                for number in range(20):
                    channel.send(number)
                with pytest.raises(ValueError, match="unlucky"):
                    await channel.deliver(13)
                assert await channel.deliver("last") == 1

            with caplog.at_level(logging.WARNING):
                await a.run(sends)
            (said,) = [record for record in caplog.records if "unlucky" in record.getMessage()]
            assert "channel news" in said.getMessage() and b.lost_messages == 1
            with pytest.raises(ValueError, match="unlucky"):
                await does(b, lambda_coroutine(lambda: channel.send(13)))
            await does(a, channel.close)
            assert await ear.result_here() == [*range(13), *range(14, 20), "last", "channel closed"]

    simulate(test)


def test_what_cannot_travel_goes_to_nobody() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(b)
            near, far = await ears(channel, b, a)
            unpackable = [asyncio.get_running_loop().create_future()]

            async def sends() -> None:
                with pytest.raises(PackError):
                    channel.send(unpackable)
                with pytest.raises(PackError):
                    await channel.deliver(unpackable)
                await channel.unsubscribe(far.ref)
                channel.send(unpackable)
                await channel.close()

            await b.run(sends)
            assert await near.result_here() == [unpackable, "channel closed"]
            assert (await near.result_here())[0] is unpackable

    simulate(test)


# ------------------------------------------------------------------ channels behind channels


@pytest.mark.parametrize("homes", ["aaa", "aba", "abc"])
def test_a_circle_of_three_goes_round_once_whoever_begins(homes: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            meshes = {"a": a, "b": b, "c": c}
            circle = [await make(meshes[home], f"n{number}") for number, home in enumerate(homes)]
            for number, channel in enumerate(circle):
                await does(a, partial(channel.subscribe, circle[number - 1]))
            await does(a, lambda: circle[0].subscribe(circle[0]))
            listening = [(await ears(channel, meshes[home]))[0] for channel, home in zip(circle, homes, strict=True)]
            for number, channel in enumerate(circle):
                assert await does(a, partial(channel.deliver, number, SOON)) == 3
                await does(a, lambda_coroutine(partial(channel.send, f"s{number}")))
                await asyncio.sleep(0.1)
            for channel in circle:
                await does(a, channel.close)
            for ear in listening:
                assert await ear.result_here() == [0, "s0", 1, "s1", 2, "s2", "channel closed"]
            await until(lambda: all(map(is_empty, meshes.values())))

    simulate(test)


@pytest.mark.parametrize("homes", ["a", "ab"])
def test_a_message_goes_through_so_many_channels_and_no_further(
    homes: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(spreading, "MAX_TRAIL", 5)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            meshes = {"a": a, "b": b}
            chain = [await make(meshes[homes[number % len(homes)]], f"n{number}") for number in range(7)]
            for number, channel in enumerate(chain[1:]):
                await does(a, partial(chain[number].subscribe, channel))
            listening = [(await ears(each, meshes[homes[number % len(homes)]]))[0] for number, each in enumerate(chain)]
            with pytest.raises(TooLarge, match="through 5 channels"):
                await does(a, partial(chain[0].deliver, "m", SOON))
            if homes == "a":
                with pytest.raises(TooLarge, match="through 5 channels"):
                    await does(a, lambda_coroutine(partial(chain[0].send, "n")))
            else:
                with caplog.at_level(logging.WARNING):
                    await does(a, lambda_coroutine(partial(chain[0].send, "n")))
                    await asyncio.sleep(0.1)
                assert "through 5 channels" in caplog.text
            for channel in chain:
                await does(a, channel.close)
            heard = [await ear.result_here() for ear in listening]
            assert heard == [["m", "n", "channel closed"]] * 5 + [["channel closed"]] * 2

    simulate(test)


def test_a_transform_further_on_fails_alone_and_changes_only_what_is_behind_it() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            first, near, far = await make(a, "first"), await make(a, "near", refuses), await make(b, "far", refuses)
            for channel in (near, far):
                await does(a, partial(first.subscribe, channel))
            (ear,), (behind,), (beyond,) = await ears(first, a), await ears(near, a), await ears(far, b)
            assert await does(a, lambda: first.deliver("m")) == 3
            for _ in range(2):
                with pytest.raises(ValueError, match="refused by"):
                    await does(a, lambda: first.deliver("bad"))
            with pytest.raises(ValueError, match="refused by near"):
                await does(a, lambda_coroutine(lambda: first.send("bad")))
            await does(a, lambda: far.set_transform(None))
            await does(b, lambda: near.set_transform(None))
            assert await does(a, lambda: first.deliver("bad")) == 3
            for channel in (near, far, first):
                await does(a, channel.close)
            assert await ear.result_here() == ["m", *["bad"] * 4, "channel closed"]
            assert await behind.result_here() == ["m by near", "bad", "channel closed"]
            assert await beyond.result_here() == ["m by far", "bad", "channel closed"]

    simulate(test)


def refuses(name: str, message: Any) -> Any:
    if message == "bad":
        raise ValueError(f"refused by {name}")
    return f"{message} by {name}"


def test_a_channel_behind_another_is_dropped_when_it_ends_and_outlives_it() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            first, near, far, last = [await make(mesh, "n") for mesh in (a, a, b, b)]
            for channel in (near, far, last):
                await does(b, partial(first.subscribe, channel))
            (ear,) = await ears(last, b)
            assert await does(b, lambda: first.deliver("m")) == 1
            await does(b, near.close)
            await does(a, far.close)
            await until(lambda: list(hub_of(a, first)._subscribers) == [last.ref])
            await does(b, first.close)
            assert await does(a, lambda: last.deliver("alone")) == 1
            await does(a, last.close)
            assert await ear.result_here() == ["m", "alone", "channel closed"]
            await until(lambda: is_empty(a) and is_empty(b))

    simulate(test)


# ------------------------------------------------------------------ subscribers that come and go


def test_subscribers_that_end_are_dropped_and_nothing_is_kept_of_them() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(a)
            for _ in range(50):
                for mesh in (a, b):
                    start(mesh, once, channel)
                assert await does(b, lambda: channel.deliver("m", SOON, n=2)) == 2
                await until(lambda: not hub_of(a, channel)._subscribers)
            await until(lambda: is_empty(a) and is_empty(b))
            assert not a._exits._observed and not b._exits._observed

    simulate(test)


async def once(channel: Channel, coro: Any = None) -> Any:
    await channel.subscribe(coro)
    return await coro.receive()


def test_subscribing_twice_is_once_and_unsubscribing_ends_it() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await make(a)
            subscriber = start(b, collects)
            twice = [does(mesh, lambda: channel.subscribe(subscriber.ref)) for mesh in (a, b, b)]
            assert await asyncio.gather(*twice) == [0, 0, 0]
            assert await does(a, lambda: channel.deliver("once")) == 1
            for mesh in (a, b, b):
                assert await does(mesh, lambda: channel.unsubscribe(subscriber)) == 0
            assert await does(b, lambda: channel.deliver("nobody")) == 0
            assert await does(b, lambda: channel.subscribe(subscriber)) == 0
            assert await does(b, lambda: channel.deliver("again")) == 1
            assert await does(a, lambda: channel.unsubscribe(subscriber)) == 0
            await does(a, channel.close)
            with pytest.raises(NoSuchCoro, match="channel news .* has ended"):
                await does(b, lambda: channel.unsubscribe(subscriber))
            assert is_empty(a) and is_empty(b)
            assert await subscriber.result_here() == ["once", "again"], "and no notice"

    simulate(test)


async def collects(coro: Any = None) -> list[Any]:
    """Until nothing came for a minute."""
    heard = []
    while (message := await coro.receive(60, "nothing")) != "nothing":
        heard.append(message)
    return heard


def test_a_subscription_given_up_in_time_comes_to_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("b", c) as b, world.mesh("a", b, c) as a:
            channel, subscriber = await make(b), start(c, collects)
            with world.network.partition("b", "c"):
                with pytest.raises(DiscoroTimeout, match="did not answer subscribe in 1 s"):
                    await does(a, lambda: channel.subscribe(subscriber.ref, 1))
                await asyncio.sleep(0.5)
            await asyncio.sleep(1)
            assert not hub_of(b, channel)._subscribers and not hub_of(b, channel)._joining
            assert await does(a, lambda: channel.deliver("nobody")) == 0
            await does(a, channel.close)
            assert await subscriber.result_here() == []
            assert is_empty(a) and is_empty(b) and is_empty(c)

    simulate(test)


def test_past_its_number_no_subscriber_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_SUBSCRIBERS", 3)

    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            channel = await make(a)
            subscribers = [start(a, waits) for _ in range(4)]
            for each in subscribers[:3]:
                await does(a, partial(channel.subscribe, each))
            with pytest.raises(Overloaded, match="has 3 subscribers"):
                await does(a, lambda: channel.subscribe(subscribers[3]))
            subscribers[0].stop("terminated")
            await until(lambda: len(hub_of(a, channel)._subscribers) == 2)
            assert await does(a, lambda: channel.subscribe(subscribers[3])) == 0

    simulate(test)


def test_one_coroutine_subscribes_to_so_many_channels() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            subscriber = start(a, waits)
            channels = [await make(a, f"n{number}") for number in range(MAX_SUBSCRIPTIONS + 1)]
            for channel in channels[:-1]:
                await does(a, partial(channel.subscribe, subscriber))
            with pytest.raises(Overloaded, match="subscribes to 1000 channels"):
                await does(a, lambda: channels[-1].subscribe(subscriber))
            await does(a, channels[0].close)
            assert await does(a, lambda: channels[-1].subscribe(subscriber)) == 0

    simulate(test)


def test_so_many_messages_wait_to_be_delivered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hubs, "MAX_DELIVERIES", 2)

    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            channel = await make(a)
            waiting = [asyncio.ensure_future(does(a, lambda: channel.deliver("m", SOON, n=1))) for _ in range(2)]
            await until(lambda: len(hub_of(a, channel)._deliveries) == 2)
            with pytest.raises(Overloaded, match="waits with 2 messages"):
                await does(a, lambda: channel.deliver("m"))
            await ears(channel, a)
            assert await asyncio.gather(*waiting) == [1, 1]

    simulate(test)


# ------------------------------------------------------------------ ends and losses


@pytest.mark.parametrize("parent", ["channel", "subscriber"])
def test_out_of_reach_for_too_long_both_sides_let_go_and_subscribe_anew(parent: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel, subscriber = await make(a), start(b, hears_twice)
            subscriber.ref  # noqa: B018
            await does(b, lambda: subscriber.deliver(channel))
            await until(lambda: subscriber.ref in hub_of(a, channel)._subscribers)
            with world.network.partition("a", "b"):
                await asyncio.sleep(30)
                assert not hub_of(a, channel)._subscribers
                await asyncio.sleep(1)
            await asyncio.sleep(30)
            await does(b if parent == "subscriber" else a, lambda: channel.subscribe(subscriber.ref))
            assert await does(a, lambda: channel.deliver("again", SOON)) == 1
            await does(a, channel.close)
            assert await subscriber.result_here() == ["peer lost", "again", "channel closed"]
            await until(lambda: is_empty(a) and is_empty(b))

    simulate(test)


async def hears_twice(coro: Any = None) -> list[Any]:
    """Everything until two notices came."""
    channel = await coro.receive()
    await channel.subscribe(coro)
    heard: list[Any] = []
    notices = 0
    while notices < 2:
        message = await coro.receive()
        if isinstance(message, ExitNotice):
            assert message.ref == channel.ref
            notices += 1
            message = message.reason
        heard.append(message)
    return heard


@pytest.mark.parametrize("where", ["here", "there"])
def test_each_way_to_end_is_told_once_with_its_reason(where: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b:
            reasons = []
            async with world.mesh("a", b) as a:
                for end in (Channel.close, lambda channel: channel.ref.terminate(), None):
                    channel = await make(a)
                    listening = start(a if where == "here" else b, hears, channel)
                    await until(lambda channel=channel: hub_of(a, channel)._subscribers)  # type: ignore[misc]
                    if end is not None:
                        await does(b, partial(end, channel))
                        reasons += await listening.result_here()
            reasons += await listening.result_here() if where == "there" else ["terminated"]
            assert reasons == ["channel closed", "terminated", "terminated"]

    simulate(test)


def test_a_channel_is_a_value_and_no_coroutine_of_its_maker() -> None:
    async def makes(coro: Any = None) -> Channel:
        channel, other = Channel("news"), Channel("news")
        assert coro.children() == []
        assert channel == channel and channel != other and len({channel, other, channel}) == 2
        assert str(channel) == f"channel news ({channel.ref})" and repr(channel) == f"<Channel news {channel.ref}>"
        return channel

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            maker = start(a, makes)
            channel = await does(b, maker.ref.result)
            assert channel == await maker.result_here(), "as it travelled"
            assert await does(b, lambda: channel.deliver("m")) == 0, "it outlives the coroutine that made it"
            assert await does(a, lambda: a.join(1)) == 0, "and nobody waits for it"

    simulate(test)
