"""ZeroMQ sockets, as both sides of a connection use them: made with their options, watched, read and written.

Never: decides what to do about a frame or an event. It knows no connection, only sockets.

How the parts play together: `started_context` makes the one network thread, `new_socket` a socket with the options
that ROUTER and DEALER share. Beside each of these stands a monitor (`monitor_of`), which tells what happened to its
TCP connections; `close_watched` closes the two. A `Pump` reads one socket from the event loop; `read_frame`,
`write_parts` and `read_event` are what is read and written there. `Owner` is what either side needs of its transport.

Two frames are the transport's own, known by an empty first part. One empty part means nothing: a ROUTER sends
it to learn whether the connection still stands. Two empty parts mean "closed": a ROUTER cannot close a single
one of its connections, so it asks the side that dialled to do it.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import zmq

from discoro.connections import FRAME_BYTES, FRAME_PARTS, VIEW_FROM, Ended, Receiver
from discoro.messages import Part

if TYPE_CHECKING:
    from discoro.security import Security

Socket = zmq.Socket[bytes]

QUEUE_FRAMES = 1000  # to be sent, a backstop: the layer above has 256 under way, and libzmq counts up to 500 that have left
# Unread ones have no limit. At a limit, libzmq (4.3.5) stops reading, and where that connection then breaks, it ends the whole
# process at the next heartbeat (stream_engine_base.cpp, `!_io_error`): whoever may send could do so while Python is busy. It
# would save little memory: libzmq counts frames, and a frame may have any number of parts, from somebody who means no good.
# From others no more comes than their windows hold; and once Python reads, the limits of the layers above count again.
UNREAD_FRAMES = 0
HEARTBEAT_MS = 1000  # half of it drops connections that lose 20 % of their packets
HEARTBEAT_LIMIT_MS = 3000  # an unplugged cable is noticed 3 to 4 s later
HANDSHAKE_MS = 3000  # after it a stranger who says nothing loses his place (libzmq's own: 30 s)
FLUSH_MS = 500  # how long what was sent may still leave after an orderly close
QUICK = 300e-6  # seconds: twice what a round trip takes on one machine, far less than a scheduler's slice
CROWDED = 2e-3  # seconds that others keep the processor when it is left to them: they compute, and do not only answer
CROWDED_FOR = 0.25  # seconds in which it is better to sleep then: who is woken is let in before those who compute
FRAMES_PER_TURN = 64  # then others have their turn: about 0.2 ms
MAX_SOCKETS = 8192  # three for each connection we dial; libzmq's own limit is 1023
START_DESCRIPTORS = 8  # a context takes five and a socket one; the rest is for who comes in between

NOTHING: tuple[Part, ...] = (b"",)
CLOSED: tuple[Part, ...] = (b"", b"")

# Plain numbers, looked up once: pyzmq's enums cost as much as the calls that take them.
NOW = int(zmq.DONTWAIT)
_MORE = int(zmq.SNDMORE)
NOW_MORE = NOW | _MORE
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


class Owner(Protocol):
    """What either side of a connection needs of the transport that it belongs to."""

    loop: asyncio.AbstractEventLoop
    receiver: Receiver
    context: zmq.Context[Socket]

    @property
    def keys(self) -> list[Security]:
        """Those that a dial tries, in this order."""

    def tell_ended(self, conn: int, how: Ended, detail: str) -> None:
        """Passes on the end of a connection, unless it was told or dropped before. From the loop only."""


def started_context() -> zmq.Context[Socket]:
    """A context with its threads."""
    require_descriptors()
    context: zmq.Context[Socket] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    context.socket(zmq.PAIR).close()  # the first one starts the threads
    return context


def require_descriptors() -> None:
    """OSError where none are left: libzmq would end the whole process while starting, or stop half-way."""
    spare: list[int] = []
    try:
        while len(spare) < START_DESCRIPTORS:
            spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for descriptor in spare:
            os.close(descriptor)


def new_socket(context: zmq.Context[Socket], kind: int) -> Socket:
    """A socket with the options that ROUTER and DEALER share; not yet secured."""
    made = context.socket(kind)
    made.linger = 0
    made.sndhwm = QUEUE_FRAMES
    made.rcvhwm = UNREAD_FRAMES
    made.maxmsgsize = FRAME_BYTES
    made.heartbeat_ivl = HEARTBEAT_MS
    made.heartbeat_timeout = made.heartbeat_ttl = HEARTBEAT_LIMIT_MS
    made.handshake_ivl = HANDSHAKE_MS
    return made


# --- reading and writing


class Pump:
    """Reads one ZeroMQ socket from the event loop: `take` reads one item, False where there is none.

    The socket's descriptor is edge-triggered: it tells once that there may be news, and any call on the socket
    may take that away. So a turn reads until there is nothing more, or is followed by another, and every send
    is followed by a look.

    Where the last answer came within QUICK of what was sent, the loop is kept awake for as long after the next: to sleep and be
    woken would take longer than the answer does. One that does not come in time ends that, until another is quick by itself;
    and so do others who want the processor for themselves, for a while.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        source: Socket,
        take: Callable[[], bool],
        drained: Callable[[], None],
    ) -> None:
        """`drained` is called after each turn that left nothing unread."""
        self._loop = loop
        self._source = source
        self._take = take
        self._drained = drained
        self._descriptor = int(source.get(zmq.FD))
        self._reading = self._soon = self._stopped = False
        self._sent_at = -QUICK
        self._quick = False  # the last answer was
        self._awaits = self._awake = False  # an answer; and the loop is kept awake for it
        self._sleeps_until = 0.0  # as others compute here
        loop.add_reader(self._descriptor, self._turn)
        self.wake()  # for what came before

    def wake(self) -> None:
        """Take a turn soon."""
        if not self._soon and not self._stopped:
            self._soon = True
            self._loop.call_soon(self._turn)

    def after_send(self) -> None:
        """The look that must follow each send; while a turn is under way or announced, that turn looks."""
        if not (self._reading or self._soon) and self._has_more():
            self.wake()
        self._sent_at = self._loop.time()
        self._awaits = self._quick and self._sent_at >= self._sleeps_until
        if self._awaits and not self._awake:
            self._awake = True
            self._loop.call_soon(self._stay_awake)

    def _stay_awake(self) -> None:
        now = self._loop.time()
        if self._awaits and not self._stopped and now < self._sent_at + QUICK:
            os.sched_yield()  # whoever wants this processor has it first, the one who answers among them
            self._loop.call_soon(self._stay_awake)
            if self._loop.time() > now + CROWDED:
                self._sleeps_until = now + CROWDED_FOR
            return
        if self._awaits:
            self._quick = False
        self._awaits = self._awake = False

    def stop(self) -> None:
        """Read no more; must come before the socket is closed."""
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._descriptor)

    def _has_more(self) -> bool:
        """Asked for, as that takes half the time of a read that fails."""
        return bool(int(self._source.get(_EVENTS)) & _POLLIN)

    def _turn(self) -> None:
        self._soon = False
        if self._stopped:
            return
        self._reading = more = True
        self._quick, self._awaits = self._loop.time() < self._sent_at + QUICK, False
        try:
            for _ in range(FRAMES_PER_TURN):
                more = self._take() and not self._stopped and self._has_more()
                if not more:
                    break
            if self._stopped:
                return
        finally:  # an exception of the receiver as well: what follows is still to be read
            self._reading = False
            if more:
                self.wake()
        if not more:
            self._drained()


def nothing_to_do() -> None:
    """For a pump that need not tell when all is read."""


def read_frame(source: Socket, flags: int = 0) -> tuple[list[Part], zmq.Frame]:
    """The (rest of the) message at hand, and its first part as libzmq has it. One part too many is kept, to tell."""
    first = part = source.recv(flags, False)
    parts: list[Part] = [_plain(part)]
    while part.more:
        part = source.recv(copy=False)
        if len(parts) <= FRAME_PARTS:
            parts.append(_plain(part))
    return parts, first


def _plain(part: zmq.Frame) -> Part:
    return part.bytes if len(part) < VIEW_FROM else part.buffer


def write_parts(target: Socket, parts: Sequence[Part]) -> None:
    """The rest of a message whose first part was accepted: now libzmq takes or drops all of it."""
    for part in parts[:-1]:
        target.send(part, NOW_MORE)
    target.send(parts[-1], NOW)


# --- monitors

_monitors = itertools.count(1)


def monitor_of(watched: Socket, events: int) -> Socket:
    """A socket that tells these events of `watched`. Its queue has no limit: a full one would stop libzmq's
    network thread while Python is busy, and all connections with it. An event costs its cause a TCP connection.
    """
    endpoint = f"inproc://monitor-{next(_monitors)}"
    watched.monitor(endpoint, events)
    monitor: Socket = watched.context.socket(zmq.PAIR)
    monitor.rcvhwm = 0
    monitor.linger = 0
    monitor.connect(endpoint)
    return monitor


def close_watched(watched: Socket, monitor: Socket, linger: int) -> None:
    """In this order. A socket lives on in libzmq's threads for a while: one that still found its monitor's other end
    gone would stop the network thread for ever, and all connections with it (seen within a hundred dials).
    """
    watched.monitor(None, 0)
    watched.close(linger)
    monitor.close(0)


def read_event(monitor: Socket) -> tuple[int, int] | None:
    """(event, its value), or None; as zmq_socket_monitor(3) packs them: 16 and 32 bits, then the endpoint."""
    try:
        head = monitor.recv(NOW)
    except zmq.Again:
        return None
    monitor.recv()
    return int.from_bytes(head[:2], sys.byteorder), int.from_bytes(head[2:6], sys.byteorder)
