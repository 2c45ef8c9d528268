"""One module for each workload. Each has `rows(setting)`, which gives its figures (figures.py) as they come."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

import discoro

SECONDS = 60.0  # for what takes far less
TURN = 500  # messages that one coroutine sends before it lets others have a turn


class Setting(NamedTuple):
    """How to measure."""

    rounds: int
    curve: bool
    folder: Path  # for the key, and for files

    @property
    def security(self) -> dict[str, Any]:
        """The options of a mesh."""
        return {"key_file": self.folder / "key"} if self.curve else {"open": True}

    def run(self, main: Callable[..., Awaitable[Any]], *args: Any, slots: int = 1) -> Any:
        """What this coroutine gives, with a node of this machine for itself."""
        options = ["-c", str(slots), "--dest-path", str(self.folder / "received")]
        return discoro.run(main, *args, local=True, local_options=options, **self.security)


async def started(function: Callable[..., Any], *args: Any, count: int = 1) -> list[discoro.CoroRef]:
    """So many coroutines of that function in one worker."""
    server = (await discoro.servers())[0]
    computation = discoro.Computation(function)
    await computation.setup(server)
    return [await computation.run(server, *args) for _ in range(count)]


async def send_all(there: discoro.CoroRef, message: object, count: int) -> None:
    """As fast as they are taken; others have a turn now and then."""
    for number in range(count):
        try:
            there.send(message)
        except discoro.Overloaded:
            await there.deliver(message, SECONDS)
        if number % TURN == 0:
            await asyncio.sleep(0)


def resident(pid: int, field: str = "VmRSS") -> int:
    """Bytes of memory that a process has resident; with "VmHWM", had at most since `begin_peak`. Linux only."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def begin_peak(pid: int) -> None:
    """proc(5): the peak begins anew."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
