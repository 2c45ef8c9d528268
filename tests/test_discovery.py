"""Discovery without a network: which addresses are used, what an advert may be, what the report says."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discoro import discovery
from discoro.discovery import (
    Advert,
    Discovery,
    Heard,
    Interfaces,
    NicAddress,
    advert_from,
    choose,
    look_again,
    to_txt,
)
from discoro.errors import ConfigError, ProtocolError

ADVERT = Advert(
    node="00112233aabbccdd",
    name="ada",
    cluster="default",
    python="3.11",
    version="0.1.0",
    protocol=1,
    security="curve",
    slots=4,
    addresses=("192.168.1.20:7700",),
)
INSTANCE = discovery.instance_of(ADVERT)
LAN = NicAddress("eth0", "192.168.1.20", 24)
LOOPBACK = NicAddress("lo", "127.0.0.1", 8)


def on_the_wire(advert: Advert = ADVERT, changes: Mapping[str, str | None] = {}) -> dict[bytes, bytes | None]:
    """The TXT record of `advert` as it is heard, with the changes given; None leaves a key out."""
    values: dict[str, str | None] = {**to_txt(advert), **changes}
    return {key.encode(): value.encode() for key, value in values.items() if value is not None}


def heard(txt: dict[bytes, bytes | None] | None = None, **changes: Any) -> Advert:
    plain: dict[str, Any] = {"instance": INSTANCE, "hosts": ["192.168.1.20"], "port": 7700}
    return advert_from(txt=on_the_wire() if txt is None else txt, **{**plain, **changes})


# ---- adverts that break a rule


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("txtvers", "2"),
        ("txtvers", "01"),
        ("pv", "-1"),
        ("pv", "999999"),
        ("pv", "１"),  # a digit for str.isdigit and int, none for us
        ("id", "00112233AABBCCDD"),
        ("id", "00112233aabbccdd\n"),
        ("id", "0011"),
        ("cl", ""),
        ("cl", "x" * 64),
        ("cl", "\x1b[31m"),
        ("cl", "a\nb"),
        ("cl", "evil\u202etxt"),
        ("py", "3"),
        ("py", "3.11.4"),
        ("v", "1 0"),
        ("au", "tls"),
        ("n", "many"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_by_name(key: str, value: str) -> None:
    with pytest.raises(ProtocolError, match=f"^{key}=.* in its TXT record: not "):
        heard(on_the_wire(changes={key: value}))


@pytest.mark.parametrize("key", list(to_txt(ADVERT)))
def test_a_missing_or_empty_or_binary_value_is_refused(key: str) -> None:
    with pytest.raises(ProtocolError, match=f"no {key} in its TXT record"):
        heard(on_the_wire(changes={key: None}))
    for raw in (b"", b"\xff\xfe", b"\0"):
        with pytest.raises(ProtocolError, match=key):
            heard({**on_the_wire(), key.encode(): raw})
    with pytest.raises(ProtocolError, match=f"no {key}"):
        heard({**on_the_wire(), key.encode(): None})


@pytest.mark.parametrize("port", [None, 0, -1, 65536])
def test_a_port_that_cannot_be_is_refused(port: int | None) -> None:
    with pytest.raises(ProtocolError, match="no such port"):
        heard(port=port)


NOWHERE = [
    "127.0.0.1",
    "127.9.9.9",
    "0.0.0.0",
    "224.0.0.251",
    "255.255.255.255",
    "::1",
    "::",
    "ff02::fb",
    "fe80::1",
    "::ffff:127.0.0.1",
    "not an address",
]


def test_addresses_where_nobody_else_can_be_are_left_out() -> None:
    assert heard(hosts=[*NOWHERE, "192.168.1.20"]).addresses == ("192.168.1.20:7700",)
    for host in NOWHERE:
        with pytest.raises(ProtocolError, match="no address that can be dialled"):
            heard(hosts=[host])


def test_a_flood_of_addresses_is_cut() -> None:
    hosts = [f"10.0.{high}.{low}" for high in range(4) for low in range(200)]
    assert len(heard(hosts=hosts).addresses) == discovery.ADDRESSES_LIMIT


@given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=80)), st.text(), st.integers())
def test_garbage_is_a_protocol_error_and_nothing_else(
    txt: dict[bytes, bytes | None], instance: str, port: int
) -> None:
    with pytest.raises(ProtocolError):
        heard(txt, instance=instance, port=port)


@given(st.sampled_from(sorted(to_txt(ADVERT))), st.binary(max_size=70), st.text())
def test_one_wrong_value_never_escapes(key: str, raw: bytes, instance: str) -> None:
    try:
        advert = heard({**on_the_wire(), key.encode(): raw}, instance=instance)
    except ProtocolError as error:
        assert str(error).isprintable()
    else:
        assert advert.name.isprintable() and advert.cluster.isprintable()


# ---- adverts as they should be


def test_an_advert_comes_back_as_it_was_sent() -> None:
    assert heard() == ADVERT


@given(st.text(max_size=80), st.text(min_size=1, max_size=63), st.integers(0, 99999))
def test_any_name_makes_an_instance_that_dns_takes(name: str, cluster: str, slots: int) -> None:
    advert = replace(ADVERT, name=name, cluster=cluster, slots=slots)
    instance = discovery.instance_of(advert)
    label = instance.removesuffix(f".{discovery.SERVICE}")
    assert len(label.encode()) <= 63 and "." not in label and label.isprintable()
    try:
        txt = on_the_wire(advert)
    except ConfigError:
        assert not cluster.isprintable() or len(cluster.encode("utf-8", "replace")) > 63
        return
    assert sum(len(key) + len(value or b"") + 2 for key, value in txt.items()) < 200
    assert heard(txt, instance=instance).slots == slots


def test_the_longest_txt_record_is_under_200_bytes() -> None:
    longest = replace(ADVERT, cluster="x" * 63, version="1" * 32, protocol=99999, slots=99999)
    longest = replace(longest, python="99.999", security="curve")
    txt = on_the_wire(longest)
    assert sum(len(key) + len(value or b"") + 2 for key, value in txt.items()) < 200
    assert list(txt)[0] == b"txtvers"


def test_a_cluster_name_that_others_would_refuse_is_our_users_error() -> None:
    with pytest.raises(ConfigError, match="advertised by mDNS: cl=.* not a cluster name: printable"):
        to_txt(replace(ADVERT, cluster="x" * 64))


def test_names_come_back_without_the_mark_that_keeps_them_apart() -> None:
    other = replace(ADVERT, node="ffeeddccbbaa9988")
    assert discovery.instance_of(other) != INSTANCE
    assert heard().name == "ada"
    assert heard(instance=discovery.instance_of(replace(ADVERT, name="ada.lab.org"))).name == "ada-lab-org"
    assert heard(instance=f"\x1b[2J.{discovery.SERVICE}").name == "?[2J"
    assert heard(instance=discovery.instance_of(replace(ADVERT, name=""))).name == "00112233"


def test_our_own_subnet_comes_first_and_ipv6_is_in_brackets() -> None:
    hosts = ["10.0.0.2", "169.254.3.4", "fd00::2", "192.168.1.20", "192.168.7.7"]
    networks = [ip_network("192.168.7.0/24"), ip_network("fd00::/64")]
    assert heard(hosts=hosts, networks=networks).addresses == (
        "192.168.7.7:7700",
        "[fd00::2]:7700",
        "10.0.0.2:7700",
        "192.168.1.20:7700",
        "169.254.3.4:7700",
    )


# ---- this machine's addresses


def asked(**texts: str) -> dict[str, list[Any]]:
    return {text: [ip_address(ip)] for text, ip in texts.items()}


def test_an_address_that_is_not_here_is_an_error_that_lists_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"-i 10\.9\.9\.9: no .* it has lo 127\.0\.0\.1, eth0 192\."):
        choose([LOOPBACK, LAN], {"10.9.9.9": [ip_address("10.9.9.9")]})


def test_a_name_that_means_loopback_only_in_the_hosts_file_is_told_with_its_address() -> None:
    with pytest.raises(ConfigError, match=r"-i ada \(that is 127\.0\.1\.1\): no interface"):
        choose([LOOPBACK, LAN], asked(ada="127.0.1.1"))


def test_a_name_that_does_not_resolve_is_an_error() -> None:
    for name in ("no such host", "", "x" * 300, "10.0.0.300"):
        with pytest.raises(ConfigError, match="-i "):
            discovery.interfaces([name] if name else ["\udc80"])


def test_one_bad_address_among_good_ones_is_an_error_too() -> None:
    with pytest.raises(ConfigError, match="-i other"):
        choose([LOOPBACK, LAN], asked(mine="192.168.1.20", other="192.168.1.21"))


@pytest.mark.parametrize(
    ("address", "why"),
    [
        (NicAddress("docker0", "172.17.0.1", 16), "a bridge to containers"),
        (NicAddress("br-0123456789ab", "172.18.0.1", 16), "a bridge to containers"),
        (NicAddress("veth12ab", "10.1.0.1", 24), "a bridge to containers"),
        (NicAddress("virbr0", "192.168.122.1", 24), "a bridge to containers"),
        (NicAddress("vEthernet (WSL (Hyper-V firewall))", "172.20.0.1", 20), "a bridge to containers"),
        (NicAddress("eth1", "10.2.0.1", 24, up=False), "down"),
    ],
)
def test_addresses_that_mislead_others_are_ignored_for_a_reason(address: NicAddress, why: str) -> None:
    chosen = choose([LOOPBACK, address, LAN], {})
    assert chosen.usable == (("eth0", "192.168.1.20"),)
    assert [each[:2] for each in chosen.ignored] == [(address.nic, address.address)]
    assert why in chosen.ignored[0][2]
    given_by_the_user = choose([LOOPBACK, address, LAN], {address.address: [address.ip]})
    assert given_by_the_user.usable == ((address.nic, address.address),)
    assert given_by_the_user.ignored == (("eth0", "192.168.1.20", "not asked for with -i"),)


@pytest.mark.parametrize("nic", ["br-lan", "br0", "vEthernet (External)", "enp3s0", "wlan0", "en0"])
def test_real_networks_with_names_much_alike_are_used(nic: str) -> None:
    assert choose([NicAddress(nic, "10.0.0.1", 24)], {}).usable == ((nic, "10.0.0.1"),)


def test_the_best_address_comes_first_and_vpns_last() -> None:
    found = [
        NicAddress("tailscale0", "100.64.0.1", 32),
        NicAddress("eth1", "169.254.1.1", 16),
        NicAddress("eth0", "fd00::2", 64),
        NicAddress("eth0", "fe80::1", 64),
        LAN,
        LOOPBACK,
    ]
    chosen = choose(found, {})
    assert [nic for nic, _ in chosen.usable] == ["eth0", "eth0", "eth1", "tailscale0"]
    assert chosen.usable[0] == ("eth0", "192.168.1.20")
    assert chosen.ignored == ()
    assert ip_network("192.168.1.0/24") in chosen.networks


def test_multicast_goes_once_over_each_interface_and_never_over_loopback() -> None:
    second = NicAddress("eth0", "192.168.1.99", 24)
    wlan = NicAddress("wlan0", "10.0.0.3", 24)
    ipv6 = NicAddress("eth0", "fd00::2", 64)
    assert choose([LAN, second, ipv6, wlan, LOOPBACK], {}).multicast == ["192.168.1.20", "10.0.0.3"]
    assert choose([ipv6, LOOPBACK], {}).multicast == ["fd00::2"]
    assert choose([LAN, LOOPBACK], asked(a="127.0.0.1", b="192.168.1.20")).multicast == ["192.168.1.20"]


def test_this_machine_has_loopback_and_can_be_kept_to_it() -> None:
    only = discovery.interfaces(["127.0.0.1"])
    assert only.usable[0][1] == "127.0.0.1" and only.loopback_only and only.multicast == []
    assert discovery.interfaces(only.wanted) == only, "a rescan asks for the same again"
    assert not discovery.interfaces().loopback_only
    assert discovery.interfaces(["0.0.0.0"]) == discovery.interfaces()


def test_an_address_asked_for_stays_asked_for_while_it_is_gone() -> None:
    wlan = NicAddress("wlan0", "10.0.0.3", 24)
    both = choose([LAN, wlan, LOOPBACK], asked(a=LAN.address, b=wlan.address))
    gone = look_again(both, [wlan, LOOPBACK])
    assert gone.usable == (("wlan0", "10.0.0.3"),)
    nothing = look_again(gone, [LOOPBACK])
    assert nothing.usable == () and not nothing.loopback_only, "nobody asked for loopback"
    assert look_again(nothing, [LAN, wlan, LOOPBACK]) == both
    assert look_again(choose([LAN], {}), [wlan, LOOPBACK]).usable == (("wlan0", "10.0.0.3"),)


# ---- the report

WHERE = Interfaces(usable=(("eth0", "192.168.1.20"),), ignored=(("docker0", "172.17.0.1", "a bridge"),))


def report(told: Heard) -> str:
    return "\n".join(told.lines(WHERE, 5.2))


def test_silence_is_explained() -> None:
    text = report(Heard())
    assert "listened on eth0 192.168.1.20 for 5 s; other addresses in mDNS answers: 0" in text
    assert "ignored docker0 172.17.0.1: a bridge" in text
    assert "multicast (UDP port 5353) does not get through" in text and "--peer HOST[:PORT]" in text


def test_a_network_that_talks_of_other_things_is_told_from_a_silent_one() -> None:
    told = Heard()
    told.answered("192.168.1.77")
    told.answered("192.168.1.77")
    assert "other addresses in mDNS answers: 1" in report(told)
    assert "multicast gets through" in report(told) and "does not get through" not in report(told)


def test_an_advert_is_news_once_and_again_when_asked_or_changed() -> None:
    told = Heard()
    assert told.take(INSTANCE, ADVERT)
    assert not told.take(INSTANCE, ADVERT)
    moved = replace(ADVERT, addresses=("192.168.1.21:7700",))
    assert told.take(INSTANCE, moved)
    told.tell_again()
    assert told.take(INSTANCE, moved)
    told.leave(INSTANCE)
    assert "which said goodbye" in report(told)
    assert told.take(INSTANCE, moved)
    assert "goodbye" not in report(told) and "192.168.1.21:7700" in report(told)


def test_a_goodbye_of_nobody_changes_nothing() -> None:
    told = Heard()
    told.leave(INSTANCE)
    assert report(told) == report(Heard())


def test_whoever_shouts_fills_nothing() -> None:
    told = Heard()
    for number in range(5000):
        told.take(f"node-{number}", replace(ADVERT, node=f"{number:016x}"))
        told.leave(f"node-{number}")
        told.refuse(f"bad-{number}", "because")
        told.answered(f"10.0.{number >> 8}.{number & 255}")
    lines = told.lines(WHERE, 1)
    assert len(lines) <= discovery.NODES_LIMIT + discovery.REFUSED_LIMIT + 5
    assert "refused adverts: 5000" in report(told)
    assert "node-" not in report(told) and f"{4999:016x}" in report(told) and f"{0:016x}" not in report(told)
    assert f"mDNS answers: {discovery.OTHERS_LIMIT}" in report(told)


def test_the_same_refusal_again_is_not_counted_twice() -> None:
    told = Heard()
    told.refuse("x", "no id")
    told.refuse("x", "no id")
    assert "refused adverts: 1," in report(told)


def test_what_is_refused_is_printed_without_its_escapes() -> None:
    told = Heard()
    told.refuse(f"\x1b]0;evil\x07.{discovery.SERVICE}", "no id in its TXT record")
    assert "  ?]0;evil?: no id in its TXT record" in report(told)


# ---- where nothing can be heard


def test_a_loopback_only_node_opens_no_socket_and_says_so() -> None:
    async def scenario() -> None:
        files = len(os.listdir("/proc/self/fd"))
        finder = Discovery(lambda advert: None, Interfaces(usable=(("lo", "127.0.0.1"),)))
        await finder.start()
        await finder.advertise(ADVERT, 7700)
        finder.refresh()
        assert len(os.listdir("/proc/self/fd")) == files
        assert len(asyncio.all_tasks()) == 1
        assert finder.heard() == ["only loopback is in use here (-i), so nobody was looked for by mDNS"]
        await finder.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("usable", [(), (("eth9", "203.0.113.9"),)])
def test_no_multicast_is_told_and_no_error(usable: tuple[tuple[str, str], ...]) -> None:
    async def scenario() -> None:
        files = len(os.listdir("/proc/self/fd"))
        finder = Discovery(lambda advert: None, Interfaces(usable=usable))
        await finder.start()
        await finder.advertise(ADVERT, 7700)
        with pytest.raises(RuntimeError, match="already advertises"):
            await finder.advertise(ADVERT, 7700)
        finder.refresh()
        trouble = "mDNS cannot be used on 203.0.113.9" if usable else "no usable network interface"
        assert trouble in "\n".join(finder.heard())
        await finder.close()
        await finder.close()
        assert len(asyncio.all_tasks()) == 1
        assert len(os.listdir("/proc/self/fd")) == files

    asyncio.run(scenario())


def test_announcements_slow_down_with_age() -> None:
    assert discovery._announce_pause(0.0) == discovery.ANNOUNCE_EARLY
    assert discovery._announce_pause(discovery.YOUNG) == discovery.ANNOUNCE_LATE
