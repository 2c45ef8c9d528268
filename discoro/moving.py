"""Where this process is to be found while its machine's network changes: addresses that come and go, a machine that slept.

Never: says that anybody is gone, or listens at an address that the user did not choose.

How the parts play together: `Moving.watch` looks every WATCH_SECONDS at the addresses and the clocks, the one place that does
so in a process (a worker is told by its node). `look_again` of `interfaces` decides which addresses others may use, `Awake`
whether the machine slept, `said` what others are told. Then the doors follow, linked peers are told (`moved`), and whoever is
out of reach is dialled at once: after a change, what failed before may work. Nothing is waited for and nothing is ended here: a
connection that leads nowhere any more is noticed by its heartbeats, and its link goes on over the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from discoro.connections import address_of
from discoro.errors import DiscoroError, ProtocolError
from discoro.interfaces import Interfaces, NicAddress, look_again, system_addresses, without_public
from discoro.link import is_loopback
from discoro.messages import MAX_ADDRESSES, MAX_NAME, Greeting
from discoro.peers import Peers
from discoro.requests import Incoming

log = logging.getLogger("discoro.moving")

WATCH_SECONDS = 2.0  # between two looks at the network: a look costs 0.3 ms, and nobody waits long for a cable
MISSED_SECONDS = 3.0  # asleep, or stopped, for less than this is not noticed: connections live through it
TELL_SECONDS = 3.0  # for a peer to take note of new addresses; it hears of them with the next greeting, too


class Clocks(NamedTuple):
    """Two clocks at one moment, in seconds: one stands still while the machine sleeps, the other goes on."""

    awake: float
    in_all: float


def clocks() -> Clocks:
    """Both clocks now. In this order, so that a pause between the two can only make the sleep look shorter."""
    going_on = time.CLOCK_BOOTTIME if sys.platform == "linux" else time.CLOCK_MONOTONIC
    in_all = time.clock_gettime(going_on)
    return Clocks(time.monotonic(), in_all)


class Awake:
    """Whether the machine slept, or this process stood still, since the last look; looked at about every `period` seconds."""

    def __init__(self, now: Clocks, period: float = WATCH_SECONDS) -> None:
        self._period = period
        self._last = now.awake
        self._slept = now.in_all - now.awake  # in all: the most that any look has shown, as a pause can only hide some

    def look(self, now: Clocks) -> float:
        """The seconds that were missed since the last look; 0.0 where these were too few to matter."""
        slept = max(0.0, now.in_all - now.awake - self._slept)
        stood_still = max(0.0, now.awake - self._last - self._period)
        self._slept += slept
        self._last = now.awake
        missed = slept + stood_still
        return missed if missed >= MISSED_SECONDS else 0.0


def said(now: Sequence[str], before: Sequence[str]) -> list[str]:
    """The addresses that others are told: those of now; while nothing but loopback is left, those from before.

    These may come back, and are listened on until then. And somebody with loopback alone would be taken for a process of
    whichever machine hears of it.
    """
    return list(now if not all(map(is_loopback, now)) else before)


class Doors(Protocol):
    """What this needs of the transport."""

    @property
    def all_open(self) -> bool: ...
    def move(self, hosts: Sequence[str]) -> list[str]: ...


class Around(Protocol):
    """What this needs of the mesh."""

    addresses: list[str]
    interfaces: Interfaces

    @property
    def me(self) -> Greeting: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...
    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float | None) -> Any: ...


class Moving:
    """The whereabouts of one process. `external`: the address that a NAT gives it, said before its own; `open_to_all`: whether
    it may listen where the whole Internet may reach it.
    """

    def __init__(self, around: Around, peers: Peers, doors: Doors, external: str | None, open_to_all: bool) -> None:
        self.on_change: list[Callable[[], None]] = []  # the network is another, or the machine slept
        self._around = around
        self._peers = peers
        self._doors = doors
        self._external = external
        self._open_to_all = open_to_all

    def __repr__(self) -> str:
        return f"<Moving {', '.join(self._around.addresses)}>"

    async def watch(self) -> None:
        """For as long as this process runs."""
        awake, missed = Awake(clocks()), 0.0
        while True:
            await asyncio.sleep(WATCH_SECONDS)
            missed += awake.look(clocks())
            try:
                found = system_addresses()
            except OSError as error:  # no descriptors left
                log.debug("! the network is not looked at: %s", error)
                continue
            self.look(found, missed)
            missed = 0.0

    def look(self, found: Iterable[NicAddress], missed: float) -> None:
        """These are the machine's addresses now, and so many seconds were slept before."""
        now = look_again(self._around.interfaces, found)
        changed = self.use(now if self._open_to_all else without_public(now))
        if missed:
            log.info("= the machine slept, or this process stood still, for %.0f s", missed)
        if changed or missed:
            self.look_around()

    def told(self, hosts: Sequence[str]) -> None:
        """As a worker: the node listens at these hosts from now on, or has slept."""
        self.use(Interfaces(usable=tuple(("", host) for host in hosts), wanted=tuple(hosts)))
        self.look_around()

    def look_around(self) -> None:
        """What failed before may work now: whoever is out of reach is dialled at once."""
        self._peers.dial_again()
        for tell in self.on_change:
            tell()

    def use(self, now: Interfaces) -> bool:
        """Listen at these addresses, and tell whoever is linked; whether they are others than before."""
        before, self._around.interfaces = self._around.interfaces, now
        changed = (now.usable, now.indexes) != (before.usable, before.indexes)
        if changed or not self._doors.all_open:
            self._listen_at(said(self.announced(self._doors.move(now.hosts)), self._around.addresses))
        return changed

    def announced(self, bound: Sequence[str]) -> list[str]:
        """Where others reach a process that listens there: behind a NAT that forwards the port, at its address first."""
        if not self._external:
            return list(bound)
        return [address_of(self._external, int(bound[0].rpartition(":")[2])), *bound]

    def opened(self, further: Sequence[str]) -> None:
        """There is a second door, at these addresses."""
        self._listen_at([*self._around.addresses, *further])

    def _listen_at(self, addresses: list[str]) -> None:
        before, self._around.addresses = self._around.addresses, addresses
        if addresses == before:
            return
        level = logging.WARNING if self._around.me.role == "node" else logging.INFO
        log.log(level, "= the addresses of this process are now %s; they were %s", ", ".join(addresses), ", ".join(before))
        self._peers.listen_at(addresses)
        for link in self._peers:
            self._around.spawn(self._tell(link.birth))

    async def _tell(self, birth: int) -> None:
        with contextlib.suppress(DiscoroError):  # it is lost, or will hear it with the next greeting
            await self._around.ask(birth, "moved", {"addresses": list(self._around.me.addresses)}, TELL_SECONDS)

    def on_moved(self, incoming: Incoming) -> None:
        """A peer tells where it listens from now on."""
        self._peers.moved(incoming.peer.birth, _addresses(incoming.arguments.get("addresses")))
        incoming.reply(0)


def _addresses(told: Any) -> Sequence[str]:
    if not isinstance(told, list) or len(told) > MAX_ADDRESSES:
        raise ProtocolError("moved without a list of addresses")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_NAME for each in told):
        raise ProtocolError("moved with something that is no address")
    return told
