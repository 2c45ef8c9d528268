"""The network that system tests stand on does what it says, in both ways that it can be made."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.netns import Lan, Way, needs_namespaces, why_not

pytestmark = [pytest.mark.system, needs_namespaces]

ROOT = Path(__file__).resolve().parents[1]

HEAR = """
import socket, sys
heard = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
heard.settimeout(float(sys.argv[1]))
heard.bind(("", 5353))
group = socket.inet_aton("224.0.0.251") + socket.inet_aton("10.77.0.2")
heard.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, group)
print("ready", flush=True)
try:
    print(heard.recv(100).decode(), flush=True)
except TimeoutError:
    print("nothing", flush=True)
"""

SAY = """
import socket, sys
said = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
said.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("10.77.0.1"))
said.sendto(b"hello", (sys.argv[1], 5353))
"""


WAYS = [way for way in Way if not why_not(way)] or list(Way)
"""Without root there is one way less to test; without any, `needs_namespaces` skips all of it."""


@pytest.fixture(params=WAYS, ids=lambda way: way.name)
def lan(request: pytest.FixtureRequest) -> Iterator[Lan]:
    with Lan(["a", "b"], request.param) as lan:
        yield lan


def reaches(lan: Lan, target: str, wait: float = 3.0) -> bool:
    """Whether a datagram from a to `target` arrives at b, within `wait` seconds."""
    pipe = subprocess.PIPE
    hearer = lan.popen("b", [sys.executable, "-c", HEAR, str(wait)], stdout=pipe, text=True)
    assert hearer.stdout is not None and hearer.stdout.readline() == "ready\n"
    assert lan.popen("a", [sys.executable, "-c", SAY, target]).wait(10) == 0
    heard: str = hearer.stdout.readline()
    return heard == "hello\n"


def test_hosts_reach_each_other(lan: Lan) -> None:
    assert reaches(lan, lan.address("b"))
    assert reaches(lan, "224.0.0.251")


def test_dropped_multicast_does_not_arrive_and_unicast_does(lan: Lan) -> None:
    lan.drop_multicast()
    assert not reaches(lan, "224.0.0.251", 0.5)
    assert reaches(lan, lan.address("b"))
    lan.pass_multicast()
    assert reaches(lan, "224.0.0.251")


def test_a_cut_host_is_alone_until_it_is_healed(lan: Lan) -> None:
    lan.cut("a")
    assert not reaches(lan, lan.address("b"), 0.5)
    assert "state UP" in lan.run("a", "ip link show eth0"), "it must not notice"
    lan.heal("a")
    assert reaches(lan, lan.address("b"))


def test_a_link_that_is_down_is_seen_at_the_host_and_is_up_again_afterwards(lan: Lan) -> None:
    with lan.link_down("a"):
        assert "NO-CARRIER" in lan.run("a", "ip link show eth0")
        assert not reaches(lan, lan.address("b"), 0.5)
    assert reaches(lan, lan.address("b"))


def test_a_deaf_host_is_heard_and_hears_nothing(lan: Lan) -> None:
    with lan.deaf("a"):
        assert reaches(lan, lan.address("b"))
    with lan.deaf("b"):
        assert not reaches(lan, lan.address("b"), 0.5)
    assert reaches(lan, lan.address("b"))


def test_loss_is_of_some_packets_and_a_rate_lets_all_through(lan: Lan) -> None:
    """A probability of 1 is any other with its luck taken away."""
    with lan.loss("b", 1.0):
        assert not reaches(lan, lan.address("b"), 0.5)
    with lan.loss("a", 1.0), lan.rate("a", "16mbit"):
        assert "16Mbit" in lan.run("a", "tc qdisc show dev eth0")
        assert reaches(lan, lan.address("b"))
    assert "tbf" not in lan.run("a", "tc qdisc show dev eth0")
    assert "DROP" not in lan.run("b", "iptables -S")


def test_a_delay_is_one(lan: Lan) -> None:
    with lan.delay("a", 50, reordered=10):
        assert "netem" in lan.run("a", "tc qdisc show dev eth0")
        assert reaches(lan, lan.address("b"))


def test_hosts_see_nothing_else(lan: Lan) -> None:
    names = [line.split()[1].partition("@")[0] for line in lan.run("a", "ip -oneline link").splitlines()]
    assert names == ["lo:", "eth0"]


def test_two_networks_at_a_time_and_nothing_stays_of_either(lan: Lan) -> None:
    outer = lan.popen("a", ["cat"], stdin=subprocess.PIPE)
    files = len(os.listdir("/proc/self/fd"))
    with Lan(["a"], lan.way) as other:
        forgotten = other.popen("a", ["cat"], stdin=subprocess.PIPE)
        holders = other.holders
    assert forgotten.returncode == -signal.SIGKILL
    assert not any(Path(f"/proc/{pid}").exists() for pid in holders)
    assert len(os.listdir("/proc/self/fd")) == files
    assert outer.poll() is None, "the first network lives on"


ORPHAN = """
import sys
from tests.support.netns import Lan, Way
with Lan(["a", "b"], Way[sys.argv[1]]) as lan:
    print(*lan.holders, flush=True)
    sys.stdin.read()
"""


def test_nothing_stays_of_a_killed_test(lan: Lan) -> None:
    command = [sys.executable, "-c", ORPHAN, lan.way.name]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, text=True) as test:
        assert test.stdout is not None
        holders = [os.pidfd_open(int(pid)) for pid in test.stdout.readline().split()]
        test.kill()
    for holder in holders:
        assert select.select([holder], [], [], 5)[0], "a namespace outlived its test"
        os.close(holder)
