"""Nodes find each other by mDNS between machines: namespaces on one switch, real multicast."""

from __future__ import annotations

import signal
import struct
import time
from typing import Any

import pytest

from discoro.adverts import SERVICE, to_txt
from discoro.discovery import RESOLVING_LIMIT
from tests.support.discovery_peer import DiscoveryPeer, advert
from tests.support.netns import Lan, needs_namespaces

pytestmark = [pytest.mark.system, needs_namespaces]

FIRST = "00112233aabbccdd"
SECOND = "ffeeddccbbaa9988"
NOTHING_LEFT = {"files": 0, "threads": 0, "tasks": 0}


def advertise(peer: DiscoveryPeer, node: str = FIRST, **changes: Any) -> None:
    peer.tell("advertise", node=node, port=7701, **changes)
    peer.wait("advertised", 3)


def test_one_advertises_and_the_other_finds_it_within_three_seconds() -> None:
    with Lan(["a", "b"]) as lan:
        node, client = DiscoveryPeer(lan, "a"), DiscoveryPeer(lan, "b")
        started = time.monotonic()
        advertise(node, cluster="büro 1", hosts=["ada.local", "127.0.0.1", "10.1.1.1", node.address])
        found = client.wait("found", 3)
        assert time.monotonic() - started < 3
        assert found == {
            "node": FIRST,
            "name": "ada",
            "cluster": "büro 1",
            "python": "3.11",
            "version": "0.1.0",
            "protocol": 1,
            "security": "curve",
            "slots": 4,
            "addresses": ["10.77.0.1:7701", "10.1.1.1:7701"],  # our subnet first, loopback never
        }
        heard = client.heard()
        assert "listened on eth0 10.77.0.2" in heard
        assert "other addresses in mDNS answers: 2" in heard
        assert "heard ada (00112233aabbccdd) at 10.77.0.1:7701" in heard
        assert node.close() == client.close() == NOTHING_LEFT


def test_a_latecomer_finds_a_node_that_advertised_before() -> None:
    with Lan(["a", "b"]) as lan:
        node = DiscoveryPeer(lan, "a")
        advertise(node)
        assert DiscoveryPeer(lan, "b").wait("found", 3)["node"] == FIRST


def test_latecomers_beside_other_processes_of_their_machine_find_it_too() -> None:
    with Lan(["a", "b"]) as lan:
        advertise(DiscoveryPeer(lan, "a"))
        crowd = [DiscoveryPeer(lan, "b") for _ in range(4)]  # each asks while the earlier ones listen
        assert [peer.wait("found", 3)["node"] for peer in crowd] == [FIRST] * 4


def test_two_machines_of_one_name_are_two_nodes() -> None:
    with Lan(["a", "b", "c"]) as lan:
        client = DiscoveryPeer(lan, "c")
        advertise(DiscoveryPeer(lan, "a"), name="pi.lab")
        advertise(DiscoveryPeer(lan, "b"), name="pi.lab", node=SECOND)
        found = [client.wait("found", 3), client.wait("found", 3)]
        assert {each["node"] for each in found} == {FIRST, SECOND}
        assert {each["name"] for each in found} == {"pi-lab"}


def test_two_processes_of_one_machine_both_hear_and_no_one_hears_itself() -> None:
    with Lan(["a", "b"]) as lan:
        node, client = DiscoveryPeer(lan, "a"), DiscoveryPeer(lan, "a")
        advertise(node)
        assert client.wait("found", 3)["node"] == FIRST
        advertise(DiscoveryPeer(lan, "b"), node=SECOND)
        assert client.wait("found", 3)["node"] == SECOND
        assert node.wait("found", 3)["node"] == SECOND  # the first it was told: its own is no news


def test_dropped_multicast_finds_nothing_and_says_what_to_do() -> None:
    with Lan(["a", "b"]) as lan:
        lan.drop_multicast()
        node, client = DiscoveryPeer(lan, "a"), DiscoveryPeer(lan, "b")
        advertise(node)
        assert client.next("found", 3) is None
        heard = client.heard()
        assert "listened on eth0 10.77.0.2" in heard
        assert "other addresses in mDNS answers: 0" in heard
        assert "no node was heard" in heard
        assert "UDP port 5353" in heard
        assert "--peer HOST[:PORT]" in heard
        lan.pass_multicast()
        client.tell("refresh")
        assert client.wait("found", 3)["node"] == FIRST, "it was the multicast"


def test_refresh_tells_again() -> None:
    with Lan(["a", "b"]) as lan:
        client = DiscoveryPeer(lan, "b")
        advertise(DiscoveryPeer(lan, "a"))
        client.wait("found", 3)
        client.tell("refresh")
        assert client.wait("found", 3)["node"] == FIRST


def test_a_goodbye_is_told_and_a_return_is_news() -> None:
    with Lan(["a", "b"]) as lan:
        node, client = DiscoveryPeer(lan, "a"), DiscoveryPeer(lan, "b")
        advertise(node)
        client.wait("found", 3)
        assert "goodbye" not in client.heard()
        assert node.close() == NOTHING_LEFT
        until(lambda: "4 slots, which said goodbye" in client.heard())
        advertise(DiscoveryPeer(lan, "a"))
        assert client.wait("found", 3)["node"] == FIRST


def test_a_killed_node_stays_listed_and_its_successor_is_found() -> None:
    with Lan(["a", "b"]) as lan:
        node, client = DiscoveryPeer(lan, "a"), DiscoveryPeer(lan, "b")
        advertise(node)
        client.wait("found", 3)
        node.process.send_signal(signal.SIGKILL)
        node.process.wait(5)
        advertise(DiscoveryPeer(lan, "a"), node=SECOND)
        assert client.wait("found", 3)["node"] == SECOND
        heard = client.heard()
        assert FIRST in heard and "goodbye" not in heard, "mDNS knows nothing of deaths"


def test_a_node_started_during_a_cut_is_found_by_an_older_browser() -> None:
    with Lan(["a", "b"]) as lan:
        client = DiscoveryPeer(lan, "b")
        lan.cut("a")
        node = DiscoveryPeer(lan, "a", hurry=True)
        advertise(node)
        assert client.next("found", 2) is None
        lan.heal("a")
        assert client.wait("found", 2)["node"] == FIRST, "the browser itself asks again only after 5 s"


def test_an_adapter_that_comes_goes_and_comes_again_is_listened_on() -> None:
    with Lan(["a", "b"]) as lan:
        lan.unplug("b")
        client = DiscoveryPeer(lan, "b", hurry=True)
        assert "no usable network interface" in client.heard()
        advertise(DiscoveryPeer(lan, "a"))
        lan.plug_in("b")
        assert client.wait("found", 3)["node"] == FIRST
        assert "no usable" not in client.heard()
        lan.unplug("b")
        until(lambda: "listened on no interface" in client.heard())
        assert "no usable network interface" in client.heard()
        lan.plug_in("b")
        until(lambda: "listened on eth0 10.77.0.2" in client.heard())
        advertise(DiscoveryPeer(lan, "a"), node=SECOND)
        while client.wait("found", 3)["node"] != SECOND:
            pass  # the first is told again after the pause
        assert client.close() == NOTHING_LEFT


def test_an_address_added_on_a_second_interface_is_listened_on() -> None:
    with Lan(["a", "b"]) as lan:
        lan.run("b", "ip link add other type veth peer name far")
        lan.run("b", "ip address add 10.88.0.1/24 dev other")
        lan.run("b", "ip link set other up")
        lan.unplug("b")
        client = DiscoveryPeer(lan, "b", hurry=True)
        assert "listened on other 10.88.0.1 for" in client.heard()
        advertise(DiscoveryPeer(lan, "a"))
        lan.plug_in("b")
        assert client.wait("found", 3)["node"] == FIRST
        assert client.close() == NOTHING_LEFT


def test_an_interface_that_is_down_is_ignored_until_it_is_up() -> None:
    with Lan(["a", "b"]) as lan:
        lan.run("b", "ip link set eth0 down")
        client = DiscoveryPeer(lan, "b", hurry=True)
        assert "ignored eth0 10.77.0.2: the interface is down" in client.heard()
        advertise(DiscoveryPeer(lan, "a"))
        lan.run("b", "ip link set eth0 up")
        assert client.wait("found", 3)["node"] == FIRST


def test_ipv6_alone_is_enough() -> None:
    with Lan(["a", "b"]) as lan:
        for host, address in (("a", "fd77::1"), ("b", "fd77::2")):
            lan.run(host, "ip address flush dev eth0")
            lan.run(host, f"ip address add {address}/64 dev eth0 nodad")
        node, client = DiscoveryPeer(lan, "a"), DiscoveryPeer(lan, "b")
        advertise(node, hosts=["fd77::1"])
        assert client.wait("found", 3)["addresses"] == ["[fd77::1]:7701"]
        assert node.close() == client.close() == NOTHING_LEFT


def test_forged_and_broken_adverts_are_refused_in_words_and_the_good_one_is_found() -> None:
    good = txt(**to_txt(advert()))
    broken = {
        "empty": b"\0",
        "no-id": txt(txtvers="1", pv="1"),
        "newer": txt(**{**to_txt(advert()), "txtvers": "2"}),
        "escape": txt(**{**to_txt(advert()), "cl": "\x1b[2Jred"}),
        "truncated": good[:-1],
        "binary": bytes(range(256)),
        "long": good + txt(x="y" * 200) * 7,
    }
    with Lan(["a", "b", "c"]) as lan:
        client, forger = DiscoveryPeer(lan, "b"), DiscoveryPeer(lan, "c")
        for name, text in broken.items():
            forger.tell("forge", name=name, txt=text.hex(), port=9, hosts=["10.77.0.9"])
        forger.tell("forge", name="nowhere", txt=good.hex(), port=9, hosts=["127.0.0.1"])
        for _ in range(len(broken) + 1):
            forger.wait("forged", 5)
        advertise(DiscoveryPeer(lan, "a"))
        assert client.wait("found", 3)["addresses"] == ["10.77.0.1:7701"], "nothing forged came before it"
        heard = client.heard()
        assert f"refused adverts: {len(broken) + 1}" in heard
        for name in (*broken, "nowhere"):
            assert f"  {name}: " in heard
        assert "\x1b" not in heard
        assert client.close() == NOTHING_LEFT


def test_a_flood_of_empty_promises_is_bounded_and_the_good_one_is_found() -> None:
    names = [f"promise-{number}" for number in range(RESOLVING_LIMIT + 20)]
    junk = [bytes(range(start, start + 60)).hex() for start in range(0, 196, 7)]
    with Lan(["a", "b", "c"]) as lan:
        client, forger = DiscoveryPeer(lan, "b"), DiscoveryPeer(lan, "c")
        forger.tell("shout", packets=[pointer(name).hex() for name in names] + junk)
        forger.wait("shouted", 3)
        until(lambda: "too many adverts at once" in client.heard())
        advertise(DiscoveryPeer(lan, "a"))
        assert client.wait("found", 3)["node"] == FIRST
        until(lambda: f"refused adverts: {len(names)}" in client.heard())
        assert "told no address or TXT record within 3 s" in client.heard()
        assert client.close() == NOTHING_LEFT


def pointer(name: str) -> bytes:
    """An mDNS answer that promises a service of that name and tells nothing of it (RFC 1035 section 4.1)."""
    labels = [label.encode() for label in f"{name}.{SERVICE}".rstrip(".").split(".")]
    encoded = [bytes([len(label)]) + label for label in labels]
    owner, target = b"".join(encoded[1:]) + b"\0", b"".join(encoded) + b"\0"
    header = struct.pack("!6H", 0, 0x8400, 0, 1, 0, 0)
    return header + owner + struct.pack("!HHIH", 12, 1, 4500, len(target)) + target


def txt(**values: str) -> bytes:
    """The bytes of a TXT record."""
    pairs = [f"{key}={value}".encode() for key, value in values.items()]
    return b"".join(bytes([len(pair)]) + pair for pair in pairs)


def until(holds: Any, timeout: float = 5.0) -> None:
    """Ask again until it holds; each question is a round trip to the other process."""
    end = time.monotonic() + timeout
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
