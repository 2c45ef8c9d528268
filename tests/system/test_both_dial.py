"""Two machines dial each other at the same moment, twenty times at once: one link each, and every message in order."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines
from tests.support.netns import needs_namespaces

pytestmark = [pytest.mark.system, needs_namespaces]

MESHES = 20  # on either side: as many pairs dial at once
COUNT = 200

# One of the two processes, with many meshes in it. SIDE, MESHES and COUNT stand before it.
SIDE = """
import asyncio, pathlib

async def pair(coro=None):
    say("ref", coro.ref.to_plain())
    other, at = await refs[coro.ref]
    await asyncio.sleep(at - time.monotonic())
    for number in range(COUNT):
        other.send(number)
        if number % 10 == 9:
            await coro.sleep(0.01)  # while it is decided which of two connections stays
    got = []
    while len(got) < COUNT and (message := await coro.receive(60)) is not None:
        got.append(message)
    return got == list(range(COUNT))

async def one(begun, look, leave):
    async with discoro.Mesh(name=SIDE, mdns=False) as mesh:
        ended = []
        mesh._peers.on_ended.append(ended.append)
        coro = discoro.Coro(pair)
        refs[coro.ref] = asyncio.get_running_loop().create_future()
        begun.append(coro.ref)
        same = await coro.result()
        await look.wait()
        say("pair", [same, len(mesh.peers()), len(ended)])
        await leave.wait()

def connections():
    "To the other host, and both ends are there."
    lines = [line.split() for line in pathlib.Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    lines += [line.split() for line in pathlib.Path("/proc/self/net/tcp6").read_text().splitlines()[1:]]
    return sum(line[3] == "01" and line[1].split(":")[0] != line[2].split(":")[0] for line in lines)

refs = {}

async def main():
    look, leave, begun = asyncio.Event(), asyncio.Event(), []
    meshes = [asyncio.ensure_future(one(begun, look, leave)) for _ in range(MESHES)]
    others, at = await asyncio.to_thread(told)
    for ref, other in zip(begun, others):
        refs[ref].set_result((discoro.CoroRef.from_plain(other), at))
    while await asyncio.to_thread(told) == "connections":
        say("connections", connections())
    look.set()
    await asyncio.to_thread(told)  # the others look as well
    leave.set()
    await asyncio.gather(*meshes)

asyncio.run(main())
"""


def side(machines: Machines, host: str) -> Command:
    return machines.program(host, f"SIDE, MESHES, COUNT = {host!r}, {MESHES}, {COUNT}\n{SIDE}")


def settled(sides: list[Command]) -> list[int]:
    """How many connections each has to the other, once there is one for each pair; for ten seconds at most."""
    end = time.monotonic() + 10
    while True:
        counts = []
        for each in sides:
            each.tell("connections")
            counts.append(each.next("connections", 60))
        if counts == [MESHES, MESHES] or time.monotonic() > end:
            return counts


@pytest.mark.parametrize("way", ["both ways are free", "one direction only"])
def test_both_dial_at_once_and_have_one_link_without_reordering(tmp_path: Path, way: str) -> None:
    """With a firewall at b, what a dials is dropped: the connection that b makes serves both."""
    with Machines(tmp_path, ["a", "b"]) as machines, contextlib.ExitStack() as faults:
        assert machines.lan is not None
        if way == "one direction only":
            faults.enter_context(machines.lan.one_way_firewall("b"))
        sides = [side(machines, host) for host in ("a", "b")]
        refs = [[each.next("ref", 60) for _ in range(MESHES)] for each in sides]
        at = time.monotonic() + 1
        sides[0].tell([refs[1], at])
        sides[1].tell([refs[0], at])
        counts = settled(sides)
        for each in sides:
            each.tell("look")
        pairs = [[each.next("pair", 90) for _ in range(MESHES)] for each in sides]
        for each in sides:
            each.tell("leave")
        for each in sides:
            each.succeed(10)
    print(f"{MESHES} pairs dial at once, {way}: {COUNT} messages each way each in order, connections {counts}")
    assert pairs == [[[True, 1, 0]] * MESHES] * 2, "all messages in order, one link, and none that ended"
    assert counts == [MESHES, MESHES], "one connection for each link"
