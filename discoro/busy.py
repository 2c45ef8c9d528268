"""Whether a process answers, since when it has not, and where it stands: decided from times and from the lines it wrote.

`Answering` is asked now and then, one question at a time, and says for how long the answer has been due. `line_of` finds the
user's line in a stack as faulthandler writes it. `told` puts both into words. Nothing here asks anybody; responding.py does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

ASK_EVERY = 1.0  # seconds between two questions to one process: each costs it 50 µs
BUSY_AFTER = 2.0  # seconds without an answer from which on it is called busy: a loaded machine takes one for a turn
TOLD_AFTER = 10.0  # seconds until that is told for the first time, then doubled: a long computation fills no log

BUSY, STOPPED = "busy", "stopped"


class Answering:
    """What one process owes, from times in seconds."""

    def __init__(self) -> None:
        self._asked: float | None = None  # since when an answer is due
        self._tell_at = TOLD_AFTER  # for how long it is due when that is told next

    def ask(self, now: float) -> bool:
        """Whether it is to be asked now: not again before it has answered, so that nothing piles up there."""
        if self._asked is not None:
            return False
        self._asked = now
        return True

    def due(self, now: float) -> float:
        """For how many seconds it has not answered; 0.0 where that is no time to speak of."""
        seconds = now - self._asked if self._asked is not None else 0.0
        return seconds if seconds >= BUSY_AFTER else 0.0

    def tells(self, now: float) -> bool:
        """Whether it is time to tell that it does not answer: after 10 s, after 20, 40, …, each once."""
        seconds = self.due(now)
        if seconds < self._tell_at:
            return False
        while self._tell_at <= seconds:
            self._tell_at *= 2
        return True

    def answered(self, now: float) -> float:
        """It answers: for how many seconds it did not, where that was told; else 0.0."""
        seconds = self.due(now) if self._tell_at > TOLD_AFTER else 0.0
        self._asked, self._tell_at = None, TOLD_AFTER
        return seconds


_FRAME = re.compile(r'  File "(?P<file>.*)", line (?P<line>\d+|\?\?\?) in (?P<function>.*)')
_SLASH = r"[/\\]"
_OUTERMOST = " in _run_module_as_main"  # of every process that was started by `python -m`
_CUT = "  ..."  # faulthandler writes at most 100 frames


def is_whole(line: str) -> bool:
    """Whether it is the last line of a stack that faulthandler wrote."""
    return line == _CUT or line.endswith(_OUTERMOST)


def line_of(stack: Iterable[str], foreign: Sequence[str]) -> str:
    """Where a process stands, from its stack, innermost first: "`crunch` at model.py:31"; "" where it stands nowhere.

    The innermost line is the one that is neither Python's, nor of an installed package, nor ours (`foreign` is where those
    lie), or the innermost of all where there are no others. A loop that waits for something to do stands nowhere.
    """
    frames = [found for found in map(_FRAME.fullmatch, stack) if found]
    if not frames or frames[0]["file"].endswith("selectors.py"):
        return ""
    users = [each for each in frames if not each["file"].startswith((*foreign, "<frozen "))]
    frame = (users or frames)[0]
    return f"`{frame['function']}` at {re.split(_SLASH, frame['file'])[-1]}:{frame['line']}"


def told(who: str, seconds: float, state: str, line: str) -> str:
    """That somebody does not answer, and why, as far as is known."""
    if state == STOPPED:
        return f"{who} has been stopped for {seconds:.0f} s (SIGSTOP, or a debugger); SIGCONT has it go on"
    return f"{who} has been busy for {seconds:.0f} s" + (f", in {line}" if line else "")
