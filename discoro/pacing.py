"""How much of large operations may be under way on one connection: as much as the path carries in a moment.

What is under way stands in queues: libzmq's, the kernel's, those of the network, and the one that the receiver's loop reads. A
small message that leaves now comes behind all of it. So a `Pace` measures, by the acknowledgements, how fast pieces arrive, and
bounds what is under way by time instead of bytes: what arrives in TARGET seconds, and in the time that an acknowledgement takes
where nothing waits. With the window the pieces become smaller, since a small message waits for the one that is leaving.

A receiver whose loop is busy reads nothing meanwhile, and then all at once. With little under way, such a path would stand
still while the loop is busy. So what arrives in a pause counts too, where most of the time passes in pauses of that length:
with more under way more arrives in one, which makes the window grow until the path carries no more. A pause now and then
changes nothing.

Pure values and the time: `outbox.py` tells what was acknowledged and asks what may leave.
"""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from discoro.messages import KIB, MIB, PIECE_SIZE

TARGET = 0.02  # seconds that pieces under way may take: beside the way itself, what a small message waits at most
WINDOW_MOST = 4 * MIB  # 20 ms at 200 MB/s; the rest of the window of a link stays for small operations
WINDOW_FIRST = 512 * KIB  # before anything is known: 0.26 s at 16 Mbit/s, once
PIECE_LEAST = 32 * KIB  # 16 ms at 16 Mbit/s; with less, frames cost more than the bytes in them
PIECES = 8  # so many make a window, between the least and PIECE_SIZE: one that is leaving is a small part of it
WINDOW_LEAST = 2 * PIECE_LEAST  # one arrives while the acknowledgement of the other is on its way
WINDOWS = 4  # acknowledged ones that are looked back on: enough for pauses to show, few enough to follow a path that changes
PAUSES = 1.5  # as many are let through: above 1, else nothing would grow where pauses are what bounds the rate
LOOKS = 4  # in each window: no need to look at every acknowledgement


class _Step(NamedTuple):
    """From one acknowledgement to the next: seconds, and bytes of pieces that the second one told of."""

    seconds: float
    size: int


class Pace:
    """The window of pieces on one connection: with `window` bytes under way no more is sent; `piece`: bytes of the next one."""

    def __init__(self) -> None:
        self.piece = PIECE_LEAST  # so that the first trips are not those of large ones
        self.window = WINDOW_FIRST
        self.rate = 0.0  # bytes a second that arrive, as far as is known
        self.pause = 0.0  # seconds; half of the time passes in steps as long as that, or longer
        self.trip = math.inf  # seconds from sending a piece to its acknowledgement, at the least
        self._steps: deque[_Step] = deque()
        self._last: float | None = None  # when pieces were acknowledged last, if others were under way then
        self._fresh = 0  # bytes acknowledged since the last look

    def __repr__(self) -> str:
        times = f"trip {1000 * self.trip:.3g} ms, pause {1000 * self.pause:.3g} ms"
        return f"<Pace {self.window} bytes in pieces of {self.piece}, {self.rate:.3g} bytes/s, {times}>"

    def acknowledged(self, size: int, trip: float, left: int, now: float) -> None:
        """Pieces of `size` bytes in all arrived; the last of them left `trip` seconds ago. `left`: bytes still under way."""
        self.trip = min(self.trip, trip)
        if self._last is not None:
            self._steps.append(_Step(now - self._last, size))
            self._fresh += size
            if self._fresh >= self.window // LOOKS:
                self._look()
        self._last = now if left else None  # the time until there is more to acknowledge is not that of the path

    def _look(self) -> None:
        """Set the window anew. It grows by no more than what arrived: what one pair of pieces showed may be chance."""
        total = sum(step.size for step in self._steps)
        while total - self._steps[0].size >= WINDOWS * self.window:
            total -= self._steps.popleft().size
        seconds = sum(step.seconds for step in self._steps)
        self.rate = total / seconds if seconds else math.inf  # a clock may be coarse
        self.pause = self._typical_pause()
        wanted = self.rate * (TARGET + max(self.trip, PAUSES * self.pause))
        self.window = int(max(WINDOW_LEAST, min(wanted, self.window + self._fresh, WINDOW_MOST)))
        self.piece = min(PIECE_SIZE, max(PIECE_LEAST, self.window // PIECES))
        self._fresh = 0

    def _typical_pause(self) -> float:
        """Half of the time, beside the longest pause, passed in pauses as long or longer; the longest alone may be chance."""
        pauses = sorted((step.seconds for step in self._steps), reverse=True)[1:]
        half, passed = sum(pauses) / 2, 0.0
        for pause in pauses:
            passed += pause
            if passed >= half:
                return pause
        return 0.0
