"""A pickle that would write a file, from whoever is not let in, in every place where bytes can stand: it is never loaded.

To a node, to a worker, and to a client, which listens too; and to a client that dials the wrong one. What else the first two
do about bad peers is in test_bad_peers.py.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from discoro import messages, packing
from discoro.messages import Greeting, Message, Reply, Request
from discoro.security import Security
from tests.support.commands import Command, Machines
from tests.support.victims import Address, Bomb, RawPeer
from tests.system.test_bad_peers import shove, zmtp_greeting

pytestmark = [pytest.mark.system]

PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"
OPEN = Security(b"", "open")
ANOTHER = Security(b"another key".ljust(64), "another")

CLIENT = """
import asyncio

async def double(coro=None):
    while (message := await coro.receive()) is not None:
        message[1].send(message[0] * 2)

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(double)
    await computation.setup(server)
    remote = await computation.run(server)
    say("doors", [coro.ref.addresses[0], remote.addresses[0]])
    while (number := await asyncio.to_thread(told)) is not None:
        remote.send([number, coro])
        say("served", await coro.receive(10))
    await computation.close(server)

discoro.run(client, mdns=False, ip_addr=["127.0.0.1"], peers=[NODE])
"""

DIALLER = """
async def client(coro=None):
    await coro.locate("discoro_server", timeout=2)

try:
    discoro.run(client, mdns=False, ip_addr=["127.0.0.1"], peers=PEERS, discover_timeout=2)
except discoro.DiscoroError as error:
    say("refused", type(error).__name__)
"""


class Targets:
    """A node, its worker and a client of it, all of which listen; and a bomb that tells whether one of them loaded it."""

    def __init__(self, machines: Machines, directory: Path) -> None:
        self.machines = machines
        self.marker = directory / "loaded"
        self.bomb = pickle.dumps(Bomb(self.marker), protocol=5)
        node = machines.node("ada", "-c", "1")
        self.node_birth = int(node.ready["node"], 16)
        self.security = Security.from_options(key_file=machines.key_file)
        self.client: Command = machines.program("client", f"NODE = {node.address!r}\n{CLIENT}")
        mine, worker = self.client.next("doors", 20)
        self.doors = {"node": address(node.address), "worker": address(worker), "client": address(mine)}

    def check(self) -> None:
        """All three work as before, and none loaded anything."""
        self.client.tell(21)
        assert self.client.next("served", 10) == 42
        assert not self.marker.exists(), "a hostile payload was loaded"


def address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host, int(port)


@pytest.fixture(scope="module")
def targets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Targets]:
    directory = tmp_path_factory.mktemp("hostile")
    with Machines(directory) as machines:
        found = Targets(machines, directory)
        yield found
        found.client.tell(None)
        found.client.succeed(10)


def a_greeting(**changes: Any) -> Greeting:
    birth = random.getrandbits(62) + 1
    known = Greeting(f"{birth:016x}", 4711, birth, "bad", "client", "default", PYTHON, "0.1.0", (), birth)
    return known._replace(**changes)


def bombed_greetings(bomb: bytes) -> Iterator[bytes]:
    """Greetings with the bomb in each of their fields, as bytes and as text, and in the place of the whole."""
    yield bomb
    for index in range(len(Greeting._fields)):
        for payload in (bomb, bomb.decode("latin-1"), [bomb], {"__reduce__": bomb}):
            fields: list[Any] = [list(each) if isinstance(each, tuple) else each for each in a_greeting()]
            fields[index] = payload
            yield packing.pack(fields)


def bombed_frames(bomb: bytes) -> Iterator[list[bytes]]:
    """Frames of every kind with the bomb in each of their fields, in their parts, and in the place of the whole."""
    yield [bomb]
    greeting = packing.pack(list(a_greeting()))
    shapes = {1: [messages.MAGIC, 1, bytes(16), greeting], 2: [bytes(16), greeting], 3: [1, "key", "why"], 4: [1, 1, 0, []]}
    for kind, fields in {**shapes, 5: [1, 1], 6: [1, "bye"], 7: [1], 8: [1, 1]}.items():
        for index in range(len(fields)):
            yield [packing.pack([kind, *fields[:index], bomb, *fields[index + 1 :]])]
    operations = [Message(1, [bomb]), Request(1, 0, "locate", {"name": bomb}, [bomb]), Reply(1, True, bomb, [bomb])]
    errors = [Reply(1, False, ["RemoteError", "no"], [bomb]), messages.Exit(1, "normal", "", [bomb])]
    for operation in (*operations, *errors):
        yield [*map(bytes, messages.encode_data(1, 1, 0, [messages.to_wire(operation)]))]
    parts = messages.encode_data(1, 1, 0, [messages.to_wire(Message(1, [bomb] * 3))])
    yield [*map(bytes, parts)]


def everything(bomb: bytes, macs: list[bytes]) -> Iterator[list[bytes]]:
    """All bombed frames, and all bombed greetings under each of these macs."""
    yield from bombed_frames(bomb)
    for body in bombed_greetings(bomb):
        for mac in macs:
            yield [*map(bytes, messages.encode_hello(mac, body))]


def locked_out(door: Address, security: Security, frames: Iterator[list[bytes]]) -> None:
    """Send frames that wait for a handshake that never succeeds."""
    with RawPeer(door, security, stubborn=True) as peer:
        for parts in frames:
            peer.send(*parts)
        assert peer.next(0.5) is None


def let_in(door: Address, security: Security, frames: Iterator[list[bytes]]) -> None:
    """Send each frame over a connection of its own that passed CURVE; it was read, since what follows it is answered."""
    for parts in frames:
        with RawPeer(door, security) as peer:
            peer.send(*parts)
            peer.send(*map(bytes, messages.encode_hello(bytes(16), b"")))
            assert peer.answered(10)


EVERYBODY = pytest.mark.parametrize("who", ["node", "worker", "client"])


@EVERYBODY
def test_of_a_plain_client_nothing_is_loaded(targets: Targets, who: str) -> None:
    """Bytes at once; a ZMTP handshake without CURVE, written by hand; and one of libzmq."""
    door = targets.doors[who]
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    frame = bytes([0, len(targets.bomb)]) + targets.bomb
    shove(door, targets.bomb)
    for mechanism in (b"NULL", b"CURVE", b"PLAIN"):
        shove(door, zmtp_greeting(mechanism), b"\x04" + bytes([len(ready)]) + ready, frame, frame)
        shove(door, zmtp_greeting(mechanism), frame)
    locked_out(door, OPEN, everything(targets.bomb, [b"", targets.bomb]))
    targets.check()


@EVERYBODY
def test_of_a_client_with_another_key_nothing_is_loaded(targets: Targets, who: str) -> None:
    locked_out(targets.doors[who], ANOTHER, everything(targets.bomb, [bytes(16), targets.bomb]))
    targets.check()


@EVERYBODY
def test_of_a_client_without_the_key_of_the_greeting_nothing_is_loaded(targets: Targets, who: str) -> None:
    """It has the keys of the connection: frames before a greeting, and greetings with a wrong mac."""
    macs = [targets.security.mac(b"of something else"), targets.bomb]
    let_in(targets.doors[who], targets.security, everything(targets.bomb, macs))
    targets.check()


@EVERYBODY
def test_of_a_greeting_with_a_payload_in_any_field_nothing_is_loaded(targets: Targets, who: str) -> None:
    """Signed with the key: what is wrong with it is all that is wrong with it."""
    signed = ([*messages.encode_hello(targets.security.mac(body), body)] for body in bombed_greetings(targets.bomb))
    let_in(targets.doors[who], targets.security, ([*map(bytes, parts)] for parts in signed))
    targets.check()


class Impostor:
    """Listens in the place of a node, and answers everything with bombs; and a plain TCP server that does so unasked."""

    def __init__(self, security: Security, bomb: bytes) -> None:
        self.heard = 0
        self._bomb = bomb
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.linger = 0
        security.secure_server(self._socket)
        self.address = f"127.0.0.1:{self._socket.bind_to_random_port('tcp://127.0.0.1')}"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._answer)

    def __enter__(self) -> Impostor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._socket.close()
        self._context.term()

    def _answer(self) -> None:
        while not self._stop.is_set():
            if self._socket.poll(50):
                who, *_ = self._socket.recv_multipart()
                self.heard += 1
                greetings = [messages.encode_welcome(bytes(16), body) for body in bombed_greetings(self._bomb)]
                for parts in (*greetings, *bombed_frames(self._bomb)):
                    with contextlib.suppress(zmq.ZMQError):
                        self._socket.send_multipart([who, *parts], zmq.DONTWAIT)


def test_a_client_that_dials_the_wrong_one_loads_nothing(targets: Targets) -> None:
    """Somebody without a key, with another, and one with the key of the connection who cannot sign a welcome."""
    bomb = targets.bomb
    with Impostor(OPEN, bomb) as plain, Impostor(ANOTHER, bomb) as other, Impostor(targets.security, bomb) as unsigned:
        peers = [each.address for each in (plain, other, unsigned)]
        dialler = targets.machines.program("dialler", f"PEERS = {peers!r}\n{DIALLER}")
        assert dialler.next("refused", 20)
        dialler.succeed(10)
        assert (plain.heard, other.heard) == (0, 0) and unsigned.heard > 0
    with socket.create_server(("127.0.0.1", 0)) as blunt:
        host, port = blunt.getsockname()
        dialler = targets.machines.program("dialler", f"PEERS = {[f'{host}:{port}']!r}\n{DIALLER}")
        blunt.settimeout(20)
        made, _ = blunt.accept()
        with made, contextlib.suppress(ConnectionError):
            made.sendall(zmtp_greeting(b"NULL", as_server=True) + bytes([0, len(bomb)]) + bomb)
        assert dialler.next("refused", 20)
        dialler.succeed(10)
    targets.check()


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    marker = tmp_path / "loaded"
    pickle.loads(pickle.dumps(Bomb(marker), protocol=5)).close()
    assert marker.exists(), "its silence in the tests above means something"
