"""The asyncoro page between machines: namespaces on one switch, the real commands, and what goes wrong on a network."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.support.commands import Machines
from tests.support.netns import needs_namespaces

pytestmark = [pytest.mark.system, needs_namespaces]

FIRST_PROGRAM = """
import discoro

def compute(n, coro=None):
    yield coro.sleep(0.1)
    return n * n

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(compute)
    yield computation.setup(server)
    remote = yield computation.run(server, 7)
    print(remote, (yield remote.result()))
    yield computation.close(server)

discoro.run(client)
"""

# Everything of the page, at one slot of each node, and messages in every direction.
WHOLE_PAGE = """
import os

def prepare(value):
    global prepared
    prepared = value

def forget():
    global prepared
    del prepared

def talk(name, client, coro=None):
    client.send(["here", name, prepared])
    heard = None
    for _ in range(2):  # from two senders, in either order: the other's reference, and the other's greetings
        message = yield coro.receive()
        if isinstance(message, discoro.CoroRef):
            message.send(["greetings from", name])
        else:
            heard = message
    client.send(["heard", name, heard])
    yield coro.receive()
    return name * 2

def refused(operation):
    try:
        yield operation
    except discoro.NotSetUp:
        return True
    return False

def client(coro=None):
    servers = yield discoro.servers()
    say("servers", sorted(server.name for server in servers))
    chosen = {server.name: server for server in servers}
    computation, remotes = discoro.Computation(talk), {}
    for name, server in chosen.items():
        assert (yield computation.setup(server, func=prepare, args=[name.upper()])) == 0
        assert (yield computation.ping(server)) == 0
        remotes[name] = yield computation.run(server, name, coro)
        assert (yield coro.monitor(remotes[name])) == 0
    say("here", sorted([(yield coro.receive()), (yield coro.receive())]))
    remotes["a"].send(remotes["b"])
    remotes["b"].send(remotes["a"])
    say("heard", sorted([(yield coro.receive()), (yield coro.receive())]))
    for remote in remotes.values():
        remote.send("end")
    notices = [(yield coro.receive()), (yield coro.receive())]
    say("notices", sorted([notice.ref.name, notice.reason, notice.value] for notice in notices))
    assert {notice.ref for notice in notices} == set(remotes.values())
    say("results", [(yield remotes["a"].result()), (yield remotes["b"].result())])
    for server in chosen.values():
        assert (yield computation.close(server, func=forget)) == 0
        assert (yield from refused(computation.run(server, "x", coro)))
        assert (yield from refused(computation.ping(server)))
    say("pid", os.getpid())

discoro.run(client, **OPTIONS)
"""

ONE_RUN = """
def square(n, coro=None):
    yield
    return n * n

def client(coro=None):
    server = yield discoro.Coro.locate(NAME, timeout=10)
    computation = discoro.Computation(square)
    assert (yield computation.setup(server)) == 0
    assert (yield computation.ping(server)) == 0
    remote = yield computation.run(server, 9)
    say("ran", [remote.name, (yield remote.result())])
    assert (yield computation.close(server)) == 0

discoro.run(client)
"""


def check_whole_page(machines: Machines, **more: object) -> None:
    """The page's four methods at two nodes, a and b of two slots each, from c."""
    options, environment = more.get("options", {}), more.get("environment", {})
    assert isinstance(environment, dict)
    program = machines.program("c", f"OPTIONS = {options!r}\n{WHOLE_PAGE}", **environment)
    assert program.next("servers", 10) == ["a", "a", "b", "b"]
    assert program.next("here", 5) == [["here", "a", "A"], ["here", "b", "B"]]
    heard = [["heard", "a", ["greetings from", "b"]], ["heard", "b", ["greetings from", "a"]]]
    assert program.next("heard", 5) == heard
    assert program.next("notices", 5) == [["a", "normal", "aa"], ["b", "normal", "bb"]]
    assert program.next("results", 5) == ["aa", "bb"]
    program.next("pid", 5)
    program.succeed(5)


def test_the_first_program_finds_a_node_on_another_machine(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "1")
        machines.node("b", "-c", "1")
        program = machines.program("c", FIRST_PROGRAM)
        who, value = program.line(10).decode().split()
        assert who[:2] in ("a/", "b/") and value == "49"
        program.succeed(5)
        assert program.output == ""


def test_the_whole_page_at_two_nodes_found_by_mdns(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "2")
        machines.node("b", "-c", "2")
        check_whole_page(machines)


@pytest.mark.parametrize("way", ["option", "environment"])
def test_without_multicast_one_peer_leads_to_both_nodes(tmp_path: Path, way: str) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        assert machines.lan is not None
        machines.lan.drop_multicast()
        one = machines.node("a", "-c", "2")
        machines.node("b", "-c", "2", "--peer", one.address)
        if way == "option":
            check_whole_page(machines, options={"peers": [one.address]})
        else:
            check_whole_page(machines, environment={"DISCORO_PEERS": one.address})


OWN_SERVER = """
def main(coro=None):
    server = discoro.Coro(discoro.discoro_server, name="mine")
    say("started")
    yield server.result()

discoro.run(main)
"""

# Ask until the name is gone; how long that took.
UNTIL_GONE = """
def main(coro=None):
    begun = time.monotonic()
    yield discoro.servers()
    while True:
        try:
            yield discoro.Coro.locate("mine", timeout=0.2)
        except discoro.Timeout as error:
            say("gone", [time.monotonic() - begun, str(error)])
            return
        yield coro.sleep(0.05)

discoro.run(main)
"""


def test_a_server_in_a_process_of_ones_own_is_found_through_a_node(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "1")
        own = machines.program("b", OWN_SERVER)
        own.next("started", 10)
        client = machines.program("c", f"NAME = 'mine'\n{ONE_RUN}")
        assert client.next("ran", 10)[1] == 81
        client.succeed(5)
        own.kill()
        seconds, text = machines.program("c", UNTIL_GONE).next("gone", 10)
        assert seconds < 5, "a name is gone with the link of who registered it"
        assert "nobody registered 'mine'" in text and text.endswith("nodes asked: a")
        print(f"a killed process's name was gone after {seconds:.2f} s")


LOCATE = """
def main(coro=None):
    begun = time.monotonic()
    try:
        found = yield discoro.Coro.locate({name!r}, timeout={timeout})
    except discoro.DiscoroError as error:
        say(type(error).__name__, [time.monotonic() - begun, str(error)])
    else:
        say("found", found.name)

discoro.run(main, discover_timeout=1.5, **(OPTIONS if "OPTIONS" in globals() else {{}}))
"""


def test_no_node_says_what_was_tried_and_what_to_type(tmp_path: Path) -> None:
    with Machines(tmp_path, ["c"]) as machines:
        program = machines.program("c", LOCATE.format(name="discoro_server", timeout=None))
        seconds, text = program.next("NoNodes", 10)
        assert 1.5 <= seconds < 2.5
        for words in ('cluster "default"', str(machines.key_file), "listened on eth0 10.77.0.1", "no node was heard"):
            assert words in text
        for words in ("discoro-node", "--peer HOST", "DISCORO_PEERS", "local=True"):
            assert words in text
        program.succeed(5)


def test_an_unknown_name_times_out_naming_who_was_asked(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "b", "c"]) as machines:
        machines.node("a", "-c", "1")
        machines.node("b", "-c", "1")
        program = machines.program("c", LOCATE.format(name="nobody", timeout=3.0))
        seconds, text = program.next("Timeout", 10)
        assert 3.0 <= seconds < 3.5
        assert "'nobody'" in text and "in 3 s" in text
        asked = text.partition("nodes asked: ")[2].split(", ")
        assert sorted(asked) == ["a", "b"]
        program.succeed(5)


def refused_text(machines: Machines, host: str, options: dict[str, object], key_file: Path | None = None) -> str:
    """What NoNodes says to a client with these options, which finds nothing that it can use."""
    source = f"OPTIONS = {options!r}\n{LOCATE.format(name='discoro_server', timeout=None)}"
    program = machines.program(host, source, key_file=key_file)
    seconds, text = program.next("NoNodes", 10)
    program.succeed(5)
    assert isinstance(text, str) and seconds < 2.5
    return text


@pytest.mark.parametrize("way", ["mdns", "peer"])
def test_another_key_is_refused_in_words(tmp_path: Path, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        options = {"peers": [node.address], "mdns": False} if way == "peer" else {}
        text = refused_text(machines, "c", options, key_file=tmp_path / "another.key")
        assert "10.77.0.1:27400" in text
        assert "another key" in text or "key differs" in text


@pytest.mark.parametrize("way", ["mdns", "peer"])
def test_another_cluster_is_refused_in_words(tmp_path: Path, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        where = {"peers": [node.address], "mdns": False} if way == "peer" else {}
        text = refused_text(machines, "c", {"cluster": "other", **where})
        assert "10.77.0.1:27400" in text
        assert "'default'" in text and "'other'" in text


@pytest.mark.parametrize("way", ["mdns", "peer"])
@pytest.mark.parametrize("who", ["node", "client"])
def test_an_open_side_and_one_with_a_key_refuse_each_other_in_words(tmp_path: Path, who: str, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1", *(["--open"] if who == "node" else []))
        options = {"peers": [node.address], "mdns": False} if way == "peer" else {}
        text = refused_text(machines, "c", {**options, "open": who == "client"})
        assert "10.77.0.1:27400" in text
        assert "open" in text.partition("\n")[2].partition("  try ")[0]


OTHER_PYTHON = """
class Version(tuple):
    major, minor = 3, 12

sys.version_info = Version((3, 12, 0, "final", 0))  # after all imports: to everybody it meets, this process runs 3.12
"""


@pytest.mark.parametrize("way", ["mdns", "peer"])
def test_another_python_is_refused_in_words(tmp_path: Path, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        options = {"peers": [node.address], "mdns": False} if way == "peer" else {}
        source = f"OPTIONS = {options!r}\n{OTHER_PYTHON}{LOCATE.format(name='discoro_server', timeout=None)}"
        program = machines.program("c", source)
        text = program.next("NoNodes", 10)[1]
        program.succeed(5)
        assert "10.77.0.1:27400" in text
        assert "Python 3.11" in text and "3.12" in text and "same minor version" in text


WAITS = """
def wait(coro=None):
    yield coro.sleep(100)

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(wait)
    yield computation.setup(server)
    remote = yield computation.run(server)
    yield coro.monitor(remote)
    say("waiting", remote.pid)
    try:
        yield remote.result()
    except discoro.PeerLost as error:
        say("lost", [time.monotonic(), str(error)])
    notice = yield coro.receive()
    say("notice", [time.monotonic(), notice.reason, notice.ref == remote])
    try:
        yield computation.ping(server)
    except discoro.PeerLost as error:
        say("ping", [time.monotonic(), str(error)])
    say("more", (yield coro.receive(0)))

discoro.run(client)
"""


def test_a_killed_node_is_told_within_a_second(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        client = machines.program("c", WAITS)
        client.next("waiting", 10)
        at = node.kill()
        times = {}
        times["lost"], text = client.next("lost", 5)
        times["notice"], reason, same = client.next("notice", 5)
        times["ping"], ping_text = client.next("ping", 5)
        assert client.next("more", 5) is None, "one notice and no more"
        client.succeed(5)
        assert reason in ("peer lost", "worker lost") and same
        assert "a/" in text and "setup again" in ping_text
        took = {what: round(when - at, 3) for what, when in times.items()}
        print(f"told after the kill, in seconds: {took}")
        assert max(took.values()) < 1.0, took


# Numbered messages, as many each way, between two coroutines here and two there; the cut comes when a tenth has arrived.
STREAMS = """
COUNT = 10_000

def source(coro, other, count):
    for number in range(count):
        other.send(number)
        if number % 25 == 0:
            yield coro.sleep(0.01)  # about 2,000 a second: the stream outlasts the cut
    other.send(None)

def sink(coro, count, milestone):
    got = []
    while (number := (yield coro.receive(15))) is not None:  # None: the end, or 15 s of nothing
        got.append(number)
        if milestone is not None and len(got) == count // 10:
            milestone.send("under way")
    lost, twice = count - len(set(got)), len(got) - len(set(got))
    return {"lost": lost, "twice": twice, "reordered": sum(a > b for a, b in zip(got, got[1:]))}

def part(role, *args, coro=None):
    return (yield from (source if role == "source" else sink)(coro, *args))

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(part, depends=[source, sink])
    yield computation.setup(server)
    here = discoro.Coro(part, "sink", COUNT, coro)
    there = yield computation.run(server, "sink", COUNT, None)
    sources = [discoro.Coro(part, "source", there, COUNT), (yield computation.run(server, "source", here.ref, COUNT))]
    yield coro.receive()
    say("cut now")
    yield coro.sleep(SECONDS)
    say("heal now")
    say("figures", [(yield here.result()), (yield there.result())])
    for each in sources:
        yield each.result()
    yield computation.close(server)

discoro.run(client)
"""


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [1.0, 3.0, 6.0])
def test_a_cable_pulled_for_seconds_loses_doubles_and_reorders_nothing(tmp_path: Path, seconds: float) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        assert machines.lan is not None
        machines.node("a", "-c", "1")
        client = machines.program("c", f"SECONDS = {seconds}\n{STREAMS}")
        client.next("cut now", 20)
        machines.lan.cut("a")
        client.next("heal now", 20)
        machines.lan.heal("a")
        figures = client.next("figures", 30)
        client.succeed(10)
        print(f"cut for {seconds} s during 10,000 messages each way: {figures}")
        assert figures == [{"lost": 0, "twice": 0, "reordered": 0}] * 2


LONG_CUT = """
import asyncio

def wait(coro=None):
    yield coro.sleep(100)
    return "never"

def soon(coro=None):
    yield
    return "again"

def client(coro=None):
    server = yield discoro.Coro.locate("discoro_server")
    computation = discoro.Computation(wait)
    yield computation.setup(server)
    remote = yield computation.run(server)
    yield coro.monitor(remote)
    say("waiting")
    try:
        yield remote.result()
    except discoro.PeerLost as error:
        say("lost", [time.monotonic(), str(error)])
    notice = yield coro.receive()
    say("notice", [notice.reason, notice.ref == remote])
    yield asyncio.to_thread(told)
    again = discoro.Computation(soon)
    server = yield discoro.Coro.locate("discoro_server", timeout=20)
    yield again.setup(server)
    say("again", (yield (yield again.run(server)).result()))
    yield again.close(server)
    say("more", (yield coro.receive(0)))

discoro.run(client, peer_timeout=3.0)
"""


@pytest.mark.slow
def test_a_cut_longer_than_the_peer_timeout_is_told_once_and_healed_afterwards(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        assert machines.lan is not None
        machines.node("a", "-c", "1")
        client = machines.program("c", LONG_CUT)
        client.next("waiting", 10)
        at = time.monotonic()
        machines.lan.cut("a")
        when, text = client.next("lost", 15)
        assert client.next("notice", 5) == ["peer lost", True]
        print(f"told {when - at:.2f} s after the cut: {text}")
        assert 3.0 < when - at < 8.0, "3 s after the heartbeat noticed, which takes 3 to 4 s"
        assert "unreachable" in text
        machines.lan.heal("a")
        client.tell("healed")
        assert client.next("again", 25) == "again"
        assert client.next("more", 5) is None, "one notice and no more"
        client.succeed(5)
