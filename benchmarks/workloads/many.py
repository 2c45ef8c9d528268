"""W4: ten thousand coroutines elsewhere, each created, asked once and then waiting; and what memory each takes there."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from figures import Row

import discoro
from workloads import SECONDS, Setting, resident

COUNT = 10_000
WARM = 1_000  # created before memory is looked at: they pay for what a worker makes once
AT_ONCE = 1_000


async def answers(coro: discoro.Coro) -> None:
    """Answer one question; the next message ends it."""
    question = await coro.receive()
    coro.reply(question)
    await coro.receive()


async def once(computation: discoro.Computation, server: discoro.CoroRef, count: int) -> tuple[float, list[discoro.CoroRef]]:
    """Coroutines created and answered a second, and all of them."""

    async def create_and_ask() -> discoro.CoroRef:
        made = await computation.run(server)
        assert await made.ask(1, SECONDS) == 1
        return made

    start = time.perf_counter()
    made: list[discoro.CoroRef] = []
    for _ in range(count // AT_ONCE):
        made += await asyncio.gather(*(create_and_ask() for _ in range(AT_ONCE)))
    return count / (time.perf_counter() - start), made


async def figures(setting: Setting, coro: discoro.Coro) -> list[Row]:
    server = (await discoro.servers())[0]
    computation = discoro.Computation(answers)
    await computation.setup(server)
    rates, sizes = [], []
    for number in range(1 + setting.rounds):
        _, warm = await once(computation, server, WARM)
        before = resident(warm[0].pid)
        rate, made = await once(computation, server, COUNT)
        if number:
            rates.append(rate)
            sizes.append((resident(made[0].pid) - before) / COUNT / 1000)
        if number == setting.rounds:
            break
        await computation.close(server, close_timeout=SECONDS)
        computation = discoro.Computation(answers)
        await computation.setup(server)
    return [
        Row("W4", f"{COUNT:,} created and answered", "/s", rates, aim=50_000),
        Row("W4", "each that waits", "KB", sizes, aim=2.0, less_is_better=True),
    ]


def rows(setting: Setting) -> Iterator[Row]:
    yield from setting.run(figures, setting)
