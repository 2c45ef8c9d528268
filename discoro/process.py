"""This process and its parent: what a child is given, and how it ends with whoever started it.

Used for workers (children of a node) and for a node that a program starts for itself. No process outlives its starter, however
that ended, and none needs the other's cooperation for it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Callable

PR_SET_PDEATHSIG = 1  # prctl(2): the signal that this process gets when the thread that forked it ends
END_GRACE = 2.0  # seconds between the parent's end and ours, where the loop does not end by itself


def child_environment() -> dict[str, str]:
    """Ours, for a child; where this discoro was not installed but imported from a checkout, with that on its path."""
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    path = os.environ.get("PYTHONPATH")
    if os.path.basename(here) in ("site-packages", "dist-packages") or here in (path or "").split(os.pathsep):
        return dict(os.environ)
    return {**os.environ, "PYTHONPATH": f"{here}{os.pathsep}{path}" if path else here}


def take_standard_input() -> int:
    """The descriptor of our standard input, moved away: code that reads from standard input finds it empty."""
    taken = os.dup(0)
    os.set_inheritable(taken, False)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return taken


def read_line(descriptor: int, limit: int = 64 * 1024) -> bytes:
    """The first line from a pipe, byte by byte, so that nothing after it is taken; b"" at its end."""
    line = bytearray()
    while len(line) < limit:
        byte = os.read(descriptor, 1)
        if not byte or byte == b"\n":
            break
        line += byte
    return bytes(line)


def end_with_parent(pipe: int, parent: int, ask_to_end: Callable[[], object]) -> None:
    """End when the parent does. `pipe` is the reading end of one that only the parent can write to.

    Its end asks us to end in order, and ends us hard after 2 s. On Linux the kernel kills us besides, so that neither a call
    that holds the interpreter's lock nor a stopped loop keeps us (PR_SET_PDEATHSIG; set after the fork, so the parent may be
    gone already: that is looked at afterwards).
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    threading.Thread(target=_watch, args=(pipe, ask_to_end), name="parent", daemon=True).start()


def _watch(pipe: int, ask_to_end: Callable[[], object]) -> None:
    while os.read(pipe, 4096):
        pass
    ask_to_end()
    threading.Event().wait(END_GRACE)
    os._exit(1)
