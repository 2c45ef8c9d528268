"""Functions offered by name, among meshes in one process: where their coroutines run, whose they are, how a call fails."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Generator
from functools import partial
from typing import Any

import pytest

from discoro import (
    RCI,
    BadArguments,
    Channel,
    ConfigError,
    Coro,
    CoroEnded,
    CoroRef,
    ExitNotice,
    NameTaken,
    NoMesh,
    NoSuchCoro,
    NotACoroutine,
    PackError,
    PeerLost,
    ProtocolError,
    Queue,
    RemoteError,
    Timeout,
    UnpackError,
    current_coro,
    payload,
)
from discoro.mesh import Mesh
from tests.support.meshes import World, simulate, start, until


async def whereabouts(*args: Any, coro: Any = None, **kwargs: Any) -> Any:
    return coro.ref.birth, coro.namespace, args, kwargs


def generator(number: int) -> Generator[Any, Any, int]:
    yield
    return number + 1


async def lasts() -> None:
    await asyncio.get_running_loop().create_future()


async def fails() -> None:
    raise ValueError("bad")


async def offer(mesh: Mesh, function: Callable[..., Any], name: str | None = None) -> RCI:
    """An offer of that mesh."""

    async def makes() -> RCI:
        return RCI(function, name)

    made = await mesh.run(makes)
    assert isinstance(made, RCI)
    return made


async def does(mesh: Mesh, operation: Callable[..., Awaitable[Any]], *args: Any, **kwargs: Any) -> Any:
    """The result of an operation, made in that mesh."""

    async def run() -> Any:
        return await operation(*args, **kwargs)

    return await mesh.run(run)


# ------------------------------------------------------------------ what is refused


@pytest.mark.parametrize("function", [len, lambda: 1, 7, None, "generator", generator(1)])
def test_only_coroutine_functions_are_offered(function: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            with pytest.raises(NotACoroutine):
                await offer(a, function)
            assert not a.coros()

    simulate(test)


@pytest.mark.parametrize("name", ["", "n" * 252, 7])
def test_a_name_that_cannot_be_registered_is_refused(name: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            rci = await offer(a, generator)
            with pytest.raises(ConfigError, match="the name of a rci is a text of 1 to 251 bytes"):
                await does(a, rci.register, name)

    simulate(test)


def test_outside_of_a_mesh_nothing_is_offered() -> None:
    with pytest.raises(NoMesh):
        RCI(generator)


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {}), ((1, 2, 3), {}), ((1,), {"number": 1}), ((1,), {"other": 1})],
)
@pytest.mark.parametrize("caller", ["a", "b"])
def test_arguments_that_it_does_not_take_create_nothing(caller: str, args: Any, kwargs: Any) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci = await offer(a, generator, "adds")
            with pytest.raises(BadArguments, match=r"^adds\(number: .*int.* does not take these arguments: "):
                await does({"a": a, "b": b}[caller], rci, *args, **kwargs)
            assert len(a.coros()) == 1

    simulate(test)


def test_arguments_that_cannot_travel_or_be_opened_create_nothing() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci = await offer(a, whereabouts)
            with pytest.raises(PackError, match="Future"):
                await does(b, rci, asyncio.get_running_loop().create_future())
            with pytest.raises(UnpackError, match="broken"):
                await does(b, rci, Brittle())
            for body in ([], [b"junk"], payload.pack((1, 2)), payload.pack(((), ()))):
                with pytest.raises((ProtocolError, UnpackError)):
                    await b.request(rci.ref, "call", {}, body)
            for verb in ("put", "subscribe", "nonsense"):
                with pytest.raises(ProtocolError, match="it is a rci"):
                    await b.request(rci.ref, verb, {})
            assert len(a.coros()) == 1

    simulate(test)


class Brittle:
    """Cannot be opened."""

    def __reduce__(self) -> Any:
        return breaks, ()


def breaks() -> None:
    raise ValueError("broken")


# ------------------------------------------------------------------ calls


@pytest.mark.parametrize("caller", ["a", "b"])
@pytest.mark.parametrize("function", [whereabouts, partial(whereabouts, 1), generator])
def test_a_call_creates_a_coroutine_where_it_is_offered(function: Any, caller: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci, mesh = await offer(a, function), {"a": a, "b": b}[caller]

            async def calls() -> Any:
                created = await rci(5)
                assert isinstance(created, CoroRef) and current_coro().children() == [created]
                value = await created.result()
                await until(lambda: current_coro().children() == [])
                return value

            value = await mesh.run(calls)
            if function is generator:
                assert value == 6
            else:
                assert value == (a.me.birth, None, (5,) if function is whereabouts else (1, 5), {})

    simulate(test)


@pytest.mark.parametrize("caller", ["a", "b"])
def test_what_is_created_belongs_to_who_offers_and_not_to_the_caller(caller: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            theirs, mine = payload.Namespace("theirs"), payload.Namespace("mine")
            offered: list[RCI] = []

            async def offers() -> None:
                offered.append(RCI(names_its_own))

            async def names_its_own() -> bool:
                return current_coro().namespace is theirs

            async def calls() -> Any:
                return await (await offered[0]()).result()

            await Coro.start(a, offers, namespace=theirs).result_here()
            assert await Coro.start({"a": a, "b": b}[caller], calls, namespace=mine).result_here()

    simulate(test)


def test_in_its_own_process_arguments_are_the_very_objects() -> None:
    async def test(world: World) -> None:
        async with world.mesh("a") as a:
            rci, item = await offer(a, whereabouts), object()

            async def calls() -> Any:
                return await (await rci(item)).result()

            assert (await a.run(calls))[2] == (item,)

    simulate(test)


@pytest.mark.parametrize("caller", ["a", "b"])
def test_what_was_created_is_monitored_ended_and_answers_for_itself(caller: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci, bad = await offer(a, lasts), await offer(a, fails)

            async def calls(coro: Any = None) -> None:
                created = await rci()
                await coro.monitor(created)
                await created.terminate()
                notice = await coro.receive(5)
                assert isinstance(notice, ExitNotice) and (notice.ref, notice.reason) == (created, "terminated")
                with pytest.raises(CoroEnded):
                    await created.result()
                with pytest.raises(ValueError, match="bad"):
                    await (await bad()).result()

            await {"a": a, "b": b}[caller].run(calls)

    simulate(test)


def test_an_exception_that_the_caller_does_not_ask_for_is_said_where_it_called(caplog: pytest.LogCaptureFixture) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci = await offer(a, fails)

            async def calls() -> None:
                await rci()
                await asyncio.sleep(5)

            with caplog.at_level(logging.WARNING):
                await b.run(calls)
            assert [record.name for record in caplog.records if "bad" in record.getMessage()] == ["discoro.exits"]

    simulate(test)


# ------------------------------------------------------------------ names and ends


def test_each_kind_has_its_own_names() -> None:
    async def test(world: World) -> None:
        async with world.mesh("n", role="node") as n, world.mesh("b", n) as b, world.mesh("a", n) as a:
            rci = await offer(a, generator)
            assert await does(b, rci.register) == 0, "anybody may register it"

            async def registers_others(coro: Any = None) -> None:
                await coro.register("generator")
                await Channel("generator").register()
                await Queue(1, "generator").register()
                with pytest.raises(NameTaken, match="rci.*generator.* is the name of"):
                    await RCI(generator).register()
                await asyncio.get_running_loop().create_future()

            others = start(a, registers_others)
            found = await does(b, RCI.locate, "generator", None, 5)
            assert found == rci and found.name == "generator" and repr(found) == f"<RCI generator {rci.ref}>"
            assert (await does(b, Channel.locate, "generator", a.me.name, 5)).ref != rci.ref
            assert len({await does(b, kind.locate, "generator", None, 5) for kind in (Coro, Channel, Queue, RCI)}) == 4
            assert not others.done
            assert await does(b, rci.unregister, "generator") == 0
            with pytest.raises(Timeout, match="nobody registered .*rci.*generator"):
                await does(b, RCI.locate, "generator", None, 1)

    simulate(test)


def test_what_is_no_offer_says_so() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            mistaken = start(a, lasts)
            for mesh in (a, b):
                with pytest.raises(ProtocolError):
                    await does(mesh, RCI._of(mistaken.ref, "mistaken"))

    simulate(test)


@pytest.mark.parametrize("closer", ["a", "b"])
def test_closed_it_creates_no_more_and_what_it_created_goes_on(closer: str) -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci, by = await offer(a, lasts), {"a": a, "b": b}[closer]
            await does(a, rci.register)
            running = await does(b, rci)
            for _ in range(2):
                assert await does(by, rci.close) == 0
            for mesh in (a, b):
                with pytest.raises(NoSuchCoro, match="rci lasts .* has ended"):
                    await does(mesh, rci)
                with pytest.raises(NoSuchCoro):
                    await does(mesh, rci.register)
            with pytest.raises(Timeout):
                await does(b, RCI.locate, "lasts", None, 1)
            assert await does(b, running.is_alive)

    simulate(test)


def test_its_process_lost_a_call_says_so_and_what_it_created_is_told() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci = await offer(a, lasts)
            running = start(b, result_of, rci)
            await until(lambda: len(a.coros()) == 2)
            with world.network.partition("a", "b"):
                with pytest.raises(PeerLost):
                    await does(b, rci)
                with pytest.raises(PeerLost):
                    await running.result_here()

    simulate(test)


def test_an_error_of_no_class_of_ours_stays_readable() -> None:
    async def test(world: World) -> None:
        async with world.mesh("b") as b, world.mesh("a", b) as a:
            rci = await offer(a, fails_oddly)
            with pytest.raises(RemoteError, match="Odd"):
                await does(b, lambda: result_of(rci))

    simulate(test)


async def result_of(rci: RCI) -> Any:
    return await (await rci()).result()


async def fails_oddly() -> None:
    class Odd(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("stays")

    raise Odd
