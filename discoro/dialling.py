"""The dialling side: a connection of our own making, from the first try until its end, and why it came to nothing.

Never: dials again once a connection stood or was refused; that is up to the layer above. How it plays together: an
`Outbound` is a small machine. Its states are `_State`, what the monitor tells moves it by the table `_MOVES`, and
whatever it holds at the moment is freed by its `_closers`, in every state alike.
"""

from __future__ import annotations

import asyncio
import enum
import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial

import zmq

from discoro.connections import Ended, address_of, allowed
from discoro.messages import Part
from discoro.sockets import (
    CLOSED,
    FLUSH_MS,
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
from discoro.zmtp import GREETING_BYTES, OPENING, UNCLEAR, Heard, heard, judged

log = logging.getLogger("discoro.dialling")

CONNECT_MS = 1000  # the kernel repeats its SYN ever less often: a healed cable would be noticed late
DIAL_SECONDS = 4.5  # connect and handshake; the last resort where libzmq reports nothing at all
HANGUPS = 3  # handshakes cut off before it counts as denied: one may be a restart of the peer
HANGUP_PAUSE = 0.05  # seconds between those tries
LOOK_AFTER = 0.3  # seconds that a handshake may take before it is asked who answers there; on a LAN it takes milliseconds
LOOK_SECONDS = 0.5  # for the answer: in all, whoever dials knows within a second
NEVER_MS = 3_600_000  # libzmq must not reconnect: a successor on the port would get what waits here


class _State(enum.Enum):
    DIALLING = enum.auto()
    UP = enum.auto()
    ENDING = enum.auto()  # gone; frames that came before are still read
    DONE = enum.auto()


class Outbound:
    """One connection of our own making: a DEALER with one TCP connection, never used for a second one.

    Only a handshake that was cut off is tried again, up to HANGUPS times: that is all a wrong key shows here. Why it failed, a
    `_Look` finds out. It also asks who it is that has not answered in LOOK_AFTER.
    """

    def __init__(self, transport: Owner, conn: int, address: str) -> None:
        self.conn = conn
        self.target: tuple[str, int] | None = None  # (host, port)
        self._transport = transport
        self._loop = transport.loop
        self._address = address
        self._state = _State.DIALLING
        self._answered = False
        self._hangups = 0
        self.security, *self._further_keys = transport.keys  # the one it is tried with, and what is left to try
        self._closers: list[Callable[[int], object]] = []
        self._look: _Look | asyncio.TimerHandle | None = None
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
        self._socket = new_socket(self._transport.context, zmq.DEALER)
        self._closers = [self._socket.close]
        self._monitor = monitor_of(self._socket, _DIAL_EVENTS)
        self._events = Pump(self._loop, self._monitor, self._take_event, nothing_to_do)
        self._closers = [lambda _: self._events.stop(), partial(close_watched, self._socket, self._monitor)]
        self._socket.connect_timeout = CONNECT_MS
        self._socket.reconnect_ivl = NEVER_MS
        self._socket.ipv6 = self._address.startswith("[")
        self.security.secure_client(self._socket)
        self._socket.connect(f"tcp://{self._address}")

    # What the transport wants.

    def send(self, parts: Sequence[Part]) -> bool:
        if self._state is not _State.UP:
            return False
        try:
            self._socket.send(parts[0], NOW if len(parts) == 1 else NOW_MORE)
        except zmq.Again:
            self._state = _State.ENDING
            self._end_soon(Ended.BROKEN, f"{QUEUE_FRAMES} frames wait to be sent")
            return False
        if len(parts) > 1:
            write_parts(self._socket, parts[1:])
        self._frames.after_send()
        return True

    def drop(self, flush: bool) -> None:
        self._close(FLUSH_MS if flush and self._state is _State.UP else 0)

    def probe(self) -> None:
        """Nothing to do: the monitor tells the end of a dialled connection without being asked."""

    def close(self) -> None:
        self.drop(flush=True)

    def outlived(self, why: str) -> None:
        """It is no good any more: ends soon, as broken; nothing more is heard of it."""
        if self._state in (_State.UP, _State.ENDING):
            self._frames.stop()
        if self._state is not _State.DONE:
            self._end_soon(Ended.BROKEN if self._state is _State.UP else Ended.UNREACHABLE, why)

    def _close(self, linger: int = 0) -> None:
        self._state = _State.DONE
        self._timer.cancel()
        self._release(linger)

    def _release(self, linger: int = 0) -> None:
        """Frees what this try to connect held."""
        self._look_no_more()
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
        event = read_event(self._monitor)
        if event is None:
            return False
        move = _MOVES.get((self._state, event[0]))
        if move is not None:
            move(self, event[1])
        return True

    def _on_connected(self, _: int) -> None:
        self._answered = True
        silent = Ended.SILENT, "it accepts connections and says nothing: hung, stopped, or not discoro"
        self._look = self._loop.call_later(LOOK_AFTER, self._look_there, silent, False)

    def _on_handshake(self, _: int) -> None:
        self._state = _State.UP
        self._timer.cancel()
        self._look_no_more()
        self._frames = Pump(self._loop, self._socket, self._take, self._on_drained)
        self._closers.insert(0, lambda _: self._frames.stop())
        log.debug("= %d connected to %s", self.conn, self._address)
        self._transport.receiver.connected(self.conn)

    def _on_denied(self, _: int) -> None:
        if not self._try_next_key():
            self._look_there((Ended.DENIED, UNCLEAR))

    def _try_next_key(self) -> bool:
        """While the cluster's key is being changed, others may have one of two; False where all were tried."""
        if not self._further_keys:
            return False
        self.security = self._further_keys.pop(0)
        self._hangups = 0
        self._release()
        self._connect()
        return True

    def _on_hangup(self, reason: int) -> None:
        """libzmq tells no more than the errno with which the handshake stopped."""
        if reason not in (errno.EPIPE, errno.ECONNRESET):
            self._end(Ended.SILENT, "it began a handshake and did not finish it: hung, stopped, or not discoro")
            return
        self._hangups += 1
        if self._hangups == HANGUPS:
            if self._try_next_key():
                return
            self._look_there((Ended.SILENT, "it hangs up on whoever connects: not discoro, or out of connections, or ending"))
            return
        self._release()
        again = self._loop.call_later(HANGUP_PAUSE, self._connect)
        self._closers = [lambda _: again.cancel()]

    def _on_nonsense(self, _: int) -> None:
        if self._try_next_key():
            return
        self._look_there((Ended.SILENT, "something answers there, and it is not discoro"))

    # Who answers there.

    def _look_there(self, otherwise: tuple[Ended, str], denied: bool = True) -> None:
        """End with what a look tells; `otherwise` where it hears nothing. Not `denied`: the handshake may still succeed."""
        if denied:
            self._release()
        assert self.target is not None  # only an address that was understood gets here

        def judge(begin: bytes) -> None:
            self._look = None
            verdict = judged(begin, self.security.open, denied) if begin else otherwise
            if verdict is not None:
                self._end(*verdict)

        try:
            self._look = _Look(self._loop, self.target, judge)
        except OSError:  # no more descriptors
            if denied:
                self._end(*otherwise)

    def _look_no_more(self) -> None:
        look, self._look = self._look, None
        if look is not None:
            look.cancel()

    def _on_no_connection(self, _: int) -> None:
        """libzmq keeps the reason to itself: the time tells one, a plain socket that tries as well the others."""
        if self._loop.time() - self._began > 0.9 * CONNECT_MS / 1000:
            self._end(Ended.UNREACHABLE, f"no answer within {CONNECT_MS / 1000:g} s")
            return
        self._release()
        assert self.target is not None
        try:
            plain, result = _plain_connection(self.target)
        except OSError as error:
            self._end(Ended.UNREACHABLE, f"this process cannot dial it ({error.strerror})")
            return
        self._closers = [lambda _: self._loop.remove_writer(plain), lambda _: plain.close()]
        if result == errno.EINPROGRESS:
            self._loop.add_writer(plain, self._on_reason, plain)
        else:
            self._tell_reason(result)

    def _on_reason(self, plain: socket.socket) -> None:
        self._tell_reason(plain.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def _tell_reason(self, reason: int) -> None:
        if reason == errno.ECONNREFUSED:
            self._end(Ended.REFUSED, "nothing listens there (connection refused)")
        elif reason == 0:  # somebody listens: that must not count as the end of whoever lived there
            self._end(Ended.UNREACHABLE, "the connection was reset while it was made")
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
            parts, _ = read_frame(self._socket, NOW)
        except zmq.Again:
            return False
        if parts[0]:
            if allowed(parts):
                self._transport.receiver.received(self.conn, parts)
            else:
                self._end(Ended.BROKEN, "it sent a frame past the limits")
        elif len(parts) == len(CLOSED):
            self._end(Ended.BROKEN, "the other side closed the connection")
        return True

    def _on_drained(self) -> None:
        if self._state is _State.ENDING:
            self._end(Ended.BROKEN, "the connection broke")


# What follows from an event of a DEALER's monitor; what is not here means nothing. HANDSHAKE_FAILED_PROTOCOL is not asked for:
# Arrivals.ended says why. A failed handshake and the disconnection after it come as two events: the move for the first closes
# the monitor, and nobody sees the second.
_MOVES: dict[tuple[_State, int], Callable[[Outbound, int], None]] = {
    (_State.DIALLING, zmq.EVENT_CONNECTED): Outbound._on_connected,
    (_State.DIALLING, zmq.EVENT_CLOSED): Outbound._on_no_connection,
    (_State.DIALLING, zmq.EVENT_CONNECT_RETRIED): Outbound._on_no_connection,  # not even a TCP socket could be made
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_SUCCEEDED): Outbound._on_handshake,
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_FAILED_AUTH): Outbound._on_denied,
    (_State.DIALLING, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL): Outbound._on_hangup,
    (_State.DIALLING, zmq.EVENT_DISCONNECTED): Outbound._on_nonsense,
    (_State.UP, zmq.EVENT_DISCONNECTED): Outbound._on_broken,
}
_DIAL_EVENTS = sum({int(event) for _, event in _MOVES})


class _Look:
    """A plain connection that reads how the other side begins: GREETING_BYTES at most, for LOOK_SECONDS once it stands.

    `tell` gets what was heard, once: b"" where that is nothing. OSError where no connection can be tried.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, target: tuple[str, int], tell: Callable[[bytes], None]) -> None:
        self._loop = loop
        self._tell = tell
        self._begin = b""
        self._plain, _ = _plain_connection(target)
        self._timer = loop.call_later(LOOK_SECONDS, self._end)
        loop.add_writer(self._plain, self._greet)

    def cancel(self) -> None:
        """Free what it holds, and tell nothing."""
        self._timer.cancel()
        self._loop.remove_writer(self._plain)
        self._loop.remove_reader(self._plain)
        self._plain.close()

    def _greet(self) -> None:
        self._loop.remove_writer(self._plain)
        try:
            self._plain.send(OPENING)  # into an empty buffer: whole, and at once
        except OSError:
            self._end()
            return
        self._timer.cancel()  # anew: where the loop was blocked, the old one may be over before anybody could answer
        self._timer = self._loop.call_later(LOOK_SECONDS, self._end)
        self._loop.add_reader(self._plain, self._read)

    def _read(self) -> None:
        try:
            more = self._plain.recv(GREETING_BYTES - len(self._begin))
        except BlockingIOError:
            return
        except OSError:
            more = b""
        self._begin += more
        if not more or heard(self._begin) is not Heard.PART:
            self._end()

    def _end(self) -> None:
        self.cancel()
        self._tell(self._begin)


def _plain_connection(target: tuple[str, int]) -> tuple[socket.socket, int]:
    """A TCP socket that connects there without waiting, and the errno of that so far. OSError."""
    found = socket.getaddrinfo(*target, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST)[0]
    plain = socket.socket(*found[:2])
    plain.setblocking(False)
    return plain, plain.connect_ex(found[4])


def _parsed(address: str) -> tuple[str, int]:
    """(host, port); ValueError, with words for the user, for what is no address."""
    host, _, port = address.rpartition(":")
    try:
        ipaddress.ip_address(host.strip("[]"))
        if not (port.isascii() and port.isdigit() and 0 < int(port) < 65536):
            raise ValueError(port)
        if address_of(host.strip("[]"), int(port)) != address:
            raise ValueError(address)
    except ValueError:
        raise ValueError("no address; wanted is IP:port, as in 192.0.2.7:9705 or [fe80::7%eth0]:9705") from None
    return host.strip("[]"), int(port)
