"""Full mailboxes: what waits here for one elsewhere, and who was told of one here.

A mailbox that is full is announced to the links that feed it, and opened to them again at half. What is sent to it meanwhile
waits at its sender, in a queue of its own: nobody else's messages, no reply and no notice waits with it. Only bookkeeping: the
mesh posts and asks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Sequence
from typing import NamedTuple

from discoro.errors import DiscoroError, Overloaded, ProtocolError
from discoro.link import Link
from discoro.mailbox import MAILBOX_BYTES, MAILBOX_MESSAGES
from discoro.messages import MESSAGE_WEIGHT, Message, Notice, Part, body_size
from discoro.outbox import QUEUE_BYTES, QUEUE_OPERATIONS, WINDOW_BYTES
from discoro.references import CoroRef

log = logging.getLogger("discoro.holding")

HELD_MESSAGES = MAILBOX_MESSAGES  # as many again wait at each sender as a mailbox takes
HELD_BYTES = MAILBOX_BYTES
MAX_FULL = 10_000  # mailboxes that one peer says are full: so many full ones take 100 GB there
# What still comes for a mailbox from a peer that was told that it is full: what was under way by then, what was queued there,
# and as much again that was queued before the news came there. The largest does not count, as in its queue (`has_room`).
OVERRUN_MESSAGES = WINDOW_BYTES // MESSAGE_WEIGHT + 2 * QUEUE_OPERATIONS
OVERRUN_BYTES = WINDOW_BYTES + 2 * QUEUE_BYTES

Key = tuple[int, int]  # birth and coro-id


class Waiting(NamedTuple):
    """What goes to a mailbox when it has room again, and the lane it keeps its order in."""

    operation: Message | Notice
    lane: int


class _Queue:
    """What waits for one mailbox."""

    def __init__(self) -> None:
        self.waiting: deque[Waiting] = deque()
        self.size = 0


class _Overrun:
    """What came over one link for a mailbox here since that link was told that it is full."""

    __slots__ = ("largest", "messages", "size")

    def __init__(self) -> None:
        self.messages = self.size = self.largest = 0  # size and largest in bytes


class Holding:
    """All full mailboxes that concern one process."""

    def __init__(self) -> None:
        self._queues: dict[Key, _Queue] = {}  # for mailboxes elsewhere that are full
        self._rooms: dict[Key, dict[asyncio.Future[None], None]] = {}  # who waits for a mailbox to have room
        self._full: Counter[int] = Counter()  # how many of them each peer said
        self._told: dict[int, dict[Link, _Overrun]] = {}  # links that were told that a mailbox of ours is full

    def __len__(self) -> int:
        return len(self._queues) + len(self._rooms) + len(self._told)

    # -------------------------------------------------------------- mailboxes elsewhere

    @property
    def any_full(self) -> bool:
        """Whether any mailbox elsewhere is known to be full."""
        return bool(self._queues)

    def is_full(self, to: CoroRef) -> bool:
        return (to.birth, to.id) in self._queues

    def full(self, key: Key) -> None:
        """It was announced as full. ProtocolError where that peer says so of more than it can have."""
        if key in self._queues:
            return
        if self._full[key[0]] >= MAX_FULL:
            raise ProtocolError(f"more than {MAX_FULL} full mailboxes")
        self._full[key[0]] += 1
        self._queues[key] = _Queue()

    def take(self, to: CoroRef, body: Sequence[Part], lane: int) -> bool:
        """Keep a message for a mailbox that is full; False where it is not.

        Overloaded where too much waits already; TooLarge now, since nobody could be told of it later.
        """
        queue = self._queues.get((to.birth, to.id))
        if queue is None:
            return False
        if len(queue.waiting) >= HELD_MESSAGES or queue.size >= HELD_BYTES:
            raise Overloaded(f"the mailbox of {to} is full, and {len(queue.waiting)} messages wait here for it: use deliver")
        queue.size += body_size(body)
        queue.waiting.append(Waiting(Message(to.id, body), lane))
        return True

    def defer(self, birth: int, coro_id: int) -> list[int]:
        """A coroutine of ours ended: the mailboxes of that process where messages of it wait, behind them now its notice."""
        deferred = []
        for (whose, to), queue in self._queues.items():
            if whose == birth and any(each.lane == coro_id for each in queue.waiting):
                queue.waiting.append(Waiting(Notice(coro_id, to, True), coro_id))
                deferred.append(to)
        return deferred

    def opened(self, key: Key) -> Sequence[Waiting]:
        """It has room again: what waited for it, in order. Who waited for room is woken."""
        for room in self._rooms.pop(key, ()):
            if not room.done():
                room.set_result(None)
        queue = self._removed(key)
        return queue.waiting if queue is not None else ()

    def _removed(self, key: Key) -> _Queue | None:
        queue = self._queues.pop(key, None)
        if queue is not None:
            self._full[key[0]] -= 1
            if not self._full[key[0]]:
                del self._full[key[0]]
        return queue

    def gone(self, key: Key, error: DiscoroError) -> int:
        """Its coroutine is gone: who waited for room is told; how many messages were lost with it."""
        for room in self._rooms.pop(key, ()):
            if not room.done():
                room.set_exception(error)
        queue = self._removed(key)
        lost = sum(isinstance(each.operation, Message) for each in queue.waiting) if queue is not None else 0
        if lost:
            log.warning("! %d messages that waited for room were not sent: %s", lost, error)
        return lost

    async def room(self, to: CoroRef) -> None:
        """Until it is said to have room again, or to be gone."""
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        key = to.birth, to.id
        rooms = self._rooms.setdefault(key, {})
        rooms[room] = None
        try:
            await room
        finally:
            del rooms[room]
            if not rooms and self._rooms.get(key) is rooms:
                del self._rooms[key]

    # -------------------------------------------------------------- mailboxes here

    def tell_full(self, coro_id: int, link: Link) -> bool:
        """Whether that link still has to be told that a mailbox of ours is full."""
        told = self._told.setdefault(coro_id, {})
        if link in told:
            return False
        told[link] = _Overrun()
        return True

    def overruns(self, coro_id: int, link: Link, size: int) -> bool:
        """Whether one more message of that size, for a mailbox of ours that is full, is more than an honest peer sends."""
        overrun = self._told.get(coro_id, {}).get(link)
        if overrun is None:
            return False
        if overrun.messages >= OVERRUN_MESSAGES or overrun.size - overrun.largest >= OVERRUN_BYTES:
            return True
        overrun.messages += 1
        overrun.size += size
        overrun.largest = max(overrun.largest, size)
        return False

    def told_full(self, coro_id: int) -> list[Link]:
        """The links that were told, which are told no more after this."""
        return list(self._told.pop(coro_id, ()))

    def link_lost(self, link: Link, error: DiscoroError) -> int:
        """A peer is lost; how many messages were lost with it."""
        for told in self._told.values():
            told.pop(link, None)
        keys = [key for key in {*self._queues, *self._rooms} if key[0] == link.birth]
        return sum(self.gone(key, error) for key in keys)
