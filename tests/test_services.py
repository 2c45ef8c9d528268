"""What channels, queues and offered functions have in common: names, values that travel, and how a request is withdrawn."""

from __future__ import annotations

import asyncio
import pickle
from typing import Any

import pytest

from discoro import RCI, Channel, ConfigError, Coro, CoroRef, NameTaken, NoMesh, NoSuchCoro, ProtocolError, Queue, QueueClosed
from discoro.mesh import Mesh
from discoro.messages import MAX_NAME
from discoro.requests import Incoming
from discoro.services import Served, number_in, registered_name
from tests.support.meshes import World, simulate, start, until


async def rests() -> None:
    await asyncio.get_running_loop().create_future()


MAKERS = {"channel": lambda: Channel("news"), "queue": lambda: Queue(2, "news"), "rci": lambda: RCI(rests, "news")}


async def make(mesh: Mesh, kind: str) -> Any:
    async def makes() -> Any:
        return MAKERS[kind]()

    return await mesh.run(makes)


async def does(mesh: Mesh, operation: Any, *args: Any) -> Any:
    async def run() -> Any:
        return await operation(*args)

    return await mesh.run(run)


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("name", ["", None, 7, b"news", ["news"]])
def test_what_is_no_name_is_refused_at_once_and_by_the_other_side(kind: str, name: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            made = await make(b, kind)
            for mesh in (a, b):
                if name is not None:  # its own
                    with pytest.raises(ConfigError, match=f"the name of a {kind} is a text of 1 to"):
                        await does(mesh, made.register, name)
                with pytest.raises(ConfigError):
                    await mesh.request(made.ref, "register", {"name": name})
                with pytest.raises(ConfigError):
                    await does(mesh, type(made).locate, name)
            assert await does(a, made.register) == 0

    simulate(test)


def test_a_name_is_measured_in_bytes_with_its_kind() -> None:
    longest = "ä" * ((MAX_NAME - len("queue:")) // 2)
    assert registered_name("queue", longest) == f"queue:{longest}"
    with pytest.raises(ConfigError):
        registered_name("queue", longest + "ää")


@pytest.mark.parametrize("value", [None, "7", 7.0, -1, True, [7]])
def test_a_number_in_a_request_is_one(value: Any) -> None:
    incoming = Incoming(None, 1, "took", {"id": value}, (), lambda *answer: None)  # type: ignore[arg-type]
    with pytest.raises(ProtocolError, match="took without the number id"):
        number_in(incoming, "id")
    assert number_in(incoming, "other", 5) == 5


@pytest.mark.parametrize("kind", MAKERS)
def test_it_travels_as_a_small_value(kind: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            first, second = await make(a, kind), await make(a, kind)
            same = pickle.loads(pickle.dumps(first))
            assert same == first and same is not first and hash(same) == hash(first) and type(same) is type(first)
            assert first != second and len({first, second, same}) == 2
            assert first != first.ref and first.ref != first, "it is no coroutine"
            assert (str(same), repr(same)) == (f"{kind} news ({first.ref})", f"<{type(first).__name__} news {first.ref}>")
            assert (same.name, same.ref) == ("news", first.ref)
            assert len(pickle.dumps(first)) < 300
            with pytest.raises(AttributeError):
                first.other = 1

    simulate(test)


@pytest.mark.parametrize("kind", MAKERS)
def test_its_names_come_and_go_from_anywhere_and_end_with_it(kind: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            made, other = await make(b, kind), await make(b, kind)
            assert await does(a, made.register) == await does(a, made.register, "second") == 0
            with pytest.raises(NameTaken):
                await does(a, other.register)
            for name in ("news", "second"):
                assert await does(a, type(made).locate, name) == made
            assert await does(a, made.unregister, "news") == await does(a, made.unregister, "never was") == 0
            assert await does(a, other.register) == 0
            assert await does(a, made.close) == await does(b, made.close) == 0
            with pytest.raises(TimeoutError):
                await does(a, type(made).locate, "second", None, 1)
            gone = QueueClosed if kind == "queue" else NoSuchCoro
            for mesh in (a, b):
                for operation in (made.register, made.unregister):
                    with pytest.raises(gone, match=rf"{kind} news \(.*\) has ended"):
                        await does(mesh, operation)

    simulate(test)


OPERATIONS: dict[type[Served], tuple[Any, ...]] = {
    Channel: (lambda it: it.deliver("m"), lambda it: it.subscribe(it.ref), lambda it: it.set_transform(None)),
    Queue: (lambda it: it.put("item"), lambda it: it.get(), lambda it: it.size()),
    RCI: (lambda it: it(),),
}


@pytest.mark.parametrize("stands_for", OPERATIONS)
@pytest.mark.parametrize("home", ["a", "b"])
def test_a_value_that_stands_for_another_kind_finds_no_answer(stands_for: type[Served], home: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            at = {"a": a, "b": b}[home]
            others = [(await make(at, kind)).ref for kind in MAKERS if kind != stands_for.KIND]
            for ref in others:
                for operation in OPERATIONS[stands_for]:
                    with pytest.raises(ProtocolError):
                        await does(a, operation, stands_for._of(ref, "wrong"))

    simulate(test)


@pytest.mark.parametrize("stands_for", OPERATIONS)
def test_without_a_mesh_nothing_is_done(stands_for: type[Served]) -> None:
    made = stands_for._of(CoroRef("node", 1, 2, 3, "ada"), "news")
    for operation in (*OPERATIONS[stands_for], lambda it: it.close(), lambda it: it.register()):
        with pytest.raises(NoMesh):
            asyncio.run(operation(made))


@pytest.mark.parametrize("kind", MAKERS)
def test_it_ends_like_a_coroutine_and_is_watched_like_one(kind: str) -> None:
    async def watches(made: Any, end: str, coro: Any = None) -> str:
        await coro.monitor(made.ref)
        assert await made.ref.is_alive()
        await (made.ref.terminate() if end == "terminated" else made.close())
        notice = await coro.receive(5)
        assert notice.ref == made.ref and await coro.receive(1, "once") == "once"
        assert not await made.ref.is_alive()
        return str(notice.reason)

    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            for mesh in (a, b):
                assert await start(mesh, watches, await make(a, kind), "terminated").result_here() == "terminated"
                closed = "channel closed" if kind == "channel" else "normal"
                assert await start(mesh, watches, await make(a, kind), "closed").result_here() == closed
            assert not [coro for coro in a.coros() if coro.service is not None]

    simulate(test)


@pytest.mark.parametrize("kind", MAKERS)
def test_who_makes_it_does_not_have_it_for_a_child(kind: str) -> None:
    async def makes(coro: Any = None) -> Any:
        made = MAKERS[kind]()
        assert coro.children() == []
        return made

    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            maker = start(a, makes)
            made = await maker.result_here()
            assert isinstance(maker, Coro) and maker.done and a.coro(made.ref.id) is not None
            assert await does(a, made.close) == 0
            await until(lambda: a.coro(made.ref.id) is None)

    simulate(test)
