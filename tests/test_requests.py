"""Requests and replies by themselves: each is answered once, fails with its peer, or is dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from discoro import payload
from discoro import requests as rooms
from discoro.errors import (
    DiscoroError,
    NotSetUp,
    Overloaded,
    PeerLost,
    ProtocolError,
    RemoteError,
    SetupFailed,
    TooLarge,
    UnpackError,
)
from discoro.messages import Greeting
from discoro.requests import Answer, Incoming, Requests, UnderWay, answering

PEER = Greeting("00000000000000aa", 1, 0xAA, "ada", "client", "default", "3.11", "0", ())


def incoming(answers: list[Any]) -> Incoming:
    return Incoming(PEER, 0, "verb", {}, (), lambda *answer: answers.append(answer))


def test_an_answer_reaches_who_asked_and_a_second_nobody() -> None:
    async def test() -> None:
        requests = Requests()
        number, future = requests.begin(1)
        requests.answer(number, True, 5, [b"body"])
        requests.answer(number, True, 6, ())
        requests.answer(99, True, 7, ())
        assert await future == Answer(5, [b"body"])
        assert len(requests) == 0

    asyncio.run(test())


def test_a_lost_peer_fails_its_own_requests_only() -> None:
    async def test() -> None:
        requests = Requests()
        (_, lost), (_, kept) = requests.begin(1), requests.begin(2)
        requests.fail(1, PeerLost("gone"))
        with pytest.raises(PeerLost, match="gone"):
            await lost
        assert not kept.done()
        assert len(requests) == 1

    asyncio.run(test())


def test_an_answer_after_the_end_is_dropped() -> None:
    async def test() -> None:
        requests = Requests()
        number, future = requests.begin(1)
        requests.end(number)
        requests.answer(number, True, 5, ())
        assert not future.done()

    asyncio.run(test())


@pytest.mark.parametrize("junk", [None, [], ["PeerLost"], ["PeerLost", 1], "text", [b"x", b"y"]])
def test_an_answer_that_is_no_error_is_one_of_the_protocol(junk: Any) -> None:
    async def test() -> None:
        requests = Requests()
        number, future = requests.begin(1)
        requests.answer(number, False, junk, ())
        with pytest.raises(ProtocolError):
            await future

    asyncio.run(test())


def failure(error: BaseException) -> tuple[str, str, Any]:
    answers: list[Any] = []
    incoming(answers).fail(error)
    [(ok, (name, text), body)] = answers
    assert ok is False
    return name, text, body


def test_errors_of_ours_travel_by_name_with_their_cause() -> None:
    error = SetupFailed("func failed")
    error.__cause__ = KeyError("k")
    name, text, body = failure(error)
    assert (name, text) == ("SetupFailed", "func failed")
    assert isinstance(payload.unpack_error(body), KeyError)


def test_a_cause_that_was_only_passed_on_goes_on_as_it_came() -> None:
    async def test() -> None:
        requests = Requests(opens_causes=False)
        number, future = requests.begin(1)
        requests.answer(number, False, ["SetupFailed", "no"], [b"never opened"])
        with pytest.raises(SetupFailed) as caught:
            await future
        assert caught.value.__cause__ is None
        assert failure(caught.value) == ("SetupFailed", "no", [b"never opened"])

    asyncio.run(test())


def test_a_cause_that_cannot_be_opened_keeps_nobody_waiting() -> None:
    async def test() -> None:
        requests = Requests()
        number, future = requests.begin(1)
        requests.answer(number, False, ["NotSetUp", "why"], [b"junk"])
        with pytest.raises(NotSetUp, match="why") as raised:
            await asyncio.wait_for(future, 1)
        assert isinstance(raised.value.__cause__, UnpackError)

    asyncio.run(test())


@pytest.mark.parametrize("junk", [None, "1", 1.0, float("inf"), [1], {"a": 1}])
def test_an_answer_that_is_no_number_is_said_so(junk: Any) -> None:
    assert Answer(1, ()).number == 1
    with pytest.raises(ProtocolError, match="no number"):
        Answer(junk, ()).number  # noqa: B018


def test_a_bug_is_logged_and_told(caplog: pytest.LogCaptureFixture) -> None:
    name, text, _ = failure(ZeroDivisionError("oops"))
    assert name == RemoteError.__name__
    assert "oops" in text
    assert "a bug while answering verb" in caplog.text


def test_only_the_first_answer_counts() -> None:
    answers: list[Any] = []
    request = incoming(answers)
    request.reply(1)
    request.reply(2)
    request.fail(NotSetUp("no"))
    assert answers == [(True, 1, ())]


async def done(request: Incoming, work: Callable[[], Awaitable[None]]) -> None:
    await asyncio.wait([answering(request, work())])


def test_an_answer_that_cannot_travel_becomes_the_error_that_says_so() -> None:
    answers: list[Any] = []

    def answer(ok: bool, value: Any, body: Any) -> None:
        if ok:
            raise TooLarge("a reply of 129 KiB")
        answers.append(value)

    async def work() -> None:
        request.reply("large")

    request = Incoming(PEER, 0, "verb", {}, (), answer)
    asyncio.run(done(request, work))
    assert answers == [["TooLarge", "a reply of 129 KiB"]]


@pytest.mark.parametrize(("error", "name"), [(NotSetUp("no"), "NotSetUp"), (ValueError("v"), "RemoteError")])
def test_whatever_goes_wrong_while_answering_is_the_answer(error: Exception, name: str) -> None:
    async def work() -> None:
        raise error

    answers: list[Any] = []
    asyncio.run(done(incoming(answers), work))
    assert answers[0][1][0] == name


@pytest.mark.parametrize("steps", [0, 1])
def test_a_request_given_up_is_answered_even_before_its_first_step(steps: int) -> None:
    async def test() -> list[Any]:
        answers: list[Any] = []
        task = answering(incoming(answers), asyncio.Event().wait())  # type: ignore[arg-type]
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        return answers

    [(ok, (name, _), _)] = asyncio.run(test())
    assert (ok, name) == (False, "PeerLost")
    assert issubclass(PeerLost, DiscoroError)


def test_so_many_requests_of_one_peer_wait_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is answered makes room for another, and so does one that nobody will answer."""
    monkeypatch.setattr(rooms, "MAX_UNDER_WAY", 2)
    under_way, answers = UnderWay(), list[Any]()
    waiting = [incoming(answers), incoming(answers)]
    for each in waiting:
        under_way.check(PEER.birth, "ask")
        under_way.add(each)
    with pytest.raises(Overloaded, match="2 requests of yours, with .* wait here"):
        under_way.check(PEER.birth, "ask")
    under_way.check(0xBB, "ask")
    waiting[0].reply(0)
    under_way.check(PEER.birth, "ask")
    under_way.add(incoming(answers))  # and forgotten
    assert len(under_way) == 1
    waiting.pop().fail(PeerLost("gone"))
    assert len(under_way) == 0


def test_who_has_asked_too_much_can_still_end_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to twice as much: nothing is without a limit."""
    monkeypatch.setattr(rooms, "MAX_UNDER_WAY", 2)
    under_way, waiting = UnderWay(), [incoming([]) for _ in range(4)]
    for each in waiting:
        under_way.check(PEER.birth, "terminate")
        under_way.add(each)
    for verb in ("terminate", "ask"):
        with pytest.raises(Overloaded):
            under_way.check(PEER.birth, verb)
    waiting.pop().reply(0)
    under_way.check(PEER.birth, "terminate")


def test_what_waiting_requests_hold_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their bodies, and their arguments, which take more here than they did on the way."""
    monkeypatch.setattr(rooms, "UNDER_WAY_BYTES", 4000)
    for large in (Incoming(PEER, 0, "x", {}, [bytes(4000)], print), Incoming(PEER, 0, "x", {"a": [[]] * 200}, (), print)):
        under_way = UnderWay()
        under_way.add(large)
        with pytest.raises(Overloaded):
            under_way.check(PEER.birth, "ask")
