"""What the system tells of the memory of processes: how much one holds, how much there is, whom the kernel killed for it.

The one place that reads /proc and the files of control groups for that. Where there is none, as on macOS, or they cannot be
read, the answer is that it is not known: 0, or None. A look takes a fraction of a millisecond; nothing is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

GROUPS = Path("/sys/fs/cgroup")


class Kills(NamedTuple):
    """How many processes the kernel has killed for memory: in our control group, and on this machine. None: not known."""

    group: int | None
    machine: int | None

    def since(self, before: Kills) -> Kills:
        """How many more than before."""
        return Kills(_more(before.group, self.group), _more(before.machine, self.machine))


def _more(before: int | None, now: int | None) -> int | None:
    return None if before is None or now is None else max(0, now - before)


def resident(pid: int) -> int:
    """The bytes that a process has in memory; 0 where that cannot be seen, or it has ended."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0


def kills(proc: Path = Path("/proc"), groups: Path = GROUPS) -> Kills:
    """What the kernel has killed for memory until now."""
    at = next(_directories(proc, groups), None)
    group = None
    if at is not None:
        group = _counted(at / "memory.events")
        group = _counted(at / "memory.oom_control") if group is None else group  # of cgroup v1
    return Kills(group, _counted(proc / "vmstat"))


def memory_there_is(proc: Path = Path("/proc"), groups: Path = GROUPS) -> int:
    """The bytes of memory that our processes may have: the machine's, or fewer in a control group; 0 where not known."""
    limits = [_number(at / name) for at in _directories(proc, groups) for name in ("memory.max", "memory.limit_in_bytes")]
    try:
        pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        pages = 0
    return min([each for each in (pages, *limits) if each], default=0)


def _directories(proc: Path, groups: Path) -> Iterator[Path]:
    """Where our control group for memory has its files, and those that it is in; in a container perhaps the topmost only."""
    for line in _lines(proc / "self/cgroup"):
        _, controllers, name = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top = groups / "memory" if controllers else groups
        below = top / name.strip("/")
        for at in (below, *below.parents):
            if any((at / file).exists() for file in ("memory.events", "memory.max", "memory.oom_control")):
                yield at
            if at == top:
                break


def _counted(path: Path) -> int | None:
    """The number after oom_kill in such a file."""
    for line in _lines(path):
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.strip().isdecimal():
            return int(number)
    return None


def _number(path: Path) -> int:
    """The number in such a file; 0 for "max", and where there is none."""
    text = "".join(_lines(path)).strip()
    return int(text) if text.isdecimal() else 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(errors="replace").splitlines()
    except OSError:
        return []
