"""The TCP connection between two processes is cut again and again while messages stream both ways: none is lost, doubled or
moved.

Both processes believe that they dial each other directly; every dial goes through a proxy of the test, which cuts.
"""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines
from tests.support.proxy import Proxy

pytestmark = [pytest.mark.system]

CUTS = 10
INTACT = {"lost": 0, "twice": 0, "reordered": 0, "torn": 0, "notice": "normal"}

# One of the two processes. SIDE, OTHER, COUNT, SIZES, REST and PEERS stand before it. The exit notice of the source comes last.
SIDE = """
import asyncio, random
from discoro.transport import Transport

dial, through = Transport.dial, {}
Transport.dial = lambda self, address: dial(self, through.get(address, "127.0.0.1:1"))  # where nobody listens

def content(number):
    return bytes([number % 256]) * SIZES[number % len(SIZES)]

async def source(coro=None):
    other = await coro.locate("sink of " + OTHER, timeout=10)
    other.send(coro)
    assert await coro.receive(10) == "begin"
    for number in range(COUNT):
        message = number, content(number)
        try:
            other.send(message)
        except discoro.Overloaded:
            await other.deliver(message)
        if number % 64 == 0:
            await coro.sleep(0)

async def sink(coro=None):
    await coro.register("sink of " + SIDE)
    other = await coro.receive(10)
    await coro.monitor(other)
    await other.deliver("begin")  # not send: our own source may have filled the link already
    got, torn = [], 0
    while not isinstance(message := await coro.receive(20), discoro.ExitNotice | None):  # None: 20 s of nothing
        got.append(message[0])
        torn += message[1] != content(message[0])
        if len(got) % (COUNT // 11) == 0:
            say("progress", len(got))
        if len(got) % 64 == 0 and REST:
            await coro.sleep(REST)
    lost, twice = COUNT - len(set(got)), len(got) - len(set(got))
    reordered = sum(a > b for a, b in zip(got, got[1:]))
    reason = message.reason if message else "none came"
    say("figures", {"lost": lost, "twice": twice, "reordered": reordered, "torn": torn, "notice": reason})

async def main():
    through.update(told())
    async with discoro.Mesh(name=SIDE, mdns=False, ip_addr=["127.0.0.1"], peers=PEERS) as mesh:
        say("address", mesh.addresses[0])
        through.update(await asyncio.to_thread(told))
        both = [discoro.Coro(sink), discoro.Coro(source)]
        for each in both:
            await each.result()
        say("done")
        await asyncio.to_thread(told)

asyncio.run(main())
"""


def start(machines: Machines, proxy: Proxy, count: int, sizes: list[int], rest: float) -> tuple[Command, Command]:
    """Both processes, ready to stream: right dials left; after a cut, both dial."""

    def side(name: str, other: str, peers: list[str]) -> Command:
        constants = {"SIDE": name, "OTHER": other, "COUNT": count, "SIZES": sizes, "REST": rest, "PEERS": peers}
        return machines.program(name, "\n".join(f"{key} = {value!r}" for key, value in constants.items()) + SIDE)

    left = side("left", "right", [])
    left.tell({})
    left_address = left.next("address", 10)
    right = side("right", "left", [left_address])
    right.tell({left_address: proxy.in_front_of(left_address)})
    right_address = right.next("address", 10)
    left.tell({right_address: proxy.in_front_of(right_address)})
    right.tell({})
    return left, right


def stream(
    directory: Path, count: int, sizes: list[int], *, rest: float = 0.0, again: int = 0
) -> tuple[list[object], list[int], float]:
    """Stream `count` messages each way under ten cuts: what each side got, the connections cut, and the seconds."""
    with Machines(directory) as machines, Proxy() as proxy:
        left, right = start(machines, proxy, count, sizes, rest)
        begun = time.monotonic()
        cut = []
        for _ in range(CUTS):
            right.next("progress", 30)
            cut.append(proxy.cut(again, wait=10))
        figures: list[object] = [last(side, "figures") for side in (left, right)]
        seconds = time.monotonic() - begun
        for each in (left, right):
            each.next("done", 20)
        for each in (left, right):
            each.tell("leave")
        left.succeed(10)
        right.succeed(10)
    return figures, cut, seconds


def last(side: Command, kind: str) -> object:
    """The value of its next event of that kind, whatever progress it tells before."""
    while (event := side.event(30))[0] != kind:
        assert event[0] == "progress", event
    return event[1]


def test_ten_cuts_during_100_000_messages_each_way(tmp_path: Path) -> None:
    figures, cut, seconds = stream(tmp_path, 100_000, [0, 8, 64])
    print(f"100,000 messages each way in {seconds:.1f} s, connections cut {cut}: {figures}")
    assert figures == [INTACT, INTACT]
    assert len(cut) == CUTS and all(cut), "each cut met a connection"


def test_ten_cuts_during_messages_of_all_sizes(tmp_path: Path) -> None:
    """Large ones travel in pieces, and small ones pass between the pieces of others; never within one stream."""
    figures, cut, seconds = stream(tmp_path, 2_200, [0, 100, 70_000, 300_000, 10, 1_500_000, 33_000])
    print(f"2,200 messages of up to 1.5 MB each way in {seconds:.1f} s, connections cut {cut}: {figures}")
    assert figures == [INTACT, INTACT]
    assert all(cut)


@pytest.mark.parametrize(("count", "sizes"), [(40_000, [0, 8]), (1_100, [300_000, 10])], ids=["by number", "by bytes"])
def test_ten_cuts_while_mailboxes_are_full(tmp_path: Path, count: int, sizes: list[int]) -> None:
    """The receivers rest: messages are held at the senders, and sent on when there is room again."""
    figures, cut, seconds = stream(tmp_path, count, sizes, rest=0.05 if count < 10_000 else 0.005)
    print(f"{count} messages of {sizes} bytes each way to full mailboxes in {seconds:.1f} s, connections cut {cut}: {figures}")
    assert figures == [INTACT, INTACT]
    assert all(cut)


def test_cuts_that_also_meet_the_next_handshakes(tmp_path: Path) -> None:
    """A connection that breaks in its handshake says nothing of who is there: a peer that was met is not given up for it."""
    figures, cut, seconds = stream(tmp_path, 100_000, [8], again=4)
    print(f"100,000 messages each way in {seconds:.1f} s, connections cut {cut}, and four handshakes after each: {figures}")
    assert figures == [INTACT, INTACT]
    assert len(cut) == CUTS and all(cut)
