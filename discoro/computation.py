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
from typing import Any, NoReturn

from discoro import payload
from discoro.blobs import Chunk, Sending
from discoro.coro import sender
from discoro.driving import check_coroutine
from discoro.errors import (
    CloseFailed,
    ConfigError,
    NotSetUp,
    PackError,
    PeerLost,
    ProtocolError,
    SetupFailed,
    Timeout,
    TooLarge,
    Unreachable,
    WorkerLost,
)
from discoro.files import MAX_FILES, Shipped, measure, read_chunk
from discoro.mesh import Mesh, current_mesh
from discoro.messages import Part
from discoro.references import CoroRef, Handle, Running

PING_TIMEOUT = 5.0  # seconds; a node answers in milliseconds however busy its workers are
CLOSE_TIMEOUT = 10.0  # seconds that running coroutines get to end
GIVE_UP_TIMEOUT = 1.0  # seconds that a worker whose setup was given up gets to answer, before it is killed
CLOSE_GRACE = 10.0  # seconds on top that the node gets to kill a worker and answer
NAME_LETTERS = 100  # of a function's name, which is for people
_LEFT_OUT = {"__pycache__", ".git", ".hg", ".venv", "venv", "node_modules"}


class Computation:
    """Packs a coroutine function, with what it uses, for `discoro_server`s to run (the asyncoro 3.2 discoro page).

    `computation` is a generator function or an `async def`. `depends` lists what it uses beyond what its code names: functions,
    classes, modules (one in a package brings the whole package), and paths of files or directories. Files lie side by side in
    the worker's working directory, under their base names. `cleanup` says whether `close` removes them. All four methods are
    used with yield or await, take as `peer` what `Coro.locate` or `discoro.servers` gave, and raise a named error where they
    fail.

    Raises NotACoroutine for anything but a coroutine function, ConfigError for a dependency that is none of these.
    """

    def __init__(self, computation: Callable[..., Any], depends: Sequence[Any] = (), cleanup: bool = True) -> None:
        check_coroutine(computation)
        self.name = getattr(computation, "__name__", "computation")[:NAME_LETTERS]
        self._function = computation
        self._paths = _paths_by_name(depends)
        self._code = [each for each in depends if _is_code(each)]
        self._cleanup = cleanup
        self._id = secrets.token_hex(16)
        self._workers: dict[CoroRef, CoroRef] = {}  # server -> the discoro_server of the worker behind it
        self._runs: dict[CoroRef, Running] = {}  # server -> what was created there and may still run

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
        Raises Timeout, SetupFailed (with what func raised as cause), PackError, TooLarge, PeerLost, WorkerLost, and ConfigError
        for a file that cannot be read. Nothing is left half-open: a setup that ran out of time while the code was being opened
        closes the computation at that server; one that ran out of time before changes nothing.
        """
        mesh, server = current_mesh(), _server(peer)
        code, call = _packed_code([self._function, *self._code]), _packed_call(func, args, kwargs)
        try:
            async with asyncio.timeout(timeout) as limit:
                files = await asyncio.to_thread(self._measured)
                with _named_loss(self.name, server):
                    await _send_files(mesh, server, files)
                    self._workers[server] = await self._open(mesh, server, [each for each, _ in files], code, call)
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise Timeout(f"setup of {self.name} at {server} was not done in {timeout:g} s, and was given up") from error
        return 0

    async def run(self, peer: Handle, /, *args: Any, **kwargs: Any) -> CoroRef:
        """Create a coroutine of the computation at `peer`, with these arguments. Returns its reference.

        It is one of the caller's `children`, but does not end with it: see `Coro.adopt`.
        Raises NotSetUp before setup and after close, WorkerLost where the worker is gone (set up again), PackError. Arguments
        that the computation does not take are a TypeError of the coroutine, which its `result` raises.
        """
        mesh, server = current_mesh(), _server(peer)
        worker = self._worker(server)
        with _named_places({"message[0]": "args", "message[1]": "kwargs"}):
            body = payload.pack((args, kwargs))
        with _named_loss(self.name, server):
            answer = await mesh.request(worker, "run", self._arguments(), body)
        ref = CoroRef.from_plain(answer.value)
        mesh.expect(ref)
        self._runs.setdefault(server, Running(mesh.still_runs)).add(ref)
        creator = sender()
        if creator is not None:
            creator.created(ref)
        return ref

    async def ping(self, peer: Handle, timeout: float = PING_TIMEOUT) -> int:
        """Whether the server is reachable and the computation open there. Returns 0.

        Raises Timeout after `timeout` seconds, NotSetUp, WorkerLost, PeerLost.
        """
        mesh, server = current_mesh(), _server(peer)
        self._worker(server)
        with _named_loss(self.name, server):
            await mesh.request(server, "ping", self._arguments(), timeout=timeout)
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
        Stuck then names it. CloseFailed tells what func raised. Afterwards run and ping raise NotSetUp in every case.
        Raises NotSetUp, WorkerLost, PeerLost too.
        """
        mesh, server = current_mesh(), _server(peer)
        call = _packed_call(func, args, kwargs)
        self._worker(server)
        del self._workers[server]
        running = self._runs.pop(server, Running(mesh.still_runs)).refs()
        arguments = self._arguments(timeout=close_timeout)
        try:
            with _named_loss(self.name, server):
                await mesh.request(server, "close", arguments, call, timeout=close_timeout + CLOSE_GRACE)
        except CloseFailed as error:
            raise _naming(error, running) from error.__cause__
        return 0

    # -------------------------------------------------------------- parts

    def _arguments(self, **more: Any) -> dict[str, Any]:
        return {"id": self._id, **more}

    def _worker(self, server: CoroRef) -> CoroRef:
        """The discoro_server of the worker that has the computation open for this server; NotSetUp where none has."""
        if server not in self._workers:
            raise NotSetUp(f"{self.name} is not set up at {server}, or was closed: `yield computation.setup(...)` first")
        return self._workers[server]

    def _measured(self) -> list[tuple[Shipped, Path]]:
        """Every file as it is now: what was edited since the last setup travels as edited."""
        return [(measure(path, name), path) for name, path in self._paths.items()]

    async def _open(
        self, mesh: Mesh, server: CoroRef, files: Sequence[Shipped], code: Sequence[Part], call: Sequence[Part]
    ) -> CoroRef:
        """Ask the server to open the computation; the discoro_server of the worker that did."""
        arguments = self._arguments(name=self.name, cleanup=self._cleanup, code=len(code))
        arguments["files"] = [file.to_plain() for file in files]
        try:
            answer = await mesh.request(server, "setup", arguments, [*code, *call])
        except asyncio.CancelledError:  # given up, by timeout or by whoever waits for us: the server must not go on
            self._workers.pop(server, None)
            mesh.ask_later(server, "close", self._arguments(timeout=GIVE_UP_TIMEOUT))
            raise
        return CoroRef.from_plain(answer.value["worker"])


def _server(peer: Handle) -> CoroRef:
    if not isinstance(peer, Handle):
        raise ConfigError(f"peer is what Coro.locate or discoro.servers gave, used with yield or await; this is {peer!r:.80}")
    return peer.ref


def _naming(error: CloseFailed, running: Sequence[CoroRef]) -> CloseFailed:
    """The error, with the coroutines that ran when close was called, where it names none of them."""
    names = [str(ref) for ref in running]
    if not names or error.__cause__ is not None or any(name in str(error) for name in names):
        return error
    return type(error)(f"{error}; running there were {', '.join(names[:10])}" + (" and others" if len(names) > 10 else ""))


@contextlib.contextmanager
def _named_loss(name: str, server: CoroRef) -> Iterator[None]:
    """Whatever was lost, worker or node: say whose computation went with it, and what to do."""
    try:
        yield
    except WorkerLost as error:
        raise WorkerLost(f"{name} is gone with its worker at {server}: {error}. Call setup again") from error
    except (PeerLost, Unreachable) as error:
        raise PeerLost(f"{name} at {server}: {error}. Locate a server and call setup again") from error


# ------------------------------------------------------------------ packing


@contextlib.contextmanager
def _named_places(places: dict[str, str]) -> Iterator[None]:
    """Have a PackError name the place in the caller's own words."""
    try:
        yield
    except PackError as error:
        place = next((each for each in places if str(error).startswith(each)), "")
        raise PackError(places.get(place, "") + str(error).removeprefix(place)) from error.__cause__


def _packed_code(functions: Sequence[Any]) -> list[Part]:
    with _named_places({"code[0]": "the computation", "code": "depends"}):
        return payload.pack_code(functions)


_NO_PLAIN_FUNCTIONS = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def _packed_call(func: Callable[..., Any] | None, args: Sequence[Any], kwargs: dict[str, Any] | None) -> list[Part]:
    """`func` and its arguments for setup or close; nothing where there is none."""
    if func is None:
        return []
    if not inspect.isroutine(func) or any(is_other(func) for is_other in _NO_PLAIN_FUNCTIONS):
        raise ConfigError(f"func must be a plain function, without yield and async; this is {func!r:.80}")
    with _named_places({"code[0]": "func", "code[1]": "args", "code[2]": "kwargs"}):
        return payload.pack_code([func, tuple(args), dict(kwargs or {})])


# ------------------------------------------------------------------ sending files


async def _send_files(mesh: Mesh, server: CoroRef, files: Sequence[tuple[Shipped, Path]]) -> None:
    """Transfer what the server lacks; once more from the beginning where what it had of a file was damaged."""
    try:
        await _send_wanted(mesh, server, files)
    except ProtocolError:
        try:
            await _send_wanted(mesh, server, files)
        except ProtocolError as error:
            raise SetupFailed(f"a file changed while it was sent ({error}): call setup again") from error


async def _send_wanted(mesh: Mesh, server: CoroRef, files: Sequence[tuple[Shipped, Path]]) -> None:
    """The server names what it wants, and from which byte on."""
    if not files:
        return
    try:
        answer = await mesh.request(server, "offer", {"files": [shipped.to_plain() for shipped, _ in files]})
    except TooLarge as error:
        largest, path = max(files, key=lambda file: file[0].blob.size)
        raise TooLarge(f"{path} has {largest.blob.size} bytes: {error}") from None
    by_digest = {shipped.blob.digest: (shipped, path) for shipped, path in files}
    for digest, offset in answer.value:
        shipped, path = by_digest[digest]
        await _send_file(mesh, server, Sending(shipped.blob, offset), path)


async def _send_file(mesh: Mesh, server: CoroRef, sending: Sending, path: Path) -> None:
    """One file, with as many chunks on the way as the window allows."""
    digest, size = sending.blob

    async def send(chunk: Chunk) -> None:
        arguments = {"digest": digest, "size": size, "offset": chunk.offset}
        await mesh.request(server, "chunk", arguments, [read_chunk(path, chunk)])
        sending.acknowledged()

    on_the_way: set[asyncio.Task[None]] = set()
    try:
        while not sending.done:
            while (chunk := sending.next_chunk()) is not None:
                on_the_way.add(asyncio.ensure_future(send(chunk)))
            finished, on_the_way = await asyncio.wait(on_the_way, return_when=asyncio.FIRST_COMPLETED)
            for task in finished:
                task.result()
    finally:
        for task in on_the_way:
            task.cancel()
        await asyncio.gather(*on_the_way, return_exceptions=True)


# ------------------------------------------------------------------ what a computation depends on


def _is_code(each: Any) -> bool:
    return inspect.isroutine(each) or inspect.isclass(each)


def _paths_by_name(depends: Sequence[Any]) -> dict[str, Path]:
    """The files among the dependencies, by the name each gets at the server."""
    if isinstance(depends, str | os.PathLike):
        raise ConfigError(
            f"depends is a list of functions, classes, modules and paths; this is {depends!r:.60}, write [{depends!r:.60}]"
        )
    found: dict[str, Path] = {}
    for path, name in _files(depends):
        if found.setdefault(name, path) != path:
            raise ConfigError(f"{found[name]} and {path} would both be {name}: files lie side by side, under their base names")
        if len(found) > MAX_FILES:
            raise ConfigError(f"depends has more than {MAX_FILES} files (the last was {path}): send an archive, or fewer")
    return found


def _files(depends: Sequence[Any]) -> Iterator[tuple[Path, str]]:
    for each in depends:
        if isinstance(each, str | os.PathLike):
            yield from _path(Path(each).absolute())
        elif isinstance(each, types.ModuleType):
            yield from _module_files(each)
        elif not _is_code(each):
            raise ConfigError(f"depends takes functions, classes, modules and paths; this is {each!r:.80}")


def _path(path: Path) -> Iterator[tuple[Path, str]]:
    if path.is_dir():
        yield from _tree(path, path.resolve().name)
    elif path.is_file():
        yield path, path.name
    elif path.exists():
        raise ConfigError(f"{path} (in depends) is neither a file nor a directory")
    else:
        raise ConfigError(f"no file {path} (in depends; the current directory is {os.getcwd()})")


def _module_files(module: types.ModuleType) -> Iterator[tuple[Path, str]]:
    """A module as the file that the server imports; one in a package as its whole top-level package."""
    top_name = module.__name__.partition(".")[0]
    if top_name in sys.stdlib_module_names:
        return  # every worker has it: it runs the same Python
    top = module if module.__name__ == top_name else sys.modules.get(top_name)
    file = getattr(top, "__file__", None)
    if file is None or not Path(file).is_file():
        raise ConfigError(f"the module {module.__name__} has no file that could be sent (a namespace package?): name its path")
    path = Path(file).absolute()
    if path.name == "__init__.py":
        yield from _tree(path.parent, path.parent.name)
    else:
        yield path, path.name


def _tree(directory: Path, name: str) -> Iterator[tuple[Path, str]]:
    """What is below a directory, but for what others make from it."""
    for where, directories, files in os.walk(directory, onerror=_unreadable):
        directories[:] = sorted(set(directories) - _LEFT_OUT)
        for path in (Path(where, file) for file in sorted(files)):
            if path.is_file() and path.suffix != ".pyc":
                yield path, f"{name}/{path.relative_to(directory).as_posix()}"


def _unreadable(error: OSError) -> NoReturn:
    raise ConfigError(f"the directory {error.filename} (in depends) cannot be read: {error.strerror}") from error
