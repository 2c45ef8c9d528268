"""The asyncoro page between machines: namespaces on one switch, the real commands, and what goes wrong on a network."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import Command, Machines
from tests.support.discovery_peer import DiscoveryPeer
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


# What a user is told of whoever does not fit: warnings as they come, the error at the end, and after how many seconds each.
TOLD = """
import logging

class Teller(logging.Handler):
    def emit(self, record):
        if "not usable" in record.getMessage():
            say("warned", [time.monotonic() - begun, record.getMessage()])

def main(coro=None):
    try:
        yield discoro.Coro.locate("discoro_server")
    except discoro.NoNodes as error:
        say("NoNodes", [time.monotonic() - begun, str(error)])

logging.getLogger("discoro").addHandler(Teller())
begun = time.monotonic()
discoro.run(main, **{"discover_timeout": 4, **OPTIONS})
"""
SOON = 2.8  # seconds; meant is one, which a machine in peace keeps. The first timeout of libzmq takes 3 s


class Told:
    """What a program was told: `warning`, the first, `text` of the error, and after how many seconds."""

    def __init__(self, program: Command) -> None:
        self.warned, self.warning = program.next("warned", 10)
        while True:
            kind, (self.ended, self.text) = program.event(10)
            if kind == "NoNodes":
                break
        program.succeed(5)
        print(f"after {self.warned:.2f} s: {self.warning}\nafter {self.ended:.2f} s:\n{self.text}")
        too_long = [line for line in self.text.splitlines() if len(line) > 80 and " " in line.strip()]
        assert not too_long, "what has no space is the path of a key"

    def check(self, *words: str, by_peer: bool) -> None:
        """Both the warning, within a second, and the error have these words; by an address alone the error comes as soon."""
        assert self.warned < SOON and (not by_peer or self.ended < SOON)
        for said in (self.warning, self.text):
            for each in words:
                assert each in " ".join(said.split()), f"{each!r} is missing"


def told(machines: Machines, options: dict[str, object], key_file: Path | None = None, more: str = "") -> Told:
    """What a program with these options is told on host c, which finds nothing that it can use."""
    return Told(machines.program("c", f"OPTIONS = {options!r}\n{more}{TOLD}", key_file=key_file))


def by(way: str, address: str) -> dict[str, object]:
    return {"peers": [address], "mdns": False} if way == "peer" else {}


KEY_STEP = "On the machine whose key is to stay run `discoro key show`, on the other `discoro join`"
CLAIM = "By mDNS (not verified) it belongs to cluster 'default', as this side does"


@pytest.mark.parametrize("way", ["mdns", "peer"])
def test_another_key_is_refused_in_words(tmp_path: Path, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        said = told(machines, by(way, node.address), key_file=tmp_path / "another.key")
        said.check("10.77.0.1:27400", "it has another cluster key", KEY_STEP, by_peer=way == "peer")
        if way == "mdns":
            said.check(f"a (10.77.0.1:27400): it has another cluster key. {CLAIM}", by_peer=False)
        assert "mDNS (not" in said.text or way == "peer", "without mDNS nothing is said of what it claims"
        assert "--open" not in said.text and "is open" not in said.text


@pytest.mark.parametrize("way", ["mdns", "peer"])
def test_another_key_of_another_cluster_is_told_as_far_as_it_is_known(tmp_path: Path, way: str) -> None:
    """By mDNS the cluster's name, not verified; by its address the key, since nothing more can be asked."""
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        said = told(machines, {"cluster": "other", **by(way, node.address)}, key_file=tmp_path / "another.key")
        claim = "a (10.77.0.1:27400): by mDNS (not verified) it belongs to cluster 'default', this side to 'other'"
        said.check(claim if way == "mdns" else "10.77.0.1:27400: it has another cluster key", by_peer=way == "peer")


@pytest.mark.parametrize("way", ["mdns", "peer"])
def test_another_cluster_is_refused_in_words(tmp_path: Path, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        said = told(machines, {"cluster": "other", **by(way, node.address)})
        sure = "a belongs to cluster 'default', not to 'other': name the same cluster on both"
        claim = "by mDNS (not verified) it belongs to cluster 'default', this side to 'other': name the same cluster on both"
        said.check("10.77.0.1:27400", claim if way == "mdns" else sure, by_peer=way == "peer")
        assert "another cluster key" not in said.text


@pytest.mark.parametrize("way", ["mdns", "peer"])
@pytest.mark.parametrize("who", ["node", "client"])
def test_an_open_side_and_one_with_a_key_refuse_each_other_in_words(tmp_path: Path, who: str, way: str) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1", *(["--open"] if who == "node" else []))
        said = told(machines, {**by(way, node.address), "open": who == "client"})
        sides = "it is open, this side has a key" if who == "node" else "it has a key, this side is open"
        said.check(f"10.77.0.1:27400{')' * (way == 'mdns')}: {sides}", "both with --open", by_peer=way == "peer")
        assert "another cluster key" not in said.text


OTHER_PYTHON = """
import sys

class Version(tuple):
    major, minor = 3, 12

sys.version_info = Version((3, 12, 0, "final", 0))  # after all imports: to everybody it meets, this process runs 3.12
"""
OTHER_PROTOCOL = """
import discoro.messages
discoro.messages.PROTOCOL_VERSION = 99
"""


@pytest.mark.parametrize("way", ["mdns", "peer"])
@pytest.mark.parametrize(
    ("other", "words"),
    [
        pytest.param(OTHER_PYTHON, ["a runs Python 3.11, c runs 3.12", "Use the same minor version on both"], id="python"),
        pytest.param(OTHER_PROTOCOL, ["a speaks protocol 1, the other side 99: use the same discoro on both"], id="protocol"),
    ],
)
def test_another_version_is_refused_in_words(tmp_path: Path, other: str, words: list[str], way: str) -> None:
    """By the node itself, whichever way it was found: what mDNS says is not needed for it."""
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        said = told(machines, {"name": "c", **by(way, node.address)}, more=other)
        said.check("10.77.0.1:27400", *words, by_peer=way == "peer")
        assert "mDNS (not" not in said.text and "key" not in said.text.partition("10.77.0.1:27400")[2].partition("  try  ")[0]


SAYS_NOTHING = "it accepts connections and says nothing: hung, stopped, or not discoro"
SERVICES = {
    "web": ("import http.server; http.server.test(port=7000)", SAYS_NOTHING),  # it waits for a line, and gets none
    "ssh": ("s.accept()[0].sendall(b'SSH-2.0-dropb\\r\\n')", "something else than discoro answers there: 'SSH-2.0-dropb'"),
    "hangs up": ("s.accept()[0].close()", "it hangs up on whoever connects"),
    "nothing": ("import time; time.sleep(100)", "nothing listens there (connection refused)"),
}


@pytest.mark.parametrize("what", SERVICES)
@pytest.mark.parametrize("way", ["peer", "peer of an open side", "mdns"])
def test_what_is_no_node_is_told_from_one(tmp_path: Path, what: str, way: str) -> None:
    """By mDNS: an advert that leads there, as a node leaves behind that was killed, or somebody forges."""
    with Machines(tmp_path, ["a", "c"]) as machines:
        assert machines.lan is not None
        source, words = SERVICES[what]
        if source.startswith("s."):
            source = f"import socket\ns = socket.create_server(('', 7000))\nk = []\nwhile True: k.append({source})"
        service = machines.lan.popen("a", [sys.executable, "-c", source], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        reach = "import socket; socket.create_connection(('10.77.0.1', 7000)).close()"
        while what != "nothing" and machines.lan.popen("c", [sys.executable, "-c", reach], stderr=subprocess.DEVNULL).wait():
            assert service.poll() is None
        options: dict[str, object] = {"peers": ["10.77.0.1:7000"], "mdns": False, "open": way != "peer"}
        if way == "mdns":
            advertiser = DiscoveryPeer(machines.lan, "a")
            advertiser.tell("advertise", node="00112233aabbccdd", port=7000)
            DiscoveryPeer(machines.lan, "c").wait("found", 10)
            options = {}
        said = told(machines, options)
        said.check(words, "10.77.0.1:7000", by_peer=False)
        assert "another cluster key" not in said.text and "both with" not in said.text


def test_a_stopped_node_is_said_to_be_one_and_used_once_it_goes_on(tmp_path: Path) -> None:
    with Machines(tmp_path, ["a", "c"]) as machines:
        node = machines.node("a", "-c", "1")
        node.process.send_signal(signal.SIGSTOP)
        try:
            options = {"peers": [node.address], "mdns": False, "discover_timeout": 20}
            program = machines.program("c", f"OPTIONS = {options!r}\n{TOLD}")
            warned, warning = program.next("warned", 10)
        finally:
            node.process.send_signal(signal.SIGCONT)
        print(f"after {warned:.2f} s: {warning}")
        assert warned < SOON and f"10.77.0.1:27400: {SAYS_NOTHING}" in warning
        program.succeed(15)


def test_a_plain_script_shows_refusals_on_standard_error(tmp_path: Path) -> None:
    """With no logging set up, as they come, before the error."""
    with Machines(tmp_path, ["a", "c"]) as machines:
        machines.node("a", "-c", "1")
        source = LOCATE.format(name="discoro_server", timeout=None)
        program = machines.program("c", source, key_file=tmp_path / "another.key")
        program.next("NoNodes", 10)
        program.succeed(5)
        wanted = f"! not usable: a (10.77.0.1:27400): it has another cluster key. {CLAIM}. {KEY_STEP}\n"
        assert program.output == wanted


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
