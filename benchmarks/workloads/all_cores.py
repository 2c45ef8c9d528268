"""W6: a function that computes for a millisecond, for 2,000 items, on all processors; processes that share nothing beside it.

The items are handed out by messages, a part at a time to whoever is done with one (docs/how-to/use-every-slot.md). What stands
beside it are as many processes, each of which has its share of the items from the start and is told to begin: what the
machine has to give.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from figures import Row

import discoro
from workloads import CORES, SECONDS, Setting

ITEMS = 2_000
PART = 20  # items that are handed out at a time
AHEAD = 4  # parts that each has
MILLISECOND = 1e-3


def steps_of_a_millisecond() -> int:
    """How many steps of `compute` take a millisecond here: the fewest seconds of several tries."""
    steps, tries = 10_000, []
    for _ in range(20):
        start = time.perf_counter()
        compute(steps)
        tries.append(time.perf_counter() - start)
    return int(steps * MILLISECOND / min(tries))


def compute(steps: int) -> int:
    total = 0
    for number in range(steps):
        total += number
    return total


async def works(to: discoro.CoroRef, steps: int, coro: discoro.Coro) -> None:
    """Compute each part that comes, and send what came of it."""
    while True:
        part = await coro.receive()
        to.send((coro.ref, [compute(steps) for _ in part]))


async def mapped(workers: list[discoro.CoroRef], coro: discoro.Coro) -> float:
    """Items a second."""
    start = time.perf_counter()
    parts = iter([range(first, min(first + PART, ITEMS)) for first in range(0, ITEMS, PART)])
    for _ in range(AHEAD):
        for worker in workers:
            worker.send(next(parts))
    done = 0
    while done < ITEMS:
        worker, results = await coro.receive(SECONDS)
        done += len(results)
        if (part := next(parts, None)) is not None:
            worker.send(part)
    return ITEMS / (time.perf_counter() - start)


def shares(steps: int, line: Connection) -> None:
    """A process beside it: compute as many items as each word says."""
    while (count := line.recv()) is not None:
        line.send([compute(steps) for _ in range(count)])


def shared(lines: list[Connection]) -> float:
    """Items a second."""
    start = time.perf_counter()
    for number, line in enumerate(lines):
        line.send(ITEMS // len(lines) + (number < ITEMS % len(lines)))
    for line in lines:
        line.recv()
    return ITEMS / (time.perf_counter() - start)


async def figures(setting: Setting, steps: int, lines: list[Connection], coro: discoro.Coro) -> list[Row]:
    servers = await discoro.servers()
    computation = discoro.Computation(works, [compute])
    for server in servers:
        await computation.setup(server)
    workers = [await computation.run(server, coro.ref, steps) for server in servers]
    ours, theirs = [], []
    for _ in range(1 + setting.rounds):
        ours.append(await mapped(workers, coro))
        theirs.append(shared(lines))
    return [Row("W6", f"1 ms each, on {CORES} cores", "/s", ours[1:], theirs[1:], "processes alone", 0.97)]


def rows(setting: Setting) -> Iterator[Row]:
    steps = steps_of_a_millisecond()
    spawn: Any = multiprocessing.get_context("spawn")
    pairs = [spawn.Pipe() for _ in range(CORES)]
    processes = [spawn.Process(target=shares, args=(steps, theirs), daemon=True) for _, theirs in pairs]
    for process in processes:
        process.start()
    try:
        yield from setting.run(figures, setting, steps, [mine for mine, _ in pairs], slots=CORES)
    finally:
        for process in processes:
            process.kill()
            process.join()
