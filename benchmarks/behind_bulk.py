"""How long a small question takes while large messages leave on the same link, and what that costs the large ones.

Two processes: the near one asks the far one small questions, one every few milliseconds, first with nothing else on the link
and then while it sends large messages there. It does so with the window of pieces that follows the path (discoro/pacing.py),
and with one that is fixed at the most it may be. Paths: loopback, and, as root or where user namespaces are allowed, two
machines in network namespaces with a line of 800 Mbit/s (100 MB/s) and of 16 Mbit/s (a slow Wi-Fi) between them. Linux only.

Printed are the median and the 99th percentile of the question in ms, without and with the large messages beside it; the rate of
those; and the processor seconds that both processes took for a GiB of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import discoro  # noqa: E402
from discoro import outbox, pacing  # noqa: E402

try:
    from tests.support.netns import Lan, best_way

    NO_LAN = "" if best_way() else "no network namespaces here"
except ImportError as error:  # pytest, which comes with the tests
    NO_LAN = str(error)

MIB = 1 << 20
PAUSE = 0.005  # seconds between two questions
TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc
WINDOWS = ("adaptive", "fixed")
SECONDS = 600  # for anything, far more than it takes


class Way(NamedTuple):
    """A way between the two processes. `rate` and `burst`: as tc writes them; none is loopback."""

    name: str
    rate: str
    burst: str
    size: int  # bytes of all large messages
    message: int  # and of one
    alone: int = 400  # questions with nothing beside them


WAYS = (
    Way("loopback", "", "", 1024 * MIB, 128 * MIB),
    Way("800 Mbit/s", "800mbit", "256kb", 1024 * MIB, 128 * MIB),
    Way("16 Mbit/s", "16mbit", "64kb", 32 * MIB, 8 * MIB),
)


class Fixed(pacing.Pace):
    """The window before anything was measured: as large as it may be."""

    def __init__(self) -> None:
        super().__init__()
        self.window = pacing.WINDOW_MOST

    def acknowledged(self, size: int, trip: float, left: int, now: float) -> None:
        """Learns nothing."""


# The two processes.


async def answers(coro: discoro.Coro) -> None:
    """The far one: answers questions."""
    await coro.register("answers")
    while True:
        coro.reply(await coro.receive())


async def takes(coro: discoro.Coro) -> None:
    """The far one: forgets what is large."""
    await coro.register("takes")
    while True:
        await coro.receive()


async def asks(far: discoro.CoroRef, taken: list[float]) -> None:
    """Questions, until it is cancelled."""
    while True:
        start = time.perf_counter()
        await far.ask(b"?", SECONDS)
        taken.append(time.perf_counter() - start)
        await asyncio.sleep(PAUSE)


async def far_side(host: str, key: str) -> None:
    """Says where it listens."""
    async with discoro.Mesh(name="far", mdns=False, ip_addr=[host], key_file=key) as mesh:
        coro = discoro.Coro(answers)
        discoro.Coro(takes)
        print(json.dumps(mesh.addresses[0]), flush=True)
        await coro.result()


async def near_side(host: str, key: str, window: str, peer: str, way: Way) -> None:
    """Says what questions took alone, what they took beside the large messages, and the seconds of those."""
    if window == "fixed":
        outbox.Pace = Fixed  # type: ignore[misc]
    async with discoro.Mesh(name="near", mdns=False, ip_addr=[host], peers=[peer], key_file=key):
        print(json.dumps(await discoro.Coro(measured, way).result()), flush=True)


async def measured(way: Way, coro: discoro.Coro) -> dict[str, Any]:
    answering, far = [await coro.locate(name, timeout=20) for name in ("answers", "takes")]
    alone: list[float] = []
    beside: list[float] = []
    asking = discoro.Coro(asks, answering, alone)
    while len(alone) < way.alone:
        await asyncio.sleep(PAUSE)
    await asking.terminate()
    large = os.urandom(way.message)
    before, start = processor(os.getpid()) + processor(far.pid), time.perf_counter()
    asking = discoro.Coro(asks, answering, beside)
    for _ in range(way.size // way.message):
        await far.deliver(large, SECONDS)
    seconds, taken = time.perf_counter() - start, processor(os.getpid()) + processor(far.pid) - before
    await asking.terminate()
    return {"alone": alone, "beside": beside, "seconds": seconds, "processor": taken}


def processor(pid: int) -> float:
    """Seconds of a processor that a process has taken so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


# The program around them.


def started(lan: Any, machine: str, *arguments: str) -> subprocess.Popen[str]:
    """This program on that machine; on this one where there is no Lan."""
    command = [sys.executable, __file__, *arguments]
    if lan is None:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    process: subprocess.Popen[str] = lan.popen(machine, command, stdout=subprocess.PIPE, text=True)
    return process


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline() or sys.exit("a process ended early: see above"))


def once(way: Way, window: str, folder: Path) -> dict[str, Any]:
    """What the near process says."""
    with ExitStack() as stack:
        lan = stack.enter_context(Lan(["near", "far"])) if way.rate else None
        for machine in ("near", "far") if lan is not None else ():
            lan.run(machine, f"tc qdisc add dev eth0 root tbf rate {way.rate} burst {way.burst} latency 400ms")
        near, far = (lan.address("near"), lan.address("far")) if lan is not None else ("127.0.0.1", "127.0.0.1")
        key = str(folder / "key")
        far_process = started(lan, "far", "far", far, key)
        stack.enter_context(far_process)
        stack.callback(far_process.kill)
        near_process = started(lan, "near", "near", near, key, window, said(far_process), json.dumps(way))
        stack.enter_context(near_process)
        stack.callback(near_process.kill)
        found: dict[str, Any] = said(near_process)
        near_process.wait(SECONDS)
        return found


def report(way: Way, window: str, rounds: Sequence[dict[str, Any]]) -> None:
    """One line."""
    figures = [1000 * each for kind in ("alone", "beside") for each in percentiles([t for r in rounds for t in r[kind]])]
    rates = sorted(way.size / MIB / each["seconds"] for each in rounds)
    taken = statistics.mean(each["processor"] for each in rounds) * 1024 * MIB / way.size
    line = "".join(f"{each:9.1f}" for each in figures)
    spread = f"{rates[0]:.1f} to {rates[-1]:.1f}"
    print(f"  {way.name:12}{window:10}{line}{statistics.median(rates):9.1f}  {spread:16}{taken:9.1f}", flush=True)


def percentiles(values: Sequence[float]) -> tuple[float, float]:
    """The median, and the 99th."""
    in_order = sorted(values)
    return statistics.median(in_order), in_order[int(0.99 * (len(in_order) - 1))]


def measure(ways: Sequence[Way], count: int) -> None:
    """The table, of so many rounds."""
    print(f"{'':24}{'alone, ms':>18}{'beside, ms':>18}{'MiB/s':>9}")
    print(f"  {'way':12}{'window':10}" + 2 * f"{'p50':>9}{'p99':>9}" + f"{'median':>9}  {'from, to':16}{'processor':>9}")
    folder = Path(tempfile.mkdtemp(prefix="discoro-benchmark-"))
    try:
        for way in ways:
            if way.rate and NO_LAN:
                print(f"  {way.name:12}not measured: {NO_LAN}")
                continue
            found: dict[str, list[dict[str, Any]]] = {window: [] for window in WINDOWS}
            for _ in range(count):  # in turn: both meet the same machine
                for window in WINDOWS:
                    found[window].append(once(way, window, folder))
            for window, rounds in found.items():
                report(way, window, rounds)
    finally:
        shutil.rmtree(folder)


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a small question takes behind large messages.")
    parser.add_argument("rounds", nargs="?", type=int, default=3, help="of each (default: %(default)s)")
    parser.add_argument("--only", choices=[way.name for way in WAYS], help="this way alone")
    told = parser.parse_args()
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}")
    measure([way for way in WAYS if told.only in (None, way.name)], told.rounds)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["far", host, key]:
            asyncio.run(far_side(host, key))
        case ["near", host, key, window, peer, way]:
            asyncio.run(near_side(host, key, window, peer, Way(*json.loads(way))))
        case _:
            main()
