"""Who stands between two processes, and can read, keep, alter and repeat all that passes, learns nothing and changes nothing.

The processes are real: a node, its worker, a client. Whatever they dial leads through a proxy of the test, which has no key.
"""

from __future__ import annotations

import contextlib
import random
import re
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from discoro.security import Security
from tests.support.commands import Machines
from tests.support.seeking import forms, found, secrets_of
from tests.support.tapped_proxy import Tap, TappedProxy, Way, head_size

pytestmark = [pytest.mark.system]

# ------------------------------------------------------------------ what can be read

CANARIES = {
    "a function's name": b"canary_by_name",
    "a constant in code": b"canary-in-the-code",
    "a message to the worker": b"canary-going-up",
    "a message of the worker": b"canary-coming-down",
    "a small file": b"canary-in-a-small-file",
    "a large file": b"canary-in-a-large-file",
    "a file's name": b"canary-of-a-name.txt",
    "an object that was broadcast": b"canary-for-all",
    "a returned value": b"canary-as-the-end",
    "an exception": b"canary-in-an-error",
    "the cluster's name": b"canary-cluster",
    "a variable in a remote traceback": b"canary_in_the_traceback",
}
PICKLE = re.compile(rb"\x80\x05\x95....\0\0\0\0", re.DOTALL)  # protocol 5, and a frame below 4 GiB

SESSION = """
from pathlib import Path

async def canary_by_name(way, shared, coro=None):
    if way == "fails":
        canary_in_the_traceback = 1 / 1
        raise ValueError("canary-in-" + "an-error")
    constant = "canary-in-the-code"
    assert "canary-for-all" in (await shared.get())
    message, who = await coro.receive(20)
    who.send("canary-coming-down" + message * 0)
    await coro.receive(20)
    assert len(Path("canary-of-a-name.txt").read_text() + Path("large.txt").read_text()) > 100_000
    return "canary-as-the-end"

async def client(coro=None):
    Path("canary-of-a-name.txt").write_text("canary-in-a-small-file")
    Path("large.txt").write_text("canary-in-a-large-file" * 20_000)
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(canary_by_name)
    await computation.setup(server)
    shared = await discoro.broadcast(["canary-for-all", bytes(300_000)])
    remote = await computation.run(server, "works", shared)
    await coro.monitor(remote)
    remote.send(["canary-going-up", coro])
    assert await coro.receive(20) == "canary-coming-down"
    await discoro.send_file(remote, "canary-of-a-name.txt")
    await discoro.send_file(remote, "large.txt")
    remote.send("all there")
    notice = await coro.receive(20)
    assert (notice.reason, notice.value) == ("normal", "canary-as-the-end"), notice
    failing = await computation.run(server, "fails", shared)
    try:
        await failing.result()
    except ValueError as error:
        assert "canary-in-an-error" in str(error)
    await computation.close(server)
    say("done")

discoro.run(client, mdns=False, ip_addr=["127.0.0.1"], peers=[NODE], cluster="canary-cluster", open=OPEN)
"""


def captured_session(directory: Path, trusting: bool) -> bytes:
    """All that passes between a client, a node and its worker while everything travels that can."""
    with TappedProxy(directory) as tapped, Machines(directory) as machines:
        options = ["--open"] if trusting else []
        node = machines.node("ada", "-c", "1", "--cluster", "canary-cluster", *options, **tapped.environment)
        constants = f"NODE = {node.address!r}\nOPEN = {trusting}\n"
        client = machines.program("client", constants + SESSION, **tapped.environment)
        client.next("done", 30)
        client.succeed(10)
        return tapped.everything()


def test_a_captured_session_shows_nothing_of_what_travels(tmp_path: Path) -> None:
    captured = captured_session(tmp_path, trusting=False)
    key = tmp_path / "cluster.key"
    secrets = secrets_of(Security.from_options(key_file=key, environ={})) | {"key": bytes.fromhex(key.read_text())}
    seen = [what for what, canary in CANARIES.items() if canary in captured]
    print(f"{len(captured)} bytes captured, {captured.count(b'CURVE')} greetings of CURVE")
    assert len(captured) > 700_000, "both files and the broadcast are in it"
    assert captured.count(b"CURVE") >= 4 and b"NULL" not in captured[: 1 << 12]
    assert seen == []
    assert PICKLE.search(captured) is None
    assert found(captured, secrets) == []


def test_a_captured_session_without_a_key_shows_everything(tmp_path: Path) -> None:
    """What was looked for above is found where nothing is encrypted."""
    captured = captured_session(tmp_path, trusting=True)
    assert [what for what, canary in CANARIES.items() if canary not in captured] == []
    assert PICKLE.search(captured) is not None


@pytest.mark.parametrize("form", forms(bytes(range(32))))
def test_a_secret_is_found_in_each_form(form: str) -> None:
    secret = bytes(range(32))
    assert f"it ({form})" in found(b"before" + forms(secret)[form] + b"after", {"it": secret})
    assert found(b"before" + forms(bytes(32))[form] + b"after", {"it": secret}) == []


# ------------------------------------------------------------------ what can be altered

SEED = 20
LARGE = 40_000  # bytes; a frame of ZMTP that takes more is the body of a message
GREETED = 5  # units of either way before discoro's own greeting
ENOUGH = 40  # frames of a connection that is worth keeping

# A client's coroutine and one at a worker, which numbers what it sends and holds what comes against what must come.
STREAM = """
import asyncio

def content(number):
    return number.to_bytes(4, "big") * ([1, 15, 12_000, 2][number % 4])  # the third travels as a part of its own

async def echo(coro=None):
    expected, wrong = 0, []
    while (message := await coro.receive(30)) is not None:
        number, text, who = message
        if number != expected or text != content(number):
            wrong.append([expected, number, text[:8].hex()])
        expected = number + 1
        who.send([number, text])
    return [expected, wrong]

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(echo)
    await computation.setup(server)
    remote = await computation.run(server)
    say("doors", [coro.ref.addresses[0], remote.addresses[0]])
    enough = asyncio.create_task(asyncio.to_thread(told))
    sent, expected, wrong = 0, 0, []
    while not enough.done() or expected < sent:
        while sent < expected + 40 and not enough.done():
            remote.send([sent, content(sent), coro])
            sent += 1
            if sent % 5 == 0:
                await coro.sleep(0.002)  # so that a turn's messages make several frames
        number, text = await coro.receive(30)
        if number != expected or text != content(number):
            wrong.append([expected, number, text[:8].hex()])
        expected = number + 1
    remote.send(None)
    say("figures", {"sent": sent, "there": await remote.result(), "back": [expected, wrong]})
    await computation.close(server)

discoro.run(client, mdns=False, ip_addr=["127.0.0.1"], peers=[NODE])
"""


@dataclass
class Attack:
    """What is done to one connection between client and worker: from `index` on, units that go `way` become others."""

    name: str
    way: Way
    index: int
    change: Callable[[Tap, int, bytes], Sequence[bytes]]
    tap: Tap | None = None  # the connection that it altered
    at: float = 0.0  # when, on the monotonic clock

    def __str__(self) -> str:
        return f"{self.name} {self.way.value} at unit {self.index}"

    @property
    def broke(self) -> bool:
        """Whether it was done, and its connection has ended."""
        return self.tap is not None and self.tap.ended


class Attacks:
    """Each new connection to one of the doors gets the next attack; one that ended before it was altered gives it back."""

    def __init__(self, attacks: Sequence[Attack], doors: Sequence[str]) -> None:
        self._waiting = deque(attacks)
        self._doors = doors
        self._at: dict[int, tuple[Tap, Attack]] = {}

    def __call__(self, tap: Tap, way: Way, index: int, unit: bytes) -> Sequence[bytes]:
        if tap.number not in self._at and index == 0 and tap.target in self._doors:
            self._assign(tap)
        if tap.number not in self._at:
            return [unit]
        _, attack = self._at[tap.number]
        if way is not attack.way or index < attack.index:
            return [unit]
        instead = attack.change(tap, index - attack.index, unit)
        if attack.tap is None and instead != [unit]:
            attack.tap, attack.at = tap, time.monotonic()
        return instead

    def _assign(self, new: Tap) -> None:
        for number, (tap, attack) in list(self._at.items()):
            if tap.ended and attack.tap is None:
                del self._at[number]
                self._waiting.append(attack)
        if self._waiting:
            self._at[new.number] = new, self._waiting.popleft()


def flipped(frame: bytes, generator: random.Random) -> bytes:
    """One bit of it is another: not in flags and length, which are no part of what is encrypted, nor in HELLO's padding."""
    head = head_size(frame)
    at = generator.randrange(head, len(frame))
    if frame[head:].startswith(b"\x05HELLO") and head + 8 <= at < head + 80:
        at += 72
    return frame[:at] + bytes([frame[at] ^ 1 << generator.randrange(8)]) + frame[at + 1 :]


HANDSHAKE = [(way, index) for way in Way for index in (3, 4)]  # HELLO and INITIATE; WELCOME and READY
GREETINGS = [(way, 5) for way in Way]  # discoro's own, inside
SILENCE = 5.0  # seconds in which every connection with an attack on it ends
PROMPT = 2.0  # seconds; heartbeats would end a connection after 3 to 4


def anywhere(generator: random.Random, count: int) -> list[tuple[Way, int]]:
    """The places of the handshake and the greetings, and some among the frames that follow."""
    return [*HANDSHAKE, *GREETINGS, *later(generator, count)]


def later(generator: random.Random, count: int) -> list[tuple[Way, int]]:
    return [(generator.choice(list(Way)), generator.randrange(6, 16)) for _ in range(count)]


def flips(generator: random.Random) -> list[Attack]:
    def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
        return [unit] if index else [flipped(unit, generator)]

    return [Attack("a flipped bit", way, index, change) for way, index in anywhere(generator, 10)]


def repetitions(generator: random.Random) -> list[Attack]:
    def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
        return [unit] if index else [unit, unit]

    return [Attack("a frame sent twice", way, index, change) for way, index in anywhere(generator, 6)]


def late_repetitions(generator: random.Random) -> list[Attack]:
    def again(way: Way, first: int) -> Attack:
        def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
            return [unit] if index else [unit, *tap.units[way][first:]]

        return Attack(f"all from frame {first} on sent again", way, first + 4, change)

    return [again(way, first) for way in Way for first in (3, 5, 8)]


def exchanges(generator: random.Random) -> list[Attack]:
    def exchanged(way: Way, at: int) -> Attack:
        held: list[bytes] = []

        def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
            if index == 0:
                held.append(unit)
            return [[], [unit, *held], [unit]][min(index, 2)]

        return Attack("two frames that changed places", way, at, change)

    return [exchanged(*place) for place in later(generator, 8)]


def reflections(generator: random.Random) -> list[Attack]:
    def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
        return [unit] if index else [tap.units[Way.DOWN][-1]]

    return [Attack("a frame of the other side", Way.UP, index, change) for index in (5, 6, 9)]


def omissions(generator: random.Random) -> list[Attack]:
    """The body of one frame is left out, and all up to the next body: the header of the first is followed by that."""

    def omitted(way: Way) -> Attack:
        bodies: list[int] = []

        def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
            if len(unit) > LARGE:
                bodies.append(index)
            return [] if len(bodies) == 1 else [unit]

        return Attack("parts left out", way, 6, change)

    return [omitted(way) for way in Way for _ in range(3)]


def recordings(taps: list[Tap]) -> list[Attack]:
    """What was recorded of an earlier connection, in place of what is said on this one: all, or from the greeting on."""
    old = next(tap for tap in taps if len(tap.units[Way.DOWN]) > ENOUGH)

    def recorded(way: Way, first: int) -> Attack:
        def change(tap: Tap, index: int, unit: bytes) -> list[bytes]:
            return old.units[way][first + index : first + index + 1]

        return Attack("an old recording", way, first, change)

    return [recorded(way, first) for way in Way for first in (3, 4, 5, 8)]


def streamed(directory: Path, attacks: Callable[[list[Tap]], list[Attack]]) -> dict[str, Any]:
    """Stream messages both ways while each of these attacks falls on a connection of its own; both sides' figures.

    `attacks` gets the connections so far. Every attack must break its connection.
    """
    with TappedProxy(directory) as tapped, Machines(directory) as machines:
        node = machines.node("ada", "-c", "1", **tapped.environment)
        client = machines.program("client", f"NODE = {node.address!r}\n{STREAM}", **tapped.environment)
        doors = client.next("doors", 20)

        def between() -> list[Tap]:
            return [tap for tap in tapped.taps if tap.target in doors]

        assert tapped.wait_for(lambda: any(len(tap.units[Way.DOWN]) > ENOUGH for tap in between()), 20)
        chosen = attacks(between())
        tapped.alter = Attacks(chosen, doors)
        until = time.monotonic() + 60
        while not all(attack.broke for attack in chosen):
            tapped.cut_to(doors)  # again where an attack fell on a connection with too little on it: the node's, say
            tapped.wait_for(lambda: all(attack.broke for attack in chosen), PROMPT)
            tapped.wait_for(lambda: all(attack.broke for attack in chosen if attack.tap), SILENCE)
            survived = [f"{attack}, on {attack.tap}" for attack in chosen if attack.tap and not attack.tap.ended]
            assert not survived and time.monotonic() < until, (survived, [str(each) for each in chosen if not each.broke])
        tapped.alter = lambda tap, way, index, unit: [unit]
        took = [attack.tap.ended_at - attack.at for attack in chosen if attack.tap and attack.tap.ended_at]
        print(f"{len(chosen)} attacks on {len(between())} connections, which broke after {sorted(took)[-3:]} s at most")
        assert statistics.median(took) < PROMPT, "noticed at once, and not by a missing heartbeat"
        tapped.cut_to(doors)  # what an attack held back is lost
        client.tell("enough")
        figures: dict[str, Any] = client.next("figures", 30)
        client.succeed(10)
    return figures


def assert_intact(figures: dict[str, Any]) -> None:
    """Every message arrived once, in order and as it was sent, at both sides."""
    print(figures)
    assert figures["sent"] > 50
    assert figures["there"] == figures["back"] == [figures["sent"], []]


def test_a_flipped_bit_breaks_its_connection_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(SEED)
    assert_intact(streamed(tmp_path, lambda taps: flips(generator)))


def test_frames_repeated_exchanged_or_left_out_break_their_connections_and_nothing_else(tmp_path: Path) -> None:
    generator = random.Random(SEED)
    kinds = (repetitions, late_repetitions, exchanges, reflections, omissions)
    chosen = [attack for kind in kinds for attack in kind(generator)]
    generator.shuffle(chosen)
    assert_intact(streamed(tmp_path, lambda taps: chosen))


def test_recordings_of_other_connections_break_theirs_and_nothing_else(tmp_path: Path) -> None:
    assert_intact(streamed(tmp_path, recordings))


# ------------------------------------------------------------------ what can be repeated afterwards

COUNTER = """
import asyncio

async def count(coro=None):
    number = 0
    while (message := await coro.receive(30)) != "how many":
        number += 1
    return number

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(count)
    await computation.setup(server)
    remote = await computation.run(server)
    for number in range(20):
        remote.send(number)
    await remote.deliver(20)
    say("sent", remote.addresses[0])
    await asyncio.to_thread(told)
    remote.send("how many")
    say("count", await remote.result())
    await computation.close(server)

discoro.run(client, mdns=False, ip_addr=["127.0.0.1"], peers=[NODE])
"""


def repeated(tap: Tap, target: str, *, patient: bool) -> bytes:
    """Send what a client once sent to that address over a connection of our own; what comes back, until it is cut off.

    `patient`: each step of the handshake waits for its answer.
    """
    host, _, port = target.rpartition(":")
    came = b""
    with socket.create_connection((host, int(port)), timeout=10) as made, contextlib.suppress(ConnectionError):
        for index, unit in enumerate(tap.units[Way.UP]):
            made.sendall(unit)
            until = sum(map(len, tap.units[Way.DOWN][: index + 1])) if index <= 3 else 0  # greeting and HELLO are answered
            while patient and len(came) < until:
                came += made.recv(1 << 16)
        while part := made.recv(1 << 16):
            came += part
    return came


def test_a_whole_session_sent_again_is_nobodys(tmp_path: Path) -> None:
    """The recorded bytes of a client, sent to its node and its worker by somebody else, while it is there and when it has left:
    no connection of theirs is admitted, and nothing arrives a second time.
    """
    with TappedProxy(tmp_path) as tapped, Machines(tmp_path) as machines:
        node = machines.node("ada", "-c", "1", "-d", **tapped.environment)
        client = machines.program("client", f"NODE = {node.address!r}\n{COUNTER}", **tapped.environment)
        worker = client.next("sent", 20)
        doors = {node.address, worker}
        recorded = [tap for tap in tapped.taps if tap.target in doors and len(tap.units[Way.UP]) > GREETED]
        assert {tap.target for tap in recorded} == doors
        answers = [repeated(tap, door, patient=patient) for tap in recorded for door in doors for patient in (False, True)]
        client.tell("go on")
        assert client.next("count", 20) == 21
        client.succeed(10)
        answers += [repeated(tap, node.address, patient=True) for tap in recorded]
        assert any(b"WELCOME" in answer for answer in answers), "the handshake went as far as it can"
        assert not any(b"READY" in answer for answer in answers)
        honest = [tap for tap in tapped.taps if tap.target == node.address and len(tap.units[Way.UP]) > GREETED]
        print(f"{len(answers)} replays, {len(honest)} honest connections")
        assert 0 < node.output.count(" accepted") <= len(honest)


# ------------------------------------------------------------------ the last frame of an idle link

LAST = """
import asyncio

async def two(coro=None):
    await coro.receive(60)
    return await coro.receive(60)

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(two)
    await computation.setup(server)
    remote = await computation.run(server)
    await remote.deliver("first")
    say("worker", remote.addresses[0])
    await asyncio.to_thread(told)
    remote.send(bytes(1000))
    say("value", len(await remote.result()))
    await computation.close(server)

discoro.run(client, mdns=False, ip_addr=["127.0.0.1"], peers=[NODE])
"""


def test_the_last_frame_of_an_idle_link_is_missed_when_it_is_left_out(tmp_path: Path) -> None:
    """Nothing follows it of its own accord. It holds more than 1,000 bytes; nothing else that is sent then does."""
    left_out: list[Tap] = []

    def without_the_message(tap: Tap, way: Way, index: int, unit: bytes) -> list[bytes]:
        if tap.target == worker and way is Way.UP and len(unit) > 1000 and not left_out:
            left_out.append(tap)
            return []
        return [unit]

    with TappedProxy(tmp_path) as tapped, Machines(tmp_path) as machines:
        node = machines.node("ada", "-c", "1", **tapped.environment)
        client = machines.program("client", f"NODE = {node.address!r}\n{LAST}", **tapped.environment)
        worker = client.next("worker", 30)
        tapped.alter = without_the_message
        client.tell("go on")
        assert client.next("value", 30) == 1000
        assert len(left_out) == 1 and left_out[0].ended
        client.succeed(20)
