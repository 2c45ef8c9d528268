"""A process whose Python is busy is flooded, and the connection breaks: libzmq's own thread lives through it, whoever dialled.

libzmq 4.3.5 ends the whole process (`Assertion failed: !_io_error`) where a connection breaks whose input stands still, because
so many unread frames wait as ZMQ_RCVHWM allows, and then a heartbeat falls due. So no number of frames may stop the input.

The victim is a child process with sockets as discoro makes them, without a key: so anybody may flood it. It is busy until the
test tells it to go on. The peers speak ZMTP 3.1 by hand.
"""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines
from tests.support.victims import door

pytestmark = [pytest.mark.system]

PATIENCE = 60.0  # seconds until a test that waits in vain fails
FLOOD = 20_000  # frames, many times what ZMQ_RCVHWM was
NULL = b"\xff" + bytes(8) + b"\x7f\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)  # a greeting of ZMTP 3.1 (RFC 37)
PING = b"\x04\x07\x04PING\x00\x00"
PONG = b"\x04\x05\x04PONG"

# It listens, and dials where it is told to; then it reads nothing until it is told to go on.
VICTIM = """
import asyncio
from discoro.security import Security
from discoro.transport import Transport

class Receiver:
    def __init__(self):
        self.up, self.ended_ones, self.frames = asyncio.Queue(), asyncio.Queue(), 0
    def connected(self, conn):
        self.up.put_nowait(conn)
    def received(self, conn, parts):
        self.frames += 1
    def ended(self, conn, how, detail):
        self.ended_ones.put_nowait(conn)

async def main():
    receiver = Receiver()
    transport = Transport(Security.from_handed_down("open"), receiver)
    say("address", transport.listen(["127.0.0.1"], None)[0])
    for address in await asyncio.to_thread(told):
        transport.dial(address)
        await receiver.up.get()
    say("busy")
    assert told() == "go on"
    await receiver.ended_ones.get()
    say("frames", receiver.frames)
    await transport.close()

asyncio.run(main())
"""


def ready(kind: str) -> bytes:
    """The command that ends the handshake of a socket of that kind, without a key."""
    named = bytes([len(kind)])
    return b"\x04" + bytes([6 + 12 + 4 + len(kind)]) + b"\x05READY\x0bSocket-Type" + b"\0\0\0" + named + kind.encode()


class Peer:
    """One connection to the victim, by hand."""

    def __init__(self, connection: socket.socket, kind: str) -> None:
        connection.settimeout(PATIENCE)
        self._connection = connection
        self._came = b""
        connection.sendall(NULL + ready(kind))
        self.until(b"READY")

    def until(self, what: bytes) -> None:
        """Read until that came; what stood before it is forgotten."""
        while what not in self._came:
            more = self._connection.recv(65536)
            assert more, "the victim closed the connection, or is gone"
            self._came += more
        self._came = self._came.partition(what)[2]

    def send(self, data: bytes) -> None:
        self._connection.sendall(data)

    def reset(self) -> None:
        """End the connection as a crash of the machine does."""
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._connection.close()

    def close(self) -> None:
        self._connection.close()


@contextlib.contextmanager
def peers(victim: Command, dialled: bool) -> Iterator[tuple[Peer, Peer]]:
    """One that floods and one that watches, both connected to the victim, which is busy then. `dialled`: by it."""
    address = door(victim.next("address", PATIENCE))
    with contextlib.ExitStack() as stack:
        if dialled:
            doors = [stack.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(2)]
            victim.tell([f"127.0.0.1:{each.getsockname()[1]}" for each in doors])
            both = [Peer(each.accept()[0], "ROUTER") for each in doors]
        else:
            victim.tell([])
        victim.next("busy", PATIENCE)
        if not dialled:  # its network thread needs no Python for that
            both = [Peer(socket.create_connection(address), "DEALER") for _ in range(2)]
        for each in both:
            stack.callback(each.close)
        yield both[0], both[1]


def two_heartbeats(watcher: Peer) -> None:
    """Of the victim's network thread: by the second one, every connection's heartbeat has fallen due once."""
    for _ in range(2):
        watcher.until(PING[:7])
        watcher.send(PONG)


@pytest.mark.parametrize("dialled", [False, True], ids=["from outside", "by whom it dialled"])
def test_a_flood_that_breaks_off_while_python_is_busy_ends_no_process(tmp_path: Path, dialled: bool) -> None:
    with Machines(tmp_path) as machines:
        victim = machines.program("", VICTIM)
        with peers(victim, dialled) as (flooder, watcher):
            for _ in range(FLOOD // 1000):
                flooder.send(b"\x00\x01x" * 1000)
            flooder.send(PING)
            flooder.until(PONG)  # its network thread has read all of it
            flooder.reset()
            two_heartbeats(watcher)
            victim.tell("go on")
            assert victim.next("frames", PATIENCE) <= FLOOD
        victim.succeed(PATIENCE)
