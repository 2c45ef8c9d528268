"""Connections that others make, over real TCP sockets in this process: who gives way, and that no other is ever shut down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator

import pytest

from discoro import arrivals as room
from discoro.arrivals import BROKE_OFF, MANY, UNGREETED_SECONDS, Arrivals
from discoro.throttle import PERIOD
from tests.support import moved_clock


class Door:
    """A port, and both sides of each connection to it."""

    def __init__(self) -> None:
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._opened: list[socket.socket] = []

    def __enter__(self) -> Door:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (*self._opened, self._listening):
            with contextlib.suppress(OSError):
                each.close()

    def knock(self) -> tuple[socket.socket, socket.socket]:
        """(their side, ours)."""
        theirs = socket.create_connection(self._listening.getsockname())
        ours, _ = self._listening.accept()
        theirs.setblocking(False)
        self._opened += [theirs, ours]
        return theirs, ours


def ended(theirs: socket.socket) -> bool:
    try:
        return theirs.recv(1) == b""
    except BlockingIOError:
        return False


@pytest.fixture
def door() -> Iterator[Door]:
    with Door() as made:
        yield made


def run(door: Door, test: Callable[[Arrivals], Awaitable[None]]) -> None:
    async def body() -> None:
        arrivals = Arrivals(asyncio.get_running_loop(), [door.port])
        await test(arrivals)
        arrivals.close()

    moved_clock.run(body)


def test_the_oldest_without_a_greeting_gives_way(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_UNGREETED", 2)

    async def test(arrivals: Arrivals) -> None:
        (peer, first), *others = (door.knock() for _ in range(4))
        arrivals.greeted(arrivals.accepted(first.fileno()))
        for _, ours in others:
            arrivals.accepted(ours.fileno())
        assert not ended(peer), "who has greeted stays"
        assert [ended(theirs) for theirs, _ in others] == [True, False, False]

    run(door, test)


def test_past_the_limit_in_all_the_newcomer_gives_way_where_all_others_have_greeted(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "MAX_CONNECTIONS", 3)

    async def test(arrivals: Arrivals) -> None:
        crowd = [door.knock() for _ in range(5)]
        for _, ours in crowd[:4]:
            arrivals.greeted(arrivals.accepted(ours.fileno()))
        assert [ended(theirs) for theirs, _ in crowd] == [False, False, False, True, False]
        arrivals.ended(crowd[0][1].fileno())
        arrivals.accepted(crowd[4][1].fileno())
        assert not ended(crowd[4][0]), "a place became free"

    run(door, test)


def test_who_does_not_greet_has_ten_seconds(door: Door) -> None:
    async def test(arrivals: Arrivals) -> None:
        (peer, one), (silent, other) = door.knock(), door.knock()
        arrivals.greeted(arrivals.accepted(one.fileno()))
        arrivals.accepted(other.fileno())
        await asyncio.sleep(UNGREETED_SECONDS - 1)
        assert not ended(silent)
        await asyncio.sleep(3)
        assert ended(silent) and not ended(peer)

    run(door, test)


def test_for_ten_seconds_after_a_change_of_key_nobody_is_warned_of_the_old_one(
    door: Door, caplog: pytest.LogCaptureFixture
) -> None:
    async def test(arrivals: Arrivals) -> None:
        def fail() -> None:
            for _ in range(MANY + 1):
                _, ours = door.knock()
                arrivals.accepted(ours.fileno())
                arrivals.ended(ours.fileno())

        arrivals.key_changed()
        fail()
        await asyncio.sleep(PERIOD)
        assert "without a greeting" not in caplog.text
        fail()
        await asyncio.sleep(PERIOD)
        assert f"connections without a greeting: {BROKE_OFF} ({MANY} times, from 127.0.0.1)" in caplog.text

    with caplog.at_level(logging.WARNING):
        run(door, test)


def test_a_descriptor_that_is_somebody_elses_by_now_is_left_alone(door: Door) -> None:
    """It was closed and opened again, as another connection, as a file, as nothing; and the end was not told yet."""

    async def test(arrivals: Arrivals) -> None:
        _, first = door.knock()
        number = first.fileno()
        arrival = arrivals.accepted(number)
        theirs, ours = door.knock()
        os.dup2(ours.fileno(), number)
        arrivals.hang_up(arrival)
        assert not ended(theirs)

        for other in (os.open(os.devnull, os.O_RDONLY), os.pipe()[0]):
            _, ours = door.knock()
            arrival, number = arrivals.accepted(ours.fileno()), ours.fileno()
            os.dup2(other, number)
            arrivals.hang_up(arrival)
            os.fstat(number)
            os.close(other)

        _, ours = door.knock()
        arrival = arrivals.accepted(ours.fileno())
        ours.close()
        arrivals.hang_up(arrival)

    run(door, test)


def test_a_connection_of_our_own_in_the_place_of_one_that_was_told_late_is_left_alone(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It came and went while the loop was busy, and what the loop was busy with opened a connection in its place."""
    monkeypatch.setattr(room, "MAX_UNGREETED", 1)

    async def test(arrivals: Arrivals) -> None:
        own, there = door.knock()
        there.setblocking(False)
        arrivals.accepted(own.fileno())
        for _ in range(3):
            arrivals.accepted(door.knock()[1].fileno())
        assert not ended(there)

    run(door, test)


def test_one_that_is_told_as_ended_is_not_counted_any_more(door: Door, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_UNGREETED", 1)

    async def test(arrivals: Arrivals) -> None:
        for _ in range(10):
            theirs, ours = door.knock()
            arrivals.accepted(ours.fileno())
            arrivals.ended(ours.fileno())
            assert not ended(theirs)
        assert repr(arrivals) == "<Arrivals 0 connections, 0 not greeted>"

    run(door, test)
