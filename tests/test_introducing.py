"""Reaching a process that cannot be dialled, over a network in memory: who is asked, what is tried, what is told."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest

from discoro import introducing
from discoro.connections import Ended
from discoro.errors import DiscoroError, Overloaded, PeerLost, ProtocolError, Unreachable, WorkerLost
from discoro.introducing import first_of
from discoro.link import INTRODUCE_AFTER
from discoro.mesh import Mesh
from discoro.outcomes import ExitNotice
from discoro.references import CoroRef
from discoro.requests import Incoming
from tests.support.meshes import World, knows, simulate, start, until

AT_ONCE = 0.05  # seconds of the moved clock: nobody waited for anything
SOON = INTRODUCE_AFTER + AT_ONCE
CONNECT_TIMEOUT = 5.0


def collects(count: int, coro: Any = None) -> Any:
    got = []
    for _ in range(count):
        got.append((yield coro.receive()))
    return got


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


@contextlib.asynccontextmanager
async def worker(world: World, name: str, node: Mesh) -> AsyncIterator[Mesh]:
    """A process that is linked with one node, and looks for no other."""
    async with world.mesh(name, role="worker") as mesh:
        mesh.meet(node.me.birth, node.addresses)
        await until(lambda: knows(mesh, node))
        yield mesh


def now() -> float:
    return asyncio.get_running_loop().time()


def heard(mesh: Mesh, verb: str) -> list[dict[str, Any]]:
    """The arguments of every request of that verb that comes to a mesh from now on."""
    arguments: list[dict[str, Any]] = []
    handler: Callable[[Incoming], Any] = mesh.handlers[verb]

    def listens(incoming: Incoming) -> Any:
        arguments.append(incoming.arguments)
        return handler(incoming)

    mesh.handlers[verb] = listens
    return arguments


# ------------------------------------------------------------------ reached


def test_two_clients_of_a_node_reach_each_other_by_dialling_and_ask_nobody() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            asked, to = heard(node, "whereabouts"), start(b, waits).ref
            began = now()
            assert await a.run(to.deliver, "m") == 1
            assert now() - began < AT_ONCE and asked == []

    simulate(test)


@pytest.mark.parametrize("how", [Ended.UNREACHABLE, Ended.REFUSED])
def test_a_client_that_cannot_be_dialled_is_had_to_dial_back(how: Ended) -> None:
    """A firewall that drops makes the asker wait a moment; one that rejects does not even that."""

    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.firewalled("b", how):
                receiver = start(b, collects, 2001)

                async def sender() -> Any:
                    for number in range(2000):
                        receiver.ref.send(number)
                    began = now()
                    assert await receiver.ref.deliver("last") == 1
                    assert now() - began < (SOON if how is Ended.UNREACHABLE else AT_ONCE)
                    return await receiver.ref.result()

                assert await a.run(sender) == [*range(2000), "last"]
            assert a.lost_operations == b.lost_operations == 0

    simulate(test)


def test_a_worker_reaches_a_client_that_neither_it_nor_its_node_has_met() -> None:
    """Its node asks the other; both directions, result and monitor."""

    async def test(world: World) -> None:
        async with world.mesh("n1", role="node") as n1, world.mesh("n2", n1, role="node") as n2:
            async with worker(world, "w", n1) as w, worker(world, "b", n2) as b:
                with world.network.firewalled("b"):

                    def answers(coro: Any = None) -> Any:
                        asker = yield coro.receive()
                        asker.send("and back")
                        return 7

                    def asks(to: CoroRef, coro: Any = None) -> Any:
                        to.send(coro.ref)
                        back = yield coro.receive()
                        value = yield to.result()
                        yield coro.monitor(to)
                        return back, value, (yield coro.receive())

                    began = now()
                    back, value, notice = await w.run(asks, start(b, answers).ref)
                    assert (back, value) == ("and back", 7)
                    assert isinstance(notice, ExitNotice) and notice.value == 7
                    assert now() - began < SOON

    simulate(test)


def test_a_link_that_came_by_dialling_back_survives_its_connection() -> None:
    """Only the one behind the firewall can make a new one, and does."""

    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.firewalled("b"):
                receiver = start(b, collects, 1000)

                async def sender() -> Any:
                    for number in range(1000):
                        receiver.ref.send(number)
                        if number % 250 == 100:
                            await receiver.ref.is_alive()
                            world.network.cut("a", "b")
                    return await receiver.ref.result()

                assert await a.run(sender) == list(range(1000))

    simulate(test)


def test_both_want_each_other_and_one_cannot_be_dialled() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.firewalled("a"):
                to_a, to_b = start(a, collects, 100), start(b, collects, 100)

                async def sends(to: CoroRef) -> Any:
                    for number in range(100):
                        to.send(number)
                    return await to.result()

                began = now()
                got = await asyncio.gather(a.run(sends, to_b.ref), b.run(sends, to_a.ref))
                assert got == [list(range(100))] * 2 and now() - began < SOON

    simulate(test)


@pytest.mark.parametrize("behind", ["a", "b"])
def test_the_repr_of_a_reference_is_enough(behind: str) -> None:
    """It carries no addresses: they are asked for, and whichever side can dial does."""

    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.firewalled(behind):
                to = CoroRef.parse(repr(start(b, waits).ref))
                began = now()
                assert await a.run(to.deliver, "m") == 1
                assert now() - began < AT_ONCE

    simulate(test)


def test_a_program_that_begins_with_the_repr_waits_for_its_first_node() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("b", node) as b:
            to = CoroRef.parse(repr(start(b, waits).ref))
            async with world.mesh("a", peers=node.addresses) as a:
                assert not knows(a, node)
                assert await a.run(to.deliver, "m") == 1

    simulate(test)


def test_a_node_that_hangs_does_not_keep_the_next_from_helping() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n1", role="node") as n1, world.mesh("n2", n1, role="node") as n2:
            async with world.mesh("a", n1, n2) as a, world.mesh("b", n1, n2) as b:
                with world.network.firewalled("b"), world.network.dropping(lambda *way: "n1" in way[:2]):
                    to = start(b, waits).ref
                    began = now()
                    assert await a.run(to.deliver, "m") == 1
                    assert now() - began < SOON + introducing.NEXT_AFTER

    simulate(test)


def test_a_node_that_dies_in_the_middle_is_followed_by_the_next() -> None:
    async def test(world: World) -> None:
        async with contextlib.AsyncExitStack() as first, world.mesh("n2", role="node") as n2:
            n1 = await first.enter_async_context(world.mesh("n1", n2, role="node"))
            async with world.mesh("a", n1, n2) as a, world.mesh("b", n1, n2) as b:
                with world.network.firewalled("b"), world.network.dropping(lambda *way: way[:2] == ("n1", "b")):
                    to, asked = start(b, waits).ref, [*map(heard, (n1, n2), ("introduce",) * 2)]
                    waiting = asyncio.ensure_future(a.run(to.deliver, "m"))
                    await until(lambda: any(asked))
                    await first.aclose()
                    assert await waiting == 1

    simulate(test)


def test_a_client_that_knows_both_helps_where_there_is_no_node() -> None:
    async def test(world: World) -> None:
        async with world.mesh("c") as c, world.mesh("a", c) as a, world.mesh("b", c) as b:
            with world.network.firewalled("b"):
                to = start(b, waits).ref
                assert await a.run(to.deliver, "m") == 1

    simulate(test)


# ------------------------------------------------------------------ not reached


@pytest.mark.parametrize("call", ["deliver", "result", "monitor", "terminate"])
def test_where_neither_can_be_dialled_the_error_says_what_was_tried(call: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.firewalled("a"), world.network.firewalled("b"):
                to = start(b, waits).ref

                async def caller(coro: Any = None) -> Any:
                    to.send("is lost, and counted")
                    match call:
                        case "deliver":
                            await to.deliver("m")
                        case "result":
                            await to.result()
                        case "monitor":
                            await coro.monitor(to)
                            raise (await coro.receive()).error
                        case "terminate":
                            await to.terminate()

                began = now()
                with pytest.raises(Unreachable) as caught:
                    await a.run(caller)
                assert now() - began <= CONNECT_TIMEOUT + 0.001
            text = str(caught.value)
            assert f"b/{b.me.pid}: unreachable for 5 s: tried {b.addresses[0]} (no answer)" in text
            assert f"asked n (b/{b.me.pid} could not dial back: tried {a.addresses[0]} (no answer))" in text
            assert a.lost_operations == 2

    simulate(test)


def test_only_who_wanted_the_link_is_warned_of_its_failure(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.firewalled("a"), world.network.firewalled("b"):
                with pytest.raises(Unreachable):
                    await a.run(start(b, waits).ref.deliver, "m")
                assert b.linked(a.me.birth)
                await until(lambda: not b.linked(a.me.birth))

    simulate(test)
    warned = [record.getMessage() for record in caplog.records if record.levelname == "WARNING" and "not usable" in record.msg]
    assert len(warned) == 1 and warned[0].startswith("! not usable: b/")


def test_a_process_that_has_ended_is_told_as_soon_as_the_nodes_say_so() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a:
            async with world.mesh("b", node) as b:
                to = start(b, waits).ref
            began = now()
            with pytest.raises(Unreachable, match=r"nothing listens there\); asked n \(it is not linked with it\)"):
                await a.run(to.deliver, "m")
            assert now() - began < AT_ONCE
            with pytest.raises(Unreachable, match=r"no address of it is known; asked n \(it is not linked with it\)"):
                await a.run(CoroRef.parse(repr(to)).result)
            assert now() - began < AT_ONCE and not a.linked(b.me.birth)

    simulate(test)


def test_how_a_worker_ended_is_told_to_those_who_come_later() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node:
            async with worker(world, "w", node) as w:
                to = start(w, waits).ref
            node.tell_lost(w.me.birth, "w/1 was killed by SIGKILL")
            async with world.mesh("a", node) as a:
                for _ in range(2):
                    with pytest.raises(WorkerLost, match="SIGKILL"):
                        await a.run(to.result)

    simulate(test)


def test_the_only_node_dies_in_the_middle_and_nobody_waits_for_ever() -> None:
    async def test(world: World) -> None:
        async with contextlib.AsyncExitStack() as alone:
            node = await alone.enter_async_context(world.mesh("n", role="node"))
            async with world.mesh("a", node) as a, world.mesh("b", node) as b:
                with world.network.firewalled("b"), world.network.dropping(lambda *way: way[:2] == ("n", "b")):
                    to, asked = start(b, waits).ref, heard(node, "introduce")
                    began, waiting = now(), asyncio.ensure_future(a.run(to.deliver, "m"))
                    await until(lambda: bool(asked))
                    await alone.aclose()
                    with pytest.raises(Unreachable, match="is leaving|left the mesh"):
                        await waiting
                    assert now() - began <= CONNECT_TIMEOUT + 0.001

    simulate(test)


def test_without_anybody_to_ask_and_without_addresses_it_is_unreachable_at_once() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a, world.mesh("b") as b:
            to, began = CoroRef.parse(repr(start(b, waits).ref)), now()
            with pytest.raises(Unreachable, match="no address of it is known"):
                await a.run(to.deliver, "m")
            assert now() == began

    simulate(test)


def test_a_mesh_that_looks_for_nodes_and_finds_none_gives_up_in_time() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", peers=["127.0.0.1:1"]) as a:
            to, began = CoroRef.parse(repr(start(b, waits).ref)), now()
            with pytest.raises(Unreachable, match="unreachable for 5 s: no address of it is known"):
                await a.run(to.deliver, "m")
            assert now() - began == pytest.approx(CONNECT_TIMEOUT)

    simulate(test)


def test_a_mesh_closes_in_the_middle_of_an_introduction() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("b", node) as b:
            with world.network.firewalled("b"), world.network.dropping(lambda *way: way[:2] == ("n", "b")):
                async with world.mesh("a", node) as a:
                    asked = heard(node, "introduce")
                    waiting = asyncio.ensure_future(a.run(start(b, waits).ref.deliver, "m"))
                    await until(lambda: bool(asked))
                with pytest.raises((DiscoroError, asyncio.CancelledError)):
                    await waiting
                assert "wanted=0 asking=0" in repr(a._introducing)

    simulate(test)


# ------------------------------------------------------------------ what may be asked


def test_a_process_is_told_to_dial_the_askers_own_addresses_only() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            reached = heard(b, "reach")
            claims = {"birth": b.me.birth, "within": 1.0, "addresses": ["192.0.2.1:80"], "me": [a.me.birth, ["192.0.2.1:80"]]}
            assert await a.ask(node.me.birth, "introduce", claims, 5) == 0
            assert [each["addresses"] for each in reached] == [a.addresses]
            with pytest.raises(ProtocolError, match="only a node passes on"):
                asker = [a.me.birth, ["192.0.2.1:80"]]
                await a.ask(node.me.birth, "introduce", {"birth": b.me.birth, "within": 1.0, "asker": asker}, 5)

    simulate(test)


def test_a_question_goes_to_each_node_once_and_never_in_circles() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n1", role="node") as n1, world.mesh("n2", n1, role="node") as n2:
            async with world.mesh("n3", n1, n2, role="node") as n3, worker(world, "w", n1) as w:
                asked = [heard(node, "whereabouts") for node in (n1, n2, n3)]
                with pytest.raises(Unreachable, match=r"n1 \(it is not linked with it, nor is any of 2 nodes that it asked\)"):
                    await w.run(CoroRef("0" * 16, 1, 4711, 1, "b").deliver, "m")
                assert [len(each) for each in asked] == [1, 1, 1]

    simulate(test)


def test_whereabouts_of_no_birth_are_refused() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a:
            with pytest.raises(ProtocolError, match="not a birth"):
                await a.ask(node.me.birth, "whereabouts", {}, 5)

    simulate(test)


@pytest.mark.parametrize("verb", ["introduce", "reach"])
@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"birth": None}, "birth"),
        ({"birth": -1}, "birth"),
        ({"birth": 0}, "birth"),
        ({"within": 0}, "time"),
        ({"within": 1e9}, "time"),
        ({"within": "long"}, "time"),
        ({"addresses": "127.0.0.1:1"}, "addresses"),
        ({"addresses": [1]}, "addresses"),
        ({"addresses": ["x" * 300]}, "addresses"),
        ({"addresses": ["127.0.0.1:1"] * 17}, "addresses"),
    ],
)
def test_what_makes_no_sense_is_refused(verb: str, wrong: dict[str, Any], why: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("m", node, role="node") as m:
            arguments = {"birth": 4711, "within": 1.0, "addresses": ["127.0.0.1:1"], **wrong}
            if verb == "introduce" and "addresses" in wrong:
                arguments["asker"] = [4711, arguments.pop("addresses")]
            with pytest.raises(ProtocolError, match=why):
                await m.ask(node.me.birth, verb, arguments, 5)
            assert not node.linked(4711)

    simulate(test)


def test_one_peer_has_so_many_questions_under_way_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(introducing, "MAX_SERVED", 3)

    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a, world.mesh("b", node) as b:
            with world.network.dropping(lambda *way: way[:2] == ("n", "b")):
                arguments = {"birth": b.me.birth, "within": 1.0}
                under_way = [asyncio.ensure_future(a.ask(node.me.birth, "introduce", arguments, 9)) for _ in range(3)]
                await until(lambda: "serving=3" in repr(node._introducing))
                with pytest.raises(Overloaded, match="3 processes"):
                    await a.ask(node.me.birth, "introduce", arguments, 9)
                assert len(await asyncio.gather(*under_way, return_exceptions=True)) == 3
                assert "serving=0" in repr(node._introducing)

    simulate(test)


def test_a_node_that_answers_nonsense_is_not_believed() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a:
            for nonsense in (None, [], ["linked", 1, []], ["linked", "b", [1]], ["ended", "WorkerLost"], "linked"):
                node.handlers["whereabouts"] = lambda incoming, value=nonsense: incoming.reply(value)
                with pytest.raises(Unreachable, match="asked n"):
                    await a.run(CoroRef("0" * 16, 1, 4711, 1, "b").deliver, "m")

    simulate(test)


def test_an_end_of_another_kind_counts_as_the_loss_of_the_process() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as node, world.mesh("a", node) as a:
            node.handlers["whereabouts"] = lambda incoming: incoming.reply(["ended", "KeyFileError", "it ended"])
            with pytest.raises(PeerLost, match="it ended"):
                await a.run(CoroRef("0" * 16, 1, 4711, 1, "b").deliver, "m")

    simulate(test)


# ------------------------------------------------------------------ one after another


async def brings(value: Any, after: float, log: list[Any]) -> Any:
    log.append(value)
    try:
        await asyncio.sleep(after)
    except asyncio.CancelledError:
        log.append(f"{value} given up")
        raise
    if isinstance(value, Exception):
        raise value
    return value


def race(*runners: tuple[Any, float]) -> tuple[Any, float, list[Any]]:
    """What came first, when, and what happened on the way."""
    log: list[Any] = []

    async def test(world: World) -> Any:
        asks = [partial(brings, value, after, log) for value, after in runners]
        return await first_of(asks, 1.0), now(), log

    return simulate(test)  # type: ignore[no-any-return]


def test_the_next_is_asked_when_one_is_slow_or_fails() -> None:
    failure = Unreachable("no")
    assert race(("a", 0.5), ("b", 0)) == ("a", 0.5, ["a"])
    assert race(("a", 9), ("b", 0.5), ("c", 0)) == ("b", 1.5, ["a", "b", "a given up"])
    assert race((failure, 0.25), ("b", 0.25)) == ("b", 0.5, [failure, "b"])
    assert race(("a", 1.5), ("b", 9)) == ("a", 1.5, ["a", "b", "b given up"])


def test_where_all_fail_the_last_error_counts() -> None:
    with pytest.raises(Unreachable, match="last"):
        race((Unreachable("first"), 0.1), (Unreachable("last"), 0.1))
    with pytest.raises(Unreachable, match="nobody to ask"):
        race()
    with pytest.raises(ZeroDivisionError):
        race((ZeroDivisionError("a bug"), 0.1), ("b", 1))
