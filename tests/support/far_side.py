"""The far side of a row (see three_ways): where it creates coroutines, in this process or in another that it may kill.

`SameProcess` and `OtherProcess` are what a row gets as `far`. `python -m tests.support.far_side PLAN` is the other process: a
mesh that joins the near one by its address, with one coroutine, the creator, that creates what it is asked for by dotted name.
That stands on messages alone, so that what else a row tries cannot break it. The process ends with its standard input, and with
its parent.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import importlib
import json
import operator
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import discoro
from discoro import Coro, CoroRef, Mesh

ROOT = Path(__file__).resolve().parents[2]
START_LIMIT = 20.0  # seconds until a process that was started is ready; Python alone takes 0.3 on an idle machine
ANSWER_LIMIT = 5.0  # seconds for an answer of the creator, an import of a test module within them
END_LIMIT = 1.0  # seconds for coroutines to end when terminated
LEAVE_LIMIT = 4.0  # seconds for a process to leave in order: a mesh takes up to 1.5
PR_SET_PDEATHSIG = 1  # prctl(2)


class SameProcess:
    """The far side is the near mesh itself."""

    def __repr__(self) -> str:
        return "<far side: the same process>"

    async def create(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CoroRef:
        """A coroutine of a function at the top of its module, on the far side; its reference."""
        dotted_name(function)  # what could not be created elsewhere is refused here too
        return Coro(function, *args, **kwargs).ref

    async def start(self) -> None: ...

    async def clear(self) -> list[str]:
        return []

    async def close(self) -> None: ...


class OtherProcess:
    """The far side is a process, started by `command` before the plan; `near` is the mesh that it joins."""

    def __init__(self, near: Mesh, command: Sequence[str], host: str, directory: Path) -> None:
        self._near = near
        self._command = command
        self._plan = {"host": host, "peer": near.addresses[0], "key_file": str(directory / "cluster.key")}
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._started = 0

    def __repr__(self) -> str:
        return f"<far side: process {self._process.pid if self._process else None}>"

    # -------------------------------------------------------------- for rows

    async def create(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> CoroRef:
        """A coroutine of a function at the top of its module, on the far side; its reference."""
        created = await self._ask(("create", dotted_name(function), args, kwargs))
        assert isinstance(created, CoroRef), created
        return created

    async def kill(self) -> None:
        """SIGKILL; returns when the process is gone. The next row finds a new one."""
        await self._end(signal.SIGKILL)

    async def leave(self) -> None:
        """The process leaves the mesh in order and ends. The next row finds a new one."""
        await self._end(None)

    async def restart(self) -> None:
        """SIGKILL, and another process in its place; returns when that is linked."""
        await self.kill()
        await self.start()

    # -------------------------------------------------------------- for the harness

    async def start(self) -> None:
        """Start the process where none runs; returns when it is linked."""
        if self._process is not None:
            return
        self._started += 1
        log = self._directory / f"far-{self._started}.log"
        self._process = start_side([*self._command, *python("tests.support.far_side"), json.dumps(self._plan)], log)
        try:
            creator = await asyncio.to_thread(first_line, self._process, START_LIMIT)
            self._creator = CoroRef.from_plain(creator)
            await self.clear()
        except BaseException:
            await self.kill()
            raise

    async def clear(self) -> list[str]:
        """End every coroutine that was created; says what did not end, or that the process did."""
        if self._process is None:
            return []
        try:
            left: list[str] = await self._ask(("clear",))
        except (discoro.DiscoroError, AssertionError) as error:
            left = [f"the far side could not be cleared: {error!r}"]
            with contextlib.suppress(subprocess.TimeoutExpired):  # one that ends closes its connections first
                await asyncio.to_thread(self._process.wait, END_LIMIT)
        if self._process.poll() is not None:
            left = [f"the far side ended by itself with {self._process.returncode}"]
        if left:
            await self.kill()
        return left

    async def close(self) -> None:
        """End the process in order."""
        await self._end(None)

    async def _ask(self, request: tuple[Any, ...]) -> Any:
        answer = await self._near.run(asks, self._creator, request)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    async def _end(self, by: signal.Signals | None) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        status = await asyncio.to_thread(end_side, process, by)
        assert by or status == 0, f"the far side was to leave in order, and ended with {status}"


def dotted_name(function: Callable[..., Any]) -> str:
    """What both sides can import it by: module:name."""
    name = f"{function.__module__}:{function.__qualname__}"
    assert "<" not in name and resolve(name) is function, f"{name} is not at the top of a module: the far side cannot import it"
    return name


def resolve(name: str) -> Any:
    """What `dotted_name` names."""
    module, _, path = name.partition(":")
    return operator.attrgetter(path)(importlib.import_module(module))


async def asks(creator: CoroRef, request: tuple[Any, ...], coro: Any = None) -> Any:
    """Near: one question to the creator; a coroutine of its own, so that the answer meets nobody else's mailbox."""
    creator.send((coro.ref, request))
    answer = await coro.receive(ANSWER_LIMIT, asks)
    assert answer is not asks, f"the far side did not answer {request!r:.200} in {ANSWER_LIMIT:g} s"
    return answer


async def creates(mesh: Mesh, coro: Any = None) -> None:
    """Far: creates and clears on request."""
    while True:
        asker, request = await coro.receive()
        try:
            answer: Any = await answered(mesh, request, coro)
        except Exception as error:  # whatever a row asked for in vain is the answer
            answer = error
        asker.send(answer)


async def answered(mesh: Mesh, request: tuple[Any, ...], creator: Coro) -> Any:
    match request:
        case "create", name, args, kwargs:
            return Coro(resolve(name), *args, **kwargs).ref
        case ("clear",):
            return await cleared(mesh, {creator})
    raise ValueError(f"{request!r:.200} is no request")


async def cleared(mesh: Mesh, keep: Collection[Coro]) -> list[str]:
    """End every coroutine of a mesh but some; what did not end in time, a line each."""
    ending = [each for each in mesh.coros() if each not in keep]
    for each in ending:
        await each.ref.terminate()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(END_LIMIT):
            for each in ending:
                await each.stopped()
    return [f"did not end when terminated: {each!r}" for each in mesh.coros() if each not in keep]


# ------------------------------------------------------------------ processes of either side


def python(module: str) -> list[str]:
    """The command that runs a module of the tests, with warnings as errors."""
    return [sys.executable, "-W", "error", "-m", module]


def start_side(command: Sequence[str], log: Path, popen: Callable[..., Any] = subprocess.Popen) -> subprocess.Popen[bytes]:
    """A side as a child of this thread, with which it ends; what it writes on standard error goes to `log`."""
    pipe = subprocess.PIPE
    with open(log, "wb") as errors:
        side: subprocess.Popen[bytes] = popen(command, stdin=pipe, stdout=pipe, stderr=errors, cwd=ROOT, bufsize=0)
    return side


def first_line(side: subprocess.Popen[bytes], limit: float) -> Any:
    """The next line of JSON that a side says; it fails after `limit` seconds, or when the side ends."""
    assert side.stdout is not None
    end, line = time.monotonic() + limit, b""
    while not line.endswith(b"\n"):  # it says one line at a time, and waits
        heard = select.select([side.stdout], [], [], max(0.0, end - time.monotonic()))[0]
        assert heard, f"a side said nothing for {limit:g} s: {side.args!r}"
        chunk = os.read(side.stdout.fileno(), 65536)
        assert chunk, f"a side ended with {side.wait(LEAVE_LIMIT)}: {side.args!r}"
        line += chunk
    return json.loads(line)


def end_side(side: subprocess.Popen[bytes], by: signal.Signals | None = None) -> int:
    """End a side by a signal, or in order (its standard input ends), and by force when that takes too long; its status."""
    assert side.stdin is not None
    if by:
        side.send_signal(by)  # first: it must not begin to leave
    with contextlib.suppress(BrokenPipeError):
        side.stdin.close()
    try:
        side.wait(LEAVE_LIMIT)
    except subprocess.TimeoutExpired:
        side.kill()
    with side:  # closes its pipes and waits
        pass
    return side.returncode


@contextlib.contextmanager
def speaking() -> Iterator[Callable[[Any], None]]:
    """For a process that is a side: it ends with its parent, and says values as lines of JSON on standard output."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)  # what a row prints goes to the log
        yield lambda value: print(json.dumps(value), file=out, flush=True)


async def told() -> AsyncIterator[Any]:
    """Each line of JSON on standard input, until that ends."""
    reader = asyncio.StreamReader(limit=1 << 20)
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


async def main(plan: dict[str, str]) -> None:
    options: dict[str, Any] = {"name": "far", "mdns": False, "ip_addr": [plan["host"]], "key_file": plan["key_file"]}
    with speaking() as say:
        async with Mesh(**options, peers=[plan["peer"]]) as mesh:
            say(Coro(creates, mesh).ref.to_plain())
            async for _ in told():
                pass


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
