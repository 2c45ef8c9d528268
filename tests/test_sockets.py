"""Reading a socket from the loop: nothing stays unread, others have their turn, and the loop stays awake for quick answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import zmq

from discoro.sockets import CROWDED, CROWDED_FOR, FRAMES_PER_TURN, QUICK, Pump


class Loop:
    """As much of an event loop as a pump needs, with a clock moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.soon: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, function: Callable[[], None]) -> None:
        self.soon.append(function)

    def add_reader(self, *_: Any) -> None: ...

    def remove_reader(self, *_: Any) -> None: ...

    def turn(self) -> int:
        """Call what was to be called soon; how much that was."""
        soon, self.soon = self.soon, []
        for function in soon:
            function()
        return len(soon)


class Line:
    """A socket with so many frames to read, and its pump."""

    def __init__(self) -> None:
        self.unread = 0
        self.read = 0
        self.drained = 0
        self.loop = Loop()
        self.pump = Pump(self.loop, self, self.take, self.on_drained)  # type: ignore[arg-type]
        self.loop.turn()  # for what came before

    def get(self, option: int) -> int:
        return zmq.POLLIN if option == zmq.EVENTS and self.unread else 0

    def take(self) -> bool:
        if not self.unread:
            return False
        self.unread -= 1
        self.read += 1
        return True

    def on_drained(self) -> None:
        self.drained += 1

    def came(self, count: int = 1) -> None:
        """So many frames are there, and the descriptor says so."""
        self.unread += count
        self.pump.wake()
        self.loop.turn()

    def exchange(self, seconds: float) -> None:
        """Something is sent, and answered after so long, while the loop is awake or not."""
        self.pump.after_send()
        self.loop.now += seconds
        self.came()


def test_a_turn_reads_all_there_is_but_leaves_others_their_turn() -> None:
    line = Line()
    line.came(3)
    assert (line.read, line.drained, line.loop.soon) == (3, 2, [])
    line.came(FRAMES_PER_TURN + 5)
    assert line.read == 3 + FRAMES_PER_TURN
    line.loop.turn()
    assert (line.read, line.drained) == (3 + FRAMES_PER_TURN + 5, 3)


def test_a_send_looks_for_what_it_may_have_hidden() -> None:
    line = Line()
    line.unread = 1
    line.pump.after_send()
    line.loop.turn()
    assert line.read == 1


def test_the_loop_stays_awake_for_an_answer_once_one_was_quick() -> None:
    line = Line()
    line.pump.after_send()
    assert not line.loop.soon, "nothing is known yet"
    line.exchange(QUICK / 2)
    line.pump.after_send()
    for _ in range(3):
        assert line.loop.turn() == 1
    line.came()
    assert line.loop.turn() <= 1
    assert not line.loop.soon, "it was answered"


def test_an_answer_that_does_not_come_in_time_ends_that_until_one_is_quick_again() -> None:
    line = Line()
    line.exchange(QUICK / 2)
    line.pump.after_send()
    line.loop.now += 2 * QUICK
    line.loop.turn()
    assert not line.loop.soon
    line.came()
    line.pump.after_send()
    assert not line.loop.soon, "the last answer was slow"
    line.loop.now += QUICK / 2
    line.came()
    line.pump.after_send()
    assert line.loop.soon


def test_what_comes_unasked_keeps_no_loop_awake() -> None:
    line = Line()
    for _ in range(10):
        line.loop.now += QUICK / 2
        line.came()
    assert not line.loop.soon


def test_a_pump_that_was_stopped_reads_nothing_and_lets_the_loop_sleep() -> None:
    line = Line()
    line.exchange(QUICK / 2)
    line.pump.after_send()
    line.pump.stop()
    line.unread = 1
    line.loop.turn()
    assert (line.read, line.loop.soon) == (1, [])


def test_where_others_compute_it_is_better_to_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Line()

    def computes() -> None:
        line.loop.now += 2 * CROWDED

    monkeypatch.setattr("os.sched_yield", computes)
    line.exchange(QUICK / 2)
    line.pump.after_send()
    line.loop.turn()
    while line.loop.turn():
        pass
    for _ in range(3):
        line.exchange(QUICK / 2)
    line.pump.after_send()
    assert not line.loop.soon
    line.loop.now += CROWDED_FOR
    line.exchange(QUICK / 2)
    line.pump.after_send()
    assert line.loop.soon
