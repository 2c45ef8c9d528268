"""The node: one machine's supervisor. It holds slots, and never runs user code.

`Node` is the whole; a `Slot` is the backend of one discoro_server coroutine, which lives in the node and so answers however
busy the workers are. A slot decides which worker (workers.py) a computation goes to, and sees to it that nothing of one is left
when its setup failed, it was closed, or its client is gone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from discoro import allowance
from discoro.adverts import Advert
from discoro.coro import Coro
from discoro.directory import NodeDirectory, keep
from discoro.errors import ConfigError, DiscoroError, NotSetUp, ProtocolError, SetupFailed, Stuck, Timeout, WorkerLost
from discoro.files import Shipped, units
from discoro.finding import BASE_PORT, PORT_RANGE
from discoro.keeping import Keeping, Kept
from discoro.mesh import Mesh
from discoro.messages import PROTOCOL_VERSION, Greeting, Part
from discoro.options import Place
from discoro.requests import Incoming
from discoro.server import Serving, bodies, lacking, serve, text_of, timeout_of
from discoro.status import packed_status
from discoro.transfers import process_of
from discoro.workers import Held, Worker, Workers

log = logging.getLogger("discoro.node")

MAX_SLOTS = PORT_RANGE // 2  # so that every slot has a port for its worker, and one for that worker's successor
WORKERS_PER_SLOT = 8  # clients that may share one slot: each costs a process of some 35 MB
GONE_KEPT = 1000  # computations lost with their workers, remembered so that ping and close can say how
GIVE_UP_TIMEOUT = 1.0  # seconds for a worker to close a computation whose setup was given up, before it is killed
LOOK_WHO_IS_LEFT = 1.0  # seconds between two looks of a node that drains for owners that are gone
UNUSABLE = 1_000_000  # the load of a slot where no worker starts: whoever has a choice takes another
LOST_TIMEOUT = 2.0  # seconds for coroutines of a lost client to end; with the grace and the end, all is gone in 5 s
OURS = ("progress", "detach")  # arguments of setup that are not passed on: the node tells of the one, and knows the other
CLOSE_LATER = 1.0  # seconds on top of close's timeout, after which the worker itself can say what was stuck


@dataclass(frozen=True)
class NodeOptions:
    """What a node is told beyond the options of its mesh. Sizes in bytes, 0: no limit; port 0: any free ports."""

    slots: int
    port: int = BASE_PORT
    dest_path: Path = Path("discoro")
    max_file_size: int = 0
    max_memory: int = 0  # of each worker


@dataclass(eq=False)
class Opening:
    """A setup under way."""

    client: int  # its birth
    task: asyncio.Task[Any]
    abandoned: Sequence[Worker] | None = None  # where it must be closed, once it is given up

    def give_up(self, holding: Sequence[Worker]) -> None:
        """End it, once; the workers that hold the computation get nothing new until it is closed there."""
        if self.abandoned is None:
            self.abandoned = holding
            for worker in holding:
                worker.in_doubt = True
            self.task.cancel()


class Slot:
    """The backend of one slot's discoro_server: hands computations to workers. `number`: which of the node's slots."""

    def __init__(self, mesh: Mesh, workers: Workers, keeping: Keeping, number: int) -> None:
        self._mesh = mesh
        self._workers = workers
        self._keeping = keeping
        self._store = mesh.transfers.store
        self._number = number
        self._placing = asyncio.Lock()  # one computation at a time gets its worker, so that a client's share one
        self._opening: dict[str, list[Opening]] = {}  # by computation, one after another
        self._gone: OrderedDict[str, str] = OrderedDict()  # computations lost with a worker, and how
        self.registered = asyncio.Event()
        self.coro = Coro.start(mesh, self._serve, name="discoro_server")
        self.coro.service = Serving(self, f"discoro_server ({self.coro})")  # at once: what came first would be unpacked here

    def _serve(self) -> Any:
        assert isinstance(self.coro.service, Serving)
        yield from serve(self.coro.service, self._register())

    async def _register(self) -> None:
        await self._mesh.register(self.coro, self.coro.name, shared=True)
        self.registered.set()

    def __repr__(self) -> str:
        return f"<Slot {self._number} {self._here()!r} opening={len(self._opening)}>"

    def _here(self) -> list[Worker]:
        return self._workers.at(self._number)

    def _holding(self, number: str) -> list[Worker]:
        """The workers that have a computation, or are about to."""
        return [worker for worker in self._here() if number in worker.computations]

    def open_here(self) -> list[str]:
        """The computations that are open here, and whose they are, in words."""
        owned = [worker for worker in self._here() if not self._is_left(worker)]
        here = [(worker.client, held) for worker in owned for held in worker.computations.values()]
        return [f"{held.name} of {client.name}/{client.pid}" for client, held in here if client is not None]

    def busy(self) -> list[asyncio.Future[Any]]:
        """What is to end before nothing is left here that anybody owns: its workers, and setups."""
        owned = (worker.gone for worker in self._here() if not self._is_left(worker))
        return [*owned, *(each.task for some in self._opening.values() for each in some)]

    def _is_left(self, worker: Worker) -> bool:
        """Whether all that it has is kept for owners that are gone: nobody who comes now could find it to close it."""
        kept = [self._keeping.find(self._number, number) for number in worker.computations]
        return bool(kept) and all(each is not None and each.alone is not None for each in kept)

    # -------------------------------------------------------------- verbs

    async def lacks(self, incoming: Incoming) -> None:
        """Which of these packages a worker here could not import: it runs the same Python as the node."""
        incoming.reply(lacking(incoming.arguments.get("names")))

    async def setup(self, incoming: Incoming) -> None:
        """Have the computation opened in a worker of this client here, or in a warm one; the worker's reference."""
        self._workers.check_open()
        number = text_of(incoming.arguments, "id")
        task = asyncio.current_task()
        assert task is not None
        opening, openings = Opening(incoming.peer.birth, task), self._opening.setdefault(number, [])
        earlier = openings[-1].task if openings else None
        openings.append(opening)
        try:
            files, _, _ = bodies(incoming)
            await self._fetch(incoming, number, files)
            if earlier is not None:  # perhaps given up: nothing of it shall meet this one
                await asyncio.wait([earlier])
            await self._open(incoming, number, files)
        except asyncio.CancelledError:
            await self._abandon(opening.abandoned or (), number)
            raise
        finally:
            openings.remove(opening)
            if not openings:
                del self._opening[number]
            self._let_go(number)

    async def extend(self, incoming: Incoming) -> None:
        """Have further files put to an open computation, as its arguments need them."""
        number, (files, _, _) = text_of(incoming.arguments, "id"), bodies(incoming)
        self._find(incoming)
        await self._fetch(incoming, number, files)
        worker = self._find(incoming)[0]  # which it may have left, meanwhile
        if worker.conflicts(files):
            name = worker.computations[number].name
            raise SetupFailed(f"{name}: a module of its arguments is another one there, or was edited: call setup again")
        held = worker.computations[number]
        held.units |= units(files)  # before they are there: nothing else of these names may come meanwhile
        await self._mesh.request(worker.server, "extend", {"id": number, "files": 1}, incoming.body)
        incoming.reply(0)

    async def retire(self, incoming: Incoming) -> None:
        """What a node asks its workers, and nobody asks a node."""
        raise ProtocolError("retire is asked of workers only")

    async def run(self, incoming: Incoming) -> None:
        """Runs go straight to the worker, which then tells the one who asked how they end; through a node it could not."""
        raise ProtocolError(f"run is the worker's to answer: ask {self._find(incoming)[0].server}, which setup named")

    async def gather(self, incoming: Incoming) -> None:
        """The worker's to answer, as `run` is."""
        raise ProtocolError(f"gather is the worker's to answer: ask {self._find(incoming)[0].server}, which setup named")

    async def withdraw(self, incoming: Incoming) -> None:
        """The same."""
        raise ProtocolError(f"withdraw is the worker's to answer: ask {self._find(incoming)[0].server}, which setup named")

    async def coros(self, incoming: Incoming) -> None:
        """The worker's to answer too, which alone knows them."""
        raise ProtocolError(f"coros is the worker's to answer: ask {self._find(incoming)[0].server}, which take named")

    async def take(self, incoming: Incoming) -> None:
        """A detached computation is this client's from now on; the worker to ask for runs."""
        number, found = text_of(incoming.arguments, "id"), self._find(incoming)
        kept = self._keeping.find(self._number, number)
        if kept is None:
            raise NotSetUp(f"{found[0].computations[number].name} was not set up with detach: nobody else can take it over")
        for worker in found:
            worker.client = incoming.peer
        self._keeping.own(kept, incoming.peer)
        incoming.reply({"worker": found[0].server.to_plain()})

    async def ping(self, incoming: Incoming) -> None:
        self._find(incoming)
        incoming.reply(0)

    async def close(self, incoming: Incoming) -> None:
        """Close the computation in its worker, or kill the worker where it cannot be; the last one ends the worker."""
        number = text_of(incoming.arguments, "id")
        if number in self._opening:
            self._give_up(self._opening[number], number)
            incoming.reply(0)
            return
        timeout, (_, _, func) = timeout_of(incoming.arguments), bodies(incoming)
        closing = [self._close_in(worker, number, timeout, func) for worker in self._find(incoming)]
        for failed in await asyncio.gather(*closing, return_exceptions=True):  # every one is closed, whatever one says
            if failed is not None:
                raise failed
        incoming.reply(0)

    # -------------------------------------------------------------- opening

    async def _fetch(self, incoming: Incoming, number: str, files: Sequence[Shipped]) -> None:
        """Bring here what the files hold; it stays for as long as the computation is open."""
        self._store.hold(number, [file.blob for file in files])
        await self._mesh.transfers.get_all(files, process_of(incoming.peer), incoming.arguments.get("progress"))

    def _let_go(self, number: str) -> None:
        """The files of a computation are no longer needed here, unless it is open, or about to be."""
        if number not in self._opening and not self._holding(number):
            self._store.release(number)
            self._keeping.forget(self._number, number)

    async def _open(self, incoming: Incoming, number: str, files: Sequence[Shipped]) -> None:
        name, cleanup = text_of(incoming.arguments, "name"), bool(incoming.arguments.get("cleanup", True))
        detach = incoming.arguments.get("detach", False)
        async with self._placing:
            if detach is not False:
                self._keeping.claim(self._number, number, name, incoming.peer, detach)
            worker = await self._worker_for(incoming.peer, number, files, detach is not False)
            before = worker.computations.get(number)
            worker.computations[number] = Held(name, units(files), cleanup, opening=before is None)
        try:
            if not cleanup:
                keep(worker.directory)
            arguments = {key: value for key, value in incoming.arguments.items() if key not in OURS}
            answer = await self._mesh.request(worker.server, "setup", arguments, incoming.body)
        except DiscoroError:
            await self._undo(worker, number, before)
            raise
        self._opened(worker, number)
        if len(self._opening.get(number, ())) <= 1:  # else another setup of it, with files of its own, is about to come
            self._store.hold_only(number, [file.blob for file in files])
        incoming.reply(answer.value)

    async def _worker_for(self, client: Greeting, number: str, files: Sequence[Shipped], detach: bool) -> Worker:
        """The worker for a computation: one that serves the client already, first the one that has it, or a warm one.

        One that has it with other contents is not taken: what was edited must never meet what was imported before.
        """
        here = self._here()
        fit = [worker for worker in here if worker.takes(client, number, detach) and not worker.conflicts(files)]
        if fit:
            return min(fit, key=lambda worker: number not in worker.computations)
        if len(here) >= WORKERS_PER_SLOT:
            raise SetupFailed(f"this slot has {WORKERS_PER_SLOT} workers, for as many clients: close one, or take another slot")
        worker = await self._workers.adopt(client, self._number)
        worker.detached = detach
        self.weigh()
        return worker

    def _opened(self, worker: Worker, number: str) -> None:
        """It runs there from now on: what was opened of it elsewhere only waits to be closed."""
        for other in self._holding(number):
            is_old = other is not worker
            if is_old and not other.computations[number].replaced:
                self._mesh.spawn(self._retire(other, number))
            other.computations[number].replaced = is_old
        worker.computations[number].opening = False
        self._gone.pop(number, None)

    async def _retire(self, worker: Worker, number: str) -> None:
        """What was replaced is closed once its last coroutine has ended, so that old ones do not fill the slot."""
        try:
            await self._mesh.request(worker.server, "retire", {"id": number})
        except DiscoroError as error:
            log.info("! retiring what was replaced: %s", error)
            return
        self._left(worker, number)

    def _left(self, worker: Worker, number: str) -> None:
        """A computation is closed in that worker, which ends with its last one."""
        held = worker.computations.pop(number, None)
        if held is not None and not worker.computations:
            self._mesh.spawn(self._workers.end(worker, f"the last computation of its client, {held.name}, was closed"))
        self._let_go(number)

    async def _undo(self, worker: Worker, number: str, before: Held | None) -> None:
        """A setup failed: all is as before, and a worker that was adopted for it alone ends."""
        if before is not None:
            worker.computations[number] = before
            return
        worker.computations.pop(number, None)
        if not worker.computations:
            await self._workers.kill(worker, "its setup failed")

    def _give_up(self, openings: Sequence[Opening], number: str) -> None:
        for opening in openings:  # the first of them closes it everywhere: the others came after it
            opening.give_up([worker for worker in self._holding(number) if not worker.in_doubt])

    async def _abandon(self, holding: Sequence[Worker], number: str) -> None:
        """A setup was given up: the computation is closed, and a worker that stays busy, or has nothing else, is killed."""
        for failed in await asyncio.gather(*(self._clear(each, number) for each in holding), return_exceptions=True):
            if failed is not None:
                log.info("! giving up a setup: %s", failed)

    async def _clear(self, worker: Worker, number: str) -> None:
        try:
            if len(worker.computations) == 1 and worker.computations[number].opening:
                worker.computations.clear()
                busy = worker.responding.due()
                why = f": {await self._workers.how_busy(worker, busy)}" if busy else ""
                await self._workers.kill(worker, f"its setup was given up{why}")
            else:
                await self._close_in(worker, number, GIVE_UP_TIMEOUT, ())
        finally:
            worker.in_doubt = False

    # -------------------------------------------------------------- closing

    async def _close_in(self, worker: Worker, number: str, timeout: float, func: Sequence[Part]) -> None:
        held = worker.computations.get(number)
        if held is None:  # it was replaced, and its last coroutine has ended since it was found
            return
        arguments = {"id": number, "timeout": timeout, "code": 0}
        body = () if held.replaced else func
        try:
            await self._mesh.request(worker.server, "close", arguments, body, timeout=timeout + CLOSE_LATER)
        except Timeout:
            raise await self._kill_busy(worker, held, timeout) from None
        except (NotSetUp, WorkerLost):
            if not held.replaced:  # else its last coroutine has ended meanwhile: it is closed, and its worker may have ended
                raise
        except Stuck as error:
            await self._workers.kill(worker, f"{error}; it was killed with all it ran")
            raise Stuck(f"{error}. The worker was killed") from None
        finally:
            self._left(worker, number)

    async def _kill_busy(self, worker: Worker, held: Held, timeout: float) -> Stuck:
        busy = await self._workers.how_busy(worker, max(worker.responding.due(), timeout + CLOSE_LATER))
        await self._workers.kill(worker, f"{busy} while {held.name} was to be closed; it was killed with all it ran")
        return Stuck(f"{held.name} was not closed in order: {busy}. The worker was killed")

    def _find(self, incoming: Incoming) -> list[Worker]:
        """The workers that hold a computation (several where it was set up again with other files), the current one first."""
        number = text_of(incoming.arguments, "id")
        there = [worker for worker in self._holding(number) if not worker.ending]
        found = [worker for worker in there if not worker.computations[number].opening]
        if not found:
            how = self._gone.get(number)
            if how is not None:
                raise WorkerLost(how)
            raise NotSetUp(f"the computation is not set up here, or was closed: call setup again before {incoming.verb}")
        return sorted(found, key=lambda worker: worker.computations[number].replaced)

    # -------------------------------------------------------------- ends

    def worker_ended(self, worker: Worker, how: str) -> None:
        """A worker of this slot is gone, and its computations with it."""
        for number, held in worker.computations.items():
            if not held.replaced and not held.opening:
                self._gone[number] = how
            self._let_go(number)
        while len(self._gone) > GONE_KEPT:
            self._gone.popitem(last=False)
        self.weigh()

    def client_lost(self, client: Greeting, reason: str) -> None:
        """A client that is gone leaves nothing: its setups are given up, its computations closed, its workers end."""
        for number, openings in self._opening.items():
            self._give_up([each for each in openings if each.client == client.birth], number)
        for worker in self._here():
            if worker.belongs_to(client) and not worker.ending and not worker.detached:
                worker.ending = f"its client {client.name}/{client.pid} is gone ({reason})"
                self._mesh.spawn(self._end_unowned(worker))

    async def end_kept(self, kept: Kept, why: str) -> None:
        """A detached computation had no owner for too long."""
        ending = [worker for worker in self._holding(kept.number) if not worker.ending]
        for worker in ending:
            worker.ending = why
        await asyncio.gather(*map(self._end_unowned, ending))

    def listed(self, number: str) -> dict[str, Any]:
        """Where a computation is here: the discoro_server to ask for it, and the process that runs it (0: not yet)."""
        pids = [each.pid for each in self._holding(number) if not each.computations[number].opening and not each.ending]
        return {"server": self.coro.ref.to_plain(), "pid": pids[-1] if pids else 0}

    async def _end_unowned(self, worker: Worker) -> None:
        """Close what it has, so that `finally` blocks run and exit notices leave; then end it."""
        closing = [self._close_in(worker, number, LOST_TIMEOUT, ()) for number in worker.computations]
        self._gone |= dict.fromkeys(worker.computations, f"it was closed: {worker.ending}")  # for a client that comes back
        for failed in await asyncio.gather(*closing, return_exceptions=True):
            if failed is not None:
                log.info("! closing what nobody owns any more: %s", failed)
        await self._workers.end(worker, worker.ending)

    def weigh(self) -> None:
        """How busy it is has changed: `locate` tells others."""
        self.coro.load = UNUSABLE if self._workers.given_up else len(self._here())


class Node:
    """A node, for the length of `async with Node(options, mesh_options) as node`.

    Enter it in the main thread: its workers end with the thread that started them. Raises PortTaken, DestPathError,
    KeyFileError and other ConfigErrors where it cannot start.
    """

    def __init__(self, options: NodeOptions, **mesh_options: Any) -> None:
        if not 0 < options.slots <= MAX_SLOTS:
            raise ConfigError(f"{options.slots} slots: a node has 1 to {MAX_SLOTS}. Choose another number with -c")
        allowance.check(options.max_memory)
        self.options = options
        port = options.port
        here = Place(
            role="node",
            ports=range(port, port + 1) if port else None,
            second_ports=range(port + PORT_RANGE, port, -1) if port else None,
            security=mesh_options.pop("security", None),
        )
        self.mesh = Mesh.placed(here, max_file_size=options.max_file_size, **mesh_options)
        self.slots: list[Slot] = []
        self._leaves = False  # it drains: its addresses may change meanwhile, and nobody new is to find it
        self.keeping = Keeping(self.mesh, lambda kept, why: self.slots[kept.slot].end_kept(kept, why))
        self._resources = AsyncExitStack()

    async def __aenter__(self) -> Node:
        async with AsyncExitStack() as resources:  # a start that fails leaves nothing
            directory = NodeDirectory(self.options.dest_path)
            resources.callback(directory.remove)
            self.mesh.keep_files(self.options.dest_path.absolute(), directory.blobs)
            await resources.enter_async_context(self.mesh)
            workers = Workers(self.mesh, directory, self._worker_ports(), self.options.slots, self.options.max_memory)
            self._workers = workers
            resources.push_async_callback(workers.stop)
            resources.callback(self.keeping.close)
            self.slots = [Slot(self.mesh, workers, self.keeping, number) for number in range(self.options.slots)]
            workers.on_ended = self._worker_ended
            workers.on_able = self._weigh
            self.mesh.handlers["status"] = partial(self._on_status, workers)
            self.mesh.on_peer_lost.append(self._peer_lost)
            self.mesh.on_peer_opened.append(lambda peer: self.keeping.owner_came(peer.birth))
            self.mesh.handlers["detached"] = self._on_detached
            self.mesh.rekeying.on_changed.append(workers.tell_key)
            self.mesh.moving.on_change += [workers.tell_hosts, lambda: self.mesh.spawn(self._advertise())]
            workers.refill()
            for slot in self.slots:  # who hears of the node finds them: a question can come before their first step
                await slot.registered.wait()
            await self._advertise()
            self._resources = resources.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._resources.aclose()

    def __repr__(self) -> str:
        return f"<Node {self.mesh!r} {self.slots!r}>"

    async def drain(self, timeout: float) -> bool:
        """Take nothing new and be found by nobody new, until all that is open here was closed, or its client is gone.

        Whether that was so within `timeout` seconds. What is open goes on as ever, and the node does until it is left.
        """
        self._leaves = True
        self._workers.drain()
        for slot in self.slots:
            await self.mesh.unregister(slot.coro, None)
        if self.mesh.finding is not None:
            await self.mesh.finding.withdraw()
        try:
            async with asyncio.timeout(timeout):
                while busy := [each for slot in self.slots for each in slot.busy()]:
                    await asyncio.wait(busy, timeout=LOOK_WHO_IS_LEFT, return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            return False
        return True

    def open_here(self) -> list[str]:
        """The computations that are open here, in words."""
        return [each for slot in self.slots for each in slot.open_here()]

    async def _on_status(self, workers: Workers, incoming: Incoming) -> None:
        incoming.reply({"slots": self.options.slots}, [packed_status(await workers.status())])

    def _worker_ports(self) -> range | None:
        first = self.options.port + 1
        return range(first, first + PORT_RANGE) if self.options.port else None

    def _worker_ended(self, worker: Worker, how: str) -> None:
        if worker.slot is not None:
            self.slots[worker.slot].worker_ended(worker, how)

    def _weigh(self) -> None:
        for slot in self.slots:
            slot.weigh()

    def _peer_lost(self, peer: Greeting, reason: str) -> None:
        for slot in self.slots:
            slot.client_lost(peer, reason)

        self.keeping.owner_lost(peer.birth)

    def _on_detached(self, incoming: Incoming) -> None:
        """What this node keeps, for whoever looks for it."""
        there = {(kept.slot, kept.number): self.slots[kept.slot].listed(kept.number) for kept in self.keeping}
        incoming.reply([told | there[key] for key, told in self.keeping.listed().items() if there[key]["pid"]])

    async def _advertise(self) -> None:
        """Let others find this node by mDNS, where it is now, unless it is to listen on loopback only."""
        mesh, me = self.mesh, self.mesh.me
        if mesh.finding is None or mesh.interfaces.settled or self._leaves:
            return
        security = "open" if mesh.security.open else "curve"
        reachable = tuple(address for address in mesh.addresses if not address.startswith(("127.", "[::1]")))
        advert = Advert(
            me.node, me.name, me.cluster, me.python, me.software, PROTOCOL_VERSION, security, self.options.slots, reachable
        )
        await mesh.finding.advertise(advert, int(mesh.addresses[0].rpartition(":")[2]))
