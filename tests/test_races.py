"""What comes late, or while something else is being done: given up in the middle, collected, asked of one that has ended."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from discoro import messages, payload
from discoro.channels import Channel
from discoro.coro import Coro
from discoro.errors import NoReply, ProtocolError, Timeout, TooLarge
from discoro.hubs import Hub
from discoro.link import Link
from discoro.mailbox import Question
from discoro.mesh import Mesh
from discoro.messages import Exit
from discoro.queues import Queue
from discoro.server import Serving
from discoro.services import Home
from tests.support.meshes import World, simulate, start, until

OPENED: list[str] = []


def opened(where: str) -> str:
    OPENED.append(where)
    return where


class Marked:
    """Says so when it is unpacked."""

    def __reduce__(self) -> Any:
        return opened, ("unpacked",)


async def waits(coro: Any = None) -> Any:
    return await coro.receive()


async def stays() -> None:
    await asyncio.get_running_loop().create_future()


# ------------------------------------------------------------------ a node opens nothing


def test_a_node_opens_no_error_that_it_is_told_of() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a:
            link = a._peers.get(n.me.birth)
            assert link is not None
            a._peers.post(link, Exit(1, "exception", "bad", payload.pack_error(ValueError(Marked()))))
            await until(a._peers.idle)
            await asyncio.sleep(5)  # of the moved clock: by then a client says it in its log

    OPENED.clear()
    simulate(test)
    assert OPENED == []


VERBS = "deliver ask resume throw swap subscribed unsubscribed send put call transform".split()


@pytest.mark.parametrize("verb", VERBS)
def test_the_server_of_a_node_opens_no_body_whatever_is_asked(verb: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("a", n) as a:
            server = start(n, waits)
            server.service = Serving(None, "a server")  # type: ignore[arg-type]
            for body in (payload.pack(Marked()), payload.pack_error(ValueError(Marked())), payload.pack_code([Marked()])):
                with pytest.raises(ProtocolError):
                    await a.request(server.ref, verb, {"channel": server.ref.to_plain()}, body)
                with pytest.raises(ProtocolError):
                    await n.request(server.ref, verb, {"channel": server.ref.to_plain()}, body)
            with pytest.raises(ProtocolError):
                await a.ask(n.me.birth, verb, {}, 5)

    OPENED.clear()
    simulate(test)
    assert OPENED == []


# ------------------------------------------------------------------ replies


async def asked_by(a: Mesh, to: Coro, timeout: float | None = None) -> Any:
    async def asks() -> Any:
        return await to.ref.ask("question", timeout)

    return await a.run(asks)


def in_a_thread(function: Any, *args: Any) -> Any:
    """While the loop stands still, and with it its clock."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(function, *args).result(5)


@pytest.mark.parametrize("far", [False, True])
def test_a_question_may_fail_with_a_timeout_error_of_its_own(far: bool) -> None:
    async def answers(coro: Any = None) -> None:
        await coro.receive()
        coro.question.fail(TimeoutError("what it asked took too long"))

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            with pytest.raises(TimeoutError, match="took too long") as caught:
                await asked_by(a if far else b, start(b, answers))
            assert not isinstance(caught.value, Timeout)

    simulate(test)


def test_a_deliver_to_a_channel_whose_transform_runs_out_of_time_says_so() -> None:
    def slow(name: str, message: Any) -> Any:
        raise TimeoutError("the transform's own")

    async def makes() -> Channel:
        return Channel("news", slow)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            channel = await b.run(makes)

            async def delivers() -> int:
                return await channel.ref.deliver("message")

            with pytest.raises(TimeoutError, match="the transform's own"):
                await a.run(delivers)

    simulate(test)


def test_a_reply_from_a_thread_that_is_too_large_is_said_there_and_another_may_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    async def answers(coro: Any = None) -> None:
        await coro.receive()
        question = coro.question
        with pytest.raises(TooLarge):
            in_a_thread(question.reply, bytes(20_000))
        assert in_a_thread(question.reply, "small") == 1

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            monkeypatch.setattr(messages, "MAX_MESSAGE", 10_000)
            answering = start(b, answers)
            assert await asked_by(a, answering, 60) == "small"
            await answering.result_here()

    simulate(test)


def test_a_question_that_is_collected_sends_nothing_in_the_middle_of_what_is_being_done() -> None:
    """The collector may run anywhere, within the sending of another operation too."""
    at_once: list[bool] = []

    async def drops(coro: Any = None) -> None:
        await coro.receive()
        ring: list[Any] = [coro.question]
        ring.append(ring)
        del ring
        await asyncio.sleep(1)  # what came is acknowledged by now
        gc.collect()
        at_once.append(not current.idle())
        await coro.receive()

    async def test(world: World) -> None:
        nonlocal current
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            current = b._peers
            with pytest.raises(NoReply, match="dropped the question"):
                await asked_by(a, start(b, drops), 60)

    current: Any = None
    simulate(test)
    assert at_once == [False]


def test_a_question_is_answered_once_by_whoever_is_first() -> None:
    answers: list[Any] = []
    question = Question("somebody", lambda value, error: answers.append(value))
    assert (question.reply(1), question.reply(2), question.fail(ValueError())) == (1, 0, 0)
    assert answers == [1]


# ------------------------------------------------------------------ half done


@pytest.mark.parametrize("far", [False, True])
def test_a_link_that_is_given_up_in_the_middle_binds_neither(far: bool) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            other = start(b if far else a, waits)

            async def links(coro: Any = None) -> None:
                linking = asyncio.ensure_future(coro.link(other.ref))
                while not a._requests._open:
                    await asyncio.sleep(0)
                linking.cancel()
                await asyncio.wait([linking])
                await coro.receive(1)
                raise ValueError("bad")

            with pytest.raises(ValueError, match="bad"):
                await start(a, links).result_here()
            await asyncio.sleep(5)
            assert not other.done
            assert (a._exits._followers, b._exits._followers) == ({}, {})

    simulate(test)


@pytest.mark.parametrize("far", [False, True])
def test_a_second_link_that_is_given_up_leaves_the_first(far: bool) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            other = start(b if far else a, waits)

            async def links(coro: Any = None) -> None:
                await coro.link(other.ref)
                again = asyncio.ensure_future(coro.link(other.ref))
                while not a._requests._open:
                    await asyncio.sleep(0)
                again.cancel()
                await asyncio.wait([again])
                await coro.receive(1)
                raise ValueError("bad")

            with pytest.raises(ValueError, match="bad"):
                await start(a, links).result_here()
            await until(lambda: other.done, 5)

    simulate(test)


def test_what_a_coroutine_was_linked_with_or_given_up_to_monitor_is_not_kept() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            other, third = start(b, waits), start(b, waits)

            async def links(coro: Any = None) -> Any:
                await coro.link(other.ref)
                await coro.unlink(other.ref)
                monitoring = asyncio.ensure_future(coro.monitor(third.ref))
                await asyncio.sleep(0)
                monitoring.cancel()
                await asyncio.wait([monitoring])
                return a._exits._observed.get(coro.ref.id)

            assert not await a.run(links)
            assert not b._exits._observed.get(other.ref.id)

    simulate(test)


def test_a_delivery_that_is_given_up_is_withdrawn_behind_it() -> None:
    """The message is large, and takes several frames; the withdrawal is small, and would overtake it."""

    async def makes(further: Channel | None = None) -> Channel:
        channel = Channel("news")
        if further is not None:
            await channel.subscribe(further)
        return channel

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            far = await b.run(makes)
            near = await a.run(makes, far)
            full = start(b, stays)

            async def subscribes() -> None:
                await far.subscribe(full)

            async def delivers() -> None:
                with pytest.raises(Timeout):
                    await near.deliver(bytes(messages.MIB * 8), timeout=0)

            await b.run(subscribes)
            full.mailbox.put_packed([bytes(messages.MIB * 32)])
            await a.run(delivers)
            await until(a._peers.idle)
            await asyncio.sleep(5)
            hub = home(b, far)
            assert isinstance(hub, Hub)
            assert not hub._deliveries

    simulate(test)


def home(mesh: Mesh, served: Any) -> Home:
    coro = mesh.coro(served.ref.id)
    assert coro is not None
    assert isinstance(coro.service, Home)
    return coro.service


def test_items_under_way_are_bounded_as_those_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def makes() -> Queue:
        queue = Queue()
        for number in range(10):
            await queue.put(number)
        return queue

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            queue = await b.run(makes)
            monkeypatch.setattr("discoro.queues.MAX_WAITING", 3)
            said = []
            for number in range(5):  # and it never says that they arrived
                try:
                    said.append(payload.unpack((await a.request(queue.ref, "get", {"id": number + 1})).body))
                except Exception as error:
                    said.append(type(error).__name__)
            assert said == [0, 1, 2, "Overloaded", "Overloaded"]

    simulate(test)


def test_who_hears_of_an_end_finds_the_name_no_more() -> None:
    async def goes_by(name: str, coro: Any = None) -> None:
        await coro.register(name)
        await coro.receive()

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            named = start(b, goes_by, "charles")
            await until(lambda: bool(a._names.known("charles")))
            came: list[Any] = []
            handle = a.operation

            def operation(link: Link, operation: messages.Operation) -> None:
                came.append((type(operation).__name__, a._names.known("charles")))
                handle(link, operation)

            a.operation = operation  # type: ignore[method-assign]

            async def ends() -> None:
                monitoring = asyncio.ensure_future(named.ref.result())
                await asyncio.sleep(1)
                named.ref.send("end")
                await monitoring

            await a.run(ends)
            assert ("Exit", []) in came

    simulate(test)
