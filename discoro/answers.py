"""What this process answers when it is asked: requests to itself, and to its coroutines.

A request to the process goes to the handler of its verb; one to a coroutine is answered here, with what the coroutine, its
mailbox or its service does. Whatever goes wrong is the answer, so that nobody waits in vain. Only the mesh around it touches
links.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Protocol

from discoro import payload
from discoro.coro import Coro
from discoro.errors import DiscoroError, NoReply, NoSuchCoro, ProtocolError
from discoro.exits import Exits
from discoro.link import Link
from discoro.mailbox import Question
from discoro.messages import Greeting, Part, body_size
from discoro.outcomes import LINKED, PARENT, TERMINATED
from discoro.references import CoroRef
from discoro.requests import Incoming, answering

Handler = Callable[[Incoming], Awaitable[None] | None]
RAISED = "raised"  # the value of a reply to `ask` whose body is an exception


class Around(Protocol):
    """What this needs of the mesh."""

    @property
    def me(self) -> Greeting: ...
    def coro(self, coro_id: int) -> Coro | None: ...
    def ref_of(self, coro_id: int) -> CoroRef: ...
    def put(self, link: Link | None, coro: Coro, body: Sequence[Part], question: Question | None = None) -> None: ...
    def in_loop(self, function: Callable[..., Any], *args: Any) -> None: ...
    def soon(self, function: Callable[..., Any], *args: Any) -> None: ...
    def spawn(self, work: Awaitable[Any]) -> None: ...


class Answers:
    """The answers of one process. `handlers`: what answers each verb to the process itself."""

    def __init__(self, around: Around, exits: Exits, handlers: dict[str, Handler]) -> None:
        self._around = around
        self._exits = exits
        self._handlers = handlers
        self._verbs: dict[str, Callable[[Incoming, Coro, Link | None], Awaitable[None] | None]] = {
            "deliver": self._deliver,
            "ask": self._ask,
            "resume": self._resume,
            "throw": self._throw,
            "swap": self._swap,
            "follow": self._follow,
            "unfollow": self._unfollow,
            "subscribed": self._subscribed,
            "unsubscribed": self._unsubscribed,
        }

    def dispatch(self, incoming: Incoming, link: Link | None) -> None:
        """Have it answered, now or later; whatever goes wrong is the answer. `link` None: this process asks itself."""
        try:
            later = self._of_coro(incoming, link) if incoming.coro else self._of_process(incoming)
            if later is not None:
                self._around.spawn(answering(incoming, later))
        except Exception as error:  # the asker must be answered, whatever it is; fail() logs what is no error of ours
            incoming.fail(error)

    def _of_process(self, incoming: Incoming) -> Awaitable[None] | None:
        handler = self._handlers.get(incoming.verb)
        if handler is None:
            me = self._around.me
            raise ProtocolError(f"{me.name} ({me.role}) does not know the verb {incoming.verb!r}")
        return handler(incoming)

    def _of_coro(self, incoming: Incoming, link: Link | None) -> Awaitable[None] | None:
        coro = self._around.coro(incoming.coro)
        match incoming.verb:
            case "watch":
                self._exits.on_watch(incoming, link)
            case "alive":
                incoming.reply(coro is not None)
            case "terminate":
                if coro is not None:
                    coro.stop(TERMINATED)
                incoming.reply(0)
            case _ if coro is None:
                raise NoSuchCoro(f"{self._around.ref_of(incoming.coro)} has ended, or never was")
            case verb if coro.service is not None and verb not in ("follow", "unfollow"):
                return coro.service.on_request(incoming)
            case verb if verb in self._verbs:
                return self._verbs[verb](incoming, coro, link)
            case verb:
                raise ProtocolError(f"{coro.name} ({coro}) does not answer {verb!r}: it is no discoro_server, channel or queue")
        return None

    # -------------------------------------------------------------- requests to a coroutine

    def _deliver(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        self._around.put(link, coro, incoming.body)
        incoming.reply(1)

    def _ask(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        def answer(value: Any, error: BaseException | None) -> None:
            if error is None:
                body = payload.pack(value)
                body_size(body)  # too large is said now: what another thread has done in the loop raises nothing there
                self._around.in_loop(incoming.reply, None, body)
            elif isinstance(error, NoReply):  # the garbage collector may say it, in the middle of anything
                self._around.soon(incoming.fail, error)
            elif isinstance(error, DiscoroError):
                self._around.in_loop(incoming.fail, error)
            else:
                self._around.in_loop(incoming.reply, RAISED, payload.pack_error(error))

        self._around.put(link, coro, incoming.body, Question(f"{coro.name} ({coro})", answer))

    def _resume(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        coro.resume_here(payload.unpack(incoming.body, coro.namespace))
        incoming.reply(0)

    def _throw(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        coro.throw_here(payload.unpack_error(incoming.body, coro.namespace))
        incoming.reply(0)

    async def _swap(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        match payload.unpack_code(incoming.body, coro.namespace or payload.Namespace(f"hot swap of {coro.name}")):
            case [function, tuple(args), dict(kwargs)]:
                incoming.reply(await asyncio.shield(coro.swap_here(function, args, kwargs)))
            case _:
                raise ProtocolError("swap without a function, a tuple and a dict")

    async def _follow(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        self._exits.check_leaders(coro)
        how = PARENT if incoming.arguments.get("parent") is True else LINKED
        await self._exits.follow(coro, ref_in(incoming, "leader"), how)
        incoming.reply(0)

    def _unfollow(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        self._exits.unfollow(coro, ref_in(incoming, "leader"))
        incoming.reply(0)

    async def _subscribed(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        await self._exits.subscribed(coro, ref_in(incoming, "channel"))
        incoming.reply("coroutine")

    def _unsubscribed(self, incoming: Incoming, coro: Coro, link: Link | None) -> None:
        self._exits.unsubscribed(coro, ref_in(incoming, "channel"))
        incoming.reply(0)


def ref_in(incoming: Incoming, key: str) -> CoroRef:
    """The reference among the arguments; ProtocolError where there is none."""
    try:
        return CoroRef.from_plain(incoming.arguments.get(key))
    except ProtocolError:
        raise ProtocolError(f"{incoming.verb} without a reference") from None
