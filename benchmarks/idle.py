"""What a coroutine costs that only waits: 100,000 of them on one worker, in each of the two styles.

Each is created by a client, monitored by it, has answered one question and waits in `receive()`. Prints the growth of the
worker's resident memory beside its limit, and how long it takes to create, ask and end them; exit status 1 where a promise
is not kept. A local node of one slot is started for the run. Linux only: it reads /proc.
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import discoro  # noqa: E402

COUNT = 100_000  # of coroutines, unless the command line says another number
WARM = 1_000  # created before memory is looked at: they pay for what is made once
AT_ONCE = 1_000  # on the way at a time
LIMIT = 2_000  # bytes for each
SECONDS = 300  # for any one step, far more than it takes

# As many bare tasks, each woken once, then waiting for the future that would bring its next message.
BARE = """
import asyncio, os, sys
from pathlib import Path

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

async def idle(first, second):
    await first
    await second

async def create(count):
    loop = asyncio.get_running_loop()
    waiting = [(loop.create_future(), loop.create_future()) for _ in range(count)]
    tasks = [loop.create_task(idle(*futures)) for futures in waiting]
    await asyncio.sleep(0)
    for first, _ in waiting:
        first.set_result(None)
    await asyncio.sleep(0)
    return [(second, task) for (_, second), task in zip(waiting, tasks)]

async def main(warm, count):
    kept = await create(warm)
    before = resident()
    kept += await create(count)
    print((resident() - before) / count)
    for second, _ in kept:
        second.set_result(None)
    await asyncio.wait([task for _, task in kept])

asyncio.run(main(*map(int, sys.argv[1:])))
"""


def generator(coro: discoro.Coro) -> Any:
    """Answers one question, then waits for the message that ends it."""
    question = yield coro.receive()
    coro.reply(question)
    yield coro.receive()


async def native(coro: discoro.Coro) -> None:
    """The same as an `async def`."""
    question = await coro.receive()
    coro.reply(question)
    await coro.receive()


def resident(pid: int) -> int:
    """Bytes of memory that a process has resident."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def each(operation: Callable[[Any], Any], items: Sequence[Any]) -> tuple[list[Any], list[float]]:
    """The operation on every item, a number of them at a time: what they gave, and the seconds of each such group."""
    given, seconds = [], []
    for first in range(0, len(items), AT_ONCE):
        start = time.perf_counter()
        given += await asyncio.gather(*map(operation, items[first : first + AT_ONCE]))
        seconds.append(time.perf_counter() - start)
    return given, seconds


def rate(what: str, count: int, seconds: list[float]) -> None:
    """Print how many a second, and whether the last were as fast as the first."""
    ends = f"first {AT_ONCE:,} {seconds[0] * 1e3:.0f} ms, last {seconds[-1] * 1e3:.0f} ms"
    print(f"    {what:32}{count / sum(seconds):10,.0f} /s     {ends}", flush=True)


async def idle(function: Callable[..., Any], count: int, coro: discoro.Coro) -> float:
    """Bytes for each of so many; prints every figure."""
    server = (await discoro.servers())[0]
    computation = discoro.Computation(function)
    await computation.setup(server)

    async def create(_: int) -> discoro.CoroRef:
        return await computation.run(server)

    async def ask(ref: discoro.CoroRef) -> Any:
        return await ref.ask(ref.id, timeout=SECONDS)

    warm, _ = await each(create, range(WARM))
    await each(coro.monitor, warm)
    await each(ask, warm)
    worker = warm[0].pid
    before, own_before = resident(worker), resident(os.getpid())

    refs, seconds = await each(create, range(count))
    rate("create", count, seconds)
    _, seconds = await each(coro.monitor, refs)
    rate("monitor", count, seconds)
    replies, seconds = await each(ask, refs)
    rate("ask", count, seconds)
    assert replies == [ref.id for ref in refs]
    grown, own = resident(worker) - before, resident(os.getpid()) - own_before
    verdict = f"limit {LIMIT:,}{', OVER' if grown / count > LIMIT else ''}"
    print(f"    {'each, in the worker':32}{grown / count:10,.0f} bytes  {verdict}")
    print(f"    {'each, in the client':32}{own / count:10,.0f} bytes", flush=True)

    await end(refs, coro)
    left = resident(worker) - before
    print(f"    {'kept when they have ended':32}{left / count:10,.0f} bytes  by Python, and for results asked for late")
    refs, _ = await each(create, range(count))
    await each(ask, refs)
    more = resident(worker) - before - max(grown, left)
    print(f"    {'as many once more':32}{more / count:+10,.0f} bytes")
    await computation.close(server, close_timeout=SECONDS)
    return grown / count


async def end(refs: list[discoro.CoroRef], coro: discoro.Coro) -> None:
    """Send each the message that ends it, and take one exit notice of each."""
    start = time.perf_counter()
    for first in range(0, len(refs), AT_ONCE):
        for ref in refs[first : first + AT_ONCE]:
            ref.send("end")
        await asyncio.sleep(0)
    notices = Counter()
    for _ in refs:
        notice = await coro.receive(timeout=SECONDS)
        assert isinstance(notice, discoro.ExitNotice), notice
        assert notice.reason == "normal", notice
        notices[notice.ref] += 1
    assert notices == Counter(refs)
    assert await coro.receive(timeout=0.1) is None
    print(f"    {'end, with one notice each':32}{len(refs) / (time.perf_counter() - start):10,.0f} /s")


def main(count: int) -> int:
    """Print every figure; 1 where one is over its limit."""
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}")
    command = [sys.executable, "-c", BARE, str(WARM), str(count)]
    bare = float(subprocess.run(command, capture_output=True, text=True, check=True, timeout=SECONDS).stdout)
    print(f"  {count:,} bare tasks of asyncio: {bare:,.0f} bytes each")
    over = 0
    for function in generator, native:
        print(f"  {count:,} coroutines of discoro, {function.__name__}")
        over += discoro.run(idle, function, count, local=True, local_options=["-c", "1"]) > LIMIT
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else COUNT))
