"""Queue: items go from whoever puts to whoever gets, in order, each to one, wherever they are.

A queue is bounded: `put` waits for room, across machines too. It lives in the process that made it (`_Line`), which alone
decides who gets what: who waits there is answered once, with an item, room, or why there is none. An item for another process
is kept until that says that it arrived in time (`took`), or that nobody waits for it any more (`withdraw`): then it goes back
to its place.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict, deque
from typing import Any, NamedTuple, Protocol

from discoro import payload
from discoro.errors import ConfigError, DiscoroError, Overloaded, ProtocolError, QueueClosed, Timeout
from discoro.mailbox import MAILBOX_BYTES, MAILBOX_MESSAGES
from discoro.mesh import Mesh
from discoro.requests import Incoming
from discoro.sending import namespace_here
from discoro.services import MAX_WAITING, WAITING_BYTES, Home, Served, mesh_here, number_in, numbers

log = logging.getLogger("discoro.queues")

QUEUE_ITEMS = MAILBOX_MESSAGES  # a queue is to many what a mailbox is to one
QUEUE_BYTES = MAILBOX_BYTES  # packed bytes; an empty queue takes one larger item


class Queue(Served):
    """A queue of items for coroutines anywhere: `Queue(maxsize=10_000, name="")`; it can be sent in messages.

    Items come out in the order they went in, each to one `get`. At most `maxsize` items and 16 MiB of those that came from
    other processes are in it (one larger item, if it is alone); further ones wait in `put`. Who waits longest is served first.
    In its own process, items are the very objects. `async for item in queue` gets until it is closed.

    It ends with the process or the computation in which it was made, or when it is closed and empty. An item is handed out at
    most once: what was under way to a process that is lost, is lost with it. Raises ConfigError, NoMesh.
    """

    __slots__ = ()
    KIND = "queue"

    def __init__(self, maxsize: int = QUEUE_ITEMS, name: str = "") -> None:
        if type(maxsize) is not int or maxsize < 1:
            raise ConfigError(f"maxsize is a number of items, 1 or more; this is {maxsize!r:.80}")
        home = _Line(maxsize, name)
        self._stand_for(home.coro.ref, name)

    async def put(self, item: object, timeout: float | None = None) -> int:
        """Put an item in, waiting for room at most `timeout` seconds. Returns 0 once it is in.

        Raises Timeout: then it is not in, and will not be; to know that takes longer where the queue's process is out of reach
        or busy. QueueClosed where it is closed, before there was room too; PackError, TooLarge; Overloaded where too many wait.
        PeerLost, WorkerLost, and what cancels it, leave open whether it is in.
        """
        mesh = mesh_here()
        home = self._home(mesh, _Line)
        try:
            if home is not None:
                await home.put(item, timeout)
                return 0
            number = next(numbers)
            with self._withdrawn(mesh, number, timeout):
                return (await self._ask("put", {"id": number}, payload.pack(item))).number
        except Timeout:
            raise Timeout(f"{self} had no room within {timeout or 0:g} s: the item is not in it") from None

    async def get(self, timeout: float | None = None) -> Any:
        """Take the oldest item out, waiting for one at most `timeout` seconds; 0 only looks.

        Raises QueueClosed where it is closed and empty; Timeout; UnpackError for an item that cannot be opened here, which is
        then gone; PackError for an object of its process that cannot travel, which stays in; Overloaded where too many wait;
        PeerLost, WorkerLost, Unreachable. An item is not lost to a `get` that ran out of time or was cancelled: it goes back.
        """
        mesh = mesh_here()
        home = self._home(mesh, _Line)
        try:
            if home is not None:
                item = await home.get(timeout)
                return item.content if item.size < 0 else payload.unpack(item.content, namespace_here())
            return await self._get_far(mesh, timeout)
        except Timeout:
            raise Timeout(f"no item came from {self} within {timeout or 0:g} s") from None

    async def _get_far(self, mesh: Mesh, timeout: float | None) -> Any:
        number = next(numbers)
        waits = timeout is None or timeout > 0
        try:
            answer = await self._ask("get", {"id": number, "waits": waits}, timeout=timeout if waits else None)
        except BaseException:  # the item may be on its way
            self._tell(mesh, "withdraw", number)
            raise
        self._tell(mesh, "took", number)
        return payload.unpack(answer.body, namespace_here())

    async def size(self) -> int:
        """How many items are in it."""
        return (await self._ask("size", {})).number

    async def close(self) -> int:
        """Take no more items: `put` raises QueueClosed, those that wait too; `get` gives what is left, then raises it as well.

        Returns 0, also where it was closed. Raises PeerLost, WorkerLost, Unreachable.
        """
        return await super().close()

    def __aiter__(self) -> Queue:
        return self

    async def __anext__(self) -> Any:
        try:
            return await self.get()
        except QueueClosed:
            raise StopAsyncIteration from None

    def _gone(self) -> DiscoroError:
        return QueueClosed(f"{self} has ended: it was closed and is empty, or its computation or process was closed")


# ------------------------------------------------------------------ where it lives

Key = tuple[int, int]  # the birth of who waits (0: this process), and the number by which it may withdraw


class _Item(NamedTuple):
    number: int  # its place: lower ones come out first
    content: Any  # the object, or its packed body
    size: int  # of a packed body; -1: an object of this process


class _Waiter(Protocol):
    """Who waits for an item, or for room for its own; answered once."""

    def give(self, item: _Item) -> bool:
        """The item to take, or its own, which is in; False where nobody takes it."""

    def fail(self, error: DiscoroError) -> None: ...


class _Here:
    """A coroutine of this process waits."""

    def __init__(self) -> None:
        self.given: asyncio.Future[_Item] = asyncio.get_running_loop().create_future()

    def give(self, item: _Item) -> bool:
        if self.given.done():  # cancelled in this turn
            return False
        self.given.set_result(item)
        return True

    def fail(self, error: DiscoroError) -> None:
        if not self.given.done():
            self.given.set_exception(error)


class _Getting(NamedTuple):
    """A coroutine elsewhere waits for an item."""

    incoming: Incoming

    def give(self, item: _Item) -> bool:
        try:
            self.incoming.reply(None, payload.pack(item.content) if item.size < 0 else item.content)
        except DiscoroError as error:  # an object that cannot travel
            self.incoming.fail(error)
            return False
        return True

    def fail(self, error: DiscoroError) -> None:
        self.incoming.fail(error)


class _Putting(NamedTuple):
    """A coroutine elsewhere waits for room."""

    incoming: Incoming

    def give(self, item: _Item) -> bool:
        self.incoming.reply(0)
        return True

    def fail(self, error: DiscoroError) -> None:
        self.incoming.fail(error)


class _Line(Home):
    """A queue in the process where it lives."""

    def __init__(self, maxsize: int, name: str) -> None:
        super().__init__(Queue.KIND, name)
        self._maxsize = maxsize
        self._items: deque[_Item] = deque()
        self._bytes = 0
        self._next = 0  # the place of the next item
        self._getters: OrderedDict[Key, _Waiter] = OrderedDict()
        self._putters: OrderedDict[Key, tuple[_Waiter, Any, int]] = OrderedDict()  # with content and size of the item
        self._putting_bytes = 0
        self._under_way: dict[Key, _Item] = {}  # given, and not yet known to be taken
        self._closed = False
        self.verbs |= {"put": self._on_put, "get": self._on_get, "took": self._on_took}
        self.verbs |= {"withdraw": self._on_withdraw, "size": lambda incoming: incoming.reply(len(self._items))}

    # -------------------------------------------------------------- in this process

    async def put(self, item: object, timeout: float | None) -> None:
        """See Queue.put."""
        await self.breathe()
        waiter, key = _Here(), (0, next(numbers))
        self._add_putter(key, waiter, item, -1)
        await self._answer(self._putters, key, waiter, timeout)

    async def get(self, timeout: float | None) -> _Item:
        """See Queue.get; the item may still be packed."""
        await self.breathe()
        waiter, key = _Here(), (0, next(numbers))
        self._add_getter(key, waiter)
        try:
            item = await self._answer(self._getters, key, waiter, timeout)
        except BaseException:  # cancelled in the turn in which it got one
            self._give_back(key)
            raise
        self._taken(key)
        return item

    async def _answer(self, waiters: OrderedDict[Key, Any], key: Key, waiter: _Here, timeout: float | None) -> _Item:
        """What the waiter is given; it waits no longer than this does."""

        def give_up() -> None:
            if waiters.pop(key, None):
                waiter.fail(Timeout("nothing came in time"))

        alarm = None
        if timeout is not None and not waiter.given.done():
            alarm = asyncio.get_running_loop().call_later(timeout, give_up)
        try:
            return await waiter.given
        finally:
            if alarm:
                alarm.cancel()
            waiters.pop(key, None)

    # -------------------------------------------------------------- from other processes

    def _on_put(self, incoming: Incoming) -> None:
        size = sum(len(part) for part in incoming.body)
        self._add_putter(self._key(incoming, new=True), _Putting(incoming), incoming.body, size)

    def _on_get(self, incoming: Incoming) -> None:
        key = self._key(incoming, new=True)
        self._add_getter(key, _Getting(incoming))
        if incoming.arguments.get("waits") is False:
            self._forget([key], Timeout("there is no item"))

    def _on_took(self, incoming: Incoming) -> None:
        self._taken(self._key(incoming))
        incoming.reply(0)

    def _on_withdraw(self, incoming: Incoming) -> None:
        """Nobody waits any more: the item goes back, or is not put in; too late for one that is in."""
        key = self._key(incoming)
        self._give_back(key)
        self._forget([key], Timeout("withdrawn"))
        incoming.reply(0)

    def _key(self, incoming: Incoming, new: bool = False) -> Key:
        key = incoming.peer.birth, number_in(incoming, "id")
        if new and (key in self._getters or key in self._putters or key in self._under_way):
            raise ProtocolError(f"{incoming.verb} under a number that waits already")
        return key

    def on_peer_lost(self, birth: int) -> None:
        """Nobody waits there any more. What was under way may have arrived, and is not handed out again."""
        lost = [key for key in self._under_way if key[0] == birth]
        for key in lost:
            del self._under_way[key]
        if lost:
            log.warning("! %d items of %s were under way to a lost process: whether they arrived is unknown", len(lost), self)
        self._forget([key for key in (*self._getters, *self._putters) if key[0] == birth], Timeout("lost"))

    def _forget(self, keys: list[Key], error: DiscoroError) -> None:
        for key in keys:
            waiter, _, size = self._putters.pop(key, (self._getters.pop(key, None), None, 0))
            self._putting_bytes -= max(size, 0)
            if waiter is not None:
                waiter.fail(error)
        self._move()

    # -------------------------------------------------------------- both

    def _add_putter(self, key: Key, waiter: _Waiter, content: Any, size: int) -> None:
        if self._closed:
            raise QueueClosed(f"{self} is closed: nothing more is put in")
        too_many_bytes = size > 0 and 0 < self._putting_bytes > WAITING_BYTES - size  # one alone may have any size
        if len(self._putters) >= MAX_WAITING or too_many_bytes:
            raise Overloaded(f"{len(self._putters)} items of {self._putting_bytes} bytes wait for room in {self}: no more may")
        self._putters[key] = waiter, content, size
        self._putting_bytes += max(size, 0)
        self._move()

    def _add_getter(self, key: Key, waiter: _Waiter) -> None:
        if len(self._getters) + len(self._under_way) >= MAX_WAITING:
            raise Overloaded(f"{MAX_WAITING} wait for an item of {self}, and no more may")
        self._getters[key] = waiter
        self._move()

    def _move(self) -> None:
        """Items go in as far as there is room, and out as far as somebody waits."""
        while True:
            if self._putters and self._has_room(next(iter(self._putters.values()))[2]):
                _, (waiter, content, size) = self._putters.popitem(last=False)
                self._putting_bytes -= max(size, 0)
                item = _Item(self._next, content, size)
                if waiter.give(item):
                    self._next += 1
                    self._items.append(item)
                    self._bytes += max(size, 0)
            elif self._items and self._getters:
                self._hand_out(*self._getters.popitem(last=False))
            else:
                break
        if self._closed and not self._items and not self._under_way:
            self._fail_all(self._getters, f"{self} is closed, and empty")
            self.end()

    def _has_room(self, size: int) -> bool:
        return not self._items or (len(self._items) < self._maxsize and self._bytes + max(size, 0) <= QUEUE_BYTES)

    def _hand_out(self, key: Key, getter: _Waiter) -> None:
        if getter.give(self._items[0]):
            item = self._under_way[key] = self._items.popleft()
            self._bytes -= max(item.size, 0)

    def _taken(self, key: Key) -> None:
        """What was given there has arrived."""
        if self._under_way.pop(key, None) is not None:
            self._move()

    def _give_back(self, key: Key) -> None:
        """What was given there, if anything, goes to its place: before all that were put in after it."""
        item = self._under_way.pop(key, None)
        if item is None:
            return
        index = next((index for index, each in enumerate(self._items) if each.number > item.number), len(self._items))
        self._items.insert(index, item)
        self._bytes += max(item.size, 0)
        self._move()

    # -------------------------------------------------------------- ends

    async def close(self) -> None:
        """See Queue.close: it ends once it is empty."""
        self._closed = True
        self._fail_all(self._putters, f"{self} was closed before there was room")
        self._move()

    def on_end(self, why: str) -> None:
        """Closed and empty, or ended from outside: who waits is told."""
        self._closed = True
        self._under_way.clear()
        for waiters in (self._putters, self._getters):
            self._fail_all(waiters, f"{self} has ended ({why})")
        if self._items:
            log.info("= %s ended (%s) with %d items that nobody took", self, why, len(self._items))

    def _fail_all(self, waiters: OrderedDict[Key, Any], why: str) -> None:
        while waiters:
            waiter = waiters.popitem()[1]
            (waiter[0] if waiters is self._putters else waiter).fail(QueueClosed(why))
