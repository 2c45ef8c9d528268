"""One line a minute, however often it happens, and nothing left out."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

import pytest

from discoro.throttle import KINDS, PERIOD, Throttle
from tests.support import moved_clock

log = logging.getLogger("discoro.test")


def said(caplog: pytest.LogCaptureFixture, test: Callable[[], Awaitable[None]]) -> list[tuple[int, str]]:
    caplog.set_level(logging.DEBUG, "discoro.test")
    moved_clock.run(test)
    return [(record.levelno, record.getMessage()) for record in caplog.records if record.name == "discoro.test"]


def test_the_first_is_said_at_once_and_the_rest_once_a_minute_with_a_count(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        throttle = Throttle(log, "knocks")
        throttle.note("at the door", "by ada")
        for name in ("bob", "eve"):
            throttle.note("at the door", f"by {name}")
        throttle.note("at the window")
        await asyncio.sleep(PERIOD + 1)
        await asyncio.sleep(3 * PERIOD)  # nothing happens, nothing is said
        throttle.note("at the roof")

    first, rest, last = said(caplog, test)
    assert first == (logging.WARNING, "! knocks: at the door (by ada)")
    assert rest == (logging.WARNING, "! knocks: at the door (2 times, by eve); at the window")
    assert last == (logging.WARNING, "! knocks: at the roof")


def test_many_of_what_is_no_warning_are_one(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        throttle = Throttle(log, "knocks", logging.INFO, loud=3)
        for _ in range(4):
            throttle.note("quiet")
        await asyncio.sleep(PERIOD + 1)

    assert [level for level, _ in said(caplog, test)] == [logging.INFO, logging.WARNING]


def test_many_are_told_of_at_once_and_then_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        throttle = Throttle(log, "knocks", logging.INFO, loud=3)
        for _ in range(100):
            throttle.note("quiet")
        assert [record.levelno for record in caplog.records] == [logging.INFO, logging.WARNING]
        await asyncio.sleep(PERIOD + 1)
        for _ in range(100):
            throttle.note("quiet")
        await asyncio.sleep(PERIOD + 1)

    lines = said(caplog, test)
    assert [text for _, text in lines][1:3] == ["! knocks: quiet (3 times)", "! knocks: quiet (96 times)"]
    assert len(lines) == 5, "after a minute the first many are told of at once again"


def test_kinds_that_strangers_make_up_do_not_make_the_line_longer(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        throttle = Throttle(log, "knocks")
        for number in range(1000):
            throttle.note(f"kind {number}")
        throttle.close()

    _, (_, line) = said(caplog, test)
    assert line.count("kind") == KINDS and f"others ({999 - KINDS} times)" in line


def test_what_is_left_is_said_at_the_end(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        throttle = Throttle(log, "knocks")
        throttle.note("one")
        throttle.close()
        throttle.note("two")
        throttle.note("three")
        throttle.close()
        await asyncio.sleep(2 * PERIOD)

    assert [line for _, line in said(caplog, test)] == ["! knocks: one", "! knocks: two", "! knocks: three"]
