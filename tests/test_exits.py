"""How coroutines end, by itself: every waiter and monitor is told once, however the end is learnt."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from discoro import exits as rooms
from discoro import payload
from discoro.errors import CoroEnded, NoSuchCoro, Overloaded, PeerLost, Timeout, WorkerLost
from discoro.exits import Exits
from discoro.messages import Exit
from discoro.outcomes import Outcome
from discoro.references import CoroRef
from discoro.requests import Answer
from tests.support import moved_clock

HERE, THERE = 1, 2


def ref(birth: int, number: int = 7) -> CoroRef:
    return CoroRef(f"{birth:016x}", 1, birth, number, "n")


class Around:
    """A mesh of a few lines: what runs here, what others answer to watch, which notices were posted."""

    def __init__(self) -> None:
        self.running: set[int] = set()
        self.posted: list[tuple[Any, Exit]] = []
        self.answer: Any = Answer("running", ())
        self.asked = 0
        self.is_linked = True

    def linked(self, birth: int) -> bool:
        return self.is_linked

    def runs(self, coro_id: int) -> bool:
        return coro_id in self.running

    def post_exit(self, link: Any, operation: Exit) -> None:
        self.posted.append((link, operation))

    async def request(self, to: CoroRef, verb: str, arguments: dict[str, Any]) -> Answer:
        self.asked += 1
        await asyncio.sleep(0)
        if isinstance(self.answer, Exception):
            raise self.answer
        answer: Answer = self.answer
        return answer


class Observer:
    def __init__(self, done: bool = False, number: int = 50) -> None:
        self.done = done
        self.ref, self.id = ref(HERE, number), number
        self.notices: list[Any] = []

    def notify(self, observed: CoroRef, outcome: Outcome) -> None:
        self.notices.append((observed, outcome.reason))


def with_exits(test: Callable[[Exits, Around], Awaitable[None]]) -> None:
    async def body() -> None:
        around = Around()
        await test(Exits(HERE, around), around)

    moved_clock.run(body)


def packed(value: Any) -> Outcome:
    return Outcome("normal", body=payload.pack(value))


class Linked:
    def __init__(self, birth: int) -> None:
        self.birth = birth


def link(birth: int = THERE) -> Any:
    return Linked(birth)


def coro(number: int) -> Any:
    return SimpleNamespace(ref=ref(HERE, number), id=number)


def test_everybody_who_waits_is_told_once() -> None:
    async def test(exits: Exits, around: Around) -> None:
        observer, gone = Observer(), Observer(done=True)
        waiting = [asyncio.ensure_future(exits.result(ref(THERE), None)) for _ in range(3)]
        for each in (observer, gone):
            await exits.monitor(each, ref(THERE))  # type: ignore[arg-type]
        exits.settle((THERE, 7), packed("value"))
        exits.settle((THERE, 7), packed("again"))
        assert [await each for each in waiting] == ["value"] * 3
        assert observer.notices == [(ref(THERE), "normal")]
        assert gone.notices == []

    with_exits(test)


def test_an_end_that_overtakes_the_question_is_not_lost() -> None:
    async def test(exits: Exits, around: Around) -> None:
        waiting = asyncio.ensure_future(exits.result(ref(THERE), 5))
        await asyncio.sleep(0)  # it has asked, and the answer is not there yet
        exits.settle((THERE, 7), packed("early"))
        assert await waiting == "early"
        assert not exits.still_runs(ref(THERE))

    with_exits(test)


def test_a_coroutine_that_we_created_is_not_asked_about() -> None:
    async def test(exits: Exits, around: Around) -> None:
        exits.expect(ref(THERE))
        assert exits.still_runs(ref(THERE))
        waiting = asyncio.ensure_future(exits.result(ref(THERE), 5))
        await asyncio.sleep(0)
        exits.settle((THERE, 7), packed(1))
        assert (await waiting, around.asked) == (1, 0)
        exits.expect(ref(THERE))  # told late: it has ended
        assert not exits.still_runs(ref(THERE))

    with_exits(test)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (Answer(["unknown", ""], ()), NoSuchCoro),
        (Answer(["terminated", "was ended"], ()), CoroEnded),
        (Answer("nonsense", ()), NoSuchCoro),
        (PeerLost("gone"), PeerLost),
        (WorkerLost("killed"), WorkerLost),
    ],
)
def test_what_the_other_side_answers_is_what_the_asker_gets(answer: Any, error: type[Exception]) -> None:
    async def test(exits: Exits, around: Around) -> None:
        around.answer = answer
        with pytest.raises(error):
            await exits.result(ref(THERE), 5)

    with_exits(test)


def test_a_lost_link_settles_its_own_coroutines_and_keeps_nothing() -> None:
    async def test(exits: Exits, around: Around) -> None:
        lost, kept = Observer(), Observer()
        await exits.monitor(lost, ref(THERE))  # type: ignore[arg-type]
        await exits.monitor(kept, ref(3))  # type: ignore[arg-type]
        exits.link_lost(link(), PeerLost("cut"))
        assert (lost.notices, kept.notices) == ([(ref(THERE), "peer lost")], [])
        around.answer = Answer(["normal", ""], payload.pack("it lived on"))
        assert await exits.result(ref(THERE), 5) == "it lived on"

    with_exits(test)


def test_waiting_in_vain_leaves_nothing() -> None:
    async def test(exits: Exits, around: Around) -> None:
        with pytest.raises(Timeout, match="n/1/7 had not ended after 2 s"):
            await exits.result(ref(THERE), 2)
        assert not exits._waiters

    with_exits(test)


def test_monitors_are_forgotten_with_their_observer() -> None:
    async def test(exits: Exits, around: Around) -> None:
        lives, ends = Observer(), Observer(number=51)
        for observer in (lives, ends, ends):
            for number in (7, 8):
                await exits.monitor(observer, ref(THERE, number))  # type: ignore[arg-type]
        exits.settle((THERE, 8), packed("value"))
        exits.ended(ends, Outcome("normal"))  # type: ignore[arg-type]
        assert [[observer for observer, _ in entries.values()] for entries in exits._monitors.values()] == [[lives]]
        exits.ended(lives, Outcome("normal"))  # type: ignore[arg-type]
        assert not exits._monitors and not exits._observed

    with_exits(test)


class Compared(Observer):
    """One that counts how often it is looked at to find another."""

    times = 0
    __hash__ = object.__hash__

    def __init__(self, number: int) -> None:
        super().__init__(number=number)

    def __eq__(self, other: object) -> bool:
        Compared.times += 1
        return self is other

    def stop(self, reason: str, why: str) -> None:
        self.notices.append(reason)


def test_others_have_one_of_ours_follow_so_many_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_LEADERS", 3)

    async def test(exits: Exits, around: Around) -> None:
        follower: Any = Compared(100)
        for number in range(3):
            exits.check_leaders(follower)
            exits.follow_here(follower, CoroRef("", 0, 0xBB, number, ""), "linked")
        with pytest.raises(Overloaded, match="monitors 3 coroutines, and others may not add"):
            exits.check_leaders(follower)

    with_exits(test)


def test_the_many_who_monitor_or_follow_one_are_not_gone_through_for_each() -> None:
    async def test(exits: Exits, around: Around) -> None:
        around.running = {7}
        others: list[Any] = [Compared(number) for number in range(100, 400)]
        for other in others:
            await exits.monitor(other, ref(HERE))
            await exits.follow(other, ref(HERE), "linked")
            exits.follow_here(other, ref(HERE), "parent ended")
        for other in others[:100]:
            exits.ended(other, Outcome("normal"))
        for other in others[100:200]:
            exits.unfollow(other, ref(HERE))
        exits.settle((HERE, 7), Outcome("terminated"))
        assert not exits._observed.get(399)
        told = [[notice if isinstance(notice, str) else notice[1] for notice in other.notices] for other in others]
        once = ["terminated", "parent ended"]
        assert told == [[]] * 100 + [once] * 100 + [["terminated", "linked", "parent ended"]] * 100
        assert Compared.times == 0

    with_exits(test)


def test_a_monitor_that_cannot_ask_leaves_nothing() -> None:
    async def test(exits: Exits, around: Around) -> None:
        around.answer = ValueError("a bug")
        with pytest.raises(ValueError, match="a bug"):
            await exits.monitor(Observer(), ref(THERE))  # type: ignore[arg-type]
        assert not exits._monitors

    with_exits(test)


# ------------------------------------------------------------------ coroutines of this process


def test_links_that_watch_are_told_and_lost_ones_are_not() -> None:
    async def test(exits: Exits, around: Around) -> None:
        first, second = link(2), link(3)
        for each in (first, second, first):
            exits.watched_by(7, each)
        exits.link_lost(second, PeerLost("gone"))
        assert exits.is_awaited(7)
        exits.ended(coro(7), Outcome("normal", [1]))
        [(told, operation)] = around.posted
        assert told is first
        assert (operation.coro, operation.reason, payload.unpack(operation.body)) == (7, "normal", [1])
        assert await exits.result(ref(HERE), 1) == [1]

    with_exits(test)


def test_watching_answers_running_ended_or_unknown() -> None:
    async def test(exits: Exits, around: Around) -> None:
        def watch(number: int, peer: Any) -> Any:
            answers: list[Any] = []
            incoming = SimpleNamespace(coro=number, reply=lambda value, body=(): answers.append((value, body)))
            exits.on_watch(incoming, peer)  # type: ignore[arg-type]
            return answers[0]

        around.running = {1}
        peer, later = link(), link()
        assert watch(1, peer)[0] == "running"
        around.running = set()
        exits.ended(coro(1), Outcome("normal", 5))
        assert [to for to, _ in around.posted] == [peer]
        assert watch(1, later)[0] == "running", "the exit comes behind the messages, where some are still on their way"
        to, notice = around.posted[1]
        assert (to, notice.reason, payload.unpack(notice.body)) == (later, "normal", 5)
        value, body = watch(1, None)
        assert (value, payload.unpack(body)) == (["normal", ""], 5)
        assert watch(9, peer)[0] == ["unknown", ""]

    with_exits(test)


def test_kept_outcomes_are_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "KEPT_OUTCOMES", 3)
    monkeypatch.setattr(rooms, "KEPT_BYTES", 1000)

    async def test(exits: Exits, around: Around) -> None:
        for number in range(5):
            exits.settle((HERE, number), Outcome("normal", number))
        with pytest.raises(NoSuchCoro):
            await exits.result(ref(HERE, 1), 1)
        assert await exits.result(ref(HERE, 2), 1) == 2
        for number in range(5, 8):
            exits.settle((HERE, number), packed(bytes(700)))
        assert list(exits._outcomes) == [(HERE, 7)]
        assert 700 <= exits._bytes <= 1000

    with_exits(test)


def test_a_deferred_notice_comes_when_it_is_released_or_its_peer_is_lost() -> None:
    async def test(exits: Exits, around: Around) -> None:
        for release in (lambda: exits.release((THERE, 7), 50), lambda: exits.link_lost(link(), PeerLost("cut"))):
            waits, goes = Observer(), Observer(number=51)
            for each in (waits, goes):
                await exits.monitor(each, ref(THERE))  # type: ignore[arg-type]
            exits.defer((THERE, 7), 50)
            exits.settle((THERE, 7), packed("value"), keep=False)
            assert (waits.notices, goes.notices) == ([], [(ref(THERE), "normal")])
            release()
            release()
            assert waits.notices == [(ref(THERE), "normal")]
            assert not exits._deferred

    with_exits(test)


def failing(exits: Exits) -> None:
    body, reason, text = Outcome("exception", error=ValueError("bad"), text="ValueError: bad").packed()
    exits.told((THERE, 7), "ada/1/7", Outcome(reason, text=text, body=body))


def test_an_exception_that_nobody_asks_about_is_said_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    async def test(exits: Exits, around: Around) -> None:
        failing(exits)
        await asyncio.sleep(1)
        assert not caplog.records
        await asyncio.sleep(2)
        exits.say_unheard()
        [record] = caplog.records
        assert "ada/1/7 ended with ValueError: bad, and nobody waits" in record.message

    with_exits(test)


@pytest.mark.parametrize("when", ["before", "after"])
def test_an_exception_that_somebody_asks_about_is_theirs(when: str, caplog: pytest.LogCaptureFixture) -> None:
    async def test(exits: Exits, around: Around) -> None:
        if when == "before":
            asking = asyncio.ensure_future(exits.result(ref(THERE), 9))
            await asyncio.sleep(0)
            failing(exits)
        else:
            failing(exits)
            asking = asyncio.ensure_future(exits.result(ref(THERE), 9))
        with pytest.raises(ValueError, match="bad") as caught:
            await asking
        assert caught.value.__notes__ == ["raised in the coroutine n/1/7"]
        await asyncio.sleep(5)
        exits.say_unheard()
        assert not caplog.records

    with_exits(test)


def test_who_waits_here_gets_the_object_even_where_another_process_is_told_too() -> None:
    async def test(exits: Exits, around: Around) -> None:
        around.running = {7}
        exits.watched_by(7, link())
        waiting = asyncio.ensure_future(exits.result(ref(HERE), 5))
        await asyncio.sleep(0)
        generator = (x for x in ())  # cannot travel
        exits.ended(coro(7), Outcome("normal", generator))
        assert await waiting is generator
        [(_, operation)] = around.posted
        assert operation.reason == "exception"

    with_exits(test)


def test_monitoring_twice_gives_one_notice() -> None:
    async def test(exits: Exits, around: Around) -> None:
        observer = Observer()
        for _ in range(2):
            assert await exits.monitor(observer, ref(THERE)) == 0  # type: ignore[arg-type]
        exits.settle((THERE, 7), packed(1))
        assert observer.notices == [(ref(THERE), "normal")]

    with_exits(test)


def test_who_is_lost_in_the_turn_that_brought_its_answer_is_not_waited_for() -> None:
    async def test(exits: Exits, around: Around) -> None:
        around.is_linked, around.answer = False, PeerLost("gone")
        exits.expect(ref(THERE))
        assert not exits.still_runs(ref(THERE))
        with pytest.raises(PeerLost, match="gone"):
            await exits.result(ref(THERE), 5)

    with_exits(test)


def test_one_that_has_ended_neither_subscribes_nor_monitors() -> None:
    async def test(exits: Exits, around: Around) -> None:
        gone: Any = Observer(done=True)
        with pytest.raises(NoSuchCoro):
            await exits.subscribed(gone, ref(THERE))
        assert await exits.monitor(gone, ref(THERE)) == 0
        assert (exits._subscriptions, exits._monitors, exits._observed) == ({}, {}, {})

    with_exits(test)


def test_values_that_stay_in_the_process_count_as_bytes_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "KEPT_BYTES", 10_000)

    async def test(exits: Exits, around: Around) -> None:
        for number in range(5):
            exits.settle((HERE, number), Outcome("normal", bytes(4000)))
        assert list(exits._outcomes) == [(HERE, 3), (HERE, 4)]

    with_exits(test)
