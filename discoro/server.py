"""discoro_server: the coroutine that takes computations, and the worker's side of it.

`discoro_server` answers requests (`Serving`): lacks, setup, extend, run, gather, coros, take, ping, close. What they do is a
`Backend`'s: in a worker, or in any process of a user's own, `Computations` opens them in this process; in a node, each slot has
a backend of its own (node.py) that hands them to workers. Only `Computations` unpacks code.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import logging
import os
import sys
import tempfile
import traceback
import types
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from discoro import allowance, payload
from discoro.coro import Coro, current_coro
from discoro.depends import importable
from discoro.errors import (
    CloseFailed,
    ConfigError,
    DiscoroError,
    NotSetUp,
    ProtocolError,
    SetupFailed,
    Stuck,
)
from discoro.files import Shipped, compiled, measure, place, remove_files, units, unpacked_files
from discoro.gathering import calls, packed
from discoro.mesh import Mesh, current_mesh
from discoro.messages import MAX_NAME, Greeting, Part
from discoro.outcomes import CLOSED, TERMINATED
from discoro.packing import pack
from discoro.requests import Incoming, Service, answering
from discoro.script import calling
from discoro.transfers import process_of

log = logging.getLogger("discoro.server")

VERBS = frozenset({"lacks", "setup", "extend", "retire", "run", "gather", "withdraw", "coros", "take", "ping", "close"})
KEPT_STARTED = 10_000  # coroutines of one computation, so that who takes it over can ask for the results: a megabyte
MAX_CLOSE_TIMEOUT = 86_400.0  # seconds; a day is beyond any coroutine that still means to end


class Backend(Protocol):
    """What answers the requests of one discoro_server; each method answers, or raises what the asker is to get."""

    async def lacks(self, incoming: Incoming) -> None: ...
    async def setup(self, incoming: Incoming) -> None: ...
    async def extend(self, incoming: Incoming) -> None: ...
    async def retire(self, incoming: Incoming) -> None: ...
    def run(self, incoming: Incoming) -> Awaitable[None] | None: ...
    async def gather(self, incoming: Incoming) -> None: ...
    async def withdraw(self, incoming: Incoming) -> None: ...
    async def coros(self, incoming: Incoming) -> None: ...
    async def take(self, incoming: Incoming) -> None: ...
    async def ping(self, incoming: Incoming) -> None: ...
    async def close(self, incoming: Incoming) -> None: ...


def discoro_server(name: str = "discoro_server") -> Generator[Any, Any, None]:
    """Accept computations from clients in this process; for `Coro(discoro_server, name=...)`.

    Registers under `name`, so that clients find it with `Coro.locate(name)`. Computations run here, in this process, and
    nothing keeps them apart: a file name has one content at a time, and a coroutine that computes for ever is never killed.
    Their files go to a directory made for them, from which their modules are imported (after this process's own of that name);
    the current directory of the process stays what it is. Runs until terminated. From the asyncoro 3.2 discoro page.
    """
    mesh = current_mesh()
    with tempfile.TemporaryDirectory(prefix="discoro-server-", ignore_cleanup_errors=True) as directory:
        files = Path(directory).resolve() / "files"
        files.mkdir(mode=0o700)
        backend = Computations(mesh, files)
        sys.path.append(str(files))
        try:
            yield from serve(Serving(backend, f"{name} ({current_coro()})"), mesh.register(current_coro(), name))
        finally:
            backend.abandon()
            with contextlib.suppress(ValueError):  # somebody's code has set up sys.path anew
                sys.path.remove(str(files))


class Serving(Service):
    """The service of one discoro_server: each request is answered in its own time, a slow one keeps nobody waiting."""

    def __init__(self, backend: Backend, name: str) -> None:
        self._backend = backend
        self._name = name
        self._tasks: set[asyncio.Task[None]] = set()

    def on_request(self, incoming: Incoming) -> None:
        """Begin to answer it; the backend does."""
        if incoming.verb not in VERBS:
            raise ProtocolError(f"{self._name} takes setup, run, ping and close, no messages, and not {incoming.verb!r}")
        work = getattr(self._backend, incoming.verb)(incoming)
        if work is None:  # it is done, as a run at once
            return
        task = answering(incoming, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def on_message(self, body: Sequence[Part]) -> None:
        """Refused unopened: a node must not open what somebody sends it."""
        raise ProtocolError("a discoro_server takes requests, and no messages")

    def close(self) -> None:
        """Give up what is not answered yet."""
        for task in self._tasks:
            task.cancel()


def serve(serving: Serving, begin: Awaitable[Any] | None = None) -> Generator[Any, Any, None]:
    """Answer requests for ever, once `begin` is done."""
    coro = current_coro()
    coro.service = serving
    coro.daemon = True
    try:
        if begin is not None:
            yield begin
        while True:
            yield coro.suspend()
    finally:
        serving.close()


@dataclass(eq=False)
class Opened:
    """A computation that is open in this process."""

    id: str
    name: str
    client: Greeting
    cleanup: bool
    namespaces: list[payload.Namespace]  # the current one first: those of earlier setups have coroutines that go on
    function: Callable[..., Any] = field(init=False, repr=False)  # once its code is built
    files: dict[Path, Shipped] = field(default_factory=dict)
    left: dict[Path, Shipped] = field(default_factory=dict)  # of earlier setups, whose coroutines may go on
    started: OrderedDict[int, None] = field(default_factory=OrderedDict)  # ids of what was run, the latest last
    closing: bool = False

    @property
    def namespace(self) -> payload.Namespace:
        return self.namespaces[0]


class Computations:
    """The backend that opens computations in this process: their code, files and coroutines.

    `directory` is where their files lie under their names. Where a name would stand for two contents, setup is refused: a node,
    which has several workers, takes another one before it comes to that.

    `node` is the birth of the node that this process works for: what it opened is its to close, and stays while its link is
    lost. It ends this whole process otherwise, by the pipe between them.
    """

    def __init__(self, mesh: Mesh, directory: Path, node: int = 0) -> None:
        self._mesh = mesh
        self._node = node
        self._directory = directory
        self._opened: dict[str, Opened] = {}
        self._gathering: dict[tuple[int, int], list[Coro]] = {}  # by the birth that asked, and its number
        self._fetching: dict[asyncio.Task[Any], tuple[str, int]] = {}  # for which computation, and the birth that asked
        mesh.on_peer_lost.append(self._client_lost)

    def __repr__(self) -> str:
        return f"<Computations in {self._directory}: {', '.join(opened.name for opened in self._opened.values())}>"

    # -------------------------------------------------------------- verbs

    async def lacks(self, incoming: Incoming) -> None:
        """Which of these packages are not installed here."""
        incoming.reply(lacking(incoming.arguments.get("names")))

    async def setup(self, incoming: Incoming) -> None:
        """Open a computation, or open it anew: place its files, build its code, run `func`."""
        number, (files, code, func) = text_of(incoming.arguments, "id"), bodies(incoming)
        if "detach" in incoming.arguments:
            raise SetupFailed("detach: this discoro_server is a program's own and ends with it; set up at a node's instead")
        with self._fetched(incoming, files) as fetching:
            await fetching
            self._open(incoming, number, files, code, func)
        incoming.reply({"worker": self._mesh.ref_of(incoming.coro).to_plain()})

    def _open(
        self, incoming: Incoming, number: str, files: Sequence[Shipped], code: Sequence[Part], func: Sequence[Part]
    ) -> None:
        before = self._opened.get(number)
        self._check(number, files)
        opened = self._new(incoming, number, files)
        try:
            self._place(files, opened, before)
            self._check_modules(files)
            opened.function = _built(code, opened.namespace)
            _call(func, opened.namespace, SetupFailed, "setup")
        except DiscoroError:
            self._remove(opened)
            if before is not None:
                self._place(list(before.files.values()), before, opened)
            raise
        if before is not None:  # its coroutines go on; they are closed with the new one
            self._mesh.transfers.store.release(before)
            opened.left = {path: file for path, file in {**before.left, **before.files}.items() if path not in opened.files}
            used = {coro.namespace for coro in self._coros(before)}
            opened.namespaces += [each for each in before.namespaces if each in used]
            opened.started = before.started
        self._opened[number] = opened

    async def extend(self, incoming: Incoming) -> None:
        """Put further files to an open computation."""
        files, _, _ = bodies(incoming)
        with self._fetched(incoming, files) as fetching:
            await fetching
            opened = self._find(incoming)
            self._check(opened.id, files)
            self._place(files, opened, opened)
            opened.namespace.files |= importable(file.name for file in files)
        incoming.reply(0)

    def run(self, incoming: Incoming) -> None:
        """Start a coroutine of the computation; its id."""
        opened = self._find(incoming)
        match payload.unpack(incoming.body, opened.namespace):
            case [tuple(args), dict(kwargs)]:
                coro = self._started(opened, args, kwargs)
            case _:
                raise ProtocolError("run without a tuple and a dict of arguments")
        self._mesh.watch_for(coro, incoming.peer)
        incoming.reply(coro.id)

    def _started(self, opened: Opened, args: Sequence[Any], kwargs: dict[str, Any]) -> Coro:
        coro = Coro.start(self._mesh, opened.function, args, kwargs, namespace=opened.namespace)
        opened.started[coro.id] = None
        if len(opened.started) > KEPT_STARTED:
            opened.started.popitem(last=False)
        return coro

    async def gather(self, incoming: Incoming) -> None:
        """Start a coroutine for each of several arguments; how they ended, when all have."""
        opened, key = self._find(incoming), _gathered(incoming)
        coros = [self._started(opened, args, {}) for args in calls(incoming.body, opened.namespace)]
        for coro in coros:
            coro.observed = True  # how it ends is told, and nothing for the log
        self._gathering[key] = coros
        try:
            outcomes = [await coro.outcome_here() for coro in coros]
        finally:
            self._gathering.pop(key, None)  # of whoever used one number twice, the first is gone already
        incoming.reply(*packed(outcomes))

    async def withdraw(self, incoming: Incoming) -> None:
        """Whoever had these coroutines gathered waits for them no longer: they are ended."""
        for coro in self._gathering.get(_gathered(incoming), ()):
            coro.stop(TERMINATED)
        incoming.reply(0)

    async def coros(self, incoming: Incoming) -> None:
        """The ids of its coroutines that run, and of those that were run and have ended."""
        opened = self._find(incoming)
        running = [coro.id for coro in self._coros(opened)]
        ended = opened.started.keys() - running
        incoming.reply(0, [pack([*([number, True] for number in running), *([number, False] for number in sorted(ended))])])

    async def take(self, incoming: Incoming) -> None:
        """What clients ask a node, and nobody asks a worker."""
        raise ProtocolError("take is asked of the slots of a node only")

    async def ping(self, incoming: Incoming) -> None:
        """0 where the computation is open."""
        self._find(incoming)
        incoming.reply(0)

    async def retire(self, incoming: Incoming) -> None:
        """As a worker, for its node: close a computation that was set up anew elsewhere, once its last coroutine has ended."""
        opened = self._find(incoming)
        while running := self._coros(opened):
            await running[0].stopped()
        if not opened.closing:
            self._forget(opened)
        incoming.reply(0)

    async def close(self, incoming: Incoming) -> None:
        """No new runs; running coroutines end; then `func`; then globals and files."""
        timeout, (_, _, func) = timeout_of(incoming.arguments), bodies(incoming)
        number = text_of(incoming.arguments, "id")
        if self._give_up(number=number) and number not in self._opened:
            incoming.reply(0)
            return
        opened = self._find(incoming)
        opened.closing = True
        try:
            await self._end(opened, timeout)
            _call(func, opened.namespace, CloseFailed, "close")
        finally:
            self._forget(opened)
        incoming.reply(0)

    # -------------------------------------------------------------- setup

    @contextlib.contextmanager
    def _fetched(self, incoming: Incoming, files: Sequence[Shipped]) -> Iterator[Awaitable[None]]:
        """What is to be awaited first: then the contents of the files are here, to be placed in this block."""
        transfers, holder, task = self._mesh.transfers, object(), asyncio.current_task()
        assert task is not None
        self._fetching[task] = text_of(incoming.arguments, "id"), incoming.peer.birth
        transfers.store.hold(holder, [file.blob for file in files])
        try:
            yield transfers.get_all(files, process_of(incoming.peer), incoming.arguments.get("progress"))
        finally:
            transfers.store.release(holder)
            del self._fetching[task]

    def _give_up(self, number: str | None = None, birth: int | None = None) -> bool:
        """What fetches files for that computation, or for that process, ends; whether something did."""
        found = [task for task, (its, asker) in self._fetching.items() if its == number or asker == birth]
        for task in found:
            task.cancel()
        return bool(found)

    def _check(self, number: str, files: Sequence[Shipped]) -> None:
        """SetupFailed where a name stands for another content in another computation."""
        mine = units(files)
        for other in self._opened.values():
            theirs = units(other.files.values()) if other.id != number else {}
            for name in mine.keys() & theirs.keys():
                if mine[name] != theirs[name]:
                    raise SetupFailed(
                        f"{name} is another computation's here, with another content: close {other.name}, or use a node"
                    )

    def _check_modules(self, files: Sequence[Shipped]) -> None:
        """SetupFailed where a module that came is hidden by another one that is loaded here already."""
        for file in files:
            name = file.name.removesuffix("/__init__.py").removesuffix(".py")
            loaded = sys.modules.get(name) if file.name.endswith(".py") and "/" not in name else None
            where = getattr(loaded, "__file__", None)
            if where is None or Path(where).is_relative_to(self._directory):
                continue
            try:
                is_same = measure(Path(where), file.name)[0].blob == file.blob
            except ConfigError:
                is_same = False
            if not is_same:
                raise SetupFailed(f"the module {name} is another one here, {where}, and loaded already: rename yours")

    def _new(self, incoming: Incoming, number: str, files: Sequence[Shipped]) -> Opened:
        name, cleanup = text_of(incoming.arguments, "name"), bool(incoming.arguments.get("cleanup", True))
        modules = importable(file.name for file in files)
        namespace = payload.Namespace(f"{name} of {incoming.peer.name}", self._directory, modules)
        return Opened(number, name, incoming.peer, cleanup, [namespace])

    def _place(self, files: Sequence[Shipped], opened: Opened, before: Opened | None) -> None:
        had = before.files if before else {}
        store = self._mesh.transfers.store
        store.hold(opened, [file.blob for file in files])  # to be put back, should a later setup of it fail
        for file in files:
            opened.files[place(store.path(file.blob), file, self._directory)] = file
        if any(had.get(path, file).blob != file.blob for path, file in opened.files.items()):
            unload(had)  # all of them: a module that is the same may have imported one that is not
        importlib.invalidate_caches()

    def _find(self, incoming: Incoming) -> Opened:
        opened = self._opened.get(text_of(incoming.arguments, "id"))
        if opened is None or opened.closing:
            state = "is being closed" if opened else "is not set up, or was closed,"
            here = f"{self._mesh.me.name}/{os.getpid()}"
            raise NotSetUp(f"the computation {state} at {here}: call setup again before {incoming.verb}")
        return opened

    # -------------------------------------------------------------- ends

    def abandon(self) -> None:
        """The server ends: everything it opened is closed, without func."""
        self._mesh.on_peer_lost.remove(self._client_lost)
        for opened in list(self._opened.values()):
            self._drop(opened)

    def _client_lost(self, peer: Greeting, reason: str) -> None:
        """A client that is gone has its computations closed, and what it began to set up given up."""
        self._give_up(birth=peer.birth)
        if peer.birth == self._node:
            return
        for opened in [each for each in self._opened.values() if each.client.birth == peer.birth]:
            self._drop(opened)

    def _drop(self, opened: Opened) -> None:
        for coro in self._coros(opened):
            coro.stop(CLOSED)
        self._forget(opened)

    def _coros(self, opened: Opened) -> list[Coro]:
        """Those that were run, and those that they created."""
        return [coro for coro in self._mesh.coros() if coro.namespace in opened.namespaces]

    async def _end(self, opened: Opened, timeout: float) -> None:
        """End the coroutines; Stuck, with their names, where some still run after `timeout` seconds."""
        stopped: set[Coro] = set()  # each once: a second time would end what it does to end in order
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while running := self._coros(opened):
                    for coro in running:  # in the order in which they were created
                        if coro not in stopped:
                            coro.stop(CLOSED)
                    stopped.update(running)
                    await running[0].stopped()
        stuck = [coro for coro in self._coros(opened) if not coro.done]
        if stuck:
            names = ", ".join(f"{coro.name} ({coro})" for coro in stuck[:10])
            raise Stuck(f"{len(stuck)} coroutines of {opened.name} did not end in {timeout:g} s: {names}")

    def _forget(self, opened: Opened) -> None:
        if self._opened.get(opened.id) is opened:  # and not a setup that came meanwhile
            del self._opened[opened.id]
        self._remove(opened)

    def _remove(self, opened: Opened) -> None:
        """Remove its files, and the modules imported from them, but for those that another computation here has as well."""
        used = {path for each in self._opened.values() for path in each.files}
        free = [path for path in {**opened.left, **opened.files} if path not in used]
        unload(free)
        self._mesh.transfers.store.release(opened)
        if opened.cleanup:
            remove_files(free, self._directory)


def _built(code: Sequence[Part], namespace: payload.Namespace) -> Callable[..., Any]:
    """The function of a computation; what it depends on follows it, and is found by name."""
    with calling(namespace):
        functions = payload.unpack_code(code, namespace)
    if not functions or not callable(functions[0]):
        raise ProtocolError("setup without a function")
    function: Callable[..., Any] = functions[0]
    return function


def lacking(names: Any) -> list[str]:
    """Those of these top-level names that cannot be imported in this process; ProtocolError for what is no list of names."""
    if not isinstance(names, list) or not all(isinstance(name, str) and name.isidentifier() for name in names):
        raise ProtocolError("lacks without names of packages")
    return [name for name in names if not _can_import(name)]


def _can_import(name: str) -> bool:
    try:
        return sys.modules.get(name) is not None or importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # what is there cannot be imported, or was hidden on purpose
        return False


def _call(body: Sequence[Part], namespace: payload.Namespace, failed: type[DiscoroError], when: str) -> None:
    """Run the func of setup or close, where there is one."""
    if not body:
        return
    match payload.unpack_code(body, namespace, keep=True):
        case [func, tuple(args), dict(kwargs)] if callable(func):
            pass
        case _:
            raise ProtocolError(f"{when} without a function, a tuple and a dict")
    try:
        with calling(namespace):
            func(*args, **kwargs)
    except BaseException as error:  # the user's own, SystemExit too: it goes back to the one who sent the function
        if isinstance(error, MemoryError):
            allowance.lift(error)
            allowance.settle(error)
        said = "".join(traceback.format_exception_only(error)).strip()  # which takes errors whose own str() fails
        raise failed(f"func {func.__name__} of {when} raised {said}") from error


def unload(files: Iterable[Path]) -> None:
    """Forget the modules that were imported from these files, so that others of their names can be imported."""
    gone = {str(path) for path in files}
    for name, module in list(sys.modules.items()):
        if isinstance(module, types.ModuleType) and module.__dict__.get("__file__") in gone:
            del sys.modules[name]
    for path in files:
        for each in compiled(path):
            each.unlink(missing_ok=True)


# ------------------------------------------------------------------ what requests carry, for every backend


def bodies(incoming: Incoming) -> tuple[list[Shipped], Sequence[Part], Sequence[Part]]:
    """The three bodies of setup and close, told apart by their numbers of parts: files (none, or a list), code, and func."""
    listed, count = incoming.arguments.get("files", 0), incoming.arguments.get("code", 0)
    is_count = type(listed) is int and type(count) is int and listed in (0, 1) and count >= 0
    if not is_count or listed + count > len(incoming.body):
        raise ProtocolError("a body that is not divided as it says")
    files = unpacked_files(incoming.body[0]) if listed else []
    return files, incoming.body[listed : listed + count], incoming.body[listed + count :]


def _gathered(incoming: Incoming) -> tuple[int, int]:
    """What stands for the coroutines of one `gather`; ProtocolError where it has no number."""
    number = incoming.arguments.get("number")
    if type(number) is not int:
        raise ProtocolError(f"{incoming.verb} without a number")
    return incoming.peer.birth, number


def text_of(arguments: dict[str, Any], key: str) -> str:
    """A text among the arguments; ProtocolError where it is missing, or longer than any name."""
    value = arguments.get(key)
    if not isinstance(value, str) or len(value) > MAX_NAME:
        raise ProtocolError(f"a request without {key}")
    return value


def timeout_of(arguments: dict[str, Any]) -> float:
    """The seconds that close gives running coroutines; ProtocolError where they are missing."""
    value = arguments.get("timeout")
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_CLOSE_TIMEOUT:
        raise ProtocolError(f"close without a timeout of 0 to {MAX_CLOSE_TIMEOUT:g} seconds")
    return float(value)
