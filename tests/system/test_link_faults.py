"""Cables, switches and radio between two machines: what is promised holds while they fail, and after they are healed.

All scenarios run at the same time, each between two hosts of its own: nearly all of their time is waiting. Each process writes
what it sees into an event log; `event_log.judge` proves the promises from the logs when all is over.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.support.commands import Command, Machines
from tests.support.event_log import EventLog, Verdict, judge, read
from tests.support.netns import Lan, needs_namespaces

pytestmark = [pytest.mark.system, pytest.mark.slow, needs_namespaces]

BULK = 20_000_000  # bytes

# One of two processes. SIDE, OTHER, PEERS, LOG, TIMEOUT and BULK stand before it. A stream of numbers goes to the other until
# the test says so or its loss is told; after that there is a second stream, between the same two coroutines.
SIDE = """
import asyncio
from tests.support.event_log import EventLog

log = EventLog(LOG)

def key(ref):
    return [ref.birth, ref.id]

async def source(coro=None):
    sink = await coro.locate("sink of " + OTHER, timeout=60)
    sink.send(("begin", coro.ref))
    await coro.monitor(sink)
    log.add("monitors", key(coro.ref), key(sink))
    number = 0
    while (word := await coro.receive(0.04)) != "finish":
        if isinstance(word, discoro.ExitNotice):
            log.add("noticed", key(coro.ref), key(word.ref), word.reason)
            say("noticed", word.reason)
            assert await coro.receive() == "again"  # the way is free again
            await coro.monitor(sink)
            log.add("monitors", key(coro.ref), key(sink))
            number = 1_000_000
        for _ in range(4):
            log.add("sent", key(coro.ref), key(sink), number)
            sink.send((number, b"x" * 20))
            number += 1
        if number == 40:
            say("streaming")
    await sink.deliver(("end", None), 60)
    log.add("ended", key(coro.ref), "normal")

async def sink(coro=None):
    await coro.register("sink of " + SIDE)
    word, sender = await coro.receive(60)
    watched = False
    while True:
        if not watched:
            await coro.monitor(sender)
            log.add("monitors", key(coro.ref), key(sender))
            watched = True
        message = await coro.receive(100)
        if isinstance(message, discoro.ExitNotice):
            log.add("noticed", key(coro.ref), key(message.ref), message.reason)
            if message.reason == "normal":
                break
            message, watched = await coro.receive(100), False  # the way is free again
        if message[0] != "end":
            log.add("received", key(coro.ref), key(sender), message[0])
    log.add("lives", key(coro.ref))

async def heavy(coro=None):
    await coro.register("heavy of " + SIDE)
    while await coro.receive() is None:
        other = await coro.locate("heavy of " + OTHER, timeout=20)
        begun = time.monotonic()
        await other.deliver(bytes(BULK), 100)
        say("bulk", [begun, time.monotonic()])

async def main():
    options = {"mdns": False, "peers": PEERS, "peer_timeout": TIMEOUT, "discover_timeout": 60}  # all others start as well
    async with discoro.Mesh(name=SIDE, **options) as mesh:
        me = mesh.me.birth
        mesh._peers.on_ended.append(lambda link: log.add("lost", me, link.birth))
        say("ready", [mesh.addresses[0], me])
        streams, bulk = [discoro.Coro(sink), discoro.Coro(source)], discoro.Coro(heavy)
        while (word := await asyncio.to_thread(told)) != "look":
            (bulk if word is None else streams[1]).send(word)
        for each in streams:
            await each.result()
        log.add("counted", me, mesh.lost_operations + mesh.lost_messages)
        say("done")
        await asyncio.to_thread(told)  # the other may still ask

asyncio.run(main())
"""


class Pair:
    """Two processes on hosts of their own that stream numbers to each other."""

    def __init__(self, machines: Machines, name: str, timeout: float) -> None:
        assert machines.lan is not None
        self.lan: Lan = machines.lan
        self.name, self.hosts = name, (f"{name} left", f"{name} right")
        self._machines, self._timeout = machines, timeout
        self.directory = machines.key_file.parent / name.replace(" ", "-")
        self.directory.mkdir()
        self._log = EventLog(self.directory / "driver.jsonl")
        self.sides: list[Command] = []
        self.births: list[int] = []

    def start(self, which: int) -> None:
        """Left, and when all of these are on their way, right; in the thread of the test, as it alone has the machines."""
        peers = []
        if which == 1:
            address, birth = self.sides[0].next("ready", 60)
            self.births.append(birth)
            peers.append(address)
        names = ("left", "right")
        constants = {"SIDE": names[which], "OTHER": names[1 - which], "PEERS": peers, "TIMEOUT": self._timeout}
        constants |= {"LOG": str(self.directory / f"{names[which]}.jsonl"), "BULK": BULK}
        source = "\n".join(f"{key} = {value!r}" for key, value in constants.items()) + SIDE
        self.sides.append(self._machines.program(self.hosts[which], source))

    def stream(self) -> None:
        """Until numbers flow both ways."""
        self.births.append(self.sides[1].next("ready", 60)[1])
        for side in self.sides:
            side.next("streaming", 60)

    def apart(self, seconds: float) -> None:
        """A fault begins that keeps the two apart for so long."""
        self._log.add("apart", self.births, time.monotonic() + seconds + 1)

    def delays(self, begun: float, ended: float) -> list[float]:
        """The seconds that each number took that right sent in that time."""
        lines = read(self.directory)
        sent = {line[4]: line[1] for line in lines if line[0] == "sent" and line[2][0] == self.births[1]}
        came = {line[4]: line[1] for line in lines if line[0] == "received" and line[3][0] == self.births[1]}
        return [came[number] - at for number, at in sent.items() if begun <= at <= ended and number in came]

    def tell(self, word: str) -> None:
        for side in self.sides:
            side.tell(word)

    def finish(self) -> Verdict:
        """The end of both streams, and what the logs prove."""
        self.tell("finish")
        self.tell("look")
        for side in self.sides:
            side.next("done", 90)
        self.tell("leave")
        for side in self.sides:
            side.succeed(10)
        self._log.add("over")
        return judge(read(self.directory))


def wait(seconds: float) -> None:
    """A fault lasts: that is what is tested."""
    threading.Event().wait(seconds)


# ------------------------------------------------------------------ scenarios: what happens to a pair that streams


def link_down(seconds: float) -> Callable[[Pair], None]:
    def play(pair: Pair) -> None:
        pair.apart(seconds)
        with pair.lan.link_down(pair.hosts[0]):
            wait(seconds)
        wait(1)

    return play


def link_lost(pair: Pair) -> None:
    """30 s, which is longer than the 15 s of the default: each source is told, and streams again once the way is free."""
    pair.apart(30)
    with pair.lan.link_down(pair.hosts[0]):
        wait(30)
    for side in pair.sides:
        assert side.next("noticed", 5) == "peer lost"
    pair.tell("again")
    wait(1)


def deaf(which: int) -> Callable[[Pair], None]:
    def play(pair: Pair) -> None:
        pair.apart(8)
        with pair.lan.deaf(pair.hosts[which]):
            wait(8)

    return play


def loss(share: float) -> Callable[[Pair], None]:
    def play(pair: Pair) -> None:
        with pair.lan.loss(pair.hosts[0], share), pair.lan.loss(pair.hosts[1], share):
            wait(20)

    return play


def delayed(pair: Pair) -> None:
    with pair.lan.delay(pair.hosts[0], 50, reordered=25):
        wait(10)


def slow(pair: Pair) -> None:
    """20 MB over a link that takes 10 s for them: numbers pass between their pieces."""
    with pair.lan.rate(pair.hosts[1], "16mbit"):
        pair.sides[1].tell(None)
        begun, ended = pair.sides[1].next("bulk", 60)
    late = sorted(pair.delays(begun, ended))
    median, most = late[len(late) // 2], late[-1]
    print(f"{pair.name}: 20 MB in {ended - begun:.1f} s; meanwhile a number took {median:.2f} s, at most {most:.2f} s")
    assert ended - begun > 8, "the link was not slow"
    assert most < (ended - begun) / 2, "a number waited for the whole transfer"


SCENARIOS: dict[str, tuple[float, Callable[[Pair], None]]] = {
    "link down for 1 s": (15, link_down(1)),
    "link down for 5 s": (15, link_down(5)),
    "link down for 10 s": (15, link_down(10)),
    "link down for 30 s of 60": (60, link_down(30)),
    "link down for 30 s of 15": (15, link_lost),
    "left hears nothing for 8 s": (15, deaf(0)),
    "right hears nothing for 8 s": (15, deaf(1)),
    "5 percent lost": (15, loss(0.05)),
    "20 percent lost": (15, loss(0.2)),
    "slow under 20 MB": (15, slow),
    "late and out of order": (15, delayed),
}
SOME_LOSE = {"link down for 30 s of 15"}


def played(pair: Pair, play: Callable[[Pair], None]) -> Verdict:
    pair.stream()
    play(pair)
    return pair.finish()


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Future[Verdict]]:
    """What became of each scenario; they were played at the same time."""
    hosts = [f"{name} {side}" for name in SCENARIOS for side in ("left", "right")]
    with Machines(tmp_path_factory.mktemp("links"), hosts) as machines:
        pairs = [Pair(machines, name, timeout) for name, (timeout, _) in SCENARIOS.items()]
        for which in (0, 1):
            for pair in pairs:
                pair.start(which)
        with ThreadPoolExecutor(len(pairs)) as pool:
            futures = {pair.name: pool.submit(played, pair, SCENARIOS[pair.name][1]) for pair in pairs}
    return futures


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_fault_of_the_network_loses_doubles_and_reorders_nothing(verdicts: dict[str, Future[Verdict]], name: str) -> None:
    """Only past `peer_timeout` is something lost, and then everybody is told, it is counted, and nothing of it comes later."""
    verdict = verdicts[name].result()
    print(f"{name}: {verdict}")
    assert not verdict.broken
    assert verdict.figures["sent"] >= 80 and verdict.figures["monitors"] >= 4
    if name in SOME_LOSE:
        missing = verdict.figures["sent"] - verdict.figures["received"]
        assert verdict.figures["links lost"] >= 4 and verdict.figures["counted as lost"] >= missing > 0
    else:
        assert verdict.figures["received"] == verdict.figures["sent"] and not verdict.figures["counted as lost"]
