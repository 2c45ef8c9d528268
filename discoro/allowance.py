"""How much memory this process may take: `--max-memory` of its node, kept by the kernel.

It is RLIMIT_DATA: what a process takes for itself, touched or not. RLIMIT_AS would count what is only mapped or set aside, too:
a broadcast array of 10 GiB that all workers share, or what libraries for GPUs reserve. A limit on what is resident the kernel
does not keep, and a control group needs rights that a node has not got. What this one leaves out is memory shared with other
processes; and it counts each process that user code starts for itself.

How its parts play together: past the limit Python raises MemoryError in user code, whose fault it is. Telling of it takes
memory as well, and there is none: so the kernel's soft limit is the one that was asked for, the hard one lies RESERVE above,
and from `lift` to `settle` the process goes by that. Nothing in here matters where no limit was set.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import traceback
from typing import Any

from discoro.errors import ConfigError
from discoro.raised import add_note
from discoro.verdicts import size_text

RESERVE = 32 << 20  # bytes with which the error is packed, logged and sent: its texts are 200 KiB at most
LEAST = 128 << 20  # bytes: a worker takes 50 MiB before user code, 130 MiB with numpy loaded

_asked: tuple[int, int] | None = None  # (soft, hard), while there is a limit
_lifted: tuple[int, int] | None = None
_note = ""


def check(size: int) -> None:
    """ConfigError for a limit in bytes that no worker could live with, or that this system does not keep; 0 is none."""
    if size and sys.platform != "linux":
        raise ConfigError("--max-memory cannot be kept on this system: it needs Linux. Leave it out")
    if 0 < size < LEAST:
        raise ConfigError(f"--max-memory {size_text(size)} is too little for a worker itself: give {LEAST >> 20}m or more")
    if size:
        _, most = resource.getrlimit(resource.RLIMIT_DATA)
        if most not in (resource.RLIM_INFINITY, -1) and size + RESERVE > most:
            least = f"this process itself may take {size_text(most)} (ulimit -d), and {size_text(RESERVE)} are kept for errors"
            raise ConfigError(f"--max-memory {size_text(size)} cannot be kept: {least}. Give less, or raise that limit")


def limit(size: int, node: str) -> None:
    """From now on this process, a worker of that node, may take so many bytes; 0: any."""
    global _asked, _lifted, _note
    if size:
        _asked, _lifted = (size, size + RESERVE), (size + RESERVE, size + RESERVE)
        _note = f"the worker may take {size_text(size)} of memory: --max-memory of the node {node}"
        resource.setrlimit(resource.RLIMIT_DATA, _asked)


def lift(error: MemoryError) -> None:
    """User code ended with it: name the limit, and let the process go past it until that is told."""
    if _asked is not None and _lifted is not None:
        resource.setrlimit(resource.RLIMIT_DATA, _lifted)
        if _note not in getattr(error, "__notes__", ()):
            add_note(error, _note)


def end_where_spent(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """For `loop.set_exception_handler`: the limit was reached in discoro's own code, while user code holds all of it.

    What was under way there is lost, and somebody would wait for it for ever: so the process ends, and everybody is told.
    """
    error = context.get("exception")
    if isinstance(error, MemoryError) and _asked is not None:
        lift(error)
        print(f"discoro worker: MemoryError: nothing was left for discoro itself; {_note}", file=sys.stderr)
        os._exit(1)
    loop.default_exception_handler(context)


def settle(error: MemoryError) -> None:
    """It is told. What took the memory is let go of with the frames that the error came through, and the limit holds again."""
    if _asked is not None:
        traceback.clear_frames(error.__traceback__)
        resource.setrlimit(resource.RLIMIT_DATA, _asked)
