"""W2: messages of 64 bytes, one way: from one coroutine to one, and from a hundred to a hundred, in another process.

Senders are held back only by discoro: where `send` finds no room they use `deliver`; now and then they let others have a turn.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from figures import PLAIN, Row
from plain import Plain

import discoro
from workloads import SECONDS, Setting, send_all, started

SIZE = 64
COUNT = 100_000  # in a round
PAIRS = 100


async def counts(to: discoro.CoroRef, coro: discoro.Coro) -> None:
    """What comes is how many messages follow: tell when they are here."""
    while True:
        for _ in range(await coro.receive()):
            await coro.receive()
        to.send("all")


async def sends(there: discoro.CoroRef, message: object, count: int) -> None:
    there.send(count)
    await send_all(there, message, count)


async def once(receivers: list[discoro.CoroRef], message: object, coro: discoro.Coro) -> float:
    """Messages a second, until the last of them is received."""
    start = time.perf_counter()
    for receiver in receivers:
        discoro.Coro(sends, receiver, message, COUNT // len(receivers))
    for _ in receivers:
        assert await coro.receive(SECONDS) == "all"
    return COUNT / (time.perf_counter() - start)


async def figures(setting: Setting, coro: discoro.Coro) -> list[Row]:
    receivers = await started(counts, coro.ref, count=PAIRS)
    message = os.urandom(SIZE)
    found = []
    with Plain(SIZE, curve=False, one_way=True) as plain:
        for what, these, sent, aim in (
            ("one way, 64 bytes", receivers[:1], message, 3.5 if setting.curve else 4.0),
            (f"the same, {PAIRS} pairs", receivers, message, 3.5),
            ("one way, a tuple of three", receivers[:1], ("step", 17, 2.5), None),
        ):
            ours, theirs = [], []
            for _ in range(1 + setting.rounds):
                ours.append(await once(these, sent, coro))
                theirs.append(COUNT / plain.once(COUNT))
            found.append(Row("W2", what, "/s", ours[1:], theirs[1:], f"{PLAIN}, open" if setting.curve else PLAIN, aim))
    return found


def rows(setting: Setting) -> Iterator[Row]:
    yield from setting.run(figures, setting)
