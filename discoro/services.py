"""What a channel, a queue and a function that is offered have in common.

Each lives in the process that made it, as a coroutine that does nothing but end, with a `Home` that answers in its place. A
`Served` stands for it, there and anywhere else: a small value that is sent, compared and printed like a reference, and holds
nothing of what it stands for. An operation on it is a call where its home is in this process, and a request where it is not.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, ClassVar, Self, TypeVar

from discoro.coro import READY_RECEIVES, Coro, sender
from discoro.errors import ConfigError, DiscoroError, NoSuchCoro, ProtocolError
from discoro.mesh import Mesh, current_mesh
from discoro.messages import MAX_NAME, MIB, Part
from discoro.references import CoroRef
from discoro.requests import Answer, Incoming, Service

MAX_WAITING = 10_000  # requests that wait at one home: as many as a mailbox takes messages
WAITING_BYTES = 64 * MIB  # and what they bring: as much as the queue of one link

numbers = itertools.count(1)  # by which a request that waits is withdrawn

Verb = Callable[[Incoming], Awaitable[None] | None]


def mesh_here() -> Mesh:
    """The mesh that this code runs in; NoMesh where there is none, RuntimeError in another thread than the mesh's."""
    mesh = current_mesh()
    mesh.check_thread()
    return mesh


def registered_name(kind: str, name: object) -> str:
    """The name of a channel, say, among all names; ConfigError for one that cannot be registered."""
    if not isinstance(name, str) or not name or len(f"{kind}:{name}".encode()) > MAX_NAME:
        raise ConfigError(f"the name of a {kind} is a text of 1 to {MAX_NAME - len(kind) - 1} bytes; this is {name!r:.80}")
    return f"{kind}:{name}"


class Home(Service):
    """One of them where it lives. `coro` is the coroutine that it is; made by one of a computation, it is part of that."""

    def __init__(self, kind: str, name: str) -> None:
        if name:
            registered_name(kind, name)
        self.kind, self.name = kind, name
        self.mesh = mesh_here()
        self._ready = 0
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        creator = sender()
        self.coro = Coro.start(self.mesh, _lasts, [self._over], name=f"{kind} {name}".rstrip())
        if creator is not None:  # to whose author it is no coroutine
            creator.child_ended(self.coro.ref)
        self.coro.service = self
        self.coro.daemon = True
        self.verbs: dict[str, Verb] = {"close": self._close, "register": self._register, "unregister": self._unregister}

    def __str__(self) -> str:
        return f"{self.coro.name} ({self.coro})"

    def on_request(self, incoming: Incoming) -> Awaitable[None] | None:
        """Answer one of its verbs."""
        answer = self.verbs.get(incoming.verb)
        if answer is None:
            raise ProtocolError(f"{self} does not answer {incoming.verb!r}: it is a {self.kind}")
        return answer(incoming)

    def on_message(self, body: Sequence[Part]) -> None:
        """Refused, but by a channel."""
        raise ProtocolError(f"{self} takes no messages: it is a {self.kind}")

    async def breathe(self) -> None:
        """To begin an operation with that may not wait at all: many of them would starve everything else of the loop."""
        self._ready += 1
        if self._ready >= READY_RECEIVES:
            self._ready = 0
            await asyncio.sleep(0)

    def end(self) -> None:
        """It has done its work: its coroutine ends, with reason "normal"."""
        if not self._over.done():
            self._over.set_result(None)

    async def close(self) -> None:
        """Until it has ended."""
        self.end()
        await self.coro.stopped()

    async def _close(self, incoming: Incoming) -> None:
        await self.close()
        incoming.reply(0)

    async def _register(self, incoming: Incoming) -> None:
        name = registered_name(self.kind, incoming.arguments.get("name"))
        incoming.reply(await self.mesh.register(self.coro, name))

    async def _unregister(self, incoming: Incoming) -> None:
        name = incoming.arguments.get("name")
        incoming.reply(await self.mesh.unregister(self.coro, None if name is None else registered_name(self.kind, name)))


async def _lasts(over: asyncio.Future[None]) -> None:
    await over


AnyHome = TypeVar("AnyHome", bound=Home)


class Served:
    """Stands for one of them anywhere. `ref` is its coroutine: what the ExitNotice of a monitor names."""

    __slots__ = ("_name", "_ref")
    KIND: ClassVar[str]

    @classmethod
    def _of(cls, ref: CoroRef, name: str) -> Self:
        made = cls.__new__(cls)
        made._stand_for(ref, name)
        return made

    def _stand_for(self, ref: CoroRef, name: str) -> None:
        self._ref, self._name = ref, name

    @property
    def ref(self) -> CoroRef:
        """The reference of its coroutine, for `monitor` and to compare."""
        return self._ref

    @property
    def name(self) -> str:
        """The name that it was made or located with."""
        return self._name

    def __str__(self) -> str:
        return f"{self.KIND} {self._name} ({self._ref})" if self._name else f"{self.KIND} ({self._ref})"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._name} {self._ref}>".replace("  ", " ")

    def __eq__(self, other: object) -> bool:
        return self._ref == other._ref if isinstance(other, Served) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._ref)

    def __reduce__(self) -> Any:
        return _rebuilt, (type(self), self._ref, self._name)

    async def register(self, name: str | None = None) -> int:
        """Be found by `locate` under `name` (default: its own). Returns 0 once the known nodes confirmed.

        Coroutines, channels, queues and RCIs may share a name. Raises NameTaken where another one of its kind and process has
        it, ConfigError for a name that is empty or too long, NoSuchCoro where it is closed.
        """
        name = self._name if name is None else name
        registered_name(self.KIND, name)
        return (await self._ask("register", {"name": name})).number

    async def unregister(self, name: str | None = None) -> int:
        """No longer be found under `name` (default: under any). Returns 0. Raises NoSuchCoro where it is closed."""
        return (await self._ask("unregister", {"name": name})).number

    @classmethod
    async def locate(cls, name: str, location: str | None = None, timeout: float | None = None) -> Self:
        """The one registered under `name`, in this process or anywhere on the mesh; of many, any.

        Waits, is limited and fails as `Coro.locate`: Timeout after `timeout` seconds, NoNodes.
        """
        return cls._of(await mesh_here().locate(registered_name(cls.KIND, name), location, timeout), name)

    async def close(self) -> int:
        """End it, for everybody. Returns 0, also where it had ended. Raises PeerLost, WorkerLost, Unreachable."""
        with contextlib.suppress(NoSuchCoro):
            await mesh_here().request(self._ref, "close", {})
        return 0

    # -------------------------------------------------------------- parts

    def _home(self, mesh: Mesh, kind: type[AnyHome]) -> AnyHome | None:
        """Where it lives, if that is in this process."""
        if self._ref.birth != mesh.me.birth:
            return None
        coro = mesh.coro(self._ref.id)
        if coro is None:
            raise self._gone()
        if not isinstance(coro.service, kind):
            raise ProtocolError(f"{self._ref} is no {self.KIND}")
        return coro.service

    async def _ask(
        self, verb: str, arguments: dict[str, Any], body: Sequence[Part] = (), timeout: float | None = None
    ) -> Answer:
        try:
            return await mesh_here().request(self._ref, verb, arguments, body, timeout)
        except NoSuchCoro as error:
            if str(error).startswith(f"{self._ref} "):
                raise self._gone() from None
            raise  # it says more

    def _gone(self) -> DiscoroError:
        return NoSuchCoro(f"{self} has ended: it was closed, or its computation or process was")

    @contextlib.contextmanager
    def _withdrawn(self, mesh: Mesh, number: int, timeout: float | None) -> Iterator[None]:
        """The request of that number, made in this block, is withdrawn after `timeout` seconds, or when that is left early.

        After `timeout` it is still answered, so that both sides agree on what became of it: Timeout where it came to nothing.
        """
        alarm = None
        if timeout is not None:
            alarm = asyncio.get_running_loop().call_later(timeout, self._tell, mesh, "withdraw", number)
        try:
            yield
        except BaseException:  # a cancellation most of all: nobody waits for it any more
            self._tell(mesh, "withdraw", number)
            raise
        finally:
            if alarm:
                alarm.cancel()

    def _tell(self, mesh: Mesh, verb: str, number: int) -> None:
        """Something about the request of that number, where anybody is left to be told."""
        if mesh.linked(self._ref.birth):
            with contextlib.suppress(DiscoroError):
                mesh.tell(self._ref, verb, {"id": number})


def _rebuilt(kind: type[Served], ref: CoroRef, name: str) -> Served:
    return kind._of(ref, name)


def number_in(incoming: Incoming, key: str, default: int | None = None) -> int:
    """The number among the arguments; ProtocolError where it is none, or below 0."""
    value = incoming.arguments.get(key, default)
    if type(value) is not int or value < 0:
        raise ProtocolError(f"{incoming.verb} without the number {key}")
    return value
