"""A network in memory for processes that talk through Links: frames, connections, faults, and a clock moved by hand.

`Network` carries frames over connections and knows the faults, each a `with` block. `Process` does for its links what
`peers.py` does in earnest: it performs their actions, answers greetings, and collects what arrives. Nothing here sleeps or
reads a clock: `network.run(seconds)` moves the time and does whatever falls due, in order.

What a connection can do here is what TCP can: frames arrive in order or, from some point on, not at all; both ends learn of the
end separately, or only by a timeout. What was sent before an end may still arrive, also after newer connections stand.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from discoro import messages
from discoro.errors import ProtocolError
from discoro.link import Dial, Drop, Link, Send, SendGreeting, State, refusal
from discoro.messages import Greeting, Operation, Part

LATENCY = 0.001  # seconds
CONNECT_TIMEOUT = 1.0  # seconds until a dial into nothing fails
HEARTBEAT_TIMEOUT = 3.0  # seconds of a cut path until its connections end


class Network:
    """Connections between processes; `now` is the time of them all."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.processes: list[Process] = []
        self.connections: list[Connection] = []
        self.ids = itertools.count(1)
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._cut: list[tuple[Process, Process]] = []  # frames from the first to the second wait
        self._refused: list[str] = []
        self._silent: list[str] = []
        self._delay, self._duplicate, self._slowness = 0.0, 0.0, 0.0

    def after(self, seconds: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._order), event))

    def run(self, seconds: float) -> None:
        """Let that much time pass."""
        until = self.now + seconds
        while (due := self._next()) is not None and due <= until:
            self.now = max(self.now, due)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            else:
                for process in self.processes:
                    process.handle_timers()
        self.now = until

    def _next(self) -> float | None:
        times = [deadline for process in self.processes for deadline in process.deadlines()]
        if self._events:
            times.append(self._events[0][0])
        return min(times, default=None)

    # -------------------------------------------------------------- faults

    @contextmanager
    def partition(self, a: Process, b: Process) -> Iterator[None]:
        """Nothing passes between the two; their connections end when it lasts, new ones cannot be made."""
        with self.one_way_cut(a, b), self.one_way_cut(b, a):
            yield

    @contextmanager
    def one_way_cut(self, a: Process, b: Process) -> Iterator[None]:
        """Nothing passes from a to b. TCP needs both ways, so that new connections fail in either direction."""
        self._cut.append((a, b))
        mine = [each for each in self.connections if each.joins(a, b)]
        waiting = list(mine)  # for the heartbeat that does not come
        self.after(HEARTBEAT_TIMEOUT, lambda: self._break(waiting))
        yield
        waiting.clear()
        self._cut.remove((a, b))
        for each in mine:
            each.pump()

    @contextmanager
    def refused(self, address: str) -> Iterator[None]:
        """That address refuses connections."""
        self._refused.append(address)
        yield
        self._refused.remove(address)

    @contextmanager
    def silent(self, address: str) -> Iterator[None]:
        """That address does not answer: dials to it time out."""
        self._silent.append(address)
        yield
        self._silent.remove(address)

    @contextmanager
    def delay(self, most: float) -> Iterator[None]:
        """Every frame takes up to that many seconds longer."""
        before, self._delay = self._delay, most
        yield
        self._delay = before

    @contextmanager
    def duplicate(self, probability: float) -> Iterator[None]:
        """Frames arrive twice, with that probability each."""
        before, self._duplicate = self._duplicate, probability
        yield
        self._duplicate = before

    @contextmanager
    def reorder(self, most: float) -> Iterator[None]:
        """Connections made meanwhile are each slower by up to that many seconds: they overtake each other."""
        before, self._slowness = self._slowness, most
        yield
        self._slowness = before

    def drop(self, a: Process, b: Process) -> int:
        """Break every connection between the two, once; what is under way is lost from some frame on. Gives how many."""
        broken = [each for each in self.connections if each.joins(a, b)]
        self._break(broken)
        return len(broken)

    def _break(self, connections: Sequence[Connection]) -> None:
        for each in connections:
            each.cut()

    # -------------------------------------------------------------- for connections and processes

    def is_cut(self, a: Process, b: Process) -> bool:
        return (a, b) in self._cut

    def times(self) -> int:
        return 2 if self.random.random() < self._duplicate else 1

    def lag(self) -> float:
        return LATENCY + self.random.uniform(0, self._delay)

    def slowness(self) -> float:
        return self.random.uniform(0, self._slowness)

    def dial(self, process: Process, address: str) -> int:
        connection = next(self.ids)
        listener = next((each for each in self.processes if each.address == address and each.alive), None)
        cut = listener and (self.is_cut(process, listener) or self.is_cut(listener, process))
        process.dialling.add(connection)
        if address in self._silent or cut:
            self.after(CONNECT_TIMEOUT, lambda: process.ended(connection, "timed out"))
        elif listener is None or address in self._refused:
            self.after(self.lag(), lambda: process.ended(connection, "connection refused", refused=True))
        else:
            made = Connection(self, (process, listener), (connection, next(self.ids)))
            self.after(self.lag() + made.slowness, made.stands)
        return connection


class Connection:
    """Two ends, 0 the dialler's; frames wait in a queue for each direction."""

    def __init__(self, network: Network, processes: tuple[Process, Process], ids: tuple[int, int]) -> None:
        self.network, self.processes, self.ids = network, processes, ids
        self.slowness = network.slowness()
        self.open = [True, True]  # whether that end still listens to this connection
        self._pending: tuple[deque[_Item], deque[_Item]] = (deque(), deque())  # by the end that sent them
        self._standing = False

    def joins(self, a: Process, b: Process) -> bool:
        return any(self.open) and self.processes in ((a, b), (b, a))

    def stands(self) -> None:
        dialler, listener = self.processes
        if self.ids[0] not in dialler.dialling:
            return  # dropped meanwhile
        if not listener.alive:
            dialler.ended(self.ids[0], "connection refused", refused=True)
            return
        self._standing = True
        self.network.connections.append(self)
        dialler.connections[self.ids[0]] = self, 0
        listener.connections[self.ids[1]] = self, 1
        dialler.connected(self.ids[0])

    def send(self, end: int, parts: list[Part] | None, times: int = 1) -> None:
        """None: the end of the connection, behind what was sent before."""
        for _ in range(times):
            due = self.network.now + self.network.lag() + self.slowness
            if self._pending[end]:
                due = max(due, self._pending[end][-1].due)
            self._pending[end].append(_Item(due, parts))
            self.network.after(due - self.network.now, self.pump)

    def pump(self) -> None:
        """Deliver what is due, unless the path is cut."""
        for end in (0, 1):
            sender, receiver = self.processes[end], self.processes[1 - end]
            pending = self._pending[end]
            while pending and pending[0].due <= self.network.now and not self.network.is_cut(sender, receiver):
                self._deliver(1 - end, pending.popleft().parts)

    def _deliver(self, end: int, parts: list[Part] | None) -> None:
        if not self.open[end]:
            return
        if parts is None:
            self._end(end)
        else:
            self.processes[end].received(self.ids[end], parts)

    def _end(self, end: int) -> None:
        if self.open[end]:
            self.open[end] = False
            self._pending[end].clear()
            self.processes[end].ended(self.ids[end], "the connection broke")

    def cut(self) -> None:
        """Broken from outside: a beginning of what is under way still arrives; each end learns of it in its own time."""
        for end in (0, 1):
            self._lose_some(end)
            self.send(end, None)
            self.network.after(HEARTBEAT_TIMEOUT * self.network.random.random(), partial(self._end, 1 - end))

    def drop(self, end: int, flush: bool) -> None:
        """That end closes."""
        self.open[end] = False
        self._pending[1 - end].clear()
        if not flush:
            self._lose_some(end)
        self.send(end, None)

    def _lose_some(self, end: int) -> None:
        pending = self._pending[end]
        for _ in range(self.network.random.randint(0, len(pending))):
            pending.pop()


@dataclass(slots=True)
class _Item:
    due: float
    parts: list[Part] | None


@dataclass(eq=False)
class Process:
    """One process and its links. `arrived` is what each link gave, `ended_links` those that are over, in order."""

    network: Network
    me: Greeting
    connect_timeout: float = 5.0
    peer_timeout: float = 15.0
    alive: bool = True
    links: dict[int, Link] = field(default_factory=dict)
    ended_links: list[Link] = field(default_factory=list)
    arrived: dict[Link, list[Operation]] = field(default_factory=dict)
    connections: dict[int, tuple[Connection, int]] = field(default_factory=dict)
    dialling: set[int] = field(default_factory=set)
    log: list[messages.Frame] = field(default_factory=list)  # every frame that came
    _by_connection: dict[int, Link] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.network.processes.append(self)

    def __repr__(self) -> str:
        return f"<Process {self.me.name} {list(self.links.values())}>"

    @property
    def address(self) -> str:
        return self.me.addresses[0]

    # -------------------------------------------------------------- what tests ask

    def link(self, peer: Process, addresses: Sequence[str] | None = None) -> Link:
        """The live link to that process; a new one dials its address, or those given."""
        link = self.links.get(peer.me.birth)
        if link is None:
            link = self._new_link(peer.me.birth, peer.me.addresses if addresses is None else addresses)
            self.settle(link)
        return link

    def post(self, link: Link, operation: Operation, lane: Hashable = None) -> None:
        link.send(operation, lane)
        self.settle(link)

    def close(self, link: Link, reason: str = "done") -> None:
        link.close(reason)
        self.settle(link)

    def lose(self, link: Link, reason: str = "told so") -> None:
        link.lose(reason)
        self.settle(link)

    def crash(self) -> None:
        """The process is no more: its connections break, its address refuses."""
        self.alive = False
        for connection, end in list(self.connections.values()):
            connection.open[end] = False
            connection.cut()
        self.links.clear()
        self.dialling.clear()  # what stands later is nobody's
        self._by_connection.clear()

    # -------------------------------------------------------------- what the network tells

    def connected(self, connection: int) -> None:
        self.dialling.discard(connection)
        link = self._by_connection.get(connection)
        if link is not None:
            link.connected(connection, self.network.now)
            self.settle(link)

    def ended(self, connection: int, why: str, refused: bool = False) -> None:
        self.connections.pop(connection, None)
        if not self.alive:
            return
        self.dialling.discard(connection)
        link = self._by_connection.pop(connection, None)
        if link is not None:
            link.ended_connection(connection, self.network.now, why, refused)
            self.settle(link)

    def received(self, connection: int, parts: list[Part]) -> None:
        frame = messages.decode([bytes(part) for part in parts])
        self.log.append(frame)
        link = self._by_connection.get(connection)
        if isinstance(frame, messages.Hello):
            self._hello(connection, messages.decode_greeting(frame.greeting))
        elif link is not None:
            try:
                self._frame(link, connection, frame, sum(len(part) for part in parts))
            except ProtocolError as error:
                link.lose(f"it broke the protocol: {error}")
            self.settle(link)

    def handle_timers(self) -> None:
        for link in list(self.links.values()):
            deadline = link.next_deadline()
            if deadline is not None and deadline <= self.network.now:
                link.handle_timer(self.network.now)
                self.settle(link)
                deadline = link.next_deadline()
                assert deadline is None or deadline > self.network.now, f"{link} would spin"

    def deadlines(self) -> list[float]:
        deadlines = (link.next_deadline() for link in self.links.values())
        return [deadline for deadline in deadlines if deadline is not None]

    # -------------------------------------------------------------- frames and actions

    def _hello(self, connection: int, theirs: Greeting) -> None:
        link = self.links.get(theirs.birth)
        no = refusal(self.me, theirs)
        if no:
            return self._answer_and_drop(connection, messages.encode_refused(*no))
        known = link is not None and theirs.resume in (0, link.session)
        if link is not None and known and link.begun_anew(theirs):
            link.lose("the peer ended the link")
            self.settle(link)
            link = None
        if theirs.resume and (link is None or not known):
            return self._answer_and_drop(connection, messages.encode_gone(theirs.session))
        if link is None:
            link = self._new_link(theirs.birth, theirs.addresses)
        self._by_connection[connection] = link
        link.hello(connection, theirs, self.network.now)
        self.settle(link)

    def _frame(self, link: Link, connection: int, frame: messages.Frame, size: int) -> None:
        now = self.network.now
        match frame:
            case messages.Data():
                self.arrived[link] += link.data(connection, frame, size, now)
            case messages.Ack(session, received):
                link.acknowledged(connection, session, received, now)
            case messages.Welcome(_, greeting):
                link.welcome(connection, messages.decode_greeting(greeting), now)
            case messages.RefusedFrame(_, code, text):
                link.refused_greeting(connection, code, text, now)
            case messages.Gone(session) if session == link.session:
                link.gone(connection)
            case messages.Bye(session, reason) if session == link.session:
                link.bye(connection, reason)

    def _new_link(self, birth: int, addresses: Sequence[str]) -> Link:
        link = Link(
            self.me,
            self.network.random.getrandbits(63) + 1,
            self.network.now,
            birth=birth,
            addresses=addresses,
            connect_timeout=self.connect_timeout,
            peer_timeout=self.peer_timeout,
        )
        self.links[birth] = link
        self.arrived[link] = []
        return link

    def settle(self, link: Link) -> None:
        """Perform what the link wants."""
        while actions := link.actions(self.network.now):
            for action in actions:
                self._perform(link, action)
        if link.ended and self.links.get(link.birth) is link:
            del self.links[link.birth]
            self.ended_links.append(link)
        assert (link.connection is not None) == (link.state is State.OPEN), link

    def _perform(self, link: Link, action: Dial | Send | SendGreeting | Drop) -> None:
        match action:
            case Send(connection, parts):
                sent = self._send(connection, parts)
            case SendGreeting(connection, greeting, welcome):
                encode = messages.encode_welcome if welcome else messages.encode_hello
                sent = self._send(connection, encode(b"", messages.encode_greeting(greeting)))
            case Drop(connection, flush):
                self._by_connection.pop(connection, None)
                self._drop(connection, flush)
                return
            case Dial(address):
                connection = self.network.dial(self, address)
                self._by_connection[connection] = link
                link.dialled(connection, address)
                return
        if not sent:
            link.ended_connection(connection, self.network.now, "the connection broke")

    def _answer_and_drop(self, connection: int, parts: list[Part]) -> None:
        self._send(connection, parts)
        self._drop(connection, True)
        self.ended(connection, "dropped")  # where a hello came twice, a link stands on this connection

    def _send(self, connection: int, parts: list[Part]) -> bool:
        known = self.connections.get(connection)
        if known is not None:
            known[0].send(known[1], parts, self.network.times())
        return known is not None

    def _drop(self, connection: int, flush: bool) -> None:
        self.dialling.discard(connection)
        known = self.connections.pop(connection, None)
        if known is not None:
            known[0].drop(known[1], flush)


def greeting(name: str, birth: int, *addresses: str, cluster: str = "", python: str = "3.11") -> Greeting:
    """What a process says of itself."""
    return Greeting("0" * 16, 4711, birth, name, "node", cluster, python, "0.1", addresses or (f"{name}:1",))


def two(seed: int = 0, *, connect_timeout: float = 5.0, peer_timeout: float = 15.0) -> tuple[Network, Process, Process]:
    """A network of two processes: "low", and "high" whose birth is greater."""
    network = Network(seed)
    mes = greeting("low", 10), greeting("high", 20)
    low, high = (Process(network, me, connect_timeout, peer_timeout) for me in mes)
    return network, low, high
