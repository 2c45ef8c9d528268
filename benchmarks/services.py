"""How fast channels, queues and offered functions are: within one process, and between two.

"Here" they live in the client, with everybody who uses them; "elsewhere" in the one worker of a local node, started for the
run. Subscribers of a channel are in the worker in both cases but one, "here". Prints what was done each second.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import discoro  # noqa: E402

COUNT = 5_000  # of each operation, unless the command line says another number
AT_A_TIME = 100  # messages sent between two that are waited for: nobody's mailbox gets full
SECONDS = 300  # for any one step, far more than it takes


async def job(what: str, *args: Any, coro: discoro.Coro) -> Any:
    """What the worker does, by its name here; one function, as a computation has one."""
    return await {"offers": offers, "hears": hears}[what](*args, coro=coro)


async def offers(to: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Make one of each, hand them out, and stay."""
    to.send((discoro.Channel("news"), discoro.Queue(), discoro.RCI(nothing)))
    await coro.suspend()


async def nothing() -> None:
    """What is created by a call."""


async def hears(channel: discoro.Channel, coro: discoro.Coro) -> int:
    """How many messages came until the channel ended."""
    await channel.subscribe(coro)
    count = 0
    while not isinstance(await coro.receive(), discoro.ExitNotice):
        count += 1
    return count


async def rate(what: str, count: int, work: Awaitable[Any]) -> None:
    """Print how many of it a second."""
    start = time.perf_counter()
    await work
    print(f"    {what:52}{count / (time.perf_counter() - start):10,.0f} /s", flush=True)


async def publish(channel: discoro.Channel, count: int) -> None:
    """Send so many, and wait until all have the last."""
    for number in range(count):
        channel.send(number)
        if number % AT_A_TIME == 0:
            await channel.deliver(number, SECONDS)
    await channel.deliver("last", SECONDS)


async def publishes(channel: discoro.Channel, where: str, create: Callable[..., Any], ears: int, count: int) -> None:
    """The messages of a channel to so many subscribers, each of whom gets every one."""
    listening = [await create("hears", channel) for _ in range(ears)]
    while await channel.deliver("first", SECONDS, n=ears) != ears:
        pass
    await rate(f"messages to {ears} subscribers, {where}", count, publish(channel, count))
    await channel.close()
    heard = [await ear.result(SECONDS) for ear in listening]
    assert min(heard) > count, heard


async def in_turn(operation: Callable[[], Awaitable[Any]], count: int) -> None:
    for _ in range(count):
        await operation()


async def at_once(operation: Callable[[], Awaitable[Any]], count: int) -> None:
    for _ in range(0, count, AT_A_TIME):
        await asyncio.gather(*[operation() for _ in range(AT_A_TIME)])


async def main(count: int, coro: discoro.Coro) -> None:
    server = (await discoro.servers())[0]
    computation = discoro.Computation(job)
    await computation.setup(server)

    async def here(what: str, *args: Any) -> Any:
        return discoro.Coro(job, what, *args)

    async def there(what: str, *args: Any) -> Any:
        return await computation.run(server, what, *args)

    async def made(create: Callable[..., Any]) -> tuple[discoro.Channel, discoro.Queue, discoro.RCI]:
        await create("offers", coro.ref)
        channel, queue, rci = await coro.receive(SECONDS)
        return channel, queue, rci

    for ears, times in ((1, count), (100, max(count // 20, AT_A_TIME))):
        await publishes((await made(here))[0], "all here", here, ears, times)
        await publishes((await made(here))[0], "which are elsewhere", there, ears, times)
        await publishes((await made(there))[0], "with it elsewhere", there, ears, times)
    for create, where in ((here, "here"), (there, "elsewhere")):
        _, queue, rci = await made(create)

        async def trip(queue: discoro.Queue = queue) -> None:
            await queue.put("item", SECONDS)
            assert await queue.get(SECONDS) == "item"

        await rate(f"items put in and got, one after the other, {where}", count, in_turn(trip, count))
        await rate(f"the same, {AT_A_TIME} at a time, {where}", count, at_once(trip, count))
        await rate(f"coroutines created by RCI, in turn, {where}", count, in_turn(rci, count))
        await rate(f"the same, {AT_A_TIME} at a time, {where}", count, at_once(rci, count))
    await computation.close(server)


if __name__ == "__main__":
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}")
    how_many = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    discoro.run(main, how_many, local=True, local_options=["-c", "1"])
