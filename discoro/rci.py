"""RCI: a function that this process offers, for others to create coroutines of it here.

No code travels, only arguments. A call is one request; the coroutine that it creates is one like any other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from discoro import payload
from discoro.coro import Coro, sender
from discoro.driving import check_arguments, check_coroutine, wants_coro
from discoro.errors import ProtocolError
from discoro.references import CoroRef
from discoro.requests import Incoming
from discoro.services import Home, Served, mesh_here


class RCI(Served):
    """A function offered to every process of the mesh: `RCI(function, name=None)`, made where its coroutines shall run.

    `function` is a generator function or an `async def`; a parameter of it named `coro` receives its Coro. Registered, it is
    found by `RCI.locate`. `yield rci(*args, **kwargs)`, here or anywhere, creates a coroutine of it. It can be sent.
    It ends with the process or the computation in which it was made, or by `close`; coroutines that it created go on.

    Raises NotACoroutine, ConfigError for a name that cannot be registered, NoMesh.
    """

    __slots__ = ()
    KIND = "rci"

    def __init__(self, function: Callable[..., Any], name: str | None = None) -> None:
        check_coroutine(function)
        home = _Offered(function, getattr(function, "__name__", type(function).__name__) if name is None else name)
        self._stand_for(home.coro.ref, home.name)

    async def __call__(self, /, *args: Any, **kwargs: Any) -> CoroRef:
        """Create a coroutine of the function, in the process that offers it. Returns its reference.

        It is one of the caller's `children`. Raises BadArguments for arguments that the function does not take, NoSuchCoro
        where it is offered no more, UnpackError for arguments that cannot be opened there, PackError, TooLarge, PeerLost,
        WorkerLost, Unreachable.
        """
        mesh, caller = mesh_here(), sender()
        home = self._home(mesh, _Offered)
        if home is not None:
            ref = home.create(args, kwargs).ref
        else:
            ref = CoroRef.from_plain((await self._ask("call", {}, payload.pack((args, kwargs)))).value)
            mesh.expect(ref)
        if caller is not None:
            caller.created(ref)
        return ref


class _Offered(Home):
    """A function in the process that offers it."""

    def __init__(self, function: Callable[..., Any], name: str) -> None:
        super().__init__(RCI.KIND, name)
        self._function = function
        self._signature = inspect.signature(function)
        self._wants_coro = wants_coro(function)
        self.verbs["call"] = self._call

    def create(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Coro:
        """A coroutine of it, part of the computation that offers it and not of the caller's."""
        check_arguments(self.name, self._signature, args, {"coro": None, **kwargs} if self._wants_coro else kwargs)
        return Coro.start(self.mesh, self._function, args, kwargs, creator=self.coro)

    def _call(self, incoming: Incoming) -> None:
        match payload.unpack(incoming.body, self.coro.namespace):
            case [tuple(args), dict(kwargs)]:
                coro = self.create(args, kwargs)
            case _:
                raise ProtocolError("a call without a tuple and a dict of arguments")
        self.mesh.watch_for(coro, incoming.peer)
        incoming.reply(coro.ref.to_plain())
