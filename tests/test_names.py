"""Names by themselves: what peers may register, and how a search weighs what it hears."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from discoro import names as rooms
from discoro.errors import NoNodes, PeerLost, ProtocolError, Timeout
from discoro.messages import Greeting
from discoro.names import Found, Names
from discoro.references import CoroRef
from tests.support import moved_clock


def greeting(name: str, birth: int, role: str = "node", addresses: tuple[str, ...] = ()) -> Greeting:
    return Greeting(f"{birth:016x}", 1, birth, name, role, "default", "3.11", "0", addresses)


def ref(birth: int, number: int = 1) -> CoroRef:
    return CoroRef(f"{birth:016x}", 1, birth, number, "n")


class Around:
    """Neighbours that answer locate from a table."""

    def __init__(self, **known: dict[str, Any]) -> None:
        self.me = greeting("me", 1, "client")
        self.table: dict[int, Any] = {}
        self.linked: list[Greeting] = []
        self.looked = 0
        self.hopeless_after = 1 << 30  # looks
        self.asked: list[tuple[int, str]] = []

    def add(self, node: Greeting, *found: Found) -> None:
        self.linked.append(node)
        self.table[node.birth] = [[each.ref.to_plain(), each.load] for each in found]

    def nodes(self) -> list[Greeting]:
        return self.linked

    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float) -> Any:
        self.asked.append((birth, verb))
        answer = self.table[birth]
        if isinstance(answer, Exception):
            raise answer
        return answer if verb == "locate" else 0

    def look_again(self) -> None:
        self.looked += 1

    def hopeless(self) -> bool:
        return self.looked >= self.hopeless_after

    def why_no_nodes(self, seconds: float) -> str:
        return "why"


def locate(around: Around, location: str | None = None, timeout: float | None = 10) -> CoroRef:
    async def search() -> CoroRef:
        return await Names(around, 5).locate("x", location, timeout)

    found: CoroRef = moved_clock.run(search)
    return found


def test_the_least_busy_is_given() -> None:
    around = Around()
    around.add(greeting("a", 2), Found(ref(2), 3))
    around.add(greeting("b", 3), Found(ref(3), 1))
    assert locate(around) == ref(3)


def test_a_search_ends_once_no_node_can_come_any_more() -> None:
    around = Around()
    around.hopeless_after = 2

    async def search() -> float:
        begun = asyncio.get_running_loop().time()
        with pytest.raises(NoNodes, match="why"):
            await Names(around, 5).locate("x", None, None)
        return asyncio.get_running_loop().time() - begun

    assert moved_clock.run(search) < 1


def test_who_runs_it_knows_best_how_busy_it_is() -> None:
    around = Around()
    around.add(greeting("owner", 2), Found(ref(2), 3))
    around.add(greeting("teller", 3), Found(ref(2), 0), Found(ref(3), 1))
    assert locate(around) == ref(3)


@pytest.mark.parametrize("location", ["b", "10.0.0.3", "10.0.0.3:7", f"{3:016x}"])
def test_location_limits_the_search(location: str) -> None:
    around = Around()
    around.add(greeting("a", 2, addresses=("10.0.0.2:7",)), Found(ref(2), 0))
    around.add(greeting("b", 3, addresses=("10.0.0.3:7",)), Found(ref(3), 9))
    assert locate(around, location) == ref(3)
    assert {birth for birth, _ in around.asked} == {3}


def test_a_node_that_fails_or_talks_nonsense_keeps_nobody_from_finding() -> None:
    around = Around()
    around.add(greeting("a", 2))
    around.table[2] = PeerLost("gone")
    around.add(greeting("b", 3), Found(ref(3), 1))
    assert locate(around) == ref(3)


@pytest.mark.parametrize(
    "junk",
    [5, [[1, 2]], [["no ref", 0]], [[ref(1).to_plain()]], None]
    + [[[ref(1).to_plain(), load]] for load in (-1, "0", 1.0, float("inf"), float("nan"), True)],
)
def test_an_answer_that_is_none_is_an_error_of_the_protocol(junk: Any) -> None:
    around = Around()
    around.add(greeting("a", 2))
    around.table[2] = junk
    with pytest.raises(ProtocolError, match="not a list of references"):
        locate(around)


def test_time_over_says_who_was_asked() -> None:
    around = Around()
    around.add(greeting("ada", 2))
    with pytest.raises(Timeout, match="nobody registered 'x' at ada in 7 s; nodes asked: ada"):
        locate(around, "ada", 7)


def test_without_nodes_the_network_is_asked_again_until_the_time_is_over() -> None:
    around = Around()
    with pytest.raises(NoNodes, match="why"):
        locate(around, timeout=None)
    assert around.looked >= 5


def test_waiting_for_a_name_is_said_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    around = Around()
    around.add(greeting("ada", 2))
    with pytest.raises(Timeout):
        locate(around, timeout=12)
    assert caplog.text.count("waiting for 'x' to be registered; asked 1 nodes") == 2


# ------------------------------------------------------------------ what peers may register


def registered(*pairs: tuple[int, Any, Any]) -> Names:
    names = Names(Around(), 5)
    for birth, name, reference in pairs:
        names.on_register(greeting("p", birth, "client"), {"name": name, "ref": reference})
    return names


def with_loop(call: Any) -> Any:
    async def body() -> Any:
        return call()

    return asyncio.run(body())


def test_what_a_peer_registers_is_found_until_it_unregisters_or_is_lost() -> None:
    names = with_loop(lambda: registered((5, "x", ref(5).to_plain()), (6, "x", ref(6).to_plain())))
    assert names.on_locate({"name": "x"}) == [[ref(5).to_plain(), 0], [ref(6).to_plain(), 0]]
    names.on_unregister(greeting("p", 5, "client"), {"name": "x", "ref": ref(5).to_plain()})
    names.peer_lost(6)
    assert names.known("x") == []


def test_a_name_that_was_taken_over_stays_when_its_first_holder_goes() -> None:
    names = with_loop(lambda: registered((5, "x", ref(5, 1).to_plain()), (5, "x", ref(5, 2).to_plain())))
    names.on_unregister(greeting("p", 5, "client"), {"name": "x", "ref": ref(5, 1).to_plain()})
    assert names.on_locate({"name": "x"}) == [[ref(5, 2).to_plain(), 0]]


@pytest.mark.parametrize(
    ("name", "reference"),
    [("x", None), (None, ref(5).to_plain()), ("", ref(5).to_plain()), ("x" * 300, ref(5).to_plain()), ("x", ref(6).to_plain())],
)
def test_a_registration_that_is_none_is_refused(name: Any, reference: Any) -> None:
    with pytest.raises(ProtocolError):
        with_loop(lambda: registered((5, name, reference)))


def test_the_number_of_registrations_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rooms, "MAX_FOREIGN", 2)
    with pytest.raises(ProtocolError, match="no more are taken"):
        with_loop(lambda: registered(*((5, f"x{number}", ref(5).to_plain()) for number in range(3))))


@pytest.mark.parametrize("arguments", [{}, {"name": 5}, {"name": "x", "location": 5}])
def test_a_worker_that_asks_for_no_name_is_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="locate without a name"):
        asyncio.run(Names(Around(), 5).locate_for_worker(arguments))


def test_locate_without_a_name_is_refused() -> None:
    with pytest.raises(ProtocolError, match="without a name"):
        with_loop(lambda: registered().on_locate({}))


def test_servers_waits_for_further_nodes_unless_there_can_be_none() -> None:
    async def search(settle: float) -> float:
        around = Around()
        around.add(greeting("a", 2), Found(ref(2), 0))
        assert await Names(around, 5, settle).servers("x", None) == [ref(2)]
        return asyncio.get_running_loop().time()

    assert moved_clock.run(lambda: search(0.0)) == 0
    assert moved_clock.run(lambda: search(1.2)) == pytest.approx(1.2)


def test_looking_for_nodes_is_not_silent(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(NoNodes):
        locate(Around(), timeout=None)
    assert caplog.text.count("no node yet: looking for 5 s in all") == 1
