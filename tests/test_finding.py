"""Finding by itself: which advertised nodes are dialled, what peers may tell, and what is said when nothing is found."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from discoro import finding as rooms
from discoro.adverts import Advert
from discoro.connections import ANOTHER_KEY
from discoro.errors import ProtocolError, Refused, Unreachable
from discoro.finding import KEY_STEP, LEFT_ALONE, PORT_RANGE, SAY_TRIED, Finding, resolved, whereabouts
from discoro.interfaces import Interfaces
from discoro.link import Link
from discoro.messages import PROTOCOL_VERSION, Greeting
from discoro.security import Security
from tests.support import moved_clock

ME = Greeting("00000000000000aa", 1, 0xAA, "me", "client", "default", "3.11", "0", ())
BOB = Greeting("00000000000000bb", 1, 0xBB, "bob", "node", "default", "3.11", "0", ("10.0.0.2:1", "10.1.0.2:1"))


class Dialler:
    def __init__(self) -> None:
        self.me = ME
        self.security = Security(bytes(64), "key /home/me/cluster.key", path=Path("/home/me/cluster.key"))
        self.met: list[tuple[int, list[str]]] = []
        self.hints: list[tuple[int, list[str]]] = []
        self.answers: list[Any] = []
        self.inquired: list[float] = []
        self.second_doors: dict[str, Greeting] = {}
        self.spawned: list[asyncio.Future[Any]] = []
        self.came_of_it = ""  # of dialling whoever was heard
        self.ended: asyncio.Event | None = None

    def meet(self, birth: int, addresses: Sequence[str]) -> None:
        self.met.append((birth, list(addresses)))

    heard_of = meet

    def hint(self, birth: int, addresses: Sequence[str]) -> None:
        self.hints.append((birth, list(addresses)))

    async def wanted(self, birth: int) -> None: ...

    def linked(self, birth: int) -> bool:
        return birth in [met for met, _ in self.met]

    def tried(self, birth: int) -> str:
        return self.came_of_it

    def spawn(self, work: Awaitable[Any]) -> None:
        self.spawned.append(asyncio.ensure_future(work))

    async def inquire(self, address: str, timeout: float) -> Greeting:
        if PORT_RANGE < int(address.rpartition(":")[2]) < 65036:
            return self.second_door(address)
        self.inquired.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        greeting: Greeting = answer
        return greeting

    def second_door(self, address: str) -> Greeting:
        if address not in self.second_doors:
            raise Unreachable("nothing listens there")
        return self.second_doors[address]

    async def link_ended(self, birth: int) -> None:
        assert self.ended is not None
        await self.ended.wait()


def advert(**changes: Any) -> Advert:
    fields: dict[str, Any] = {
        "node": BOB.node,
        "name": "bob",
        "cluster": "default",
        "python": "3.11",
        "version": "0",
        "protocol": PROTOCOL_VERSION,
        "security": "curve",
        "slots": 2,
        "addresses": BOB.addresses,
    }
    return Advert(**{**fields, **changes})


def finding(dialler: Dialler) -> Finding:
    return Finding(dialler, Interfaces((), ()), mdns=False)


def lost(advert: Advert, why: str, refused: bool = True) -> Link:
    """A link with an advertised node that came to nothing."""
    link = Link(ME, 1, 0.0, birth=int(advert.node, 16), addresses=advert.addresses)
    link.refused_at = advert.addresses[0] if refused else ""
    link.lose(why)
    return link


def in_loop(test: Any) -> None:
    async def body() -> None:
        dialler = Dialler()
        dialler.ended = asyncio.Event()
        result = test(dialler, finding(dialler))
        if result is not None:
            await result

    moved_clock.run(body)


def test_a_fitting_node_is_dialled_once_with_all_its_addresses() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert())
        find._found(advert())
        find._found(advert(node=ME.node))
        assert dialler.met == [(BOB.birth, list(BOB.addresses))]

    in_loop(test)


def test_what_is_heard_of_a_linked_node_is_a_hint_and_no_more() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert())
        find._found(advert(addresses=("10.0.0.7:1",)))
        assert dialler.met == [(BOB.birth, list(BOB.addresses))] and dialler.hints == [(BOB.birth, ["10.0.0.7:1"])]

    in_loop(test)


def test_a_node_that_was_lost_is_looked_for_where_it_was_until_it_is_back() -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = [*[Unreachable("no answer")] * 4, ME, BOB]
        find.seek(BOB.birth, ["10.0.0.2:1"])
        find.seek(BOB.birth, ["10.0.0.2:1"])
        assert len(dialler.spawned) == 1, "one search is enough"
        await dialler.spawned[0]
        assert dialler.met == [(BOB.birth, ["10.0.0.2:1", *[each for each in BOB.addresses if each != "10.0.0.2:1"]])]
        waited = [later - earlier for earlier, later in pairwise(dialler.inquired)]
        assert waited == pytest.approx([0.4, 0.8, 1.6, 3.2, 6.4])

    in_loop(test)


def test_a_change_of_the_network_ends_every_pause() -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = [Unreachable("no answer")]
        find.seek(BOB.birth, ["10.0.0.2:1"])
        keeping = asyncio.ensure_future(find.keep("10.0.0.9:1", quiet=True))
        await asyncio.sleep(300.0)
        asked, now = len(dialler.inquired), asyncio.get_running_loop().time()
        find.look_around(Interfaces(()))
        await asyncio.sleep(0.01)
        assert len(dialler.inquired) == asked + 2 and dialler.inquired[-1] == pytest.approx(now, abs=0.01)
        for task in (keeping, *dialler.spawned):
            task.cancel()

    in_loop(test)


@pytest.mark.parametrize("changes", [{"protocol": 99}, {"python": "3.12"}, {"security": "open"}])
def test_what_a_node_says_by_mdns_keeps_nobody_from_dialling_it(changes: dict[str, Any]) -> None:
    """It proves nothing; the node itself says, once dialled, why it does not fit."""

    def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert(**changes))
        assert dialler.met == [(BOB.birth, list(BOB.addresses))]

    in_loop(test)


def test_another_cluster_is_left_in_peace_and_said_to_be_one_by_mdns_only(caplog: pytest.LogCaptureFixture) -> None:
    why = "bob (10.0.0.2:1): by mDNS (not verified) it belongs to cluster 'other', this side to 'default': name the same"

    def test(dialler: Dialler, find: Finding) -> None:
        for _ in range(2):
            find._found(advert(cluster="other"))
        assert dialler.met == []
        assert any(line.startswith(why) for line in find.why_none())

    in_loop(test)
    assert caplog.text.count(why) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({}, "it belongs to cluster 'default', as this side does"),
        ({"python": "3.12"}, "it belongs to cluster 'default', as this side does; it runs Python 3.12, this side 3.11"),
        ({"protocol": 9}, "it belongs to cluster 'default', as this side does; it speaks protocol 9, this side 1"),
    ],
)
@pytest.mark.parametrize("by", ["birth", "address"])
def test_of_a_node_with_another_key_what_mdns_says_is_told_as_not_verified(
    by: str, changes: dict[str, Any], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    who = {"birth": "bob (10.0.0.2:1)", "address": "10.1.0.2:1"}[by]

    async def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert(**changes))
        if by == "birth":
            find.not_met(lost(advert(), f"it has {ANOTHER_KEY}"), who)
            await asyncio.gather(*dialler.spawned)
        else:
            find.not_usable(who, f"it has {ANOTHER_KEY}")
        line = f"{who}: it has another cluster key. By mDNS (not verified) {said}"
        assert find.why_none()[1:] == [line]
        assert f"{line}. {KEY_STEP}" in caplog.text
        assert find.another_key

    in_loop(test)


def test_who_was_linked_meanwhile_is_told_of_again(caplog: pytest.LogCaptureFixture) -> None:
    """As after a change of keys that one of two missed."""

    def test(dialler: Dialler, find: Finding) -> None:
        for _ in range(2):
            find.not_usable("bob", f"it has {ANOTHER_KEY}", BOB.birth)
        assert caplog.text.count("not usable: bob") == 1
        find.met(BOB.birth)
        assert find.why_none()[1:] == []
        find.not_usable("bob", f"it has {ANOTHER_KEY}", BOB.birth)
        assert caplog.text.count("not usable: bob") == 2

    in_loop(test)


def test_a_node_with_another_key_may_have_ours_at_its_second_door() -> None:
    """Its key is being changed, and this process has only the new one."""

    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.second_doors = {"10.1.0.2:501": BOB}
        find._found(advert())
        dialler.met.clear()
        find.not_met(lost(advert(), f"it has {ANOTHER_KEY}"), "bob")
        await asyncio.gather(*dialler.spawned)
        assert dialler.met == [(BOB.birth, ["10.1.0.2:501", *BOB.addresses])]
        assert find.why_none()[1:] == []

    in_loop(test)


def test_an_address_given_by_hand_may_have_a_second_door() -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = [Refused(f"it has {ANOTHER_KEY}")]
        dialler.second_doors = {"10.0.0.2:501": BOB}
        assert await find.inquire("10.0.0.2:1") == (BOB, "10.0.0.2:501")
        for without in ("10.0.0.3:1", "10.0.0.2:65036"):  # no such door; no such port
            with pytest.raises(Refused, match=ANOTHER_KEY):
                await find.inquire(without)

    in_loop(test)


def test_somebody_else_behind_a_second_door_is_not_taken_for_the_node() -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.second_doors = {"10.0.0.2:501": BOB._replace(birth=5)}
        find.not_met(lost(advert(), f"it has {ANOTHER_KEY}"), "bob")
        await asyncio.gather(*dialler.spawned)
        assert dialler.met == [] and "bob: it has another cluster key" in find.why_none()[1]

    in_loop(test)


def test_of_a_node_that_could_be_asked_nothing_is_told_that_mdns_says() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert())
        find.not_met(lost(advert(), "bob runs Python 3.12"), "bob (10.0.0.2:1)")
        assert find.why_none()[1:] == ["bob (10.0.0.2:1): bob runs Python 3.12"]
        assert not find.another_key

    in_loop(test)


def test_the_step_that_helps_with_another_key_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        for number in range(3):
            find.not_usable(f"10.0.0.{number}:1", f"it has {ANOTHER_KEY}")

    in_loop(test)
    assert caplog.text.count("not usable") == 3 and caplog.text.count(KEY_STEP) == 1


def test_beside_a_secret_nobody_is_sent_to_the_key_file(caplog: pytest.LogCaptureFixture) -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        dialler.security = Security(bytes(64), "secret (DISCORO_SECRET)")
        find.not_usable("10.0.0.1:1", f"it has {ANOTHER_KEY}")

    in_loop(test)
    assert "Start both with the same one; this side's: secret (DISCORO_SECRET)" in caplog.text
    assert "discoro join" not in caplog.text


def test_a_node_found_in_two_ways_is_told_of_once() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        find.not_usable("10.0.0.2:1", f"it has {ANOTHER_KEY}")
        find._found(advert())
        find.not_met(lost(advert(), f"it has {ANOTHER_KEY}"), "bob (10.0.0.2:1)")
        assert len(find.why_none()) == 2

    in_loop(test)


@pytest.mark.parametrize("refused", [True, False])
def test_who_refused_is_not_dialled_again_at_once_however_often_it_is_heard(refused: bool) -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert())
        find.not_met(lost(advert(), "why", refused), "bob")
        dialler.met.clear()  # as after the end of a link
        find._found(advert())
        assert len(dialler.met) == (0 if refused else 1)
        dialler.met.clear()
        await asyncio.sleep(LEFT_ALONE)
        find._found(advert())
        assert len(dialler.met) == 1

    in_loop(test)


def test_why_a_node_that_was_heard_is_not_linked_is_said_while_it_is_dialled(caplog: pytest.LogCaptureFixture) -> None:
    """Until it is given up takes as long as a search does: nobody would learn of it."""
    tried = "tried 10.0.0.2:1 (no answer within 1 s)"

    async def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert())
        dialler.came_of_it = tried
        await asyncio.sleep(max(SAY_TRIED) + 0.1)
        assert find.why_none()[1:] == [f"bob: {tried}"]
        assert caplog.text.count("not usable") == 1
        find.not_met(lost(advert(), f"unreachable for 5 s: {tried}", refused=False), "bob")
        assert find.why_none()[1:] == [f"bob: unreachable for 5 s: {tried}"]
        assert caplog.text.count("not usable") == 1, "the same again is no news"

    in_loop(test)


def test_nothing_is_said_of_a_node_that_was_heard_and_met(caplog: pytest.LogCaptureFixture) -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        find._found(advert())
        await asyncio.sleep(max(SAY_TRIED) + 0.1)
        assert not caplog.text

    in_loop(test)


@pytest.mark.parametrize(
    ("answers", "hopeless"),
    [
        ([Refused("why"), Refused("why")], True),
        ([Refused("why"), Unreachable("nothing listens")], False),
        ([Refused("why"), TimeoutError()], False),
        ([Refused("why"), BOB], False),
        ([], False),
    ],
)
def test_nobody_can_be_found_any_more_once_all_that_were_named_have_refused(answers: list[Any], hopeless: bool) -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = list(answers)
        keeping = [asyncio.ensure_future(find.keep(f"10.0.0.{number}:1")) for number in range(len(answers))]
        await asyncio.sleep(0.1)
        assert find.hopeless is hopeless
        for each in keeping:
            each.cancel()

    in_loop(test)


def test_the_text_is_bounded_however_many_cannot_be_used() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        for number in range(50):
            find.not_usable(f"n{number}", "why")
        assert find.why_none()[-2:] == ["n19: why", "and 30 more"]

    in_loop(test)


def test_the_list_of_unusable_ones_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_UNUSABLE", 3)

    def test(dialler: Dialler, find: Finding) -> None:
        for number in range(9):
            find.not_usable(f"n{number}", "why")
        assert len(find._unusable) == 3

    in_loop(test)


def test_what_a_peer_tells_is_dialled() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        find.told([whereabouts(BOB)])
        assert dialler.met == [(BOB.birth, list(BOB.addresses))]

    in_loop(test)


@pytest.mark.parametrize(
    "junk",
    [None, [1], [["x", []]], [[0, []]], [[1 << 64, []]], [[1, [2]]], [[1, ["a" * 300]]], [[1, []]] * 1001]
    + [[[True, []]], [[1, ["a"] * 17]], [[1, []], [0, []]]],
)
def test_what_is_no_list_of_nodes_is_refused(junk: Any) -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        with pytest.raises(ProtocolError, match="meet with"):
            find.told(junk)
        assert dialler.met == [], "something was believed before all of it was looked at"

    in_loop(test)


def test_an_address_given_by_hand_is_dialled_again_with_growing_pauses_until_somebody_answers() -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = [Unreachable("nobody"), TimeoutError(), Refused("another key"), BOB]
        keeping = asyncio.ensure_future(find.keep("10.0.0.2:1"))
        await asyncio.sleep(20)
        pauses = [later - earlier for earlier, later in zip(dialler.inquired, dialler.inquired[1:], strict=False)]
        assert pauses == pytest.approx([0.2, 0.4, 0.8])
        assert dialler.met == [(BOB.birth, ["10.0.0.2:1", *BOB.addresses])]
        assert not any("10.0.0.2:1" in line for line in find.why_none())  # what was wrong is so no more
        assert dialler.ended is not None
        dialler.ended.set()
        await asyncio.sleep(1)
        assert len(dialler.inquired) >= 5
        keeping.cancel()

    in_loop(test)


@pytest.mark.parametrize(("error", "said"), [(Unreachable("nobody"), False), (Refused("another key"), True)])
def test_a_quiet_address_says_only_that_somebody_refused(error: Exception, said: bool) -> None:
    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = [error]
        keeping = asyncio.ensure_future(find.keep("127.0.0.1:1", quiet=True))
        await asyncio.sleep(1)
        keeping.cancel()
        assert any(str(error) in line for line in find.why_none()) is said

    in_loop(test)


def test_a_host_name_is_resolved_and_each_of_its_addresses_tried() -> None:
    async def test() -> None:
        found = await resolved("localhost:5")
        assert "127.0.0.1:5" in found
        assert await resolved("10.0.0.2:5") == ["10.0.0.2:5"]
        assert await resolved("[fd00::2]:5") == ["[fd00::2]:5"]
        with pytest.raises(Unreachable, match="no-such-host.invalid is not known here"):
            await resolved("no-such-host.invalid:5")

    asyncio.run(test())


def test_the_first_address_that_answers_is_dialled(monkeypatch: pytest.MonkeyPatch) -> None:
    async def both(address: str) -> list[str]:
        return ["10.0.0.1:5", "10.0.0.2:5"]

    monkeypatch.setattr(rooms, "resolved", both)

    async def test(dialler: Dialler, find: Finding) -> None:
        dialler.answers = [Unreachable("nobody"), BOB]
        keeping = asyncio.ensure_future(find.keep("bob:5"))
        await asyncio.sleep(1)
        keeping.cancel()
        assert dialler.met == [(BOB.birth, ["10.0.0.2:5", *BOB.addresses])]

    in_loop(test)


def test_what_cannot_be_a_host_name_is_said_to_be_none() -> None:
    async def test() -> None:
        with pytest.raises(Unreachable, match="'a..b' is no host name"):
            await resolved("a..b:5")

    asyncio.run(test())
