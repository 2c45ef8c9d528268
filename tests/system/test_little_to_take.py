"""What one process can take from another, with the key and without: so much memory and so many descriptors, and no honest
client's place.

The victim of each test is a real node, a worker of it or a client. It is measured from outside, in VmRSS (its peak, VmHWM) and
in /proc/PID/fd, while it is attacked and afterwards. Every test ends with an honest client being served, the last one, and that
with thousands of identities, also with a new client.
"""

from __future__ import annotations

import contextlib
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from discoro import messages, packing
from discoro.arrivals import MAX_UNGREETED
from discoro.holding import MAX_FULL, OVERRUN_MESSAGES
from discoro.messages import BATCH_OPERATIONS, Bye, Hold, Message, Operation, Request
from discoro.outbox import PIECES_OWED
from discoro.process import DESCRIPTORS
from discoro.requests import MAX_UNDER_WAY
from tests.support.commands import Machines
from tests.support.victims import MIB, Address, RawPeer, Victim, door

pytestmark = [pytest.mark.system, pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="it measures by /proc")]

UNDER_WAY = 64  # descriptors beside those that are counted: connections that come and go while the honest are served
PATIENCE = 20.0  # seconds until a test that waits in vain fails


@pytest.fixture(scope="module")
def one_victim(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Victim]:
    """One for all: what it does not get back from one test, it lacks in the next."""
    directory = tmp_path_factory.mktemp("victim")
    with enough_descriptors(), Machines(directory) as machines:
        victim = Victim(machines, directory)
        yield victim
        victim.check()
        victim.leave(30)  # 300,000 messages wait there by then


@pytest.fixture
def victim(one_victim: Victim) -> Iterator[Victim]:
    yield one_victim
    one_victim.serve()


@contextlib.contextmanager
def enough_descriptors() -> Iterator[None]:
    """For this process, which plays thousands."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 16_000:
        pytest.skip(f"this process may open {hard} descriptors; 16000 are needed to play thousands of others")
    resource.setrlimit(resource.RLIMIT_NOFILE, (16_000 if soft < 16_000 else soft, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def until(condition: Callable[[], object], what: str) -> None:
    """Until it holds; looks again every 50 ms, since another process is looked at."""
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"waited {PATIENCE} s in vain until {what}"
        threading.Event().wait(0.05)


def given_back(victim: Victim, pid: int, before: int) -> None:
    until(lambda: victim.descriptors(pid) <= before + 4, f"process {pid} has given its descriptors back: {before} before")


def warnings(victim: Victim, of: str) -> list[str]:
    return [line for line in victim.node.output.splitlines() if "WARNING" in line and of in line]


# ------------------------------------------------------------------ strangers


def both(victim: Victim) -> list[tuple[Address, int]]:
    """Where the node and its worker listen, and their pids."""
    return list(zip(victim.doors, (victim.node.pid, victim.worker_pid), strict=True))


class Crowd:
    """Connections that say nothing."""

    def __init__(self, address: Address) -> None:
        self._address = address
        self._standing: list[socket.socket] = []

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        for each in self._standing:
            each.close()

    def add(self, count: int) -> None:
        for _ in range(count):
            self._standing.append(socket.create_connection(self._address, timeout=5))
            self._standing[-1].setblocking(False)

    def standing(self) -> int:
        """How many the other side has not ended."""
        self._standing = [each for each in self._standing if not self._ended(each)]
        return len(self._standing)

    @staticmethod
    def _ended(each: socket.socket) -> bool:
        try:
            if each.recv(4096):  # the beginning of a greeting of ZMTP, and no more
                return False
        except BlockingIOError:
            return False
        except ConnectionError:
            pass
        each.close()
        return True


def silent_crowd(victim: Victim, address: Address, pid: int) -> None:
    before = victim.descriptors(pid)
    with victim.within(32, pid), Crowd(address) as crowd:
        for _ in range(3):
            crowd.add(1_000)
            victim.serve()
        until(lambda: crowd.standing() <= MAX_UNGREETED, "the oldest have given way")
        assert victim.descriptors(pid) <= before + MAX_UNGREETED + UNDER_WAY
        victim.serve()
    given_back(victim, pid, before)


def test_three_thousand_silent_connections_at_once(victim: Victim) -> None:
    for address, pid in both(victim):
        silent_crowd(victim, address, pid)
    assert len(warnings(victim, "more than")) == 1, "one line, and then one a minute"


def test_five_hundred_silent_connections_a_second(victim: Victim) -> None:
    address, pid = both(victim)[0]
    before, most, stop = victim.descriptors(pid), 0, threading.Event()
    with Crowd(address) as crowd:

        def connect() -> None:
            while not stop.wait(0.01):
                crowd.add(5)

        attacker = threading.Thread(target=connect)
        attacker.start()
        end = time.monotonic() + 4
        with victim.within(32, pid):
            while time.monotonic() < end:
                victim.serve()
                most = max(most, victim.descriptors(pid))
        stop.set()
        attacker.join()
    print(f"{most} descriptors at most, {before} before")
    assert most <= before + MAX_UNGREETED + 2 * UNDER_WAY
    given_back(victim, pid, before)


def test_where_descriptors_are_few_others_get_no_more_than_half_of_them(victim: Victim) -> None:
    address, pid = both(victim)[0]
    before = victim.descriptors(pid)
    few = before + 200
    hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (few, hard))
    with Crowd(address) as crowd:
        crowd.add(1_000)
        until(lambda: crowd.standing() <= few // 4, "those without a greeting have half of this half")
        assert victim.descriptors(pid) <= before + few // 4 + UNDER_WAY // 2
        victim.serve()
    given_back(victim, pid, before)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (DESCRIPTORS, hard))


def test_strangers_are_told_of_in_a_line_and_a_count(victim: Victim) -> None:
    """Without a key, without ZeroMQ, and without a word."""
    from discoro.security import Security

    with RawPeer(victim.doors[0], Security(b"another key".ljust(64), "another"), connections=100):
        until(lambda: warnings(victim, "another key, not discoro"), "it is said")
    for _ in range(200):
        with socket.create_connection(victim.doors[0], timeout=5) as made:
            made.sendall(b"GET / HTTP/1.1\r\n\r\n")
    victim.serve()
    assert len(warnings(victim, "arrivals")) <= 2


def test_limits_of_a_process_at_its_start(victim: Victim) -> None:
    for pid in (victim.node.pid, victim.worker_pid):
        soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        assert soft == hard or soft >= DESCRIPTORS
        assert resource.prlimit(pid, resource.RLIMIT_CORE)[0] == 0, "a core file would hold the cluster's key"


# ------------------------------------------------------------------ holders of the key who do not greet, or stay when refused


def test_who_is_refused_and_does_not_go_is_ended(victim: Victim) -> None:
    address, pid = both(victim)[0]
    before = victim.descriptors(pid)
    with RawPeer(address, victim.security, connections=300) as peer:
        for _ in range(300):
            peer.hello(victim.greeting(cluster="other"))
        for _ in range(300):
            assert peer.next() is not None
        victim.serve()
        given_back(victim, pid, before)


def test_who_has_the_key_and_does_not_greet_has_ten_seconds_while_five_thousand_births_greet_and_go(victim: Victim) -> None:
    """A thousand at a time. Their links wait 15 s for them to come back, and give way to others before."""
    address, pid = both(victim)[0]
    start, silent = victim.descriptors(pid), 200
    with (
        victim.within(256, pid),
        RawPeer(address, victim.security, connections=silent // 2),
        RawPeer(address, victim.security, connections=silent // 2) as talker,
    ):
        for _ in range(silent // 2):
            talker.send(*map(bytes, messages.encode_ack(4711, 0)))  # nothing that counts
        until(lambda: victim.descriptors(pid) >= start + silent, "they stand")
        births_come_and_go(victim, address, pid)
        given_back(victim, pid, start)  # though they still want to stand
        victim.check()


def births_come_and_go(victim: Victim, address: Address, pid: int) -> None:
    before, answers = victim.descriptors(pid), list[str]()
    for _ in range(5):
        with (
            RawPeer(address, victim.security, connections=500) as one,
            RawPeer(address, victim.security, connections=500) as other,
        ):
            for crowd in (one, other):
                for _ in range(500):
                    crowd.hello(victim.greeting())
                answers += crowd.answers(500)
            victim.serve()
            assert victim.descriptors(pid) <= before + 1_000 + UNDER_WAY
        given_back(victim, pid, before)
    welcome = answers.count("welcome")
    print(f"{welcome} were welcome")
    assert welcome > 2_000, "handshakes that take longer than 3 s, on a machine that has much to do, come to nothing"


# ------------------------------------------------------------------ peers who greeted well, and take more than they give


def flood(peer: RawPeer, session: int, operation: Operation, count: int, first: int = 1) -> None:
    """So many of that operation, in frames as full as they may be. Numbers of requests may repeat."""
    wires = [messages.to_wire(operation)] * BATCH_OPERATIONS
    for number in range(first, first + -(-count // BATCH_OPERATIONS)):
        peer.send(*map(bytes, messages.encode_data(session, number, 0, wires)))


def farewell(peer: RawPeer) -> Bye:
    """What it is told in the end."""
    while (frame := peer.next(PATIENCE)) is not None:
        if isinstance(frame, Bye):
            return frame
    raise AssertionError("it was not told why it is cut off")


def test_who_asks_and_does_not_take_its_answers_is_cut_off(victim: Victim) -> None:
    with victim.within(320), RawPeer(victim.doors[0], victim.security) as peer:
        greeting = peer.greet(victim)
        flood(peer, greeting.resume, Request(1, 77, "alive", {}), 300_000)
        until(lambda: warnings(victim, "does not take its answers"), "it is cut off")


def test_who_reads_files_and_takes_none_costs_some_pieces(victim: Victim) -> None:
    (victim.directory / "files-ada" / "large").write_bytes(bytes(64 * MIB))
    before = victim.rss()
    with victim.within(96), RawPeer(victim.doors[0], victim.security) as peer:
        greeting = peer.greet(victim)
        peer.operations(greeting, 1, Request(1, 0, "fetch", {"number": 1, "name": "large"}))
        [[_, digest, size, _]] = packing.unpack(peer.reply().body[0])
        for number in range(2, 66):
            reads = [Request(piece, 0, "read", {"digest": digest, "size": size, "piece": piece}) for piece in range(64)]
            peer.operations(greeting, number, *reads)
        until(lambda: victim.rss() > before + PIECES_OWED / 2, "so much as may wait has been read for it")
        for _ in range(5):
            victim.serve()


def test_who_asks_what_is_never_answered_is_told_at_a_limit(victim: Victim) -> None:
    with victim.within(400, victim.client_pid), RawPeer(door(victim.client_address), victim.security) as peer:
        greeting = peer.greet(victim)
        body = [b"x"]
        flood(peer, greeting.resume, Request(1, victim.deaf, "ask", {}, body), MAX_UNDER_WAY + 4 * BATCH_OPERATIONS)
        answer = peer.reply()
        assert not answer.ok and answer.value[0] == "Overloaded" and "wait here for their answers" in answer.value[1]
        victim.serve()


def test_who_does_not_heed_that_a_mailbox_is_full_is_cut_off(victim: Victim) -> None:
    with victim.within(384, victim.client_pid), RawPeer(door(victim.client_address), victim.security) as peer:
        greeting = peer.greet(victim)
        flood(peer, greeting.resume, Message(victim.deaf, [b"x" * 64]), OVERRUN_MESSAGES + 50_000)
        assert "is full, which was told" in farewell(peer).reason
        victim.serve()


def test_who_says_of_made_up_mailboxes_that_they_are_full_is_cut_off(victim: Victim) -> None:
    with victim.within(32), RawPeer(victim.doors[0], victim.security) as peer:
        greeting = peer.greet(victim)
        for number in range(1, MAX_FULL // 500 + 2):
            holds = [Hold(number * 500 + each, True) for each in range(500)]
            peer.operations(greeting, number, *holds)
        assert f"more than {MAX_FULL} full mailboxes" in farewell(peer).reason
