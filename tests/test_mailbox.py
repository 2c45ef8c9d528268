"""What was sent to one coroutine and not yet received, by itself; and the messages that somebody waits for the reply of."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from discoro import payload
from discoro.errors import NoReply, PackError, UnpackError
from discoro.mailbox import MAILBOX_BYTES, MAILBOX_MESSAGES, Mailbox, Question


class Asker:
    """Who waits for a reply: what came."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.errors: list[BaseException] = []
        self.question = Question("echo (ada/1/2)", self._answer)

    def _answer(self, value: Any, error: BaseException | None) -> None:
        if error is not None:
            self.errors.append(error)
        elif callable(value):
            raise PackError("a function")
        else:
            self.replies.append(value)


# ------------------------------------------------------------------ questions


@pytest.mark.parametrize("junk", [None, "text", ValueError])
def test_a_question_fails_with_an_exception_only_and_waits_on_otherwise(junk: Any) -> None:
    asker = Asker()
    with pytest.raises(TypeError, match="fail takes an exception"):
        asker.question.fail(junk)
    assert asker.question.reply("still") == 1
    assert asker.replies == ["still"]


def test_a_reply_that_cannot_travel_leaves_the_question_open() -> None:
    asker = Asker()
    with pytest.raises(PackError):
        asker.question.reply(len)
    assert "waits" in repr(asker.question)
    assert asker.question.reply("better") == 1
    assert (asker.replies, asker.errors) == (["better"], [])


def test_a_question_is_answered_once() -> None:
    asker = Asker()
    assert asker.question.reply(1) == 1
    assert "answered" in repr(asker.question)
    assert (asker.question.reply(2), asker.question.fail(ValueError())) == (0, 0)
    asker.question.unanswered("too late")
    assert (asker.replies, asker.errors) == ([1], [])


def test_an_error_is_an_answer() -> None:
    asker, error = Asker(), ValueError("no")
    assert asker.question.fail(error) == 1
    assert asker.errors == [error]


def test_a_question_that_is_dropped_is_answered_with_no_reply() -> None:
    asker = Asker()
    del asker.question
    assert [(type(error), str(error)) for error in asker.errors] == [
        (NoReply, "echo (ada/1/2) dropped the question without a reply")
    ]


def test_a_question_that_was_answered_is_dropped_in_silence() -> None:
    asker = Asker()
    asker.question.reply(1)
    del asker.question
    assert asker.errors == []


# ------------------------------------------------------------------ mailboxes


def test_a_message_that_cannot_be_opened_is_gone_and_who_asked_it_is_told() -> None:
    mailbox, asker = Mailbox(), Asker()
    mailbox.put_packed([b"no pickle"], asker.question)
    mailbox.put("next")
    with pytest.raises(UnpackError):
        mailbox.take(None)
    assert [type(error) for error in asker.errors] == [UnpackError]
    assert mailbox.take(None) == "next"
    assert len(mailbox) == 0


def test_packed_bodies_and_objects_come_in_the_order_sent_the_objects_as_they_are() -> None:
    mailbox, thing = Mailbox(), object()
    mailbox.put_packed(payload.pack([1]))
    mailbox.put(thing)
    mailbox.put_packed(payload.pack([2]))
    assert mailbox.take(None) == [1]
    assert mailbox.take(None) is thing
    assert mailbox.take(None) == [2]


def test_messages_that_came_together_are_taken_in_order_between_others() -> None:
    mailbox, bodies = Mailbox(), [payload.pack(number)[0] for number in range(5)]
    mailbox.put("before")
    mailbox.put_run([bytes(body) for body in bodies[:3]])
    mailbox.put("between")
    mailbox.put_run([bytes(body) for body in bodies[3:]])
    assert len(mailbox) == 7
    taken = [mailbox.take(None) for _ in range(3)]
    mailbox.put("behind")
    assert taken + [mailbox.take(None) for _ in range(5)] == ["before", 0, 1, 2, "between", 3, 4, "behind"]
    assert (len(mailbox), mailbox._size) == (0, 0)


def test_messages_that_came_together_fill_it_like_others_and_one_that_cannot_be_opened_is_gone() -> None:
    mailbox = Mailbox()
    mailbox.put_run([b"no pickle", *[payload.pack(1)[0]] * MAILBOX_MESSAGES])  # type: ignore[list-item]
    assert mailbox.full
    with pytest.raises(UnpackError):
        mailbox.take(None)
    for _ in range(MAILBOX_MESSAGES // 2):
        assert mailbox.take(None) == 1
    assert mailbox.half_empty
    mailbox.close("ended")


def test_it_is_full_at_so_many_messages_and_open_again_at_half() -> None:
    mailbox = Mailbox()
    for number in range(MAILBOX_MESSAGES):
        assert not mailbox.full
        mailbox.put(number)
    assert mailbox.full
    for _ in range(MAILBOX_MESSAGES // 2):
        assert not mailbox.half_empty
        mailbox.take(None)
    assert mailbox.half_empty


def test_it_is_full_at_so_many_bytes_and_open_again_at_half() -> None:
    mailbox, body = Mailbox(), payload.pack(bytes(MAILBOX_BYTES // 4))
    for _ in range(4):
        assert not mailbox.full
        mailbox.put_packed(body)
    assert mailbox.full
    mailbox.take(None)
    mailbox.take(None)
    assert not mailbox.full
    assert not mailbox.half_empty
    mailbox.take(None)
    assert mailbox.half_empty


def in_loop(test: Any) -> None:
    async def run() -> None:
        test(Mailbox())

    asyncio.run(run())


def test_whatever_comes_wakes_who_waits_once() -> None:
    def test(mailbox: Mailbox) -> None:
        wake = mailbox.waits()
        assert not wake.done()
        mailbox.put(1)
        assert wake.done()
        mailbox.put_packed(payload.pack(2))
        mailbox.wake = None
        mailbox.put(3)
        assert [mailbox.take(None) for _ in range(3)] == [1, 2, 3]

    in_loop(test)


def test_a_wake_that_was_cancelled_takes_no_message_with_it() -> None:
    def test(mailbox: Mailbox) -> None:
        mailbox.waits().cancel()
        mailbox.put(1)
        assert mailbox.take(None) == 1

    in_loop(test)


def test_one_that_waits_shares_no_message_with_others_that_wait() -> None:
    def test(mailbox: Mailbox) -> None:
        other = Mailbox()
        for _ in range(3):
            mailbox.waits()
            other.waits()
            mailbox.put("mine")
            assert (len(mailbox), len(other)) == (1, 0)
            assert mailbox.take(None) == "mine"

    in_loop(test)


def test_going_on_tells_who_asked_the_message_taken_last_only() -> None:
    mailbox, first, second = Mailbox(), Asker(), Asker()
    mailbox.put(1, first.question)
    mailbox.put(2, second.question)
    mailbox.go_on("took nothing yet")
    mailbox.take(None)
    mailbox.go_on("went on")
    mailbox.go_on("went on again")
    assert [str(error) for error in first.errors] == ["echo (ada/1/2) went on"]
    assert second.errors == []
    mailbox.take(None)
    assert mailbox.asked is second.question


def test_closing_tells_everybody_who_waits_for_a_reply() -> None:
    mailbox, askers = Mailbox(), [Asker() for _ in range(3)]
    for asker in askers:
        mailbox.put("question", asker.question)
    mailbox.put("no question")
    mailbox.take(None)
    mailbox.close("ended")
    assert [str(error) for asker in askers for error in asker.errors] == ["echo (ada/1/2) ended"] * 3
