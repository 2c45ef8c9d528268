"""Victims and bad peers: a node with one honest client, and whoever comes to the TCP ports of it and of its workers.

`Victim` checks that honest clients are served and nothing was unpickled, and measures what it costs in memory and descriptors.
`RawPeer` greets as well or as badly as a test tells it to, and does what no honest peer does.
"""

from __future__ import annotations

import os
import pickle
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zmq

from discoro import messages
from discoro.messages import Data, Greeting, RefusedFrame, Reply, Welcome
from discoro.security import Security
from tests.support.commands import Command, Machines, NodeCommand

Address = tuple[str, int]
SERVED_SECONDS = 2.0  # an honest client waits no longer than this, whatever goes on
MIB = 1 << 20
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"

HONEST = """
import asyncio

async def double(coro=None):
    while True:
        number, who = await coro.receive()
        who.send(number * 2)

async def deaf(coro=None):
    await asyncio.Event().wait()

async def client(coro=None):
    never = discoro.Coro(deaf).ref
    say("client", [never.addresses[0], never.pid, never.id])
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(double)
    await computation.setup(server)
    remote = await computation.run(server)
    say("worker", [remote.addresses[0], remote.pid])
    while (number := await asyncio.to_thread(told)) is not None:
        begun = time.monotonic()
        await computation.ping(server)
        for each in (remote, await computation.run(server)):
            each.send([number, coro])
            assert await coro.receive(5) == number * 2
        say("served", time.monotonic() - begun)
    await computation.close(server)

discoro.run(client, mdns=False, peers=[NODE])
"""


def door(address: str) -> Address:
    """An address "host:port", to connect to."""
    host, _, port = address.rpartition(":")
    return host, int(port)


class Bomb:
    """Unpickled, it leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


class Victim:
    """A node, and an honest client with a worker there."""

    def __init__(self, machines: Machines, directory: Path) -> None:
        self._machines = machines
        self.node: NodeCommand = machines.node("ada", "-c", "2")
        self.security = Security.from_options(key_file=machines.key_file)
        self.birth = int(self.node.ready["node"], 16)
        self.directory = directory
        self._marker = directory / "unpickled"
        self.bomb = pickle.dumps(Bomb(self._marker), protocol=5)
        self._client = self._honest()
        self.client_address, self.client_pid, self.deaf = self._client.next("client", 10)  # and a coroutine that never receives
        self.worker_address, self.worker_pid = self._client.next("worker", 10)

    @property
    def doors(self) -> list[Address]:
        """The TCP ports that bad peers come to: the node's and a worker's."""
        return [door(self.node.address), door(self.worker_address)]

    def _honest(self) -> Command:
        return self._machines.program("honest", f"NODE = {self.node.address!r}\n{HONEST}")

    def check(self) -> None:
        """The old client is served, a new one too, and nothing was unpickled."""
        self.serve()
        newcomer = self._honest()
        newcomer.next("client", 10)
        newcomer.next("worker", 10)
        self.serve(newcomer)
        newcomer.tell(None)
        newcomer.succeed(5)
        assert not self._marker.exists(), "a bad peer had something unpickled"

    def serve(self, client: Command | None = None) -> None:
        """An honest client is served at once: the old one, or the one given."""
        client = client or self._client
        client.tell(21)
        assert client.next("served", 10) < SERVED_SECONDS

    def leave(self, seconds: float = 5) -> None:
        self._client.tell(None)
        self._client.succeed(seconds)

    def rss(self, pid: int = 0) -> int:
        """Resident bytes of a process, by default the node."""
        return self._status("VmRSS", pid)

    def descriptors(self, pid: int = 0) -> int:
        """How many descriptors that process has open."""
        return len(os.listdir(f"/proc/{pid or self.node.pid}/fd"))

    @contextmanager
    def within(self, mib: float, pid: int = 0) -> Iterator[None]:
        """In this block the memory of that process grows by no more than so many MiB, at any moment."""
        before = self.rss(pid)
        Path(f"/proc/{pid or self.node.pid}/clear_refs").write_text("5")  # its peak is counted from here
        yield
        grown = (self._status("VmHWM", pid) - before) / MIB
        print(f"memory grew by {grown:.1f} MiB at most; {mib:g} are allowed")
        assert grown <= mib

    def _status(self, field: str, pid: int) -> int:
        status = Path(f"/proc/{pid or self.node.pid}/status").read_text()
        return int(status.partition(f"{field}:")[2].split()[0]) * 1024

    def greeting(self, **changes: Any) -> Greeting:
        """That of a client whom the node would welcome, with the changes given."""
        birth = random.getrandbits(62) + 1
        known = Greeting(f"{birth:016x}", 4711, birth, "bad", "client", "default", PYTHON, "0.1.0", (), birth)
        return known._replace(**changes)


class RawPeer:
    """A DEALER in the hands of a test: it sends whatever frames it is told to, over each of its connections in turn."""

    def __init__(self, door: Address, security: Security, connections: int = 1, stubborn: bool = False) -> None:
        """`stubborn`: it tries again where it was cut off; else what ends, ends, and `send` waits for ever then."""
        self._context = zmq.Context()
        self._context.set(zmq.MAX_SOCKETS, 4096)
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        if not stubborn:
            self._socket.reconnect_ivl = -1
        self._security = security
        security.secure_client(self._socket)
        self._socket.connect(f"tcp://{door[0]}:{door[1]}")
        for number in range(1, connections):  # each from an address of its own: the same endpoint is connected to once only
            self._socket.connect(f"tcp://127.1.{number >> 8}.{number & 255}:0;{door[0]}:{door[1]}")

    def __enter__(self) -> RawPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        self._context.term()

    def send(self, *parts: bytes) -> None:
        self._socket.send_multipart(parts)

    def hello(self, greeting: Greeting) -> None:
        body = messages.encode_greeting(greeting)
        self.send(*map(bytes, messages.encode_hello(self._security.mac(body), body)))

    def operations(self, greeting: Greeting, number: int, *operations: messages.Operation) -> None:
        """A numbered frame of the link that `greeting` opened."""
        wires = [messages.to_wire(operation) for operation in operations]
        self.send(*map(bytes, messages.encode_data(greeting.resume, number, 0, wires)))

    def answered(self, seconds: float) -> bool:
        """Whether anything comes, also the transport's own word that the connection is over."""
        return bool(self._socket.poll(int(seconds * 1000)))

    def next(self, seconds: float = 3.0) -> Any:
        """The next frame that says something, decoded; None where none comes."""
        end = time.monotonic() + seconds
        while self._socket.poll(max(0, int((end - time.monotonic()) * 1000))):
            parts = self._socket.recv_multipart()
            if parts[0]:  # an empty first part is the transport's own
                return messages.decode(parts)
        return None

    def answers(self, count: int) -> Iterator[str]:
        """What so many greetings are answered with: "welcome", or the code of a refusal; "nothing" ends it."""
        while count and (frame := self.next(10)) is not None:
            if isinstance(frame, Welcome | RefusedFrame):
                count -= 1
                yield "welcome" if isinstance(frame, Welcome) else frame.code
        yield from ["nothing"] * bool(count)

    def reply(self) -> Reply:
        """The next Reply; other operations and acknowledgements before it are passed over."""
        while (frame := self.next()) is not None:
            for each in frame.operations if isinstance(frame, Data) else ():
                if isinstance(each, Reply):
                    return each
        raise AssertionError("no reply came")

    def greet(self, victim: Victim, **changes: Any) -> Greeting:
        """Greet well; the greeting that opened the link, with the number that the other side gave it in `resume`."""
        greeting = victim.greeting(**changes)
        self.hello(greeting)
        welcome = self.next()
        assert isinstance(welcome, Welcome)
        return greeting._replace(resume=messages.decode_greeting(welcome.greeting).session)
