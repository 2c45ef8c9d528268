"""The sockets of this process: carries frames to and from others, and tells when a connection stands and how it ended.

Never: reads a frame, dials again, resends, decides who a peer is, or blocks the event loop.

How it plays together: a `Transport` owns a ZeroMQ context with one thread for the network, a `Listener` with an
`Inbound` for each connection that others made, and an `Outbound` for each that it dialled. What they are, and what
the layer above may count on, is said in `connections`. All news goes to the `Receiver`, always from the loop, never
from inside a call to the transport.
"""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import logging
import os
import socket
import threading
import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

from discoro.connections import Ended, Receiver, address_of, allowed, size_of
from discoro.dialling import Outbound
from discoro.errors import ConfigError
from discoro.listening import Inbound, Listener
from discoro.messages import Part
from discoro.sockets import FLUSH_MS, require_descriptors, started_context

if TYPE_CHECKING:
    from discoro.security import Security

log = logging.getLogger("discoro.transport")

GONE_KEPT = 8  # addresses that this machine had and that are listened on further: the networks of some days, for a laptop


class Transport:
    """The sockets of one process, or one of several such sets in it. Made inside a running event loop."""

    def __init__(self, security: Security, receiver: Receiver) -> None:
        """`security` readies each socket before use; `receiver` gets all news. OSError: no descriptors left."""
        self.loop = asyncio.get_running_loop()
        self.security = security
        self.receiver = receiver
        self.context = started_context()
        self._lines: dict[int, Inbound | Outbound] = {}
        self._listener: Listener | None = None
        self._numbers = itertools.count(1)
        self._hosts: list[str] = []
        self._gone: list[str] = []  # addresses that this machine had, the latest last; listened on further
        self._deaf: set[str] = set()  # addresses that it has, and that could not be listened on so far
        self._ports: set[int] = set()  # of all doors
        self._terminated = asyncio.Event()
        self._terminator: threading.Thread | None = None
        _transports.add(self)

    def listen(self, hosts: Sequence[str], ports: Sequence[int] | None) -> list[str]:
        """Let others connect: on all `hosts` (IP addresses) at one port, the first of `ports` that is free on
        all of them, or any free one for None. Returns the addresses. At most once per transport.

        Raises PortTaken where no port is free, ConfigError for a host or port that cannot be listened on, OSError
        where the process has no descriptors left.
        """
        self._refuse_when_closed()
        if self._listener is not None:
            raise RuntimeError(f"{self!r} listens already")
        hosts = [_checked_host(host) for host in dict.fromkeys(hosts)]
        require_descriptors()
        listener = Listener(self)
        try:
            port = listener.open_door(hosts, ports, self.security)
        except BaseException:  # whatever it is, no port stays bound
            listener.close(linger=0)
            raise
        self._listener, self._hosts = listener, hosts
        self._ports.add(port)
        log.debug("= listening on %s", ", ".join(self._addresses))
        return list(self._addresses)

    def move(self, hosts: Sequence[str]) -> list[str]:
        """Listen on these `hosts` from now on, at the same ports; to be called again where some cannot be had yet, which the
        log says once. Returns the addresses of those that can. After `listen` only.

        An address that is gone is listened on further, as it may come back, and whoever is refused there would take this
        process for dead; only the latest GONE_KEPT of them are kept.
        """
        self._refuse_when_closed()
        assert self._listener is not None
        hosts = [_checked_host(host) for host in dict.fromkeys(hosts)]
        self._gone = [host for host in dict.fromkeys([*self._gone, *self._hosts]) if host not in hosts]
        while len(self._gone) > GONE_KEPT:
            self._listener.leave_host(self._gone.pop(0))
        self._hosts = hosts
        for host in hosts:
            self._add_host(self._listener, host)
        self._deaf &= set(hosts)
        log.debug("= listening on %s", ", ".join(self._addresses))
        return list(self._addresses)

    def _add_host(self, listener: Listener, host: str) -> None:
        try:
            listener.add_host(host)
            self._deaf.discard(host)
        except (ConfigError, OSError) as error:
            level = logging.DEBUG if host in self._deaf else logging.WARNING
            self._deaf.add(host)
            log.log(level, "! others cannot come in at %s yet: %s", host, error)

    @property
    def all_open(self) -> bool:
        """Whether every host that is to be listened on is."""
        return not self._deaf

    @property
    def _addresses(self) -> list[str]:
        return self._listener.addresses(self._hosts) if self._listener is not None else []

    def use(self, security: Security, ports: Sequence[int] | None = None) -> list[str]:
        """Change the key: `security` is what counts from now on, and what follows it gets a door of its own, at one of
        `ports`. Returns the addresses of the second door where it was opened by this call, else none.

        Connections under a key that is accepted no more end as BROKEN, and nothing more is heard of them, not even what came
        before. PortTaken, ConfigError, OSError where there can be no second door; all else is done then, and OSError without
        descriptors for the rest: to be called again.
        """
        self._refuse_when_closed()
        self.security = security
        for line in list(self._lines.values()):
            if isinstance(line, Outbound) and not any(line.security.same_key(each) for each in self.keys):
                line.outlived("the cluster's key was changed")
        return self._change_doors(self._listener, security, ports) if self._listener is not None else []

    def _change_doors(self, listener: Listener, security: Security, ports: Sequence[int] | None) -> list[str]:
        for number, key in enumerate((security, security.following or security)[: len(listener.keys)]):
            if not listener.keys[number].same_key(key):
                listener.change_key(number, key)
        if security.following is None or len(listener.keys) > 1:
            return []
        hosts = [host for host in self._hosts if host not in self._deaf]
        port = listener.open_door(hosts, ports, security.following)
        self._ports.add(port)
        return [address_of(host, port) for host in hosts]

    @property
    def keys(self) -> list[Security]:
        """Those that a dial tries, in this order."""
        return self.security.accepted or [self.security]

    def dial(self, address: str) -> int:
        """Connect to "host:port", host being an IP address. Returns the number of the connection at once;
        `connected` or `ended` follows within 5 s, `ended` also for what is no address. Names are not resolved:
        libzmq would do that in its one network thread, and all other connections would wait for it.
        """
        self._refuse_when_closed()
        conn = next(self._numbers)
        self._lines[conn] = Outbound(self, conn, address)
        return conn

    def send(self, conn: int, parts: Sequence[Part]) -> bool:
        """Queue one frame, never waiting; False where that connection does not stand (yet, or any more). True
        is no receipt: what is under way when a connection ends is lost. The parts may be changed afterwards.

        Raises ValueError for a frame of no part, an empty first one, or more than FRAME_BYTES or FRAME_PARTS.
        """
        line = self._lines.get(conn)
        if not allowed(parts):
            raise ValueError(f"not a frame: {len(parts)} parts of {sum(map(size_of, parts))} bytes in all")
        return line is not None and line.send(parts)

    def drop(self, conn: int, flush: bool = False) -> None:
        """End a connection; nothing more is heard of it here, and the other side is told BROKEN. `flush`: what
        was sent has 500 ms to leave before. A number of no connection is ignored: it may just have ended.
        """
        line = self._lines.pop(conn, None)
        if line is not None:
            line.drop(flush)

    def keep(self, conn: int) -> None:
        """Keep a connection that somebody made to us: without this it is ended after 10 s, or sooner where many wait."""
        line = self._lines.get(conn)
        if isinstance(line, Inbound):
            line.keep()

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
            try:
                self._terminator.start()
            except RuntimeError:  # Python 3.12 starts no thread at the end of the interpreter: then the loop waits
                self._terminate()
        await self._terminated.wait()
        if self._terminator.ident is not None:
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

    # For the two kinds of connection.

    def admit(self, line: Inbound) -> None:
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

    def close_copies(self) -> None:
        """In a forked child: close its copies of our TCP sockets. Otherwise the port stays taken and no
        peer sees our end for as long as the child lives. libzmq keeps its descriptors to itself, so all that
        the process has are looked at.
        """
        dialled = {line.target for line in self._lines.values() if isinstance(line, Outbound)}
        for name in os.listdir("/dev/fd"):
            try:
                copy = socket.socket(fileno=int(name))
            except OSError:  # not a socket, or the descriptor of this very listing
                continue
            if _is_ours(copy, self._ports, dialled):
                copy.close()
            else:
                copy.detach()


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
