"""Whoever comes to the TCP ports of a node and of its workers, and whatever he sends: honest clients are served all the same,
and nothing is unpickled before a greeting was verified.

Three rings of bad peers: strangers without the key, holders of the key who greet wrongly, and peers who greeted well and then
break the protocol. `Victim` is a node with one honest client, the same for most tests: it outlives them all. Every test ends
with that client and a new one being served.
"""

from __future__ import annotations

import contextlib
import pickle
import random
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import messages, packing
from discoro.messages import Bye, Data, Greeting, Message, RefusedFrame, Reply, Request, Welcome
from discoro.security import Security
from tests.support.commands import Machines
from tests.support.victims import MIB, Address, Bomb, RawPeer, Victim

pytestmark = [pytest.mark.system]


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    directory = tmp_path_factory.mktemp("victim")
    with Machines(directory) as machines:
        victim = Victim(machines, directory)
        yield victim
        victim.leave()


@pytest.fixture
def victim(lasting: Victim) -> Iterator[Victim]:
    yield lasting
    lasting.check()


@pytest.fixture
def fresh_victim(tmp_path: Path) -> Iterator[Victim]:
    """For who takes so much of what is limited that others would meet the limits afterwards."""
    with Machines(tmp_path) as machines:
        victim = Victim(machines, tmp_path)
        yield victim
        victim.check()
        victim.leave()


# ------------------------------------------------------------------ strangers


@contextlib.contextmanager
def connected(door: Address) -> Iterator[socket.socket]:
    with socket.create_connection(door, timeout=5) as made:
        yield made


def shove(door: Address, *chunks: bytes) -> None:
    """Send bytes, each chunk once the connection took the one before; whoever hangs up is right to."""
    with connected(door) as made, contextlib.suppress(ConnectionError, TimeoutError):
        for chunk in chunks:
            made.sendall(chunk)
        made.settimeout(0.05)
        made.recv(4096)


def zmtp_greeting(mechanism: bytes, as_server: bool = False) -> bytes:
    """The 64 bytes that begin a ZMTP 3.1 connection (RFC 37)."""
    return b"\xff" + bytes(8) + b"\x7f\x03\x01" + mechanism.ljust(20, b"\0") + bytes([as_server]) + bytes(31)


def noise(door: Address, victim: Victim) -> None:
    generator = random.Random(20)
    for _ in range(50):
        shove(door, generator.randbytes(generator.randrange(1, 4096)))


def http(door: Address, victim: Victim) -> None:
    shove(door, b"GET / HTTP/1.1\r\nHost: ada\r\nContent-Length: 99999999\r\n\r\n", b"x" * MIB)


def tls(door: Address, victim: Victim) -> None:
    context = ssl.create_default_context()
    out = ssl.MemoryBIO()
    session = context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="ada.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        session.do_handshake()
    shove(door, out.read())


def half_greetings(door: Address, victim: Victim) -> None:
    for length in range(0, 65, 8):
        shove(door, zmtp_greeting(b"CURVE")[:length])


def curve_garbage(door: Address, victim: Victim) -> None:
    hello = b"\x04\xc8\x05HELLO\x01\x00" + bytes(72) + random.Random(21).randbytes(120)
    shove(door, zmtp_greeting(b"CURVE"), hello)
    shove(door, zmtp_greeting(b"CURVE"), b"\x04\x08\x08INITIAT", b"\x00\x05" + victim.bomb[:5])


def null_ready(door: Address, victim: Victim) -> None:
    ready = b"\x05READY\x0bSocket-Type\x00\x00\x00\x06DEALER"
    frame = bytes([0, len(victim.bomb)]) + victim.bomb
    shove(door, zmtp_greeting(b"NULL"), b"\x04" + bytes([len(ready)]) + ready, frame)


def unpickling_at_once(door: Address, victim: Victim) -> None:
    shove(door, victim.bomb)


def silent_crowd(door: Address, victim: Victim) -> None:
    """300 connections that say nothing, while the honest client is served."""
    with contextlib.ExitStack() as crowd:
        for _ in range(300):
            crowd.enter_context(connected(door))
        victim.serve()


STRANGERS = [noise, http, tls, half_greetings, curve_garbage, null_ready, unpickling_at_once, silent_crowd]


@pytest.mark.parametrize("attack", STRANGERS, ids=lambda attack: attack.__name__)
def test_a_stranger_changes_nothing(victim: Victim, attack: Callable[[Address, Victim], None]) -> None:
    for door in victim.doors:
        attack(door, victim)


@pytest.mark.parametrize("opening", [b"", b"CURVE", b"NULL"], ids=["at once", "curve", "null"])
def test_an_announced_gibibyte_is_not_buffered(victim: Victim, opening: bytes) -> None:
    """A ZMTP frame that announces 1 GiB, from somebody without the key: cut off, and no memory taken."""
    before, sent = victim.rss(), 0
    announced = b"\x06" + (1 << 30).to_bytes(8, "big")
    with connected(victim.doors[0]) as made:
        made.sendall((zmtp_greeting(opening) if opening else b"") + announced)
        with contextlib.suppress(ConnectionError, TimeoutError):
            for _ in range(256):
                sent += made.send(bytes(MIB))
    grown = victim.rss() - before
    print(f"{sent / MIB:.0f} MiB taken by the socket, {grown / MIB:.1f} MiB by the node")
    assert grown < 16 * MIB


def test_a_peer_without_any_key_gets_no_word_in(victim: Victim) -> None:
    for door in victim.doors:
        with RawPeer(door, Security(b"", "open")) as peer:
            peer.hello(victim.greeting())
            peer.send(victim.bomb)
            assert peer.next(0.5) is None


def test_a_peer_with_another_key_gets_no_word_in(victim: Victim) -> None:
    for door in victim.doors:
        with RawPeer(door, Security(b"another key".ljust(64), "another")) as peer:
            peer.hello(victim.greeting())
            peer.send(victim.bomb)
            assert peer.next(0.5) is None


# ------------------------------------------------------------------ holders of the key who greet wrongly


def test_another_protocol_version_is_refused_in_words(victim: Victim) -> None:
    for door in victim.doors:
        with RawPeer(door, victim.security) as peer:
            peer.send(packing.pack([1, messages.MAGIC, 99, "whatever", {"version": 99}, victim.bomb]))
            answer = peer.next()
            assert isinstance(answer, RefusedFrame)
            assert (answer.version, answer.code) == (messages.PROTOCOL_VERSION, "protocol")
            assert "protocol 1" in answer.text and "99" in answer.text and "same discoro" in answer.text


def test_a_wrong_mac_is_refused_before_the_greeting_is_read(victim: Victim) -> None:
    good = messages.encode_greeting(victim.greeting())
    cases = [(bytes(16), good), (b"", good), (victim.security.mac(good)[:-1], good), (bytes(16), victim.bomb)]
    for door in victim.doors:
        for mac, body in cases:
            with RawPeer(door, victim.security) as peer:
                peer.send(*map(bytes, messages.encode_hello(mac, body)))
                answer = peer.next()
                assert isinstance(answer, RefusedFrame) and answer.code == "key", (mac, body, answer)


@pytest.mark.parametrize(
    ("code", "changes"),
    [("cluster", {"cluster": "other"}), ("python", {"python": "3.99"}), ("stale", {"wanted": 12345})],
)
def test_other_greetings_are_refused_in_words(victim: Victim, code: str, changes: dict[str, Any]) -> None:
    for door in victim.doors:
        with RawPeer(door, victim.security) as peer:
            peer.hello(victim.greeting(**changes))
            answer = peer.next()
            assert isinstance(answer, RefusedFrame) and answer.code == code
            assert "ada" in answer.text


def test_a_signed_greeting_that_is_none_gets_no_welcome(victim: Victim) -> None:
    bodies = [victim.bomb, b"", packing.pack([1, 2, 3]), packing.pack([[]] * 13), b"\xdd\xff\xff\xff\xff", b"\x91" * 10_000]
    for door in victim.doors:
        for body in bodies:
            with RawPeer(door, victim.security) as peer:
                peer.send(*map(bytes, messages.encode_hello(victim.security.mac(body), body)))
                assert not isinstance(peer.next(0.3), Welcome)


def test_frames_before_the_greeting_mean_nothing(victim: Victim) -> None:
    for door in victim.doors:
        with RawPeer(door, victim.security) as peer:
            ask = Request(1, 0, "locate", {"name": "discoro_server"})
            peer.operations(victim.greeting(), 1, ask, Message(1, [victim.bomb]))
            assert not isinstance(peer.next(0.3), Data)


def test_a_flood_of_inquiries_is_answered_and_leaves_nothing(fresh_victim: Victim) -> None:
    before = fresh_victim.rss()
    for door in fresh_victim.doors:
        with RawPeer(door, fresh_victim.security) as peer:
            for _ in range(2_000):
                peer.hello(fresh_victim.greeting(session=0))
            assert all(isinstance(peer.next(), Welcome) for _ in range(2_000))
    assert fresh_victim.rss() - before < 16 * MIB


def test_a_flood_of_greetings_over_one_connection_does_not_use_up_the_links(fresh_victim: Victim) -> None:
    """More births than a process takes links, each greeting well; all from one connection, which then ends."""
    for door in fresh_victim.doors:
        with RawPeer(door, fresh_victim.security) as peer:
            for _ in range(5_000):
                peer.hello(fresh_victim.greeting())
                if not said(peer, Welcome):
                    break  # cut off: one connection speaks for one process
            fresh_victim.serve()


def test_a_crowd_that_greets_and_goes_does_not_use_up_the_links(fresh_victim: Victim) -> None:
    for _ in range(100):
        with RawPeer(fresh_victim.doors[0], fresh_victim.security) as peer:
            peer.greet(fresh_victim)


# ------------------------------------------------------------------ peers who greeted well, and then break the protocol

BROKEN_FRAMES = {
    "no msgpack": b"\xc1\xc1\xc1",
    "a pickle": b"",  # the bomb itself
    "a number": packing.pack(7),
    "an unknown kind": packing.pack([77, 1, 2]),
    "data without operations": packing.pack([4, 1, 1]),
    "an unknown operation": b"",
    "nesting without end": b"\x91" * 100_000,
    "an array of four billion": b"\xdd\xff\xff\xff\xff",
    "an acknowledgement of what was never sent": b"",
    "a piece of nothing": b"",
    "parts of nobody": b"",
}


def sealed(parts: list[bytes]) -> list[bytes]:
    """As frame 1 of its link, with all of its parts."""
    return [*map(bytes, messages.sealed(1, list(parts)))]


def broken_frame(name: str, greeting: Greeting, victim: Victim) -> list[bytes]:
    """The parts of a frame that breaks the protocol on the link of `greeting`."""
    session = greeting.resume
    match name:
        case "a pickle":
            return [victim.bomb]
        case "an unknown operation":
            return [packing.pack([4, session, 1, 0, [[99, 1, 2]]])]
        case "an acknowledgement of what was never sent":
            return [packing.pack([5, session, 1 << 40])]
        case "a piece of nothing":
            return sealed([packing.pack([4, session, 1, 0, [[5, 3, False, None, None]]]), victim.bomb])
        case "parts of nobody":
            return sealed([packing.pack([4, session, 1, 0, []]), victim.bomb, victim.bomb])
    return [BROKEN_FRAMES[name]]


@pytest.mark.parametrize("name", BROKEN_FRAMES)
def test_who_breaks_the_protocol_is_told_and_cut_off(victim: Victim, name: str) -> None:
    for door in victim.doors:
        with RawPeer(door, victim.security) as peer:
            greeting = peer.greet(victim)
            peer.send(*broken_frame(name, greeting, victim))
            farewell = said(peer, Bye)
            assert farewell.session == greeting.session and "broke the protocol" in farewell.reason
            peer.operations(greeting, 1, Request(1, 0, "locate", {"name": "discoro_server"}))
            assert peer.next(0.3) is None, "nothing more is taken from it"


def test_a_gap_ends_the_connection_and_the_link_can_be_resumed(victim: Victim) -> None:
    ask = Request(1, 0, "locate", {"name": "nobody"})
    with RawPeer(victim.doors[0], victim.security) as peer:
        greeting = peer.greet(victim)
        peer.operations(greeting, 1, ask)
        assert peer.reply().ok
        peer.operations(greeting, 3, ask._replace(id=3))
        while (came := said(peer, Data)) is not None:  # the victim may have something of its own to ask
            assert not any(isinstance(each, Reply) for each in came.operations), "what came after the gap is not believed"
    with RawPeer(victim.doors[0], victim.security) as peer:
        peer.hello(greeting)
        welcome = said(peer, Welcome)
        assert messages.decode_greeting(welcome.greeting).received == 1
        peer.operations(greeting, 2, ask._replace(id=2))
        assert peer.reply().ok


def said(peer: RawPeer, kind: type[Any]) -> Any:
    """The next frame of that kind; None where none comes before a second of silence."""
    while (frame := peer.next(1.0)) is not None:
        if isinstance(frame, kind):
            return frame
    return None


BAD_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("no such verb", {}),
    ("locate", {}),
    ("locate", {"name": ["discoro_server"]}),
    ("register", {}),
    ("register", {"name": "x", "ref": ["not", "a", "reference"]}),
    ("register", {"name": "x" * 300, "ref": ["n", 1, 1, 1, "n", []]}),
    ("register", {"name": "x", "ref": ["n", 1, 1, 1, "of another process", []]}),
    ("unregister", {"name": None}),
    ("meet", {}),
    ("meet", {"nodes": [["birth", 7]]}),
    ("ready", {"token": "guessed", "server": ["n", 1, 1, 1, "n", []]}),
    ("lost", {"birth": 1, "how": "because a client says so"}),
    ("lost", {}),
    ("read", {}),
    ("read", {"digest": "../../../tmp/x", "size": 5, "piece": 0}),
    ("read", {"digest": "a" * 64, "size": 5, "piece": 0}),
    ("read", {"digest": "a" * 64, "size": 5, "piece": -1}),
    ("bring", {"digest": "a" * 64, "size": 5, "origin": None}),
    ("source", {"digest": "a" * 64, "size": 5}),
    ("pulled", {"digest": "a" * 64}),
    ("progress", {"number": "x"}),
]
BAD_SERVER_REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("lacks", {}),
    ("lacks", {"names": ["../../etc/passwd"]}),
    ("extend", {"id": "never set up"}),
    ("retire", {"id": "never set up"}),
    ("setup", {}),
    ("setup", {"id": 7, "files": [], "name": "x"}),
    ("setup", {"id": "x", "files": "all", "name": "x"}),
    ("run", {}),
    ("run", {"id": "never set up"}),
    ("ping", {"id": ["x"]}),
    ("close", {"id": "never set up", "timeout": -1}),
    ("close", {"id": "never set up", "timeout": "long"}),
]


def test_bad_requests_are_answered_with_errors_of_ours(victim: Victim) -> None:
    """By the process and by its discoro_server; a bug in discoro would be an answer too, and its traceback in the log."""
    with RawPeer(victim.doors[0], victim.security) as peer:
        greeting = peer.greet(victim)
        peer.operations(greeting, 1, Request(1, 0, "locate", {"name": "discoro_server"}))
        server = peer.reply().value[0][0][3]
        asked = [(0, *each) for each in BAD_REQUESTS] + [(server, *each) for each in BAD_SERVER_REQUESTS]
        answers = []
        for number, (coro, verb, arguments) in enumerate(asked, 2):
            peer.operations(greeting, number, Request(number, coro, verb, arguments, [victim.bomb]))
            reply = peer.reply()
            answers.append((verb, arguments, reply.value if not reply.ok else "ok"))
    wrong = [each for each in answers if each[2] == "ok" or "a bug in discoro" in each[2][1]]
    assert not wrong, wrong


def test_being_told_of_a_thousand_nodes_that_are_not_there_harms_nobody(fresh_victim: Victim) -> None:
    """Some of these addresses refuse, some never answer, some are none."""
    with contextlib.ExitStack() as crowd:
        silent = crowd.enter_context(socket.create_server(("127.0.0.1", 0)))
        addresses = ["127.0.0.1:1", f"127.0.0.1:{silent.getsockname()[1]}", "no address"]
        with RawPeer(fresh_victim.doors[0], fresh_victim.security) as peer:
            greeting = peer.greet(fresh_victim)
            nodes = [[birth, addresses] for birth in range(1, 1_000)]
            peer.operations(greeting, 1, Request(1, 0, "meet", {"nodes": nodes}))
            peer.reply()
            fresh_victim.serve()


def test_operations_that_fit_nothing_are_passed_over(victim: Victim) -> None:
    odd: list[messages.Operation] = [
        Reply(99, True, None),
        Reply(98, False, ["RemoteError", "nobody asked"], [victim.bomb]),
        messages.Exit(12, "normal", "", [victim.bomb]),
        messages.Hold(12, True),
        messages.Hold(13, False),
        messages.Notice(14, 15, False),
        messages.Notice(14, 15, True),
        Message(987_654, [victim.bomb]),
        Message(0, [victim.bomb]),
    ]
    with RawPeer(victim.doors[0], victim.security) as peer:
        greeting = peer.greet(victim)
        peer.operations(greeting, 1, *odd)
        peer.operations(greeting, 2, Request(1, 0, "locate", {"name": "nobody"}))
        assert peer.reply().ok


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    marker = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Bomb(marker), protocol=5)).close()
    assert marker.exists(), "its silence in the tests above means something"
