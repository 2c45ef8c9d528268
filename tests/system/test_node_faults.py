"""A node and its workers under real faults: killed, out of memory, told to leave, on a disk that is full.

Real processes on loopback. What is printed are figures for whoever reads; what is asserted are the promises.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines, NodeCommand
from tests.support.netns import needs_namespaces

pytestmark = pytest.mark.system

CLIENT = """
import gc, os, subprocess, sys
import discoro
from discoro import Computation, Coro, Mesh

def nothing(coro=None):
    yield None
    return os.getpid()

def echo(coro=None):
    while True:
        sender, text = yield coro.receive()
        sender.send((os.getpid(), text))

{functions}

def client(coro=None):
    {body}

discoro.run(client, peers=["{address}"], ip_addr=["127.0.0.1"], mdns=False)
"""


def a_client(machines: Machines, node: NodeCommand, body: str, functions: str = "") -> Command:
    """A program with `client` of this body, which has `computation` and `server` where it asks for them."""
    indented = body.strip("\n").replace("\n", "\n    ")
    return machines.program("client", CLIENT.format(address=node.address, body=indented, functions=functions))


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    with Machines(tmp_path) as made:
        yield made


# Memory.

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="--max-memory is kept on Linux only")
SPEND = """
def large(coro=None):
    yield None
    blocks = []
    while True:
        blocks.append(bytearray(1 << 20))

def small(coro=None):
    yield None
    values = []
    while True:
        values.append([len(values)])

def once(coro=None):
    yield None
    return len(bytearray(1 << 30))
"""
SPENDING = """
server = yield Coro.locate("discoro_server")
beside, spends = Computation(echo, depends=[nothing]), [Computation(each) for each in (large, small, once)]
yield beside.setup(server)
neighbour = yield beside.run(server)
for computation in spends:
    yield computation.setup(server)
for computation in 2 * spends:
    remote = yield computation.run(server)
    try:
        yield remote.result()
    except MemoryError as error:
        say("spent", [remote.pid, error.__notes__])
    neighbour.send((coro.ref, computation.name))
    say("neighbour", (yield coro.receive()))
say("done")
"""


@on_linux
def test_a_worker_at_its_limit_of_memory_raises_in_user_code_and_lives_on(machines: Machines) -> None:
    node = machines.node("node", "-c", "1", "--max-memory", "160m")
    client = a_client(machines, node, SPENDING, SPEND)
    pids = set()
    for name in 2 * ["large", "small", "once"]:
        pid, notes = client.next("spent", 60)
        assert notes[0] == "the worker may take 160 MiB of memory: --max-memory of the node node"
        assert client.next("neighbour", 20) == [pid, name]
        pids.add(pid)
    client.next("done", 5)
    client.succeed(20)
    assert len(pids) == 1


HOARD = """
def hoard(coro=None):
    yield None
    blocks = []
    for size in (1 << 20, 1 << 12, 1 << 6):
        try:
            while True:
                blocks.append(bytearray(size))
        except MemoryError:
            pass
    while True:
        yield coro.receive()
"""
HOARDING = """
server = yield Coro.locate("discoro_server")
computation = Computation(hoard)
yield computation.setup(server)
remote = yield computation.run(server)
try:
    while True:
        yield remote.deliver(bytes(1 << 20))
except discoro.PeerLost:
    pass
try:
    yield computation.ping(server)
except discoro.WorkerLost as error:
    say("lost", str(error))
yield computation.setup(server)
say("again", (yield computation.ping(server)))
"""


@on_linux
def test_who_keeps_all_memory_and_leaves_nothing_for_discoro_loses_the_worker_and_is_told(machines: Machines) -> None:
    node = machines.node("node", "-c", "1", "--max-memory", "160m")
    client = a_client(machines, node, HOARDING, HOARD)
    told = client.next("lost", 60)
    print(told)
    assert "most likely because it reached the 160 MiB that --max-memory lets it have; it held " in told
    assert client.next("again", 20) == 0
    client.succeed(20)


# Leaving.

HOLDING = """
import discoro

def nothing(coro=None):
    yield coro.receive()

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(nothing)
    yield computation.setup(server)
    remote = yield computation.run(server)
    say("set up")
    told()
    remote.send("end")
    yield remote.result()
    yield computation.close(server)
    say("closed")

discoro.run(client)
"""
SEEKING = """
def client(coro=None):
    try:
        yield discoro.Coro.locate("discoro_server")
    except discoro.NoNodes:
        say("none")

discoro.run(client, discover_timeout=2.0)
"""


@needs_namespaces
def test_newcomers_do_not_find_a_node_that_drains_and_its_clients_go_on(tmp_path: Path) -> None:
    with Machines(tmp_path, ["node", "client"]) as machines:
        node = machines.node("node", "-c", "1", "--drain-timeout", "600")
        client = machines.program("client", HOLDING)
        client.next("set up", 20)
        node.process.terminate()
        node.until_output(lambda output: "draining" in output, 10)
        newcomer = machines.program("client", SEEKING)
        newcomer.next("none", 20)
        client.tell("go on")
        client.next("closed", 10)
        assert node.end(20) == 0
        client.succeed(10)
        newcomer.succeed(10)
