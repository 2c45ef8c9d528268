"""Full mailboxes by themselves: what waits, who is woken, what is lost."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from discoro import holding as rooms
from discoro import messages
from discoro.errors import Overloaded, PeerLost, ProtocolError, TooLarge
from discoro.holding import Holding
from discoro.messages import BATCH_OPERATIONS, Message, Notice
from discoro.outbox import QUEUE_OPERATIONS, WINDOW_FRAMES
from discoro.references import CoroRef

REF = CoroRef("00000000000000aa", 1, 0xAA, 7, "ada")
KEY = (REF.birth, REF.id)


class Linked:
    def __init__(self, birth: int = REF.birth) -> None:
        self.birth = birth


def link(birth: int = REF.birth) -> Any:
    return Linked(birth)


def test_nothing_is_kept_for_a_mailbox_that_was_not_announced() -> None:
    holding = Holding()
    assert holding.take(REF, [b"m"], 5) is False
    assert not holding.is_full(REF)
    assert list(holding.opened(KEY)) == []


def test_what_waited_leaves_in_order_and_once() -> None:
    holding = Holding()
    holding.full(KEY)
    holding.full(KEY)  # announced again: what waits stays
    assert all(holding.take(REF, [bytes([number])], 5) for number in range(5))
    assert [bytes(operation.body[0])[0] for operation, lane in holding.opened(KEY)] == list(range(5))
    assert holding.take(REF, [b"m"], 5) is False
    assert len(holding) == 0


@pytest.mark.parametrize(("limit", "value"), [("HELD_MESSAGES", 3), ("HELD_BYTES", 30)])
def test_what_waits_is_bounded(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, limit, value)
    holding = Holding()
    holding.full(KEY)
    for _ in range(3):
        holding.take(REF, [bytes(10)], 5)
    with pytest.raises(Overloaded, match="ada/1/7 is full, and 3 messages wait"):
        holding.take(REF, [b"m"], 5)


def test_who_waits_for_room_is_woken_or_told() -> None:
    async def test() -> None:
        holding = Holding()
        holding.full(KEY)
        woken, cancelled = (asyncio.ensure_future(holding.room(REF)) for _ in range(2))
        await asyncio.sleep(0)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        holding.opened(KEY)
        await woken
        told = asyncio.ensure_future(holding.room(REF))
        await asyncio.sleep(0)
        holding.gone(KEY, PeerLost("cut"))
        with pytest.raises(PeerLost, match="cut"):
            await told
        assert len(holding) == 0

    asyncio.run(test())


def test_who_gives_up_waiting_for_room_leaves_nothing() -> None:
    async def test() -> None:
        holding = Holding()
        waiting = [asyncio.ensure_future(holding.room(REF)) for _ in range(3)]
        await asyncio.sleep(0)
        assert len(holding) == 1
        for each in waiting:
            each.cancel()
        await asyncio.wait(waiting)
        assert len(holding) == 0

    asyncio.run(test())


def test_what_could_never_be_sent_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "MAX_MESSAGE", 100)
    holding = Holding()
    holding.full(KEY)
    with pytest.raises(TooLarge, match="a message of 101 bytes"):
        holding.take(REF, [bytes(101)], 5)
    assert list(holding.opened(KEY)) == []


def test_a_lost_link_loses_what_waited_for_its_mailboxes_only() -> None:
    holding, other = Holding(), CoroRef("00000000000000bb", 1, 0xBB, 7, "bob")
    for ref in (REF, other):
        holding.full((ref.birth, ref.id))
        holding.take(ref, [b"m"], 5)
    assert holding.link_lost(link(), PeerLost("cut")) == 1
    assert not holding.is_full(REF)
    assert holding.is_full(other)


def test_each_link_is_told_once_that_a_mailbox_is_full() -> None:
    holding, first, second, lost = Holding(), link(1), link(2), link(3)
    assert [holding.tell_full(7, each) for each in (first, second, first, lost)] == [True, True, False, True]
    holding.link_lost(lost, PeerLost("gone"))
    assert holding.told_full(7) == [first, second]
    assert holding.told_full(7) == []


def test_the_notice_of_a_coroutine_waits_behind_its_own_messages_only() -> None:
    holding = Holding()
    holding.full(KEY)
    holding.full((REF.birth, 8))
    holding.take(REF, [b"m"], lane=5)
    assert holding.defer(REF.birth, 6) == []
    assert holding.defer(0xBB, 5) == []
    assert holding.defer(REF.birth, 5) == [REF.id]
    assert [operation for operation, _ in holding.opened(KEY)] == [Message(REF.id, [b"m"]), Notice(5, REF.id, True)]
    holding.full(KEY)
    holding.take(REF, [b"m"], lane=5)
    holding.defer(REF.birth, 5)
    assert holding.gone(KEY, PeerLost("cut")) == 1  # a notice is no message


def test_one_peer_says_of_so_many_mailboxes_that_they_are_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_FULL", 2)
    holding = Holding()
    for coro_id in (1, 2, 2):
        holding.full((REF.birth, coro_id))
    with pytest.raises(ProtocolError, match="more than 2 full mailboxes"):
        holding.full((REF.birth, 3))
    holding.full((0xBB, 3))
    holding.opened((REF.birth, 1))
    holding.full((REF.birth, 3))
    holding.link_lost(link(), PeerLost("gone"))
    for coro_id in (4, 5):
        holding.full((REF.birth, coro_id))


@pytest.mark.parametrize(("limit", "value"), [("OVERRUN_MESSAGES", 3), ("OVERRUN_BYTES", 20)])
def test_a_peer_that_was_told_sends_no_more_than_was_under_way(limit: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, limit, value)
    holding, one, other = Holding(), link(), link(0xBB)
    assert not holding.overruns(7, one, 1000), "it was not told yet"
    assert holding.tell_full(7, one) and holding.tell_full(7, other)
    assert [holding.overruns(7, one, 10) for _ in range(4)] == [False] * 3 + [True]
    assert not holding.overruns(7, other, 10)
    assert holding.told_full(7) == [one, other]
    assert not holding.overruns(7, one, 10), "there was room again"


def test_one_large_message_that_was_under_way_is_no_overrun(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sender may queue more behind it: the largest does not count there either."""
    monkeypatch.setattr(rooms, "OVERRUN_BYTES", 30)
    holding, one = Holding(), link()
    holding.tell_full(7, one)
    assert [holding.overruns(7, one, size) for size in (10, 1000, 10, 10, 10)] == [False] * 4 + [True]


def test_all_that_an_honest_peer_may_have_queued_is_no_overrun() -> None:
    """A window of full frames under way and a full queue behind it, before it hears that the mailbox is full."""
    queued = WINDOW_FRAMES * BATCH_OPERATIONS + QUEUE_OPERATIONS
    holding, one = Holding(), link()
    holding.tell_full(7, one)
    assert not any(holding.overruns(7, one, 32) for _ in range(queued))
