"""A network inside one process: the same promises as `discoro.transport.Transport`, with no socket and no thread.

Never: waits, sleeps, or touches anything but the event loop's `call_soon` and `call_later`, so that a loop whose
clock is moved by hand drives it. Held to the same contract as the real one by tests/test_transport.py.

How it plays together: `MemoryNetwork.transport(name, …)` makes one process's transport; all of one network see
each other's addresses, as if on one machine. A `Wire` is one connection with an `_End` on each side. Faults are
`with` blocks on the network: `partition`, `one_way`, `firewalled`, `dropping`, `delaying`, `duplicating`; and `cut`, which
happens once. Whatever a process is told, it is told in its own context: a loop that holds a process back holds that back too.
Dropping and duplicating inside one connection is what TCP never does: they are for what must survive even that.
"""

from __future__ import annotations

import asyncio
import contextvars
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from discoro.connections import ANOTHER_KEY, FRAME_BYTES, FRAME_PARTS, VIEW_FROM, Ended, Receiver
from discoro.errors import PortTaken
from discoro.messages import Part
from discoro.security import Security
from discoro.zmtp import OPEN_HERE, OPEN_THERE

CONNECT_SECONDS = 1.0  # as the real one: a dial that nobody answers
NOTICE_SECONDS = 3.0  # as the real one: heartbeats missed before a connection counts as broken
FIRST_FREE_PORT = 49152
SOON_AFTER = 1e-6  # seconds: timers of the same moment come in any order

Which = Callable[[str, str, list[Part]], bool]  # (name of the sender, of the receiver, parts)
Delays = list[float]  # seconds after which a frame arrives, once each


def every_frame(sender: str, receiver: str, parts: list[Part]) -> bool:
    """The default of all faults."""
    return True


class MemoryNetwork:
    """What connects the transports that it makes."""

    def __init__(self) -> None:
        self.listening: dict[str, MemoryTransport] = {}  # by address
        self._wires: list[Wire] = []
        self._partitions: list[frozenset[str]] = []
        self._one_ways: list[tuple[str, str]] = []  # from one to the other nothing passes
        self._firewalls: list[tuple[str, Ended]] = []
        self._faults: list[tuple[Callable[[Delays], Delays], Which]] = []
        self._free_ports = itertools.count(FIRST_FREE_PORT)
        self.context = contextvars.copy_context()  # of what happens in no process

    def transport(self, name: str, security: Security, receiver: Receiver) -> MemoryTransport:
        """The transport of the process called `name` in the faults below."""
        return MemoryTransport(self, name, security, receiver)

    def cut(self, a: str, b: str) -> None:
        """Break the connections between these two, once; both sides are told. What is under way is lost."""
        for wire in self._between(a, b):
            wire.break_("the connection was cut")

    @contextmanager
    def partition(self, a: str, b: str) -> Iterator[None]:
        """Nothing passes between these two. Healed within NOTICE_SECONDS, nothing is lost; after that both
        sides are told of a broken connection, and what was under way is lost. A dial is UNREACHABLE after
        CONNECT_SECONDS.
        """
        pair = frozenset((a, b))
        self._partitions.append(pair)
        for wire in self._between(a, b):
            wire.loop.call_later(NOTICE_SECONDS, self._notice, wire, pair)
        try:
            yield
        finally:
            self._partitions.remove(pair)
            for wire in self._between(a, b):
                wire.release()

    @contextmanager
    def one_way(self, sender: str, receiver: str) -> Iterator[None]:
        """Nothing passes from one to the other; what is said the other way still does. As a partition otherwise: such a
        connection breaks within NOTICE_SECONDS, since nobody hears that it is alive, and none can be made.
        """
        way = (sender, receiver)
        self._one_ways.append(way)
        for wire in self._between(*way):
            wire.loop.call_later(NOTICE_SECONDS, self._notice, wire, frozenset(way))
        try:
            yield
        finally:
            self._one_ways.remove(way)
            for wire in self._between(*way):
                wire.release()

    @contextmanager
    def firewalled(self, name: str, how: Ended = Ended.UNREACHABLE) -> Iterator[None]:
        """Nobody can dial that process, which itself dials others as ever. UNREACHABLE: the firewall drops, and
        a dial takes CONNECT_SECONDS; REFUSED: it rejects at once, as if nothing listened there.
        """
        firewall = (name, how)
        self._firewalls.append(firewall)
        try:
            yield
        finally:
            self._firewalls.remove(firewall)

    @contextmanager
    def dropping(self, which: Which = every_frame) -> Iterator[None]:
        """Frames vanish."""
        with self._fault(lambda delays: [], which):
            yield

    @contextmanager
    def delaying(self, seconds: float, which: Which = every_frame) -> Iterator[None]:
        """Frames arrive later, and those not chosen overtake them."""
        with self._fault(lambda delays: [delay + seconds for delay in delays], which):
            yield

    @contextmanager
    def duplicating(self, which: Which = every_frame) -> Iterator[None]:
        """Frames arrive twice."""
        with self._fault(lambda delays: delays * 2, which):
            yield

    @contextmanager
    def _fault(self, change: Callable[[Delays], Delays], which: Which) -> Iterator[None]:
        fault = (change, which)
        self._faults.append(fault)
        try:
            yield
        finally:
            self._faults.remove(fault)

    def _notice(self, wire: Wire, pair: frozenset[str]) -> None:
        if self.parted(set(pair)):
            wire.break_("no heartbeat")

    def _between(self, a: str, b: str) -> list[Wire]:
        self._wires = [wire for wire in self._wires if wire.open]
        return [wire for wire in self._wires if wire.names == {a, b}]

    # For the transports.

    def connect(self, wire: Wire) -> None:
        """A wire to be cut and partitioned from now on."""
        self._wires.append(wire)

    def leave(self, transport: MemoryTransport) -> None:
        """It is closed: nobody finds it any more, and its connections end."""
        self.listening = {address: each for address, each in self.listening.items() if each is not transport}
        for wire in self._wires:
            for end in wire.ends:
                if end.owner is transport:
                    wire.hang_up(end, flush=True)

    def parted(self, names: set[str]) -> bool:
        """Whether nothing passes between them, in one direction at least: no connection can be made, or lives on."""
        return names in self._partitions or any({*way} == names for way in self._one_ways)

    def holds(self, sender: str, receiver: str) -> bool:
        """Whether what one says does not reach the other now."""
        if not (self._partitions or self._one_ways):
            return False
        return {sender, receiver} in self._partitions or (sender, receiver) in self._one_ways

    def firewall_of(self, name: str) -> Ended | None:
        """How a dial to that process ends at its firewall; None where it has none."""
        return next((how for behind, how in self._firewalls if behind == name), None)

    def delays(self, sender: str, receiver: str, parts: list[Part]) -> Delays:
        """What the faults of this moment make of one frame."""
        delays = [0.0]
        for change, which in self._faults:
            if which(sender, receiver, parts):
                delays = change(delays)
        return delays

    def bind(self, transport: MemoryTransport, hosts: Sequence[str], ports: range | None) -> list[str]:
        """As `Transport.listen`."""
        for port in self._free_ports if ports is None else ports:
            addresses = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in dict.fromkeys(hosts)]
            if not any(address in self.listening for address in addresses):
                self.listening.update(dict.fromkeys(addresses, transport))
                return addresses
        raise PortTaken(f"each port of {ports} is taken")


class _End:
    """One side of a wire: whose it is, its number there, whether it still wants to hear."""

    def __init__(self, owner: MemoryTransport, conn: int) -> None:
        self.owner = owner
        self.conn = conn  # 0 until the listening side gets its first frame
        self.hears = True
        self.sent_until = 0.0  # when the last delayed frame from here arrives
        self.last: dict[float, float] = {}  # the same, by delay


class Wire:
    """One connection. Its frames pass in order, one turn of the loop later."""

    def __init__(self, network: MemoryNetwork, dialler: MemoryTransport, conn: int, listener: MemoryTransport) -> None:
        self.loop = dialler.loop
        self.names = {dialler.name, listener.name}
        self.open = True
        self._network = network
        self._held: list[tuple[_End, list[Part]]] = []
        self.ends = (_End(dialler, conn), _End(listener, 0))
        network.connect(self)

    def other(self, end: _End) -> _End:
        return self.ends[end is self.ends[0]]

    def send(self, end: _End, parts: Sequence[Part]) -> bool:
        """As `Transport.send`, from this end."""
        if not self.open:
            return False
        to = self.other(end)
        frame = [_arrived(part) for part in parts]
        for delay in self._network.delays(end.owner.name, to.owner.name, frame):
            if delay:
                # asyncio keeps no order among timers of one moment; those of one delay do not overtake each other
                when = max(self.loop.time() + delay, end.last.get(delay, 0.0) + 1e-7)
                end.last[delay] = when
                end.sent_until = max(end.sent_until, when)
                self.loop.call_at(when, self._pass, to, frame, context=to.owner.context)
            else:
                self.loop.call_soon(self._pass, to, frame, context=to.owner.context)
        return True

    def release(self) -> None:
        """A fault is over: what it held passes, before anything else."""
        for end in self.ends:
            self.loop.call_soon(self._drain, end, context=end.owner.context)
        for end in self.ends:
            if not end.hears:
                self.loop.call_soon(self.hang_up, end, False)

    def _drain(self, to: _End) -> None:
        frames = [frame for end, frame in self._held if end is to]
        self._held = [(end, frame) for end, frame in self._held if end is not to]
        for frame in frames:
            self._pass(to, frame)

    def break_(self, detail: str) -> None:
        """Both sides are told, and what is under way is lost."""
        if self.open:
            self.open = False
            for end in self.ends:
                self.loop.call_soon(self._tell_ended, end, detail, context=end.owner.context)

    def hang_up(self, end: _End, flush: bool) -> None:
        """This end hears no more; the other one is told, with `flush` after the frames under way to it."""
        end.hears = False
        if not self.open or self._holds(self.other(end)):  # the goodbye as well
            return
        if flush and end.sent_until > self.loop.time():
            self.loop.call_at(end.sent_until + SOON_AFTER, self.hang_up, end, False, context=self._network.context)
        elif flush:
            self.loop.call_soon(self.hang_up, end, False, context=self._network.context)
        else:
            self.open = False
            other = self.other(end)
            self.loop.call_soon(self._tell_ended, other, "the other side closed the connection", context=other.owner.context)

    def _holds(self, to: _End) -> bool:
        """Whether what goes to that end has to wait."""
        return self._network.holds(self.other(to).owner.name, to.owner.name)

    def _pass(self, to: _End, frame: list[Part]) -> None:
        if self._holds(to) or any(before is to for before, _ in self._held):
            self._held.append((to, frame))
        elif self.open and to.hears:
            if not to.conn:
                to.owner.admit(self, to)
            if to.hears:
                to.owner.receiver.received(to.conn, list(frame))

    def _tell_ended(self, end: _End, detail: str) -> None:
        if end.hears and end.conn:
            end.hears = False
            end.owner.tell_ended(end.conn, Ended.BROKEN, detail)


class MemoryTransport:
    """The same calls and callbacks as `discoro.transport.Transport`, whose docstrings hold here too."""

    def __init__(self, network: MemoryNetwork, name: str, security: Security, receiver: Receiver) -> None:
        self.loop = asyncio.get_running_loop()
        self.context = contextvars.copy_context()  # of its process
        self.name = name
        self.security = security
        self.receiver = receiver
        self._network = network
        self._numbers = itertools.count(1)
        self._lines: dict[int, tuple[Wire, _End] | None] = {}  # None: a dial under way
        self._addresses: list[str] = []
        self._closed = False

    def listen(self, hosts: Sequence[str], ports: range | None) -> list[str]:
        if self._closed or self._addresses:
            raise RuntimeError(f"{self!r} cannot listen")
        self._addresses = self._network.bind(self, hosts, ports)
        return list(self._addresses)

    @property
    def all_open(self) -> bool:
        return True

    def move(self, hosts: Sequence[str]) -> list[str]:
        port = int(self._addresses[0].rpartition(":")[2])
        wanted = [f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host in dict.fromkeys(hosts)]
        free = [each for each in wanted if self._network.listening.get(each, self) is self]
        self._network.listening.update(dict.fromkeys(free, self))
        self._addresses = free
        return list(free)

    def dial(self, address: str) -> int:
        if self._closed:
            raise RuntimeError(f"{self!r} is closed")
        conn = next(self._numbers)
        self._lines[conn] = None
        self.loop.call_soon(self._reach, conn, address)
        return conn

    def send(self, conn: int, parts: Sequence[Part]) -> bool:
        sizes = [memoryview(part).nbytes for part in parts]
        if not 0 < len(parts) <= FRAME_PARTS or not sizes[0] or sum(sizes) > FRAME_BYTES:
            raise ValueError(f"not a frame: {len(parts)} parts of {sum(sizes)} bytes in all")
        line = self._lines.get(conn)
        return line is not None and line[0].send(line[1], parts)

    def drop(self, conn: int, flush: bool = False) -> None:
        line = self._lines.pop(conn, None)
        if line is not None:
            wire, end = line
            wire.hang_up(end, flush or end is wire.ends[1])

    def keep(self, conn: int) -> None:
        """Nothing to do: no connection here is a stranger's."""

    def probe(self, conn: int) -> None:
        """Nothing to do: the end of a wire is always told."""

    async def close(self) -> None:
        self._closed = True
        self._addresses = []
        self._lines.clear()
        self._network.leave(self)

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"listening on {', '.join(self._addresses) or 'nothing'}"
        return f"<MemoryTransport {self.name} {state}, {len(self._lines)} connections>"

    # For the wires.

    def admit(self, wire: Wire, end: _End) -> None:
        """The first frame of a connection that somebody made to us."""
        end.conn = next(self._numbers)
        self._lines[end.conn] = (wire, end)
        self.receiver.connected(end.conn)

    def tell_ended(self, conn: int, how: Ended, detail: str) -> None:
        """Once for each connection, and not for those dropped."""
        if conn in self._lines:
            del self._lines[conn]
            self.receiver.ended(conn, how, detail)

    # The steps of a dial.

    def _reach(self, conn: int, address: str) -> None:
        there = self._network.listening.get(address)
        stopped = self._network.firewall_of(there.name) if there is not None else None
        if there is None or stopped is Ended.REFUSED:
            self.tell_ended(conn, Ended.REFUSED, f"{address}: nothing listens there")
        elif stopped or self._network.parted({self.name, there.name}):
            self.loop.call_later(CONNECT_SECONDS, self.tell_ended, conn, Ended.UNREACHABLE, f"{address}: no answer")
        elif _key_of(there.security) != _key_of(self.security):
            self.tell_ended(conn, Ended.DENIED, f"{address}: {_why_denied(self.security, there.security)}")
        elif conn in self._lines:
            wire = Wire(self._network, self, conn, there)
            self._lines[conn] = (wire, wire.ends[0])
            self.receiver.connected(conn)


def _arrived(part: Part) -> Part:
    """A part as it arrives: bytes, and from 64 KiB on a view, for the real one gives views too."""
    copy = bytes(part)
    return copy if len(copy) < VIEW_FROM else memoryview(bytearray(copy))


def _why_denied(mine: Security, other: Security) -> str:
    if mine.open != other.open:
        return OPEN_HERE if mine.open else OPEN_THERE
    return f"it has {ANOTHER_KEY}"


def _key_of(security: Security) -> tuple[bool, bytes]:
    """Equal for two sides that a handshake would bring together."""
    return security.open, security.mac(b"")
