"""What encryption costs small messages: discoro with CURVE and with --open, each beside a plain loop of pyzmq of that kind.

For each kind a client and the one worker of a local node, which live for the whole run. Thousands of messages go from
coroutines of the client to coroutines of the worker, one to one and a hundred pairs at once, until the worker has counted them
and its word is back; or one question is asked and answered after the other. Senders are held back only by discoro: they let
others have a turn now and then, and use `deliver` where `send` finds no room.

CURVE and open do so in turn, and so do the plain loops: DEALER to ROUTER, one frame for each message, blocking calls. A round
is ten such slices of each of the four, so that all meet the same machine.

Printed are median rates and their spread; the ratio to the plain loop; the processor seconds of sender and receiver, libzmq's
threads included, for a million messages; and the ratio of CURVE to open, by those seconds, and by the rates: the median of what
each round came to, and its spread. What else the machine does makes rates uncertain and seconds hardly. Exit status 1 where the
rate of messages of 64 bytes, one way, is under 0.8 of the open one. Linux only: it reads /proc.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
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
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import zmq  # noqa: E402
from plain import Plain  # noqa: E402

import discoro  # noqa: E402

ROUNDS = 10  # of each, unless the command line says another number
PROMISED = 0.8  # of the rate with --open, with CURVE, for the first of the loads
SLICES = 10  # of a round, between which the others have theirs: what else the machine does comes and goes within a second
TURN = 100  # messages that one coroutine sends before it lets others have a turn
SECONDS = 60  # for one round, far more than it takes
TICKS = os.sysconf("SC_CLK_TCK")  # a second, in /proc
KINDS = ("CURVE", "open")


class Load(NamedTuple):
    """What is sent in one slice of a round."""

    name: str
    size: int  # bytes of a message
    ours: int  # messages by discoro
    plain: int  # and by the plain loop, which is faster
    pairs: int = 1  # senders, each with a receiver of its own
    one_way: bool = True  # or each message is answered before the next


LOADS = (
    Load("64 bytes", 64, 5_000, 15_000),
    Load("1 KiB", 1024, 4_000, 8_000),
    Load("64 bytes, 100 pairs", 64, 5_000, 15_000, pairs=100),
    Load("1 KiB, 100 pairs", 1024, 4_000, 8_000, pairs=100),
    Load("64 bytes, there and back", 64, 100, 600, one_way=False),
)


class Round(NamedTuple):
    """What one round, or a slice of it, came to for each message: seconds, and those of a processor."""

    seconds: float
    sender: float
    receiver: float

    @property
    def rate(self) -> float:
        """Messages a second."""
        return 1 / self.seconds


# The worker, and the client beside it.


async def receives(to: discoro.CoroRef, coro: discoro.Coro) -> None:
    """Answer what is asked. What is sent is how many messages follow: tell when they are here."""
    while True:
        what = await coro.receive()
        if isinstance(what, bytes):
            coro.reply(what)
            continue
        for _ in range(what):
            await coro.receive()
        to.send("all")


async def sends(receiver: discoro.CoroRef, message: bytes, count: int, coro: discoro.Coro) -> None:
    """As many messages as fast as they are taken."""
    receiver.send(count)
    for number in range(count):
        try:
            receiver.send(message)
        except discoro.Overloaded:
            await receiver.deliver(message, SECONDS)
        if number % TURN == 0:
            await asyncio.sleep(0)


async def asks(receiver: discoro.CoroRef, message: bytes, count: int) -> None:
    """As many questions, each after the answer to the one before."""
    for _ in range(count):
        assert await receiver.ask(message, SECONDS) == message


async def once(load: Load, receivers: Sequence[discoro.CoroRef], coro: discoro.Coro) -> float:
    """Seconds of one slice of a round."""
    message = os.urandom(load.size)
    start = time.perf_counter()
    if not load.one_way:
        await asks(receivers[0], message, load.ours)
        return time.perf_counter() - start
    for receiver in receivers[: load.pairs]:
        discoro.Coro(sends, receiver, message, load.ours // load.pairs)
    for _ in range(load.pairs):
        assert await coro.receive(SECONDS) == "all"
    return time.perf_counter() - start


async def client(pairs: int, coro: discoro.Coro) -> None:
    """Say the pids of client and worker, then send what each line of the input tells to, and say the seconds."""
    server = (await discoro.servers())[0]
    computation = discoro.Computation(receives)
    await computation.setup(server)
    receivers = [await computation.run(server, coro.ref) for _ in range(pairs)]
    print(json.dumps((os.getpid(), receivers[0].pid)), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        print(json.dumps(await once(Load(*json.loads(line)), receivers, coro)), flush=True)
    await computation.close(server)


# The program around them.


class Ours:
    """A client and its worker, as a context manager; the same for one load as `Plain`."""

    def __init__(self, kind: str, folder: Path, pairs: int) -> None:
        """Start them, and do not wait: `wait` does. `kind`: one of KINDS. `pairs`: the most of any load."""
        pipe = subprocess.PIPE
        command = [sys.executable, __file__, "client", kind, str(folder), str(pairs)]
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True)

    def wait(self) -> None:
        """Until both are there; then `sender` and `receiver` are their pids."""
        self.sender, self.receiver = self._answer()

    def once(self, load: Load) -> float:
        """Seconds of one slice of a round."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(load) + "\n")
        self._process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline() or sys.exit("a client ended early: see above"))

    def __enter__(self) -> Ours:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._process.communicate(timeout=SECONDS)  # the end of its input is the end of it
        finally:
            self._process.kill()


def processor(pid: int) -> float:
    """Seconds of a processor that a process has taken so far."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS


def measured(load: Load, by: Ours | Plain) -> Round:
    """One slice of a round."""
    count = load.plain if isinstance(by, Plain) else load.ours
    before = processor(by.sender), processor(by.receiver)
    seconds = by.once(count) if isinstance(by, Plain) else by.once(load)
    after = processor(by.sender), processor(by.receiver)
    return Round(seconds / count, (after[0] - before[0]) / count, (after[1] - before[1]) / count)


def compare(load: Load, ours: dict[str, Ours], rounds: int) -> dict[str, list[Round]]:
    """The rounds of discoro and of the plain loop, with CURVE and open, a slice of each in turn; a round before the first is
    not counted.
    """
    with ExitStack() as stack:
        who: dict[str, Ours | Plain] = {f"discoro, {kind}": each for kind, each in ours.items()}
        for kind in KINDS:
            plain = Plain(load.size, curve=kind == "CURVE", one_way=load.one_way)
            who[f"plain, {kind}"] = stack.enter_context(plain)
        came: dict[str, list[Round]] = {name: [] for name in who}
        for _ in range(1 + rounds):
            slices: dict[str, list[Round]] = {name: [] for name in who}
            for number in range(SLICES):
                for name in sorted(who, reverse=number % 2 == 1):  # neither kind is always the first
                    slices[name].append(measured(load, who[name]))
            for name, each in slices.items():
                came[name].append(Round(*map(statistics.mean, zip(*each, strict=True))))
    return {name: each[1:] for name, each in came.items()}


def ratios(rounds: dict[str, list[Round]], whose: str) -> list[float]:
    """CURVE to open, of each round."""
    pairs = zip(*(rounds[f"{whose}, {kind}"] for kind in KINDS), strict=True)
    return [curve.rate / open_.rate for curve, open_ in pairs]


def processor_ratio(rounds: dict[str, list[Round]], whose: str) -> float:
    """CURVE to open, if processor seconds were all that messages take."""
    curve, open_ = (sum(each.sender + each.receiver for each in rounds[f"{whose}, {kind}"]) for kind in KINDS)
    return open_ / curve if curve else math.nan  # so few messages that no tick passed


def spread(values: Sequence[float], form: str) -> str:
    """From, to."""
    return f"{min(values):{form}} to {max(values):{form}}"


def report(load: Load, rounds: dict[str, list[Round]]) -> None:
    """The four lines of one load."""
    print(f"  {load.name}")
    for whose in ("discoro", "plain"):
        beside = ratios(rounds, whose)
        for kind in KINDS:
            ours, theirs = rounds[f"{whose}, {kind}"], rounds[f"plain, {kind}"]
            rates = [each.rate for each in ours]
            middle = statistics.median(rates)
            to_plain = middle / statistics.median(each.rate for each in theirs)
            line = f"    {whose:8}{kind:7}{middle:9,.0f}  {spread(rates, ',.0f'):20}"
            line += f"{to_plain:7.2f}" if whose == "discoro" else " " * 7
            for taken in ([each.sender for each in ours], [each.receiver for each in ours]):
                line += f"{1e6 * statistics.mean(taken):9.1f}"
            if kind == "CURVE":
                line += f"{processor_ratio(rounds, whose):11.2f}{statistics.median(beside):8.2f}  {spread(beside, '.2f')}"
            print(line, flush=True)


def measure(loads: Sequence[Load], rounds: int, file: Path | None = None) -> float:
    """Print the table, write all rounds to `file`; the median ratio of CURVE to open for the first load."""
    print(f"{'':47}{'processor':>16}{'CURVE to open':>30}".rstrip())
    columns = f"{'sender':>9}{'receiver':>9}{'processor':>11}{'rate':>8}  from, to"
    print(f"{'':15}{'a second':>9}  {'from, to':20}{'/plain':>7}{columns}")
    found = {}
    folder = Path(tempfile.mkdtemp(prefix="discoro-benchmark-"))
    try:
        with ExitStack() as stack:
            ours = {kind: stack.enter_context(Ours(kind, folder, max(load.pairs for load in loads))) for kind in KINDS}
            for each in ours.values():
                each.wait()
            for load in loads:
                found[load.name] = compare(load, ours, rounds)
                report(load, found[load.name])
    finally:
        shutil.rmtree(folder)
    if file is not None:
        every = {name: {who: [each._asdict() for each in came] for who, came in four.items()} for name, four in found.items()}
        file.write_text(json.dumps(every, indent=1) + "\n")
    return statistics.median(ratios(found[loads[0].name], "discoro"))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="What encryption costs small messages.")
    parser.add_argument("rounds", nargs="?", type=int, default=ROUNDS, help="of each (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what each round came to, for a message")
    return parser.parse_args()


def main() -> int:
    """Print every figure; 1 where what is promised is not kept."""
    told = arguments()
    about = f"CPython {platform.python_version()}, {os.cpu_count()} processors, {platform.system()} {platform.machine()}"
    print(f"{about}, libzmq {zmq.zmq_version()}")
    ratio = measure(LOADS, told.rounds, told.json)
    print(f"  CURVE to open, {LOADS[0].name}: {ratio:.2f}; promised {PROMISED}{', UNDER' if ratio < PROMISED else ''}")
    return 1 if ratio < PROMISED else 0


def run_client(kind: str, folder: str, pairs: str) -> None:
    """What the program is where `Ours` starts it."""
    security: dict[str, Any] = {"key_file": Path(folder) / "key"} if kind == "CURVE" else {"open": True}
    node = ["-c", "1", "--dest-path", f"{folder}/{kind}"]
    discoro.run(client, int(pairs), local=True, local_options=node, **security)


if __name__ == "__main__":
    if sys.argv[1:2] == ["client"]:
        run_client(*sys.argv[2:])
    else:
        sys.exit(main())
