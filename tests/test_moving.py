"""Where a process is to be found as its network changes: what is decided from values, and what Moving has done and told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, cast

import pytest

from discoro.errors import PeerLost, ProtocolError
from discoro.interfaces import NicAddress, choose, plugged_in_again, without_public
from discoro.messages import Greeting
from discoro.moving import MISSED_SECONDS, Awake, Clocks, Moving, clocks, said
from discoro.peers import Peers
from discoro.requests import Incoming

ME = Greeting("00000000000000aa", 7, 0xAA, "ada", "node", "default", "3.11", "0", ("10.0.0.1:1", "127.0.0.1:1"))
LAN = NicAddress("eth0", "10.0.0.1", 24, index=2)
OTHER = NicAddress("eth0", "10.0.0.9", 24, index=2)
WLAN = NicAddress("wlan0", "10.1.0.1", 24, index=3)
LOOPBACK = NicAddress("lo", "127.0.0.1", 8, index=1)


# --- whether the machine slept


def awake(in_all: float = 1000.0, started: float = 100.0) -> Awake:
    return Awake(Clocks(started, in_all), period=2.0)


def test_a_sleep_shows_in_the_clock_that_goes_on() -> None:
    eight_hours = 8 * 3600.0
    watch = awake()
    assert watch.look(Clocks(102.0, 1002.0)) == 0.0
    assert watch.look(Clocks(103.0, 1003.0 + eight_hours)) == pytest.approx(eight_hours)
    assert watch.look(Clocks(105.0, 1005.0 + eight_hours)) == 0.0, "it is told once"


def test_a_process_that_stood_still_missed_as_much() -> None:
    """SIGSTOP, a machine paused by its host, a loop that was blocked: both clocks went on."""
    assert awake().look(Clocks(132.0, 1032.0)) == pytest.approx(30.0)


@pytest.mark.parametrize("slept", [0.0, 0.5, MISSED_SECONDS - 0.1])
def test_what_connections_live_through_is_no_sleep(slept: float) -> None:
    assert awake().look(Clocks(102.0, 1002.0 + slept)) == 0.0


def test_a_pause_between_the_two_readings_is_no_sleep_now_or_later() -> None:
    watch = awake()
    assert watch.look(Clocks(112.0, 1002.0)) == pytest.approx(10.0 - 0.0), "the process stood still, as it did"
    assert watch.look(Clocks(114.0, 1014.0)) == 0.0, "that the clocks agree again is no sleep"


def test_a_clock_of_the_wall_that_is_set_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: pytest.fail("the wall clock was asked"))
    watch = Awake(clocks())
    assert watch.look(clocks()) == 0.0


# --- what others are told


def test_others_are_told_the_addresses_of_now() -> None:
    assert said(["10.0.0.9:1", "127.0.0.1:1"], ["10.0.0.1:1", "127.0.0.1:1"]) == ["10.0.0.9:1", "127.0.0.1:1"]


def test_while_there_is_none_they_are_told_those_from_before() -> None:
    before = ["10.0.0.1:1", "127.0.0.1:1"]
    assert said(["127.0.0.1:1"], before) == before
    assert said(["127.0.0.1:1"], ["127.0.0.1:1"]) == ["127.0.0.1:1"]


def test_an_adapter_that_was_pulled_out_and_put_back_is_another_one() -> None:
    before, again = choose([LAN], {}), choose([NicAddress("eth0", "10.0.0.1", 24, index=7)], {})
    assert plugged_in_again(before, again) and not plugged_in_again(before, before)
    assert not plugged_in_again(before, choose([LAN, WLAN], {})), "one that came is no such one"
    assert not plugged_in_again(before, choose([WLAN], {}))


def test_an_open_process_takes_no_public_address_that_comes_later() -> None:
    public = NicAddress("ppp0", "8.8.8.8", 32, index=4)
    kept = without_public(choose([LAN, public], {}))
    assert kept.usable == (("eth0", "10.0.0.1"),) and kept.indexes == (2,)
    assert kept.ignored == (("ppp0", "8.8.8.8", "public, and this process is open"),)


def test_loopback_is_always_listened_on() -> None:
    assert choose([LAN, LOOPBACK], {}).hosts == ["10.0.0.1", "127.0.0.1"]
    assert choose([LOOPBACK], {}).hosts == ["127.0.0.1"]
    only = choose([LAN, LOOPBACK], {"127.0.0.1": [LOOPBACK.ip]})
    assert only.hosts == ["127.0.0.1"] and only.settled
    assert not choose([LOOPBACK], {}).settled, "an adapter may come"


# --- what is done


class DoorsHere:
    def __init__(self) -> None:
        self.moves: list[list[str]] = []
        self.all_open = True

    def move(self, hosts: Sequence[str]) -> list[str]:
        self.moves.append(list(hosts))
        return [f"{host}:1" for host in hosts]


class LinkTo:
    def __init__(self, birth: int) -> None:
        self.birth = birth


class PeersHere:
    def __init__(self) -> None:
        self.listens: list[list[str]] = []
        self.moves: list[tuple[int, list[str]]] = []
        self.dialled = 0

    def __iter__(self) -> Any:
        return iter([LinkTo(1), LinkTo(2)])

    def listen_at(self, addresses: list[str]) -> None:
        self.listens.append(list(addresses))

    def moved(self, birth: int, addresses: list[str]) -> None:
        self.moves.append((birth, addresses))

    def dial_again(self) -> None:
        self.dialled += 1


class MeshHere:
    def __init__(self) -> None:
        self.me = ME
        self.addresses = list(ME.addresses)
        self.interfaces = choose([LAN, LOOPBACK], {})
        self.asked: list[tuple[int, str]] = []
        self.spawned: list[Awaitable[Any]] = []

    def spawn(self, work: Awaitable[Any]) -> None:
        self.spawned.append(work)

    async def ask(self, birth: int, verb: str, arguments: dict[str, Any], timeout: float | None) -> Any:
        self.asked.append((birth, verb))
        if birth == 2:
            raise PeerLost("gone")


class Scene:
    def __init__(self, external: str | None = None, open_to_all: bool = True) -> None:
        self.mesh, self.peers, self.doors = MeshHere(), PeersHere(), DoorsHere()
        self.moving = Moving(self.mesh, cast(Peers, self.peers), self.doors, external, open_to_all)
        self.changes = 0
        self.moving.on_change.append(self.changed)

    def changed(self) -> None:
        self.changes += 1

    def look(self, *found: NicAddress, missed: float = 0.0) -> None:
        self.moving.look(found, missed)

        async def settle() -> None:
            await asyncio.gather(*self.mesh.spawned)

        asyncio.run(settle())
        self.mesh.spawned.clear()


@pytest.fixture
def scene() -> Scene:
    return Scene()


def test_nothing_new_is_no_news(scene: Scene) -> None:
    scene.look(LAN, LOOPBACK)
    assert scene.doors.moves == [] and scene.peers.dialled == scene.changes == 0


def test_another_address_is_listened_on_and_told_to_every_peer(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.look(OTHER, LOOPBACK)
    assert scene.doors.moves == [["10.0.0.9", "127.0.0.1"]]
    assert scene.peers.listens == [["10.0.0.9:1", "127.0.0.1:1"]] and scene.mesh.addresses == scene.peers.listens[0]
    assert scene.mesh.asked == [(1, "moved"), (2, "moved")], "that one of them is gone stops nobody"
    assert scene.peers.dialled == scene.changes == 1
    assert "now 10.0.0.9:1, 127.0.0.1:1; they were 10.0.0.1:1, 127.0.0.1:1" in caplog.text
    assert scene.mesh.interfaces.usable == (("eth0", "10.0.0.9"),)


def test_without_any_interface_others_are_told_nothing_and_its_return_is_dialled_at_once(scene: Scene) -> None:
    scene.look(LOOPBACK)
    assert scene.doors.moves == [["127.0.0.1"]] and scene.peers.listens == [] == scene.mesh.asked
    scene.look(LAN, LOOPBACK)
    assert scene.doors.moves[1:] == [["10.0.0.1", "127.0.0.1"]] and scene.peers.listens == []
    assert scene.peers.dialled == scene.changes == 2


def test_an_interface_that_comes_is_one_more(scene: Scene) -> None:
    scene.look(LAN, WLAN, LOOPBACK)
    assert scene.mesh.addresses == ["10.0.0.1:1", "10.1.0.1:1", "127.0.0.1:1"]


def test_after_a_sleep_everybody_is_dialled_at_once_and_nothing_is_told(scene: Scene) -> None:
    scene.look(LAN, LOOPBACK, missed=3600.0)
    assert scene.peers.dialled == scene.changes == 1 and scene.mesh.asked == []


def test_what_could_not_be_opened_is_tried_again_at_each_look(scene: Scene) -> None:
    scene.doors.all_open = False
    scene.look(LAN, LOOPBACK)
    scene.look(LAN, LOOPBACK)
    assert len(scene.doors.moves) == 2 and scene.changes == 0
    scene.doors.all_open = True
    scene.look(LAN, LOOPBACK)
    assert len(scene.doors.moves) == 2


def test_what_was_chosen_is_listened_on_again_and_nothing_else(scene: Scene) -> None:
    scene.mesh.interfaces = choose([LAN, WLAN, LOOPBACK], {"10.0.0.1": [LAN.ip]})
    scene.look(WLAN, LOOPBACK)
    assert scene.doors.moves == [["127.0.0.1"]]
    scene.look(LAN, WLAN, LOOPBACK)
    assert scene.doors.moves == [["127.0.0.1"], ["10.0.0.1", "127.0.0.1"]]
    assert scene.mesh.interfaces.wanted == ("10.0.0.1",)


def test_the_address_that_a_nat_gives_stays_the_first() -> None:
    scene = Scene(external="192.0.2.1")
    scene.look(OTHER, LOOPBACK)
    assert scene.mesh.addresses == ["192.0.2.1:1", "10.0.0.9:1", "127.0.0.1:1"]


def test_an_open_process_stays_away_from_public_addresses() -> None:
    scene = Scene(open_to_all=False)
    scene.look(LAN, NicAddress("ppp0", "8.8.8.8", 32, index=4), LOOPBACK)
    assert scene.doors.moves == [] and scene.changes == 0


def test_a_worker_is_told_by_its_node(scene: Scene) -> None:
    async def told() -> None:
        scene.moving.told(["10.0.0.9"])
        scene.moving.told(["10.0.0.9"])
        await asyncio.gather(*scene.mesh.spawned)

    asyncio.run(told())
    assert scene.doors.moves == [["10.0.0.9", "127.0.0.1"]] and scene.peers.dialled == 2, "told again, the node has slept"
    assert not scene.mesh.interfaces.ignored and scene.mesh.interfaces.wanted == ("10.0.0.9",)


def test_a_second_door_is_said_beside_the_first(scene: Scene) -> None:
    async def opened() -> None:
        scene.moving.opened(["10.0.0.1:2"])
        await asyncio.gather(*scene.mesh.spawned)

    asyncio.run(opened())
    assert scene.peers.listens == [["10.0.0.1:1", "127.0.0.1:1", "10.0.0.1:2"]]
    assert scene.mesh.asked == [(1, "moved"), (2, "moved")]


def test_of_a_client_a_move_is_no_warning(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.mesh.me = ME._replace(role="client")
    with caplog.at_level(logging.WARNING):
        scene.look(OTHER, LOOPBACK)
    assert caplog.text == ""


def moved(addresses: Any) -> Incoming:
    return Incoming(ME._replace(birth=3), 0, "moved", {"addresses": addresses}, (), lambda ok, value, body: None)


def test_a_peer_tells_where_it_listens(scene: Scene) -> None:
    incoming = moved(["127.0.0.1:3", "[::1]:3"])
    scene.moving.on_moved(incoming)
    assert scene.peers.moves == [(3, ["127.0.0.1:3", "[::1]:3"])] and incoming.answered


@pytest.mark.parametrize("addresses", [None, "127.0.0.1:3", [3], [""], ["x" * 256], ["127.0.0.1:3"] * 17, {"a": 1}])
def test_what_is_no_list_of_addresses_is_refused(scene: Scene, addresses: Any) -> None:
    with pytest.raises(ProtocolError, match="moved"):
        scene.moving.on_moved(moved(addresses))
    assert scene.peers.moves == []
