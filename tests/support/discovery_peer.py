"""A process that does discovery and nothing else, for system tests: the process, and the hand that drives it.

It gets JSON commands on standard input and answers with JSON events, each on a line of its own. `python -m
tests.support.discovery_peer` is the process; `DiscoveryPeer` starts it on a host of a Lan, and waits for its
events, never for time to pass.
"""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from zeroconf.asyncio import AsyncServiceInfo, AsyncZeroconf

from discoro import discovery
from discoro.adverts import SERVICE, Advert
from discoro.interfaces import Interfaces, interfaces, look_again, system_addresses
from tests.support.netns import Lan

ROOT = Path(__file__).resolve().parents[2]
HURRY = 0.5  # seconds


class DiscoveryPeer:
    """The process on `host`, ready when this returns. `hurry` makes it announce, and look at its interfaces, twice a second."""

    def __init__(self, lan: Lan, host: str, *, hurry: bool = False) -> None:
        self.address = lan.address(host)
        command = [sys.executable, "-m", __name__, *(["hurry"] if hurry else [])]
        pipe = subprocess.PIPE
        self.process = lan.popen(host, command, stdin=pipe, stdout=pipe, cwd=ROOT, bufsize=0)
        assert self.process.stdin is not None and self.process.stdout is not None
        self._commands, self._events = self.process.stdin, self.process.stdout
        self._buffer = b""
        self.wait("ready", 60)  # many processes may start at once

    def tell(self, do: str, **arguments: Any) -> None:
        """Send a command."""
        self._commands.write(json.dumps({"do": do, **arguments}).encode() + b"\n")

    def wait(self, event: str, timeout: float) -> Any:
        """What comes with the next `event`; others before it are dropped. Fails after `timeout` seconds."""
        got = self.next(event, timeout)
        assert got is not None, f"no {event!r} within {timeout} s"
        return got

    def next(self, event: str, timeout: float) -> Any | None:
        """As `wait`, but None when the time is over."""
        end = time.monotonic() + timeout
        while (line := self._line(end)) is not None:
            kind, value = json.loads(line)
            if kind == event:
                return value
        return None

    def heard(self) -> str:
        """The lines of Discovery.heard(), in one text."""
        self.tell("heard")
        return "\n".join(self.wait("heard", 5))

    def close(self) -> dict[str, int]:
        """Close in order; gives what it left open."""
        self.tell("close")
        left: dict[str, int] = self.wait("closed", 5)
        assert self.process.wait(5) == 0
        return left

    def _line(self, end: float) -> bytes | None:
        while b"\n" not in self._buffer:
            left = max(0.0, end - time.monotonic())
            if not select.select([self._events], [], [], left)[0]:
                return None
            chunk = os.read(self._events.fileno(), 65536)
            assert chunk, f"the peer ended with {self.process.wait()}"
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line


def say(event: str, value: Any) -> None:
    print(json.dumps([event, value]), flush=True)


def open_now() -> dict[str, int]:
    """How many files, threads and tasks this process has."""
    tasks = len(asyncio.all_tasks())
    return {"files": len(os.listdir("/proc/self/fd")), "threads": threading.active_count(), "tasks": tasks}


def advert(**changes: Any) -> Advert:
    """A node's advert, with the changes given."""
    plain: dict[str, Any] = {
        "node": "00112233aabbccdd",
        "name": "ada",
        "cluster": "default",
        "python": "3.11",
        "version": "0.1.0",
        "protocol": 1,
        "security": "curve",
        "slots": 4,
        "addresses": (),
    }
    return Advert(**{**plain, **changes})


async def forge(mdns: AsyncZeroconf, command: dict[str, Any]) -> None:
    """Advertise a service that no node would, and wait until it is out."""
    txt = bytes.fromhex(command["txt"])
    name = f"{command['name']}.{SERVICE}"
    service = AsyncServiceInfo(SERVICE, name, port=command["port"], properties=txt, parsed_addresses=command["hosts"])
    await (await mdns.async_register_service(service, cooperating_responders=True))
    say("forged", name)


def shout(source: str, packet: bytes) -> None:
    """Send a packet to every mDNS listener, whatever is in it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton(source))
        sender.sendto(packet, ("224.0.0.251", 5353))


async def obey(found: discovery.Discovery, where: Interfaces, command: dict[str, Any]) -> None:
    """Do one command."""
    match command.pop("do"):
        case "advertise":
            hosts = command.pop("hosts", [address for _, address in where.usable])
            port = command.pop("port")
            node = advert(**command, addresses=tuple(f"{host}:{port}" for host in hosts))
            await found.advertise(node, port)
            say("advertised", node.node)
        case "refresh":
            found.refresh()
        case "heard":
            say("heard", found.heard())
        case "shout":
            for packet in command["packets"]:
                shout(where.multicast[0], bytes.fromhex(packet))
            say("shouted", len(command["packets"]))
        case "forge":
            forger = AsyncZeroconf(interfaces=where.multicast)
            await forge(forger, command)
            await forger.async_close()


async def lines() -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    protocol = asyncio.StreamReaderProtocol(reader)
    await asyncio.get_running_loop().connect_read_pipe(lambda: protocol, sys.stdin)
    return reader


async def follow(found: discovery.Discovery, before: Interfaces) -> None:
    """Tell it of the interfaces as they come and go: what a mesh does, once in a process."""
    while True:
        await asyncio.sleep(HURRY)
        now = look_again(before, system_addresses())
        if now != before:
            found.use(now)
        before = now


async def main() -> None:
    """Obey the commands on standard input until it ends or says close."""
    reader = await lines()
    before = open_now()
    where = interfaces()
    found = discovery.Discovery(lambda node: say("found", asdict(node)), where)
    await found.start()
    following = asyncio.ensure_future(follow(found, where))
    say("ready", True)
    async for line in reader:
        command = json.loads(line)
        if command["do"] == "close":
            break
        await obey(found, where, command)
    following.cancel()
    await found.close()
    say("closed", {name: count - before[name] for name, count in open_now().items()})


if __name__ == "__main__":
    if "hurry" in sys.argv:
        discovery.ANNOUNCE_FIRST = discovery.RETRY_TIME = HURRY
    asyncio.run(main())
