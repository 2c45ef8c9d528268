"""The network changes under running processes: addresses come, go and change, a machine sleeps, mDNS is lost or forged.

Numbered messages stream both ways between a client and a worker of a node while it happens; processes keep their births, so a
link that lived goes on: nothing is lost, doubled or moved. What is waited for is always something that a process says; the
seconds that a fault lasts are counted by the client, which sleeps them through among its streams.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.support.commands import BASE_PORT, Command, Machines, NodeCommand
from tests.support.discovery_peer import DiscoveryPeer
from tests.support.netns import Lan, needs_namespaces
from tests.support.nodes import children
from tests.system.test_discovery_lan import pointer

pytestmark = [pytest.mark.system, needs_namespaces]

Fault = Callable[[Lan], AbstractContextManager[None]]
COUNT = 4000  # messages each way
INTACT = {"sent": COUNT, "received": COUNT, "lost": 0, "doubled": 0, "out of order": 0}
SECOND_FIRST = "10.78.0.1"  # addresses on a second network
SECOND_LAST = "10.78.0.3"

# Streams both ways, about 400 messages a second; FAULT seconds long something is wrong with the network, which the test does.
STREAMS = """
COUNT = 4000

def source(coro, other, count):
    for number in range(count):
        other.send(number)
        if number % 20 == 0:
            yield coro.sleep(0.05)
    other.send(None)

def sink(coro, count, milestone):
    got = []
    while (number := (yield coro.receive(25))) is not None:  # None: the end, or 25 s of nothing
        got.append(number)
        if milestone is not None and len(got) == count // 10:
            milestone.send("under way")
    distinct = len(set(got))
    figures = {"sent": count, "received": len(got), "lost": count - distinct, "doubled": len(got) - distinct}
    return figures | {"out of order": sum(a > b for a, b in zip(got, got[1:]))}

def part(role, *args, coro=None):
    return (yield from (source if role == "source" else sink)(coro, *args))

def watch(coro=None):
    mesh = discoro.current_mesh()
    yield mesh.peer_status(coro)
    lost = []
    while (status := (yield coro.receive())) != "end":
        if not status.online:
            lost.append(f"{status.peer}: {status.reason}")
    return lost

def births():
    return sorted(peer.birth for peer in discoro.current_mesh().peers())

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(part, depends=[source, sink])
    yield computation.setup(server)
    here = discoro.Coro(part, "sink", COUNT, coro)
    there = yield computation.run(server, "sink", COUNT, None)
    sources = [discoro.Coro(part, "source", there, COUNT), (yield computation.run(server, "source", here.ref, COUNT))]
    yield coro.receive()
    watcher, before = discoro.Coro(watch), births()
    say("begin")
    if MOVED:  # until everybody that is linked has told of it
        links = discoro.current_mesh().links
        while not all(any(MOVED in address for address in link.addresses) for link in links.values()):
            yield coro.sleep(0.02)
        say("moved")
    yield coro.sleep(FAULT)
    say("end")
    say("figures", [(yield here.result()), (yield there.result())])
    for each in sources:
        yield each.result()
    watcher.send("end")
    say("lost peers", (yield watcher.result()))
    say("same births", births() == before)
    told()
    yield computation.close(server)

discoro.run(client)
"""

VISITOR = """
def square(n, coro=None):
    yield
    return n * n

def client(coro=None):
    began = time.monotonic()
    say("looks")
    server = yield discoro.Coro.locate("discoro_server", timeout=40)
    say("found", time.monotonic() - began)
    computation = discoro.Computation(square)
    yield computation.setup(server)
    say("ran", (yield (yield computation.run(server, 9)).result()))
    yield computation.close(server)

discoro.run(client, discover_timeout=40, **OPTIONS)
"""


def visit(machines: Machines, host: str, **options: object) -> None:
    """A newcomer on that host finds the node and uses it."""
    visitor = machines.program(host, f"OPTIONS = {options!r}\n{VISITOR}")
    visitor.next("looks", 30)
    seconds = visitor.next("found", 60)
    assert visitor.next("ran", 30) == 81
    visitor.succeed(20)
    print(f"a newcomer found the node after {seconds:.1f} s")


class Stream:
    """A node on host a, a client on host c, and the streams between them."""

    def __init__(self, machines: Machines, seconds: float, *options: str, moved: str = "") -> None:
        """The client waits for `seconds`, after its peers have told of an address, `moved`, if that is named."""
        assert machines.lan is not None
        self.machines, self.lan = machines, machines.lan
        self.node: NodeCommand = machines.node("a", "-c", "1", *options)
        self.client: Command = machines.program("c", f"FAULT, MOVED = {seconds}, {moved!r}\n{STREAMS}")
        self.client.next("begin", 30)

    def check(self, what: str) -> None:
        """Everything arrived, once and in order, and nobody was taken for dead."""
        figures = self.client.next("figures", 60)
        print(f"{what}: {figures}")
        assert figures == [INTACT, INTACT]
        assert self.client.next("lost peers", 10) == []
        assert self.client.next("same births", 10) is True

    def end(self) -> None:
        self.client.tell("end")
        self.client.succeed(20)


@contextlib.contextmanager
def under_stream(tmp_path: Path, what: str, fault: Fault, seconds: float, *options: str) -> Iterator[Stream]:
    """The fault under the streams, and what came of these; inside the block it is over, unless it is for good."""
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        stream = Stream(machines, seconds, *options)
        with fault(stream.lan):
            stream.client.next("end", seconds + 30)
        stream.check(what)
        yield stream
        stream.end()


BLIPS: dict[str, tuple[Fault, float]] = {
    "the interface of the node is down": (lambda lan: lan.switched_off("a"), 3.0),
    "the interface of the client is down": (lambda lan: lan.switched_off("c"), 3.0),
    "the adapter of the node is pulled out": (lambda lan: lan.unplugged("a"), 5.0),
    "the adapter of the client is pulled out": (lambda lan: lan.unplugged("c"), 5.0),
    "the node has no address": (lambda lan: lan.without_address("a"), 5.0),
    "the node hears nothing": (lambda lan: lan.deaf("a"), 5.0),
    "the client hears nothing": (lambda lan: lan.deaf("c"), 5.0),
    "mDNS is lost": (lambda lan: lan.deaf("c", "udp"), 8.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", BLIPS)
def test_what_is_over_after_seconds_loses_nothing(tmp_path: Path, what: str) -> None:
    fault, seconds = BLIPS[what]
    with under_stream(tmp_path, f"{what} for {seconds:g} s", fault, seconds) as stream:
        visit(stream.machines, "b")


@pytest.mark.slow
@pytest.mark.parametrize("host", ["a", "c"])
def test_another_address_in_the_middle_of_a_stream_loses_nothing(tmp_path: Path, host: str) -> None:
    """As by DHCP, for good: the streams go on from the new address, and a newcomer finds the node there, by mDNS or by hand."""
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        stream = Stream(machines, 0.0)
        with stream.lan.readdressed(host, "10.77.0.99"):
            stream.client.next("end", 30)
            stream.check(f"{host} has another address")
            visit(machines, "b")
            if host == "a":
                visit(machines, "b", mdns=False, peers=[f"10.77.0.99:{BASE_PORT}"])
                assert f"= the addresses of this process are now 10.77.0.99:{BASE_PORT}" in stream.node.output
            stream.end()


@pytest.mark.slow
def test_a_stream_moves_to_an_interface_that_came_up_when_the_first_one_goes(tmp_path: Path) -> None:
    """Wi-Fi comes up on both, then the cable of the node is pulled for good."""
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        stream = Stream(machines, 0.0, moved=SECOND_FIRST)
        lan = stream.lan
        with lan.further_interface("c", SECOND_LAST), lan.further_interface("a", SECOND_FIRST):
            stream.client.next("moved", 15)  # what is known to nobody cannot be dialled
            with lan.unplugged("a"):
                stream.client.next("end", 30)
                stream.check("the stream moved to another interface")
                stream.end()


@pytest.mark.slow
def test_an_interface_that_comes_up_after_the_start_is_used(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b"]) as machines:
        assert machines.lan is not None
        with machines.lan.unplugged("a"):
            node = machines.node("a", "-c", "1")
            assert node.ready["addresses"] == [f"127.0.0.1:{BASE_PORT}"]
            with machines.lan.unplugged("b"):
                visitor = machines.program("b", f"OPTIONS = {{}}\n{VISITOR}")
                visitor.next("looks", 30)
        print(f"found {visitor.next('found', 60):.1f} s after its start")
        assert visitor.next("ran", 30) == 81
        visitor.succeed(20)


@pytest.mark.slow
def test_an_address_that_was_chosen_is_listened_on_again_and_no_other(tmp_path: Path) -> None:
    @contextlib.contextmanager
    def fault(lan: Lan) -> Iterator[None]:
        with lan.further_interface("a", SECOND_FIRST), lan.without_address("a"):
            yield

    with under_stream(tmp_path, "the chosen address was gone", fault, 5.0, "-i", "10.77.0.1") as stream:
        visit(stream.machines, "b")
        with stream.lan.further_interface("a", SECOND_FIRST), stream.lan.further_interface("b", SECOND_LAST):
            nobody = stream.machines.program("b", REFUSED)
            assert nobody.next("refused", 30).startswith(f"{SECOND_FIRST}:{BASE_PORT}: nothing listens there")
            nobody.succeed(10)
        assert SECOND_FIRST not in stream.node.output


REFUSED = """
import asyncio

async def main():
    async with discoro.Mesh(mdns=False) as mesh:
        while True:
            try:
                await mesh.peer("10.78.0.1:27400", timeout=10)
            except discoro.Unreachable as error:
                if "No route" in str(error) or "unreachable" in str(error):
                    continue  # the new network needs a moment
                say("refused", str(error))
                return

asyncio.run(main())
"""

# Says each peer that comes or goes.
LISTS = """
import asyncio

async def watch(coro=None):
    await discoro.current_mesh().peer_status(coro)
    while True:
        status = await coro.receive()
        if status.peer.role == "node":
            if status.online:  # a link that was never used ends without a word
                await coro.locate("discoro_server", timeout=20)
            say("online" if status.online else "offline", [status.peer.name, str(status.peer.birth), status.reason])

discoro.run(watch, **OPTIONS)
"""


@pytest.mark.slow
def test_a_forged_goodbye_changes_nothing(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        stream = Stream(machines, 3.0)
        witness = DiscoveryPeer(stream.lan, "c")
        assert witness.wait("found", 60)["name"] == "a"
        forger = DiscoveryPeer(stream.lan, "b")
        name = f"a-{forger.wait('found', 60)['node'][:8]}"
        forger.tell("shout", packets=[goodbye(name).hex()])
        forger.wait("shouted", 5)
        end = time.monotonic() + 10
        while "which said goodbye" not in witness.heard():
            assert time.monotonic() < end, "the goodbye was not heard: this test shows nothing"
        stream.client.next("end", 30)
        stream.check("a forged goodbye")
        visit(machines, "b")
        stream.end()


def goodbye(instance: str) -> bytes:
    """The mDNS answer that says that this service is no more (RFC 6762 section 10.1)."""
    packet = bytearray(pointer(instance))
    at = packet.index((4500).to_bytes(4, "big"))
    packet[at : at + 4] = bytes(4)
    return bytes(packet)


@pytest.mark.slow
def test_a_node_started_during_a_cut_is_found_after_it(tmp_path: Path) -> None:
    """By a client that has long asked its last question of the network, and waits for nothing."""
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        assert machines.lan is not None
        client = machines.program("c", f"OPTIONS = {{}}\n{LISTS}")
        machines.node("a", "-c", "1")
        assert client.next("online", 30)[0] == "a"
        with machines.lan.cut_off("b"):
            machines.node("b", "-c", "1")
        began = time.monotonic()
        assert client.next("online", 30)[0] == "b"
        print(f"found {time.monotonic() - began:.1f} s after the cut")


@contextlib.contextmanager
def asleep(lan: Lan, host: str, process: Command) -> Iterator[None]:
    """All of that host stands still, and its interface is down, as in a laptop that sleeps."""
    every = [process.pid, *children(process.pid)]
    for pid in every:
        _signal(pid, signal.SIGSTOP)
    try:
        with lan.switched_off(host):
            yield
    finally:
        for pid in every:
            _signal(pid, signal.SIGCONT)


def _signal(pid: int, number: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


@pytest.mark.slow
@pytest.mark.parametrize("who", [["a"], ["c"], ["a", "c"]], ids=["the node", "the client", "both"])
def test_a_short_sleep_loses_nothing(tmp_path: Path, who: list[str]) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        stream = Stream(machines, 0.0)
        clock = machines.program("b", "say('begun'); time.sleep(6); say('over')")
        clock.next("begun", 60)
        with contextlib.ExitStack() as sleep:
            for host in who:
                sleep.enter_context(asleep(stream.lan, host, stream.node if host == "a" else stream.client))
            clock.next("over", 20)
        stream.client.next("end", 30)
        stream.check(f"asleep for 6 s: {' and '.join(who)}")
        stream.end()


@pytest.mark.slow
def test_after_a_long_sleep_both_agree_and_a_new_link_is_made(tmp_path: Path) -> None:
    """The client lost the node, which slept; that learns of it when it wakes, and the two are linked anew, births as before."""
    with Machines(tmp_path, ["a", "c"]) as machines:
        assert machines.lan is not None
        node = machines.node("a", "-c", "1")
        client = machines.program("c", f"OPTIONS = dict(peer_timeout=3.0)\n{LISTS}")
        name, birth, _ = client.next("online", 30)
        with asleep(machines.lan, "a", node):
            lost, same, reason = client.next("offline", 30)
            assert (lost, same) == (name, birth) and "unreachable" in reason
        began = time.monotonic()
        assert client.next("online", 30)[:2] == [name, birth]
        print(f"linked anew {time.monotonic() - began:.1f} s after the node woke")
        node.until_output(lambda text: "the peer ended the link" in text, 15)
        visit(machines, "c")
