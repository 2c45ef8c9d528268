"""Every request that a process answers, with arguments and bodies that somebody made up: each is answered, or waits.

`ask` has one mesh answer one input (mutations.py): in its first part [role of the asker, coro, verb, arguments], in the others
the body. The mesh is a client in memory with a clock that is moved; coroutines 2 to 4 of it are a channel, a queue and a
function that is offered, 5 is a plain one, another when that has ended. Whatever is asked, the answer is a value or one of
discoro's errors, never "a bug in discoro".
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
from typing import Any

from discoro import RCI, Channel, Queue, messages, packing, payload
from discoro.coro import Coro
from discoro.errors import ProtocolError
from discoro.files import packed_files
from discoro.mesh import Mesh
from discoro.messages import Greeting
from discoro.requests import Incoming
from tests.support.meshes import World
from tests.support.moved_clock import MovedClockLoop

ROLES = ("node", "worker", "client")
ASKER = Greeting("00000000000000bb", 3, 0xBB, "bob", "node", "default", "3.11", "0", ("127.0.0.1:3",))
PLAIN = 5
PATIENCE = 40.0  # seconds of the moved clock that one answer may take: longer than any timeout inside
AFRESH = 500  # inputs after which another mesh takes over: what is asked may stay, within limits


async def waits(coro: Any = None) -> None:
    while True:
        await coro.receive()


async def offered(number: int = 0, coro: Any = None) -> int:
    return number


class Asked:
    """One mesh that is asked."""

    def __init__(self) -> None:
        self._loop = MovedClockLoop()
        self._files = tempfile.TemporaryDirectory(prefix="discoro-asked-")
        self._over = asyncio.Event()
        self._bugs: list[Any] = []
        self._loop.set_exception_handler(lambda _, context: self._bugs.append(context))
        ready: asyncio.Future[Mesh] = self._loop.create_future()
        self._life = self._loop.create_task(self._live(ready))
        self._mesh = self._loop.run_until_complete(ready)

    async def _live(self, ready: asyncio.Future[Mesh]) -> None:
        async with World().mesh("asked", dest_path=self._files.name) as mesh:
            await mesh.run(self._serve)  # coroutine 1
            self._plain = Coro.start(mesh, waits, ())
            ready.set_result(mesh)
            await self._over.wait()

    async def _serve(self) -> None:
        self._kept = [Channel("news"), Queue(), RCI(offered)]

    def ask(self, parts: list[bytes]) -> Any:
        role, coro, verb, arguments = _question(parts)
        answers: list[Any] = []
        if coro == PLAIN:
            coro = self._loop.run_until_complete(self._plain_one())
        incoming = Incoming(ASKER._replace(role=role), coro, verb, arguments, parts[1:], lambda *answer: answers.append(answer))
        self._loop.run_until_complete(self._asked(incoming, answers))
        assert not self._bugs, self._bugs
        assert len(answers) <= 1, answers
        for ok, value, body in answers:
            assert ok or value[0] != "RemoteError", value
            messages.to_wire(messages.Reply(1, ok, value, body))  # which must be able to travel
        return answers

    async def _plain_one(self) -> int:
        if self._plain.done:
            self._plain = Coro.start(self._mesh, waits, ())
        return self._plain.ref.id

    async def _asked(self, incoming: Incoming, answers: list[Any]) -> None:
        self._mesh._answers.dispatch(incoming, None)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                while not answers:
                    await asyncio.sleep(PATIENCE / 10 if self._mesh._tasks else 0.001)
                    if not self._mesh._tasks:
                        break

    def close(self) -> None:
        self._over.set()
        self._life.cancel()
        self._loop.run_until_complete(asyncio.wait([self._life]))
        self._loop.close()
        self._files.cleanup()


def _question(parts: list[bytes]) -> tuple[str, int, str, dict[str, Any]]:
    match packing.unpack(parts[0] if parts else b""):
        case [int(role), int(coro), str(verb), dict(arguments)]:
            wire = messages.to_wire(messages.Request(1, abs(coro) % 6, verb, arguments))
        case _:
            raise ProtocolError("no question")
    frame = messages.decode([bytes(part) for part in messages.encode_data(1, 1, 0, [wire])])
    assert isinstance(frame, messages.Data)
    [request] = frame.operations
    return ROLES[role % 3], request.coro, request.verb, request.arguments


_now: list[Asked] = []
_count = [0]


def ask(parts: list[bytes]) -> Any:
    """Have the mesh of this process asked; AssertionError where its answer is a bug."""
    _count[0] += 1
    if not _now or _count[0] % AFRESH == 0:
        if _now:
            _now.pop().close()
        _now.append(Asked())
    return _now[0].ask(parts)


def close() -> None:
    """End it."""
    while _now:
        _now.pop().close()


def question(coro: int, verb: str, role: int = 0, body: tuple[Any, ...] = (), **arguments: Any) -> list[bytes]:
    return [packing.pack([role, coro, verb, arguments]), *(bytes(part) for part in body)]


REF = ["00000000000000bb", 3, 0xBB, 5, "bob", ["127.0.0.1:3"]]
HERE = ["00000000000000aa", 1, 0xAA, 1, "ada", []]
BLOB = {"digest": "ab" * 32, "size": 5}
PICKLED = tuple(payload.pack(5))
QUESTIONS: list[list[bytes]] = [
    question(0, "locate", name="ada"),
    question(0, "register", name="ada", ref=REF),
    question(0, "unregister", name="ada", ref=REF),
    question(0, "meet", nodes=[[5, ["127.0.0.1:9"]]]),
    question(0, "lost", birth=0xCC, how="it ended"),
    question(0, "whereabouts", birth=0xCC, relayed=True),
    question(0, "introduce", birth=0xCC, within=0.5, asker=[0xBB, ["127.0.0.1:3"]]),
    question(0, "reach", birth=0xCC, addresses=["127.0.0.1:9"], within=0.5),
    question(0, "read", piece=0, **BLOB),
    question(0, "bring", origin=REF, **BLOB),
    question(0, "release", body=(packing.pack([["ab" * 32, 5]]),)),
    question(0, "source", again=True, **BLOB),
    question(0, "pulled", how="done", **BLOB),
    question(0, "progress", number=1, done=1, total=2),
    question(0, "take", number=1, overwrite=True, dir="below", body=(packed_files([]),)),
    question(0, "withdraw", number=1),
    question(0, "fetch", number=2, name="below"),
    question(0, "fetched", number=2),
    question(0, "remove", name="below/a"),
    *(question(PLAIN, verb) for verb in ("watch", "alive")),
    *(question(PLAIN, verb, body=PICKLED) for verb in ("deliver", "resume", "throw", "swap")),
    question(PLAIN, "follow", leader=REF, parent=False),
    question(PLAIN, "unfollow", leader=REF),
    question(2, "subscribe", subscriber=HERE),
    question(2, "unsubscribe", subscriber=HERE),
    question(2, "send", trail=[[1, 2]], body=PICKLED),
    question(2, "deliver", id=1, n=1, trail=[[1, 2]], body=PICKLED),
    question(2, "withdraw", id=1),
    question(2, "subscribed", channel=REF),
    question(2, "register", name="news"),
    question(3, "put", id=1, body=PICKLED),
    question(3, "get", id=2, waits=False),
    question(3, "took", id=2),
    question(3, "size"),
    question(4, "call", body=tuple(payload.pack(((5,), {})))),
    question(4, "unregister", name="offered"),
]
