"""One blob for 64 nodes: how often the process that has it uploads it, and how many rounds it takes until all have it.

Each node is a real mesh with a store of its own, over a network in memory; only the clock is moved. Each process has an uplink
of so many bytes a second, and a round is the time in which one uplink carries the blob once. Who pulled from whom is read from
the wire.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from discoro import Broadcast, Computation, Mesh, broadcast, discoro_server
from discoro.messages import MIB
from tests.support.memory_network import MemoryNetwork
from tests.support.meshes import World, simulate, start, until

NODES = 64
FEW = 24  # for tests that need not so many: all of them link with each other, which takes a while
ROUNDS = 2 * math.log2(NODES)
SIZE = 3 * MIB
RATE = 100 * MIB  # bytes a second, of each uplink
ROUND = SIZE / RATE  # seconds
LARGE = SIZE / 6  # bytes from one process to another, which are more than talk: some of the blob was among them


class Uplinks(MemoryNetwork):
    """A network in which what a process sends goes out in a row, at so many bytes a second; it counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[tuple[str, str]] = Counter()  # by sender and receiver
        self._free: dict[str, float] = {}  # when all that the sender has begun to send is out

    def delays(self, sender: str, receiver: str, parts: list[Any]) -> list[float]:
        loop, size = asyncio.get_running_loop(), sum(memoryview(part).nbytes for part in parts)
        now = loop.time()
        self._free[sender] = max(now, self._free.get(sender, 0.0)) + size / RATE
        loop.call_at(self._free[sender], self._count, sender, receiver, size)
        return [self._free[sender] - now for _ in super().delays(sender, receiver, parts)]

    def _count(self, sender: str, receiver: str, size: int) -> None:
        self.bytes[sender, receiver] += size

    def uploads(self, sender: str) -> float:
        """How often that process sent out the blob, with all the talk about it."""
        return sum(count for (each, _), count in self.bytes.items() if each == sender) / SIZE

    def received(self, to: str) -> float:
        """How much of the blob has come there, as a part of it; with all the talk about it."""
        return sum(count for (_, each), count in self.bytes.items() if each == to) / SIZE

    def depth(self, origin: str) -> int:
        """The most processes that what a node has came through, that node included."""
        sources: dict[str, str] = {}
        for (sender, to), count in self.bytes.items():
            if count > LARGE and count > self.bytes[sources.get(to, ""), to]:
                sources[to] = sender

        def steps(node: str) -> int:
            return 0 if node == origin else 1 + steps(sources[node])

        return max(map(steps, sources))


class Cluster:
    """So many nodes and a client, and what goes from one to the other."""

    def __init__(self, wire: Uplinks, client: Mesh, nodes: dict[str, Mesh]) -> None:
        self.wire, self.client, self.nodes = wire, client, nodes

    def have(self, shared: Broadcast) -> int:
        """How many nodes have it."""
        return sum(node.transfers.path(shared.blob) is not None for node in self.nodes.values())

    def received(self, least: float, most: float = math.inf) -> list[str]:
        """The nodes that received so much of the blob, as a part of it."""
        return [name for name in self.nodes if least <= self.wire.received(name) < most]

    def serving(self) -> list[str]:
        """The nodes that have sent some of it to others."""
        return [name for name in self.nodes if self.wire.uploads(name) > 0.3]

    async def crash(self, name: str) -> None:
        """Its process is gone, without a word; nothing listens where it did."""
        await self.nodes.pop(name)._peers.wire.close()

    def check(self, rounds: float) -> None:
        """Nobody uploaded too much, or waited too long."""
        assert rounds <= ROUNDS
        assert self.wire.depth("client") <= ROUNDS
        assert self.wire.uploads("client") < 3.1, "3 copies, and the talk with all nodes"


@contextlib.asynccontextmanager
async def cluster(world: World, directory: Path, count: int = NODES) -> AsyncIterator[Cluster]:
    """So many nodes, and a client that is linked with them all."""
    wire = world.network = Uplinks()
    nodes: dict[str, Mesh] = {}
    async with contextlib.AsyncExitStack() as all_of_them:
        for number in range(count):
            name = f"node-{number}"
            mesh = world.mesh(name, role="node", dest_path=directory / name)
            nodes[name] = await all_of_them.enter_async_context(mesh)
        client = await all_of_them.enter_async_context(world.mesh("client", *nodes.values(), dest_path=directory / "client"))
        wire.bytes.clear()
        yield Cluster(wire, client, nodes)


class Rounds:
    """How many rounds it is since this was made."""

    def __init__(self) -> None:
        self._begun = asyncio.get_running_loop().time()

    def __float__(self) -> float:
        return (asyncio.get_running_loop().time() - self._begun) / ROUND


DATA = random.Random(64).randbytes(SIZE)


def test_all_have_a_broadcast_after_7_rounds_and_3_uploads(tmp_path: Path) -> None:
    async def test(world: World) -> None:
        async with cluster(world, tmp_path) as all_:
            rounds = Rounds()
            shared = await all_.client.run(broadcast, DATA)
            assert all_.have(shared) == NODES
            assert all_.client.transfers.copies(shared.blob) == 3
            all_.check(float(rounds))
            assert float(rounds) < 7.1, "after 1, 3, 7, 14, 28, 56, 64"

    simulate(test)


@pytest.mark.parametrize("seed", range(2))
def test_nodes_that_end_midway_cost_no_upload_and_are_no_failure(tmp_path: Path, seed: int) -> None:
    """In each of the first rounds two end: of those that have it and serve it, and of those it is on its way to."""

    async def test(world: World) -> None:
        dice = random.Random(seed)
        async with cluster(world, tmp_path) as all_:
            rounds = Rounds()
            broadcasting = asyncio.ensure_future(all_.client.run(broadcast, DATA))
            for number in range(2, 6):
                await until(lambda n=number: float(rounds) > n and all_.serving() and all_.received(0.1, 0.9))  # type: ignore
                for some in (all_.serving(), all_.received(0.1, 0.9)):
                    await all_.crash(dice.choice(some))
            shared = await broadcasting
            assert len(all_.nodes) == NODES - 8
            assert all_.have(shared) == len(all_.nodes)
            all_.check(float(rounds))

    simulate(test)


def test_nodes_that_fall_silent_cost_no_upload(tmp_path: Path) -> None:
    """Their cables are pulled: they are lost after 15 s, until when somebody waits for them; all others go on."""

    async def test(world: World) -> None:
        async with cluster(world, tmp_path, FEW) as all_:
            broadcasting = asyncio.ensure_future(all_.client.run(broadcast, DATA))
            await until(lambda: len(all_.serving()) >= 4)
            silent = [*all_.serving()[:2], *all_.received(0.1, 0.9)[:2]]
            everybody = ["client", *all_.nodes]
            with contextlib.ExitStack() as cables:
                for name in silent:
                    for other in everybody:
                        if other != name:
                            cables.enter_context(world.network.partition(name, other))
                rounds = Rounds()
                await until(lambda: len(all_.received(1)) >= FEW - 2 * len(silent))
                assert float(rounds) < ROUNDS, "whoever does not wait for them has it"
                shared = await broadcasting
                assert all_.have(shared) >= FEW - len(silent)
                assert all_.wire.uploads("client") < 3.1

    simulate(test)


def sized(name: str, coro: Any = None) -> Iterator[Any]:
    yield None
    return Path(name).stat().st_size


def test_setup_at_one_after_the_other_uploads_a_large_file_once(tmp_path: Path) -> None:
    """Who has it from an earlier setup serves the next one."""

    async def test(world: World) -> None:
        (tmp_path / "data.bin").write_bytes(DATA)
        async with cluster(world, tmp_path, FEW) as all_:
            computation = Computation(sized, depends=[tmp_path / "data.bin"])
            for node in all_.nodes.values():
                server = start(node, discoro_server)
                await until(lambda server=server: server.service is not None)  # type: ignore[misc]
                await all_.client.run(computation.setup, server.ref)
            assert all_.wire.uploads("client") < 1.2, "one copy, and the talk with all of them"

    simulate(test)
