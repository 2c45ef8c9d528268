"""The loop of a simulation: its clock jumps, it never asks the operating system, and any process on it can stand still.

What runs belongs to a process by its context: `PROCESS` is set where a process begins, and its tasks, timers and callbacks
inherit it. While a process is frozen, what becomes due in it waits, and runs when it goes on: as in a process that was stopped
by a signal, first what came by its connections, then what its timers want.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import heapq
from collections.abc import Callable, Iterator
from typing import Any

from tests.support.memory_network import Wire
from tests.support.moved_clock import CIRCLES, Deadlock, MovedClockLoop

PROCESS: contextvars.ContextVar[object] = contextvars.ContextVar("process", default=None)
SOON = 1e-9  # seconds: timers of so nearly one moment are due together, as asyncio has it


class SimulatedLoop(MovedClockLoop):
    """As a MovedClockLoop; and processes can stand still."""

    _ready: Any
    _scheduled: Any
    _stopping: bool

    def __init__(self) -> None:
        super().__init__()
        self._frozen: dict[object, list[asyncio.Handle]] = {}
        self.after_turn: Callable[[], None] = lambda: None  # called when all that was ready has run
        self._turns = 0  # since the clock moved

    @contextlib.contextmanager
    def frozen(self, process: object) -> Iterator[None]:
        """Nothing of that process runs, unless `thaw` is called before."""
        self._frozen.setdefault(process, [])
        try:
            yield
        finally:
            self.thaw(process)

    def thaw(self, process: object) -> None:
        """It goes on; nothing happens where it was not frozen."""
        waiting = self._frozen.pop(process, [])
        self._ready.extend(sorted(waiting, key=_is_a_timer))

    def call_soon_threadsafe(  # type: ignore[override]
        self, callback: Callable[..., Any], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        """There is one thread, and nothing to be woken from waiting for files."""
        return self.call_soon(callback, *args, context=context)

    def _run_once(self) -> None:
        """One turn as asyncio's own, but without files, which makes it quicker; and here callbacks are held back."""
        scheduled, ready, frozen = self._scheduled, self._ready, self._frozen
        while scheduled and scheduled[0]._cancelled:
            heapq.heappop(scheduled)._scheduled = False
        if not ready and not self._stopping:
            if not scheduled:
                raise Deadlock("nothing is ready and no timer is set")
            if scheduled[0]._when > self._jumping.now:
                self._jumping.now, self._turns = scheduled[0]._when, 0
        self._turns += 1
        if self._turns > CIRCLES:
            raise Deadlock(f"the loop turned {CIRCLES} times at {self._jumping.now:g} s, and something is ready again")
        while scheduled and scheduled[0]._when < self._jumping.now + SOON:
            handle = heapq.heappop(scheduled)
            handle._scheduled = False
            ready.append(handle)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if handle._cancelled:
                continue
            if frozen and (waiting := frozen.get(handle._context.get(PROCESS))) is not None:
                waiting.append(handle)
                continue
            handle._run()
        self.after_turn()


def _is_a_timer(handle: Any) -> bool:
    return not isinstance(getattr(handle._callback, "__self__", None), Wire)
