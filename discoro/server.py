"""discoro_server: the coroutine that takes computations, and the worker's side of it.

`discoro_server` answers requests in its mailbox: offer, chunk, setup, run, ping, close. What they do is a `Backend`'s: in a
worker, or in any process of a user's own, `Computations` opens them in this process; in a node, each slot has a backend of its
own (node.py) that hands them to workers. Only `Computations` unpacks code.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import tempfile
from collections.abc import Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from discoro import payload
from discoro.coro import CLOSED, Coro, current_coro, host_here
from discoro.errors import CloseFailed, DiscoroError, NotSetUp, ProtocolError, SetupFailed
from discoro.files import Shipped, Store, checked_files, remove_files
from discoro.mesh import Mesh
from discoro.messages import Greeting, Part
from discoro.requests import Incoming, answering

VERBS = frozenset({"offer", "chunk", "setup", "run", "ping", "close"})


class Backend(Protocol):
    """What answers the requests of one discoro_server; each method answers, or raises what the asker is to get."""

    async def offer(self, incoming: Incoming) -> None: ...
    async def chunk(self, incoming: Incoming) -> None: ...
    async def setup(self, incoming: Incoming) -> None: ...
    async def run(self, incoming: Incoming) -> None: ...
    async def ping(self, incoming: Incoming) -> None: ...
    async def close(self, incoming: Incoming) -> None: ...


def discoro_server(name: str = "discoro_server") -> Generator[Any, Any, None]:
    """Accept computations from clients in this process; for `Coro(discoro_server, name=...)`.

    Registers under `name`, so that clients find it with `Coro.locate(name)`. Computations run here, in this process: their files
    go to a directory of their own, which becomes the current directory of nobody. Runs until terminated. From the asyncoro 3.2
    discoro page.
    """
    mesh = host_here()
    assert isinstance(mesh, Mesh)
    with tempfile.TemporaryDirectory(prefix="discoro-server-") as directory:
        backend = Computations(mesh, Path(directory))
        try:
            yield from serve(backend, mesh.register(current_coro(), name))
        finally:
            backend.abandon()


def serve(backend: Backend, begin: Awaitable[Any] | None = None) -> Generator[Any, Any, None]:
    """Answer requests for ever, each in its own time: a slow one keeps nobody waiting."""
    coro = current_coro()
    coro.serves = VERBS
    if begin is not None:
        yield begin
    tasks: set[asyncio.Task[None]] = set()
    try:
        while True:
            incoming = yield coro.receive()
            if not isinstance(incoming, Incoming):
                continue  # a message to a discoro_server means nothing: it talks in requests
            task = asyncio.ensure_future(answering(incoming, getattr(backend, incoming.verb)(incoming)))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
    finally:
        for task in tasks:
            task.cancel()


@dataclass
class Opened:
    """A computation that is open in this process."""

    id: str
    name: str
    client: Greeting
    cleanup: bool
    function: Callable[..., Any]
    namespace: payload.Namespace
    files: list[Path] = field(default_factory=list)
    coros: set[Coro] = field(default_factory=set)
    closing: bool = False


class Computations:
    """The backend that opens computations in this process: their code, files and coroutines.

    `directory` is where their files lie under their names; `store` where blobs are kept (default: below it).
    """

    def __init__(self, mesh: Mesh, directory: Path, store: Store | None = None) -> None:
        self._mesh = mesh
        self._directory = directory
        self._store = store or Store(directory / ".blobs")
        self._opened: dict[str, Opened] = {}
        mesh.on_peer_lost.append(self._client_lost)

    # -------------------------------------------------------------- verbs

    async def offer(self, incoming: Incoming) -> None:
        files = checked_files(incoming.arguments.get("files"))
        incoming.reply(self._store.offer(file.blob for file in files))

    async def chunk(self, incoming: Incoming) -> None:
        incoming.reply(take_chunk(self._store, incoming))

    async def setup(self, incoming: Incoming) -> None:
        """Open a computation, or open it anew: place its files, build its code, run `func`."""
        arguments = incoming.arguments
        number, name = text_of(arguments, "id"), text_of(arguments, "name")
        code, func = bodies(incoming)
        files = [self._store.place(file, self._directory) for file in checked_files(arguments.get("files"))]
        importlib.invalidate_caches()
        namespace = payload.Namespace(f"{name} of {incoming.peer.name}")
        try:
            (function,) = payload.unpack_code(code, namespace)[:1]
            self._call(func, namespace, "setup")
        except DiscoroError:
            self._remove(files)
            raise
        opened = Opened(number, name, incoming.peer, bool(arguments.get("cleanup", True)), function, namespace, files)
        before = self._opened.get(number)
        if before is not None:  # its coroutines go on; they are closed with the new one
            opened.coros = before.coros
            opened.files += [path for path in before.files if path not in files]
        self._opened[number] = opened
        incoming.reply({"worker": current_server(self._mesh, incoming).to_plain()})

    async def run(self, incoming: Incoming) -> None:
        """Start a coroutine of the computation; its reference."""
        opened = self._find(incoming)
        args, kwargs = payload.unpack(incoming.body, opened.namespace)
        coro = Coro.start(self._mesh, opened.function, args, kwargs, namespace=opened.namespace)
        opened.coros.add(coro)
        coro.when_ended(lambda: opened.coros.discard(coro))
        self._mesh.watch_for(coro, incoming.peer)
        incoming.reply(coro.ref.to_plain())

    async def ping(self, incoming: Incoming) -> None:
        self._find(incoming)
        incoming.reply(0)

    async def close(self, incoming: Incoming) -> None:
        """No new runs; running coroutines end; then `func`; then globals and files."""
        opened = self._find(incoming)
        opened.closing = True
        timeout = incoming.arguments.get("timeout")
        stuck = await self._end(opened, timeout if isinstance(timeout, int | float) else 10.0)
        try:
            if stuck:
                names = ", ".join(f"{coro.name} ({coro})" for coro in stuck)
                raise CloseFailed(f"{len(stuck)} coroutines of {opened.name} did not end: {names}")
            _, func = bodies(incoming)
            self._call(func, opened.namespace, "close")
        finally:
            self._forget(opened)
        incoming.reply(0)

    # -------------------------------------------------------------- ends

    def abandon(self) -> None:
        """The server ends: everything it opened is closed, without func."""
        self._mesh.on_peer_lost.remove(self._client_lost)
        for opened in list(self._opened.values()):
            self._drop(opened)

    def _client_lost(self, peer: Greeting, reason: str) -> None:
        """A client that is gone has its computations closed."""
        for opened in [each for each in self._opened.values() if each.client.birth == peer.birth]:
            self._drop(opened)

    def _drop(self, opened: Opened) -> None:
        for coro in list(opened.coros):
            coro.stop(CLOSED)
        self._forget(opened)

    @staticmethod
    async def _end(opened: Opened, timeout: float) -> list[Coro]:
        """End the coroutines; those that still run after `timeout` seconds."""
        for coro in list(opened.coros):
            coro.stop(CLOSED)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                for coro in list(opened.coros):
                    await coro.stopped()
        return [coro for coro in opened.coros if not coro.done]

    def _forget(self, opened: Opened) -> None:
        self._opened.pop(opened.id, None)
        if opened.cleanup:
            self._remove(opened.files)

    def _remove(self, files: Sequence[Path]) -> None:
        """Remove files that no other computation here has as well."""
        used = {path for opened in self._opened.values() for path in opened.files}
        remove_files([path for path in files if path not in used], self._directory)

    # -------------------------------------------------------------- parts

    def _find(self, incoming: Incoming) -> Opened:
        opened = self._opened.get(text_of(incoming.arguments, "id"))
        if opened is None or opened.closing:
            state = "is closed" if opened else "is not set up, or was closed,"
            raise NotSetUp(f"the computation {state} at {self._mesh.me.name}/{os.getpid()}: call setup again before {incoming.verb}")
        return opened

    @staticmethod
    def _call(body: Sequence[Part], namespace: payload.Namespace, when: str) -> None:
        """Run the func of setup or close, where there is one."""
        if not body:
            return
        function, args, kwargs = payload.unpack_code(body, namespace, keep=True)
        try:
            function(*args, **kwargs)
        except Exception as error:  # the user's own: it goes back to the one who sent the function
            failed = SetupFailed if when == "setup" else CloseFailed
            raise failed(f"func {function.__name__} of {when} raised {type(error).__name__}: {error}") from error


def current_server(mesh: Mesh, incoming: Incoming) -> Any:
    """The reference of the discoro_server that answers a request."""
    return mesh.ref_of(incoming.coro)


def take_chunk(store: Store, incoming: Incoming) -> bool:
    """One chunk of a file, as the verb chunk brings it."""
    digest, offset = incoming.arguments.get("digest"), incoming.arguments.get("offset")
    if not isinstance(digest, str) or type(offset) is not int or len(incoming.body) != 1:
        raise ProtocolError("a chunk without digest, offset and bytes")
    return store.take(digest, offset, incoming.body[0])


def bodies(incoming: Incoming) -> tuple[Sequence[Part], Sequence[Part]]:
    """The two bodies of setup and close: code and func, told apart by the number of parts of the first."""
    count = incoming.arguments.get("code", 0)
    if type(count) is not int or not 0 <= count <= len(incoming.body):
        raise ProtocolError("a body that is not divided as it says")
    return incoming.body[:count], incoming.body[count:]


def text_of(arguments: dict[str, Any], key: str) -> str:
    """A text among the arguments; ProtocolError where it is missing."""
    value = arguments.get(key)
    if not isinstance(value, str) or len(value) > 255:
        raise ProtocolError(f"a request without {key}")
    return value
