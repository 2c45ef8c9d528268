"""What a node says of itself by mDNS, and what was heard of others: plain values, within limits.

No network in here, no clock and no log. What comes from others is a hint, never a fact, since anybody on a
network can say anything by mDNS: an advert that breaks a rule is refused in words, never repaired, and whatever
is kept of others is bounded and safe to print.

How the parts play together: `Advert` is what a node says of itself. `to_txt`, `instance_of` and `hosts_of` turn
it into the parts of a DNS-SD service (RFC 6763), `advert_from` turns one back. `Heard` remembers adverts, refusals
and other machines, knows what is news, and tells all of it in lines for people.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from discoro.errors import ConfigError, ProtocolError
from discoro.interfaces import Address, Interfaces, Network, needs_scope

SERVICE = "_discoro._tcp.local."
"""One DNS-SD type (RFC 6763) for all clusters, so that `avahi-browse -rt _discoro._tcp` shows every node."""

LABEL_LIMIT = 63
"""Bytes of a DNS label (RFC 1035), thus of an instance name; of each TXT value too: none needs more."""

ADDRESSES_LIMIT = 16
"""Addresses taken from one advert: each is dialled, and real machines have two to six."""

NODES_LIMIT = 1024
"""Adverts remembered, many times what one network segment holds; the oldest goes first."""

REFUSED_LIMIT = 16
"""Refused adverts told in the report, the latest; the others are only counted."""

OTHERS_LIMIT = 256
"""Other addresses counted in mDNS answers: the report only needs to tell none, some and many apart."""

NO_MULTICAST_HINT = (
    "either none runs in reach, or multicast (UDP port 5353) does not get through: a firewall,"
    " Wi-Fi client isolation, a container, another subnet."
    " Start discoro-node, or name a machine that runs it: --peer HOST[:PORT]"
)


# ---- what a node says of itself


@dataclass(frozen=True)
class Advert:
    """What a node says of itself by mDNS: a hint. Whoever forges it gets a dial, and fails at the greeting.

    `node` is 16 hex digits, drawn at each start; `python` as "3.11"; `security` is "curve" or "open";
    `addresses` are "host:port", those of our own subnets first. `name` is for people: on its way dots become
    hyphens, and it is cut at 54 bytes.
    """

    node: str
    name: str
    cluster: str
    python: str
    version: str
    protocol: int
    security: str
    slots: int
    addresses: tuple[str, ...]

    def __str__(self) -> str:
        where = ", ".join(self.addresses)
        who = f"cluster {self.cluster}, {self.security}, python {self.python}, discoro {self.version}"
        return f"{self.name} ({self.node}) at {where}: {who}, {self.slots} slots"


_RULES = {
    "txtvers": (r"1", "1, the only form of it known here"),
    "pv": (r"[0-9]{1,5}", "a protocol number"),
    "id": (r"[0-9a-f]{16}", "16 hex digits"),
    "cl": (r".+", f"a cluster name: printable, 1 to {LABEL_LIMIT} bytes"),
    "py": (r"[0-9]{1,2}\.[0-9]{1,3}", "a Python version such as 3.11"),
    "v": (r"[0-9A-Za-z.+!_-]{1,32}", "a version of discoro"),
    "au": (r"curve|open", "curve or open"),
    "n": (r"[0-9]{1,5}", "a number of slots"),
}
"""The keys of the TXT record in their order, txtvers first (RFC 6763 section 6.7), and what each may be.
Together they stay under 200 bytes, which its section 6.2 calls typical: every machine gets all of it."""


def to_txt(advert: Advert) -> dict[str, str]:
    """The TXT record of an advert, under 200 bytes. Raises ConfigError for what others would refuse."""
    values = (
        "1",
        str(advert.protocol),
        advert.node,
        advert.cluster,
        advert.python,
        advert.version,
        advert.security,
        str(advert.slots),
    )
    txt = dict(zip(_RULES, values, strict=True))
    try:
        for key, value in txt.items():
            _check(key, value.encode("utf-8", "replace"))
    except ProtocolError as error:
        raise ConfigError(f"this node cannot be advertised by mDNS: {error}") from error
    return txt


def advert_from(
    instance: str,
    txt: Mapping[bytes, bytes | None],
    hosts: Iterable[str],
    port: int | None,
    networks: Sequence[Network] = (),
) -> Advert:
    """The advert in a DNS-SD service. `hosts` are IP addresses, `networks` our own subnets.

    Raises ProtocolError, in words, for whatever breaks a rule; addresses that cannot be dialled are left out.
    """
    value = {key: _check(key, txt.get(key.encode())) for key in _RULES}
    if port is None or not 0 < port < 65536:
        raise ProtocolError(f"no such port: {port}")
    addresses = _sorted_addresses(hosts, port, networks)
    if not addresses:
        raise ProtocolError("no address that can be dialled")
    return Advert(
        node=value["id"],
        name=_name_from(instance, value["id"]),
        cluster=value["cl"],
        python=value["py"],
        version=value["v"],
        protocol=int(value["pv"]),
        security=value["au"],
        slots=int(value["n"]),
        addresses=addresses,
    )


def instance_of(advert: Advert) -> str:
    """The service's full name. It ends in half the node id, so that no two nodes clash, whatever their names:
    machines of one name that start together need neither probes, which take 1.5 s (measured), nor luck.
    """
    mark = advert.node[:8]
    label = advert.name.replace(".", "-")  # zeroconf would write a dot as two DNS labels
    label = "".join(c if c.isprintable() else "?" for c in label)
    label = label.encode("utf-8", "replace")[: LABEL_LIMIT - len(mark) - 1].decode("utf-8", "ignore")
    return f"{label}-{mark}.{SERVICE}"


def hosts_of(advert: Advert) -> list[str]:
    """The hosts in its addresses, those that another machine can dial: as many as others take."""
    return [host for address in advert.addresses if dialable(host := _host(address))][:ADDRESSES_LIMIT]


def _name_from(instance: str, node: str) -> str:
    label = instance[: -len(SERVICE) - 1] if instance.lower().endswith(f".{SERVICE}") else instance
    return shown(label.removesuffix(f"-{node[:8]}")) or node[:8]


def _check(key: str, raw: bytes | None) -> str:
    if raw is None:
        raise ProtocolError(f"no {key} in its TXT record")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    pattern, words = _RULES[key]
    if len(raw) > LABEL_LIMIT or not text.isprintable() or not re.fullmatch(pattern, text):
        raise ProtocolError(f"{key}={shown(raw.decode('utf-8', 'replace'))} in its TXT record: not {words}")
    return text


def _sorted_addresses(hosts: Iterable[str], port: int, networks: Sequence[Network]) -> tuple[str, ...]:
    def distance(ip: Address) -> tuple[bool, bool, int, int]:
        return not any(ip in network for network in networks), ip.is_link_local, ip.version, int(ip)

    ips = sorted({ip for host in hosts if (ip := dialable(host))}, key=distance)
    return tuple(f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}" for ip in ips[:ADDRESSES_LIMIT])


def dialable(host: str) -> Address | None:
    """The address, if another machine can be there; None otherwise."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    # is_reserved of IPv4 holds 255.255.255.255; ::ffff:a.b.c.d would pass loopback off as something else
    nowhere = ip.is_loopback or ip.is_unspecified or ip.is_multicast or needs_scope(ip)
    disguised = ip.is_reserved if ip.version == 4 else ip.ipv4_mapped is not None
    return None if nowhere or disguised else ip


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def shown(text: str) -> str:
    """Text from outside, safe to print: no control characters, no escapes, one DNS label long at most."""
    return "".join(c if c.isprintable() else "?" for c in text[:LABEL_LIMIT])


# ---- what was heard


class Heard:
    """What was heard, refused and went wrong so far: bounded, whoever shouts. No network in it."""

    def __init__(self) -> None:
        self.trouble = ""
        self._nodes: dict[str, Advert] = {}
        self._left: set[str] = set()
        self._told: set[str] = set()
        self._refused: dict[str, str] = {}
        self._refusals = 0
        self._others: set[str] = set()

    def take(self, instance: str, advert: Advert) -> bool:
        """Remember an advert. True for news: unknown, changed, back after a goodbye or `tell_again`."""
        news = instance not in self._told or self._nodes.get(instance) != advert
        self._nodes.pop(instance, None)
        self._nodes[instance] = advert
        self._told.add(instance)
        self._left.discard(instance)
        if len(self._nodes) > NODES_LIMIT:
            self._forget(next(iter(self._nodes)))
        return news

    def tell_again(self) -> None:
        """From now on every advert is news once more."""
        self._told.clear()

    def refuse(self, instance: str, why: str) -> None:
        """Count an advert that was not taken, and remember why."""
        self._refusals += self._refused.pop(instance, "") != why  # the same again is no news
        self._refused[instance] = why
        if len(self._refused) > REFUSED_LIMIT:
            del self._refused[next(iter(self._refused))]

    def leave(self, instance: str) -> None:
        """A goodbye was heard, or the advert ran out. Anybody can say so: it is only told."""
        if instance in self._nodes:
            self._left.add(instance)
            self._told.discard(instance)

    def answered(self, address: str) -> None:
        """Another machine's address came by mDNS, with whatever service: multicast gets through."""
        if len(self._others) < OTHERS_LIMIT:
            self._others.add(address)

    def lines(self, where: Interfaces, seconds: float) -> list[str]:
        """All of it, a line for each thing; `seconds` is how long was listened."""
        if where.loopback_only:
            return ["only loopback is in use here (-i), so nobody was looked for by mDNS"]
        lines = [self._listened(where, seconds)]
        lines += [f"ignored {nic} {address}: {why}" for nic, address, why in where.ignored]
        if self.trouble:
            lines.append(self.trouble)
        for instance, advert in self._nodes.items():
            lines.append(f"heard {advert}" + (", which said goodbye" if instance in self._left else ""))
        if self._refusals:
            lines.append(f"refused adverts: {self._refusals}, which break the rules; the last of them:")
            lines += [f"  {_name_from(instance, '')}: {why}" for instance, why in self._refused.items()]
        if not self._nodes:
            lines.append(self._nobody())
        return lines

    def _listened(self, where: Interfaces, seconds: float) -> str:
        over = set(where.multicast)
        heard_on = ", ".join(f"{nic} {address}" for nic, address in where.usable if address in over)
        others = f"other addresses in mDNS answers: {len(self._others)}"
        return f"listened on {heard_on or 'no interface'} for {seconds:.0f} s; {others}"

    def _nobody(self) -> str:
        if self._others:
            return (
                "no node was heard, but other machines were, so multicast gets through:"
                " start discoro-node on one of them, or name one that runs it: --peer HOST[:PORT]"
            )
        return f"no node was heard: {NO_MULTICAST_HINT}"

    def _forget(self, instance: str) -> None:
        del self._nodes[instance]
        self._left.discard(instance)
        self._told.discard(instance)
