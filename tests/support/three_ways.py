"""One test, run three ways: within one process, between two processes on loopback, between two network namespaces.

    @three_ways
    async def test_a_message_comes_back(far, coro):
        echo = await far.create(echoes, coro.ref)
        echo.send("m")
        assert await coro.receive(5) == "m"

A row is such a function, an `async def` or a generator function, at the top of a test module. It runs as a coroutine of the
near side: `coro` is that coroutine, and may be left out; `far` creates coroutines on the far side, from functions at the top of
a module (what else it can: far_side.OtherProcess). `ways=TWO_PROCESSES` is for rows that kill, restart or dismiss the far
process. Other parameters are pytest's, by `parametrize`, and must be picklable; fixtures and `pytest.skip` are not for rows.
`in_both_styles` gives a far function as a generator and as an `async def`.

The processes live as long as the test module runs, so a row costs milliseconds. A row may leave coroutines running: they are
terminated after it, on both sides, and one that does not end fails it, as does a far process that ended unasked. What the
sides wrote on standard error during a row stands beneath its failure; noise in it (SIDE_NOISE) fails the last row.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial, wraps
from pathlib import Path
from typing import Any, Protocol

import pytest

from tests.support import commands
from tests.support.far_side import START_LIMIT, end_side, first_line, python, start_side
from tests.support.near_side import PASSED, READY, NearSide, Plan, Row, from_row, line_for
from tests.support.netns import Lan, needs_namespaces

WAYS = SAME_PROCESS, *TWO_PROCESSES = "same process", "two processes", "two namespaces"
MARKS = {"same process": [], "two processes": [pytest.mark.system], "two namespaces": [pytest.mark.system, needs_namespaces]}
# A coroutine that fails before anybody asks for its result is logged with its traceback, and rightly so.
SIDE_NOISE = [words for words in commands.NOISE if words != "Traceback"]
ROW_LIMIT = 10.0  # seconds; rows wait for less by themselves, so that they say what did not come
MARGIN = 12.0  # seconds more for a near side to clear up after a row, or to give it up


def three_ways(row: Row | None = None, *, ways: Sequence[str] = WAYS, limit: float = ROW_LIMIT) -> Any:
    """Make three tests of a row, or fewer by `ways`; each must be over in `limit` seconds."""
    if row is None:
        return partial(three_ways, ways=ways, limit=limit)

    @wraps(row)
    def test(request: pytest.FixtureRequest, way: str, **arguments: Any) -> None:
        near_side(request, way).run(row, arguments, limit)

    own = [each for name, each in inspect.signature(row).parameters.items() if name not in ("far", "coro")]
    given = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("request", "way")]
    test.__signature__ = inspect.Signature([*given, *own])  # type: ignore[attr-defined]
    test.row = row  # type: ignore[attr-defined]
    return pytest.mark.parametrize("way", marked(ways))(test)


def marked(ways: Sequence[str]) -> list[Any]:
    """These ways as parameters, skipped where they cannot be."""
    return [pytest.param(way, marks=MARKS[way]) for way in ways]


def in_both_styles(name: str, generator: Row, coroutine: Row) -> Any:
    """`parametrize` for a far function that is written in both styles."""
    assert inspect.isgeneratorfunction(generator) and inspect.iscoroutinefunction(coroutine)
    return pytest.mark.parametrize(name, [generator, coroutine], ids=["generator", "async def"])


KEPT = pytest.StashKey[dict[str, "Near"]]()


def near_side(request: pytest.FixtureRequest, way: str) -> Near:
    """The near side of that way, opened once for a test module and closed with it."""
    module = request.node.getparent(pytest.Module)
    kept: dict[str, Near] = module.stash.setdefault(KEPT, {})
    if way not in kept:
        factory: pytest.TempPathFactory = request.getfixturevalue("tmp_path_factory")
        kept[way] = open_way(way, factory.mktemp(way.replace(" ", "-")))
        module.addfinalizer(lambda: kept.pop(way).close())
    return kept[way]


def open_way(way: str, directory: Path) -> Near:
    """A near side with a far side, by the name of the way; to be closed."""
    if way == "two namespaces":
        return InNamespaces(directory)
    return InThisProcess(directory, None if way == "same process" else ())


class Near(Protocol):
    """What runs rows in one of the ways."""

    def run(self, row: Row, arguments: dict[str, Any], limit: float = ROW_LIMIT) -> None:
        """Run a row; raises what went wrong with it, with a note of what the sides wrote meanwhile."""

    def close(self) -> None:
        """End everything; fails where a side left noise in its log."""


class Logs:
    """What the sides write on standard error."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def sizes(self) -> dict[str, int]:
        return {log.name: log.stat().st_size for log in self._directory.glob("*.log")}

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """What is written in the block stands in a note of the error that leaves it."""
        before = self.sizes()
        try:
            yield
        except BaseException as error:
            for log in sorted(self._directory.glob("*.log")):
                if text := log.read_bytes()[before.get(log.name, 0) :].decode(errors="replace"):
                    error.add_note(f"--- {log.name}\n{text}")
            raise

    def refuse_noise(self) -> None:
        for log in self._directory.glob("*.log"):
            text = log.read_text(errors="replace")
            noisy = [word for word in SIDE_NOISE if word in text]
            assert not noisy, f"{log.name} has {noisy} in it:\n{text}"


class InThisProcess:
    """The near side in the process of the test, the far side there too (`command` None) or beside it."""

    def __init__(self, directory: Path, command: tuple[str, ...] | None) -> None:
        self._logs = Logs(directory)
        self._near = NearSide(Plan(directory=str(directory), far_command=command))
        self._runner = asyncio.Runner()
        self._runner.run(self._near.__aenter__())

    def run(self, row: Row, arguments: dict[str, Any], limit: float = ROW_LIMIT) -> None:
        __tracebackhide__ = True
        with self._logs.noted():
            try:
                self._runner.run(self._near.run(row, arguments, limit))
            except (Exception, pytest.fail.Exception) as error:
                raise error.with_traceback(from_row(error, row)) from error.__cause__

    def close(self) -> None:
        with self._runner:
            self._runner.run(self._near.__aexit__(None, None, None))
        self._logs.refuse_noise()


class InNamespaces:
    """Both sides in processes of their own, each in a network namespace; the near one starts the far one."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._logs = Logs(directory)
        self._near: subprocess.Popen[bytes] | None = None
        self._started = 0
        self._resources = contextlib.ExitStack()
        self._lan = self._resources.enter_context(Lan(["near", "far"]))

    def run(self, row: Row, arguments: dict[str, Any], limit: float = ROW_LIMIT) -> None:
        __tracebackhide__ = True
        with self._logs.noted():
            answer = self._answer(line_for(row, arguments, limit), limit)
            if answer != PASSED:
                raise AssertionError(f"in the namespaces:\n{answer}")

    def close(self) -> None:
        with self._resources:
            status = end_side(self._near) if self._near else 0
        assert status == 0, f"the near side was to leave in order, and ended with {status}"
        self._logs.refuse_noise()

    def _answer(self, line: bytes, limit: float) -> Any:
        """What the near side, started anew where it ended in the row before, says to a line."""
        __tracebackhide__ = True
        near = self._near = self._near or self._start()
        assert near.stdin is not None
        try:
            near.stdin.write(line)
            return first_line(near, START_LIMIT + limit + MARGIN)
        except BaseException:
            end_side(near, signal.SIGKILL)
            self._near = None
            raise

    def _start(self) -> subprocess.Popen[bytes]:
        self._started += 1
        far_holder = self._lan.holders[-1]
        into_far = ("nsenter", "--target", str(far_holder), *self._lan.way.nsenter, "--net", "--")
        hosts = {"near_host": self._lan.address("near"), "far_host": self._lan.address("far")}
        plan = Plan(directory=str(self._directory), far_command=into_far, **hosts)
        command = [*python("tests.support.near_side"), plan.to_json()]
        near = start_side(command, self._directory / f"near-{self._started}.log", partial(self._lan.popen, "near"))
        ready = first_line(near, START_LIMIT)
        assert ready == READY, ready
        return near
