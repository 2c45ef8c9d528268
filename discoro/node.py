"""The node: one machine's supervisor. It holds slots, starts and watches workers, and never runs user code.

`Node` is the whole; a `Slot` is the backend of one discoro_server coroutine, which lives in the node and so answers however
busy the workers are; a `Worker` is one child process, warm until a slot adopts it for a client, ended after that client's last
computation there has closed; `Workers` keeps enough of them warm, and restarts with growing pauses what dies at start.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import shutil
import signal
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from discoro.coro import Coro, CoroRef
from discoro.discovery import Advert
from discoro.errors import CloseFailed, NotSetUp, ProtocolError, SetupFailed, Timeout, WorkerLost
from discoro.files import Shipped, Store, checked_files, private_directory
from discoro.finding import BASE_PORT
from discoro.mesh import Mesh, Place
from discoro.messages import PROTOCOL_VERSION, Greeting
from discoro.process import child_environment
from discoro.requests import Answer, Incoming
from discoro.server import bodies, serve, take_chunk, text_of

log = logging.getLogger("discoro.node")

PORT_RANGE = 500  # workers listen on the base port + 1 … + PORT_RANGE: a restarted worker takes a fresh one
READY_TIMEOUT = 30.0  # seconds a worker may take to start; a cold one takes 0.2 s on an idle machine
END_TIMEOUT = 2.0  # seconds between asking a worker to end and killing it
BACKOFF_FIRST, BACKOFF_MOST = 0.1, 30.0  # seconds between two starts when workers die as they start
WORKERS_PER_SLOT = 8  # clients that may share one slot: each costs a process of some 40 MB
LAST_LINES = 20  # of a worker's output, kept for the exit reason
LINE_BYTES = 64 * 1024  # the longest line of output taken in one piece
LOOK_TIMEOUT = 0.5  # seconds for a busy worker's stack to arrive
GONE_KEPT = 1000  # computations lost with their workers, remembered so that ping and close can say how
SPARE_WORKERS = 1  # warm ones beyond those for free slots: for the client that comes to a busy slot


@dataclass(frozen=True)
class NodeOptions:
    """What a node is told beyond the options of its mesh. Sizes in bytes, 0: no limit; port 0: any free ports."""

    slots: int
    port: int = BASE_PORT
    dest_path: Path = Path("discoro")
    max_file_size: int = 0


@dataclass
class Held:
    """One computation in one worker."""

    name: str
    files: dict[str, str]  # name -> digest
    cleanup: bool
    replaced: bool = False  # set up again elsewhere: it only waits to be closed


@dataclass(eq=False)
class Worker:
    """One worker process, as its node sees it."""

    process: asyncio.subprocess.Process
    directory: Path
    token: str
    ready: asyncio.Future[CoroRef]  # the reference of its discoro_server
    client: Greeting | None = None
    computations: dict[str, Held] = field(default_factory=dict)
    last_lines: deque[str] = field(default_factory=lambda: deque(maxlen=LAST_LINES))
    ending: str = ""  # why the node ends it, if it does
    output: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def pid(self) -> int:
        return self.process.pid

    def __repr__(self) -> str:
        state = f"client {self.client.name}/{self.client.pid}" if self.client else "warm"
        return f"<Worker {self.pid} {state} computations={len(self.computations)}>"

    def conflicts(self, files: Iterable[Shipped]) -> bool:
        """Whether a file name stands for another content here already."""
        return any(held.files.get(f.name, f.blob.digest) != f.blob.digest for held in self.computations.values() for f in files)

    def signal(self, number: int) -> None:
        """To the worker and whatever it started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


class Workers:
    """All workers of a node: enough of them warm, every end noticed."""

    def __init__(self, mesh: Mesh, directory: Path, ports: range | None, warm: int) -> None:
        self._mesh = mesh
        self._directory = private_directory(directory)
        self._ports = ports
        self._warm_wanted = warm
        self._all: dict[int, Worker] = {}  # by pid
        self._warm: deque[Worker] = deque()
        self._adopted = asyncio.Event()  # set to have the warm ones counted again
        self._came = asyncio.Condition()
        self._backoff = BACKOFF_FIRST
        self._last_death = ""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.on_ended: Callable[[Worker, str], None] = lambda worker, how: None
        mesh.handlers["ready"] = self._on_ready

    def __iter__(self) -> Any:
        return iter(list(self._all.values()))

    def start(self) -> None:
        self._spawn(self._keep_warm())

    async def stop(self) -> None:
        """End every worker, and wait until each is reaped."""
        self._stopping = True
        workers = list(self._all.values())
        for task in list(self._tasks):
            if task.get_name() == "keep warm":
                task.cancel()
        await asyncio.gather(*(self.end(worker, "the node stops") for worker in workers))
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def adopt(self, client: Greeting, timeout: float = READY_TIMEOUT) -> Worker:
        """A warm worker, from now on this client's; waits for one to start. SetupFailed where none does."""
        try:
            async with asyncio.timeout(timeout), self._came:
                await self._came.wait_for(lambda: self._warm)
                worker = self._warm.popleft()
        except TimeoutError:
            last = f"; the last one {self._last_death}" if self._last_death else ""
            raise SetupFailed(f"{self._mesh.me.name} had no worker ready in {timeout:g} s{last}") from None
        worker.client = client
        self._adopted.set()
        return worker

    async def end(self, worker: Worker, why: str) -> None:
        """End a worker: asked first (its standard input closes), then killed with all it started; returns once it is reaped."""
        worker.ending = worker.ending or why
        if worker.process.stdin is not None:
            worker.process.stdin.close()
        try:
            async with asyncio.timeout(END_TIMEOUT):
                await worker.process.wait()
        except TimeoutError:
            worker.signal(signal.SIGKILL)
            await worker.process.wait()

    async def kill(self, worker: Worker, why: str) -> None:
        worker.ending = worker.ending or why
        worker.signal(signal.SIGKILL)
        await worker.process.wait()

    async def where_it_stands(self, worker: Worker) -> str:
        """The stack of a worker that does not answer, as faulthandler writes it; "" where it cannot."""
        if not hasattr(signal, "SIGUSR1"):
            return ""
        worker.last_lines.clear()
        worker.output.clear()
        with contextlib.suppress(ProcessLookupError):
            worker.process.send_signal(signal.SIGUSR1)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LOOK_TIMEOUT):
                while not any(line.startswith("  File ") for line in worker.last_lines):
                    worker.output.clear()
                    await worker.output.wait()
        lines = [line.strip() for line in worker.last_lines if line.startswith("  File ")]
        return lines[0] if lines else ""

    # -------------------------------------------------------------- starting

    async def _keep_warm(self) -> None:
        """Start workers until enough are warm; again whenever one was adopted or died."""
        starts = asyncio.Semaphore(max(2, os.cpu_count() or 1))
        starting: set[asyncio.Task[None]] = set()
        try:
            while True:
                self._adopted.clear()
                for _ in range(self._warm_wanted - len(self._warm) - len(starting)):
                    task = asyncio.ensure_future(self._start_one(starts))
                    starting.add(task)
                    task.add_done_callback(starting.discard)
                    task.add_done_callback(lambda _: self._adopted.set())
                await self._adopted.wait()
        finally:
            for task in starting:
                task.cancel()
            await asyncio.gather(*starting, return_exceptions=True)

    async def _start_one(self, starts: asyncio.Semaphore) -> None:
        async with starts:
            worker = await self._launch()
            try:
                async with asyncio.timeout(READY_TIMEOUT):
                    await worker.ready
            except (TimeoutError, WorkerLost) as error:
                log.warning("! a worker did not start: %s", error or f"not ready in {READY_TIMEOUT:g} s")
                await self.kill(worker, "it did not become ready")
                await asyncio.sleep(self._backoff)
                self._backoff = min(2 * self._backoff, BACKOFF_MOST)
                return
            self._backoff = BACKOFF_FIRST
            async with self._came:
                self._warm.append(worker)
                self._came.notify_all()

    async def _launch(self) -> Worker:
        directory = self._directory / f"worker-{secrets.token_hex(6)}"
        directory.mkdir(mode=0o700)
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "discoro.cli.worker"),
            stdin=pipe,
            stdout=pipe,
            stderr=asyncio.subprocess.STDOUT,
            cwd=directory,
            env=child_environment(),
            process_group=0,
            limit=LINE_BYTES,
        )
        worker = Worker(process, directory, secrets.token_hex(16), asyncio.get_running_loop().create_future())
        self._all[process.pid] = worker
        self._spawn(self._watch(worker))
        assert process.stdin is not None
        process.stdin.write(json.dumps(self._told(worker)).encode() + b"\n")
        return worker

    def _told(self, worker: Worker) -> dict[str, Any]:
        """What a worker is told, through its standard input: nothing of it shows in a list of processes."""
        me = self._mesh.me
        ports = [self._ports.start, self._ports.stop] if self._ports else None
        return {
            "security": self._mesh.security.handed_down(),
            "name": me.name,
            "cluster": me.cluster,
            "node": me.node,
            "birth": me.birth,
            "addresses": list(self._mesh.addresses),
            "hosts": [address for _, address in self._mesh.interfaces.usable],
            "ext_ip_addr": self._mesh.options.ext_ip_addr,
            "ports": ports,
            "token": worker.token,
            "parent": os.getpid(),
        }

    def _on_ready(self, incoming: Incoming) -> None:
        worker = self._all.get(incoming.peer.pid)
        told = incoming.arguments.get("token")
        if worker is None or not isinstance(told, str) or not secrets.compare_digest(told, worker.token):
            raise ProtocolError("ready from a process that is no worker of this node")
        ref = CoroRef.from_plain(incoming.arguments.get("server"))
        if not worker.ready.done():
            worker.ready.set_result(ref)
        incoming.reply(0)

    # -------------------------------------------------------------- ends

    async def _watch(self, worker: Worker) -> None:
        """Take a worker's output line by line until it ends; then say how it ended to all who must know."""
        assert worker.process.stdout is not None
        async for line in lines_of(worker.process.stdout):
            worker.last_lines.append(line)
            worker.output.set()
            print(f"[{self._mesh.me.name}/{worker.pid}] {line}", file=sys.stderr, flush=True)
        status = await worker.process.wait()
        worker.signal(signal.SIGKILL)  # what it started does not outlive it
        del self._all[worker.pid]
        how = f"{self._mesh.me.name}/{worker.pid} {exit_reason(status, worker)}"
        if not worker.ready.done():
            self._last_death = how
            worker.ready.set_exception(WorkerLost(how))
            worker.ready.exception()  # seen, whether or not somebody waits
        else:
            self._mesh.tell_lost(worker.ready.result().birth, how)
        if worker in self._warm:
            self._warm.remove(worker)
        self._adopted.set()
        if not any(not held.cleanup for held in worker.computations.values()):
            shutil.rmtree(worker.directory, ignore_errors=True)
        if not self._stopping and not worker.ending:
            log.warning("! worker %s", how)
        self.on_ended(worker, how)

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        task.set_name("keep warm" if work.__name__ == "_keep_warm" else "watch")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class Slot:
    """The backend of one slot's discoro_server: hands computations to workers."""

    def __init__(self, mesh: Mesh, workers: Workers, store: Store) -> None:
        self._mesh = mesh
        self._workers = workers
        self._store = store
        self._here: list[Worker] = []
        self._gone: OrderedDict[str, str] = OrderedDict()  # computations lost with a worker, and how
        self._opening: dict[str, asyncio.Task[Any]] = {}
        self.coro: Coro | None = None

    def start(self, name: str) -> None:
        def discoro_server() -> Any:
            yield from serve(self, self._register(name))

        self.coro = Coro.start(self._mesh, discoro_server, name=name)

    async def _register(self, name: str) -> None:
        assert self.coro is not None
        await self._mesh.register(self.coro, name, shared=True)

    # -------------------------------------------------------------- verbs

    async def offer(self, incoming: Incoming) -> None:
        files = checked_files(incoming.arguments.get("files"))
        incoming.reply(self._store.offer(file.blob for file in files))

    async def chunk(self, incoming: Incoming) -> None:
        incoming.reply(take_chunk(self._store, incoming))

    async def setup(self, incoming: Incoming) -> None:
        """Have the computation opened in a worker of this client here, or in a warm one; the worker's reference."""
        number = text_of(incoming.arguments, "id")
        task = asyncio.current_task()
        assert task is not None
        self._opening[number] = task
        try:
            await self._open(incoming, number)
        finally:
            if self._opening.get(number) is task:
                del self._opening[number]

    async def _open(self, incoming: Incoming, number: str) -> None:
        files = checked_files(incoming.arguments.get("files"))
        missing = [file.name for file in files if not self._store.has(file.blob)]
        if missing:
            raise SetupFailed(f"{missing[0]} and {len(missing) - 1} other files have not arrived: offer them again")
        worker = await self._worker_for(incoming.peer, number, files)
        held = Held(text_of(incoming.arguments, "name"), {f.name: f.blob.digest for f in files}, True)
        held.cleanup = bool(incoming.arguments.get("cleanup", True))
        before, worker.computations[number] = worker.computations.get(number), held
        try:
            answer = await self._mesh.request(await worker.ready, "setup", incoming.arguments, incoming.body)
        except BaseException:
            await self._undo(worker, number, before)
            raise
        for other in self._here:
            if other is not worker and number in other.computations:
                other.computations[number].replaced = True
        self._gone.pop(number, None)
        incoming.reply(answer.value)

    async def _worker_for(self, client: Greeting, number: str, files: list[Shipped]) -> Worker:
        mine = [worker for worker in self._here if worker.client and worker.client.birth == client.birth and not worker.ending]
        mine.sort(key=lambda worker: number not in worker.computations)
        for worker in mine:
            if not worker.conflicts(files):
                return worker
        if len(self._here) >= WORKERS_PER_SLOT:
            raise SetupFailed(f"{WORKERS_PER_SLOT} clients or versions share this slot already: close one, or take another slot")
        worker = await self._workers.adopt(client)
        self._here.append(worker)
        self._weigh()
        return worker

    async def _undo(self, worker: Worker, number: str, before: Held | None) -> None:
        """A setup failed or was given up: nothing of it stays, and a worker that was adopted for it alone ends."""
        if before is not None:
            worker.computations[number] = before
            return
        worker.computations.pop(number, None)
        if not worker.computations:
            await self._workers.kill(worker, "its setup failed")
        else:
            abandoned = {"id": number, "timeout": 0.0, "code": 0}
            self._mesh.ask_later(await worker.ready, "close", abandoned)

    async def run(self, incoming: Incoming) -> None:
        """Runs go straight to the worker; one that comes here is sent on (the answer, a reference, is the worker's own)."""
        worker = self._find(incoming)[0]
        answer = await self._mesh.request(await worker.ready, "run", incoming.arguments, incoming.body)
        incoming.reply(answer.value, answer.body)

    async def ping(self, incoming: Incoming) -> None:
        self._find(incoming)
        incoming.reply(0)

    async def close(self, incoming: Incoming) -> None:
        """Close the computation in its worker, or kill the worker where it cannot be; the last one ends the worker."""
        number = text_of(incoming.arguments, "id")
        opening = self._opening.pop(number, None)
        if opening is not None:
            opening.cancel()  # the setup was given up; _undo leaves nothing of it
            incoming.reply(0)
            return
        timeout = incoming.arguments.get("timeout")
        if not isinstance(timeout, int | float) or not 0 <= timeout <= 86_400:
            raise ProtocolError("close without a timeout in seconds")
        answers = [await self._close_in(worker, number, timeout, incoming) for worker in self._find(incoming)]
        incoming.reply(answers[0].value)

    async def _close_in(self, worker: Worker, number: str, timeout: float, incoming: Incoming) -> Answer:
        held = worker.computations[number]
        try:
            body = () if held.replaced else incoming.body
            until = timeout + 1.0  # the worker itself gives up after `timeout`, and can then say what was stuck
            return await self._mesh.request(await worker.ready, "close", incoming.arguments, body, timeout=until)
        except Timeout:
            raise await self._kill_busy(worker, held, timeout) from None
        except CloseFailed as error:
            if "did not end" in str(error):
                await self._workers.kill(worker, f"{error}; it was killed with all it ran")
                raise CloseFailed(f"{error}. The worker was killed") from None
            raise
        finally:
            worker.computations.pop(number, None)
            if not worker.computations:
                self._mesh.spawn(self._workers.end(worker, f"the last computation of its client, {held.name}, was closed"))

    async def _kill_busy(self, worker: Worker, held: Held, timeout: float) -> CloseFailed:
        stands = await self._workers.where_it_stands(worker)
        busy = f"worker {self._mesh.me.name}/{worker.pid} was busy for {timeout:g} s" + (f", in {stands}" if stands else "")
        await self._workers.kill(worker, f"{busy} while {held.name} was to be closed; it was killed with all it ran")
        return CloseFailed(f"{held.name} was not closed in order: {busy}. The worker was killed")

    def _find(self, incoming: Incoming) -> list[Worker]:
        """The workers that hold a computation (several where it was set up again with other files), the current one first."""
        number = text_of(incoming.arguments, "id")
        found = [worker for worker in self._here if number in worker.computations]
        if not found:
            how = self._gone.get(number)
            if how is not None:
                raise WorkerLost(how)
            raise NotSetUp(f"the computation is not set up here, or was closed: call setup again before {incoming.verb}")
        return sorted(found, key=lambda worker: worker.computations[number].replaced)

    # -------------------------------------------------------------- ends

    def worker_ended(self, worker: Worker, how: str) -> None:
        if worker not in self._here:
            return
        self._here.remove(worker)
        for number in worker.computations:
            self._gone[number] = how
        while len(self._gone) > GONE_KEPT:
            self._gone.popitem(last=False)
        self._weigh()

    def client_lost(self, client: Greeting) -> None:
        """A client that is gone leaves nothing: its workers end, their files go."""
        for worker in self._here:
            if worker.client and worker.client.birth == client.birth and not worker.ending:
                for held in worker.computations.values():
                    held.cleanup = True
                why = f"its client {client.name}/{client.pid} is gone"
                worker.ending = why
                self._mesh.spawn(self._workers.kill(worker, why))

    def _weigh(self) -> None:
        if self.coro is not None:
            self.coro.load = len(self._here)


class Node:
    """A node, for the length of `async with Node(options, mesh_options) as node`.

    Raises PortTaken, DestPathError, KeyFileError and other ConfigErrors where it cannot start.
    """

    def __init__(self, options: NodeOptions, **mesh_options: Any) -> None:
        self.options = options
        ports = range(options.port, options.port + 1) if options.port else None
        security = mesh_options.pop("security", None)
        self.mesh = Mesh.placed(Place(role="node", ports=ports, security=security), **mesh_options)
        self._worker_ports = range(options.port + 1, options.port + 1 + PORT_RANGE) if options.port else None

    async def __aenter__(self) -> Node:
        base = own_directory(private_directory(self.options.dest_path))
        self._base = base
        store = Store(base / "blobs", self.options.max_file_size)  # before the mesh: a bad path must not leave sockets
        await self.mesh.__aenter__()
        try:
            self.workers = Workers(self.mesh, base / "workers", self._worker_ports, self.options.slots + SPARE_WORKERS)
            self.slots = [Slot(self.mesh, self.workers, store) for _ in range(self.options.slots)]
            self.workers.on_ended = self._worker_ended
            self.mesh.on_peer_lost.append(self._peer_lost)
            self.workers.start()
            for slot in self.slots:
                slot.start("discoro_server")
            await self._advertise()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        if hasattr(self, "workers"):
            await self.workers.stop()
        await self.mesh.__aexit__()
        leave_directory(self._base)

    def _worker_ended(self, worker: Worker, how: str) -> None:
        for slot in self.slots:
            slot.worker_ended(worker, how)

    def _peer_lost(self, peer: Greeting, reason: str) -> None:
        for slot in self.slots:
            slot.client_lost(peer)

    async def _advertise(self) -> None:
        mesh = self.mesh
        if mesh.finding is None or mesh.interfaces.loopback_only:
            return
        me = mesh.me
        security = "open" if mesh.security.open else "curve"
        port = int(mesh.addresses[0].rpartition(":")[2])
        reachable = tuple(address for address in mesh.addresses if not address.startswith(("127.", "[::1]")))
        advert = Advert(
            me.node, me.name, me.cluster, me.python, me.software, PROTOCOL_VERSION, security, self.options.slots, reachable
        )
        await mesh.finding.advertise(advert, port)


def own_directory(dest_path: Path) -> Path:
    """A directory of this node alone below `dest_path`; those of nodes that did not live to remove theirs go."""
    for left in dest_path.glob("node-*-*"):
        pid = left.name.split("-")[1]
        if pid.isdigit() and not _lives(int(pid)):
            leave_directory(left)
    base = dest_path / f"node-{os.getpid()}-{secrets.token_hex(4)}"
    base.mkdir(mode=0o700)
    return base


def leave_directory(base: Path) -> None:
    """Remove a node's directory, but for the files of computations that asked to keep theirs (cleanup=False)."""
    shutil.rmtree(base / "blobs", ignore_errors=True)
    for directory in (*base.glob("workers/*"), base / "workers", base):
        with contextlib.suppress(OSError):
            directory.rmdir()


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def exit_reason(status: int, worker: Worker) -> str:
    """How a worker ended, in words, with its last output where it ended by itself."""
    if worker.ending:
        return f"was ended: {worker.ending}"
    how = f"was killed by {signal.Signals(-status).name}" if status < 0 else f"exited with status {status}"
    last = [line for line in worker.last_lines if line.strip()]
    return how + (f"; its last output: {' | '.join(last[-5:])}" if last else "")


async def lines_of(stream: asyncio.StreamReader) -> Any:
    """The lines of a worker's output, overlong ones in pieces; never an error, whatever it prints."""
    while True:
        try:
            line = await stream.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial
            if not line:
                return
        except asyncio.LimitOverrunError as error:
            line = await stream.readexactly(max(1, min(error.consumed, LINE_BYTES)))
        yield line.decode("utf-8", "replace").rstrip("\r\n")

