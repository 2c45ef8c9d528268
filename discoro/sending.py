"""Messages to coroutines and from them: into a mailbox of this process, or over the link to another's.

Decides where a message goes, whether it waits because a mailbox is full (holding.py), and who is told where it reaches nobody.
What concerns links, coroutines and their ends it asks of the mesh around it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from discoro import payload
from discoro.answers import RAISED
from discoro.coro import Coro, sender
from discoro.errors import DiscoroError, NoSuchCoro, Overloaded, ProtocolError, Timeout
from discoro.exits import Exits
from discoro.holding import Holding
from discoro.link import Link
from discoro.mailbox import Question
from discoro.messages import MESSAGE_WEIGHT, RUN_BYTES, Exit, Greeting, Hold, Message, Operation, Part
from discoro.outcomes import UNKNOWN
from discoro.packing import INLINE_BODY
from discoro.references import CoroRef
from discoro.requests import Answer

log = logging.getLogger("discoro.sending")


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    @property
    def links(self) -> Mapping[int, Link]: ...
    def coro(self, coro_id: int) -> Coro | None: ...
    def here(self, who: CoroRef) -> Coro: ...
    def ref_of(self, coro_id: int) -> CoroRef: ...
    def link_to(self, to: CoroRef) -> Link: ...
    def post(self, link: Link, operation: Operation, lane: int | None = None) -> None: ...
    def post_message(self, birth: int, coro_id: int, body: bytes) -> bool: ...
    def request(self, to: CoroRef, verb: str, arguments: dict[str, Any], body: Sequence[Part] = ()) -> Awaitable[Answer]: ...
    def in_loop(self, function: Callable[..., Any], *args: Any) -> None: ...


class Sending:
    """The messages of one process. `lost_messages` of them reached nobody."""

    def __init__(self, around: Around, exits: Exits) -> None:
        self._around = around
        self._birth, self._links = around.me.birth, around.links
        self._exits = exits
        self.holding = Holding()
        self.lost_messages = 0

    # -------------------------------------------------------------- out

    def send(self, to: CoroRef, message: object) -> None:
        """See Handle.send."""
        if to.birth == self._birth:
            self._send_here(to, message)
            return
        body = payload.pack(message)
        small, size = body[0], len(body[0])
        link = self._links.get(to.birth)
        run = link.outbox.run if link is not None else None
        if run is not None and run.coro == to.id and run.size < RUN_BYTES and size <= INLINE_BODY and len(body) == 1:
            run.bodies.append(small)  # type: ignore[arg-type]  # one part, and no buffer: the bytes of a pickle
            run.size += MESSAGE_WEIGHT + size
        elif size > INLINE_BODY or len(body) > 1 or not self._post_small(to, small):
            self._post_message(to, body)

    def _send_here(self, to: CoroRef, message: object) -> None:
        coro = self._around.coro(to.id) or self._around.here(to)
        if coro.service is None:
            coro.accept(message)
        else:
            coro.service.on_object(message)

    async def deliver(self, to: CoroRef, message: object, timeout: float | None) -> int:
        """See Handle.deliver."""
        try:
            async with asyncio.timeout(timeout) as limit:
                await self.wait_for_room(to)
                if to.birth == self._around.me.birth and self._around.here(to).service is None:
                    self._around.here(to).accept(message)
                    return 1
                return checked(await self._around.request(to, "deliver", {}, payload.pack(message))).number
        except TimeoutError:
            if not limit.expired():  # what a transform raised
                raise
            raise Timeout(f"the message was not in the mailbox of {to} within {timeout:g} s") from None

    async def ask_coro(self, to: CoroRef, message: object, timeout: float | None) -> Any:
        """See Handle.ask."""
        try:
            async with asyncio.timeout(timeout) as limit:
                await self.wait_for_room(to)
                if to.birth == self._around.me.birth:
                    return await self._ask_here(self._around.here(to), message)
                answer = await self._around.request(to, "ask", {}, payload.pack(message))
        except TimeoutError:
            if not limit.expired():  # the reply itself
                raise
            raise Timeout(f"{to} did not reply within {timeout:g} s") from None
        return payload.unpack(checked(answer).body, namespace_here())

    def _ask_here(self, coro: Coro, message: object) -> asyncio.Future[Any]:
        """Ask a coroutine of this process: message and reply are the very objects."""
        reply: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

        def settle(value: Any, error: BaseException | None) -> None:
            if not reply.done():
                reply.set_result(value) if error is None else reply.set_exception(error)

        if coro.service is not None:
            raise ProtocolError(f"{coro.name} ({coro}) takes no questions")
        coro.accept(message, question=Question(f"{coro.name} ({coro})", lambda *answer: self._around.in_loop(settle, *answer)))
        return reply

    def hand(self, to: CoroRef, body: Sequence[Part], lane: int) -> None:
        """Send what is packed already, as `send` does, in order with what else goes in that lane.

        Raises Overloaded for a mailbox of this process that is full, too: nobody is told to hold anything back for it.
        """
        if to.birth != self._around.me.birth:
            self._post_message(to, body, lane)
            return
        coro = self._around.here(to)
        coro.check_room()
        self.put(None, coro, body)

    def _post_small(self, to: CoroRef, body: Part) -> bool:
        """The way of most messages. False where there is more to it: no open link, a full mailbox, an end that is known."""
        if self.holding.any_full or self._exits.has_ended(to.birth, to.id):
            return False
        return self._around.post_message(to.birth, to.id, body)  # type: ignore[arg-type]  # a pickle is bytes

    def _post_message(self, to: CoroRef, body: Sequence[Part], lane: int | None = None) -> None:
        lane = lane_here() if lane is None else lane
        if self.holding.take(to, body, lane):
            return
        ended = self._exits.knows_ended(to)
        if ended:
            raise NoSuchCoro(f"{to} has ended ({ended})")
        self._around.post(self.link_with_room(to), Message(to.id, body), lane)

    def link_with_room(self, to: CoroRef) -> Link:
        """The link to that process. Overloaded where too much waits already to be sent over it."""
        link = self._around.link_to(to)
        if not link.has_room():
            raise Overloaded(f"{link.outbox.waiting} wait to be sent to {to}, and no more are queued: deliver waits for room")
        return link

    async def wait_for_room(self, to: CoroRef) -> None:
        """Until its mailbox is not known to be full. Raises NoSuchCoro, PeerLost, WorkerLost when it is gone."""
        while self.holding.is_full(to) or (to.birth == self._around.me.birth and self._around.here(to).mailbox.full):
            if to.birth == self._around.me.birth:
                self._around.here(to).held = True
            await self.holding.room(to)

    # -------------------------------------------------------------- in

    def came(self, link: Link, coro_id: int, body: Sequence[Part]) -> None:
        """A message came over a link."""
        coro = self._around.coro(coro_id)
        if coro is None:
            self.lost_messages += 1
            if self._exits.tell_nobody((link.birth, coro_id)):
                log.warning("! a message of %s came for %s, which has ended", link.who, self._around.ref_of(coro_id))
                self._around.post(link, Exit(coro_id, UNKNOWN, ""))
        elif coro.service is not None:  # which decides whether to open it: a node must not open what somebody sends it
            try:
                coro.service.on_message(body)
            except DiscoroError as error:
                self.lost_messages += 1
                log.warning("! a message of %s for %s (%s) is lost: %s", link.who, coro.name, coro, error)
        else:
            try:
                self.put(link, coro, body)
            except Overloaded as error:
                raise ProtocolError(str(error)) from None

    def came_together(self, link: Link, coro_id: int, bodies: list[bytes]) -> None:
        """Several messages for one coroutine came over a link."""
        coro = self._around.coro(coro_id)
        if coro is None or coro.service is not None or coro.held:
            for body in bodies:
                self.came(link, coro_id, (body,))
            return
        coro.mailbox.put_run(bodies)
        self._tell_full(coro, link)

    def put(self, link: Link | None, coro: Coro, body: Sequence[Part], question: Question | None = None) -> None:
        """Into the mailbox; the link over which it became full, or was filled further, is told.

        Overloaded where that link was told long ago, and goes on all the same.
        """
        if coro.held and link is not None and self.holding.overruns(coro.id, link, sum(map(len, body))):
            raise Overloaded(f"the mailbox of {coro} is full, which was told, and messages for it still come")
        coro.accept(body, packed=True, question=question)
        self._tell_full(coro, link)

    def _tell_full(self, coro: Coro, link: Link | None) -> None:
        if coro.mailbox.full:
            coro.held = True
            if link is not None and self.holding.tell_full(coro.id, link):
                self._around.post(link, Hold(coro.id, True))

    def drained(self, coro: Coro) -> None:
        """A mailbox that was full is half empty again, or gone with its coroutine: what waits for it comes."""
        coro.held = False
        if not self.holding:  # nothing waits for anything
            return
        for link in self.holding.told_full(coro.id):
            if not link.ended:
                self._around.post(link, Hold(coro.id, False))
        self.holding.opened((self._around.me.birth, coro.id))

    def hold(self, link: Link, key: tuple[int, int], held: bool) -> None:
        """A mailbox elsewhere is full: what we send it waits here. Or it has room again: what waited goes first."""
        if held:
            self.holding.full(key)
            return
        for operation, lane in self.holding.opened(key):
            self._around.post(link, operation, lane)


def namespace_here() -> payload.Namespace | None:
    """Where what comes for the coroutine that this code runs in is opened."""
    coro = sender()
    return coro.namespace if coro is not None else None


def checked(answer: Answer) -> Answer:
    """The answer of user code elsewhere, unless it is what that raised."""
    if answer.value == RAISED:
        raise payload.unpack_error(answer.body, namespace_here())
    return answer


def lane_here() -> int:
    """What one coroutine sends keeps its order, its exit notice last; what no coroutine sends shares a lane."""
    coro = sender()
    return coro.id if coro is not None else 0
