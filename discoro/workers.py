"""The workers of a node: enough of them warm, each adopted once, every end noticed and told.

A `Worker` is one child process, warm until a slot adopts it for a client, ended after that client's last computation there has
closed. `Workers` starts them, with growing pauses where they die as they start; asks them to end, or kills them; and says how
each ended, with what it saw of its memory until then (verdicts.py puts that into words). `Output` is what one of them writes.
Which computation goes where is the slots' to decide (node.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from discoro import busy, vitals
from discoro.directory import NodeDirectory, remove_unless_kept
from discoro.errors import ProtocolError, SetupFailed
from discoro.files import Contents, Shipped, units
from discoro.mesh import Mesh
from discoro.messages import Greeting
from discoro.process import Child, signal_name
from discoro.references import CoroRef
from discoro.requests import Incoming
from discoro.responding import Responding
from discoro.status import WorkerStatus
from discoro.verdicts import End, verdict

log = logging.getLogger("discoro.workers")

READY_TIMEOUT = 30.0  # seconds a worker may take to start; a cold one takes 0.2 s on an idle machine
END_TIMEOUT = 1.5  # seconds between asking a worker to end and killing it: a node stops within 3 s
OUTPUT_TIMEOUT = 0.2  # seconds for the last output of a worker that has ended: somebody else may hold its pipe
STARTS = max(2, os.cpu_count() or 1)  # workers that start at the same time: each needs a processor for 0.2 s
GIVE_UP = 3  # workers in a row that died as they started: setups are refused until one starts
PAUSE_FIRST, PAUSE_MOST = 0.1, 30.0  # seconds before the next start after such a death, doubled each time
SPARE_WORKERS = 1  # warm ones beyond those for free slots: for the client that comes to a busy slot
LAST_LINES, LAST_CHARACTERS = 120, 300  # of a worker's output, and of each line, are kept: a crash's stack has 100
LINE_BYTES = 64 * 1024  # the longest line of output taken in one piece
SAMPLE_EVERY = 2.0  # seconds between two looks at the memory of all workers: a look at 250 of them takes 5 ms


@dataclass
class Held:
    """One computation in one worker."""

    name: str
    units: dict[str, Contents]  # by the first part of their names
    cleanup: bool
    opening: bool  # its first setup there is under way
    replaced: bool = False  # set up again in another worker: it only waits to be closed


@dataclass(eq=False)
class Worker:
    """One worker process, as its node sees it. Wait for its futures with `asyncio.wait`, which leaves them alone."""

    directory: Path
    token: str  # that it shows when it is ready, so that nobody else can be taken for it
    ready: asyncio.Future[CoroRef]  # the reference of its discoro_server
    gone: asyncio.Future[str]  # how it ended, once it left nothing
    output: Output
    responding: Responding
    child: Child = field(init=False)
    slot: int | None = None
    client: Greeting | None = None
    computations: dict[str, Held] = field(default_factory=dict)
    detached: bool = False  # it stays when its client is gone, and holds one computation, which nothing else of it ends with
    ending: str = ""  # why the node ends it, if it does
    held: int = 0  # bytes of memory resident at the last look
    in_doubt: bool = False  # perhaps stuck in a setup that was given up: nothing new goes there until that is known

    @property
    def pid(self) -> int:
        return self.child.pid

    @property
    def server(self) -> CoroRef:
        """Its discoro_server, once it is ready."""
        return self.ready.result()

    def __repr__(self) -> str:
        state = f"slot {self.slot} of {self.client.name}/{self.client.pid}" if self.client else "warm"
        return f"<Worker {self.pid} {state} computations={len(self.computations)}>"

    def belongs_to(self, client: Greeting) -> bool:
        return self.client is not None and self.client.birth == client.birth

    def takes(self, client: Greeting, number: str, detach: bool) -> bool:
        """Whether it is this client's, and takes that computation; one that is detached has a worker of its own."""
        is_free = self.belongs_to(client) and not self.ending and not self.in_doubt
        return is_free and (number in self.computations or not (self.detached or detach))

    def conflicts(self, files: Iterable[Shipped]) -> bool:
        """Whether a file, module or package stands for another content here already."""
        mine = units(files)
        there = [held.units for held in self.computations.values()]
        return any(other.get(name, content) != content for other in there for name, content in mine.items())


class Output:
    """The lines of what a process writes: overlong ones in pieces, the last ones kept, nothing in them that moves a cursor."""

    def __init__(self) -> None:
        self.last: deque[str] = deque(maxlen=LAST_LINES)
        self._rest = b""

    def feed(self, data: bytes) -> list[str]:
        """The lines that these bytes complete. A carriage return ends one too: so do progress bars."""
        *whole, self._rest = (self._rest + data).replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        if len(self._rest) >= LINE_BYTES:
            whole, self._rest = [*whole, self._rest], b""
        return self._taken(whole)

    def end(self) -> list[str]:
        """The line that was not completed, if there is one."""
        rest, self._rest = self._rest, b""
        return self._taken([rest] if rest else [])

    def _taken(self, whole: list[bytes]) -> list[str]:
        lines = [line.decode("utf-8", "replace").translate(_CONTROLS) for line in whole]
        if lines:
            self.last.extend(line[:LAST_CHARACTERS] for line in lines)
        return lines


_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), *range(127, 160))}


class Workers:
    """All workers of a node with that many slots. `ports`: where they may listen; `max_memory`: bytes for each, 0: any."""

    def __init__(self, mesh: Mesh, directory: NodeDirectory, ports: range | None, slots: int, max_memory: int = 0) -> None:
        self._mesh = mesh
        self._directory = directory
        self._ports = ports
        self._slots = slots
        self._max_memory = max_memory
        self._all: dict[int, Worker] = {}  # by pid
        self._warm: deque[Worker] = deque()
        self._starting: set[asyncio.Task[None]] = set()
        self._watching: set[asyncio.Task[None]] = set()
        self._moved = asyncio.Event()  # set, and replaced, when one became warm, or none did
        self._kills = deque([vitals.kills()] * 2, maxlen=2)  # at the last two looks: a kill may be counted before it is seen
        self._sampling = asyncio.create_task(self._sample())
        self._launched = 0  # workers, ever
        self._deaths = 0  # of workers that were not ready yet, in a row
        self._last_death = ""
        self._stopping = False
        self._draining = False
        self._asking = asyncio.create_task(self._ask())
        for task in (self._sampling, self._asking):
            task.add_done_callback(_told_of)
        self.on_ended: Callable[[Worker, str], None] = lambda worker, how: None
        self.on_able: Callable[[], None] = lambda: None  # `given_up` has changed
        mesh.handlers["ready"] = self._on_ready

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self._all.values()))

    def __repr__(self) -> str:
        return f"<Workers {len(self._all)}, {len(self._warm)} warm, {len(self._starting)} starting>"

    @property
    def given_up(self) -> bool:
        """Whether workers do not start here, as far as is known: then setups are refused."""
        return self._deaths >= GIVE_UP

    def at(self, slot: int) -> list[Worker]:
        """The workers that this slot adopted, and that have not ended."""
        return [worker for worker in self if worker.slot == slot]

    def drain(self) -> None:
        """From now on nothing new is taken."""
        self._draining = True
        self._tell_waiting()

    def check_open(self) -> None:
        """SetupFailed where nothing new is taken."""
        if self._stopping or self._draining:
            raise SetupFailed(f"{self._mesh.me.name} is {'stopping' if self._stopping else 'draining'}: locate another server")

    async def stop(self) -> None:
        """End every worker, and wait until each is reaped and its files are gone."""
        self._stopping = True
        self._tell_waiting()
        self._sampling.cancel()
        self._asking.cancel()
        for task in self._starting:
            task.cancel()
        await asyncio.gather(*self._starting, return_exceptions=True)
        await asyncio.gather(*(self.end(worker, "the node stops") for worker in self))
        await asyncio.gather(*self._watching)

    async def adopt(self, client: Greeting, slot: int) -> Worker:
        """A warm worker, from now on this client's at that slot; waits for one to start. SetupFailed where none does."""
        try:
            async with asyncio.timeout(READY_TIMEOUT):
                worker = await self._warm_one()
        except TimeoutError:
            who = self._mesh.me.name
            raise SetupFailed(f"{who} had no worker ready in {READY_TIMEOUT:g} s: try again, or another server") from None
        worker.client, worker.slot = client, slot
        self.refill()
        return worker

    async def _warm_one(self) -> Worker:
        while True:
            self.check_open()
            worker = self._take_warm()
            if worker is not None:
                return worker
            if self.given_up:
                again = f"It is tried again: set up later, or locate another server. The last one, {self._last_death}"
                raise SetupFailed(f"workers do not start at {self._mesh.me.name}, {self._deaths} in a row. {again}")
            await self._moved.wait()

    def _take_warm(self) -> Worker | None:
        """The one that is warm for longest; those that died a moment ago are passed over, and their ends told soon."""
        while self._warm:
            worker = self._warm.popleft()
            if not worker.child.has_ended:
                return worker
        return None

    async def end(self, worker: Worker, why: str) -> None:
        """End a worker: asked first, then killed with all it started; returns once it is gone."""
        worker.ending = worker.ending or why
        worker.child.ask_to_end()
        await asyncio.wait([worker.child.ended], timeout=END_TIMEOUT)
        await self.kill(worker, why)

    async def kill(self, worker: Worker, why: str) -> None:
        """Kill a worker with all it started; returns once it is gone."""
        worker.ending = worker.ending or why
        if not worker.child.ended.done():
            worker.child.signal_group(signal.SIGKILL)
        await asyncio.wait([worker.gone])

    def tell_key(self) -> None:
        """The cluster's key was changed: every worker is told, through its pipe, which needs no link with it."""
        for worker in self:
            worker.child.tell({"security": self._mesh.security.handed_down()})

    def tell_hosts(self) -> None:
        """The machine's network has changed, or it slept: every worker is told where it may listen now."""
        for worker in self:
            worker.child.tell({"hosts": self._hosts()})

    def _hosts(self) -> list[str]:
        return [address for _, address in self._mesh.interfaces.usable]

    async def how_busy(self, worker: Worker, seconds: float) -> str:
        """In words, what keeps a worker that has not answered for so long."""
        return busy.told(f"worker {self._mesh.me.name}/{worker.pid}", seconds, *await worker.responding.where(worker.child))

    async def status(self) -> list[WorkerStatus]:
        """What each worker does that has started."""
        return list(await asyncio.gather(*(self._status_of(worker) for worker in self if worker.ready.done())))

    async def _status_of(self, worker: Worker) -> WorkerStatus:
        client = f"{worker.client.name}/{worker.client.pid}" if worker.client is not None else ""
        names, seconds = tuple(held.name for held in worker.computations.values()), worker.responding.due()
        state, line = await worker.responding.where(worker.child) if seconds else ("", "")
        stopped = state == busy.STOPPED
        return WorkerStatus(self._mesh.me.name, worker.pid, worker.slot, client, names, seconds, line, stopped, worker.held)

    async def _ask(self) -> None:
        """Ask every worker whether its loop turns, again and again; tell of those that have not answered for long."""
        while True:
            await asyncio.sleep(busy.ASK_EVERY)
            for worker in self:
                if worker.ready.done() and not worker.ending and worker.responding.ask(worker.child):
                    self._mesh.spawn(self._tell_busy(worker))

    async def _tell_busy(self, worker: Worker) -> None:
        said = await self.how_busy(worker, worker.responding.due())
        if worker.responding.due():  # else it has answered meanwhile
            log.warning("! %s", said)

    def _again(self, worker: Worker, seconds: float) -> None:
        log.warning("= worker %s/%d goes on: it did not answer for %.0f s", self._mesh.me.name, worker.pid, seconds)

    # -------------------------------------------------------------- starting

    def refill(self) -> None:
        """Start what is missing of one warm worker for each free slot and the spare; one at a time while they die."""
        busy = {worker.slot for worker in self._all.values() if worker.slot is not None}
        wanted = self._slots - len(busy) + SPARE_WORKERS - len(self._warm)
        while not (self._stopping or self._draining) and len(self._starting) < min(wanted, 1 if self._deaths else STARTS):
            task = asyncio.create_task(self._start())
            self._starting.add(task)
            task.add_done_callback(self._started)

    def _started(self, task: asyncio.Task[None]) -> None:
        self._starting.discard(task)
        if not task.cancelled():
            task.result()  # a bug of ours is logged by the loop, and starts nothing further
            self.refill()

    async def _start(self) -> None:
        """One worker, from its launch until it is warm; after a death, a pause before."""
        if self._deaths:
            await asyncio.sleep(min(PAUSE_FIRST * 2 ** (self._deaths - 1), PAUSE_MOST))
        try:
            worker = self._launch()
        except OSError as error:  # no more processes, no such directory, …
            self._died(f"could not be started: {error}")
            return
        either: list[asyncio.Future[Any]] = [worker.ready, worker.child.ended]
        await asyncio.wait(either, timeout=READY_TIMEOUT, return_when=asyncio.FIRST_COMPLETED)
        if worker.child.ended.done():
            await asyncio.wait([worker.gone])  # where it is counted
        elif not worker.ready.done():
            await self.kill(worker, f"it was not ready in {READY_TIMEOUT:g} s")
        else:
            was_given_up, self._deaths = self.given_up, 0
            if was_given_up:
                log.warning("= workers start again: setups are taken")
                self.on_able()
            worker.held = vitals.resident(worker.pid)
            self._warm.append(worker)
            self._tell_waiting()

    def _launch(self) -> Worker:
        loop = asyncio.get_running_loop()
        directory, token = self._directory.for_worker(), secrets.token_hex(16)
        responding = Responding(lambda seconds: self._again(worker, seconds))
        worker = Worker(directory, token, loop.create_future(), loop.create_future(), Output(), responding)
        command = [sys.executable, "-m", "discoro.cli.worker"]
        try:
            show, answers = partial(self._show, worker), responding.feed
            worker.child = Child(command, self._told(token), show, cwd=directory, with_errors=True, on_answer=answers)
        except OSError:
            remove_unless_kept(directory)
            raise
        self._all[worker.pid] = worker
        task = asyncio.create_task(self._watch(worker))
        self._watching.add(task)
        task.add_done_callback(self._watching.discard)
        return worker

    def _told(self, token: str) -> dict[str, Any]:
        """What a worker is told, through its standard input: nothing of it shows in a list of processes."""
        mesh, me = self._mesh, self._mesh.me
        return {
            "security": mesh.security.handed_down(),
            "name": me.name,
            "cluster": me.cluster,
            "node": me.node,
            "birth": me.birth,
            "addresses": list(mesh.addresses),
            "hosts": self._hosts(),
            "ext_ip_addr": mesh.options.ext_ip_addr,
            "debug": mesh.debug,
            "ports": self._ports_in_turn(),
            "blobs": str(self._directory.blobs),
            "max_memory": self._max_memory,
            "max_file_size": mesh.options.max_file_size,
            "token": token,
        }

    def _ports_in_turn(self) -> list[int] | None:
        """Where the next worker may listen, those first that were tried longest ago: nobody who looks for one that died
        finds its successor there.
        """
        if self._ports is None:
            return None
        first = self._launched % len(self._ports)
        self._launched += 1
        return [*self._ports[first:], *self._ports[:first]]

    def _on_ready(self, incoming: Incoming) -> None:
        worker = self._all.get(incoming.peer.pid)
        told = incoming.arguments.get("token")
        if worker is None or not isinstance(told, str) or not secrets.compare_digest(told.encode(), worker.token.encode()):
            raise ProtocolError("ready from a process that is no worker of this node")
        ref = CoroRef.from_plain(incoming.arguments.get("server"))
        if not worker.ready.done():
            worker.ready.set_result(ref)
        incoming.reply(0)

    # -------------------------------------------------------------- ends

    async def _watch(self, worker: Worker) -> None:
        """Wait until it has ended; then tell how to all who must know, and remove what it left."""
        status = await worker.child.finish(OUTPUT_TIMEOUT)
        self._print(worker, worker.output.end())
        del self._all[worker.pid]
        how = f"{self._mesh.me.name}/{worker.pid} {self._why(status, worker)}"
        try:
            self._tell_end(worker, how)
            await asyncio.to_thread(remove_unless_kept, worker.directory)
        finally:
            worker.gone.set_result(how)

    def _why(self, status: int, worker: Worker) -> str:
        """How a worker ended, in words."""
        if worker.ending:
            return f"was ended: {worker.ending}"
        killed = vitals.kills().since(self._kills[0])
        end = End(
            status=status,
            signal=signal_name(-status) if status < 0 else "",
            held=worker.held,
            peak=worker.child.peak,
            limit=self._max_memory,
            room=vitals.memory_there_is(),
            group_kills=killed.group,
            machine_kills=killed.machine,
            output=list(worker.output.last),
        )
        return verdict(end)

    async def _sample(self) -> None:
        """Look at the memory of every worker, again and again: afterwards it would be too late."""
        while True:
            await asyncio.sleep(SAMPLE_EVERY)
            for worker in self:
                worker.held = vitals.resident(worker.pid) or worker.held
            self._kills.append(vitals.kills())

    def _tell_end(self, worker: Worker, how: str) -> None:
        if worker.ready.done():
            self._mesh.tell_lost(worker.server.birth, how)
            if not worker.ending:
                log.warning("! worker %s", how)
        elif not self._stopping:
            self._died(how)
        if worker.slot is None and worker.ready.done():
            with contextlib.suppress(ValueError):  # it was passed over already
                self._warm.remove(worker)
            self._deaths = max(1, self._deaths)  # whatever killed it gets no faster than we start others
        self.on_ended(worker, how)
        self.refill()

    def _died(self, how: str) -> None:
        """A worker did not come as far as being ready."""
        self._deaths += 1
        self._last_death = how
        log.warning("! a worker did not start: %s", how)
        if self._deaths == GIVE_UP:
            log.error("! %d workers in a row did not start: setups are refused until one does", self._deaths)
            self.on_able()
        self._tell_waiting()

    def _tell_waiting(self) -> None:
        moved, self._moved = self._moved, asyncio.Event()
        moved.set()

    def _show(self, worker: Worker, data: bytes) -> None:
        self._print(worker, worker.output.feed(data))

    def _print(self, worker: Worker, lines: list[str]) -> None:
        """What workers write stands on the node's standard error; where that is closed, nobody reads it."""
        if lines:
            text = "".join(f"[{self._mesh.me.name}/{worker.pid}] {line}\n" for line in lines)
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(text)
                sys.stderr.flush()


def _told_of(task: asyncio.Task[None]) -> None:
    """A bug of ours is raised here, so that the loop's exception handler tells it, and nothing ends in silence."""
    if not task.cancelled():
        task.result()
