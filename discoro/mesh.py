"""This process among others: its coroutines, messages to and from them, requests and replies, monitors.

The one place where everything meets: `Peers` gives operations of other processes and takes ours, `Names` finds, `Discovery`
tells of nodes, and every `Coro` of this process calls the mesh as its Host. What concerns a coroutine of this process takes the
same path as what concerns any other, and only the last step differs: a call here, an operation on a link there.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import secrets
import socket
import sys
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from discoro import coro as coroutines
from discoro import messages, payload
from discoro.coro import PEER_LOST, UNKNOWN, WORKER_LOST, Coro, CoroRef, ExitNotice, Handle, Outcome, current_host
from discoro.discovery import Advert, Discovery, Interfaces, interfaces
from discoro.errors import (
    ConfigError,
    DiscoroError,
    NoSuchCoro,
    Overloaded,
    PeerLost,
    ProtocolError,
    Timeout,
    Unreachable,
    WorkerLost,
    from_wire,
    to_wire,
)
from discoro.link import Link
from discoro.local import local_node
from discoro.messages import Exit, Greeting, Hold, Message, Part, Reply, Request
from discoro.names import Names
from discoro.peers import Peers
from discoro.security import Security
from discoro.transport import Transport

log = logging.getLogger("discoro.mesh")

VERSION = "0.1.0"
BASE_PORT = 24_200  # below 32768, where the ports begin that Linux hands out by itself
PORT_RANGE = 500  # workers listen on the base port + 1 … + PORT_RANGE: a restarted worker takes a fresh one
KEPT_OUTCOMES = 10_000  # ended coroutines whose outcome can still be asked for
KEPT_BYTES = 16 * messages.MIB  # and what their packed values may hold
HELD_MESSAGES = coroutines.MAILBOX_MESSAGES  # at the sender, for a receiver whose mailbox is full
KEPT_DEAD = 10_000  # processes known to be gone, so that references to them fail at once
INQUIRE_TIMEOUT = 3.0  # seconds
PEER_AGAIN_FIRST, PEER_AGAIN_MOST = 0.2, 5.0  # seconds between dials of an address that was given by hand
CLOSE_TIMEOUT = 1.5  # seconds in all that a closing mesh gives coroutines and unacknowledged frames

Key = tuple[int, int]  # birth and coro-id


@dataclass(frozen=True, kw_only=True)
class MeshOptions:
    """What a mesh can be told; every field is a keyword of `discoro.run` and `discoro.Mesh`.

    `peers`: addresses ("host" or "host:port") of processes to link with where multicast does not reach (DISCORO_PEERS, with
    commas, adds to them). `mdns`: look for nodes by mDNS. `ip_addr`: the addresses or host names to listen on. `local`: use a
    node of this machine only, started for the life of this mesh. Times are seconds.
    """

    name: str | None = None
    cluster: str = "default"
    peers: Sequence[str] = ()
    mdns: bool = True
    ip_addr: Sequence[str] = ()
    ext_ip_addr: str | None = None
    local: bool = False
    local_options: Sequence[str] = ()
    key_file: str | os.PathLike[str] | None = None
    secret: str | None = None
    certfile: str | os.PathLike[str] | None = None
    keyfile: str | os.PathLike[str] | None = None
    open: bool = False
    discover_timeout: float = 5.0
    connect_timeout: float = 5.0
    peer_timeout: float = 15.0


@dataclass(frozen=True, kw_only=True)
class Place:
    """What a process is on the mesh: set by discoro itself, not by users."""

    role: str = "client"
    node: str | None = None  # a worker carries its node's id
    ports: range | None = None  # None: any free port
    security: Security | None = None  # None: from the options
    beside: bool = True  # whether a node may run beside it, on this machine, at the default port


class Answer(NamedTuple):
    """What a request brought back."""

    value: Any
    body: Sequence[Part]


@dataclass(eq=False)
class Incoming:
    """A request that came in, to be answered once, with `reply` or `fail`."""

    peer: Greeting
    coro: int
    verb: str
    arguments: dict[str, Any]
    body: Sequence[Part]
    _answer: Callable[[bool, Any, Sequence[Part]], None]
    answered: bool = False
    at: float = field(default_factory=time.monotonic)

    def reply(self, value: Any = None, body: Sequence[Part] = ()) -> None:
        if not self.answered:
            self.answered = True
            self._answer(True, value, body)

    def fail(self, error: BaseException) -> None:
        """Answer with an error; the cause of one of ours travels along."""
        if self.answered:
            return
        self.answered = True
        if isinstance(error, DiscoroError):
            body = payload.pack_error(error.__cause__) if error.__cause__ is not None else ()
            self._answer(False, list(to_wire(error)), body)
        else:
            log.error("! a bug while answering %s", self.verb, exc_info=error)
            self._answer(False, ["RemoteError", f"a bug in discoro at {self.verb}: {error!r}"], ())


Handler = Callable[[Incoming], Awaitable[None] | None]


class Mesh:
    """This process as part of the mesh, for the length of `async with discoro.Mesh(...) as mesh`.

    Inside the block `discoro.Coro`, `discoro.servers` and `Computation` work as in a coroutine. Options are the fields of
    MeshOptions. Raises KeyFileError, ConfigError where it cannot start.
    """

    def __init__(self, **options: Any) -> None:
        self.options = MeshOptions(**options)
        self._place = Place()
        self._resources = contextlib.AsyncExitStack()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._coros: dict[int, Coro] = {}
        self._ids = itertools.count(1)
        self._requests: dict[int, tuple[asyncio.Future[Answer], int]] = {}  # and the birth that was asked
        self._request_ids = itertools.count(1)
        self._outcomes: OrderedDict[Key, Outcome] = OrderedDict()
        self._outcome_bytes = 0
        self._waiters: dict[Key, list[asyncio.Future[Outcome]]] = {}
        self._monitors: dict[Key, list[tuple[Coro, CoroRef]]] = {}
        self._subscribed: set[Key] = set()  # coroutines elsewhere whose end will be told to us
        self._watchers: dict[int, dict[Link, None]] = {}  # links to be told when a coroutine of ours ends
        self._held: dict[Key, deque[Sequence[Part]]] = {}  # messages for a full mailbox elsewhere
        self._room: dict[Key, list[asyncio.Future[None]]] = {}  # who waits for a mailbox to have room
        self._holding: dict[int, set[Link]] = {}  # links that were told that a mailbox of ours is full
        self._dead: OrderedDict[int, DiscoroError] = OrderedDict()  # births known to be gone, and how
        self._adverts: dict[str, Advert] = {}
        self._unusable: dict[str, str] = {}  # what was heard of and cannot be used, and why
        self._lost_messages = 0
        self.handlers: dict[str, Handler] = {
            "locate": self._on_locate,
            "register": lambda incoming: incoming.reply(self._names.on_register(incoming.peer, incoming.arguments)),
            "unregister": lambda incoming: incoming.reply(self._names.on_unregister(incoming.peer, incoming.arguments)),
            "meet": self._on_meet,
            "lost": self._on_process_lost,
        }
        self.on_peer_lost: list[Callable[[Greeting, str], None]] = []
        self.on_peer_opened: list[Callable[[Greeting], None]] = []

    @classmethod
    def placed(cls, place: Place, **options: Any) -> Mesh:
        """A mesh of a node or a worker."""
        mesh = cls(**options)
        mesh._place = place
        return mesh

    def __repr__(self) -> str:
        return f"<Mesh {self.me.name}/{self.me.pid} coroutines={len(self._coros)} {self._peers!r}>"

    # -------------------------------------------------------------- start and end

    async def __aenter__(self) -> Mesh:
        try:
            await self._start()
        except BaseException:
            await self._resources.aclose()
            raise
        self._token = current_host.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ValueError):  # left in another context than entered: asyncio.Runner and some notebooks do
            current_host.reset(self._token)
        await self.close()

    async def _start(self) -> None:
        options, place = self.options, self._place
        security = place.security or Security.from_options(
            key_file=options.key_file,
            secret=options.secret,
            certfile=options.certfile,
            keyfile=options.keyfile,
            open=options.open,
        )
        self.security = security
        self.interfaces = interfaces(["127.0.0.1"] if options.local else options.ip_addr)
        self._peers = Peers(
            self._greeting(), security, self, connect_timeout=options.connect_timeout, peer_timeout=options.peer_timeout
        )
        transport = Transport(security, self._peers)
        self._peers.wire = transport
        self._resources.push_async_callback(transport.close)
        self.addresses = self._listen(transport)
        self._peers.me = self._peers.me._replace(addresses=tuple(self.addresses[: messages.MAX_ADDRESSES]))
        self._names = Names(self, options.discover_timeout)
        await self._find(security)

    def _greeting(self) -> Greeting:
        birth = secrets.randbits(63) + 1
        node = self._place.node or f"{birth:016x}"
        name = self.options.name or socket.gethostname().partition(".")[0] or "host"
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        return Greeting(node, os.getpid(), birth, name, self._place.role, self.options.cluster, python, VERSION, ())

    def _listen(self, transport: Transport) -> list[str]:
        hosts = [address for _, address in self.interfaces.usable]
        loopback = [] if any(host in ("127.0.0.1", "::1") for host in hosts) else ["127.0.0.1"]
        bound = transport.listen([*hosts, *loopback], self._place.ports)
        if self.options.ext_ip_addr:  # behind a NAT that forwards the port: this is where others reach us
            port = bound[0].rpartition(":")[2]
            bound = [f"{self.options.ext_ip_addr}:{port}", *bound]
        return bound

    async def _find(self, security: Security) -> None:
        """Begin to look for others, in every way the options allow."""
        options, place = self.options, self._place
        if place.role == "worker":
            return
        if options.local:
            ready = await self._resources.enter_async_context(local_node(security.handed_down(), *options.local_options))
            self._spawn(self._keep_peer(ready["addresses"][0], quiet=False))
            return
        for address in [*options.peers, *filter(None, os.environ.get("DISCORO_PEERS", "").split(","))]:
            self._spawn(self._keep_peer(with_port(address.strip()), quiet=False))
        if place.role == "client" and place.beside:
            self._spawn(self._keep_peer(f"127.0.0.1:{BASE_PORT}", quiet=True))
        self.discovery = Discovery(self._found, self.interfaces if options.mdns else Interfaces((), ()))
        self._resources.push_async_callback(self.discovery.close)
        if options.mdns:
            await self.discovery.start()

    discovery: Discovery | None = None

    async def close(self) -> None:
        """Leave the mesh: coroutines are terminated, what was sent is given a moment to arrive, everybody is told."""
        coros = list(self._coros.values())
        for coro in coros:
            coro.stop(coroutines.TERMINATED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT / 2):
                for coro in coros:
                    await coro.stopped()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if hasattr(self, "_peers"):
            await self._drain(CLOSE_TIMEOUT / 2)
            self._peers.close(f"{self.me.name}/{self.me.pid} left the mesh")
        await self._resources.aclose()

    async def _drain(self, seconds: float) -> None:
        """Until everything sent is acknowledged, or the time is over."""
        until = time.monotonic() + seconds
        while not self._peers.idle() and time.monotonic() < until:
            await asyncio.sleep(0.005)

    def forget(self, work: Awaitable[Any]) -> None:
        """Have something done that nobody waits for; it is cancelled when the mesh closes."""
        self._spawn(work)

    def _spawn(self, work: Awaitable[Any]) -> None:
        task: asyncio.Future[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    @property
    def me(self) -> Greeting:
        return self._peers.me

    # -------------------------------------------------------------- finding others

    def _found(self, advert: Advert) -> None:
        """mDNS told of a node; what it says of itself only decides whether to dial it."""
        self._adverts[advert.node] = advert
        birth = int(advert.node, 16)
        if birth == self.me.birth or self._peers.get(birth):
            return
        why = self._unfit(advert)
        if why:
            self._not_usable(f"{advert.name} ({advert.addresses[0] if advert.addresses else 'no address'})", why)
        else:
            self.meet(birth, advert.addresses)

    def _unfit(self, advert: Advert) -> str:
        """Why a node that was heard of is not dialled; "" where it may be."""
        if advert.cluster != self.options.cluster:
            return f"belongs to cluster {advert.cluster!r}, this is {self.options.cluster!r}"
        if advert.protocol != messages.PROTOCOL_VERSION:
            return f"speaks protocol {advert.protocol}, this side {messages.PROTOCOL_VERSION}: use the same discoro on both"
        if advert.python != self.me.python:
            return f"runs Python {advert.python}, this side {self.me.python}: use the same minor version on both"
        if (advert.security == "open") != self.security.open:
            ours, theirs = ("open", "has a key") if self.security.open else ("has a key", "open")
            return f"is {theirs}, this side {ours}: start both with the same key, or both with --open"
        return ""

    def _not_usable(self, who: str, why: str) -> None:
        if self._unusable.get(who) != why and len(self._unusable) < 100:
            self._unusable[who] = why
            log.warning("! not usable: %s %s", who, why)

    def meet(self, birth: int, addresses: Sequence[str]) -> None:
        """Dial a process that somebody told us of."""
        with contextlib.suppress(Unreachable):
            self._peers.link(birth, list(addresses)[: messages.MAX_ADDRESSES])

    async def _keep_peer(self, address: str, quiet: bool) -> None:
        """Keep a link to whoever listens at an address that was given by hand, for as long as this mesh lives."""
        pause = PEER_AGAIN_FIRST
        while True:
            try:
                greeting = await self._peers.inquire(address, INQUIRE_TIMEOUT)
                link = self._peers.link(greeting.birth, [address, *greeting.addresses][: messages.MAX_ADDRESSES])
                pause = PEER_AGAIN_FIRST
                await self._gone(link)
            except (DiscoroError, TimeoutError) as error:
                if not quiet or not isinstance(error, Unreachable):
                    self._not_usable(address, str(error) or f"did not answer in {INQUIRE_TIMEOUT:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, PEER_AGAIN_MOST)

    async def _gone(self, link: Link) -> None:
        gone = asyncio.get_running_loop().create_future()

        def on_lost(peer: Greeting, reason: str) -> None:
            if peer.birth == link.birth and not gone.done():
                gone.set_result(None)

        self.on_peer_lost.append(on_lost)
        try:
            if not link.ended:
                await gone
        finally:
            self.on_peer_lost.remove(on_lost)

    def nodes(self) -> list[Greeting]:
        """The nodes (and processes named by hand that are no workers) that this process is linked with."""
        return [link.peer for link in self._peers if link.peer is not None and link.peer.role != "worker"]

    def look_again(self) -> None:
        """Somebody waits for nodes: ask the network again."""
        if self.discovery is not None and self.options.mdns:
            self.discovery.refresh()

    def why_no_nodes(self) -> str:
        """What was tried, what was heard, what to type: the text of NoNodes."""
        lines = [f'no usable node in {self.options.discover_timeout:g} s (cluster "{self.options.cluster}", {self.security.origin})']
        if self.options.mdns and self.discovery is not None:
            lines += [f"  {line}" for line in self.discovery.heard()]
        else:
            lines.append("  mDNS is off")
        lines += [f"  {who}: {why}" for who, why in self._unusable.items()]
        lines += [
            "  try  discoro-node                     on this or another machine with the same key",
            "       --peer HOST or DISCORO_PEERS=HOST  where multicast does not reach",
            "       discoro.run(main, local=True)    to use only this machine",
        ]
        return "\n".join(lines)

    # -------------------------------------------------------------- what Peers tells

    def opened(self, link: Link) -> None:
        peer = link.peer
        assert peer is not None
        log.info("= linked with %s %s/%d", peer.role, peer.name, peer.pid)
        self._dead.pop(peer.birth, None)
        if peer.role != "worker":
            self._spawn(self._introduce(peer))
        for tell in self.on_peer_opened:
            tell(peer)

    async def _introduce(self, peer: Greeting) -> None:
        """Tell a new node our names; as a node, tell it of the nodes we know, and those of it."""
        try:
            await self._names.node_linked(peer.birth)
            if self.me.role == "node":
                others = [node for node in self.nodes() if node.role == "node" and node.birth != peer.birth]
                await self.ask(peer.birth, "meet", {"nodes": [_whereabouts(node) for node in others]}, INQUIRE_TIMEOUT)
                if peer.role == "node":
                    for other in self.nodes():
                        await self.ask(other.birth, "meet", {"nodes": [_whereabouts(peer)]}, INQUIRE_TIMEOUT)
        except DiscoroError as error:
            log.info("< %s: %s", peer.name, error)

    def _on_meet(self, incoming: Incoming) -> None:
        for birth, addresses in _checked_whereabouts(incoming.arguments.get("nodes")):
            if birth != self.me.birth:
                self.meet(birth, addresses)
        incoming.reply(0)

    def lost(self, link: Link) -> None:
        """A link ended: everybody who waits for that process is told, once, with the reason."""
        who = f"{link.peer.name}/{link.peer.pid}" if link.peer else f"birth {link.birth:016x}"
        error = self._dead.get(link.birth) or self._loss(link, f"{who}: {link.lost_because}")
        text = str(error)
        log.log(logging.INFO if link.state.value == "closed" else logging.WARNING, "= %s", text)
        if link.outbox.unacknowledged and link.opened:
            self._lost_messages += link.outbox.unacknowledged
            log.warning("! %d operations to %s were not acknowledged", link.outbox.unacknowledged, who)
        if link.certain:
            self._bury(link.birth, error)
        if not link.opened:
            self._not_usable(who, link.lost_because)
        self._fail_requests(link.birth, error)
        outcome = Outcome(WORKER_LOST if isinstance(error, WorkerLost) else PEER_LOST, error=error, text=text)
        for key in [key for key in {*self._waiters, *self._monitors, *self._subscribed} if key[0] == link.birth]:
            self._settle(key, outcome, keep=False)
        for key in [key for key in {*self._held, *self._room} if key[0] == link.birth]:
            self._release(key, error)
        for watchers in self._watchers.values():
            watchers.pop(link, None)
        for told in self._holding.values():
            told.discard(link)
        self._names.peer_lost(link.birth)
        if link.peer is not None:
            for tell in list(self.on_peer_lost):
                tell(link.peer, text)

    @staticmethod
    def _loss(link: Link, text: str) -> DiscoroError:
        return PeerLost(text) if link.opened else Unreachable(text)

    def _fail_requests(self, birth: int, error: DiscoroError) -> None:
        for request, (future, asked) in list(self._requests.items()):
            if asked == birth:
                del self._requests[request]
                if not future.done():
                    future.set_exception(error)

    def _bury(self, birth: int, how: DiscoroError) -> None:
        self._dead[birth] = how
        if len(self._dead) > KEPT_DEAD:
            self._dead.popitem(last=False)

    def _on_process_lost(self, incoming: Incoming) -> None:
        """A node tells that one of its workers ended, and how."""
        birth, how = incoming.arguments.get("birth"), incoming.arguments.get("how")
        if incoming.peer.role != "node" or not isinstance(birth, int) or not isinstance(how, str):
            raise ProtocolError("only a node tells of the end of its workers")
        self.bury(birth, how)
        incoming.reply(0)

    def bury(self, birth: int, how: str) -> None:
        """That process is certainly gone; `how` is what its node saw."""
        self._bury(birth, WorkerLost(how))
        self._peers.lose(birth, how)

    def tell_lost(self, birth: int, how: str) -> None:
        """As a node: everybody linked with us learns that one of our workers ended, and how."""
        self.bury(birth, how)
        for link in self._peers:
            if link.birth != birth and not link.ended:
                self._spawn(self._tell(link.birth, "lost", {"birth": birth, "how": how}))

    async def _tell(self, birth: int, verb: str, arguments: dict[str, Any]) -> None:
        with contextlib.suppress(DiscoroError):
            await self.ask(birth, verb, arguments, INQUIRE_TIMEOUT)

    def operation(self, link: Link, operation: messages.Operation) -> None:
        """Something came in, in order."""
        match operation:
            case Message(coro_id, body):
                self._message(link, coro_id, body)
            case Request():
                self._request(link, operation)
            case Reply(request, ok, value, body):
                self._reply(request, ok, value, body)
            case Exit(coro_id, reason, text, body):
                self._settle((link.birth, coro_id), Outcome(reason, text=text, body=body))
            case Hold(coro_id, held):
                self._hold(link, coro_id, held)

    # -------------------------------------------------------------- messages

    def send(self, to: CoroRef, message: object) -> None:
        if to.birth == self.me.birth:
            self._here(to).accept(message)
            return
        self._post_message(to, payload.pack(message))

    async def deliver(self, to: CoroRef, message: object, timeout: float | None) -> int:
        try:
            async with asyncio.timeout(timeout):
                await self._wait_for_room(to)
                if to.birth == self.me.birth:
                    self._here(to).accept(message)
                    return 1
                answer = await self.request(to, "deliver", {}, payload.pack(message))
                return int(answer.value)
        except TimeoutError:
            raise Timeout(f"the message was not in the mailbox of {to} within {timeout:g} s") from None

    async def _wait_for_room(self, to: CoroRef) -> None:
        key = (to.birth, to.id)
        while key in self._held or (to.birth == self.me.birth and self._here(to).mailbox.full):
            if to.birth == self.me.birth:
                self._here(to).held = True
            room = asyncio.get_running_loop().create_future()
            self._room.setdefault(key, []).append(room)
            await room

    def _here(self, to: CoroRef) -> Coro:
        coro = self._coros.get(to.id)
        if coro is None:
            raise NoSuchCoro(f"{to} has ended, or never was")
        return coro

    def _post_message(self, to: CoroRef, body: Sequence[Part]) -> None:
        held = self._held.get((to.birth, to.id))
        if held is not None:
            if len(held) >= HELD_MESSAGES:
                raise Overloaded(f"the mailbox of {to} is full, and {len(held)} messages wait here for it: use deliver")
            held.append(body)
            return
        link = self._link(to)
        if not link.has_room():
            raise Overloaded(f"{link.outbox!r} wait to be sent to {to}: use deliver, or wait")
        self._peers.post(link, Message(to.id, body), self._lane())

    @staticmethod
    def _lane() -> int | None:
        """What one coroutine sends keeps its order, its exit notice last."""
        sender = coroutines.sender()
        return sender.ref.id if sender is not None else 0

    def _link(self, to: CoroRef) -> Link:
        gone = self._dead.get(to.birth)
        if gone is not None:
            raise gone
        return self._peers.link(to.birth, to.addresses)

    def _message(self, link: Link, coro_id: int, body: Sequence[Part]) -> None:
        coro = self._coros.get(coro_id)
        if coro is None:
            self._lost_messages += 1
            log.debug("! a message for coroutine %d, which has ended", coro_id)
            return
        coro.accept(body, packed=True)
        if coro.mailbox.full:
            self._announce_full(coro, link)

    def _announce_full(self, coro: Coro, link: Link) -> None:
        told = self._holding.setdefault(coro.ref.id, set())
        coro.held = True
        if link not in told:
            told.add(link)
            self._peers.post(link, Hold(coro.ref.id, True))

    def drained(self, coro: Coro) -> None:
        """A mailbox that was full is half empty again."""
        coro.held = False
        for link in self._holding.pop(coro.ref.id, ()):
            if not link.ended:
                self._peers.post(link, Hold(coro.ref.id, False))
        self._release((self.me.birth, coro.ref.id), None)

    def _hold(self, link: Link, coro_id: int, held: bool) -> None:
        key = (link.birth, coro_id)
        if held:
            self._held.setdefault(key, deque())
            return
        for body in self._held.get(key, ()):
            self._peers.post(link, Message(coro_id, body), 0)
        self._release(key, None)

    def _release(self, key: Key, error: DiscoroError | None) -> None:
        held = self._held.pop(key, ())
        if error is not None and held:
            self._lost_messages += len(held)
            log.warning("! %d messages that waited for room were not sent: %s", len(held), error)
        for room in self._room.pop(key, ()):
            if not room.done():
                room.set_exception(error) if error else room.set_result(None)

    # -------------------------------------------------------------- requests and replies

    async def request(
        self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = (), timeout: float | None = None
    ) -> Answer:
        """Ask a coroutine (id 0: its process) anywhere; its answer, or the error it answered with.

        Raises Timeout after `timeout` seconds, PeerLost, WorkerLost, Unreachable, NoSuchCoro.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        request = next(self._request_ids)
        self._requests[request] = future, to.birth
        try:
            if to.birth == self.me.birth:
                self._dispatch(Incoming(self.me, to.id, verb, arguments, body, self._answerer(request)))
            else:
                self._peers.post(self._link(to), Request(request, to.id, verb, arguments, body), self._lane())
            async with asyncio.timeout(timeout):
                return await future
        except TimeoutError:
            raise Timeout(f"{to} did not answer {verb} in {timeout:g} s") from None
        finally:
            self._requests.pop(request, None)

    def forget_request(self, to: CoroRef, verb: str, arguments: dict[str, Any]) -> None:
        """Ask without waiting for the answer: what must be tidied up there even though nobody waits any more."""

        async def tidy() -> None:
            with contextlib.suppress(DiscoroError):
                await self.request(to, verb, arguments, timeout=INQUIRE_TIMEOUT)

        self._spawn(tidy())

    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        """Ask a linked process itself; the value of its answer."""
        link = self._peers.get(birth)
        addresses = link.addresses if link is not None else ()
        answer = await self.request(CoroRef("", 0, birth, 0, "", addresses), verb, arguments, timeout=timeout)
        return answer.value

    def _answerer(self, request: int) -> Callable[[bool, Any, Sequence[Part]], None]:
        return lambda ok, value, body: self._reply(request, ok, value, body)

    def _reply(self, request: int, ok: bool, value: Any, body: Sequence[Part]) -> None:
        future, _ = self._requests.pop(request, (None, 0))
        if future is None or future.done():
            return
        if ok:
            future.set_result(Answer(value, body))
            return
        error = from_wire(*value) if _is_error(value) else ProtocolError(f"an answer that is no error: {value!r:.80}")
        if body:
            error.__cause__ = payload.unpack_error(body)
        future.set_exception(error)

    def _request(self, link: Link, request: Request) -> None:
        assert link.peer is not None

        def answer(ok: bool, value: Any, body: Sequence[Part]) -> None:
            if not link.ended:
                self._peers.post(link, Reply(request.id, ok, value, body))

        self._dispatch(Incoming(link.peer, request.coro, request.verb, request.arguments, request.body, answer))

    def _dispatch(self, incoming: Incoming) -> None:
        """Whoever is asked answers, now or later; whatever goes wrong is the answer."""
        try:
            if incoming.coro:
                self._ask_coro(incoming, incoming.coro)
                return
            handler = self.handlers.get(incoming.verb)
            if handler is None:
                raise ProtocolError(f"{self.me.name} ({self.me.role}) does not know the verb {incoming.verb!r}")
            later = handler(incoming)
            if later is not None:
                self._spawn(answering(incoming, later))
        except Exception as error:  # the asker must be answered, whatever it is; fail() logs what is no error of ours
            incoming.fail(error)

    def _ask_coro(self, incoming: Incoming, coro_id: int) -> None:
        coro = self._coros.get(coro_id)
        match incoming.verb:
            case "watch":
                self._on_watch(incoming, coro_id)
            case "alive":
                incoming.reply(coro is not None)
            case "terminate":
                if coro is not None:
                    coro.stop(coroutines.TERMINATED)
                incoming.reply(0)
            case _ if coro is None:
                raise NoSuchCoro(f"{self.me.name}/{self.me.pid}/{coro_id} has ended, or never was")
            case "deliver":
                coro.accept(incoming.body, packed=True)
                incoming.reply(1)
            case verb if verb in coro.serves:
                coro.accept(incoming)
            case verb:
                raise ProtocolError(f"{coro.name} ({coro}) does not answer {verb!r}: it is no discoro_server")

    def _on_locate(self, incoming: Incoming) -> Awaitable[None] | None:
        if incoming.peer.role != "worker":
            incoming.reply(self._names.on_locate(incoming.arguments))
            return None
        return self._locate_for_worker(incoming)

    async def _locate_for_worker(self, incoming: Incoming) -> None:
        """A worker is linked with its node only: the node asks the others for it."""
        found = list(self._names.on_locate(incoming.arguments))
        for node in self.nodes():
            with contextlib.suppress(DiscoroError):
                found += await self.ask(node.birth, "locate", incoming.arguments, INQUIRE_TIMEOUT)
        incoming.reply(found)

    # -------------------------------------------------------------- how coroutines end

    def enter(self, coro: Coro) -> CoroRef:
        number = next(self._ids)
        self._coros[number] = coro
        return self.ref_of(number)

    def ref_of(self, coro_id: int) -> CoroRef:
        """The reference of the coroutine of this process with that id."""
        me = self.me
        return CoroRef(me.node, me.pid, me.birth, coro_id, me.name, me.addresses)

    def leave(self, coro: Coro, outcome: Outcome) -> None:
        number = coro.ref.id
        del self._coros[number]
        self._names.forget(coro)
        self._holding.pop(number, None)
        self._release((self.me.birth, number), NoSuchCoro(f"{coro} has ended"))
        watchers = self._watchers.pop(number, {})
        if watchers:
            body, reason, text = outcome.packed()
            outcome = Outcome(reason, text=text, body=body)
            for link in watchers:
                self._peers.post(link, Exit(number, reason, text, body), number)
        elif outcome.reason == coroutines.EXCEPTION and not self._is_awaited(coro):
            log.warning("! %s (%s) ended: %s", coro.name, coro, outcome.text, exc_info=outcome.error)
        self._settle((self.me.birth, number), outcome)

    def _is_awaited(self, coro: Coro) -> bool:
        key = (self.me.birth, coro.ref.id)
        return key in self._waiters or key in self._monitors

    def watch_for(self, coro: Coro, peer: Greeting) -> None:
        """That process is told when the coroutine ends, without asking: it had it created."""
        link = self._peers.get(peer.birth)
        if link is not None:
            self._watchers.setdefault(coro.ref.id, {})[link] = None

    def expect(self, ref: CoroRef) -> None:
        """The end of that coroutine elsewhere will be told to us without asking: we had it created."""
        if ref.birth != self.me.birth and (ref.birth, ref.id) not in self._outcomes:
            self._subscribed.add((ref.birth, ref.id))

    def still_runs(self, ref: CoroRef) -> bool:
        """Whether, as far as this process was told, a coroutine that it had created has not ended."""
        return (ref.birth, ref.id) in self._subscribed

    async def result(self, of: CoroRef, timeout: float | None) -> Any:
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        key = (of.birth, of.id)
        self._waiters.setdefault(key, []).append(waiter)
        try:
            async with asyncio.timeout(timeout):
                await self._subscribe(of)
                outcome = await waiter
        except TimeoutError:
            raise Timeout(f"{of} had not ended after {timeout:g} s") from None
        finally:
            self._discard(self._waiters, key, waiter)
        receiver = coroutines.sender()
        return outcome.unpacked(receiver.namespace if receiver else None).get()

    async def monitor(self, observer: Coro, observed: CoroRef) -> int:
        key = (observed.birth, observed.id)
        self._monitors.setdefault(key, []).append((observer, observed))
        try:
            await self._subscribe(observed)
        except BaseException:
            self._discard(self._monitors, key, (observer, observed))
            raise
        return 0

    @staticmethod
    def _discard(table: dict[Key, list[Any]], key: Key, entry: Any) -> None:
        entries = table.get(key, [])
        if entry in entries:
            entries.remove(entry)
        if not entries:
            table.pop(key, None)

    async def _subscribe(self, of: CoroRef) -> None:
        """See to it that the end of that coroutine reaches `_settle`, at once where it has ended."""
        key = (of.birth, of.id)
        known = self._outcomes.get(key)
        if known is not None:
            self._settle(key, known, keep=False)
        elif of.birth == self.me.birth:
            if of.id not in self._coros:
                self._settle(key, _unknown(of), keep=False)
        elif key not in self._subscribed:
            await self._ask_watch(of, key)

    async def _ask_watch(self, of: CoroRef, key: Key) -> None:
        try:
            answer = await self.request(of, "watch", {})
        except (PeerLost, Unreachable, NoSuchCoro) as error:
            reason = WORKER_LOST if isinstance(error, WorkerLost) else PEER_LOST
            self._settle(key, Outcome(reason, error=error, text=str(error)), keep=False)
            return
        match answer.value:
            case "running":
                if key not in self._outcomes:  # its end may have overtaken this task's turn
                    self._subscribed.add(key)
            case [str(reason), str(text)] if reason != UNKNOWN:
                self._settle(key, Outcome(reason, text=text, body=answer.body))
            case _:
                self._settle(key, _unknown(of), keep=False)

    def _on_watch(self, incoming: Incoming, coro_id: int) -> None:
        coro, outcome = self._coros.get(coro_id), self._outcomes.get((self.me.birth, coro_id))
        if coro is not None:
            self.watch_for(coro, incoming.peer)
            incoming.reply("running")
        elif outcome is not None:
            body, reason, text = outcome.packed()
            incoming.reply([reason, text[: messages.MAX_TEXT]], body)
        else:
            incoming.reply([UNKNOWN, ""])

    def _settle(self, key: Key, outcome: Outcome, keep: bool = True) -> None:
        """A coroutine, here or elsewhere, has ended: everybody who waits or monitors is told, once."""
        self._subscribed.discard(key)
        if keep:
            self._keep(key, outcome)
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(outcome)
        for observer, observed in self._monitors.pop(key, ()):
            if not observer.done:
                observer.notify(observed, outcome)

    def _keep(self, key: Key, outcome: Outcome) -> None:
        if key in self._outcomes:
            return
        self._outcomes[key] = outcome
        self._outcome_bytes += outcome.size
        while len(self._outcomes) > KEPT_OUTCOMES or (self._outcome_bytes > KEPT_BYTES and len(self._outcomes) > 1):
            _, oldest = self._outcomes.popitem(last=False)
            self._outcome_bytes -= oldest.size

    async def terminate(self, who: CoroRef) -> int:
        await self.request(who, "terminate", {})
        return 0

    async def is_alive(self, who: CoroRef) -> bool:
        try:
            return bool((await self.request(who, "alive", {})).value)
        except (PeerLost, Unreachable, NoSuchCoro):
            return False

    # -------------------------------------------------------------- names, and programs

    async def register(self, coro: Coro, name: str) -> int:
        return await self._names.register(coro, name)

    async def register_shared(self, coro: Coro, name: str) -> int:
        """As `register`, for the discoro_servers of a node's slots, which share a name."""
        return await self._names.register(coro, name, shared=True)

    async def unregister(self, coro: Coro, name: str | None) -> int:
        return await self._names.unregister(coro, name)

    async def locate(self, name: str, location: str | None, timeout: float | None) -> CoroRef:
        return await self._names.locate(name, location, timeout)

    async def servers(self, name: str = "discoro_server", timeout: float | None = None) -> list[CoroRef]:
        """See `discoro.servers`."""
        return await self._names.servers(name, timeout)

    async def run(self, main: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a coroutine function in this mesh to its end; gives its value, or raises what it raised."""
        main_coro = Coro.start(self, main, args, kwargs)
        try:
            return await main_coro.result_here()
        except asyncio.CancelledError:
            main_coro.stop(coroutines.TERMINATED)
            await main_coro.stopped()
            raise


async def answering(incoming: Incoming, work: Awaitable[None]) -> None:
    """Do what answers a request; whatever goes wrong is the answer."""
    try:
        await work
    except Exception as error:  # the asker must be answered, whatever it is; fail() logs what is no error of ours
        incoming.fail(error)
    except asyncio.CancelledError:
        incoming.fail(PeerLost("the process that was asked is leaving"))
        raise


def with_port(address: str) -> str:
    """The address with the default port where it names none; ConfigError for what is none."""
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]") or (":" in host and not host.endswith("]")):
        return f"[{address}]:{BASE_PORT}" if ":" in address and not address.endswith("]") else f"{address}:{BASE_PORT}"
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not an address: write host, or host:port")
    return address


def _unknown(of: CoroRef) -> Outcome:
    return Outcome(UNKNOWN, error=NoSuchCoro(f"{of} has ended and is no longer known, or never was"))


def _is_error(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(each, str) for each in value)


def _whereabouts(node: Greeting) -> list[Any]:
    return [node.birth, list(node.addresses)]


def _checked_whereabouts(nodes: Any) -> list[tuple[int, list[str]]]:
    if not isinstance(nodes, list) or len(nodes) > 1000:
        raise ProtocolError("meet without a list of nodes")
    checked = []
    for each in nodes:
        match each:
            case [int(birth), list(addresses)] if all(isinstance(a, str) and len(a) < 256 for a in addresses):
                checked.append((birth, addresses))
            case _:
                raise ProtocolError("meet with something that is no node")
    return checked
