"""Asking, pausing, throwing, swapping, ending together: the same within one process, between two, and between two machines.

To add a row, see the first lines of test_everywhere_messages.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from discoro import (
    Coro,
    CoroEnded,
    CoroRef,
    ExitNotice,
    HotSwap,
    NoReply,
    NoSuchCoro,
    PeerLost,
    SwapRefused,
    Timeout,
    Unreachable,
)
from tests.support.three_ways import TWO_PROCESSES, in_both_styles, three_ways

SOON = 5.0  # seconds for what must come; the end of a killed process too
A_MOMENT = 0.1  # seconds for what must not


class Mishap(Exception):
    """An exception of the user's own."""


# ------------------------------------------------------------------ ask


def librarian_generator(coro: Any = None) -> Any:
    kept = None
    while True:
        message = yield coro.receive()
        if message == "keep":
            kept = coro.question
        elif message == "answer what was kept":
            coro.reply(kept.reply("late"))
        elif message == "fail":
            coro.question.fail(Mishap("no", 3))
        elif message == "drop":
            del message
            coro.question  # noqa: B018  taken, and kept by nobody
        elif message == "end":
            return
        elif message != "ignore":
            coro.reply([message])


async def librarian(coro: Any = None) -> None:
    kept = None
    while True:
        message = await coro.receive()
        if message == "keep":
            kept = coro.question
        elif message == "answer what was kept":
            assert kept is not None
            coro.reply(kept.reply("late"))
        elif message == "fail":
            coro.question.fail(Mishap("no", 3))
        elif message == "drop":
            coro.question  # noqa: B018  taken, and kept by nobody
        elif message == "end":
            return
        elif message != "ignore":
            coro.reply([message])


either_librarian = in_both_styles("asked", librarian_generator, librarian)


@either_librarian
@three_ways
async def test_a_reply_is_to_just_its_question(far: Any, asked: Any) -> None:
    there = await far.create(asked)
    assert await asyncio.gather(*(there.ask(number, SOON) for number in range(20))) == [[number] for number in range(20)]
    kept = asyncio.ensure_future(there.ask("keep", SOON))
    assert await there.ask("between", SOON) == ["between"]
    assert await there.ask("answer what was kept", SOON) == 1
    assert await kept == "late"


@either_librarian
@three_ways
async def test_who_gets_no_reply_is_told(far: Any, asked: Any) -> None:
    there = await far.create(asked)
    with pytest.raises(Mishap) as caught:
        await there.ask("fail", SOON)
    assert caught.value.args == ("no", 3)
    ignored = asyncio.ensure_future(there.ask("ignore", SOON))
    await there.ask("next", SOON)
    with pytest.raises(NoReply, match="received its next message without a reply"):
        await ignored
    with pytest.raises(NoReply, match="dropped the question"):
        await there.ask("drop", SOON)
    waits = asyncio.ensure_future(there.ask("ignore", SOON))
    ends = asyncio.ensure_future(there.ask("end", SOON))
    for each in (waits, ends):
        with pytest.raises(NoReply, match=r"without a reply|ended before it replied \(normal\)"):
            await each
    with pytest.raises(NoSuchCoro):
        await there.ask("anybody", SOON)


@three_ways
async def test_what_was_asked_and_never_received_is_told_at_the_end(far: Any) -> None:
    there = await far.create(pauses)
    waits = [asyncio.ensure_future(there.ask(number, SOON)) for number in range(3)]
    with pytest.raises(Timeout, match="did not reply within"):
        await there.ask("m", A_MOMENT)
    await there.terminate()
    for each in waits:
        with pytest.raises(NoReply, match="ended before it replied"):
            await each


@three_ways
async def test_questions_and_messages_keep_their_order(far: Any) -> None:
    there = await far.create(collects)
    there.send(1)
    asked = asyncio.ensure_future(there.ask(2, SOON))
    await asyncio.sleep(0)
    there.send(3)
    assert await asked == [1, 2]
    assert await there.ask(None, SOON) == [1, 2, 3, None]


def collects(coro: Any = None) -> Any:
    got = []
    while True:
        got.append((yield coro.receive()))
        coro.reply(list(got))


# ------------------------------------------------------------------ suspend, resume


def pauses(coro: Any = None) -> Any:
    return (yield coro.suspend())


def pauses_and_tells_generator(to: CoroRef, coro: Any = None) -> Any:
    to.send("pausing")
    to.send((yield coro.suspend()))
    to.send((yield coro.suspend(0.01, "over")))
    to.send((yield coro.sleep(30, "not this")))


async def pauses_and_tells(to: CoroRef, coro: Any = None) -> None:
    to.send("pausing")
    to.send(await coro.suspend())
    to.send(await coro.suspend(0.01, "over"))
    to.send(await coro.sleep(30, "not this"))


@in_both_styles("pausing", pauses_and_tells_generator, pauses_and_tells)
@three_ways
async def test_who_is_suspended_goes_on_with_the_update_or_the_alarm_value(far: Any, coro: Any, pausing: Any) -> None:
    there = await far.create(pausing, coro.ref)
    assert await coro.receive(SOON) == "pausing"
    assert await there.resume({"an": "update"}) == 0
    assert await coro.receive(SOON) == {"an": "update"}
    assert await coro.receive(SOON) == "over"
    assert await there.wakeup() == 0
    assert await coro.receive(SOON) is None
    assert await there.result(SOON) is None
    with pytest.raises(NoSuchCoro):
        await there.resume()


@three_ways
async def test_resuming_who_is_not_suspended_does_nothing(far: Any, coro: Any) -> None:
    there = await far.create(collects)
    assert await there.resume("lost") == 0
    assert await there.ask("m", SOON) == ["m"]


# ------------------------------------------------------------------ throw


def catches_generator(to: CoroRef, coro: Any = None) -> Any:
    to.send("begun")
    try:
        yield coro.receive()
    except Mishap as error:
        yield coro.sleep(0)
        return error.args


async def catches(to: CoroRef, coro: Any = None) -> Any:
    to.send("begun")
    try:
        await coro.receive()
    except Mishap as error:
        await coro.sleep(0)
        return error.args


async def catches_in_asyncio(to: CoroRef, coro: Any = None) -> Any:
    to.send("begun")
    try:
        await asyncio.Event().wait()
    except Mishap as error:
        return error.args


@pytest.mark.parametrize("catching", [catches_generator, catches, catches_in_asyncio])
@three_ways
async def test_an_exception_is_raised_where_it_waits(far: Any, coro: Any, catching: Any) -> None:
    there = await far.create(catching, coro.ref)
    assert await coro.receive(SOON) == "begun"
    assert await there.throw(Mishap("thrown", 3)) == 0
    assert await there.result(SOON) == ("thrown", 3)
    with pytest.raises(NoSuchCoro):
        await there.throw(Mishap())


@three_ways
async def test_an_exception_that_is_not_caught_ends_it(far: Any, coro: Any) -> None:
    there = await far.create(pauses)
    await coro.monitor(there)
    await there.throw(Mishap("thrown"))
    notice = await coro.receive(SOON)
    assert (notice.reason, type(notice.error), notice.error.args) == ("exception", Mishap, ("thrown",))
    with pytest.raises(TypeError, match="throw takes an exception"):
        await there.throw("no exception")


# ------------------------------------------------------------------ hot swap


def old_generator(coro: Any = None) -> Any:
    coro.hot_swappable()
    while True:
        coro.reply(("old", (yield coro.receive())))


async def old(coro: Any = None) -> None:
    coro.hot_swappable()
    while True:
        coro.reply(("old", await coro.receive()))


def new_generator(what: str, *, coro: Any = None) -> Any:
    while True:
        coro.reply((what, (yield coro.receive())))


async def new(what: str, *, coro: Any = None) -> None:
    while True:
        coro.reply((what, await coro.receive()))


@in_both_styles("before", old_generator, old)
@in_both_styles("after", new_generator, new)
@three_ways
async def test_a_coroutine_goes_on_as_another_function(far: Any, coro: Any, before: Any, after: Any) -> None:
    there = await far.create(before)
    await coro.monitor(there)
    assert await there.ask(1, SOON) == ("old", 1)
    assert await there.hot_swap(after, "new") == 0
    assert await there.ask(2, SOON) == ("new", 2)
    await there.terminate()
    assert (await coro.receive(SOON)).reason == "terminated"


def stays(coro: Any = None) -> Any:
    coro.hot_swappable()
    while True:
        try:
            coro.reply(("old", (yield coro.receive())))
        except HotSwap as swap:
            coro.name = swap.args[0].__name__


@three_ways
async def test_a_coroutine_may_refuse_to_be_swapped(far: Any) -> None:
    there = await far.create(stays)
    assert await there.ask(1, SOON) == ("old", 1)
    with pytest.raises(SwapRefused, match="went on as it was"):
        await there.hot_swap(new, "new")
    assert await there.ask(2, SOON) == ("old", 2)


@three_ways
async def test_a_swap_that_is_never_allowed_ends_with_the_coroutine(far: Any, coro: Any) -> None:
    there = await far.create(collects)
    swap = asyncio.ensure_future(there.hot_swap(new, "new"))
    while not swap.done():
        await there.ask("still the old one", SOON)
        with pytest.raises(SwapRefused, match="is to be swapped already"):
            await asyncio.wait_for(there.hot_swap(new, "newer"), SOON)
        await there.terminate()
        await asyncio.wait([swap], timeout=SOON)
    with pytest.raises(NoSuchCoro, match="ended before it could be swapped"):
        await swap


# ------------------------------------------------------------------ ending together


def linked_with(other: CoroRef, to: CoroRef, coro: Any = None) -> Any:
    yield coro.link(other)
    to.send("linked")
    yield coro.receive()


def raises_when_told(coro: Any = None) -> Any:
    if (yield coro.receive()) == "raise":
        raise Mishap("bad")


@pytest.mark.parametrize("how", ["raise", "terminate"])
@pytest.mark.parametrize("who", ["near", "far"])
@three_ways
async def test_linked_coroutines_die_together_on_both_sides(far: Any, coro: Any, how: str, who: str) -> None:
    near_one = Coro(raises_when_told)
    far_one = await far.create(linked_with, near_one.ref, coro.ref)
    assert await coro.receive(SOON) == "linked"
    dies, survives = (near_one, far_one) if who == "near" else (far_one, near_one)
    await coro.monitor(survives)
    if how == "terminate":
        await dies.terminate()
    elif who == "near":
        dies.send("raise")
    else:
        await dies.throw(Mishap("bad"))
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason) == (survives.ref, "linked")
    assert str(dies) in str(notice.error)


@three_ways
async def test_a_return_is_no_death(far: Any, coro: Any) -> None:
    near_one = Coro(raises_when_told)
    far_one = await far.create(linked_with, near_one.ref, coro.ref)
    assert await coro.receive(SOON) == "linked"
    near_one.send("return")
    assert await near_one.result(SOON) is None
    await coro.monitor(far_one)
    far_one.send("go")
    assert (await coro.receive(SOON)).reason == "normal"


@three_ways
async def test_who_links_with_one_that_died_before_dies_at_once(far: Any, coro: Any) -> None:
    gone = await far.create(raises_when_told)
    await gone.terminate()
    with pytest.raises(CoroEnded):
        await gone.result(SOON)
    linked = Coro(linked_with, gone, coro.ref)
    await coro.monitor(linked)
    while isinstance(notice := await coro.receive(SOON), str):
        pass
    assert notice.reason == "linked"


@three_ways
async def test_a_link_can_be_undone(far: Any, coro: Any) -> None:
    there = await far.create(collects)
    assert await coro.link(there) == 0
    assert await coro.unlink(there) == 0
    await there.terminate()
    with pytest.raises(CoroEnded):
        await there.result(SOON)
    assert await coro.receive(A_MOMENT, "alive") == "alive"


async def adopts(other: CoroRef, to: CoroRef, coro: Any = None) -> None:
    await coro.adopt(other)
    to.send(coro.children())
    await coro.receive()


@three_ways
async def test_an_adopted_child_ends_with_its_parent_and_not_the_other_way(far: Any, coro: Any) -> None:
    children = [await far.create(collects), Coro(collects).ref]
    for child in children:
        parent = await far.create(adopts, child, coro.ref)
        assert await coro.receive(SOON) == [child]
        await coro.monitor(child)
        parent.send("return")
        notice = await coro.receive(SOON)
        assert (notice.ref, notice.reason) == (child, "parent ended")
        child = await far.create(collects)
        parent = await far.create(adopts, child, coro.ref)
        assert await coro.receive(SOON) == [child]
        await child.terminate()
        with pytest.raises(CoroEnded):
            await child.result(SOON)
        assert await parent.is_alive() is True


def has_a_child(to: CoroRef, coro: Any = None) -> Any:
    to.send(coro.child(collects).ref)
    yield coro.receive()
    raise Mishap("parent")


@three_ways
async def test_a_child_ends_with_its_parent(far: Any, coro: Any) -> None:
    parent = await far.create(has_a_child, coro.ref)
    child = await coro.receive(SOON)
    await coro.monitor(child)
    parent.send("go")
    notice = await coro.receive(SOON)
    assert (notice.ref, notice.reason) == (child, "parent ended")
    with pytest.raises(Mishap):
        await parent.result(SOON)


@three_ways(ways=TWO_PROCESSES)
async def test_the_loss_of_a_process_ends_what_is_linked_and_what_was_asked(far: Any, coro: Any) -> None:
    there = await far.create(pauses)
    linked = Coro(linked_with, there, coro.ref)
    assert await coro.receive(SOON) == "linked"
    child = Coro(collects)
    parent = await far.create(adopts, child.ref, coro.ref)
    assert await coro.receive(SOON) == [child.ref]
    for each in (linked, child, parent):
        await coro.monitor(each)
    asked = asyncio.ensure_future(there.ask("m", SOON))
    await asyncio.sleep(0)
    await far.kill()
    notices = {notice.ref: notice for notice in [await coro.receive(SOON) for _ in range(3)]}
    assert [notices[each.ref].reason for each in (linked, child, parent)] == ["linked", "parent ended", "peer lost"]
    with pytest.raises((PeerLost, Unreachable)):
        await asked
    assert all(isinstance(notice, ExitNotice) for notice in notices.values())


# ------------------------------------------------------------------ nobody there


@three_ways
async def test_a_message_to_nobody_is_told_of_once_and_then_refused(far: Any, coro: Any) -> None:
    there = await far.create(returns)
    assert await there.result(SOON) is None
    with pytest.raises(NoSuchCoro, match="has ended"):
        there.send("this process knows of the end")


@three_ways(ways=TWO_PROCESSES)
async def test_a_message_to_nobody_that_only_the_other_side_knows_of(far: Any, coro: Any) -> None:
    there = await far.create(returns)
    made_up = CoroRef(there.node, there.pid, there.birth, there.id + 1_000_000, there.name, there.addresses)
    made_up.send("this process knows nothing")
    with pytest.raises(NoSuchCoro):
        await made_up.deliver("m", SOON)  # behind it, and so is what the other side said of it
    with pytest.raises(NoSuchCoro, match=r"has ended \(unknown\)"):
        made_up.send("now it does")


def returns() -> Any:
    yield
