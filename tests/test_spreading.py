"""One message through channels, without any channel: trails that are none, packing once, and what a delivery counts."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from discoro import CoroRef, NoSuchCoro, Overloaded, PackError, PeerLost, ProtocolError, TooLarge, UnpackError, payload
from discoro import Timeout as DiscoroTimeout
from discoro.requests import Incoming
from discoro.spreading import MAX_TRAIL, NAMED, Delivery, Load, may_pass, trail_in
from tests.support import moved_clock


def ref(number: int, birth: int = 1) -> CoroRef:
    return CoroRef("node", 4711, birth, number, "ada")


def incoming(**arguments: Any) -> Incoming:
    return Incoming(None, 1, "send", arguments, (), lambda *answer: None)  # type: ignore[arg-type]


# ------------------------------------------------------------------ trails


@pytest.mark.parametrize(
    "trail", [None, 7, "ab", {1: 2}, [1], [[1]], [[1, 2, 3]], [["1", 2]], [[1, 2.0]], [[1, None]], [[1, 2]] * (MAX_TRAIL + 1)]
)
def test_what_is_no_trail_breaks_the_protocol(trail: Any) -> None:
    with pytest.raises(ProtocolError, match="send with a trail that is none"):
        trail_in(incoming(trail=trail))


def test_a_trail_goes_where_it_has_not_been_and_not_on_for_ever() -> None:
    assert trail_in(incoming()) == ()
    trail = trail_in(incoming(trail=[[1, 5], (2, 6)]))
    assert trail == ((1, 5), (2, 6))
    assert not may_pass(ref(5, 1), trail) and not may_pass(ref(6, 2), trail)
    assert may_pass(ref(6, 1), trail) and may_pass(ref(5, 2), trail), "another process's"
    longest = trail_in(incoming(trail=[[1, number] for number in range(MAX_TRAIL)]))
    assert not may_pass(ref(3), longest), "where it has been is no error, however long it is"
    with pytest.raises(TooLarge, match=f"came through {MAX_TRAIL} channels, one after the other, .* to ada/4711/99"):
        may_pass(ref(99), longest)


# ------------------------------------------------------------------ loads


class Counting:
    packed = 0

    def __reduce__(self) -> Any:
        Counting.packed += 1
        return int, (7,)


def test_an_object_is_packed_at_most_once_and_opened_as_itself() -> None:
    Counting.packed, message = 0, Counting()
    load = Load(message)
    assert load.opened(None) is message and Counting.packed == 0
    assert load.packed() is load.packed() and Counting.packed == 1
    assert payload.unpack(load.packed()) == 7
    assert Load(None).is_object, "None is a message like any other"


def test_a_body_is_opened_anew_by_each_and_written_to_by_none() -> None:
    body = [memoryview(bytearray(part)) for part in payload.pack(bytearray(100_000))]
    load = Load(body=body)
    assert load.packed() is load.packed()
    first, second = load.opened(None), load.opened(None)
    first[0] = 1
    assert second[0] == 0 and load.opened(None)[0] == 0
    assert all(memoryview(part).readonly for part in load.packed())


def test_what_cannot_be_packed_or_opened_says_so() -> None:
    with pytest.raises(PackError):
        Load(x for x in ()).packed()
    for body in ((), (b"",), (b"junk",)):
        with pytest.raises(UnpackError):
            Load(body=body).opened(None)


# ------------------------------------------------------------------ deliveries


class Hub:
    """A channel of a few lines: whom it dropped, what it forgot, and who may still come."""

    def __init__(self) -> None:
        self.dropped: list[CoroRef] = []
        self.forgotten: list[Delivery] = []
        self.coming: list[tuple[CoroRef, Any]] = []

    def drop(self, ref: CoroRef) -> bool:
        self.dropped.append(ref)
        return True

    def fill(self, delivery: Delivery) -> None:
        while delivery.is_short and self.coming:
            whom, reaching = self.coming.pop(0)
            delivery.wait_for(self, whom, reaching)

    def forget(self, delivery: Delivery) -> None:
        self.forgotten.append(delivery)


async def gives(count: int, after: float = 1.0) -> int:
    await asyncio.sleep(after)
    return count


async def raises(error: Exception, after: float = 1.0) -> int:
    await asyncio.sleep(after)
    raise error


def with_hub(test: Callable[[Hub], Awaitable[Any]]) -> None:
    moved_clock.run(lambda: test(Hub()))


def test_it_counts_all_who_have_it_those_behind_channels_too() -> None:
    async def test(hub: Hub) -> None:
        delivery = Delivery(hub, 0)
        assert await delivery.over() == 0, "nobody is everybody"
        delivery.reached(2)
        delivery.wait_for(hub, ref(1), gives(1, 3))
        delivery.wait_for(hub, ref(2), gives(4, 1))
        began = asyncio.get_running_loop().time()
        assert await delivery.over() == 7
        assert asyncio.get_running_loop().time() == began + 3

    with_hub(test)


@pytest.mark.parametrize("error", [NoSuchCoro("ended"), PeerLost("lost")])
def test_who_is_gone_is_dropped_and_no_error(error: Exception) -> None:
    async def test(hub: Hub) -> None:
        delivery = Delivery(hub, 0)
        delivery.wait_for(hub, ref(1), raises(error))
        delivery.wait_for(hub, ref(2), gives(1))
        assert await delivery.over() == 1
        assert hub.dropped == [ref(1)]

    with_hub(test)


@pytest.mark.parametrize("error", [Overloaded("no room"), ValueError("of a transform")])
def test_the_first_error_is_raised_once_the_others_have_it(error: Exception) -> None:
    async def test(hub: Hub) -> None:
        delivery, last = Delivery(hub, 5), asyncio.ensure_future(gives(1, 3))
        delivery.wait_for(hub, ref(1), raises(error))
        delivery.wait_for(hub, ref(2), raises(OverflowError(), 2))
        delivery.wait_for(hub, ref(3), given(last))
        with pytest.raises(type(error)) as caught:
            await delivery.over()
        assert caught.value is error and last.done() and not hub.dropped

    with_hub(test)


async def given(last: asyncio.Future[int]) -> int:
    return await last


def test_short_it_takes_those_who_come_until_it_has_enough() -> None:
    async def test(hub: Hub) -> None:
        delivery = Delivery(hub, 3)
        delivery.reached(1)
        assert delivery.is_short
        delivery.wait_for(hub, ref(1), raises(NoSuchCoro("ended")))
        assert delivery.is_short
        delivery.wait_for(hub, ref(2), gives(1, 2))
        assert not delivery.is_short, "so many are on their way"
        hub.coming = [(ref(3), gives(1)), (ref(4), gives(1))]
        assert await delivery.over() == 3
        assert [whom for whom, _ in hub.coming] == [ref(4)]
        hub.coming.pop()[1].close()
        delivery.end()
        assert not Delivery(hub, 0).is_short and not delivery.is_short

    with_hub(test)


def test_given_up_it_ends_with_that_error_and_waits_for_nobody() -> None:
    async def test(hub: Hub) -> None:
        delivery, other = Delivery(hub, 2), Hub()
        delivery.through(other)
        delivery.wait_for(hub, ref(1), gives(1, 100))
        asyncio.get_running_loop().call_later(1, delivery.give_up, DiscoroTimeout("given up"))
        with pytest.raises(DiscoroTimeout, match="given up"):
            await delivery.over()
        assert str(delivery) == "0 of the 2 wanted had the message; not yet: ada/4711/1"
        delivery.end()
        await asyncio.sleep(0.1)
        assert str(delivery) == "0 of the 2 wanted had the message"
        assert hub.forgotten == [delivery] == other.forgotten
        assert not hub.dropped, "its subscriber goes on"

    with_hub(test)


def test_given_up_before_anybody_waits_it_is_over_all_the_same() -> None:
    async def test(hub: Hub) -> None:
        delivery = Delivery(hub, 1)
        delivery.give_up(DiscoroTimeout("given up"))
        with pytest.raises(DiscoroTimeout, match="given up"):
            await delivery.over()

    with_hub(test)


def test_a_channel_lets_go_of_one_or_all_of_its_own_only() -> None:
    async def test(hub: Hub) -> None:
        delivery, other = Delivery(hub, 0), Hub()
        delivery.wait_for(hub, ref(1), gives(1))
        delivery.wait_for(hub, ref(2), gives(1))
        for number in (1, 3, 4):
            delivery.wait_for(other, ref(number), gives(1))
        delivery.drop(hub, ref(1))
        delivery.drop(hub, ref(3))
        await asyncio.sleep(0.1)
        assert str(delivery) == f"0 had the message; not yet: {', '.join(str(ref(number)) for number in (2, 1, 3, 4))}"
        delivery.drop(other)
        assert await delivery.over() == 1

    with_hub(test)


def test_not_everybody_who_waits_is_named() -> None:
    async def test(hub: Hub) -> None:
        delivery = Delivery(hub, 0)
        for number in range(NAMED + 5):
            delivery.wait_for(hub, ref(number), gives(1))
        assert str(delivery).count("ada/") == NAMED
        delivery.end()
        await asyncio.sleep(0.1)

    with_hub(test)
