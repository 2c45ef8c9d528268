"""Several machines on one network inside this one: network namespaces on a bridge, made by a test for itself.

    with Lan(["a", "b"]) as lan:
        process = lan.popen("a", [sys.executable, "-c", "..."], stdout=subprocess.PIPE)
        with lan.cut_off("a"), lan.loss("b", 0.05):
            ...

Faults are `with` blocks; each host's interface and address are as before at the end of one. Where the kernel or the tools lack
one, the test is skipped with the reason.
Nothing of it is seen from outside, and nothing stays: each namespace lives as long as one `cat` that waits on
a pipe of ours, so it goes with the test process, even by SIGKILL. The bridge is in a namespace of its own.
Without root all of it is inside one user namespace. Needs unshare and nsenter (util-linux) and ip (iproute2).
"""

from __future__ import annotations

import contextlib
import enum
import functools
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

import pytest

SWITCH = "the switch"


class Way(enum.Enum):
    """How namespaces are made: the options for unshare, and for nsenter."""

    ROOT = ((), ())
    USER = (("--user", "--map-root-user"), ("--user", "--preserve-credentials"))

    def __init__(self, unshare: tuple[str, ...], nsenter: tuple[str, ...]) -> None:
        self.unshare = unshare
        self.nsenter = nsenter


@functools.cache
def why_not(way: Way) -> str:
    """Why namespaces cannot be made in this way here; empty when they can."""
    missing = [tool for tool in ("unshare", "nsenter", "ip", "cat") if shutil.which(tool) is None]
    if missing:
        return f"{' and '.join(missing)} not installed"
    if way is Way.ROOT and os.geteuid() != 0:
        return "not root"
    probe = ["unshare", *way.unshare, "--net", "ip", "link", "add", "probe", "type", "bridge"]
    done = subprocess.run(probe, capture_output=True, text=True, check=False)
    return done.stderr.strip() if done.returncode else ""


def best_way() -> Way | None:
    """As root if we are, in a user namespace otherwise; None where neither works."""
    return next((way for way in Way if not why_not(way)), None)


needs_namespaces = pytest.mark.skipif(
    best_way() is None,
    reason=f"no network namespaces: {why_not(Way.ROOT)}; with unshare -rn: {why_not(Way.USER)}",
)


class Lan:
    """Hosts on one switch, with the addresses 10.77.0.1, .2, ... in the order given; their interface is eth0.

    `way` is how to make them; by default as root or, without root, in a user namespace.
    """

    def __init__(self, hosts: Sequence[str], way: Way | None = None) -> None:
        chosen = way or best_way()
        assert chosen is not None, "mark the test with needs_namespaces"
        self.way = chosen
        self._hosts = list(hosts)
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._started: list[subprocess.Popen[Any]] = []

    def __enter__(self) -> Lan:
        try:
            self._hold(SWITCH, ["unshare", *self.way.unshare, "--net"])
            self.run(SWITCH, "ip link add switch type bridge")
            self.run(SWITCH, "ip link set switch up")
            for host in self._hosts:
                self._hold(host, [*self._enter(SWITCH), "unshare", "--net"])
                self.run(host, "ip link set lo up")
                self.plug_in(host)
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    @property
    def holders(self) -> list[int]:
        """The ids of the processes that the namespaces live by."""
        return [holder.pid for holder in self._holders.values()]

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return f"10.77.0.{self._hosts.index(host) + 1}"

    def popen(self, host: str, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a command on a host; the process is the command itself. What still runs is killed with the
        Lan.
        """
        process = subprocess.Popen([*self._enter(host), *command], **options)
        self._started.append(process)
        return process

    def run(self, host: str, command: str) -> str:
        """Run a command of plain words on a host, give its output; CalledProcessError where it fails."""
        whole = [*self._enter(host), *command.split()]
        done = subprocess.run(whole, stdout=subprocess.PIPE, text=True, check=True)
        return done.stdout

    def cut(self, host: str) -> None:
        """Nothing gets to or from the host any more; its interface notices nothing, as beyond a switch."""
        self._port(host, "nomaster")

    def heal(self, host: str) -> None:
        """Undo `cut`."""
        self._port(host, "master switch")

    @contextlib.contextmanager
    def cut_off(self, host: str) -> Iterator[None]:
        """`cut`, and `heal` at the end."""
        self.cut(host)
        try:
            yield
        finally:
            self.heal(host)

    @contextlib.contextmanager
    def switched_off(self, host: str) -> Iterator[None]:
        """The host's interface is down, as in a laptop that sleeps or in flight mode; it keeps its address."""
        self.run(host, "ip link set eth0 down")
        try:
            yield
        finally:
            self.run(host, "ip link set eth0 up")

    @contextlib.contextmanager
    def unplugged(self, host: str) -> Iterator[None]:
        """`unplug`, and `plug_in` at the end."""
        self.unplug(host)
        try:
            yield
        finally:
            self.plug_in(host)

    @contextlib.contextmanager
    def without_address(self, host: str) -> Iterator[None]:
        """The host's interface is up and has no address, as before DHCP has answered."""
        self.run(host, f"ip address del {self.address(host)}/24 dev eth0")
        try:
            yield
        finally:
            self.run(host, f"ip address add {self.address(host)}/24 dev eth0")

    @contextlib.contextmanager
    def readdressed(self, host: str, address: str) -> Iterator[None]:
        """The host has that address instead of its own, as when DHCP gives another one."""
        with self.without_address(host):
            self.run(host, f"ip address add {address}/24 dev eth0")
            try:
                yield
            finally:
                self.run(host, f"ip address del {address}/24 dev eth0")

    @contextlib.contextmanager
    def further_interface(self, host: str, address: str) -> Iterator[None]:
        """The host has a second way to the switch, with that address, as when Wi-Fi or a VPN comes up."""
        pid, port = self._holders[host].pid, f"{self._port_name(host)}w"
        self.run(SWITCH, f"ip link add {port} type veth peer name wlan0 netns {pid}")
        try:
            self.run(SWITCH, f"ip link set {port} master switch up")
            self.run(host, f"ip address add {address}/24 dev wlan0")
            self.run(host, "ip link set wlan0 up")
            yield
        finally:
            self.run(SWITCH, f"ip link delete {port}")

    def unplug(self, host: str) -> None:
        """The host loses its interface altogether, as when a USB adapter is pulled out."""
        self.run(SWITCH, f"ip link delete {self._port_name(host)}")

    def plug_in(self, host: str) -> None:
        """Undo `unplug`: an interface of the same name and address, which is another one."""
        pid, port = self._holders[host].pid, self._port_name(host)
        self.run(SWITCH, f"ip link add {port} type veth peer name eth0 netns {pid}")
        self.run(SWITCH, f"ip link set {port} master switch up")
        self.run(host, f"ip address add {self.address(host)}/24 dev eth0")
        self.run(host, "ip link set eth0 up")

    @contextlib.contextmanager
    def link_down(self, host: str) -> Iterator[None]:
        """The cable is out of the host's interface, which has no carrier and notices it; its addresses stay."""
        self._port(host, "down")
        try:
            yield
        finally:
            self._port(host, "up")

    @contextlib.contextmanager
    def deaf(self, host: str, what: str = "all") -> Iterator[None]:
        """Nothing of that comes to the host any more, which still sends: "all", or only "udp"."""
        with self._rule(host, f"-i eth0 -p {what} -j DROP"):
            yield

    @contextlib.contextmanager
    def loss(self, host: str, share: float) -> Iterator[None]:
        """That share of the packets to the host is lost, at random; what it sends is not touched."""
        with self._rule(host, f"-i eth0 -m statistic --mode random --probability {share} -j DROP"):
            yield

    @contextlib.contextmanager
    def one_way_firewall(self, host: str) -> Iterator[None]:
        """Nobody opens a TCP connection to the host, who tries hears nothing; it opens its own as ever."""
        with self._rule(host, "-p tcp --syn -j DROP"):
            yield

    @contextlib.contextmanager
    def rate(self, host: str, rate: str) -> Iterator[None]:
        """What the host sends leaves it at no more than that rate, such as "16mbit"."""
        with self._queue(host, f"tbf rate {rate} burst 32k latency 400ms"):  # 400 ms: what a router at home holds back
            yield

    @contextlib.contextmanager
    def delay(self, host: str, milliseconds: int, reordered: int = 0) -> Iterator[None]:
        """What the host sends takes so long, give or take a fifth; so many packets in a hundred overtake the others."""
        order = f" reorder {reordered}% 50%" if reordered else ""
        with self._queue(host, f"netem delay {milliseconds}ms {milliseconds // 5}ms{order}"):
            yield

    @contextlib.contextmanager
    def _rule(self, host: str, rule: str) -> Iterator[None]:
        for tool in ("iptables", "ip6tables"):
            self._try(host, f"{tool} -w -A INPUT {rule}")
        try:
            yield
        finally:
            for tool in ("iptables", "ip6tables"):
                self.run(host, f"{tool} -w -D INPUT {rule}")

    @contextlib.contextmanager
    def _queue(self, host: str, discipline: str) -> Iterator[None]:
        self._try(host, f"tc qdisc add dev eth0 root {discipline}")
        try:
            yield
        finally:
            self.run(host, "tc qdisc del dev eth0 root")

    def _try(self, host: str, command: str) -> None:
        """Run it on the host; skip the test where this machine cannot."""
        tool = command.split()[0]
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
        done = subprocess.run([*self._enter(host), *command.split()], capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"{command!r} cannot be done here: {done.stderr.strip()}")

    def drop_multicast(self) -> None:
        """The switch passes no multicast between hosts, as some Wi-Fi; unicast and ARP do pass (IPv6 needs
        it).
        """
        for host in self._hosts:
            self._port(host, "type bridge_slave mcast_flood off")

    def pass_multicast(self) -> None:
        """Undo `drop_multicast`."""
        for host in self._hosts:
            self._port(host, "type bridge_slave mcast_flood on")

    def _port(self, host: str, setting: str) -> None:
        self.run(SWITCH, f"ip link set dev {self._port_name(host)} {setting}")

    def _port_name(self, host: str) -> str:
        return f"port{self._hosts.index(host)}"

    def _enter(self, host: str) -> list[str]:
        return ["nsenter", "--target", str(self._holders[host].pid), *self.way.nsenter, "--net", "--"]

    def _hold(self, host: str, make: Sequence[str]) -> None:
        """Start the `cat` that a namespace lives by, and wait until it is there."""
        pipe = subprocess.PIPE
        holder = subprocess.Popen([*make, "sh", "-c", "echo; exec cat"], stdin=pipe, stdout=pipe)
        self._holders[host] = holder
        assert holder.stdout is not None
        if not holder.stdout.readline():
            raise OSError(f"no namespace for {host}: {' '.join(make)} ended with {holder.wait()}")

    def _remove(self) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
            with process:  # closes its pipes and waits
                pass
        for holder in self._holders.values():
            with holder:  # closes the pipe that its cat waits on, and waits
                pass
        self._started.clear()
        self._holders.clear()
