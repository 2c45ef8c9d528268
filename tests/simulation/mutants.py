"""discoro with one thing broken in it, on purpose: each shows that the simulation would find such a bug.

A `Mutant` replaces one function for as long as its `with` block lasts. `seed` is one that finds it, tried first: so the suite
is fast; where it finds it no more, the search goes on. What no simulation can find stands in EQUIVALENT, each with the reason.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from discoro import peers
from discoro.coro import Coro
from discoro.exits import Exits
from discoro.holding import Holding
from discoro.link import Link, State
from discoro.mesh import Mesh
from discoro.outbox import Outbox
from discoro.requests import Requests
from discoro.sending import Sending
from discoro.server import Computations

Broken = Callable[..., Any]  # gets the original first


class Mutant(NamedTuple):
    """`name` of a function of `of`, and what takes its place; the `promise` that it breaks, by its name in promises.py."""

    what: str
    of: Any
    name: str
    broken: Broken
    seed: int = 0
    promise: str = ""

    @contextlib.contextmanager
    def alive(self) -> Iterator[None]:
        """discoro is broken inside the block."""
        original = getattr(self.of, self.name)
        static = isinstance(self.of.__dict__.get(self.name), property)
        assert not static, f"{self.name} is a property"
        setattr(self.of, self.name, lambda *args, **kwargs: self.broken(original, *args, **kwargs))
        try:
            yield
        finally:
            setattr(self.of, self.name, original)


def _nothing(*_: Any, **__: Any) -> None:
    return None


# ------------------------------------------------------------------ numbers, acknowledgements, resumption


def _resend_nothing(original: Broken, box: Any, received: int, now: float) -> None:
    box.acknowledge(received, now)


def _resend_all_but_one(original: Broken, box: Any, received: int, now: float) -> None:
    original(box, received, now)
    if box._resend:
        box._resend.popleft()


def _acknowledge_too_much(original: Broken, link: Any, *what: Any) -> Any:
    operations = original(link, *what)
    link._received += 1
    return operations


def _duplicates_too(original: Broken, link: Any, connection: int, frame: Any, size: int, now: float) -> Any:
    if connection == link.connection and frame.session == link.session and frame.number <= link._received:
        return [each for each in map(link._assemble, frame.operations) if each is not None]
    return original(link, connection, frame, size, now)


def _keep_it_to_oneself(original: Broken, link: Any) -> None:
    link._ack_done()


def _gaps_too(original: Broken, link: Any, connection: int, frame: Any, size: int, now: float) -> Any:
    if connection == link.connection and frame.session == link.session:
        link._received = max(link._received, frame.number - 1)
    return original(link, connection, frame, size, now)


def _any_connection(original: Broken, link: Any, connection: int, frame: Any, size: int, now: float) -> Any:
    return original(link, link.connection, frame, size, now)


def _any_session(original: Broken, link: Any, connection: int, frame: Any, size: int, now: float) -> Any:
    return original(link, connection, frame._replace(session=link.session), size, now)


def _lose_early(original: Broken, link: Any, why: str, now: float) -> None:
    original(link, why, now)
    link._give_up = now + 1.0


def _lose_late(original: Broken, link: Any, why: str, now: float) -> None:
    original(link, why, now)
    link._give_up = now + 100.0


def _any_window(original: Broken, box: Any) -> bool:
    return True


def _without_a_lane(original: Broken, box: Any, wire: Any, lane: Any) -> None:
    original(box, wire, None)


def _greet_anybody(original: Broken, mine: Any, theirs: Any) -> Any:
    return original(mine, theirs._replace(wanted=0))


# ------------------------------------------------------------------ notices, requests, mailboxes


def _twice(original: Broken, *what: Any, **more: Any) -> Any:
    original(*what, **more)
    return original(*what, **more)


def _but_the_first(original: Broken, holding: Any, key: Any) -> Any:
    return list(original(holding, key))[1:]


def _turned_round(original: Broken, holding: Any, key: Any) -> Any:
    return list(original(holding, key))[::-1]


def _count_nothing(original: Broken, *what: Any) -> int:
    original(*what)
    return 0


def _defer_nothing(original: Broken, *what: Any) -> list[int]:
    return []


def _follow_on_one_side(original: Broken, mesh: Any, to: Any, verb: str, *rest: Any, **more: Any) -> Any:
    if verb == "follow":
        return _follow_nothing()
    return original(mesh, to, verb, *rest, **more)


async def _follow_nothing() -> None:
    return None


def _run_twice(original: Broken, computations: Any, incoming: Any) -> None:
    again = type(incoming)(incoming.peer, incoming.coro, incoming.verb, incoming.arguments, incoming.body, _nothing)
    original(computations, again)
    original(computations, incoming)


def _lose_what_is_open(original: Any, link: Link, connection: int, theirs: Any, now: float) -> None:
    before = link._give_up
    original(link, connection, theirs, now)
    link._give_up = before


def _ignore_while_greeting(original: Any, link: Link, connection: int, theirs: Any, now: float) -> None:
    if link.state is not State.GREETING:
        original(link, connection, theirs, now)


def _tell_at_once(original: Any, mesh: Mesh, link: Link, operation: Any) -> None:
    if not link.ended:
        mesh._peers.post(link, operation)


def _the_dead_run(original: Any, exits: Exits, incoming: Any, link: Any) -> None:
    if exits._around.runs(incoming.coro):
        original(exits, incoming, link)
    else:
        incoming.reply("running")


MUTANTS = [
    Mutant(
        "after a reconnect nothing is sent again", Outbox, "resume", _resend_nothing, seed=17, promise="no_bug_and_no_leftover"
    ),
    Mutant(
        "after a reconnect the first frame is not sent again",
        Outbox,
        "resume",
        _resend_all_but_one,
        seed=17,
        promise="no_bug_and_no_leftover",
    ),
    Mutant("one frame too many is acknowledged", Link, "data", _acknowledge_too_much, promise="honest_answers"),
    Mutant("frames that came already are handed up again", Link, "data", _duplicates_too, seed=17, promise="order"),
    Mutant("a gap in the numbers is accepted", Link, "data", _gaps_too, seed=65, promise="everything_comes"),
    Mutant("acknowledgements by themselves are never sent", Link, "_send_ack", _keep_it_to_oneself, seed=4),
    Mutant("nothing is acknowledged at all", Outbox, "acknowledge", _nothing, promise="no_bug_and_no_leftover"),
    Mutant(
        "a peer is lost a second after its connection broke", Link, "_broken", _lose_early, seed=9, promise="honest_notices"
    ),
    Mutant("a peer out of reach is lost far too late", Link, "_broken", _lose_late, seed=16, promise="nobody_waits_for_ever"),
    Mutant("the window has no end", Outbox, "_window_open", _any_window, seed=4, promise="within_limits"),
    Mutant("operations of one lane take any order", Outbox, "add", _without_a_lane, seed=9, promise="order"),
    Mutant(
        "whoever answers at an address is taken for the one wanted",
        peers,
        "refusal",
        _greet_anybody,
        seed=92,
        promise="honest_notices",
    ),
    Mutant("a monitor is told twice", Coro, "notify", _twice, seed=7, promise="one_notice"),
    Mutant("monitors hear nothing of a lost process", Exits, "link_lost", _nothing, seed=10, promise="nobody_waits_for_ever"),
    Mutant("requests to a lost process wait for ever", Requests, "fail", _nothing, seed=3, promise="no_bug_and_no_leftover"),
    Mutant("of what waited for room the first is lost", Holding, "opened", _but_the_first, seed=2, promise="no_gap"),
    Mutant("what waited for room comes in another order", Holding, "opened", _turned_round, seed=2, promise="order"),
    Mutant(
        "an exit notice overtakes messages that wait for room",
        Holding,
        "defer",
        _defer_nothing,
        seed=11,
        promise="notice_comes_last",
    ),
    Mutant("nobody is told that a mailbox has room again", Sending, "drained", _nothing, promise="no_bug_and_no_leftover"),
    Mutant("what is lost with a link is not counted", Holding, "link_lost", _count_nothing, seed=56, promise="loss_is_counted"),
    Mutant(
        "only one of two is linked with the other", Mesh, "request", _follow_on_one_side, seed=43, promise="linked_die_together"
    ),
    Mutant("a run creates two coroutines", Computations, "run", _run_twice, promise="runs_once"),
    Mutant(
        "a client that is gone keeps its computations",
        Computations,
        "_client_lost",
        _nothing,
        seed=25,
        promise="closed_is_closed",
    ),
    Mutant("peer_timeout is counted while connected", Link, "_open", _lose_what_is_open, promise="honest_answers"),
    Mutant("nobody dials again after a break", Link, "_redial_later", _nothing, seed=2, promise="honest_answers"),
    Mutant("who greets is not heard while we greet", Link, "hello", _ignore_while_greeting, seed=2, promise="honest_answers"),
    Mutant(
        "an exit notice overtakes messages under way", Mesh, "post_exit", _tell_at_once, seed=11, promise="notice_comes_last"
    ),
    Mutant("who asked to be told of an end is forgotten", Exits, "watched_by", _nothing, promise="no_bug_and_no_leftover"),
    Mutant("of one that has ended it is said that it runs", Exits, "on_watch", _the_dead_run, seed=20, promise="one_notice"),
]
EQUIVALENT = [
    (
        Mutant("it is not heard that the peer gave up a link", Link, "gone", _nothing),
        "its greetings are answered no more, so that peer_timeout ends it, later",
    ),
    (
        Mutant("a frame of a connection that was given up counts", Link, "data", _any_connection),
        "numbers refuse a frame that came over another connection, and a link that ended takes none",
    ),
    (
        Mutant("a frame of another session counts", Link, "data", _any_session),
        "it comes over the connection of that session only, and that one was greeted anew",
    ),
]
