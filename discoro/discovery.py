"""Who is there: advertises a node by mDNS, finds the others, says in words what was heard and what was not.

The only module that knows zeroconf and ifaddr. What it hears is a hint, never a fact, since anybody on a
network can say anything by mDNS. So it only tells that somebody may be at some addresses: who it is, the
greeting proves; that it is gone, the link finds out. A goodbye changes the report and nothing else; an advert
that breaks a rule is counted, reported and ignored.

How the parts play together:
    interfaces   this machine's addresses, usable or ignored for a reason; `choose` decides
    Advert       what a node says of itself; `to_txt` and `advert_from`: into DNS-SD and back, within limits
    Heard        what was heard, what was refused, what went wrong: bounded, and told in lines for people
    Discovery    the one part that touches the network: browses, advertises, keeps looking, says goodbye
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import re
import socket
import struct
import sys
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ifaddr
from zeroconf import (
    DNSQuestionType,
    IPVersion,
    NotRunningException,
    RecordUpdate,
    RecordUpdateListener,
    ServiceStateChange,
    Zeroconf,
)
from zeroconf import Error as ZeroconfError
from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

from .errors import ConfigError, ProtocolError

_log = logging.getLogger("discoro.discovery")

SERVICE = "_discoro._tcp.local."
"""One DNS-SD type (RFC 6763) for all clusters, so that `avahi-browse -rt _discoro._tcp` shows every node."""

HEARD_TXT_LIMIT = 1300
"""Bytes of TXT read from others: RFC 6763 section 6.2, what fits one Ethernet packet."""

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

RESOLVING_LIMIT = 64
"""Adverts whose details are being asked for at one time: each may take RESOLVE_TIME, and forged ones do."""

RESOLVE_TIME = 3.0
"""Seconds to wait for the details of an advert; real nodes send them along with it."""

RESCAN_TIME = 5.0
"""Seconds between two looks at the interfaces: a look costs about 1 ms, and nobody waits long for a cable."""

ANNOUNCE_EARLY = 20.0
"""Seconds between announcements while young. A browser asks only four times by itself: without announcements,
one that was cut off then would never hear of this node."""

ANNOUNCE_LATE = 60.0
"""Seconds between announcements later on."""

YOUNG = 120.0
"""Seconds that an advertising node counts as young."""

REFRESH_PAUSE = 1.0
"""Seconds within which `refresh` does not ask again (RFC 6762 section 5.2: a second between two queries)."""

NO_INTERFACE = "no usable network interface: until there is one, mDNS finds nobody"

NO_MULTICAST_HINT = (
    "either none runs in reach, or multicast (UDP port 5353) does not get through: a firewall,"
    " Wi-Fi client isolation, a container, another subnet."
    " Start discoro-node, or name a machine that runs it: --peer HOST[:PORT]"
)

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


# ---- this machine's addresses


@dataclass(frozen=True)
class NicAddress:
    """One address of one interface, as the system reports it; `prefix` in bits."""

    nic: str
    address: str
    prefix: int
    up: bool = True

    @property
    def ip(self) -> _Address:
        return ipaddress.ip_address(self.address)

    @property
    def network(self) -> _Network:
        return ipaddress.ip_network(f"{self.address}/{self.prefix}", strict=False)


@dataclass(frozen=True)
class Interfaces:
    """What this machine is reached by: `usable`, (nic, address), best first; `ignored`, (nic, address, why).

    Loopback and IPv6 link-local addresses are in neither, unless asked for: nobody expects to dial them.
    `networks` are the subnets of the usable addresses; `wanted` repeats those asked for, in numbers.
    """

    usable: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str, str], ...] = ()
    networks: tuple[_Network, ...] = ()
    wanted: tuple[str, ...] = ()

    @property
    def loopback_only(self) -> bool:
        """True when loopback, and nothing else, was asked for: then not one multicast packet is sent."""
        return bool(self.usable) and all(_is_loopback(address) for _, address in self.usable)

    @property
    def multicast(self) -> list[str]:
        """The addresses that mDNS goes over: one an interface, as a second would send every packet twice.

        IPv4 where the machine has any; IPv6 only where it has nothing else.
        """
        chosen: dict[tuple[int, str], str] = {}
        for nic, address in self.usable:
            if not _is_loopback(address):
                chosen.setdefault((ipaddress.ip_address(address).version, nic), address)
        version = min((version for version, _ in chosen), default=4)
        return [address for (its, _), address in chosen.items() if its == version]


def interfaces(wanted: Sequence[str] = ()) -> Interfaces:
    """The addresses of this machine that other machines may dial, and those ignored, each with its reason.

    `wanted` holds addresses or host names (option -i); then only these are usable, whatever they are.
    `0.0.0.0` and `::` stand for all that is usable, as does an empty `wanted`. Only names given here are
    looked up, which may block for seconds; never the machine's own, which often means 127.0.1.1. Raises
    ConfigError for a name that does not resolve, or an address that no interface here has.
    """
    asked = {text: _resolve(text) for text in wanted}
    if any(ip.is_unspecified for found in asked.values() for ip in found):
        asked = {}
    return choose(_system_addresses(), asked)


def choose(found: Iterable[NicAddress], asked: Mapping[str, Sequence[_Address]]) -> Interfaces:
    """Sort the addresses `found` on this machine; `asked` is what was typed, and which addresses that means.

    Raises ConfigError for something typed of which no address was found.
    """
    every = list(found)
    wanted = {ip for ips in asked.values() for ip in ips}
    here = {each.ip for each in every}
    for text, ips in asked.items():
        if here.isdisjoint(ips):
            raise ConfigError(_no_such_address(text, ips, every))
    usable: list[NicAddress] = []
    ignored: list[tuple[str, str, str]] = []
    for each in every:
        why = _why_ignored(each, wanted)
        if not why:
            usable.append(each)
        elif not (each.ip.is_loopback or _needs_scope(each.ip)):
            ignored.append((each.nic, each.address, why))
    usable.sort(key=_last_resort)
    return Interfaces(
        usable=tuple((each.nic, each.address) for each in usable),
        ignored=tuple(ignored),
        networks=tuple(dict.fromkeys(each.network for each in usable)),
        wanted=tuple(each.address for each in usable) if asked else (),
    )


def look_again(before: Interfaces, found: Iterable[NicAddress]) -> Interfaces:
    """What became of `before`, by the addresses found now. What was asked for stays so, even while gone."""
    every = list(found)
    if not before.wanted:
        return choose(every, {})
    here = {each.address: [each.ip] for each in every if each.address in before.wanted}
    now = choose(every, here) if here else Interfaces(usable=())
    return replace(now, wanted=before.wanted)


_INSIDE = re.compile(
    r"docker.*|br-[0-9a-f]{12}|veth.*|virbr.*|lxcbr.*|lxdbr.*|podman.*|cni.*"
    r"|vEthernet \((WSL|Default Switch|nat)\b.*"
)
_VPN = re.compile(r"(tun|tap|wg|tailscale|utun|ppp|zt).*")


def _why_ignored(each: NicAddress, wanted: set[_Address]) -> str:
    if wanted:
        return "" if each.ip in wanted else "not asked for with -i"
    if each.ip.is_loopback:
        return "loopback"
    if not each.up:
        return "the interface is down"
    if _needs_scope(each.ip):
        return "IPv6 link-local"
    if _INSIDE.fullmatch(each.nic):
        return "a bridge to containers or virtual machines"
    return ""


def _last_resort(each: NicAddress) -> tuple[bool, bool, int]:
    """The sort key: VPNs last, self-assigned addresses (169.254.x.x) late, IPv4 before IPv6."""
    return bool(_VPN.fullmatch(each.nic)), each.ip.is_link_local, each.ip.version


def _no_such_address(text: str, ips: Sequence[_Address], every: Iterable[NicAddress]) -> str:
    meant = ", ".join(map(str, ips))
    named = text if text == meant else f"{text} (that is {meant})"
    here = ", ".join(f"{each.nic} {each.address}" for each in every if not _needs_scope(each.ip))
    return f"-i {named}: no interface of this machine has that address; it has {here or 'none'}"


def _resolve(text: str) -> list[_Address]:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(text, None, type=socket.SOCK_DGRAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"-i {text}: neither an address nor a name that resolves here ({error})") from error
    ips = sorted((ipaddress.ip_address(str(host).partition("%")[0]) for host in found), key=str)
    if all(_needs_scope(ip) for ip in ips):
        raise ConfigError(f"-i {text}: IPv6 link-local, which no other machine can dial: name another")
    return ips


def _system_addresses() -> list[NicAddress]:
    found = []
    for adapter in ifaddr.get_adapters():
        up = _is_up(adapter.name)
        for ip in adapter.ips:
            address = ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip
            found.append(NicAddress(ip.nice_name, address, ip.network_prefix, up))
    return found


def _is_up(nic: str) -> bool:
    """False for an interface that is switched off: SIOCGIFFLAGS, netdevice(7). Elsewhere than on Linux True.

    A cable that is out does not count as down: it may be plugged in later, and to dial in vain costs nothing.
    """
    if sys.platform != "linux":
        return True
    import fcntl

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            answer = fcntl.ioctl(any_socket, 0x8913, struct.pack("15sxH22x", nic.encode(), 0))
        except OSError:
            return False  # it went away since it was listed
    return bool(struct.unpack("16xH22x", answer)[0] & 1)


def _needs_scope(ip: _Address) -> bool:
    return ip.version == 6 and ip.is_link_local


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback


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
    networks: Sequence[_Network] = (),
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


def _name_from(instance: str, node: str) -> str:
    label = instance[: -len(SERVICE) - 1] if instance.lower().endswith(f".{SERVICE}") else instance
    return _shown(label.removesuffix(f"-{node[:8]}")) or node[:8]


def _check(key: str, raw: bytes | None) -> str:
    if raw is None:
        raise ProtocolError(f"no {key} in its TXT record")
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text = "\0"
    pattern, words = _RULES[key]
    if len(raw) > LABEL_LIMIT or not text.isprintable() or not re.fullmatch(pattern, text):
        raise ProtocolError(f"{key}={_shown(raw.decode('utf-8', 'replace'))} in its TXT record: not {words}")
    return text


def _sorted_addresses(hosts: Iterable[str], port: int, networks: Sequence[_Network]) -> tuple[str, ...]:
    def distance(ip: _Address) -> tuple[bool, bool, int, int]:
        return not any(ip in network for network in networks), ip.is_link_local, ip.version, int(ip)

    ips = sorted({ip for host in hosts if (ip := _dialable(host))}, key=distance)
    return tuple(f"[{ip}]:{port}" if ip.version == 6 else f"{ip}:{port}" for ip in ips[:ADDRESSES_LIMIT])


def _dialable(host: str) -> _Address | None:
    """The address, if another machine can be there; None otherwise."""
    try:
        ip = ipaddress.ip_address(host)
    except ValueError:
        return None
    # is_reserved of IPv4 holds 255.255.255.255; ::ffff:a.b.c.d would pass loopback off as something else
    nowhere = ip.is_loopback or ip.is_unspecified or ip.is_multicast or _needs_scope(ip)
    disguised = ip.is_reserved if ip.version == 4 else ip.ipv4_mapped is not None
    return None if nowhere or disguised else ip


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _shown(text: str) -> str:
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


class _Others(RecordUpdateListener):
    """Notes which other machines answer mDNS at all, which tells a silent network from one without nodes."""

    def __init__(self, heard: Heard, own: Callable[[], set[str]]) -> None:
        super().__init__()
        self._heard = heard
        self._own = own

    def async_update_records(self, zc: Zeroconf, now: float, records: list[RecordUpdate]) -> None:
        own = self._own()
        for record in records:
            packed = getattr(record.new, "address", None)  # only A and AAAA records have one
            if packed is None:
                continue
            address = str(ipaddress.ip_address(packed))
            if address not in own and _dialable(address):
                self._heard.answered(address)


# ---- the network


class Discovery:
    """Browses for nodes, advertises this one, and keeps at it while interfaces come and go. One per process.

    `found` is called from the loop, never from inside a call, with each advert that is news (see
    `Heard.take`): dial it, and believe the greeting. This process's own advert is no news. Make it, start it
    and close it in one and the same running loop.
    """

    def __init__(self, found: Callable[[Advert], None], interfaces: Interfaces) -> None:
        self._found = found
        self._interfaces = interfaces
        self._heard = Heard()
        self._zeroconf: AsyncZeroconf | None = None
        self._browser: AsyncServiceBrowser | None = None
        self._service: AsyncServiceInfo | None = None
        self._tasks: set[asyncio.Future[Any]] = set()
        self._resolving: set[str] = set()
        self._closing = asyncio.Event()
        self._maintenance: asyncio.Future[None] | None = None
        self._started = 0.0
        self._refreshed = 0.0

    def __repr__(self) -> str:
        state = "open" if self._zeroconf else "closed"
        over = ", ".join(self._interfaces.multicast) or "nothing"
        what = self._service.name if self._service else "nothing"
        return f"<Discovery {state}, over {over}, advertising {what}>"

    async def start(self) -> None:
        """Browse. Where multicast does not work, `heard()` says so and it is tried again: it is no error."""
        self._started = asyncio.get_running_loop().time()
        if not self._interfaces.loopback_only:
            await self._open()
            self._maintenance = self._spawn(self._maintain())

    async def advertise(self, advert: Advert, port: int) -> None:
        """Advertise this node, once per Discovery. Returns at once: the first packet leaves in the next turn.

        Of `advert.addresses` only the hosts count, which are IP addresses: `port` goes with each. Those that
        no other machine can dial are left out; with none left, or on a loopback-only node, nothing is
        advertised. Raises ConfigError for an advert that others would refuse, RuntimeError the second time.
        """
        if self._service is not None:
            raise RuntimeError(f"{self!r} already advertises")
        txt = to_txt(advert)
        hosts = [host for address in advert.addresses if _dialable(host := _host(address))][:ADDRESSES_LIMIT]
        if self._interfaces.loopback_only or not hosts:
            _log.debug("= not advertised: no address that other machines can dial")
            return
        # A host name of our own, drawn at each start: the records of an earlier life never mix with these.
        server = f"discoro-{advert.node}.local."
        self._service = AsyncServiceInfo(
            SERVICE, instance_of(advert), port=port, properties=txt, server=server, parsed_addresses=hosts
        )
        await self._register()

    def refresh(self) -> None:
        """Ask again, and report every advert anew; for while somebody waits for nodes, about every 10 s.

        Within REFRESH_PAUSE of the last time it does nothing.
        """
        now = asyncio.get_running_loop().time()
        if self._zeroconf is not None and now - self._refreshed >= REFRESH_PAUSE:
            self._refreshed = now
            self._spawn(self._browse_again())

    def heard(self) -> list[str]:
        """What was listened on, heard, refused, and went wrong: one line each, for the text of NoNodes."""
        seconds = asyncio.get_running_loop().time() - self._started
        return self._heard.lines(self._interfaces, seconds)

    async def close(self) -> None:
        """Say goodbye (0.25 s) and leave no socket, task or thread. May be called again."""
        self._closing.set()
        if self._maintenance is not None:
            # Not cancelled: zeroconf, interrupted while it changes interfaces, would leave sockets open.
            # It ends within 0.5 s.
            await asyncio.wait([self._maintenance])
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._shut()

    # -- opening and shutting zeroconf

    async def _open(self) -> None:
        over = self._interfaces.multicast
        if not over:
            self._heard.trouble = NO_INTERFACE
            return
        try:
            _check_here(over)
            # Kept at once: whatever interrupts us from here on, `_shut` finds it.
            self._zeroconf = opened = AsyncZeroconf(interfaces=over, ip_version=_version(over))
            await opened.zeroconf.async_wait_for_start()
            if not opened.zeroconf.engine.senders:
                raise OSError("no interface could join the group")
        except (OSError, ZeroconfError) as error:
            self._trouble(over, error)
            await self._shut()
            return
        self._heard.trouble = ""
        opened.zeroconf.async_add_listener(_Others(self._heard, self._own_addresses), None)
        self._browse(opened)
        await self._register()

    async def _shut(self) -> None:
        if self._browser is not None:
            browser, self._browser = self._browser, None
            await browser.async_cancel()
        if self._zeroconf is not None:
            await self._zeroconf.async_close()
            self._zeroconf = None  # not before: a cancelled `_shut` can be run again

    def _trouble(self, over: Sequence[str], error: Exception) -> None:
        self._heard.trouble = f"mDNS cannot be used on {', '.join(over)}: {error or type(error).__name__}"
        _log.debug("! %s", self._heard.trouble)

    async def _register(self) -> None:
        if self._zeroconf is None or self._service is None:
            return
        # Cooperating: no probes, the instance name is ours alone.
        try:
            rest = await self._zeroconf.async_register_service(self._service, cooperating_responders=True)
        except NotRunningException:
            return  # the interfaces went just now; it is registered when they are back
        self._watch(asyncio.ensure_future(rest))

    def _own_addresses(self) -> set[str]:
        usable = {address for _, address in self._interfaces.usable}
        return usable | {address for _, address, _ in self._interfaces.ignored}

    # -- hearing

    def _browse(self, zeroconf: AsyncZeroconf) -> None:
        # QM, not QU: of several processes on one machine only one would get the unicast answer to QU
        # (RFC 6762 section 15.1), and it need not be the one that asked.
        self._browser = AsyncServiceBrowser(
            zeroconf.zeroconf, SERVICE, handlers=[self._changed], question_type=DNSQuestionType.QM
        )

    async def _browse_again(self) -> None:
        browser, self._browser = self._browser, None
        if browser is not None:
            await browser.async_cancel()
        if self._zeroconf is not None:
            self._heard.tell_again()
            self._browse(self._zeroconf)

    def _changed(
        self, zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange
    ) -> None:
        if self._service is not None and name.lower() == self._service.key:
            return
        if state_change is ServiceStateChange.Removed:
            _log.debug("< goodbye of %s", _shown(name))
            self._heard.leave(name)
            return
        service = AsyncServiceInfo(SERVICE, name)
        if service.load_from_cache(zeroconf):
            self._take(service)
        elif name in self._resolving:
            return
        elif len(self._resolving) < RESOLVING_LIMIT:
            self._resolving.add(name)
            self._spawn(self._resolve(zeroconf, service))
        else:
            self._heard.refuse(name, "too many adverts at once; the next look will ask for it again")

    async def _resolve(self, zeroconf: Zeroconf, service: AsyncServiceInfo) -> None:
        try:
            if await service.async_request(zeroconf, RESOLVE_TIME * 1000, DNSQuestionType.QM):
                self._take(service)
            else:
                self._heard.refuse(service.name, f"told no address or TXT record within {RESOLVE_TIME:.0f} s")
        finally:
            self._resolving.discard(service.name)

    def _take(self, service: AsyncServiceInfo) -> None:
        try:
            if len(service.text) > HEARD_TXT_LIMIT:
                raise ProtocolError(f"its TXT record has {len(service.text)} bytes, over {HEARD_TXT_LIMIT}")
            hosts = service.parsed_addresses()
            advert = advert_from(
                service.name, service.properties, hosts, service.port, self._interfaces.networks
            )
        except ProtocolError as error:
            _log.debug("! refused %s: %s", _shown(service.name), error)
            self._heard.refuse(service.name, str(error))
            return
        if self._heard.take(service.name, advert):
            _log.debug("< %s", advert)
            asyncio.get_running_loop().call_soon(self._report, advert)

    def _report(self, advert: Advert) -> None:
        if self._zeroconf is not None:
            self._found(advert)

    # -- keeping at it

    async def _maintain(self) -> None:
        clock = asyncio.get_running_loop().time
        announced = clock()
        while not await self._closed_within(RESCAN_TIME):
            try:
                await self._rescan()
                if clock() - announced >= _announce_pause(clock() - self._started):
                    announced = clock()
                    await self._announce()
            except (OSError, ZeroconfError) as error:
                self._trouble(self._interfaces.multicast, error)

    async def _closed_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._closing.wait()
        except TimeoutError:
            return False

    async def _rescan(self) -> None:
        """Take up interfaces that came, drop those that went."""
        before, self._interfaces = self._interfaces, look_again(self._interfaces, _system_addresses())
        over = self._interfaces.multicast
        if self._zeroconf is None:
            await self._open()
            return
        self._heard.trouble = "" if over else NO_INTERFACE
        if not over:
            await self._shut()  # plugged in again, even with the same address, it needs new sockets
        elif over != before.multicast:
            await self._zeroconf.async_update_interfaces(over, _version(over))
            self.refresh()

    async def _announce(self) -> None:
        if self._zeroconf is not None and self._service is not None:
            self._watch(asyncio.ensure_future(await self._zeroconf.async_update_service(self._service)))

    # -- tasks

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Future[None]:
        task = asyncio.ensure_future(work)
        self._watch(task)
        return task

    def _watch(self, task: asyncio.Future[Any]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Future[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.result()  # a bug of ours: raised here, the loop's exception handler tells it


def _announce_pause(age: float) -> float:
    return ANNOUNCE_EARLY if age < YOUNG else ANNOUNCE_LATE


def _check_here(addresses: Sequence[str]) -> None:
    """OSError for an address that has gone: given to zeroconf, it would cost a socket left open."""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))


def _version(addresses: Sequence[str]) -> IPVersion:
    return IPVersion.V6Only if any(":" in address for address in addresses) else IPVersion.V4Only
