"""W1: a message of 64 bytes to a coroutine in another process and back, one after the other."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Iterator

from figures import PLAIN, Row
from plain import Plain

import discoro
from workloads import SECONDS, Setting, started

SIZE = 64
TRIPS = 1_000  # in a round


async def echoes(to: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Send each message back; answer what is asked."""
    while True:
        message = await coro.receive()
        if not coro.reply(message):
            to.send(message)


async def sent(there: discoro.CoroRef, message: bytes, coro: discoro.Coro) -> list[float]:
    """Microseconds of each round trip, by messages."""
    took = []
    for _ in range(TRIPS):
        start = time.perf_counter()
        there.send(message)
        await coro.receive(SECONDS)
        took.append(1e6 * (time.perf_counter() - start))
    return took


async def asked(there: discoro.CoroRef, message: bytes) -> list[float]:
    """The same with `ask`."""
    took = []
    for _ in range(TRIPS):
        start = time.perf_counter()
        await there.ask(message, SECONDS)
        took.append(1e6 * (time.perf_counter() - start))
    return took


async def figures(setting: Setting, coro: discoro.Coro) -> list[Row]:
    (there,) = await started(echoes, coro.ref)
    message = os.urandom(SIZE)
    messages, questions, slow, theirs = [], [], [], []
    with Plain(SIZE, curve=setting.curve) as plain:
        for _ in range(1 + setting.rounds):
            trips = await sent(there, message, coro)
            messages.append(statistics.median(trips))
            slow.append(statistics.quantiles(trips, n=100)[98])
            theirs.append(1e6 * plain.once(TRIPS) / TRIPS)
            questions.append(statistics.median(await asked(there, message)))
    ours = Row("W1", "round trip, 64 bytes", "us", messages[1:], theirs[1:], PLAIN, 1.3, True)
    return [
        ours,
        ours._replace(what="the same by ask", ours=questions[1:]),
        Row("W1", "99 of 100 are within", "us", slow[1:], less_is_better=True),
    ]


def rows(setting: Setting) -> Iterator[Row]:
    yield from setting.run(figures, setting)
