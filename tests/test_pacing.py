"""How much of a large operation is under way: on slow and fast paths, with a receiver that is busy, while things change.

A path is a line of so many bytes a second, the way there and back, and a receiver that reads at once or when its loop is free
again. A real Outbox sends over it, with a clock moved by hand. What a small message would wait for is what stands in the line.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from discoro import messages, pacing
from discoro.messages import MIB, Message
from discoro.outbox import Outbox
from discoro.pacing import Pace

LARGE = bytes(64 * MIB)
FIXED = 4 * MIB  # what may be under way however fast the path is


def at_once(time: float) -> float:
    return time


def busy(seconds: float, every: float) -> Callable[[float], float]:
    """A receiver whose loop is busy for that long, again and again, and reads all that has come when it is free again."""

    def reads(time: float) -> float:
        into = time % every
        return time if into >= seconds else time - into + seconds

    return reads


@dataclass
class Path:
    """A line of `rate` bytes a second; `way` seconds there, and as many back; `reads` says when what came is read."""

    rate: float
    way: float = 0.0005
    reads: Callable[[float], float] = at_once
    clock: float = 0.0  # seconds that the sender's clock stands still between two steps of it
    now: float = 0.0
    outbox: Outbox = field(default_factory=Outbox)
    waits: list[float] = field(default_factory=list)  # what a small message would have waited for, after each step
    arrived: int = 0  # bytes
    _free: float = 0.0  # when the line has carried all that was sent
    _acks: list[tuple[float, int, int, int]] = field(default_factory=list)
    _order: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, seconds: float) -> float:
        """Send for that long as much as may be under way; the bytes a second that arrived."""
        until, before = self.now + seconds, self.arrived
        self.waits.clear()
        self._send()
        while self._acks and self._acks[0][0] <= until:
            self.now, _, number, size = heapq.heappop(self._acks)
            self.arrived += size
            self.outbox.acknowledge(number, self._time())
            self._send()
        self.now = until
        return (self.arrived - before) / seconds

    def rest(self, seconds: float) -> None:
        """Send nothing more than was begun, for that long."""
        while self._acks:
            self.now, _, number, size = heapq.heappop(self._acks)
            self.outbox.acknowledge(number, self._time())
        self.now += seconds

    def _time(self) -> float:
        return self.now - self.now % self.clock if self.clock else self.now

    def _send(self) -> None:
        while self.outbox.has_room():
            self.outbox.add(messages.to_wire(Message(1, (LARGE,))), None)
        for number, wires in self.outbox.frames(self._time()):
            size = sum(wire.size for wire in wires)
            self._free = max(self.now, self._free) + size / self.rate
            acknowledged = self.reads(self._free + self.way) + self.way
            heapq.heappush(self._acks, (acknowledged, next(self._order), number, size))
        self.waits.append(self._free - self.now)


@pytest.mark.parametrize("rate", [2e6, 1e7, 1e8, 2e8])
@pytest.mark.parametrize("way", [0.0001, 0.001, 0.005])
def test_a_small_message_waits_a_moment_and_the_line_is_never_idle(rate: float, way: float) -> None:
    path = Path(rate, way)
    path.run(2)
    assert path.run(2) > 0.98 * rate
    assert max(path.waits) < 0.05


def test_a_line_that_is_faster_than_anything_gets_as_much_as_ever() -> None:
    path = Path(2e9)
    path.run(0.1)
    assert path.run(1) > 0.98 * 2e9
    assert path.outbox._pace.window == FIXED


def test_a_long_way_is_filled_too() -> None:
    path = Path(2e7, way=0.05)
    path.run(5)
    assert path.run(5) > 0.9 * 2e7
    assert max(path.waits) < 0.05


def test_before_anything_is_known_little_is_under_way() -> None:
    path = Path(2e6)
    path._send()
    assert max(path.waits) * 2e6 < pacing.WINDOW_FIRST + pacing.PIECE_LEAST


@pytest.mark.parametrize("pause", [0.01, 0.1, 1.0])
@pytest.mark.parametrize("rate", [2e6, 1e8, 1e9])
def test_a_receiver_that_is_busy_most_of_the_time_gets_what_it_would_get_anyway(pause: float, rate: float) -> None:
    """As much arrives as could in its pauses, up to the largest window: less under way would leave the line idle meanwhile."""
    path = Path(rate, reads=busy(pause, pause + 0.0001))
    path.run(10 + 10 * pause)
    possible = min(rate, FIXED / pause)
    assert path.run(10 + 10 * pause) > 0.8 * possible


def test_a_pause_now_and_then_is_no_reason_to_have_more_under_way() -> None:
    path = Path(1e8, reads=busy(0.05, 0.5))
    path.run(2)
    path.run(4)
    in_order = sorted(path.waits)
    assert in_order[len(in_order) // 2] < 0.03


@pytest.mark.parametrize("pause", [1.0, 120.0])
def test_one_long_pause_is_no_reason_either(pause: float) -> None:
    path = Path(2e6, reads=lambda now: 5 + pause if 5 <= now <= 5 + pause else now)
    path.run(5)
    path.run(pause + 1)
    path.run(4)
    assert max(path.waits) < 0.1


def test_a_line_that_changes_is_followed() -> None:
    path = Path(1e8)
    path.run(2)
    path.rate = 2e6
    path.run(4)
    assert path.run(2) > 0.95 * 2e6 and max(path.waits) < 0.05
    path.rate = 1e8
    path.run(2)
    assert path.run(2) > 0.95 * 1e8 and max(path.waits) < 0.05


def test_time_without_anything_to_send_says_nothing_about_the_line() -> None:
    path = Path(1e8)
    path.run(2)
    before = path.outbox._pace.window
    path.rest(60)
    path.run(0.001)
    assert path.outbox._pace.window == before


def test_a_coarse_clock_slows_nothing_down() -> None:
    path = Path(1e8, clock=1 / 64)
    path.run(2)
    assert path.run(2) > 0.95 * 1e8


def test_a_new_connection_begins_anew() -> None:
    path = Path(1e8)
    path.run(1)
    path.outbox.resume(path.outbox._number, path.now)
    assert path.outbox._pace.window == pacing.WINDOW_FIRST


def test_it_prints_what_it_knows() -> None:
    pace = Pace()
    pace.acknowledged(MIB, 0.002, MIB, 10.0)
    pace.acknowledged(MIB, 0.002, MIB, 10.01)
    pace.acknowledged(MIB, 0.002, MIB, 10.02)
    assert repr(pace) == "<Pace 2621440 bytes in pieces of 262144, 1.05e+08 bytes/s, trip 2 ms, pause 10 ms>"
    assert math.isfinite(pace.rate)
