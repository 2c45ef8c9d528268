"""A program's own door to the mesh: `run` for a script, `servers` for who uses all of them, `join`; files for peers."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from discoro.driving import check_coroutine, from_user
from discoro.mesh import STATUS_TIMEOUT, Mesh, current_mesh
from discoro.options import veil
from discoro.presence import Peer
from discoro.progress import Count
from discoro.references import CoroRef, Handle
from discoro.status import NodeStatus


def run(main: Callable[..., Any], /, *args: Any, **mesh_options: Any) -> Any:
    """Join the mesh, run the coroutine function `main` with `args`, leave, and return its value.

    `mesh_options` are the fields of `discoro.options.MeshOptions`: `local=True` uses a node of this machine only, started for
    the call. Raises what `main` raises; NotACoroutine; RuntimeError inside a running event loop, where
    `async with discoro.Mesh(...)` does the same. Ctrl-C ends `main` in order and raises KeyboardInterrupt. `sys.exit` in `main`
    ends the program with that status; in any other coroutine it ends that coroutine.
    """
    check_coroutine(main)
    veil(mesh_options)

    async def program() -> Any:
        async with Mesh(**mesh_options) as mesh:
            return await mesh.run(main, *args)

    if _loop_runs():
        raise RuntimeError("an event loop runs here: use `async with discoro.Mesh(...) as mesh` and `await mesh.run(main)`")
    try:
        return asyncio.run(program())
    except KeyboardInterrupt:
        # How asyncio noticed what the user did tells nobody anything.
        raise KeyboardInterrupt from None
    except Exception as error:
        error.__traceback__ = from_user(error.__traceback__)  # a page of frames of discoro's own tells nobody anything
        raise


async def servers(name: str = "discoro_server", timeout: float | None = None) -> list[CoroRef]:
    """The references of every `discoro_server` on the mesh, free ones first; used with yield or await.

    Looks until no further node turns up, at most `timeout` seconds (default: `discover_timeout` of the mesh). Raises NoNodes.
    """
    return await current_mesh().servers(name, timeout)


async def status(peer: Peer | Handle, timeout: float | None = STATUS_TIMEOUT) -> NodeStatus:
    """What a node's workers do, as the node sees it however busy they are; used with yield or await. Returns a NodeStatus.

    `peer` is a node among the peers, or one of its servers. Of a worker whose loop has not turned for two seconds or more it
    says for how long, and the line of code that it stands in. Raises Timeout after `timeout` seconds, ConfigError for a process
    that is no node, PeerLost, Unreachable.
    """
    return await current_mesh().status(peer, timeout)


async def join(timeout: float | None = None) -> int:
    """Wait, at most `timeout` seconds, until every other coroutine of this process has ended; used with yield or await.

    Daemons (`Coro.set_daemon`), servers, channels and queues are not waited for. Returns 0. Raises Timeout, which names those
    that still run.
    """
    return await current_mesh().join(timeout)


async def send_file(
    peer: Peer | Handle,
    path: str | os.PathLike[str],
    dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    timeout: float | None = None,
    *,
    progress: Count | bool | None = None,
) -> int:
    """Send a file or a directory to another process; used with yield or await. Returns 0. See `Mesh.send_file`."""
    return await current_mesh().send_file(peer, path, dir, overwrite, timeout, progress=progress)


async def fetch_file(
    peer: Peer | Handle,
    name: str | os.PathLike[str],
    dir: str | os.PathLike[str] | None = None,
    overwrite: bool = False,
    timeout: float | None = None,
    *,
    progress: Count | bool | None = None,
) -> Path:
    """Fetch a file or a directory from another process; used with yield or await. Returns its path. See `Mesh.fetch_file`."""
    return await current_mesh().fetch_file(peer, name, dir, overwrite, timeout, progress=progress)


async def del_file(
    peer: Peer | Handle,
    name: str | os.PathLike[str],
    dir: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
) -> int:
    """Remove a file or a directory at another process; used with yield or await. Returns 0. See `Mesh.del_file`."""
    return await current_mesh().del_file(peer, name, dir, timeout)


def _loop_runs() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
