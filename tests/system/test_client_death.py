"""Clients that die, at any moment and many times: afterwards the node is as it was before they came.

Real processes, killed by SIGKILL. What a client left behind is seen from outside: the processes that the node started, the
directories that they worked in, the node's memory and its descriptors. Figures are printed (`pytest -s`).
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.soak.load import Sample
from tests.support.commands import Machines
from tests.support.nodes import children, files_below, until_ended

pytestmark = [pytest.mark.system]

WARM = 3  # workers of a node with two slots: one for each, and a spare one
LOST = 60.0  # seconds until something has failed: 5 on a machine that has nothing else to do
CLIENTS = 5  # in one process
# Processes one after another, every other one killed: 3 in the suite; 20, which is a hundred clients, by
# `CLIENT_CROWDS=20 ./bin/test -n 0 -s -o faulthandler_timeout=0 tests/system/test_client_death.py -k many`.
CROWDS = int(os.environ.get("CLIENT_CROWDS", "3"))
MORE = 2 * WARM  # descriptors: warm workers that were only starting when the first were counted have no connections yet
GROWTH = 4096  # KiB that the node may have grown by: a hundred took 1,500, for what it remembers of them and what malloc keeps

# Says when it is at the moment at which it is to be killed.
CLIENT = """
import asyncio, os, pathlib, time

def work(where, pid_file, coro=None):
    pathlib.Path(pid_file).write_text(str(os.getpid()))
    yield coro.register("the work of one that dies")
    coro.reply((yield coro.receive()))
    try:
        yield coro.receive()
        while True:
            pass
    finally:
        pathlib.Path(where).write_text("ended in order")

def for_ever(pid_file):
    pathlib.Path(pid_file).write_text(str(os.getpid()))
    time.sleep(600)

async def client(coro=None):
    server = await coro.locate("discoro_server")
    computation = discoro.Computation(work, depends=["large.bin"])
    if MOMENT == "transfer":
        came = asyncio.Event()
        later = asyncio.ensure_future(computation.setup(server, progress=lambda here, all: came.set()))
        await came.wait()
        say("there")
        await later
    if MOMENT == "setup":
        say("there")
        await computation.setup(server, func=for_ever, args=[PID])
    await computation.setup(server)
    if MOMENT == "close":
        say("there")
        await computation.close(server, func=for_ever, args=[PID])
    ref = await computation.run(server, WHERE, PID)
    await ref.ask("?")
    if MOMENT == "busy":
        await asyncio.to_thread(told)
        await ref.deliver("compute for ever")
    say("there")
    await coro.receive()

discoro.run(client, mdns=False, peers=[NODE], ip_addr=["127.0.0.1"])
"""

# Monitors what the one that dies has created, and tells what it was told.
WATCHER = """
async def watcher(coro=None):
    remote = await coro.locate("the work of one that dies")
    await coro.monitor(remote)
    say("watching")
    say("notice", (await coro.receive()).reason)

discoro.run(watcher, mdns=False, peers=[NODE], ip_addr=["127.0.0.1"])
"""

# Many clients in one process: each has a mesh of its own, and a computation with a coroutine.
CROWD = """
import asyncio, contextlib

def work(coro=None):
    coro.reply((yield coro.receive()))
    yield coro.receive()

async def crowd():
    async with contextlib.AsyncExitStack() as stack:
        for number in range(CLIENTS):
            await stack.enter_async_context(discoro.Mesh(name=f"c{number}", mdns=False, peers=[NODE], ip_addr=["127.0.0.1"]))
            server = await discoro.Coro.locate("discoro_server")
            computation = discoro.Computation(work)
            await computation.setup(server)
            await (await computation.run(server)).ask("?")
        say("there")
        await asyncio.to_thread(told)

asyncio.run(crowd())
"""


def values(**named: object) -> str:
    return "".join(f"{name} = {value!r}\n" for name, value in named.items())


def until(holds: Callable[[], bool], what: str) -> None:
    """Look again, ever more seldom, until that holds: nobody tells of the end of a grandchild."""
    end, pause = time.monotonic() + LOST, 0.01
    while not holds():
        assert time.monotonic() < end, f"{what}: not in {LOST:g} s"
        select.select([], [], [], pause)
        pause = min(2 * pause, 0.5)


def is_as_new(files: Path, workers: int) -> bool:
    """Whether a node has so many workers, with nothing in their directories. Blobs may stay, as many as it has room for."""
    return sum("/worker-" in each for each in files_below(files)) == workers


@pytest.mark.parametrize("moment", ["running", "busy", "transfer", "setup", "close"])
def test_a_client_that_is_killed_leaves_nothing(tmp_path: Path, moment: str) -> None:
    """Its worker ends with its directory, whatever it did; what could end in order did, and whoever monitored it is told."""
    with open(tmp_path / "large.bin", "wb") as large:
        large.truncate(512 << 20 if moment == "transfer" else 1 << 20)
    pid_file, word, files = tmp_path / "pid", tmp_path / "word", tmp_path / "files-node"
    with Machines(tmp_path) as machines:
        node = machines.node("node", "-c", "1")
        told = values(NODE=node.address, MOMENT=moment, WHERE=str(word), PID=str(pid_file))
        client = machines.program("node", told + CLIENT)
        watcher = machines.program("node", told + WATCHER) if moment in ("running", "busy") else None
        if watcher is not None:
            watcher.next("watching", LOST)
            client.tell("go on")
        client.next("there", LOST)
        if moment in ("setup", "close"):
            until(lambda: pid_file.exists() and pid_file.read_text() != "", "func of " + moment)
        began = client.kill()
        if moment != "transfer":  # else it has no worker yet
            until_ended([int(pid_file.read_text())], LOST)
        print(f"killed while {moment}: its worker had ended after {time.monotonic() - began:.2f} s")
        if watcher is not None:
            assert watcher.next("notice", LOST) == ("computation closed" if moment == "running" else "worker lost")
        if moment == "running":
            assert word.read_text() == "ended in order"
        until(lambda: is_as_new(files, 2), "two warm workers, without files")
        print(f"killed while {moment}: nothing of it was left after {time.monotonic() - began:.2f} s")
    assert files_below(files) == []


@pytest.mark.slow
def test_many_clients_come_and_go_and_the_node_is_as_before(tmp_path: Path) -> None:
    """Half of them are killed, half leave without closing: workers, directories, memory and descriptors of the node."""
    with Machines(tmp_path) as machines:
        node, files = machines.node("node", "-c", "2"), tmp_path / "files-node"
        for number in range(CROWDS + 1):
            crowd = machines.program("node", values(NODE=node.address, CLIENTS=CLIENTS) + CROWD)
            crowd.next("there", 5 * LOST)
            assert len(children(node.pid)) >= CLIENTS
            if number % 2:
                crowd.kill()
                crowd.end(LOST)
            else:
                crowd.tell("leave")
                crowd.succeed(LOST)
            until(lambda: len(children(node.pid)) == WARM and is_as_new(files, WARM), "warm workers, and nothing else")
            if number == 0:  # what is imported and opened once is there from now on
                before = Sample.of(node.pid)
        until(lambda: Sample.of(node.pid).files <= before.files + MORE, "no more descriptors than before")
        after = Sample.of(node.pid)
        workers, grown, descriptors = len(children(node.pid)), after.kib - before.kib, after.files - before.files
        print(f"{CROWDS * CLIENTS} clients: {workers} workers, {grown} KiB and {descriptors} descriptors more")
        assert grown < GROWTH
    assert files_below(files) == []
