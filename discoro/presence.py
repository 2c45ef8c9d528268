"""Which other processes are there: listed, told of as they come and go, met by address, parted from.

The mesh tells `Presence` of every link that opens or ends; it tells those who watch. What was heard of other processes comes
through here too, so that whoever is to be left alone is not dialled. It opens and ends links through `Peers`, asks addresses
through `Finding`, and never decides that somebody is gone: that is the link's to say.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from discoro.connections import ANOTHER_KEY
from discoro.coro import Coro
from discoro.errors import ConfigError, DiscoroError, NoSuchCoro, PeerLost, Timeout, Unreachable
from discoro.finding import INQUIRE_TIMEOUT, Finding, with_port
from discoro.link import Link, State
from discoro.mailbox import MAILBOX_MESSAGES
from discoro.messages import MAX_ADDRESSES, Greeting
from discoro.peers import Peers
from discoro.references import Handle

log = logging.getLogger("discoro.presence")

MAX_WAITING = 2 * MAILBOX_MESSAGES  # messages in the mailbox of who watches: it has long ceased to receive
KEPT_CLOSED = 10_000  # processes that were closed, and as many that were heard of and are not met
CLOSE_WAIT = 0.75  # seconds until what was sent to a peer is acknowledged, before its link is ended
LOOK_AGAIN = 1.0  # seconds between two looks at the network while somebody waits for a peer
_ROLES = ("node", "client", "worker")


@dataclass(frozen=True, slots=True)
class Peer:
    """Another process of the mesh, as it described itself when the two were linked.

    `role` is "node", "client" or "worker"; `birth` is what makes it this process and no other: two are equal where that is.
    `addresses` are where it listens, host:port; `python` and `software` the versions of Python and discoro that it runs. `str`
    is for people: ada/4711 (node).
    """

    name: str = field(compare=False)
    role: str = field(compare=False)
    node: str = field(compare=False)
    pid: int = field(compare=False)
    birth: int
    addresses: tuple[str, ...] = field(compare=False)
    python: str = field(compare=False)
    software: str = field(compare=False)

    @classmethod
    def of(cls, it: Greeting) -> Peer:
        """The process that greets so."""
        return cls(it.name, it.role, it.node, it.pid, it.birth, it.addresses, it.python, it.software)

    @property
    def location(self) -> str:
        """The id of its node, which `Coro.locate` takes as location; for a client, the id of its own process."""
        return self.node

    def __str__(self) -> str:
        return f"{self.name}/{self.pid} ({self.role})"


@dataclass(frozen=True, slots=True)
class PeerStatus:
    """What a coroutine that watches receives: a peer is linked now (`online`), or no more, and then `reason` says why."""

    peer: Peer
    online: bool
    reason: str = ""


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    def meet(self, birth: int, addresses: Sequence[str]) -> Link | None: ...
    def coro(self, coro_id: int) -> Coro | None: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...
    def look_again(self) -> None: ...


class Presence:
    """The other processes that one process knows, and who is told of them."""

    def __init__(self, around: Around, peers: Peers, finding: Finding) -> None:
        self._around = around
        self._peers = peers
        self._finding = finding
        self._online: dict[int, Link] = {}  # by birth
        self._watchers: dict[int, Coro] = {}  # by the id of the coroutine
        self._awaited: dict[int, list[asyncio.Future[Peer]]] = {}  # who waits for a link with that birth
        self._kept: dict[str, asyncio.Future[None]] = {}  # what keeps a link to that address
        self._closed: OrderedDict[int, str] = OrderedDict()  # births that were closed here, and how that is told
        self._passed_over: OrderedDict[int, Sequence[str]] = OrderedDict()  # births heard of and not met; their addresses
        self._changed = asyncio.Event()  # set, and replaced, when somebody came or may be met again

    def __repr__(self) -> str:
        return f"<Presence online={len(self._online)} watchers={len(self._watchers)} closed={len(self._closed)}>"

    # -------------------------------------------------------------- what the mesh tells

    def opened(self, link: Link) -> None:
        """A link stands: that process is there."""
        peer = _peer(link)
        self._online[peer.birth] = link
        self._closed.pop(peer.birth, None)  # it came by itself
        self._passed_over.pop(peer.birth, None)
        for waiting in self._awaited.pop(peer.birth, ()):
            if not waiting.done():
                waiting.set_result(peer)
        self._tell(PeerStatus(peer, True))
        self._wake()

    def ended(self, link: Link) -> None:
        """A link ended, or came to nothing."""
        for waiting in self._awaited.pop(link.birth, ()):
            if not waiting.done():
                waiting.set_exception(Unreachable(link.lost_because))
        if self._online.get(link.birth) is link:
            del self._online[link.birth]
            self._tell(PeerStatus(_peer(link), False, link.lost_because))

    def heard_of(self, birth: int, addresses: Sequence[str]) -> None:
        """Somebody told of that process: it is met, unless it is to be left alone."""
        if self.ignore_peers or birth in self._closed:
            _keep(self._passed_over, birth, addresses)
        else:
            self._around.meet(birth, addresses)

    async def wanted(self, birth: int) -> None:
        """Until that process may be dialled; at once unless it was closed here."""
        while birth in self._closed:
            await self._changed.wait()

    def how_closed(self, birth: int) -> PeerLost | None:
        """What becomes of whoever reaches for a process that was closed here."""
        how = self._closed.get(birth)
        return PeerLost(f"{how}; mesh.peer(address) links with it again") if how is not None else None

    # -------------------------------------------------------------- who is there

    def peers(self) -> list[Peer]:
        return [_peer(link) for link in list(self._online.values())]

    async def locate_peer(self, name: str, timeout: float | None) -> Peer:
        """See Mesh.locate_peer."""
        try:
            async with asyncio.timeout(timeout):
                while (found := self._named(name)) is None:
                    self._around.look_again()
                    await self._change(LOOK_AGAIN)
                return found
        except TimeoutError:
            linked = ", ".join(map(str, self.peers())) or "nobody"
            raise Timeout(f"no peer of the name {name!r} in {timeout:g} s; linked with {linked}") from None

    def _named(self, name: str) -> Peer | None:
        found = [peer for peer in self.peers() if peer.name == name]
        return min(found, key=lambda peer: _ROLES.index(peer.role), default=None)

    async def _change(self, seconds: float) -> None:
        """For some time, or until somebody came."""
        try:
            async with asyncio.timeout(seconds):
                await self._changed.wait()
        except TimeoutError:
            pass

    def _wake(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -------------------------------------------------------------- watching

    def watch(self, who: Handle | None, flag: bool) -> int:
        """See Mesh.peer_status."""
        if who is None:
            self._watchers.clear()
            return 0
        coro = self._of_this_process(who)
        if not flag:
            self._watchers.pop(who.ref.id, None)
        elif coro is None:
            raise NoSuchCoro(f"{who.ref} has ended: it could receive nothing")
        elif who.ref.id not in self._watchers:
            self._watchers[who.ref.id] = coro
            for peer in self.peers():
                self._say(coro, PeerStatus(peer, True))
        return 0

    def unwatch(self, coro: Coro) -> None:
        """That coroutine is told no more: it ended."""
        self._watchers.pop(coro.id, None)

    def _of_this_process(self, who: Handle) -> Coro | None:
        if not isinstance(who, Handle):
            raise TypeError(f"peer_status takes a coroutine, which receives PeerStatus; {who!r:.80} is none")
        ref = who.ref
        if ref.birth != self._around.me.birth:
            raise ConfigError(f"{ref} is of another process: have a coroutine of this one watch, and send on what it receives")
        coro = self._around.coro(ref.id)
        if coro is not None and coro.service is not None:
            raise ConfigError(f"{coro.name} ({ref}) receives no messages: it is a discoro_server, channel or queue")
        return coro

    def _tell(self, status: PeerStatus) -> None:
        for coro in list(self._watchers.values()):
            self._say(coro, status)

    def _say(self, coro: Coro, status: PeerStatus) -> None:
        """Past a full mailbox too, as an exit notice; but not for ever into one that nobody empties."""
        if len(coro.mailbox) < MAX_WAITING:
            coro.mailbox.put(status)
            return
        self.unwatch(coro)
        log.warning("! %s (%s) is told of peers no more: %d messages wait in its mailbox", coro.name, coro, len(coro.mailbox))

    # -------------------------------------------------------------- meeting and parting

    async def peer(self, address: str, timeout: float | None) -> Peer:
        """See Mesh.peer."""
        if not isinstance(address, str):
            raise ConfigError(f"{address!r:.80} is not an address: write host, or host:port")
        address = with_port(address)
        tried: list[Link] = []
        try:
            async with asyncio.timeout(timeout):
                peer = await self._meet(address, tried)
        except TimeoutError:
            what = f": {tried[0].what_was_tried}" if tried and tried[0].what_was_tried else ""
            raise Timeout(f"no link with {address} in {timeout:g} s{what}") from None
        self._keep_link(address)
        return peer

    async def _meet(self, address: str, tried: list[Link]) -> Peer:
        greeting, answered = await self._who_is_at(address)
        addresses = list(dict.fromkeys([answered, *greeting.addresses]))[:MAX_ADDRESSES]
        link = self._peers.link(greeting.birth, addresses)
        self._peers.learn(link, addresses)
        tried.append(link)
        try:
            return await self._linked(link)
        except Unreachable as error:
            raise Unreachable(f"{address}: {error}") from None

    async def _who_is_at(self, address: str) -> tuple[Greeting, str]:
        """Who answers there, and which of the addresses that it stands for; errors say the address."""
        try:
            return await self._finding.inquire(address)
        except TimeoutError:  # of the inquiry: the caller's own arrives here as a cancellation
            raise Unreachable(f"{address}: did not answer in {INQUIRE_TIMEOUT:g} s") from None
        except DiscoroError as error:
            step = f". {self._finding.key_step}" if ANOTHER_KEY in str(error) else ""
            raise type(error)(f"{address}: {error}{step}") from None

    async def _linked(self, link: Link) -> Peer:
        """Once that link stands. Unreachable where it comes to nothing."""
        if link.birth in self._online:
            return _peer(self._online[link.birth])
        if link.ended:
            raise Unreachable(link.lost_because)
        waiting: asyncio.Future[Peer] = asyncio.get_running_loop().create_future()
        self._awaited.setdefault(link.birth, []).append(waiting)
        try:
            return await waiting
        finally:
            others = self._awaited.get(link.birth, [])
            if waiting in others:
                others.remove(waiting)
            if not others:
                self._awaited.pop(link.birth, None)

    def _keep_link(self, address: str) -> None:
        """Whatever listens there is linked with again when its link is lost, until it is closed."""
        before = self._kept.pop(address, None)
        if before is not None:  # it may wait for a process that was closed, and is another by now
            before.cancel()
        keeping = self._kept[address] = asyncio.ensure_future(self._finding.keep(address))
        self._around.spawn(keeping)

    async def close_peer(self, peer: Peer) -> int:
        """See Mesh.close_peer."""
        if not isinstance(peer, Peer):
            raise TypeError(f"close_peer takes a Peer, as peers() gives; {peer!r:.80} is none")
        me = self._around.me
        if peer.birth == me.birth:
            raise ConfigError("this process itself cannot be closed: leave the mesh instead")
        link = self._peers.get(peer.birth)
        if link is not None:
            await self._drained(link)
        _keep(self._passed_over, peer.birth, link.addresses if link is not None else peer.addresses)
        how = f"closed by {me.name}/{me.pid}"
        _keep(self._closed, peer.birth, f"{peer.name}/{peer.pid}: {how}")
        self._peers.part(peer.birth, how)
        return 0

    async def _drained(self, link: Link) -> None:
        """Until everything sent to it is acknowledged, or nothing more can be hoped for."""
        loop = asyncio.get_running_loop()
        until = loop.time() + CLOSE_WAIT
        while link.state is State.OPEN and not link.outbox.is_empty() and loop.time() < until:
            await asyncio.sleep(0.005)

    # -------------------------------------------------------------- whom to leave alone

    @property
    def ignore_peers(self) -> bool:
        return self._peers.ignore_new

    def set_ignore_peers(self, flag: bool) -> None:
        """See Mesh.ignore_peers."""
        self._peers.ignore_new = bool(flag)
        self._meet_passed_over()

    def discover_peers(self) -> None:
        """See Mesh.discover_peers."""
        self._closed.clear()
        self._wake()
        self._meet_passed_over()
        self._around.look_again()

    def _meet_passed_over(self) -> None:
        if self.ignore_peers:
            return
        for birth, addresses in list(self._passed_over.items()):
            if birth not in self._closed:
                del self._passed_over[birth]
                self._around.meet(birth, addresses)


def _peer(link: Link) -> Peer:
    assert link.peer is not None  # it was open once
    return Peer.of(link.peer)


def _keep(known: OrderedDict[int, Any], birth: int, what: object) -> None:
    """Keep it; the oldest is forgotten where there are too many."""
    known[birth] = what
    if len(known) > KEPT_CLOSED:
        forgotten, _ = known.popitem(last=False)
        log.info("! birth %016x is forgotten: %d are closed or were not met", forgotten, KEPT_CLOSED)
