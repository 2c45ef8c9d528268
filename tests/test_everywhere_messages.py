"""Messages and references do the same within one process, between two, and between two machines.

To add a row: write `async def test_what_it_shows(far, coro)` under `@three_ways`, and what runs on the far side as a function
at the top of this module; `far.create(function, *args)` gives its reference. Write that function in both styles and choose by
`in_both_styles` where it uses the operation that the row is about. Wait for everything with a time limit below the row's
(ROW_LIMIT). All that a row can use: tests/support/three_ways.py.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import pytest

from discoro import CoroRef, NoSuchCoro, PackError, Timeout
from tests.support.three_ways import TWO_PROCESSES, in_both_styles, three_ways

SOON = 5.0  # seconds for what must come
A_MOMENT = 0.1  # seconds for what must not
MAILBOX_MESSAGES = 10_000  # as docs/explanation/architecture.md has it


def collects_generator(count: int, coro: Any = None) -> Any:
    got = []
    for _ in range(count):
        got.append((yield coro.receive(SOON, "nothing came")))
    return got


async def collects(count: int, coro: Any = None) -> Any:
    return [await coro.receive(SOON, "nothing came") for _ in range(count)]


def echoes_generator(coro: Any = None) -> Any:
    while True:
        to, message = yield coro.receive()
        to.send(message)


async def echoes(coro: Any = None) -> Any:
    while True:
        to, message = await coro.receive()
        to.send(message)


either_collects = in_both_styles("collecting", collects_generator, collects)
either_echoes = in_both_styles("echoing", echoes_generator, echoes)

# ------------------------------------------------------------------ order


@either_collects
@three_ways
async def test_messages_arrive_in_the_order_sent(far: Any, collecting: Any) -> None:
    sent = [bytes(300_000) if number % 400 == 0 else number for number in range(1000)]
    there = await far.create(collecting, len(sent))
    for message in sent:
        there.send(message)
    assert await there.result(SOON) == sent


@either_echoes
@three_ways
def test_messages_come_back_in_the_order_sent(far: Any, echoing: Any, coro: Any) -> Any:
    there = yield far.create(echoing)
    for number in range(1000):
        there.send((coro.ref, number))
    got = []
    for _ in range(1000):
        got.append((yield coro.receive(SOON)))
    assert got == list(range(1000))


@three_ways
async def test_two_senders_keep_each_their_order(far: Any, coro: Any) -> None:
    for base in (0, 1):
        await far.create(streams_from, coro.ref, base)
    got = [await coro.receive(SOON) for _ in range(600)]
    assert [n for n in got if n % 2 == 0] == list(range(0, 600, 2))
    assert [n for n in got if n % 2 == 1] == list(range(1, 600, 2))


async def streams_from(to: CoroRef, base: int, coro: Any = None) -> None:
    for number in range(base, 600, 2):
        to.send(number)
        if number % 20 == base:
            await coro.sleep(0)


# ------------------------------------------------------------------ deliver


@three_ways
async def test_deliver_returns_1_once_the_message_is_in_the_mailbox(far: Any) -> None:
    gate = await far.create(collects, 1)
    there = await far.create(counts_after, gate)
    assert await there.deliver("received or not", timeout=SOON) == 1
    assert await gate.deliver("go", timeout=SOON) == 1
    there.send("end")
    assert await there.result(SOON) == 2


async def counts_after(gate: CoroRef, coro: Any = None) -> int:
    """Receive nothing until the gate has ended, then everything up to the "end"."""
    await gate.result()
    count = 1
    while await coro.receive(SOON, "end") != "end":
        count += 1
    return count


@three_ways
async def test_deliver_waits_for_room_and_no_longer_than_its_timeout(far: Any) -> None:
    gate, neighbour = await far.create(collects, 1), await far.create(collects, 1)
    full = await far.create(counts_after, gate)
    for number in range(MAILBOX_MESSAGES - 1):
        full.send(number)
    assert await full.deliver("the last that finds room", SOON) == 1
    with pytest.raises(Timeout, match="not in the mailbox of"):
        await full.deliver("one too many", A_MOMENT)
    assert await neighbour.deliver("another mailbox", SOON) == 1
    gate.send("go")
    assert await full.deliver("end", SOON) == 1
    assert await full.result(SOON) == MAILBOX_MESSAGES + 1, "the one that timed out was never sent"


@three_ways
async def test_deliver_to_one_that_has_ended_says_so(far: Any) -> None:
    there = await far.create(collects, 0)
    assert await there.result(SOON) == []
    with pytest.raises(NoSuchCoro, match=f"{there}"):
        await there.deliver("m", SOON)


# ------------------------------------------------------------------ receive


def waits_in_vain_generator(coro: Any = None) -> Any:
    begun = time.monotonic()
    got = [(yield coro.receive(0, "only a look")), (yield coro.receive(A_MOMENT, "in vain")), (yield coro.receive(A_MOMENT))]
    return got, time.monotonic() - begun


async def waits_in_vain(coro: Any = None) -> Any:
    begun = time.monotonic()
    got = [await coro.receive(0, "only a look"), await coro.receive(A_MOMENT, "in vain"), await coro.receive(A_MOMENT)]
    return got, time.monotonic() - begun


@in_both_styles("waiting", waits_in_vain_generator, waits_in_vain)
@three_ways
async def test_receive_gives_its_alarm_value_when_the_time_is_over(far: Any, waiting: Any) -> None:
    there = await far.create(waiting)
    got, seconds = await there.result(SOON)
    assert got == ["only a look", "in vain", None]
    assert 2 * A_MOMENT <= seconds < SOON


@either_echoes
@three_ways
async def test_a_receive_that_timed_out_loses_nothing(far: Any, echoing: Any, coro: Any) -> None:
    there = await far.create(echoing)
    assert await coro.receive(0, "alarm") == "alarm"
    there.send((coro.ref, None))
    assert await coro.receive(SOON, "alarm") is None, "None is a message like any other"


# ------------------------------------------------------------------ what messages hold


@dataclass(frozen=True)
class Point:
    x: float
    of: tuple[Any, ...]


@either_echoes
@three_ways
async def test_values_arrive_as_they_were(far: Any, coro: Any, echoing: Any) -> None:
    there = await far.create(echoing)
    values = [
        *(None, True, -(1 << 70), 1.5, "é\0", b"", {"a": [1, (2, {3})]}, Ellipsis),
        *(Point(0.5, (coro.ref,)), Point, collects, ValueError("bad", 3).args),
        *(bytes(3_000_000), memoryview(b"abc").tobytes(), bytearray(100_000)),
    ]
    for value in values:
        there.send((coro.ref, value))
        got = await coro.receive(SOON)
        assert type(got) is type(value) and got == value


@three_ways(ways=TWO_PROCESSES)
async def test_what_cannot_travel_is_refused_at_the_sender(far: Any) -> None:
    there = await far.create(collects, 1)
    with pytest.raises(PackError, match=r"\['bad'\]"):
        there.send({"bad": (each for each in ())})
    with pytest.raises(PackError, match=r"\['bad'\]"):
        await there.deliver({"bad": (each for each in ())}, SOON)
    there.send("good")
    assert await there.result(SOON) == ["good"]


# ------------------------------------------------------------------ references


@either_echoes
@three_ways
async def test_a_reference_comes_back_as_the_same_key(far: Any, coro: Any, echoing: Any) -> None:
    one, two = await far.create(echoing), await far.create(echoing)
    for ref in (one, two, coro.ref):
        one.send((coro.ref, {"deep": [ref]}))
        back = (await coro.receive(SOON))["deep"][0]
        assert isinstance(back, CoroRef)
        assert back == ref and hash(back) == hash(ref)
        assert {one: "one", two: "two", coro.ref: "me"}[back] == {one: "one", two: "two", coro.ref: "me"}[ref]
        assert (str(back), repr(back)) == (str(ref), repr(ref))
    assert len({one, two, coro.ref}) == 3


@three_ways
async def test_a_reference_made_in_another_process_is_equal_to_the_one_made_here(far: Any, coro: Any) -> None:
    there = await far.create(tells_itself, coro.ref)
    assert await coro.receive(SOON) == there
    assert await there.result(SOON) == there


async def tells_itself(to: CoroRef, coro: Any = None) -> CoroRef:
    to.send(coro.ref)
    return coro.ref


@three_ways
async def test_a_reference_is_read_back_from_its_repr_and_not_from_its_str(far: Any, coro: Any) -> None:
    there = await far.create(echoes)
    read = CoroRef.parse(repr(there))
    assert read == there and hash(read) == hash(there)
    read.send((coro.ref, "by its repr"))
    assert await coro.receive(SOON) == "by its repr"
    assert await read.deliver((coro.ref, "again"), SOON) == 1
    assert await coro.receive(SOON) == "again"
    with pytest.raises(ValueError, match="str"):
        CoroRef.parse(str(there))


@three_ways
async def test_the_far_side_reaches_whom_it_only_knows_as_text(far: Any, coro: Any) -> None:
    there = await far.create(writes_to, repr(coro.ref))
    assert await coro.receive(SOON) == "read and found"
    assert await there.result(SOON) == 1


async def writes_to(text: str) -> int:
    return await CoroRef.parse(text).deliver("read and found", SOON)


@three_ways
async def test_a_reference_can_be_passed_on(far: Any, coro: Any) -> None:
    """Near to far to far to near: whoever holds a reference talks to it."""
    echo, messenger = await far.create(echoes), await far.create(passes_on)
    messenger.send((echo, coro.ref))
    assert await coro.receive(SOON) == "passed on"


async def passes_on(coro: Any = None) -> None:
    first, second = await coro.receive()
    first.send((second, "passed on"))
