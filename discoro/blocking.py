"""The mesh for ordinary code: scripts, the interactive interpreter, notebooks. Every call blocks until it is done.

`BlockingMesh` is the door; `BlockingCoro` stands for a coroutine anywhere and `BlockingComputation` for a computation, with the
methods of `Coro`, `CoroRef` and `Computation` under the same names. None of them does anything itself: each method has the one
it is named after run in the thread of the mesh (`background`), and waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from discoro.background import Background
from discoro.broadcasting import Broadcast, broadcast
from discoro.computation import CLOSE_TIMEOUT, PING_TIMEOUT, Computation
from discoro.coro import Coro
from discoro.mesh import STATUS_TIMEOUT
from discoro.presence import Peer
from discoro.progress import Count
from discoro.references import CoroRef, Handle
from discoro.status import NodeStatus
from discoro.takeover import Detached, detached, take_over


class BlockingMesh:
    """This process as part of the mesh, for code without yield and await; until `close`, or the end of a `with` block.

    Options are the fields of `discoro.options.MeshOptions`. The mesh lives in one daemon thread, and may be used by several
    threads at once. What is called raises what the operation of the same name raises; NoMesh once the mesh is closed, and in a
    forked child; RuntimeError inside a coroutine of its own, which must not block. Ctrl-C cancels what is waited for, and
    leaves the mesh as it is. One that is not closed ends with the interpreter, or when nobody holds it any more.

    Raises KeyFileError, ConfigError and Timeout where it cannot start.
    """

    def __init__(self, **options: Any) -> None:
        self._background = Background(options)
        self._receiving = asyncio.Lock()
        weakref.finalize(self, self._background.leave).atexit = False  # at the exit `close` waits as well

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        again = [KeyboardInterrupt] if isinstance(error, KeyboardInterrupt) else []  # a second Ctrl-C: then at once
        with contextlib.suppress(*again):
            self.close()

    def __repr__(self) -> str:
        mesh, state = self._background.mesh, self._background.state
        if state == "running":
            state = f"at {', '.join(mesh.addresses)} coroutines={len(mesh.coros()) - 1}"  # its own is always there
        return f"<BlockingMesh {mesh.me.name}/{mesh.me.pid} {state}>"

    def close(self) -> None:
        """Leave the mesh: coroutines of this process are terminated, what was sent is given a moment to arrive.

        Returns when that is done, at the latest after 10 s; again, it does nothing.
        """
        self._background.close()

    @property
    def ref(self) -> CoroRef:
        """The reference of its own coroutine: what is sent there is what `receive` gives."""
        return self._background.coro.ref

    @property
    def addresses(self) -> list[str]:
        """Where this process listens, as host:port."""
        return list(self._background.mesh.addresses)

    # -------------------------------------------------------------- anything

    def wait(self, operation: Any, /, *args: Any, timeout: float | None = None, **kwargs: Any) -> Any:
        """Have anything done in the mesh's thread, and wait for it, at most `timeout` seconds; gives its value.

        `operation` is what a coroutine would yield or await (`ref.result()`, `channel.deliver("news")`); or a coroutine
        function, run with these arguments as a coroutine of its own, terminated when the time is over; or any other function,
        called there, and waited for where it gives an operation: use this for what needs a mesh around it as it begins, as in
        `mesh.wait(lambda: asyncio.gather(*operations))`. Such a function must not block.

        Raises what it raises; Timeout; TypeError for what is none of these.
        """
        if inspect.isawaitable(operation) or inspect.isgenerator(operation):
            return self._wait_begun(operation, bool(args or kwargs), timeout)
        if not callable(operation):
            raise TypeError(f"{operation!r:.80} can be neither awaited nor called: wait takes an operation or a function")
        begin = partial(operation, *map(_bare, args), **_bare_values(kwargs))
        if inspect.iscoroutinefunction(operation) or inspect.isgeneratorfunction(operation):
            begin = partial(self._background.mesh.run, operation, *begin.args, **begin.keywords)
        return self._background.call(begin, timeout)

    def _wait_begun(self, operation: Any, has_arguments: bool, timeout: float | None) -> Any:
        """Wait for what was called already, but has not run; where that is refused, it never will."""
        try:
            if has_arguments:
                raise TypeError(f"{operation!r:.80} was called already: arguments belong to the call")
            self._background.check()
        except BaseException:  # else Python would say that it was never awaited, and not why
            if inspect.iscoroutine(operation):
                operation.close()
            raise
        return self._background.call(lambda: operation, timeout)

    # -------------------------------------------------------------- coroutines

    def create(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> BlockingCoro:
        """Start a coroutine in this process, in the mesh's thread, as `discoro.Coro` does. Raises NotACoroutine.

        Arguments and messages within this process are the very objects, and then belong to two threads; a BlockingCoro among
        them arrives as its reference.
        """
        return BlockingCoro(self, self._background.call(partial(Coro, function, *map(_bare, args), **_bare_values(kwargs))))

    def coro(self, handle: Handle) -> BlockingCoro:
        """A coroutine anywhere, by its reference. Raises TypeError for anything else."""
        if not isinstance(handle, Handle):
            raise TypeError(f"a reference is wanted, this is {handle!r:.80}")
        self._background.check()
        return BlockingCoro(self, handle)

    def locate(self, name: str, location: str | None = None, timeout: float | None = None) -> BlockingCoro:
        """The coroutine registered under `name`, here or anywhere; see `Coro.locate`."""
        return BlockingCoro(self, self._background.call(lambda: Coro.locate(name, location, timeout)))

    def servers(self, name: str = "discoro_server", timeout: float | None = None) -> list[BlockingCoro]:
        """Every `discoro_server` on the mesh, free ones first; see `discoro.servers`."""
        found = self._background.call(lambda: self._background.mesh.servers(name, timeout))
        return [BlockingCoro(self, ref) for ref in found]

    def status(self, peer: Peer | Handle | BlockingCoro, timeout: float | None = STATUS_TIMEOUT) -> NodeStatus:
        """What a node's workers do; see `discoro.status`."""
        found: NodeStatus = self._background.call(lambda: self._background.mesh.status(_bare(peer), timeout))
        return found

    def computation(
        self,
        computation: Callable[..., Any],
        depends: Sequence[Any] = (),
        cleanup: bool = True,
        *,
        detach: bool | float = False,
        name: str | None = None,
    ) -> BlockingComputation:
        """A computation, to be set up at servers; see `discoro.Computation`."""
        self._background.check()
        return BlockingComputation(self, Computation(computation, depends, cleanup, detach=detach, name=name))

    def detached(self, name: str | None = None, timeout: float | None = None) -> list[Detached]:
        """The detached computations on the mesh; see `discoro.detached`."""
        return list(self._background.call(lambda: detached(name, timeout)))

    def take_over(self, which: str | Detached, timeout: float | None = None) -> BlockingComputation:
        """Become the owner of a detached computation; see `discoro.take_over`."""
        return BlockingComputation(self, self._background.call(lambda: take_over(which, timeout)))

    # -------------------------------------------------------------- files

    def send_file(
        self,
        peer: Peer | Handle | BlockingCoro,
        path: str | os.PathLike[str],
        dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        timeout: float | None = None,
        *,
        progress: Count | bool | None = None,
    ) -> int:
        """Send a file or a directory to another process. Returns 0. See `Mesh.send_file`.

        `progress` is called in the mesh's thread.
        """
        send = partial(self._background.mesh.send_file, _bare(peer), path, dir, overwrite, timeout, progress=progress)
        return int(self._background.call(send))

    def fetch_file(
        self,
        peer: Peer | Handle | BlockingCoro,
        name: str | os.PathLike[str],
        dir: str | os.PathLike[str] | None = None,
        overwrite: bool = False,
        timeout: float | None = None,
        *,
        progress: Count | bool | None = None,
    ) -> Path:
        """Fetch a file or a directory from another process. Returns its path here. See `Mesh.fetch_file`."""
        fetch = partial(self._background.mesh.fetch_file, _bare(peer), name, dir, overwrite, timeout, progress=progress)
        return Path(self._background.call(fetch))

    def del_file(
        self,
        peer: Peer | Handle | BlockingCoro,
        name: str | os.PathLike[str],
        dir: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
    ) -> int:
        """Remove a file or a directory at another process. Returns 0. See `Mesh.del_file`."""
        return int(self._background.call(lambda: self._background.mesh.del_file(_bare(peer), name, dir, timeout)))

    # -------------------------------------------------------------- one object for all

    def broadcast(self, obj: object, timeout: float | None = None, progress: Count | bool | None = None) -> Broadcast:
        """Bring an object to every node, to be given to coroutines; see `discoro.broadcast`. `wait(shared.close())` ends it."""
        shared: Broadcast = self._background.call(lambda: broadcast(_bare(obj), timeout, progress))
        return shared

    # -------------------------------------------------------------- its own mailbox

    def receive(self, timeout: float | None = None, alarm_value: Any = None) -> Any:
        """The oldest message sent to `ref`; waits for one, at most `timeout` seconds, then gives `alarm_value`.

        Where several threads receive, each message goes to one of them. Raises UnpackError as `Coro.receive` does.
        """
        return self._background.call(lambda: self._receive(timeout, alarm_value))

    async def _receive(self, timeout: float | None, alarm_value: Any) -> Any:
        """A mailbox wakes one receiver: the others wait for their turn, and then for what is left of their time."""
        now = asyncio.get_running_loop().time
        until = None if timeout is None else now() + timeout
        try:
            async with asyncio.timeout_at(until):
                await self._receiving.acquire()
        except TimeoutError:
            return alarm_value
        try:
            return await self._background.coro.receive(None if until is None else until - now(), alarm_value)
        finally:
            self._receiving.release()

    def reply(self, value: object = None) -> int:
        """Answer the message received last, if it was sent by `ask`. Returns 1; 0 if it was merely sent. See `Coro.reply`."""
        return int(self._background.call(lambda: self._background.coro.reply(value)))

    def monitor(self, observed: Handle | BlockingCoro) -> int:
        """Have one ExitNotice sent to `ref` when that coroutine ends, at once where it has. Returns 0."""
        return int(self._background.call(lambda: self._background.coro.monitor(_bare(observed))))

    def register(self, name: str) -> int:
        """Be found by `locate` under `name`. Returns 0 once the known nodes confirmed. Raises NameTaken, ConfigError."""
        return int(self._background.call(lambda: self._background.coro.register(name)))

    def unregister(self, name: str | None = None) -> int:
        """No longer be found under `name` (default: under any). Returns 0."""
        return int(self._background.call(lambda: self._background.coro.unregister(name)))


class BlockingCoro:
    """A coroutine anywhere, for ordinary code: what `Coro` and `CoroRef` can do, each call waiting until it is done.

    Equal where the references are equal. Sent to another process it arrives as its reference.
    """

    __slots__ = ("_background", "_handle", "_mesh")

    def __init__(self, mesh: BlockingMesh, handle: Handle) -> None:
        self._mesh = mesh  # which lives as long as one of its coroutines is held
        self._background = mesh._background
        self._handle = handle

    def __repr__(self) -> str:
        return f"<BlockingCoro {self._handle!r}>"

    def __str__(self) -> str:
        return str(self.ref)

    def __eq__(self, other: object) -> bool:
        return self.ref == other.ref if isinstance(other, BlockingCoro) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.ref)

    def __reduce__(self) -> Any:
        return self.ref.__reduce__()

    @property
    def ref(self) -> CoroRef:
        """Its reference: to print and keep, and to use inside coroutines."""
        return self._handle.ref

    @property
    def location(self) -> str:
        """The id of its node, which `locate` takes as location."""
        return self._handle.location

    def send(self, message: object) -> None:
        """Queue a message to its mailbox. Raises Overloaded where it has no room, and more: see `CoroRef.send`."""
        self._background.call(lambda: self._handle.send(_bare(message)))

    def deliver(self, message: object, timeout: float | None = None) -> int:
        """Send, and wait until the message is in its mailbox. Returns 1. See `CoroRef.deliver`."""
        return int(self._background.call(lambda: self._handle.deliver(_bare(message), timeout)))

    def ask(self, message: object, timeout: float | None = None) -> Any:
        """Send, and wait for the reply to just this message. See `CoroRef.ask`."""
        return self._background.call(lambda: self._handle.ask(_bare(message), timeout))

    def result(self, timeout: float | None = None) -> Any:
        """Wait until it ends, and return what it returned, or raise what it raised. See `CoroRef.result`."""
        return self._background.call(lambda: self._handle.result(timeout))

    def finish(self, timeout: float | None = None) -> Any:
        """The same as `result`."""
        return self.result(timeout)

    def value(self, timeout: float | None = None) -> Any:
        """The same as `result`, by the name that it has in asyncoro for ordinary code."""
        return self.result(timeout)

    def terminate(self) -> int:
        """End it. Returns 0 once asked, or if it had ended."""
        return int(self._background.call(self._handle.terminate))

    def is_alive(self) -> bool:
        """Whether it still runs; False too where its process is gone."""
        return bool(self._background.call(self._handle.is_alive))

    def resume(self, update: object = None) -> int:
        """Wake it where it waits in `suspend` or `sleep`, which gives `update`. Returns 0. See `CoroRef.resume`."""
        return int(self._background.call(lambda: self._handle.resume(_bare(update))))

    def wakeup(self, update: object = None) -> int:
        """The same as `resume`."""
        return self.resume(update)

    def throw(self, error: BaseException) -> int:
        """Raise an exception in it, where it waits. Returns 0 once asked. See `CoroRef.throw`."""
        return int(self._background.call(lambda: self._handle.throw(error)))

    def hot_swap(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> int:
        """Have it go on as another function, if it allows that. Returns 0 once that runs. See `CoroRef.hot_swap`."""
        swap = partial(self._handle.hot_swap, function, *map(_bare, args), **_bare_values(kwargs))
        return int(self._background.call(swap))


class BlockingComputation:
    """A computation, for ordinary code: the methods of `Computation`, each waiting until it is done."""

    __slots__ = ("_background", "_computation", "_mesh")

    def __init__(self, mesh: BlockingMesh, computation: Computation) -> None:
        self._mesh = mesh
        self._background = mesh._background
        self._computation = computation

    def __repr__(self) -> str:
        return repr(self._computation).replace("<", "<Blocking", 1)

    def setup(
        self,
        peer: Handle | BlockingCoro,
        timeout: float | None = None,
        func: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> int:
        """Transfer it to a server, once for each. Returns 0. See `Computation.setup`."""
        return int(self._background.call(lambda: self._computation.setup(_bare(peer), timeout, func, args, kwargs)))

    def run(self, peer: Handle | BlockingCoro, /, *args: Any, **kwargs: Any) -> BlockingCoro:
        """Create a coroutine of it at a server, with these arguments. See `Computation.run`."""
        return BlockingCoro(self._mesh, self._background.call(lambda: self._computation.run(_bare(peer), *args, **kwargs)))

    def gather(
        self, peer: Handle | BlockingCoro, arguments: Iterable[tuple[Any, ...]], *, return_exceptions: bool = False
    ) -> list[Any]:
        """Run a coroutine of it for each tuple of arguments; their results. See `Computation.gather`."""
        bare = [tuple(map(_bare, each)) if isinstance(each, tuple) else each for each in arguments]
        gather = self._computation.gather
        found: list[Any] = self._background.call(lambda: gather(_bare(peer), bare, return_exceptions=return_exceptions))
        return found

    @property
    def servers(self) -> list[BlockingCoro]:
        """The servers where it is open. See `Computation.servers`."""
        return [BlockingCoro(self._mesh, server) for server in self._computation.servers]

    def coroutines(self, peer: Handle | BlockingCoro, timeout: float | None = None) -> tuple[list[BlockingCoro], ...]:
        """Its coroutines at a server, those that run and those that have ended. See `Computation.coroutines`."""
        found = self._background.call(lambda: self._computation.coroutines(_bare(peer), timeout))
        return tuple([BlockingCoro(self._mesh, ref) for ref in refs] for refs in found)

    def ping(self, peer: Handle | BlockingCoro, timeout: float = PING_TIMEOUT) -> int:
        """Whether the server is reachable and the computation open there. Returns 0. See `Computation.ping`."""
        return int(self._background.call(lambda: self._computation.ping(_bare(peer), timeout)))

    def close(
        self,
        peer: Handle | BlockingCoro,
        func: Callable[..., Any] | None = None,
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        close_timeout: float = CLOSE_TIMEOUT,
    ) -> int:
        """Close it at a server. Returns 0. See `Computation.close`."""
        close = self._computation.close
        return int(self._background.call(lambda: close(_bare(peer), func, args, kwargs, close_timeout=close_timeout)))


def _bare(value: Any) -> Any:
    """What a coroutine can use: a reference in place of a blocking one."""
    return value.ref if isinstance(value, BlockingCoro) else value


def _bare_values(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: _bare(value) for name, value in kwargs.items()}
