"""What a child process left running: found by its mark in the environment that it was started with, and killed.

`process.py` marks each child, and whatever a child starts inherits the mark, also in a session of its own, where no process
group finds it. Only on Linux, which shows environments in /proc. Never: touches what has no such mark.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import threading
from collections.abc import Set
from pathlib import Path

MARK = "DISCORO_CHILD"  # the variable that names a child, and those that it is a child of, to whatever they start
KILLED_WITHIN = 0.1  # seconds for a killed process to be gone; one in an uninterruptible call takes longer, and is left
SWEEP_TIMEOUT = 2.0  # seconds for all of that: the kernel may keep whoever looks at a process that hangs
IN_EXEC = 0.01  # seconds for a process that is in the middle of exec
ROUNDS = 10  # looks at all processes for what a child left: what forks while it is looked for is found by the next

_marks: set[str] = set()  # of children that ended, and whose processes nobody looks for yet
_looking = threading.Lock()


def kill_left(mark: str) -> None:
    """Kill what a child with this mark left. In whatever thread: a look at all processes takes milliseconds; the next one
    serves all children that have ended until it begins.
    """
    _marks.add(mark)
    if _looking.acquire(timeout=SWEEP_TIMEOUT):
        try:
            marks = {_marks.pop() for _ in range(len(_marks))}
            if marks:  # else the look before was for this one, too
                kill_marked(marks)
        finally:
            _looking.release()


def kill_marked(marks: Set[str]) -> None:
    """Kill every process with one of these marks in the environment it was started with, until none is left.

    What took the mark out of its environment, or belongs to another user, lives on. Nothing where there is no /proc.
    """
    seen = True
    for _ in range(ROUNDS):
        found = [pid for pid in _processes() if _is_marked(pid, marks)]
        if not (found or seen):
            return
        if not found:  # one that is just in exec has no environment for a moment: so twice
            threading.Event().wait(IN_EXEC)
        seen = bool(found)
        descriptors = [descriptor for descriptor in (_killed(pid, marks) for pid in found) if descriptor is not None]
        for descriptor in descriptors:  # all are killed before any of them is waited for
            select.select([descriptor], [], [], KILLED_WITHIN)
            os.close(descriptor)


def _killed(pid: int, marks: Set[str]) -> int | None:
    """Kill the process of that number if it still has such a mark: a descriptor of it to wait with, where there is one."""
    try:
        descriptor = os.pidfd_open(pid)
    except (AttributeError, OSError) as error:  # Python built with old headers, an old kernel, a sandbox; or it has ended
        if getattr(error, "errno", errno.ENOSYS) != errno.ESRCH:
            _kill_by_number(pid, marks)
        return None
    with contextlib.suppress(OSError):
        if _is_marked(pid, marks):  # still the same: it cannot become another one from here on
            signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            return descriptor
    os.close(descriptor)
    return None


def _kill_by_number(pid: int, marks: Set[str]) -> None:
    """Numbers are given anew only after all others had their turn: nobody else gets this one between two lines of code."""
    with contextlib.suppress(OSError):
        if _is_marked(pid, marks):
            os.kill(pid, signal.SIGKILL)


def _processes() -> list[int]:
    try:
        return [int(name) for name in os.listdir("/proc") if name.isdecimal()]
    except OSError:
        return []


def _is_marked(pid: int, marks: Set[str]) -> bool:
    try:
        environment = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:  # it has ended, or belongs to somebody else
        return False
    _, found, rest = (b"\0" + environment).partition(f"\0{MARK}=".encode())
    return bool(found) and not marks.isdisjoint(rest.partition(b"\0")[0].decode("ascii", "replace").split(":"))
