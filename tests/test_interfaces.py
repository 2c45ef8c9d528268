"""This machine's addresses: which are used, which are ignored and why, and what was asked for that is not here."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from discoro.errors import ConfigError
from discoro.interfaces import NicAddress, choose, interfaces, is_public, look_again, refuse_public

LAN = NicAddress("eth0", "192.168.1.20", 24)
LOOPBACK = NicAddress("lo", "127.0.0.1", 8)


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
            interfaces([name] if name else ["\udc80"])


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
    only = interfaces(["127.0.0.1"])
    assert only.usable[0][1] == "127.0.0.1" and only.loopback_only and only.multicast == []
    assert interfaces(only.wanted) == only, "a rescan asks for the same again"
    assert not interfaces().loopback_only
    assert interfaces(["0.0.0.0"]) == interfaces()


def test_an_address_asked_for_stays_asked_for_while_it_is_gone() -> None:
    wlan = NicAddress("wlan0", "10.0.0.3", 24)
    both = choose([LAN, wlan, LOOPBACK], asked(a=LAN.address, b=wlan.address))
    gone = look_again(both, [wlan, LOOPBACK])
    assert gone.usable == (("wlan0", "10.0.0.3"),)
    nothing = look_again(gone, [LOOPBACK])
    assert nothing.usable == () and not nothing.loopback_only, "nobody asked for loopback"
    assert look_again(nothing, [LAN, wlan, LOOPBACK]) == both
    assert look_again(choose([LAN], {}), [wlan, LOOPBACK]).usable == (("wlan0", "10.0.0.3"),)


@pytest.mark.parametrize("host", ["8.8.8.8", "2606:4700::1", "[2606:4700::1]", "gate.example.org"])
def test_what_the_internet_may_reach(host: str) -> None:
    assert is_public(host)


@pytest.mark.parametrize("host", ["10.1.2.3", "192.168.0.1", "172.16.0.1", "127.0.0.1", "169.254.1.1", "fd00::2", "::1"])
def test_what_it_may_not(host: str) -> None:
    assert not is_public(host)


def test_public_addresses_are_refused_by_name() -> None:
    home = choose([NicAddress("eth0", "192.168.0.5", 24), NicAddress("eth0", "2606:4700::5", 64)], {})
    assert home.public == ["2606:4700::5"]
    with pytest.raises(ConfigError, match=r"public addresses \(2606:4700::5, 8\.8\.8\.8\).*--open-public"):
        refuse_public(home, "8.8.8.8")
    refuse_public(choose([NicAddress("eth0", "192.168.0.5", 24)], {}), "10.0.0.1")
