"""A cluster's key is changed while everything runs: nodes, workers and programs follow their key files, nothing is lost, and
who has only the old key is shut out at the end.

Each machine here has a key file of its own, as real ones have. The time of the change is short; what is waited for is always
something that a process says.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from discoro.finding import PORT_RANGE
from discoro.keyfile import KeyFile, key_of_code, read_key_file, write_key_file
from tests.support.commands import Command, Machines, NodeCommand
from tests.support.netns import needs_namespaces

pytestmark = [pytest.mark.system]

KEEP = 6.0  # seconds for which both keys are accepted; a process notices within 2
KEY, NEXT = bytes(range(16)), bytes(range(16, 32))
NOTICED = 20.0  # seconds until something has failed

# Sends numbers to a coroutine on a worker of the node, which sends each back; says what came back so far whenever it is asked.
STREAM = """
import asyncio

async def echo(coro=None):
    while True:
        number, who = await coro.receive()
        await who.deliver(number)

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(echo)
    await computation.setup(server)
    remote = await computation.run(server)
    say("running")
    until, number = asyncio.ensure_future(asyncio.to_thread(told)), 0
    while not until.done():
        await remote.deliver([number, coro], 30)
        assert await coro.receive(30) == number, "lost, doubled or reordered"
        number += 1
    say("echoed", number)
    await computation.close(server)
    say("closed")

discoro.run(client, mdns=False, peers=[NODE])
"""

VISITOR = """
import faulthandler; faulthandler.dump_traceback_later(14)
async def double(n, coro=None):
    return 2 * n

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(double)
    await computation.setup(server)
    remote = await computation.run(server, 21)
    say("got", await remote.result())
    await computation.close(server)

try:
    discoro.run(client, mdns=False, peers=[NODE], discover_timeout=4)
except discoro.NoNodes as error:
    say("none", str(error))
"""


def free_port() -> int:
    """A base port: free, and its second door too."""
    for _ in range(100):
        with socket.create_server(("127.0.0.1", 0)) as one:
            port: int = one.getsockname()[1]
            with contextlib.suppress(OSError, OverflowError), socket.create_server(("127.0.0.1", port + PORT_RANGE)):
                return port
    raise AssertionError("no two free ports")


class Cluster:
    """A node and programs, each machine with a key file of its own."""

    def __init__(self, machines: Machines, directory: Path) -> None:
        self.machines = machines
        self.directory = directory
        self.key = self.file("here")
        self.node: NodeCommand = machines.node("here", "-c", "2", "-p", str(free_port()), key_file=self.key)

    def file(self, machine: str) -> Path:
        return self.directory / machine / "cluster.key"

    def another_machine(self, name: str) -> Path:
        """A copy of the key file as it is now."""
        copy = self.file(name)
        copy.parent.mkdir(mode=0o700)
        shutil.copy(self.key, copy)
        return copy

    def program(self, source: str, key_file: Path, address: str | None = None) -> Command:
        node = f"NODE = {address or self.node.address!r}\n"
        return self.machines.program("client", node + source, key_file=key_file)

    def discoro(self, *arguments: str, key_file: Path, code: str = "") -> str:
        """What the command `discoro` prints."""
        command = [sys.executable, "-m", "discoro.cli.discoro", *arguments, "--key-file", str(key_file)]
        root = Path(__file__).resolve().parents[2]
        done = subprocess.run(command, input=code, capture_output=True, text=True, timeout=20, cwd=root)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def visit(self, key_file: Path, address: str | None = None) -> str:
        """What a program of that machine gets from the node: "42", or why nothing."""
        visitor = self.program(VISITOR, key_file, address)
        _, value = visitor.event(NOTICED)
        visitor.end(NOTICED)
        return str(value)

    def until_said(self, text: str, times: int = 1) -> None:
        """Until the node's log has it."""
        self.node.until_output(lambda output: output.count(text) >= times, NOTICED)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Machines(tmp_path) as machines:
        yield Cluster(machines, tmp_path)


def test_a_key_is_changed_and_nothing_is_lost(cluster: Cluster) -> None:
    followed, forgotten = cluster.another_machine("followed"), cluster.another_machine("forgotten")
    streams = [cluster.program(STREAM, path) for path in (cluster.key, followed)]
    for stream in streams:
        stream.next("running", NOTICED)

    begun = time.time()
    code = cluster.discoro("key", "new", "--keep", f"{KEEP:.0f}s", key_file=cluster.key)
    cluster.discoro("join", "--keep", f"{KEEP:.0f}s", key_file=followed, code=code)
    cluster.until_said("the cluster's key has changed")
    both = read_key_file(cluster.key)
    assert both.following == key_of_code(code) and KEEP - 1 < both.since - begun < KEEP + 10

    fresh = cluster.file("fresh")
    write_key_file(fresh, KeyFile(key_of_code(code)))
    assert cluster.visit(forgotten) == "42", "the old key is accepted meanwhile"
    assert cluster.visit(fresh) == "42", "the new one too, at the second door"

    cluster.until_said("the cluster's key has changed", times=2)
    assert cluster.visit(fresh) == "42"
    assert "another cluster key" in cluster.visit(forgotten), "the old key is accepted no more"

    echoed = []
    for stream in streams:
        stream.tell(None)
        echoed.append(stream.next("echoed", NOTICED))
        stream.next("closed", NOTICED)
        stream.succeed(NOTICED)
    assert min(echoed) > 100, "the streams went on"


def test_a_key_that_may_have_been_seen_is_changed_at_once(cluster: Cluster) -> None:
    left_behind = cluster.another_machine("left-behind")
    stream = cluster.program(STREAM, cluster.key)
    stream.next("running", NOTICED)
    code = cluster.discoro("key", "new", "--now", key_file=cluster.key)
    cluster.until_said("the cluster's key has changed")
    assert "another cluster key" in cluster.visit(left_behind)
    cluster.discoro("join", key_file=left_behind, code=code)
    assert cluster.visit(left_behind) == "42"
    stream.tell(None)
    assert stream.next("echoed", NOTICED) > 10
    stream.next("closed", NOTICED)
    stream.succeed(NOTICED)


def test_a_machine_that_made_its_own_key_joins_without_a_restart(cluster: Cluster) -> None:
    """What everybody does first: start a node on each machine, and wonder."""
    other = cluster.file("other")
    cluster.discoro("key", "show", key_file=other)
    assert "another cluster key" in cluster.visit(other)
    code = cluster.discoro("key", "show", key_file=other)
    cluster.discoro("join", key_file=cluster.key, code=code)
    cluster.until_said("the cluster's key has changed")
    assert cluster.visit(other) == "42"


FOUND_BY_MDNS = VISITOR.replace("mdns=False, peers=[NODE], ", "")


@needs_namespaces
def test_a_new_machine_finds_by_mdns_a_node_whose_key_is_being_changed(tmp_path: Path) -> None:
    """It was given the new code and never had the old one: the node's own port refuses it, its second door does not."""
    old, new = tmp_path / "old" / "cluster.key", tmp_path / "new" / "cluster.key"
    write_key_file(old, KeyFile(KEY, NEXT, time.time() + 1000))
    write_key_file(new, KeyFile(NEXT))
    with Machines(tmp_path, ["a", "b"]) as machines:
        machines.node("a", "-c", "1", key_file=old)
        visitor = machines.program("b", FOUND_BY_MDNS, key_file=new)
        assert visitor.event(NOTICED) == ("got", 42)
        visitor.succeed(NOTICED)
        assert "another cluster key" not in visitor.output
