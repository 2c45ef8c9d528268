"""Names a blocked event loop: for how long, whose turn it is, and at which line of the user's code. In debug only.

A loop that runs one callback for seconds runs nothing else meanwhile, and says nothing. `watch` starts a thread beside it,
which asks the loop ten times a second to answer; `Pulse` decides from the times alone when there is something to say. The
thread never touches what the loop works on: it reads where the loop's thread stands, and logs.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from traceback import FrameSummary, StackSummary
from types import FrameType

log = logging.getLogger("discoro.watchdog")

BLOCKED_AFTER = 1.0  # seconds: ten times what asyncio itself calls slow, and still before a person gives up
LOOK_INTERVAL = 0.1  # seconds between two looks, and how far off the times that are told may be; each takes 0.2 ms
SHOWN_LINES = 12  # innermost lines of code that are shown: a recursion has a thousand

VARIABLE = "DISCORO_DEBUG"
_OURS = tuple(os.path.dirname(os.path.abspath(file)) + os.sep for file in (__file__, asyncio.__file__))


def debugging(loop: asyncio.AbstractEventLoop, asked: bool = False) -> bool:
    """Whether to watch: asked for, by DISCORO_DEBUG, or by asyncio's own ways (PYTHONASYNCIODEBUG, -X dev, debug=True)."""
    return asked or os.environ.get(VARIABLE, "0") not in ("", "0") or loop.get_debug()


class Pulse:
    """When a loop is blocked, from times in seconds: it is asked, it answers, and now and then somebody looks."""

    def __init__(self) -> None:
        self._asked: float | None = None  # since when an answer is due
        self._said = False

    def ask(self, now: float) -> bool:
        """Whether the loop is to be asked now: one question at a time."""
        if self._asked is not None:
            return False
        self._asked, self._said = now, False
        return True

    def look(self, now: float) -> float | None:
        """For how long the loop has been blocked, once per block."""
        if self._asked is None or self._said or now - self._asked < BLOCKED_AFTER:
            return None
        self._said = True
        return now - self._asked

    def answered(self, now: float) -> float | None:
        """For how long the loop was blocked, where it was; also where one call kept even the looks from it."""
        blocked = now - self._asked if self._asked is not None else 0.0
        self._asked = None
        return blocked if blocked >= BLOCKED_AFTER else None


@contextlib.contextmanager
def watch(whose: Callable[[asyncio.Task[object]], str]) -> Iterator[None]:
    """Watch the running loop, and have asyncio debug it too, for the length of a `with` block entered in the loop's thread.

    `whose` names a task for people; it is called in another thread. asyncio's debug mode adds where a coroutine was created to
    "was never awaited".
    """
    loop = asyncio.get_running_loop()
    before = loop.get_debug()
    loop.set_debug(True)
    stop = threading.Event()
    watchdog = _Watchdog(loop, whose)
    thread = threading.Thread(target=watchdog.run, args=(stop,), name="discoro watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(LOOK_INTERVAL)  # it ends at once, unless it logs to something that wants this loop
        loop.set_debug(before)


class _Watchdog:
    """The thread: asks, looks, logs. Only `_answer` runs in the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, whose: Callable[[asyncio.Task[object]], str]) -> None:
        self._loop = loop
        self._whose = whose
        self._thread = threading.get_ident()
        self._pulse = Pulse()
        self._lock = threading.Lock()  # for the pulse, never held while something is logged

    def run(self, stop: threading.Event) -> None:
        while not stop.wait(LOOK_INTERVAL) and not self._loop.is_closed():
            self._look()

    def _look(self) -> None:
        now = time.monotonic()
        with self._lock:
            ask, blocked = self._pulse.ask(now), self._pulse.look(now)
        if ask:
            with contextlib.suppress(RuntimeError):  # it was closed this very moment
                self._loop.call_soon_threadsafe(self._answer)
        if blocked is not None:
            lines, task = lines_of(sys._current_frames().get(self._thread)), asyncio.current_task(self._loop)
            if lines:  # else it goes on already: the whole process was stopped, perhaps
                self._say(blocked, lines, task)

    def _say(self, blocked: float, lines: StackSummary, task: asyncio.Task[object] | None) -> None:
        who = self._whose(task) if task is not None else "a callback"
        log.warning(
            "! the event loop has been blocked for %.1f s by %s; all else in this process waits. It stands at\n%s"
            "  what takes long belongs into a thread: yield (or await) asyncio.to_thread(function, ...)",
            *(blocked, who, "".join(lines.format())),
        )

    def _answer(self) -> None:
        with self._lock:
            blocked = self._pulse.answered(time.monotonic())
        if blocked is not None:
            log.warning("! the event loop goes on: it was blocked for %.1f s", blocked)


def lines_of(frame: FrameType | None) -> StackSummary:
    """The user's lines that a loop's thread is in, the innermost last; nothing where the loop waits or is between two turns.

    Lines of asyncio and of discoro are left out, unless there are no others.
    """
    frames: list[FrameType] = []
    while frame is not None and not _is_loop(frame):  # what is around the loop started the program, and does not run now
        frames.append(frame)
        frame = frame.f_back
    if frame is not None and frames and frames[-1].f_code.co_name != "_run":  # of asyncio.Handle; the other is select
        frames.clear()
    users = [each for each in frames if not each.f_code.co_filename.startswith(_OURS)] or frames
    shown = [FrameSummary(each.f_code.co_filename, each.f_lineno, each.f_code.co_name) for each in users[:SHOWN_LINES]]
    return StackSummary.from_list(shown[::-1])


def _is_loop(frame: FrameType) -> bool:
    return frame.f_code.co_name == "_run_once" and frame.f_code.co_filename.startswith(_OURS)
