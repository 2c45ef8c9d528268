"""How coroutines end, and who is told: results, monitors, exit notices; and who ends with them: links, children.

One table for coroutines of this process and of any other, by (birth, coro-id). However the end is learnt (a coroutine of ours
ends, a link brings an exit, a peer is lost), it goes through `settle`, which tells every waiter and every monitor once, and
keeps the outcome for those who ask later. It posts operations and asks through the mesh around
it, and knows no more of either.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable
from typing import Any, Protocol, TypeVar

from discoro.coro import Coro, sender
from discoro.errors import DiscoroError, NoSuchCoro, Overloaded, PeerLost, Timeout, Unreachable, WorkerLost
from discoro.link import Link
from discoro.messages import MIB, Exit
from discoro.outcomes import EXCEPTION, LINKED, NORMAL, PARENT, PEER_LOST, UNKNOWN, WORKER_LOST, Outcome
from discoro.packing import MAX_TEXT
from discoro.raised import told_there
from discoro.references import CoroRef
from discoro.requests import Answer, Incoming

log = logging.getLogger("discoro.exits")

KEPT_OUTCOMES = 100_000  # ended coroutines whose outcome can still be asked for: who runs many asks when all are under way
KEPT_BYTES = 16 * MIB  # and what their values may hold
KEPT_KEYS = 10_000  # of whatever else is remembered of coroutines that are gone
MAX_LEADERS = 100_000  # coroutines that one of ours monitors, and follows because others say so: 60 MB
MAX_SUBSCRIPTIONS = 1000  # channels that one coroutine subscribes to: each is told when it ends

UNHEARD_AFTER = 2.0  # seconds that a program has to ask how a coroutine of its own failed, before the log says it

Key = tuple[int, int]  # birth and coro-id
Who = TypeVar("Who")
Follow = tuple[int, str]  # the id of the one that follows, and LINKED or PARENT


class Around(Protocol):
    """What this needs of the mesh."""

    def runs(self, coro_id: int) -> bool: ...
    def post_exit(self, link: Link, operation: Exit) -> None: ...
    def request(self, to: CoroRef, verb: str, arguments: dict[str, Any]) -> Awaitable[Answer]: ...
    def ask_later(self, to: CoroRef, verb: str, arguments: dict[str, Any]) -> None: ...
    def linked(self, birth: int) -> bool: ...


class Exits:
    """Outcomes, and who waits for them. `birth` is this process's own.

    A node does not open errors that nobody asks about: it runs no coroutines that could have caused them, and nothing of users.
    """

    def __init__(self, birth: int, around: Around, opens_errors: bool = True) -> None:
        self._birth = birth
        self._opens_errors = opens_errors
        self._around = around
        self._outcomes: OrderedDict[Key, Outcome] = OrderedDict()
        self._bytes = 0
        # Whose end, and then who is told: many may wait for one, and one for many; neither makes the other slower.
        self._waiters: dict[Key, dict[asyncio.Future[Outcome], None]] = {}
        self._monitors: dict[Key, dict[int, tuple[Coro, CoroRef]]] = {}  # by the id of the observer
        self._followers: dict[Key, dict[Follow, tuple[Coro, CoroRef]]] = {}  # who ends with that one: linked, or its child
        self._observed: dict[int, set[Key]] = {}  # what each coroutine of ours monitors or follows, forgotten with it
        self._subscriptions: dict[int, dict[CoroRef, None]] = {}  # channels that each coroutine of ours subscribes to
        self._deferred: dict[tuple[Key, int], tuple[Coro, CoroRef, Outcome] | None] = {}  # notices that wait, by monitor's id
        self._unheard: dict[Key, tuple[str, Outcome]] = {}  # exceptions elsewhere that nobody asked about yet, and where
        self._subscribed: set[Key] = set()  # coroutines elsewhere whose end will be told to us
        self._nobody: OrderedDict[Key, None] = OrderedDict()  # coroutines elsewhere that messages of ours did not find
        self._told_nobody: OrderedDict[Key, None] = OrderedDict()  # who was told so by us, of which coroutine
        self._watchers: dict[int, tuple[Link, ...]] = {}  # links to be told when a coroutine of ours ends
        self._alone: dict[Link, tuple[Link]] = {}  # each by itself: one tuple serves all the coroutines that only it watches

    # -------------------------------------------------------------- coroutines of this process

    def watched_by(self, coro_id: int, link: Link) -> None:
        """That peer is told when the coroutine ends."""
        links = self._watchers.get(coro_id, ())
        if link not in links:
            self._watchers[coro_id] = (*links, link) if links else self._alone.setdefault(link, (link,))

    def _unwatch(self, coro_id: int, link: Link) -> None:
        links = tuple(each for each in self._watchers[coro_id] if each is not link)
        if links:
            self._watchers[coro_id] = links
        else:
            del self._watchers[coro_id]

    def is_awaited(self, coro_id: int) -> bool:
        """Whether anybody will learn how it ended."""
        key = (self._birth, coro_id)
        tables = (self._waiters, self._monitors, self._followers)
        return coro_id in self._watchers or any(key in table for table in tables)

    def ended(self, coro: Coro, outcome: Outcome) -> None:
        """A coroutine of this process ended."""
        for key in self._observed.pop(coro.id, ()):
            _discard(self._monitors, key, coro.id)
            for how in (LINKED, PARENT):
                _discard(self._followers, key, (coro.id, how))
        for channel in self._subscriptions.pop(coro.id, ()):
            if self._around.linked(channel.birth):
                self._around.ask_later(channel, "unsubscribe", {"subscriber": coro.ref.to_plain()})
        key = (self._birth, coro.id)
        watchers = self._watchers.pop(coro.id, ())
        self.settle(key, outcome, keep=not watchers)  # who waits here gets the very object, which need not travel
        if watchers:
            body, reason, text = outcome.packed()
            self._keep(key, Outcome(reason, text=text, body=body))
            for link in watchers:
                self._around.post_exit(link, Exit(coro.id, reason, text, body))

    def on_watch(self, incoming: Incoming, link: Link | None) -> None:
        """Somebody asks to be told of the end of a coroutine of ours, or how it ended."""
        outcome = self._outcomes.get((self._birth, incoming.coro))
        if self._around.runs(incoming.coro):
            if link is not None:
                self.watched_by(incoming.coro, link)
            incoming.reply("running")
        elif outcome is not None and link is not None:  # its messages may still be on their way, or held: it comes behind them
            body, reason, text = outcome.packed()
            incoming.reply("running")
            self._around.post_exit(link, Exit(incoming.coro, reason, text, body))
        elif outcome is not None:
            body, reason, text = outcome.packed()
            incoming.reply([reason, text[:MAX_TEXT]], body)
        else:
            incoming.reply([UNKNOWN, ""])

    # -------------------------------------------------------------- coroutines anywhere

    def expect(self, ref: CoroRef) -> None:
        """The end of that coroutine elsewhere will be told to us without asking: we had it created."""
        key = (ref.birth, ref.id)
        if ref.birth != self._birth and key not in self._outcomes and self._around.linked(ref.birth):
            self._subscribed.add(key)  # else nobody is left to tell it: the link was lost in the turn that brought the answer

    def still_runs(self, ref: CoroRef) -> bool:
        """Whether, as far as this process was told, a coroutine that it had created has not ended."""
        return (ref.birth, ref.id) in self._subscribed

    async def result(self, of: CoroRef, timeout: float | None) -> Any:
        """See Handle.result."""
        waiter: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        key = (of.birth, of.id)
        self._waiters.setdefault(key, {})[waiter] = None
        try:
            if timeout is None:
                await self.subscribe(of)
                outcome = await waiter
            else:
                async with asyncio.timeout(timeout):
                    await self.subscribe(of)
                    outcome = await waiter
        except TimeoutError:
            raise Timeout(f"{of} had not ended after {timeout:g} s") from None
        finally:
            _discard(self._waiters, key, waiter)
        receiver = sender()
        return outcome.unpacked(receiver.namespace if receiver else None, str(of)).get()

    async def monitor(self, observer: Coro, observed: CoroRef) -> int:
        """See Coro.monitor."""
        key = (observed.birth, observed.id)
        if observer.done or observer.id in self._monitors.get(key, ()):
            return 0  # one notice, however often it was asked for; none where a task outlives its coroutine
        self._monitors.setdefault(key, {})[observer.id] = observer, observed
        self._observed.setdefault(observer.id, set()).add(key)
        try:
            await self.subscribe(observed)
        except BaseException:  # given up, or nobody could be asked: who gets the error gets no notice besides
            _discard(self._monitors, key, observer.id)
            self._observes_no_more(observer, key)
            raise
        return 0

    def _observes_no_more(self, coro: Coro, key: Key) -> None:
        """One reason fewer to forget that with the coroutine: what lives long may monitor and link for ever."""
        number, follows = coro.id, self._followers.get(key, ())
        if not (number in self._monitors.get(key, ()) or (number, LINKED) in follows or (number, PARENT) in follows):
            self._observed.get(coro.id, set()).discard(key)

    async def subscribed(self, coro: Coro, channel: CoroRef) -> None:
        """A coroutine of ours subscribes to that channel: whichever of both ends first, the other is told."""
        if coro.done:  # since it was asked
            raise NoSuchCoro(f"{coro} has ended")
        self.note_subscription(coro.id, channel)
        try:
            await self.monitor(coro, channel)
        except BaseException:  # given up, or nobody could be asked: then it does not subscribe
            self.note_subscription(coro.id, channel, False)
            raise

    def unsubscribed(self, coro: Coro, channel: CoroRef) -> None:
        """Undo `subscribed`: no notice comes of that channel any more."""
        self.note_subscription(coro.id, channel, False)
        key = (channel.birth, channel.id)
        _discard(self._monitors, key, coro.id)
        self._observes_no_more(coro, key)

    def note_subscription(self, coro_id: int, channel: CoroRef, holds: bool = True) -> None:
        """It subscribes to that channel, which is told when it ends; or does no longer."""
        noted = self._subscriptions.get(coro_id, {})
        if holds:
            if len(noted) >= MAX_SUBSCRIPTIONS:
                raise Overloaded(f"coroutine {coro_id} subscribes to {MAX_SUBSCRIPTIONS} channels, and to no more")
            self._subscriptions.setdefault(coro_id, {})[channel] = None
            return
        noted.pop(channel, None)
        if not noted:
            self._subscriptions.pop(coro_id, None)

    async def follow(self, follower: Coro, leader: CoroRef, how: str) -> None:
        """End `follower` when `leader` ends: LINKED, unless that returns; or PARENT, in any case."""
        followed = self.follows(follower, leader, how)
        self.follow_here(follower, leader, how)
        try:
            await self.subscribe(leader)
        except BaseException:  # given up, or nobody could be asked: who gets the error is not bound besides
            if not followed:
                self._follows_no_more(follower, leader, how)
            raise

    def check_leaders(self, follower: Coro) -> None:
        """Overloaded where others may not have it follow one more."""
        if len(self._observed.get(follower.id, ())) >= MAX_LEADERS:
            raise Overloaded(f"{follower} follows or monitors {MAX_LEADERS} coroutines, and others may not add to them")

    def follows(self, follower: Coro, leader: CoroRef, how: str = LINKED) -> bool:
        """Whether `follower` ends with `leader`."""
        return (follower.id, how) in self._followers.get((leader.birth, leader.id), ())

    def follow_here(self, follower: Coro, leader: CoroRef, how: str) -> None:
        """The same where the end of `leader` is told anyway: it is a running coroutine of this process."""
        if follower.done:
            return
        key = (leader.birth, leader.id)
        self._followers.setdefault(key, {})[follower.id, how] = follower, leader
        self._observed.setdefault(follower.id, set()).add(key)

    def unfollow(self, follower: Coro, leader: CoroRef) -> None:
        """Undo `follow` for a link; a child stays one."""
        self._follows_no_more(follower, leader, LINKED)

    def _follows_no_more(self, follower: Coro, leader: CoroRef, how: str) -> None:
        key = (leader.birth, leader.id)
        _discard(self._followers, key, (follower.id, how))
        self._observes_no_more(follower, key)

    def nobody(self, key: Key, where: str) -> None:
        """A message of ours found nobody there; said once, and further ones are refused."""
        if _remember(self._nobody, key):
            log.warning("! a message for %s was lost: it has ended, or never was", where)

    def tell_nobody(self, key: Key) -> bool:
        """Whether the sender of a message to a coroutine that is gone has still to be told; `key`: its birth, and that id."""
        return _remember(self._told_nobody, key)

    def has_ended(self, birth: int, coro_id: int) -> bool:
        """Whether this process was told that it ended, or that nobody is there; `knows_ended` says how."""
        key = (birth, coro_id)
        return key in self._outcomes or key in self._nobody

    def knows_ended(self, ref: CoroRef) -> str:
        """How that coroutine ended, as far as this process was told; "" where it was not."""
        key = (ref.birth, ref.id)
        outcome = self._outcomes.get(key)
        return outcome.reason if outcome is not None else UNKNOWN if key in self._nobody else ""

    def settle(self, key: Key, outcome: Outcome, keep: bool = True) -> None:
        """A coroutine, here or elsewhere, has ended: everybody who waits or monitors is told, once."""
        self._subscribed.discard(key)
        if keep:
            self._keep(key, outcome)
        for waiter in self._waiters.pop(key, ()):
            if not waiter.done():
                waiter.set_result(outcome)
        for observer, observed in self._monitors.pop(key, {}).values():
            self._observed.get(observer.id, set()).discard(key)
            self.note_subscription(observer.id, observed, False)
            if (key, observer.id) in self._deferred:
                self._deferred[key, observer.id] = observer, observed, outcome
            elif not observer.done:
                observer.notify(observed, outcome)
        for (_, how), (follower, leader) in self._followers.pop(key, {}).items():
            self._observed.get(follower.id, set()).discard(key)
            if how == PARENT or outcome.reason != NORMAL:
                what = "its parent" if how == PARENT else "linked with it,"
                follower.stop(how, f"{what} {leader} ended ({outcome.text or outcome.reason})")

    def told(self, key: Key, where: str, outcome: Outcome) -> None:
        """The end of a coroutine elsewhere came. An exception that nobody asks about in time is said in the log."""
        heard = key in self._waiters or key in self._monitors or key in self._followers
        self.settle(key, outcome)
        if self._opens_errors and outcome.reason == EXCEPTION and not heard and len(self._unheard) < KEPT_KEYS:
            self._unheard[key] = where, outcome
            asyncio.get_running_loop().call_later(UNHEARD_AFTER, self._say_unheard, key)

    def say_unheard(self) -> None:
        """The process is about to leave: say what would have been said later."""
        for key in list(self._unheard):
            self._say_unheard(key)

    def _say_unheard(self, key: Key) -> None:
        where, outcome = self._unheard.pop(key, ("", None))
        if outcome is not None:
            error = outcome.unpacked(None).error
            trace = told_there(error)
            detail = f"\n{trace}" if trace else ""
            log.warning("! %s ended with %s, and nobody waits for its result or monitors it%s", where, outcome.text, detail)

    def defer(self, key: Key, to: int) -> None:
        """The notice of that coroutine for our coroutine `to` is to wait: messages of it are held at the sender."""
        if len(self._deferred) < KEPT_KEYS:
            self._deferred.setdefault((key, to), None)
        else:
            log.warning("! %d exit notices wait: that of coroutine %d may come before its messages", KEPT_KEYS, key[1])

    def release(self, key: Key, to: int) -> None:
        """The messages it waited for have come."""
        waiting = self._deferred.pop((key, to), None)
        if waiting is not None:
            observer, observed, outcome = waiting
            if not observer.done:
                observer.notify(observed, outcome)

    def link_lost(self, link: Link, error: DiscoroError) -> None:
        """A peer is lost: its coroutines have ended as far as anybody here can know, and it need not be told of ours."""
        outcome = _lost(error)
        known = {*self._waiters, *self._monitors, *self._followers, *self._subscribed}
        for key in [key for key in known if key[0] == link.birth]:
            self.settle(key, outcome, keep=False)
        for key, to in [each for each in self._deferred if each[0][0] == link.birth]:
            self.release(key, to)
        for coro_id in [coro_id for coro_id, links in self._watchers.items() if link in links]:
            self._unwatch(coro_id, link)
        self._alone.pop(link, None)
        for coro_id, channels in list(self._subscriptions.items()):
            for channel in [each for each in channels if each.birth == link.birth]:
                self.note_subscription(coro_id, channel, False)

    # -------------------------------------------------------------- parts

    async def subscribe(self, of: CoroRef) -> None:
        """See to it that the end of that coroutine reaches `settle`, at once where it has ended.

        To be called after the waiter or monitor is in its table, so that an end that comes meanwhile finds it.
        """
        key = (of.birth, of.id)
        self._unheard.pop(key, None)
        known = self._outcomes.get(key)
        if known is not None:
            self.settle(key, known, keep=False)
        elif of.birth == self._birth:
            if not self._around.runs(of.id):
                self.settle(key, _unknown(of), keep=False)
        elif key not in self._subscribed:
            await self._ask(of, key)

    async def _ask(self, of: CoroRef, key: Key) -> None:
        try:
            answer = await self._around.request(of, "watch", {})
        except (PeerLost, Unreachable) as error:
            self.settle(key, _lost(error), keep=False)
            return
        match answer.value:
            case "running":
                self.expect(of)
            case [str(reason), str(text)] if reason != UNKNOWN:
                self.settle(key, Outcome(reason, text=text, body=answer.body))
            case _:
                self.settle(key, _unknown(of), keep=False)

    def _keep(self, key: Key, outcome: Outcome) -> None:
        if key in self._outcomes:
            return
        self._outcomes[key] = outcome
        self._bytes += outcome.size
        while len(self._outcomes) > KEPT_OUTCOMES or (self._bytes > KEPT_BYTES and len(self._outcomes) > 1):
            _, oldest = self._outcomes.popitem(last=False)
            self._bytes -= oldest.size


def _discard(table: dict[Key, dict[Who, Any]], key: Key, who: Who) -> None:
    entries = table.get(key)
    if entries is not None:
        entries.pop(who, None)
        if not entries:
            del table[key]


def _remember(known: OrderedDict[Key, None], key: Key) -> bool:
    """Keep it, for as long as not too many others come; whether it is new."""
    if key in known:
        return False
    known[key] = None
    if len(known) > KEPT_KEYS:
        known.popitem(last=False)
    return True


def _lost(error: DiscoroError) -> Outcome:
    reason = WORKER_LOST if isinstance(error, WorkerLost) else PEER_LOST
    return Outcome(reason, error=error, text=str(error))


def _unknown(of: CoroRef) -> Outcome:
    return Outcome(UNKNOWN, error=NoSuchCoro(f"{of} has ended and is no longer known, or never was"))
