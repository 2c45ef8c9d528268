"""Computation: code, what it depends on and its files, packed to run elsewhere.

The client's half of setup, run, ping and close. It packs, asks the server with one request each, and keeps for every server
where the computation is open which worker runs it. The server's half is server.py.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import inspect
import itertools
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from discoro import payload
from discoro.coro import sender
from discoro.depends import gathered, importable, taken, top_of
from discoro.driving import check_coroutine
from discoro.errors import (
    CloseFailed,
    ConfigError,
    DiscoroError,
    NotSetUp,
    PackagesMissing,
    PackError,
    PeerLost,
    ProtocolError,
    Timeout,
    TooLarge,
    Unreachable,
    WorkerLost,
)
from discoro.files import Shipped, Source, in_thread, measure, packed_files
from discoro.gathering import portions, unpacked
from discoro.mesh import Mesh, current_mesh
from discoro.messages import MAX_NAME, MIB, Part, body_size
from discoro.modules import Referred, requirement_of
from discoro.outcomes import Outcome
from discoro.packing import unpack_rows
from discoro.progress import Count, watching
from discoro.references import CoroRef, Handle, Running

PING_TIMEOUT = 5.0  # seconds; a node answers in milliseconds however busy its workers are
CLOSE_TIMEOUT = 10.0  # seconds that running coroutines get to end
GIVE_UP_TIMEOUT = 1.0  # seconds that a worker whose setup was given up gets to answer, before it is killed
SAY_TIMEOUT = 0.5  # seconds before the time of a setup is over, in which its node is asked what keeps it
CLOSE_GRACE = 10.0  # seconds on top that the node gets to kill a worker and answer
NAME_LETTERS = 100  # of a function's name, which is for people
MAX_COROS, MAX_COROS_BYTES = 1_000_000, 16 * MIB  # of one computation, that a worker tells: ten times what it remembers
LONGEST_KEPT = 366 * 86_400.0  # seconds; what is to wait longer for an owner is to be kept for good: detach=True


@dataclass
class _There:
    """A computation at one server: the discoro_server of the worker that has it, and what that worker has of our modules."""

    worker: CoroRef
    referred: Referred


class Coroutines(NamedTuple):
    """The coroutines of a computation at one server: those that run, and those that were run there and have ended."""

    running: list[CoroRef]
    ended: list[CoroRef]


class Computation:
    """Packs a coroutine function, with what it uses, for `discoro_server`s to run (the asyncoro 3.2 discoro page).

    `computation` is a generator function or an `async def`. `depends` lists what it uses beyond what its code names: functions,
    classes, modules (one in a package brings the whole package), and paths of files or directories. Files lie side by side in
    the worker's working directory, under their base names. Modules of one's own that the code imports go along unnamed.
    `cleanup` says whether `close` removes them. With `detach=True` it stays open when this process is gone, until it is closed
    or its node stops; with `detach=SECONDS`, at most for so long without an owner. `take_over` finds it then by its `name`
    (default: the function's). All methods are used with yield or await, take as `peer` what `Coro.locate` or
    `discoro.servers` gave, and raise a named error where they fail.

    Raises NotACoroutine for anything but a coroutine function, ConfigError for a dependency that is none of these, and for a
    `name` or `detach` that is none.
    """

    def __init__(
        self,
        computation: Callable[..., Any],
        depends: Sequence[Any] = (),
        cleanup: bool = True,
        *,
        detach: bool | float = False,
        name: str | None = None,
    ) -> None:
        check_coroutine(computation)
        self.name = _checked_name(name) if name is not None else getattr(computation, "__name__", "computation")[:NAME_LETTERS]
        self._function: Callable[..., Any] | None = computation
        self._depends = taken(depends)
        self._cleanup = cleanup
        self._detach = _checked_detach(detach)
        self._id = secrets.token_hex(16)
        self._there: dict[CoroRef, _There] = {}  # by server
        self._runs: dict[CoroRef, Running] = {}  # server -> what was created there and may still run

    @classmethod
    async def taken_over(cls, name: str, number: str, servers: Sequence[CoroRef]) -> Computation:
        """One that another process set up at these servers, and that is this one's from now on; see `discoro.take_over`."""
        mesh, self = current_mesh(), cls.__new__(cls)
        self.name, self._id, self._function = name, number, None
        self._there, self._runs = {}, {}
        lost: list[PeerLost] = []
        for server in servers:  # what is lost at one of them is no reason to leave the others without an owner
            try:
                with _named_loss(name, server):
                    answer = await mesh.request(server, "take", self._arguments())
            except PeerLost as error:
                lost.append(error)
            else:
                self._there[server] = _There(_worker_in(answer.value), Referred())
        if lost and not self._there:
            raise lost[0]
        return self

    def __repr__(self) -> str:
        return f"<Computation {self.name} open at {len(self._there)} servers>"

    @property
    def servers(self) -> list[CoroRef]:
        """The servers where it is open, as far as this process set it up there, or took it over."""
        return list(self._there)

    async def setup(
        self,
        peer: Handle,
        timeout: float | None = None,
        func: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        progress: Count | bool | None = None,
    ) -> int:
        """Transfer the computation to the server `peer`, once for each server, within `timeout` seconds. Returns 0.

        `func`, a plain function, is then executed there with `args` and `kwargs`, after the files are in place; the globals it
        sets are seen by the computation. Again at the same server, it replaces the computation for later runs.
        `progress` is called with the bytes of files that have come there, and those that had to, about ten times a second; True
        shows a bar on standard error where that is a terminal.
        Raises Timeout, SetupFailed (with what func raised as cause), PackagesMissing for what is not installed there,
        PackError, TooLarge, TransferFailed, PeerLost, WorkerLost, and ConfigError for a file that cannot be read. Nothing is
        left half-open: a setup that ran out of time while the code was being opened closes the computation at that server; one
        that ran out of time before changes nothing. NameTaken where its node keeps another detached one of the name;
        ConfigError for one that was taken over, whose code is not here.
        """
        mesh, server, referred = current_mesh(), _server(peer), Referred()
        if self._function is None:
            raise ConfigError(f"{self.name} was taken over: its code is not here. Make a Computation of your own to set it up")
        code = _packed_code([self._function, *self._depends.code], referred)
        call = _packed_call(func, args, kwargs, referred)
        busy = asyncio.ensure_future(_busy_there(mesh, server, timeout))
        try:
            async with asyncio.timeout(timeout) as limit:
                files, required = await in_thread(self._measured, referred)
                with _named_loss(self.name, server):
                    await self._check_packages(mesh, server, required)
                    self._there[server] = _There(await self._open(mesh, server, files, [*code], [*call], progress), referred)
        except TimeoutError as error:
            if not limit.expired():
                raise
            who = busy.result() if busy.done() else ""
            raise Timeout(f"setup of {self.name} at {server} was not done in {timeout:g} s, and was given up{who}") from error
        finally:
            busy.cancel()
        return 0

    async def run(self, peer: Handle, /, *args: Any, **kwargs: Any) -> CoroRef:
        """Create a coroutine of the computation at `peer`, with these arguments. Returns its reference.

        It is one of the caller's `children`, but does not end with it: see `Coro.adopt`.
        Raises NotSetUp before setup and after close, WorkerLost where the worker is gone (set up again), PackError. Arguments
        that the computation does not take are a TypeError of the coroutine, which its `result` raises.
        """
        mesh, server = current_mesh(), _server(peer)
        there = self._at(server)
        new = Referred(known=there.referred)
        try:
            body = payload.pack((args, kwargs), new)
            if new:  # arguments of modules that the code does not name
                await self._extend(mesh, server, there, new)
            number = (await mesh.request(there.worker, "run", self._arguments(), body)).number
        except PackError as error:
            raise _in_words(error, {"message[0]": "args", "message[1]": "kwargs"}) from error.__cause__
        except (WorkerLost, PeerLost, Unreachable) as error:
            raise _loss(self.name, server, error) from error
        ref = there.worker.other(number)
        mesh.expect(ref)
        if server not in self._runs:
            self._runs[server] = Running(mesh.still_runs)
        self._runs[server].add(ref)
        creator = sender()
        if creator is not None:
            creator.created(ref)
        return ref

    async def gather(
        self, peer: Handle, arguments: Iterable[tuple[Any, ...]], *, return_exceptions: bool = False
    ) -> list[Any]:
        """Run a coroutine of the computation at `peer` for each tuple of arguments, all at once; their results, in order.

        Several share a request and an answer, so that small ones cost a fraction of `run` and `result`. As all of them run at
        the same time, of a million gather some at a time. When all have ended, the first exception in order is raised, or, with
        `return_exceptions`, stands in the place of its result, as with `asyncio.gather`. Given up, by a timeout say, it
        terminates those that run. Raises NotSetUp, WorkerLost, PeerLost, PackError, and TypeError for what is no tuple.
        """
        mesh, server = current_mesh(), _server(peer)
        there = self._at(server)
        work = [asyncio.ensure_future(self._gather(mesh, server, there, portion)) for portion in portions(arguments)]
        try:
            found = await asyncio.gather(*work)
        finally:
            for portion in work:
                portion.cancel()  # of those that are done it does nothing
        outcomes = list(itertools.chain.from_iterable(found))
        if not return_exceptions:
            return [outcome.get() for outcome in outcomes]
        return [_value_or_error(outcome) for outcome in outcomes]

    async def _gather(self, mesh: Mesh, server: CoroRef, there: _There, portion: list[tuple[Any, ...]]) -> list[Outcome]:
        new, receiver = Referred(known=there.referred), sender()
        with _named_places({"message": "arguments"}):
            body = payload.pack(portion, new)
        try:
            body_size(body)
        except TooLarge:
            if len(portion) == 1:
                raise
            first, second = portion[: len(portion) // 2], portion[len(portion) // 2 :]
            return [*await self._gather(mesh, server, there, first), *await self._gather(mesh, server, there, second)]
        arguments = self._arguments(number=next(_numbers))
        with _named_loss(self.name, server):
            if new:
                await self._extend(mesh, server, there, new)
            try:
                answer = await mesh.request(there.worker, "gather", arguments, body)
            except asyncio.CancelledError:
                mesh.ask_later(there.worker, "withdraw", arguments)
                raise
        namespace = receiver.namespace if receiver is not None else None
        return unpacked(answer.value, answer.body, len(portion), namespace, f"gathered at {there.worker}")

    async def coroutines(self, peer: Handle, timeout: float | None = None) -> Coroutines:
        """Its coroutines at `peer`, whoever created them: `running`, and `ended`, two lists of references, oldest first.

        `result` of one that ended gives what it returned; the worker keeps the last 100,000 results, and 16 MiB of values. Of
        those that ended, only what `run` created is told, the last 10,000. A busy worker answers when it can: raises Timeout
        after `timeout` seconds; NotSetUp, WorkerLost, PeerLost.
        """
        mesh, server = current_mesh(), _server(peer)
        worker = self._at(server).worker
        with _named_loss(self.name, server):
            answer = await mesh.request(worker, "coros", self._arguments(), timeout=timeout)
        found = Coroutines([], [])
        for number, runs in unpack_rows(b"".join(map(bytes, answer.body)), MAX_COROS_BYTES, MAX_COROS, 2):
            if type(number) is not int or number < 1 or type(runs) is not bool:
                raise ProtocolError("an answer to coros that is no list of coroutines")
            (found.running if runs else found.ended).append(dataclasses.replace(worker, id=number))
        return found

    async def ping(self, peer: Handle, timeout: float = PING_TIMEOUT) -> int:
        """Whether the server is reachable and the computation open there. Returns 0.

        A node answers for its workers, however busy they are; `discoro.status` says what each does. Raises Timeout after
        `timeout` seconds, NotSetUp, WorkerLost, PeerLost.
        """
        mesh, server = current_mesh(), _server(peer)
        self._at(server)
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
        there = self._at(server)
        new = Referred(known=there.referred)
        call = _packed_call(func, args, kwargs, new)
        if new:
            with _named_loss(self.name, server), contextlib.suppress(TimeoutError):  # a busy worker: close itself will kill it
                async with asyncio.timeout(close_timeout):
                    await self._extend(mesh, server, there, new)
        self._there.pop(server, None)
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

    def _at(self, server: CoroRef) -> _There:
        """The computation where this server has it; NotSetUp where it has not."""
        if server not in self._there:
            raise NotSetUp(f"{self.name} is not set up at {server}, or was closed: `yield computation.setup(...)` first")
        return self._there[server]

    def _measured(self, referred: Referred) -> tuple[list[tuple[Shipped, Source]], frozenset[str]]:
        """Every file as it is now, so that what was edited since the last setup travels as edited; and the packages needed."""
        found = gathered(self._depends, referred)
        referred.tops = importable(found.files)
        return _measured(found.files), found.required

    async def _check_packages(self, mesh: Mesh, server: CoroRef, required: frozenset[str]) -> None:
        """PackagesMissing where the server has not all that the code imports."""
        if not required:
            return
        lacks = (await mesh.request(server, "lacks", {"names": sorted(required)})).value
        missing = [name for name in required if isinstance(lacks, list) and name in lacks]
        if missing:
            versions = [await asyncio.to_thread(requirement_of, name) for name in sorted(missing)]
            raise PackagesMissing(
                f"{server.name} has no {', '.join(sorted(missing))}, which {self.name} imports. With the versions of this "
                f"machine: `pip install {' '.join(versions)}` there, for the Python that runs discoro-node"
            )

    async def _open(
        self,
        mesh: Mesh,
        server: CoroRef,
        files: Sequence[tuple[Shipped, Source]],
        code: list[Part],
        call: list[Part],
        progress: Count | bool | None,
    ) -> CoroRef:
        """Ask the server to open the computation, and let it fetch the files; the discoro_server of the worker that did."""
        body = [packed_files(shipped for shipped, _ in files), *code, *call]
        sources = [source for _, source in files]
        with watching(progress, self.name) as watch, mesh.transfers.offering(sources, watch, server.birth) as offered:
            arguments = self._arguments(name=self.name, cleanup=self._cleanup, files=1, code=len(code), **offered)
            if self._detach is not False:
                arguments["detach"] = self._detach
            try:
                answer = await mesh.request(server, "setup", arguments, body)
            except asyncio.CancelledError:  # given up, by timeout or by whoever waits for us: the server must not go on
                self._there.pop(server, None)
                mesh.ask_later(server, "close", self._arguments(timeout=GIVE_UP_TIMEOUT))
                raise
        return _worker_in(answer.value)

    async def _extend(self, mesh: Mesh, server: CoroRef, there: _There, new: Referred) -> None:
        """Have the worker get the modules that are needed besides."""
        found = await asyncio.to_thread(gathered, taken(()), new)
        await self._check_packages(mesh, server, found.required)
        missing = {name: path for name, path in found.files.items() if top_of(name) not in there.referred.tops}
        if missing:
            files = await in_thread(_measured, missing)
            with mesh.transfers.offering(source for _, source in files):
                body = [packed_files(shipped for shipped, _ in files)]
                await mesh.request(server, "extend", self._arguments(files=1), body)
        new.tops = importable(missing)
        there.referred.add(new)


def _measured(files: dict[str, Path]) -> list[tuple[Shipped, Source]]:
    return [measure(path, name) for name, path in files.items()]


def _worker_in(answer: Any) -> CoroRef:
    match answer:
        case {"worker": worker}:
            return CoroRef.from_plain(worker)
    raise ProtocolError(f"an answer that names no worker: {answer!r:.80}")


def _checked_name(name: Any) -> str:
    if not isinstance(name, str) or not 0 < len(name.encode()) <= MAX_NAME or not name.isprintable():
        raise ConfigError(f"name={name!r:.80} cannot be used: it is a printable text of 1 to {MAX_NAME} bytes")
    return name


def _checked_detach(detach: Any) -> bool | float:
    is_number = isinstance(detach, int | float) and not isinstance(detach, bool)
    if isinstance(detach, bool) or (is_number and 0 < detach <= LONGEST_KEPT):
        return detach if isinstance(detach, bool) else float(detach)
    raise ConfigError(f"detach={detach!r:.80} cannot be used: it is True, or a number of seconds up to {LONGEST_KEPT:g}")


async def _busy_there(mesh: Mesh, server: CoroRef, timeout: float | None) -> str:
    """Which workers of ours are busy there, for the error that the time is over; "" where none is, or nobody says so at once.

    It is asked shortly before: an error that says what kept a setup does not come later for that.
    """
    if timeout is None:
        return ""
    await asyncio.sleep(timeout - min(SAY_TIMEOUT, timeout / 2))
    mine = f"{mesh.me.name}/{mesh.me.pid}"
    try:
        workers = (await mesh.status(server, SAY_TIMEOUT)).workers
    except DiscoroError:
        return ""
    return "".join(f"; {each}" for each in workers if each.client == mine and each.busy)


_numbers = itertools.count(1)  # of what is gathered, so that it can be given up


def _value_or_error(outcome: Outcome) -> Any:
    try:
        return outcome.get()
    except Exception as error:
        return error


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
    except (WorkerLost, PeerLost, Unreachable) as error:
        raise _loss(name, server, error) from error


def _loss(name: str, server: CoroRef, error: DiscoroError) -> DiscoroError:
    if isinstance(error, WorkerLost):
        return WorkerLost(f"{name} is gone with its worker at {server}: {error}. Call setup again")
    return PeerLost(f"{name} at {server}: {error}. Locate a server and call setup again")


# ------------------------------------------------------------------ packing


@contextlib.contextmanager
def _named_places(places: dict[str, str]) -> Iterator[None]:
    """Have a PackError name the place in the caller's own words."""
    try:
        yield
    except PackError as error:
        raise _in_words(error, places) from error.__cause__


def _in_words(error: PackError, places: dict[str, str]) -> PackError:
    place = next((each for each in places if str(error).startswith(each)), "")
    return PackError(places.get(place, "") + str(error).removeprefix(place))


def _packed_code(functions: Sequence[Any], referred: Referred) -> list[Part]:
    with _named_places({"code[0]": "the computation", "code": "depends"}):
        return payload.pack_code(functions, referred)


_NO_PLAIN_FUNCTIONS = (inspect.isgeneratorfunction, inspect.iscoroutinefunction, inspect.isasyncgenfunction)


def _packed_call(
    func: Callable[..., Any] | None, args: Sequence[Any], kwargs: dict[str, Any] | None, referred: Referred
) -> list[Part]:
    """`func` and its arguments for setup or close; nothing where there is none."""
    if func is None:
        return []
    if not inspect.isroutine(func) or any(is_other(func) for is_other in _NO_PLAIN_FUNCTIONS):
        raise ConfigError(f"func must be a plain function, without yield and async; this is {func!r:.80}")
    with _named_places({"code[0]": "func", "code[1]": "args", "code[2]": "kwargs"}):
        return payload.pack_code([func, tuple(args), dict(kwargs or {})], referred)
