"""How fast large messages travel to a worker, beside a plain loop of pyzmq of the same size under the same security.

Each round sends one object and waits until the receiver says that it has it: discoro and the plain loop in turn, so that both
meet the same machine. Printed are the median rates, their spread, how they compare, and how much memory each side took at its
peak, as a multiple of the object (the sender's own object is in it). A local node of one slot is started for each kind of
security. Linux only: it reads /proc.
"""

from __future__ import annotations

import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from plain import Plain  # noqa: E402

import discoro  # noqa: E402

try:
    import numpy
except ImportError:
    numpy = None  # type: ignore[assignment]

MEMORY = Path("/dev/shm")  # files lie there if it exists: the disk is not what is measured
FOLDER = Path(tempfile.mkdtemp(prefix="discoro-benchmark-", dir=MEMORY if MEMORY.is_dir() else None))
ROUNDS = 7  # of each, unless the command line says another number
SECONDS = 60  # for one object, far more than it takes
MIB = 1 << 20


class Figures(NamedTuple):
    """What one of the two came to."""

    seconds: list[float]  # of each round
    memory: tuple[float, float]  # of sender and receiver, in objects


async def by_message(what: Any, worker: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Until `receives` says that it has it."""
    worker.send(what)
    assert await coro.receive(SECONDS) is not None


class Load(NamedTuple):
    """What is sent, and how: `travel` comes back when the worker has it."""

    name: str
    size: int  # bytes
    make: Callable[[int], Any]
    travel: Callable[[Any, discoro.CoroRef, discoro.Coro], Awaitable[None]] = by_message


def file(size: int) -> Path:
    """A file of that size, where this program keeps its files."""
    path = FOLDER / "large"
    with open(path, "wb") as new:
        for _ in range(size // MIB):
            new.write(os.urandom(MIB))
    return path


async def by_file(path: Path, worker: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Until it lies in the worker's directory. It is another one each time: the same would not travel."""
    with open(path, "r+b") as changed:
        changed.write(os.urandom(16))
    await discoro.send_file(worker, path, overwrite=True)


def array(size: int) -> Any:
    """A writable one: what most arrays are."""
    return numpy.random.default_rng(1).random(size // 8)


# What is no message (a file) has a `travel` of its own.
FIRST = Load("one byte", 1, bytes)  # for what each side makes once
LOADS = [Load("64 MiB bytes", 64 * MIB, os.urandom)]
if numpy is not None:
    LOADS.append(Load("200 MB numpy array", 200_000_000, array))
LOADS.append(Load("1 GiB file", 1024 * MIB, file, by_file))


async def receives(to: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Tell of each message that it came, and keep none."""
    while True:
        await coro.receive()
        to.send("here")


def resident(pid: int, field: str = "VmRSS") -> int:
    """Bytes of memory that a process has, or had at most since `begin_peak` ("VmHWM")."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def begin_peak(*pids: int) -> None:
    for pid in pids:
        Path(f"/proc/{pid}/clear_refs").write_text("5")  # proc(5): the peak begins anew


async def compare(load: Load, rounds: int, curve: bool, worker: discoro.CoroRef, coro: discoro.Coro) -> tuple[Figures, Figures]:
    """discoro and the plain loop, in turn; a round before the first is not counted."""
    ours, theirs = [], []
    with Plain(load.size, curve=curve) as plain:
        pids = (os.getpid(), worker.pid, plain.sender, plain.receiver)
        before = [resident(pid) for pid in pids]
        begin_peak(*pids)
        what = load.make(load.size)
        for _ in range(1 + rounds):
            start = time.perf_counter()
            await load.travel(what, worker, coro)
            ours.append(time.perf_counter() - start)
            theirs.append(plain.once())
        grown = [(resident(pid, "VmHWM") - less) / load.size for pid, less in zip(pids, before, strict=True)]
    return Figures(ours[1:], (grown[0], grown[1])), Figures(theirs[1:], (grown[2], grown[3]))


def report(load: Load, who: str, figures: Figures, beside: Figures | None = None) -> None:
    rates = sorted(load.size / each / 2**30 for each in figures.seconds)
    middle, spread = statistics.median(rates), f"{rates[0]:.2f} to {rates[-1]:.2f}"
    ratio = f"{statistics.median(beside.seconds) / statistics.median(figures.seconds):.2f}" if beside else ""
    sender, receiver = figures.memory
    print(f"    {load.name:20}{who:9}{middle:6.2f}  {spread:14}{ratio:>7}{sender:10.2f}{receiver:10.2f}", flush=True)


async def main(rounds: int, curve: bool, coro: discoro.Coro) -> None:
    server = (await discoro.servers())[0]
    computation = discoro.Computation(receives)
    await computation.setup(server)
    worker = await computation.run(server, coro.ref)
    for load in (FIRST, *LOADS):
        ours, theirs = await compare(load, rounds, curve, worker, coro)
        if load is not FIRST:
            report(load, "discoro", ours, theirs)
            report(load, "plain", theirs)
    await computation.close(server)


def measure(rounds: int) -> None:
    """The table, with CURVE and open."""
    print(f"CPython {platform.python_version()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}")
    if numpy is None:
        print("  no array is sent: numpy is not installed")
    print(f"{'':33}{'GiB/s':>6}  {'from, to':14}{'ratio':>7}{'sender':>10}{'receiver':>10}")
    for curve in (True, False):
        print(f"  {'CURVE' if curve else 'open'}")
        key = {"key_file": FOLDER / "key"} if curve else {"open": True}
        node = ["-c", "1", "--dest-path", str(FOLDER / "received")]
        discoro.run(main, rounds, curve, local=True, local_options=node, **key)


if __name__ == "__main__":
    try:
        measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
    finally:
        shutil.rmtree(FOLDER)
