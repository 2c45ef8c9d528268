"""The listening side: one ROUTER, and the connections that others made to it.

Never: reads what is in a frame, or keeps a connection that broke a limit. How it plays together: a `Listener` owns
the socket, its monitor and a pump for each; an `Inbound` is one connection, by which the transport sends and drops. A
`Door` is one port on every address, with the key that lets people in there.

One endpoint of a ROUTER has one server key, so a process that accepts two, while the cluster's key is being changed, has
two doors. The TCP sockets that listen are ours, and libzmq works on copies of them (ZMQ_USE_FD): so a door gets another
key without being closed for a moment, in which whoever dialled would take this process for dead.
"""

from __future__ import annotations

import errno
import itertools
import os
import socket
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

import zmq

from discoro.arrivals import Arrival, Arrivals
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

if TYPE_CHECKING:
    from discoro.security import Security

BACKLOG = 1024  # connections that wait for libzmq's thread; the kernel allows 4096 by itself (net.core.somaxconn)
NO_DESCRIPTOR = -1  # ZMQ_USE_FD: libzmq makes its own
END_SECONDS = 0.1  # the end of a connection is told by then, frames still unread or not
LOOK_AGAIN = (0.01, 0.03, 0.05)  # seconds; a ROUTER learns of an end a moment after its monitor has told it
FREE_PORT_TRIES = 16  # for a port that is free on several hosts at once

_ACCEPTED, _DISCONNECTED = int(zmq.EVENT_ACCEPTED), int(zmq.EVENT_DISCONNECTED)


class ListenerOwner(Owner, Protocol):
    """What a listener needs of its transport."""

    def admit(self, line: Inbound) -> None:
        """Somebody connected to us: `line` gets its number, and the receiver is told."""


class Inbound:
    """One connection that somebody made to us, as the ROUTER knows it: by its routing id."""

    __slots__ = ("_listener", "arrival", "conn", "deaf", "descriptor", "kept", "lost", "routing_id")

    def __init__(self, listener: Listener, routing_id: bytes, descriptor: int) -> None:
        self._listener = listener
        self.routing_id = routing_id
        self.descriptor = descriptor  # of the TCP connection; a new one may get the same soon after
        self.arrival: Arrival | None = None  # what its monitor told of it, which may come later than its first frame
        self.conn = 0
        self.kept = False  # it is a peer's
        self.deaf = False  # dropped, and not yet gone: it is asked to close, and not listened to
        self.lost = False  # gone; frames that came before are still read

    @property
    def port(self) -> int | None:
        """The port of ours that it came in at; None where that was not told."""
        return self.arrival.port if self.arrival is not None else None

    @property
    def host(self) -> str | None:
        """The address of ours that it came in at; None where that was not told."""
        return self.arrival.here if self.arrival is not None else None

    def send(self, parts: Sequence[Part]) -> bool:
        return not self.deaf and self._listener.write(self, parts)

    def drop(self, flush: bool) -> None:
        """What was sent leaves before the request to close, so there is no difference for `flush`."""
        self.deaf = True
        self._listener.write(self, CLOSED)
        self._listener.hang_up_soon(self)

    def keep(self) -> None:
        """A peer has greeted over it."""
        self.kept = True
        self._listener.keep(self)

    def probe(self) -> None:
        self._listener.look(self, again=())

    def close(self) -> None:
        """With the whole ROUTER, which closes next."""


class Door:
    """One port on every address where this process listens."""

    def __init__(self, listening: Mapping[str, socket.socket], security: Security) -> None:
        self.security = security  # who is let in
        # as plain numbers: in a forked child all copies of our sockets are closed, and no object may close them again
        self.port: int = next(iter(listening.values())).getsockname()[1]
        self.descriptors = {host: each.detach() for host, each in listening.items()}
        self.endpoints: dict[str, str] = {}  # by host: what libzmq calls its copy

    def copies(self) -> dict[str, int]:
        """A copy of each of its sockets, by host. OSError, and none is left, where there are no descriptors."""
        made: dict[str, int] = {}
        try:
            for host, descriptor in self.descriptors.items():
                made[host] = os.dup(descriptor)
        except OSError:
            for copy in made.values():
                os.close(copy)
            raise
        return made

    def close(self) -> None:
        for descriptor in self.descriptors.values():
            os.close(descriptor)
        self.descriptors = {}


def _listening(hosts: Sequence[str], port: int) -> dict[str, socket.socket] | None:
    """A TCP socket that listens on each host, all at one port (0: any free one); None where it is taken on one of them.

    ConfigError for a host or port that cannot be listened on.
    """
    made: dict[str, socket.socket] = {}
    try:
        for host in hosts:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            where = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0][4]
            made[host] = socket.create_server(where, family=family, backlog=BACKLOG)
            made[host].setblocking(False)  # else libzmq's thread waits where somebody connects and is gone at once
            port = made[host].getsockname()[1]
    except OSError as error:
        for each in made.values():
            each.close()
        if error.errno == errno.EADDRINUSE:
            return None
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
        raise ConfigError(
            f"cannot listen on {address_of(host, port)} ({os.strerror(error.errno or 0)}): "
            "choose an address of this machine and a port from 1024 to 65535"
        ) from error
    return made


def _where(descriptor: int) -> tuple[str, int]:
    """The host and the port of a socket that listens."""
    known = socket.socket(fileno=descriptor)
    try:
        host, port, *_ = known.getsockname()
        return str(host), int(port)
    finally:
        known.detach()


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
        self._ports: set[int] = set()  # of the doors
        self._arrivals = Arrivals(transport.loop, self._ports)
        self._waiting: dict[int, Arrival] = {}  # those of which no frame was read yet, by descriptor
        self._lost: list[Inbound] = []
        self._socket = new_socket(transport.context, zmq.ROUTER)
        self._socket.router_mandatory = 1  # otherwise what cannot be delivered is thrown away in silence
        self._doors: list[Door] = []
        self._monitor = monitor_of(self._socket, _ACCEPTED | _DISCONNECTED)
        self._frames = Pump(transport.loop, self._socket, self._take, self._forget_lost)
        self._events = Pump(transport.loop, self._monitor, self._take_event, nothing_to_do)

    def open_door(self, hosts: Sequence[str], ports: Sequence[int] | None, security: Security) -> int:
        """Let in, on all hosts at one port, whoever has this key: the port. PortTaken, ConfigError as `Transport.listen`."""
        for port in itertools.repeat(0, FREE_PORT_TRIES) if ports is None else ports:
            listening = _listening(hosts, port)
            if listening is not None:
                door = Door(listening, security)
                self._ports.add(door.port)
                try:
                    self._open(door, door.copies())
                except BaseException:  # whatever it is, no port stays taken
                    self._ports.discard(door.port)
                    door.close()
                    raise
                self._doors.append(door)
                return door.port
        where = " and ".join(hosts)
        if not ports:
            raise PortTaken(f"no port is free on {where}: listen on fewer addresses")
        which = f"port {ports[0]}" if len(ports) == 1 else f"each port from {min(ports)} to {max(ports)}"
        raise PortTaken(f"{which} is taken on {where}: end what listens there, or choose another port")

    def change_key(self, number: int, security: Security) -> None:
        """From now on the door of that number lets in whoever has this key; who came in by another one is cut off.

        Nobody is refused meanwhile: who dials waits until libzmq looks at the door again, a fraction of a millisecond.
        """
        self._arrivals.key_changed()
        door = self._doors[number]
        copies = door.copies()  # before anything ends: this is what can fail
        for endpoint in door.endpoints.values():
            self._socket.unbind(endpoint)
        door.security = security
        self._open(door, copies)
        self._end_all(lambda inbound: inbound.port == door.port, "a key was changed")

    def _end_all(self, which: Callable[[Inbound], bool], why: str) -> None:
        """End the connections that came in where libzmq was told to accept no more: its monitor tells nothing of those."""
        for inbound in list(self._by_id.values()):
            if inbound.lost or inbound.deaf:
                continue
            if inbound.port is None:  # where it came in is not told yet
                self._expel(inbound, why)
            elif which(inbound):
                inbound.deaf = True  # libzmq would still hand up what it has of them
                self._lose(inbound)

    def add_host(self, host: str) -> None:
        """Let others in at this address too, at every door's port. PortTaken, ConfigError, OSError as `open_door`; what could
        be done before that is done: to be called again.
        """
        for door in self._doors:
            if host in door.descriptors:
                continue
            listening = _listening([host], door.port)
            if listening is None:
                raise PortTaken(f"port {door.port} is taken on {host}: nobody comes in there until it is free")
            door.descriptors[host] = listening[host].detach()
            try:
                self._open(door, {host: os.dup(door.descriptors[host])})
            except BaseException:  # whatever it is, the port does not stay taken
                os.close(door.descriptors.pop(host))
                raise

    def leave_host(self, host: str) -> None:
        """Nobody is let in at this address any more; who came in there is cut off."""
        for door in self._doors:
            descriptor = door.descriptors.pop(host, None)
            if descriptor is not None:
                os.close(descriptor)
                self._socket.unbind(door.endpoints.pop(host))
        self._end_all(lambda inbound: inbound.host == host, f"{host} is no address of this machine any more")

    def _open(self, door: Door, copies: Mapping[str, int]) -> None:
        """Have libzmq accept at these copies of its sockets who has its key."""
        door.security.secure_server(self._socket)
        door.endpoints |= {host: self._bind(copy) for host, copy in copies.items()}

    def _bind(self, descriptor: int) -> str:
        """Have libzmq accept at that socket, which is its own from now on; the endpoint."""
        host, port = _where(descriptor)
        self._socket.ipv6 = ":" in host
        self._socket.set(zmq.USE_FD, descriptor)
        try:
            self._socket.bind(f"tcp://{address_of(host, port)}")
        finally:
            self._socket.set(zmq.USE_FD, NO_DESCRIPTOR)
        return self._socket.get_string(zmq.LAST_ENDPOINT).rstrip("\0")

    @property
    def keys(self) -> list[Security]:
        """The key of each door, by its number."""
        return [door.security for door in self._doors]

    def addresses(self, hosts: Sequence[str]) -> list[str]:
        """Where others come in, of these hosts: at the first door, then at the second."""
        return [address_of(host, door.port) for door in self._doors for host in hosts if host in door.descriptors]

    def close(self, linger: int) -> None:
        self._frames.stop()
        self._events.stop()
        for door in self._doors:
            door.close()
        self._arrivals.close()
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
        inbound.arrival = self._waiting.pop(descriptor, None)
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
        told = read_event(self._monitor)
        if told is None:
            return False
        event, descriptor = told
        if event == _ACCEPTED:
            self._accepted(descriptor)
        else:
            self._disconnected(descriptor)
        return True

    def _accepted(self, descriptor: int) -> None:
        arrival, inbound = self._arrivals.accepted(descriptor), self._by_descriptor.get(descriptor)
        if inbound is None or inbound.lost or inbound.arrival is not None:
            self._waiting[descriptor] = arrival
        else:  # its first frame was read before this
            inbound.arrival = arrival
            if inbound.kept:
                self.keep(inbound)

    def _disconnected(self, descriptor: int) -> None:
        self._waiting.pop(descriptor, None)
        self._arrivals.ended(descriptor)
        inbound = self._by_descriptor.get(descriptor)
        if inbound is None:
            self._closed_early.add(descriptor)
        else:
            self.look(inbound)

    def keep(self, inbound: Inbound) -> None:
        """It is a peer's."""
        if inbound.arrival is not None:
            self._arrivals.greeted(inbound.arrival)

    def hang_up_soon(self, inbound: Inbound) -> None:
        """It was dropped: should the other side not close it, it is closed from here."""
        if inbound.arrival is not None:
            self._arrivals.hang_up_soon(inbound.arrival)

    def look(self, inbound: Inbound, again: tuple[float, ...] = LOOK_AGAIN) -> None:
        """Whether the connection still stands: sends the frame that means nothing, now and `again` later."""
        if inbound.lost or self._socket.closed:
            return
        if self.write(inbound, NOTHING) and again:
            self._transport.loop.call_later(again[0], self.look, inbound, again[1:])

    def _lose(self, inbound: Inbound) -> None:
        """The connection is gone; its end is told after the frames that came before it."""
        inbound.lost = True
        if inbound.arrival is not None:  # the monitor does not tell of those that a change of keys ended
            self._arrivals.hang_up(inbound.arrival)
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
