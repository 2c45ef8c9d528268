"""The TCP connections that others make to this process: how many, and how long without a greeting.

libzmq accepts whoever connects, as long as there are descriptors; without any, its network thread turns in circles and this
process cannot open a file. So connections without a greeting have few places and little time here, and the oldest of them gives
way: from an honest process a greeting follows within milliseconds. A connection is ended by shutting down its TCP socket, of
which libzmq then learns as of any other end. It never unbinds or refuses: to others that would mean that this process is gone.

Never: reads or writes a connection, or knows what a greeting is. `Listener` tells what its monitor and its frames show.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Collection
from typing import Any, NamedTuple

from discoro.process import descriptors
from discoro.throttle import Throttle

log = logging.getLogger("discoro.arrivals")

MAX_UNGREETED = 2048  # connections without a greeting: so many workers may come back at once, each for some ten milliseconds
UNGREETED_SECONDS = 10.0  # one of several that lead to us greets when the one before it did not get through: after 3 s or 6
MAX_CONNECTIONS = 4096 + 2 * MAX_UNGREETED  # as many as there are links, and some that come and go
SHARE = 2  # part of this process's descriptors that others may take by connecting: one in so many
CLOSE_SECONDS = 2.0  # for a peer to close a connection that it was asked to close
NOTICE_SECONDS = 10.0  # until every process has read a key file that was changed, and has dialled again
SWEEP_SECONDS = 1.0  # between two looks for those whose time is over
MANY = 20  # connections a minute that break off: more are no accident; whoever has another key makes some forty
BROKE_OFF = "ended before it: another key, not discoro, or one of several ways here"


class Arrival(NamedTuple):
    """One accepted connection: its descriptor, which another may have soon after, and its two ends, which no other has."""

    descriptor: int
    ends: Any
    since: float

    @property
    def host(self) -> str:
        """Where it came from."""
        return self.ends[1][0] if self.ends else "an address that was gone at once"

    @property
    def here(self) -> str | None:
        """The address of ours where it came in; None for one that was gone at once."""
        return self.ends[0][0] if self.ends else None

    @property
    def port(self) -> int | None:
        """The port of ours where it came in; None for one that was gone at once."""
        return self.ends[0][1] if self.ends else None


class Arrivals:
    """All of one listener, which come in at these `ports`. Each is told of by `accepted`, perhaps `greeted`, and `ended`.

    It is told of late where the loop was busy: by then its descriptor may be that of another connection, which this process has
    made itself. That one is known by its port.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, ports: Collection[int]) -> None:
        self._loop = loop
        self._ports = ports
        self._open: dict[int, Arrival] = {}  # by descriptor
        self._ungreeted: dict[Arrival, None] = {}  # the oldest first
        self._sweeper: asyncio.TimerHandle | None = None
        self._late = Throttle(log, "connections that came with the key before", logging.INFO)
        self._expected_until = 0.0
        self._broke_off = Throttle(log, "connections without a greeting", logging.INFO, loud=MANY)
        self._crowded = Throttle(log, "connections ended to keep places free")

    def __repr__(self) -> str:
        return f"<Arrivals {len(self._open)} connections, {len(self._ungreeted)} not greeted>"

    @property
    def limits(self) -> tuple[int, int]:
        """How many connections may stand in all, and how many of them without a greeting."""
        most = min(MAX_CONNECTIONS, descriptors() // SHARE)
        return most, min(MAX_UNGREETED, most // SHARE)

    def accepted(self, descriptor: int) -> Arrival:
        """Somebody connected."""
        arrival = Arrival(descriptor, _ends(descriptor, self._ports), self._loop.time())
        before = self._open.get(descriptor)
        if before is not None:  # its end was not told
            self._ungreeted.pop(before, None)
        self._open[descriptor] = arrival
        self._ungreeted[arrival] = None
        most, ungreeted = self.limits
        if len(self._ungreeted) > ungreeted or len(self._open) > most:
            oldest = next(iter(self._ungreeted))
            crowd = f"{ungreeted} without a greeting" if len(self._ungreeted) > ungreeted else f"{most} in all"
            self._crowded.note(f"more than {crowd}", f"from {oldest.host}")
            self.hang_up(oldest)
        if self._sweeper is None:
            self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep)
        return arrival

    def greeted(self, arrival: Arrival) -> None:
        """It is a peer's: it may stay."""
        self._ungreeted.pop(arrival, None)

    def ended(self, descriptor: int) -> None:
        """The connection with that descriptor is gone.

        Why is not asked: libzmq would tell of handshakes that failed, but also of frames that it cannot decrypt, and in
        telling that it forgets the error, reads no further, and ends the whole process at the next heartbeat (4.3.5).
        """
        arrival = self._open.pop(descriptor, None)
        if arrival is None or arrival not in self._ungreeted:
            return
        del self._ungreeted[arrival]
        expected = self._loop.time() < self._expected_until
        (self._late if expected else self._broke_off).note(BROKE_OFF, f"from {arrival.host}")

    def key_changed(self) -> None:
        """Our own peers come with the key before until they have noticed: that is no reason to warn of strangers."""
        self._expected_until = self._loop.time() + NOTICE_SECONDS

    def hang_up(self, arrival: Arrival) -> None:
        """End it, whatever the other side does."""
        self._ungreeted.pop(arrival, None)
        if self._open.get(arrival.descriptor) is arrival:
            del self._open[arrival.descriptor]
            self._shut_down(arrival)

    def hang_up_soon(self, arrival: Arrival) -> None:
        """The same once the other side has had its time to close it."""
        self._loop.call_later(CLOSE_SECONDS, self.hang_up, arrival)

    def close(self) -> None:
        """With the listener."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        for throttle in (self._late, self._broke_off, self._crowded):
            throttle.close()

    def _sweep(self) -> None:
        """End those that have had their time."""
        for arrival in list(self._ungreeted):
            if self._loop.time() < arrival.since + UNGREETED_SECONDS:
                break
            self._broke_off.note("said nothing that counts", f"from {arrival.host}")
            self.hang_up(arrival)
        self._sweeper = self._loop.call_later(SWEEP_SECONDS, self._sweep) if self._ungreeted else None

    def _shut_down(self, arrival: Arrival) -> None:
        if arrival.ends is None or _ends(arrival.descriptor, self._ports) != arrival.ends:
            return
        connection = socket.socket(fileno=arrival.descriptor)
        try:
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        finally:
            connection.detach()


def _ends(descriptor: int, ports: Collection[int]) -> Any:
    """The two ends of the TCP connection with that descriptor, which tell it from all others; None where it is none, or did
    not come in at one of these ports.
    """
    try:
        connection = socket.socket(fileno=descriptor)
    except OSError:
        return None
    try:
        is_tcp = connection.family in (socket.AF_INET, socket.AF_INET6) and connection.type == socket.SOCK_STREAM
        if not is_tcp or connection.getsockname()[1] not in ports:
            return None
        return connection.getsockname(), connection.getpeername()
    except OSError:  # it has ended
        return None
    finally:
        connection.detach()  # it is libzmq's to close
