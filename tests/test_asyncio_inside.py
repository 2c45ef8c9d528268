"""A coroutine is an asyncio task: what asyncio has, and what was written for it, works inside, here and in a worker."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import aiohttp
import aiohttp.web
import pytest

from discoro import Computation, Coro, CoroEnded, ExitNotice, Mesh, current_coro
from tests.support.nodes import a_node

Function = Callable[..., Any]
Start = Callable[..., Awaitable[Any]]  # starts a coroutine of the function under test; gives its Coro or reference

TIMEOUT = 60  # seconds for a whole test


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """A node with one slot: the options of a mesh that finds it, and it alone."""
    directory = tmp_path_factory.mktemp("asyncio")
    with a_node(directory, "-c", "1") as node:
        yield {"key_file": directory / "cluster.key", "peers": [node.address], "ip_addr": ["127.0.0.1"], "mdns": False}


@pytest.fixture(params=["here", "worker"])
def at(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """`at(function, main)`: the value of the coroutine function `main(start)`, run in a mesh, where `start(*args)` creates a
    coroutine of `function`: in this process, or in a worker. `at(function)` is the value of one such coroutine."""

    def at(function: Function, main: Function | None = None) -> Any:
        where = in_worker(request.getfixturevalue("node"), function) if request.param == "worker" else here(function)
        return asyncio.run(run(where, main or value_of))

    return at


async def value_of(start: Start) -> Any:
    return await (await start()).result()


async def run(where: contextlib.AbstractAsyncContextManager[tuple[Mesh, Start]], main: Function) -> Any:
    async with asyncio.timeout(TIMEOUT), where as (mesh, start):
        return await mesh.run(main, start)


@contextlib.asynccontextmanager
async def here(function: Function) -> AsyncIterator[tuple[Mesh, Start]]:
    async def start(*args: Any) -> Coro:
        return Coro(function, *args)

    async with Mesh(open=True, ip_addr=["127.0.0.1"], mdns=False, cluster="inside") as mesh:
        yield mesh, start


@contextlib.asynccontextmanager
async def in_worker(node: dict[str, Any], function: Function) -> AsyncIterator[tuple[Mesh, Start]]:
    async with Mesh(**node) as mesh:
        server = await Coro.locate("discoro_server")
        computation = Computation(function)
        await computation.setup(server)
        yield mesh, lambda *args: computation.run(server, *args)
        await computation.close(server)


def process() -> Any:
    yield
    return os.getpid()


def test_here_is_this_process_and_a_worker_is_not(at: Function, request: pytest.FixtureRequest) -> None:
    assert (at(process) == os.getpid()) is ("here" in request.node.callspec.id)


# Waiting: timeout, wait_for, shield, gather, TaskGroup.


async def timeout(coro: Any = None) -> Any:
    try:
        async with asyncio.timeout(0.01):
            await coro.receive()
    except TimeoutError:
        coro.send("after")
        return await coro.receive()


def wait_for(coro: Any = None) -> Any:
    try:
        yield asyncio.wait_for(coro.receive(), 0.01)
    except TimeoutError:
        coro.send("after")
        return (yield coro.receive())


async def shielded(coro: Any = None) -> Any:
    received = asyncio.ensure_future(coro.receive())
    try:
        await asyncio.wait_for(asyncio.shield(received), 0.01)
    except TimeoutError:
        coro.send("after")
        return await received


def shielded_in_generator(coro: Any = None) -> Any:
    received = asyncio.ensure_future(coro.receive())
    try:
        yield asyncio.wait_for(asyncio.shield(received), 0.01)
    except TimeoutError:
        coro.send("after")
        return (yield received)


@pytest.mark.parametrize("function", [timeout, wait_for, shielded, shielded_in_generator])
def test_a_timeout_interrupts_receive_and_nothing_is_lost(at: Function, function: Function) -> None:
    assert at(function) == "after"


async def gathered(coro: Any = None) -> Any:
    return await asyncio.gather(coro.sleep(0.02, "slow"), coro.sleep(0, "fast"), asyncio.sleep(0.01, "asyncio's"))


def gathered_in_generator(coro: Any = None) -> Any:
    return (yield asyncio.gather(coro.sleep(0.02, "slow"), coro.sleep(0, "fast"), asyncio.sleep(0.01, "asyncio's")))


@pytest.mark.parametrize("function", [gathered, gathered_in_generator])
def test_gather_runs_operations_side_by_side(at: Function, function: Function) -> None:
    assert at(function) == ["slow", "fast", "asyncio's"]


async def task_group(coro: Any = None) -> Any:
    async def part(event: asyncio.Event, other: asyncio.Event) -> Any:
        event.set()
        await other.wait()
        return coro.ref == current_coro().ref  # a task of a coroutine is part of it

    one, two = asyncio.Event(), asyncio.Event()
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(part(one, two)), group.create_task(part(two, one))]
    return [task.result() for task in tasks]


def test_task_group_runs_tasks_of_one_coroutine(at: Function) -> None:
    assert at(task_group) == [True, True]


async def failing_group(coro: Any = None) -> Any:
    ended = []

    async def waits() -> None:
        try:
            await coro.receive()
        finally:
            ended.append("cancelled")

    async def fails() -> None:
        await asyncio.sleep(0)
        raise KeyError("k")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(waits())
            group.create_task(fails())
    except* KeyError as errors:
        ended.append(repr(errors.exceptions))
    coro.send("alive")
    return [*ended, await coro.receive()]


def test_a_failing_task_ends_its_group_and_not_the_coroutine(at: Function) -> None:
    assert at(failing_group) == ["cancelled", "(KeyError('k'),)", "alive"]


# Queues, locks, events: shared by coroutines of one process.


def shared_by_generators(coro: Any = None) -> Any:
    queue: Any = asyncio.Queue(1)
    lock, event, told = asyncio.Lock(), asyncio.Event(), []

    def producer() -> Any:
        yield event.wait()
        for n in range(3):
            yield queue.put(n)
            told.append(f"put {n}")
        yield lock.acquire()
        told.append("locked")
        lock.release()

    yield lock.acquire()
    other = Coro(producer)
    event.set()
    for _ in range(3):
        told.append(f"got {(yield queue.get())}")
    yield coro.sleep(0)
    told.append("unlocks")
    lock.release()
    yield other.result()
    return told


def test_queue_lock_and_event_are_yielded_like_operations(at: Function) -> None:
    told = at(shared_by_generators)
    assert [each for each in told if each.startswith("got")] == ["got 0", "got 1", "got 2"]
    assert told[-2:] == ["unlocks", "locked"]
    assert told.index("got 0") < told.index("put 2"), "a full queue held the producer"


# Blocking code in threads.


def in_thread(coro: Any = None) -> Any:
    """The thread waits for another coroutine of this process, which can only run if the loop goes on."""
    released, loop_thread = threading.Event(), threading.get_ident()

    def releases() -> Any:
        yield coro.sleep(0)
        released.set()

    def blocking(seconds: float) -> Any:
        return released.wait(seconds), threading.get_ident() != loop_thread

    Coro(releases)
    return (yield asyncio.to_thread(blocking, 30))


async def in_thread_awaited(coro: Any = None) -> Any:
    released = threading.Event()

    async def releases() -> None:
        released.set()

    Coro(releases)
    went_on = await asyncio.to_thread(released.wait, 30)
    return went_on, await asyncio.to_thread(threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize("function", [in_thread, in_thread_awaited])
def test_while_a_thread_blocks_other_coroutines_go_on(at: Function, function: Function) -> None:
    assert tuple(at(function)) == (True, True)


def failing_thread() -> Any:
    try:
        yield asyncio.to_thread(int, "no number")
    except ValueError as error:
        return str(error)


def test_what_a_thread_raises_is_raised_at_the_yield(at: Function) -> None:
    assert "no number" in at(failing_thread)


# Streams and processes.


def streams() -> Any:
    async def served(reader: Any, writer: Any) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    server = yield asyncio.start_server(served, "127.0.0.1", 0)
    host, port = server.sockets[0].getsockname()
    reader, writer = yield asyncio.open_connection(host, port)
    writer.write(b"hello\n")
    yield writer.drain()
    line = yield reader.readline()
    rest = yield reader.read()
    writer.close()
    yield writer.wait_closed()
    server.close()
    yield server.wait_closed()
    return line, rest


async def streams_awaited() -> Any:
    async def served(reader: Any, writer: Any) -> None:
        writer.write((await reader.readline()).upper())
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(served, "127.0.0.1", 0) as server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"hello\n")
        answer = await reader.readline(), await reader.read()
        writer.close()
        await writer.wait_closed()
        return answer


@pytest.mark.parametrize("function", [streams, streams_awaited])
def test_streams(at: Function, function: Function) -> None:
    assert at(function) == (b"HELLO\n", b"")


def subprocess() -> Any:
    pipe = asyncio.subprocess.PIPE
    program = "import sys; print(sys.stdin.read().upper()); sys.exit(3)"
    process = yield asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=pipe, stdout=pipe)
    output, _ = yield process.communicate(b"hello")
    return output, (yield process.wait())


async def subprocess_awaited() -> Any:
    pipe = asyncio.subprocess.PIPE
    program = "import sys; print(sys.stdin.read().upper()); sys.exit(3)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", program, stdin=pipe, stdout=pipe)
    output, _ = await process.communicate(b"hello")
    return output, await process.wait()


@pytest.mark.parametrize("function", [subprocess, subprocess_awaited])
def test_a_child_process(at: Function, function: Function) -> None:
    assert at(function) == (b"HELLO\n", 3)


# Context variables.


def context_kept(coro: Any = None) -> Any:
    variable: Any = contextvars.ContextVar("variable", default="unset")

    def child() -> Any:
        inherited = variable.get()
        variable.set("the child's")
        yield coro.sleep(0)
        return inherited, variable.get()

    variable.set("mine")
    yield coro.sleep(0)
    of_child = yield Coro(child).result()
    in_thread = yield asyncio.to_thread(variable.get)
    return variable.get(), in_thread, of_child


async def context_kept_awaited(coro: Any = None) -> Any:
    variable: Any = contextvars.ContextVar("variable", default="unset")

    async def child() -> Any:
        inherited = variable.get()
        variable.set("the child's")
        await coro.sleep(0)
        return inherited, variable.get()

    variable.set("mine")
    await coro.sleep(0)
    return variable.get(), await asyncio.to_thread(variable.get), await Coro(child).result()


@pytest.mark.parametrize("function", [context_kept, context_kept_awaited])
def test_context_variables_are_kept_and_inherited(at: Function, function: Function) -> None:
    assert at(function) == ("mine", "mine", ("mine", "the child's"))


# A library written for asyncio: aiohttp, its client and its server.


async def fetches(coro: Any = None) -> Any:
    """Several pages at a time over one session, and one that never comes, given up when a message says so."""

    async def fetch(session: Any, path: str) -> Any:
        async with session.get(f"{url}/{path}") as response:
            return response.status, await response.text()

    url, count = await coro.receive()
    async with aiohttp.ClientSession() as session:
        pages = await asyncio.gather(*(fetch(session, str(n)) for n in range(count)))
        never = asyncio.create_task(fetch(session, "never"))
        assert await coro.receive() == "it was asked for"
        never.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await never
        return pages, never.cancelled()


@contextlib.asynccontextmanager
async def web_server(page: Function) -> AsyncIterator[str]:
    application = aiohttp.web.Application()
    application.router.add_get("/{n}", page)
    runner = aiohttp.web.AppRunner(application, handler_cancellation=True, shutdown_timeout=1)
    await runner.setup()
    try:
        await aiohttp.web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def test_an_aiohttp_client_in_a_coroutine(at: Function) -> None:
    async def main(start: Start) -> Any:
        given_up = asyncio.Event()
        coro = await start()

        async def page(request: Any) -> Any:
            if request.path == "/never":
                coro.send("it was asked for")
                try:
                    await asyncio.Event().wait()
                finally:
                    given_up.set()
            return aiohttp.web.Response(text=f"page {request.path}")

        async with web_server(page) as url:
            coro.send((url, 20))
            result = await coro.result()
            await given_up.wait()  # what was cancelled there is over here
        return result

    assert at(fetches, main) == ([(200, f"page /{n}") for n in range(20)], True)


# Ending: cancelling is asyncio's, and whatever cleans up is run.


def finally_in_generator(observer: Any, coro: Any = None) -> Any:
    try:
        observer.send("waits")
        yield coro.receive()
    except asyncio.CancelledError:
        observer.send("cancelled")
        raise
    finally:
        observer.send("finally")
        yield asyncio.sleep(0.01)
        thread = yield asyncio.to_thread(str, "after a thread")
        observer.send(thread)


async def finally_awaited(observer: Any, coro: Any = None) -> Any:
    try:
        observer.send("waits")
        await coro.receive()
    except asyncio.CancelledError:
        observer.send("cancelled")
        raise
    finally:
        observer.send("finally")
        await asyncio.sleep(0.01)
        observer.send(await asyncio.to_thread(str, "after a thread"))


def finally_of_sub_generator(observer: Any, coro: Any = None) -> Any:
    def inner() -> Any:
        try:
            observer.send("waits")
            yield coro.receive()
        except asyncio.CancelledError:
            observer.send("cancelled")
            raise

    try:
        yield inner()
    finally:
        observer.send("finally")
        yield coro.sleep(0.01)
        observer.send("after a thread")


async def contexts(observer: Any, coro: Any = None) -> Any:
    @contextlib.asynccontextmanager
    async def resource() -> Any:
        try:
            yield
        except asyncio.CancelledError:
            observer.send("cancelled")
            raise
        finally:
            await asyncio.sleep(0.01)
            observer.send("finally")

    async with contextlib.AsyncExitStack() as stack:
        stack.callback(observer.send, "after a thread")
        await stack.enter_async_context(resource())
        observer.send("waits")
        await coro.receive()


async def group_of_tasks(observer: Any, coro: Any = None) -> Any:
    async def part() -> None:
        try:
            observer.send("waits")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            observer.send("cancelled")
            raise
        finally:
            await asyncio.sleep(0.01)
            observer.send("finally")

    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(part())
    finally:
        observer.send("after a thread")


CLEANING = [finally_in_generator, finally_awaited, finally_of_sub_generator, contexts, group_of_tasks]


@pytest.mark.parametrize("function", CLEANING)
def test_terminate_cancels_and_all_that_cleans_up_runs_before_the_end_is_told(at: Function, function: Function) -> None:
    async def main(start: Start, coro: Any = None) -> Any:
        ended = await start(coro)
        await coro.monitor(ended)
        assert await coro.receive() == "waits"
        assert await ended.terminate() == 0
        told = [await coro.receive() for _ in range(4)]
        with pytest.raises(CoroEnded, match="terminated"):
            await ended.result()
        return told

    *cleaned, notice = at(function, main)
    assert cleaned == ["cancelled", "finally", "after a thread"]
    assert isinstance(notice, ExitNotice)
    assert notice.reason == "terminated"


@pytest.mark.parametrize("function", CLEANING)
def test_closing_the_mesh_cleans_up_too(function: Function) -> None:
    told: list[Any] = []

    class Observer:
        def send(self, message: Any) -> None:
            told.append(message)

    async def main(start: Start) -> None:
        await start(Observer())
        while told != ["waits"]:
            await asyncio.sleep(0)

    asyncio.run(run(here(function), main))
    assert told == ["waits", "cancelled", "finally", "after a thread"]


async def cancels_itself() -> None:
    asyncio.current_task().cancel()  # type: ignore[union-attr]
    await asyncio.sleep(0)


def is_cancelled() -> Any:
    future = asyncio.get_running_loop().create_future()
    future.cancel()
    yield future


@pytest.mark.parametrize("function", [cancels_itself, is_cancelled])
def test_a_cancellation_of_ones_own_ends_it_as_terminated(at: Function, function: Function) -> None:
    with pytest.raises(CoroEnded, match="terminated"):
        at(function)


async def survives_an_inner_cancellation(coro: Any = None) -> Any:
    task = asyncio.create_task(coro.receive())
    await asyncio.sleep(0)
    task.cancel()
    try:
        await task
    except asyncio.CancelledError:
        coro.send("alive")
        return await coro.receive(), asyncio.current_task().cancelling()  # type: ignore[union-attr]


def test_a_task_that_is_cancelled_is_not_the_coroutine(at: Function) -> None:
    assert tuple(at(survives_an_inner_cancellation)) == ("alive", 0)
