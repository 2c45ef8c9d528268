"""A mixed load under faults on one machine, and whether memory and descriptors stay flat.

Two nodes and a client for each kind of `clients.py` run for the whole time. Every few seconds something happens to one of them:
its connections are cut, it is stopped for a while, a worker is killed, a client comes and is killed. Resident memory and
descriptors of every process that lives throughout are looked at every 20 s, or more often in a short run; the medians of the
second and the last third are compared, as the first third fills caches.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

from tests.soak.clients import SOURCE
from tests.support.commands import Command, Machines, NodeCommand
from tests.support.nodes import children, until_ended
from tests.support.proxy import Proxy

KINDS = ("messages", "runs", "files", "names", "queues")
GROWTH_KIB = 2048  # between the thirds: malloc keeps a few freed pages here and there, and a leak of a busy hour is more
GROWTH_FILES = 9  # two workers more or fewer at the moment, of 4 or 5 each; of what faults leave, a third would add 50
BETWEEN = (2.0, 6.0)  # seconds between faults: the time to be noticed (a heartbeat is 1 s), and to recover
STOPPED = (0.1, 5.0)  # seconds: above and below what the heartbeat takes for a break


class Sample(NamedTuple):
    """What a process takes at one time: KiB resident, descriptors."""

    kib: int
    files: int

    @classmethod
    def of(cls, pid: int) -> Sample:
        status = Path(f"/proc/{pid}/status").read_text()
        return cls(int(status.partition("VmRSS:")[2].split()[0]), len(os.listdir(f"/proc/{pid}/fd")))


class Load:
    """The processes, and what is done to them."""

    def __init__(self, machines: Machines, proxy: Proxy, seed: int) -> None:
        self._machines, self._proxy, self._random = machines, proxy, random.Random(seed)
        self.nodes: dict[str, NodeCommand] = {name: machines.node(name, "-c", "3") for name in ("ada", "bob")}
        self.clients: dict[str, Command] = {kind: self._client(kind) for kind in KINDS}
        for client in self.clients.values():
            client.next("ready", 120)
        self.faults: Counter[str] = Counter()
        self.samples: dict[str, list[Sample]] = {name: [] for name in (*self.nodes, *self.clients)}

    def _client(self, kind: str) -> Command:
        addresses = [node.address for node in self.nodes.values()]
        through = [[address, self._proxy.in_front_of(address)] for address in addresses]
        constants = f"KIND = {kind!r}\nTHROUGH = {through!r}\nPEERS = {addresses!r}\n"
        return self._machines.program(kind, constants + SOURCE)

    def processes(self) -> dict[str, Command]:
        return {**self.nodes, **self.clients}

    def sample(self) -> None:
        for name, process in self.processes().items():
            assert process.process.poll() is None, f"{name} ended with {process.process.returncode}:\n{process.output}"
            self.samples[name].append(Sample.of(process.pid))

    # -------------------------------------------------------------- faults

    def fault(self) -> None:
        """One of them, chosen at random."""
        kind = self._random.choice(["cut", "stop a node", "stop a client", "stop a worker", "kill a worker", "kill a client"])
        self.faults[kind] += 1
        match kind.split():
            case ["cut"]:
                self._proxy.cut(again=self._random.randrange(3))
            case ["stop", "a", who]:
                self._stop(self._pick(who))
            case ["kill", "a", "worker"]:
                if pid := self._pick("worker"):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
            case _:
                self._come_and_go()

    def _pick(self, who: str) -> int:
        """The pid of one of them; 0 where there is none at the moment."""
        if who == "worker":
            node = self._random.choice(sorted(self.nodes.values(), key=lambda node: node.pid))
            return self._random.choice(sorted(children(node.pid)) or [0])
        of = self.nodes if who == "node" else self.clients
        return of[self._random.choice(sorted(of))].pid

    def _stop(self, pid: int) -> None:
        if pid == 0:
            return
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
            try:
                pause(self._random.uniform(*STOPPED))
            finally:
                os.kill(pid, signal.SIGCONT)

    def _come_and_go(self) -> None:
        """A client of a random kind, killed at a random moment of its work."""
        client = self._client(self._random.choice(KINDS))
        client.next("ready", 120)
        pause(self._random.uniform(0, 2))
        client.kill()
        client.end(10)
        self._machines.forget(client)

    # -------------------------------------------------------------- the end

    def end(self) -> dict[str, Any]:
        """What each client has done and met; then all leave in order, and nothing is left."""
        for client in self.clients.values():
            client.tell("stop")
        counts = {kind: client.next("counts", 400) for kind, client in self.clients.items()}
        for client in self.clients.values():
            client.succeed(20)
        workers = [pid for node in self.nodes.values() for pid in children(node.pid)]
        for node in self.nodes.values():
            node.process.terminate()
        for node in self.nodes.values():
            node.succeed(10)
        until_ended(workers, 5)
        return counts


def pause(seconds: float) -> None:
    threading.Event().wait(seconds)


def run(minutes: float, seed: int, output: Path | None) -> int:
    """Print a line for each minute and a verdict; 0 where all is well."""
    os.nice(10)
    every = min(20.0, minutes * 60 / 18)
    print(f"seed {seed}; {minutes:g} minutes", flush=True)
    with tempfile.TemporaryDirectory(prefix="discoro-load-") as scratch:
        with Machines(Path(scratch)) as machines, Proxy() as proxy:
            load = Load(machines, proxy, seed)
            print(heading(load.samples), flush=True)
            begun = sampled = fault = time.monotonic()
            end = begun + minutes * 60
            while (now := time.monotonic()) < end:
                if now >= sampled:
                    load.sample()
                    sampled = now + every
                    print(line(now - begun, load), flush=True)
                if now >= fault:
                    load.fault()
                    fault = time.monotonic() + load._random.uniform(*BETWEEN)
                pause(max(0.0, min(sampled, fault, end) - time.monotonic()))
            counts = load.end()
    report = {"seed": seed, "minutes": minutes, "faults": load.faults, "counts": counts}
    good = tell(load.samples, counts, load.faults)
    if output is not None:
        samples = {name: [[each.kib, each.files] for each in taken] for name, taken in load.samples.items()}
        output.write_text(json.dumps(report | {"samples": samples, "good": good}, indent=1))
    return 0 if good else 1


def heading(samples: dict[str, list[Sample]]) -> str:
    return "minute " + "".join(f"{name:>15}" for name in samples) + "   (MiB resident / descriptors)"


def line(seconds: float, load: Load) -> str:
    latest = (samples[-1] for samples in load.samples.values())
    return f"{seconds / 60:6.1f} " + "".join(f"{each.kib / 1024:>10.1f}/{each.files:>4}" for each in latest)


def tell(samples: dict[str, list[Sample]], counts: dict[str, Any], faults: dict[str, int]) -> bool:
    """Print the verdict; whether all is flat, and nobody was left waiting."""
    growths = {name: flatness(taken) for name, taken in samples.items()}
    for name, (kib, files) in growths.items():
        said = "flat" if is_flat(kib, files) else "GREW"
        print(f"{name:10} {said}: from the second third to the last by {kib:+.0f} KiB and {files:+.0f} descriptors")
    for kind, count in counts.items():
        print(f"{kind:10} done {count['done']}, spoilt by faults {count['errors']}")
    waiting = sum(count["errors"].get("LeftWaiting", 0) for count in counts.values())
    print(f"faults {dict(faults)}; left waiting {waiting}; workers left 0")
    return not waiting and all(is_flat(*growth) for growth in growths.values())


def is_flat(kib: float, files: float) -> bool:
    return kib <= GROWTH_KIB and files <= GROWTH_FILES


def flatness(samples: list[Sample]) -> tuple[float, float]:
    """By how much the medians grew from the second third to the last: KiB, descriptors."""
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[2 * third :]
    kib = statistics.median(each.kib for each in last) - statistics.median(each.kib for each in second)
    return kib, statistics.median(each.files for each in last) - statistics.median(each.files for each in second)
