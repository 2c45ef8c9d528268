"""A coroutine that never receives, in another process: its senders are held, and nobody else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.commands import Machines

pytestmark = [pytest.mark.system]

# A worker has a deaf coroutine and neighbours; all of them share one link with the client. ADDRESS stands before it.
CLIENT = """
import asyncio

def deaf(coro=None):
    yield coro.suspend()

def echo(coro=None):
    while (message := (yield coro.receive())) is not None:
        sender, number = message
        sender.send(number)
    return "echoed"

def part(name, coro=None):
    return (yield from {"deaf": deaf, "echo": echo}[name](coro))

async def fill(to):
    "Until send refuses: the mailbox there is full, and so is the queue for it here."
    count = 0
    while True:
        try:
            to.send(bytes(100))
        except discoro.Overloaded as error:
            return count, str(error)
        count += 1
        if count % 500 == 0:
            await asyncio.sleep(0)

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server", timeout=30)
    computation = discoro.Computation(part, depends=[deaf, echo])
    yield computation.setup(server)
    full = yield computation.run(server, "deaf")
    neighbour = yield computation.run(server, "echo")
    yield coro.monitor(full)
    yield coro.monitor(neighbour)
    say("full", (yield fill(full)))
    pending = asyncio.ensure_future(full.deliver("never"))
    waiting = asyncio.ensure_future(full.result())
    begun = time.monotonic()
    for number in range(2000):
        neighbour.send((coro, number))
    back = []
    for _ in range(2000):
        back.append((yield coro.receive(60)))
    say("neighbour", [back == list(range(2000)), time.monotonic() - begun])
    another = yield computation.run(server, "echo")
    another.send(None)
    say("another", (yield another.result(60)))
    neighbour.send(None)
    notice = yield coro.receive(60)
    say("notice", [notice.ref == neighbour, notice.reason, notice.value])
    say("still held", [pending.done(), waiting.done()])
    begun = time.monotonic()
    say("closed", (yield computation.close(server)))
    notice = yield coro.receive(60)
    say("its notice", [notice.ref == full, notice.reason])
    say("told", [(yield ended(pending)), (yield ended(waiting)), time.monotonic() - begun])
    say("more", (yield coro.receive(0)))

async def ended(future):
    try:
        return str(await asyncio.wait_for(future, 60))
    except discoro.DiscoroError as error:
        return type(error).__name__

discoro.run(client, mdns=False, peers=[ADDRESS])
"""


def test_who_never_receives_holds_its_senders_and_nobody_else(tmp_path: Path) -> None:
    with Machines(tmp_path) as machines:
        node = machines.node("ada", "-c", "1")
        client = machines.program("client", f"ADDRESS = {node.address!r}\n{CLIENT}")
        sent, said = client.next("full", 120)
        assert sent >= 10_000 and "use deliver" in said
        same, seconds = client.next("neighbour", 60)
        assert same, "the neighbour's answers, in order"
        print(f"{sent:,} messages to a coroutine that never receives, then: {said}")
        print(f"2,000 messages to its neighbour and back took {seconds:.2f} s")
        assert client.next("another", 60) == "echoed", "it is started, and its result comes"
        assert client.next("notice", 60) == [True, "normal", "echoed"]
        assert client.next("still held", 60) == [False, False], "deliver waits for room, and result for the end"
        assert client.next("closed", 60) == 0
        assert client.next("its notice", 60) == [True, "computation closed"]
        *told, seconds = client.next("told", 60)
        print(f"who waited was told {told} {seconds:.2f} s after close began")
        assert told == ["NoSuchCoro", "CoroEnded"] and seconds < 10
        assert client.next("more", 5) is None
        client.succeed(10)
