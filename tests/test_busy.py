"""Busy: when it is told, which line is shown, in which words; then with real workers, in Python, in C, and stopped."""

from __future__ import annotations

import asyncio
import ctypes
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import discoro
from discoro import Computation, CoroRef, packing
from discoro.busy import BUSY, STOPPED, TOLD_AFTER, Answering, is_whole, line_of, told
from discoro.errors import ConfigError, ProtocolError, Timeout
from discoro.responding import catches
from discoro.status import NodeStatus, WorkerStatus, packed_status, unpacked_status
from tests.support.commands import Machines, NodeCommand

# ------------------------------------------------------------------ bad input first


@pytest.mark.parametrize(
    ("value", "rows"),
    [
        (None, []),
        ({"slots": "2"}, []),
        ({"slots": 1}, [1]),
        ({"slots": 1}, [["1", None, "", "", 0.0, "", False, 0]]),
        ({"slots": 1}, [[1, None, "", "", 0.0, "", False]]),
    ],
)
def test_what_is_no_status_is_refused(value: Any, rows: list[Any]) -> None:
    with pytest.raises(ProtocolError):
        unpacked_status("ada", value, packing.pack(rows))


@pytest.mark.parametrize("stack", [[], ["Stack (most recent call first):"], ["here"], ['  File "x"'], ["\x00" * 200]])
def test_what_is_no_stack_stands_nowhere(stack: list[str]) -> None:
    assert line_of(stack, ()) == ""


# ------------------------------------------------------------------ deciding


def test_one_question_at_a_time() -> None:
    answering = Answering()
    assert answering.ask(0)
    assert not answering.ask(1)
    answering.answered(1.5)
    assert answering.ask(2)


def test_it_is_told_after_ten_seconds_then_at_twice_as_many() -> None:
    answering = Answering()
    answering.ask(0)
    assert [second for second in range(1, 100) if answering.tells(second)] == [10, 20, 40, 80]
    assert answering.answered(100) == 100
    answering.ask(101)
    assert [second for second in range(102, 130) if answering.tells(second)] == [111, 121]


def test_a_jump_over_several_of_them_is_told_once() -> None:
    answering = Answering()
    answering.ask(0)
    assert answering.tells(75)
    assert [second for second in range(76, 100) if answering.tells(second)] == [80]


def test_what_was_not_told_is_not_taken_back() -> None:
    answering = Answering()
    answering.ask(0)
    assert answering.due(1) == 0
    assert answering.due(TOLD_AFTER - 1) == TOLD_AFTER - 1
    assert answering.answered(TOLD_AFTER - 1) == 0
    assert answering.due(1000) == 0


STACK = [
    "Stack (most recent call first):",
    '  File "/usr/lib/python3.11/re/__init__.py", line 166 in match',
    '  File "/venv/site-packages/tool/core.py", line 1 in work',
    '  File "/home/ada/model.py", line 31 in crunch',
    '  File "/home/ada/model.py", line 40 in main',
    '  File "/opt/discoro/driving.py", line 9 in send',
    '  File "<frozen runpy>", line 198 in _run_module_as_main',
]


def test_the_users_innermost_line_is_shown() -> None:
    foreign = ("/usr/lib/python3.11/", "/venv/site-packages/", "/opt/discoro/")
    assert line_of(STACK, foreign) == "`crunch` at model.py:31"
    assert line_of([each for each in STACK if "ada" not in each], foreign) == "`match` at __init__.py:166"
    assert line_of(['  File "/usr/lib/python3.11/selectors.py", line 468 in select', *STACK], foreign) == ""


def test_where_a_stack_ends() -> None:
    assert [is_whole(line) for line in (*STACK, "  ...")] == [False] * 6 + [True, True]


def test_a_signal_that_nobody_handles_is_seen() -> None:
    asleep = subprocess.Popen(["sleep", "600"])
    try:
        while b"python" in Path(f"/proc/{asleep.pid}/cmdline").read_bytes():  # it is still in exec
            pass
        assert catches(os.getpid(), signal.SIGINT) and not catches(asleep.pid, signal.SIGUSR1)
    finally:
        asleep.kill()
        asleep.wait()


def test_words() -> None:
    assert told("worker ada/4711", 12.3, BUSY, "`crunch` at model.py:31") == (
        "worker ada/4711 has been busy for 12 s, in `crunch` at model.py:31"
    )
    assert "has been stopped for 3 s" in told("worker ada/4711", 3.0, STOPPED, "")
    assert told("x", 3.0, BUSY, "") == "x has been busy for 3 s"


def test_a_status_arrives_as_it_was() -> None:
    workers = (
        WorkerStatus("ada", 1, None, "", (), 0.0, "", False, 0),
        WorkerStatus("ada", 2, 0, "eve/9", ("crunch", "sum"), 12.5, "`crunch` at model.py:31", False, 1 << 30),
    )
    status = unpacked_status("ada", {"slots": 2}, packed_status(workers))
    assert status == NodeStatus("ada", 2, workers)
    assert [str(each) for each in workers] == [
        "worker ada/1 is warm",
        "worker ada/2 has been busy for 12 s, in `crunch` at model.py:31",
    ]


# ------------------------------------------------------------------ real workers


def crunch(path: str, coro: Any = None) -> Any:
    """Busy in Python until the file is there; signals that programs use have handlers of its own."""
    print("a line of the user's", flush=True)
    for name in ("SIGUSR1", "SIGUSR2", "SIGRTMIN", "SIGRTMAX") if hasattr(signal, "SIGRTMAX") else ():  # else one is discoro's
        signal.signal(getattr(signal, name), lambda *_: print("a signal of the user's"))
    yield coro.sleep(0)
    while not os.path.exists(path):
        pass
    return os.getpid()


def hold(path: str, coro: Any = None) -> Any:
    """Busy in C, with the interpreter's lock held, until the file is there."""
    print("a line of the user's", flush=True)
    yield coro.sleep(0)
    while not os.path.exists(path):
        ctypes.PyDLL(None).usleep(300_000)
    return os.getpid()


def wait(coro: Any = None) -> Any:
    yield coro.receive()


async def busy_one(server: CoroRef) -> WorkerStatus:
    """The first worker of a client that is told to be busy, and where."""
    async with asyncio.timeout(60):
        while True:
            for worker in (await discoro.status(server)).workers:
                if worker.busy and worker.client and (worker.line or worker.stopped):
                    return worker


def with_a_node(tmp_path: Path, work: Callable[[NodeCommand], Any], **more: Any) -> str:
    """Do that in a mesh beside a node; what the node wrote."""
    with Machines(tmp_path) as machines:
        node = machines.node("ada", "-c", "1")

        async def program() -> None:
            options: dict[str, Any] = {"mdns": False, "ip_addr": ["127.0.0.1"], "key_file": tmp_path / "cluster.key"}
            async with discoro.Mesh(peers=[node.address], **options, **more) as mesh:
                await mesh.run(work, node)

        asyncio.run(program())
        return node.output


@pytest.mark.slow
@pytest.mark.parametrize("function", [crunch, hold])
def test_a_busy_worker_is_shown_with_its_line_and_nobody_takes_it_for_dead(tmp_path: Path, function: Any) -> None:
    async def work(node: NodeCommand, coro: Any = None) -> None:
        server = await discoro.Coro.locate("discoro_server", timeout=30)
        computation = Computation(function)
        await computation.setup(server)
        remote = await computation.run(server, str(tmp_path / "enough"))
        await coro.monitor(remote)
        status = await busy_one(server)
        assert re.fullmatch(rf"`{function.__name__}` at test_busy.py:\d+", status.line)
        assert (status.computations, status.slot, status.stopped) == ((function.__name__,), 0, False)
        assert status.client.endswith(f"/{os.getpid()}")
        assert await computation.ping(server) == 0
        said = rf"! worker ada/{status.pid} has been busy for 1\d s, in `{function.__name__}` at test_busy.py:\d+"
        await asyncio.to_thread(node.until_output, lambda output: bool(re.search(said, output)), 60)
        assert await coro.receive(0) is None
        (tmp_path / "enough").touch()
        notice = await coro.receive(60)
        assert (notice.reason, notice.value) == ("normal", status.pid)
        again = f"= worker ada/{status.pid} goes on: it did not answer for 1"
        await asyncio.to_thread(node.until_output, lambda output: again in output, 60)
        await computation.close(server)

    output = with_a_node(tmp_path, work)
    assert "a line of the user's" in output
    assert "Stack (most recent" not in output
    assert "a signal of the user's" not in output


@pytest.mark.slow
def test_a_stopped_worker_is_called_stopped_and_goes_on(tmp_path: Path) -> None:
    async def work(node: NodeCommand, coro: Any = None) -> None:
        server = await discoro.Coro.locate("discoro_server", timeout=30)
        computation = Computation(crunch)
        await computation.setup(server)
        (tmp_path / "enough").touch()
        pid = await (await computation.run(server, str(tmp_path / "enough"))).result()
        os.kill(pid, signal.SIGSTOP)
        try:
            status = await busy_one(server)
            assert (status.pid, status.stopped, status.line) == (pid, True, "")
            assert f"ada/{pid} has been stopped for" in str(status)
            said = f"! worker ada/{pid} has been stopped for 1"
            await asyncio.to_thread(node.until_output, lambda output: said in output, 60)
        finally:
            os.kill(pid, signal.SIGCONT)
        again = f"= worker ada/{pid} goes on"
        await asyncio.to_thread(node.until_output, lambda output: again in output, 60)
        assert await (await computation.run(server, str(tmp_path / "enough"))).result() == pid
        await computation.close(server)

    with_a_node(tmp_path, work)


@pytest.mark.slow
def test_a_stopped_worker_is_lost_to_its_client_and_alive_to_its_node(tmp_path: Path) -> None:
    async def work(node: NodeCommand, coro: Any = None) -> None:
        server = await discoro.Coro.locate("discoro_server", timeout=30)
        (tmp_path / "enough").touch()
        computation, waiting = Computation(crunch), Computation(wait)
        await computation.setup(server)
        await waiting.setup(server)
        pid = await (await computation.run(server, str(tmp_path / "enough"))).result()
        await coro.monitor(await waiting.run(server))
        os.kill(pid, signal.SIGSTOP)
        try:
            notice = await coro.receive(timeout=60)
            assert notice.reason == "peer lost"
            assert "unreachable for 2 s" in str(notice.error)
            status = next(each for each in (await discoro.status(server)).workers if each.pid == pid)
            assert status.stopped
        finally:
            os.kill(pid, signal.SIGCONT)
        await computation.setup(server, timeout=60)
        assert await (await computation.run(server, str(tmp_path / "enough"))).result()
        assert await coro.receive(timeout=0) is None
        await computation.close(server)

    with_a_node(tmp_path, work, peer_timeout=2)


def test_a_setup_that_ran_out_of_time_says_what_kept_it(tmp_path: Path) -> None:
    async def work(node: NodeCommand, coro: Any = None) -> None:
        server = await discoro.Coro.locate("discoro_server", timeout=30)
        computation = Computation(crunch)
        await computation.setup(server)
        await computation.run(server, str(tmp_path / "never"))
        await busy_one(server)
        kept = r"given up; worker ada/\d+ has been busy for \d+ s, in `crunch` at test_busy.py:\d+"
        with pytest.raises(Timeout, match=kept):
            await computation.setup(server, timeout=1)
        with pytest.raises(ConfigError, match="is a client and has no workers"):
            await discoro.status(coro.ref)

    with_a_node(tmp_path, work)
