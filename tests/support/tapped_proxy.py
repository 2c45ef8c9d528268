"""Somebody in between, who keeps all that passes and may alter it: a Proxy that knows where ZMTP's frames begin, and no key.

    with TappedProxy(directory) as tapped, Machines(directory) as machines:
        node = machines.node("ada", **tapped.environment)     # whatever it and its workers dial goes through here
        client = machines.program("client", SOURCE, **tapped.environment)
        tapped.alter = lambda tap, way, index, unit: [unit, unit]
        tapped.everything()                                   # the bytes of all connections so far

A *unit* is what ZMTP sends in one piece: its greeting in three steps, each answered before the next, then frames. A
connection is a `Tap`, which keeps the units of both ways as they came. `alter` is called in the proxy's thread for each of
them and gives what is sent on instead.

Processes dial as they always do; a sitecustomize module on their PYTHONPATH asks here for the address to dial instead.
"""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from tests.support.commands import ROOT
from tests.support.proxy import Proxy

GREETING = (10, 1, 53)  # bytes of signature, version, and the rest with the mechanism's name (RFC 23)
LONG = 0x02  # flag of a ZMTP frame: its length takes eight bytes
DIAL_THROUGH = """
import os, socket

from discoro.transport import Transport

dial = Transport.dial

def through(transport, address):
    with socket.create_connection(("127.0.0.1", int(os.environ["TAPPED_PROXY"]))) as asked:
        asked.sendall(address.encode())
        asked.shutdown(socket.SHUT_WR)
        return dial(transport, asked.recv(256).decode())

Transport.dial = through
"""


class Way(enum.Enum):
    """Which way a unit goes."""

    UP = "from who dialled"
    DOWN = "to who dialled"


@dataclass
class Tap:
    """One connection: how many there were before it, where it leads, what passed on it."""

    number: int
    target: str
    units: dict[Way, list[bytes]] = field(default_factory=lambda: {way: [] for way in Way}, repr=False)
    ended_at: float | None = None  # on the monotonic clock

    @property
    def ended(self) -> bool:
        return self.ended_at is not None

    def bytes(self, way: Way) -> bytes:
        """All that came that way, as far as it is whole units."""
        return b"".join(self.units[way])


Alter = Callable[[Tap, Way, int, bytes], Sequence[bytes]]


class TappedProxy(Proxy):
    """A proxy that keeps and alters. `directory` is for what the processes of a test import."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.taps: list[Tap] = []
        self.alter: Alter = lambda tap, way, index, unit: [unit]
        self._open: dict[socket.socket, tuple[Tap, Way]] = {}
        self._rest: dict[socket.socket, bytes] = {}
        self._door = socket.create_server(("127.0.0.1", 0))
        hook = directory / "tapped"
        hook.mkdir()
        (hook / "sitecustomize.py").write_text(DIAL_THROUGH)
        self.environment = {"PYTHONPATH": f"{hook}:{ROOT}", "TAPPED_PROXY": str(self._door.getsockname()[1])}
        self._doorman = threading.Thread(target=self._answer, name="tapped proxy's door", daemon=True)

    def __enter__(self) -> TappedProxy:
        super().__enter__()
        self._doorman.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._door.shutdown(socket.SHUT_RDWR)  # wakes who waits in accept
        self._doorman.join()
        self._door.close()
        super().__exit__(kind, error, trace)

    def everything(self) -> bytes:
        """All bytes of all connections so far, those of each way together."""
        with self._lock:
            return b"".join(tap.bytes(way) for tap in self.taps for way in Way)

    def cut_to(self, targets: Sequence[str]) -> None:
        """Reset the connections that lead to these addresses."""
        with self._lock:
            for end, (tap, _) in list(self._open.items()):
                if tap.target in targets:
                    self._drop(end)

    def wait_for(self, true: Callable[[], bool], seconds: float) -> bool:
        """Wait until it holds; it is asked whenever something passed or ended. Whether it holds."""
        with self._lock:
            return self._lock.wait_for(true, seconds)

    def _answer(self) -> None:
        """Tell processes what to dial instead of an address."""
        while True:
            try:
                asked, _ = self._door.accept()
            except OSError:  # the end
                return
            with asked, contextlib.suppress(OSError):
                asked.settimeout(5)
                address = b""
                while part := asked.recv(256):
                    address += part
                asked.sendall(self.in_front_of(address.decode()).encode())

    def _began(self, near: socket.socket, far: socket.socket, target: tuple[str, int]) -> None:
        tap = Tap(len(self.taps), f"{target[0]}:{target[1]}")
        self.taps.append(tap)
        for end, way in ((near, Way.UP), (far, Way.DOWN)):
            self._open[end] = tap, way
            self._rest[end] = b""

    def _passed(self, source: socket.socket, data: bytes) -> bytes:
        tap, way = self._open[source]
        kept = tap.units[way]
        units, self._rest[source] = split(self._rest[source] + data, len(kept))
        sent: list[bytes] = []
        for unit in units:
            kept.append(unit)
            sent += self.alter(tap, way, len(kept) - 1, unit)
        return b"".join(sent)

    def _ended(self, end: socket.socket, other: socket.socket) -> None:
        tap, _ = self._open[end]
        tap.ended_at = time.monotonic()
        for each in (end, other):
            del self._open[each], self._rest[each]
        self._lock.notify_all()


def split(data: bytes, before: int = 0) -> tuple[list[bytes], bytes]:
    """The whole units that these bytes of one way begin with, after so many before them; and what is left."""
    units = []
    at = 0
    while (size := unit_size(data[at : at + 9], before + len(units))) and at + size <= len(data):
        units.append(data[at : at + size])
        at += size
    return units, data[at:]


def unit_size(beginning: bytes, index: int) -> int:
    """Bytes of the unit that begins like this, the `index`-th of its way; 0 where that cannot be said yet."""
    if index < len(GREETING):
        return GREETING[index]
    if len(beginning) < 2:
        return 0
    if not beginning[0] & LONG:
        return 2 + beginning[1]
    return 9 + int.from_bytes(beginning[1:9], "big") if len(beginning) == 9 else 0


def head_size(frame: bytes) -> int:
    """Bytes of a frame's flags and length, which ZMTP does not authenticate."""
    return 9 if frame[0] & LONG else 2
