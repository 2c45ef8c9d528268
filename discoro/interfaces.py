"""This machine's addresses: which of them others may dial, and why the rest is ignored.

The only module that knows ifaddr. It looks and chooses; it never waits for anything but a name given with -i,
opens no connection and sends nothing.

How the parts play together: `system_addresses` reads what the system has, one `NicAddress` each, and `choose`
sorts them, a pure function; `interfaces` is the two together, at the start, and `look_again` is `choose` for
later, when cables and adapters have come and gone. `Interfaces` is what comes out.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import struct
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import ifaddr

from discoro.errors import ConfigError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True)
class NicAddress:
    """One address of one interface, as the system reports it; `prefix` in bits. `index` is the system's number for the
    interface: one that is plugged in again has the same name and another number.
    """

    nic: str
    address: str
    prefix: int
    up: bool = True
    index: int = 0

    @property
    def ip(self) -> Address:
        return ipaddress.ip_address(self.address)

    @property
    def network(self) -> Network:
        return ipaddress.ip_network(f"{self.address}/{self.prefix}", strict=False)


@dataclass(frozen=True)
class Interfaces:
    """What this machine is reached by: `usable`, (nic, address), best first; `ignored`, (nic, address, why).

    Loopback and IPv6 link-local addresses are in neither, unless asked for: nobody expects to dial them.
    `networks` are the subnets of the usable addresses; `wanted` repeats those asked for, in numbers; `indexes` are the system's
    numbers for the interfaces in `usable`, in that order.
    """

    usable: tuple[tuple[str, str], ...]
    ignored: tuple[tuple[str, str, str], ...] = ()
    networks: tuple[Network, ...] = ()
    wanted: tuple[str, ...] = ()
    indexes: tuple[int, ...] = ()

    @property
    def loopback_only(self) -> bool:
        """True when loopback, and nothing else, was asked for: then not one multicast packet is sent."""
        return bool(self.usable) and all(_is_loopback(address) for _, address in self.usable)

    @property
    def settled(self) -> bool:
        """True when loopback, and nothing else, was asked for: then no cable and no sleep changes anything."""
        return bool(self.wanted) and all(map(_is_loopback, self.wanted))

    @property
    def hosts(self) -> list[str]:
        """Where a process listens: at every usable address, and on loopback for the processes of this machine."""
        hosts = [address for _, address in self.usable]
        return hosts if any(map(_is_loopback, hosts)) else [*hosts, "127.0.0.1"]

    @property
    def public(self) -> list[str]:
        """The usable addresses that the whole Internet may reach (IANA's special-purpose registries list the others)."""
        return [address for _, address in self.usable if is_public(address)]

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
    return choose(system_addresses(), asked)


def choose(found: Iterable[NicAddress], asked: Mapping[str, Sequence[Address]]) -> Interfaces:
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
        elif not (each.ip.is_loopback or needs_scope(each.ip)):
            ignored.append((each.nic, each.address, why))
    usable.sort(key=_last_resort)
    return Interfaces(
        usable=tuple((each.nic, each.address) for each in usable),
        ignored=tuple(ignored),
        networks=tuple(dict.fromkeys(each.network for each in usable)),
        wanted=tuple(each.address for each in usable) if asked else (),
        indexes=tuple(each.index for each in usable),
    )


def look_again(before: Interfaces, found: Iterable[NicAddress]) -> Interfaces:
    """What became of `before`, by the addresses found now. What was asked for stays so, even while gone."""
    every = list(found)
    if not before.wanted:
        return choose(every, {})
    here = {each.address: [each.ip] for each in every if each.address in before.wanted}
    now = choose(every, here) if here else Interfaces(usable=())
    return replace(now, wanted=before.wanted)


def plugged_in_again(before: Interfaces, now: Interfaces) -> bool:
    """Whether an address is on another interface than before, as after an adapter was pulled out and put back: sockets that
    joined a multicast group on the one before hear nothing any more.
    """
    known = {address: index for (_, address), index in zip(before.usable, before.indexes, strict=False)}
    return any(known.get(address, index) != index for (_, address), index in zip(now.usable, now.indexes, strict=False))


def without_public(where: Interfaces) -> Interfaces:
    """For a process that is open: the addresses that the whole Internet may reach are ignored."""
    public = set(where.public)
    kept = [number for number, (_, address) in enumerate(where.usable) if address not in public]
    ignored = [(nic, address, "public, and this process is open") for nic, address in where.usable if address in public]
    return replace(
        where,
        usable=tuple(where.usable[number] for number in kept),
        indexes=tuple(where.indexes[number] for number in kept),
        ignored=(*where.ignored, *ignored),
    )


_INSIDE = re.compile(
    r"docker.*|br-[0-9a-f]{12}|veth.*|virbr.*|lxcbr.*|lxdbr.*|podman.*|cni.*"
    r"|vEthernet \((WSL|Default Switch|nat)\b.*"
)
_VPN = re.compile(r"(tun|tap|wg|tailscale|utun|ppp|zt).*")


def _why_ignored(each: NicAddress, wanted: set[Address]) -> str:
    if wanted:
        return "" if each.ip in wanted else "not asked for with -i"
    if each.ip.is_loopback:
        return "loopback"
    if not each.up:
        return "the interface is down"
    if needs_scope(each.ip):
        return "IPv6 link-local"
    if _INSIDE.fullmatch(each.nic):
        return "a bridge to containers or virtual machines"
    return ""


def _last_resort(each: NicAddress) -> tuple[bool, bool, int]:
    """The sort key: VPNs last, self-assigned addresses (169.254.x.x) late, IPv4 before IPv6."""
    return bool(_VPN.fullmatch(each.nic)), each.ip.is_link_local, each.ip.version


def _no_such_address(text: str, ips: Sequence[Address], every: Iterable[NicAddress]) -> str:
    meant = ", ".join(map(str, ips))
    named = text if text == meant else f"{text} (that is {meant})"
    here = ", ".join(f"{each.nic} {each.address}" for each in every if not needs_scope(each.ip))
    return f"-i {named}: no interface of this machine has that address; it has {here or 'none'}"


def _resolve(text: str) -> list[Address]:
    try:
        found = {info[4][0] for info in socket.getaddrinfo(text, None, type=socket.SOCK_DGRAM)}
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"-i {text}: neither an address nor a name that resolves here ({error})") from error
    ips = sorted((ipaddress.ip_address(str(host).partition("%")[0]) for host in found), key=str)
    if all(needs_scope(ip) for ip in ips):
        raise ConfigError(f"-i {text}: IPv6 link-local, which no other machine can dial: name another")
    return ips


def system_addresses() -> list[NicAddress]:
    """Every address of every interface as the system reports them now, about 1 ms."""
    found = []
    for adapter in ifaddr.get_adapters():
        up = _is_up(adapter.name)
        for ip in adapter.ips:
            address = ip.ip[0] if isinstance(ip.ip, tuple) else ip.ip
            found.append(NicAddress(ip.nice_name, address, ip.network_prefix, up, adapter.index or 0))
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


def needs_scope(ip: Address) -> bool:
    """True for IPv6 link-local: such an address means nothing without the interface of whoever dials it."""
    return ip.version == 6 and ip.is_link_local


def refuse_public(where: Interfaces, external: str | None) -> None:
    """ConfigError where this process would listen without a key at an address that the whole Internet may reach."""
    public = [*where.public, *([external] if external and is_public(external) else [])]
    if public:
        raise ConfigError(
            f"--open at public addresses ({', '.join(public)}) would let the whole Internet run code here: leave out --open, "
            "choose other addresses with -i (a firewall in between is not seen from here), or add --open-public"
        )


def is_public(host: str) -> bool:
    """Whether the whole Internet may reach that address, or, for a host name, might."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_global
    except ValueError:
        return True


def _is_loopback(address: str) -> bool:
    return ipaddress.ip_address(address).is_loopback
