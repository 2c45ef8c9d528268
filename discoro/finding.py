"""Finding other processes: by mDNS, by addresses given by hand, by what peers tell. And saying why nothing was found.

What is found is dialled through the `Dialler` (the mesh) and believed only after its greeting. Nobody is ever declared gone
here: that is the link's to say.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from discoro.adverts import Advert
from discoro.connections import ANOTHER_KEY
from discoro.errors import ConfigError, DiscoroError, ProtocolError, Refused, Unreachable
from discoro.folding import folded
from discoro.interfaces import Interfaces
from discoro.link import Link
from discoro.messages import MAX_ADDRESSES, MAX_NAME, MAX_U64, PROTOCOL_VERSION, Greeting
from discoro.security import Security

if TYPE_CHECKING:
    from discoro.discovery import Discovery

log = logging.getLogger("discoro.finding")

BASE_PORT = 24_200  # below 32768, where the ports begin that Linux hands out by itself
PORT_RANGE = 500  # a node's workers listen on the ports above its own; the last one is its second door, while its key changes
INQUIRE_TIMEOUT = 3.0  # seconds
SECOND_DOOR_TIMEOUT = 0.5  # seconds: it is tried before anybody is told of another key, which should take one at most
AGAIN_FIRST, AGAIN_MOST = 0.2, 5.0  # seconds between dials of an address that was given by hand, doubled each time
SEEK_MOST = 30.0  # seconds between looks for a node that is out of reach
SEEK_SECONDS = 24 * 3600.0  # for which it is looked for: a laptop is opened again the next day, which it notices by itself
MAX_SOUGHT = 100  # nodes that are looked for at a time
MAX_UNUSABLE = 100  # processes that were heard of and cannot be used, kept for the text of NoNodes
MAX_SHOWN = 20  # lines of each kind in that text; the log has had them all
MAX_HEARD = 1000  # adverts that are kept, for what they say of their nodes
SAY_TRIED = 0.9, 1.2  # seconds after which it is said why a node that was heard is not linked yet: silence shows by the
# first, and that nothing answers at all by the second
LEFT_ALONE = 10.0  # seconds until a node that refused us is dialled again, however often it is heard: it logs each greeting
TEXT_COLUMNS = 80  # of the text of NoNodes, which does not know where it is printed
MAX_TOLD = 1000  # nodes that one peer may tell of at once
KEY_STEP = "On the machine whose key is to stay run `discoro key show`, on the other `discoro join`"  # for both: each says it


class Dialler(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    @property
    def security(self) -> Security: ...
    def meet(self, birth: int, addresses: Sequence[str]) -> Link | None: ...
    def heard_of(self, birth: int, addresses: Sequence[str]) -> None: ...
    def hint(self, birth: int, addresses: Sequence[str]) -> None: ...
    async def wanted(self, birth: int) -> None: ...
    def linked(self, birth: int) -> bool: ...
    def tried(self, birth: int) -> str: ...
    async def inquire(self, address: str, timeout: float) -> Greeting: ...
    async def link_ended(self, birth: int) -> None: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...


class Finding:
    """The search of one process."""

    def __init__(self, dialler: Dialler, interfaces: Interfaces, mdns: bool) -> None:
        self._dialler = dialler
        self._unusable: dict[str, tuple[str, int]] = {}  # why, and the birth where that is known
        self._heard_of: dict[int, Advert] = {}  # by birth
        self._left_alone: dict[int, float] = {}  # births that refused us, and until when they are not dialled
        self._refuses: dict[str, bool] = {}  # addresses given by hand: whether the last answer there was a refusal
        self._sought: set[int] = set()  # births of nodes that are out of reach
        self._hurry = asyncio.Event()  # set, and replaced, when the network has changed: no pause is waited for
        self._discovery = _discovery(self._found, interfaces) if mdns else None
        self.looks = mdns  # a node may still be found

    async def start(self) -> None:
        if self._discovery is not None:
            await self._discovery.start()

    async def close(self) -> None:
        if self._discovery is not None:
            await self._discovery.close()

    async def advertise(self, advert: Advert, port: int) -> None:
        """Let others find this process as a node."""
        if self._discovery is not None:
            await self._discovery.advertise(advert, port)

    def look_around(self, interfaces: Interfaces) -> None:
        """The machine's addresses are these now, or it slept: everything is tried again at once."""
        hurry, self._hurry = self._hurry, asyncio.Event()
        hurry.set()
        if self._discovery is not None:
            self._discovery.use(interfaces)

    async def _pause(self, seconds: float) -> bool:
        """For so long, or until the network changes; whether it did."""
        try:
            async with asyncio.timeout(seconds):
                return await self._hurry.wait()
        except TimeoutError:
            return False

    async def withdraw(self) -> None:
        """Let nobody new find this process."""
        if self._discovery is not None:
            await self._discovery.withdraw()

    def look_again(self) -> None:
        """Somebody waits for nodes: ask the network again."""
        if self._discovery is not None:
            self._discovery.refresh()

    async def keep(self, address: str, quiet: bool = False) -> None:
        """Keep a link to whoever listens at an address that was given by hand, for ever; `quiet` where nobody need be there."""
        self.looks = True
        self._refuses[address] = False
        pause = AGAIN_FIRST
        while True:
            try:
                greeting, answered = await self.inquire(address)
                self._unusable.pop(address, None)
                self._refuses[address] = False
                await self._dialler.wanted(greeting.birth)
                self._dialler.meet(greeting.birth, [answered, *greeting.addresses])
                pause = AGAIN_FIRST
                await self._dialler.link_ended(greeting.birth)
            except (DiscoroError, TimeoutError) as error:
                self._refuses[address] = isinstance(error, Refused)
                if not quiet or not isinstance(error, Unreachable):
                    self.not_usable(address, str(error) or f"did not answer in {INQUIRE_TIMEOUT:g} s")
            hurry = await self._pause(pause)
            pause = AGAIN_FIRST if hurry else min(2 * pause, AGAIN_MOST)

    def seek(self, birth: int, addresses: Sequence[str]) -> None:
        """The link with that node is lost, and it may be back: asleep, or out of reach for a while."""
        if birth not in self._sought and len(self._sought) < MAX_SOUGHT:
            self._sought.add(birth)
            self._dialler.spawn(self._seek(birth, addresses))

    async def _seek(self, birth: int, addresses: Sequence[str]) -> None:
        """Look for it where it was, quietly, until it is linked, or the time is over: mDNS tells nothing of who comes back."""
        clock = asyncio.get_running_loop().time
        until, pause = clock() + SEEK_SECONDS, AGAIN_FIRST
        try:
            while clock() < until:
                hurry = await self._pause(pause)
                pause = AGAIN_FIRST if hurry else min(2 * pause, SEEK_MOST)
                if self._dialler.linked(birth):
                    return
                for address in addresses:
                    with contextlib.suppress(DiscoroError, TimeoutError):
                        greeting = await self._dialler.inquire(address, INQUIRE_TIMEOUT)
                        if greeting.birth == birth:
                            self._dialler.heard_of(birth, list(dict.fromkeys([address, *greeting.addresses])))
                            break
        finally:
            self._sought.discard(birth)

    async def inquire(self, address: str) -> tuple[Greeting, str]:
        """Who answers first at the addresses that a host name stands for, and where.

        Raises Unreachable, Refused, TimeoutError after INQUIRE_TIMEOUT; of several addresses, the last one's kind.
        """
        *others, last = await resolved(address)
        said = []
        for each in others:
            try:
                return await self._who_is_at(each)
            except (DiscoroError, TimeoutError) as error:
                said.append(f"{each} ({str(error) or 'no answer'})")
        try:
            return await self._who_is_at(last)
        except DiscoroError as error:
            raise type(error)(", ".join([*said, f"{last} ({error})"])) if said else error from None

    async def _who_is_at(self, address: str) -> tuple[Greeting, str]:
        """Who listens at that address, or, where it has another key, at its second door: the key may be being changed there."""
        try:
            return await self._dialler.inquire(address, INQUIRE_TIMEOUT), address
        except Refused as error:
            found = await self._behind_second_door(address) if ANOTHER_KEY in str(error) else None
            if found is None:
                raise
            return found

    async def _behind_second_door(self, address: str) -> tuple[Greeting, str] | None:
        host, _, port = address.rpartition(":")
        second = int(port) + PORT_RANGE
        if second < 65536:
            with contextlib.suppress(DiscoroError, TimeoutError):
                return await self._dialler.inquire(f"{host}:{second}", SECOND_DOOR_TIMEOUT), f"{host}:{second}"
        return None

    def told(self, nodes: Any) -> None:
        """A peer tells of nodes; ProtocolError where these are none."""
        if not isinstance(nodes, list) or len(nodes) > MAX_TOLD:
            raise ProtocolError("meet without a list of nodes")
        for birth, addresses in list(map(_node, nodes)):  # all are looked at before any is believed
            self._dialler.heard_of(birth, addresses)

    def name_of(self, birth: int) -> str:
        """What a process that was never linked is called, as far as anybody said."""
        advert = self._heard_of.get(birth)
        return advert.name if advert is not None else f"birth {birth:016x}"

    @property
    def hopeless(self) -> bool:
        """Whether nobody can be found any more: without mDNS, when whoever was named has refused this process.

        What cannot be reached does not count, it may still start. With mDNS there may be nodes that were not heard yet.
        """
        return self._discovery is None and bool(self._refuses) and all(self._refuses.values())

    def not_met(self, link: Link, who: str) -> None:
        """A link to a process that was never met has come to nothing."""
        if ANOTHER_KEY in link.lost_because:
            self._dialler.spawn(self._try_second_doors(link, who))
            return
        self._say_not_met(link, who)

    async def _try_second_doors(self, link: Link, who: str) -> None:
        """The key may be being changed there: then a node lets in whoever has only the new one elsewhere."""
        for found in await asyncio.gather(*map(self._behind_second_door, link.addresses)):
            if found is not None and found[0].birth == link.birth:
                self._dialler.meet(link.birth, [found[1], *found[0].addresses])
                return
        self._say_not_met(link, who)

    def _say_not_met(self, link: Link, who: str) -> None:
        if link.refused_at and len(self._left_alone) < MAX_HEARD:
            self._left_alone[link.birth] = asyncio.get_running_loop().time() + LEFT_ALONE
        self.not_usable(who, link.lost_because, link.birth)

    def met(self, birth: int) -> None:
        """That process is linked: what was wrong with it is so no more, and would be news again."""
        self._unusable = {who: known for who, known in self._unusable.items() if not birth or known[1] != birth}

    def not_usable(self, who: str, why: str, birth: int = 0) -> None:
        """Say once, and keep for `why_none`, that somebody was heard of and why that does not help."""
        known, _ = self._unusable.get(who, ("", 0))
        if known == why or len(self._unusable) >= MAX_UNUSABLE:
            return
        step = f". {self.key_step}" if ANOTHER_KEY in why and not self.another_key else ""
        self._unusable[who] = why, birth
        if known and known in why:  # the same, and that it is the end
            return
        log.warning("! not usable: %s%s", self._told_of(who), step)

    @property
    def key_step(self) -> str:
        """What helps with another key. `discoro join` changes a key file, which counts for nothing beside a secret."""
        security = self._dialler.security
        from_file = security.path is not None or self._dialler.me.role == "worker"  # which has no path, and is seldom asked
        return KEY_STEP if from_file else f"Start both with the same one; this side's: {security.origin}"

    @property
    def another_key(self) -> bool:
        """Whether somebody who cannot be used has another key: `key_step` may help."""
        return any(ANOTHER_KEY in why for why, _ in self._unusable.values())

    def no_nodes(self, seconds: float) -> str:
        """What was tried in that time, what was heard, what to type: the text of NoNodes, for a terminal of TEXT_COLUMNS."""
        how = ": whoever was named refuses this side" if self.hopeless else f" in {seconds:g} s"
        lines = [
            f"no usable node{how}",
            f'  this side: cluster "{self._dialler.me.cluster}", {self._dialler.security.origin}',
            *(f"  {line}" for line in self.why_none()),
            *([f"  {self.key_step}"] if self.another_key else []),
            "  try  discoro-node                            here or elsewhere, same key",
            '       peers=["HOST"], or DISCORO_PEERS=HOST   where multicast does not reach',
            "       discoro.run(main, local=True)           to use this machine only",
        ]
        return "\n".join(folded(line, TEXT_COLUMNS) for line in lines)

    def why_none(self) -> list[str]:
        """What was tried and what was heard, a line each; who was heard and cannot be used comes once, with the reason."""
        heard = self._discovery.heard() if self._discovery is not None else ["mDNS is off"]
        unusable = {f"({birth:016x})" for _, birth in self._unusable.values()}  # as Advert prints a node's id
        heard = [line for line in heard if not any(node in line for node in unusable)]
        named = [who for who in self._unusable if not any(f"({who})" in other for other in self._unusable)]
        return [*_first(heard), *_first([self._told_of(who) for who in named])]

    def _told_of(self, who: str) -> str:
        """Who cannot be used and why; with what mDNS says of it where its key keeps us from asking it."""
        why, birth = self._unusable[who]
        advert = self._heard_of.get(birth)
        if advert is None:  # known by its address only
            advert = next((each for each in self._heard_of.values() if who in each.addresses), None)
        if advert is None or ANOTHER_KEY not in why:
            return f"{who}: {why}"
        return f"{who}: {why}. By mDNS (not verified) {self._said_by(advert)}"

    def _said_by(self, advert: Advert) -> str:
        """What a node that was not asked claims, beside what this side is."""
        me = self._dialler.me
        other = advert.cluster != me.cluster
        said = f"it belongs to cluster {advert.cluster!r}, {f'this side to {me.cluster!r}' if other else 'as this side does'}"
        if advert.python != me.python:
            said += f"; it runs Python {advert.python}, this side {me.python}"
        if advert.protocol != PROTOCOL_VERSION:
            said += f"; it speaks protocol {advert.protocol}, this side {PROTOCOL_VERSION}"
        return said

    def _found(self, advert: Advert) -> None:
        """mDNS told of a node. What it says of itself is not believed: dialled, the node itself says why it does not fit.

        Only other clusters are left in peace: they have a right to share the network, and would be many.
        """
        birth = int(advert.node, 16)
        if birth == self._dialler.me.birth:
            return
        if self._dialler.linked(birth):
            self._dialler.hint(birth, advert.addresses)
            return
        if len(self._heard_of) < MAX_HEARD or birth in self._heard_of:
            self._heard_of[birth] = advert
        if advert.cluster != self._dialler.me.cluster:
            where = advert.addresses[0] if advert.addresses else "no address"
            why = f"by mDNS (not verified) {self._said_by(advert)}: name the same cluster on both"
            self.not_usable(f"{advert.name} ({where})", why, birth)
        elif self._left_alone.get(birth, 0.0) <= asyncio.get_running_loop().time():
            self._dialler.heard_of(birth, advert.addresses)
            for seconds in SAY_TRIED:
                asyncio.get_running_loop().call_later(seconds, self._say_tried, birth)

    def _say_tried(self, birth: int) -> None:
        """A node that was heard may still be dialled for seconds; whoever waits for it learns what came of that so far."""
        tried = self._dialler.tried(birth)
        if tried:
            self.not_usable(self.name_of(birth), tried, birth)


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_SHOWN
    return lines if more <= 0 else [*lines[:MAX_SHOWN], f"and {more} more"]


def _discovery(found: Callable[[Advert], None], where: Interfaces) -> Discovery:
    from discoro.discovery import Discovery  # zeroconf takes 8 ms and 3.4 MB: not where nobody looks by mDNS

    return Discovery(found, where)


def with_port(address: str) -> str:
    """The address with the default port where it names none; ConfigError for what is none."""
    if address.count(":") > 1 and not address.startswith("["):  # a bare IPv6 address
        address = f"[{address}]"
    host, colon, port = address.rpartition(":")
    if not colon or address.endswith("]"):
        host, port = address, str(BASE_PORT)
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not an address: write host, or host:port")
    return f"{host}:{port}"


async def resolved(address: str) -> list[str]:
    """host:port with the addresses that the host name stands for; Unreachable for a name that nobody knows.

    Asked anew each time: a machine that gets another address keeps its name.
    """
    host, _, port = address.rpartition(":")
    with contextlib.suppress(ValueError):
        ipaddress.ip_address(host.strip("[]").partition("%")[0])
        return [address]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)
    except UnicodeError:
        raise Unreachable(f"{host!r:.80} is no host name") from None
    except OSError as error:
        raise Unreachable(f"the name {host} is not known here ({error.strerror}): write its address instead") from None
    hosts = dict.fromkeys(str(where[0]) for *_, where in found)
    return [f"[{each}]:{port}" if ":" in each else f"{each}:{port}" for each in hosts]


def _node(told: Any) -> tuple[int, list[str]]:
    """A node that a peer tells of; ProtocolError where it is none, or has more addresses than a machine: each is dialled."""
    match told:
        case [birth, list(addresses)] if type(birth) is int and 0 < birth <= MAX_U64 and len(addresses) <= MAX_ADDRESSES:
            if all(map(_is_text, addresses)):
                return birth, addresses
    raise ProtocolError("meet with something that is no node")


def _is_text(address: Any) -> bool:
    return isinstance(address, str) and len(address) <= MAX_NAME


def whereabouts(node: Greeting) -> list[Any]:
    """A node as `told` takes it on the other side."""
    return [node.birth, list(node.addresses)[:MAX_ADDRESSES]]
