"""A link whose peer, or whose own process, is to be found elsewhere: what is dialled then, and what counts as an end."""

from __future__ import annotations

from discoro.link import REDIAL_MOST, Dial, Link, SendGreeting, State
from discoro.messages import MAX_ADDRESSES
from tests.test_link import HIGH, LOW, NOW, accepted, dial, from_peer, opened


def dials(link: Link, now: float) -> list[str]:
    return [action.address for action in link.actions(now) if isinstance(action, Dial)]


def broken(link: Link) -> Link:
    """Its connection is gone, and it has not dialled again yet."""
    link.ended_connection(1, NOW, "broke")
    link.actions(NOW)
    return link


def lived_at_home() -> Link:
    """Open over connection 1, dialled at an address that the peer says is its own."""
    link = opened()
    link.peer = from_peer(HIGH._replace(addresses=("a:1", "b:1")))
    link.moved(("a:1", "b:1"))
    return link


# --- the peer moved


def test_a_peer_that_moved_is_dialled_where_it_says() -> None:
    link = accepted()
    link.moved(("new:1", "127.0.0.1:1"))
    assert dials(broken(link), NOW + 1) == ["new:1"], "and not on our own loopback"


def test_where_it_lived_and_says_that_it_left_a_refusal_means_nothing() -> None:
    """Another machine has that address by now."""
    link = lived_at_home()
    link.moved(("new:1",))
    assert dial(broken(link), NOW + 1, first=2) == [2] and list(link.addresses) == ["new:1"]
    back = lived_at_home()
    broken(back)
    dial(back, NOW + 1, first=2)
    back.hello(9, from_peer(HIGH._replace(addresses=("new:1",))), NOW + 1)
    assert back.state is State.OPEN and list(back.addresses) == ["new:1"], "the same where its greeting says so"


def test_an_address_that_it_never_knew_is_kept() -> None:
    """That of a NAT which forwards the port, or of a tunnel."""
    link = opened()
    link.moved(("new:1",))
    assert list(link.addresses) == ["a:1", "new:1"]


# --- this process moved


def test_who_moves_with_its_peer_on_one_machine_still_knows_its_loopback() -> None:
    link = accepted(peer=HIGH._replace(addresses=("10.0.0.1:2", "127.0.0.1:2")))
    link.listen_at(LOW._replace(addresses=("10.0.0.1:1", "127.0.0.1:1")))
    assert list(link.addresses) == ["10.0.0.1:2", "127.0.0.1:2"]
    link.moved(("10.0.0.9:2", "127.0.0.1:2"))
    assert list(link.addresses) == ["10.0.0.9:2", "127.0.0.1:2"], "it has moved, and this process not yet"
    link.listen_at(LOW._replace(addresses=("10.0.0.9:1", "127.0.0.1:1")))
    assert list(link.addresses) == ["10.0.0.9:2", "127.0.0.1:2"]


def test_its_next_greeting_says_where_this_process_is() -> None:
    link = lived_at_home()
    link.listen_at(LOW._replace(addresses=("elsewhere:1",)))
    (connection, *_) = dial(broken(link), NOW + 1, first=2)
    link.connected(connection, NOW + 1)
    (greeting,) = [action.greeting for action in link.actions(NOW + 1) if isinstance(action, SendGreeting)]
    assert greeting.addresses == ("elsewhere:1",)


# --- the network changed


def test_after_a_change_no_pause_is_waited_for() -> None:
    link = broken(opened())
    now = NOW
    for _ in range(10):
        now += REDIAL_MOST
        for connection in dial(link, now, first=2):
            link.ended_connection(connection, now, "no route to host")
    assert dials(link, now + 0.1) == []
    link.dial_again(now + 0.1)
    assert dials(link, now + 0.1) == ["a:1", "high:1"]


def test_a_change_means_nothing_to_a_link_that_stands() -> None:
    link = opened()
    link.dial_again(NOW + 1)
    assert link.state is State.OPEN and link.actions(NOW + 1) == []


# --- hints, which anybody on the network may give


def test_a_hint_is_dialled_at_once_beside_what_is_known() -> None:
    link = broken(opened())
    for connection in dial(link, NOW + 1, first=2):
        link.ended_connection(connection, NOW + 1, "no route to host")
    link.hint(["new:1"], NOW + 1.01)
    assert dials(link, NOW + 1.01) == ["a:1", "high:1", "new:1"]
    link.hint(["newer:1"], NOW + 1.02)
    assert dials(link, NOW + 1.02) == ["newer:1"], "while the others are being dialled"


def test_a_hint_to_a_link_that_stands_is_no_news() -> None:
    link = opened()
    link.hint(["new:1"], NOW)
    assert dials(broken(link), NOW + 1) == ["a:1", "high:1"]


def test_only_the_last_hint_counts_and_within_limits() -> None:
    link = broken(opened())
    for number in range(100):
        link.hint([f"forged-{number}-{each}:1" for each in range(100)], NOW)
    assert len(dials(link, NOW + 1)) == 2 + MAX_ADDRESSES


def test_nobody_is_taken_for_dead_by_what_answers_where_a_hint_leads() -> None:
    """Refused, or somebody else there: neither shortens the time that the peer has."""
    link = broken(opened())
    link.hint(["forged:1", "forged:2"], NOW + 1)
    *known, forged, other = dial(link, NOW + 1, first=2)
    for connection in known:
        link.ended_connection(connection, NOW + 1, "no route to host")
    link.ended_connection(forged, NOW + 1, "connection refused", refused=True)
    link.connected(other, NOW + 1)
    link.refused_greeting(other, "stale", "somebody else lives here", NOW + 1)
    link.handle_timer(NOW + 14.9)
    assert not link.ended
    link.handle_timer(NOW + 15.0)
    assert link.ended and not link.certain


# --- two on one machine


def test_two_on_one_machine_that_lose_its_address_still_find_each_other_by_loopback() -> None:
    """What runs between them over that address breaks at once, so that neither can tell the other that it moved."""
    link = accepted(peer=HIGH._replace(addresses=("10.0.0.1:2", "127.0.0.1:2")))
    link.listen_at(LOW._replace(addresses=("10.0.0.1:1", "127.0.0.1:1")))
    link.listen_at(LOW._replace(addresses=("10.0.0.9:1", "127.0.0.1:1")))
    assert "127.0.0.1:2" in dials(broken(link), NOW + 1)


def test_whoever_says_nothing_but_loopback_is_not_taken_for_one_on_this_machine() -> None:
    """It may have no network at this moment, and be anywhere; where this machine has none either, it can only be here."""
    link = accepted(peer=HIGH._replace(addresses=("127.0.0.1:2",)))
    link.listen_at(LOW._replace(addresses=("10.0.0.1:1", "127.0.0.1:1")))
    link.moved(["10.0.0.2:2", "127.0.0.1:2"])
    assert list(link.addresses) == ["10.0.0.2:2"]
    here = accepted(peer=HIGH._replace(addresses=("127.0.0.1:2",)))
    here.me = LOW._replace(addresses=("127.0.0.1:1",))
    here.moved(["127.0.0.1:2"])
    here.listen_at(LOW._replace(addresses=("10.0.0.1:1", "127.0.0.1:1")))
    here.moved(["10.0.0.1:2", "127.0.0.1:2"])
    assert list(here.addresses) == ["10.0.0.1:2", "127.0.0.1:2"]


def test_an_address_that_was_of_this_machine_and_refuses_means_nothing() -> None:
    link = accepted(peer=HIGH._replace(addresses=("10.0.0.1:2", "127.0.0.1:2")))
    link.listen_at(LOW._replace(addresses=("10.0.0.1:1", "127.0.0.1:1")))
    link.listen_at(LOW._replace(addresses=("10.0.0.9:1", "127.0.0.1:1")))
    broken(link)
    for connection, address in enumerate(dials(link, NOW + 1), 2):
        link.dialled(connection, address)
        refused = address == "10.0.0.1:2"
        link.ended_connection(connection, NOW + 1, "connection refused" if refused else "no answer", refused=refused)
    assert not link.ended


# --- whoever may be back


def test_who_was_out_of_reach_or_asleep_may_be_back_and_who_broke_the_protocol_may_not() -> None:
    unreachable, forgotten, expelled, left = (opened() for _ in range(4))
    broken(unreachable).handle_timer(NOW + 15)
    forgotten.gone(1)
    expelled.lose("it broke the protocol")
    left.bye(1, "left the mesh")
    assert [link.may_be_back for link in (unreachable, forgotten, expelled, left)] == [True, True, False, False]
    assert all(link.ended for link in (unreachable, forgotten, expelled, left))
