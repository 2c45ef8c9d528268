"""What was sent to one coroutine and not yet received, and the messages among it that somebody waits for the reply of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from discoro import payload
from discoro.errors import NoReply, UnpackError
from discoro.messages import Part

MAILBOX_MESSAGES = 10_000  # about 10 MB of small objects
MAILBOX_BYTES = 16 << 20  # packed bytes; an empty mailbox takes one larger message

Answer = Callable[[Any, BaseException | None], None]  # a value, or an error in its place
Item = tuple[object, int, "Question | None"]  # an object or a packed body; the body's size, -1 for an object; who asks

_NONE: list[Item | bytes] = []  # in place of empty lists: most coroutines only wait


class Question:
    """A message sent by `ask`: whoever sent it waits for the reply.

    `coro.question` hands it to the coroutine, to be answered later, once, by `reply` or `fail`. One that is dropped without
    either raises NoReply where it is waited for.
    """

    __slots__ = ("_answer", "_to")

    def __init__(self, to: str, answer: Answer) -> None:
        self._to = to
        self._answer: Answer | None = answer

    def __repr__(self) -> str:
        return f"<Question to {self._to} {'waits' if self._answer else 'answered'}>"

    def reply(self, value: object = None) -> int:
        """Answer it. Returns 1; 0 where it was answered before. PackError, TooLarge: then it still waits."""
        return self._say(value, None)

    def fail(self, error: BaseException) -> int:
        """Have `ask` raise this exception there. Returns as `reply`."""
        if not isinstance(error, BaseException):
            raise TypeError(f"fail takes an exception; this is {error!r:.80}")
        return self._say(None, error)

    def unanswered(self, why: str) -> None:
        """Nobody will answer it any more."""
        self._say(None, NoReply(f"{self._to} {why}"))

    def _say(self, value: object, error: BaseException | None) -> int:
        answer = self._answer
        if answer is None:
            return 0
        answer(value, error)
        self._answer = None  # not before: where the value cannot travel, another one may
        return 1

    def __del__(self) -> None:
        if getattr(self, "_answer", None) is not None:
            self.unanswered("dropped the question without a reply")


class Mailbox:
    """What was sent to one coroutine and not yet received: packed bodies from other processes, objects from this one.

    `asked`: of the message taken last, if somebody waits for the reply. Most messages that come from elsewhere stand in it as
    their bytes alone, so that many are put in at once.
    """

    __slots__ = ("_came", "_next", "_size", "asked", "count", "wake")

    def __init__(self) -> None:
        self._came = _NONE
        self._next = _NONE  # what is taken before that, the oldest last
        self._size = 0
        self.count = 0
        self.asked: Question | None = None
        self.wake: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return self.count

    @property
    def full(self) -> bool:
        return self.count >= MAILBOX_MESSAGES or self._size >= MAILBOX_BYTES

    @property
    def half_empty(self) -> bool:
        return self.count <= MAILBOX_MESSAGES // 2 and self._size <= MAILBOX_BYTES // 2

    def waits(self) -> asyncio.Future[None]:
        """A future that the next message wakes; `wake` until the coroutine goes on. For an empty mailbox.

        It carries nothing: a message in it would be lost with a cancellation in the same turn.
        """
        self._came = self._next = _NONE
        self.wake = asyncio.get_running_loop().create_future()
        return self.wake

    def put(self, message: object, question: Question | None = None) -> None:
        if self._came is _NONE:
            self._came = []
        self._came.append((message, -1, question))
        self.count += 1
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def put_packed(self, body: Sequence[Part], question: Question | None = None) -> None:
        size = sum(map(len, body))
        is_plain = question is None and len(body) == 1 and type(body[0]) is bytes
        self._put([body[0] if is_plain else (body, size, question)], size)  # type: ignore[list-item]

    def put_run(self, bodies: list[bytes]) -> None:
        """Small messages that came together, in order; each body is one part."""
        self._put(bodies, sum(map(len, bodies)))

    def _put(self, items: Sequence[Item | bytes], size: int) -> None:
        if self._came is _NONE:
            self._came = []
        self._came += items
        self.count += len(items)
        self._size += size
        if self.wake is not None and not self.wake.done():
            self.wake.set_result(None)

    def take(self, namespace: payload.Namespace | None) -> Any:
        """The oldest message; UnpackError for one that cannot be opened here, which is then gone. Not from an empty one."""
        if not self._next:
            self._next, self._came = self._came, []
            self._next.reverse()
        item = self._next.pop()
        self.count -= 1
        if type(item) is tuple:
            return self._opened(item, namespace)
        self._size -= len(item)
        self.asked = None
        return payload.unpack_small(item, namespace)  # type: ignore[arg-type]

    def _opened(self, first: Item, namespace: payload.Namespace | None) -> Any:
        item, size, self.asked = first
        if size < 0:
            return item
        self._size -= size
        try:
            return payload.unpack(item, namespace)  # type: ignore[arg-type]
        except UnpackError as error:
            if self.asked is not None:
                self.asked.fail(error)
            raise

    def go_on(self, why: str) -> None:
        """Whoever asked the message taken last and got no reply is told."""
        if self.asked is not None:
            asked, self.asked = self.asked, None
            asked.unanswered(why)

    def close(self, why: str) -> None:
        """Nothing is taken any more: whoever waits for a reply is told."""
        self.go_on(why)
        for item in (*reversed(self._next), *self._came):
            if type(item) is tuple and item[2] is not None:
                item[2].unanswered(why)
