"""W8: one process with 1, 10, 100, 1,000 links: a round trip over one of them, what they take, how long they take to be made.

The other ends are meshes of their own, some hundred in one process: only what the one process pays is looked at. Linux only.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from figures import Row

import discoro
from workloads import SECONDS, Setting, resident

BENCHMARKS = Path(__file__).resolve().parent.parent
COUNTS = (1, 10, 100, 1_000)
IN_ONE = 125  # meshes in one process
TRIPS = 200  # in a round
LONG = 300.0  # seconds to start all the others


async def echoes(coro: discoro.Coro) -> None:
    while True:
        to, message = await coro.receive()
        to.send(message)


async def others(count: int, security: dict[str, Any]) -> None:
    """So many meshes: print the references of a coroutine in each, and stay."""
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(count):
            mesh = await stack.enter_async_context(discoro.Mesh(mdns=False, **security))
            there = discoro.Coro.start(mesh, echoes)
            print(json.dumps(there.ref.to_plain()), flush=True)
        await asyncio.to_thread(sys.stdin.readline)


def start_others(setting: Setting) -> tuple[list[subprocess.Popen[str]], list[discoro.CoroRef]]:
    """As many as the largest count wants."""
    pipe, security = subprocess.PIPE, json.dumps(setting.security, default=str)
    environment = {**os.environ, "PYTHONPATH": f"{BENCHMARKS}{os.pathsep}{BENCHMARKS.parent}"}
    counts = [min(IN_ONE, max(COUNTS) - first) for first in range(0, max(COUNTS), IN_ONE)]
    processes, found = [], []
    for count in counts:
        command = [sys.executable, "-m", "workloads.links", str(count), security]
        processes.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
    try:
        for process, count in zip(processes, counts, strict=True):
            assert process.stdout is not None
            found += [discoro.CoroRef.from_plain(json.loads(process.stdout.readline())) for _ in range(count)]
    except ValueError:  # one has ended, and said why
        end(processes)
        raise
    return processes, found


def end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.communicate()


async def trip(to: discoro.CoroRef, coro: discoro.Coro) -> float:
    """Microseconds there and back."""
    start = time.perf_counter()
    to.send((coro.ref, b"x" * 64))
    await coro.receive(SECONDS)
    return 1e6 * (time.perf_counter() - start)


async def with_links(refs: list[discoro.CoroRef], rounds: int) -> tuple[float, float, list[float]]:
    """Seconds until all are linked, KB for each, and the round trip of each round over the first."""

    async def measured(coro: discoro.Coro) -> tuple[float, float, list[float]]:
        await trip(refs[0], coro)  # what the first one makes is for all
        before, start = resident(os.getpid()), time.perf_counter()
        for ref in refs:
            ref.send((coro.ref, b""))
        for _ in refs:
            await coro.receive(SECONDS)
        took, size = time.perf_counter() - start, (resident(os.getpid()) - before) / len(refs) / 1000
        trips = [statistics.median([await trip(refs[0], coro) for _ in range(TRIPS)]) for _ in range(1 + rounds)]
        return took, size, trips[1:]

    return await discoro.Coro(measured).result()


def rows(setting: Setting) -> Iterator[Row]:
    processes, refs = start_others(setting)
    trips: dict[int, list[float]] = {}
    try:
        for count in COUNTS:

            async def main(count: int = count) -> tuple[float, float, list[float]]:
                return await with_links(refs[:count], setting.rounds)

            took, size, trips[count] = discoro.run(main, mdns=False, **setting.security)
    finally:
        end(processes)
    beside = {"beside": "with one link", "less_is_better": True}
    yield Row("W8", f"round trip among {COUNTS[-1]:,} links", "us", trips[COUNTS[-1]], trips[1], aim=1.1, **beside)
    yield Row("W8", f"each of {COUNTS[-1]:,} links", "KB", [size], aim=100, less_is_better=True)
    yield Row("W8", f"{COUNTS[-1]:,} links made", "s", [took], aim=5.0, less_is_better=True)


if __name__ == "__main__":
    options = json.loads(sys.argv[2])
    if "key_file" in options:
        options["key_file"] = Path(options["key_file"])
    asyncio.run(others(int(sys.argv[1]), options))
