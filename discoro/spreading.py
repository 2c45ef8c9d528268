"""One message on its way through channels: packed and opened at most once, and waited for until all have it.

`Load` is the message. A `Trail` says which channels it came through, so that it goes round no circle. A `Delivery` counts who
has it; channels (hubs.py) reach their subscribers with it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, Protocol

from discoro import payload
from discoro.errors import DiscoroError, NoSuchCoro, PeerLost, ProtocolError, TooLarge, Unreachable
from discoro.messages import Part
from discoro.references import CoroRef
from discoro.requests import Incoming

MAX_TRAIL = 32  # channels that a message goes through, one after the other: it is handed on by calls within calls
NAMED = 10  # subscribers that an error names

GONE = (NoSuchCoro, PeerLost, Unreachable)  # what says that a subscriber is no more

Key = tuple[int, int]  # birth and coro-id of a channel
Trail = tuple[Key, ...]


def may_pass(to: CoroRef, trail: Trail) -> bool:
    """Whether a message goes on to that channel: not where it has been. TooLarge where it came through too many."""
    if (to.birth, to.id) in trail:
        return False
    if len(trail) >= MAX_TRAIL:
        raise TooLarge(f"a message came through {len(trail)} channels, one after the other, and is not handed on to {to}")
    return True


def trail_in(incoming: Incoming) -> Trail:
    """The channels that a request came through; ProtocolError for what is no such list."""
    keys = incoming.arguments.get("trail", [])
    if not isinstance(keys, list | tuple) or len(keys) > MAX_TRAIL:
        raise ProtocolError(f"{incoming.verb} with a trail that is none")
    trail = []
    for key in keys:
        match key:
            case [int(birth), int(number)]:
                trail.append((birth, number))
            case _:
                raise ProtocolError(f"{incoming.verb} with a trail that is none")
    return tuple(trail)


class Load:
    """One message: an object, packed at most once; or a packed body."""

    __slots__ = ("_body", "_object", "is_object")

    def __init__(self, message: object = None, body: Sequence[Part] | None = None) -> None:
        self.is_object = body is None
        self._object = message
        self._body = None if body is None else [_read_only(part) for part in body]

    def packed(self) -> Sequence[Part]:
        """Its body. Raises PackError."""
        if self._body is None:
            self._body = payload.pack(self._object)
        return self._body

    def opened(self, namespace: payload.Namespace | None) -> Any:
        """The object. Raises UnpackError."""
        return self._object if self.is_object else payload.unpack(self.packed(), namespace)


def _read_only(part: Part) -> Part:
    """A part that none of several receivers takes over as its own to write to."""
    return part if type(part) is bytes else memoryview(part).toreadonly()


class Reaching(Protocol):
    """What a delivery needs of a channel on its way."""

    def drop(self, ref: CoroRef) -> bool: ...
    def fill(self, delivery: Delivery) -> None: ...
    def forget(self, delivery: Delivery) -> None: ...


class Delivery:
    """One message that is waited with until all subscribers have it, and at least `n`; `asked` is the channel that began.

    Channels of the same process that it goes through count and wait in the same delivery.
    """

    def __init__(self, asked: Reaching, n: int) -> None:
        self.asked = asked
        self.tried: set[CoroRef] = set()  # subscribers of any of its channels that have it, or are waited for
        self._hubs = [asked]
        self._n = n
        self._count = 0
        self._waiting: dict[asyncio.Task[int], tuple[Reaching, CoroRef]] = {}
        self._error: Exception | None = None
        self._given_up: DiscoroError | None = None
        self._changed = asyncio.Event()
        self._ended = False

    def __str__(self) -> str:
        without = ", ".join(str(ref) for _, ref in list(self._waiting.values())[:NAMED])
        wanted = f" of the {self._n} wanted" if self._n else ""
        return f"{self._count}{wanted} had the message" + (f"; not yet: {without}" if without else "")

    @property
    def is_short(self) -> bool:
        """Whether further subscribers are waited for."""
        return not self._ended and self._count + len(self._waiting) < self._n

    def through(self, hub: Reaching) -> None:
        """It goes through that channel of the same process, too."""
        self._hubs.append(hub)

    def reached(self, count: int) -> None:
        """So many more have it."""
        self._count += count
        self._changed.set()

    def wait_for(self, hub: Reaching, ref: CoroRef, reaching: Coroutine[Any, Any, int]) -> None:
        """Until that subscriber of a channel has it."""
        task = asyncio.ensure_future(reaching)
        self._waiting[task] = hub, ref
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[int]) -> None:
        hub, ref = self._waiting.pop(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, GONE):
            hub.drop(ref)
        elif isinstance(error, Exception):
            self.failed(error)
        self.reached(0 if task.cancelled() or error is not None else task.result())
        self.asked.fill(self)

    def failed(self, error: Exception) -> None:
        """A subscriber cannot get it; raised once the others have it."""
        self._error = self._error or error
        self._changed.set()

    def give_up(self, error: DiscoroError) -> None:
        """It is over, with that error."""
        self._given_up = error
        self._changed.set()

    def drop(self, hub: Reaching, ref: CoroRef | None = None) -> None:
        """That subscriber of a channel, or all of them, are not waited for."""
        for task, (by, whose) in list(self._waiting.items()):
            if by is hub and ref in (None, whose):
                task.cancel()

    async def over(self) -> int:
        """Until all have it: how many. Raises what went wrong for one of them, or why it is given up."""
        while self._waiting or (self._count < self._n and self._error is None):
            await self._changed.wait()
            self._changed.clear()
            if self._given_up is not None:
                raise self._given_up
        if self._error is not None:
            raise self._error
        return self._count

    def end(self) -> None:
        """Nobody waits with it any more."""
        self._ended = True
        for task in self._waiting:
            task.cancel()
        for hub in self._hubs:
            hub.forget(self)
