"""The listening side: one ROUTER, and the connections that others made to it.

Never: reads what is in a frame, or keeps a connection that broke a limit. How it plays together: a `Listener` owns
the socket, its monitor and a pump for each; an `Inbound` is one connection, by which the transport sends and drops.
"""

from __future__ import annotations

import errno
import itertools
from collections.abc import Sequence
from typing import Protocol

import zmq

from discoro.connections import Ended, address_of, allowed
from discoro.errors import ConfigError, PortTaken
from discoro.messages import Part
from discoro.sockets import (
    CLOSED,
    NOTHING,
    NOW,
    NOW_MORE,
    QUEUE_FRAMES,
    Owner,
    Pump,
    close_watched,
    monitor_of,
    new_socket,
    nothing_to_do,
    read_event,
    read_frame,
    write_parts,
)

END_SECONDS = 0.1  # the end of a connection is told by then, frames still unread or not
LOOK_AGAIN = (0.01, 0.03, 0.05)  # seconds; a ROUTER learns of an end a moment after its monitor has told it
FREE_PORT_TRIES = 16  # for a port that is free on several hosts at once


class ListenerOwner(Owner, Protocol):
    """What a listener needs of its transport."""

    def admit(self, line: Inbound) -> None:
        """Somebody connected to us: `line` gets its number, and the receiver is told."""


class Inbound:
    """One connection that somebody made to us, as the ROUTER knows it: by its routing id."""

    __slots__ = ("_listener", "conn", "deaf", "descriptor", "lost", "routing_id")

    def __init__(self, listener: Listener, routing_id: bytes, descriptor: int) -> None:
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
        self._listener.write(self, CLOSED)

    def probe(self) -> None:
        self._listener.look(self, again=())

    def close(self) -> None:
        """With the whole ROUTER, which closes next."""


class Listener:
    """The ROUTER and its connections.

    libzmq does not say which routing id had the connection that ended, so that is found in two steps. The
    monitor tells the descriptor that was closed, and the first frame of each connection had told its own. Since
    descriptors are used again, that is only a hint to `look`: a send to an id without connection fails.
    """

    def __init__(self, transport: ListenerOwner) -> None:
        self._transport = transport
        self._by_id: dict[bytes, Inbound] = {}  # as many as there are connections that have sent a frame
        self._by_descriptor: dict[int, Inbound] = {}
        self._closed_early: set[int] = set()  # descriptors closed before a first frame was read from them
        self._lost: list[Inbound] = []
        self._socket = new_socket(transport.context, zmq.ROUTER)
        self._socket.router_mandatory = 1  # otherwise what cannot be delivered is thrown away in silence
        transport.security.secure_server(self._socket)
        self._monitor = monitor_of(self._socket, zmq.EVENT_DISCONNECTED)
        self._frames = Pump(transport.loop, self._socket, self._take, self._forget_lost)
        self._events = Pump(transport.loop, self._monitor, self._take_event, nothing_to_do)

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
                self._socket.bind(f"tcp://{address_of(host, port)}")
            except zmq.ZMQError as error:
                for endpoint in bound:
                    self._socket.unbind(endpoint)
                if error.errno == errno.EADDRINUSE:
                    return None
                raise ConfigError(
                    f"cannot listen on {address_of(host, port)} ({error.strerror}): "
                    "choose an address of this machine and a port from 1024 to 65535"
                ) from error
            bound.append(self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0"))
            port = int(bound[-1].rpartition(":")[2])
        return port

    def close(self, linger: int) -> None:
        self._frames.stop()
        self._events.stop()
        close_watched(self._socket, self._monitor, linger)

    # Frames in.

    def _take(self) -> bool:
        try:
            routing_id = self._socket.recv(NOW)
        except zmq.Again:
            return False
        parts, first = read_frame(self._socket)
        if not parts[0]:  # nothing is to be said to a ROUTER that way
            return True
        inbound = self._by_id.get(routing_id)
        if inbound is None:
            inbound = self._admit(routing_id, int(first.get(zmq.SRCFD)))
        if inbound.deaf:
            if not inbound.lost:
                self.write(inbound, CLOSED)
        elif allowed(parts):
            self._transport.receiver.received(inbound.conn, parts)
        else:
            self._expel(inbound, "it sent a frame past the limits")
        return True

    def _admit(self, routing_id: bytes, descriptor: int) -> Inbound:
        inbound = self._by_id[routing_id] = Inbound(self, routing_id, descriptor)
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

    def write(self, inbound: Inbound, parts: Sequence[Part]) -> bool:
        """Queue a frame; False where the connection does not stand, which is told soon."""
        if inbound.lost:
            return False
        try:
            self._socket.send(inbound.routing_id, NOW_MORE)
        except zmq.ZMQError as error:
            if error.errno == errno.EHOSTUNREACH:
                self._lose(inbound)
            elif error.errno != errno.EAGAIN:
                raise
            elif not inbound.deaf:
                self._expel(inbound, f"{QUEUE_FRAMES} frames wait to be sent")
            return False
        write_parts(self._socket, parts)
        self._frames.after_send()
        return True

    # The ends of connections.

    def _take_event(self) -> bool:
        event = read_event(self._monitor)
        if event is None:
            return False
        inbound = self._by_descriptor.get(event[1])
        if inbound is None:
            self._closed_early.add(event[1])
        else:
            self.look(inbound)
        return True

    def look(self, inbound: Inbound, again: tuple[float, ...] = LOOK_AGAIN) -> None:
        """Whether the connection still stands: sends the frame that means nothing, now and `again` later."""
        if inbound.lost or self._socket.closed:
            return
        if self.write(inbound, NOTHING) and again:
            self._transport.loop.call_later(again[0], self.look, inbound, again[1:])

    def _lose(self, inbound: Inbound) -> None:
        """The connection is gone; its end is told after the frames that came before it."""
        inbound.lost = True
        self._lost.append(inbound)
        self._frames.wake()
        self._transport.loop.call_later(END_SECONDS, self._tell_lost, inbound)

    def _tell_lost(self, inbound: Inbound) -> None:
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

    def _expel(self, inbound: Inbound, why: str) -> None:
        """Drops a connection on our own account, and tells the receiver soon."""
        inbound.drop(flush=False)
        self._transport.loop.call_soon(self._transport.tell_ended, inbound.conn, Ended.BROKEN, why)
