"""One conversation: greeting, numbered frames, acknowledgement, resumption, loss; alone, in pairs, and under every fault.

The first tests drive one Link by hand and look at its actions. The later ones let two processes talk over a network in memory
(`tests/support/link_pair.py`). The last ones are a random simulation: a failure names its seed, and
`simulate(seed, ...)` repeats it.
"""

from __future__ import annotations

import itertools
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from discoro import link as rules
from discoro import messages, packing
from discoro.errors import ProtocolError
from discoro.link import TRANSITIONS, Action, Dial, Drop, Introduce, Link, Send, SendGreeting, State, refusal, worth_dialling
from discoro.messages import Ack, Bye, Data, Greeting, Message, Operation
from discoro.outbox import WINDOW_FRAMES
from tests.support.link_pair import CONNECT_TIMEOUT, Network, Process, greeting, two

PROTOCOL = Path(__file__).resolve().parent.parent / "docs" / "reference" / "protocol.md"
NOW = 100.0
LOW, HIGH = greeting("low", 10), greeting("high", 20)
OURS, THEIRS = 111, 222  # session numbers


# ------------------------------------------------------------------ one link, driven by hand


def new_link(me: Greeting = LOW, peer: Greeting = HIGH, addresses: Sequence[str] = ("a:1",), **timeouts: float) -> Link:
    return Link(me, OURS, NOW, birth=peer.birth, addresses=addresses, **timeouts)


def from_peer(peer: Greeting = HIGH, /, **changes: Any) -> Greeting:
    """What the peer greets with, once it knows our link."""
    return peer._replace(**{"session": THEIRS, "resume": OURS, **changes})


def dial(link: Link, now: float = NOW, first: int = 1) -> list[int]:
    """Perform the dials that the link wants; gives the connections being made."""
    addresses = [action.address for action in link.actions(now) if isinstance(action, Dial)]
    for connection, address in enumerate(addresses, first):
        link.dialled(connection, address)
    return list(range(first, first + len(addresses)))


def greeted(**options: Any) -> Link:
    """A link that dialled and sent its hello over connection 1."""
    link = new_link(**options)
    for connection in dial(link):
        link.connected(connection, NOW)
    link.actions(NOW)
    return link


def opened(**options: Any) -> Link:
    """A link that is open over connection 1, which it dialled at "a:1"."""
    link = greeted(**options)
    link.welcome(1, from_peer(), NOW)
    link.actions(NOW)
    return link


def accepted(now: float = NOW, peer: Greeting = HIGH, **options: Any) -> Link:
    """A link that is open over connection 1, which the peer dialled."""
    link = new_link(addresses=(), peer=peer, **options)
    link.hello(1, from_peer(peer, resume=0), now)
    link.actions(now)
    return link


def frames(actions: Sequence[Action], connection: int = 1) -> list[Any]:
    """The frames sent, decoded."""
    sent = [action for action in actions if isinstance(action, Send)]
    assert all(action.connection == connection for action in sent)
    return [messages.decode(action.parts) for action in sent]


def data(number: int, *operations: Operation, received: int = 0, session: int = OURS) -> Data:
    return Data(session, number, received, list(operations))


def message(text: str) -> Message:
    return Message(1, (text.encode(),))


def texts(operations: Sequence[Operation]) -> list[str]:
    return [bytes(operation.body[0]).decode() for operation in operations if isinstance(operation, Message)]


def large(size: int, coro: int = 1) -> Message:
    return Message(coro, (bytes(size),))


# ------------------------------------------------------------------ states


def table_of_states() -> dict[str, set[str]]:
    """The table under "States of a link" in the protocol page."""
    section = PROTOCOL.read_text().split("## States of a link")[1].split("\n## ")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.splitlines() if line.startswith("| `")]
    return {row[0].strip("`"): set(re.findall(r"`(\w+)`", row[2])) for row in rows}


def test_the_table_of_states_is_the_one_in_the_protocol_page() -> None:
    assert table_of_states() == {state.name: {each.name for each in after} for state, after in TRANSITIONS.items()}


@pytest.mark.parametrize(("before", "after"), [*itertools.product(State, State)])
def test_a_move_outside_the_table_is_an_error_that_names_both_states(before: State, after: State) -> None:
    link = new_link()
    link.state = before
    if after in TRANSITIONS[before]:
        link._move(after)
        assert link.state is after
    else:
        with pytest.raises(AssertionError, match=f"from {before.value} to {after.value}"):
            link._move(after)
        assert link.state is before


def test_an_ended_link_cannot_be_opened_again() -> None:
    link = new_link()
    link.lose("told so")
    with pytest.raises(AssertionError):
        link.hello(9, from_peer(), NOW)


def test_an_ended_link_stays_ended_whatever_happens_and_does_nothing_more() -> None:
    link = opened()
    link.lose("told so")
    link.actions(NOW)
    link.close("again")
    link.bye(1, "again")
    link.gone(1)
    link.connected(1, NOW)
    link.ended_connection(1, NOW, "again")
    link.refused_greeting(1, "key", "again", NOW)
    link.welcome(1, from_peer(), NOW)
    assert link.data(1, data(1, message("x")), 10, NOW) == []
    link.handle_timer(NOW + 1000)
    assert (link.state, link.lost_because) == (State.LOST, "told so")
    assert (link.actions(NOW + 1000), link.next_deadline()) == ([], None)


def test_a_link_prints_its_peer_state_and_counts() -> None:
    assert repr(new_link()) == "<Link birth 14 idle received=0 waiting=0 unacknowledged=0>"
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    link.send(message("y"))
    assert repr(link) == "<Link high/4711 open received=1 waiting=1 unacknowledged=0>"


# ------------------------------------------------------------------ greeting


def test_the_dialler_greets_once_connected_and_opens_at_the_welcome() -> None:
    link = new_link()
    assert link.actions(NOW) == [Dial("a:1")]
    link.dialled(1, "a:1")
    link.connected(1, NOW)
    (hello,) = link.actions(NOW)
    assert hello == SendGreeting(1, LOW._replace(session=OURS, received=0, resume=0, wanted=HIGH.birth), False)
    assert link.state is State.GREETING and not link.opened
    link.welcome(1, from_peer(), NOW)
    assert (link.state, link.opened, link.peer, link.connection) == (State.OPEN, True, from_peer(), 1)
    assert link.actions(NOW) == [] and link.next_deadline() is None


def test_the_listener_opens_at_the_hello_and_answers_with_its_own_session() -> None:
    link = new_link(addresses=())
    link.hello(5, from_peer(resume=0), NOW)
    welcome = LOW._replace(session=OURS, received=0, resume=THEIRS, wanted=HIGH.birth)
    assert link.actions(NOW) == [SendGreeting(5, welcome, True)]
    assert (link.state, link.peer_session) == (State.OPEN, THEIRS)


def test_queued_operations_leave_behind_the_welcome() -> None:
    link = new_link(addresses=())
    link.send(message("early"))
    link.hello(5, from_peer(resume=0), NOW)
    welcome, first = link.actions(NOW)
    assert isinstance(welcome, SendGreeting)
    assert frames([first], 5) == [Data(THEIRS, 1, 0, [message("early")])]


@pytest.mark.parametrize(
    ("theirs", "code", "text"),
    [
        (HIGH._replace(cluster="lab"), "cluster", "cluster '', not to 'lab'"),
        (HIGH._replace(python="3.12"), "python", "low runs Python 3.11, high runs 3.12"),
        (HIGH._replace(wanted=99), "stale", r"low \(pid 4711\) listens here now"),
        (HIGH._replace(cluster="lab", python="3.12", wanted=99), "cluster", ""),
        (HIGH._replace(python="3.12", wanted=99), "python", ""),
    ],
)
def test_a_greeting_is_refused_with_the_first_check_that_fails(theirs: Greeting, code: str, text: str) -> None:
    refused = refusal(LOW, theirs)
    assert refused is not None and refused[0] == code
    assert re.search(text, refused[1])


def test_a_greeting_for_us_and_an_inquiry_are_welcome() -> None:
    assert refusal(LOW, HIGH._replace(wanted=LOW.birth)) is None
    assert refusal(LOW, HIGH._replace(wanted=0, session=0)) is None


@pytest.mark.parametrize("code", ["protocol", "key", "cluster", "python", "full"])
def test_a_refusal_is_final_and_its_text_is_the_reason(code: str) -> None:
    link = greeted()
    link.refused_greeting(1, code, "why not", NOW)
    assert (link.state, link.lost_because, link.refused_code) == (State.LOST, "why not", code)
    assert link.actions(NOW) == [Drop(1, False)]


def test_a_refusal_at_one_of_several_addresses_leaves_the_others_their_turn() -> None:
    link = greeted(addresses=("172.17.0.1:1", "10.0.0.5:1"))
    link.refused_greeting(1, "cluster", "another cluster lives here", NOW)
    drop, hello = link.actions(NOW)
    assert drop == Drop(1, False)
    assert isinstance(hello, SendGreeting) and hello.connection == 2
    link.welcome(2, from_peer(), NOW)
    assert (link.state, link.refused_code) == (State.OPEN, "")


def test_a_stale_address_alone_means_that_nobody_is_there() -> None:
    link = greeted()
    link.refused_greeting(1, "stale", "somebody else lives here", NOW)
    assert (link.state, link.refused_code) == (State.LOST, "")
    assert link.lost_because == "not to be reached at any address: tried a:1 (somebody else lives here)"


def test_a_refusal_from_a_connection_that_is_not_ours_changes_nothing() -> None:
    link = greeted()
    link.refused_greeting(7, "key", "no", NOW)
    assert link.state is State.GREETING and link.actions(NOW) == []


@pytest.mark.parametrize(
    "wrong",
    [{"birth": 99}, {"resume": 99}, {"resume": 0}, {"session": 0}, {"received": 1}],
    ids=["another birth", "another link", "no link", "an inquiry's answer", "more than was sent"],
)
def test_a_welcome_that_answers_somebody_else_breaks_the_protocol(wrong: dict[str, int]) -> None:
    link = greeted()
    with pytest.raises(ProtocolError):
        link.welcome(1, from_peer(**wrong), NOW)
    assert link.state is State.GREETING


def test_a_welcome_over_another_connection_or_twice_changes_nothing() -> None:
    link = greeted()
    link.welcome(7, from_peer(), NOW)
    assert not link.opened
    link.welcome(1, from_peer(), NOW)
    link.welcome(1, from_peer(birth=99), NOW)
    assert link.state is State.OPEN and link.actions(NOW) == []


def test_a_hello_that_received_more_than_was_sent_breaks_the_protocol_and_opens_nothing() -> None:
    link = new_link()
    with pytest.raises(ProtocolError):
        link.hello(5, from_peer(received=1), NOW)
    assert (link.state, link.connection) == (State.IDLE, None)


def test_gone_ends_the_link_only_from_the_connection_that_counts() -> None:
    for link in (greeted(), opened()):
        link.gone(7)
        assert not link.ended
        link.gone(1)
        assert (link.state, link.lost_because) == (State.LOST, "the peer ended the link")
        assert link.actions(NOW) == [Drop(1, False)]


def test_bye_ends_the_link_only_from_the_current_connection() -> None:
    link = opened()
    link.bye(7, "leaving")
    assert not link.ended
    link.bye(1, "leaving")
    assert (link.state, link.lost_because) == (State.CLOSED, "leaving")
    assert link.actions(NOW) == [Drop(1, False)]


def test_close_sends_what_waits_and_what_is_received_and_says_goodbye() -> None:
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    link.close("idle")
    ack, bye, drop = link.actions(NOW)
    assert frames([ack, bye]) == [Ack(THEIRS, 1), Bye(THEIRS, "idle")]
    assert drop == Drop(1, True)
    link = opened()
    link.send(message("last"))
    link.close("idle")
    first, bye, drop = link.actions(NOW)
    assert frames([first, bye]) == [Data(THEIRS, 1, 0, [message("last")]), Bye(THEIRS, "idle")]
    assert link.outbox.unacknowledged == 1


@pytest.mark.parametrize("make", [new_link, greeted])
def test_close_before_the_link_opened_drops_what_there_is(make: Callable[[], Link]) -> None:
    link = make()
    link.close("never mind")
    assert link.state is State.CLOSED
    assert all(isinstance(action, Drop) for action in link.actions(NOW))
    assert link.next_deadline() is None


@pytest.mark.parametrize(
    ("changes", "anew"),
    [({}, False), ({"resume": 0}, False), ({"session": 333}, True), ({"session": 333, "resume": 0}, True)],
)
def test_a_hello_of_another_session_begins_anew_once_the_link_was_open(changes: dict[str, int], anew: bool) -> None:
    assert new_link().begun_anew(from_peer(**changes)) is False
    assert opened().begun_anew(from_peer(**changes)) is anew


# ------------------------------------------------------------------ dialling


def test_all_addresses_are_dialled_at_once_and_the_first_to_stand_greets() -> None:
    link = new_link(addresses=("a:1", "b:1", "c:1"))
    assert dial(link) == [1, 2, 3]
    link.connected(2, NOW)
    link.connected(3, NOW)
    assert [action.connection for action in link.actions(NOW) if isinstance(action, SendGreeting)] == [2]
    link.welcome(2, from_peer(addresses=("a:1", "b:1", "d:1")), NOW)
    assert set(link.actions(NOW)) == {Drop(1, False), Drop(3, False)}
    assert link.addresses == ("b:1", "a:1", "d:1")


def test_a_connection_that_does_not_answer_makes_way_for_a_spare_one() -> None:
    link = greeted(addresses=("a:1", "b:1"), connect_timeout=60.0)
    deadline = link.next_deadline()
    assert deadline == NOW + rules.GREETING_TIMEOUT
    link.handle_timer(deadline)
    drop, hello = link.actions(deadline)
    assert drop == Drop(1, False)
    assert isinstance(hello, SendGreeting) and hello.connection == 2


def test_a_spare_connection_that_ends_is_forgotten() -> None:
    link = greeted(addresses=("a:1", "b:1"))
    link.ended_connection(2, NOW, "broke")
    link.ended_connection(1, NOW, "broke")
    assert link.state is State.IDLE
    assert [action for action in link.actions(NOW) if not isinstance(action, Dial)] == []


def test_dials_are_repeated_ever_more_slowly_until_connect_timeout() -> None:
    link, now = new_link(connect_timeout=10.0), NOW
    waits: list[float] = []
    while not link.ended and len(waits) < 100:
        for connection in dial(link, now):
            link.ended_connection(connection, now, "timed out")
        deadline = link.next_deadline()
        assert deadline is not None
        waits.append(deadline - now)
        now = deadline
        link.handle_timer(now)
    assert now == NOW + 10.0
    assert [round(wait, 3) for wait in waits[:7]] == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 2.0]
    assert link.lost_because == "unreachable for 10 s: tried a:1 (timed out)"


def test_nobody_at_any_address_is_told_at_once() -> None:
    link = new_link(addresses=("a:1", "b:1"))
    dial(link)
    link.ended_connection(1, NOW, "connection refused", refused=True)
    assert not link.ended
    link.ended_connection(2, NOW, "connection refused", refused=True)
    assert link.lost_because == "not to be reached at any address: tried a:1 (connection refused), b:1 (connection refused)"


def test_an_address_that_is_silent_keeps_the_hope_up() -> None:
    link = new_link(addresses=("a:1", "b:1"))
    dial(link)
    link.ended_connection(1, NOW, "connection refused", refused=True)
    link.ended_connection(2, NOW, "timed out")
    assert link.state is State.IDLE


def test_a_link_without_addresses_waits_to_be_dialled_and_says_so() -> None:
    link = new_link(addresses=())
    assert link.actions(NOW) == []
    assert link.next_deadline() == NOW + 5.0
    link.handle_timer(NOW + 5.0)
    assert link.lost_because == "unreachable for 5 s: no address of it is known"


def test_after_a_break_the_link_dials_at_once_if_the_connection_was_of_use_and_soon_if_not() -> None:
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    link.ended_connection(1, NOW, "broke")
    assert link.actions(NOW) == [Dial("a:1"), Dial("high:1")]
    link = opened()
    link.ended_connection(1, NOW, "broke")
    assert link.actions(NOW) == []
    assert link.next_deadline() == NOW + rules.REDIAL_FIRST


def test_unreachable_for_peer_timeout_counted_from_the_break() -> None:
    link = opened(peer_timeout=15.0)
    link.ended_connection(1, NOW + 3, "heartbeat lost")
    now = NOW + 3
    for _ in range(100):
        for connection in dial(link, now, first=10):
            link.ended_connection(connection, now, "timed out")
        now = link.next_deadline() or now
        link.handle_timer(now)
    assert now == NOW + 18
    assert link.lost_because.startswith("unreachable for 15 s (heartbeat lost): tried a:1 (timed out)")


def test_what_came_of_dials_before_the_link_opened_is_not_told_at_its_loss() -> None:
    link = greeted(addresses=("a:1", "b:1"))
    link.ended_connection(2, NOW, "old trouble")
    link.welcome(1, from_peer(), NOW)
    link.ended_connection(1, NOW, "broke")
    link.handle_timer(NOW + 15)
    assert link.lost_because == "unreachable for 15 s (broke)"


def test_where_the_peer_lived_a_refusal_ends_the_link_at_once() -> None:
    link = opened()
    link.ended_connection(1, NOW, "broke")
    dial(link, NOW + 1, first=2)
    link.ended_connection(2, NOW + 1, "connection refused", refused=True)
    assert (link.state, link.lost_because) == (State.LOST, "ended: a:1: connection refused")


def test_where_the_peer_lived_another_birth_ends_the_link_at_once() -> None:
    link = opened()
    link.ended_connection(1, NOW, "broke")
    for connection in dial(link, NOW + 1, first=2):
        link.connected(connection, NOW + 1)
    link.refused_greeting(2, "stale", "somebody else lives here", NOW + 1)
    assert (link.state, link.lost_because) == (State.LOST, "ended: a:1: somebody else lives here")


def test_where_the_peer_was_never_met_a_refusal_leaves_it_a_few_seconds() -> None:
    link = accepted(peer=HIGH)
    link.ended_connection(1, NOW, "broke")
    (connection,) = dial(link, NOW + 1, first=2)
    link.ended_connection(connection, NOW + 1, "connection refused", refused=True)
    assert link.state is State.IDLE
    link.handle_timer(NOW + 1 + rules.REFUSED_GRACE - 0.01)
    assert not link.ended
    link.handle_timer(NOW + 1 + rules.REFUSED_GRACE)
    assert link.lost_because == "unreachable for 4 s (broke): tried high:1 (connection refused)"


# ------------------------------------------------------------------ introductions


def wanting(addresses: Sequence[str] = ("a:1",), me: Greeting = LOW, peer: Greeting = HIGH) -> Link:
    """A link that dials, and whose caller knows others to ask."""
    link = new_link(me, peer, addresses)
    dial(link)
    assert link.want_introduction(NOW) and not link.want_introduction(NOW)
    return link


def introductions(link: Link, now: float) -> list[Introduce]:
    return [action for action in link.actions(now) if isinstance(action, Introduce)]


def test_an_introduction_is_wanted_once_dialling_has_had_its_time() -> None:
    link, at = wanting(), NOW + rules.INTRODUCE_AFTER
    assert introductions(link, at - 0.01) == [] and link.next_deadline() == at
    assert introductions(link, at) == [Introduce(5.0 - rules.INTRODUCE_AFTER)]
    assert introductions(link, at + 1) == [] and not link.want_introduction(at)


def test_without_an_address_and_after_a_round_that_failed_it_is_wanted_at_once() -> None:
    assert introductions(wanting(addresses=()), NOW) == [Introduce(5.0)]
    link = wanting()
    link.ended_connection(1, NOW + 0.5, "refused", refused=True)
    assert introductions(link, NOW + 0.5) == [Introduce(4.5)]
    late = new_link()
    dial(late)
    late.ended_connection(1, NOW, "timed out")
    assert late.want_introduction(NOW) and introductions(late, NOW) == [Introduce(5.0)]


def test_a_link_that_opens_wants_none() -> None:
    link = wanting()
    link.connected(1, NOW)
    link.welcome(1, from_peer(), NOW)
    assert introductions(link, NOW + 1) == [] and not link.want_introduction(NOW + 1)
    assert not opened().want_introduction(NOW)


def test_what_would_end_a_link_waits_for_the_introduction_and_counts_after_it() -> None:
    for refused in (True, False):
        link = wanting()
        if refused:
            link.connected(1, NOW)
            link.refused_greeting(1, "cluster", "another cluster", NOW)
        else:
            link.ended_connection(1, NOW, "connection refused", refused=True)
        assert len(introductions(link, NOW)) == 1 and not link.ended
        link.asked = "asked ada (it is not linked with it)"
        link.not_introduced()
        tried = "another cluster" if refused else "not to be reached at any address: tried a:1 (connection refused)"
        assert (link.state, link.lost_because) == (State.LOST, f"{tried}; asked ada (it is not linked with it)")


def test_while_an_address_may_still_answer_a_failed_introduction_ends_nothing() -> None:
    link = wanting()
    link.actions(NOW + rules.INTRODUCE_AFTER)
    link.not_introduced()
    link.ended_connection(1, NOW + 1, "timed out")
    assert link.state is State.IDLE
    link.handle_timer(NOW + 5)
    assert link.lost_because == "unreachable for 5 s: tried a:1 (timed out)"


def test_further_addresses_are_dialled_with_the_rest_or_at_once() -> None:
    link = wanting()
    link.learn(["a:1", "b:1", "b:1"], NOW)
    assert link.actions(NOW) == [Dial("b:1")]
    idle = wanting(addresses=())
    idle.actions(NOW)
    idle.learn(["b:1"], NOW + 1)
    assert idle.actions(NOW + 1) == [Dial("b:1")] and idle.state is State.DIALLING


def test_of_further_addresses_so_many_are_taken_and_none_by_an_open_link() -> None:
    link = wanting()
    for first in range(0, 100, 10):
        link.learn([f"b:{number}" for number in range(first, first + 10)], NOW)
    assert len(link.addresses) == rules.MAX_DIALLED
    link = opened()
    before = link.addresses
    link.learn(["b:1"], NOW)
    assert link.addresses == before and link.actions(NOW) == []


# ------------------------------------------------------------------ both dial


def test_the_greater_birth_holds_the_others_hello_and_drops_it_at_its_own_welcome() -> None:
    link = greeted(me=HIGH, peer=LOW)
    link.hello(5, from_peer(LOW, resume=0), NOW)
    assert link.actions(NOW) == [] and link.state is State.GREETING
    link.welcome(1, from_peer(LOW), NOW)
    assert link.actions(NOW) == [Drop(5, False)] and link.connection == 1


@pytest.mark.parametrize("end", ["ended", "silent", "refused"])
def test_the_greater_birth_answers_the_held_hello_when_its_own_dial_comes_to_nothing(end: str) -> None:
    link = greeted(me=HIGH, peer=LOW)
    link.hello(5, from_peer(LOW, resume=0), NOW)
    if end == "ended":
        link.ended_connection(1, NOW, "broke")
    elif end == "silent":
        link.handle_timer(NOW + rules.GREETING_TIMEOUT)
    else:
        link.refused_greeting(1, "cluster", "somebody else's network", NOW)
    *_, welcome = link.actions(NOW)
    assert isinstance(welcome, SendGreeting) and (welcome.connection, welcome.welcome) == (5, True)
    assert (link.state, link.connection) == (State.OPEN, 5)


def test_a_peer_that_greets_is_not_given_up_because_its_old_address_refuses() -> None:
    link = greeted(me=HIGH, peer=LOW)
    link.welcome(1, from_peer(LOW, addresses=()), NOW)
    link.ended_connection(1, NOW, "broke")
    dial(link, NOW + 1, first=2)
    link.hello(5, from_peer(LOW), NOW + 1)
    link.ended_connection(2, NOW + 1, "connection refused", refused=True)
    assert (link.state, link.connection) == (State.OPEN, 5)


def test_a_held_hello_that_ends_is_forgotten_and_a_second_replaces_the_first() -> None:
    link = greeted(me=HIGH, peer=LOW)
    link.hello(5, from_peer(LOW, resume=0), NOW)
    link.hello(6, from_peer(LOW, resume=0), NOW)
    assert link.actions(NOW) == [Drop(5, False)]
    link.ended_connection(6, NOW, "broke")
    link.ended_connection(1, NOW, "broke")
    assert link.state is State.IDLE


def test_the_lesser_birth_accepts_at_once_and_drops_its_own_dial() -> None:
    link = greeted()
    link.hello(5, from_peer(resume=0), NOW)
    drop, welcome = link.actions(NOW)
    assert drop == Drop(1, False)
    assert isinstance(welcome, SendGreeting) and (welcome.connection, welcome.welcome) == (5, True)
    assert link.connection == 5


def test_a_dial_that_has_not_come_to_a_greeting_gives_way_to_the_hello_that_is_there() -> None:
    """It may lead nowhere, which takes a second to show; the peer's connection stands."""
    link = new_link(me=HIGH, peer=LOW)
    dial(link)
    link.hello(5, from_peer(LOW, resume=0), NOW)
    drop, welcome = link.actions(NOW)
    assert drop == Drop(1, False) and isinstance(welcome, SendGreeting)
    assert (link.state, link.connection) == (State.OPEN, 5)


class Lags(Network):
    """A network in which each frame in turn takes the time given here."""

    def __init__(self, lags: Sequence[float]) -> None:
        super().__init__()
        self._lags = iter(lags)

    def lag(self) -> float:
        return next(self._lags, 0.001)


@pytest.mark.parametrize("cut_at", [None, 0.004, 0.02])
def test_simultaneous_dialling_makes_one_link_in_every_interleaving(cut_at: float | None) -> None:
    for lags in itertools.product((0.001, 0.0035, 0.013), repeat=6):
        network = Lags(lags)
        low, high = (Process(network, me) for me in (LOW, HIGH))
        links = low.link(high), high.link(low)
        for process, link in zip((low, high), links, strict=True):
            process.post(link, message(f"from {process.me.name}"))
        if cut_at is not None:
            network.run(cut_at)
            network.drop(low, high)
        network.run(5)
        assert (low.links, high.links) == ({20: links[0]}, {10: links[1]}), lags
        assert [texts(low.arrived[links[0]]), texts(high.arrived[links[1]])] == [["from high"], ["from low"]], lags
        assert [link.state for link in links] == [State.OPEN] * 2, lags
        assert [sum(link.outbox.unacknowledged for link in links)] == [0], lags
        ends = {id(process.connections[link.connection or 0][0]) for process, link in zip((low, high), links, strict=True)}
        assert len(ends) == len(low.connections) == len(high.connections) == 1, lags


def test_two_greetings_accepted_at_once_by_both_sides_are_one_link() -> None:
    """Each accepts the other's hello while its own dial dies: both are open, over dead connections, for the same link."""
    low, high = greeted(), Link(HIGH, THEIRS, NOW, birth=LOW.birth, addresses=("a:1",))
    for connection in dial(high):
        high.connected(connection, NOW)
    (hello_of_high,) = high.actions(NOW)
    assert isinstance(hello_of_high, SendGreeting)
    high.hello(5, LOW._replace(session=OURS, wanted=HIGH.birth), NOW)
    high.ended_connection(1, NOW, "broke")  # so that it answers the hello that it held
    low.hello(6, hello_of_high.greeting, NOW)  # sent before that
    for link, connection in ((high, 5), (low, 6)):
        assert link.connection == connection
        link.ended_connection(connection, NOW, "broke")
    again = low._greeting()
    assert not high.begun_anew(again) and again.resume == high.session


# ------------------------------------------------------------------ numbers and acknowledgements


def test_frames_are_numbered_from_one_and_say_what_was_received() -> None:
    link = opened()
    link.send(message("a"))
    first = frames(link.actions(NOW))
    link.data(1, data(1, message("x")), 10, NOW)
    link.send(message("b"))
    assert first + frames(link.actions(NOW)) == [
        Data(THEIRS, 1, 0, [message("a")]),
        Data(THEIRS, 2, 1, [message("b")]),
    ]
    assert link.next_deadline() == NOW + rules.QUESTION_AFTER, "the frame carried the acknowledgement"


def test_what_waits_in_one_turn_shares_a_frame() -> None:
    link = opened()
    for number in range(messages.BATCH_OPERATIONS + 3):
        link.send(message(str(number)))
    assert [len(frame.operations) for frame in frames(link.actions(NOW))] == [messages.BATCH_OPERATIONS, 3]
    for _ in range(9):
        link.send(large(packing.INLINE_BODY))
    sizes = [sum(map(len, action.parts)) for action in link.actions(NOW) if isinstance(action, Send)]
    assert len(sizes) == 2 and all(size <= messages.BATCH_BYTES for size in sizes)


def test_a_duplicate_is_dropped_and_acknowledged_again() -> None:
    link = opened()
    assert texts(link.data(1, data(1, message("x")), 10, NOW)) == ["x"]
    assert frames(link.actions(NOW + rules.ACK_DELAY)) == [Ack(THEIRS, 1)]
    assert link.data(1, data(1, message("x")), 10, NOW + 1) == []
    assert frames(link.actions(NOW + 1 + rules.ACK_DELAY)) == [Ack(THEIRS, 1)]


def test_a_gap_ends_the_connection_and_the_next_greeting_asks_for_the_rest() -> None:
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    assert link.data(1, data(3, message("z")), 10, NOW) == []
    drop, *dials = link.actions(NOW)
    assert drop == Drop(1, False) and dials == [Dial("a:1"), Dial("high:1")]
    link.dialled(2, "a:1")
    link.connected(2, NOW)
    (hello,) = link.actions(NOW)
    assert isinstance(hello, SendGreeting) and (hello.greeting.received, hello.greeting.resume) == (1, THEIRS)


@pytest.mark.parametrize(("connection", "session"), [(7, OURS), (1, THEIRS), (1, 0)])
def test_frames_of_another_connection_or_session_do_not_count(connection: int, session: int) -> None:
    link = opened()
    link.send(message("a"))
    link.actions(NOW)
    assert link.data(connection, data(1, message("x"), received=1, session=session), 10, NOW) == []
    link.acknowledged(connection, session, 1, NOW)
    assert link.outbox.unacknowledged == 1 and link.next_deadline() == NOW + rules.QUESTION_AFTER


@pytest.mark.parametrize("how", ["data", "ack"])
def test_acknowledging_what_was_never_sent_breaks_the_protocol(how: str) -> None:
    link = opened()
    link.send(message("a"))
    link.actions(NOW)
    with pytest.raises(ProtocolError, match="frame 2 acknowledged; 1 were sent"):
        if how == "data":
            link.data(1, data(1, message("x"), received=2), 10, NOW)
        else:
            link.acknowledged(1, OURS, 2, NOW)


def test_pieces_that_fit_no_operation_break_the_protocol() -> None:
    piece = messages.Piece(1, False, None, None, b"x")
    with pytest.raises(ProtocolError, match="never began"):
        opened().data(1, Data(OURS, 1, 0, [piece]), 10, NOW)


def test_an_acknowledgement_waits_for_a_frame_to_travel_with_but_not_long() -> None:
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    assert link.actions(NOW) == []
    link.data(1, data(2, message("y")), 10, NOW + 0.01)
    assert link.next_deadline() == NOW + rules.ACK_DELAY
    assert link.actions(NOW + 0.019) == []
    assert frames(link.actions(NOW + rules.ACK_DELAY)) == [Ack(THEIRS, 2)]
    assert link.actions(NOW + 1) == [] and link.next_deadline() is None


@pytest.mark.parametrize(("count", "size"), [(rules.ACK_FRAMES, 10), (2, rules.ACK_BYTES // 2)])
def test_an_acknowledgement_does_not_wait_once_a_quarter_of_the_window_is_used(count: int, size: int) -> None:
    link = opened()
    for number in range(1, count):
        link.data(1, data(number, message("x")), size, NOW)
        assert link.actions(NOW) == []
    link.data(1, data(count, message("x")), size, NOW)
    assert frames(link.actions(NOW)) == [Ack(THEIRS, count)]


def test_an_acknowledgement_that_is_due_dies_with_its_connection() -> None:
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    link.ended_connection(1, NOW, "broke")
    link.hello(5, from_peer(), NOW + 1)
    (welcome,) = link.actions(NOW + 1)
    assert isinstance(welcome, SendGreeting) and welcome.greeting.received == 1


# ------------------------------------------------------------------ silence


def questions(link: Link, until: float) -> list[tuple[float, Data]]:
    """What it sends by itself until then, and when: seconds after NOW."""
    asked: list[tuple[float, Data]] = []
    while (deadline := link.next_deadline()) is not None and deadline <= until:
        link.handle_timer(deadline)
        asked += [(deadline - NOW, frame) for frame in frames(link.actions(deadline))]
    return asked


def test_where_nothing_is_acknowledged_a_frame_with_nothing_in_it_asks_ever_more_rarely() -> None:
    link = opened()
    link.send(message("a"))
    link.actions(NOW)
    empty = data(2, session=THEIRS)
    assert questions(link, NOW + 200) == [(each, empty) for each in (5.0, 15.0, 35.0, 75.0, 135.0, 195.0)]
    assert link.outbox.unacknowledged == 1, "which is no operation"


def test_a_full_window_keeps_no_question_back() -> None:
    link = opened()
    for _ in range(WINDOW_FRAMES + 1):
        link.send(message("x"))
        link.actions(NOW)
    assert questions(link, NOW + 5) == [(5.0, data(WINDOW_FRAMES + 1, session=THEIRS))]
    link.acknowledged(1, OURS, 1, NOW + 6)
    assert link.actions(NOW + 6) == [], "it counts as one of the window"
    link.acknowledged(1, OURS, 2, NOW + 6)
    assert frames(link.actions(NOW + 6)) == [data(WINDOW_FRAMES + 2, message("x"), session=THEIRS)]


def test_nothing_is_asked_where_acknowledgements_come_or_nothing_is_awaited() -> None:
    link = opened()
    for number in range(1, 4):
        link.send(message("a"))
        link.actions(NOW + 4 * number)
        link.acknowledged(1, OURS, number - 1, NOW + 4 * number)
        assert questions(link, NOW + 4 * number + 3) == []
    link.acknowledged(1, OURS, 3, NOW + 13)
    assert questions(link, NOW + 100) == [] and link.next_deadline() is None


def test_after_an_acknowledgement_questions_begin_anew() -> None:
    link = opened()
    for _ in range(2):
        link.send(message("a"))
        link.actions(NOW)
    assert [at for at, _ in questions(link, NOW + 20)] == [5.0, 15.0]
    link.acknowledged(1, OURS, 1, NOW + 20)
    assert [at for at, _ in questions(link, NOW + 60)] == [25.0, 35.0, 55.0]


def test_a_question_ends_with_its_connection_and_is_sent_again_over_the_next() -> None:
    link = opened()
    link.send(message("a"))
    link.actions(NOW)
    questions(link, NOW + 5)
    link.ended_connection(1, NOW + 6, "broke")
    link.hello(5, from_peer(), NOW + 7)
    welcome, *again = link.actions(NOW + 7)
    assert isinstance(welcome, SendGreeting)
    assert frames(again, 5) == [data(1, message("a"), session=THEIRS), data(2, session=THEIRS)]
    assert link.next_deadline() == NOW + 7 + rules.QUESTION_AFTER


@pytest.mark.parametrize("busy", [0, 1, 5])
def test_a_question_is_acknowledged_however_often_it_came(busy: int) -> None:
    link = opened()
    assert texts(link.data(1, data(1, message("a")), 10, NOW)) == ["a"]
    for _ in range(1 + busy):
        assert link.data(1, data(2), 10, NOW) == []
    assert frames(link.actions(NOW + rules.ACK_DELAY)) == [Ack(THEIRS, 2)]


@pytest.mark.parametrize("lost", ["the message", "the message and a question", "the acknowledgement"])
def test_the_last_frame_of_an_idle_link_is_missed_though_nothing_else_follows(lost: str) -> None:
    """Somebody in between leaves it out, and the connection lives on."""
    network, low, high = two()
    link = low.link(high)
    network.run(1)
    connection = link.connection
    assert connection is not None

    def leave_out(who: Process) -> None:
        over, end = next(each for each in who.connections.values() if each[0].joins(low, high))
        over._pending[end].pop()

    low.post(link, message("last"))
    if lost != "the acknowledgement":
        leave_out(low)
    network.run(rules.ACK_DELAY + 0.0015)
    if lost == "the acknowledgement":
        leave_out(high)
    if lost == "the message and a question":
        network.run(rules.QUESTION_AFTER - rules.ACK_DELAY - 0.0010)
        leave_out(low)
    network.run(2 * rules.QUESTION_AFTER + 1)
    assert texts(high.arrived[high.link(low)]) == ["last"]
    assert link.outbox.is_empty() and link.state is State.OPEN
    assert (link.connection == connection) is (lost == "the acknowledgement"), "what is missing costs a connection"


# ------------------------------------------------------------------ resumption


def test_a_resumption_sends_again_what_the_peer_has_not_received_under_the_same_numbers() -> None:
    link = opened()
    for text in "abcde":
        link.send(message(text))
        link.actions(NOW)
    link.ended_connection(1, NOW, "broke")
    link.send(message("f"))
    link.hello(5, from_peer(received=2), NOW)
    welcome, *sent = link.actions(NOW)
    assert isinstance(welcome, SendGreeting) and welcome.greeting.resume == THEIRS
    assert [(frame.number, texts(frame.operations)) for frame in frames(sent, 5)] == [
        (3, ["c"]), (4, ["d"]), (5, ["e"]), (6, ["f"]),
    ]  # fmt: skip


def test_a_peer_that_noticed_the_break_first_is_greeted_over_its_new_connection() -> None:
    link = opened()
    link.send(message("a"))
    link.actions(NOW)
    link.hello(5, from_peer(), NOW)
    drop, welcome, again = link.actions(NOW)
    assert drop == Drop(1, False) and isinstance(welcome, SendGreeting)
    assert frames([again], 5) == [Data(THEIRS, 1, 0, [message("a")])]
    link.ended_connection(1, NOW, "broke")  # the old one: nothing to us
    assert link.connection == 5


def test_a_late_hello_of_the_same_link_only_moves_the_connection() -> None:
    link = opened()
    link.data(1, data(1, message("x")), 10, NOW)
    late = from_peer(resume=0)
    assert not link.begun_anew(late)
    link.hello(5, late, NOW)
    assert link.data(5, data(1, message("x")), 10, NOW) == []
    assert texts(link.data(5, data(2, message("y")), 10, NOW)) == ["y"]


@pytest.mark.parametrize("seed", range(30))
def test_a_cut_at_any_moment_loses_nothing_and_repeats_nothing(seed: int) -> None:
    network, low, high = two(seed)
    link = low.link(high)
    sent = [str(number) for number in range(300)]
    for text in sent:
        low.post(link, message(text))
        network.run(0.0001)
        if network.random.random() < 0.03:
            network.drop(low, high)
    network.run(10)
    (other,) = high.links.values()
    assert texts(high.arrived[other]) == sent
    assert link.outbox.is_empty()


# ------------------------------------------------------------------ the end


def test_unacknowledged_counts_operations_once_wherever_they_are() -> None:
    link = opened()
    link.send(message("sent"))
    link.send(large(600_000))  # three pieces
    link.actions(NOW)
    link.ended_connection(1, NOW, "broke")
    link.send(message("waiting"))
    link.send(large(600_000), lane="a")
    link.send(message("behind it"), lane="a")
    assert link.outbox.unacknowledged == 5
    link.hello(5, from_peer(received=3), NOW)  # the message and two pieces
    assert link.outbox.unacknowledged == 4
    link.lose("told so")
    assert link.outbox.unacknowledged == 4


def test_a_crash_is_told_within_a_tenth_of_a_second_where_the_peer_was_dialled() -> None:
    network, low, high = two()
    link = low.link(high)
    network.run(1)
    high.post(high.link(low), message("x"))
    network.run(1)
    high.crash()
    network.run(0.1)
    assert (link.state, link.lost_because) == (State.LOST, "ended: high:1: connection refused")


def test_a_successor_at_the_same_address_is_somebody_else() -> None:
    network, low, high = two()
    link = low.link(high)
    network.run(1)
    high.crash()
    Process(network, greeting("successor", 30, "high:1"))
    network.run(1)
    assert link.state is State.LOST
    assert link.lost_because == "ended: high:1: successor (pid 4711) listens here now, not the process that was wanted"


def test_the_other_side_of_a_lost_link_is_told_when_it_comes_back() -> None:
    network, low, high = two()
    link = low.link(high)
    network.run(1)
    (other,) = high.links.values()
    low.lose(link)
    network.run(1)
    assert (other.state, other.lost_because) == (State.LOST, "the peer ended the link")


def test_a_new_link_under_the_same_births_ends_the_old_one_and_nothing_is_sent_again() -> None:
    network, low, high = two(peer_timeout=1000.0)
    link = low.link(high)
    network.run(1)
    (other,) = high.links.values()
    with network.partition(low, high):
        network.run(10)
        high.post(other, message("old"))
        low.lose(link)
        again = low.link(high)
    with network.silent("low:1"):
        network.run(5)
        high.post(high.link(low), message("new"))
        network.run(1)
    assert (other.state, other.lost_because) == (State.LOST, "the peer ended the link")
    assert again.state is State.OPEN and texts(low.arrived[again]) == ["new"]


def test_a_partition_shorter_than_peer_timeout_is_survived_and_a_longer_one_is_not() -> None:
    for lasting, survives in ((14.0, True), (40.0, False)):
        network, low, high = two(peer_timeout=15.0)
        link = low.link(high)
        network.run(1)
        other = high.link(low)
        with network.partition(low, high):
            low.post(link, message("x"))
            network.run(lasting)
        network.run(10)
        assert texts(high.arrived[other]) == (["x"] if survives else [])
        assert [link.ended, other.ended] == [not survives] * 2
        assert survives or link.lost_because.startswith("unreachable for 15 s (the connection broke): tried high:1")


def test_a_close_is_told_in_order_behind_what_was_sent() -> None:
    network, low, high = two()
    link = low.link(high)
    network.run(1)
    other = high.link(low)
    for number in range(100):
        low.post(link, message(str(number)))
    low.close(link, "leaving")
    network.run(0.1)
    assert texts(high.arrived[other]) == [str(number) for number in range(100)]
    assert (other.state, other.lost_because) == (State.CLOSED, "leaving")


@pytest.mark.parametrize("one_way", [False, True])
def test_who_cannot_be_reached_is_told_so_after_connect_timeout(one_way: bool) -> None:
    network, low, high = two()
    with network.one_way_cut(high, low) if one_way else network.silent("high:1"):
        link = low.link(high)
        network.run(5 + CONNECT_TIMEOUT)
    assert link.lost_because == "unreachable for 5 s: tried high:1 (timed out)"


# ------------------------------------------------------------------ simulation


class Sender:
    """Posts numbered messages in lanes on whatever link there is, and remembers what it posted on which."""

    def __init__(self, process: Process, peer: Process) -> None:
        self.process, self.peer = process, peer
        self.posted: dict[Link, dict[int, int]] = {}
        self.number = 0

    def post(self, chance: random.Random) -> None:
        link = self.process.link(self.peer)
        if link.ended:
            return
        lane = chance.randrange(3)
        size = 300_000 if chance.random() < 0.02 else chance.choice([5, 5, 5, 35_000])
        number = self.posted.setdefault(link, {}).get(lane, 0) + 1
        self.posted[link][lane] = number
        body = b"%d %d " % (link.session, number)
        self.process.post(link, Message(lane, (body + bytes(size),)), lane)

    def arrived(self) -> dict[int, list[tuple[Link, int, int]]]:
        """For each of our links, by session: what arrived of it, as (the receiving link, lane, number), in order."""
        found: dict[int, list[tuple[Link, int, int]]] = {}
        for link, operations in self.peer.arrived.items():
            for operation in operations:
                assert isinstance(operation, Message)
                session, number = map(int, bytes(operation.body[0][:40]).split(b" ")[:2])
                found.setdefault(session, []).append((link, operation.coro, number))
        return found


def faults(network: Network, low: Process, high: Process, ends_links: bool) -> list[Callable[[], AbstractContextManager[None]]]:
    chance = network.random
    survivable: list[Callable[[], AbstractContextManager[None]]] = [
        lambda: network.partition(low, high),
        lambda: network.one_way_cut(low, high),
        lambda: network.one_way_cut(high, low),
        lambda: network.silent("low:1"),
        lambda: network.silent("high:1"),
        lambda: network.delay(chance.choice([0.01, 0.3, 4.0])),
        lambda: network.duplicate(chance.choice([0.1, 1.0])),
        lambda: network.reorder(chance.choice([0.05, 1.0, 5.0])),
    ]
    refusing: list[Callable[[], AbstractContextManager[None]]]
    refusing = [lambda: network.refused("low:1"), lambda: network.refused("high:1")]
    return survivable + 2 * refusing * ends_links


def simulate(seed: int, ends_links: bool) -> tuple[Sender, Sender]:
    """Some thirty seconds of traffic and faults, then peace. Where `ends_links`, links also end."""
    network, low, high = two(seed) if ends_links else two(seed, connect_timeout=1e6, peer_timeout=1e6)
    chance = network.random
    senders = Sender(low, high), Sender(high, low)
    for _ in range(chance.randint(1, 8)):
        with ExitStack() as stack:
            for fault in chance.sample(faults(network, low, high, ends_links), chance.randint(0, 3)):
                stack.enter_context(fault())
            for _ in range(chance.randint(1, 12)):
                disturb(network, senders, ends_links)
    network.run(60)
    return senders


def disturb(network: Network, senders: tuple[Sender, Sender], ends_links: bool) -> None:
    chance = network.random
    sender = chance.choice(senders)
    what = chance.random()
    if what < 0.15:
        network.drop(sender.process, sender.peer)
    elif what < 0.2 and ends_links:
        chance.choice([sender.process.lose, sender.process.close])(sender.process.link(sender.peer))
    else:
        for _ in range(chance.choice([1, 1, 5, 5, 5, 350])):
            sender.post(chance)
    network.run(chance.choice([0.0, 0.0, 0.001, 0.02, 0.3, 2.0, 10.0]))


def check_order(sender: Sender) -> Iterator[tuple[Link, dict[int, int]]]:
    """Holds that what arrived of each link is a beginning of each lane, once, over one link; gives how far each came."""
    arrived = sender.arrived()
    assert set(arrived) <= {link.session for link in sender.posted}
    for link in sender.posted:
        found = arrived.get(link.session, [])
        assert len({receiver for receiver, _, _ in found}) <= 1, f"{link} arrived over two links"
        lanes: dict[int, int] = {}
        for _, lane, number in found:
            assert number == lanes.get(lane, 0) + 1, f"{link}: lane {lane} has {number} after {lanes.get(lane, 0)}"
            lanes[lane] = number
        yield link, lanes


@pytest.mark.parametrize("seed", range(150))
def test_while_no_link_is_lost_everything_arrives_in_order_and_once(seed: int) -> None:
    senders = simulate(seed, ends_links=False)
    for sender in senders:
        assert not sender.process.ended_links, f"seed {seed}: {[link.lost_because for link in sender.process.ended_links]}"
        for link, lanes in check_order(sender):
            assert lanes == sender.posted[link], f"seed {seed}: {link} is stuck"
            assert link.outbox.is_empty() and link.state is State.OPEN, f"seed {seed}: {link}"


@pytest.mark.parametrize("seed", range(150))
def test_whatever_ends_a_link_ends_both_sides_and_every_message_is_delivered_or_counted(seed: int) -> None:
    senders = simulate(seed, ends_links=True)
    for sender in senders:
        for link, lanes in check_order(sender):
            posted, delivered = sum(sender.posted[link].values()), sum(lanes.values())
            assert posted - link.outbox.unacknowledged <= delivered, f"seed {seed}: {link} lost messages in silence"
            assert link.ended or delivered == posted, f"seed {seed}: {link} is stuck"
    low, high = (sender.process for sender in senders)
    alive = [*low.links.values(), *high.links.values()]
    assert [link.state for link in alive] in ([], [State.OPEN] * 2), f"seed {seed}: {alive}"
    reasons = [link.lost_because for link in low.ended_links + high.ended_links]
    assert all(reasons) and not any("protocol" in reason for reason in reasons), f"seed {seed}: {reasons}"


def test_a_crash_on_this_machine_is_told_at_once_whoever_dialled() -> None:
    network, low, high = two()
    low.me = low.me._replace(addresses=("high:2",))
    link = high.link(low)
    network.run(1)
    inbound = low.links[high.me.birth]
    assert (link.state, inbound.state) == (State.OPEN, State.OPEN)
    high.crash()
    network.run(0.1)
    assert inbound.ended and inbound.certain


def test_a_worker_whose_port_refuses_gets_a_moment_for_its_node_to_say_how_it_ended() -> None:
    network, low, high = two()
    link = low.link(high)
    link.awaits_word = True
    network.run(1)
    assert link.state is State.OPEN
    high.crash()
    network.run(0.4)
    assert not link.ended
    network.run(0.3)
    assert link.ended


@pytest.mark.parametrize(
    ("theirs", "dialled"),
    [
        (["10.0.0.2:5", "127.0.0.1:5"], ["10.0.0.2:5"]),
        (["10.0.0.1:5", "127.0.0.1:5"], ["10.0.0.1:5", "127.0.0.1:5"]),
        (["127.0.0.1:5"], ["127.0.0.1:5"]),
        (["[fd00::2]:5", "[::1]:5"], ["[fd00::2]:5"]),
        ([], []),
    ],
)
def test_loopback_addresses_of_another_machine_are_not_dialled(theirs: list[str], dialled: list[str]) -> None:
    assert worth_dialling(["10.0.0.1:1", "127.0.0.1:1"], theirs) == dialled
