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
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from discoro.adverts import Advert
from discoro.errors import ConfigError, DiscoroError, ProtocolError, Unreachable
from discoro.interfaces import Interfaces
from discoro.link import Link
from discoro.messages import MAX_ADDRESSES, MAX_NAME, MAX_U64, PROTOCOL_VERSION, Greeting

if TYPE_CHECKING:
    from discoro.discovery import Discovery

log = logging.getLogger("discoro.finding")

BASE_PORT = 24_200  # below 32768, where the ports begin that Linux hands out by itself
INQUIRE_TIMEOUT = 3.0  # seconds
AGAIN_FIRST, AGAIN_MOST = 0.2, 5.0  # seconds between dials of an address that was given by hand, doubled each time
MAX_UNUSABLE = 100  # processes that were heard of and cannot be used, kept for the text of NoNodes
MAX_HEARD = 1000  # advertised nodes whose names are kept
MAX_TOLD = 1000  # nodes that one peer may tell of at once


class Dialler(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    def meet(self, birth: int, addresses: Sequence[str]) -> Link | None: ...
    def heard_of(self, birth: int, addresses: Sequence[str]) -> None: ...
    async def wanted(self, birth: int) -> None: ...
    def linked(self, birth: int) -> bool: ...
    async def inquire(self, address: str, timeout: float) -> Greeting: ...
    async def link_ended(self, birth: int) -> None: ...


class Finding:
    """The search of one process. `is_open`: it has no key."""

    def __init__(self, dialler: Dialler, interfaces: Interfaces, mdns: bool, is_open: bool) -> None:
        self._dialler = dialler
        self._open = is_open
        self._unusable: dict[str, str] = {}
        self._heard_of: dict[int, str] = {}  # births, and the names they were advertised under
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

    def look_again(self) -> None:
        """Somebody waits for nodes: ask the network again."""
        if self._discovery is not None:
            self._discovery.refresh()

    async def keep(self, address: str, quiet: bool = False) -> None:
        """Keep a link to whoever listens at an address that was given by hand, for ever; `quiet` where nobody need be there."""
        self.looks = True
        pause = AGAIN_FIRST
        while True:
            try:
                greeting, answered = await self.inquire(address)
                self._unusable.pop(address, None)
                await self._dialler.wanted(greeting.birth)
                self._dialler.meet(greeting.birth, [answered, *greeting.addresses])
                pause = AGAIN_FIRST
                await self._dialler.link_ended(greeting.birth)
            except (DiscoroError, TimeoutError) as error:
                if not quiet or not isinstance(error, Unreachable):
                    self.not_usable(address, str(error) or f"did not answer in {INQUIRE_TIMEOUT:g} s")
            await asyncio.sleep(pause)
            pause = min(2 * pause, AGAIN_MOST)

    async def inquire(self, address: str) -> tuple[Greeting, str]:
        """Who answers first at the addresses that a host name stands for, and where.

        Raises Unreachable, Refused, TimeoutError after INQUIRE_TIMEOUT; of several addresses, the last one's kind.
        """
        *others, last = await resolved(address)
        said = []
        for each in others:
            try:
                return await self._dialler.inquire(each, INQUIRE_TIMEOUT), each
            except (DiscoroError, TimeoutError) as error:
                said.append(f"{each} ({str(error) or 'no answer'})")
        try:
            return await self._dialler.inquire(last, INQUIRE_TIMEOUT), last
        except DiscoroError as error:
            raise type(error)(", ".join([*said, f"{last} ({error})"])) if said else error from None

    def told(self, nodes: Any) -> None:
        """A peer tells of nodes; ProtocolError where these are none."""
        if not isinstance(nodes, list) or len(nodes) > MAX_TOLD:
            raise ProtocolError("meet without a list of nodes")
        for each in nodes:
            match each:
                case [int(birth), list(addresses)] if 0 < birth <= MAX_U64 and all(map(_is_text, addresses)):
                    self._dialler.heard_of(birth, addresses)
                case _:
                    raise ProtocolError("meet with something that is no node")

    def name_of(self, birth: int) -> str:
        """What a process that was never linked is called, as far as anybody said."""
        return self._heard_of.get(birth, f"birth {birth:016x}")

    def not_usable(self, who: str, why: str) -> None:
        """Say once, and keep for `why_none`, that somebody was heard of and why that does not help."""
        if self._unusable.get(who) != why and len(self._unusable) < MAX_UNUSABLE:
            self._unusable[who] = why
            log.warning("! not usable: %s: %s", who, why)

    def why_none(self) -> list[str]:
        """What was tried and what was heard, a line each."""
        heard = self._discovery.heard() if self._discovery is not None else ["mDNS is off"]
        return [*heard, *(f"{who}: {why}" for who, why in self._unusable.items())]

    def _found(self, advert: Advert) -> None:
        """mDNS told of a node; what it says of itself only decides whether to dial it."""
        birth = int(advert.node, 16)
        if birth == self._dialler.me.birth or self._dialler.linked(birth):
            return
        if len(self._heard_of) < MAX_HEARD:
            self._heard_of[birth] = advert.name
        why = self._unfit(advert)
        if why:
            where = advert.addresses[0] if advert.addresses else "no address"
            self.not_usable(f"{advert.name} ({where})", why)
        else:
            self._dialler.heard_of(birth, advert.addresses)

    def _unfit(self, advert: Advert) -> str:
        """Why a node that was heard of is not dialled; "" where it may be."""
        me = self._dialler.me
        if advert.cluster != me.cluster:
            return f"belongs to cluster {advert.cluster!r}, this side to {me.cluster!r}"
        if advert.protocol != PROTOCOL_VERSION:
            return f"speaks protocol {advert.protocol}, this side {PROTOCOL_VERSION}: use the same discoro on both"
        if advert.python != me.python:
            return f"runs Python {advert.python}, this side {me.python}: use the same minor version on both"
        if (advert.security == "open") != self._open:
            ours, theirs = ("open", "has a key") if self._open else ("has a key", "is open")
            return f"{theirs}, this side {ours}: start both with the same key, or both with --open"
        return ""


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


def _is_text(address: Any) -> bool:
    return isinstance(address, str) and len(address) <= MAX_NAME


def whereabouts(node: Greeting) -> list[Any]:
    """A node as `told` takes it on the other side."""
    return [node.birth, list(node.addresses)[:MAX_ADDRESSES]]

