"""Does a worker's loop still turn? Its node asks, through a pipe of its own, and looks where it stands if it does not.

Neither the network nor the worker's output has a part in it: the question goes through the worker's standard input, the answer
comes through a second pipe, and the stack too, which faulthandler writes there at a signal whatever Python is doing. So a stack
never stands among a user's lines, and a full link makes nobody look busy. `Responding` is the node's side for one worker,
`answer_to` the worker's. When there is something to tell is decided in busy.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sysconfig
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from discoro.busy import BUSY, STOPPED, Answering, is_whole, line_of
from discoro.process import Child

LOOK_AGAIN = 1.0  # seconds for which a look holds: whoever asks often disturbs nobody more often
LOOK_TIMEOUT = 0.5  # seconds for a busy worker's stack to arrive
STACK_LINES = 120  # faulthandler writes 100 frames at most
REST_BYTES = 4096  # of a line that has not ended: faulthandler's are shorter, longer ones are nothing of ours
ANSWER = "here"
# Of the real-time signals, which programs hardly use, the last but one: the first ones are libraries', the last is valgrind's.
# SIGUSR1, where there are none (macOS), may be a user's own.
LOOK = signal.SIGRTMAX - 1 if hasattr(signal, "SIGRTMAX") else signal.SIGUSR1
_PATHS = sysconfig.get_paths()
FOREIGN = tuple(
    {os.path.join(_PATHS[name], "") for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    | {os.path.join(os.path.dirname(os.path.abspath(__file__)), "")}
)


class Responding:
    """Whether one worker answers. `on_again` is called with the seconds that it did not, where that was told."""

    def __init__(self, on_again: Callable[[float], None]) -> None:
        self.answering = Answering()
        self._on_again = on_again
        self._stack: deque[str] = deque(maxlen=STACK_LINES)
        self._came = asyncio.Event()
        self._looking = asyncio.Lock()  # one stack at a time
        self._seen: tuple[float, str] = (-LOOK_AGAIN, "")  # when it was looked at last, and the line
        self._rest = b""

    def feed(self, data: bytes) -> None:
        """What came through its second pipe."""
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[:REST_BYTES]
        for line in (each.decode("ascii", "replace") for each in whole):
            if line == ANSWER:
                again = self.answering.answered(_now())
                if again:
                    self._on_again(again)
            else:
                self._stack.append(line)
        self._came.set()

    def ask(self, child: Child) -> bool:
        """Ask, unless it owes an answer; whether it is time to tell that it does."""
        now = _now()
        if self.answering.ask(now):
            child.tell({"ask": ANSWER})
        return self.answering.tells(now)

    def due(self) -> float:
        """For how many seconds it has not answered; 0.0 where that is no time to speak of."""
        return self.answering.due(_now())

    async def where(self, child: Child) -> tuple[str, str]:
        """What keeps it, BUSY or STOPPED; and the user's line that it stands in, "" where that cannot be seen."""
        if is_stopped(child.pid):  # it would write its stack when it goes on
            return STOPPED, ""
        async with self._looking:
            if _now() - self._seen[0] >= LOOK_AGAIN:
                await self._look(child)
            return BUSY, self._seen[1]

    async def _look(self, child: Child) -> None:
        if not catches(child.pid, LOOK):  # user code took the signal for itself: it would do what that wants, or end
            self._seen = _now(), ""
            return
        self._stack.clear()
        child.signal(LOOK)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_TIMEOUT):
                while not any(map(is_whole, self._stack)):
                    self._came.clear()
                    await self._came.wait()
        self._seen = _now(), line_of(self._stack, FOREIGN)


def answer_to(pipe: int, loop: asyncio.AbstractEventLoop) -> Callable[[dict[str, Any]], object]:
    """As a worker: what answers its node through `pipe`, for `Parent.end_with`; the loop itself does, when it comes to that."""
    return lambda told: loop.call_soon_threadsafe(os.write, pipe, f"{told['ask']}\n".encode())


def show_stack_through(pipe: int) -> None:
    """As a worker: write the stack there at LOOK, in the middle of C code too. What it starts has no part in it."""
    os.set_inheritable(pipe, False)
    faulthandler.register(LOOK, file=pipe, all_threads=False)


def catches(pid: int, number: int) -> bool:
    """Whether a process has a handler for that signal; True where the system does not tell."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii", errors="replace").splitlines()
        caught = next(line for line in lines if line.startswith("SigCgt:"))
    except (OSError, StopIteration):
        return True
    return bool(int(caught.partition(":")[2], 16) >> (number - 1) & 1)


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped, by SIGSTOP or by a debugger; False where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b") ")[2][:1] in (b"T", b"t")


def _now() -> float:
    return asyncio.get_running_loop().time()
