"""The workers of a node: what cannot be started is told, what died is passed over, what ends is explained."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import vitals
from discoro import workers as workers_module
from discoro.computation import Computation
from discoro.errors import SetupFailed
from discoro.messages import Greeting
from discoro.node import Node
from discoro.vitals import Kills
from discoro.workers import Workers
from tests.support.nodes import client_of, in_thread, node_here, until_ended

needs_proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="no /proc, in which memory is looked up")


def pid_of(coro: Any = None) -> Iterator[Any]:
    yield None
    return os.getpid()


def workers_of(node: Node) -> Workers:
    return node.slots[0]._workers


async def all_started(workers: Workers) -> None:
    while workers._starting:
        await asyncio.wait(workers._starting)


def someone(node: Node) -> Greeting:
    """A client, by its greeting."""
    return node.mesh.me


# What does not work, first.


def test_a_directory_that_cannot_be_made_is_told_to_who_waits_and_made_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with node_here(tmp_path) as node, client_of(node):
            server = await discoro.Coro.locate("discoro_server")
            first = Computation(pid_of)
            await first.setup(server)
            await all_started(workers_of(node))
            (directory,) = (tmp_path / "files").glob("node-*")
            directory.rename(tmp_path / "away")
            directory.write_text("a file in its place")
            spare = workers_of(node)._warm[0].pid
            os.kill(spare, signal.SIGKILL)
            await in_thread(until_ended, [spare], 10)
            async with client_of(node, "another") as another:
                with pytest.raises(SetupFailed, match=r"workers do not start at node, \d+ in a row.*Not a directory.*/worker-"):
                    await another.run(setting_up, server)
                directory.unlink()
                (tmp_path / "away").rename(directory)
                while workers_of(node).given_up:
                    await asyncio.wait(workers_of(node)._starting, return_when=asyncio.FIRST_COMPLETED)
                await another.run(setting_up, server)
            await first.close(server)

    asyncio.run(asyncio.wait_for(main(), 60))
    assert [record.message for record in caplog.records if "could not be started" in record.message]


async def setting_up(server: Any) -> None:
    computation = Computation(pid_of)
    await computation.setup(server)
    await computation.close(server)


def test_one_that_died_a_moment_ago_is_adopted_by_nobody(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SPARE_WORKERS", 1)

    async def main() -> None:
        async with node_here(tmp_path) as node:
            workers = workers_of(node)
            await all_started(workers)
            dead, alive = list(workers._warm)
            os.kill(dead.pid, signal.SIGKILL)
            until_ended([dead.pid], 5)  # while the loop does nothing, and so knows nothing of it
            assert not dead.child.ended.done()
            adopted = await workers.adopt(someone(node), 0)
            assert adopted is alive and dead not in workers._warm
            await asyncio.wait([dead.gone])

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_worker_takes_another_port_than_the_one_before_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_here(tmp_path) as node:
            workers = workers_of(node)
            workers._ports = range(24_301, 24_304)
            turns = [workers._ports_in_turn() for _ in range(4)]
            assert turns == [[24_301, 24_302, 24_303], [24_302, 24_303, 24_301], [24_303, 24_301, 24_302], turns[0]]
            workers._ports = None
            assert workers._ports_in_turn() is None

    asyncio.run(asyncio.wait_for(main(), 60))


# What is seen of a worker, and told.


@needs_proc
def test_memory_is_looked_at_again_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers_module, "SAMPLE_EVERY", 0.001)

    async def main() -> None:
        async with node_here(tmp_path) as node:
            workers = workers_of(node)
            await all_started(workers)
            worker = next(iter(workers))
            assert 10 << 20 < worker.held < 100 << 20, "the first look is when it is ready"
            worker.held = 0
            counted = workers._kills[-1]
            while not worker.held or workers._kills[-1] is counted:
                await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 60))


@pytest.mark.parametrize(
    ("counted", "words"),
    [
        ([Kills(0, 0), Kills(0, 0), Kills(0, 0)], "by somebody, and not by the kernel"),
        ([Kills(0, 0), Kills(1, 1), Kills(1, 1)], "by the kernel, for memory"),  # counted at the last look, and seen only then
        ([Kills(1, 1), Kills(1, 1), Kills(2, 2)], "by the kernel, for memory"),
        ([Kills(None, None)] * 3, "by somebody, or by the kernel"),
    ],
)
def test_what_the_kernel_counted_since_the_look_before_the_last_decides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counted: list[Kills], words: str
) -> None:
    monkeypatch.setattr(workers_module, "SAMPLE_EVERY", 1000)

    async def main() -> None:
        async with node_here(tmp_path) as node:
            workers = workers_of(node)
            await all_started(workers)
            worker = next(iter(workers))
            workers._kills.extend(counted[:2])
            monkeypatch.setattr(vitals, "kills", lambda: counted[2])
            os.kill(worker.pid, signal.SIGKILL)
            await asyncio.wait([worker.gone])
            assert f"was killed by SIGKILL, {words}" in worker.gone.result()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_one_that_the_node_ends_is_told_with_the_nodes_reason_alone(tmp_path: Path) -> None:
    async def main() -> None:
        async with node_here(tmp_path) as node:
            workers = workers_of(node)
            await all_started(workers)
            worker = next(iter(workers))
            await workers.kill(worker, "a test wants it so")
            assert worker.gone.result() == f"node/{worker.pid} was ended: a test wants it so"

    asyncio.run(asyncio.wait_for(main(), 60))
