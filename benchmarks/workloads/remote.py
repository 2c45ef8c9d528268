"""W3: coroutines that do nothing, created elsewhere, their results gathered: at one worker, and at all.

By `gather`, and one by one with `run` and `result`, a thousand under way at each server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Sequence

from figures import PLAIN, Row
from plain import Plain

import discoro
from workloads import CORES, Setting

SIZE = 64  # bytes of the messages that the plain loop moves
GATHERED = 20_000  # coroutines in a round, at each server
COUNT = 5_000  # one by one, in all
PLAIN_COUNT = 50_000
AT_ONCE = 1_000  # under way at each server


async def nothing() -> None:
    """What is run."""


async def run_and_wait(computation: discoro.Computation, server: discoro.CoroRef, count: int) -> None:
    for _ in range(count):
        coro = await computation.run(server)
        await coro.result()


async def gathered(computation: discoro.Computation, servers: Sequence[discoro.CoroRef]) -> float:
    """Coroutines a second."""
    start = time.perf_counter()
    arguments: list[tuple[()]] = [()] * GATHERED
    await asyncio.gather(*(computation.gather(server, arguments) for server in servers))
    return GATHERED * len(servers) / (time.perf_counter() - start)


async def one_by_one(computation: discoro.Computation, servers: Sequence[discoro.CoroRef]) -> float:
    """The same with a request for each."""
    start = time.perf_counter()
    each = COUNT // len(servers)
    drivers = [run_and_wait(computation, server, each // AT_ONCE) for server in servers for _ in range(AT_ONCE)]
    await asyncio.gather(*drivers)
    return each // AT_ONCE * AT_ONCE * len(servers) / (time.perf_counter() - start)


async def figures(setting: Setting, coro: discoro.Coro) -> list[Row]:
    servers = await discoro.servers()
    computation = discoro.Computation(nothing)
    for server in servers:
        await computation.setup(server)
    found = []
    with Plain(SIZE, curve=False, one_way=True) as plain:
        every = f"{len(servers)} workers"
        for what, once, some in (
            ("no-op coroutines gathered, one worker", gathered, servers[:1]),
            (f"the same, {every}", gathered, servers),
            ("one by one, one worker", one_by_one, servers[:1]),
            (f"one by one, {every}", one_by_one, servers),
        ):
            ours, theirs = [], []
            for _ in range(1 + setting.rounds):
                ours.append(await once(computation, some))
                theirs.append(PLAIN_COUNT / plain.once(PLAIN_COUNT))
            found.append(Row("W3", what, "/s", ours[1:], theirs[1:], f"{PLAIN}, messages", 0.35))
    return found


def rows(setting: Setting) -> Iterator[Row]:
    yield from setting.run(figures, setting, slots=max(2, min(4, CORES)))
