"""A worker process: `python -m discoro.cli.worker`, started by a node and by nobody else.

Its node tells it everything through standard input, and takes what it prints. It opens one discoro_server (server.py) in this
process and reports it; from then on clients talk to it directly. It ends when the node closes its standard input, or is gone.
"""

from __future__ import annotations

import asyncio
import faulthandler
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from discoro import payload
from discoro.coro import Coro
from discoro.errors import DiscoroError
from discoro.files import Store
from discoro.mesh import Mesh, Place
from discoro.process import end_with_parent, read_line, take_standard_input
from discoro.security import Security
from discoro.server import Computations, serve


def main() -> int:
    """The exit status: 0 after an end in order."""
    faulthandler.enable()  # a crash in C leaves its stack in the output, which the node keeps
    if hasattr(signal, "SIGUSR1"):
        faulthandler.register(signal.SIGUSR1, all_threads=False)  # the node asks where a busy worker stands
    pipe = take_standard_input()
    told = json.loads(read_line(pipe) or b"null")
    if told is None:
        print("discoro.cli.worker is started by discoro-node, not by hand", file=sys.stderr)
        return 2
    payload.warm_up()
    try:
        asyncio.run(work(told, pipe))
    except (DiscoroError, OSError) as error:
        print(f"discoro worker: {error}", file=sys.stderr)
        return 1
    return 0


async def work(told: dict[str, Any], pipe: int) -> None:
    """Serve until the node closes the pipe."""
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    end_with_parent(pipe, told["parent"], lambda: loop.call_soon_threadsafe(ended.set))
    ports = range(*told["ports"]) if told["ports"] else None
    place = Place(
        role="worker", node=told["node"], ports=ports, security=Security.from_handed_down(told["security"])
    )
    options = {"name": told["name"], "cluster": told["cluster"], "ip_addr": told["hosts"], "ext_ip_addr": told["ext_ip_addr"]}
    async with Mesh.placed(place, **options) as mesh:
        here = Path.cwd()
        backend = Computations(mesh, here, Store(here / ".blobs"))
        server = Coro.start(mesh, serve, (backend,), name="discoro_server")
        ready = {"token": told["token"], "server": server.ref.to_plain()}
        mesh.meet(told["birth"], told["addresses"])
        await mesh.ask(told["birth"], "ready", ready, None)
        await ended.wait()


if __name__ == "__main__":
    if os.name != "nt":
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the node's to answer
    sys.exit(main())
