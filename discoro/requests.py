"""Requests and replies: a question to a process or a coroutine, and the one answer it gets.

`Incoming` is a request as the side that was asked sees it; `Requests` holds what this side asked and was not answered yet. No
request waits for ever: each is answered, fails with its peer, or runs into its timeout. Neither knows a link.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from discoro import messages, packing, payload
from discoro.errors import DiscoroError, Overloaded, PeerLost, ProtocolError, UnpackError, from_wire, to_wire
from discoro.messages import MAX_MESSAGE, Greeting, Part

MAX_UNDER_WAY = 100_000  # requests of one peer that wait for their answers: as many as operations wait to be sent
UNDER_WAY_BYTES = MAX_MESSAGE  # and what they hold: as much as one message may
# Those that end something, or are answered at once, go through up to twice as much: who has asked too much can still end it.
LET_THROUGH = frozenset(
    "alive close fetched lost moved ping pulled ready release retire size terminate took unfollow unregister unsubscribe "
    "unsubscribed watch withdraw".split()
)
ARGUMENTS_WEIGH = 32  # times their packed bytes: an empty list is one byte there, and 64 here

log = logging.getLogger("discoro.requests")


class Answer(NamedTuple):
    """What a request brought back."""

    value: Any
    body: Sequence[Part]

    @property
    def number(self) -> int:
        """Its value, a number; ProtocolError for any other."""
        if not isinstance(self.value, int):
            raise ProtocolError(f"an answer that is no number: {self.value!r:.80}")
        return self.value


@dataclass(eq=False)
class Incoming:
    """A request that came in, to be answered once, with `reply` or `fail`. `coro` 0: it is for the process itself."""

    peer: Greeting
    coro: int
    verb: str
    arguments: dict[str, Any]
    body: Sequence[Part]
    answer: Callable[[bool, Any, Sequence[Part]], None]
    answered: bool = False
    load: Load | None = None  # on what its peer may have waiting, while it waits

    def reply(self, value: Any = None, body: Sequence[Part] = ()) -> None:
        if not self.answered:
            self.answer(True, value, body)
            self.answered = True  # not before: where the answer cannot travel, the error that says so is the answer
            self.load = None

    def fail(self, error: BaseException) -> None:
        """Answer with an error; the cause of one of ours travels along."""
        if self.answered:
            return
        self.answered = True
        self.load = None
        if isinstance(error, DiscoroError):
            self.answer(False, list(to_wire(error)), _packed_cause(error))
        else:
            log.error("! a bug while answering %s", self.verb, exc_info=error)
            self.answer(False, ["RemoteError", f"a bug in discoro at {self.verb}: {error!r}"], ())


class Load:
    """What one request takes of what its peer may have under way, for as long as this lives."""

    __slots__ = ("_birth", "_loads", "_size")

    def __init__(self, loads: dict[int, tuple[int, int]], birth: int, size: int) -> None:
        self._loads, self._birth, self._size = loads, birth, size
        self._add(1, size)

    def __del__(self) -> None:
        self._add(-1, -self._size)

    def _add(self, count: int, size: int) -> None:
        before = self._loads.get(self._birth, (0, 0))
        self._loads[self._birth] = before[0] + count, before[1] + size
        if not before[0] + count:
            del self._loads[self._birth]


class UnderWay:
    """The requests of others that were not answered at once; one that nobody will answer counts until it is forgotten."""

    def __init__(self) -> None:
        self._loads: dict[int, tuple[int, int]] = {}  # by birth: how many, and what they hold

    def __len__(self) -> int:
        return sum(count for count, _ in self._loads.values())

    def check(self, birth: int, verb: str) -> None:
        """Overloaded where that peer has so many under way that it may not ask this besides."""
        count, size = self._loads.get(birth, (0, 0))
        times = 2 if verb in LET_THROUGH else 1
        if count >= times * MAX_UNDER_WAY or size >= times * UNDER_WAY_BYTES:
            raise Overloaded(f"{count} requests of yours, with {size} bytes, wait here for their answers: ask less at a time")

    def add(self, incoming: Incoming) -> None:
        """It waits for its answer."""
        size = messages.body_size(incoming.body) + ARGUMENTS_WEIGH * len(packing.pack(incoming.arguments))
        incoming.load = Load(self._loads, incoming.peer.birth, size)


class Service:
    """What answers requests and messages to one coroutine in its place: it is a discoro_server, a channel, a queue."""

    def on_request(self, incoming: Incoming) -> Awaitable[None] | None:
        """Answer it, or give what will; ProtocolError for a verb that it does not know."""
        raise NotImplementedError

    def on_message(self, body: Sequence[Part]) -> None:
        """A message came, still packed; ProtocolError where it takes none."""
        raise NotImplementedError

    def on_object(self, message: object) -> None:
        """A message was sent in this process: the object itself."""
        self.on_message(payload.pack(message))

    def on_peer_lost(self, birth: int) -> None:
        """That process is lost: nobody is left there to be answered."""

    def on_end(self, why: str) -> None:
        """Its coroutine has ended: nothing comes any more."""


def answering(incoming: Incoming, work: Awaitable[None]) -> asyncio.Task[None]:
    """A task that does what answers a request; whatever goes wrong is the answer."""
    task = asyncio.ensure_future(_answer(incoming, work))
    task.add_done_callback(lambda task: _given_up(incoming, work) if task.cancelled() else None)
    return task


async def _answer(incoming: Incoming, work: Awaitable[None]) -> None:
    try:
        await work
    except Exception as error:  # the asker must be answered, whatever it is; fail() logs what is no error of ours
        incoming.fail(error)


def _given_up(incoming: Incoming, work: Awaitable[None]) -> None:
    """Not in the task itself: one that is cancelled before its first step runs nothing of its own."""
    incoming.fail(PeerLost("the process that was asked is leaving, or the request was given up"))
    if asyncio.iscoroutine(work):
        work.close()


def _packed_cause(error: DiscoroError) -> Sequence[Part]:
    return error.packed_cause or (payload.pack_error(error.__cause__) if error.__cause__ is not None else ())


class Requests:
    """What this process asked others, until it is answered. A node does not open causes: they may hold users' objects."""

    def __init__(self, opens_causes: bool = True) -> None:
        self._opens_causes = opens_causes
        self._open: dict[int, tuple[asyncio.Future[Answer], int]] = {}  # and the birth that was asked
        self._ids = itertools.count(1)

    def __len__(self) -> int:
        return len(self._open)

    def begin(self, birth: int) -> tuple[int, asyncio.Future[Answer]]:
        """The id of a new request to that birth, and the future of its answer; `end` it in any case."""
        number, future = next(self._ids), asyncio.get_running_loop().create_future()
        self._open[number] = future, birth
        return number, future

    def end(self, number: int) -> None:
        self._open.pop(number, None)

    def answer(self, number: int, ok: bool, value: Any, body: Sequence[Part]) -> None:
        """An answer came; one that nobody waits for any more is dropped."""
        future, _ = self._open.pop(number, (None, 0))
        if future is None or future.done():
            return
        if ok:
            future.set_result(Answer(value, body))
        else:
            future.set_exception(self._error(value, body))

    def fail(self, birth: int, error: DiscoroError) -> None:
        """That process is lost: whoever waits for an answer of it is told."""
        for number, (future, asked) in list(self._open.items()):
            if asked == birth:
                del self._open[number]
                if not future.done():
                    future.set_exception(error)

    def _error(self, value: Any, body: Sequence[Part]) -> DiscoroError:
        match value:
            case [str(name), str(text)]:
                error = from_wire(name, text)
            case _:
                return ProtocolError(f"an answer that is no error: {value!r:.80}")
        if body and self._opens_causes:
            try:
                error.__cause__ = payload.unpack_error(body)
            except UnpackError as failure:  # whoever waits must be told all the same
                error.__cause__ = failure
        else:
            error.packed_cause = body
        return error
