"""What a peer may do to a process, in any order: frames over any connection, connections that come and go, time that passes.

`play` plays one input (mutations.py) against real `Peers`, with a wire that only records and a clock that is moved. Each part
of the input is one step, as msgpack values; what is no step is left out. Whatever the frames, no exception but ProtocolError,
which `Peers` itself answers, comes to be; what it sends can be decoded; and its books agree with each other after each step.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import msgpack

from discoro import messages, packing, peers
from discoro.connections import Ended
from discoro.errors import DiscoroError
from discoro.link import Link, State
from discoro.messages import Greeting, Hold, Message, Operation, Part, Request
from discoro.peers import Peers
from discoro.security import Security
from tests.support.moved_clock import MovedClockLoop

ME = Greeting("00000000000000aa", 1, 0xAA, "ada", "node", "default", "3.11", "0", ("127.0.0.1:1",))
LOW = Greeting("0000000000000011", 2, 0x11, "low", "client", "default", "3.11", "0", ("127.0.0.1:2",))
HIGH = Greeting("00000000000000bb", 3, 0xBB, "high", "node", "default", "3.11", "0", ("127.0.0.1:3", "10.0.0.1:3"))
SESSION = 1000  # the first that this process draws; the next one is 1001
STEPS, CONNECTIONS = 60, 8  # of one input at most: connections 0 to 7 are accepted, those from 8 on are dialled
OPEN = Security.from_options(open=True)


class Stage:
    """The wire and the owner of the links in one."""

    def __init__(self) -> None:
        self.down: set[int] = set()
        self.dialled = 0
        self.up: list[Operation] = []
        self.broken = False

    def dial(self, address: str) -> int:
        assert isinstance(address, str)
        self.dialled += 1
        return CONNECTIONS + self.dialled - 1

    def send(self, conn: int, parts: Sequence[Part]) -> bool:
        messages.decode([bytes(part) for part in parts])
        return not (self.broken or conn in self.down)

    def drop(self, conn: int, flush: bool = False) -> None:
        self.down.add(conn)

    def keep(self, conn: int) -> None:
        assert conn not in self.down

    def opened(self, link: Link) -> None:
        assert link.peer is not None

    def introduce(self, link: Link, seconds: float) -> None: ...

    def operation(self, link: Link, operation: Operation) -> None:
        assert link.state is State.OPEN and link.peer is not None
        assert isinstance(operation, messages.Operation)
        self.up.append(operation)

    def lost(self, link: Link) -> None:
        assert link.ended and link.lost_because


_loop: list[MovedClockLoop] = []


def play(parts: list[bytes]) -> list[Operation]:
    """What the process handed up of it. AssertionError where something does not hold."""
    if not _loop:
        _loop.append(MovedClockLoop())
    return _loop[0].run_until_complete(_played(parts))


async def _played(parts: list[bytes]) -> list[Operation]:
    loop, stage, bugs = asyncio.get_running_loop(), Stage(), list[Any]()
    loop.set_exception_handler(lambda _, context: bugs.append(context))
    numbers = itertools.count(SESSION)
    before, peers.secrets = peers.secrets, SimpleNamespace(randbits=lambda bits: next(numbers) - 1)  # type: ignore[assignment]
    asked: list[asyncio.Task[Any]] = []
    try:
        it = Peers(ME, OPEN, stage)
        it.wire = stage
        for part in parts[:STEPS]:
            await _step(it, stage, part, asked)
            _hold(it)
            assert not bugs, bugs
        it.close("the play is over")
        assert not it.links and not it._timers, "something is kept of links that are over"
        assert not bugs, bugs
    finally:
        peers.secrets = before
        for each in asked:
            each.cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    return stage.up


async def _step(it: Peers, stage: Stage, part: bytes, asked: list[asyncio.Task[Any]]) -> None:
    """One step; those of the transport come only for connections that stand."""
    try:
        step = msgpack.unpackb(part, raw=False, strict_map_key=False)
    except Exception:  # no step
        return
    match step:
        case ["frame", int(conn), [*frame]] if all(isinstance(each, bytes) for each in frame) and frame:
            if conn in _standing(stage):
                it.received(conn, frame)
        case ["connected", int(conn)]:
            if conn in _standing(stage):
                it.connected(conn)
        case ["ended", int(conn), int(how)]:
            if conn in _standing(stage):
                stage.down.add(conn)
                it.ended(conn, list(Ended)[how % len(Ended)], "it ended")
        case ["wait", int() | float() as seconds] if 0 <= seconds < 100:
            await asyncio.sleep(seconds)
        case ["broken", bool(broken)]:
            stage.broken = broken
        case ["link", birth, [*addresses]] if type(birth) is int and 0 < birth <= messages.MAX_U64 and len(addresses) < 17:
            with contextlib.suppress(DiscoroError):
                it.link(birth, [str(each) for each in addresses], True)
        case ["post", int(birth), int(size)] if it.get(birth) is not None and 0 <= size <= 1 << 21:
            link = it.get(birth)
            assert link is not None
            it.post(link, Message(1, (bytes(size),)), lane=1)
        case ["inquire", str(address)]:
            asked.append(asyncio.ensure_future(it.inquire(address, 3.0)))
            await asyncio.sleep(0)
        case ["part", int(birth)]:
            it.part(birth, "done")
        case ["lose", int(birth)]:
            it.lose(birth, "gone")
        case _:
            return
    await asyncio.sleep(0)


def _standing(stage: Stage) -> set[int]:
    return set(range(CONNECTIONS + min(stage.dialled, 100))) - stage.down


def _hold(it: Peers) -> None:
    """The books of the process agree."""
    for birth, link in it.links.items():
        assert link.birth == birth and not link.ended, link
        assert (link.connection is not None) == (link.state is State.OPEN), link
        deadline = link.next_deadline()
        timer = it._timers.get(link)
        assert deadline is None or (timer is not None and timer.when() <= deadline), (link, timer, deadline)
    for connection, link in it._by_connection.items():
        assert it.links.get(link.birth) is link, f"connection {connection} belongs to a link that is over: {link}"
    assert it._announced <= set(it.links.values())


# ------------------------------------------------------------------ plays that are valid


def frame(conn: int, parts: Sequence[Part]) -> bytes:
    return packing.pack(["frame", conn, [bytes(part) for part in parts]])


def hello(conn: int, theirs: Greeting, **more: Any) -> bytes:
    return frame(conn, messages.encode_hello(b"", messages.encode_greeting(theirs._replace(session=7)._replace(**more))))


def welcome(conn: int, theirs: Greeting, **more: Any) -> bytes:
    greeting = theirs._replace(session=9, resume=SESSION)._replace(**more)
    return frame(conn, messages.encode_welcome(b"", messages.encode_greeting(greeting)))


def data(conn: int, number: int, *operations: Operation, session: int = SESSION) -> bytes:
    return frame(conn, messages.encode_data(session, number, 0, [messages.to_wire(each) for each in operations]))


def _pieces(conn: int) -> list[bytes]:
    wire = messages.to_wire(Message(1, (b"abcd" * 5, b"", b"xyz")))
    found, slices = [], [b"abcd" * 3, b"abcd" * 2, b"xyz"]
    for index, each in enumerate(slices):
        first = index == 0
        header = [5, 1, index == 2, wire.header if first else None, [20, 0, 3] if first else None]
        parts = [packing.pack([4, SESSION, index + 1, 0, [header]]), each]
        found.append(frame(conn, messages.sealed(index + 1, parts)))
    return found


def step(*values: Any) -> bytes:
    return packing.pack(list(values))


DIALLED = [step("link", HIGH.birth, list(HIGH.addresses)), step("connected", 8), welcome(8, HIGH, wanted=ME.birth)]
GREETED = [hello(0, HIGH)]
REQUEST = Request(1, 0, "meet", {"nodes": [[5, ["127.0.0.1:9"]]]})
PLAYS: list[list[bytes]] = [
    [*GREETED, data(0, 1, Message(1, (b"a",)), Hold(2, True)), data(0, 2, REQUEST), frame(0, messages.encode_ack(SESSION, 0))],
    [*GREETED, *_pieces(0), step("wait", 0.1), frame(0, messages.encode_bye(SESSION, "done"))],
    [*DIALLED, data(8, 1, REQUEST), step("post", HIGH.birth, 5), frame(8, messages.encode_ack(SESSION, 1)), step("wait", 1)],
    [
        *DIALLED,
        step("ended", 8, 0),
        step("wait", 0.1),
        step("connected", 10),
        welcome(10, HIGH, resume=SESSION),
        step("wait", 30),
    ],
    [*GREETED, hello(1, HIGH, resume=SESSION), data(1, 1, Message(1, (b"b",))), hello(2, HIGH, session=8), step("wait", 16)],
    [step("link", LOW.birth, list(LOW.addresses)), step("connected", 8), hello(0, LOW), step("ended", 8, 1), step("wait", 4)],
    [step("link", HIGH.birth, list(HIGH.addresses)), step("connected", 8), hello(0, HIGH), step("wait", 4)],
    [
        hello(0, LOW, session=0),
        step("inquire", "127.0.0.1:2"),
        step("connected", 8),
        welcome(8, LOW, session=0),
        step("wait", 4),
    ],
    [step("link", LOW.birth, []), step("connected", 8), frame(8, messages.encode_refused("cluster", "no")), step("wait", 6)],
    [
        step("link", LOW.birth, list(LOW.addresses)),
        step("connected", 8),
        frame(8, messages.encode_gone(SESSION)),
        step("wait", 6),
    ],
    [*GREETED, step("post", HIGH.birth, 1 << 20), frame(0, messages.encode_ack(SESSION, 2)), step("part", HIGH.birth)],
    [*GREETED, hello(0, LOW), step("broken", True), step("post", LOW.birth, 5), step("wait", 1), step("lose", LOW.birth)],
]
