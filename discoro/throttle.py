"""Lines in the log about what strangers cause, as often as they like: the first at once, then one a minute with a count.

Nothing is silent, and nobody fills a disk.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter

PERIOD = 60.0  # seconds between two lines about one thing
KINDS = 10  # that one line tells apart: strangers choose words in some of them


class Throttle:
    """Says how often something happened, and of which kinds. `loud`: so many in one line are a warning in any case."""

    def __init__(self, log: logging.Logger, what: str, level: int = logging.WARNING, loud: int | None = None) -> None:
        self._log = log
        self._what = what
        self._level = level
        self._loud = loud
        self._kinds: Counter[str] = Counter()
        self._last: dict[str, str] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._shouted = False

    def note(self, kind: str, detail: str = "") -> None:
        """It happened. Of the details the last one of each kind is said. From the loop only."""
        if kind not in self._kinds and len(self._kinds) >= KINDS:
            kind = "others"
        self._kinds[kind] += 1
        self._last[kind] = detail
        if self._timer is None:
            self._say()
        elif self._loud is not None and not self._shouted and self._kinds.total() >= self._loud:
            self._shouted = True  # once a minute: that it is many is not kept back until the minute is over
            self._timer.cancel()
            self._say()

    def close(self) -> None:
        """Say what is left, and no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._say()
        if self._timer is not None:
            self._timer.cancel()

    def _say(self) -> None:
        self._timer = None
        count = self._kinds.total()
        if not count:
            return
        level = logging.WARNING if self._loud is not None and count >= self._loud else self._level
        self._log.log(level, "! %s: %s", self._what, "; ".join(map(self._told, self._kinds)))
        self._kinds.clear()
        self._last.clear()
        self._timer = asyncio.get_running_loop().call_later(PERIOD, self._on_time)

    def _on_time(self) -> None:
        self._shouted = False
        self._say()

    def _told(self, kind: str) -> str:
        count, last = self._kinds[kind], self._last[kind]
        beside = [f"{count} times"] * (count > 1) + [last] * bool(last)
        return f"{kind} ({', '.join(beside)})" if beside else kind
