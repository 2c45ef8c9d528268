"""A TCP proxy that can cut: stands between two processes, passes bytes both ways, and breaks all connections at will.

    with Proxy() as proxy:
        near = proxy.in_front_of("127.0.0.1:7701")   # dial this address instead
        proxy.cut()

A cut resets every connection at both ends; bytes on their way are thrown away, in the middle of a frame as it comes. New
connections are accepted at once. It knows nothing of what passes. One thread of its own serves all connections.
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from types import TracebackType

CHUNK = 64 * 1024  # bytes moved at once
HANDSHAKE = 1024  # bytes both ways that any handshake takes; a connection that moved more stands
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() throws away what waits and sends a reset


class Proxy:
    """Any number of listening addresses, each in front of one target."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()
        self._waker, self._woken = socket.socketpair()
        self._lock = threading.Condition()  # held while the thread works; a cut falls between two of its steps
        self._pairs: dict[socket.socket, socket.socket] = {}
        self._moved: dict[socket.socket, int] = {}  # bytes read from it
        self._listeners: list[socket.socket] = []
        self._addresses: dict[str, str] = {}
        self._thread = threading.Thread(target=self._serve, name="proxy", daemon=True)
        self._closing = False
        self._doomed: set[socket.socket] = set()  # connections that are reset with their first bytes
        self._to_doom = 0

    def __enter__(self) -> Proxy:
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closing = True
        self._waker.send(b".")
        self._thread.join()
        self.cut()
        for each in (*self._listeners, self._waker, self._woken):
            each.close()
        self._selector.close()

    def in_front_of(self, target: str) -> str:
        """The address to dial instead of `target`; the same for every call."""
        if target not in self._addresses:
            listener = socket.create_server(("127.0.0.1", 0))
            self._listeners.append(listener)
            host, _, port = target.rpartition(":")
            with self._lock:
                self._selector.register(listener, selectors.EVENT_READ, (host, int(port)))
            self._waker.send(b".")
            self._addresses[target] = f"127.0.0.1:{listener.getsockname()[1]}"
        return self._addresses[target]

    def cut(self, again: int = 0, *, wait: float = 0.0) -> int:
        """Reset every connection now, and the next `again` ones in the middle of their handshakes; how many there were.

        Waits at most `wait` seconds for one that has its handshake behind it.
        """
        with self._lock:
            self._lock.wait_for(self._any_stands, wait)
            self._to_doom += again
            ends = list(self._pairs)
            for end in ends:
                self._drop(end)
        return len(ends) // 2

    def _any_stands(self) -> bool:
        return any(self._moved[one] + self._moved[other] > HANDSHAKE for one, other in self._pairs.items())

    def _serve(self) -> None:
        while not self._closing:
            ready = self._selector.select()
            with self._lock:
                for key, _ in ready:
                    self._step(key)

    def _step(self, key: selectors.SelectorKey) -> None:
        source = key.fileobj
        assert isinstance(source, socket.socket)
        if source is self._woken:
            source.recv(1024)
        elif key.data is not None:
            self._accept(source, key.data)
        elif source in self._pairs:  # else: its other end was dropped in this very turn
            self._move(source, self._pairs[source])

    def _accept(self, listener: socket.socket, target: tuple[str, int]) -> None:
        near, _ = listener.accept()
        try:
            far = socket.create_connection(target, timeout=1)
        except OSError:
            _reset(near)
            return
        self._began(near, far, target)
        for one, other in ((near, far), (far, near)):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            one.settimeout(10)  # a peer that does not read for so long is broken; the test fails
            self._pairs[one] = other
            self._moved[one] = 0
            self._selector.register(one, selectors.EVENT_READ)
        if self._to_doom:
            self._to_doom -= 1
            self._doomed |= {near, far}

    def _move(self, source: socket.socket, sink: socket.socket) -> None:
        try:
            data = source.recv(CHUNK)
            sink.sendall(self._passed(source, data))
        except OSError:
            data = b""
        if not data or source in self._doomed:
            self._drop(source)
            return
        self._moved[source] += len(data)
        self._lock.notify_all()

    def _began(self, near: socket.socket, far: socket.socket, target: tuple[str, int]) -> None:
        """A connection was accepted, and another made to the target. For those who look at what passes."""

    def _passed(self, source: socket.socket, data: bytes) -> bytes:
        """What is sent on in place of what came."""
        return data

    def _ended(self, end: socket.socket, other: socket.socket) -> None:
        """A connection is reset at both ends."""

    def _drop(self, end: socket.socket) -> None:
        """Reset a connection at both ends."""
        other = self._pairs.pop(end, None)
        if other is None:
            return
        self._ended(end, other)
        self._pairs.pop(other, None)
        self._doomed -= {end, other}
        for each in (end, other):
            self._selector.unregister(each)
            del self._moved[each]
            _reset(each)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    end.close()
