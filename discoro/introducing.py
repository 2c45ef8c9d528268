"""Introductions: reaching a process that cannot be dialled, through others that both know.

A link that dialling does not open soon asks for one. Then `Introducing` asks the processes that this one is linked with, the
node named in the reference first: `whereabouts` brings further addresses to dial, `introduce` has the other process dial back.
Whoever is asked and is linked with the wanted process has it `reach` the asker; whoever is not asks the nodes that it knows,
and those ask nobody else, so that no question runs in circles. Whichever connection stands first is the link's.

It opens no connection and carries no message for others: once two processes are linked, nobody stands between them. A process
is told to dial only those addresses that the asker gave in its own greeting, never what a request says, and greets whoever
answers there as that very birth. Who passes an asker on (one hop) is believed, because it is a node that has the cluster's key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol, TypeVar

from discoro.errors import DiscoroError, Overloaded, PeerLost, ProtocolError, Timeout, Unreachable, from_wire, to_wire
from discoro.link import Link, State
from discoro.messages import MAX_ADDRESSES, MAX_NAME, MAX_U64, Greeting
from discoro.peers import MAX_LINKS, Peers
from discoro.references import CoroRef
from discoro.requests import Incoming

log = logging.getLogger("discoro.introducing")

MAX_ASKED = 16  # processes asked for one introduction, and nodes that each of them asks: any one that knows both will do
NEXT_AFTER = 0.25  # seconds one of them has before the next is asked too: it may hang
ANSWER_TIMEOUT = 2.0  # seconds for nodes to say whether they are linked with somebody
MARGIN = 0.5  # seconds for an answer to come back, so that it says what was tried before the asker gives up
MAX_WITHIN = 60.0  # seconds that one may ask others to try
MAX_SERVED = MAX_LINKS  # questions of one peer that wait here: an honest one has no more links to ask for
MAX_SAID = 500  # characters of what others answered, in the text of an error

T = TypeVar("T")


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    def nodes(self) -> list[Greeting]: ...
    def looks(self) -> bool: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...
    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float | None) -> Any: ...
    def how_it_ended(self, birth: int) -> DiscoroError | None: ...
    def ended(self, birth: int, error: DiscoroError) -> None: ...


class Introducing:
    """Both sides of it: what this process wants of others, and what others want of it."""

    def __init__(self, around: Around, peers: Peers) -> None:
        self._around = around
        self._peers = peers
        self._wanted: dict[int, CoroRef] = {}  # births whose link was not open yet, and a reference that leads there
        self._tasks: dict[int, asyncio.Future[None]] = {}  # introductions under way, by the birth that is wanted
        self._settled: dict[int, list[asyncio.Future[None]]] = {}  # who waits for a link to open or to end
        self._reached: set[int] = set()  # births whose link others have us make, until it opens or ends
        self._served: Counter[int] = Counter()  # questions that wait here, by the peer that asked
        self._came = asyncio.Event()  # set, and replaced, whenever a peer is linked that can be asked
        self.handlers: dict[str, Callable[[Incoming], Awaitable[None]]] = {
            "whereabouts": partial(self._serve, self._on_whereabouts),
            "introduce": partial(self._serve, self._on_introduce),
            "reach": partial(self._serve, self._on_reach),
        }

    def __repr__(self) -> str:
        return f"<Introducing wanted={len(self._wanted)} asking={len(self._tasks)} serving={self._served.total()}>"

    # -------------------------------------------------------------- what the mesh asks and tells

    def link(self, to: CoroRef) -> Link:
        """The link to the process of a reference, where it was not open yet; it is dialled, and introduced if that takes long.

        Unreachable at once where no address of it is known, and nobody who could introduce it.
        """
        link, known = self._peers.get(to.birth), self._wanted.get(to.birth)
        if link is not None and known is not None and to.addresses == known.addresses:
            return link
        introducible = bool(self._others(to)) or (not to.addresses and self._around.looks())
        self._wanted[to.birth] = to
        try:
            link = self._peers.link(to.birth, to.addresses, introducible)
        except Unreachable:
            self._wanted.pop(to.birth, None)
            raise
        self._peers.learn(link, to.addresses)  # where it was there already, with fewer addresses
        return link

    def name_of(self, birth: int) -> str:
        """What a process that was never linked is called, as far as a reference says; else ""."""
        to = self._wanted.get(birth)
        return f"{to.name or to.node}/{to.pid}" if to is not None and (to.name or to.node) else ""

    def only_reaching(self, birth: int) -> bool:
        """Whether only others wanted a link to that birth."""
        return birth in self._reached and birth not in self._wanted

    def settled(self, birth: int) -> None:
        """A link opened for the first time, or ended."""
        self._wanted.pop(birth, None)
        self._reached.discard(birth)
        task = self._tasks.pop(birth, None)
        if task is not None:
            task.cancel()
        for waiter in self._settled.pop(birth, ()):
            if not waiter.done():
                waiter.set_result(None)
        came, self._came = self._came, asyncio.Event()
        came.set()

    # -------------------------------------------------------------- the asker

    def introduce(self, link: Link, seconds: float) -> None:
        """A link wants an introduction, and gives up in so many seconds."""
        task = asyncio.ensure_future(self._introduce(link, self._wanted[link.birth], seconds))
        self._tasks[link.birth] = task
        self._around.spawn(task)

    async def _introduce(self, link: Link, to: CoroRef, seconds: float) -> None:
        asked: dict[str, str] = {}
        try:
            async with asyncio.timeout(seconds) as limit:
                while not (others := self._others(to)):
                    await self._came.wait()
                until = limit.when() or 0.0
                await first_of([partial(self._ask, link, other, asked, until) for other in others])
        except (DiscoroError, TimeoutError):
            log.debug("< %s: not introduced: %s", to, link.asked)
        finally:
            if self._tasks.get(link.birth) is asyncio.current_task():
                del self._tasks[link.birth]
            self._peers.not_introduced(link)

    def _others(self, to: CoroRef) -> list[Greeting]:
        """Whom to ask: the node named in the reference first, then other nodes, then clients."""
        others = [peer for peer in self._around.nodes() if peer.birth != to.birth]
        return sorted(others, key=lambda peer: (peer.node != to.node, peer.role != "node"))[:MAX_ASKED]

    async def _ask(self, link: Link, other: Greeting, asked: dict[str, str], until: float) -> None:
        """Have one of them help, until the link opens. DiscoroError where it cannot; what it said is kept with the link."""

        def say(what: str) -> None:
            asked[called(other)] = what[:MAX_SAID]
            link.asked = "asked " + ", ".join(f"{who} ({said})" for who, said in asked.items())

        def left() -> float:
            return max(0.0, until - asyncio.get_running_loop().time())

        say("no answer")
        try:
            found = await self._around.ask(other.birth, "whereabouts", {"birth": link.birth}, left())
            who, addresses = self._whereabouts(link.birth, found)
            self._peers.learn(link, addresses)
            say(f"it asked {who} to dial this process, which did not come through")
            arguments = {"birth": link.birth, "within": min(max(0.1, left() - MARGIN), MAX_WITHIN)}
            await self._around.ask(other.birth, "introduce", arguments, left())
        except Timeout:
            raise  # what was said last says it
        except DiscoroError as error:
            say(str(error))
            raise

    def _whereabouts(self, birth: int, found: Any) -> tuple[str, list[str]]:
        """What a node said of the process that is wanted: who it is, and its addresses. PeerLost where it has ended."""
        match found:
            case ["linked", str(who), list(addresses)]:
                return who[:MAX_SAID], _addresses(addresses)
            case ["ended", str(name), str(text)]:
                error = from_wire(name, text)
                self._around.ended(birth, error if isinstance(error, PeerLost) else PeerLost(text))
                raise Unreachable(text)
            case _:
                raise ProtocolError(f"not whereabouts: {found!r:.80}")

    # -------------------------------------------------------------- those who are asked

    async def _serve(self, answer: Callable[[Incoming], Awaitable[Any]], incoming: Incoming) -> None:
        peer = incoming.peer
        if self._served[peer.birth] >= MAX_SERVED:
            raise Overloaded(f"{called(self._around.me)} looks for {MAX_SERVED} processes for {called(peer)} already")
        with counted(self._served, peer.birth):
            incoming.reply(await answer(incoming))

    async def _on_whereabouts(self, incoming: Incoming) -> Any:
        """Who that process is and where it listens, or how it ended. Unreachable where nobody asked is linked with it."""
        birth = _birth(incoming.arguments.get("birth"))
        me = self._around.me
        link, ended = self._peers.get(birth), self._around.how_it_ended(birth)
        if birth == me.birth:
            return ["linked", called(me), list(me.addresses)]
        if link is not None and link.opened and link.peer is not None:
            return ["linked", called(link.peer), list(link.peer.addresses)]
        if ended is not None:
            return ["ended", *to_wire(ended)]
        if incoming.arguments.get("relayed"):
            raise Unreachable("it is not linked with it")
        return (await self._find(birth, incoming.peer))[1]

    async def _find(self, birth: int, asker: Greeting) -> tuple[Greeting, Any]:
        """The node that knows of that process, and what it says."""

        async def ask(node: Greeting) -> tuple[Greeting, Any]:
            arguments = {"birth": birth, "relayed": True}
            return node, await self._around.ask(node.birth, "whereabouts", arguments, ANSWER_TIMEOUT)

        nodes = [node for node in self._around.nodes() if node.role == "node" and node.birth != asker.birth][:MAX_ASKED]
        try:
            return await first_of([partial(ask, node) for node in nodes])
        except DiscoroError:
            others = f", nor is any of {len(nodes)} nodes that it asked" if nodes else ""
            raise Unreachable(f"it is not linked with it{others}") from None

    async def _on_introduce(self, incoming: Incoming) -> Any:
        """Have that process dial the asker; 0 once the two are linked. Unreachable says what it tried."""
        birth, within = _birth(incoming.arguments.get("birth")), _within(incoming.arguments.get("within"))
        asker, relayed = self._asker(incoming)
        link = self._peers.get(birth)
        if birth == self._around.me.birth or (link is not None and link.opened):
            arguments = {"birth": asker[0], "addresses": asker[1], "within": within}
            return await self._around.ask(birth, "reach", arguments, within + MARGIN)
        if relayed:
            raise Unreachable("it is not linked with it")
        node, _ = await self._find(birth, incoming.peer)
        arguments = {"birth": birth, "within": within, "asker": asker}
        return await self._around.ask(node.birth, "introduce", arguments, within + MARGIN)

    @staticmethod
    def _asker(incoming: Incoming) -> tuple[list[Any], bool]:
        """Who wants the introduction, [birth, addresses]; and whether a node passed it on."""
        match incoming.arguments.get("asker"):
            case None:
                return [incoming.peer.birth, list(incoming.peer.addresses)], False
            case [birth, addresses] if incoming.peer.role == "node":
                return [_birth(birth), _addresses(addresses)], True
            case _:
                raise ProtocolError("only a node passes on who wants an introduction")

    async def _on_reach(self, incoming: Incoming) -> Any:
        """Dial a process that wants us and cannot dial us; 0 once linked. Unreachable says what was tried."""
        birth, addresses = _birth(incoming.arguments.get("birth")), _addresses(incoming.arguments.get("addresses"))
        if birth == self._around.me.birth:
            raise ProtocolError("reach of the process itself")
        if self._peers.ignore_new and self._peers.get(birth) is None:
            raise Unreachable(f"{called(self._around.me)} meets nobody new: its ignore_peers is on")
        try:
            async with asyncio.timeout(_within(incoming.arguments.get("within"))):
                await self._linked(birth, addresses)
        except TimeoutError:
            link = self._peers.get(birth)
            if link is None or link.state is not State.OPEN:
                tried = link.what_was_tried if link is not None else ""
                raise Unreachable(f"{called(self._around.me)} could not dial back: {tried or 'no answer yet'}") from None
        return 0

    async def _linked(self, birth: int, addresses: Sequence[str]) -> None:
        """Until there is a link with that process; Unreachable where it cannot be had."""
        while True:
            link = self._peers.link(birth, addresses)
            self._peers.learn(link, addresses)
            if not link.opened:
                self._reached.add(birth)
            if link.state is not State.OPEN and not link.ended:
                settled = asyncio.get_running_loop().create_future()
                self._settled.setdefault(birth, []).append(settled)
                await settled
            if link.state is State.OPEN:
                return
            if not link.opened:
                raise Unreachable(f"{called(self._around.me)} could not dial back: {link.lost_because}")


async def first_of(asks: Iterable[Callable[[], Awaitable[T]]], pause: float = NEXT_AFTER) -> T:
    """Start these one after another, each when one before it failed or `pause` seconds were over; what the first brings.

    Raises the DiscoroError of the last one where all fail, Unreachable where there is none.
    """
    error: DiscoroError = Unreachable("there is nobody to ask")
    waiting, started, running = list(asks), list[asyncio.Future[T]](), set[asyncio.Future[T]]()
    try:
        while waiting or running:
            if waiting:
                started.append(asyncio.ensure_future(waiting.pop(0)()))
                running.add(started[-1])
            patience = pause if waiting else None
            done, running = await asyncio.wait(running, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
            for each in done:
                try:
                    return each.result()
                except DiscoroError as failed:
                    error = failed
        raise error
    finally:
        for each in running:
            each.cancel()
        await asyncio.gather(*started, return_exceptions=True)  # none is left behind, and no error of theirs unheard


@contextlib.contextmanager
def counted(counter: Counter[int], birth: int) -> Iterator[None]:
    """One more of that birth inside the block; a count of 0 takes no room."""
    counter[birth] += 1
    try:
        yield
    finally:
        counter[birth] -= 1
        if not counter[birth]:
            del counter[birth]


def called(peer: Greeting) -> str:
    """A process, for people: a node by its name alone."""
    return peer.name if peer.role == "node" else f"{peer.name}/{peer.pid}"


def _birth(value: Any) -> int:
    if type(value) is not int or not 0 < value <= MAX_U64:  # True is none: no greeting could name it
        raise ProtocolError(f"not a birth: {value!r:.80}")
    return value


def _within(value: Any) -> float:
    if not isinstance(value, int | float) or not 0 < value <= MAX_WITHIN:
        raise ProtocolError(f"not a time between 0 and {MAX_WITHIN:g} s: {value!r:.80}")
    return value


def _addresses(value: Any) -> list[str]:
    if not isinstance(value, list) or len(value) > MAX_ADDRESSES:
        raise ProtocolError(f"not a list of at most {MAX_ADDRESSES} addresses")
    if not all(isinstance(each, str) and len(each) <= MAX_NAME for each in value):
        raise ProtocolError("a list of addresses with something else in it")
    return value
