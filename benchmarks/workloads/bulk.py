"""W5: large messages to a coroutine in another process: one of 64 MiB, and 64 of 1 MiB one behind the other.

The plain loop sends frames of the same size, uncopied on both sides; under CURVE it has CURVE, too.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

from figures import PLAIN, Row
from plain import Plain

import discoro
from workloads import SECONDS, Setting, begin_peak, resident, send_all, started

MIB = 1 << 20
LARGE = 64 * MIB
MANY = 64


async def takes(to: discoro.CoroRef, coro: discoro.Coro) -> None:
    """What comes is how many messages follow: tell when they are here, and keep none."""
    while True:
        for _ in range(await coro.receive()):
            await coro.receive()
        to.send("here")


async def once(there: discoro.CoroRef, message: bytes, count: int, coro: discoro.Coro) -> float:
    """Bytes a second."""
    start = time.perf_counter()
    there.send(count)
    await send_all(there, message, count)
    assert await coro.receive(SECONDS) == "here"
    return len(message) * count / (time.perf_counter() - start)


async def figures(setting: Setting, coro: discoro.Coro) -> list[Row]:
    (there,) = await started(takes, coro.ref)
    beside = f"{PLAIN}, CURVE" if setting.curve else PLAIN
    found = []
    for what, size, count, aim in (("one of 64 MiB", LARGE, 1, 1.0), ("64 of 1 MiB", MIB, MANY, 0.8)):
        message, ours, theirs, peaks = os.urandom(size), [], [], []
        with Plain(size, curve=setting.curve, copy=False, one_way=True) as plain:
            for _ in range(1 + setting.rounds):
                begin_peak(there.pid)
                before = resident(there.pid)
                ours.append(await once(there, message, count, coro) / 2**30)
                peaks.append((resident(there.pid, "VmHWM") - before) / size)
                theirs.append(size * count / plain.once(count) / 2**30)
        found.append(Row("W5", what, "GiB/s", ours[1:], theirs[1:], beside, aim))
        if count == 1:
            found.append(Row("W5", "memory of its receiver, in objects", "", peaks[1:], aim=1.1, less_is_better=True))
    return found


def rows(setting: Setting) -> Iterator[Row]:
    yield from setting.run(figures, setting)
