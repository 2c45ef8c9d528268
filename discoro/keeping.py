"""What a node keeps for clients that may be gone: computations that were set up with `detach`, by name.

`Keeping` is one table for all slots of a node: who owns each, since when nobody does, and when it is to end. It says what it
keeps in the log, for as long as it does. Which worker has a computation, and how it is closed, is the slots' to know (node.py).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

from discoro.computation import LONGEST_KEPT
from discoro.errors import NameTaken, ProtocolError, SetupFailed
from discoro.mesh import Mesh
from discoro.messages import Greeting

log = logging.getLogger("discoro.keeping")

MAX_KEPT = 4  # of one slot: half of its workers, so that what was forgotten never shuts out those who come
SAY_AGAIN = 3600.0  # seconds between two lines of the log about what has no owner

Key = tuple[int, str]  # number of the slot, and the computation


@dataclass(eq=False)
class Kept:
    """One detached computation at one slot. `since`, `alone`: seconds of the loop's clock; `lasts`: without an owner."""

    name: str
    slot: int
    number: str
    owner: Greeting
    lasts: float | None
    since: float
    alone: float | None = None
    watch: asyncio.Task[None] | None = None

    def __str__(self) -> str:
        return f"{self.name} of {self.owner.name}/{self.owner.pid}, at slot {self.slot}"

    def left(self, now: float) -> float | None:
        """The seconds until it ends; None where it has an owner, or no end."""
        return None if self.alone is None or self.lasts is None else max(0.0, self.alone + self.lasts - now)


class Keeping:
    """The detached computations of a node. `close` ends one: nobody has owned it for as long as it lasts."""

    def __init__(self, mesh: Mesh, close: Callable[[Kept, str], Awaitable[None]]) -> None:
        self._mesh = mesh
        self._close = close
        self._kept: dict[Key, Kept] = {}

    def __repr__(self) -> str:
        return f"<Keeping {', '.join(map(str, self._kept.values()))}>"

    def __iter__(self) -> Iterator[Kept]:
        return iter(list(self._kept.values()))

    def claim(self, slot: int, number: str, name: str, owner: Greeting, detach: Any) -> None:
        """It is to be set up detached at that slot, under its name; where its owner is gone, it has this one from now on.

        Raises NameTaken where another computation has the name on this node, SetupFailed where somebody took it over and is
        there, or where the slot keeps too many.
        """
        lasts = seconds_of(detach)
        for other in self:
            if other.name == name and other.number != number:
                raise NameTaken(
                    f"{self._mesh.me.name} keeps another detached computation named {name!r}, of {other.owner.name}/"
                    f"{other.owner.pid}: take that over, close it, or choose another name"
                )
        kept = self._kept.get((slot, number))
        if kept is not None:
            if kept.owner.birth != owner.birth and kept.alone is None:
                by = f"{kept.owner.name}/{kept.owner.pid}"
                raise SetupFailed(f"{name} was taken over by {by}: take it over first, or make another Computation")
            self.own(kept, owner)
            kept.lasts = lasts
            return
        if sum(other.slot == slot for other in self) >= MAX_KEPT:
            raise SetupFailed(f"this slot keeps {MAX_KEPT} detached computations: close one, or take another slot")
        self._kept[slot, number] = Kept(name, slot, number, owner, lasts, self._now())

    def find(self, slot: int, number: str) -> Kept | None:
        return self._kept.get((slot, number))

    def own(self, kept: Kept, owner: Greeting) -> None:
        """It is that client's from now on."""
        if kept.owner.birth != owner.birth:
            log.info("= %s was taken over by %s/%d", kept, owner.name, owner.pid)
        kept.owner, kept.alone = owner, None
        self._watch_no_more(kept)

    def forget(self, slot: int, number: str) -> None:
        """It is closed there, or gone with its worker."""
        kept = self._kept.pop((slot, number), None)
        if kept is not None:
            self._watch_no_more(kept)
            if kept.alone is not None:
                log.warning("= keeps %s no more", kept)

    def owner_lost(self, birth: int) -> None:
        """A client is gone: what it owned stays, for as long as that was to last."""
        for kept in self:
            if kept.owner.birth == birth:
                self._watch_no_more(kept)
                kept.alone = self._now()
                kept.watch = asyncio.ensure_future(self._watch(kept))

    def owner_came(self, birth: int) -> None:
        """A client that was out of reach is linked again: it owns what nobody took over meanwhile."""
        for kept in self:
            if kept.owner.birth == birth and kept.alone is not None:
                self.own(kept, kept.owner)

    def close(self) -> None:
        """The node stops; who is lost from now on leaves nothing here."""
        for kept in self:
            self._watch_no_more(kept)
        self._kept.clear()

    async def _watch(self, kept: Kept) -> None:
        """Say what is kept, again and again, until it is to end."""
        assert kept.alone is not None
        while (left := kept.left(self._now())) is None or left > 0:
            ends = "until it is closed" if left is None else f"for {left:.0f} s more"
            log.warning("= keeps %s: gone for %.0f s; kept %s", kept, self._now() - kept.alone, ends)
            await asyncio.sleep(SAY_AGAIN if left is None else min(left, SAY_AGAIN))
        kept.watch = None  # from here on it cannot be saved any more
        await self._close(kept, f"nobody owned it for {kept.lasts:g} s")

    def _watch_no_more(self, kept: Kept) -> None:
        if kept.watch is not None:
            kept.watch.cancel()
            kept.watch = None

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def listed(self) -> dict[Key, dict[str, Any]]:
        """What the node answers to `detached`, but for where each of them is."""
        now = self._now()
        return {
            (kept.slot, kept.number): {
                "name": kept.name,
                "id": kept.number,
                "owner": f"{kept.owner.name}/{kept.owner.pid}",
                "age": now - kept.since,
                "alone": None if kept.alone is None else now - kept.alone,
                "lasts": kept.lasts,
            }
            for kept in self
        }


def seconds_of(detach: Any) -> float | None:
    """How long it stays without an owner, None: until it is closed. ProtocolError for what is neither True nor seconds."""
    if detach is True:
        return None
    if isinstance(detach, bool) or not isinstance(detach, int | float) or not 0 < detach <= LONGEST_KEPT:
        raise ProtocolError(f"detach that is neither True nor 0 to {LONGEST_KEPT:g} seconds")
    return float(detach)
