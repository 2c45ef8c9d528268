"""How coroutines end, who is told, and what names lead to: the same within one process, between two, and between two machines.

To add a row, see the first lines of test_everywhere_messages.py. Rows that kill or dismiss the far process have
`ways=TWO_PROCESSES`.
"""

from __future__ import annotations

import contextlib
import time
from typing import Any

import pytest

from discoro import Coro, CoroEnded, CoroRef, ExitNotice, NameTaken, NoSuchCoro, PeerLost, Timeout, Unreachable
from tests.support.three_ways import TWO_PROCESSES, in_both_styles, three_ways

SOON = 5.0  # seconds for what must come; the end of a killed process too
A_MOMENT = 0.1  # seconds for what must not
END_WAYS = pytest.mark.parametrize("how", ["normal", "exception", "terminated"])


class Mishap(Exception):
    """An exception of the user's own."""


def ends_generator(how: str, coro: Any = None) -> Any:
    """End in that way, once told to."""
    yield coro.receive()
    if how == "exception":
        raise Mishap("bad", 3)
    while how == "terminated":
        yield coro.receive()
    return {"value": how}


async def ends(how: str, coro: Any = None) -> Any:
    await coro.receive()
    if how == "exception":
        raise Mishap("bad", 3)
    while how == "terminated":
        await coro.receive()
    return {"value": how}


either_ends = in_both_styles("ending", ends_generator, ends)

# ------------------------------------------------------------------ results


@either_ends
@pytest.mark.parametrize("when", ["before", "after"])
@three_ways
async def test_the_result_is_the_value_asked_before_the_end_or_after(far: Any, ending: Any, when: str) -> None:
    there = await far.create(ending, "normal")
    if when == "before":
        asked = Coro(results_of, there)
        with pytest.raises(Timeout, match=f"{there} had not ended"):
            await there.result(A_MOMENT)
    there.send("go")
    if when == "before":
        assert await asked.result(SOON) == {"value": "normal"}
    await ended(there)
    assert await there.result(SOON) == {"value": "normal"}
    assert await there.finish(SOON) == {"value": "normal"}, "as often as one likes"


async def results_of(ref: CoroRef) -> Any:
    return await ref.result(SOON)


@either_ends
@three_ways
async def test_an_exception_is_raised_with_its_type_and_arguments(far: Any, ending: Any) -> None:
    there = await far.create(ending, "exception")
    there.send("go")
    for _ in range(2):
        with pytest.raises(Mishap) as caught:
            await there.result(SOON)
        assert type(caught.value) is Mishap and caught.value.args == ("bad", 3)


# ------------------------------------------------------------------ terminate, is_alive


def speaks_at_its_end_generator(to: CoroRef, coro: Any = None) -> Any:
    try:
        to.send("begun")
        yield coro.receive()
    finally:
        yield coro.sleep(0)
        to.send("finally")


async def speaks_at_its_end(to: CoroRef, coro: Any = None) -> None:
    try:
        to.send("begun")
        await coro.receive()
    finally:
        await coro.sleep(0)
        to.send("finally")


@in_both_styles("speaking", speaks_at_its_end_generator, speaks_at_its_end)
@three_ways
async def test_terminate_runs_finally(far: Any, coro: Any, speaking: Any) -> None:
    there = await far.create(speaking, coro.ref)
    assert await coro.receive(SOON) == "begun"
    assert await there.terminate() == 0
    assert await coro.receive(SOON) == "finally"
    with pytest.raises(CoroEnded, match="terminated"):
        await there.result(SOON)
    assert await there.terminate() == 0, "it had ended"


@either_ends
@three_ways
async def test_terminate_before_the_first_step_ends_it_too(far: Any, ending: Any) -> None:
    there = await far.create(ending, "normal")
    await there.terminate()
    with pytest.raises(CoroEnded):
        await there.result(SOON)


@END_WAYS
@three_ways
async def test_is_alive_until_it_ends(far: Any, how: str) -> None:
    there = await far.create(ends, how)
    assert await there.is_alive() is True
    there.send("go")
    if how == "terminated":
        assert await there.is_alive() is True
        await there.terminate()
    await ended(there)
    assert await there.is_alive() is False


async def ended(ref: CoroRef) -> None:
    """Until it has, in whatever way."""
    with contextlib.suppress(Mishap, CoroEnded):
        await ref.result(SOON)


# ------------------------------------------------------------------ monitors


def talks_then_ends_generator(to: CoroRef, how: str, coro: Any = None) -> Any:
    try:
        for number in range(100):
            to.send(number)
        yield from ends_generator(how, coro)
    finally:
        to.send("last words")


async def talks_then_ends(to: CoroRef, how: str, coro: Any = None) -> None:
    try:
        for number in range(100):
            to.send(number)
        await ends(how, coro)
    finally:
        to.send("last words")


@END_WAYS
@in_both_styles("talking", talks_then_ends_generator, talks_then_ends)
@three_ways
async def test_a_monitor_gets_one_notice_after_all_messages(far: Any, coro: Any, talking: Any, how: str) -> None:
    there = await far.create(talking, coro.ref, how)
    for _ in range(2):
        assert await coro.monitor(there) == 0, "twice is once"
    assert await coro.receive(SOON) == 0
    if how == "terminated":
        await there.terminate()
    else:
        there.send("go")
    for expected in [*range(1, 100), "last words"]:
        assert await coro.receive(SOON) == expected
    notice = await coro.receive(SOON)
    assert isinstance(notice, ExitNotice) and (notice.ref, notice.reason) == (there, how)
    assert type(notice.error) is {"normal": type(None), "exception": Mishap, "terminated": CoroEnded}[how]
    assert await coro.receive(A_MOMENT, "no more") == "no more"


@END_WAYS
@three_ways
async def test_a_monitor_of_one_that_has_ended_gets_its_notice_at_once(far: Any, coro: Any, how: str) -> None:
    there = await far.create(ends, how)
    there.send("go")
    if how == "terminated":
        await there.terminate()
    await ended(there)
    assert await coro.monitor(there) == 0
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason, notice.value) == (there, how, {"value": how} if how == "normal" else None)
    if how == "exception":
        assert type(notice.error) is Mishap and notice.error.args == ("bad", 3)
    assert await coro.receive(A_MOMENT, "no more") == "no more"


@END_WAYS
@three_ways
async def test_the_far_side_monitors_one_of_here(far: Any, coro: Any, how: str) -> None:
    here = Coro(ends, how)
    await far.create(watches, here.ref, coro.ref)
    assert await coro.receive(SOON) == "watching"
    here.send("go")
    if how == "terminated":
        await here.terminate()
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason, notice.value) == (here.ref, how, {"value": how} if how == "normal" else None)


async def watches(observed: CoroRef, to: CoroRef, coro: Any = None) -> None:
    """Tell of it, and pass on what is received."""
    await coro.monitor(observed)
    to.send("watching")
    to.send(await coro.receive())


@three_ways
async def test_each_of_several_monitors_gets_a_notice(far: Any, coro: Any) -> None:
    there = await far.create(ends, "normal")
    await far.create(watches, there, coro.ref)
    for _ in range(2):
        Coro(watches, there, coro.ref)
    assert [await coro.receive(SOON) for _ in range(3)] == 3 * ["watching"]
    there.send("go")
    assert [(await coro.receive(SOON)).value for _ in range(3)] == 3 * [{"value": "normal"}]


@three_ways
async def test_a_coroutine_that_never_was_is_unknown(far: Any, coro: Any) -> None:
    there = await far.create(ends, "normal")
    nobody = CoroRef.parse(repr(there).replace(f"/{there.id}@", f"/{there.id + 1_000_000}@"))
    with pytest.raises(NoSuchCoro):
        await nobody.result(SOON)
    assert await nobody.is_alive() is False
    await coro.monitor(nobody)
    assert (await coro.receive(SOON)).reason == "unknown"


# ------------------------------------------------------------------ names


def goes_by_generator(name: str, to: CoroRef, coro: Any = None) -> Any:
    """Register, and unregister when told to."""
    assert (yield coro.register(name)) == 0
    to.send("registered")
    yield coro.receive()
    assert (yield coro.unregister(name)) == 0
    to.send("unregistered")
    yield coro.receive()


async def goes_by(name: str, to: CoroRef, coro: Any = None) -> None:
    assert await coro.register(name) == 0
    to.send("registered")
    await coro.receive()
    assert await coro.unregister(name) == 0
    to.send("unregistered")
    await coro.receive()


@in_both_styles("going", goes_by_generator, goes_by)
@three_ways
async def test_a_name_leads_to_its_coroutine_until_it_is_unregistered(far: Any, coro: Any, going: Any) -> None:
    there = await far.create(going, "ada", coro.ref)
    assert await coro.receive(SOON) == "registered"
    assert await Coro.locate("ada", timeout=SOON) == there
    there.send("go")
    assert await coro.receive(SOON) == "unregistered"
    with pytest.raises(Timeout, match="'ada'"):
        await Coro.locate("ada", timeout=A_MOMENT)
    assert await there.is_alive()


@three_ways
async def test_a_name_goes_with_its_coroutine(far: Any, coro: Any) -> None:
    there = await far.create(goes_by, "charles", coro.ref)
    assert await coro.receive(SOON) == "registered"
    await there.terminate()
    await ended(there)
    with pytest.raises(Timeout, match="'charles'"):
        while True:  # the notice of the end may come before the news that the name is gone
            assert await Coro.locate("charles", timeout=A_MOMENT) == there


@three_ways
async def test_locate_waits_for_a_name_that_appears_later(far: Any, coro: Any) -> None:
    looking = Coro(locates, "grace")
    assert await coro.receive(A_MOMENT, "nobody yet") == "nobody yet"
    there = await far.create(goes_by, "grace", coro.ref)
    assert await looking.result(SOON) == there


@three_ways
async def test_the_far_side_locates_one_of_here(far: Any, coro: Any) -> None:
    assert await coro.register("alan") == 0
    looking = await far.create(locates, "alan")
    assert await looking.result(SOON) == coro.ref


async def locates(name: str) -> CoroRef:
    return await Coro.locate(name, timeout=SOON)


@three_ways
async def test_a_name_is_taken_once_in_a_process_and_free_when_its_coroutine_has_ended(far: Any, coro: Any) -> None:
    first = await far.create(goes_by, "barbara", coro.ref)
    assert await coro.receive(SOON) == "registered"
    second = await far.create(goes_by, "barbara", coro.ref)
    with pytest.raises(NameTaken, match="'barbara'"):
        await second.result(SOON)
    await first.terminate()
    await ended(first)
    third = await far.create(goes_by, "barbara", coro.ref)
    assert await coro.receive(SOON) == "registered"
    assert await Coro.locate("barbara", timeout=SOON) == third


# ------------------------------------------------------------------ the end of the far process


async def failure_of(operation: Any, *args: Any) -> BaseException:
    """What an operation raises."""
    try:
        return AssertionError(f"gave {await operation(*args)!r}")
    except Exception as error:
        return error


@three_ways(ways=TWO_PROCESSES)
async def test_a_killed_process_fails_all_that_waits_for_it_once(far: Any, coro: Any) -> None:
    gate = await far.create(ends, "normal")
    there = await far.create(ends, "normal")
    await coro.monitor(there)
    asked = Coro(failure_of, there.result)
    assert await there.is_alive()
    await far.kill()
    killed = time.monotonic()
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason, type(notice.error)) == (there, "peer lost", PeerLost)
    assert type(await asked.result(SOON)) is PeerLost
    # what is asked afterwards dials again, unless the end of the process was certain
    for each in (there, gate):
        assert isinstance(await failure_of(each.result, SOON), PeerLost | Unreachable)
        assert isinstance(await failure_of(each.deliver, "m", SOON), PeerLost | Unreachable)
        assert await each.is_alive() is False
    print(f"all of it told {time.monotonic() - killed:.3f} s after the end of the process")
    assert await coro.receive(A_MOMENT, "no more") == "no more"


@three_ways(ways=TWO_PROCESSES)
async def test_a_deliver_that_waits_for_room_is_told_that_the_process_was_killed(far: Any, coro: Any) -> None:
    there = await far.create(stands_still, coro.ref)
    assert await coro.receive(SOON) == "still"
    for number in range(9_999):
        there.send(number)
    assert await there.deliver("the last that finds room", SOON) == 1
    waiting = Coro(failure_of, there.deliver, "no room")
    with pytest.raises(Timeout):
        await waiting.result(A_MOMENT)
    await far.kill()
    assert type(await waiting.result(SOON)) is PeerLost


async def stands_still(to: CoroRef, coro: Any = None) -> None:
    to.send("still")
    await coro.sleep(100)


@three_ways(ways=TWO_PROCESSES)
async def test_a_reference_from_before_a_restart_reaches_nobody(far: Any, coro: Any) -> None:
    before = await far.create(ends, "normal")
    await far.restart()
    after = await far.create(ends, "normal")
    assert (before.id, before.name) == (after.id, after.name) and before != after
    assert isinstance(await failure_of(before.deliver, "go", SOON), PeerLost | Unreachable)
    assert isinstance(await failure_of(before.result, SOON), PeerLost | Unreachable)
    assert await before.is_alive() is False
    assert await after.is_alive() is True
    after.send("go")
    assert await after.result(SOON) == {"value": "normal"}


@three_ways(ways=TWO_PROCESSES)
async def test_names_go_with_their_process_and_come_with_the_next(far: Any, coro: Any) -> None:
    await far.create(goes_by, "edsger", coro.ref)
    assert await coro.receive(SOON) == "registered"
    await far.restart()
    after = await far.create(goes_by, "edsger", coro.ref)
    assert await coro.receive(SOON) == "registered"
    assert await Coro.locate("edsger", timeout=SOON) == after


@three_ways(ways=TWO_PROCESSES)
async def test_a_process_that_leaves_terminates_its_coroutines_and_says_so(far: Any, coro: Any) -> None:
    there = await far.create(speaks_at_its_end, coro.ref)
    assert await coro.receive(SOON) == "begun"
    await coro.monitor(there)
    await far.leave()
    assert await coro.receive(SOON) == "finally"
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason) == (there, "terminated")
    assert isinstance(await failure_of(there.deliver, "m", SOON), PeerLost | Unreachable)
    assert await there.is_alive() is False
