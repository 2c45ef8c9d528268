"""Sockets: carries frames to and from other processes, and tells when a connection stands and how it ended.

Never: reads a frame, dials again, resends, decides who a peer is, or blocks the event loop. A connection is
one TCP connection, known by a number that is never used again; what outlives it is up to the layer above.

How it plays together: a `Transport` owns a ZeroMQ context with one thread for the network. `_Listener` is its
ROUTER, with an `_Inbound` per connection that others made; a `_Dial` is a DEALER, one connection of our own
making. Beside each of these sockets stands a monitor, which tells what happened to its TCP connections. A
`_Pump` reads one socket from the event loop. All news goes to the `Receiver`, always from the loop, never
from inside a call to the transport.

Two frames are the transport's own, known by an empty first part. One empty part means nothing: a ROUTER sends
it to learn whether the connection still stands. Two empty parts mean "closed": a ROUTER cannot close a single
one of its connections, so it asks the side that dialled to do it.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import ipaddress
import itertools
import logging
import os
import socket
import sys
import threading
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Protocol

import zmq

from discoro.errors import ConfigError, PortTaken
from discoro.messages import KIB, MAX_FRAME, Part

if TYPE_CHECKING:
    from discoro.security import Security

log = logging.getLogger("discoro.transport")

Socket = zmq.Socket[bytes]

FRAME_BYTES = MAX_FRAME + 4 * KIB  # in all parts; libzmq buffers that much for a stranger, so no more
FRAME_PARTS = 4096  # reading them takes about 3 ms of the loop's time
VIEW_FROM = 64 * KIB  # bytes; a smaller part is copied out: it may pin a buffer that it shares with others
QUEUE_FRAMES = 1000  # a backstop, never reached: the layer above keeps fewer on their way to one peer
HEARTBEAT_MS = 1000  # half of it drops connections that lose 20 % of their packets
HEARTBEAT_LIMIT_MS = 3000  # an unplugged cable is noticed 3 to 4 s later
CONNECT_MS = 1000  # the kernel repeats its SYN ever less often: a healed cable would be noticed late
HANDSHAKE_MS = 3000  # after it a stranger who says nothing loses his place (libzmq's own: 30 s)
DIAL_SECONDS = 4.5  # connect and handshake; the last resort where libzmq reports nothing at all
HANGUPS = 3  # handshakes cut off before it counts as denied: one may be a restart of the peer
HANGUP_PAUSE = 0.05  # seconds between those tries
NEVER_MS = 3_600_000  # libzmq must not reconnect: a successor on the port would get what waits here
FLUSH_MS = 500  # how long what was sent may still leave after an orderly close
FRAMES_PER_TURN = 64  # then others have their turn: about 0.2 ms
END_SECONDS = 0.1  # the end of a connection is told by then, frames still unread or not
LOOK_AGAIN = (0.01, 0.03, 0.05)  # seconds; a ROUTER learns of an end a moment after its monitor has told it
MAX_SOCKETS = 8192  # three for each connection we dial; libzmq's own limit is 1023
START_DESCRIPTORS = 8  # a context takes five and a socket one; the rest is for who comes in between
FREE_PORT_TRIES = 16  # for a port that is free on several hosts at once

_NOTHING: tuple[Part, ...] = (b"",)
_CLOSED: tuple[Part, ...] = (b"", b"")

# Plain numbers, looked up once: pyzmq's enums cost as much as the calls that take them.
_NOW = int(zmq.DONTWAIT)
_MORE = int(zmq.SNDMORE)
_NOW_MORE = _NOW | _MORE
_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)


class Ended(enum.Enum):
    """How a connection ended, or why a dial came to nothing."""

    REFUSED = "refused"  # nothing listens at that port
    BROKEN = "broken"  # it stood, and does no more
    DENIED = "denied"  # somebody answered, and the handshake failed: another key, or one side is open
    SILENT = "silent"  # somebody answered, and no handshake followed: hung, stopped, or not discoro
    UNREACHABLE = "unreachable"  # no way there, or no answer from there


class Receiver(Protocol):
    """Who gets the news of a transport. What these raise goes to the loop's exception handler."""

    def connected(self, conn: int) -> None:
        """A dial succeeded; or somebody connected to us, told with his first frame."""

    def received(self, conn: int, parts: list[Part]) -> None:
        """A frame: at least one part, the first not empty. From 64 KiB on a part is a view of libzmq's memory."""

    def ended(self, conn: int, how: Ended, detail: str) -> None:
        """The last news of that connection, told once; not told for those that `drop` or `close` ended."""


class Transport:
    """The sockets of one process, or one of several such sets in it. Made inside a running event loop."""

    def __init__(self, security: Security, receiver: Receiver) -> None:
        """`security` readies each socket before use; `receiver` gets all news. OSError: no descriptors left."""
        self.loop = asyncio.get_running_loop()
        self.security = security
        self.receiver = receiver
        self.context = _started_context()
        self._lines: dict[int, _Inbound | _Dial] = {}
        self._listener: _Listener | None = None
        self._numbers = itertools.count(1)
        self._addresses: list[str] = []
        self._terminated = asyncio.Event()
        self._terminator: threading.Thread | None = None
        _transports.add(self)

    def listen(self, hosts: Sequence[str], ports: range | None) -> list[str]:
        """Let others connect: on all `hosts` (IP addresses) at one port, the first of `ports` that is free on
        all of them, or any free one for None. Returns the addresses. At most once per transport.

        Raises PortTaken where no port is free, ConfigError for a host or port that cannot be listened on, OSError
        where the process has no descriptors left.
        """
        self._refuse_when_closed()
        if self._listener is not None:
            raise RuntimeError(f"{self!r} listens already")
        hosts = [_checked_host(host) for host in dict.fromkeys(hosts)]
        _require_descriptors()
        listener = _Listener(self)
        try:
            port = listener.bind(hosts, ports)
        except BaseException:
            listener.close(linger=0)
            raise
        self._listener = listener
        self._addresses = [_address(host, port) for host in hosts]
        log.debug("= listening on %s", ", ".join(self._addresses))
        return list(self._addresses)

    def dial(self, address: str) -> int:
        """Connect to "host:port", host being an IP address. Returns the number of the connection at once;
        `connected` or `ended` follows within 5 s, `ended` also for what is no address. Names are not resolved:
        libzmq would do that in its one network thread, and all other connections would wait for it.
        """
        self._refuse_when_closed()
        conn = next(self._numbers)
        self._lines[conn] = _Dial(self, conn, address)
        return conn

    def send(self, conn: int, parts: Sequence[Part]) -> bool:
        """Queue one frame, never waiting; False where that connection does not stand (yet, or any more). True
        is no receipt: what is under way when a connection ends is lost. The parts may be changed afterwards.

        Raises ValueError for a frame of no part, an empty first one, or more than FRAME_BYTES or FRAME_PARTS.
        """
        line = self._lines.get(conn)
        if not _allowed(parts):
            raise ValueError(f"not a frame: {len(parts)} parts of {sum(map(_size, parts))} bytes in all")
        return line is not None and line.send(parts)

    def drop(self, conn: int, flush: bool = False) -> None:
        """End a connection; nothing more is heard of it here, and the other side is told BROKEN. `flush`: what
        was sent has 500 ms to leave before. A number of no connection is ignored: it may just have ended.
        """
        line = self._lines.pop(conn, None)
        if line is not None:
            line.drop(flush)

    def probe(self, conn: int) -> None:
        """Look whether a connection still stands; `ended` follows if not. Costs a frame with nothing in it."""
        line = self._lines.get(conn)
        if line is not None:
            line.probe()

    async def close(self) -> None:
        """End all connections, with 500 ms for what was sent to leave; free every socket, thread and reader.
        Nothing is told to the receiver from the first call on. May be called again, and then waits as well.
        """
        if self._terminator is None:
            self._shut()
            self._terminator = threading.Thread(target=self._terminate, name="discoro-close", daemon=True)
            self._terminator.start()
        await self._terminated.wait()
        self._terminator.join()  # it has done all it had to do

    def _shut(self) -> None:
        _transports.discard(self)
        for line in self._lines.values():
            line.close()
        self._lines.clear()
        if self._listener is not None:
            self._listener.close(linger=FLUSH_MS)

    def _terminate(self) -> None:
        """In a thread of its own: waits until libzmq has sent or given up what was to be flushed."""
        self.context.term()
        try:
            self.loop.call_soon_threadsafe(self._terminated.set)
        except RuntimeError:
            log.debug("! the event loop was closed before the transport")

    def _refuse_when_closed(self) -> None:
        if self._terminator is not None:
            raise RuntimeError(f"{self!r} is closed")

    def __repr__(self) -> str:
        state = "closed" if self._terminator else f"listening on {', '.join(self._addresses) or 'nothing'}"
        return f"<Transport {state}, {len(self._lines)} connections>"

    # For the two kinds of connection below.

    def admit(self, line: _Inbound) -> None:
        """Somebody connected to us."""
        line.conn = next(self._numbers)
        self._lines[line.conn] = line
        log.debug("= %d accepted", line.conn)
        self.receiver.connected(line.conn)

    def tell_ended(self, conn: int, how: Ended, detail: str) -> None:
        """Passes on the end of a connection, unless it was told or dropped before. From the loop only."""
        if self._lines.pop(conn, None) is not None:
            log.debug("! %d %s: %s", conn, how.value, detail)
            self.receiver.ended(conn, how, detail)

    def new_socket(self, kind: int) -> Socket:
        """A socket with the options that ROUTER and DEALER share; not yet secured."""
        made = self.context.socket(kind)
        made.linger = 0
        made.sndhwm = made.rcvhwm = QUEUE_FRAMES
        made.maxmsgsize = FRAME_BYTES
        made.heartbeat_ivl = HEARTBEAT_MS
        made.heartbeat_timeout = made.heartbeat_ttl = HEARTBEAT_LIMIT_MS
        made.handshake_ivl = HANDSHAKE_MS
        return made

    def close_copies(self) -> None:
        """In a forked child: close its copies of our TCP connections. Otherwise the port stays taken and no
        peer sees our end for as long as the child lives. libzmq keeps its descriptors to itself, so all that
        the process has are looked at.
        """
        dialled = {line.target for line in self._lines.values() if isinstance(line, _Dial)}
        ports = {int(address.rpartition(":")[2]) for address in self._addresses}
        for name in os.listdir("/dev/fd"):
            try:
                copy = socket.socket(fileno=int(name))
            except OSError:  # not a socket, or the descriptor of this very listing
                continue
            if _is_ours(copy, ports, dialled):
                copy.close()
            else:
                copy.detach()


class _Pump:
    """Reads one ZeroMQ socket from the event loop: `take` reads one item, False where there is none.

    The socket's descriptor is edge-triggered: it tells once that there may be news, and any call on the socket
    may take that away. So a turn reads until there is nothing more, or is followed by another, and every send
    is followed by a look.
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
        loop.add_reader(self._descriptor, self._turn)
        self.wake()  # for what came before

    def wake(self) -> None:
        """Take a turn soon."""
        if not self._soon and not self._stopped:
            self._soon = True
            self._loop.call_soon(self._turn)

    def after_send(self) -> None:
        """The look that must follow each send; while a turn is under way or announced, that turn looks."""
        if not (self._reading or self._soon) and int(self._source.get(_EVENTS)) & _POLLIN:
            self.wake()

    def stop(self) -> None:
        """Read no more; must come before the socket is closed."""
        if not self._stopped:
            self._stopped = True
            self._loop.remove_reader(self._descriptor)

    def _turn(self) -> None:
        self._soon = False
        if self._stopped:
            return
        self._reading = more = True
        try:
            for _ in range(FRAMES_PER_TURN):
                more = self._take()
                if self._stopped:
                    return
                if not more:
                    break
        finally:  # an exception of the receiver as well: what follows is still to be read
            self._reading = False
            if more:
                self.wake()
        if not more:
            self._drained()


class _Inbound:
    """One connection that somebody made to us, as the ROUTER knows it: by its routing id."""

    __slots__ = ("_listener", "conn", "deaf", "descriptor", "lost", "routing_id")

    def __init__(self, listener: _Listener, routing_id: bytes, descriptor: int) -> None:
        self._listener = listener
        self.routing_id = routing_id
        self.descriptor = descriptor  # of the TCP connection; a new one may get the same soon after
        self.conn = 0
        self.deaf = False  # dropped, and not yet gone: it is asked to close, and not listened to
        self.lost = False  # gone; frames that came before are still read

    def send(self, parts: Sequence[Part]) -> bool:
        return not self.deaf and self._listener.write(self, parts)

    def drop(self, flush: bool) -> None:
        """What was sent leaves before the request to close, so there is no difference for `flush`."""
        self.deaf = True
        self._listener.write(self, _CLOSED)

    def probe(self) -> None:
        self._listener.look(self, again=())

    def close(self) -> None:
        """With the whole ROUTER, which closes next."""


class _Listener:
    """The ROUTER and its connections.

    libzmq does not say which routing id had the connection that ended, so that is found in two steps. The
    monitor tells the descriptor that was closed, and the first frame of each connection had told its own. Since
    descriptors are used again, that is only a hint to `look`: a send to an id without connection fails.
    """

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._by_id: dict[bytes, _Inbound] = {}  # as many as there are connections that have sent a frame
        self._by_descriptor: dict[int, _Inbound] = {}
        self._closed_early: set[int] = set()  # descriptors closed before a first frame was read from them
        self._lost: list[_Inbound] = []
        self._socket = transport.new_socket(zmq.ROUTER)
        self._socket.router_mandatory = 1  # otherwise what cannot be delivered is thrown away in silence
        transport.security.secure_server(self._socket)
        self._monitor = _monitor(self._socket, zmq.EVENT_DISCONNECTED)
        self._frames = _Pump(transport.loop, self._socket, self._take, self._forget_lost)
        self._events = _Pump(transport.loop, self._monitor, self._take_event, _nothing_to_do)

    def bind(self, hosts: Sequence[str], ports: range | None) -> int:
        """The port that all hosts are bound to now; PortTaken and ConfigError as `Transport.listen` says."""
        for port in itertools.repeat(0, FREE_PORT_TRIES) if ports is None else ports:
            bound = self._bind_all(hosts, port)
            if bound is not None:
                return bound
        where = " and ".join(hosts)
        if not ports:
            raise PortTaken(f"no port is free on {where}: listen on fewer addresses")
        which = f"port {ports[0]}" if len(ports) == 1 else f"each port from {ports[0]} to {ports[-1]}"
        raise PortTaken(f"{which} is taken on {where}: end what listens there, or choose another port")

    def _bind_all(self, hosts: Sequence[str], port: int) -> int | None:
        """None where the port is taken on one of the hosts; then none of them is bound."""
        bound: list[str] = []
        for host in hosts:
            self._socket.ipv6 = ":" in host
            try:
                self._socket.bind(f"tcp://{_address(host, port)}")
            except zmq.ZMQError as error:
                for endpoint in bound:
                    self._socket.unbind(endpoint)
                if error.errno == errno.EADDRINUSE:
                    return None
                raise ConfigError(
                    f"cannot listen on {_address(host, port)} ({error.strerror}): "
                    "choose an address of this machine and a port from 1024 to 65535"
                ) from error
            bound.append(self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0"))
            port = int(bound[-1].rpartition(":")[2])
        return port

    def close(self, linger: int) -> None:
        self._frames.stop()
        self._events.stop()
        _close_watched(self._socket, self._monitor, linger)

    # Frames in.

    def _take(self) -> bool:
        try:
            routing_id = self._socket.recv(_NOW)
        except zmq.Again:
            return False
        parts, first = _read_frame(self._socket)
        if not parts[0]:  # nothing is to be said to a ROUTER that way
            return True
        inbound = self._by_id.get(routing_id)
        if inbound is None:
            inbound = self._admit(routing_id, int(first.get(zmq.SRCFD)))
        if inbound.deaf:
            if not inbound.lost:
                self.write(inbound, _CLOSED)
        elif _allowed(parts):
            self._transport.receiver.received(inbound.conn, parts)
        else:
            self._expel(inbound, "it sent a frame past the limits")
        return True

    def _admit(self, routing_id: bytes, descriptor: int) -> _Inbound:
        inbound = self._by_id[routing_id] = _Inbound(self, routing_id, descriptor)
        before = self._by_descriptor.get(descriptor)
        self._by_descriptor[descriptor] = inbound
        if before is not None:
            self.look(before)
        if descriptor in self._closed_early:
            self._closed_early.discard(descriptor)
            self.look(inbound)
        self._transport.admit(inbound)
        return inbound

    # Frames out.

    def write(self, inbound: _Inbound, parts: Sequence[Part]) -> bool:
        """Queue a frame; False where the connection does not stand, which is told soon."""
        if inbound.lost:
            return False
        try:
            self._socket.send(inbound.routing_id, _NOW_MORE)
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                self._lose(inbound)
            elif error.errno != errno.EAGAIN:
                raise
            elif not inbound.deaf:
                self._expel(inbound, f"{QUEUE_FRAMES} frames wait to be sent")
            return False
        _write_parts(self._socket, parts)
        self._frames.after_send()
        return True

    # The ends of connections.

    def _take_event(self) -> bool:
        event = _read_event(self._monitor)
        if event is None:
            return False
        inbound = self._by_descriptor.get(event[1])
        if inbound is None:
            self._closed_early.add(event[1])
        else:
            self.look(inbound)
        return True

    def look(self, inbound: _Inbound, again: tuple[float, ...] = LOOK_AGAIN) -> None:
        """Whether the connection still stands: sends the frame that means nothing, now and `again` later."""
        if inbound.lost or self._socket.closed:
            return
        if self.write(inbound, _NOTHING) and again:
            self._transport.loop.call_later(again[0], self.look, inbound, again[1:])

    def _lose(self, inbound: _Inbound) -> None:
        """The connection is gone; its end is told after the frames that came before it."""
        inbound.lost = True
        self._lost.append(inbound)
        self._frames.wake()
        self._transport.loop.call_later(END_SECONDS, self._tell_lost, inbound)

    def _tell_lost(self, inbound: _Inbound) -> None:
        inbound.deaf = True
        self._transport.tell_ended(inbound.conn, Ended.BROKEN, "the connection broke")

    def _forget_lost(self) -> None:
        """All is read, so nothing more can come from a lost connection: its routing id may be forgotten."""
        lost, self._lost = self._lost, []
        for inbound in lost:
            del self._by_id[inbound.routing_id]
            if self._by_descriptor.get(inbound.descriptor) is inbound:
                del self._by_descriptor[inbound.descriptor]
        for inbound in lost:
            self._tell_lost(inbound)

    def _expel(self, inbound: _Inbound, why: str) -> None:
        """Drops a connection on our own account, and tells the receiver soon."""
        inbound.drop(flush=False)
        self._transport.loop.call_soon(self._transport.tell_ended, inbound.conn, Ended.BROKEN, why)


class _State(enum.Enum):
    DIALLING = enum.auto()
    UP = enum.auto()
    ENDING = enum.auto()  # gone; frames that came before are still read
    DONE = enum.auto()


class _Dial:
    """One connection of our own making: a DEALER with one TCP connection, never used for a second one.

    Only a handshake that was cut off is tried again, up to HANGUPS times: that is all a wrong key shows here.
    """

    def __init__(self, transport: Transport, conn: int, address: str) -> None:
        self.conn = conn
        self.target: tuple[str, int] | None = None  # (host, port)
        self._transport = transport
        self._loop = transport.loop
        self._address = address
        self._state = _State.DIALLING
        self._answered = False
        self._hangups = 0
        self._closers: list[Callable[[int], object]] = []
        self._timer = self._loop.call_later(DIAL_SECONDS, self._give_up)
        try:
            self.target = _parsed(address)
        except ValueError as error:
            self._end_soon(Ended.UNREACHABLE, str(error))
        else:
            self._connect()

    def _connect(self) -> None:
        self._began = self._loop.time()
        try:
            self._open()
        except zmq.ZMQError as error:  # no more descriptors or sockets, a network interface of no such name
            self._end_soon(Ended.UNREACHABLE, f"this process cannot dial it ({error.strerror})")

    def _open(self) -> None:
        self._socket = self._transport.new_socket(zmq.DEALER)
        self._closers = [self._socket.close]
        self._monitor = _monitor(self._socket, _DIAL_EVENTS)
        self._events = _Pump(self._loop, self._monitor, self._take_event, _nothing_to_do)
        self._closers = [lambda _: self._events.stop(), partial(_close_watched, self._socket, self._monitor)]
        self._socket.connect_timeout = CONNECT_MS
        self._socket.reconnect_ivl = NEVER_MS
        self._socket.ipv6 = self._address.startswith("[")
        self._transport.security.secure_client(self._socket)
        self._socket.connect(f"tcp://{self._address}")

    # What the transport wants.

    def send(self, parts: Sequence[Part]) -> bool:
        if self._state is not _State.UP:
            return False
        try:
            self._socket.send(parts[0], _NOW if len(parts) == 1 else _NOW_MORE)
        except zmq.Again:
            self._state = _State.ENDING
            self._end_soon(Ended.BROKEN, f"{QUEUE_FRAMES} frames wait to be sent")
            return False
        if len(parts) > 1:
            _write_parts(self._socket, parts[1:])
        self._frames.after_send()
        return True

    def drop(self, flush: bool) -> None:
        self._close(FLUSH_MS if flush and self._state is _State.UP else 0)

    def probe(self) -> None:
        """Nothing to do: the monitor tells the end of a dialled connection without being asked."""

    def close(self) -> None:
        self.drop(flush=True)

    def _close(self, linger: int = 0) -> None:
        self._state = _State.DONE
        self._timer.cancel()
        self._release(linger)

    def _release(self, linger: int = 0) -> None:
        """Frees what this try to connect held."""
        closers, self._closers = self._closers, []
        for closer in closers:
            closer(linger)

    def _end(self, how: Ended, detail: str) -> None:
        if self._state is not _State.DONE:
            self._close()
            self._transport.tell_ended(self.conn, how, f"{self._address}: {detail}")

    def _end_soon(self, how: Ended, detail: str) -> None:
        """Where the receiver must not be called: inside a call to the transport."""
        self._loop.call_soon(self._end, how, detail)

    # What the monitor tells.

    def _take_event(self) -> bool:
        event = _read_event(self._monitor)
        if event is None:
            return False
        move = _MOVES.get((self._state, event[0]))
        if move is not None:
            move(self, event[1])
        return True

    def _on_connected(self, descriptor: int) -> None:
        self._answered = True

    def _on_handshake(self, _: int) -> None:
        self._state = _State.UP
        self._timer.cancel()
        self._frames = _Pump(self._loop, self._socket, self._take, self._on_drained)
        self._closers.insert(0, lambda _: self._frames.stop())
        log.debug("= %d connected to %s", self.conn, self._address)
        self._transport.receiver.connected(self.conn)

    def _on_denied(self, _: int) -> None:
        self._end(Ended.DENIED, "the handshake failed: it has another key, or only one of both sides is open")

    def _on_hangup(self, reason: int) -> None:
        """libzmq tells no more than the errno with which the handshake stopped."""
        if reason not in (errno.EPIPE, errno.ECONNRESET):
            self._end(Ended.SILENT, "it accepts connections and says nothing: hung, stopped, or not discoro")
            return
        self._hangups += 1
        if self._hangups == HANGUPS:
            self._end(Ended.DENIED, "it cut off the handshake: it has another key, or only one side is open")
            return
        self._release()
        again = self._loop.call_later(HANGUP_PAUSE, self._connect)
        self._closers = [lambda _: again.cancel()]

    def _on_nonsense(self, _: int) -> None:
        self._end(Ended.SILENT, "something answers there, and it is not discoro")

    def _on_no_connection(self, _: int) -> None:
        """libzmq keeps the reason to itself: the time tells one, a plain socket that tries as well the others."""
        if self._loop.time() - self._began > 0.9 * CONNECT_MS / 1000:
            self._end(Ended.UNREACHABLE, f"no answer within {CONNECT_MS / 1000:g} s")
            return
        self._release()
        assert self.target is not None  # only an address that was understood gets here
        try:
            found = socket.getaddrinfo(*self.target, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
            plain = socket.socket(*found[:2])
        except OSError as error:
            self._end(Ended.UNREACHABLE, f"this process cannot dial it ({error.strerror})")
            return
        self._closers = [lambda _: self._loop.remove_writer(plain), lambda _: plain.close()]
        plain.setblocking(False)
        result = plain.connect_ex(found[4])
        if result == errno.EINPROGRESS:
            self._loop.add_writer(plain, self._on_reason, plain)
        else:
            self._tell_reason(result)

    def _on_reason(self, plain: socket.socket) -> None:
        self._tell_reason(plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _tell_reason(self, reason: int) -> None:
        if reason in (0, errno.ECONNREFUSED):  # 0: it listens since a moment ago; dialling again will do
            self._end(Ended.REFUSED, "nothing listens there (connection refused)")
        else:
            self._end(Ended.UNREACHABLE, f"{os.strerror(reason)} (says the network, or a firewall in it)")

    def _give_up(self) -> None:
        if self._answered:
            self._end(Ended.SILENT, f"no handshake within {DIAL_SECONDS:g} s: hung, stopped, or not discoro")
        else:
            self._end(Ended.UNREACHABLE, f"no answer within {DIAL_SECONDS:g} s")

    def _on_broken(self, _: int) -> None:
        self._state = _State.ENDING
        self._frames.wake()

    # Frames in.

    def _take(self) -> bool:
        try:
            parts, _ = _read_frame(self._socket, _NOW)
        except zmq.Again:
            return False
        if parts[0]:
            if _allowed(parts):
                self._transport.receiver.received(self.conn, parts)
            else:
                self._end(Ended.BROKEN, "it sent a frame past the limits")
        elif len(parts) == len(_CLOSED):
            self._end(Ended.BROKEN, "the other side closed the connection")
        return True

    def _on_drained(self) -> None:
        if self._state is _State.ENDING:
            self._end(Ended.BROKEN, "the connection broke")


# What follows from an event of a DEALER's monitor; what is not here means nothing. A failed handshake and the
# disconnection after it come as two events: the move for the first closes the monitor, and nobody sees the second.
_MOVES: dict[tuple[_State, int], Callable[[_Dial, int], None]] = {
    (_State.DIALLING, zmq.EVENT_CONNECTED): _Dial._on_connected,
    (_State.DIALLING, zmq.EVENT_CLOSED): _Dial._on_no_connection,
    (_State.DIALLING, zmq.EVENT_CONNECT_RETRIED): _Dial._on_no_connection,  # not even a TCP socket could be made
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_SUCCEEDED): _Dial._on_handshake,
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_FAILED_AUTH): _Dial._on_denied,
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL): _Dial._on_denied,
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): _Dial._on_hangup,
    (_State.DIALLING, zmq.EVENT_DISCONNECTED): _Dial._on_nonsense,
    (_State.UP, zmq.EVENT_DISCONNECTED): _Dial._on_broken,
}
_DIAL_EVENTS = sum({int(event) for _, event in _MOVES})


# --- frames


def _size(part: Part) -> int:
    return part.nbytes if isinstance(part, memoryview) else len(part)


def _allowed(parts: Sequence[Part]) -> bool:
    """Whether these parts may travel as one frame."""
    return 0 < len(parts) <= FRAME_PARTS and 0 < _size(parts[0]) and sum(map(_size, parts)) <= FRAME_BYTES


def _read_frame(source: Socket, flags: int = 0) -> tuple[list[Part], zmq.Frame]:
    """The (rest of the) message at hand, and its first part as libzmq has it. One part too many is kept, to tell."""
    first = part = source.recv(flags, copy=False)
    parts: list[Part] = [_plain(part)]
    while part.more:
        part = source.recv(copy=False)
        if len(parts) <= FRAME_PARTS:
            parts.append(_plain(part))
    return parts, first


def _plain(part: zmq.Frame) -> Part:
    return part.bytes if len(part) < VIEW_FROM else part.buffer


def _write_parts(target: Socket, parts: Sequence[Part]) -> None:
    """The rest of a message whose first part was accepted: now libzmq takes or drops all of it."""
    for part in parts[:-1]:
        target.send(part, _NOW_MORE)
    target.send(parts[-1], _NOW)


# --- contexts and monitors


def _started_context() -> zmq.Context[Socket]:
    """A context with its threads."""
    _require_descriptors()
    context: zmq.Context[Socket] = zmq.Context(io_threads=1)
    context.set(zmq.MAX_SOCKETS, MAX_SOCKETS)
    context.socket(zmq.PAIR).close()  # the first one starts the threads
    return context


def _require_descriptors() -> None:
    """OSError where none are left: libzmq would end the whole process while starting, or stop half-way."""
    spare: list[int] = []
    try:
        while len(spare) < START_DESCRIPTORS:
            spare.append(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    finally:
        for descriptor in spare:
            os.close(descriptor)


_monitors = itertools.count(1)


def _monitor(watched: Socket, events: int) -> Socket:
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


def _close_watched(watched: Socket, monitor: Socket, linger: int) -> None:
    """In this order. A socket lives on in libzmq's threads for a while: one that still found its monitor's other end
    gone would stop the network thread for ever, and all connections with it (seen within a hundred dials).
    """
    watched.monitor(None, 0)
    watched.close(linger)
    monitor.close(0)


def _read_event(monitor: Socket) -> tuple[int, int] | None:
    """(event, its value), or None; as zmq_socket_monitor(3) packs them: 16 and 32 bits, then the endpoint."""
    try:
        head = monitor.recv(_NOW)
    except zmq.Again:
        return None
    monitor.recv()
    return int.from_bytes(head[:2], sys.byteorder), int.from_bytes(head[2:6], sys.byteorder)


def _nothing_to_do() -> None:
    """For a pump that need not tell when all is read."""


# --- addresses


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _parsed(address: str) -> tuple[str, int]:
    """(host, port); ValueError, with words for the user, for what is no address."""
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(port)
        if _address(host.strip("[]"), int(port)) != address:
            raise ValueError(address)
    except ValueError:
        raise ValueError("no address; wanted is IP:port, as in 192.0.2.7:9705 or [fe80::7%eth0]:9705") from None
    return host.strip("[]"), int(port)


def _checked_host(host: str) -> str:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        raise ConfigError(f"cannot listen on {host!r}: give an IP address of this machine") from None
    return host


# --- forked children

_transports: weakref.WeakSet[Transport] = weakref.WeakSet()


def _is_ours(copy: socket.socket, ports: set[int], dialled: set[tuple[str, int] | None]) -> bool:
    """Whether this is a TCP connection from or to one of our ports, or a socket that listens at one."""
    if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.type != socket.SOCK_STREAM:
        return False
    if copy.getsockname()[1] in ports:
        return True
    try:
        return copy.getpeername()[:2] in dialled
    except OSError:  # not connected
        return False


def _close_copies_in_child() -> None:
    for transport in list(_transports):
        transport.close_copies()


if hasattr(os, "register_at_fork"):  # where processes fork at all
    os.register_at_fork(after_in_child=_close_copies_in_child)
