"""W0: within one process. Two coroutines throw a message to and fro, or one does with a thousand; asyncio.Queue beside it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

from figures import Row

import discoro
from workloads import Setting

BALLS = 20_000  # in a round
MANY = 1_000
OTHERS = 100_000  # coroutines that only wait
QUEUE = "asyncio.Queue"


async def returns(coro: discoro.Coro) -> None:
    """Throw each message back to who threw it."""
    while True:
        thrower = await coro.receive()
        thrower.send(0)


async def waits(coro: discoro.Coro) -> None:
    await coro.receive()


async def thrown(others: list[discoro.Coro], coro: discoro.Coro) -> float:
    """Balls a second, to all of these and back."""
    start = time.perf_counter()
    for _ in range(BALLS // len(others)):
        for other in others:
            other.send(coro)
        for _ in others:
            await coro.receive()
    return BALLS / (time.perf_counter() - start)


async def returns_by_queue(mine: asyncio.Queue[Any], theirs: asyncio.Queue[Any]) -> None:
    while True:
        await mine.get()
        theirs.put_nowait(0)


async def queued(queues: list[asyncio.Queue[Any]], mine: asyncio.Queue[Any]) -> float:
    """The same with queues."""
    start = time.perf_counter()
    for _ in range(BALLS // len(queues)):
        for queue in queues:
            queue.put_nowait(0)
        for _ in queues:
            await mine.get()
    return BALLS / (time.perf_counter() - start)


async def side_by_side(count: int, rounds: int, coro: discoro.Coro) -> tuple[list[float], list[float]]:
    """The rounds of both, in turn; one before the first is not counted."""
    mine: asyncio.Queue[Any] = asyncio.Queue()
    queues: list[asyncio.Queue[Any]] = [asyncio.Queue() for _ in range(count)]
    tasks = [asyncio.create_task(returns_by_queue(queue, mine)) for queue in queues]
    others = [discoro.Coro(returns) for _ in range(count)]
    ours, theirs = [], []
    for _ in range(1 + rounds):
        ours.append(await thrown(others, coro))
        theirs.append(await queued(queues, mine))
    for task in tasks:
        task.cancel()
    for other in others:
        await other.terminate()
    return ours[1:], theirs[1:]


async def figures(rounds: int, coro: discoro.Coro) -> list[Row]:
    two = await side_by_side(1, rounds, coro)
    many = await side_by_side(MANY, rounds, coro)
    others = [discoro.Coro(waits) for _ in range(OTHERS)]
    await asyncio.sleep(0.1)
    crowded = await side_by_side(1, rounds, coro)
    for other in others:
        other.send("end")
    return [
        Row("W0", "two coroutines, to and fro", "/s", *two, beside=QUEUE, aim=1.0),
        Row("W0", f"one with {MANY:,}, to and fro", "/s", *many, beside=QUEUE, aim=1.0),
        Row("W0", f"two, while {OTHERS:,} wait", "/s", crowded[0], two[0], beside="alone", aim=0.9),
    ]


def rows(setting: Setting) -> Iterator[Row]:
    yield from setting.run(figures, setting.rounds)
