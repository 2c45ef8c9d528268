"""Transport, over real sockets and in the memory network: one contract for both, then what only sockets have.

A `World` makes transports and can cut connections: `SocketWorld` with a TCP proxy in between, `MemoryWorld` with the
network's own fault. Each transport reports to a `Recorder`, which tests wait on; nothing here waits for time to pass.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache
from typing import Any

import pytest
import zmq

from discoro import dialling
from discoro.connections import ANOTHER_KEY, FRAME_BYTES, FRAME_PARTS, Ended
from discoro.errors import ConfigError, PortTaken
from discoro.messages import MAX_FRAME, Part
from discoro.security import Security
from discoro.sockets import FRAMES_PER_TURN
from discoro.transport import Transport
from discoro.zmtp import OPEN_HERE, OPEN_THERE, OPENING
from tests.support.memory_network import MemoryNetwork, MemoryTransport

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
PATIENCE = 10.0  # seconds until a test that waits in vain fails
SOON = 1.0  # seconds within which a connection must be denied
AT_ONCE = 0.5  # seconds within which a cut must be told


@lru_cache
def trust(key: str) -> Security:
    """Security for the key of that name; "" is open."""
    return Security.from_handed_down(key.encode().hex().ljust(128, "0") if key else "open")


class Recorder:
    """A receiver that keeps all news, and lets a test wait for some."""

    def __init__(self) -> None:
        self.news: list[tuple[Any, ...]] = []
        self.frames: dict[int, list[list[bytes]]] = {}
        self.ends: dict[int, tuple[Ended, str]] = {}
        self.up: list[int] = []
        self.on_received: Callable[[int, list[Part]], None] = lambda conn, parts: None
        self.on_connected: Callable[[int], None] = lambda conn: None
        self.on_ended: Callable[[int], None] = lambda conn: None
        self._changed = asyncio.Event()

    def connected(self, conn: int) -> None:
        self._note("connected", conn)
        self.up.append(conn)
        self.on_connected(conn)

    def received(self, conn: int, parts: list[Part]) -> None:
        frame = [bytes(part) for part in parts]
        self._note("received", conn, frame)
        self.frames.setdefault(conn, []).append(frame)
        self.on_received(conn, parts)

    def ended(self, conn: int, how: Ended, detail: str) -> None:
        self._note("ended", conn, how)
        log.info("%d: %s", conn, detail)  # pytest shows it where a test fails
        assert conn not in self.ends, f"the end of {conn} was told twice"
        self.ends[conn] = (how, detail)
        self.on_ended(conn)

    def _note(self, *news: Any) -> None:
        self.news.append(news)
        self._changed.set()

    async def until(self, condition: Callable[[], object], patience: float = PATIENCE) -> None:
        """Returns once the condition holds; fails with all news if it does not in time."""
        try:
            async with asyncio.timeout(patience):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            raise AssertionError(f"waited {patience} s in vain; news: {self.news}") from None

    async def until_up(self, conn: int) -> None:
        await self.until(lambda: conn in self.up)

    async def end_of(self, conn: int, patience: float = PATIENCE) -> Ended:
        await self.until(lambda: conn in self.ends, patience)
        return self.ends[conn][0]


def address_of(bound: Any) -> str:
    """Of an IPv4 socket."""
    host, port = bound.getsockname()
    return f"{host}:{port}"


class Proxy:
    """A TCP connection in two halves, which can be cut: both sides get a reset."""

    def __init__(self) -> None:
        self.hangups = 0  # how many of the next connections are reset at once
        self._writers: list[asyncio.StreamWriter] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, address: str) -> str:
        host, _, port = address.rpartition(":")

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if self.hangups:
                self.hangups -= 1
                writer.transport.abort()
                return
            onward, back = await asyncio.open_connection(host, int(port))
            self._writers += [writer, back]
            for source, target in ((reader, back), (onward, writer)):
                task = asyncio.create_task(self._copy(source, target))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

        self._server = await asyncio.start_server(serve, LOOPBACK, 0)
        return address_of(self._server.sockets[0])

    async def _copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        except ConnectionError:
            pass
        target.close()

    def cut(self) -> None:
        for writer in self._writers:
            with suppress(AttributeError):  # CPython 3.11 raises it where a close has just sent its last byte
                writer.transport.abort()
        self._writers.clear()

    def stall(self) -> None:
        """Nothing passes any more."""
        for writer in self._writers:
            writer.transport.pause_reading()  # type: ignore[attr-defined]

    async def close(self) -> None:
        self.cut()
        self._server.close()
        await asyncio.gather(*self._tasks)
        await self._server.wait_closed()


class World:
    """Makes transports of one kind; leaving it closes them, and fails for errors that reached the event loop."""

    def __init__(self) -> None:
        self.recorders: dict[Any, Recorder] = {}
        self.errors: list[dict[str, Any]] = []

    async def __aenter__(self) -> World:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: self.errors.append(context))
        return self

    async def __aexit__(self, *_: object) -> None:
        for each in self.recorders:
            await each.close()
        assert not self.errors

    def transport(self, key: str = "one") -> tuple[Any, Recorder]:
        recorder = Recorder()
        made = self._make(key, recorder)
        self.recorders[made] = recorder
        return made, recorder

    def _make(self, key: str, recorder: Recorder) -> Any:
        raise NotImplementedError

    async def way_to(self, address: str) -> str:
        """An address that leads there, over connections that `cut` can cut."""
        raise NotImplementedError

    def cut(self) -> None:
        raise NotImplementedError

    async def pair(self) -> Pair:
        """Two transports with a connection that has carried one frame, and can be cut."""
        pair = Pair(self)
        pair.address = await self.way_to(pair.listens_at)
        pair.conn, pair.heard = await pair.again()
        return pair

    async def straight_pair(self) -> Pair:
        """The same without anything in between."""
        pair = Pair(self)
        pair.conn, pair.heard = await pair.again()
        return pair


class SocketWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.proxies: list[Proxy] = []

    def _make(self, key: str, recorder: Recorder) -> Transport:
        return Transport(trust(key), recorder)

    async def way_to(self, address: str) -> str:
        self.proxies.append(Proxy())
        return await self.proxies[-1].start(address)

    def cut(self) -> None:
        for proxy in self.proxies:
            proxy.cut()

    def stall(self) -> None:
        for proxy in self.proxies:
            proxy.stall()

    async def __aexit__(self, *error: object) -> None:
        await super().__aexit__(*error)
        for proxy in self.proxies:
            await proxy.close()


class MemoryWorld(World):
    def __init__(self) -> None:
        super().__init__()
        self.network = MemoryNetwork()
        self._names = iter("abcdefghijkl")

    def _make(self, key: str, recorder: Recorder) -> MemoryTransport:
        return self.network.transport(next(self._names), trust(key), recorder)

    async def way_to(self, address: str) -> str:
        return address

    def cut(self) -> None:
        self.network.cut("a", "b")


class Pair:
    """`here` dialled, `there` listens; `conn` and `heard` are the connection's numbers on each side."""

    def __init__(self, world: World) -> None:
        self.there, self.listening = world.transport()
        self.here, self.dialling = world.transport()
        self.listens_at = self.address = self.there.listen([LOOPBACK], None)[0]
        self.conn = self.heard = 0

    async def again(self) -> tuple[int, int]:
        """A new connection; its number on each side."""
        conn = self.here.dial(self.address)
        await self.dialling.until_up(conn)
        known = len(self.listening.up)
        assert self.here.send(conn, [b"first"])
        await self.listening.until(lambda: len(self.listening.frames) > known)
        return conn, self.listening.up[-1]


Scenario = Callable[[Any], Coroutine[Any, Any, None]]


def play(kind: Callable[[], World], scenario: Scenario) -> None:
    async def whole() -> None:
        async with kind() as world:
            await scenario(world)

    asyncio.run(whole())


both = pytest.mark.parametrize("kind", [SocketWorld, MemoryWorld])


# --- the contract: bad peers first


@both
def test_refused_where_nobody_listens(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        gone, _ = world.transport()
        address = gone.listen([LOOPBACK], None)[0]
        await gone.close()
        here, recorder = world.transport()
        conn = here.dial(address)
        assert await recorder.end_of(conn, SOON) is Ended.REFUSED
        assert address in recorder.ends[conn][1]
        assert recorder.news == [("ended", conn, Ended.REFUSED)]
        assert not here.send(conn, [b"x"])

    play(kind, scenario)


@both
@pytest.mark.parametrize(("ours", "theirs"), [("one", "two"), ("one", ""), ("", "one")])
def test_denied_with_another_key(kind: Callable[[], World], ours: str, theirs: str) -> None:
    """Within a second, in the right words, with no frame in either direction, each time: what libzmq reports is a race."""
    words = {("one", "two"): f"it has {ANOTHER_KEY}", ("one", ""): OPEN_THERE, ("", "one"): OPEN_HERE}

    async def scenario(world: World) -> None:
        there, listening = world.transport(theirs)
        here, dialling = world.transport(ours)
        address = there.listen([LOOPBACK], None)[0]
        for _ in range(5):
            conn = here.dial(address)
            assert await dialling.end_of(conn, SOON) is Ended.DENIED
            assert dialling.ends[conn][1] == f"{address}: {words[ours, theirs]}"
        assert not listening.news and not dialling.up

    play(kind, scenario)


@both
def test_a_cut_connection_is_broken_on_both_sides(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        world.cut()
        assert await pair.dialling.end_of(pair.conn, AT_ONCE) is Ended.BROKEN
        assert await pair.listening.end_of(pair.heard, AT_ONCE) is Ended.BROKEN
        assert not pair.here.send(pair.conn, [b"x"])
        assert not pair.there.send(pair.heard, [b"x"])
        conn, heard = await pair.again()
        assert conn != pair.conn and heard != pair.heard

    play(kind, scenario)


@both
def test_a_receiver_that_raises_stops_nobody(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()

        def fail(conn: int, parts: list[Part]) -> None:
            raise RuntimeError("a bug of the layer above")

        pair.listening.on_received = fail
        for number in range(200):
            assert pair.here.send(pair.conn, [b"%d" % number])
        await pair.listening.until(lambda: len(pair.listening.frames[pair.heard]) == 201)
        assert len(world.errors) == 200
        assert "a bug of the layer above" in str(world.errors[0]["exception"])
        world.errors.clear()

    play(kind, scenario)


@both
@pytest.mark.parametrize(
    "parts",
    [[], [b""], [b"", b""], [b"", b"x"], [b"x"] * (FRAME_PARTS + 1), [b"x", bytes(FRAME_BYTES)]],
    ids=["none", "nothing", "closed", "empty first", "too many", "too large"],
)
def test_what_is_no_frame_is_not_sent(kind: Callable[[], World], parts: list[Part]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        with pytest.raises(ValueError, match="not a frame"):
            pair.here.send(pair.conn, parts)
        with pytest.raises(ValueError, match="not a frame"):
            pair.there.send(pair.heard, parts)

    play(kind, scenario)


@both
def test_unknown_connections_are_nobody(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        here, recorder = world.transport()
        assert not here.send(99, [b"x"])
        here.drop(99)
        here.probe(99)
        assert not recorder.news

    play(kind, scenario)


@both
def test_ports_taken(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        first, second, third = (world.transport()[0] for _ in range(3))
        port = int(first.listen([LOOPBACK], None)[0].rpartition(":")[2])
        with pytest.raises(PortTaken, match=str(port)):
            second.listen([LOOPBACK], range(port, port + 1))
        address = second.listen([LOOPBACK], range(port, port + 50))[0]
        assert port < int(address.rpartition(":")[2]) < port + 50
        with pytest.raises(PortTaken):
            third.listen([LOOPBACK], range(port, int(address.rpartition(":")[2]) + 1))
        with pytest.raises(RuntimeError):
            first.listen([LOOPBACK], None)

    play(kind, scenario)


# --- the contract: connections


@both
def test_the_listening_side_hears_with_the_first_frame(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        there, listening = world.transport()
        here, dialling = world.transport()
        conn = here.dial(there.listen([LOOPBACK], None)[0])
        assert not here.send(conn, [b"too early"])
        await dialling.until(lambda: dialling.up)
        assert not listening.news
        here.send(conn, [b"first"])
        await listening.until(lambda: listening.frames)
        heard = listening.up[0]
        assert listening.news == [("connected", heard), ("received", heard, [b"first"])]
        assert dialling.news == [("connected", conn)]

    play(kind, scenario)


@both
def test_frames_arrive_whole_and_in_order_both_ways(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        small = [[b"%d" % number, b"", b"z" * number] for number in range(500)]
        large = [[b"h", bytes(range(256)) * 512], [b"x" * 70_000, b"", b"y" * 70_000], [b"m" * MAX_FRAME]]
        frames = small + large
        for frame in frames:
            assert pair.here.send(pair.conn, frame)
            assert pair.there.send(pair.heard, frame)
        await pair.listening.until(lambda: len(pair.listening.frames[pair.heard]) == len(frames) + 1)
        await pair.dialling.until(lambda: len(pair.dialling.frames.get(pair.conn, [])) == len(frames))
        assert pair.listening.frames[pair.heard][1:] == frames
        assert pair.dialling.frames[pair.conn] == frames

    play(kind, scenario)


@both
def test_all_kinds_of_parts_and_later_changes(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        kinds: list[type] = []
        pair.listening.on_received = lambda conn, parts: kinds.extend(type(part) for part in parts)
        array = memoryview(bytearray(8 * 20_000)).cast("d")
        growing = bytearray(b"before" * 20_000)
        assert pair.here.send(pair.conn, [bytearray(b"a"), memoryview(b"bc"), array, growing])
        growing[:6] = b"behind"
        await pair.listening.until(lambda: len(pair.listening.frames[pair.heard]) == 2)
        assert pair.listening.frames[pair.heard][1] == [b"a", b"bc", bytes(160_000), b"before" * 20_000]
        assert kinds == [bytes, bytes, memoryview, memoryview]

    play(kind, scenario)


@both
def test_several_connections_between_two_are_kept_apart(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        conn, heard = await pair.again()
        assert conn != pair.conn and heard != pair.heard
        pair.there.send(heard, [b"second"])
        pair.there.send(pair.heard, [b"first"])
        await pair.dialling.until(lambda: len(pair.dialling.frames) == 2)
        assert pair.dialling.frames == {pair.conn: [[b"first"]], conn: [[b"second"]]}
        pair.here.drop(conn)
        assert await pair.listening.end_of(heard, AT_ONCE) is Ended.BROKEN
        assert pair.here.send(pair.conn, [b"still"])
        await pair.listening.until(lambda: [b"still"] in pair.listening.frames[pair.heard])

    play(kind, scenario)


@both
def test_the_dialling_side_drops(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        pair.here.drop(pair.conn)
        assert not pair.here.send(pair.conn, [b"x"])
        assert await pair.listening.end_of(pair.heard, AT_ONCE) is Ended.BROKEN
        assert pair.conn not in pair.dialling.ends

    play(kind, scenario)


@both
def test_the_listening_side_drops(kind: Callable[[], World]) -> None:
    """What it had sent arrives before the end; what is sent to it is heard by nobody."""

    async def scenario(world: World) -> None:
        pair = await world.pair()
        for number in range(300):
            pair.there.send(pair.heard, [b"%d" % number])
        pair.there.drop(pair.heard)
        assert not pair.there.send(pair.heard, [b"x"])
        pair.here.send(pair.conn, [b"not heard"])
        assert await pair.dialling.end_of(pair.conn, AT_ONCE) is Ended.BROKEN
        assert len(pair.dialling.frames[pair.conn]) == 300
        await pair.again()  # and its frame comes after whatever the first connection had to say
        assert pair.listening.frames[pair.heard] == [[b"first"]]
        assert not pair.listening.ends

    play(kind, scenario)


@both
def test_flush_sends_everything_before_the_end(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        for number in range(500):
            assert pair.here.send(pair.conn, [b"%d" % number, bytes(5_000)])
        pair.here.drop(pair.conn, flush=True)
        assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
        assert len(pair.listening.frames[pair.heard]) == 501

    play(kind, scenario)


@both
@pytest.mark.parametrize("side", ["here", "there"])
def test_frames_before_the_end_of_a_process_are_read(kind: Callable[[], World], side: str) -> None:
    """The other process says its last words and closes, while this one is busy."""

    async def scenario(world: World) -> None:
        pair = await world.straight_pair()
        leaving, conn = (pair.here, pair.conn) if side == "here" else (pair.there, pair.heard)
        words = [[b"%d" % number, bytes(30_000)] for number in range(500)]  # more than the kernel takes at once
        for frame in words:
            assert leaving.send(conn, frame)
        await leaving.close()
        recorder, staying = (pair.listening, pair.heard) if side == "here" else (pair.dialling, pair.conn)
        assert await recorder.end_of(staying) is Ended.BROKEN
        assert recorder.frames[staying][-500:] == words
        assert recorder.news[-1] == ("ended", staying, Ended.BROKEN)

    play(kind, scenario)


@both
def test_dropped_while_dialling(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        conn = pair.here.dial(pair.address)
        pair.here.drop(conn)
        await pair.again()
        assert conn not in pair.dialling.up and conn not in pair.dialling.ends

    play(kind, scenario)


@both
def test_probing_disturbs_nobody(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        for _ in range(10):
            pair.there.probe(pair.heard)
            pair.here.probe(pair.conn)
        assert pair.there.send(pair.heard, [b"after"])
        await pair.dialling.until(lambda: pair.dialling.frames)
        assert pair.dialling.frames == {pair.conn: [[b"after"]]}
        assert not pair.dialling.ends and not pair.listening.ends

    play(kind, scenario)


@both
def test_close_is_final_and_may_be_repeated(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        pair.here.dial(pair.address)
        await asyncio.gather(pair.here.close(), pair.here.close())
        known = list(pair.dialling.news)
        await pair.here.close()
        assert "closed" in repr(pair.here)
        assert not pair.here.send(pair.conn, [b"x"])
        with pytest.raises(RuntimeError):
            pair.here.dial(pair.address)
        with pytest.raises(RuntimeError):
            pair.here.listen([LOOPBACK], None)
        assert await pair.listening.end_of(pair.heard, AT_ONCE) is Ended.BROKEN
        assert pair.dialling.news == known and not pair.dialling.ends

    play(kind, scenario)


@both
def test_no_news_from_inside_a_call(kind: Callable[[], World]) -> None:
    """Receivers call the transport from their callbacks; they are never called back before that call returns."""

    async def scenario(world: World) -> None:
        pair = await world.pair()
        inside: list[str] = []

        def watched(call: Callable[..., object], *arguments: object) -> None:
            known = len(pair.dialling.news) + len(pair.listening.news)
            call(*arguments)
            if len(pair.dialling.news) + len(pair.listening.news) != known:
                inside.append(call.__name__)

        def react(conn: int, parts: list[Part]) -> None:
            watched(pair.there.probe, conn)
            watched(pair.there.send, conn, [b"answer"])
            watched(pair.there.dial, "not an address")
            watched(pair.there.dial, pair.address)
            watched(pair.there.drop, conn)
            watched(pair.there.send, conn, [b"answer"])
            watched(pair.there.probe, conn)

        pair.listening.on_received = react
        watched(pair.here.send, pair.conn, [b"go"])
        await pair.dialling.end_of(pair.conn)
        watched(pair.here.send, pair.conn, [b"go"])
        assert inside == []
        await pair.listening.until(lambda: len(pair.listening.up) == 2 and len(pair.listening.ends) == 1)

    play(kind, scenario)


@both
def test_a_receiver_may_drop_whatever_it_is_told(kind: Callable[[], World]) -> None:
    async def scenario(world: World) -> None:
        pair = await world.pair()
        pair.dialling.on_received = lambda conn, parts: pair.here.drop(conn)
        for _ in range(3):
            pair.there.send(pair.heard, [b"x"])
        assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
        assert pair.dialling.frames == {pair.conn: [[b"x"]]}
        pair.dialling.on_connected = pair.here.drop
        conn = pair.here.dial(pair.address)
        await pair.dialling.until_up(conn)
        assert not pair.here.send(conn, [b"x"])
        pair.dialling.on_connected = lambda conn: None
        pair.listening.on_connected = pair.there.drop
        conn = pair.here.dial(pair.address)
        await pair.dialling.until_up(conn)
        pair.here.send(conn, [b"x"])
        assert await pair.dialling.end_of(conn, AT_ONCE) is Ended.BROKEN
        assert len(pair.listening.frames) == 1

    play(kind, scenario)


@both
def test_other_work_goes_on_between_many_frames(kind: Callable[[], World]) -> None:
    """A thousand frames at hand are not read in one go."""

    async def scenario(world: World) -> None:
        pair = await world.pair()
        seen: list[int] = []
        loop = asyncio.get_running_loop()

        def other_work() -> None:
            seen.append(len(pair.listening.frames[pair.heard]))
            if seen[-1] < 1000:
                loop.call_soon(other_work)

        for _ in range(999):
            pair.here.send(pair.conn, [b"x"])
        loop.call_soon(other_work)
        await pair.listening.until(lambda: len(pair.listening.frames[pair.heard]) == 1000)
        loop.call_soon(other_work)
        if kind is SocketWorld:
            steps = [after - before for before, after in zip(seen, seen[1:], strict=False)]
            assert max(steps) <= 2 * FRAMES_PER_TURN

    play(kind, scenario)


# --- the memory network's own faults


def test_a_short_partition_only_delays() -> None:
    async def scenario(world: MemoryWorld) -> None:
        pair = await world.pair()
        with world.network.partition("a", "b"):
            for number in range(3):
                assert pair.here.send(pair.conn, [b"%d" % number])
            other = world.transport()[0]
            assert other.dial(pair.address)  # only these two are parted
            await world.recorders[other].until(lambda: world.recorders[other].up)
            assert pair.listening.frames[pair.heard] == [[b"first"]]
        await pair.listening.until(lambda: len(pair.listening.frames[pair.heard]) == 4)
        assert pair.listening.frames[pair.heard][1:] == [[b"0"], [b"1"], [b"2"]]
        assert not pair.dialling.ends and not pair.listening.ends

    play(MemoryWorld, scenario)


def test_a_long_partition_breaks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.support.memory_network.NOTICE_SECONDS", 0.01)
    monkeypatch.setattr("tests.support.memory_network.CONNECT_SECONDS", 0.01)

    async def scenario(world: MemoryWorld) -> None:
        pair = await world.pair()
        with world.network.partition("a", "b"):
            pair.here.send(pair.conn, [b"lost"])
            assert await pair.dialling.end_of(pair.conn) is Ended.BROKEN
            assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
            assert await pair.dialling.end_of(pair.here.dial(pair.address)) is Ended.UNREACHABLE
        _, heard = await pair.again()
        assert pair.listening.frames == {pair.heard: [[b"first"]], heard: [[b"first"]]}

    play(MemoryWorld, scenario)


def test_a_partition_holds_the_goodbye_too() -> None:
    async def scenario(world: MemoryWorld) -> None:
        pair = await world.pair()
        with world.network.partition("a", "b"):
            pair.here.send(pair.conn, [b"last"])
            pair.here.drop(pair.conn, flush=True)
            other, recorder = world.transport()
            other.dial(pair.address)
            await recorder.until(lambda: recorder.up)
            assert not pair.listening.ends
        assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
        assert pair.listening.frames[pair.heard][-1] == [b"last"]

    play(MemoryWorld, scenario)


def test_frames_dropped_delayed_and_doubled() -> None:
    async def scenario(world: MemoryWorld) -> None:
        pair = await world.pair()

        def chosen(sender: str, receiver: str, parts: Sequence[Part]) -> bool:
            return (sender, receiver, parts[0]) == ("b", "a", b"chosen")

        with ExitStack() as faults:
            for fault in (
                world.network.delaying(0.01, chosen),
                world.network.duplicating(chosen),
            ):
                faults.enter_context(fault)
            pair.here.send(pair.conn, [b"chosen"])
            pair.here.send(pair.conn, [b"other"])
        with world.network.dropping():
            pair.here.send(pair.conn, [b"gone"])
        await pair.listening.until(lambda: len(pair.listening.frames[pair.heard]) == 4)
        assert pair.listening.frames[pair.heard][1:] == [[b"other"], [b"chosen"], [b"chosen"]]

    play(MemoryWorld, scenario)


# --- sockets: strangers at the port


def at(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def strangers_say(address: str, *sayings: bytes, then: Callable[[socket.socket], object] = lambda s: None) -> None:
    for saying in sayings:
        with socket.create_connection(at(address), timeout=PATIENCE) as stranger:
            try:
                stranger.sendall(saying)
                then(stranger)
            except ConnectionError:
                pass


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00"  # of ZMTP 3.0
GARBAGE = (
    b"",
    b"\x00" * 10,
    os.urandom(2000),
    b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
    b"\x01\x00\x01\x7f",  # ZMTP 1.0: an anonymous peer and a frame of one byte
    b"\x01\x00" + b"\x02\x00x" * 100,
    GREETING,
    GREETING + b"CURVE".ljust(20, b"\0") + bytes(32) + os.urandom(500),
    GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x19\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER",
    GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x00\x05hello" * 50,
)


def test_strangers_with_garbage_reach_nobody() -> None:
    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        for _ in range(20):
            await asyncio.to_thread(strangers_say, pair.address, *GARBAGE)
        await pair.again()
        assert len(pair.listening.up) == len(pair.listening.frames) == 2
        assert not pair.listening.ends

    play(SocketWorld, scenario)


def test_a_web_browser_gets_no_answer_it_could_use() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        address = there.listen([LOOPBACK], None)[0]
        answer = b""

        def until_closed(browser: socket.socket) -> None:
            nonlocal answer
            while data := browser.recv(1000):
                answer += data

        request = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
        await asyncio.to_thread(strangers_say, address, request, then=until_closed)
        assert b"HTTP" not in answer and len(answer) <= 64
        assert not listening.news

    play(SocketWorld, scenario)


def test_a_stranger_cannot_make_us_buffer_a_huge_frame() -> None:
    """He announces a gigabyte: he is cut off long before that."""

    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport()
        address = there.listen([LOOPBACK], None)[0]
        greeting = GREETING + b"CURVE".ljust(20, b"\0") + bytes(32)
        took = 0

        def announce(stranger: socket.socket) -> None:
            nonlocal took
            stranger.sendall(b"\x06" + struct.pack(">Q", 1 << 30))
            for _ in range(1024):
                stranger.sendall(bytes(1 << 20))
                took += 1

        await asyncio.to_thread(strangers_say, address, greeting, then=announce)
        assert took < 64  # MiB; the kernel's buffers hold some of it

    play(SocketWorld, scenario)


def test_a_storm_of_strangers_while_python_is_busy_stops_nothing() -> None:
    """libzmq's thread goes on although nobody reads what its monitor tells: the event loop is blocked here."""

    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport()
        address = there.listen([LOOPBACK], None)[0]
        strangers_say(address, *[b"x"] * 2200)
        with socket.create_connection(at(address), timeout=PATIENCE) as last:
            assert last.recv(1) == b"\xff"  # the greeting, from libzmq's thread

    play(SocketWorld, scenario)


@pytest.mark.parametrize(
    "parts",
    [[b"x" * (FRAME_BYTES + 1)], [b"x" * MAX_FRAME] * 2, [b"x"] * (FRAME_PARTS + 2)],
    ids=["one part", "all parts", "many parts"],
)
@pytest.mark.parametrize("side", ["here", "there"])
def test_a_peer_that_sends_too_much_is_cut_off(side: str, parts: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer whose own limits are out of order; the others live on."""

    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        _, other = await pair.again()
        with monkeypatch.context() as patch:
            patch.setattr("discoro.transport.allowed", lambda parts: True)
            if side == "here":
                pair.here.send(pair.conn, parts)
            else:
                pair.there.send(pair.heard, parts)
        assert await pair.dialling.end_of(pair.conn) is Ended.BROKEN
        if side == "here":
            assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
        assert pair.listening.frames[pair.heard] == [[b"first"]] and not pair.dialling.frames
        assert pair.there.send(other, [b"you are fine"])
        await pair.dialling.until(lambda: pair.dialling.frames)

    play(SocketWorld, scenario)


def test_a_peer_that_does_not_read_is_cut_off_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discoro.sockets.QUEUE_FRAMES", 4)

    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        sent = {pair.here: 0, pair.there: 0}  # nobody reads meanwhile: this function does not wait
        for side, conn in ((pair.there, pair.heard), (pair.here, pair.conn)):
            while side.send(conn, [bytes(MAX_FRAME)]):
                sent[side] += 1
                assert sent[side] < 1000
        assert await pair.dialling.end_of(pair.conn) is Ended.BROKEN
        assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
        assert "wait to be sent" in pair.dialling.ends[pair.conn][1]
        assert "wait to be sent" in pair.listening.ends[pair.heard][1]

    play(SocketWorld, scenario)


def test_a_listener_cut_off_while_its_queue_is_full_says_so_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for the request to close; it is made when the peer is heard of again."""
    monkeypatch.setattr("discoro.sockets.QUEUE_FRAMES", 4)

    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        while pair.there.send(pair.heard, [bytes(MAX_FRAME)]):
            pass
        assert await pair.listening.end_of(pair.heard) is Ended.BROKEN
        assert not pair.there.send(pair.heard, [b"x"])
        pair.dialling.on_received = lambda conn, parts: pair.here.send(conn, [b"there you are"]) and None
        assert await pair.dialling.end_of(pair.conn) is Ended.BROKEN
        assert pair.listening.frames[pair.heard] == [[b"first"]]

    play(SocketWorld, scenario)


def test_a_peer_that_stands_still_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    """No TCP connection ends, no byte passes: as with a stopped process or an unplugged cable."""
    monkeypatch.setattr("discoro.sockets.HEARTBEAT_MS", 50)
    monkeypatch.setattr("discoro.sockets.HEARTBEAT_LIMIT_MS", 150)

    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        world.stall()
        assert pair.here.send(pair.conn, [b"nobody hears"])
        assert await pair.dialling.end_of(pair.conn) is Ended.BROKEN
        assert await pair.listening.end_of(pair.heard) is Ended.BROKEN

    play(SocketWorld, scenario)


def test_a_full_window_never_fills_a_queue() -> None:
    """256 frames on their way in each direction, as the layer above keeps them: libzmq counts up to half of its own
    limit of 1000 on top, frames that have left and that it has not yet taken note of.
    """

    async def scenario(world: SocketWorld) -> None:
        pair = await world.straight_pair()
        left = {pair.conn: 10_000, -pair.heard: 10_000}

        def flow(transport: Any, conn: int, key: int, parts: Sequence[Part]) -> None:
            if parts[0] == b"64 read":
                count = min(64, left[key])
                left[key] -= count
                for _ in range(count):
                    assert transport.send(conn, [b"x"])
            elif len(world.recorders[transport].frames[conn]) % 65 == 0:
                assert transport.send(conn, [b"64 read"])

        pair.dialling.on_received = lambda conn, parts: flow(pair.here, conn, pair.conn, parts)
        pair.listening.on_received = lambda conn, parts: flow(pair.there, conn, -pair.heard, parts)
        for _ in range(4):
            pair.here.send(pair.conn, [b"64 read"])
            pair.there.send(pair.heard, [b"64 read"])
        await pair.listening.until(lambda: not any(left.values()))
        assert not pair.dialling.ends and not pair.listening.ends

    play(SocketWorld, scenario)


# --- sockets: dialling what is no peer


class Listener:
    """A plain TCP port; `serve` is called with each connection, in a thread."""

    def __init__(self, serve: Callable[[socket.socket], object] = lambda s: None, backlog: int = 10) -> None:
        self._socket = socket.create_server((LOOPBACK, 0), backlog=backlog)
        self._serve = serve
        self._accepted: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)
        self.address = address_of(self._socket)

    def __enter__(self) -> Listener:
        self._thread.start()
        return self

    def _run(self) -> None:
        while True:
            try:
                self._accepted.append(self._socket.accept()[0])
                self._serve(self._accepted[-1])
            except OSError as error:
                if error.errno in (errno.EINVAL, errno.EBADF):
                    return

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._thread.join()
        for each in (self._socket, *self._accepted):
            each.close()


def dial_and_end(address: str, key: str = "one") -> tuple[Ended, str]:
    """How a dial to this address ends, and in what words."""
    ends: list[tuple[Ended, str]] = []

    async def scenario(world: SocketWorld) -> None:
        here, recorder = world.transport(key)
        conn = here.dial(address)
        await recorder.end_of(conn)
        assert recorder.news == [("ended", conn, recorder.ends[conn][0])]
        ends.append(recorder.ends[conn])

    play(SocketWorld, scenario)
    return ends[0]


@pytest.mark.parametrize("key", ["one", ""])
def test_a_port_that_says_nothing_is_silent_within_a_second(key: str) -> None:
    """As that of a stopped process: the kernel accepts. libzmq alone would need 3 s, and then the words are others."""
    with Listener() as silent:
        begun = time.monotonic()
        how, detail = dial_and_end(silent.address, key)
        print(f"told after {time.monotonic() - begun:.2f} s")
    assert how is Ended.SILENT and "says nothing" in detail


def test_a_peer_that_began_its_handshake_is_given_the_time_to_finish_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("discoro.dialling.LOOK_AFTER", 0.01)
    monkeypatch.setattr("discoro.sockets.HANDSHAKE_MS", 700)
    with Listener(lambda s: s.sendall(OPENING + b"CURVE".ljust(52, b"\0"))) as slow:
        begun = time.monotonic()
        how, detail = dial_and_end(slow.address)
        assert time.monotonic() - begun > 0.65
    assert how is Ended.SILENT and "did not finish it" in detail


HTTP = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"
SSH = b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n"


@pytest.mark.parametrize("key", ["one", ""])
@pytest.mark.parametrize("says", [HTTP, SSH])
def test_another_service_is_silent_and_its_first_line_told(says: bytes, key: str) -> None:
    """In the open case libzmq takes it for an ancient peer and reports nothing, ever."""
    with Listener(lambda s: s.sendall(says)) as other:
        how, detail = dial_and_end(other.address, key)
    assert how is Ended.SILENT
    assert "something else than discoro" in detail and says.split(b"\r")[0].decode() in detail


@pytest.mark.parametrize("key", ["one", ""])
def test_a_port_that_hangs_up_is_not_taken_for_another_key(key: str) -> None:
    """As a forwarded port does behind which nobody listens; somebody may, later."""
    with Listener(lambda s: s.close()) as rude:
        how, detail = dial_and_end(rude.address, key)
    assert how is Ended.SILENT and "hangs up" in detail


@pytest.mark.parametrize("pieces", [1, 7, 64])
def test_a_greeting_in_pieces_is_put_together(pieces: int) -> None:
    """Of a side that is open, to one that has a key."""
    greeting = OPENING + b"NULL".ljust(52, b"\0")

    def serve(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for at in range(0, len(greeting), -(-len(greeting) // pieces)):
            connection.sendall(greeting[at : at - (-len(greeting) // pieces)])

    with Listener(serve) as there:
        how, detail = dial_and_end(there.address)
    assert how is Ended.DENIED and OPEN_THERE in detail


def test_an_event_loop_that_was_blocked_during_a_look_does_not_spoil_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """All the time for it is over before the loop has looked once."""
    begin = dialling._Look.__init__

    def begin_and_block(*args: Any) -> None:
        begin(*args)
        time.sleep(0.15)

    monkeypatch.setattr(dialling, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(dialling._Look, "__init__", begin_and_block)
    with Listener(lambda s: s.sendall(OPENING + b"NULL".ljust(52, b"\0"))) as there:
        how, detail = dial_and_end(there.address)
    assert how is Ended.DENIED and OPEN_THERE in detail


def test_a_peer_that_restarts_in_the_middle_of_a_handshake_is_not_denied() -> None:
    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        world.proxies[0].hangups = 2
        await pair.again()
        world.proxies[0].hangups = 3
        assert await pair.dialling.end_of(pair.here.dial(pair.address), SOON) is Ended.DENIED

    play(SocketWorld, scenario)


def test_no_answer_to_the_connection_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A listener whose queue is full: its kernel drops every further SYN, as a firewall would."""
    monkeypatch.setattr("discoro.dialling.CONNECT_MS", 100)
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server((LOOPBACK, 0), backlog=0))
        for _ in range(3):
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        how, detail = dial_and_end(address_of(full))
    assert how is Ended.UNREACHABLE and "no answer within 0.1 s" in detail


def test_the_network_says_no(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a firewall answers is passed on in the system's words; it comes from a second, plain connect."""
    with socket.create_server((LOOPBACK, 0)) as nobody:
        address = address_of(nobody)
    monkeypatch.setattr(socket.socket, "connect_ex", lambda self, target: errno.EHOSTUNREACH)
    how, detail = dial_and_end(address)
    assert how is Ended.UNREACHABLE and os.strerror(errno.EHOSTUNREACH) in detail


@pytest.mark.parametrize(
    "address",
    ["", "nonsense", "localhost:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536", "127.0.0.1:+8"]
    + ["127.0.0.1:٣", "::1:80", "[::1]", "[127.0.0.1]:80", "*:80", "127.0.0.1:80;127.0.0.2:81", "\0:1", "a" * 10_000],
)
def test_no_address_is_unreachable(address: str) -> None:
    """Addresses come from peers too: nothing is raised."""
    how, detail = dial_and_end(address)
    assert how is Ended.UNREACHABLE and "wanted is IP:port" in detail


@contextmanager
def descriptors_to_spare(count: int) -> Iterator[None]:
    """This process can open so many more, and then none."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(map(int, os.listdir("/dev/fd")))
    fillers = [os.dup(1) for _ in range(count)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + count + 20, hard))
    try:
        with suppress(OSError):
            while True:
                fillers.append(os.dup(1))
        for _ in range(count):
            os.close(fillers.pop())
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for filler in fillers:
            os.close(filler)


@pytest.mark.parametrize("spare", range(8))
def test_out_of_descriptors_is_told(spare: int) -> None:
    """Wherever they run out, the dial ends with words; nothing listens there, so it ends in any case."""

    async def scenario(world: SocketWorld) -> None:
        here, recorder = world.transport()
        with descriptors_to_spare(spare):
            conn = here.dial("127.0.0.1:9")
            assert await recorder.end_of(conn, SOON) in (Ended.UNREACHABLE, Ended.REFUSED)
        if not spare:
            assert os.strerror(errno.EMFILE) in recorder.ends[conn][1]

    play(SocketWorld, scenario)


@pytest.mark.parametrize("spare", range(12))
def test_no_transport_without_descriptors(spare: int) -> None:
    """libzmq would end the process; so it is either made, or an ordinary error."""

    async def scenario(world: SocketWorld) -> None:
        with descriptors_to_spare(spare):
            try:
                world.transport()[0].listen([LOOPBACK], None)
            except OSError as error:
                assert error.errno == errno.EMFILE
            else:
                assert spare > 0

    play(SocketWorld, scenario)


# --- sockets: listening


@pytest.mark.parametrize("host", ["localhost", "eth0", "*", "", "300.0.0.1"])
def test_a_host_to_listen_on_is_an_ip_address(host: str) -> None:
    async def scenario(world: SocketWorld) -> None:
        with pytest.raises(ConfigError, match="IP address"):
            world.transport()[0].listen([host], None)

    play(SocketWorld, scenario)


def test_a_host_of_another_machine() -> None:
    async def scenario(world: SocketWorld) -> None:
        with pytest.raises(ConfigError, match=r"192\.0\.2\.77:0 .*this machine"):
            world.transport()[0].listen(["192.0.2.77"], None)

    play(SocketWorld, scenario)


def test_one_port_on_all_hosts() -> None:
    """The first port is taken on the second host only, so the next is taken on both; nothing stays bound."""

    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        with socket.create_server(("127.0.0.2", 0)) as taken:
            port = taken.getsockname()[1]
            hosts = [LOOPBACK, "127.0.0.2", "::1", LOOPBACK]
            addresses = there.listen(hosts, range(port, port + 50))
        chosen = at(addresses[0])[1]
        assert chosen > port
        assert addresses == [f"127.0.0.1:{chosen}", f"127.0.0.2:{chosen}", f"[::1]:{chosen}"]
        here, dialling = world.transport()
        conns = [here.dial(address) for address in addresses]
        await dialling.until(lambda: sorted(dialling.up) == conns)
        for conn in conns:
            here.send(conn, [b"%d" % conn])
        await listening.until(lambda: len(listening.up) == 3)
        with socket.create_server((LOOPBACK, port)):
            pass

    play(SocketWorld, scenario)


def test_a_free_port_on_all_hosts() -> None:
    async def scenario(world: SocketWorld) -> None:
        addresses = world.transport()[0].listen([LOOPBACK, "::1"], None)
        assert len({at(address)[1] for address in addresses}) == 1

    play(SocketWorld, scenario)


# A key that is changed.


def changing(key: str, following: str) -> Security:
    """The trust of a process while one key follows another."""
    return Security.from_handed_down(f"{trust(key).handed_down()} {trust(following).handed_down()}")


def test_a_second_door_lets_in_the_key_that_follows() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport("old")
        first = there.listen([LOOPBACK, "::1"], None)
        second = there.use(changing("old", "new"))
        assert len(second) == len(first) == 2 and not set(first) & set(second)
        for key, let_in, shut_out in (("old", first, second), ("new", second, first)):
            here, dialling = world.transport(key)
            for address in let_in:
                conn = here.dial(address)
                await dialling.until_up(conn)
                assert here.send(conn, [key.encode()])
            for address in shut_out:
                assert await dialling.end_of(here.dial(address)) is Ended.DENIED
        await listening.until(lambda: len(listening.frames) == 4)

    play(SocketWorld, scenario)


def test_at_the_end_both_doors_have_the_new_key_and_connections_of_the_old_one_break() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport("old")
        first = there.listen([LOOPBACK], None)
        second = there.use(changing("old", "new"))
        (old, old_heard), (new, new_heard) = world.transport("old"), world.transport("new")
        of_old, of_new = old.dial(first[0]), new.dial(second[0])
        await old_heard.until_up(of_old)
        await new_heard.until_up(of_new)
        for here, conn in ((old, of_old), (new, of_new)):
            here.send(conn, [b"."])
        await listening.until(lambda: len(listening.frames) == 2)

        assert there.use(trust("new")) == []
        assert await old_heard.end_of(of_old) is Ended.BROKEN
        await listening.until(lambda: len(listening.ends) == 1)
        assert await old_heard.end_of(old.dial(first[0])) is Ended.DENIED
        assert await old_heard.end_of(old.dial(second[0])) is Ended.DENIED
        for address in (*first, *second):
            await new_heard.until_up(new.dial(address))
        assert new.send(of_new, [b"still"]), "who came with the new key stays"
        await listening.until(lambda: [b"still"] in [frame for frames in listening.frames.values() for frame in frames])

    play(SocketWorld, scenario)


def test_of_who_has_only_the_old_key_nothing_is_heard_after_the_change() -> None:
    """Not even what libzmq had received by then: the process may have been busy for minutes, and the key been out for long."""

    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport("old")
        address = there.listen([LOOPBACK], None)[0]
        here, dialling = world.transport("old")
        conn = here.dial(address)
        await dialling.until_up(conn)
        here.send(conn, [b"before"])
        await listening.until(lambda: len(listening.frames) == 1)
        back = next(iter(listening.frames))
        here.send(conn, [b"late"])
        there.send(back, [b"late"])
        for waiting in (there._listener._socket, here._lines[conn]._socket):
            assert waiting.poll(1000 * PATIENCE), "it is there, and the event loop has not looked"
        there.use(trust("new"))
        here.use(trust("new"))
        assert await dialling.end_of(conn) is Ended.BROKEN
        await listening.until(lambda: len(listening.ends) == 1)
        assert listening.frames == {back: [[b"before"]]} and conn not in dialling.frames

    play(SocketWorld, scenario)


def test_without_descriptors_a_key_is_changed_later_and_the_door_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport("old")
        address = there.listen([LOOPBACK, "::1"], None)[0]
        with monkeypatch.context() as patch:
            patch.setattr("discoro.listening.os.dup", no_descriptors)
            with pytest.raises(OSError, match="Too many open files"):
                there.use(trust("new"))
            with pytest.raises(OSError, match="Too many open files"):
                there.use(changing("old", "new"))
        assert there.use(trust("new")) == []
        here, dialling = world.transport("new")
        await dialling.until_up(here.dial(address))

    play(SocketWorld, scenario)


def no_descriptors(descriptor: int) -> int:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def test_a_dial_tries_both_keys_while_one_follows_the_other() -> None:
    async def scenario(world: SocketWorld) -> None:
        here, dialling = world.transport("old")
        here.use(changing("old", "new"))
        there = {key: world.transport(key)[0].listen([LOOPBACK], None)[0] for key in ("old", "new", "other")}
        conns = {key: here.dial(address) for key, address in there.items()}
        await dialling.until_up(conns["old"])
        await dialling.until_up(conns["new"])
        assert await dialling.end_of(conns["other"]) is Ended.DENIED

        here.use(trust("new"))
        assert await dialling.end_of(conns["old"]) is Ended.BROKEN
        assert here.send(conns["new"], [b"."])

    play(SocketWorld, scenario)


def test_a_key_that_is_changed_again_and_again() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport("0")
        first = there.listen([LOOPBACK], None)
        second = there.use(changing("0", "1"))
        for number in range(1, 5):
            assert there.use(trust(f"{number}")) == []
            assert there.use(changing(f"{number}", f"{number + 1}")) == [], "the second door is there already"
            for address, key in ((first[0], f"{number}"), (second[0], f"{number + 1}")):
                here, dialling = world.transport(key)
                await dialling.until_up(here.dial(address))

    play(SocketWorld, scenario)


def test_nobody_who_dials_while_a_door_changes_is_refused() -> None:
    """A refused connection means that the process has ended: links would be lost for it."""

    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport("a")
        address = there.listen([LOOPBACK], None)[0]
        for number in range(50):
            there.use(trust("ab"[number % 2]))
            with socket.create_connection(at(address), timeout=PATIENCE):
                pass

    play(SocketWorld, scenario)


def test_a_second_door_that_finds_no_port_changes_nothing() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport("old")
        address = there.listen([LOOPBACK], None)[0]
        with socket.create_server((LOOPBACK, 0)) as taken, pytest.raises(PortTaken):
            there.use(changing("old", "new"), range(taken.getsockname()[1], taken.getsockname()[1] + 1))
        here, dialling = world.transport("old")
        await dialling.until_up(here.dial(address))

    play(SocketWorld, scenario)


def test_a_closed_transport_changes_no_key() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport("old")
        await there.close()
        with pytest.raises(RuntimeError, match="closed"):
            there.use(trust("new"))

    play(SocketWorld, scenario)


def test_a_taken_port_leaves_the_transport_usable() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport()
        with socket.create_server((LOOPBACK, 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(PortTaken, match=f"port {port} is taken on {LOOPBACK}"):
                there.listen([LOOPBACK], range(port, port + 1))
        assert at(there.listen([LOOPBACK], range(port, port + 1))[0])[1] == port

    play(SocketWorld, scenario)


# --- sockets: ends


def test_the_same_descriptor_again_and_again() -> None:
    """Connections that come and go get the same descriptors inside libzmq; every end is told, and only those."""

    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        for _ in range(30):
            conn, heard = await pair.again()
            pair.here.drop(conn)
        await pair.listening.until(lambda: len(pair.listening.ends) == 30)
        assert pair.heard not in pair.listening.ends
        for _ in range(30):
            conn = pair.here.dial(pair.address)
            await pair.dialling.until_up(conn)
            pair.here.send(conn, [b"hello and goodbye"])
            pair.here.drop(conn, flush=True)
        await pair.listening.until(lambda: len(pair.listening.ends) == 60)
        assert pair.heard not in pair.listening.ends
        assert len(pair.there._listener._by_id) == len(pair.there._listener._by_descriptor) == 1

    play(SocketWorld, scenario)


def bare_peer(context: zmq.Context[zmq.Socket[bytes]], address: str) -> zmq.Socket[bytes]:
    """A ZeroMQ socket with the key that has sent one frame: a peer that needs no event loop."""
    made = context.socket(zmq.DEALER)
    made.linger = int(PATIENCE * 1000)
    trust("one").secure_client(made)
    made.connect(f"tcp://{address}")
    made.send(b"hello")
    return made


def readable(source: zmq.Socket[bytes], patience: float = PATIENCE) -> bool:
    """Whether the descriptor shows news; looking so does not take them away, as any call on the socket may."""
    return bool(select.select([int(source.get(zmq.FD))], [], [], patience)[0])


def test_an_end_heard_before_the_first_frame_is_told_after_it() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        address = there.listen([LOOPBACK], None)[0]
        listener = there._listener
        await asyncio.sleep(0)  # the first turns of its pumps
        with zmq.Context() as context:
            bare_peer(context, address).close()
            assert readable(listener._monitor)
            listener._events._turn()
            assert not listening.news
            assert await listening.end_of(1, AT_ONCE) is Ended.BROKEN
        assert listening.news == [("connected", 1), ("received", 1, [b"hello"]), ("ended", 1, Ended.BROKEN)]

    play(SocketWorld, scenario)


def test_frames_read_after_the_end_is_known_belong_to_the_same_connection() -> None:
    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        address = there.listen([LOOPBACK], None)[0]
        listener = there._listener
        with zmq.Context() as context:
            peer = bare_peer(context, address)
            await listening.until(lambda: listening.frames)
            while listener._monitor.poll(0):  # that somebody connected may not have been read yet
                listener._events.wake()  # poll took its edge
                await asyncio.sleep(0)
            for _ in range(200):
                peer.send(b"last words")
            peer.close()
            assert listener._monitor.poll(PATIENCE * 1000)
            inbound, end = listener._by_id[next(iter(listener._by_id))], time.monotonic() + PATIENCE
            while not inbound.lost and time.monotonic() < end:  # libzmq's thread tells the ROUTER a moment after its monitor
                strangers_say(address, b"x", then=lambda stranger: stranger.recv(1))  # that thread has gone round once
                listener._socket.get(zmq.EVENTS)  # and the ROUTER takes note of what it said
                listener.look(inbound, ())
            assert inbound.lost and len(listening.frames[1]) == 1
            listener._events.wake()  # poll took its edge
            assert await listening.end_of(1, AT_ONCE) is Ended.BROKEN
        assert len(listening.frames[1]) == 201
        assert listening.up == [1]

    play(SocketWorld, scenario)


@pytest.mark.parametrize("side", ["here", "there"])
def test_a_frame_that_came_before_a_send_is_read(side: str) -> None:
    """The send takes away what the descriptor shows, and nothing else will come to show it again."""

    async def scenario(world: SocketWorld) -> None:
        pair = await world.straight_pair()
        if side == "here":
            ours, theirs, source = (pair.here, pair.conn), (pair.there, pair.heard), pair.here._lines[pair.conn]._socket
        else:
            ours, theirs, source = (pair.there, pair.heard), (pair.here, pair.conn), pair.there._listener._socket
        recorder = world.recorders[ours[0]]
        theirs[0].send(theirs[1], [b"do not miss me"])
        assert readable(source)
        sent = 0
        while readable(source, patience=0):
            assert ours[0].send(ours[1], [b"x"])
            sent += 1
        assert 0 < sent < 400  # more, and libzmq's own accounts would show at the descriptor
        await recorder.until(lambda: [b"do not miss me"] in recorder.frames.get(ours[1], []))

    play(SocketWorld, scenario)


def test_a_descriptor_taken_over_before_the_end_is_heard() -> None:
    """A connection ends, the next one gets its descriptor, and the loop hears of that first."""

    async def scenario(world: SocketWorld) -> None:
        there, listening = world.transport()
        address = there.listen([LOOPBACK], None)[0]
        listener = there._listener
        with zmq.Context() as context:
            taken_over = 0
            for _ in range(20):
                first = bare_peer(context, address)
                await listening.until(lambda: len(listening.up) > len(listening.ends))
                descriptor = list(listener._by_descriptor)[-1]
                first.close()
                assert readable(listener._monitor)
                second = bare_peer(context, address)
                assert listener._socket.poll(PATIENCE * 1000)
                listener._frames._turn()
                taken_over += descriptor == list(listener._by_descriptor)[-1]
                second.close()
                await listening.until(lambda: len(listening.up) == len(listening.ends))
            assert taken_over, "this machine gives descriptors in another order"

    play(SocketWorld, scenario)


def test_an_end_is_told_even_under_load_from_others() -> None:
    """Frames of others are always at hand, so that all is never read: the end is not put off for that."""

    async def scenario(world: SocketWorld) -> None:
        pair = await world.pair()
        pair.there._listener._frames._take = lambda: True
        pair.there._listener._frames.wake()
        pair.here.drop(pair.conn)
        assert await pair.listening.end_of(pair.heard, AT_ONCE) is Ended.BROKEN

    play(SocketWorld, scenario)


def test_dials_dropped_at_once_leave_the_next_alone() -> None:
    """The socket of a dropped dial lives on in libzmq's threads for a while, and must disturb nobody there."""

    async def scenario(world: SocketWorld) -> None:
        pair = await world.straight_pair()
        for _ in range(300):
            pair.here.drop(pair.here.dial(pair.address))
            conn = pair.here.dial(pair.address)
            await pair.dialling.until_up(conn)
            pair.here.drop(conn)
        assert not pair.dialling.ends

    play(SocketWorld, scenario)


def open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def zmq_threads() -> int:
    """How many threads of libzmq this process has; libzmq names them."""
    names: list[str] = []
    for thread in os.listdir("/proc/self/task"):
        with suppress(FileNotFoundError), open(f"/proc/self/task/{thread}/comm") as file:  # it may just have ended
            names.append(file.read())
    assert names
    return sum(name.startswith("ZMQ") for name in names)


def test_close_leaves_nothing() -> None:
    async def scenario(world: SocketWorld) -> None:
        before, threads = open_descriptors(), zmq_threads()
        there, here = Transport(trust("one"), Recorder()), Transport(trust("one"), dialling := Recorder())
        address = there.listen([LOOPBACK], None)[0]
        for _ in range(5):
            conn = here.dial(address)
            await dialling.until_up(conn)
            here.send(conn, [b"x"])
        assert zmq_threads() > threads
        here.dial(address)
        refused = here.dial("127.0.0.1:9")
        await asyncio.gather(here.close(), there.close())
        assert refused not in dialling.ends
        assert open_descriptors() == before
        assert zmq_threads() == threads
        assert threading.enumerate() == [threading.current_thread()]

    play(SocketWorld, scenario)


def test_two_hundred_lives() -> None:
    async def scenario(world: SocketWorld) -> None:
        before = open_descriptors()
        for _ in range(200):
            there, here = Transport(trust("one"), listening := Recorder()), Transport(trust("one"), dialling := Recorder())
            conn = here.dial(there.listen([LOOPBACK], None)[0])
            await dialling.until_up(conn)
            here.send(conn, [b"x"])
            await here.close()
            await listening.end_of(1)
            await there.close()
        assert open_descriptors() == before

    play(SocketWorld, scenario)


def test_close_waits_for_nobody() -> None:
    """A peer whose process stands still takes nothing any more: 0.5 s for what was to be flushed, and no more."""

    async def scenario(world: SocketWorld) -> None:
        there, _ = world.transport()
        here, dialling = world.transport()
        stopped = Proxy()
        conn = here.dial(await stopped.start(there.listen([LOOPBACK], None)[0]))
        await dialling.until(lambda: dialling.up)
        stopped.stall()
        for _ in range(50):
            here.send(conn, [bytes(MAX_FRAME)])
        began = time.monotonic()
        await here.close()
        assert time.monotonic() - began < 1.5
        await stopped.close()

    play(SocketWorld, scenario)


def test_an_event_loop_that_ended_first_leaves_no_hanging_thread() -> None:
    made: list[Transport] = []

    async def start_closing() -> None:
        made.append(Transport(trust("one"), Recorder()))
        closing = asyncio.ensure_future(made[0].close())
        await asyncio.wait([closing], timeout=0)
        closing.cancel()

    asyncio.run(start_closing())
    assert made[0]._terminator is not None
    made[0]._terminator.join(PATIENCE)
    assert made[0].context.closed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_keeps_neither_port_nor_connection() -> None:
    """The child lives on, as one of user code may; the files and sockets that are not ours stay open in it."""

    async def scenario(world: SocketWorld) -> None:
        pair = await world.straight_pair()  # a proxy would be user code: the child keeps its connections
        onward, _ = world.transport()
        port = at(pair.address)[1]
        alive, alive_child = socket.socketpair()
        child = os.fork()
        if not child:
            try:
                alive_child.send(b"x")  # what is done in a forked child is done
                alive_child.recv(1)  # until the parent is done; fails if our hook closed it
                os._exit(0)
            finally:
                os._exit(1)
        try:
            assert alive.recv(1) == b"x"
            await pair.there.close()
            assert await pair.dialling.end_of(pair.conn, AT_ONCE) is Ended.BROKEN
            assert at(onward.listen([LOOPBACK], range(port, port + 1))[0])[1] == port
        finally:
            alive.send(b"x")
            status = os.waitpid(child, 0)[1]
            alive.close()
            alive_child.close()
        assert os.waitstatus_to_exitcode(status) == 0

    play(SocketWorld, scenario)


def test_a_killed_process_is_broken_at_once() -> None:
    """With a child of its own that lives on, the connections of which it must not have kept."""
    program = (
        "import asyncio, subprocess, sys, os\n"
        "from discoro.security import Security\n"
        "from discoro.transport import Transport\n"
        "class Receiver:\n"
        "    def connected(self, conn): pass\n"
        "    def received(self, conn, parts): transport.send(conn, parts)\n"
        "    def ended(self, conn, how, detail): pass\n"
        "async def main():\n"
        "    global transport\n"
        "    transport = Transport(Security.from_handed_down(sys.stdin.readline().strip()), Receiver())\n"
        "    address = transport.listen(['127.0.0.1'], None)[0]\n"
        "    if os.fork() == 0:\n"
        "        sys.stdin.read()\n"
        "        os._exit(0)\n"
        "    print(address, flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )

    async def scenario(world: SocketWorld) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-W", "ignore", "-c", program, stdin=-1, stdout=-1)
        assert process.stdin and process.stdout
        process.stdin.write(trust("one").handed_down().encode() + b"\n")
        address = (await process.stdout.readline()).decode().strip()
        here, recorder = world.transport()
        conn = here.dial(address)
        await recorder.until(lambda: recorder.up)
        here.send(conn, [b"echo"])
        await recorder.until(lambda: recorder.frames)
        process.kill()
        assert await recorder.end_of(conn, AT_ONCE) is Ended.BROKEN
        assert await recorder.end_of(here.dial(address), SOON) is Ended.REFUSED
        process.stdin.close()
        await process.stdout.read()  # until the child has ended too
        await process.wait()

    play(SocketWorld, scenario)
