"""References: small frozen values that stand for a coroutine anywhere, and what can be done with one.

`Handle` is what a reference and a `Coro` of this process share. Nothing here touches the network: every operation goes to the
mesh around it (`Reach`), found through a context variable, so that several meshes can live in one process.
"""

from __future__ import annotations

import contextvars
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from discoro.errors import NoMesh, ProtocolError
from discoro.messages import MAX_ADDRESSES, MAX_NAME, MAX_U64

Function = Callable[..., Any]

LOOK_AT = 1000  # references kept, after which those of coroutines that ended are looked for


NO_MESH = (
    "no mesh runs here: start with discoro.run(main) or `async with discoro.Mesh()`; in ordinary code with "
    "`mesh = discoro.BlockingMesh()`, and mesh.wait(function, ...); of threads, those of asyncio.to_thread are in the mesh"
)


class Reach(Protocol):
    """What a reference needs of the mesh around it; `mesh.Mesh` is one."""

    def check_thread(self) -> None: ...
    def send(self, to: CoroRef, message: object) -> None: ...
    async def deliver(self, to: CoroRef, message: object, timeout: float | None) -> int: ...
    async def ask_coro(self, to: CoroRef, message: object, timeout: float | None) -> Any: ...
    async def result(self, of: CoroRef, timeout: float | None) -> Any: ...
    async def terminate(self, who: CoroRef) -> int: ...
    async def is_alive(self, who: CoroRef) -> bool: ...
    async def resume(self, who: CoroRef, update: object) -> int: ...
    async def throw(self, who: CoroRef, error: BaseException) -> int: ...
    async def hot_swap(self, who: CoroRef, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int: ...
    async def locate(self, name: str, location: str | None, timeout: float | None) -> CoroRef: ...


current_host: contextvars.ContextVar[Reach] = contextvars.ContextVar("discoro_host")


def reach_here() -> Reach:
    """The mesh that this code runs in; NoMesh where there is none."""
    try:
        return current_host.get()
    except LookupError:
        raise NoMesh(NO_MESH) from None


def waiting_here() -> Reach:
    """The same, for what waits; RuntimeError in a thread that is not the mesh's, where nothing would wake it."""
    reach = reach_here()
    reach.check_thread()
    return reach


class Handle:
    """What can be done with a coroutine, be it here or anywhere else; every method but `send` is used with yield or await."""

    __slots__ = ()

    @property
    def ref(self) -> CoroRef:
        raise NotImplementedError

    def send(self, message: object) -> None:
        """Queue a message to its mailbox and return at once.

        Raises Overloaded where it has no room, PackError or TooLarge where the message cannot travel; NoSuchCoro, PeerLost,
        WorkerLost or Unreachable where this process already knows that nobody is there; NoMesh.
        """
        reach_here().send(self.ref, message)

    async def deliver(self, message: object, timeout: float | None = None) -> int:
        """Send, and wait (at most `timeout` seconds) until the message is in its mailbox, for room there too. Returns 1.

        Raises Timeout, after which it may still arrive; NoSuchCoro, PeerLost, WorkerLost, Unreachable, PackError, TooLarge.
        """
        return await waiting_here().deliver(self.ref, message, timeout)

    async def ask(self, message: object, timeout: float | None = None) -> Any:
        """Send, and wait (at most `timeout` seconds) for the reply to just this message; see `Coro.reply` for the other side.

        Raises what `question.fail` was given there; NoReply where it ends or goes on without a reply; Timeout, NoSuchCoro,
        PeerLost, WorkerLost, Unreachable, PackError, TooLarge.
        """
        return await waiting_here().ask_coro(self.ref, message, timeout)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait (at most `timeout` seconds) until it ends, and return what it returned.

        Raises what it raised, with the remote traceback as cause; CoroEnded where it was terminated or its computation closed;
        PeerLost or WorkerLost where its process is gone; NoSuchCoro where it ended too long ago to be known; Timeout.
        """
        return await waiting_here().result(self.ref, timeout)

    async def finish(self, timeout: float | None = None) -> Any:
        """The same as `result`, by the name it has in asyncoro."""
        return await self.result(timeout)

    async def terminate(self) -> int:
        """End it: CancelledError is raised where it waits, `finally` blocks run. Returns 0 once asked, or if it had ended."""
        return await waiting_here().terminate(self.ref)

    async def is_alive(self) -> bool:
        """Whether it still runs; False too where its process is gone."""
        return await waiting_here().is_alive(self.ref)

    async def resume(self, update: object = None) -> int:
        """Wake it where it waits in `suspend` or `sleep`, which gives `update`. Returns 0, also where it does not wait there.

        That is then said in its process's log, and `update` is gone. Raises NoSuchCoro where it has ended.
        """
        return await waiting_here().resume(self.ref, update)

    async def wakeup(self, update: object = None) -> int:
        """The same as `resume`, by its other name in asyncoro."""
        return await self.resume(update)

    async def throw(self, error: BaseException) -> int:
        """Raise an exception in it, where it waits, or where it waits next. Returns 0 once asked.

        Raises NoSuchCoro where it has ended; TypeError for what is no exception.
        """
        return await waiting_here().throw(self.ref, error)

    async def hot_swap(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> int:
        """Have it go on as `function(*args, **kwargs)`, under the same reference and with its mailbox as it is.

        Where it waits in `receive`, `suspend` or `sleep`, and allows it (`Coro.hot_swappable`), HotSwap is raised there; it
        accepts by letting that pass. Returns 0 once the new function runs. Raises SwapRefused where it catches HotSwap and goes
        on, or another swap waits already; NoSuchCoro where it ends before; BadArguments, NotACoroutine, PackError.
        """
        return await waiting_here().hot_swap(self.ref, function, args, kwargs)

    @property
    def location(self) -> str:
        """The id of its node, which `Coro.locate` takes as location; for a client, the id of its own process."""
        return self.ref.node


_REPR = re.compile(r"(?:CoroRef\(')?([^/']{1,255})/(\d{1,10})/(\d{1,20})@([0-9a-f]{16})\.([0-9a-f]{16})(?:'\))?")


# What only a coroutine itself does.
_OWN = frozenset(
    "receive reply question suspend sleep timeout monitor link unlink child adopt children register unregister "
    "hot_swappable set_daemon".split()
)


@dataclass(frozen=True, slots=True)
class CoroRef(Handle):
    """A reference to a coroutine anywhere: (node, pid, coro-id).

    `str` is short, for people: ada/4711/12. `repr` carries the node's id and the process's birth as well, so that it means one
    coroutine for ever; only it can be parsed back. `addresses` are hints where its process listens, and are not compared.
    """

    node: str
    pid: int
    birth: int
    id: int
    name: str = field(default="", compare=False)
    addresses: tuple[str, ...] = field(default=(), compare=False)

    @property
    def ref(self) -> CoroRef:
        return self

    def send(self, message: object) -> None:  # a call less than by `ref`, where a million go out in a second
        reach_here().send(self, message)

    if not TYPE_CHECKING:  # which would then take any name

        def __getattr__(self, name: str) -> Any:
            hint = f": a reference only sends, asks and ends; {name} is what a coroutine does itself, by its own Coro"
            text = f"'CoroRef' object has no attribute {name!r}{hint if name in _OWN else ''}"
            raise AttributeError(text, name=name, obj=self)

    def __str__(self) -> str:
        return f"{self.name or self.node}/{self.pid}/{self.id}"

    def __reduce__(self) -> Any:
        return CoroRef, (self.node, self.pid, self.birth, self.id, self.name, self.addresses)

    def __repr__(self) -> str:
        return f"CoroRef('{self}@{self.node}.{self.birth:016x}')"

    @classmethod
    def parse(cls, text: str) -> CoroRef:
        """The reference whose `repr` this is; ValueError for anything else, the short `str` too."""
        found = _REPR.fullmatch(text)
        if not found or int(found[3]) > MAX_U64:
            raise ValueError(f"not the repr of a reference: {text!r} (its str, like ada/4711/12, does not say which birth)")
        name, pid, coro, node, birth = found.groups()
        return cls(node, int(pid), int(birth, 16), int(coro), name)

    def other(self, number: int) -> CoroRef:
        """The reference of the coroutine with that id in the same process. ProtocolError for what can be no id."""
        if not 0 < number <= MAX_U64:
            raise ProtocolError(f"{number} is no id of a coroutine")
        return CoroRef(self.node, self.pid, self.birth, number, self.name, self.addresses)

    def __hash__(self) -> int:  # of what mostly tells them apart: all four fields take twice as long
        return hash((self.birth, self.id))

    def to_plain(self) -> list[Any]:
        """The reference as plain values, for the header of a frame."""
        return [self.node, self.pid, self.birth, self.id, self.name, list(self.addresses)]

    @classmethod
    def from_plain(cls, values: Any) -> CoroRef:
        """What `to_plain` gave; ProtocolError for anything else."""
        match values:
            case [str(node), int(pid), int(birth), int(coro), str(name), list(addresses)]:
                numbers = all(type(each) is int and 0 <= each <= MAX_U64 for each in (pid, birth, coro))
                if numbers and len(addresses) <= MAX_ADDRESSES and all(map(_is_short, (node, name, *addresses))):
                    return cls(node, pid, birth, coro, name, tuple(addresses))
        raise ProtocolError("not a reference")


def _is_short(text: object) -> bool:
    """Whether it is a text no longer than any name."""
    return isinstance(text, str) and len(text) <= MAX_NAME


class Running:
    """References of coroutines, here or elsewhere, without those that have ended as far as `still_runs` knows.

    Nobody tells of the end of one elsewhere: it is looked for whenever their number has doubled.
    """

    __slots__ = ("_look_at", "_refs", "_still_runs")

    def __init__(self, still_runs: Callable[[CoroRef], bool]) -> None:
        self._still_runs = still_runs
        self._refs: dict[CoroRef, None] = {}
        self._look_at = LOOK_AT

    def __len__(self) -> int:
        return len(self._refs)

    def add(self, ref: CoroRef) -> None:
        self._refs[ref] = None
        if len(self._refs) >= self._look_at:
            self.refs()

    def discard(self, ref: CoroRef) -> None:
        self._refs.pop(ref, None)

    def refs(self) -> list[CoroRef]:
        """Those that run."""
        self._refs = {ref: None for ref in self._refs if self._still_runs(ref)}
        self._look_at = max(LOOK_AT, 2 * len(self._refs))
        return list(self._refs)
