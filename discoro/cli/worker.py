"""A worker process: `python -m discoro.cli.worker`, started by a node and by nobody else.

Its node tells it everything through standard input, and takes what it prints. It opens one discoro_server (server.py) in this
process and reports it; from then on clients talk to it directly. It ends when the node closes its standard input, or is gone.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import io
import sys
from pathlib import Path
from typing import Any

from discoro import allowance, payload, script
from discoro.coro import Coro
from discoro.errors import DiscoroError
from discoro.mesh import Mesh
from discoro.options import Place
from discoro.process import Later, Parent, set_limits
from discoro.references import CoroRef
from discoro.responding import answer_to, show_stack_through
from discoro.security import Security
from discoro.server import Computations, Serving, serve

YOUNG = 10_000  # objects that were made and are not gone, after which Python looks for rings among them (its own number: 700)
GRACE = 1.5  # seconds from the end of the pipe to a hard end; as long as a node waits before it kills


def main() -> int:
    """The exit status: 0 after an end in order."""
    set_limits()
    faulthandler.enable(all_threads=False)  # a crash in C leaves its stack in the output, which the node keeps
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # line by line, so that the last one before a crash is not lost
            stream.reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)
    node = Parent.meet()
    if node is None:
        print("discoro.cli.worker is started by discoro-node, not by hand", file=sys.stderr)
        return 2
    show_stack_through(node.told["answers"])
    payload.warm_up()
    allowance.limit(node.told.pop("max_memory"), node.told["name"])
    script.install()
    spare_collector()
    try:
        asyncio.run(work(node))
    except (DiscoroError, OSError) as error:
        print(f"discoro worker: {error}", file=sys.stderr)
        return 1
    return 0


def spare_collector() -> None:
    """Have Python's collector of rings look less often, and never at what every worker has: it took a quarter of the time where
    coroutines come and go by the thousand.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(YOUNG, *gc.get_threshold()[1:])


async def work(node: Parent) -> None:
    """Serve until the node closes the pipe."""
    loop, ended, told = asyncio.get_running_loop(), asyncio.Event(), node.told
    loop.set_exception_handler(allowance.end_where_spent)
    keys, hosts = Later(loop, "security"), Later(loop, "hosts")
    answer = answer_to(told["answers"], loop)

    def on_told(what: dict[str, Any]) -> None:
        if "ask" in what:
            answer(what)
        else:
            keys.on_told(what)
            hosts.on_told(what)

    node.end_with(lambda: loop.call_soon_threadsafe(ended.set), grace=GRACE, on_told=on_told)
    security = Security.from_handed_down(told.pop("security"))  # taken out: a traceback with variables shows what was told
    place = Place(
        role="worker",
        node=told["node"],
        ports=told["ports"],
        security=security,
        hosts=tuple(told["hosts"]),
        files=Path.cwd(),
        blobs=Path(told["blobs"]),  # the node's, which fetches them
        fetcher=CoroRef(told["node"], 0, told["birth"], 0, told["name"], tuple(told["addresses"])),
    )
    told_options = ("name", "cluster", "ext_ip_addr", "debug", "max_file_size")
    options = {key: told[key] for key in told_options}
    async with Mesh.placed(place, **options) as mesh:
        backend = Computations(mesh, Path.cwd(), told["birth"])
        server = Coro.start(mesh, serve, (Serving(backend, f"the worker {told['name']}"),), name="discoro_server")
        keys.begin(mesh.rekeying.use_told)  # before the node is greeted, which may have another one by now
        hosts.begin(mesh.moving.told)
        mesh.meet(told["birth"], told["addresses"])
        await mesh.ask(told["birth"], "ready", {"token": told["token"], "server": server.ref.to_plain()}, None)
        await ended.wait()


if __name__ == "__main__":
    sys.exit(main())
