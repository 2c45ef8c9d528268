"""Computations that outlive their client: kept by the node, found again by name, taken over, and ended."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import keeping, takeover
from discoro import node as node_module
from discoro.computation import LONGEST_KEPT, Computation
from discoro.errors import ConfigError, CoroEnded, NameTaken, NotSetUp, ProtocolError, SetupFailed, Timeout, WorkerLost
from discoro.keeping import MAX_KEPT, seconds_of
from discoro.mesh import Mesh
from discoro.messages import Greeting
from discoro.node import Node, NodeOptions
from discoro.takeover import Detached, detached, take_over
from tests.support.nodes import client_of, files_below, in_thread, node_here, until_ended

Work = Callable[[Node], Awaitable[None]]


def with_node(tmp_path: Path, work: Work, slots: int = 1) -> None:
    """Run this with a node; afterwards nothing of it is left."""

    async def main() -> None:
        async with node_here(tmp_path, slots) as node:
            await work(node)

    asyncio.run(asyncio.wait_for(main(), 150))
    assert files_below(tmp_path / "files") == []


# What runs in workers.


def count(coro: Any = None) -> Iterator[Any]:
    """Answers every question with how many came so far, and what the file says that came with it."""
    total = 0
    yield coro.register("counter")
    while True:
        if (yield coro.receive()) == "end":
            return total
        total += 1
        coro.reply((total, Path("data").read_text() if Path("data").exists() else ""))


def leave_a_word(where: str, coro: Any = None) -> Iterator[Any]:
    try:
        yield coro.receive()
        coro.reply("it runs")
        yield coro.receive()
    finally:
        Path(where).write_text("ended in order")


def spin(coro: Any = None) -> Iterator[Any]:
    yield None
    while True:
        pass


async def kept(node: Node, function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, Any, int]:
    """A computation that its client leaves behind, with one coroutine; its server, the coroutine, and its worker's pid."""
    async with client_of(node, "first"):
        server = await discoro.Coro.locate("discoro_server")
        computation = Computation(function, **{"detach": True, **options})
        await computation.setup(server)
        ref = await computation.run(server, *args)
        if function is not spin:
            await ref.ask("?")
    return server, ref, ref.pid


async def until_alone(node: Node, alone: bool = True) -> None:
    """Until the node knows whether what it keeps has an owner."""
    while any((each.alone is not None) is not alone for each in node.keeping):
        await asyncio.sleep(0.01)


# Bad input first.


@pytest.mark.parametrize("detach", [0, -1, float("nan"), float("inf"), LONGEST_KEPT + 1, "yes", None])
def test_a_detach_that_is_none(detach: Any) -> None:
    with pytest.raises(ConfigError, match="detach=.* seconds"):
        Computation(count, detach=detach)
    with pytest.raises(ProtocolError, match="detach"):
        seconds_of(detach)


@pytest.mark.parametrize("name", ["", 3, "x" * 1000])
def test_a_name_that_is_none(name: Any) -> None:
    with pytest.raises(ConfigError, match="name="):
        Computation(count, name=name)


def test_what_is_not_there_cannot_be_taken_over(tmp_path: Path) -> None:
    """Not what is unknown, not what was not detached, and not with a name that is none."""

    async def work(node: Node) -> None:
        async with client_of(node):
            server = await discoro.Coro.locate("discoro_server")
            computation = Computation(leave_a_word)
            await computation.setup(server)
            assert await detached() == []
            with pytest.raises(NotSetUp, match="'leave_a_word'; nodes asked: node"):
                await take_over("leave_a_word")
            with pytest.raises(NotSetUp, match="not set up with detach"):
                await Computation.taken_over("leave_a_word", computation._id, [server])
            with pytest.raises(NotSetUp, match="not set up here"):
                await Computation.taken_over("count", "0" * 32, [server])
            for wrong in (3, None, computation):
                with pytest.raises(ConfigError, match="take_over takes"):
                    await take_over(wrong)  # type: ignore[arg-type]
            with pytest.raises(ConfigError, match="is a text"):
                await detached(3)  # type: ignore[arg-type]
            await computation.close(server)

    with_node(tmp_path, work)


def test_a_server_of_ones_own_keeps_nothing() -> None:
    async def main() -> None:
        async with discoro.Mesh(ip_addr=["127.0.0.1"], mdns=False, open=True):
            server = discoro.Coro(discoro.discoro_server)
            with pytest.raises(SetupFailed, match="program's own and ends with it"):
                await Computation(leave_a_word, detach=True).setup(server)

    asyncio.run(asyncio.wait_for(main(), 150))


# The life of a detached computation.


def test_another_client_finds_it_by_name_and_takes_it_over(tmp_path: Path) -> None:
    """Coroutines with what they know, names, files, and results of those that ended meanwhile: all is there; close ends it."""
    (tmp_path / "data").write_text("from the first client")

    async def work(node: Node) -> None:
        _, ref, pid = await kept(node, count, depends=[str(tmp_path / "data")], name="my counter")
        await until_alone(node)
        async with client_of(node, "second"):
            (found,) = await detached("my counter")
            assert (found.name, found.node, found.worker) == ("my counter", "node", f"node/{pid}")
            assert found.owner.startswith("first/") and found.lasts is None
            assert found.alone is not None and 0 <= found.alone <= found.age
            assert await detached("another") == []
            assert await (await discoro.Coro.locate("counter")).ask("?") == (2, "from the first client")
            computation = await take_over("my counter")
            (server,) = computation.servers
            assert await computation.coroutines(server) == ([ref], [])
            assert await computation.ping(server) == 0
            assert await ref.ask("?") == (3, "from the first client")
            ref.send("end")
            assert await ref.result() == 3
            another = await computation.run(server)
            assert await another.ask("?") == (1, "from the first client")
            assert await computation.coroutines(server) == ([another], [ref])
        await until_alone(node)
        async with client_of(node, "third"):
            computation = await take_over("my counter")
            (found,) = await detached()
            assert found.owner.startswith("third/") and found.alone is None
            running, ended = await computation.coroutines(server)
            assert await ended[0].result() == 3, "the result is kept for who asks"
            with pytest.raises(ConfigError, match="taken over: its code is not here"):
                await computation.setup(server)
            await computation.close(server)
            assert await detached() == []
            with pytest.raises(NotSetUp):
                await computation.ping(server)
        await in_thread(until_ended, [pid], 10)

    with_node(tmp_path, work)


def test_what_is_not_detached_ends_beside_it(tmp_path: Path) -> None:
    """A detached computation has a worker of its own; the client's others end with the client."""

    async def work(node: Node) -> None:
        async with client_of(node, "first"):
            server = await discoro.Coro.locate("discoro_server")
            stays, ends = Computation(count, detach=True), Computation(leave_a_word)
            for each in (ends, stays):
                await each.setup(server)
            word = tmp_path / "word"
            assert await (await ends.run(server, str(word))).ask("?") == "it runs"
            workers = {worker.detached: worker for worker in node.slots[0]._here()}
        await asyncio.wait([workers[False].gone])
        assert word.read_text() == "ended in order"
        assert node.slots[0]._here() == [workers[True]]

    with_node(tmp_path, work)


def test_a_name_taken_twice(tmp_path: Path) -> None:
    """On one node it is refused, and changes nothing; on two nodes whoever takes over must say which."""

    async def work(node: Node) -> None:
        await kept(node, count, name="mine")
        async with node_here(tmp_path / "2") as second, client_of(node) as mesh:
            server = await discoro.Coro.locate("discoro_server")
            other = Computation(leave_a_word, detach=True, name="mine")
            with pytest.raises(NameTaken, match="'mine', of first/.* take that over"):
                await other.setup(server)
            with pytest.raises(NotSetUp):
                await other.ping(server)
            assert len(await detached("mine")) == 1 and len(node.slots[0]._here()) == 1
            await mesh.peer(second.mesh.addresses[0])
            await other.setup(second.slots[0].coro)
            with pytest.raises(NameTaken, match="different detached computations"):
                await take_over("mine")
            first = next(each for each in await detached("mine") if each.server == server)
            assert (await take_over(first)).servers == [server]

    with_node(tmp_path, work)


def test_a_slot_keeps_so_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeping, "MAX_KEPT", 1)

    async def work(node: Node) -> None:
        await kept(node, count)
        async with client_of(node):
            server = await discoro.Coro.locate("discoro_server")
            with pytest.raises(SetupFailed, match="keeps 1 detached computations: close one"):
                await Computation(leave_a_word, detach=True).setup(server)
            assert await Computation(leave_a_word).setup(server) == 0, "others find their place"

    assert MAX_KEPT < node_module.WORKERS_PER_SLOT
    with_node(tmp_path, work)


# Its end.


def test_it_ends_after_so_long_without_an_owner(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """In order; and the node has said what it kept, and for how long."""

    async def work(node: Node) -> None:
        _, ref, pid = await kept(node, leave_a_word, str(tmp_path / "word"), detach=0.2)
        await in_thread(until_ended, [pid], 20)
        assert (tmp_path / "word").read_text() == "ended in order"
        async with client_of(node):
            assert await detached() == []
            with pytest.raises(WorkerLost, match="nobody owned it for 0.2 s"):
                await ref.result()

    with_node(tmp_path, work)
    assert "keeps leave_a_word of first/" in caplog.text and "no more" in caplog.text


def test_a_busy_one_ends_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "LOST_TIMEOUT", 0.2)

    async def work(node: Node) -> None:
        *_, pid = await kept(node, spin, detach=0.1)
        await in_thread(until_ended, [pid], 20)

    with_node(tmp_path, work)


def test_who_takes_it_over_saves_it(tmp_path: Path) -> None:
    """Its clock stops, and begins anew when that one is gone; the former owner's handle still works."""

    async def work(node: Node) -> None:
        async with client_of(node, "first"):
            server = await discoro.Coro.locate("discoro_server")
            computation = Computation(count, detach=3600)
            await computation.setup(server)
            async with client_of(node, "second"):
                await take_over("count")
                (found,) = await detached()
                assert found.owner.startswith("second/") and found.lasts == 3600
            await until_alone(node)
            (only,) = node.keeping
            assert only.watch is not None
            assert await computation.ping(server) == 0
            await computation.close(server)
            assert list(node.keeping) == []

    with_node(tmp_path, work)


def test_who_lost_it_to_another_cannot_set_it_up_and_a_drain_waits_for_owners_only(tmp_path: Path) -> None:
    async def takes(node: Node, taken: asyncio.Event, leave: asyncio.Event) -> None:
        async with client_of(node, "second"):
            await take_over("count")
            taken.set()
            await leave.wait()

    async def work(node: Node) -> None:
        async with client_of(node, "first"):
            server = await discoro.Coro.locate("discoro_server")
            computation = Computation(count, detach=True)
            await computation.setup(server)
            taken, leave = asyncio.Event(), asyncio.Event()
            second = asyncio.create_task(takes(node, taken, leave))
            await taken.wait()
            with pytest.raises(SetupFailed, match="count was taken over by second/.*: take it over first"):
                await computation.setup(server)
            assert not await node.drain(0.5) and len(node.open_here()) == 1
            leave.set()
            await second
            await until_alone(node)
            assert await node.drain(30) and node.open_here() == []
            assert await computation.ping(server) == 0

    with_node(tmp_path, work)


def test_an_owner_that_comes_back_owns_it_again(tmp_path: Path) -> None:
    """Under the same birth, after both sides gave the link up; what it had not detached is gone, and it is told why."""

    async def work(node: Node) -> None:
        async with client_of(node) as mesh:
            server = await discoro.Coro.locate("discoro_server")
            stays, ends = Computation(count, detach=True), Computation(leave_a_word)
            for each in (stays, ends):
                await each.setup(server)
            (peer,) = [each for each in mesh.peers() if each.role == "node"]
            await mesh.close_peer(peer)
            await until_alone(node)
            await mesh.peer(node.mesh.addresses[0])
            await until_alone(node, False)
            assert await stays.ping(server) == 0
            with pytest.raises(WorkerLost, match="leave_a_word is gone .* closed: its client client/.*Call setup again"):
                await ends.ping(server)
            assert await ends.setup(server) == 0 == await ends.ping(server)

    with_node(tmp_path, work)


def test_it_is_set_up_again_with_other_files(tmp_path: Path) -> None:
    """The old coroutine goes on in the old worker, the new one has the new file; both stay when the client is gone."""
    data = tmp_path / "data"
    data.write_text("")

    async def work(node: Node) -> None:
        async with client_of(node, "first"):
            server = await discoro.Coro.locate("discoro_server")
            computation = Computation(count, [str(data)], detach=True)
            refs = []
            for text in ("old", "new"):
                data.write_text(text)
                await computation.setup(server)
                refs.append(await computation.run(server))
        await until_alone(node)
        async with client_of(node, "second"):
            computation = await take_over("count")
            assert [await ref.ask("?") for ref in refs] == [(1, "old"), (1, "new")]
            assert await computation.coroutines(server) == ([refs[1]], [])
            await computation.close(server)
            for ref in refs:
                with pytest.raises((CoroEnded, WorkerLost)):
                    await ref.result()

    with_node(tmp_path, work)


def test_a_worker_that_dies_is_kept_no_more(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def work(node: Node) -> None:
        server, ref, pid = await kept(node, count)
        await until_alone(node)
        (worker,) = node.slots[0]._here()
        worker.child.signal(9)
        await asyncio.wait([worker.gone])
        assert list(node.keeping) == []
        async with client_of(node):
            assert await detached() == []

    with_node(tmp_path, work)
    assert "keeps count of first/" in caplog.text


def test_a_node_that_does_not_answer_hides_nothing_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    really, silent = takeover._kept_at, ["stopped"]

    async def kept_at(mesh: Mesh, node: Greeting) -> list[Detached]:
        if node.name in silent:
            raise Timeout(f"{node.name} did not answer 'detached' within 5 s")
        return await really(mesh, node)

    async def work(node: Node) -> None:
        await kept(node, count)
        async with client_of(node) as mesh:
            await mesh.servers()
            (itself,) = [each for each in mesh.nodes() if each.role == "node"]
            mesh.nodes = lambda: [itself._replace(name="stopped"), itself]  # type: ignore[method-assign]
            assert [each.name for each in await detached()] == ["count"]
            assert "what this node keeps is missing: stopped did not answer" in caplog.text
            silent.append(itself.name)
            with pytest.raises(Timeout, match="stopped did not answer"):
                await detached()

    monkeypatch.setattr(takeover, "_kept_at", kept_at)
    with_node(tmp_path, work)


def test_the_node_says_again_what_it_keeps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(keeping, "SAY_AGAIN", 0.01)

    async def work(node: Node) -> None:
        await kept(node, count)
        while caplog.text.count("kept until it is closed") < 3:
            await asyncio.sleep(0.01)

    caplog.set_level(logging.WARNING)
    with_node(tmp_path, work)


def test_ordinary_code_has_the_same(tmp_path: Path) -> None:
    """BlockingMesh: left behind, found, taken over, closed."""

    def options(node: Node, name: str) -> dict[str, Any]:
        where = {"peers": node.mesh.addresses, "ip_addr": ["127.0.0.1"], "mdns": False}
        return {"name": name, "key_file": tmp_path / "cluster.key", **where}

    def leave(node: Node) -> None:
        with discoro.BlockingMesh(**options(node, "first")) as mesh:
            server = mesh.locate("discoro_server", timeout=30)
            computation = mesh.computation(count, detach=True, name="mine")
            computation.setup(server)
            assert computation.run(server).ask("?") == (1, "")

    def come_back(node: Node) -> None:
        with discoro.BlockingMesh(**options(node, "second")) as mesh:
            (found,) = mesh.detached("mine")
            computation = mesh.take_over(found)
            (server,) = computation.servers
            running, ended = computation.coroutines(server)
            assert [coro.ask("?") for coro in running] == [(2, "")] and ended == []
            computation.close(server)
            assert mesh.detached() == []

    async def main() -> None:
        where = {"key_file": tmp_path / "cluster.key", "ip_addr": ["127.0.0.1"], "mdns": False}
        async with Node(NodeOptions(1, port=0, dest_path=tmp_path / "files"), **where) as node:
            await in_thread(leave, node)
            await in_thread(come_back, node)

    asyncio.run(asyncio.wait_for(main(), 150))
