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
import logging
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from discoro.errors import ConfigError, KeyFileError
from discoro.messages import Greeting
from discoro.moving import Moving
from discoro.peers import Peers
from discoro.security import Security

log = logging.getLogger("discoro.rekeying")

LOOK_SECONDS = 2.0  # between two looks at the file, which cost a few microseconds each


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

    def use(self, security: Security, ports: Sequence[int] | None = None) -> list[str]: ...


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...


class Rekeying:
    """The key of one process. `ports`: where the second door may be, None for any free one."""

    def __init__(
        self, around: Around, moving: Moving, peers: Peers, doors: Doors, security: Security, ports: Sequence[int] | None
    ) -> None:
        self.security = security
        self.on_changed: list[Callable[[], None]] = []
        self._around = around
        self._moving = moving
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
            self._moving.opened(opened)
        for tell in self.on_changed:
            tell()

    def use_told(self, handed_down: str) -> None:
        """The parent of this process tells the key that counts from now on."""
        self.use(Security.from_handed_down(handed_down))

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
