"""Meshes among each other, over a network in memory: messages, requests, ends, full mailboxes, names, loss."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from discoro import holding, mailbox, payload
from discoro import mesh as mesh_module
from discoro.coro import Coro
from discoro.errors import (
    ConfigError,
    CoroEnded,
    NameTaken,
    NoNodes,
    NoSuchCoro,
    Overloaded,
    PackError,
    PeerLost,
    ProtocolError,
    RemoteError,
    Timeout,
    Unreachable,
    WorkerLost,
)
from discoro.finding import with_port
from discoro.mailbox import MAILBOX_MESSAGES
from discoro.mesh import Mesh
from discoro.messages import Hold
from discoro.options import Place
from discoro.outcomes import ExitNotice
from discoro.references import CoroRef
from discoro.requests import Incoming
from discoro.security import Security
from discoro.server import Serving
from tests.support.meshes import OPEN, World, knows, simulate, start, until


async def waits() -> None:
    await asyncio.get_running_loop().create_future()


def collects(count: int, coro: Any = None) -> Any:
    got = []
    for _ in range(count):
        got.append((yield coro.receive()))
    return got


async def echoes(coro: Any = None) -> None:
    while True:
        coro.reply(await coro.receive())


async def sends(to: CoroRef, count: int) -> str:
    for number in range(count):
        await to.deliver(number)
    return "sent"


def answers(value: Any) -> Any:
    yield
    return value


def fails() -> Any:
    yield
    raise ValueError("bad", 3)


# ------------------------------------------------------------------ messages


@pytest.mark.parametrize("where", ["here", "there"])
def test_messages_arrive_in_order(where: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(a if where == "here" else b, collects, 2000)

            def sender() -> Any:
                for number in range(2000):
                    receiver.ref.send(bytes(300_000) if number == 1000 else number)
                return (yield receiver.ref.result())

            got = await a.run(sender)
            assert [len(m) if isinstance(m, bytes) else m for m in got] == [*range(1000), 300_000, *range(1001, 2000)]

    simulate(test)


@pytest.mark.parametrize("where", ["here", "there"])
def test_deliver_returns_1_once_the_message_is_in_the_mailbox(where: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(a if where == "here" else b, waits)

            async def sender() -> int:
                return await receiver.ref.deliver("m", timeout=1)

            assert await a.run(sender) == 1
            assert len(receiver.mailbox) == 1

    simulate(test)


@pytest.mark.parametrize("where", ["here", "there"])
def test_deliver_and_send_to_nobody(where: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            owner = a if where == "here" else b
            nobody = owner.ref_of(99)

            async def sender() -> None:
                with pytest.raises(NoSuchCoro, match="99"):
                    await nobody.deliver("m")
                if where == "here":
                    with pytest.raises(NoSuchCoro):
                        nobody.send("m")
                else:
                    nobody.send("m")
                    await until(lambda: owner.lost_messages == 1)

            await a.run(sender)

    simulate(test)


def test_what_cannot_be_packed_is_refused_at_the_sender() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(b, waits)

            async def sender() -> None:
                with pytest.raises(PackError, match=r"\['bad'\]"):
                    receiver.ref.send({"bad": (x for x in ())})

            await a.run(sender)
            assert len(receiver.mailbox) == 0

    simulate(test)


def test_nothing_joins_those_that_left_before_its_mailbox_was_said_to_be_full() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(b, collects, 5)
            large = bytes(100_000)  # which joins nobody

            async def sender() -> None:
                await receiver.ref.deliver("open")
                link = a.links[b.me.birth]
                receiver.ref.send(1)
                receiver.ref.send(2)
                assert link.outbox.run is not None, "they wait for the end of the turn together"
                a.operation(link, Hold(receiver.id, True))
                receiver.ref.send(large)
                receiver.ref.send("behind it")
                a.operation(link, Hold(receiver.id, False))

            await a.run(sender)
            assert await receiver.result_here() == ["open", 1, 2, large, "behind it"]

    simulate(test)


def test_a_full_mailbox_holds_its_own_senders_and_nobody_else() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            go = asyncio.Event()

            async def slow(coro: Any = None) -> int:
                await go.wait()
                count = 0
                while await coro.receive(timeout=5, alarm_value=None) is not None:
                    count += 1
                return count

            full, neighbour = start(b, slow), start(b, collects, 1)
            limit = MAILBOX_MESSAGES

            async def sender() -> int:
                sent = 0
                with pytest.raises(Overloaded, match=str(full.ref)):
                    while True:
                        full.ref.send(1)
                        sent += 1
                        if sent % 1000 == 0:
                            await asyncio.sleep(0.1)
                neighbour.ref.send("passes")
                assert await neighbour.ref.result(timeout=1) == ["passes"]
                with pytest.raises(Timeout):
                    await full.ref.deliver(1, timeout=1)
                go.set()
                assert await full.ref.deliver(1, timeout=5) == 1
                return sent

            sent = await a.run(sender)
            assert limit < sent <= 3 * limit
            assert await full.result_here() == sent + 1
            assert not len(a.sending.holding) and not len(b.sending.holding)

    simulate(test)


def test_beside_one_that_never_receives_all_else_goes_on_and_no_more_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages both ways, small and large, questions, results and notices; acknowledgements; and the end of both processes."""
    for module, kind in ((mailbox, "MAILBOX"), (holding, "HELD")):
        monkeypatch.setattr(module, f"{kind}_MESSAGES", 20)
        monkeypatch.setattr(module, f"{kind}_BYTES", 1 << 20)

    async def test(world: World) -> None:
        loop = asyncio.get_running_loop()
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            deaf, echo = start(b, waits), start(b, echoes)
            taken: list[Coro] = []

            async def floods(size: int, coro: Any = None) -> None:
                while True:
                    try:
                        deaf.ref.send(bytes(size))
                    except Overloaded:
                        assert await echo.ref.ask("still there?", timeout=1) == "still there?"
                        taken.append(coro)
                        await deaf.ref.deliver(bytes(size))
                    await asyncio.sleep(0.001)

            flooding = [start(a, floods, size) for size in (10, 1_000, 300_000)] + [start(b, floods, 10)]
            await until(lambda: len(taken) == len(flooding))
            link = a._peers.get(b.me.birth)
            assert link is not None
            await until(link.outbox.is_empty)  # acknowledged means: in the mailbox

            def kept() -> tuple[int, int, int, int]:
                queue = a.sending.holding._queues[deaf.ref.birth, deaf.ref.id]
                return len(deaf.mailbox), deaf.mailbox._size, len(queue.waiting), queue.size

            before = kept()
            assert before[0] < 20 + 100 and before[1] < (1 << 20) + 20 * 300_000, "full, and what was under way by then"
            assert before[2] <= 20 and before[3] < (1 << 20) + 300_000

            async def neighbours(coro: Any = None) -> None:
                gets, back = start(b, collects, 301), start(a, collects, 100)
                for number in range(300):
                    gets.ref.send(number)
                    assert await echo.ref.ask(number, timeout=1) == number
                assert await gets.ref.deliver(bytes(3 << 20), timeout=1) == 1
                assert [each for each in await gets.ref.result(timeout=1) if isinstance(each, int)] == [*range(300)]
                assert await start(b, sends, back.ref, 100).ref.result(timeout=5) == "sent"
                assert await back.result_here() == [*range(100)]
                await coro.monitor(start(b, answers, 7).ref)
                assert (await coro.receive(timeout=1)).value == 7
                with pytest.raises(ValueError, match="bad"):
                    await start(b, fails).ref.result(timeout=1)

            await a.run(neighbours)
            assert kept() == before and len(taken) == len(flooding)
            closing = loop.time()
        assert loop.time() - closing < 3

    simulate(test)


@pytest.mark.parametrize("where", ["here", "there"])
def test_who_waits_for_room_is_told_when_the_coroutine_ends(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MESSAGES", 10)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            full = start(b, waits)

            async def sender() -> None:
                for number in range(10):
                    full.ref.send(number)
                await until(lambda: full.mailbox.full and (where == "here" or a.sending.holding.is_full(full.ref)))
                delivering = asyncio.ensure_future(full.ref.deliver(10))
                await asyncio.sleep(0)
                full.stop("terminated")
                with pytest.raises(NoSuchCoro):
                    await delivering

            await (b if where == "here" else a).run(sender)
            assert not len(a.sending.holding) and not len(b.sending.holding)

    simulate(test)


def test_deliver_alone_waits_for_room_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MESSAGES", 10)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            full = start(b, waits)

            async def sender() -> None:
                for number in range(10):
                    await full.ref.deliver(number)
                with pytest.raises(Timeout):
                    await full.ref.deliver(10, timeout=1)

            await a.run(sender)
            assert len(full.mailbox) == 10

    simulate(test)


def test_the_notice_comes_after_messages_that_were_held_and_keeps_nobody_else_waiting() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            go, count = asyncio.Event(), MAILBOX_MESSAGES + 500

            async def fills(to: CoroRef) -> str:
                for number in range(count):
                    to.send(bytes(300_000) if number == count - 300 else number)
                    if number % 1000 == 0:
                        await asyncio.sleep(0.1)
                return "value"

            async def slow(coro: Any = None) -> list[Any]:
                talker = start(a, fills, coro.ref)
                await coro.monitor(talker.ref)
                talkers.append(talker.ref)
                await go.wait()
                return [await coro.receive(timeout=5) for _ in range(count + 1)] + [await coro.receive(0)]

            async def asker(coro: Any = None) -> str:
                return str(await talkers[0].result(timeout=30))

            talkers: list[CoroRef] = []
            receiver = start(b, slow)
            await until(lambda: bool(talkers))
            assert await b.run(asker) == "value"  # a result waits for nobody's mailbox
            go.set()
            got = await receiver.result_here()
            assert [each if isinstance(each, int) else "large" for each in got[:count]] == [
                *range(count - 300),
                "large",
                *range(count - 299, count),
            ]
            assert (got[count].reason, got[count].value, got[-1]) == ("normal", "value", None)

    simulate(test)


def test_a_queue_past_its_bound_refuses() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(b, waits)
            with world.network.partition("a", "b"):

                async def sender() -> None:
                    with pytest.raises(Overloaded, match="wait to be sent"):
                        while True:
                            receiver.ref.send(bytes(1 << 20))

                await a.run(sender)

    simulate(test)


# ------------------------------------------------------------------ how coroutines end


@pytest.mark.parametrize("where", ["here", "there"])
@pytest.mark.parametrize("late", [False, True])
def test_result_is_the_value_or_the_error(where: str, late: bool) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            owner = a if where == "here" else b
            good, bad = start(owner, answers, [1]), start(owner, fails)
            if late:
                await good.stopped()
                await bad.stopped()

            async def asker() -> None:
                assert await good.ref.result(timeout=5) == [1]
                assert await good.ref.finish() == [1]  # again, and by the old name
                with pytest.raises(ValueError, match="bad") as caught:
                    await bad.ref.result(timeout=5)
                assert caught.value.args == ("bad", 3)
                if where == "there":
                    assert isinstance(caught.value.__cause__, RemoteError)
                    assert "in fails" in str(caught.value.__cause__)

            await a.run(asker)

    simulate(test)


def test_result_in_time_and_of_the_unknown() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            running = start(b, waits)

            async def asker() -> None:
                with pytest.raises(Timeout, match="had not ended after 2 s"):
                    await running.ref.result(timeout=2)
                with pytest.raises(NoSuchCoro, match="no longer known"):
                    await b.ref_of(99).result()
                with pytest.raises(NoSuchCoro, match="no longer known"):
                    await a.ref_of(99).result()

            await a.run(asker)
            assert not a._exits._waiters

    simulate(test)


@pytest.mark.parametrize("where", ["here", "there"])
def test_a_monitor_gets_exactly_one_notice_after_all_messages(where: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            owner = a if where == "here" else b

            async def observer(coro: Any = None) -> list[Any]:
                def talks(to: CoroRef) -> Any:
                    yield
                    to.send(bytes(1 << 20))
                    to.send("last words")
                    return "value"

                observed = start(owner, talks, coro.ref)
                assert await coro.monitor(observed.ref) == 0
                got = [await coro.receive() for _ in range(3)]
                assert await coro.receive(timeout=30, alarm_value="nothing more") == "nothing more"
                assert await coro.monitor(observed.ref) == 0  # of one that has ended: at once
                return [len(got[0]), got[1], got[2].value, (await coro.receive(timeout=1)).reason]

            assert await a.run(observer) == [1 << 20, "last words", "value", "normal"]

    simulate(test)


@pytest.mark.parametrize(
    ("end", "reason", "error"),
    [
        ("terminate", "terminated", CoroEnded),
        ("raise", "exception", ValueError),
        ("process", "peer lost", PeerLost),
        ("worker", "worker lost", WorkerLost),
    ],
)
def test_reasons_are_distinct(end: str, reason: str, error: type[Exception]) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a", role="node") as a:
            context = world.mesh("b", a)
            b = await context.__aenter__()
            observed = start(b, fails if end == "raise" else waits)
            cut = world.network.partition("a", "b")

            async def observer(coro: Any = None) -> ExitNotice:
                await coro.monitor(observed.ref)
                if end == "terminate":
                    assert await observed.ref.terminate() == 0
                elif end == "worker":
                    a.bury(b.me.birth, "b/1 was killed by SIGKILL")
                elif end == "process":
                    cut.__enter__()
                notice = await coro.receive(timeout=30)
                assert isinstance(notice, ExitNotice)
                if end in ("terminate", "raise"):
                    with pytest.raises(error):
                        await observed.ref.result()
                    assert await observed.ref.is_alive() is False
                return notice

            notice = await a.run(observer)
            assert (notice.reason, type(notice.error)) == (reason, error)
            await context.__aexit__(None, None, None)

    simulate(test)


def test_sys_exit_in_a_coroutine_ends_neither_process() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:

            def exits() -> Any:
                yield
                raise SystemExit(3)

            observed = start(b, exits)

            async def asker() -> None:
                with pytest.raises(CoroEnded, match=r"SystemExit\(3\)"):
                    await observed.ref.result()

            await a.run(asker)

    simulate(test)


# ------------------------------------------------------------------ loss


def test_a_lost_peer_fails_everything_that_waits_for_it_once() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b, peer_timeout=7) as a:
            observed = start(b, waits)
            loop = asyncio.get_running_loop()

            async def observer(coro: Any = None) -> None:
                await coro.monitor(observed.ref)
                waiting = [asyncio.ensure_future(observed.ref.result()), asyncio.ensure_future(observed.ref.is_alive())]
                await asyncio.sleep(1)
                with world.network.partition("a", "b"):
                    began = loop.time()
                    notice = await coro.receive()
                    assert notice.reason == "peer lost"
                    assert 7 <= loop.time() - began <= 7 + 5
                    with pytest.raises(PeerLost, match="unreachable for 7 s"):
                        await waiting[0]
                assert await coro.receive(timeout=60, alarm_value="once") == "once"

            await a.run(observer)

    simulate(test)


def test_a_cut_loses_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(b, collects, 3000)

            async def sender() -> list[int]:
                for number in range(3000):
                    receiver.ref.send(number)
                    if number % 300 == 0:
                        world.network.cut("a", "b")
                        await asyncio.sleep(0.001)
                return list(await receiver.ref.result())

            assert await a.run(sender) == list(range(3000))

    simulate(test)


def test_a_reference_to_a_lost_worker_fails_at_once_with_the_reason() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            observed = start(b, waits)
            a.bury(b.me.birth, "b/1 was killed by SIGKILL")

            async def asker() -> None:
                for call in (observed.ref.deliver("m"), observed.ref.result()):
                    with pytest.raises(WorkerLost, match="SIGKILL"):
                        await call
                raised = set()
                for _ in range(2):
                    with pytest.raises(WorkerLost, match="SIGKILL") as caught:
                        observed.ref.send("m")
                    raised.add(caught.value)
                assert len(raised) == 2  # one that were raised again would keep the frames of every time, and what was sent
                assert await observed.ref.is_alive() is False

            await a.run(asker)

    simulate(test)


def test_a_process_that_nobody_can_dial_is_unreachable() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            stranger = CoroRef("00000000000000ff", 1, 0xFF, 1, "eve", ("127.0.0.1:9",))
            homeless = CoroRef("00000000000000ff", 1, 0xFE, 1, "eve", ())

            async def asker() -> None:
                with pytest.raises(Unreachable, match="127.0.0.1:9"):
                    await stranger.deliver("m")
                with pytest.raises(Unreachable, match="no address"):
                    await homeless.deliver("m")

            await a.run(asker)

    simulate(test)


# ------------------------------------------------------------------ requests


def test_a_request_that_nobody_serves_is_answered_with_an_error() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            plain = start(b, waits)
            with pytest.raises(ProtocolError, match="no discoro_server"):
                await a.request(plain.ref, "setup", {})
            with pytest.raises(ProtocolError, match="does not know the verb"):
                await a.ask(b.me.birth, "dance", {}, 1)

    simulate(test)


def test_a_request_times_out_and_its_late_answer_is_dropped() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            kept: list[Incoming] = []
            b.handlers["keep"] = kept.append
            with pytest.raises(Timeout, match="did not answer keep in 1 s"):
                await a.ask(b.me.birth, "keep", {}, 1)
            kept[0].reply("late")
            kept[0].reply("twice")
            await asyncio.sleep(1)
            assert not len(a._requests)

    simulate(test)


def test_a_bug_while_answering_is_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:

            def broken(incoming: Incoming) -> None:
                raise ZeroDivisionError("oops")

            b.handlers["break"] = broken
            with pytest.raises(RemoteError, match="oops"):
                await a.ask(b.me.birth, "break", {}, 1)

    simulate(test)
    assert "a bug while answering" in caplog.text


def test_an_error_brings_its_cause_along() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:

            def refusing(incoming: Incoming) -> None:
                try:
                    {}["x"]
                except KeyError as error:
                    raise Overloaded("no") from error

            b.handlers["refuse"] = refusing
            with pytest.raises(Overloaded, match="no") as caught:
                await a.ask(b.me.birth, "refuse", {}, 1)
            assert isinstance(caught.value.__cause__, KeyError)

    simulate(test)


# ------------------------------------------------------------------ names


def test_locate_here_there_and_by_a_third() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a, world.mesh("b", n) as b:
            here = start(a, waits)

            async def registering(coro: Any = None) -> None:
                assert await coro.register("there") == 0
                await waits()

            there = start(b, registering)

            async def asker() -> None:
                assert await a.register(here, "here") == 0
                assert await Coro.locate("here") == here.ref
                found = await Coro.locate("there", timeout=5)
                assert found == there.ref
                assert await found.deliver("m") == 1  # b is dialled by what the reference says of it
                assert await Coro.locate("here", location="n") == here.ref
                with pytest.raises(Timeout, match="nobody registered 'nowhere' in 3 s; nodes asked: .*n"):
                    await Coro.locate("nowhere", timeout=3)

            await a.run(asker)
            assert len(there.mailbox) == 1

    simulate(test)


def test_locate_waits_for_a_name_that_appears_later() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a, world.mesh("b", n) as b:

            async def later(coro: Any = None) -> None:
                await asyncio.sleep(20)
                await coro.register("late")
                await waits()

            coro = start(b, later)

            async def asker() -> CoroRef:
                return await Coro.locate("late")

            assert await a.run(asker) == coro.ref

    simulate(test)


@pytest.mark.parametrize("where", ["n", "other"])
def test_a_worker_locates_everywhere_by_its_node(where: str) -> None:
    async def test(world: World) -> None:
        async with (
            world.mesh("n", role="node") as n,
            world.mesh("other", n, role="node") as other,
            world.mesh("worker", role="worker") as worker,
        ):
            named = {mesh.me.name: start(mesh, waits) for mesh in (n, other)}
            await n.register(named["n"], "name")
            await other.register(named["other"], "name")
            worker.meet(n.me.birth, n.addresses)
            await until(lambda: knows(worker, n))

            async def asker() -> CoroRef:
                with pytest.raises(Timeout):
                    await Coro.locate("name", location="nowhere", timeout=3)
                return await Coro.locate("name", location=where, timeout=3)

            assert await worker.run(asker) == named[where].ref

    simulate(test)


def test_names_go_with_their_coroutine_and_with_their_process() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a:
            async with world.mesh("b", n) as b:
                short, long = start(b, waits), start(b, waits)
                await b.register(short, "short")
                await b.register(long, "long")
                assert len(n._names.known("short")) == len(n._names.known("long")) == 1
                await b.unregister(short, None)
                assert n._names.known("short") == []
                await b.register(short, "short")
                short.stop("terminated")
                await until(lambda: n._names.known("short") == [])
            await until(lambda: n._names.known("long") == [])

            async def asker() -> None:
                with pytest.raises(Timeout):
                    await Coro.locate("long", timeout=2)

            await a.run(asker)

    simulate(test)


def test_a_name_taken_twice_in_one_process_is_an_error_unless_shared() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            first, second = start(a, waits), start(a, waits)
            assert await a.register(first, "name") == 0
            assert await a.register(first, "name") == 0  # the same once more
            with pytest.raises(NameTaken, match="name"):
                await a.register(second, "name")
            assert await a.register(second, "name", shared=True) == 0
            with pytest.raises(ValueError, match="bytes"):
                await a.register(second, "x" * 300)

    simulate(test)


def test_locate_gives_one_that_is_not_busy_and_servers_all_free_ones_first() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("m", n, role="node") as m, world.mesh("a", n) as a:
            coros = [start(mesh, waits) for mesh in (n, n, m)]
            for coro in coros:
                await (n if coro is not coros[2] else m).register(coro, "discoro_server", shared=True)
            coros[0].load = 2
            coros[1].load = 1

            async def asker() -> None:
                assert await Coro.locate("discoro_server") == coros[2].ref
                assert await a.servers() == [coros[2].ref, coros[1].ref, coros[0].ref]

            await until(lambda: len(a.nodes()) == 2)  # n told it of m
            await a.run(asker)

    simulate(test)


def test_with_no_node_at_all_locate_and_servers_say_what_was_tried() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a", discover_timeout=4, peers=["127.0.0.1:9"]) as a:

            async def asker() -> None:
                for call in (Coro.locate("x"), a.servers()):
                    began = asyncio.get_running_loop().time()
                    with pytest.raises(NoNodes, match="(?s)no usable node in 4 s.*127.0.0.1:9.*discoro-node.*local=True"):
                        await call
                    assert asyncio.get_running_loop().time() - began <= 5

            await a.run(asker)

    simulate(test)


def test_nodes_tell_of_each_other() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a, world.mesh("m", n, role="node") as m:
            await until(lambda: knows(a, m) and knows(m, a))

    simulate(test)


def test_a_peer_given_by_hand_is_found_again_after_it_was_lost() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b, peer_timeout=3) as a:
            with world.network.partition("a", "b"):
                await until(lambda: not a.nodes())
            await until(lambda: knows(a, b))

    simulate(test)


# ------------------------------------------------------------------ start and end


def test_closing_ends_coroutines_and_tells_peers_at_once() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b:
            ended = []

            async def lives() -> None:
                try:
                    await waits()
                finally:
                    ended.append(True)

            async with world.mesh("a", b) as a:
                start(a, lives)
                await asyncio.sleep(0)
            assert ended == [True]
            await until(lambda: not b.nodes(), 1)

    simulate(test)


def test_run_gives_the_value_and_ends_with_its_caller() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            assert await a.run(answers, 5) == 5
            with pytest.raises(ValueError, match="bad"):
                await a.run(fails)
            task = asyncio.ensure_future(a.run(waits))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not a._coros

    simulate(test)


def test_a_start_that_fails_leaves_nothing() -> None:
    async def test(world: World) -> None:
        with pytest.raises(ConfigError, match="'no:port' is not an address"):
            async with world.mesh("a", peers=["127.0.0.1", "no:port"]):
                pass
        assert asyncio.all_tasks() == {asyncio.current_task()}

    simulate(test)


@pytest.mark.parametrize("peers", [",", " , ", "127.0.0.1:1, "])
def test_empty_places_in_the_list_of_peers_mean_nothing(peers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISCORO_PEERS", peers)

    async def test(world: World) -> None:
        async with world.mesh("a"):
            pass

    simulate(test)


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="colour"):
        Mesh(colour="red")


@pytest.mark.parametrize(
    ("given", "address"),
    [
        ("ada", "ada:24200"),
        ("ada:5", "ada:5"),
        ("10.0.0.1", "10.0.0.1:24200"),
        ("fd00::1", "[fd00::1]:24200"),
        ("[fd00::1]", "[fd00::1]:24200"),
        ("[fd00::1]:7", "[fd00::1]:7"),
    ],
)
def test_addresses_get_the_default_port(given: str, address: str) -> None:
    assert with_port(given) == address


@pytest.mark.parametrize("junk", ["", ":5", "ada:", "ada:x", "ada:0", "ada:70000"])
def test_what_is_no_address_is_refused(junk: str) -> None:
    with pytest.raises(ConfigError, match="not an address"):
        with_port(junk)


# ------------------------------------------------------------------ a node opens nothing


def test_a_server_takes_no_messages() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a:
            server = start(n, waits)
            server.service = Serving(None, "a server")  # type: ignore[arg-type]

            async def sender() -> None:
                server.ref.send("to be opened by whoever receives it")
                with pytest.raises(ProtocolError, match="no messages"):
                    await server.ref.deliver("m", timeout=5)

            await a.run(sender)
            assert (len(server.mailbox), n.lost_messages) == (0, 1)

    simulate(test)


def test_a_node_passes_causes_on_unopened(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(world: World) -> None:
        async with world.mesh("w") as w, world.mesh("n", w, role="node") as n, world.mesh("a", n) as a:

            def refusing(incoming: Incoming) -> None:
                raise Overloaded("no") from KeyError("the user's own")

            async def passing(incoming: Incoming) -> None:
                await n.ask(w.me.birth, "refuse", {}, 5)

            w.handlers["refuse"], n.handlers["refuse"] = refusing, passing
            with pytest.raises(Overloaded, match="no") as caught:
                await a.ask(n.me.birth, "refuse", {}, 5)
            assert isinstance(caught.value.__cause__, KeyError)
            assert opened == 1

    opened = 0
    unpack = payload.unpack_error

    def counting(*args: Any) -> BaseException:
        nonlocal opened
        opened += 1
        return unpack(*args)

    monkeypatch.setattr(payload, "unpack_error", counting)
    simulate(test)


def test_a_timeout_that_is_the_answer_stays_what_it_is() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:

            def late(incoming: Incoming) -> None:
                raise Timeout("it took too long over there")

            b.handlers["late"] = late
            with pytest.raises(Timeout, match="over there"):
                await a.ask(b.me.birth, "late", {}, None)

    simulate(test)


def test_the_end_of_a_worker_waits_for_the_word_of_its_node_while_that_is_linked() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a:
            place = Place(role="worker", node=n.me.node, security=OPEN, transport=partial(world.network.transport, "w"))
            options = {"name": "w", "mdns": False, "ip_addr": ["127.0.0.1"]}
            async with Mesh.placed(place, **options) as w, Mesh.placed(place, **options) as another:
                link, beside = (a.meet(each.me.birth, each.addresses) for each in (w, another))
                assert link is not None and beside is not None
                await until(lambda: link.opened and beside.opened)
                assert link.awaits_word
                a._peers.lose(another.me.birth, "gone")
                assert link.awaits_word
                a._peers.lose(n.me.birth, "gone")
                assert not link.awaits_word

    simulate(test)


def test_a_coroutine_that_has_ended_can_take_no_name() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            coro = start(a, answers, 1)
            await coro.stopped()
            with pytest.raises(NoSuchCoro, match="has ended"):
                await a.register(coro, "late")

    simulate(test)


def keyed(world: World, name: str, secret: str, **options: Any) -> Mesh:
    """A mesh with a key; "" is open. Without mDNS."""
    security = Security.from_options(secret=secret) if secret else OPEN
    place = Place(security=security, transport=partial(world.network.transport, name))
    return Mesh.placed(place, name=name, mdns=False, ip_addr=["127.0.0.1"], **options)


BOTH = "start both with the same key, or both with --open"


@pytest.mark.parametrize(
    ("ours", "theirs", "cluster", "why"),
    [
        ("a key of ours", "a key of theirs", "default", "it has another cluster key Start both with the same one; "),
        ("a key of ours", "", "default", f"it is open, this side has a key: {BOTH}"),
        ("", "a key of theirs", "default", f"it has a key, this side is open: {BOTH}"),
        ("a key of ours", "a key of ours", "lab", "b belongs to cluster 'default', not to 'lab': name the same cluster"),
    ],
)
def test_where_whoever_was_named_refuses_that_is_an_error_at_once(ours: str, theirs: str, cluster: str, why: str) -> None:
    """Without mDNS nobody else can turn up; and the text fits a terminal."""

    async def test(world: World) -> None:
        async with keyed(world, "b", theirs) as b:
            address = b.addresses[0]
            async with keyed(world, "a", ours, cluster=cluster, peers=[address]) as a:
                begun = asyncio.get_running_loop().time()
                with pytest.raises(NoNodes, match="no usable node: whoever was named refuses this side") as caught:
                    await a.servers()
                assert asyncio.get_running_loop().time() - begun < 1
        text = str(caught.value)
        assert f"{address}: {why}" in " ".join(text.split())
        assert max(map(len, text.splitlines())) <= 80
        assert ("Start both with the same one" in text) is ("another cluster key" in why)
        assert "discoro join" not in text, "it would change a key file, which is not used"

    simulate(test)


def test_one_that_refuses_ends_no_search_while_another_may_still_start() -> None:
    async def test(world: World) -> None:
        async with keyed(world, "b", "a key of theirs") as b:
            addresses = [b.addresses[0], "127.0.0.1:9"]
            async with keyed(world, "a", "a key of ours", peers=addresses, discover_timeout=4) as a:
                begun = asyncio.get_running_loop().time()
                with pytest.raises(NoNodes, match="no usable node in 4 s"):
                    await a.servers()
                assert asyncio.get_running_loop().time() - begun >= 4

    simulate(test)


def test_a_node_tells_of_the_end_of_its_own_workers_only() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a, world.mesh("n", a, role="node") as n:
            with pytest.raises(ProtocolError, match="its own workers"):
                await n.ask(a.me.birth, "lost", {"birth": b.me.birth, "how": "so it says"}, 1)
            with pytest.raises(ProtocolError, match="only a node"):
                await b.ask(a.me.birth, "lost", {"birth": 5, "how": "so it says"}, 1)
            assert knows(a, b)

    simulate(test)


# ------------------------------------------------------------------ links between coroutines


def test_a_link_that_could_not_be_made_on_both_sides_is_none() -> None:
    """Who was out of reach while it was to be linked with would not end with the other."""

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            there, here = start(b, waits), start(a, waits)

            async def links() -> int:
                return await here.link(there.ref)

            with world.network.partition("a", "b"):
                linking = start(a, links)
                await until(lambda: here.done)
            assert not there.done
            with pytest.raises(CoroEnded, match="linked with it, .* was lost"):
                await here.result_here()
            assert await linking.result_here() == 0

    simulate(test)


def test_who_asks_late_gets_the_notice_behind_messages_that_are_held_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailbox, "MAILBOX_MESSAGES", 4)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            receiver = start(a, waits)

            async def floods() -> None:
                for number in range(4):
                    receiver.ref.send(number)
                await until(lambda: b.sending.holding.is_full(receiver.ref))
                receiver.ref.send(4)

            sender = start(b, floods)
            await sender.result_here()
            await receiver.monitor(sender.ref)
            got = []
            while not got or not isinstance(got[-1], ExitNotice):
                await until(lambda: len(receiver.mailbox) > 0)
                got.append(receiver.mailbox.take(None))
                if receiver.held and receiver.mailbox.half_empty:
                    a.drained(receiver)
            assert got[:-1] == [0, 1, 2, 3, 4]

    simulate(test)


def test_to_link_again_and_to_be_given_up_in_that_leaves_the_link_as_it_is() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            there = start(b, waits)

            async def links_twice(coro: Any = None) -> None:
                await coro.link(there.ref)
                coro.stop("terminated")
                await coro.link(there.ref)

            here = start(a, links_twice)
            await until(lambda: there.done)
            assert here.done
            with pytest.raises(CoroEnded, match="linked with it"):
                await there.result_here()

    simulate(test)


def test_only_the_last_of_those_who_are_gone_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mesh_module, "KEPT_DEAD", 2)

    async def main(world: World) -> None:
        async with world.mesh("one") as mesh:
            for birth in (1, 2, 3):
                mesh.ended(birth, PeerLost(f"{birth} is gone"))
            assert [str(mesh.how_it_ended(birth)) for birth in (1, 2, 3)] == ["None", "2 is gone", "3 is gone"]

    simulate(main)
