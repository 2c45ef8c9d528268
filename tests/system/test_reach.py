"""Reaching processes that cannot be dialled, between machines: namespaces on one switch, firewalls that drop what comes in."""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines
from tests.support.netns import needs_namespaces

pytestmark = [pytest.mark.system, needs_namespaces]

CONNECT_TIMEOUT = 2.5  # seconds, in the programs that try in vain

# A client whose coroutine answers each message (from whom, what), until it is told what to return.
HIDDEN = """
def answers(coro=None):
    yield coro.register("hidden")
    say("hidden", repr(coro.ref))
    while True:
        sender, what = yield coro.receive()
        if sender is None:
            return what
        sender.send(what)

discoro.run(answers, name="b")
"""

TALKS = """
def talk(to, coro=None):
    began = time.monotonic()
    to.send((coro.ref, "first"))
    first = yield coro.receive()
    took = time.monotonic() - began
    for number in range(1000):
        to.send((coro.ref, number))
    back = []
    for _ in range(1000):
        back.append((yield coro.receive()))
    assert back == list(range(1000)), back
    delivered = yield to.deliver((coro.ref, "delivered"))
    assert (yield coro.receive()) == "delivered"
    yield coro.monitor(to)
    to.send((None, "the end"))
    notice = yield coro.receive()
    return [first, took, delivered, (yield to.result()), notice.reason, notice.value]
"""

IN_A_WORKER = """
def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server", timeout=10)
    hidden = yield discoro.Coro.locate("hidden", timeout=10)
    computation = discoro.Computation(talk)
    yield computation.setup(server)
    remote = yield computation.run(server, hidden)
    say("talked", (yield remote.result()))
    yield computation.close(server)

discoro.run(client)
"""

IN_A_CLIENT = """
def client(coro=None):
    to = discoro.CoroRef.parse(told())
    say("talked", (yield from talk(to, coro)))

discoro.run(client)
"""

TRIES = """
def client(coro=None):
    to = yield discoro.Coro.locate("hidden", timeout=10)
    say("located")
    told()
    began = time.monotonic()
    for operation in (lambda: to.deliver("m"), lambda: to.result(), lambda: to.ask("m")):
        try:
            yield operation()
        except discoro.Unreachable as error:
            text = str(error)
            say("unreachable", [text, time.monotonic() - began])
        began = time.monotonic()

discoro.run(client, connect_timeout=2.5)
"""


def firewall(machines: Machines, host: str) -> None:
    """Nobody opens a TCP connection to that host any more: what tries is dropped. It opens its own as ever."""
    assert machines.lan is not None
    for tool in ("iptables", "ip6tables"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        try:
            machines.lan.run(host, f"{tool} -A INPUT -p tcp --syn -j DROP")
        except subprocess.CalledProcessError:
            pytest.skip(f"{tool} cannot be used in a namespace here")


def hidden_on(machines: Machines, host: str) -> tuple[Command, str]:
    """A client behind a firewall, and the repr of its coroutine."""
    firewall(machines, host)
    hidden = machines.program(host, HIDDEN)
    return hidden, hidden.next("hidden", 10)


def check_talked(talked: list[object]) -> float:
    first, took, *rest = talked
    assert first == "first" and rest == [1, "the end", "normal", "the end"]
    assert isinstance(took, float) and took < 2.0
    return took


def test_a_worker_and_a_client_behind_a_firewall_that_drops_talk_both_ways(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "1")
        hidden, _ = hidden_on(machines, "b")
        program = machines.program("c", TALKS + IN_A_WORKER)
        took = check_talked(program.next("talked", 20))
        print(f"first answer through dialling back: {took:.3f} s")
        program.succeed(5)
        hidden.succeed(5)


def test_a_client_reaches_another_behind_a_firewall_by_the_repr_of_its_reference(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "1")
        hidden, text = hidden_on(machines, "b")
        program = machines.program("c", TALKS + IN_A_CLIENT)
        program.tell(text)
        took = check_talked(program.next("talked", 20))
        print(f"first answer, the first node found included: {took:.3f} s")
        program.succeed(5)
        hidden.succeed(5)


def test_two_clients_behind_firewalls_are_told_what_was_tried(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        assert machines.lan is not None
        machines.node("a", "-c", "1")
        hidden, _ = hidden_on(machines, "b")
        firewall(machines, "c")
        program = machines.program("c", TRIES)
        program.next("located", 10)
        program.tell("go")
        for _ in range(3):
            text, took = program.next("unreachable", 10)
            assert took < CONNECT_TIMEOUT + 2
            assert f"tried {machines.lan.address('b')}:" in text and "(no answer within 1 s)" in text
            _, asked, back = text.partition(f"asked a (b/{hidden.pid} could not dial back: ")
            assert asked and f"tried {machines.lan.address('c')}:" in back, text  # its link may have waited longer than ours
        program.succeed(5)


def test_a_client_that_was_killed_is_told_in_time(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "1")
        hidden, _ = hidden_on(machines, "b")
        program = machines.program("c", TRIES)
        program.next("located", 10)
        hidden.kill()
        began = time.monotonic()
        program.tell("go")
        for _ in range(3):
            program.next("unreachable", CONNECT_TIMEOUT + 1)
        assert time.monotonic() - began < 3 * (CONNECT_TIMEOUT + 2)
        program.succeed(5)
