"""One node, and a server in a process of one's own, for tests that run computations on real links of this machine.

    @pytest.fixture(scope="module")
    def site(tmp_path_factory):
        with running_site(tmp_path_factory.mktemp("site")) as site:
            yield site

    def test_it(site):
        async def client(server): ...
        site.run("node", client)

`run` makes a client's mesh, finds a server of that kind ("node": a slot of the node; "bare": `Coro(discoro_server)` in another
mesh of this process), and runs the coroutine function with its reference.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from discoro import Coro, CoroRef, Mesh, discoro_server
from tests.support.commands import Machines, NodeCommand

TIMEOUT = 30.0  # seconds that one test's client may take
both_kinds = pytest.mark.parametrize("kind", ["node", "bare"])


@dataclass
class Site:
    """A running node, and what its clients need to reach it."""

    machines: Machines
    node: NodeCommand
    directory: Path

    def options(self, **more: Any) -> dict[str, Any]:
        """The options of a client's mesh."""
        here = {"ip_addr": ["127.0.0.1"], "mdns": False, "key_file": self.machines.key_file, "name": "client"}
        return {**here, "peers": [self.node.address], **more}

    def run(self, kind: str, client: Callable[..., Any], *args: Any, timeout: float = TIMEOUT) -> Any:
        """What `client(server, *args)` gives; it is a coroutine function."""

        async def program() -> Any:
            async with asyncio.timeout(timeout), self.server(kind) as (mesh, server):
                return await mesh.run(client, server, *args)

        return asyncio.run(program())

    @contextlib.asynccontextmanager
    async def server(self, kind: str) -> AsyncIterator[tuple[Mesh, CoroRef]]:
        """A client's mesh, and a server of that kind; inside the block the mesh is the current one."""
        if kind == "node":
            async with Mesh(**self.options()) as mesh:
                yield mesh, await Coro.locate("discoro_server", timeout=10)
            return
        async with Mesh(**self.options(name="own", peers=[])) as own:
            Coro.start(own, discoro_server, ("mine",))
            async with Mesh(**self.options(peers=[own.addresses[0]])) as mesh:
                yield mesh, await Coro.locate("mine", timeout=10)


@contextlib.contextmanager
def running_site(directory: Path, *options: str) -> Iterator[Site]:
    """A node with two slots, for the length of the block."""
    with Machines(directory) as machines:
        yield Site(machines, machines.node("here", "-c", "2", *options), directory)


def files_below(directory: Path) -> list[str]:
    """Every file below a directory, by its path."""
    return sorted(os.path.join(where, file) for where, _, files in os.walk(directory) for file in files)
