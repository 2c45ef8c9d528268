"""A node of this machine only, as a child process, for the life of a `with` block.

What `local=True` means: no other machine takes part, nothing is advertised, every port is free to choose. The child ends with
this process, however that ends, and says nothing of its own unless something goes wrong.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from discoro.errors import ConfigError, Timeout
from discoro.process import Child

START_TIMEOUT = 20.0  # seconds: a cold start takes 0.5 s, a loaded small machine many times that
STOP_TIMEOUT = 5.0  # seconds until a node that was asked to stop is killed; it takes 3 at most


class LocalNode(NamedTuple):
    """A node that runs; `ready` is what it said of itself: addresses, pid, slots."""

    ready: dict[str, Any]
    child: Child

    def tell_key(self, handed_down: str) -> None:
        """The cluster's key was changed."""
        self.child.tell({"security": handed_down})


@asynccontextmanager
async def local_node(
    handed_down: str, *options: str, timeout: float = START_TIMEOUT, debug: bool = False
) -> AsyncIterator[LocalNode]:
    """Start `discoro-node` on loopback with these further options; gives it once it is ready.

    `handed_down` is the key (`Security.handed_down`); it goes through a pipe, so that no list of processes shows it. `debug`
    has node and workers name what blocks them, without the log of every step that `-d` brings. Raises ConfigError where it
    does not start, Timeout after `timeout` seconds. At the end of the block it is stopped in order.
    """
    loop = asyncio.get_running_loop()
    line, output = loop.create_future(), bytearray()

    def on_output(data: bytes) -> None:
        output.extend(data)
        if b"\n" in data and not line.done():
            line.set_result(bytes(output))

    command = [sys.executable, "-P", "-m", "discoro", "--json-ready", "--child", "-i", "127.0.0.1", "--port", "0", *options]
    node = Child(command, {"security": handed_down, "debug": debug}, on_output)
    try:
        await asyncio.wait([line, node.ended], timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if not line.done():
            raise _not_ready(node, timeout)
        ready: dict[str, Any] = json.loads(line.result())
        yield LocalNode(ready, node)
    finally:
        await _stop(node)


def _not_ready(node: Child, timeout: float) -> ConfigError | Timeout:
    if node.ended.done():
        status = node.ended.result()
        return ConfigError(f"the local node ended with status {status} before it was ready; its output above says why")
    return Timeout(f"the local node did not become ready in {timeout:g} s; its output above may say why")


async def _stop(node: Child) -> None:
    """The end of its input asks it to stop, SIGTERM too where a process we forked holds the pipe; a kill ends what does not."""
    node.ask_to_end()
    node.signal(signal.SIGTERM)
    await asyncio.wait([node.ended], timeout=STOP_TIMEOUT)
    node.signal_group(signal.SIGKILL)
    await node.finish(0)
