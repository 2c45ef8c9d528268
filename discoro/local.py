"""A node of this machine only, as a child process, for the life of a `with` block.

What `local=True` means: no other machine takes part, nothing is advertised, every port is free to choose. The child ends with
this process, however that ends (its standard input is our end of a pipe).
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from discoro.errors import ConfigError, Timeout
from discoro.process import child_environment

START_TIMEOUT = 20.0  # seconds: a cold start takes 0.5 s, a loaded small machine many times that
STOP_TIMEOUT = 5.0  # seconds until a node that was asked to stop is killed


@asynccontextmanager
async def local_node(handed_down: str, *options: str, timeout: float = START_TIMEOUT) -> AsyncIterator[dict[str, Any]]:
    """Start `discoro-node` on loopback with these further options; gives what it says when ready: addresses, pid, slots.

    `handed_down` is the key (`Security.handed_down`); it goes through the pipe, so that no list of processes shows it. Raises ConfigError with its last lines where it does not start, Timeout after `timeout` seconds.
    """
    command = [sys.executable, "-m", "discoro", "--json-ready", "--child", "-i", "127.0.0.1", "--port", "0", *options]
    pipe = asyncio.subprocess.PIPE
    # process_group: Ctrl-C in the terminal is ours to answer, and ends the node in order through its standard input
    process = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe, env=child_environment(), process_group=0)
    assert process.stdin is not None
    process.stdin.write(json.dumps({"security": handed_down, "parent": os.getpid()}).encode() + b"\n")
    try:
        yield await _ready(process, timeout)
    finally:
        await _stop(process)


async def _ready(process: asyncio.subprocess.Process, timeout: float) -> dict[str, Any]:
    assert process.stdout is not None
    try:
        async with asyncio.timeout(timeout):
            line = await process.stdout.readline()
    except TimeoutError:
        raise Timeout(f"the local node did not become ready in {timeout:g} s; its own output says more") from None
    if not line:
        status = await process.wait()
        raise ConfigError(f"the local node ended with status {status} before it was ready; its output above says why")
    ready: dict[str, Any] = json.loads(line)
    return ready


async def _stop(process: asyncio.subprocess.Process) -> None:
    """End of input asks it to stop; a kill ends what does not."""
    assert process.stdin is not None
    process.stdin.close()
    try:
        async with asyncio.timeout(STOP_TIMEOUT):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

