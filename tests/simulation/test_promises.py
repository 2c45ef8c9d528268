"""The judge of the simulation itself: it finds nothing in a good history, and each promise broken in a bad one."""

from __future__ import annotations

import pytest

from tests.simulation.promises import (
    PROMISES,
    Began,
    Bug,
    Condemned,
    Counted,
    Died,
    Done,
    Ended,
    Event,
    Exceeded,
    Heard,
    History,
    Home,
    InQueue,
    Left,
    Linked,
    Lives,
    Lost,
    Noticed,
    Over,
    Parted,
    Received,
    Refused,
    Sent,
    Spoilt,
    Tag,
    Visited,
    Who,
    broken,
)

ANN, BOB, NEXT_BOB = Who(0, 0, 1), Who(1, 0, 2), Who(1, 1, 3)
FIRST, SECOND, DELIVERED = Tag(ANN, BOB, 1), Tag(ANN, BOB, 2), Tag(ANN, BOB, 3)
LAST_WORDS = Tag(BOB, ANN, 4)

GOOD: list[Event] = [
    Sent(0.0, FIRST, 0),
    Sent(0.0, SECOND, 0),
    Began(0.0, 1, ANN, "deliver", BOB, 2.0, DELIVERED),
    Received(0.1, BOB, FIRST),
    Received(0.1, BOB, SECOND),
    Received(0.1, BOB, DELIVERED),
    Done(0.2, 1, 1),
    Began(0.2, 2, ANN, "monitor", BOB, None),
    Done(0.3, 2, 0),
    Sent(0.4, LAST_WORDS, 0),
    Ended(0.5, BOB, "normal"),
    Received(0.6, ANN, LAST_WORDS),
    Noticed(0.6, ANN, BOB, "normal", "2@1.0"),
    Lives(60.0, ANN, True),
    Lost(100.0, ANN.home, BOB.home),
    Lost(100.0, BOB.home, ANN.home),
    Counted(100.0, ANN.home, 0),
    Counted(100.0, BOB.home, 0),
]


def but(old: Event, *new: Event) -> list[Event]:
    """The good history with one event replaced."""
    at = GOOD.index(old)
    return [*GOOD[:at], *new, *GOOD[at + 1 :]]


def and_then(*more: Event) -> list[Event]:
    return [*GOOD, *more]


LIVES_ON = [each for each in GOOD if not isinstance(each, Ended | Noticed)] + [Lives(60.0, BOB, True)]

RUN: list[Event] = [Began(1.0, 9, ANN, "run", BOB, None, None, 7), Done(1.2, 9, "ref")]
VISIT: list[Event] = [*RUN, Visited(1.1, BOB.home, ANN, 7, "ref")]

SHOP = Who(*BOB.home, 0)  # where the queue and the channel of a process are
PUT: list[Event] = [Began(1.0, 9, ANN, "put", SHOP, None, None, 7), Done(1.1, 9, 0)]
HEARD = Heard(2.0, ANN, BOB.home, BOB, 1)
SUBSCRIBED: list[Event] = [
    *(Began(1.0, 9, ANN, "subscribe", SHOP, None), Done(1.1, 9, 0)),
    *(Began(1.2, 10, BOB, "publish", SHOP, None, None, 1), Done(1.3, 10, 1)),
]

BAD: list[tuple[str, list[Event]]] = [
    ("order", but(Received(0.1, BOB, FIRST), Received(0.1, BOB, SECOND), Received(0.1, BOB, FIRST))),
    ("once", but(Received(0.1, BOB, FIRST), Received(0.1, BOB, FIRST), Received(0.1, BOB, FIRST))),
    ("its_own", but(Received(0.1, BOB, FIRST), Received(0.1, NEXT_BOB, FIRST))),
    ("refused_is_refused", but(Sent(0.0, FIRST, 0), Refused(0.0, FIRST, "Overloaded"))),
    ("refused_is_refused", but(Done(0.2, 1, 1), Done(0.2, 1, None, "NoSuchCoro"))),
    ("delivered_is_there", but(Received(0.1, BOB, DELIVERED))),
    ("delivered_is_there", but(Done(0.2, 1, 1), Done(0.2, 1, 0))),
    ("no_gap", but(Received(0.1, BOB, FIRST))),
    ("everything_comes", [each for each in LIVES_ON if each != Received(0.1, BOB, SECOND)]),
    ("loss_is_counted", [*(each for each in LIVES_ON if each != Received(0.1, BOB, SECOND)), Lost(0.05, ANN.home, BOB.home)]),
    ("one_notice", but(Noticed(0.6, ANN, BOB, "normal", "2@1.0"))),
    ("one_notice", and_then(Noticed(0.7, ANN, BOB, "normal", "2@1.0"))),
    (
        "linked_die_together",
        [Began(0.0, 1, ANN, "link", BOB, None), Done(0.1, 1, 0), Ended(1.0, BOB, "exception"), Lives(60.0, ANN, True)],
    ),
    ("notice_comes_last", [*but(Received(0.6, ANN, LAST_WORDS)), Received(0.7, ANN, LAST_WORDS)]),
    ("honest_notices", but(Noticed(0.6, ANN, BOB, "normal", "2@1.0"), Noticed(0.6, ANN, BOB, "normal", "something else"))),
    ("honest_notices", but(Noticed(0.6, ANN, BOB, "normal", "2@1.0"), Noticed(0.6, ANN, BOB, "terminated"))),
    ("honest_notices", but(Noticed(0.6, ANN, BOB, "normal", "2@1.0"), Noticed(0.6, ANN, BOB, "peer lost", None, "PeerLost"))),
    ("honest_notices", but(Ended(0.5, BOB, "normal"))),
    ("honest_answers", and_then(Began(1.0, 9, ANN, "result", BOB, None), Done(1.1, 9, "something else"))),
    ("honest_answers", and_then(Began(1.0, 9, ANN, "deliver", BOB, 5.0), Done(1.1, 9, None, "Timeout"))),
    ("honest_answers", [*LIVES_ON, Began(1.0, 9, ANN, "terminate", BOB, None), Done(1.1, 9, None, "NoSuchCoro")]),
    ("honest_answers", and_then(Began(1.0, 9, ANN, "alive", BOB, None), Done(1.1, 9, True))),
    ("nobody_waits_for_ever", and_then(Began(1.0, 9, ANN, "result", BOB, None))),
    ("nobody_waits_for_ever", and_then(Began(1.0, 9, ANN, "deliver", BOB, 2.0), Done(3.5, 9, None, "Timeout"))),
    ("nobody_waits_for_ever", and_then(Began(1.0, 9, ANN, "result", BOB, None), Done(90.0, 9, "2@1.0"))),
    ("runs_once", and_then(*RUN, Visited(1.1, BOB.home, ANN, 7, "ref"), Visited(1.2, BOB.home, ANN, 7, "another"))),
    ("runs_once", and_then(*RUN, Visited(1.1, NEXT_BOB.home, ANN, 7, "ref"))),
    ("runs_once", and_then(*RUN, Visited(1.1, BOB.home, ANN, 7, "another"))),
    ("runs_once", and_then(*RUN)),
    ("runs_once", and_then(Visited(1.1, BOB.home, ANN, 7, "ref"))),
    ("closed_is_closed", and_then(*VISIT, Began(1.5, 10, ANN, "close", BOB, 20.0), Done(1.6, 10, 0))),
    ("closed_is_closed", [*VISIT, Died(2.0, ANN.home, "killed"), Lives(60.0, BOB, True)]),
    ("queues_keep", and_then(Began(1.0, 9, ANN, "put", SHOP, None, None, 7), Done(1.1, 9, 0))),
    ("queues_keep", and_then(*PUT, InQueue(60.0, BOB.home, 7), InQueue(60.0, BOB.home, 7))),
    ("queues_keep", and_then(PUT[0], Done(1.1, 9, None, "Timeout"), InQueue(60.0, BOB.home, 7))),
    ("channels_agree", and_then(HEARD, HEARD)),
    ("channels_agree", and_then(HEARD, HEARD._replace(number=2), HEARD._replace(by=BOB, number=2), HEARD._replace(by=BOB))),
    ("channels_agree", and_then(Over(1.0, ANN, BOB.home), HEARD)),
    ("channels_agree", [*LIVES_ON[:-4], Lives(60.0, ANN, True), *SUBSCRIBED]),
    ("names_lead_somewhere", and_then(Began(1.0, 9, ANN, "locate", ANN, 5.0, None, 1), Done(1.1, 9, BOB))),
    ("files_are_whole", and_then(Spoilt(1.0, BOB.home, "1-100"))),
    ("within_limits", and_then(Exceeded(1.0, ANN.home, "7 frames"))),
    ("no_bug_and_no_leftover", and_then(Bug(1.0, "what the loop was told"))),
]


def names(found: list[str]) -> set[str]:
    return {each.partition(":")[0] for each in found}


def test_a_good_history_breaks_nothing() -> None:
    assert broken(History(GOOD)) == []
    assert broken(History(LIVES_ON)) == []
    assert broken(History([*GOOD, *VISIT, Left(5.0, BOB.home, ANN, 7), Died(6.0, ANN.home, "killed")])) == []


@pytest.mark.parametrize(("promise", "events"), BAD)
def test_a_broken_promise_is_found(promise: str, events: list[Event]) -> None:
    assert promise in names(broken(History(events)))


def test_every_promise_has_a_history_that_breaks_it() -> None:
    assert {promise.__name__ for promise in PROMISES} == {promise for promise, _ in BAD}


@pytest.mark.parametrize(
    ("loss", "true"),
    [
        ([Died(0.4, BOB.home, "killed")], True),
        ([Parted(0.0, 20.0, frozenset((0, 1)))], True),
        ([Parted(0.0, 4.0, frozenset((0, 1)))], False),
        ([Parted(0.0, 20.0, frozenset((0, 2)))], False),
        ([Died(0.4, Home(1, 1), "killed")], False),
    ],
)
def test_a_loss_is_one_after_a_death_or_a_long_time_out_of_reach(loss: list[Event], true: bool) -> None:
    lost = Noticed(20.0, ANN, BOB, "peer lost", None, "PeerLost")
    events = [*loss, *(each for each in LIVES_ON if not isinstance(each, Counted)), lost]
    assert ("honest_notices" in names(broken(History(events)))) is not true


def test_who_is_terminated_or_linked_ends_honestly() -> None:
    carl = Who(2, 0, 5)
    linked: Event = Linked(0.3, BOB, carl)
    failed: list[Event] = [linked, Ended(0.4, carl, "exception")]
    returned: list[Event] = [linked, Ended(0.4, carl, "normal")]
    told = but(Noticed(0.6, ANN, BOB, "normal", "2@1.0"), Noticed(0.6, ANN, BOB, "terminated"))
    too_late: list[Event] = [linked, Condemned(0.4, carl), Ended(0.4, carl, "normal")]
    honest: list[list[Event]] = [[Condemned(0.4, BOB)], [Died(0.4, BOB.home, "closed")], failed, too_late]
    for why, true in (*((each, True) for each in honest), ([linked], False), (returned, False)):
        assert ("honest_notices" in names(broken(History([*why, *told])))) is not true
