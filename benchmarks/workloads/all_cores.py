"""W6: a function that computes for a millisecond, for 2,000 items, on all processors; processes that share nothing beside it.

The items are handed out by messages, a part at a time to whoever is done with one (docs/how-to/use-every-slot.md). What stands
beside it are as many processes, each of which has its share of the items from the start and is told to begin: what the
machine has to give.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Row

import discoro
from workloads import CORES, SECONDS, Setting

ITEMS = 2_000
PART = 20  # items that are handed out at a time
AHEAD = 4  # parts that each has
MILLISECOND = 1e-3
BENCHMARKS = Path(__file__).resolve().parent.parent
ALONE = """
import sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/.."]
from workloads import all_cores
all_cores.shares(int(sys.argv[2]))
"""


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


def shares(steps: int) -> None:
    """A process beside it: compute as many items as each line of the input says, and say when they are done."""
    for line in sys.stdin:
        for _ in range(int(line)):
            compute(steps)
        print("done", flush=True)


def shared(processes: list[Any]) -> float:
    """Items a second."""
    start = time.perf_counter()
    for number, process in enumerate(processes):
        process.stdin.write(f"{ITEMS // len(processes) + (number < ITEMS % len(processes))}\n")
        process.stdin.flush()
    for process in processes:
        process.stdout.readline()
    return ITEMS / (time.perf_counter() - start)


async def figures(setting: Setting, steps: int, processes: list[Any], coro: discoro.Coro) -> list[Row]:
    servers = await discoro.servers()
    computation = discoro.Computation(works, [compute])
    for server in servers:
        await computation.setup(server)
    workers = [await computation.run(server, coro.ref, steps) for server in servers]
    ours, theirs = [], []
    for _ in range(1 + setting.rounds):
        ours.append(await mapped(workers, coro))
        theirs.append(shared(processes))
    return [Row("W6", f"1 ms each, on {CORES} cores", "/s", ours[1:], theirs[1:], "processes alone", 0.97)]


def rows(setting: Setting) -> Iterator[Row]:
    steps = steps_of_a_millisecond()
    alone = [sys.executable, "-c", ALONE, str(BENCHMARKS), str(steps)]
    processes = [subprocess.Popen(alone, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(CORES)]
    try:
        yield from setting.run(figures, setting, steps, processes, slots=CORES)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
