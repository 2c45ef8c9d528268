"""This process among others: its coroutines, and messages and requests to and from them.

The one place where everything meets. `Peers` brings operations of other processes and takes ours; `Finding` and `Names` find;
`Requests` and `Exits` keep who waits for what; every `Coro` of this process calls the mesh as its Host. What concerns a
coroutine of this process takes the same path as what concerns any other, and only the last step differs: a call here, an
operation on a link there.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import logging
import os
import secrets
import socket
import sys
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from discoro import __version__, messages, payload
from discoro.answers import Answers, Handler
from discoro.coro import Coro, host_here, sender
from discoro.directory import ClientDirectory
from discoro.driving import check_coroutine
from discoro.errors import (
    ConfigError,
    CoroEnded,
    DiscoroError,
    NoSuchCoro,
    Overloaded,
    PeerLost,
    ProtocolError,
    Timeout,
    TooLarge,
    Unreachable,
    WorkerLost,
)
from discoro.exchange import Exchange, directory_at_peer, name_at_peer, process_meant
from discoro.exits import Exits
from discoro.finding import BASE_PORT, INQUIRE_TIMEOUT, Finding, whereabouts, with_port
from discoro.interfaces import Interfaces, interfaces, look_again, refuse_public, system_addresses
from discoro.introducing import Introducing
from discoro.link import Link, State
from discoro.local import local_node
from discoro.mailbox import Question
from discoro.memory import Unkept
from discoro.messages import Exit, Greeting, Hold, Message, Messages, Notice, Part, Reply, Request
from discoro.moving import Moving
from discoro.names import SETTLE, Names
from discoro.options import MeshOptions, Place, veil
from discoro.outcomes import EXCEPTION, LINKED, PARENT, TERMINATED, UNKNOWN, Outcome
from discoro.peers import Peers
from discoro.presence import Peer, Presence
from discoro.progress import Count
from discoro.references import CoroRef, Handle, current_host
from discoro.rekeying import Rekeying
from discoro.requests import Answer, Incoming, Requests, UnderWay
from discoro.security import Security
from discoro.sending import Sending, lane_here
from discoro.status import NodeStatus, unpacked_status
from discoro.store import Store
from discoro.transfers import Transfers, process_of
from discoro.watchdog import debugging, watch

log = logging.getLogger("discoro.mesh")

KEPT_DEAD = 2000  # processes known to be gone, so that references to them fail at once; in a node a kilobyte or two for each
STATUS_TIMEOUT = 5.0  # seconds; a node answers in milliseconds, and half a second later where workers are busy
CLOSE_TIMEOUT = 1.5  # seconds in all that a closing mesh gives coroutines and unacknowledged frames


class Mesh:
    """This process as part of the mesh, for the length of `async with discoro.Mesh(...) as mesh`.

    Inside the block `discoro.Coro`, `discoro.servers` and `Computation` work as in a coroutine. Options are the fields of
    `discoro.options.MeshOptions`; `addresses` is where this process listens, as host:port. Raises KeyFileError, ConfigError
    where it cannot start.
    """

    _names: Names
    rekeying: Rekeying
    moving: Moving

    def __init__(self, **options: Any) -> None:
        veil(options)
        self.options = MeshOptions(**options)
        self._place = Place()
        self._resources = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._coros: dict[int, Coro] = {}
        self._ids = itertools.count(1)
        self._requests = Requests()
        self._under_way = UnderWay()
        self._dead: OrderedDict[int, DiscoroError] = OrderedDict()  # births known to be gone, and how
        self._closing = False
        self.lost_operations = 0  # of lost links: unacknowledged, so that nobody knows whether they arrived
        self.finding: Finding | None = None
        self.handlers: dict[str, Handler] = {
            "locate": self._on_locate,
            "register": lambda incoming: incoming.reply(self._names.on_register(incoming.peer, incoming.arguments)),
            "unregister": lambda incoming: incoming.reply(self._names.on_unregister(incoming.peer, incoming.arguments)),
            "meet": self._on_meet,
            "lost": self._on_worker_lost,
            "status": self._on_status,
        }
        self.on_peer_opened: list[Callable[[Greeting], None]] = []
        self.on_peer_lost: list[Callable[[Greeting, str], None]] = []

    @classmethod
    def placed(cls, place: Place, **options: Any) -> Mesh:
        """A mesh of a node or a worker."""
        mesh = cls(**options)
        mesh._place = place
        mesh._requests = Requests(opens_causes=place.role != "node")
        return mesh

    def __repr__(self) -> str:
        if not hasattr(self, "_peers"):
            return "<Mesh not entered>"
        return f"<Mesh {self.me.name}/{self.me.pid} coroutines={len(self._coros)} {self._peers!r}>"

    @property
    def security(self) -> Security:
        """The cluster key of this process, as it is now."""
        return self.rekeying.security

    @property
    def me(self) -> Greeting:
        """What this process says of itself."""
        return self._peers.me

    # -------------------------------------------------------------- start and end

    async def __aenter__(self) -> Mesh:
        try:
            await self._start()
        except BaseException:  # a start that fails or is given up leaves nothing
            await self._end_tasks()
            await self._resources.aclose()
            raise
        self._token = current_host.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):  # left in another context than entered, as some notebooks do
            current_host.reset(self._token)
        await self.close()

    async def _start(self) -> None:
        options = self.options
        self._loop, self.thread = asyncio.get_running_loop(), threading.get_ident()
        self.debug = debugging(asyncio.get_running_loop(), options.debug)
        if self.debug:
            self._resources.enter_context(watch(self._name_of_task))
        security = self._place.security or options.security()
        self.interfaces = self._interfaces()
        if security.open and not options.open_public:
            refuse_public(self.interfaces, options.ext_ip_addr)
        self._open(security)
        self._names = Names(self, options.discover_timeout, settle=0.0 if options.local else SETTLE)
        self._exits = Exits(self.me.birth, self, opens_errors=self._place.role != "node")
        self._answers = Answers(self, self._exits, self.handlers)
        self.sending = Sending(self, self._exits)
        self.transfers = Transfers(self, self._make_store, self._place.fetcher)
        self._exchange = Exchange(self, self.transfers, options.max_file_size)
        self._resources.callback(self._exchange.close)
        self.handlers |= self.transfers.handlers | self._exchange.handlers
        is_worker = self._place.role == "worker"
        self._finding = Finding(self, self.interfaces, options.mdns and not options.local and not is_worker)
        self._presence = Presence(self, self._peers, self._finding)
        if not is_worker:
            await self._find(self._finding)
        if security.path is not None:
            self.spawn(self.rekeying.follow(security.path))
        if not is_worker and not self.interfaces.settled:  # a worker is told by its node
            self.spawn(self.moving.watch())

    def _interfaces(self) -> Interfaces:
        if self._place.hosts is None:
            return interfaces(["127.0.0.1"] if self.options.local else self.options.ip_addr)
        told = Interfaces(usable=(), wanted=self._place.hosts)  # one of them may be gone since they were told
        return look_again(told, system_addresses()) if self._place.hosts else told

    def _open(self, security: Security) -> None:
        """Links, their sockets, and the key of both; from here on others can greet this process."""
        options, place = self.options, self._place
        timeouts = {"connect_timeout": options.connect_timeout, "peer_timeout": options.peer_timeout}
        self._peers = Peers(self._greeting(), security, self, **timeouts)
        self._introducing = Introducing(self, self._peers)
        transport = place.transport(security, self._peers)
        self._peers.wire = transport
        open_to_all = options.open_public or not security.open
        self.moving = Moving(self, self._peers, transport, options.ext_ip_addr, open_to_all)
        self.rekeying = Rekeying(self, self.moving, self._peers, transport, security, place.second_ports or place.ports)
        self.handlers |= self._introducing.handlers | {"moved": self.moving.on_moved}
        self._resources.push_async_callback(transport.close)
        self.addresses = self._listen(transport)
        self._peers.listen_at(self.addresses)

    @functools.cached_property
    def _directory(self) -> ClientDirectory:
        """Of a client; made when the first file comes."""
        directory = ClientDirectory(self.options.dest_path)
        self._resources.callback(directory.remove)
        return directory

    @property
    def dest_path(self) -> Path:
        """The directory for files that others send to this process: a worker's is its current directory."""
        return self._place.files or self._directory.files

    def keep_files(self, files: Path, blobs: Path) -> None:
        """As a node, before it is entered: where files that are sent to it go, and where blobs lie."""
        self._place = dataclasses.replace(self._place, files=files, blobs=blobs)

    def _make_store(self) -> Store:
        own = self._place.fetcher is None  # a worker's directory for blobs is its node's
        return Store(self._place.blobs or self._directory.blobs, self.options.max_file_size, removes=own)

    def _greeting(self) -> Greeting:
        birth = secrets.randbits(63) + 1
        node = self._place.node or f"{birth:016x}"
        name = self.options.name or socket.gethostname().partition(".")[0] or "host"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Greeting(node, os.getpid(), birth, name, self._place.role, self.options.cluster, python, __version__, ())

    def _listen(self, transport: Any) -> list[str]:
        """Listen on every usable address, and on loopback for the processes of this machine."""
        bound: list[str] = transport.listen(self.interfaces.hosts, self._place.ports)
        return self.moving.announced([*bound, *self.rekeying.second_door()])

    async def _find(self, finding: Finding) -> None:
        """Begin to look for others, in every way the options allow."""
        options, self.finding = self.options, finding
        self.moving.on_change.append(lambda: finding.look_around(self.interfaces))
        self._resources.push_async_callback(self.finding.close)
        if options.local:
            key = self.security.handed_down()
            starting = local_node(key, "--cluster", options.cluster, *options.local_options, debug=self.debug)
            node = await self._resources.enter_async_context(starting)
            self.rekeying.on_changed.append(lambda: node.tell_key(self.security.handed_down()))
            self.spawn(self.finding.keep(node.ready["addresses"][0]))
            return
        named = [address for address in os.environ.get("DISCORO_PEERS", "").split(",") if address.strip()]
        for address in [*options.peers, *named]:
            self.spawn(self.finding.keep(with_port(address.strip())))
        if self._place.role == "client" and options.mdns:  # a node on this machine is found without waiting for mDNS
            self.spawn(self.finding.keep(f"127.0.0.1:{BASE_PORT}", quiet=True))
        await self.finding.start()

    async def close(self) -> None:
        """Leave the mesh: coroutines are terminated, what was sent is given a moment to arrive, everybody is told."""
        self._closing = True
        self._exits.say_unheard()
        coros = list(self._coros.values())
        for coro in coros:
            coro.stop(TERMINATED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT / 2):
                for coro in coros:
                    await coro.stopped()
        if self.me.role == "client":
            self._say_endless([coro for coro in coros if not coro.done])
        await self._end_tasks()
        await self._drain(CLOSE_TIMEOUT / 2)
        self._peers.close(f"{self.me.name}/{self.me.pid} left the mesh")
        await self._resources.aclose()

    def _say_endless(self, coros: list[Coro]) -> None:
        """asyncio.run waits for them too, for ever: whoever sits before that must know what for."""
        if coros:
            names = ", ".join(f"{coro.name} ({coro})" for coro in coros[:10])
            log.warning("! %d coroutines caught their CancelledError and went on: %s; Ctrl-C ends them", len(coros), names)

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CLOSE_TIMEOUT)

    async def _drain(self, seconds: float) -> None:
        """Until everything sent is acknowledged, or the time is over."""
        until = self._loop.time() + seconds
        while not self._peers.idle() and self._loop.time() < until:
            await asyncio.sleep(0.005)

    def check_thread(self) -> None:
        """RuntimeError in another thread, whose loop, if it has one, is not the one that wakes what waits here."""
        if threading.get_ident() != self.thread:
            raise RuntimeError(
                "this is another thread than the mesh's: in a thread only send works; a coroutine does the rest, or "
                "asyncio.run_coroutine_threadsafe(operation, loop).result(), with the loop of that coroutine"
            )

    def in_loop(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it in the thread of the mesh: now where this is that one, else soon."""
        if threading.get_ident() == self.thread:
            function(*args)
        else:
            self.soon(function, *args)

    def soon(self, function: Callable[..., Any], *args: Any) -> None:
        """Call it in the thread of the mesh, when what is being done there now is done."""
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the mesh
            self._loop.call_soon_threadsafe(function, *args)

    def _from_thread(self, function: Callable[..., Any], *args: Any) -> None:
        """The same from another thread, as of asyncio.to_thread: waits until it is done, raises what it raises."""

        async def call() -> None:
            function(*args)

        asyncio.run_coroutine_threadsafe(call(), self._loop).result()

    def spawn(self, work: Awaitable[Any]) -> None:
        """Have something done that nobody waits for; it is cancelled when the mesh closes."""
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -------------------------------------------------------------- other processes

    def meet(self, birth: int, addresses: Sequence[str]) -> Link | None:
        """Link with a process that somebody told of, unless that is done; None where no address of it is known."""
        if birth == self.me.birth:
            return None
        with contextlib.suppress(Unreachable):
            return self._peers.link(birth, list(dict.fromkeys(addresses))[: messages.MAX_ADDRESSES])
        return None

    def heard_of(self, birth: int, addresses: Sequence[str]) -> None:
        """Meet a process that somebody told of, unless it is to be left alone."""
        self._presence.heard_of(birth, addresses)

    def hint(self, birth: int, addresses: Sequence[str]) -> None:
        """Somebody who cannot be believed says where a linked process listens."""
        self._peers.hint(birth, addresses)

    async def wanted(self, birth: int) -> None:
        """Until that process may be dialled; at once unless it was closed here."""
        await self._presence.wanted(birth)

    def linked(self, birth: int) -> bool:
        """Whether there is a link with that process, or it is this one."""
        return birth == self.me.birth or self._peers.get(birth) is not None

    def tried(self, birth: int) -> str:
        """What came so far of dialling a process that was never met; "" where nothing did, or nobody dials it."""
        link = self._peers.get(birth)
        return link.what_was_tried if link is not None and not link.opened else ""

    async def inquire(self, address: str, timeout: float) -> Greeting:
        """Who listens at that address; see Peers.inquire."""
        return await self._peers.inquire(address, timeout)

    def process(self, birth: int) -> CoroRef | None:
        """A process that is linked with this one, as what requests are asked of."""
        link = self._peers.get(birth)
        return process_of(link.peer) if link is not None and link.peer is not None else None

    async def room(self, birth: int) -> None:
        """Until pieces of blobs may be queued for that process."""
        await self._peers.room(birth)

    async def link_ended(self, birth: int) -> None:
        """Until the link with that process has ended; at once where there is none."""
        gone = asyncio.get_running_loop().create_future()

        def on_lost(link: Link) -> None:
            if link.birth == birth and not gone.done():
                gone.set_result(None)

        self._peers.on_ended.append(on_lost)
        try:
            if self.linked(birth):
                await gone
        finally:
            self._peers.on_ended.remove(on_lost)

    def nodes(self) -> list[Greeting]:
        """The processes that this one can ask for names: nodes, and clients with servers of their own; no workers."""
        open_links = [link for link in self._peers if link.state is State.OPEN and link.peer is not None]
        return [link.peer for link in open_links if link.peer is not None and link.peer.role != "worker"]

    def looks(self) -> bool:
        """Whether a node may still be found."""
        return self.finding is not None and self.finding.looks

    def look_again(self) -> None:
        """Somebody waits for nodes."""
        if self.finding is not None:
            self.finding.look_again()

    def hopeless(self) -> bool:
        """Whether no node can be found any more."""
        return self.finding is not None and self.finding.hopeless

    def why_no_nodes(self, seconds: float) -> str:
        """The text of NoNodes after so many seconds."""
        return self._finding.no_nodes(seconds)

    def peers(self) -> list[Peer]:
        """The processes that this one is linked with, in the order they came, workers too. Not used with yield."""
        return self._presence.peers()

    async def peer(self, address: str, timeout: float | None = None) -> Peer:
        """Link with the process at an address, "host" or "host:port", and keep the link: it is dialled again when it is lost.

        Returns once linked, at the latest after `timeout` seconds. `close_peer` ends it. Raises Unreachable where nobody
        answers (in 3 s), Refused where it has another key, cluster or version, or is this process; Timeout; ConfigError for
        what is no address. Then nothing is kept.
        """
        return await self._presence.peer(address, timeout)

    async def peer_status(self, coro: Handle | None, watch: bool = True) -> int:
        """Have a coroutine of this process receive a PeerStatus for each peer, and then for each that comes or goes. Returns 0.

        Each is told once, in order, to any number of coroutines, past a full mailbox too; only one with 20,000 messages
        waiting is told no more, which the log says. `watch=False` ends it for the coroutine, None instead of a coroutine for
        all. Raises TypeError for a function, ConfigError for a coroutine of another process, NoSuchCoro.
        """
        return self._presence.watch(coro, watch)

    async def close_peer(self, peer: Peer) -> int:
        """End the link with that process, in order: what was sent is given 0.75 s to arrive. Returns 0, also without a link.

        What waits for its coroutines, and whoever uses a reference to one, gets PeerLost; it sees this process go offline. It
        is not dialled from here any more until `peer` or `discover_peers` is called; it may itself link again. Raises
        TypeError for what is no Peer, ConfigError for this process itself.
        """
        return await self._presence.close_peer(peer)

    async def locate_peer(self, name: str, timeout: float | None = None) -> Peer:
        """The peer of that name, a node before others. Waits until one is linked, at most `timeout` seconds.

        It does not find this process itself. Raises Timeout.
        """
        return await self._presence.locate_peer(name, timeout)

    async def status(self, peer: Peer | Handle, timeout: float | None = STATUS_TIMEOUT) -> NodeStatus:
        """See `discoro.status`."""
        node = process_meant(peer)
        answer = await self.request(node, "status", {}, timeout=timeout)
        return unpacked_status(node.name, answer.value, answer.body[0] if answer.body else b"")

    def _on_status(self, incoming: Incoming) -> None:
        """A node answers otherwise."""
        who = f"{self.me.name}/{self.me.pid} is a {self.me.role}"
        raise ConfigError(f"{who} and has no workers: ask a node, or a server of one")

    def discover_peers(self) -> None:
        """Ask the network again, and meet those too that were closed or ignored. Not used with yield."""
        self.in_loop(self._presence.discover_peers)

    @property
    def ignore_peers(self) -> bool:
        """Whether nobody new is met: who is found or told of is not dialled, who greets is refused. Links there are stay.

        What is named here is dialled all the same: by `peer`, by the option `peers`, by use of a reference.
        """
        return self._presence.ignore_peers

    @ignore_peers.setter
    def ignore_peers(self, flag: bool) -> None:
        self.in_loop(self._presence.set_ignore_peers, flag)

    # -------------------------------------------------------------- files

    async def send_file(
        self,
        peer: Peer | Handle,
        path: str | os.PathLike[str],
        dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        timeout: float | None = None,
        *,
        progress: Count | bool | None = None,
    ) -> int:
        """Send a file, or a directory with all that travels of it, to another process. Returns 0 once it lies there, whole.

        `peer` is a Peer, or any reference, whose process is meant. It gets its base name below the peer's directory for files,
        there below `dir`: a worker's current directory, `--dest_path` of a node, `dest_path` of a client. A file that is there
        with the same content does not travel. `progress` is called with the bytes that have come there and those that had to,
        about ten times a second; True shows a bar on standard error where that is a terminal.

        Raises Timeout after `timeout` seconds; ConfigError for what cannot be read, or a `dir` that is not below;
        TransferFailed where another file has the name, unless `overwrite`, or it cannot be written there; TooLarge past the
        peer's max_file_size; PeerLost, WorkerLost, Unreachable. A file is then there whole or not at all, and sent again, it
        goes on where it broke.
        """
        await self._exchange.send(process_meant(peer), path, directory_at_peer(dir), overwrite, timeout, progress)
        return 0

    async def fetch_file(
        self,
        peer: Peer | Handle,
        name: str | os.PathLike[str],
        dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        timeout: float | None = None,
        *,
        progress: Count | bool | None = None,
    ) -> Path:
        """Fetch a file, or a directory with all that travels of it, from another process. Returns where it lies here.

        `name` is relative to the peer's directory for files. It gets its base name in the directory `dir` of this machine,
        made where it is missing; None: in this process's own directory for files. The rest is as for `send_file`.
        """
        return await self._exchange.fetch(process_meant(peer), name_at_peer(name), dir, overwrite, timeout, progress)

    async def del_file(
        self,
        peer: Peer | Handle,
        name: str | os.PathLike[str],
        dir: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Remove a file or a directory below a peer's directory for files, there below `dir`. Returns 0.

        Directories above it that are then empty go too. Raises TransferFailed where there is none, or it cannot be removed;
        ConfigError, Timeout, PeerLost, WorkerLost, Unreachable.
        """
        await self._exchange.remove(process_meant(peer), name_at_peer(name, dir), timeout)
        return 0

    # -------------------------------------------------------------- what Peers tells

    def opened(self, link: Link) -> None:
        peer = link.peer
        assert peer is not None
        log.info("= linked with %s %s/%d", peer.role, peer.name, peer.pid)
        self._dead.pop(peer.birth, None)
        self._introducing.settled(peer.birth)
        self._presence.opened(link)
        for tell in list(self.on_peer_opened):
            tell(peer)
        if self.finding is not None:
            self.finding.met(peer.birth)
        link.awaits_word = peer.role == "worker" and peer.node in (self.me.node, *(node.node for node in self.nodes()))
        if peer.role != "worker":
            self.spawn(self._tell_new(peer))

    async def _tell_new(self, peer: Greeting) -> None:
        """Tell a new node our names; as a node, tell it of the nodes we know, and those of it."""
        try:
            await self._names.node_linked(peer.birth)
            if self.me.role != "node":
                return
            others = [node for node in self.nodes() if node.birth != peer.birth]
            known = [whereabouts(node) for node in others if node.role == "node"]
            await self.ask(peer.birth, "meet", {"nodes": known}, INQUIRE_TIMEOUT)
            if peer.role == "node":
                for other in others:
                    await self.ask(other.birth, "meet", {"nodes": [whereabouts(peer)]}, INQUIRE_TIMEOUT)
        except DiscoroError as error:
            log.info("< %s: %s", peer.name, error)

    def lost(self, link: Link) -> None:
        """A link ended: everybody who waits for that process is told, once, with the reason."""
        who = self._name_of(link) + (f" ({link.refused_at})" if link.refused_at else "")
        error = self._dead.get(link.birth) or (PeerLost if link.opened else Unreachable)(f"{who}: {link.lost_because}")
        self._say_lost(link, who, error)
        self._presence.ended(link)
        if link.certain:
            self._bury(link.birth, error)
        self._requests.fail(link.birth, error)
        self._introducing.settled(link.birth)
        self._exits.link_lost(link, error)
        self.sending.lost_messages += self.sending.holding.link_lost(link, error)
        self._names.peer_lost(link.birth)
        self.transfers.peer_lost(link.birth)
        self._exchange.peer_lost(link.birth)
        for coro in self.coros():
            if coro.service is not None:
                coro.service.on_peer_lost(link.birth)
        if link.peer is not None:
            for other in self._peers if link.peer.role == "node" else ():
                if other.peer is not None and other.peer.node == link.peer.node:
                    other.awaits_word = False  # nobody is left to say it
            for tell in list(self.on_peer_lost):
                tell(link.peer, str(error))
            if link.may_be_back and link.peer.role == "node" and self.finding is not None and not self._closing:
                self.finding.seek(link.birth, link.addresses)

    def introduce(self, link: Link, seconds: float) -> None:
        self._introducing.introduce(link, seconds)

    def _name_of(self, link: Link) -> str:
        named = "" if link.peer is not None else self._introducing.name_of(link.birth)
        return named or (link.who if link.peer is not None or self.finding is None else self.finding.name_of(link.birth))

    def _say_lost(self, link: Link, who: str, error: DiscoroError) -> None:
        said_elsewhere = link.state is State.CLOSED or isinstance(error, WorkerLost) or not link.opened
        left_at_once = link.unused  # a program that ended while it was greeted; or one that greets and goes, a thousand times
        level = logging.INFO if said_elsewhere or left_at_once or self._closing or self.me.role == "worker" else logging.WARNING
        log.log(level, "= %s", error)
        others_wish = self._introducing.only_reaching(link.birth)
        if not link.opened and self.finding is not None and not self._closing and not others_wish:
            self.finding.not_met(link, who)
        unsent = link.outbox.unacknowledged
        if unsent:
            self.lost_operations += unsent
            log.log(level, "! %d operations for %s were not acknowledged: whether they arrived is unknown", unsent, who)

    def bury(self, birth: int, how: str) -> None:
        """That worker is certainly gone; `how` is what its node saw."""
        self.ended(birth, WorkerLost(how))

    def ended(self, birth: int, error: DiscoroError) -> None:
        """That process is certainly gone; the error says what those who know saw."""
        self._bury(birth, error)
        self._peers.lose(birth, str(error))

    def how_it_ended(self, birth: int) -> DiscoroError | None:
        """For a process that is known to be gone."""
        return self._dead.get(birth)

    def _bury(self, birth: int, error: DiscoroError) -> None:
        self._dead[birth] = error
        if len(self._dead) > KEPT_DEAD:
            self._dead.popitem(last=False)

    def tell_lost(self, birth: int, how: str) -> None:
        """As a node: everybody linked with us learns that one of our workers ended, and how."""
        self.bury(birth, how)
        for link in self._peers:  # at once: who leaves in this very moment need not be dialled again for it
            with contextlib.suppress(DiscoroError):
                self.tell(CoroRef("", 0, link.birth, 0, "", link.addresses), "lost", {"birth": birth, "how": how})

    def operation(self, link: Link, operation: messages.Operation) -> None:
        """Something came in, in order."""
        match operation:
            case Messages(coro_id, bodies):
                self.sending.came_together(link, coro_id, bodies)
            case Message(coro_id, body):
                self.sending.came(link, coro_id, body)
            case Request():
                self._request(link, operation)
            case Reply(number, ok, value, body):
                self._requests.answer(number, ok, value, body)
            case Exit(coro_id, reason) if reason == UNKNOWN:
                self._exits.nobody((link.birth, coro_id), f"{link.who}/{coro_id}")
            case Exit(coro_id, reason, text, body):
                self._exits.told((link.birth, coro_id), f"{link.who}/{coro_id}", Outcome(reason, text=text, body=body))
            case Notice(coro_id, to, now):
                (self._exits.release if now else self._exits.defer)((link.birth, coro_id), to)
            case Hold(coro_id, held):
                link.outbox.end_run()  # what is sent to it from now on waits
                self.sending.hold(link, (link.birth, coro_id), held)

    # -------------------------------------------------------------- messages

    def send(self, to: CoroRef, message: object) -> None:
        if threading.get_ident() == self.thread:
            self.sending.send(to, message)
        else:
            self._from_thread(self.sending.send, to, message)

    async def deliver(self, to: CoroRef, message: object, timeout: float | None) -> int:
        return await self.sending.deliver(to, message, timeout)

    async def ask_coro(self, to: CoroRef, message: object, timeout: float | None) -> Any:
        return await self.sending.ask_coro(to, message, timeout)

    def put(self, link: Link | None, coro: Coro, body: Sequence[Part], question: Question | None = None) -> None:
        self.sending.put(link, coro, body, question)

    @property
    def lost_messages(self) -> int:
        """How many messages reached nobody."""
        return self.sending.lost_messages

    def drained(self, coro: Coro) -> None:
        self.sending.drained(coro)

    def post(self, link: Link, operation: messages.Operation, lane: int | None = None) -> None:
        """Queue an operation for that link; see Peers.post."""
        self._peers.post(link, operation, lane)

    @property
    def links(self) -> Mapping[int, Link]:
        """The live links, by birth."""
        return self._peers.links

    def post_message(self, birth: int, coro_id: int, body: bytes) -> bool:
        """Queue a small message; see Peers.post_message."""
        return self._peers.post_message(birth, coro_id, body)

    def here(self, to: CoroRef) -> Coro:
        """The coroutine of this process that is meant; NoSuchCoro where it has ended."""
        coro = self._coros.get(to.id)
        if coro is None:
            raise NoSuchCoro(f"{to} has ended, or never was")
        return coro

    def _no_service(self, who: CoroRef, verb: str) -> Coro:
        """A coroutine of this process that is the user's own; ProtocolError for a channel, say, as where it is elsewhere."""
        coro = self.here(who)
        if coro.service is not None:
            raise ProtocolError(f"{coro.name} ({coro}) does not answer {verb!r}")
        return coro

    def coro(self, coro_id: int) -> Coro | None:
        """The coroutine of this process with that id, while it runs."""
        return self._coros.get(coro_id)

    def link_to(self, to: CoroRef) -> Link:
        """The link to its process, made if there is none. PeerLost, WorkerLost, Unreachable where nobody is there."""
        gone = self._dead.get(to.birth) or self._presence.how_closed(to.birth)
        if gone is not None:
            raise type(gone)(str(gone))  # a new one each time: one that is raised again keeps every sender's frames
        link = self._peers.get(to.birth)
        return link if link is not None and link.opened else self._introducing.link(to)

    # -------------------------------------------------------------- requests

    async def request(
        self,
        to: CoroRef,
        verb: str,
        arguments: dict[str, Any],
        body: Sequence[Part] = (),
        timeout: float | None = None,
        lane: int | None = None,
    ) -> Answer:
        """Ask a coroutine (id 0: its process) anywhere; its answer, or the error it answered with.

        Raises Timeout after `timeout` seconds, PeerLost, WorkerLost, Unreachable, NoSuchCoro. It keeps its order with what else
        goes in its lane: by default, with what the coroutine that asks sends.
        """
        self.check_thread()
        number, future = self._requests.begin(to.birth)
        try:
            self._begin(number, to, verb, arguments, body, lane)
            if timeout is None:  # as most wait, and what a timeout costs is half of the rest
                return await future
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError as error:
            if isinstance(error, Timeout):  # the answer itself
                raise
            raise Timeout(f"{to} did not answer {verb} in {timeout:g} s") from None
        finally:
            self._requests.end(number)

    def _begin(
        self, number: int, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part], lane: int | None
    ) -> None:
        if to.birth == self.me.birth:
            answer = self._requests.answer
            self._answers.dispatch(Incoming(self.me, to.id, verb, arguments, body, lambda *a: answer(number, *a)), None)
        else:
            lane = lane_here() if lane is None else lane
            self._peers.post(self.link_to(to), Request(number, to.id, verb, arguments, body), lane)

    def tell(
        self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = (), lane: int | None = None
    ) -> None:
        """Ask at once, and wait for nothing: an error for an answer is said in the log.

        Raises PeerLost, WorkerLost, Unreachable where this process already knows that nobody is there.
        """
        number, future = self._requests.begin(to.birth)

        def answered(future: asyncio.Future[Answer]) -> None:
            if future.exception() is not None:
                log.info("< %s to %s: %s", verb, to, future.exception())

        future.add_done_callback(answered)
        try:
            self._begin(number, to, verb, arguments, body, lane)
        except BaseException:  # nothing was asked, and nothing is to be logged
            future.remove_done_callback(answered)
            self._requests.end(number)
            raise

    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        """Ask a linked process itself; the value of its answer."""
        link = self._peers.get(birth)
        peer = self.me if birth == self.me.birth else link.peer if link is not None else None
        if peer is None and link is None:
            raise Unreachable(f"no link to birth {birth:016x} any more")
        to = CoroRef(peer.node, peer.pid, birth, 0, peer.name) if peer is not None else CoroRef("", 0, birth, 0)
        return (await self.request(to, verb, arguments, timeout=timeout)).value

    def ask_later(self, to: CoroRef, verb: str, arguments: dict[str, Any]) -> None:
        """Ask without waiting for the answer: what should be known or tidied up there, even though nobody here waits."""

        async def tidy() -> None:
            with contextlib.suppress(DiscoroError):
                await self.request(to, verb, arguments, timeout=INQUIRE_TIMEOUT)

        self.spawn(tidy())

    def _request(self, link: Link, request: Request) -> None:
        assert link.peer is not None

        def answer(ok: bool, value: Any, body: Sequence[Part]) -> None:
            if not link.ended:
                self._peers.post(link, Reply(request.id, ok, value, body))

        incoming = Incoming(link.peer, request.coro, request.verb, request.arguments, request.body, answer)
        try:
            self._under_way.check(link.birth, request.verb)
            if isinstance(request.body, Unkept):
                raise TooLarge(f"{self.me.name}/{self.me.pid} cannot take {request.verb!r} with {request.body}")
        except (Overloaded, TooLarge) as error:
            incoming.fail(error)
            return
        self._answers.dispatch(incoming, link)
        if not incoming.answered:
            self._under_way.add(incoming)

    def _on_meet(self, incoming: Incoming) -> None:
        if self.finding is not None:
            self.finding.told(incoming.arguments.get("nodes"))
        incoming.reply(0)

    def _on_worker_lost(self, incoming: Incoming) -> None:
        """A node tells that one of its workers ended, and how."""
        birth, how = incoming.arguments.get("birth"), incoming.arguments.get("how")
        link = self._peers.get(birth) if isinstance(birth, int) else None
        its_own = link is None or link.peer is None or link.peer.node == incoming.peer.node
        if incoming.peer.role != "node" or not isinstance(birth, int) or not isinstance(how, str) or not its_own:
            raise ProtocolError("only a node tells of the end of its own workers")
        self.bury(birth, how)
        incoming.reply(0)

    def _on_locate(self, incoming: Incoming) -> Awaitable[None] | None:
        if incoming.peer.role == "worker":
            return self._locate_for_worker(incoming)
        incoming.reply(self._names.on_locate(incoming.arguments))
        return None

    async def _locate_for_worker(self, incoming: Incoming) -> None:
        """A worker is linked with its node only: the node asks the others for it."""
        incoming.reply(await self._names.locate_for_worker(incoming.arguments))

    # -------------------------------------------------------------- coroutines of this process

    def enter(self, coro: Coro) -> int:
        number = next(self._ids)
        self._coros[number] = coro
        return number

    def ref_of(self, coro_id: int) -> CoroRef:
        """The reference of the coroutine of this process with that id."""
        me = self.me
        return CoroRef(me.node, me.pid, me.birth, coro_id, me.name, me.addresses)

    def coros(self) -> list[Coro]:
        """The coroutines of this process that have not ended."""
        return list(self._coros.values())

    def _name_of_task(self, task: asyncio.Task[Any]) -> str:
        """For people: the coroutine whose task it is, or how asyncio calls it."""
        found = next((coro for coro in self.coros() if coro.runs_as(task)), None)
        return f"the coroutine {found.name} ({found})" if found is not None else f"the task {task.get_name()}"

    def runs(self, coro_id: int) -> bool:
        return coro_id in self._coros

    def leave(self, coro: Coro, outcome: Outcome) -> None:
        number = coro.id
        del self._coros[number]
        self._presence.unwatch(coro)
        parent = self._coros.get(coro.parent)
        if parent is not None:
            parent.child_ended(coro.ref)
        self._withdraw(coro.ref, self._names.forget(coro))
        self.drained(coro)  # who waits for room there, here or elsewhere, learns that nobody is there
        awaited = coro.observed or self._exits.is_awaited(number)
        if outcome.reason == EXCEPTION and not awaited:
            log.warning("! %s (%s) ended: %s", coro.name, coro, outcome.text, exc_info=outcome.error)
        if coro.service is not None:
            coro.service.on_end(outcome.text or outcome.reason)
        self._exits.ended(coro, outcome)

    def _withdraw(self, ref: CoroRef, names: Sequence[str]) -> None:
        """A coroutine of ours ended: its names are withdrawn ahead of its exit notice, for whoever gets that."""
        for node in self.nodes() if names and self.me.role != "node" else ():
            for name in names:
                with contextlib.suppress(DiscoroError):
                    to = CoroRef(node.node, node.pid, node.birth, 0, node.name)
                    self.tell(to, "unregister", {"name": name, "ref": ref.to_plain()}, lane=ref.id)

    def post_exit(self, link: Link, operation: Exit) -> None:
        """The notice goes the way of the coroutine's messages, so that it comes last, behind those that are held too."""
        if link.ended:
            return
        for to in self.sending.holding.defer(link.birth, operation.coro):
            self._peers.post(link, Notice(operation.coro, to, False), operation.coro)
        self._peers.post(link, operation, operation.coro)

    def watch_for(self, coro: Coro, peer: Greeting) -> None:
        """That process is told when the coroutine ends, without asking: it had it created."""
        link = self._peers.get(peer.birth)
        if link is not None:
            self._exits.watched_by(coro.id, link)

    def expect(self, ref: CoroRef) -> None:
        self._exits.expect(ref)

    def still_runs(self, ref: CoroRef) -> bool:
        """Whether it runs as far as this process knows, of a coroutine of its own or one that it had created elsewhere."""
        return self.runs(ref.id) if ref.birth == self.me.birth else self._exits.still_runs(ref)

    async def result(self, of: CoroRef, timeout: float | None) -> Any:
        return await self._exits.result(of, timeout)

    async def monitor(self, observer: Coro, observed: CoroRef) -> int:
        self.check_thread()
        return await self._exits.monitor(observer, observed)

    async def link(self, coro: Coro, other: CoroRef) -> int:
        """See Coro.link: each of both sides watches the other, or none."""
        linked = self._exits.follows(coro, other)
        try:
            return await self._link_both(coro, other)
        except BaseException:  # given up in the middle; what was linked before stays so
            if not linked and self.linked(other.birth):
                self.ask_later(other, "unfollow", {"leader": coro.ref.to_plain()})
            raise

    async def _link_both(self, coro: Coro, other: CoroRef) -> int:
        try:
            await self.request(other, "follow", {"leader": coro.ref.to_plain()})
        except NoSuchCoro:
            pass  # of whose end following it tells
        except (PeerLost, Unreachable) as error:  # if it is met again, it does not follow: half a link is none
            coro.stop(LINKED, f"linked with it, {other} was lost ({error})")
            await asyncio.sleep(0)  # it ends here, if it waits itself
            return 0
        await self._exits.follow(coro, other, LINKED)
        return 0

    async def unlink(self, coro: Coro, other: CoroRef) -> int:
        self._exits.unfollow(coro, other)
        with contextlib.suppress(NoSuchCoro, PeerLost, Unreachable):
            await self.request(other, "unfollow", {"leader": coro.ref.to_plain()})
        return 0

    async def adopt(self, parent: Coro, child: CoroRef) -> int:
        await self.request(child, "follow", {"leader": parent.ref.to_plain(), "parent": True})
        if child.birth != self.me.birth and not self._exits.still_runs(child):
            await self._exits.subscribe(child)  # children() tells of those that run
        return 0

    def follow_here(self, child: Coro, parent: Coro) -> None:
        self._exits.follow_here(child, parent.ref, PARENT)

    def note_subscription(self, coro_id: int, channel: CoroRef, holds: bool = True) -> None:
        """A coroutine of ours subscribes to that channel, or does no longer: the channel is told when it ends."""
        self._exits.note_subscription(coro_id, channel, holds)

    async def terminate(self, who: CoroRef) -> int:
        await self.request(who, "terminate", {})
        return 0

    async def resume(self, who: CoroRef, update: object) -> int:
        if who.birth == self.me.birth:
            self._no_service(who, "resume").resume_here(update)
        else:
            await self.request(who, "resume", {}, payload.pack(update))
        return 0

    async def throw(self, who: CoroRef, error: BaseException) -> int:
        if not isinstance(error, BaseException):
            raise TypeError(f"throw takes an exception, {error!r:.80} is none")
        if isinstance(error, StopIteration):
            raise TypeError("throw takes no StopIteration: Python takes it for the result of what is waited for")
        if who.birth == self.me.birth:
            self._no_service(who, "throw").throw_here(error)
        else:
            await self.request(who, "throw", {}, payload.pack_error(error))
        return 0

    async def hot_swap(self, who: CoroRef, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        check_coroutine(function)
        if who.birth == self.me.birth:
            return await asyncio.shield(self._no_service(who, "swap").swap_here(function, args, kwargs))
        return (await self.request(who, "swap", {}, payload.pack_code([function, args, kwargs]))).number

    async def is_alive(self, who: CoroRef) -> bool:
        try:
            return bool((await self.request(who, "alive", {})).value)
        except (PeerLost, Unreachable):
            return False

    async def join(self, timeout: float | None = None) -> int:
        """See `discoro.join`."""
        me = sender()
        try:
            async with asyncio.timeout(timeout):
                while others := [coro for coro in self.coros() if coro is not me and not coro.daemon]:
                    for coro in others:
                        await coro.joined()
        except TimeoutError:
            others = [coro for coro in others if not (coro.done or coro.daemon)]
            names = ", ".join(f"{coro.name} ({coro})" for coro in others[:10])
            raise Timeout(f"{len(others)} coroutines still ran after {timeout:g} s: {names}") from None
        return 0

    # -------------------------------------------------------------- names, and programs

    async def register(self, coro: Coro, name: str, shared: bool = False) -> int:
        self.check_thread()
        return await self._names.register(coro, name, shared)

    async def unregister(self, coro: Coro, name: str | None) -> int:
        return await self._names.unregister(coro, name)

    async def locate(self, name: str, location: str | None, timeout: float | None) -> CoroRef:
        return await self._names.locate(name, location, timeout)

    async def servers(self, name: str = "discoro_server", timeout: float | None = None) -> list[CoroRef]:
        """See `discoro.servers`."""
        return await self._names.servers(name, timeout)

    async def run(self, main: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function in this mesh to its end; gives its value, or raises what it raised."""
        coro = Coro.start(self, main, args, kwargs)
        try:
            return await coro.result_here()
        except CoroEnded:
            if coro.exited is not None:  # by itself: sys.exit means the program here, and in no other coroutine
                raise coro.exited from None
            raise
        except asyncio.CancelledError:
            coro.stop(TERMINATED)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_TIMEOUT / 2):
                    await coro.stopped()
            raise


def current_mesh() -> Mesh:
    """The mesh that this code runs in: of `discoro.run`, of `async with discoro.Mesh()`, of a worker. NoMesh outside of one."""
    host = host_here()
    assert isinstance(host, Mesh)
    return host
