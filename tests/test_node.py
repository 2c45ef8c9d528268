"""A node and its workers: adopted, watched, replaced and ended, whatever the code in them does."""

from __future__ import annotations

import asyncio
import ctypes
import importlib
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import node as node_module
from discoro import workers as workers_module
from discoro.computation import Computation
from discoro.errors import (
    CloseFailed,
    ConfigError,
    CoroEnded,
    NotSetUp,
    PeerLost,
    SetupFailed,
    Stuck,
    Timeout,
    TooLarge,
    WorkerLost,
)
from discoro.mesh import Mesh
from discoro.node import MAX_SLOTS, Node, NodeOptions, Slot
from discoro.verdicts import summary
from discoro.workers import LAST_LINES, LINE_BYTES, Output
from tests.support.nodes import SECURITY, children, client_of, files_below, in_thread, node_here, until_ended, until_gone

Work = Callable[[Node, Mesh], Awaitable[None]]


def with_node(tmp_path: Path, work: Work, slots: int = 1, **options: Any) -> None:
    """Run this with a node and a client of it; afterwards nothing of either is left."""

    async def main() -> None:
        async with node_here(tmp_path, slots, **options) as node, client_of(node) as mesh:
            await work(node, mesh)

    before = children(os.getpid())
    asyncio.run(asyncio.wait_for(main(), 60))
    assert children(os.getpid()) == before
    assert files_below(tmp_path / "files") == []


# What runs in workers.


def pid_of(coro: Any = None) -> Iterator[Any]:
    yield None
    return os.getpid()


def forever(coro: Any = None) -> Iterator[Any]:
    yield coro.receive()


def hold(seconds: float, coro: Any = None) -> Iterator[Any]:
    """A C call that holds the interpreter's lock, anew where a signal ended it."""
    yield None
    while True:
        ctypes.PyDLL(None).sleep(int(seconds))


def end_by(number: int, coro: Any = None) -> Iterator[Any]:
    print("the last words")
    yield coro.receive()
    os.kill(os.getpid(), number)


def exit_hard(coro: Any = None) -> Iterator[Any]:
    yield coro.receive()
    os._exit(5)


def start_sleeper(coro: Any = None) -> Iterator[Any]:
    yield None
    return subprocess.Popen(["sleep", "600"]).pid


def write(data: bytes, times: int, coro: Any = None) -> Iterator[Any]:
    for _ in range(times):
        yield None
        os.write(1, data)
    return times


def look_around(coro: Any = None) -> Iterator[Any]:
    yield None
    return sys.stdin.read(), os.getcwd(), sorted(os.listdir(".")), os.getpgrp() == os.getpid(), sys.flags.interactive


def weigh(coro: Any = None) -> Iterator[Any]:
    yield None
    (resident,) = [line.split()[1] for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmRSS")]
    return int(resident), sorted({"zeroconf", "argparse"} & set(sys.modules))


async def setting_up(server: Any) -> None:
    await Computation(pid_of).setup(server)


async def opened(function: Callable[..., Any], **options: Any) -> tuple[Computation, Any]:
    """A computation that is set up, and the server."""
    server = await discoro.Coro.locate("discoro_server")
    computation = Computation(function, **options)
    await computation.setup(server)
    return computation, server


async def result(computation: Computation, server: Any, *args: Any) -> Any:
    return await (await computation.run(server, *args)).result()


# Bad input first.


@pytest.mark.parametrize("slots", [0, -1, MAX_SLOTS + 1])
def test_a_number_of_slots_that_is_none(slots: int) -> None:
    with pytest.raises(ConfigError, match=f"{slots} slots.* -c"):
        Node(NodeOptions(slots))


def test_a_node_that_is_ready_has_all_its_servers_registered(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_here(tmp_path, 3) as node:
            answer = await node.mesh.ask(node.mesh.me.birth, "locate", {"name": "discoro_server"}, 5)
            assert len(answer) == 3

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_node_that_does_not_start_leaves_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_here(tmp_path) as first:
            port = int(first.mesh.addresses[0].rpartition(":")[2])
            options = NodeOptions(1, port, tmp_path / "other")
            with pytest.raises(discoro.PortTaken, match=str(port)):
                async with Node(options, security=SECURITY, ip_addr=["127.0.0.1"], mdns=False):
                    raise AssertionError("started")
            assert files_below(tmp_path / "other") == []

    asyncio.run(main())


def dying(tmp_path: Path) -> str:
    """A Python that is none."""
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\necho this is no Python >&2\nexit 3\n")
    script.chmod(0o755)
    return str(script)


def missing(tmp_path: Path) -> str:
    return str(tmp_path / "python")


@pytest.mark.parametrize(("python", "why"), [(dying, "exited with status 3, .*: this is no"), (missing, "No such file")])
def test_workers_that_do_not_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, python: Any, why: str
) -> None:
    """Setup says so, and why, before long; they are tried again with growing pauses; once they start all is well."""

    async def work(node: Node, mesh: Mesh) -> None:
        server = await discoro.Coro.locate("discoro_server")
        computation = Computation(pid_of)
        with pytest.raises(SetupFailed, match=f"workers do not start at node, \\d+ in a row. It is tried again.*{why}"):
            await computation.setup(server)
        load = await mesh.ask(node.mesh.me.birth, "locate", {"name": "discoro_server"}, 5)
        assert load[0][1] == node_module.UNUSABLE
        monkeypatch.setattr(workers_module.sys, "executable", sys_executable)
        while True:
            try:
                await computation.setup(server)
                break
            except SetupFailed:
                continue
        load = await mesh.ask(node.mesh.me.birth, "locate", {"name": "discoro_server"}, 5)
        assert load[0][1] == 1
        await computation.close(server)

    sys_executable = sys.executable
    monkeypatch.setattr(workers_module.sys, "executable", python(tmp_path))
    with_node(tmp_path, work)
    said = [record.message for record in caplog.records if record.name == "discoro.workers"]
    assert 3 <= len([text for text in said if text.startswith("! a worker did not start")]) < 10
    assert len([text for text in said if text.endswith("setups are refused until one does")]) == 1
    assert len([text for text in said if text == "= workers start again: setups are taken"]) == 1


def test_a_worker_that_never_gets_ready_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = tmp_path / "python"
    script.write_text("#!/bin/sh\nexec sleep 600\n")
    script.chmod(0o755)
    monkeypatch.setattr(workers_module.sys, "executable", str(script))
    monkeypatch.setattr(workers_module, "READY_TIMEOUT", 0.2)

    async def work(node: Node, mesh: Mesh) -> None:
        with pytest.raises(SetupFailed, match=r"not ready in 0\.2 s|had no worker ready in 0\.2 s"):
            await opened(pid_of)

    with_node(tmp_path, work)


def test_a_file_past_the_limit_is_refused(tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(b"x" * 1001)

    async def work(node: Node, mesh: Mesh) -> None:
        with pytest.raises(TooLarge, match="max_file_size"):
            await opened(pid_of, depends=[str(tmp_path / "large")])

    with_node(tmp_path, work, max_file_size=1000)


def test_ready_from_a_process_that_is_no_worker_is_refused(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        await discoro.Coro.locate("discoro_server")
        for token in ("", "ünknown", None, 7):
            with pytest.raises(discoro.ProtocolError, match="no worker of this node"):
                await mesh.ask(node.mesh.me.birth, "ready", {"token": token, "server": mesh.ref_of(1).to_plain()}, 5)

    with_node(tmp_path, work)


# A worker.


def test_a_worker_is_a_fresh_interpreter_in_a_directory_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")

    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(look_around, depends=[str(tmp_path / "data")])
        read, cwd, files, own_group, _ = await result(computation, server)
        assert (read, files, own_group) == ("", ["data"], True)
        assert Path(cwd).parent.parent == tmp_path / "files"
        await computation.close(server)

    with_node(tmp_path, work)


def test_a_worker_is_small(tmp_path: Path) -> None:
    """Less than 40 MB are resident before user code: what finding nodes needs is not loaded."""

    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(weigh)
        kilobytes, loaded = await result(computation, server)
        assert kilobytes < 40_000 and not loaded
        await computation.close(server)

    with_node(tmp_path, work)


def test_one_client_has_one_worker_at_a_slot_and_two_clients_two(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        both = [Computation(pid_of), Computation(forever, depends=[pid_of])]
        server = await discoro.Coro.locate("discoro_server")
        await asyncio.gather(*(computation.setup(server) for computation in both))
        mine = await result(both[0], server)
        assert len(node.slots[0]._here()) == 1
        async with client_of(node, "another"):
            computation, server = await opened(pid_of)
            assert await result(computation, server) != mine
            assert len(node.slots[0]._here()) == 2
            await computation.close(server)
        assert await result(both[0], server) == mine
        for each in both:
            await each.close(server)

    with_node(tmp_path, work)


def test_too_many_clients_at_a_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "WORKERS_PER_SLOT", 1)

    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(pid_of)
        async with client_of(node, "another"):
            with pytest.raises(SetupFailed, match="this slot has 1 workers"):
                await opened(pid_of)
        assert await result(computation, server)

    with_node(tmp_path, work)


def test_as_many_are_warm_as_are_needed(tmp_path: Path) -> None:
    """One for each free slot and one to spare: an adopted one is not replaced before another slot needs it."""

    async def work(node: Node, mesh: Mesh) -> None:
        workers = node.slots[0]._workers
        servers = await discoro.servers()
        assert len(servers) == 2
        computation = Computation(pid_of)
        for server in servers:
            await computation.setup(server)
        while workers._starting:
            await asyncio.wait(workers._starting)
        assert (len(list(workers)), len(workers._warm)) == (3, 1)
        for server in servers:
            await computation.close(server)

    with_node(tmp_path, work, slots=2)


def test_the_last_close_ends_the_worker(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(pid_of)
        second = Computation(pid_of)
        await second.setup(server)
        pid = await result(computation, server)
        await computation.close(server)
        assert await result(second, server) == pid
        await second.close(server)
        await in_thread(until_ended, [pid], 5)

    with_node(tmp_path, work)


def test_files_stay_where_cleanup_is_not_wanted(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")

    async def main() -> Path:
        async with node_here(tmp_path) as node, client_of(node):
            computation, server = await opened(look_around, depends=[str(tmp_path / "data")], cleanup=False)
            _, cwd, *_ = await result(computation, server)
            await computation.close(server)
            return Path(cwd)

    cwd = asyncio.run(main())
    assert (cwd / "data").read_text() == "x"
    assert not [name for name in files_below(tmp_path / "files") if "blob" in name or "lock" in name]


def test_a_setup_that_failed_or_was_given_up_leaves_no_worker(tmp_path: Path) -> None:
    def fail() -> None:
        raise ValueError("no")

    def block() -> None:
        ctypes.PyDLL(None).sleep(600)

    async def work(node: Node, mesh: Mesh) -> None:
        server = await discoro.Coro.locate("discoro_server")
        computation = Computation(pid_of)
        with pytest.raises(SetupFailed, match="no"):
            await computation.setup(server, func=fail)
        with pytest.raises(Timeout):
            await computation.setup(server, timeout=0.3, func=block)
        with pytest.raises(NotSetUp):
            await computation.ping(server)
        await in_thread(until_ended, [worker.pid for worker in node.slots[0]._here()], 5)
        await computation.setup(server)
        assert await result(computation, server)
        await computation.close(server)

    with_node(tmp_path, work)


def test_files_of_one_name_and_two_contents_do_not_meet(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        data = tmp_path / "data"
        data.write_text("one")
        first, server = await opened(look_around, depends=[str(data)])
        beside, _ = await opened(look_around, depends=[str(data)])
        data.write_text("two")
        second, _ = await opened(look_around, depends=[str(data)])
        places = [(await result(each, server))[1] for each in (first, beside, second)]
        assert places[0] == places[1] != places[2]
        assert [(Path(place) / "data").read_text() for place in places] == ["one", "one", "two"]
        await first.setup(server)  # with what lies there now: it moves to the other worker
        assert (await result(first, server))[1] == places[2]
        for each in (first, beside, second):
            await each.close(server)
        await in_thread(until_ended, [worker.pid for worker in node.slots[0]._here()], 5)

    with_node(tmp_path, work)


def test_a_setup_given_up_while_it_waits_for_a_worker_closes_what_it_was_to_replace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers_module, "SPARE_WORKERS", 0)

    async def work(node: Node, mesh: Mesh) -> None:
        data, slot = tmp_path / "data", node.slots[0]
        data.write_text("one")
        first, server = await opened(look_around, depends=[str(data)])
        beside, _ = await opened(look_around, depends=[str(data)])
        (worker,) = slot._here()
        data.write_text("two")
        again = asyncio.ensure_future(first.setup(server))  # must not meet beside: it waits for another worker
        while not slot._placing.locked():
            await asyncio.sleep(0)
        again.cancel()
        while slot._opening or len(worker.computations) > 1:
            await asyncio.sleep(0)
        assert not worker.in_doubt
        with pytest.raises(NotSetUp):
            await first.ping(server)
        assert await result(beside, server)
        await beside.close(server)
        await in_thread(until_ended, [worker.pid], 5)

    with_node(tmp_path, work)


def test_a_slot_opens_no_message_from_its_first_moment_on(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        await discoro.Coro.locate("discoro_server")
        slot = Slot(node.mesh, node.slots[0]._workers, node.keeping, 0)
        node.mesh.sending.came(next(iter(node.mesh._peers)), slot.coro.ref.id, [b"not a pickle"])
        assert len(slot.coro.mailbox) == 0
        slot.coro.stop("terminated")
        await slot.coro.stopped()

    with_node(tmp_path, work)


# Its end.


@pytest.mark.parametrize(
    ("function", "args", "how"),
    [
        (end_by, (signal.SIGKILL,), r"was killed by SIGKILL, by somebody.*; it held \d+ MiB.*: the last words"),
        (end_by, (signal.SIGSEGV,), "crashed in C code by SIGSEGV, at File .*test_node.* in end_by; .*: Fatal Python"),
        (end_by, (40,), "was killed by signal 40, which somebody sent to it"),
        (exit_hard, (), r"exited with status 5, by itself: os._exit\(5\), perhaps"),
    ],
)
def test_the_end_of_a_worker_is_told_and_another_takes_its_place(tmp_path: Path, function: Any, args: Any, how: str) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(function)
        (worker,) = node.slots[0]._here()
        remote = await computation.run(server, *args)
        remote.send("now")
        with pytest.raises(PeerLost):  # the worker's address may be found dead before its node has told why
            await remote.result()
        await asyncio.wait([worker.gone])
        for attempt in (computation.ping(server), computation.run(server, *args), remote.result()):
            with pytest.raises(WorkerLost, match=rf"node/{remote.pid} {how}"):
                await attempt
        with pytest.raises(WorkerLost, match="Call setup again"):
            await computation.run(server, *args)
        await computation.setup(server)
        assert await computation.ping(server) == 0
        await computation.close(server)

    with_node(tmp_path, work)


def test_a_warm_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        workers = node.slots[0]._workers
        while len(workers._warm) < 2:
            await asyncio.wait(workers._starting, return_when=asyncio.FIRST_COMPLETED)
        before = [worker.pid for worker in workers]
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        await in_thread(until_ended, before, 5)
        computation, server = await opened(pid_of)
        assert await result(computation, server) not in before
        await computation.close(server)

    with_node(tmp_path, work)


def test_a_busy_worker_keeps_nobody_waiting_and_is_killed_by_close(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(hold)
        remote = await computation.run(server, 600)
        assert await computation.ping(server) == 0
        async with client_of(node, "another"):
            other, _ = await opened(pid_of)
            await other.close(server)
        with pytest.raises(CloseFailed, match=r"(?s)hold.*busy for 1 s, in `hold` at test_node.py:.*was killed"):
            await computation.close(server, close_timeout=0.1)
        with pytest.raises(WorkerLost, match="busy for 1 s"):
            await remote.result()

    with_node(tmp_path, work)


def test_what_a_worker_started_ends_with_it(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(start_sleeper)
        sleepers = [await result(computation, server)]
        await computation.close(server)
        await computation.setup(server)
        sleepers.append(await result(computation, server))
        (worker,) = [worker for worker in node.slots[0]._here() if worker.computations]
        os.kill(worker.pid, signal.SIGKILL)
        await in_thread(until_ended, sleepers, 5)

    with_node(tmp_path, work)


def test_a_client_that_leaves_without_closing_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("x")

    async def work(node: Node, mesh: Mesh) -> None:
        async with client_of(node, "another"):
            computation, server = await opened(look_around, depends=[str(tmp_path / "data")])
            cwd = Path((await result(computation, server))[1])
            pid = node.slots[0]._here()[0].pid
        await in_thread(until_ended, [pid], 5)
        await in_thread(until_gone, cwd, 5)

    with_node(tmp_path, work)


def end_in_order(where: str, coro: Any = None) -> Iterator[Any]:
    try:
        yield coro.register("in order")
        yield coro.receive()
    finally:
        Path(where).write_text("ended in order")


def test_coroutines_of_a_client_that_left_end_in_order_and_others_are_told(tmp_path: Path) -> None:
    """Their `finally` blocks run, who monitors them is told why, their names are free, and all is gone."""

    async def watcher(coro: Any = None) -> Any:
        remote = await coro.locate("in order")
        await coro.monitor(remote)
        watching.set()
        notice = await coro.receive()
        return notice.ref == remote, notice.reason

    async def work(node: Node, mesh: Mesh) -> None:
        told = asyncio.ensure_future(mesh.run(watcher))
        async with client_of(node, "another"):
            computation, server = await opened(end_in_order)
            await computation.run(server, str(tmp_path / "word"))
            await watching.wait()
            (worker,) = node.slots[0]._here()
        assert await told == (True, "computation closed")
        assert (tmp_path / "word").read_text() == "ended in order"
        assert await node.mesh.ask(node.mesh.me.birth, "locate", {"name": "in order"}, 5) == []
        await asyncio.wait([worker.gone])
        assert not node.slots[0]._here() and node.slots[0].coro.load == 0

    watching = asyncio.Event()
    with_node(tmp_path, work)


def test_a_busy_worker_ends_with_its_client_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_module, "LOST_TIMEOUT", 0.2)

    async def work(node: Node, mesh: Mesh) -> None:
        async with client_of(node, "another"):
            computation, server = await opened(hold)
            await computation.run(server, 600)
            (worker,) = node.slots[0]._here()
        await asyncio.wait([worker.gone])
        assert "its client another/" in worker.ending

    with_node(tmp_path, work)


def test_a_client_that_comes_back_is_told_what_became_of_its_computations(tmp_path: Path) -> None:
    """The link was lost on both sides, and is opened again under the same births: nothing is there, and it can set up again."""

    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(forever)
        ref = await computation.run(server)
        (worker,) = node.slots[0]._here()
        (peer,) = [each for each in mesh.peers() if each.role == "node"]
        await mesh.close_peer(peer)
        await asyncio.wait([worker.gone])
        await mesh.peer(node.mesh.addresses[0])
        for operation in (lambda: computation.ping(server), lambda: computation.run(server), lambda: computation.close(server)):
            with pytest.raises(WorkerLost, match="forever is gone with its worker"):
                await operation()
        with pytest.raises((CoroEnded, WorkerLost, PeerLost)):
            await ref.result()
        assert await computation.setup(server) == 0 == await computation.ping(server)
        await computation.close(server)

    with_node(tmp_path, work)


def test_a_worker_out_of_reach_of_its_node_for_a_while_goes_on_with_what_it_has(tmp_path: Path) -> None:
    """One that was stopped, say: the node knows by other ways that it lives, and both mean the same computations afterwards."""

    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(forever)
        ref = await computation.run(server)
        (worker,) = node.slots[0]._here()
        node.mesh._peers.lose(worker.server.birth, "unreachable for 15 s")
        assert await computation.ping(server) == 0, "over a new link: now the worker knows that it had lost its node"
        assert await ref.is_alive() and await computation.coroutines(server) == ([ref], [])
        assert await computation.setup(server) == 0
        await computation.close(server)
        await asyncio.wait([worker.gone])
        assert worker.ending == "the last computation of its client, forever, was closed"

    with_node(tmp_path, work)


def test_a_client_that_leaves_while_it_waits_for_a_worker_gets_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SPARE_WORKERS", 0)
    monkeypatch.setattr(workers_module.Workers, "refill", lambda self: None)

    async def work(node: Node, mesh: Mesh) -> None:
        slot = node.slots[0]
        async with client_of(node, "another"):
            server = await discoro.Coro.locate("discoro_server")
            setup = asyncio.ensure_future(Computation(pid_of).setup(server))
            while not slot._opening:
                await asyncio.sleep(0)
            ((opening,),) = slot._opening.values()
        assert isinstance((await asyncio.gather(setup, return_exceptions=True))[0], PeerLost)
        await asyncio.wait([opening.task], timeout=5)
        assert opening.task.cancelled() and not slot._opening

    with_node(tmp_path, work)


def test_a_node_that_stops_ends_busy_workers_within_three_seconds(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation = Computation(hold)
        for server in await discoro.servers():
            await computation.setup(server)
            await computation.run(server, 600)
        pids = [worker.pid for slot in node.slots for worker in slot._here()]
        async with asyncio.timeout(3):
            await node.__aexit__()
        until_ended(pids, 0)

    with_node(tmp_path, work, slots=2)


# It drains.


def test_a_node_that_drains_takes_nothing_new_and_waits_for_what_is_open(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(forever)
        remote = await computation.run(server)
        assert await node.drain(0.01) is False
        assert node.open_here() == [f"forever of client/{os.getpid()}"]
        leaving = asyncio.ensure_future(node.drain(60))
        for each in (Computation(pid_of), computation):
            with pytest.raises(SetupFailed, match="node is draining: locate another server"):
                await each.setup(server)
        with pytest.raises(Timeout, match="discoro_server"):
            await discoro.Coro.locate("discoro_server", timeout=0.3)
        remote.send("go on")
        await remote.result()
        assert await computation.ping(server) == 0
        assert not leaving.done()
        await computation.close(server)
        assert await leaving is True and node.open_here() == []

    with_node(tmp_path, work)


def test_a_node_that_drains_waits_for_no_client_that_is_gone_and_refuses_who_waits_for_a_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        async with client_of(node, "another"):
            computation, server = await opened(forever)
            monkeypatch.setattr(workers_module.Workers, "_take_warm", lambda self: None)
            setup = asyncio.ensure_future(mesh.run(setting_up, server))
            while not node.slots[0]._opening:
                await asyncio.sleep(0)
            leaving = asyncio.ensure_future(node.drain(60))
            with pytest.raises(SetupFailed, match="node is draining"):
                await setup
            assert not leaving.done()
        assert await leaving is True

    with_node(tmp_path, work)


# What workers write.


def test_endless_lines_and_junk_disturb_nobody(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        computation, server = await opened(write)
        assert await result(computation, server, b"x" * 65536, 40) == 40
        assert await result(computation, server, bytes(range(256)) * 16, 20) == 20
        assert await result(computation, server, b"\n" * 65536, 20) == 20
        assert await result(computation, server, b"seen\n", 1) == 1
        await computation.close(server)

    with_node(tmp_path, work)
    shown = capsys.readouterr().err
    assert "] seen\n" in shown
    assert not set(shown) & {chr(code) for code in range(32) if chr(code) != "\n"} - {"\t"}


def test_a_closed_standard_error_stops_no_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed:
        def write(self, text: str) -> None:
            raise BrokenPipeError

    async def work(node: Node, mesh: Mesh) -> None:
        monkeypatch.setattr(workers_module.sys, "stderr", Closed())
        computation, server = await opened(write)
        assert await result(computation, server, b"text\n", 3) == 3
        await computation.close(server)
        monkeypatch.undo()

    with_node(tmp_path, work)


@pytest.mark.parametrize(
    ("chunks", "lines"),
    [
        ([b""], []),
        ([b"one\ntwo\n"], ["one", "two"]),
        ([b"on", b"e\ntw", b"o"], ["one", "two"]),
        ([b"one\r\ntwo\rthree\n"], ["one", "two", "three"]),
        ([b"\n\n"], ["", ""]),
        ([b"\xff\xfe\n"], ["\ufffd\ufffd"]),
        ([b"\x1b[2J\x9b\tx\x7f\n"], ["\\x1b[2J\ufffd\tx\\x7f"]),
        (["\x9b2J".encode(), b"\n"], ["\\x9b2J"]),
        (["grün".encode()], ["grün"]),
    ],
)
def test_lines_of_output(chunks: list[bytes], lines: list[str]) -> None:
    output = Output()
    assert [line for chunk in chunks for line in output.feed(chunk)] + output.end() == lines


def test_an_endless_line_comes_in_pieces_and_nothing_grows() -> None:
    output = Output()
    for _ in range(3 * LAST_LINES):
        for line in output.feed(b"x" * 50_000):
            assert len(line) < 2 * LINE_BYTES
    assert len(output.last) == LAST_LINES
    assert len(summary(list(output.last))) < 2000


def test_two_setups_of_one_computation_at_a_time_come_one_after_the_other(tmp_path: Path) -> None:
    async def work(node: Node, mesh: Mesh) -> None:
        (tmp_path / "data").write_bytes(os.urandom(3 << 20))  # so that the second comes while the first fetches
        server, computation = node.slots[0].coro, Computation(pid_of, depends=[tmp_path / "data"])
        assert await asyncio.gather(*(computation.setup(server, timeout=30) for _ in range(3))) == [0, 0, 0]
        assert len({worker.pid for worker in node.slots[0]._here()}) == 1
        await computation.close(server)

    with_node(tmp_path, work)


def test_a_busy_worker_is_killed_too_where_the_func_of_close_needs_further_modules(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tidying.py").write_text("def tidy():\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    tidy = importlib.import_module("tidying").tidy

    async def work(node: Node, mesh: Mesh) -> None:
        server, computation = node.slots[0].coro, Computation(hold)
        await computation.setup(server)
        await computation.run(server, 600)
        async with asyncio.timeout(20):
            with pytest.raises(Stuck):
                await computation.close(server, func=tidy, close_timeout=0.5)

    try:
        with_node(tmp_path, work)
    finally:
        del sys.modules["tidying"]
