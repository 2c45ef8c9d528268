"""Nodes for tests: as a child process on loopback, or in the test's own event loop; and what can be seen of their processes.

    with a_node(tmp_path, "-c", "2") as node:            async with local_mesh(tmp_path, slots=2) as (node, mesh):
        node.process, node.ready, node.output                ...

Whatever a test does, no process of it outlives the block. Waiting is always for something that happens: the end of a process
(pidfd), of a file (inotify).
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import select
import sys
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

from discoro.mesh import Mesh
from discoro.node import Node, NodeOptions
from discoro.options import Place
from discoro.security import Security
from tests.support.commands import ROOT, Machines, NodeCommand

COMMAND = [sys.executable, "-m", "discoro"]
LOOPBACK = ("-i", "127.0.0.1", "--no-mdns", "-p", "0")
SECURITY = Security(bytes(range(64)), "key of the tests")
IN_DELETE, IN_DELETE_SELF = 0x200, 0x400


@contextlib.contextmanager
def a_node(tmp_path: Path, *options: str) -> Iterator[NodeCommand]:
    """One node of the command line, ready; its files lie in tmp_path/files-node. Stopped in order at the end."""
    with Machines(tmp_path) as machines:
        yield machines.node("node", *options)


def environment(tmp_path: Path, **more: str) -> dict[str, str]:
    """For a discoro process that a test starts by itself: everything of it is in tmp_path."""
    own = {"PYTHONPATH": str(ROOT), "DISCORO_KEY_FILE": str(tmp_path / "cluster.key")}
    return {**os.environ, **own, "DISCORO_DEST_PATH": str(tmp_path / "files"), **more}


@contextlib.asynccontextmanager
async def node_here(tmp_path: Path, slots: int = 1, **options: Any) -> AsyncIterator[Node]:
    """A node in this process; its workers are processes as ever."""
    node_options = NodeOptions(slots, port=0, dest_path=tmp_path / "files", **options)
    async with Node(node_options, security=SECURITY, name="node", ip_addr=["127.0.0.1"], mdns=False) as node:
        yield node


@contextlib.asynccontextmanager
async def client_of(node: Node, name: str = "client") -> AsyncIterator[Mesh]:
    """A client of that node, in this process too."""
    options = {"name": name, "peers": node.mesh.addresses, "ip_addr": ["127.0.0.1"], "mdns": False}
    async with Mesh.placed(Place(security=SECURITY), **options) as mesh:
        yield mesh


def children(pid: int) -> set[int]:
    """The processes that this one started, and that have not ended."""
    with contextlib.suppress(FileNotFoundError):
        found = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
        return {int(child) for child in " ".join(found).split()}
    return set()


def until_ended(pids: Sequence[int], timeout: float) -> float:
    """Wait until all of these processes have ended; the seconds it took. Fails after `timeout` of them."""
    start = time.monotonic()
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            descriptor = os.pidfd_open(pid)
            try:
                ended = select.select([descriptor], [], [], max(0.0, start + timeout - time.monotonic()))[0]
            finally:
                os.close(descriptor)
            assert ended, f"{pid} still runs after {timeout} s: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}"
    return time.monotonic() - start


def until_gone(path: Path, timeout: float) -> None:
    """Wait until there is no such file or directory any more; fails after `timeout` seconds."""
    end = time.monotonic() + timeout
    libc = ctypes.CDLL(None)
    watcher = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        libc.inotify_add_watch(watcher, os.fsencode(path), IN_DELETE_SELF)
        libc.inotify_add_watch(watcher, os.fsencode(path.parent), IN_DELETE)
        while path.exists():
            assert select.select([watcher], [], [], max(0.0, end - time.monotonic()))[0], f"{path} is still there"
            os.read(watcher, 65536)
    finally:
        os.close(watcher)


async def in_thread(function: Any, *args: Any) -> Any:
    """Wait for something outside while the loop runs."""
    return await asyncio.to_thread(function, *args)


def files_below(directory: Path) -> list[str]:
    """Every file and directory below, relative."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*"))
