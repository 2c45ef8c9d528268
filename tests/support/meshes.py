"""Several meshes in one process, over a network in memory, on a clock that jumps."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from discoro.coro import Coro
from discoro.mesh import Mesh
from discoro.options import Place
from discoro.security import Security
from tests.support import moved_clock
from tests.support.memory_network import MemoryNetwork

OPEN = Security.from_options(open=True)


class World:
    """What a test gets: the network, and meshes by name."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()

    @contextlib.asynccontextmanager
    async def mesh(self, name: str, *peers: Mesh, role: str = "client", **options: Any) -> AsyncIterator[Mesh]:
        """A mesh of that name, linked with these others when the block begins."""
        place = Place(role=role, security=OPEN, transport=lambda security, owner: self.network.transport(name, security, owner))
        options = {"mdns": False, "ip_addr": ["127.0.0.1"], "peers": [peer.addresses[0] for peer in peers], **options}
        async with Mesh.placed(place, name=name, **options) as mesh:
            for peer in peers:
                await until(lambda peer=peer: knows(mesh, peer))  # type: ignore[misc]
            yield mesh


def knows(mesh: Mesh, other: Mesh) -> bool:
    """Whether `mesh` could ask `other` for names."""
    return other.me.birth in [node.birth for node in mesh.nodes()]


async def until(true: Callable[[], bool], seconds: float = 60.0) -> None:
    """Let the clock jump until something holds."""
    async with asyncio.timeout(seconds):
        while not true():
            await asyncio.sleep(0.01)


def simulate(test: Callable[[World], Awaitable[Any]]) -> Any:
    """Run an async test in a new world."""
    return moved_clock.run(lambda: test(World()))


def start(mesh: Mesh, function: Callable[..., Any], *args: Any) -> Coro:
    """A coroutine in one of several meshes."""
    return Coro.start(mesh, function, args)
