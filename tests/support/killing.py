"""Rounds in which a process of a small mesh is killed or stopped at a random moment; then what was promised is proved.

An `Arena` has a node and two clients that live from round to round. In each round either client opens a computation at the
node, streams numbers to its worker and back, and to the other client; it monitors both and waits for the result of its worker.
Then one of the processes gets SIGKILL, or SIGSTOP and later SIGCONT; the rest is brought to an end, and `event_log.judge` reads
the logs. Whoever was killed is replaced before the next round. Everything random comes from the seed of the arena.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple

from tests.support.commands import Command, Machines, NodeCommand
from tests.support.event_log import EventLog, Limits, Line, Verdict, judge, of, read
from tests.support.nodes import children, until_ended

MOMENTS = 1.5  # seconds from the start of a round, or since all numbers flow
STARTED = 150.0  # seconds: of a process, on a machine that is busy with other things
STOPPED = (0.1, 6.0)  # seconds: below and above what the heartbeat takes for a break, and far below peer_timeout
LONG = (17.0, 24.0)  # seconds: past peer_timeout; whoever is stopped for so long is lost, and finds others lost
LIMITS = Limits(crash=10.0)  # promised is one second; the machine may be busy with ten other tests
GONE_WITHIN = 60.0  # seconds until workers have to be gone; one that only starts gets as far as to look for its node first

# One of the two clients. SIDE and PEERS stand before it. `play` is a round.
CLIENT = """
import asyncio, contextlib, os, subprocess

def add(path, kind, *what):
    line = json.dumps([kind, time.monotonic(), *what]).encode() + b"\\n"
    with open(path, "ab", buffering=0) as file:
        file.write(line)

def key(ref):
    return [ref.birth, ref.id]

def pour(coro, to, path, number):
    try:
        for each in range(number, number + 3):
            add(path, "sent", key(coro.ref), key(to), each)
            to.send(("number", key(coro.ref), each))
    except discoro.DiscoroError:
        pass  # it is known to be gone: the notice says so
    return number + 3

async def work(client, directory, coro=None):
    sleeper = subprocess.Popen(["sleep", "600"])
    path = f"{directory}/worker-{os.getpid()}.jsonl"
    add(path, "born", coro.ref.birth, os.getpid(), client.birth, sleeper.pid)
    discoro.current_mesh()._peers.on_ended.append(lambda link: add(path, "lost", coro.ref.birth, link.birth))
    number, how = 0, "closed"
    try:
        while (message := await coro.receive(0.02)) != "finish":
            if message is None:
                number = pour(coro, client, path, number)
            else:
                add(path, "received", key(coro.ref), message[1], message[2])
        add(path, "lives", key(coro.ref))
        how = "normal"
        return "finished"
    finally:
        add(path, "ended", key(coro.ref), how)

class Round:
    def __init__(self, coro, path):
        self.coro, self.path, self.me = coro, path, key(coro.ref)
        self.finishing = False
        self.targets, self.numbers = {}, {}  # whom numbers go to, and the next number

    def note(self, kind, *what):
        add(self.path, kind, self.me, *what)

    async def watch(self, ref):
        await self.waited(ref, "monitor", self.coro.monitor(ref))
        self.note("monitors", key(ref))
        self.targets[ref] = ref

    async def waited(self, ref, verb, operation):
        self.note("waits", key(ref), verb)
        said = "value"
        try:
            return await operation
        except discoro.DiscoroError as error:
            said = type(error).__name__
            raise
        finally:
            self.note("answered", key(ref), verb, said)

    async def with_worker(self):
        computation = discoro.Computation(work, depends=[add, key, pour])
        server = await self.set_up(computation)
        remote = await self.waited(server, "run", computation.run(server, self.coro.ref, os.path.dirname(self.path)))
        try:
            await self.watch(remote)
            say("streaming")
            await self.waited(remote, "result", remote.result())
        finally:  # also of a worker that was out of reach: it may run still
            await self.waited(server, "close", computation.close(server, close_timeout=30))

    async def set_up(self, computation):
        "A machine that is busy with other things may not start a worker in 30 s: again, until the round is over."
        while True:
            server = await discoro.Coro.locate("discoro_server", timeout=8)
            try:
                await self.waited(server, "setup", computation.setup(server, timeout=60))
                return server
            except discoro.SetupFailed:
                if self.finishing:
                    raise

    def stream(self):
        for ref in self.targets.values():
            self.numbers[ref] = pour(self.coro, ref, self.path, self.numbers.get(ref, 0))

    def notice(self, notice):
        self.note("noticed", key(notice.ref), notice.reason)
        self.targets.pop(notice.ref, None)

async def quietly(operation):
    try:
        await operation
    except discoro.DiscoroError as error:
        errors.append(f"{type(error).__name__}: {error}")

errors = []

async def play(path, coro=None):
    this = Round(coro, path)
    while not isinstance(other := await coro.receive(), discoro.CoroRef):
        this.note("received", other[1], other[2])  # a number: the other has begun already
    worker = asyncio.ensure_future(quietly(this.with_worker()))
    watching = asyncio.ensure_future(quietly(this.watch(other)))
    ended = False
    while not (this.finishing and worker.done() and watching.done() and (ended or other not in this.targets)):
        message = await coro.receive(0.02)
        if isinstance(message, discoro.ExitNotice):
            this.notice(message)
        elif message == "finish":
            this.finishing = True
        elif message == "end":
            ended = True
        elif message is not None:
            this.note("received", message[1], message[2])
        elif not this.finishing:
            this.stream()
        if this.finishing:
            for ref in this.targets.values():
                if this.numbers.get(ref) != "told":
                    this.numbers[ref] = "told"
                    with contextlib.suppress(discoro.DiscoroError):  # gone: the notice says so
                        ref.send("end" if ref == other else "finish")
    this.note("lives")
    this.note("ended", "normal")

async def client(coro=None):
    mesh = discoro.current_mesh()
    me, path = mesh.me.birth, None
    mesh._peers.on_ended.append(lambda link: path and add(path, "lost", me, link.birth))
    say("ready", [mesh.addresses[0], me])
    while (word := await asyncio.to_thread(told)) is not None:
        directory, node = word
        path, before = f"{directory}/{SIDE}.jsonl", mesh.lost_operations + mesh.lost_messages
        await mesh.peer(node, 90)
        errors.clear()
        playing = discoro.Coro(play, path)
        say("play", repr(playing.ref))
        playing.send(discoro.CoroRef.parse(await asyncio.to_thread(told)))
        assert await asyncio.to_thread(told) == "finish"
        playing.send("finish")
        await playing.result()
        add(path, "counted", me, mesh.lost_operations + mesh.lost_messages - before)
        say("done", errors)

discoro.run(client, name=SIDE, mdns=False, peers=PEERS)
"""


class Fault(NamedTuple):
    """What is done to whom, so many seconds after the start of a round, or after all numbers flow (`streaming`).

    `stopped`: for so many seconds; 0 is SIGKILL.
    """

    who: str
    at: float
    stopped: float
    streaming: bool

    def __str__(self) -> str:
        what = f"stopped for {self.stopped:.2f} s" if self.stopped else "killed"
        return f"{self.who} {what} {self.at:.3f} s after {'numbers flow' if self.streaming else 'the start'}"


def draw(randoms: random.Random, long: float) -> Fault:
    """`long`: the part of those stopped that are stopped past peer_timeout."""
    who = randoms.choice(["node", "worker", "worker", "right", "right"])
    stopped = 0.0
    if randoms.random() < 0.4:
        stopped = randoms.uniform(*(LONG if randoms.random() < long else STOPPED))
    return Fault(who, randoms.uniform(0, MOMENTS), stopped, randoms.random() < 0.6)


class Arena:
    """A node and two clients, for any number of rounds."""

    def __init__(self, directory: Path, seed: str, long: float = 0.0) -> None:
        self._directory, self._random, self._long = directory, random.Random(seed), long
        self._machines = Machines(directory)
        self._resources = contextlib.ExitStack()
        self._node: NodeCommand | None = None
        self._clients: dict[str, Command] = {}
        self._addresses: dict[str, str] = {}
        self._births: dict[str, int] = {}

    def __enter__(self) -> Arena:
        self._resources.enter_context(self._machines)
        return self

    def __exit__(self, *raised: Any) -> None:
        if raised[0] is None:
            for client in self._clients.values():
                client.tell(None)
                client.succeed(15)
        self._resources.__exit__(*raised)

    def round(self, number: int) -> tuple[Fault, Verdict]:
        """Play one."""
        self._replace()
        assert self._node is not None
        fault, directory = draw(self._random, self._long), self._directory / f"round-{number}"
        directory.mkdir()
        for client in self._clients.values():
            client.tell([str(directory), self._node.address])
        refs = {side: client.next("play", STARTED) for side, client in self._clients.items()}
        self._clients["left"].tell(refs["right"])
        self._clients["right"].tell(refs["left"])
        for client in self._clients.values() if fault.streaming else ():
            client.next("streaming", STARTED)
        begun = time.monotonic()
        pause(fault.at)
        log = EventLog(directory / "driver.jsonl")
        killed, workers = self._strike(fault, directory, log)
        pause(max(0.3, begun + MOMENTS + 1.0 - time.monotonic()))
        self._finish(killed)
        self._look_for_leftovers(directory, log, fault, workers)
        log.close()
        return fault, judge(self._with_deaths(read(directory), fault, killed), LIMITS)

    def _replace(self) -> None:
        if self._node is None or self._node.process.poll() is not None:
            self._node = self._machines.node("node", "-c", "2")
        for side in ("left", "right"):
            if side not in self._clients:
                peers = [*self._addresses.values(), self._node.address]
                constants = f"SIDE = {side!r}\nPEERS = {peers!r}\n"
                self._clients[side] = self._machines.program(side, constants + CLIENT)
                address, self._births[side] = self._clients[side].next("ready", STARTED)
                if side == "left":
                    self._addresses[side] = address

    def _strike(self, fault: Fault, directory: Path, log: EventLog) -> tuple[tuple[str, int, float] | None, list[int]]:
        """Do it: whom it killed, and when; and the workers that were there."""
        assert self._node is not None
        workers = sorted(children(self._node.pid))
        born = of(read(directory), "born")
        busy = [line[3] for line in born]
        chosen = self._random.choice(busy or workers)  # before any is busy, one that is warm or just starts
        pid = {"node": self._node.pid, "right": self._clients["right"].pid}.get(fault.who, chosen)
        at = time.monotonic()
        if not fault.stopped:
            kill(pid, signal.SIGKILL)
            return (fault.who, pid, at), workers
        kill(pid, signal.SIGSTOP)
        births = {self._node.pid: int(self._node.ready["node"], 16), self._clients["right"].pid: self._births["right"]}
        birth = ({line[3]: line[2] for line in born} | births).get(pid)
        if birth is not None:
            log.add("stopped", birth, at + fault.stopped)
        try:
            pause(fault.stopped)
        finally:
            kill(pid, signal.SIGCONT)
        return None, workers

    def _finish(self, killed: tuple[str, int, float] | None) -> None:
        if killed is not None and killed[0] in ("node", "right"):
            victim = self._node if killed[0] == "node" else self._clients.pop("right")
            assert victim is not None and victim.end(10) == -signal.SIGKILL
            self._machines.forget(victim)
        for client in self._clients.values():
            client.tell("finish")
        for client in self._clients.values():
            while client.event(120)[0] != "done":  # "streaming", where the fault did not wait for it
                pass

    def _look_for_leftovers(self, directory: Path, log: EventLog, fault: Fault, workers: list[int]) -> None:
        """Whatever a round started is gone; only what user code started may outlive a killed node, as nobody ends it then."""
        born = of(read(directory), "born")
        killed_node = fault.who == "node" and not fault.stopped
        pids = [pid for _, _, _, pid, _, _ in born] + (workers if killed_node else [])
        sleepers = [sleeper for *_, sleeper in born]
        if killed_node:
            for sleeper in sleepers:
                if _sleeps(sleeper):
                    kill(sleeper, signal.SIGKILL)
        for what, each in [*(("worker", pid) for pid in pids), *(("subprocess", pid) for pid in sleepers)]:
            try:
                until_ended([each], GONE_WITHIN)
            except AssertionError:
                log.add("left", each, what)

    def _with_deaths(self, lines: list[Line], fault: Fault, killed: tuple[str, int, float] | None) -> list[Line]:
        """The logs, and who died of the fault: a worker's birth is known from its own log only."""
        assert self._node is not None
        if killed is None:
            return lines
        who, pid, at = killed
        born = of(lines, "born")
        gone = [birth for _, _, birth, its, _, _ in born if its == pid or who == "node"]
        if who == "right":
            gone = [self._births["right"], *(birth for _, _, birth, _, client, _ in born if client == self._births["right"])]
        if who == "node":
            gone.append(int(self._node.ready["node"], 16))
        return sorted([*lines, *(["died", at, birth, "killed"] for birth in gone)], key=lambda line: float(line[1]))


def _sleeps(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"sleep\0")
    return False


def kill(pid: int, number: int) -> None:
    """A signal to a process that may have ended."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def pause(seconds: float) -> None:
    """The rounds are about moments: this is how they come."""
    threading.Event().wait(seconds)
