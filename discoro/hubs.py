"""A channel in the process where it lives: who subscribes, and how a message gets to each of them.

Whatever it sends goes in its own lane, so that each subscriber gets everything in one order, and the notice of its end last. A
subscriber is asked before it is taken: so its process watches this one's end, and will tell its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from discoro import payload
from discoro.answers import RAISED, ref_in
from discoro.errors import ConfigError, DiscoroError, NoSuchCoro, Overloaded, PeerLost, ProtocolError, Timeout
from discoro.messages import Part
from discoro.outcomes import CHANNEL_CLOSED
from discoro.references import CoroRef
from discoro.requests import Incoming
from discoro.sending import checked
from discoro.services import Home, number_in, numbers
from discoro.spreading import GONE, NAMED, Delivery, Key, Load, Trail, may_pass, trail_in

log = logging.getLogger("discoro.channels")

MAX_SUBSCRIBERS = 10_000  # of one channel: a message to all takes some 10 ms, in which its process does nothing else
MAX_DELIVERIES = 1000  # that one channel waits with at a time: each keeps its message

Transform = Callable[[str, Any], Any]


class Subscriber:
    """Who gets the messages, and how many of those from other processes found no room there."""

    __slots__ = ("is_channel", "missed", "ref")

    def __init__(self, ref: CoroRef, is_channel: bool) -> None:
        self.ref, self.is_channel = ref, is_channel
        self.missed = 0


class Missed(NamedTuple):
    """A subscriber that did not get a message, and why."""

    by: Subscriber
    why: Exception


class Hub(Home):
    """A channel in the process where it lives."""

    def __init__(self, kind: str, name: str, transform: Transform | None) -> None:
        super().__init__(kind, name)
        self.transform = transform
        self._key: Key = (self.coro.ref.birth, self.coro.ref.id)
        self._lane = self.coro.ref.id
        self._subscribers: dict[CoroRef, Subscriber] = {}
        self._elsewhere = 0  # how many of them are in other processes
        self._joining: set[CoroRef] = set()  # who was asked, and has not answered yet
        self._deliveries: dict[Delivery, tuple[Load, Trail]] = {}
        self._asked: dict[tuple[int, int], Delivery] = {}  # by the birth of the deliverer, and the number it chose
        self._failures = 0  # of messages from other processes that could not be spread
        self._ended = ""  # why, once it has
        self.verbs |= {"send": self._on_send, "deliver": self._on_deliver, "withdraw": self._on_withdraw}
        self.verbs |= {"subscribe": self._on_subscribe, "unsubscribe": self._on_unsubscribe, "transform": self._on_transform}
        self.verbs |= {"subscribed": self._on_subscribed, "unsubscribed": self._on_subscribed}

    # -------------------------------------------------------------- send

    def on_object(self, message: object) -> None:
        """A message was sent in this process; see Channel.send."""
        missed = self.spread(Load(message), ())
        errors = [each.why for each in missed if not isinstance(each.why, Overloaded)]
        if errors:
            raise errors[0]
        if missed:
            names = ", ".join(str(each.by.ref) for each in missed[:NAMED]) + (" and others" if len(missed) > NAMED else "")
            raise Overloaded(f"{self}: {len(missed)} subscribers had no room, all others have the message: {names}")

    def on_message(self, body: Sequence[Part]) -> None:
        """A message came from another process."""
        self._spread_alone(body, ())

    def _on_send(self, incoming: Incoming) -> None:
        """A message came through other channels."""
        self._spread_alone(incoming.body, trail_in(incoming))
        incoming.reply(0)

    def _spread_alone(self, body: Sequence[Part], trail: Trail) -> None:
        """As nobody waits for it, what goes wrong is counted, and said in the log the first, second, fourth, eighth… time."""
        try:
            missed = self.spread(Load(body=body), trail)
        except Exception as error:  # the transform's, most of all
            self.mesh.sending.lost_messages += 1
            self._failures += 1
            if _is_told(self._failures):
                log.warning("! %s: %d messages are lost so far, the last by %r", self, self._failures, error, exc_info=error)
            return
        for by, why in missed:
            self.mesh.sending.lost_messages += 1
            by.missed += 1
            if _is_told(by.missed):
                log.warning("! %s: %s missed %d messages so far, the last since %s", self, by.ref, by.missed, why)

    def spread(self, load: Load, trail: Trail) -> list[Missed]:
        """Hand a message to every subscriber; whatever fails for one of them, the others get it."""
        missed: list[Missed] = []
        shaped = self._shaped(load)
        if shaped is None:
            return missed
        trail = (*trail, self._key)
        for to in list(self._subscribers.values()):
            try:
                if to.is_channel:
                    missed += self._pass_on(to, shaped, trail)
                else:
                    self._hand(to.ref, shaped)
            except GONE:
                self.drop(to.ref)
            except DiscoroError as error:
                missed.append(Missed(to, error))
        return missed

    def _shaped(self, load: Load) -> Load | None:
        """What is sent in place of that message; None where it is dropped. Raises what the transform does, PackError."""
        if self._ended:
            raise NoSuchCoro(self._ended)
        if self.transform is not None:
            message = self.transform(self.name, load.opened(self.coro.namespace))
            if message is None:
                return None
            load = Load(message)
        if self._elsewhere:
            load.packed()  # what cannot travel goes to nobody
        return load

    def _hand(self, to: CoroRef, load: Load) -> None:
        """To a coroutine. Raises Overloaded where that has no room."""
        if to.birth != self._key[0] or not load.is_object:
            self.mesh.sending.hand(to, load.packed(), self._lane)
            return
        coro = self.mesh.coro(to.id)
        if coro is None:
            raise NoSuchCoro(f"{to} has ended")
        coro.accept(load.opened(None))

    def _pass_on(self, to: Subscriber, load: Load, trail: Trail) -> list[Missed]:
        """To a further channel, unless the message came through that one."""
        if not may_pass(to.ref, trail):
            return []
        hub = self._hub_here(to.ref)
        if hub is None:
            self.mesh.sending.link_with_room(to.ref)
            self.mesh.tell(to.ref, "send", {"trail": trail}, load.packed(), self._lane)
            return []
        try:
            return hub.spread(load, trail)
        except Exception as error:  # of its transform
            return [Missed(to, error)]

    def _hub_here(self, ref: CoroRef) -> Hub | None:
        """A channel of this process; None for one of another. NoSuchCoro where it has ended."""
        if ref.birth != self._key[0]:
            return None
        coro = self.mesh.coro(ref.id)
        if coro is None or not isinstance(coro.service, Hub) or coro.service._ended:
            raise NoSuchCoro(f"{ref} has ended")
        return coro.service

    # -------------------------------------------------------------- deliver

    async def deliver(self, delivery: Delivery, load: Load, trail: Trail) -> int:
        """See Channel.deliver."""
        await self.breathe()
        if len(self._deliveries) >= MAX_DELIVERIES:
            raise Overloaded(f"{self} waits with {MAX_DELIVERIES} messages to be delivered, and takes no more")
        try:
            return await delivery.over() if self._begin(delivery, load, trail) else 0
        finally:
            delivery.end()

    def _begin(self, delivery: Delivery, load: Load, trail: Trail) -> bool:
        """Begin to reach all current subscribers; False where the transform drops the message."""
        shaped = self._shaped(load)
        if shaped is None:
            return False
        self._deliveries[delivery] = shaped, (*trail, self._key)
        for to in list(self._subscribers.values()):
            self._reach(delivery, to)
        return True

    def _reach(self, delivery: Delivery, to: Subscriber) -> None:
        load, trail = self._deliveries[delivery]
        delivery.tried.add(to.ref)
        try:
            if not to.is_channel:
                self._reach_coro(delivery, to.ref, load)
            elif may_pass(to.ref, trail):
                hub = self._hub_here(to.ref)
                if hub is None:
                    delivery.wait_for(self, to.ref, self._deliver_to_channel(to.ref, load, trail))
                else:
                    hub._join_in(delivery, load, trail)
        except GONE:
            self.drop(to.ref)
        except DiscoroError as error:
            delivery.failed(error)

    def _join_in(self, delivery: Delivery, load: Load, trail: Trail) -> None:
        """A delivery comes through another channel of this process."""
        delivery.through(self)
        try:
            self._begin(delivery, load, trail)
        except Exception as error:  # what its transform raises; the others get the message
            delivery.failed(error)

    def _reach_coro(self, delivery: Delivery, to: CoroRef, load: Load) -> None:
        coro = self.mesh.coro(to.id) if to.birth == self._key[0] else None
        if coro is not None and not coro.mailbox.full:
            self._hand(to, load)
            delivery.reached(1)
        else:
            delivery.wait_for(self, to, self._deliver_to_coro(to, load))

    async def _deliver_to_coro(self, to: CoroRef, load: Load) -> int:
        await self.mesh.sending.wait_for_room(to)
        if to.birth == self._key[0]:
            self._hand(to, load)
        else:
            await self.mesh.request(to, "deliver", {}, load.packed(), lane=self._lane)
        return 1

    async def _deliver_to_channel(self, to: CoroRef, load: Load, trail: Trail) -> int:
        number = next(numbers)
        try:
            answer = await self.mesh.request(to, "deliver", {"id": number, "trail": trail}, load.packed(), lane=self._lane)
        except asyncio.CancelledError:
            if self.mesh.linked(to.birth):
                with contextlib.suppress(DiscoroError):
                    self.mesh.tell(to, "withdraw", {"id": number}, lane=self._lane)  # behind what it withdraws
            raise
        return checked(answer).number

    def _on_deliver(self, incoming: Incoming) -> Awaitable[None]:
        key, trail = (incoming.peer.birth, number_in(incoming, "id", 0) or -next(numbers)), trail_in(incoming)
        if key in self._asked:
            raise ProtocolError(f"{incoming.verb} under a number that waits already")
        self._asked[key] = Delivery(self, number_in(incoming, "n", 0))  # at once: it may be withdrawn in this very turn
        return self._delivered(incoming, key, trail)

    async def _delivered(self, incoming: Incoming, key: tuple[int, int], trail: Trail) -> None:
        try:
            incoming.reply(await self.deliver(self._asked[key], Load(body=incoming.body), trail))
        except DiscoroError:
            raise
        except Exception as error:  # of a transform: it goes to the deliverer as it is
            incoming.reply(RAISED, payload.pack_error(error))
        finally:
            del self._asked[key]

    def _on_withdraw(self, incoming: Incoming) -> None:
        delivery = self._asked.get((incoming.peer.birth, number_in(incoming, "id")))
        if delivery is not None:
            delivery.give_up(Timeout(str(delivery)))
        incoming.reply(0)

    def fill(self, delivery: Delivery) -> None:
        """Where a delivery is short, those get it who came since it began."""
        if delivery.is_short and delivery in self._deliveries:
            for to in list(self._subscribers.values()):
                if delivery.is_short and to.ref not in delivery.tried:
                    self._reach(delivery, to)

    def forget(self, delivery: Delivery) -> None:
        """It is over."""
        self._deliveries.pop(delivery, None)

    # -------------------------------------------------------------- subscribers

    async def _on_subscribe(self, incoming: Incoming) -> None:
        ref = ref_in(incoming, "subscriber")
        if ref not in self._subscribers:
            if len(self._subscribers) + len(self._joining) >= MAX_SUBSCRIBERS:
                raise Overloaded(f"{self} has {MAX_SUBSCRIBERS} subscribers: have others subscribe to a channel behind it")
            self._joining.add(ref)
            try:
                answer = await self.mesh.request(ref, "subscribed", {"channel": self.coro.ref.to_plain()})
            except BaseException:  # given up with the channel, or nobody is there: it waits to join no more
                self._joining.discard(ref)
                raise
            self._join(Subscriber(ref, answer.value == self.kind))
        incoming.reply(0)

    def _join(self, new: Subscriber) -> None:
        if new.ref in self._subscribers:  # by another request meanwhile
            return
        if self._ended or new.ref not in self._joining:  # unsubscribed meanwhile
            self.mesh.ask_later(new.ref, "unsubscribed", {"channel": self.coro.ref.to_plain()})
            if self._ended:
                raise NoSuchCoro(self._ended)
            return
        self._joining.discard(new.ref)
        self._subscribers[new.ref] = new
        self._elsewhere += new.ref.birth != self._key[0]
        for delivery in list(self._deliveries):
            if delivery.asked is self and delivery.is_short and new.ref not in delivery.tried:
                self._reach(delivery, new)

    async def _on_unsubscribe(self, incoming: Incoming) -> None:
        ref = ref_in(incoming, "subscriber")
        if self.drop(ref):
            with contextlib.suppress(*GONE):  # then nobody is there to get a notice
                await self.mesh.request(ref, "unsubscribed", {"channel": self.coro.ref.to_plain()})
        incoming.reply(0)

    def drop(self, ref: CoroRef) -> bool:
        """It gets no more; whether it was to."""
        self._joining.discard(ref)
        if self._subscribers.pop(ref, None) is None:
            return False
        self._elsewhere -= ref.birth != self._key[0]
        for delivery in list(self._deliveries):
            delivery.drop(self, ref)
        return True

    def _on_subscribed(self, incoming: Incoming) -> None:
        """This channel subscribes to another, or does no longer."""
        self.mesh.note_subscription(self._lane, ref_in(incoming, "channel"), incoming.verb == "subscribed")
        incoming.reply(self.kind)

    def _on_transform(self, incoming: Incoming) -> None:
        transform = payload.unpack(incoming.body, self.coro.namespace)
        if transform is not None and not callable(transform):
            raise ConfigError(f"a transform is a function; this is {transform!r:.80}")
        self.transform = transform
        incoming.reply(0)

    # -------------------------------------------------------------- ends

    async def close(self) -> None:
        """See Channel.close: its coroutine ends, which tells the subscribers."""
        self.coro.stop(CHANNEL_CLOSED)
        self._end(CHANNEL_CLOSED)
        await self.coro.stopped()

    def on_end(self, why: str) -> None:
        """Closed, or ended from outside."""
        self._end(why)
        for to in self._subscribers.values():
            if to.is_channel and self.mesh.linked(to.ref.birth):
                self.mesh.ask_later(to.ref, "unsubscribed", {"channel": self.coro.ref.to_plain()})
        self._subscribers.clear()
        self._joining.clear()

    def _end(self, why: str) -> None:
        self._ended = self._ended or f"{self} has ended ({why})"
        for delivery in list(self._deliveries):
            if delivery.asked is self:
                delivery.give_up(NoSuchCoro(f"{self._ended}, and {delivery}"))
            else:
                delivery.drop(self)

    def on_peer_lost(self, birth: int) -> None:
        """Nobody gets, and nobody delivers, messages there any more."""
        for ref in [each for each in (*self._subscribers, *self._joining) if each.birth == birth]:
            self.drop(ref)
        for delivery in [each for (whose, _), each in self._asked.items() if whose == birth]:
            delivery.give_up(PeerLost("its deliverer is lost"))


def _is_told(count: int) -> bool:
    """For the log, which would be flooded: 1, 2, 4, 8, and so on."""
    return count & (count - 1) == 0
