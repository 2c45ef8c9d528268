"""The cluster key of a running process, as it changes: followed in its file, put to use, told to whoever must know.

Never: writes a key file, or goes on without a key. A file that went away or cannot be read changes nothing; it is told of once.

How the parts play together: `KeyWatch` decides, from the file and the time, which key counts. `Rekeying` does what follows. The
first door of a process lets in whoever has its key. While a new key follows that one, a second door on another port lets in
whoever has only the new one, and peers are told of it; a dial tries one key, then the other. Once the new key is the only one,
both doors have it. Connections under a key that counts no more break, and links go on over new ones: nothing is lost between
two who both have the new key.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from discoro.errors import ConfigError, DiscoroError, KeyFileError, ProtocolError
from discoro.messages import MAX_ADDRESSES, MAX_NAME, Greeting
from discoro.peers import Peers
from discoro.requests import Incoming
from discoro.security import Security

log = logging.getLogger("discoro.rekeying")

LOOK_SECONDS = 2.0  # between two looks at the file, which cost a few microseconds each
TELL_SECONDS = 3.0  # for a peer to take note of the second door; it hears of it with the next greeting, too


class KeyWatch:
    """What the key file at `path` says, as time goes on; `security` was read from it."""

    def __init__(self, security: Security, path: Path) -> None:
        self.security = security
        self._path = path
        self._seen: object = None  # so that the first look reads the file: it may have changed since the start

    def __repr__(self) -> str:
        return f"<KeyWatch {self._path}>"

    def look(self, now: float) -> Security | None:
        """The trust of this process at that Unix time, where that is another than before."""
        found = self.security.at(now)
        mark = _mark(self._path)
        if mark != self._seen:
            self._seen = mark
            try:
                found = Security.from_key_file(self._path, now=now)
            except KeyFileError as error:
                log.warning("! the cluster key stays the one that was read before: %s", error)
        if found.same_trust(self.security):
            return None
        self.security = found
        return found


def _mark(path: Path) -> object:
    """What changes whenever the file does: it is replaced as a whole."""
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_dev, status.st_ino, status.st_ctime_ns, status.st_size, status.st_mode, status.st_uid


class Doors(Protocol):
    """What this needs of the transport."""

    def use(self, security: Security, ports: range | None = None) -> list[str]: ...


class Around(Protocol):
    """What this needs of the mesh."""

    addresses: list[str]

    @property
    def me(self) -> Greeting: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...
    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float | None) -> Any: ...


class Rekeying:
    """The key of one process. `ports`: where the second door may be, None for any free one."""

    def __init__(self, around: Around, peers: Peers, doors: Doors, security: Security, ports: range | None) -> None:
        self.security = security
        self.on_changed: list[Callable[[], None]] = []
        self._around = around
        self._peers = peers
        self._doors = doors
        self._ports = ports
        self._wanted = security  # differs from `security` while there are no descriptors to change it with

    def __repr__(self) -> str:
        return f"<Rekeying {self.security!r}>"

    async def follow(self, path: Path) -> None:
        """Look at the key file for as long as this process runs."""
        watch = KeyWatch(self.security, path)
        while True:
            changed = watch.look(time.time())
            if changed is not None:
                self.use(changed)
            await asyncio.sleep(LOOK_SECONDS)

    def second_door(self) -> list[str]:
        """Where whoever has only the following key is let in; for a process that starts while the key is being changed."""
        return self._open(self.security) if self.security.following is not None else []

    def use(self, security: Security) -> None:
        """From now on this is the cluster's key, and what follows it is accepted as well."""
        self._wanted = security
        self._peers.use_key(security)
        try:
            opened = self._open(security)
        except OSError as error:
            log.warning("! the cluster key is not wholly changed yet, and that is tried again: %s", error)
            self._around.spawn(self._use_later(security))
            return
        self.security = security
        level = logging.WARNING if self._around.me.role == "node" else logging.INFO
        where = f"; whoever has only the new one is let in at {', '.join(opened)}" if opened else ""
        log.log(level, "= the cluster's key has changed: %s%s", security.origin, where)
        if opened:
            self._around.addresses += opened
            self._peers.listen_at(self._around.addresses)
            for link in self._peers:
                self._around.spawn(self._tell_moved(link.birth))
        for tell in self.on_changed:
            tell()

    async def _use_later(self, security: Security) -> None:
        """Once there may be descriptors again; unless another key came meanwhile."""
        await asyncio.sleep(LOOK_SECONDS)
        if self._wanted is security:
            self.use(security)

    def _open(self, security: Security) -> list[str]:
        """Put it to use; the addresses of the second door, where that is opened now. OSError: no descriptors left."""
        try:
            return self._doors.use(security, self._ports)
        except ConfigError as error:  # no port is free, or an address that was here at the start is gone
            log.warning("! whoever has only the new cluster key cannot come in here: %s", error)
            return []

    async def _tell_moved(self, birth: int) -> None:
        with contextlib.suppress(DiscoroError):  # it is lost, or will hear it with the next greeting
            await self._around.ask(birth, "moved", {"addresses": list(self._around.me.addresses)}, TELL_SECONDS)

    def on_moved(self, incoming: Incoming) -> None:
        """A peer tells where it listens from now on."""
        self._peers.moved(incoming.peer.birth, _addresses(incoming.arguments.get("addresses")))
        incoming.reply(0)


class KeysTold:
    """The keys that a parent tells its child later (`Parent.end_with`), each in place of the one before.

    They are put to use at once, before anything that came over a connection is looked at, as soon as there is a mesh.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._last: Security | None = None
        self._use: Callable[[Security], None] | None = None

    def on_told(self, told: dict[str, Any]) -> None:
        """From the thread that reads what the parent tells."""
        self._loop.call_soon_threadsafe(self._take, told["security"])

    def begin(self, rekeying: Rekeying) -> None:
        """There is a mesh now."""
        self._use = rekeying.use
        if self._last is not None:
            self._use(self._last)

    def _take(self, handed_down: str) -> None:
        self._last = Security.from_handed_down(handed_down)
        if self._use is not None:
            self._use(self._last)


def _addresses(told: Any) -> Sequence[str]:
    if not isinstance(told, list) or len(told) > MAX_ADDRESSES:
        raise ProtocolError("moved without a list of addresses")
    if not all(isinstance(each, str) and 0 < len(each) <= MAX_NAME for each in told):
        raise ProtocolError("moved with something that is no address")
    return told
