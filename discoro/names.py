"""Names: which coroutine of this process, or of one that told us, is registered under which.

`register` confirms with every known node; `locate` looks here first, then asks every known node until one answers. It decides
and waits, but never touches a link: it asks the `Neighbours` (the mesh) to.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple, Protocol

from discoro.coro import Coro
from discoro.errors import ConfigError, DiscoroError, NameTaken, NoNodes, NoSuchCoro, ProtocolError, Timeout
from discoro.messages import MAX_NAME, Greeting
from discoro.references import CoroRef

log = logging.getLogger("discoro.names")

MAX_FOREIGN = 10_000  # names that other processes may register here, in all
ASK_AGAIN_FIRST, ASK_AGAIN_MOST = 0.05, 1.0  # seconds between two rounds of questions, doubled each time
ANSWER_TIMEOUT = 2.0  # seconds a node may take to answer before the round goes on without it
SETTLE = 1.2  # seconds without a new node after which `servers` has seen all: mDNS answers within 1.1 s
SAY_LOOKING = 2.0  # seconds without any node after which that is said: nobody waits in silence
SAY_AGAIN = 5.0  # seconds between two log lines about waiting
KINDS = ("channel", "queue", "rci")  # whose names are theirs alone: channel:news


class Found(NamedTuple):
    """One registered coroutine, and how busy it is (0: free)."""

    ref: CoroRef
    load: int


class Neighbours(Protocol):
    """What names need of the mesh."""

    @property
    def me(self) -> Greeting: ...
    def nodes(self) -> list[Greeting]: ...
    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float) -> Any: ...
    def look_again(self) -> None: ...
    def hopeless(self) -> bool: ...
    def why_no_nodes(self, seconds: float) -> str: ...


class Names:
    """The names of one process, and the search for others'. `settle`: seconds without a new node after which all are known."""

    def __init__(self, neighbours: Neighbours, discover_timeout: float, settle: float = SETTLE) -> None:
        self._neighbours = neighbours
        self._settle = settle
        self._discover_timeout = discover_timeout
        self._here: dict[str, list[Coro]] = {}
        self._of: dict[int, list[str]] = {}  # the names of each coroutine here, by its id: most have none when they end
        self._foreign: dict[int, dict[str, CoroRef]] = {}  # by the birth of the process that registered
        self.node_came: asyncio.Event = asyncio.Event()  # set, and replaced, whenever a node is linked
        self._news: asyncio.Event = asyncio.Event()  # the same, and whenever a name is registered here: locate looks again

    # -------------------------------------------------------------- registering

    async def register(self, coro: Coro, name: str, shared: bool = False) -> int:
        """See Coro.register; `shared` lets the discoro_servers of a node's slots carry one name."""
        _check_name(name)
        if coro.done:
            raise NoSuchCoro(f"{coro} has ended: nobody could find it")
        holders = self._here.setdefault(name, [])
        if coro not in holders:
            if holders and not shared:
                raise NameTaken(f"{_shown(name)} is the name of {holders[0]} in this process: unregister it, or choose another")
            holders.append(coro)
            self._of.setdefault(coro.id, []).append(name)
            self._say_news()
        await self._tell("register", [(name, coro.ref)])
        return 0

    async def unregister(self, coro: Coro, name: str | None) -> int:
        """See Coro.unregister."""
        await self.withdraw(coro.ref, self.forget(coro, name))
        return 0

    async def withdraw(self, ref: CoroRef, gone: Iterable[str]) -> None:
        """Tell every known node that these names lead to that coroutine no more."""
        await self._tell("unregister", [(name, ref) for name in gone])

    def forget(self, coro: Coro, name: str | None = None) -> list[str]:
        """The coroutine loses this name, or every name; gives the names it lost."""
        names = self._of.pop(coro.id, None)
        if names is None:
            return []
        gone = [each for each in names if name in (None, each)]
        for each in gone:
            self._here[each].remove(coro)
            if not self._here[each]:
                del self._here[each]
        if len(gone) < len(names):
            self._of[coro.id] = [each for each in names if each not in gone]
        return gone

    async def _tell(self, verb: str, pairs: Iterable[tuple[str, CoroRef]]) -> None:
        """Every known node confirms, or is gone. A node keeps its names to itself: whoever looks for them asks it."""
        if self._neighbours.me.role == "node":
            return
        asked = [
            self._neighbours.ask(node.birth, verb, {"name": name, "ref": ref.to_plain()}, ANSWER_TIMEOUT)
            for name, ref in pairs
            for node in self._neighbours.nodes()
        ]
        for answer in await asyncio.gather(*asked, return_exceptions=True):
            if isinstance(answer, DiscoroError):
                log.warning("! a node did not confirm %s: %s", verb, answer)
            elif isinstance(answer, BaseException):
                raise answer

    async def node_linked(self, birth: int) -> None:
        """A node is known now: tell it our names, and wake who waits for nodes."""
        came, self.node_came = self.node_came, asyncio.Event()
        came.set()
        self._say_news()
        if self._neighbours.me.role == "node":
            return
        for name, holders in list(self._here.items()):
            for coro in holders:
                arguments = {"name": name, "ref": coro.ref.to_plain()}
                await self._neighbours.ask(birth, "register", arguments, ANSWER_TIMEOUT)

    def _say_news(self) -> None:
        news, self._news = self._news, asyncio.Event()
        news.set()

    # -------------------------------------------------------------- what others ask

    def on_register(self, peer: Greeting, arguments: dict[str, Any]) -> int:
        name, ref = _name_and_ref(arguments)
        if ref.birth != peer.birth:
            raise ProtocolError(f"{peer.name} registers a coroutine of another process")
        if sum(map(len, self._foreign.values())) >= MAX_FOREIGN:
            raise ProtocolError(f"{MAX_FOREIGN} names are registered here, and no more are taken")
        self._foreign.setdefault(peer.birth, {})[name] = ref
        self._say_news()
        return 0

    def on_unregister(self, peer: Greeting, arguments: dict[str, Any]) -> int:
        name, ref = _name_and_ref(arguments)
        told = self._foreign.get(peer.birth, {})
        if told.get(name) == ref:  # not another that took the name meanwhile
            del told[name]
        return 0

    def on_locate(self, arguments: dict[str, Any]) -> list[Any]:
        name = arguments.get("name")
        if not isinstance(name, str):
            raise ProtocolError("locate without a name")
        return [[found.ref.to_plain(), found.load] for found in self.known(name)]

    async def locate_for_worker(self, arguments: dict[str, Any]) -> list[Any]:
        """What this node and every other has under the name, at the location if one is given, in time for the worker."""
        name, location = arguments.get("name"), arguments.get("location")
        if not isinstance(name, str) or not (location is None or isinstance(location, str)):
            raise ProtocolError("locate without a name, or with a location that is none")
        found = await self._ask_all(name, location, ANSWER_TIMEOUT / 2)
        return [[each.ref.to_plain(), each.load] for each in found]

    def peer_lost(self, birth: int) -> None:
        """What that process registered is gone with it."""
        self._foreign.pop(birth, None)

    def known(self, name: str) -> list[Found]:
        """All that this process knows under the name: its own coroutines, and what others registered with it."""
        here = [Found(coro.ref, coro.load) for coro in self._here.get(name, [])]
        there = [Found(names[name], 0) for names in self._foreign.values() if name in names]
        return here + there

    # -------------------------------------------------------------- searching

    async def locate(self, name: str, location: str | None, timeout: float | None) -> CoroRef:
        """See Coro.locate."""
        _check_name(name)
        try:
            async with asyncio.timeout(timeout):
                return await self._locate(name, location)
        except TimeoutError:
            nodes = ", ".join(node.name for node in self._neighbours.nodes()) or "none"
            where = f" at {location}" if location else ""
            raise Timeout(f"nobody registered {_shown(name)}{where} in {timeout:g} s; nodes asked: {nodes}") from None

    async def servers(self, name: str, timeout: float | None) -> list[CoroRef]:
        """The references of every coroutine of that name on the mesh, free ones first.

        Waits until no further node has turned up for a while, at most `timeout` seconds. NoNodes where none did.
        """
        loop = asyncio.get_running_loop()
        seconds = self._discover_timeout if timeout is None else timeout
        until = loop.time() + seconds
        if not await self._some_node(seconds):
            raise NoNodes(self._neighbours.why_no_nodes(seconds))
        while loop.time() < until:
            try:
                async with asyncio.timeout(min(self._settle, until - loop.time())):
                    await self.node_came.wait()
            except TimeoutError:
                break
        found = await self._ask_all(name, None)
        return [each.ref for each in sorted(found, key=lambda found: (found.load, found.ref.name, found.ref.id))]

    async def _locate(self, name: str, location: str | None) -> CoroRef:
        def here() -> bool:
            return location is None and name in self._here

        pause, said, loop = ASK_AGAIN_FIRST, asyncio.get_running_loop().time(), asyncio.get_running_loop()
        if not here() and not await self._some_node(self._discover_timeout, unless=here):
            raise NoNodes(self._neighbours.why_no_nodes(self._discover_timeout))
        if here():
            return self._here[name][0].ref
        while not (found := await self._ask_all(name, location)):
            if loop.time() - said >= SAY_AGAIN:
                said = loop.time()
                log.warning("= waiting for %s to be registered; asked %d nodes", _shown(name), len(self._neighbours.nodes()))
            await self._pause(pause)
            pause = min(2 * pause, ASK_AGAIN_MOST)
        least = min(each.load for each in found)
        return random.choice([each.ref for each in found if each.load == least])

    async def _ask_all(self, name: str, location: str | None, timeout: float = ANSWER_TIMEOUT) -> list[Found]:
        """What this process and every known node has under the name, once each; a worker has its node look everywhere."""
        me, arguments = self._neighbours.me, {"name": name}
        nodes = [node for node in self._neighbours.nodes() if location is None or me.role == "worker" or _is_at(node, location)]
        if location is not None and me.role == "worker":
            arguments["location"] = location
        asked = [self._neighbours.ask(node.birth, "locate", arguments, timeout) for node in nodes]
        here = location is None or (me.role == "node" and _is_at(me, location))
        found = {each.ref: each for each in self.known(name)} if here else {}
        for node, answer in zip(nodes, await asyncio.gather(*asked, return_exceptions=True), strict=True):
            if isinstance(answer, DiscoroError):
                log.info("< %s did not answer locate: %s", node.name, answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                for each in _found(answer):
                    if each.ref not in found or each.ref.birth == node.birth:  # who runs it knows best how busy it is
                        found[each.ref] = each
        return list(found.values())

    async def _some_node(self, timeout: float, unless: Callable[[], bool] = lambda: False) -> bool:
        """Whether a node is linked, or none is needed; at the latest after `timeout` seconds, or once no node can come."""
        loop, pause = asyncio.get_running_loop(), ASK_AGAIN_FIRST
        saying = loop.call_later(SAY_LOOKING, log.warning, "= no node yet: looking for %g s in all", timeout)
        try:
            async with asyncio.timeout(timeout):
                while not self._neighbours.nodes() and not unless():
                    if self._neighbours.hopeless():
                        return False
                    self._neighbours.look_again()
                    await self._pause(pause)
                    pause = min(2 * pause, ASK_AGAIN_MOST)
        except TimeoutError:
            return False
        finally:
            saying.cancel()
        return True

    async def _pause(self, seconds: float) -> None:
        """For some time, or until another node is linked or a name is registered here."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            pass


def _check_name(name: object) -> None:
    """ConfigError for what nobody could register, and would be waited for in vain."""
    if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_NAME:
        raise ConfigError(f"a name is a text of 1 to {MAX_NAME} bytes; this is {name!r:.80}")


def _shown(name: str) -> str:
    """A name as its user wrote it."""
    kind, _, own = name.partition(":")
    return f"{kind} {own!r}" if own and kind in KINDS else repr(name)


def _name_and_ref(arguments: dict[str, Any]) -> tuple[str, CoroRef]:
    name = arguments.get("name")
    try:
        ref = CoroRef.from_plain(arguments.get("ref"))
    except ProtocolError:
        raise ProtocolError("register without a reference") from None
    if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_NAME:
        raise ProtocolError("register without a name")
    return name, ref


def _found(answer: Any) -> list[Found]:
    try:
        found = [Found(CoroRef.from_plain(ref), load) for ref, load in answer]
    except (TypeError, ValueError, ProtocolError):  # it is no list, or not of pairs
        found = None
    if found is None or not all(type(each.load) is int and each.load >= 0 for each in found):
        raise ProtocolError("an answer to locate that is not a list of references, each with its load")
    return found


def _is_at(node: Greeting, location: str) -> bool:
    hosts = {address.rpartition(":")[0] for address in node.addresses}
    return location == node.name or location == node.node or location in node.addresses or location in hosts
