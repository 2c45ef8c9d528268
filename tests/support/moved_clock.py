"""An asyncio loop whose clock jumps: when nothing is ready, time moves to the next timer at once.

So tests wait for seconds without sleeping, and a test in which nobody will ever be woken ends with Deadlock.
Only for code that keeps its time by the loop, and without sockets.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable
from typing import Any

CIRCLES = 50_000  # turns of the loop in which the clock does not move: honest programs take some hundreds


class Deadlock(AssertionError):
    """Nothing is ready and no timer is set: whoever waits, waits for ever. Or something is always ready, and time stands."""


class _JumpingSelector(selectors.DefaultSelector):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0  # since the clock moved

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        self._turns = 0 if timeout else self._turns + 1
        if self._turns > CIRCLES:
            raise Deadlock(f"the loop turned {CIRCLES} times at {self.now:g} s, and something is ready again")
        if not ready:
            if timeout is None:
                raise Deadlock("nothing is ready and no timer is set")
            self.now += max(timeout, 0)
        return ready


class MovedClockLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 and jumps from timer to timer."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now

    def run_in_executor(self, executor: Any, function: Callable[..., Any], *args: Any) -> asyncio.Future[Any]:  # type: ignore[override]
        """At once: a real thread would take real time, in which this clock runs away."""
        future = self.create_future()
        try:
            future.set_result(function(*args))
        except Exception as error:
            future.set_exception(error)
        return future


def run(test: Callable[[], Awaitable[Any]], limit: float = 600.0, loop: Callable[[], MovedClockLoop] = MovedClockLoop) -> Any:
    """Run to its end on such a `loop`; TimeoutError after `limit` seconds of its own time."""

    async def bounded() -> Any:
        async with asyncio.timeout(limit):
            return await test()

    with asyncio.Runner(loop_factory=loop) as runner:
        return runner.run(bounded())
