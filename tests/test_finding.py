"""Finding by itself: which advertised nodes are dialled, what peers may tell, and what is said when nothing is found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from discoro import finding as rooms
from discoro.adverts import Advert
from discoro.errors import ProtocolError, Refused, Unreachable
from discoro.finding import Finding, resolved, whereabouts
from discoro.interfaces import Interfaces
from discoro.messages import PROTOCOL_VERSION, Greeting
from tests.support import moved_clock

ME = Greeting("00000000000000aa", 1, 0xAA, "me", "client", "default", "3.11", "0", ())
BOB = Greeting("00000000000000bb", 1, 0xBB, "bob", "node", "default", "3.11", "0", ("10.0.0.2:1", "10.1.0.2:1"))


class Dialler:
    def __init__(self) -> None:
        self.me = ME
        self.met: list[tuple[int, list[str]]] = []
        self.answers: list[Any] = []
        self.inquired: list[float] = []
        self.ended: asyncio.Event | None = None

    def meet(self, birth: int, addresses: Sequence[str]) -> None:
        self.met.append((birth, list(addresses)))

    heard_of = meet

    async def wanted(self, birth: int) -> None: ...

    def linked(self, birth: int) -> bool:
        return birth in [met for met, _ in self.met]

    async def inquire(self, address: str, timeout: float) -> Greeting:
        self.inquired.append(asyncio.get_running_loop().time())
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        greeting: Greeting = answer
        return greeting

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


def finding(dialler: Dialler, is_open: bool = False) -> Finding:
    return Finding(dialler, Interfaces((), ()), mdns=False, is_open=is_open)


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


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"cluster": "other"}, "belongs to cluster 'other', this side to 'default'"),
        ({"protocol": 99}, "speaks protocol 99, this side 1"),
        ({"python": "3.12"}, "runs Python 3.12, this side 3.11"),
        ({"security": "open"}, "is open, this side has a key"),
    ],
)
def test_an_unfit_node_is_named_with_the_reason_and_not_dialled(
    changes: dict[str, Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        for _ in range(2):
            find._found(advert(**changes))
        assert dialler.met == []
        assert any(f"bob (10.0.0.2:1): {why}" in line for line in find.why_none())

    in_loop(test)
    assert caplog.text.count(why) == 1


def test_a_keyed_node_is_unfit_for_an_open_side() -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        find = finding(dialler, is_open=True)
        find._found(advert())
        assert any("has a key, this side open" in line for line in find.why_none())

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
    [None, [1], [["x", []]], [[0, []]], [[1 << 64, []]], [[1, [2]]], [[1, ["a" * 300]]], [[1, []]] * 1001],
)
def test_what_is_no_list_of_nodes_is_refused(junk: Any) -> None:
    def test(dialler: Dialler, find: Finding) -> None:
        with pytest.raises(ProtocolError, match="meet with"):
            find.told(junk)

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
