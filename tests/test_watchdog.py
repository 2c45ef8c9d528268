"""A blocked loop is named, once, with the user's line; by values first, then with loops that really are blocked."""

from __future__ import annotations

import asyncio
import logging
import re
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from discoro import Computation, Coro, Mesh
from discoro import watchdog as module
from discoro.watchdog import BLOCKED_AFTER, SHOWN_LINES, Pulse, debugging, lines_of, watch
from tests.support.nodes import a_node

LONG = BLOCKED_AFTER


class Said(logging.Handler):
    """What the watchdog says, as it says it, in its own thread; `first` is set by the first of it."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.first, self.back = threading.Event(), threading.Event()
        self.thread = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if self.first.is_set():
            self.back.set()
        else:
            self.thread = record.threadName or ""
            self.first.set()

    def __enter__(self) -> Said:
        logging.getLogger("discoro.watchdog").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("discoro.watchdog").removeHandler(self)


# When there is something to say.


def test_a_loop_that_answers_is_left_alone() -> None:
    pulse = Pulse()
    for now in (0.0, 0.5, 1.0, 100.0):
        assert pulse.ask(now)
        assert pulse.look(now + LONG - 0.1) is None
        assert pulse.answered(now + LONG - 0.1) is None


def test_it_is_asked_once_until_it_answers() -> None:
    pulse = Pulse()
    assert pulse.ask(0.0)
    assert not pulse.ask(0.1)
    pulse.answered(0.2)
    assert pulse.ask(0.3)


def test_a_block_is_said_once_and_once_more_when_it_is_over() -> None:
    pulse = Pulse()
    pulse.ask(10.0)
    assert [pulse.look(10.0 + after) for after in (0.5, LONG, LONG + 0.1, 60.0)] == [None, LONG, None, None]
    assert pulse.answered(73.2) == pytest.approx(63.2)
    assert pulse.look(73.3) is None


def test_the_next_block_is_another() -> None:
    pulse = Pulse()
    for start in (0.0, 10.0):
        pulse.ask(start)
        assert pulse.look(start + LONG) == LONG
        assert pulse.answered(start + 3) == 3


def test_a_block_in_which_nobody_could_look_is_told_when_it_is_over() -> None:
    pulse = Pulse()
    pulse.ask(0.0)
    assert pulse.answered(3.2) == 3.2


def test_an_answer_nobody_asked_for_says_nothing() -> None:
    pulse = Pulse()
    assert pulse.answered(100.0) is None
    assert pulse.look(100.0) is None


# Whether to watch at all.


@pytest.mark.parametrize(("value", "wanted"), [(None, False), ("", False), ("0", False), ("1", True), ("yes", True)])
def test_the_variable_switches_it_on(monkeypatch: pytest.MonkeyPatch, value: str | None, wanted: bool) -> None:
    if value is not None:
        monkeypatch.setenv("DISCORO_DEBUG", value)
    with asyncio.Runner(debug=False) as runner:
        assert debugging(runner.get_loop()) is wanted
        assert debugging(runner.get_loop(), True)


def test_what_debugs_asyncio_debugs_discoro() -> None:
    with asyncio.Runner(debug=True) as runner:
        assert debugging(runner.get_loop())


def watchdogs() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "discoro watchdog"]


@pytest.mark.parametrize("debug", [False, True])
def test_a_mesh_starts_a_thread_and_debugs_asyncio_if_asked_and_only_for_its_life(tmp_path: Path, debug: bool) -> None:
    async def program() -> None:
        loop = asyncio.get_running_loop()
        async with Mesh(**alone(tmp_path), debug=debug) as mesh:
            assert (mesh.debug, loop.get_debug(), len(watchdogs())) == (debug, debug, int(debug))
        assert not loop.get_debug()
        assert watchdogs() == []

    asyncio.run(program(), debug=False)


# Where it stands.


def here() -> Any:
    return sys._getframe()


def test_the_innermost_lines_are_shown_the_last_one_last() -> None:
    def deep(n: int) -> Any:
        return deep(n - 1) if n else lines_of(here())

    lines = deep(100)
    assert len(lines) == SHOWN_LINES
    assert [line.name for line in lines] == ["deep"] * (SHOWN_LINES - 1) + ["here"]


def test_the_loop_and_what_is_around_it_are_cut() -> None:
    async def users() -> Any:
        return lines_of(here())

    assert [line.name for line in asyncio.run(users())] == ["users", "here"]


def test_a_loop_that_waits_has_no_line() -> None:
    found: list[Any] = []

    async def look() -> None:
        loop, this = asyncio.get_running_loop(), threading.get_ident()
        woken = loop.create_future()

        def in_thread() -> None:
            while not found:  # a look may come between two turns, where there is no line either
                frame = sys._current_frames()[this]
                if frame.f_code.co_name == "select":
                    found.append(lines_of(frame))
            loop.call_soon_threadsafe(woken.set_result, None)

        threading.Thread(target=in_thread).start()
        await woken

    asyncio.run(look())
    assert [list(each) for each in found] == [[]]


def test_where_all_lines_are_ours_they_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    async def users() -> Any:
        return lines_of(here())

    monkeypatch.setattr(module, "_OURS", (*module._OURS, __file__))
    assert [line.name for line in asyncio.run(users())] == ["_run", "users", "here"]


def test_no_thread_has_no_line() -> None:
    assert list(lines_of(None)) == []


# Loops that are blocked.


def alone(tmp_path: Path) -> dict[str, Any]:
    return {"key_file": tmp_path / "key", "ip_addr": ["127.0.0.1"], "mdns": False}


def blocked(until: threading.Event) -> None:
    assert until.wait(30), "nobody noticed"  # the user's line


def generator(until: threading.Event) -> Any:
    yield
    blocked(until)


async def native(until: threading.Event) -> None:
    blocked(until)


async def in_a_task(until: threading.Event) -> None:
    async with asyncio.TaskGroup() as group:
        group.create_task(native(until), name="the part")


@pytest.mark.parametrize(
    ("function", "who"),
    [(generator, "the coroutine generator (ada/"), (native, "the coroutine native (ada/"), (in_a_task, "the task the part;")],
)
def test_a_block_is_named_with_the_coroutine_and_the_users_line(tmp_path: Path, function: Callable[..., Any], who: str) -> None:
    async def program(said: Said) -> float:
        async with Mesh(**alone(tmp_path), name="ada", debug=True) as mesh:
            start = time.monotonic()
            await mesh.run(function, said.first)
            took = time.monotonic() - start
            assert await asyncio.to_thread(said.back.wait, 30)
            return took

    with Said() as said:
        took = asyncio.run(program(said), debug=False)
    first, back = said.lines
    assert LONG <= took < LONG + 10  # at least that long; how much longer depends on the machine
    assert said.thread == "discoro watchdog"
    assert re.match(r"! the event loop has been blocked for [1-9]\d?\.\d s ", first)
    assert f"by {who}" in first
    shown = [line.strip() for line in first.splitlines()]
    assert shown[2] == "blocked(until)" and shown[4] == 'assert until.wait(30), "nobody noticed"  # the user\'s line'
    assert f'File "{__file__}"' in shown[1] and "threading.py" in shown[5]  # whom that line calls
    assert "asyncio.to_thread" in shown[-1]
    assert re.fullmatch(r"! the event loop goes on: it was blocked for [1-9]\d?\.\d s", back)


def test_a_callback_that_blocks_is_named_too() -> None:
    async def program(said: Said) -> None:
        with watch(str):
            asyncio.get_running_loop().call_soon(blocked, said.first)
            assert await asyncio.to_thread(said.back.wait, 30)

    with Said() as said:
        asyncio.run(program(said))
    assert "by a callback;" in said.lines[0] and "in blocked\n" in said.lines[0]


def test_a_loop_closed_within_the_block_ends_the_thread() -> None:
    async def program() -> threading.Thread:
        context = watch(str)
        context.__enter__()
        kept.append(context)  # its end would stop the thread
        return watchdogs()[0]

    kept: list[Any] = []
    asyncio.run(program()).join(30)
    assert watchdogs() == []


# Workers: what they say reaches the output of their node.


def busy(coro: Any = None) -> Any:
    import logging
    import threading

    named = threading.Event()
    logging.getLogger("discoro.watchdog").addFilter(lambda record: named.set() or True)  # it is only looked at here
    yield coro.sleep(0)
    assert named.wait(30)  # the worker's line


async def blocks_a_worker() -> None:
    server = await Coro.locate("discoro_server", timeout=30)
    computation = Computation(busy)
    await computation.setup(server)
    await (await computation.run(server)).result()
    await computation.close(server)


def names_the_line(output: str) -> bool:
    """With the node's mark before each line: which process of which machine."""
    said = re.search(
        r"(?m)^\[(\S+/\d+)\] ! the event loop has been blocked for [1-9]\d?\.\d s by the coroutine busy \(\1/\d+\)", output
    )
    return bool(said and f"[{said[1]}]     assert named.wait(30)  # the worker's line\n" in output[said.end() :])


def test_a_node_in_debug_has_its_workers_name_the_line(tmp_path: Path) -> None:
    async def program(peer: str) -> None:
        async with Mesh(key_file=tmp_path / "cluster.key", ip_addr=["127.0.0.1"], mdns=False, peers=[peer]):
            await blocks_a_worker()

    with a_node(tmp_path, "-d", "-c", "1") as node:
        asyncio.run(program(node.address))
    assert names_the_line(node.output)


def test_a_local_mesh_in_debug_has_its_workers_name_the_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def program() -> None:
        async with Mesh(key_file=tmp_path / "cluster.key", local=True, local_options=["-c", "1"], debug=True):
            await blocks_a_worker()

    asyncio.run(program())
    output = capfd.readouterr().err
    assert names_the_line(output)
    assert "DEBUG" not in output  # it logs no steps: that is -d
