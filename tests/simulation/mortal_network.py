"""The network in memory with what machines do besides: frames take their time, processes die, and start again in their place.

A frame arrives after the latency of its direction, in order, as TCP has it. A process that is killed on a machine that runs on
is told to its peers at once, and its port refuses; one that is unplugged is told by nobody, and its address does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from random import Random

from discoro.connections import Ended, Receiver
from discoro.messages import Part
from discoro.security import Security
from tests.support.memory_network import CONNECT_SECONDS, NOTICE_SECONDS, Delays, MemoryNetwork, MemoryTransport

Latencies = Mapping[tuple[str, str], float]  # (sender, receiver) -> seconds


class MortalNetwork(MemoryNetwork):
    """See the module; `latencies` default to none. A dial takes up to `slow_dials` seconds, as `chance` has it."""

    def __init__(self, latencies: Latencies, slow_dials: float = 0.0, chance: Random | None = None) -> None:
        super().__init__()
        self._slow_dials = slow_dials
        self._chance = chance or Random(0)
        self.silent: set[str] = set()  # addresses of unplugged machines
        self._latencies = latencies
        self._last: dict[tuple[str, str], float] = {}  # when the latest frame of a direction arrives

    def mortal(self, name: str, host: str, security: Security, receiver: Receiver) -> MortalTransport:
        """The transport of the process `name`; `host`, where not "", is a further address of it."""
        return MortalTransport(self, name, host, security, receiver)

    def delays(self, sender: str, receiver: str, parts: list[Part]) -> Delays:
        way = sender, receiver
        seconds = self._latencies.get(way, 0.0)
        delays = super().delays(sender, receiver, parts)
        return [delay + self._behind(way, seconds) for delay in delays] if seconds else delays

    def _behind(self, way: tuple[str, str], seconds: float) -> float:
        """How long from now until the latency is over, and all that was sent that way before has arrived."""
        now = asyncio.get_running_loop().time()
        self._last[way] = max(now + seconds, self._last.get(way, 0.0) + 1e-6)
        return self._last[way] - now

    def dial_seconds(self) -> float:
        """How long the next dial takes."""
        return self._chance.uniform(0.0, self._slow_dials) if self._slow_dials else 0.0

    def end(self, transport: MortalTransport, silently: bool) -> None:
        """Its process is dead: nothing comes from it any more, and its peers learn it now or by its silence."""
        addresses = [address for address, each in self.listening.items() if each is transport]
        for address in addresses:
            del self.listening[address]
        if silently:
            self.silent.update(addresses)
        for wire in [each for each in self._wires if any(end.owner is transport for end in each.ends)]:
            for end in wire.ends:
                end.hears = end.hears and end.owner is not transport
            if silently:
                wire.loop.call_later(NOTICE_SECONDS, wire.break_, "no heartbeat")
            else:
                wire.break_("its process died")


class MortalTransport(MemoryTransport):
    """As a MemoryTransport, until it dies."""

    def __init__(self, network: MortalNetwork, name: str, host: str, security: Security, receiver: Receiver) -> None:
        super().__init__(network, name, security, receiver)
        self._mortals = network
        self._host = host
        self.dead = False

    def listen(self, hosts: Sequence[str], ports: range | None) -> list[str]:
        bound = super().listen(hosts, ports)
        port = bound[0].rpartition(":")[2]
        everywhere = [*bound, f"{self._host}:{port}"] if self._host else bound
        self._mortals.listening.update(dict.fromkeys(everywhere, self))
        self._mortals.silent.difference_update(everywhere)
        return bound

    def die(self, silently: bool) -> None:
        """Be dead at once: whatever is still called on it does nothing."""
        self.dead = True
        self._lines.clear()
        self._mortals.end(self, silently)

    def dial(self, address: str) -> int:
        return next(self._numbers) if self.dead else super().dial(address)

    async def close(self) -> None:
        if not self.dead:
            await super().close()

    def _reach(self, conn: int, address: str) -> None:
        seconds = self._mortals.dial_seconds()
        if seconds:
            self.loop.call_later(seconds, self._arrive, conn, address)
        else:
            self._arrive(conn, address)

    def _arrive(self, conn: int, address: str) -> None:
        if self.dead or self._closed:
            return
        if address in self._mortals.silent:
            self.loop.call_later(CONNECT_SECONDS, self.tell_ended, conn, Ended.UNREACHABLE, f"{address}: no answer")
        else:
            super()._reach(conn, address)
