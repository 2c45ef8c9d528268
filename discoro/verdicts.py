"""How a worker ended, in words: a verdict from what its node saw of it.

Values in, text out: no process, no file and no clock in here. `End` is what was seen; `verdict` says what that most likely was,
how much memory it held, and what it wrote last. What is certain is said as certain, and everything else as likely.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEAR = 0.75  # of the memory that there is, or that is allowed: who ended with so much most likely ended for that
CRASHES = {"SIGSEGV", "SIGBUS", "SIGFPE", "SIGILL", "SIGABRT", "SIGTRAP", "SIGSYS"}
OUT_OF_MEMORY = ("MemoryError", "bad_alloc", "out of memory", "cannot allocate memory")  # last words, in any case of letters
TOLD_LINES = 5  # of the last output are told in an exit reason, which goes to everybody who is linked


@dataclass(frozen=True, kw_only=True)
class End:
    """What a node saw of a worker that ended by itself. Sizes in bytes; 0 or None: not known.

    `signal` is the name of the one that killed it; "" where it exited, with `status`. `held` is the memory that it had resident
    when it was last looked at, `peak` the most that it ever had; `limit` what `--max-memory` lets it have; `room` the memory of
    the machine, or of the control group that the node is in. `group_kills` and `machine_kills` count what the kernel killed for
    memory since shortly before: in that control group, and on the machine. `output` are its last lines.
    """

    status: int = 0
    signal: str = ""
    held: int = 0
    peak: int = 0
    limit: int = 0
    room: int = 0
    group_kills: int | None = None
    machine_kills: int | None = None
    output: Sequence[str] = ()


def verdict(end: End) -> str:
    """How it ended, after its name: "was killed by SIGKILL, ...; it held 38 MiB, ...; its last output: ..."."""
    told = [_how(end), *_memory(end)]
    last = summary(end.output)
    return "; ".join([*told, f"its last output: {last}"] if last else told)


def _how(end: End) -> str:
    if end.signal == "SIGKILL":
        return f"was killed by SIGKILL, {_who_killed(end)}"
    if end.signal in CRASHES:
        return _crashed(end)
    if end.signal == "SIGXCPU":
        return "was killed by SIGXCPU: its limit of processor time (ulimit -t) was reached"
    if end.signal:
        return f"was killed by {end.signal}, which somebody sent to it"
    return f"exited with status {end.status}, " + (_limit(end) or f"by itself: os._exit({end.status}), perhaps")


def _who_killed(end: End) -> str:
    if end.group_kills:
        return f"by the kernel, for memory{_of_room(end)}"
    if end.machine_kills:
        return f"most likely by the kernel, for memory{_of_room(end)}"
    if end.group_kills is not None or end.machine_kills is not None:
        return "by somebody, and not by the kernel for memory: it has killed nothing for that"
    if end.room and _most(end) >= NEAR * end.room:
        return f"most likely by the kernel, for memory{_of_room(end)}"
    return "by somebody, or by the kernel for memory"


def _of_room(end: End) -> str:
    return f": it held {size_text(_most(end))} of the {size_text(end.room)} there are" if end.room and _most(end) else ""


def _crashed(end: End) -> str:
    limit = _limit(end)
    if limit:
        return f"crashed by {end.signal}, {limit}"
    where = next((line.strip() for line in _crash(end.output) if line.startswith("  File ")), "")
    hint = " (a mapped file that was cut, or a full disk)" if end.signal == "SIGBUS" else ""
    return f"crashed in C code by {end.signal}{hint}" + (f", at {where}" if where else "")


def _limit(end: End) -> str:
    """That it ended for the limit of --max-memory, where there is one, and its memory or its last words say so."""
    words = "\n".join([*end.output[-TOLD_LINES:], *_crash(end.output)]).lower()
    if not end.limit or not (_most(end) >= NEAR * end.limit or any(each.lower() in words for each in OUT_OF_MEMORY)):
        return ""
    return f"most likely because it reached the {size_text(end.limit)} that --max-memory lets it have"


def _memory(end: End) -> list[str]:
    """What it held, where that is known."""
    if end.held and end.peak > end.held:
        return [f"it held {size_text(end.held)} when last looked at, {size_text(end.peak)} at most"]
    return [f"it held {size_text(_most(end))}"] if _most(end) else []


def _most(end: End) -> int:
    return max(end.held, end.peak)


def summary(output: Sequence[str]) -> str:
    """The last lines that say something, in one; after a crash in C, where it was."""
    crash = [line.strip() for line in _crash(output)]
    return " | ".join(crash[:TOLD_LINES] or [line.strip() for line in output if line.strip()][-TOLD_LINES:])


def _crash(output: Sequence[str]) -> list[str]:
    """The lines that faulthandler wrote at a crash, and those after it; none where there was no crash."""
    lines = [line for line in output if line.strip()]
    at = next((at for at, line in enumerate(lines) if line.startswith("Fatal Python error")), len(lines))
    return lines[at:]


def size_text(size: int) -> str:
    """A size for people: 800 KiB, 38 MiB, 7.9 GiB."""
    for unit, name in ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if size >= unit:
            value = size / unit
            return f"{value:.1f} {name}" if value < 10 and name != "MiB" else f"{value:.0f} {name}"
    return f"{size / 1024:.0f} KiB"
