"""Computation: code, what it depends on and its files, packed to run elsewhere.

The client's half of setup, run, ping and close. It packs, asks the server with one request each, and keeps for every server
where the computation is open which worker runs it. The server's half is server.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import secrets
import sys
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from discoro import payload
from discoro.blobs import Sending
from discoro.coro import CoroRef, Handle, check_coroutine, host_here
from discoro.errors import CloseFailed, ConfigError, DiscoroError, NotSetUp, PeerLost, Timeout, Unreachable, WorkerLost
from discoro.files import MAX_FILES, Shipped, measure
from discoro.mesh import Mesh
from discoro.messages import Part

PING_TIMEOUT = 5.0  # seconds; a node answers in milliseconds however busy its workers are
CLOSE_TIMEOUT = 10.0  # seconds that running coroutines get to end
CLOSE_GRACE = 10.0  # seconds on top that the node gets to kill a worker and answer
_LEFT_OUT = {"__pycache__", ".git", ".hg", ".venv", "venv", "node_modules"}


class Computation:
    """Packs a coroutine function, with what it uses, for `discoro_server`s to run (the asyncoro 3.2 discoro page).

    `computation` is a generator function or an `async def`. `depends` lists what it uses beyond what its code names: functions,
    classes, modules, and paths of files. `cleanup` says whether `close` removes the files. All four methods are used with yield
    or await, take as `peer` what `Coro.locate` or `discoro.servers` gave, and raise a named error where they fail.

    Raises NotACoroutine for anything but a coroutine function, ConfigError for a dependency that is none of these.
    """

    def __init__(self, computation: Callable[..., Any], depends: Sequence[Any] = (), cleanup: bool = True) -> None:
        check_coroutine(computation)
        self.name = getattr(computation, "__name__", "computation")
        self._function = computation
        self._code = [each for each in depends if inspect.isfunction(each) or inspect.isclass(each)]
        self._paths = list(_paths(depends))
        self._cleanup = cleanup
        self._id = secrets.token_hex(16)
        self._workers: dict[CoroRef, CoroRef] = {}  # server -> the discoro_server of the worker behind it
        self._runs: dict[CoroRef, list[CoroRef]] = {}  # server -> what was created there and may still run

    def __repr__(self) -> str:
        return f"<Computation {self.name} open at {len(self._workers)} servers>"

    async def setup(
        self,
        peer: Handle,
        timeout: float | None = None,
        func: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> int:
        """Transfer the computation to the server `peer`, once for each server, within `timeout` seconds. Returns 0.

        `func`, a plain function, is then executed there with `args` and `kwargs`, after the files are in place; the globals it
        sets are seen by the computation. Again at the same server, it replaces the computation for later runs.
        Raises Timeout (nothing is left half-open), SetupFailed (with what func raised as cause), PackError, TooLarge, PeerLost.
        """
        mesh, server = _mesh(), peer.ref
        code, call = payload.pack_code([self._function, *self._code]), _packed_call(func, args, kwargs)
        try:
            async with asyncio.timeout(timeout):
                files = await asyncio.to_thread(self._measured)
                await _send_files(mesh, server, files)
                arguments = self._arguments(code=len(code), name=self.name, cleanup=self._cleanup)
                arguments["files"] = [shipped.to_plain() for shipped, _ in files]
                answer = await mesh.request(server, "setup", arguments, [*code, *call])
        except TimeoutError:
            mesh.ask_later(server, "close", self._arguments(timeout=0, code=0))
            raise Timeout(f"setup of {self.name} at {server} was not done in {timeout:g} s; it was given up there too") from None
        self._workers[server] = CoroRef.from_plain(answer.value["worker"])
        return 0

    async def run(self, peer: Handle, /, *args: Any, **kwargs: Any) -> CoroRef:
        """Create a coroutine of the computation at `peer`, with these arguments. Returns its reference.

        Raises NotSetUp before setup and after close, WorkerLost where the worker is gone (set up again), PackError.
        """
        mesh, server = _mesh(), peer.ref
        worker = self._workers.get(server)
        if worker is None:
            raise NotSetUp(f"{self.name} is not set up at {server}, or was closed: call setup first")
        body = payload.pack((args, kwargs))
        with _named_loss(self.name, server):
            answer = await mesh.request(worker, "run", self._arguments(), body)
        ref = CoroRef.from_plain(answer.value)
        mesh.expect(ref)
        self._remember(mesh, server, ref)
        return ref

    async def ping(self, peer: Handle, timeout: float = PING_TIMEOUT) -> int:
        """Whether the server is reachable and the computation open there. Returns 0.

        Raises Timeout after `timeout` seconds, NotSetUp, WorkerLost, PeerLost.
        """
        server = peer.ref
        with _named_loss(self.name, server):
            await _mesh().request(server, "ping", self._arguments(), timeout=timeout)
        return 0

    async def close(
        self,
        peer: Handle,
        func: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        close_timeout: float = CLOSE_TIMEOUT,
    ) -> int:
        """Close the computation at `peer`: running coroutines end, then `func` is executed there, then files go. Returns 0.

        A coroutine that does not end within `close_timeout` seconds, or a worker that stays busy, is killed with its worker;
        CloseFailed then names it. It also tells what func raised. Afterwards run and ping raise NotSetUp in every case.
        """
        mesh, server = _mesh(), peer.ref
        call = _packed_call(func, args, kwargs)
        if self._workers.pop(server, None) is None:
            raise NotSetUp(f"{self.name} is not set up at {server}, or was closed already")
        runs = self._runs.pop(server, [])
        arguments = self._arguments(timeout=close_timeout, code=0)
        try:
            with _named_loss(self.name, server):
                await mesh.request(server, "close", arguments, call, timeout=close_timeout + CLOSE_GRACE)
        except CloseFailed as error:
            raise _naming(error, [ref for ref in runs if mesh.still_runs(ref)]) from error.__cause__
        return 0

    # -------------------------------------------------------------- parts

    def _arguments(self, **more: Any) -> dict[str, Any]:
        return {"id": self._id, **more}

    def _measured(self) -> list[tuple[Shipped, Path]]:
        """Every file as it is now: what was edited since the last setup travels as edited."""
        named = {name: path for path, name in self._paths}
        if len(named) != len(self._paths):
            doubled = [name for _, name in self._paths if [n for _, n in self._paths].count(name) > 1]
            raise ConfigError(f"two files of depends have the name {doubled[0]!r}: files lie side by side, under their base names")
        if len(named) > MAX_FILES:
            raise ConfigError(f"{len(named)} files; at most {MAX_FILES} travel with one computation")
        return [(measure(path, name, 0), path) for name, path in named.items()]

    def _remember(self, mesh: Mesh, server: CoroRef, ref: CoroRef) -> None:
        runs = self._runs.setdefault(server, [])
        runs.append(ref)
        if len(runs) % 1024 == 0:  # now and then, forget those that have ended
            runs[:] = [each for each in runs if mesh.still_runs(each)]


def _mesh() -> Mesh:
    mesh = host_here()
    assert isinstance(mesh, Mesh)
    return mesh


def _packed_call(func: Callable[..., Any] | None, args: Sequence[Any], kwargs: dict[str, Any] | None) -> list[Part]:
    """`func` and its arguments for setup or close; nothing where there is none."""
    if func is None:
        return []
    if not inspect.isroutine(func) or inspect.isgeneratorfunction(func) or inspect.iscoroutinefunction(func):
        raise ConfigError(f"func must be a plain function, without yield and async; this is {func!r:.80}")
    return payload.pack_code([func, tuple(args), dict(kwargs or {})])


async def _send_files(mesh: Mesh, server: CoroRef, files: Sequence[tuple[Shipped, Path]]) -> None:
    """Transfer what the server lacks: it names what it wants, and from which byte on."""
    if not files:
        return
    answer = await mesh.request(server, "offer", {"files": [shipped.to_plain() for shipped, _ in files]})
    by_digest = {shipped.blob.digest: (shipped, path) for shipped, path in files}
    for digest, offset in answer.value:
        shipped, path = by_digest[digest]
        await _send_file(mesh, server, Sending(shipped.blob, offset), path)


async def _send_file(mesh: Mesh, server: CoroRef, sending: Sending, path: Path) -> None:
    """One file, with as many chunks on the way as the window allows."""

    async def send(offset: int, data: bytes) -> None:
        await mesh.request(server, "chunk", {"digest": sending.blob.digest, "offset": offset}, [data])
        sending.acknowledged()

    on_the_way: set[asyncio.Task[None]] = set()
    try:
        with open(path, "rb") as file:
            while not sending.done:
                while (chunk := sending.next_chunk()) is not None:
                    file.seek(chunk.offset)
                    on_the_way.add(asyncio.ensure_future(send(chunk.offset, file.read(chunk.length))))
                finished, on_the_way = await asyncio.wait(on_the_way, return_when=asyncio.FIRST_COMPLETED)
                for task in finished:
                    task.result()
    finally:
        for task in on_the_way:
            task.cancel()
        await asyncio.gather(*on_the_way, return_exceptions=True)


@contextlib.contextmanager
def _named_loss(name: str, server: CoroRef) -> Iterator[None]:
    """Whatever was lost, worker or node: say whose computation went with it, and what to do."""
    try:
        yield
    except WorkerLost as error:
        raise WorkerLost(f"{name} is gone with its worker at {server}: {error}. Call setup again") from error
    except (PeerLost, Unreachable) as error:
        raise PeerLost(f"{name} at {server}: {error}. Locate a server and call setup again") from error


def _naming(error: CloseFailed, runs: Sequence[CoroRef]) -> CloseFailed:
    """The error, with the coroutines that were still running as this client knows them."""
    if not runs or "did not end" in str(error):
        return error
    return CloseFailed(f"{error}; still running were {', '.join(map(str, runs[:10]))}")


def _paths(depends: Sequence[Any]) -> Iterator[tuple[Path, str]]:
    """The files among the dependencies, each with the name it gets at the server."""
    for each in depends:
        if isinstance(each, str | os.PathLike):
            yield from _path(Path(each))
        elif isinstance(each, types.ModuleType):
            yield from _module_files(each)
        elif not (inspect.isfunction(each) or inspect.isclass(each)):
            raise ConfigError(f"depends takes functions, classes, modules and paths of files; this is {each!r:.80}")


def _path(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        yield from _tree(path, path.name)
    elif path.is_file():
        yield path, path.name
    else:
        raise ConfigError(f"no file {path} (in depends; the current directory is {os.getcwd()})")


def _module_files(module: types.ModuleType) -> Iterator[tuple[Path, str]]:
    """A module as the file that the server imports; one in a package as its whole top-level package."""
    top = sys.modules.get(module.__name__.partition(".")[0], module)
    file = getattr(top, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(f"the module {module.__name__} has no file that could be sent: it is built in, or a namespace package")
    path = Path(file)
    if path.name == "__init__.py":
        yield from _tree(path.parent, path.parent.name)
    else:
        yield path, path.name


def _tree(directory: Path, name: str) -> Iterator[tuple[Path, str]]:
    for path in sorted(directory.rglob("*")):
        relative = path.relative_to(directory)
        if path.is_file() and not _LEFT_OUT.intersection(relative.parts) and path.suffix != ".pyc":
            yield path, f"{name}/{relative.as_posix()}"
