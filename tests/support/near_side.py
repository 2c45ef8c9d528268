"""The near side of a row (see three_ways): a mesh that runs rows, one after the other, beside a far side.

`NearSide` works wherever its loop runs. `python -m tests.support.near_side PLAN` is a process of its own that runs one row for
each line on standard input, and says "passed" or why not.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import inspect
import json
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from discoro import Mesh
from tests.support.far_side import OtherProcess, SameProcess, cleared, resolve, speaking, told

Row = Callable[..., Any]
READY, PASSED = "ready", "passed"  # what such a process says; anything else is the traceback of a row


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Where the sides are: addresses to listen on, a directory for their key and logs, and how to start a far process."""

    directory: str
    near_host: str = "127.0.0.1"
    far_host: str = "127.0.0.1"
    far_command: tuple[str, ...] | None = None  # what stands before the command; None: no far process at all

    def to_json(self) -> str:
        return json.dumps(asdict(self))


class NearSide:
    """The near mesh and its far side, for the length of `async with`."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._resources = contextlib.AsyncExitStack()

    async def __aenter__(self) -> NearSide:
        plan, directory = self._plan, Path(self._plan.directory)
        options: dict[str, Any] = {"ip_addr": [plan.near_host], "mdns": False, "key_file": directory / "cluster.key"}
        self.mesh = await self._resources.enter_async_context(Mesh(name="near", **options))
        self.far: SameProcess | OtherProcess = SameProcess()
        if plan.far_command is not None:
            self.far = OtherProcess(self.mesh, plan.far_command, plan.far_host, directory)
        self._resources.push_async_callback(self.far.close)
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self._resources.__aexit__(*error)

    async def run(self, row: Row, arguments: dict[str, Any], limit: float) -> None:
        """Run a row; raises what it raised, AssertionError where it took over `limit` seconds or left something behind."""
        await self.far.start()
        before = set(self.mesh.coros())
        try:
            await self._limited(row, arguments, limit)
        except BaseException as error:
            for line in [*await self.far.clear(), *await cleared(self.mesh, before)]:
                error.add_note(line)
            raise
        left = [*await self.far.clear(), *await cleared(self.mesh, before)]
        assert not left, "the row passed, but\n" + "\n".join(left)

    async def _limited(self, row: Row, arguments: dict[str, Any], limit: float) -> None:
        where: list[str] = []
        try:
            async with asyncio.timeout(limit) as clock:
                await self.mesh.run(watched, row, self.far, arguments, where)
        except TimeoutError:
            if not clock.expired():  # the row's own
                raise
            raise AssertionError(f"the row took over {limit:g} s; it stood here:\n{''.join(where)}") from None


def watched(row: Row, far: Any, arguments: dict[str, Any], where: list[str], coro: Any = None) -> Any:
    """The row itself, in either style, as part of this coroutine; where it stood if it is given up."""
    own = {"coro": coro} if "coro" in inspect.signature(row).parameters else {}
    try:
        yield row(far=far, **own, **arguments)
    except asyncio.CancelledError:
        where.append(traceback.format_exc())
        raise


# ------------------------------------------------------------------ in a process of its own


def line_for(row: Row, arguments: dict[str, Any], limit: float) -> bytes:
    """The line that has such a process run a row."""
    name = f"{row.__module__}:{row.__qualname__}"
    packed = base64.b64encode(pickle.dumps(arguments)).decode()
    return json.dumps([name, packed, limit]).encode() + b"\n"


def from_row(error: BaseException, row: Row) -> TracebackType | None:
    """The traceback from the row on; all of it where the row is not in it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code is not row.__code__:
        trace = trace.tb_next
    return trace or error.__traceback__


def in_words(error: BaseException, row: Row) -> str:
    """The traceback from the row on, with the local variables of test modules: nobody rewrites the asserts of this process."""
    whole = traceback.TracebackException.from_exception(error.with_traceback(from_row(error, row)), capture_locals=True)
    for frame in whole.stack:
        if not Path(frame.filename).name.startswith("test_"):
            frame.locals = None
    return "".join(whole.format())


async def main(plan: dict[str, Any]) -> None:
    with speaking() as say:
        async with NearSide(Plan(**plan)) as near:
            say(READY)
            async for name, packed, limit in told():
                row = resolve(name)
                row = getattr(row, "row", row)  # by that name, the module may have the test made of it
                say(await outcome(near, row, pickle.loads(base64.b64decode(packed)), limit))


async def outcome(near: NearSide, row: Row, arguments: dict[str, Any], limit: float) -> str:
    try:
        await near.run(row, arguments, limit)
    except (Exception, pytest.fail.Exception) as error:  # whatever it is, it belongs to the test
        return in_words(error, row)
    return PASSED


if __name__ == "__main__":
    asyncio.run(main(json.loads(sys.argv[1])))
