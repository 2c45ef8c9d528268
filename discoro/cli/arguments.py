"""Secrets out of the command line: every user of a machine can read the command lines of all processes."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

ARG_START, ARG_END = 48, 49  # fields of /proc/PID/stat, counted from 1: proc(5)
LIMIT = 2 * 1024 * 1024  # bytes of a command line: what Linux takes by itself (execve(2))


def conceal(secret: str) -> bool:
    """Overwrite a secret in this process's visible arguments, and in `sys.argv`. Whether that could be done (Linux only).

    It was visible until now: some 50 ms since the start.
    """
    for arguments in (sys.argv, sys.orig_argv):
        arguments[:] = [each.replace(secret, "*" * len(secret)) for each in arguments] if secret else arguments
    text = os.fsencode(secret)
    where = _arguments_here()
    if not text or where is None:
        return False
    start, size = where
    seen = ctypes.string_at(start, size)
    at = seen.find(text)
    while at >= 0:
        ctypes.memset(start + at, ord("*"), len(text))
        at = seen.find(text, at + len(text))
    return text not in Path("/proc/self/cmdline").read_bytes()


def _arguments_here() -> tuple[int, int] | None:
    """Where the kernel reads our arguments: address and size; None where that is not told."""
    if sys.platform != "linux":
        return None
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        start, end = int(fields[ARG_START - 3]), int(fields[ARG_END - 3])
    except (OSError, ValueError, IndexError):
        return None
    return (start, end - start) if 0 < start < end <= start + LIMIT else None
