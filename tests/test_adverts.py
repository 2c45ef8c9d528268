"""Adverts: what one may be, which are refused and in which words, and what the report says of those heard."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discoro import adverts
from discoro.adverts import SERVICE, Advert, Heard, advert_from, instance_of, to_txt
from discoro.errors import ConfigError, ProtocolError
from discoro.interfaces import Interfaces

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
INSTANCE = instance_of(ADVERT)


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
    assert len(heard(hosts=hosts).addresses) == adverts.ADDRESSES_LIMIT


@given(st.dictionaries(st.binary(max_size=9), st.none() | st.binary(max_size=80)), st.text(), st.integers())
def test_garbage_is_a_protocol_error_and_nothing_else(txt: dict[bytes, bytes | None], instance: str, port: int) -> None:
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
    instance = instance_of(advert)
    label = instance.removesuffix(f".{SERVICE}")
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
    assert instance_of(other) != INSTANCE
    assert heard().name == "ada"
    assert heard(instance=instance_of(replace(ADVERT, name="ada.lab.org"))).name == "ada-lab-org"
    assert heard(instance=f"\x1b[2J.{SERVICE}").name == "?[2J"
    assert heard(instance=instance_of(replace(ADVERT, name=""))).name == "00112233"


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
    assert len(lines) <= adverts.NODES_LIMIT + adverts.REFUSED_LIMIT + 5
    assert "refused adverts: 5000" in report(told)
    assert "node-" not in report(told) and f"{4999:016x}" in report(told) and f"{0:016x}" not in report(told)
    assert f"mDNS answers: {adverts.OTHERS_LIMIT}" in report(told)


def test_the_same_refusal_again_is_not_counted_twice() -> None:
    told = Heard()
    told.refuse("x", "no id")
    told.refuse("x", "no id")
    assert "refused adverts: 1," in report(told)


def test_what_is_refused_is_printed_without_its_escapes() -> None:
    told = Heard()
    told.refuse(f"\x1b]0;evil\x07.{SERVICE}", "no id in its TXT record")
    assert "  ?]0;evil?: no id in its TXT record" in report(told)
